"""``klein-setup diagnose``: which layer makes the test image fail, found by leaving out one after the other.

Every try is a ComfyUI of its own, with output, user and temporary folders of ours; the user's tree is only read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from provisioner.comfyui.custom_nodes import ALWAYS_ON, SHIPPED_NODES, imported_nodes, is_loaded
from provisioner.comfyui.users_flags import UsersFlags, node_options, options_of, shown_words, without_node_options
from provisioner.commands.choose_environment import start_command
from provisioner.commands.comfyui_flags import AUTO, find_flags, options_known_by
from provisioner.commands.comfyui_image import (
    check_files_are_there,
    generate_with_comfyui,
    program_and_python,
    server_options,
    start_for_image,
)
from provisioner.commands.image_options import SmokeTestOptions, check_place, image_options
from provisioner.commands.inspect_comfyui import ComfyUIInstall, check_comfyui, with_comfyui
from provisioner.commands.run import Run
from provisioner.core.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_OK, SmokeTestError
from provisioner.core.json_reader import as_dict
from provisioner.core.models import Finding
from provisioner.core.units import human_duration, listing
from provisioner.disk.diagnosis_journal import DiagnosisJournal
from provisioner.disk.locations import state_folder
from provisioner.disk.root import scratch_folder
from provisioner.report.outcome import Report
from provisioner.smoke_test.diagnosis import (
    CPU,
    Diagnosing,
    Diagnosis,
    Guilty,
    Setup,
    Situation,
    Trouble,
    Try,
    conclusion,
    sentence,
)
from provisioner.smoke_test.later_images import patience_s

_IMAGES = 2  # ComfyUI is known to stand still at the second one
_SMALL = 256  # pixels, of the image on the CPU
_MOST_OF_A_LOG = 1024 * 1024  # bytes from its beginning, where custom nodes are imported
_TOO_SLOW = frozenset({"timeout", "start-timeout"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnoseOptions:
    """What the command line asks for."""

    smoke: SmokeTestOptions
    comfyui_args: str = AUTO
    is_fresh: bool = False  # whether an interrupted diagnosis is not continued


def run_diagnose(
    run: Run,
    options: DiagnoseOptions,
    *,
    comfyui: ComfyUIInstall | None,
    environment: Path,
    show: Callable[[Diagnosis], None],
) -> Report:
    """Find out which layer makes the test image fail; return the report with the evidence.

    Parameters
    ----------
    run, comfyui, environment
        As for `generate_image`.
    options : DiagnoseOptions
        What to generate, and under which conditions.
    show : callable
        Shown what came of it; when it is interrupted, what is known so far.

    Raises
    ------
    UsageError
        There is no ComfyUI to start, no Python for it, or its options are not options that can be given.
    SmokeTestError
        A model file is missing, or something is known to be wrong with ComfyUI before it is started.
    NotWritableError
        The image cannot be kept where it was asked for.
    """
    comfyui, python, seen = program_and_python(run, comfyui, environment)
    check_place(options.smoke)
    check_files_are_there(run)
    for finding in check_comfyui(comfyui):
        if finding.severity == "problem":
            raise SmokeTestError(finding.message, hint=finding.hint)
    flags = find_flags(run, comfyui, options.comfyui_args) or UsersFlags()
    words, listed = without_node_options(flags.words)
    is_on_cpu = CPU in (*server_options(run, run.session.machine, seen), *words)
    diagnosing = Diagnosing(
        situation=Situation(
            options=options_of(words),
            nodes=_nodes_of(comfyui, listed),
            are_nodes_listed=listed is not None,
            known=options_known_by(comfyui),
            is_on_cpu=is_on_cpu,
        ),
        options_from=flags.origin if words else None,
    )
    with scratch_folder("klein-setup-diagnose-") as folder:
        journal = _journal(run, options, comfyui, python, flags)
        tries = _Tries(run, options, comfyui, environment, folder, flags.origin, journal)
        try:
            _walk(diagnosing, tries, comfyui, listed)
        except KeyboardInterrupt as error:
            run.session.stages.fail(error)
            show(diagnosing.diagnosis)
            status = getattr(error, "exit_status", EXIT_INTERRUPTED)
            return _with_parts(run.report("diagnose", "interrupted", status), diagnosing.diagnosis, comfyui)
    tries.journal.end()
    show(diagnosing.diagnosis)
    report = _report(run, diagnosing.diagnosis, comfyui, environment, tries.first_error)
    return replace(report, findings=(*report.findings, *tries.warnings))


def _walk(diagnosing: Diagnosing, tries: _Tries, comfyui: ComfyUIInstall, listed: tuple[str, ...] | None) -> None:
    steps = diagnosing.steps()
    asked = next(steps, None)
    while asked is not None:
        done = tries.make(asked)
        if diagnosing.diagnosis.first is None and done.log_path is not None:  # other folders of nodes are in its log
            nodes = _nodes_of(comfyui, listed, log=Path(done.log_path))
            diagnosing.situation = replace(diagnosing.situation, nodes=nodes)
        try:
            asked = steps.send(done)
        except StopIteration:
            asked = None


# --- one try ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tries:
    """Makes one try after the other, and keeps what came of each in the journal."""

    run: Run
    options: DiagnoseOptions
    comfyui: ComfyUIInstall
    environment: Path
    folder: Path
    origin: str  # of the user's options
    journal: DiagnosisJournal
    number: int = 0
    images: int = 0  # how many a try has to make
    seed: int = 0
    longest_first_s: float | None = None  # of the first images that came
    first_error: SmokeTestError | None = None
    warnings: tuple[Finding, ...] = ()  # of the first one: a custom node that ComfyUI could not import, ...

    def __post_init__(self) -> None:
        smoke = self.options.smoke
        self.images = smoke.images or _IMAGES
        self.seed = secrets.randbits(63) if smoke.seed is None else smoke.seed
        if len(self.journal):
            self.run.session.notice(
                f"A diagnosis of the same was interrupted after {len(self.journal)} starts; it is continued."
                " --fresh begins anew."
            )

    def make(self, asked: Try) -> Try:
        """Return a try with what came of it."""
        self.number += 1
        words = words_of(asked.setup)
        name = json.dumps([*words, "small" if asked.setup.is_small else "", self.images])
        kept = self.journal.known(name)
        stages = self.run.session.stages
        stages.say(f"Start {self.number}, {asked.what}: {shown_words(words) or 'no options'}")
        if kept is not None:
            done = _from_journal(asked, kept)
        else:
            began = time.monotonic()
            done = replace(self._made(asked, words), seconds=time.monotonic() - began)
            self.journal.keep(name, _for_journal(done))
        came = "the image came" if done.trouble is None else f"it fails: {done.trouble.message}"
        stages.say(f"Start {self.number}, {asked.what}: {came} ({human_duration(done.seconds)})")
        if self.number == 1 and done.trouble is not None:
            self.first_error = self.first_error or SmokeTestError(done.trouble.message, cause=done.trouble.code)
            if not done.trouble.is_late:
                self.images = 1  # the first image decides
        return done

    def _made(self, asked: Try, words: tuple[str, ...]) -> Try:
        smoke = self._smoke_options(asked, words)
        run, stages = self.run, self.run.session.stages
        ready = None
        try:
            ready = start_for_image(run, smoke, comfyui=self.comfyui, environment=self.environment)
            machine = run.session.machine
            made = generate_with_comfyui(
                run, smoke, image_options(run, smoke), machine, self.comfyui, self.environment, ready
            )
        except SmokeTestError as error:
            stages.fail(error)
            if self.number == 1:
                self.first_error = error
            log = error.context.get("log_path") or (None if ready is None else ready.process.log_path)
            return replace(
                asked,
                trouble=_trouble_of(error),
                is_unclear=asked.setup.is_small and error.context.get("cause") in _TOO_SLOW,
                log_path=None if log is None else str(log),
            )
        stages.end()
        if self.number == 1:
            self.warnings = tuple(each for each in made.findings if each.severity == "warning")
        first_s = made.timings.total_s
        if first_s is not None:
            self.longest_first_s = max(first_s, self.longest_first_s or 0.0)
        return replace(asked, trouble=_found_trouble(made.findings, self.images), log_path=str(made.log_path))

    def _smoke_options(self, asked: Try, words: tuple[str, ...]) -> SmokeTestOptions:
        smoke = self.options.smoke
        limit_s = smoke.timeout_s
        if self.longest_first_s is not None and not asked.setup.is_small:
            limit_s = patience_s(self.longest_first_s, smoke.timeout_s)
        image = self.folder / f"{self.number}.png"
        width, height = (_SMALL, _SMALL) if asked.setup.is_small else (smoke.width, smoke.height)
        return replace(
            smoke,
            width=width,
            height=height,
            seed=self.seed,
            images=1 if asked.setup.is_small else self.images,
            image=(smoke.image or image) if self.number == 1 else image,
            flags=UsersFlags(words=words, origin=self.origin),
            start_timeout_s=smoke.timeout_s,
            timeout_s=limit_s,
            writes_no_bytecode=True,
        )


def words_of(setup: Setup) -> tuple[str, ...]:
    """Return the options that a try is started with, in an order in which none swallows another one's value."""
    nodes = None if setup.nodes is None else (*setup.nodes, *(ALWAYS_ON if setup.nodes else ()))
    return (*(word for each in setup.options for word in each), *node_options(nodes), *setup.extra)


