"""Generate one image with diffusers: run `diffusers_script` in its environment, follow it, and end it.

The user's Python settings, proxies and tokens are not passed to the script, and only its measurements are trusted: the
image itself is read from the disk.  Where klein-setup is killed, the script ends itself, because its
sign of life, every second, can no longer be written.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO

from provisioner.core.errors import CommandError, NotWritableError, SmokeTestError, StorageError
from provisioner.core.ports import Cancelled, RunProcess
from provisioner.core.redact import printable, redact
from provisioner.disk.os_errors import reason_of
from provisioner.disk.root import Root
from provisioner.machine.child_environment import child_environment
from provisioner.smoke_test.diffusers_answers import (
    Answer,
    DiffusersRun,
    GenerationDone,
    GenerationEvent,
    GenerationFailed,
    OffloadOptions,
    after,
    explain,
    explain_death,
    explain_timeout,
    parse_answer,
)
from provisioner.smoke_test.results import ImageOptions

SCRIPT = Path(__file__).with_name("diffusers_script.py")

OnGenerationEvent = Callable[[GenerationEvent], None]

_DROPPED = ("HF_", "HUGGING", "TRANSFORMERS_")
_KEPT = ("HF_ENDPOINT",)  # harmless with the network off; a rehearsal uses it to detect requests


def _silent(_: GenerationEvent) -> None:
    """Ignore the event."""


def _never() -> bool:
    """Return False: never cancelled."""
    return False


def generate_with_diffusers(
    python: Path,
    *,
    run: RunProcess,
    cache: Path,
    repo_id: str,
    revision: str,
    options: ImageOptions,
    output: Path,
    log_path: Path,
    timeout_s: float,
    device: str = "auto",
    offload: OffloadOptions = "auto",
    environ: Mapping[str, str] | None = None,
    pass_env: Collection[str] = (),
    cancelled: Cancelled = _never,
    on_event: OnGenerationEvent = _silent,
    script: Path = SCRIPT,
) -> DiffusersRun:
    """Return an image generated with the pipeline of one commit in an HF cache, without network access.

    Parameters
    ----------
    python : Path
        The environment's interpreter.
    run : RunProcess
        Starts programs.
    cache : Path
        The HF cache: the folder that contains ``models--*``.
    repo_id, revision : str
        The repository and its commit, 40 hex digits.
    options : ImageOptions
        Describes the image.
    output : Path
        Path of the PNG; an existing file is replaced only by a complete image.
    log_path : Path
        File for all output of the script and the libraries.
    timeout_s : float
        Seconds until it is ended.
    device : str
        ``auto``, ``cuda:0``, ``mps``, ``xpu:0`` or ``cpu``.
    offload : str
        What is kept in RAM until needed; ``auto`` decides by the free memory of the device.
    environ : mapping, optional
        The user's environment variables; ours where None.
    pass_env : collection of str
        Names of those that the script gets as well.
    cancelled : callable
        Called at least once a second while the script runs.
    on_event : callable
        Called with every event; the first names the process, for NVML.

    Returns
    -------
    DiffusersRun
        The image's bytes and the measurements.

    Raises
    ------
    SmokeTestError
        No image was generated; ``kind`` is in the context, and the hint says what to do.
    NotWritableError
        The log or the image's folder cannot be written.
    KeyboardInterrupt
        The run was cancelled.
    """
    words = _words(options, cache=cache, repo_id=repo_id, revision=revision, output=output)
    words += ["--device", device, "--offload", offload]
    began = time.monotonic()
    with _opened(log_path, output) as log:
        follower = _Follower(log, cancelled, on_event)
        try:
            done = run(
                [python, "-I", script, *words],
                timeout_s=timeout_s,
                env=clean_environment(os.environ if environ is None else environ, pass_env),
                on_line=follower.take,
            )
        except CommandError as error:
            if error.context.get("reason") != "timeout":
                raise _not_started(error, python) from error
            where = after(follower.last)
            raise explain_timeout(timeout_s, phase=where, repo_id=repo_id, log_path=log_path) from error
    answer = follower.answer
    if isinstance(answer, GenerationFailed):
        raise explain(answer, repo_id=repo_id, log_path=log_path)
    if answer is None or done.returncode != 0:
        phase = None if answer is not None else after(follower.last)
        raise explain_death(done.returncode, done.last_lines, phase=phase, repo_id=repo_id, log_path=log_path)
    return DiffusersRun(image=_read(answer, output), done=answer, log_path=log_path, seconds=time.monotonic() - began)


def clean_environment(environ: Mapping[str, str], pass_env: Collection[str] = ()) -> dict[str, str]:
    """Return the variables of a child, without the Hub's and proxy settings, with UTF-8 output."""
    kept = {
        name: value
        for name, value in child_environment(environ, pass_env).items()
        if name in {*_KEPT, *pass_env} or not (name.upper().startswith(_DROPPED) or name.upper().endswith("_PROXY"))
    }
    return {**kept, "PYTHONUTF8": "1"}


