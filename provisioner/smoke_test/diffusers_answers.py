"""Parse the output of `diffusers_script`: progress, an image with its figures, or why there is none and what to do.

Pure: it reads lines and exit statuses.  Only numbers are accepted as figures, and no cause is guessed that the output
does not name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from provisioner.core.errors import MemoryExhaustedError, SmokeTestError
from provisioner.core.json_reader import FieldError, Fields, parse_object
from provisioner.core.models import Finding
from provisioner.core.units import human_bytes, human_duration
from provisioner.smoke_test.results import ImageFacts, ImageOptions, SmokeTest, Timings, VramReading

GenerationPhase = Literal["started", "alive", "imported", "loaded", "encoded", "step", "decoded"]
Offload = Literal["none", "model", "sequential"]
OffloadOptions = Literal["auto", "none", "model", "sequential"]
Dtype = Literal["bf16", "fp32"]

_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationEvent:
    """One report on the way to the image."""

    name: GenerationPhase
    seconds: float | None = None  # it took; for "alive": since the start
    pid: int | None = None  # for "started": the script's process, for NVML
    ram_bytes: int | None = None  # for "alive": its peak so far
    number: int | None = None  # for "step", from 1
    total: int | None = None

    @property
    def next_phase(self) -> str | None:
        """What begins after it, in the words of `VramReading.phases`; None where nothing new does."""
        if self.name == "step":
            return "decode" if self.number == self.total else None
        return {"imported": "load", "loaded": "encode", "encoded": "sample", "decoded": "save"}.get(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDevice:
    """The device that generated the image."""

    place: str  # "cuda:0", "cpu"
    name: str | None = None  # "NVIDIA GeForce RTX 4070"
    uuid: str | None = None  # lower case, without "GPU-"
    free_bytes: int | None = None  # before the models were loaded
    total_bytes: int | None = None

    @property
    def label(self) -> str:
        """Its place and name."""
        return self.place if self.name is None else f"{self.place} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationMemory:
    """The peaks of torch's memory, in bytes, without the driver's own part of a card's memory."""

    allocated_bytes: int | None = None  # in use by tensors
    reserved_bytes: int | None = None  # taken from the driver
    ram_bytes: int | None = None  # of the process


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDone:
    """An image was generated and saved."""

    image_path: Path
    timings: Timings
    device: GenerationDevice
    offload: Offload
    dtype: Dtype
    memory: GenerationMemory
    versions: tuple[tuple[str, str], ...]  # ("diffusers", "0.42.1")
    is_offline: bool
    refused_connections: tuple[str, ...] = ()  # hosts it tried to reach nevertheless


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFailed:
    """Why there is no image."""

    kind: str  # "out-of-memory", "snapshot-incomplete"; see `explain`
    message: str
    facts: tuple[tuple[str, object], ...] = ()  # what else is known, as JSON


Answer = GenerationEvent | GenerationDone | GenerationFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusersRun:
    """One image generated with diffusers, and everything known about it."""

    image: bytes  # the PNG
    done: GenerationDone
    log_path: Path
    seconds: float  # of the whole process

    def smoke_test(
        self,
        options: ImageOptions,
        *,
        image: ImageFacts | None = None,
        vram: VramReading | None = None,
        findings: Sequence[Finding] = (),
    ) -> SmokeTest:
        """Return it as a smoke test's result, with the given facts about the image and the card's memory."""
        return SmokeTest(
            backend="diffusers",
            options=options,
            timings=self.done.timings,
            image=image,
            image_path=self.done.image_path,
            vram=vram,
            device=self.done.device.label,
            versions=self.done.versions,
            log_path=self.log_path,
            notes=notes_about(self.done),
            findings=tuple(findings),
        )


def notes_about(done: GenerationDone) -> tuple[str, ...]:
    """Return sentences that explain the figures."""
    ways = {
        "none": "The whole pipeline stayed on the device.",
        "model": "Parts of the pipeline waited in RAM until they were needed (enable_model_cpu_offload).",
        "sequential": "Layers waited in RAM until they were needed (enable_sequential_cpu_offload); that is slow.",
    }
    notes = [] if done.device.place == "cpu" else [ways[done.offload]]
    if done.memory.allocated_bytes is not None and done.memory.reserved_bytes is not None:
        free = (
            "" if done.device.free_bytes is None else f" with {human_bytes(done.device.free_bytes)} free at the start"
        )
        notes.append(
            f"torch used at most {human_bytes(done.memory.allocated_bytes)} of the device and reserved "
            f"{human_bytes(done.memory.reserved_bytes)}{free}."
        )
    return tuple(notes)


