"""Virtual environments with a torch set in them: made aside and swapped in, observed, probed, added to, put back.

It refuses to install torch from more than one index, to install anything before the tags of the set were read from the
wheels' metadata, and to let a person's pip or uv settings send packages elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from provisioner.adapters.environment.aside import (
    CONSTRAINTS,
    RECEIPT,
    Work,
    disk_error,
    move,
    only_one,
    read_receipt,
    read_text,
    rehome,
    remove_tree,
    write_text,
)
from provisioner.adapters.environment.pythons import Ran, Run, ask_python, find_pythons
from provisioner.adapters.environment.reading import (
    own_folders,
    python_in,
    read_distributions,
    read_leftovers,
    read_second_torches,
)
from provisioner.environment import (
    FAMILY,
    Distribution,
    EnvironmentReceipt,
    Observation,
    ProbeAnswer,
    PythonFacts,
    bare_uuid,
    complaint_about_python,
    complaints_about_tags,
    constraints_text,
    device_of,
    judge_probe,
    parse_probe,
    pinned,
    public_version,
    receipt_text,
    wanted_versions,
)
from provisioner.errors import (
    CommandError,
    EntryNotFoundError,
    HashMismatchError,
    IntegrityError,
    KleinError,
    NetworkError,
    NotTheFileError,
    StorageError,
    UnsupportedMachineError,
    UsageError,
)
from provisioner.installer import (
    DEFAULT_INDEX,
    Wheel,
    announced_bytes,
    constraint_value,
    constraint_variables,
    explain_failure,
    installer_environment,
    is_gap,
    parse_pip_settings,
    parse_report,
)
from provisioner.models import Finding, Machine
from provisioner.torch_models import TorchBuild, TorchSet
from provisioner.words import count, human_bytes, listing

__all__ = ["Environments", "FetchWheel", "Installer", "Progress"]

Installer = Literal["pip", "uv"]
Progress = Callable[[str], None]
"""Told one line at a time what goes on."""

FetchWheel = Callable[[Wheel, Path, Progress], None]
"""Brings one wheel to a path, proven by its SHA-256; raises NetworkError, IntegrityError, StorageError."""

PROBE = Path(__file__).resolve().parents[2] / "inside" / "probe.py"

_VENV_TIMEOUT_S = 600.0
_ASK_TIMEOUT_S = 120.0
_RESOLVE_TIMEOUT_S = 3600.0  # an index without PEP 658 makes pip fetch the wheels for it
_FETCH_TIMEOUT_S = 6 * 3600.0
_INSTALL_TIMEOUT_S = 3 * 3600.0
_PROBE_TIMEOUT_S = 600.0  # the first import of a CUDA torch from a slow disk takes minutes
_ATTEMPTS = 3
_TOLERATED_WITHOUT_DEVICE = frozenset({"probe-no-device"})


def _silent(line: str) -> None:
    """Listen to nothing."""


@dataclass(frozen=True, kw_only=True)
class Environments:
    """The virtual environments of this computer.

    Parameters
    ----------
    run : Run
        Starts programs: `provisioner.adapters.process.run`.
    environ : mapping
        The person's environment variables.
    home : Path
        Where Pythons are looked for, beside the PATH.
    fetch_wheel : FetchWheel, optional
        Brings the wheels; pip does it where None.
    probe_script : Path
        What proves an environment.
    waits_for_lock : bool
        Wait while another run works on the same environment; else LockHeldError.
    pause_s : float
        Seconds before a broken download is tried again, doubled each time.
    """

    run: Run
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    home: Path = field(default_factory=Path.home)
    fetch_wheel: FetchWheel | None = None
    probe_script: Path = PROBE
    waits_for_lock: bool = True
    pause_s: float = 2.0

    # --- making ----------------------------------------------------------------------------------

    def create(
        self,
        build: TorchBuild,
        where: Path,
        *,
        python: Path | None = None,
        python_versions: Sequence[str] = (),
        installer: Installer = "pip",
        machine: Machine | None = None,
        needs_device: bool = True,
        progress: Progress = _silent,
    ) -> EnvironmentReceipt:
        """Make an environment with a torch set, prove it, and put it in its place.

        Everything happens in a folder aside.  An environment that is there already stays untouched until the new one has
        passed its probe; then it is removed if it was ours, else kept as ``NAME.before-TIME``.

        Parameters
        ----------
        build : TorchBuild
            What was chosen; its sets are tried newest first.
        where : Path
            The environment's folder.
        python : Path, optional
            The interpreter to make it from; else the first that fits.
        python_versions : sequence of str
            The minor versions the build has wheels for, ``("3.10", "3.11")``; empty: any.
        installer : "pip" or "uv"
            What unpacks the wheels.
        machine : Machine, optional
            What was detected, to compare the probe's devices with.
        needs_device : bool
            Whether a GPU that torch cannot use is an error; False for an image built on another machine.
        progress : callable
            Told one line at a time.

        Returns
        -------
        EnvironmentReceipt
            As it is kept in the environment.

        Raises
        ------
        UsageError
            `where` is something else than an environment; uv was asked for and is not there.
        UnsupportedMachineError
            No Python fits, or torch cannot use this machine's GPU.
        NetworkError, AccessError
            The index was not reached, or has no such wheel.
        IntegrityError
            A wheel says another version or build than it was offered as, or other bytes arrived.
        StorageError
            The disk refused.
        CommandError
            An installer or the probe failed.
        LockHeldError
            Another run works on it, and `waits_for_lock` is false.
        """
        where = _absolute(where)
        _refuse_strangers(where)
        uv = self._uv(installer)
        with only_one(where, wait=self.waits_for_lock, notice=progress):
            work = Work(where)
            recovered = work.recover()
            if recovered is not None:
                progress(recovered)
            chosen = self._choose_python(python, python_versions)
            build_id = _build_id()
            twin: Path | None = None
            try:
                twin = work.begin(build_id)
                progress(f"Making an environment with Python {chosen.version} ({chosen.path}).")
                self._make_venv(chosen, twin)
                maker = _Maker(self, twin, work, progress, uv)
                releases, wheels = maker.resolve(build)
                maker.fetch(wheels, build.index_url)
                maker.install(wheels)
                receipt = self._prove(
                    twin,
                    EnvironmentReceipt(
                        build_id=build_id,
                        made_at=_now(),
                        installer=installer,
                        python_version=chosen.version,
                        python_home=str(chosen.base_prefix),
                        torch_backend=build.torch_backend,
                        index_url=build.index_url,
                        local_tag=build.local_tag,
                        set=releases,
                        versions=_versions_of(maker.installed(), releases),
                        constraints=_constraints(maker.installed(), releases),
                    ),
                    build,
                    machine,
                    needs_device=needs_device,
                    progress=progress,
                )
                _seal(twin, where, receipt)
                kept = work.swap(twin, build_id, _stamp(), lambda: self._check_in_place(where))
            except KleinError:
                work.give_up(twin)
                raise
            except OSError as error:
                work.give_up(twin)
                raise disk_error(error, where, doing="write") from error
        if kept is not None:
            progress(f"The environment that was there is kept as {kept}.")
        return receipt

    def repair(
        self,
        build: TorchBuild,
        where: Path,
        *,
        machine: Machine | None = None,
        needs_device: bool = True,
        progress: Progress = _silent,
    ) -> EnvironmentReceipt:
        """Put the torch set of an environment back, in place; what else is installed in it stays.

        The set is the receipt's where there is one, else the newest of `build`.  Every wheel is on this disk, proven,
        before the first package is touched.

        Raises
        ------
        CommandError
            The environment's Python does not start (then `create` it anew), or pip failed.
        KleinError
            As `create`.
        """
        where = _absolute(where)
        with only_one(where, wait=self.waits_for_lock, notice=progress):
            work = Work(where)
            recovered = work.recover()
            if recovered is not None:
                progress(recovered)
            before = self.observe(where)
            if before.python is None:
                why = before.broken or "there is none"
                raise CommandError(f"The environment {where} cannot be repaired: {why}", hint="Make it anew.")
            receipt = before.receipt
            if receipt is not None and receipt.set not in build.sets and receipt.local_tag == build.local_tag:
                build = replace(build, sets=(receipt.set, *build.sets))
            elif receipt is not None and receipt.local_tag == build.local_tag:
                build = replace(build, sets=(receipt.set, *(each for each in build.sets if each != receipt.set)))
            try:
                work.begin(_build_id())
                maker = _Maker(self, where, work, progress, None)
                maker.need_pip()
                releases, wheels = maker.resolve(build)
                maker.fetch(wheels, build.index_url)
                maker.put_back(wheels, before)
                fresh = EnvironmentReceipt(
                    build_id=receipt.build_id if receipt else _build_id(),
                    made_at=_now(),
                    installer="pip",
                    python_version=before.python.version,
                    python_home=str(before.python.base_prefix),
                    torch_backend=build.torch_backend,
                    index_url=build.index_url,
                    local_tag=build.local_tag,
                    set=releases,
                    versions=_versions_of(maker.installed(), releases),
                    constraints=_constraints(maker.installed(), releases),
                )
                fresh = self._prove(where, fresh, build, machine, needs_device=needs_device, progress=progress)
                _write_state(where, where, fresh)
            except KleinError:
                work.give_up(None)
                raise
            except OSError as error:
                work.give_up(None)
                raise disk_error(error, where, doing="write") from error
            remove_tree(work.folder)
        return fresh

    def install(
        self,
        where: Path,
        requirements: Sequence[str] = (),
        *,
        files: Sequence[Path] = (),
        installer: Installer = "pip",
        progress: Progress = _silent,
    ) -> None:
        """Install more into an environment, under the constraints that hold its torch set.

        Parameters
        ----------
        where : Path
            The environment.
        requirements : sequence of str
            ``"diffusers>=0.37"``.
        files : sequence of Path
            Requirements files.
        installer : "pip" or "uv"
            What installs them.
        progress : callable
            Told one line at a time.

        Raises
        ------
        CommandError
            The requirements exclude each other or the torch set, or pip failed.
        IntegrityError
            The torch set is another one afterwards.
        KleinError
            As `create`, for network and disk.
        """
        where = _absolute(where)
        uv = self._uv(installer)
        with only_one(where, wait=self.waits_for_lock, notice=progress):
            before = self.observe(where)
            if before.python is None:
                raise CommandError(f"{where} is no usable environment: {before.broken or 'there is none'}")
            words = [*requirements]
            for file in files:
                words += ["-r", str(file)]
            if before.constraints is not None:
                words += ["-c", str(where / CONSTRAINTS)]
            what = listing([*requirements, *(file.name for file in files)])
            self._install_with(before.python.path, words, what, uv, progress)
            self._hold(before, self.observe(where))

    def _install_with(self, python: Path, words: Sequence[str], what: str, uv: Path | None, progress: Progress) -> None:
        settings = self._pip_settings(python, with_indexes=True)
        env = installer_environment(self.environ, settings, no_file=os.devnull)
        if uv is None:
            command = [python, "-I", "-m", "pip", "install", "--progress-bar", "off", *words]
        else:
            command = [uv, "pip", "install", "--python", python, *_uv_index_words(settings), *words]
        progress(f"Installing {what}.")
        done = self.run(command, timeout_s=_INSTALL_TIMEOUT_S, env=env, on_line=_only_news(progress))
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing=f"install {what}", index_url=settings.get("index-url"))

    def _hold(self, before: Observation, after: Observation) -> None:
        """Raise where an installation moved the torch set in spite of everything."""
        moved = [
            f"{old.name} {old.version} became {new.version if new else 'nothing'}"
            for old in before.distributions
            if old.name in FAMILY and (new := after.distribution(old.name)) != old
        ]
        if moved:
            message = f"The installation replaced the torch set: {listing(moved)}."
            raise IntegrityError(message, hint="Run `klein-setup repair`.", path=str(before.where))

    # --- looking -----------------------------------------------------------------------------------

    def observe(self, where: Path) -> Observation:
        """Return what lies in an environment's folder; nothing is imported, nothing is written."""
        where = _absolute(where)
        interrupted = Work(where).interrupted()
        python = python_in(where)
        if python is None:
            broken = "it holds no Python." if where.is_dir() and any(where.iterdir()) else None
            return Observation(where=where, is_there=broken is not None, broken=broken, interrupted=interrupted)
        constraints = read_text(where / CONSTRAINTS)
        seen = Observation(
            where=where,
            is_there=True,
            constraints=None if constraints is None else tuple(constraints.split("\n")[:-1]),
            receipt=read_receipt(where),
            interrupted=interrupted,
        )
        if not python.exists():
            return replace(seen, broken=f"its Python is gone: {python} leads to {_link_target(python)}.")
        try:
            facts, import_path = ask_python(self.run, python, dict(self.environ), cwd=where)
        except CommandError as error:
            return replace(seen, broken=str(error))
        own = own_folders(where, import_path)
        return replace(
            seen,
            python=facts,
            distributions=read_distributions(own),
            second_torches=read_second_torches(own, import_path),
            leftovers=read_leftovers(own),
        )

    def probe(self, where: Path, *, backend: str, packages: Sequence[str] = FAMILY) -> ProbeAnswer:
        """Run the probe in an environment; that it fails, dies or hangs is an answer, not an error.

        Parameters
        ----------
        where : Path
            The environment.
        backend : str
            What the set was built for, "cu130": decides which kind of device has to compute.
        packages : sequence of str
            What must import.
        """
        python = python_in(_absolute(where))
        if python is None:
            return _failed_probe("probe-no-python", f"{where} holds no Python.")
        asked = json.dumps({"expect": {"device": device_of(backend), "packages": list(packages)}})
        env = {
            name: value
            for name, value in self.environ.items()
            if not name.upper().startswith(("PYTHON", "__PYVENV", "VIRTUAL_ENV"))
        }
        try:
            done = self.run([python, "-I", self.probe_script, "--json", asked], timeout_s=_PROBE_TIMEOUT_S, env=env)
        except CommandError as error:
            return _failed_probe("probe-unfinished", str(error))
        answer = parse_probe(done.stdout)
        if answer is not None:
            return answer
        last = done.last_lines[-1].strip() if done.last_lines else "it said nothing"
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        return _failed_probe("probe-died", f"The probe ended with {how} before it could answer: {last}")

    def find_python(self, python_versions: Sequence[str] = ()) -> PythonFacts:
        """Return the first Python of this computer an environment can be made from; raises UnsupportedMachineError."""
        return self._choose_python(None, python_versions)

    def variables(self, where: Path) -> dict[str, str]:
        """Return the variables that hold pip and uv to the constraints inside a running application."""
        path = _absolute(where) / CONSTRAINTS
        return constraint_variables(path) if path.is_file() else {}

    def recover(self, where: Path) -> str | None:
        """Put right what an interrupted building left, and say what was done; None where there was nothing."""
        where = _absolute(where)
        with only_one(where, wait=self.waits_for_lock, notice=_silent):
            return Work(where).recover()

    # --- parts -------------------------------------------------------------------------------------

    def _uv(self, installer: Installer) -> Path | None:
        """Return uv's path where it was asked for; None for pip."""
        if installer == "pip":
            return None
        beside = Path(sys.executable).with_name("uv.exe" if sys.platform == "win32" else "uv")
        found = shutil.which("uv", path=self.environ.get("PATH")) or (str(beside) if beside.exists() else None)
        if found is None:
            raise UsageError("uv was asked for, and it is not installed.", hint="Install uv, or leave --installer out.")
        return Path(found)

    def _choose_python(self, given: Path | None, versions: Sequence[str]) -> PythonFacts:
        env = {name: value for name, value in self.environ.items() if not name.upper().startswith(("PYTHON", "__PYV"))}
        if given is not None:
            facts = ask_python(self.run, _absolute(given), env, cwd=self.home)[0]
            complaint = complaint_about_python(facts, versions)
            if complaint is not None:
                raise UnsupportedMachineError(complaint, hint="Name another Python with --python.", path=str(given))
            return facts
        found = find_pythons(
            self.run,
            self.environ,
            self.home,
            cwd=self.home,
            wanted=lambda facts: complaint_about_python(facts, versions) is None,
        )
        if found and complaint_about_python(found[-1], versions) is None:
            return found[-1]
        complaints = [complaint_about_python(facts, versions) or "" for facts in found]
        wanted = f"Python {listing(list(versions), 'or')}" if versions else "a Python"
        raise UnsupportedMachineError(
            f"No Python of this computer fits: {wanted} is needed. {' '.join(complaints[:4])}".strip(),
            hint="Install one of them (python.org, or `uv python install`), or name it with --python.",
        )

    def _make_venv(self, python: PythonFacts, folder: Path) -> None:
        env = installer_environment(self.environ, {}, no_file=os.devnull)
        done = self.run([python.path, "-I", "-m", "venv", folder], timeout_s=_VENV_TIMEOUT_S, env=env)
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing="make the environment", index_url=None)

    def _pip_settings(self, python: Path, *, with_indexes: bool) -> dict[str, str]:
        """Return the person's settings that may stay, as the environment's own pip reads them."""
        env = {name: value for name, value in self.environ.items() if not name.upper().startswith("PYTHON")}
        done = self.run([python, "-I", "-m", "pip", "config", "list"], timeout_s=_ASK_TIMEOUT_S, env=env)
        return parse_pip_settings(done.stdout, with_indexes=with_indexes) if done.returncode == 0 else {}

    def _prove(
        self,
        folder: Path,
        receipt: EnvironmentReceipt,
        build: TorchBuild,
        machine: Machine | None,
        *,
        needs_device: bool,
        progress: Progress,
    ) -> EnvironmentReceipt:
        """Run the probe; return the receipt with its answer, or raise the first problem."""
        progress("Proving it: importing the set and computing on every device.")
        answer = self.probe(
            folder, backend=build.torch_backend, packages=[name for name, _ in wanted_versions(receipt.set)]
        )
        problems = [
            finding
            for finding in judge_probe(answer, build, machine)
            if finding.severity == "problem" and (needs_device or finding.code not in _TOLERATED_WITHOUT_DEVICE)
        ]
        if problems:
            raise _as_error(problems)
        gpus = () if machine is None else tuple(bare_uuid(gpu.uuid) for gpu in machine.gpus if gpu.uuid)
        driver = None if machine is None else machine.driver_version
        return replace(receipt, probe=answer, driver_version=driver, gpus=tuple(sorted(gpus)))

    def _check_in_place(self, where: Path) -> None:
        """Raise unless the environment works under its final name, its console scripts included."""
        for name in ("bin/pip", "Scripts/pip.exe"):
            script = where / name
            if not script.exists():
                continue
            env = installer_environment(self.environ, {}, no_file=os.devnull)
            done = self.run([script, "--version"], timeout_s=_ASK_TIMEOUT_S, env=env)
            if done.returncode != 0 or os.path.normcase(str(where)) not in os.path.normcase(done.stdout):
                said = done.last_lines[-1] if done.last_lines else f"exit status {done.returncode}"
                raise CommandError(f"The environment does not work in its place: {script} says {said}")
            return
        raise CommandError(f"The environment at {where} has no pip after it was put in its place.")


