"""``verify --for 5m --schedule daily``: let systemd or Windows' Task Scheduler run it; ``--schedule off`` ends that."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioner.commands.questions import Ask, need_yes
from provisioner.commands.run import Run, manifest_options, named_path
from provisioner.core.errors import EXIT_OK, CommandError, StorageError, UsageError
from provisioner.core.models import ComfyTarget
from provisioner.core.program import quoted
from provisioner.disk.locations import systemd_user_folder
from provisioner.disk.programs import find_on_path
from provisioner.disk.root import Root, scratch_folder
from provisioner.machine.child_environment import child_environment
from provisioner.machine.process import run_checked
from provisioner.machine.schedules import WRITTEN_BY, Every, service_unit, task_xml, timer_unit
from provisioner.report.outcome import Report

_TIMEOUT_S = 60.0
_ITS_BUS = ("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR")  # by which systemctl finds the user's systemd
_KEPT = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
_LARGEST_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleOptions:
    """What the command line asks for."""

    command: str  # "verify" or "repair"
    every: Every | None  # None: what was scheduled for this target is removed
    words: tuple[str, ...]  # options of the command, beside those that name target and manifest


def run_schedule(run: Run, options: ScheduleOptions, *, ask: Ask, say: Callable[[str], None]) -> Report:
    """Show what would be written, and write it after a yes; or remove it.

    Raises
    ------
    UsageError
        This system has neither systemd nor the Task Scheduler; nothing is scheduled; a file of that name is another's.
    AnswerNeededError
        Nobody agreed.
    StorageError, CommandError
        A file could not be written, or the system refused.
    """
    place = os.path.normcase(os.path.realpath(named_path(run.target)))
    name = f"klein-setup-scrub-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
    scheduler = _TaskScheduler(run, name) if sys.platform == "win32" else _Systemd(run, name)
    if options.every is None:
        scheduler.remove(say)
    else:
        words = scheduled_words(run, options)
        scheduler.check(words)
        for title, text in scheduler.files(words, options.every):
            say(f"{title}:\n{text}")
        if not run.options.assume_yes:
            need_yes(ask, "Write this and start it?", hint="Agree with --yes, or write it where you like yourself.")
        scheduler.write(words, options.every)
        say(f"{name} runs {options.every}; `klein-setup {options.command} --schedule off` ends that.")
    return run.report(options.command, "ok", EXIT_OK)


def scheduled_words(run: Run, options: ScheduleOptions) -> list[str]:
    """Return the command that is run, with absolute paths, so that it means the same whatever was run since."""
    words = [*_started(run), options.command, *options.words, *manifest_options(run, run.parts)]
    target = "--comfyui" if isinstance(run.target, ComfyTarget) else "--hf-cache"
    words += [target, str(named_path(run.target).absolute())]
    for config in run.options.extra_model_paths:
        words += ["--extra-model-paths", str(config.expanduser().absolute())]
    return [*words, "--quiet"]


def _started(run: Run) -> Sequence[str]:
    """Return the words that start this program, the first of them an absolute path."""
    first, *others = run.session.settings.program.words
    if Path(first).is_absolute():
        return first, *others
    found = find_on_path(first, run.session.environ, cwd=Path.cwd(), is_windows=sys.platform == "win32")
    if found is None:
        raise UsageError(f"{first} is not on the PATH, so that no scheduler can start it.", hint="Install klein-setup.")
    return str(found), *others


class _Systemd:
    """The user's own systemd."""

    def __init__(self, run: Run, name: str) -> None:
        self._run, self._name = run, name
        self._folder = systemd_user_folder()

    def check(self, words: Sequence[str]) -> None:
        self._systemctl(words)
        for path, _ in self._texts(words, "daily"):
            _refuse_others(path)

    def files(self, words: Sequence[str], every: Every) -> list[tuple[str, str]]:
        return [(str(path), text) for path, text in self._texts(words, every)]

    def write(self, words: Sequence[str], every: Every) -> None:
        root = Root(self._folder)
        root.make_folder()
        for path, text in self._texts(words, every):
            root.write_text(path, text)
        self._do("daemon-reload")
        self._do("enable", "--now", f"{self._name}.timer")

    def remove(self, say: Callable[[str], None]) -> None:
        paths = [path for path, _ in self._texts((), "daily") if path.exists()]
        if not paths:
            raise UsageError("Nothing is scheduled for this folder.", hint="Name the folder with --comfyui DIR.")
        for path in paths:
            _refuse_others(path)
        try:
            self._do("disable", "--now", f"{self._name}.timer")
        except CommandError as error:  # the files go all the same: they are what would start it again
            self._run.session.notice(str(error))
        for path in paths:
            Root(self._folder).remove(path)
        self._do("daemon-reload")
        say(f"{self._name} was removed.")

    def _texts(self, words: Sequence[str], every: Every) -> list[tuple[Path, str]]:
        environ = self._run.session.environ
        variables = {name: environ[name] for name in _KEPT if environ.get(name)}
        what = f"klein-setup reads the model files of {named_path(self._run.target)}, a part at a time"
        return [
            (self._folder / f"{self._name}.service", service_unit(words, description=what, variables=variables)),
            (self._folder / f"{self._name}.timer", timer_unit(every, description=what)),
        ]

    def _systemctl(self, words: Sequence[str] = ()) -> Path:
        environ = self._run.session.environ
        program = find_on_path("systemctl", environ, cwd=Path.cwd(), is_windows=False)
        if program is None:
            command = " ".join(quoted(word, "posix") for word in words)
            raise UsageError(
                "There is no systemd here, and no Task Scheduler, so that nothing was scheduled.",
                hint=f"Let your own scheduler run this: {command}" if words else "Remove it from your own scheduler.",
            )
        return program

    def _do(self, *words: str) -> None:
        env = child_environment(self._run.session.environ, _ITS_BUS)
        run_checked([self._systemctl(), "--user", *words], timeout_s=_TIMEOUT_S, env=env)