def _trouble_of(error: SmokeTestError) -> Trouble:
    flags = error.context.get("flags")
    return Trouble(
        code=str(error.context.get("cause") or error.code),
        message=str(error),
        flags=tuple(str(each) for each in flags) if isinstance(flags, list) else (),
    )


def _found_trouble(findings: tuple[Finding, ...], images: int) -> Trouble | None:
    """Return what is wrong with the images of a try; memory that grows with each is, where that was looked for."""
    wrong = [each for each in findings if each.severity == "problem"]
    wrong += [each for each in findings if each.code == "memory-grows"]
    if not wrong:
        return None
    is_late = images > 1 and (wrong[0].code in _LATE or wrong[0].message.startswith("Image "))
    return Trouble(code=wrong[0].code, message=wrong[0].message, is_late=is_late)


_LATE = frozenset({"later-image-hangs", "later-image-fails", "memory-grows"})


def _for_journal(done: Try) -> dict[str, object]:
    trouble = done.trouble
    return {
        "trouble": None
        if trouble is None
        else {
            "code": trouble.code,
            "message": trouble.message,
            "flags": list(trouble.flags),
            "is_late": trouble.is_late,
        },
        "is_unclear": done.is_unclear,
        "seconds": done.seconds,
        "log_path": done.log_path,
    }