# --- reading -----------------------------------------------------------------------------------


def parse_answer(line: str) -> Answer | None:
    """Return the value of one line of stdout; None where it is not the script's.

    Raises
    ------
    SmokeTestError
        It is the script's, but its content is wrong (``kind="not-understood"``).
    """
    said = parse_object(line)
    if said is None or not isinstance(said.get("event"), str):
        return None
    try:
        return _answer(said["event"], Fields(said))
    except FieldError as error:
        raise SmokeTestError(
            f"The image script's line {said['event']!r} is not understood: {error}.",
            hint="Reinstall klein-setup: its parts are of different versions.",
            kind="not-understood",
        ) from error


def _answer(event: str, facts: Fields) -> Answer | None:
    if event == "done":
        return _done(facts)
    if event == "failed":
        others = {key: value for key, value in facts.values.items() if key not in ("event", "kind", "message")}
        return GenerationFailed(kind=facts.text("kind"), message=facts.text("message"), facts=tuple(others.items()))
    for name in get_args(GenerationPhase):
        if event == name:
            return GenerationEvent(
                name=name,
                seconds=facts.optional_seconds("seconds"),
                pid=facts.optional_count("pid"),
                ram_bytes=facts.optional_count("ram_bytes"),
                number=facts.optional_count("number"),
                total=facts.optional_count("total"),
            )
    return None  # of a newer script


def _done(facts: Fields) -> GenerationDone:
    facts.exactly("schema_version", _SCHEMA_VERSION)
    return GenerationDone(
        image_path=Path(facts.inner("picture").text("path")),
        timings=_timings(facts.inner("seconds")),
        device=_device(facts.inner("device")),
        offload=facts.choice("offload", get_args(Offload), "none"),
        dtype=facts.choice("dtype", get_args(Dtype), "bf16"),
        memory=_memory(facts.inner("memory")),
        versions=_versions(facts.inner("versions")),
        is_offline=facts.flag("is_offline"),
        refused_connections=facts.texts("refused_connections"),
    )


def _versions(facts: Fields) -> tuple[tuple[str, str], ...]:
    return tuple((name, facts.text(name)) for name in facts.values)


def _timings(facts: Fields) -> Timings:
    return Timings(
        start_s=facts.optional_seconds("start"),
        load_s=facts.optional_seconds("load"),
        encode_s=facts.optional_seconds("encode"),
        steps_s=facts.list_of_seconds("steps"),
        decode_s=facts.optional_seconds("decode"),
        total_s=facts.optional_seconds("total"),
    )


def _device(facts: Fields) -> GenerationDevice:
    return GenerationDevice(
        place=facts.text("place"),
        name=facts.optional_text("name"),
        uuid=facts.optional_text("uuid"),
        free_bytes=facts.optional_count("free_bytes"),
        total_bytes=facts.optional_count("total_bytes"),
    )


def _memory(facts: Fields) -> GenerationMemory:
    return GenerationMemory(
        allocated_bytes=facts.optional_count("allocated_bytes"),
        reserved_bytes=facts.optional_count("reserved_bytes"),
        ram_bytes=facts.optional_count("ram_bytes"),
    )


# --- explaining failures-----------------------------------------------------------------------


def explain(failed: GenerationFailed, *, repo_id: str, log_path: Path | None = None) -> SmokeTestError:
    """Return the error for a failure, with what to do next.

    Parameters
    ----------
    failed : GenerationFailed
        The script's report.
    repo_id : str
        The repository of the pipeline.
    log_path : Path, optional
        File with the whole output.
    """
    message, hint = failed.message, _HINTS.get(failed.kind, _LOG_HINT)
    facts = Fields(dict(failed.facts))
    place = facts.values.get("device") or "the device"
    error: type[SmokeTestError] = SmokeTestError
    if failed.kind == "out-of-memory":
        error = MemoryExhaustedError
        message, hint = _out_of_memory(failed.message, str(place), facts)
    elif failed.kind == "no-kernel-image":
        message = f"the installed torch has no code for {place}. {message}"
    context = {key: value for key, value in failed.facts if key not in ("kind", "log", "hint", "message")}
    log = None if log_path is None else str(log_path)
    return error(
        f"diffusers generated no image with {repo_id}: {message}", hint=hint, kind=failed.kind, log=log, **context
    )


