"""Virtual environments with a torch set in them: made aside and swapped in, observed, probed, added to, put back.

It refuses to install torch from more than one index, to install anything before the tags of the set were read from the
wheels' metadata, and to let a person's pip or uv settings send packages elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, Protocol

from packaging.tags import platform_tags

from provisioner.core.errors import (
    CommandError,
    EntryNotFoundError,
    HashMismatchError,
    IntegrityError,
    KleinError,
    OfflineError,
    StorageError,
    UnsupportedMachineError,
    UsageError,
)
from provisioner.core.events import Lasting
from provisioner.core.models import Finding, Machine
from provisioner.core.ports import Cancelled, FileCache, RunProcess
from provisioner.core.redact import redact
from provisioner.core.units import listing
from provisioner.disk.flush import flush_all
from provisioner.disk.programs import find_on_path
from provisioner.disk.root import is_link
from provisioner.environment.build import VENV_TIMEOUT_S, Builder
from provisioner.environment.build_context import ASK_TIMEOUT_S, BuildContext, Progress, pip_settings
from provisioner.environment.bundle_cache import BundleCache
from provisioner.environment.bundled_wheels import (
    BundledWheel,
    CollectedWheels,
    bundled,
    complaint_about_wheels,
    lacking,
    why_left_out,
)
from provisioner.environment.installed import (
    own_folders,
    python_in,
    read_distributions,
    read_leftovers,
    read_second_torches,
)
from provisioner.environment.installer import (
    DEFAULT_INDEX,
    Wheel,
    bundle_lacks,
    constraint_value,
    constraint_variables,
    explain_failure,
)
from provisioner.environment.kept_packages import KeptPackages, read_damaged, read_records
from provisioner.environment.locked_list import LockedList
from provisioner.environment.package_installer import PackageInstaller
from provisioner.environment.package_list import (
    ListedPackage,
    PackageChange,
    PackageList,
    changed,
    enforced,
    listed,
    merged,
    requirements_digest,
    requirements_text,
)
from provisioner.environment.pythons import ask_python, find_pythons
from provisioner.environment.read_python import import_path, read_python
from provisioner.environment.state import (
    FAMILY,
    Distribution,
    EnvironmentReceipt,
    Observation,
    ProbeAnswer,
    PythonFacts,
    bare_uuid,
    complaint_about_python,
    constraints_text,
    device_of,
    judge_probe,
    parse_probe,
    public_version,
    python_number,
    receipt_text,
    wanted_versions,
)
from provisioner.environment.swap import (
    CONSTRAINTS,
    PACKAGES,
    RECEIPT,
    Workspace,
    disk_error,
    environment_root,
    forget_building,
    only_one,
    read_receipt,
    read_text,
    relocate,
)
from provisioner.environment.wheel_files import path_of
from provisioner.torch.builds import TorchBuild, TorchSet

__all__ = ["Environments", "Installer", "Progress"]

Installer = Literal["auto", "pip", "uv"]
PROBE = Path(__file__).with_name("probe_script.py")

_PROBE_TIMEOUT_S = 600.0  # the first import of a CUDA torch from a slow disk takes minutes
_TOLERATED_WITHOUT_DEVICE = frozenset({"probe-no-device"})


def _silent(line: str) -> None:
    """Listen to nothing."""


@dataclass(frozen=True, kw_only=True)
class Environments:
    """The virtual environments of this computer.

    Parameters
    ----------
    run : RunProcess
        Starts programs: `provisioner.machine.process.run_process`.
    environ : mapping
        The person's environment variables.
    pass_env : collection of str
        Names of those that the programs started here get as well.
    home : Path
        Where Pythons are looked for, beside the PATH.
    cache : FileCache
        Brings the wheels, and keeps them for the next environment.
    is_offline : bool
        ``--offline``: what is not on this computer is an error.
    package_index : str, optional
        Where packages other than torch come from; pip's own index where None.
    bundle : tuple of BundledWheel, optional
        Everything comes out of these, which `cache` holds; see `from_bundle`.
    packages : KeptPackages, optional
        Where the lists of what is installed are kept, outside of the environments; None: nowhere.
    probe_script : Path
        What proves an environment.
    waits_for_lock : bool
        Wait while another run works on the same environment; else LockHeldError.
    cancelled : callable
        True means: stop now.
    """

    run: RunProcess
    cache: FileCache
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    pass_env: Collection[str] = ()
    home: Path = field(default_factory=Path.home)
    is_offline: bool = False
    package_index: str | None = None
    bundle: tuple[BundledWheel, ...] | None = None
    packages: KeptPackages | None = None
    probe_script: Path = PROBE
    waits_for_lock: bool = True
    cancelled: Cancelled = lambda: False

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

        Everything happens in a folder aside.  An environment that is there already stays untouched until the new one
        has passed its probe; then it is removed if it was ours, else kept as ``NAME.before-TIME``.

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
        installer : "auto", "pip" or "uv"
            What unpacks the wheels; "auto": uv where it is found, else pip.
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
        with only_one(where, wait=self.waits_for_lock, notice=progress, cancelled=self.cancelled):
            work = Workspace(where)
            recovered = work.recover()
            if recovered is not None:
                progress(Lasting(recovered))
            chosen = self._choose_python(python, python_versions)
            with _clearing_up(work) as begin:
                build_id = _build_id()
                staging = begin(build_id)
                progress(f"Python {chosen.version} ({chosen.path})")
                self._make_venv(chosen, staging, where.name)
                maker = Builder(self._context, staging, work, progress, uv)
                maker.improve_pip()
                releases, wheels = maker.resolve(build)
                wheels = maker.fetch(wheels, build.index_url)
                maker.install(wheels)
                receipt = _receipt(build_id, "pip" if uv is None else "uv", chosen, build, releases, maker.installed())
                receipt = self._verify(staging, receipt, build, machine, needs_device=needs_device, progress=progress)
                _seal(staging, where, receipt)
                with self._without_list(where):  # a list of another environment would be a false one
                    kept = work.swap(staging, build_id, _stamp(), lambda: self._check_in_place(where))
            self._keep_list(where, self.observe(where), None, listed(wheels, "torch"), progress)
        if kept is not None:
            progress(Lasting(f"The environment that was there is kept as {kept}."))
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
        with only_one(where, wait=self.waits_for_lock, notice=progress, cancelled=self.cancelled):
            work = Workspace(where)
            recovered = work.recover()
            if recovered is not None:
                progress(Lasting(recovered))
            before = self.observe(where)
            if before.python is None:
                why = before.broken or "there is none"
                raise CommandError(f"The environment {where} cannot be repaired: {why}", hint="Make it anew.")
            receipt = before.receipt
            packages = self._list_of(where)
            locked: tuple[ListedPackage, ...] = ()
            if receipt is not None and receipt.local_tag == build.local_tag:
                others = tuple(each for each in build.sets if each != receipt.set)
                build = replace(build, sets=(receipt.set, *others))
                locked = _locked_wheels(packages, receipt, before.python)
            with _clearing_up(work) as begin:
                begin(_build_id(), is_in_place=True)
                maker = Builder(self._context, where, work, progress)
                maker.need_pip()
                releases, wheels = self._resolve_again(maker, build, where, locked)
                changes = [each for each in self._changes(packages, before, reads_files=True) if each.origin == "torch"]
                wheels = maker.fetch(maker.needed(wheels, before, changes), build.index_url)
                maker.put_back(wheels, before)
                build_id = receipt.build_id if receipt is not None else _build_id()
                fresh = _receipt(build_id, "pip", before.python, build, releases, maker.installed())
                fresh = self._verify(where, fresh, build, machine, needs_device=needs_device, progress=progress)
                _write_state(where, where, fresh)
            work.root.remove_tree(work.folder)
            self._keep_list(where, self.observe(where), packages, listed(wheels, "torch"), progress)
        return fresh

    def install(
        self,
        where: Path,
        requirements: Sequence[str],
        *,
        out_of: Sequence[str] | None = None,
        installer: Installer = "pip",
        progress: Progress = _silent,
    ) -> int:
        """Install more into an environment, under the constraints that hold its torch set.

        pip resolves them once; each is then installed from the very file that was found, by its SHA-256, and listed.

        Parameters
        ----------
        where : Path
            The environment.
        requirements : sequence of str
            ``"diffusers>=0.37"``; none where only the list is to be renewed.
        out_of : sequence of str, optional
            All requirements of the application, the ones that are met already included; None: these.
        installer : "auto", "pip" or "uv"
            What installs them, as for `create`.
        progress : callable
            Told one line at a time.

        Returns
        -------
        int
            How many packages came or changed.

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
        with only_one(where, wait=self.waits_for_lock, notice=progress, cancelled=self.cancelled):
            before = self.observe(where)
            if before.python is None:
                raise CommandError(f"{where} is no usable environment: {before.broken or 'there is none'}")
            if self.bundle is not None and (
                missing := lacking(requirements, self.bundle, python_version=before.python.version)
            ):
                raise bundle_lacks(missing, "install it" if len(missing) == 1 else "install them")
            packages = self._list_of(where)
            with PackageInstaller(self._context, where, before.python.path, uv, progress) as pip:
                installed = pip.install(requirements, has_constraints=before.constraints is not None)
            after = self.observe(where)
            self._hold(before, after)
            digest = requirements_digest(requirements if out_of is None else out_of)
            self._keep_list(where, after, packages, installed, progress, digest)
        return len(_versions(after) - _versions(before))

    def restore(
        self,
        where: Path,
        names: Sequence[str],
        *,
        packages: PackageList | None = None,
        installer: Installer = "pip",
        progress: Progress = _silent,
    ) -> None:
        """Install listed packages again, each from the very file that was installed before.

        Parameters
        ----------
        where : Path
            The environment.
        names : sequence of str
            Of the packages, as the list has them; others are left out.
        packages : PackageList, optional
            Another list than the one that is kept, from an earlier time.
        installer : "auto", "pip" or "uv"
            What installs them, as for `create`.
        progress : callable
            Told one line at a time.

        Raises
        ------
        EntryNotFoundError, HashMismatchError
            The index has these files no longer.
        KleinError
            As `install`.
        """
        where = _absolute(where)
        uv = self._uv(installer)
        with only_one(where, wait=self.waits_for_lock, notice=progress, cancelled=self.cancelled):
            before, kept = self.observe(where), self._list_of(where)
            source = packages or kept
            wanted = [each for each in (source.packages if source is not None else ()) if each.name in names]
            if before.python is None or self.packages is None or not wanted:
                return
            try:
                with PackageInstaller(self._context, where, before.python.path, uv, progress) as pip:
                    pip.restore(wanted)
            except (EntryNotFoundError, HashMismatchError) as error:
                files = listing([f"{each.file_name} (SHA-256 {each.sha256})" for each in wanted])
                raise type(error)(
                    f"{error} What was installed is not to be had there any more; it was {files}.",
                    hint="Name an index or a folder that still has it with PIP_INDEX_URL or PIP_FIND_LINKS; or delete "
                    f"the list, {self.packages.path(where)}, and run the same command: it takes what the index has.",
                    **error.context,
                ) from error
            after = self.observe(where)
            self._hold(before, after)
            self._keep_list(where, after, kept, wanted, progress)

    def try_out(
        self,
        requirements: Sequence[str],
        build: TorchBuild | None,
        where: Path,
        *,
        python: Path | None = None,
        python_versions: Sequence[str] = (),
        progress: Progress = _silent,
    ) -> None:
        """Let pip resolve an application's requirements under the torch set, before anything is installed.

        Parameters
        ----------
        requirements : sequence of str
            All of them.
        build : TorchBuild or None
            What a new environment would get: then pip works in one beside, which is gone afterwards.  None: `where` has
            its set, and pip's ``--dry-run`` is asked there.
        where : Path
            The environment.
        python, python_versions, progress
            As for `create`.

        Raises
        ------
        CommandError
            The requirements exclude each other or the torch set (``reason="conflict"``, ``sides``).
        KleinError
            As `install`, for network and disk.
        """
        if build is not None:
            with self._scratch_environment(self._choose_python(python, python_versions), progress) as (_, maker):
                maker.try_beside(build, requirements)
            return
        where = _absolute(where)
        with only_one(where, wait=self.waits_for_lock, notice=progress, cancelled=self.cancelled):
            seen = self.observe(where)
            if seen.python is not None:
                with PackageInstaller(self._context, where, seen.python.path, None, progress) as pip:
                    pip.try_out(requirements, has_constraints=seen.constraints is not None)

    # --- bundles ---------------------------------------------------------------------------------

    def fetch(
        self,
        build: TorchBuild | None,
        requirements: Sequence[str],
        *,
        python: Path | None = None,
        python_versions: Sequence[str] = (),
        own: LockedList | None = None,
        progress: Progress = _silent,
    ) -> CollectedWheels:
        """Return the wheels that an environment would be installed from, each in the cache; none is unpacked.

        pip resolves as for `create` and `install`, in an empty environment that is gone afterwards.

        Parameters
        ----------
        build : TorchBuild or None
            What was chosen; its sets are tried newest first.  None: nothing but `own`.
        requirements : sequence of str
            All of the application's.
        python, python_versions, progress
            As for `create`; the wheels are those for this Python and this computer's system.
        own : LockedList, optional
            What klein-setup itself needs, fetched beside for the same Python.

        Raises
        ------
        HashMismatchError
            The index offers a file that `own` does not name.
        KleinError
            As `create` and `install`.
        """
        chosen = self._choose_python(python, python_versions)
        with self._scratch_environment(chosen, progress) as (staging, maker):
            torch: tuple[Wheel, ...] = ()
            if build is not None:
                torch = maker.fetch(maker.resolve(build)[1], build.index_url)
            with PackageInstaller(self._context, staging, maker.python, None, progress) as pip:
                others = () if build is None else pip.fetch_beside(requirements, torch)
                packages = (*listed(torch, "torch"), *listed(others, "application"))
                left_out = [(f"{each.name} {each.version}", why) for each in packages if (why := why_left_out(each))]
                files = [
                    (bundled(each), path_of(wheel))
                    for each, wheel in zip(packages, (*torch, *others), strict=True)
                    if why_left_out(each) is None
                ]
                needed: list[Wheel] = []
                try:
                    needed.append(pip.fetch_pip())
                except (EntryNotFoundError, OfflineError) as error:
                    left_out.append(("pip, and with it klein-setup itself,", f"it could not be had: {error}"))
                files += map(_bundled_file, needed if build is not None else ())
                if own is not None and needed:
                    needed += pip.fetch_locked(own)
        return CollectedWheels(
            files=tuple(files),
            left_out=tuple(left_out),
            python=chosen.release,
            own=() if own is None else tuple(map(_bundled_file, needed)),
        )

    def from_bundle(
        self,
        wheels: Sequence[BundledWheel],
        blob: Callable[[str], Path],
        *,
        bring: Callable[[Sequence[str]], None] = lambda digests: None,
        notice: Progress = _silent,
    ) -> Environments:
        """Return the same environments, made and repaired out of a bundle alone, without a network.

        Each wheel is copied into the user's cache when something is installed, and compared with its SHA-256.  Neither
        an index nor a folder of the person's settings is looked at.  `create`, `repair`, `install` and `restore` raise
        as with ``--offline``: an OfflineError names what the bundle lacks, and beside it NotTheFileError for a blob
        that is listed and missing, HashMismatchError for a damaged one, and UnsupportedMachineError where no Python of
        this computer is one that the wheels of the torch set are for.

        Parameters
        ----------
        wheels : sequence of BundledWheel
            What the bundle lists.
        blob : callable
            Returns the place of a blob by its SHA-256.
        bring : callable
            Has blobs lie in their places: those of a bundle that is not on this computer.
        notice : callable
            Told one line when wheels are copied.
        """
        cache = BundleCache(cache=self.cache, wheels=tuple(wheels), blob=blob, bring_blobs=bring, notice=notice)
        return replace(self, cache=cache, bundle=tuple(wheels), is_offline=True)

    def compare(
        self, where: Path, seen: Observation, *, reads_files: bool, packages: PackageList | None = None
    ) -> tuple[PackageList, tuple[PackageChange, ...], Path] | None:
        """Return the list of an environment, how it differs from it, and the list's file; None where there is no list.

        Parameters
        ----------
        where : Path
            The environment.
        seen : Observation
            What is in it.
        reads_files : bool
            Read every file of the listed packages; else only versions and RECORDs are compared.
        packages : PackageList, optional
            Another list to compare with.
        """
        where = _absolute(where)
        packages = self._list_of(where) if packages is None else packages
        if packages is None or self.packages is None:
            return None
        return packages, self._changes(packages, seen, reads_files=reads_files), self.packages.path(where)

    def _changes(
        self, packages: PackageList | None, seen: Observation, *, reads_files: bool
    ) -> tuple[PackageChange, ...]:
        if packages is None:
            return ()
        records = read_records(packages.packages, seen.distributions)
        damaged = read_damaged(packages, records) if reads_files else {}
        digests = {name: record.sha256 for name, record in records.items()}
        return changed(packages, seen.distributions, digests, damaged)

    def _list_of(self, where: Path) -> PackageList | None:
        return None if self.packages is None else self.packages.read(where)

    @contextmanager
    def _without_list(self, where: Path) -> Iterator[None]:
        """Keep no list while an environment takes the place of another; that of the other comes back if it fails."""
        before = self._list_of(where)
        if self.packages is None or before is None:
            yield
            return
        self.packages.forget(where)
        try:
            yield
        except BaseException:
            self.packages.keep(where, before)
            raise

    def _keep_list(
        self,
        where: Path,
        seen: Observation,
        before: PackageList | None,
        installed: Sequence[ListedPackage] | None,
        progress: Progress,
        requirements_sha256: str | None = None,
    ) -> None:
        """Keep what is installed now; None for `installed`: nobody knows from which files."""
        if self.packages is None or (before is None and not installed):
            return
        known = before.requirements_sha256 if before is not None else None
        named = (*(before.packages if before is not None else ()), *(installed or ()))
        packages = merged(
            before,
            installed or (),
            {name: record.sha256 for name, record in read_records(named, seen.distributions).items()},
            made_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            requirements_sha256=requirements_sha256,
            forgets_changed=installed is None or requirements_sha256 not in (None, known),
        )
        try:
            self.packages.keep(where, packages)
        except StorageError as error:
            said = f"The list of packages could not be kept, so that `verify` will not compare them: {error}"
            progress(Lasting(said))
        environment_root(where).write_text(where / PACKAGES, requirements_text(packages.packages))

    def _resolve_again(
        self, maker: Builder, build: TorchBuild, where: Path, locked: Sequence[ListedPackage]
    ) -> tuple[TorchSet, tuple[Wheel, ...]]:
        """Return the set that was installed, of the very same files; any set where there is no list of it."""
        if not locked or self.packages is None:
            return maker.resolve(build)
        list_file = self.packages.path(where)
        way_out = (
            "Name an index that still has it with --torch-index; or delete the list, "
            f"{list_file}, and run the same command: it takes what the index has."
        )
        also = [f"{each.name}=={each.version}" for each in locked if each.name not in FAMILY]
        known = {each.name: each.sha256 for each in locked if each.sha256 is not None}
        try:
            releases, wheels = maker.resolve(replace(build, sets=build.sets[:1]), also)
        except EntryNotFoundError as error:
            message = f"{error} It is what was installed here before."
            raise EntryNotFoundError(message, hint=way_out, **error.context) from error
        return releases, tuple(enforced(wheels, known, whose=f"the list of {where}", way_out=way_out))

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
        """Return what the files of an environment say; nothing in it is started, nothing is written."""
        where = _absolute(where)
        interrupted = Workspace(where).interrupted()
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
        facts = read_python(where, python)
        if isinstance(facts, str):
            return replace(seen, broken=facts)
        path = import_path(where, facts, self.environ, self.home)
        own = own_folders(where, path)
        return replace(
            seen,
            python=facts,
            distributions=read_distributions(own),
            second_torches=read_second_torches(own, path),
            leftovers=read_leftovers(own),
        )

    def probe(
        self, where: Path, *, backend: str, packages: Sequence[str] = FAMILY, architectures: Sequence[str] = ()
    ) -> ProbeAnswer:
        """Run the probe in an environment; that it fails, dies or hangs is an answer, not an error.

        Parameters
        ----------
        where : Path
            The environment.
        backend : str
            What the set was built for, "cu130": decides which kind of device has to compute.
        packages : sequence of str
            What must import.
        architectures : sequence of str
            AMD: of the GPUs that must compute; empty: of all.
        """
        python = python_in(_absolute(where))
        if python is None:
            return _failed_probe("probe-no-python", f"{where} holds no Python.")
        expect: dict[str, object] = {"device": device_of(backend), "packages": list(packages)}
        if architectures:
            expect["architectures"] = list(architectures)
        asked = json.dumps({"expect": expect})
        env = self._context.child_environ
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

    def find_python(self, python_versions: Sequence[str] = (), *, given: Path | None = None) -> PythonFacts:
        """Return the Python an environment would be made from, the given one or the first that fits.

        Raises
        ------
        UnsupportedMachineError
            The given one does not fit, or none of this computer does.
        """
        return self._choose_python(given, python_versions)

    def remove(self, where: Path) -> None:
        """Delete an environment of ours, or only the link that leads to one.

        Raises
        ------
        UsageError
            It is not ours.
        StorageError
            The system refuses.
        LockHeldError
            Another run works on it, and `waits_for_lock` is false.
        """
        where = _absolute(where)
        with only_one(where, wait=self.waits_for_lock, notice=_silent, cancelled=self.cancelled):
            receipt = read_receipt(where)
            if receipt is None:
                raise UsageError(f"{where} was not made by klein-setup.", hint="Nothing was removed.", path=str(where))
            if self.packages is not None and not is_link(where):
                self.packages.forget(where)
            Workspace(where).remove_environment(receipt.build_id)

    def variables(self, where: Path) -> dict[str, str]:
        """Return the variables that hold pip and uv to the constraints inside a running application."""
        path = _absolute(where) / CONSTRAINTS
        return constraint_variables(path) if path.is_file() else {}

    def clear_leftovers(self, where: Path, *, progress: Progress = _silent) -> None:
        """Remove what a killed run left beside an environment; not for one that is still to be made.

        Raises
        ------
        StorageError
            The system refused.
        LockHeldError
            Another run makes it just now, and it is not to be waited for.
        """
        where = _absolute(where)
        work = Workspace(where)
        if work.journal() is None:
            return
        with only_one(where, wait=self.waits_for_lock, notice=progress, cancelled=self.cancelled):
            if work.recover() is not None:
                work.root.remove_tree(work.folder)

    def package_indexes(self) -> tuple[str, ...]:
        """Return where packages other than torch would come from, as far as the person's settings say.

        pip's configuration files are read by the pip of the Python that runs this program, where it has one.
        """
        settings = pip_settings(self._context, Path(sys.executable))
        if "no-index" in settings:
            return tuple(settings.get("find-links", "").split())
        index = settings.get("index-url", DEFAULT_INDEX)
        return (index, *settings.get("extra-index-url", "").split(), *settings.get("find-links", "").split())

    @property
    def _context(self) -> BuildContext:
        return BuildContext(
            run=self.run,
            environ=self.environ,
            cache=self.cache,
            pass_env=self.pass_env,
            is_offline=self.is_offline,
            package_index=self.package_index,
            is_bundle=self.bundle is not None,
        )

    # --- parts -------------------------------------------------------------------------------------

    def _uv(self, installer: Installer) -> Path | None:
        """Return uv's path where it is to install; None for pip."""
        if installer == "pip":
            return None
        beside = Path(sys.executable).with_name("uv.exe" if sys.platform == "win32" else "uv")
        found = find_on_path("uv", self.environ, cwd=Path.cwd(), is_windows=sys.platform == "win32")
        if found is None and beside.exists():
            found = beside
        if found is None:
            if installer == "auto":
                return None
            raise UsageError("uv was asked for, and it is not installed.", hint="Install uv, or leave --uv out.")
        return found

    def _choose_python(self, given: Path | None, versions: Sequence[str]) -> PythonFacts:
        env = self._context.child_environ
        if given is not None:
            facts = ask_python(self.run, _absolute(given), env, cwd=self._elsewhere)[0]
            complaint = self._complaint(facts, versions)
            if complaint is not None:
                raise UnsupportedMachineError(complaint, hint="Name another Python with --python.", path=str(given))
            return facts
        found = find_pythons(
            self.run,
            self.environ,
            self.home,
            env=env,
            cwd=self._elsewhere,
            wanted=lambda facts: self._complaint(facts, versions) is None,
        )
        if found and self._complaint(found[-1], versions) is None:
            return found[-1]
        complaints = [self._complaint(facts, versions) or "" for facts in found]
        wanted = f"Python {listing(list(versions))}" if versions else "a Python"
        raise UnsupportedMachineError(
            f"No Python of this computer fits: {wanted} is needed. {' '.join(complaints[:4])}".strip(),
            hint="Install one of them (python.org, or `uv python install`), or name it with --python.",
        )

    def _complaint(self, python: PythonFacts, versions: Sequence[str]) -> str | None:
        """Say why an environment cannot be made with this Python, be it for want of wheels in the bundle."""
        complaint = complaint_about_python(python, versions)
        if complaint is not None or self.bundle is None:
            return complaint
        return complaint_about_wheels(self.bundle, python, list(platform_tags()))

    @property
    def _elsewhere(self) -> Path:
        """A folder to start a Python in that holds no modules: the home folder, or the root where there is no home."""
        return self.home if self.home.is_dir() else Path(self.home.anchor or os.sep)

    @contextmanager
    def _scratch_environment(self, chosen: PythonFacts, progress: Progress) -> Iterator[tuple[Path, Builder]]:
        """Yield the folder of an empty environment, and its builder; it is gone afterwards, its wheels are cached."""
        with self.cache.arriving() as folder:
            work = Workspace(folder / "env")
            staging = work.begin(_build_id())
            self._make_venv(chosen, staging, "env")
            maker = Builder(self._context, staging, work, progress)
            maker.improve_pip()
            yield staging, maker

    def _make_venv(self, python: PythonFacts, folder: Path, prompt: str) -> None:
        env = self._context.installer_environ({})
        done = self.run(
            [python.path, "-I", "-m", "venv", "--prompt", prompt, folder], timeout_s=VENV_TIMEOUT_S, env=env
        )
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing="make the environment", index_url=None)

    def _verify(
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
            folder,
            backend=build.torch_backend,
            packages=[name for name, _ in wanted_versions(receipt.set)],
            architectures=build.targets,
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
            env = self._context.installer_environ({})
            done = self.run([script, "--version"], timeout_s=ASK_TIMEOUT_S, env=env)
            names = {os.path.normcase(where), os.path.normcase(where.resolve())}
            if done.returncode != 0 or not any(name in os.path.normcase(done.stdout) for name in names):
                said = done.last_lines[-1] if done.last_lines else f"exit status {done.returncode}"
                raise CommandError(f"The environment does not work in its place: {script} says {said}")
            return
        raise CommandError(f"The environment at {where} has no pip after it was put in its place.")


# --- small things ------------------------------------------------------------------------------


def _versions(seen: Observation) -> set[tuple[str, str]]:
    return {(each.name, each.version) for each in seen.distributions}


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


def _stamp() -> str:
    return datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")


def _link_target(path: Path) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - Path.readlink rewrites what it reads on Windows
    except OSError:
        return "nowhere"


class _Begin(Protocol):
    """As `Workspace.begin`."""

    def __call__(self, build_id: str, *, is_in_place: bool = False) -> Path:
        """Begin a building; return the folder aside."""


@contextmanager
def _clearing_up(work: Workspace) -> Iterator[_Begin]:
    """Give a function that begins a building; where the building fails, remove all of it."""
    twins: list[Path] = []

    def begin(build_id: str, *, is_in_place: bool = False) -> Path:
        twins.append(work.begin(build_id, is_in_place=is_in_place))
        return twins[0]

    try:
        yield begin
    except KleinError:
        work.give_up(twins)
        raise
    except OSError as error:
        work.give_up(twins)
        raise disk_error(error, work.where, doing="write") from error


def _receipt(
    build_id: str,
    installer: Literal["pip", "uv"],
    python: PythonFacts,
    build: TorchBuild,
    releases: TorchSet,
    installed: Sequence[Distribution],
) -> EnvironmentReceipt:
    """Return the receipt of what lies in an environment, not proven yet."""
    return EnvironmentReceipt(
        build_id=build_id,
        made_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        installer=installer,
        python_version=python.version,
        python_home=str(python.base_prefix),
        torch_backend=build.torch_backend,
        index_url=None if build.index_url is None else redact(build.index_url),  # it may hold a password
        local_tag=build.local_tag,
        set=releases,
        versions=_versions_of(installed, releases),
        constraints=_constraints(installed, releases),
    )


def _locked_wheels(
    packages: PackageList | None, receipt: EnvironmentReceipt, python: PythonFacts
) -> tuple[ListedPackage, ...]:
    """Return the listed files of the torch set; none for another Python, which needs other wheels."""
    if packages is None or python_number(receipt.python_version) != python_number(python.version):
        return ()
    return tuple(each for each in packages.packages if each.origin == "torch")


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


def _seal(staging: Path, where: Path, receipt: EnvironmentReceipt) -> None:
    """Write what the environment carries with it, let it bear its final name, and hand everything to the disk."""
    _write_state(staging, where, receipt)
    forget_building(staging)
    relocate(staging, where.name)
    flush_all()


def _write_state(folder: Path, where: Path, receipt: EnvironmentReceipt) -> None:
    """Write constraints, receipt, and the setting by which every pip run in the environment finds the constraints."""
    root = environment_root(folder)
    root.write_text(folder / CONSTRAINTS, "".join(f"{line}\n" for line in receipt.constraints))
    settings = folder / ("pip.ini" if sys.platform == "win32" else "pip.conf")
    if not settings.exists():
        comment = "# Written by klein-setup: holds torch, torchvision and torchaudio together.\n"
        root.write_text(settings, f"{comment}[global]\nconstraint = {constraint_value(where / CONSTRAINTS)}\n")
    root.write_text(folder / RECEIPT, receipt_text(receipt))


def _bundled_file(wheel: Wheel) -> tuple[BundledWheel, Path]:
    """Return a wheel that is on this disk as one of a bundle, and its place."""
    return bundled(*listed([wheel], "application")), path_of(wheel)


def _failed_probe(code: str, sentence: str) -> ProbeAnswer:
    return ProbeAnswer(ok=False, failures=((code, sentence),))


def _as_error(problems: Sequence[Finding]) -> KleinError:
    """Return the error that a failed proof is: the machine's fault where it is the device, else the environment's."""
    first = problems[0]
    kind: type[KleinError] = CommandError
    if first.code in ("probe-no-device", "probe-no-kernel", "probe-cudnn"):
        kind = UnsupportedMachineError
    message = "The environment was built but does not pass its checks: " + " ".join(each.message for each in problems)
    hint = first.hint
    if first.remedy in {"install-environment", "repair"}:  # which is what has just been tried
        hint = "These wheels do not fit together, or not this computer: take another build, `--torch TAG`, or another "
        hint += "index, `--torch-index URL`."
    return kind(message, hint=hint, reason=first.code, findings=[each.code for each in problems])