def _refuse_others(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            is_ours = WRITTEN_BY.encode() in stream.read(_LARGEST_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.", path=str(path)) from error
    if not is_ours:
        raise UsageError(f"{path} was not written by klein-setup.", hint="Move it away.", path=str(path))


class _TaskScheduler:
    """That of Windows."""

    def __init__(self, run: Run, name: str) -> None:
        self._run, self._name = run, name

    def check(self, _words: Sequence[str]) -> None:
        self._schtasks()

    def files(self, words: Sequence[str], every: Every) -> list[tuple[str, str]]:
        return [(f"The task {self._name}", self._text(words, every))]

    def write(self, words: Sequence[str], every: Every) -> None:
        with scratch_folder("klein-setup-") as folder:
            path = folder / f"{self._name}.xml"
            Root(folder, is_private=True).write_bytes(path, self._text(words, every).encode("utf-16"))
            self._do("/Create", "/TN", self._name, "/XML", str(path), "/F")

    def remove(self, say: Callable[[str], None]) -> None:
        try:
            self._do("/Delete", "/TN", self._name, "/F")
        except CommandError as error:
            raise UsageError(
                f"Nothing is scheduled for this folder, or the task could not be removed: {error}",
                hint="Name the folder with --comfyui DIR.",
            ) from error
        say(f"{self._name} was removed.")

    def _text(self, words: Sequence[str], every: Every) -> str:
        what = f"klein-setup reads the model files of {named_path(self._run.target)}, a part at a time."
        return task_xml(words, every, description=what)

    def _schtasks(self) -> Path:
        environ = self._run.session.environ
        program = Path(environ.get("SystemRoot", r"C:\Windows"), "System32", "schtasks.exe")
        if not program.is_file():
            raise UsageError(f"{program} is not there.", hint="Let another scheduler run the command.")
        return program

    def _do(self, *words: str) -> None:
        run_checked([self._schtasks(), *words], timeout_s=_TIMEOUT_S)