def _from_journal(asked: Try, kept: dict[str, object]) -> Try:
    trouble, seconds, log_path = as_dict(kept.get("trouble")), kept.get("seconds"), kept.get("log_path")
    flags = trouble.get("flags")
    return replace(
        asked,
        trouble=Trouble(
            code=str(trouble.get("code")),
            message=str(trouble.get("message")),
            flags=tuple(map(str, flags)) if isinstance(flags, list) else (),
            is_late=trouble.get("is_late") is True,
        )
        if trouble
        else None,
        is_unclear=kept.get("is_unclear") is True,
        seconds=float(seconds) if isinstance(seconds, (int, float)) else 0.0,
        log_path=log_path if isinstance(log_path, str) else None,
        was_known=True,
    )


# --- what there is ---------------------------------------------------------------------------------


def _nodes_of(comfyui: ComfyUIInstall, listed: tuple[str, ...] | None, *, log: Path | None = None) -> tuple[str, ...]:
    """Return the custom nodes that are on, by name: those of the tree, and those that ComfyUI says it imported."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for entry in (comfyui.folder / "custom_nodes").iterdir():
            if is_loaded(entry.name, is_folder=entry.is_dir()):
                found.add(entry.name)
    if log is not None:
        with contextlib.suppress(OSError), log.open("rb") as file:
            found |= imported_nodes(file.read(_MOST_OF_A_LOG).decode("utf-8", "replace").splitlines()).keys()
    found = {each for each in found - SHIPPED_NODES if not each.startswith("-")}  # argparse takes it for an option
    return tuple(sorted(found if listed is None else found & set(listed), key=lambda each: (each.casefold(), each)))


def _journal(
    run: Run, options: DiagnoseOptions, comfyui: ComfyUIInstall, python: Path, flags: UsersFlags
) -> DiagnosisJournal:
    """Return the journal, which is that of an interrupted diagnosis where nothing it depends on has changed."""
    smoke = options.smoke
    about = [
        str(comfyui.folder),
        comfyui.checkout.version,
        comfyui.checkout.commit,
        str(python),
        run.manifest.sha256,
        run.wanted.id,
        flags.words,
        smoke.width,
        smoke.height,
        smoke.images,
        smoke.has_tiled_decode,
        smoke.reserve_vram_gib,
        smoke.gpu,
        smoke.timeout_s,
        list(_stamps(comfyui.folder / "custom_nodes")),
    ]
    digest = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()
    return DiagnosisJournal(state_folder(), digest, is_fresh=options.is_fresh)


def _stamps(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield when each custom node, and each file at its top, was last changed."""
    with contextlib.suppress(OSError):
        for entry in sorted(folder.iterdir()):
            for each in [entry, *(sorted(entry.iterdir()) if entry.is_dir() else [])]:
                if each.name != "__pycache__":
                    yield each.relative_to(folder).as_posix(), each.stat().st_mtime_ns