class _Maker:
    """One building: resolves, fetches and installs with the pip of the folder it works on."""

    def __init__(self, of: Environments, folder: Path, work: Work, progress: Progress, uv: Path | None) -> None:
        python = python_in(folder)
        if python is None:
            raise CommandError(f"{folder} holds no Python after it was made.")
        self._of, self._folder, self._work, self._progress, self._uv = of, folder, work, progress, uv
        self._python = python
        self._extra: str | None = None  # a second index, where the first has a gap

    def _pip(
        self,
        *words: str | Path,
        index_url: str | None,
        timeout_s: float,
        on_line: Callable[[str, str], None] | None = None,
    ) -> Ran:
        """Run pip; the index travels in the environment, since it may hold a password and arguments are public."""
        settings = dict(self._settings(with_indexes=index_url is None))
        if index_url is not None:
            settings["index-url"] = index_url
        if self._extra is not None:
            settings["extra-index-url"] = self._extra
        env = installer_environment(self._of.environ, settings, temporary=self._work.temporary, no_file=os.devnull)
        command = [self._python, "-I", "-m", "pip", *words]
        return self._of.run(command, timeout_s=timeout_s, env=env, on_line=on_line)

    def _settings(self, *, with_indexes: bool) -> Mapping[str, str]:
        cached = getattr(self, "_cached_settings", None)
        if cached is None:
            listed = self._of._pip_settings(self._python, with_indexes=True)
            cached = self._cached_settings = listed
        indexes = ("index-url", "extra-index-url", "find-links", "no-index")
        return {name: value for name, value in cached.items() if with_indexes or name not in indexes}

    def need_pip(self) -> None:
        """See that the environment has pip (uv makes environments without)."""
        if self._pip("--version", index_url=None, timeout_s=_ASK_TIMEOUT_S).returncode == 0:
            return
        env = installer_environment(self._of.environ, {}, no_file=os.devnull)
        done = self._of.run([self._python, "-I", "-m", "ensurepip"], timeout_s=_VENV_TIMEOUT_S, env=env)
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing="put pip into the environment", index_url=None)

    # --- resolving ---------------------------------------------------------------------------------

    def resolve(self, build: TorchBuild) -> tuple[TorchSet, tuple[Wheel, ...]]:
        """Return the newest set the index has, and every wheel it takes; nothing is installed.

        Raises
        ------
        EntryNotFoundError
            The index has none of the sets.
        NotTheFileError
            The wheels' own metadata say another build than the one promised.
        """
        first: KleinError | None = None
        for releases in build.sets:
            try:
                wheels = self._resolve_one(releases, build)
            except EntryNotFoundError as error:
                first = first or error
                self._progress(f"torch {releases.torch} cannot be had: {error}")
                continue
            complaints = complaints_about_tags({each.name: each.version for each in wheels}, releases, build.local_tag)
            if complaints:
                raise NotTheFileError(
                    f"Nothing was installed: {' '.join(complaints)}",
                    hint="Take another index: `--torch-index URL`.",
                    index_url=build.index_url,
                )
            return releases, wheels
        raise first or UsageError("The torch build names no set of releases.")

    def _resolve_one(self, releases: TorchSet, build: TorchBuild) -> tuple[Wheel, ...]:
        try:
            return self._ask_index(releases, build)
        except EntryNotFoundError as error:
            # Mirrors of the torch index lack a dependency at times (pytorch/pytorch#193491); versions with a local part
            # exist on the torch index only, so that the default index cannot slip in a torch of its own.
            if build.local_tag is None or build.index_url is None or self._extra is not None or not is_gap(error):
                raise
            self._extra = self._settings(with_indexes=True).get("index-url", DEFAULT_INDEX)
            self._progress(f"{error.context.get('requirement')} is missing there; taking it from the default index.")
            return self._ask_index(releases, build)

    def _ask_index(self, releases: TorchSet, build: TorchBuild) -> tuple[Wheel, ...]:
        wanted = [pinned(name, version, build.local_tag) for name, version in wanted_versions(releases)]
        self._progress(f"Asking {'the index' if build.index_url else 'the default index'} for {listing(wanted)}.")
        report = self._work.temporary / "report.json"
        report.unlink(missing_ok=True)
        done = self._pip(
            "install", "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--progress-bar", "off",
            "--report", report, *wanted,
            index_url=build.index_url,
            timeout_s=_RESOLVE_TIMEOUT_S,
            on_line=_only_news(self._progress),
        )  # fmt: skip
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing=f"find {listing(wanted)}", index_url=build.index_url)
        return parse_report(report.read_text(encoding="utf-8"))

    # --- fetching ----------------------------------------------------------------------------------

    def fetch(self, wheels: Sequence[Wheel], index_url: str | None) -> None:
        """Bring every wheel to the work's folder; what an earlier building fetched and is whole stays."""
        held = [wheel for wheel in wheels if _is_whole(self._work.wheels / wheel.file_name, wheel)]
        if held:
            self._progress(f"{count(len(held), 'wheel')} of {len(wheels)} have arrived already.")
        for number, wheel in enumerate(wheels, 1):
            if wheel in held:
                continue
            self._progress(f"Wheel {number} of {len(wheels)}: {wheel.label}.")
            self._insist(lambda wheel=wheel: self._fetch_one(wheel, index_url))  # type: ignore[misc]

    def _insist(self, action: Callable[[], None]) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                action()
                return
            except NetworkError as error:
                if attempt == _ATTEMPTS:
                    raise
                self._progress(f"{error} Trying again ({attempt + 1} of {_ATTEMPTS}).")
                time.sleep(self._of.pause_s * 2 ** (attempt - 1))

    def _fetch_one(self, wheel: Wheel, index_url: str | None) -> None:
        destination = self._work.wheels / wheel.file_name
        if self._of.fetch_wheel is not None:
            self._of.fetch_wheel(wheel, destination, self._progress)
        else:
            self._fetch_with_pip(wheel, index_url)
        if not destination.is_file():
            raise NotTheFileError(f"pip brought another file than {wheel.file_name}.", path=str(destination))
        if wheel.sha256 is not None and _sha256(destination) != wheel.sha256:
            destination.unlink()
            raise HashMismatchError(
                f"{wheel.file_name} has another SHA-256 than the index says.", expected=wheel.sha256
            )

    def _fetch_with_pip(self, wheel: Wheel, index_url: str | None) -> None:
        address = wheel.url + (f"#sha256={wheel.sha256}" if wheel.sha256 else "")
        arriving = self._work.temporary / "arriving"
        if arriving.exists():
            remove_tree(arriving)
        with _watched(self._work.temporary, wheel.label, self._progress) as on_line:
            done = self._pip(
                "download", "--no-deps", "--progress-bar", "off", "--dest", arriving, address,
                index_url=index_url,
                timeout_s=_FETCH_TIMEOUT_S,
                on_line=on_line,
            )  # fmt: skip
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing=f"fetch {wheel.label}", index_url=index_url)
        arrived = arriving / wheel.file_name
        if arrived.exists():
            move(arrived, self._work.wheels / wheel.file_name)

    # --- installing --------------------------------------------------------------------------------

    def install(self, wheels: Sequence[Wheel]) -> None:
        """Unpack the wheels into the folder, from this disk alone; raises where another version than theirs is there."""
        self._progress(f"Installing {count(len(wheels), 'package')}.")
        listed = self._work.temporary / "wheels.txt"
        write_text(listed, "".join(f"{wheel.requirement}\n" for wheel in wheels))
        if self._uv is None:
            self._unpack("--ignore-installed", "-r", listed)
        else:
            self._unpack_with_uv(self._uv, listed)
        self._check(wheels)

    def put_back(self, wheels: Sequence[Wheel], before: Observation) -> None:
        """Install the family anew and whatever of its dependencies differs, into an environment in use."""
        for leftover in before.leftovers:
            remove_tree(leftover)
        self._drop_doubles(before)
        now = {each.name: each.version for each in before.distributions}
        needed = [wheel for wheel in wheels if wheel.name in FAMILY or now.get(wheel.name) != wheel.version]
        self._progress(f"Installing {listing([wheel.label for wheel in needed])}.")
        listed = self._work.temporary / "wheels.txt"
        write_text(listed, "".join(f"{wheel.requirement}\n" for wheel in needed))
        self._unpack("--force-reinstall", "-r", listed)
        self._check(needed)

    def _drop_doubles(self, before: Observation) -> None:
        """Remove all but one record of each of the family: pip uninstalls one and leaves the others to be found."""
        for name in FAMILY:
            for double in [each for each in before.distributions if each.name == name][1:]:
                remove_tree(double.location / f"{double.name}-{double.version}.dist-info")

    def _unpack(self, *words: str | Path) -> None:
        done = self._pip(
            "install", "--no-index", "--no-deps", "--find-links", self._work.wheels, "--progress-bar", "off", *words,
            index_url="file:///nowhere",
            timeout_s=_INSTALL_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing="install the torch set", index_url=None)

    def _unpack_with_uv(self, uv: Path, listed: Path) -> None:
        env = installer_environment(self._of.environ, {}, temporary=self._work.temporary, no_file=os.devnull)
        done = self._of.run(
            [
                uv, "pip", "install", "--python", self._python, "--no-index", "--no-deps", "--find-links",
                self._work.wheels, "--cache-dir", self._work.temporary / "uv", "--no-progress", "--reinstall", "-r", listed,
            ],
            timeout_s=_INSTALL_TIMEOUT_S,
            env=env,
        )  # fmt: skip
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing="install the torch set", index_url=None)

    def installed(self) -> tuple[Distribution, ...]:
        """Return what lies in the folder."""
        env = installer_environment(self._of.environ, {}, no_file=os.devnull)
        _, import_path = ask_python(self._of.run, self._python, env, cwd=self._folder)
        return read_distributions(own_folders(self._folder, import_path))

    def _check(self, wheels: Sequence[Wheel]) -> None:
        now = {each.name: each.version for each in self.installed()}
        wrong = [
            f"{wheel.label} is {now.get(wheel.name, 'missing')}"
            for wheel in wheels
            if now.get(wheel.name) != wheel.version
        ]
        if wrong:
            raise IntegrityError(f"After the installation {listing(wrong)}.", hint="Run the same command again.")