def _words(options: ImageOptions, *, cache: Path, repo_id: str, revision: str, output: Path) -> list[str | Path]:
    words: list[str | Path] = [
        "--cache", cache.absolute(),
        "--repo", repo_id,
        "--revision", revision,
        f"--prompt={options.prompt}",  # with "=": a prompt may begin with a dash
        "--seed", str(options.seed),
        "--width", str(options.width),
        "--height", str(options.height),
        "--steps", str(options.steps),
        "--guidance", str(options.guidance),
        "--output", output.absolute(),
    ]  # fmt: skip
    return [*words, "--tiled"] if options.has_tiled_decode else words


class _Follower:
    """Handles every line: writes it to the log, parses the script's own, and stops a cancelled run."""

    def __init__(self, log: IO[str], cancelled: Cancelled, on_event: OnGenerationEvent) -> None:
        self.last: GenerationEvent | None = None  # except signs of life
        self.answer: GenerationDone | GenerationFailed | None = None
        self._log, self._cancelled, self._on_event = log, cancelled, on_event

    def take(self, stream: str, line: str) -> None:
        """Handle one line; raises KeyboardInterrupt when the run was cancelled."""
        if self._cancelled():
            raise KeyboardInterrupt
        answer: Answer | None = parse_answer(line) if stream == "stdout" else None
        if not isinstance(answer, GenerationEvent) or answer.name != "alive":
            self._log.write(redact(printable(line)).rstrip() + "\n")
            self._log.flush()
        if isinstance(answer, GenerationEvent):
            if answer.name != "alive":
                self.last = answer
            self._on_event(answer)
        elif answer is not None:
            self.answer = answer


@contextlib.contextmanager
def _opened(log_path: Path, output: Path) -> Iterator[IO[str]]:
    """Create both folders and yield the open log; raises NotWritableError."""
    try:
        Root(output.parent).make_folder()
        Root(log_path.parent).make_folder()
        log = Root(log_path.parent).open_log(log_path, is_new=True)
    except StorageError as error:
        thing = str(error.context.get("path", log_path))
        raise NotWritableError(
            f"{thing} cannot be written: {reason_of(error)}.", hint="Name another folder.", path=thing
        ) from error
    with io.TextIOWrapper(log, encoding="utf-8", errors="replace") as text:
        yield text


def _read(answer: GenerationDone, output: Path) -> bytes:
    try:
        return output.read_bytes()
    except OSError as error:
        raise SmokeTestError(
            f"The script saved the image as {answer.image_path}, but it cannot be read: {error}.",
            hint="Check whether another program moves or scans the folder's files.",
            kind="no-picture",
        ) from error


def _not_started(error: CommandError, python: Path) -> SmokeTestError:
    return SmokeTestError(
        f"The environment's Python does not start: {error}",
        hint="Create the environment again: `klein-setup install --only environment`.",
        kind="no-python",
        python=str(python),
    )