# --- the report ------------------------------------------------------------------------------------


def _report(
    run: Run, diagnosis: Diagnosis, comfyui: ComfyUIInstall, environment: Path, error: SmokeTestError | None
) -> Report:
    first = diagnosis.first
    if first is None or first.trouble is None:
        return _with_parts(run.report("diagnose", "ok", EXIT_OK), diagnosis, comfyui)
    if not diagnosis.guilty:
        failed = error or SmokeTestError(first.trouble.message)
        failed.args = (f"{failed} {conclusion(diagnosis)}",)
        failed.hint = f"{failed.hint or ''} `klein-setup verify` reads every file and compares the packages.".strip()
        report = run.report("diagnose", "failed", failed.exit_status, errors=(failed,))
        return _with_parts(report, diagnosis, comfyui)
    cure = _cure_command(run, diagnosis, environment)
    findings = tuple(_finding(each, comfyui, cure) for each in diagnosis.guilty)
    return _with_parts(run.report("diagnose", "findings", EXIT_FINDINGS, findings=findings), diagnosis, comfyui)


def _with_parts(report: Report, diagnosis: Diagnosis, comfyui: ComfyUIInstall) -> Report:
    return replace(with_comfyui(report, comfyui), diagnosis=diagnosis)


def _cure_command(run: Run, diagnosis: Diagnosis, environment: Path) -> str | None:
    """Return the command that starts ComfyUI so that the image comes."""
    if diagnosis.cure is None:
        return None
    words = words_of(diagnosis.cure)
    return start_command(run, environment, *(("--", *words) if words else ()))


def _finding(guilty: Guilty, comfyui: ComfyUIInstall, cure: str | None) -> Finding:
    return Finding(
        code=f"guilty-{guilty.layer}",
        severity="problem",
        remedy="by-hand",
        message=sentence(guilty),
        hint=f"{_advice(guilty, comfyui)} `{cure}` starts ComfyUI without it." if cure else _advice(guilty, comfyui),
    )


def _advice(guilty: Guilty, comfyui: ComfyUIInstall) -> str:
    """Return what the user can do about it; klein-setup changes nothing of it."""
    names = [group[0] for group in guilty.groups]
    match guilty.layer:
        case "custom-nodes" if names:
            paths = listing([str(comfyui.folder / "custom_nodes" / each) for each in names])
            ending = f"{names[0]}.disabled" if len(names) == 1 else "that name with .disabled behind it"
            return f"Update it, or rename {paths} to {ending}."
        case "options" if names:
            return f"Leave out {listing(names)} where ComfyUI is started."
        case "gpu":
            return (
                "`klein-setup detect` shows the driver and the torch build that suits this machine; `klein-setup"
                " install --only environment` installs it."
            )
        case "start-option":
            return f"Start ComfyUI with {guilty.groups[0][0]}."
        case _:
            return "Switch half of those off and run it again."