# --- small things ------------------------------------------------------------------------------


def _absolute(path: Path) -> Path:
    """Return the path made absolute by its text: links in it are the person's choice."""
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - resolve() would follow the links


def _refuse_strangers(where: Path) -> None:
    """Raise where the place is taken by something that is no environment."""
    if where.parent == where:
        raise UsageError(f"{where} cannot be an environment.")
    if not os.path.lexists(where):
        return
    is_environment = where.is_dir() and ((where / "pyvenv.cfg").exists() or not any(where.iterdir()))
    if not is_environment:
        hint = "Name another folder; nothing was changed."
        raise UsageError(f"{where} is there and is no virtual environment.", hint=hint, path=str(where))


def _build_id() -> str:
    return f"{time.time_ns():x}-{os.getpid():x}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _stamp() -> str:
    return datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")


def _link_target(path: Path) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - Path.readlink rewrites what it reads on Windows
    except OSError:
        return "nowhere"


def _versions_of(installed: Sequence[Distribution], releases: TorchSet) -> tuple[tuple[str, str], ...]:
    wanted = {name for name, _ in wanted_versions(releases)}
    return tuple((each.name, each.version) for each in installed if each.name in wanted)


def _constraints(installed: Sequence[Distribution], releases: TorchSet) -> tuple[str, ...]:
    """Return the lines that hold what was installed: its metadata's versions, since pip compares with those."""
    versions = {each.name: each.version for each in installed}
    tags = {name: versions[name].partition("+")[2] for name, _ in wanted_versions(releases)}
    tag = next(iter(set(tags.values()))) if len(set(tags.values())) == 1 else ""
    others = [(each.name, each.version) for each in installed if each.name not in FAMILY]
    installed_set = TorchSet(
        torch=public_version(versions["torch"]),
        torchvision=public_version(versions["torchvision"]),
        torchaudio=public_version(versions["torchaudio"]) if "torchaudio" in tags else None,
    )
    return tuple(constraints_text(installed_set, tag or None, others).splitlines())