def explain_death(
    returncode: int, last_lines: Sequence[str], *, phase: str | None, repo_id: str, log_path: Path | None = None
) -> SmokeTestError:
    """Return the error for a script that ended without an answer.

    Parameters
    ----------
    returncode : int
        Its exit status; a negative one is the signal that ended it (POSIX).
    last_lines : sequence of str
        The end of its output.
    phase : str or None
        What it was doing, from `after`.
    """
    said = next((line.strip() for line in reversed(last_lines) if line.strip() and parse_answer(line) is None), None)
    during = f" {phase}" if phase else ""
    error: type[SmokeTestError]
    if returncode in _KILLED_FOR_RAM:
        message = f"the image process was ended by the system{during}: most likely the computer ran out of RAM."
        error, hint, kind = MemoryExhaustedError, _RAM_HINT, "out-of-memory"
    else:
        how = f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
        message = f"the image process ended with {how}{during} without an answer" + (f": {said}" if said else ".")
        error, hint, kind = SmokeTestError, _LOG_HINT, "died"
    context: dict[str, object] = {"returncode": returncode, "last_lines": list(last_lines)[-40:]}
    log = None if log_path is None else str(log_path)
    return error(f"diffusers generated no image with {repo_id}: {message}", hint=hint, kind=kind, log=log, **context)


def explain_timeout(
    timeout_s: float, *, phase: str | None, repo_id: str, log_path: Path | None = None
) -> SmokeTestError:
    """Return the error for a script that took too long and was ended."""
    during = f"; it was ended {phase}" if phase else ""
    return SmokeTestError(
        f"diffusers generated no image with {repo_id} within {human_duration(timeout_s)}{during}.",
        hint="Check whether other programs use the disk or the device; a CPU alone takes minutes.",
        kind="timeout",
        log=None if log_path is None else str(log_path),
    )


def after(event: GenerationEvent | None) -> str:
    """Return what the script was doing after an event, to follow a verb.

    >>> after(GenerationEvent(name="step", number=2, total=4))
    'after step 2 of 4'
    """
    if event is None:
        return "before it could begin"
    if event.name == "step":
        return f"after step {event.number} of {event.total}"
    return {
        "started": "while it imported torch and diffusers",
        "imported": "while it loaded the models",
        "loaded": "while it encoded the prompt",
        "encoded": "in the first step",
        "decoded": "while it saved the image",
    }.get(event.name, "while it ran")


_KILLED_FOR_RAM = (-9, 137, 0xC0000017, 0xC000012D)  # SIGKILL; Windows: no memory, paging file full
_LOG_HINT = "Read the log; the same command can be run again."
_RAM_HINT = "Close other programs or add swap: loading takes about as much RAM as the files have bytes."
_REFRESH = "`klein-setup install --only environment`"
_HINTS: Mapping[str, str] = {
    "missing-package": f"Install what the pipeline needs: {_REFRESH}.",
    "broken-package": f"Repair the environment: {_REFRESH}.",
    "version-too-old": f"Update the environment: {_REFRESH}.",
    "snapshot-incomplete": "Repair the files with `klein-setup repair` on the same HF cache.",
    "no-kernel-image": f"Install the build that has code for this GPU: {_REFRESH} with `--torch auto`.",
    "no-device": "Install or update the graphics driver, and check whether CUDA_VISIBLE_DEVICES hides the GPU.",
    "nan": "Check every byte with `klein-setup verify`; if the files are correct, update the driver or test the card.",
    "not-written": "Free some space, or name another folder for the image.",
    "interrupted": "Run the same command again.",
}


def _out_of_memory(message: str, place: str, facts: Fields) -> tuple[str, str]:
    if facts.values.get("memory") == "ram":
        return f"the computer ran out of RAM. {message}", _RAM_HINT
    free, total = facts.optional_count("free_bytes"), facts.optional_count("total_bytes")
    held = "" if free is None or total is None else f" ({human_bytes(free)} of {human_bytes(total)} free at the end)"
    hint = "Close other programs that use the card; then generate a smaller image, or offload more to RAM."
    return f"{place} ran out of memory{held}. {message}", hint