def _seal(twin: Path, where: Path, receipt: EnvironmentReceipt) -> None:
    """Write what the environment carries with it, let it bear its final name, and hand everything to the disk."""
    _write_state(twin, where, receipt)
    rehome(twin, where.name)
    if sys.platform != "win32":
        os.sync()  # thousands of files, some just written by another program: one call for all of them


def _write_state(folder: Path, where: Path, receipt: EnvironmentReceipt) -> None:
    """Write constraints, receipt, and the setting by which every pip run in the environment finds the constraints."""
    write_text(folder / CONSTRAINTS, "".join(f"{line}\n" for line in receipt.constraints))
    settings = folder / ("pip.ini" if sys.platform == "win32" else "pip.conf")
    if not settings.exists():
        comment = "# Written by klein-setup: holds torch, torchvision and torchaudio together.\n"
        write_text(settings, f"{comment}[global]\nconstraint = {constraint_value(where / CONSTRAINTS)}\n")
    write_text(folder / RECEIPT, receipt_text(receipt))


def _is_whole(path: Path, wheel: Wheel) -> bool:
    return wheel.sha256 is not None and path.is_file() and _sha256(path) == wheel.sha256


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(4 * 1024 * 1024):
            digest.update(chunk)
    return digest.hexdigest()


def _uv_index_words(settings: Mapping[str, str]) -> list[str]:
    """Return a person's package mirror in uv's words; uv reads none of pip's settings."""
    words: list[str] = []
    for option in ("index-url", "extra-index-url", "find-links"):
        for value in settings.get(option, "").split():
            words += [f"--{option}", value]
    return [*words, "--no-index"] if settings.get("no-index", "") not in ("", "0", "false", "no") else words


def _only_news(progress: Progress) -> Callable[[str, str], None]:
    """Return a listener that passes on what a person wants to see of pip's chatter."""

    def listen(stream: str, line: str) -> None:
        if line.lstrip().startswith(("Downloading", "Collecting", "Building wheel", "Installing collected", "WARNING")):
            progress(line.strip())

    return listen


@contextmanager
def _watched(folder: Path, label: str, progress: Progress) -> Iterator[Callable[[str, str], None]]:
    """Say every second how much of a wheel has arrived, by the size of what grows in `folder`.

    pip's own bar needs a terminal, and its line per second (``--progress-bar raw``) came with pip 24.1; the pip that
    Python 3.10 to 3.12 bring along is older.
    """
    stop, total = threading.Event(), [0]

    def listen(stream: str, line: str) -> None:
        total[0] = announced_bytes(line) or total[0]

    def watch() -> None:
        said = 0
        while not stop.wait(1.0):
            size = _largest(folder)
            if size > said:
                said = size
                of = f" of {human_bytes(total[0])}" if total[0] else ""
                progress(f"{label}: {human_bytes(size)}{of}.")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield listen
    finally:
        stop.set()
        watcher.join()


def _largest(folder: Path) -> int:
    sizes = [0]
    for path in folder.glob("pip-*/*"):
        try:
            sizes.append(path.stat().st_size if path.is_file() else 0)
        except OSError:
            continue  # pip removed it meanwhile
    return max(sizes)


def _failed_probe(code: str, sentence: str) -> ProbeAnswer:
    return ProbeAnswer(ok=False, failures=((code, sentence),))


def _as_error(problems: Sequence[Finding]) -> KleinError:
    """Return the error that a failed proof is: the machine's fault where it is the device, else the environment's."""
    first = problems[0]
    kind: type[KleinError] = CommandError
    if first.code in ("probe-no-device", "probe-no-kernel", "probe-cudnn"):
        kind = UnsupportedMachineError
    message = "The environment was built and does not prove itself: " + " ".join(each.message for each in problems)
    return kind(message, hint=first.hint, reason=first.code, findings=[each.code for each in problems])
