"""One building: what a set is resolved to, and how its wheels are unpacked into an environment.

It refuses to install anything before every wheel is on this disk and its metadata agrees with what was promised.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from packaging.utils import canonicalize_name

from provisioner.core.errors import (
    CommandError,
    EntryNotFoundError,
    IntegrityError,
    KleinError,
    NotTheFileError,
    UsageError,
)
from provisioner.core.events import Lasting
from provisioner.core.ports import ProcessResult
from provisioner.core.units import count, listing
from provisioner.environment.build_context import (
    FETCH_TIMEOUT_S,
    GOOD_PIP,
    INSTALL_TIMEOUT_S,
    BuildContext,
    Progress,
    only_news,
    pip_settings,
    pip_version,
)
from provisioner.environment.installed import own_folders, parse_metadata, python_in, read_distributions
from provisioner.environment.installer import (
    DEFAULT_INDEX,
    Wheel,
    explain_failure,
    is_gap,
    links_page,
    offline_error,
    page_failures,
    parse_report,
)
from provisioner.environment.package_list import PackageChange, enforced
from provisioner.environment.pip_settings import without_indexes, without_network
from provisioner.environment.pythons import ask_python
from provisioner.environment.state import (
    FAMILY,
    Distribution,
    Observation,
    complaints_about_tags,
    constraints_text,
    pinned,
    wanted_versions,
)
from provisioner.environment.swap import Workspace, environment_root, read_text
from provisioner.environment.wheel_files import WheelFiles, held_page
from provisioner.torch.builds import TorchBuild, TorchSet

VENV_TIMEOUT_S = 600.0
_RESOLVE_TIMEOUT_S = 3600.0  # an index without PEP 658 makes pip fetch the wheels for it
_LOG_BYTES = 16 * 1024 * 1024


class Builder:
    """Resolves, fetches and installs with the pip of the folder it works on.

    Parameters
    ----------
    context : BuildContext
        What it works with.
    folder : Path
        The environment, aside or in its place.
    work : Workspace
        Where wheels and temporary files go.
    progress : callable
        Told one line at a time.
    uv : Path or None
        What unpacks the wheels; pip where None.
    """

    def __init__(
        self, context: BuildContext, folder: Path, work: Workspace, progress: Progress, uv: Path | None = None
    ) -> None:
        python = python_in(folder)
        if python is None:
            raise CommandError(f"{folder} holds no Python after it was made.")
        self._context, self._folder, self._work, self._progress, self._uv = context, folder, work, progress, uv
        self.python = python
        self._extra: str | None = None  # a second index, where the first has a gap

    def _pip(
        self,
        *words: str | Path,
        index_url: str | None,
        timeout_s: float,
        on_line: Callable[[str, str], None] | None = None,
    ) -> ProcessResult:
        """Run pip; the index travels in the environment, since it may hold a password and arguments are public."""
        settings = dict(self._settings) if index_url is None else without_indexes(self._settings)
        if index_url is not None:
            settings["index-url"] = index_url
        if self._extra is not None:
            settings["extra-index-url"] = self._extra
        if self._context.is_offline:
            page = held_page(self._context, self._work.root, self._work.temporary)
            here = f"{self._settings.get('find-links', '')} {page}"
            settings = without_network({**settings, "find-links": here})
        env = self._context.installer_environ(settings, pip=self._pip_version, temporary=self._work.temporary)
        command = [self.python, "-I", "-m", "pip", *words]
        return self._context.run(command, timeout_s=timeout_s, env=env, on_line=on_line)

    @cached_property
    def _settings(self) -> Mapping[str, str]:
        return pip_settings(self._context, self.python)

    def need_pip(self) -> None:
        """See that the environment has pip (uv makes environments without)."""
        if self._pip_version != (0, 0):
            return
        env = self._context.installer_environ({})
        done = self._context.run([self.python, "-I", "-m", "ensurepip"], timeout_s=VENV_TIMEOUT_S, env=env)
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing="put pip into the environment", index_url=None)
        del self._pip_version

    def improve_pip(self) -> None:
        """Bring a pip that resolves without fetching, from the person's own index or the bundle; go on without it."""
        is_out_of_reach = self._context.is_offline and not self._context.is_bundle
        if is_out_of_reach or self._pip_version >= GOOD_PIP:
            return
        wanted = f"pip>={GOOD_PIP[0]}.{GOOD_PIP[1]}"
        done = self._pip(
            "install", "--upgrade", "--only-binary", ":all:", "--progress-bar", "off", wanted,
            index_url=None,
            timeout_s=INSTALL_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode != 0:
            self._progress("No newer pip could be had; the one this Python brings along does it more slowly.")
        del self._pip_version

    @cached_property
    def _pip_version(self) -> tuple[int, int]:
        return pip_version(self._context, self.python)

    # --- resolving ---------------------------------------------------------------------------------

    def resolve(self, build: TorchBuild, also: Sequence[str] = ()) -> tuple[TorchSet, tuple[Wheel, ...]]:
        """Return the newest set the index has, and every wheel it takes; nothing is installed.

        Parameters
        ----------
        build : TorchBuild
            The sets, and the digests that are known of their wheels.
        also : sequence of str
            Requirements beside the set: ``"sympy==1.14.0"``.

        Raises
        ------
        EntryNotFoundError
            The index has none of the sets.
        NotTheFileError
            The wheels' own metadata say another build than the one promised.
        HashMismatchError
            The index names another digest than the one that is known of a wheel.
        """
        first: KleinError | None = None
        for releases in build.sets:
            try:
                wheels = self._resolve_one(releases, build, also)
            except EntryNotFoundError as error:
                first = first or error
                self._progress(Lasting(f"torch {releases.torch} cannot be had: {error}"))
                continue
            complaints = complaints_about_tags({each.name: each.version for each in wheels}, releases, build.local_tag)
            if complaints:
                raise NotTheFileError(
                    f"Nothing was installed: {' '.join(complaints)}",
                    hint="Take another index: `--torch-index URL`.",
                    index_url=build.index_url,
                )
            way_out = "Take another index, `--torch-index URL`; if the file was published anew, update klein-setup."
            known = dict(build.digests)
            return releases, tuple(enforced(wheels, known, whose="klein-setup's table or the lock", way_out=way_out))
        if first is not None and self._context.is_offline:
            raise offline_error(first, "find the torch set", is_bundle=self._context.is_bundle) from first
        raise first or UsageError("The torch build names no set of releases.")

    def try_beside(self, build: TorchBuild, requirements: Sequence[str]) -> None:
        """Let pip resolve requirements under the set that would be held; nothing is installed.

        Metadata of an index are enough; where it has none, the wheels of the set are in the cache afterwards.

        Raises
        ------
        CommandError
            The requirements exclude each other or the set (``reason="conflict"``).
        KleinError
            As `resolve`.
        """
        releases, wheels = self.resolve(build)
        held = self._work.temporary / "held.txt"
        self._work.root.write_text(
            held, constraints_text(releases, build.local_tag, ((each.name, each.version) for each in wheels))
        )
        words: list[str | Path] = ["-c", held]
        index_url = build.index_url
        if index_url is not None and all(not each.is_online for each in wheels):
            page = self._work.temporary / "set.html"
            self._work.root.write_text(page, links_page(wheels))
            words += ["--find-links", page.as_uri()]
            index_url = None
        elif index_url is not None and self._extra is None and not self._context.is_offline:
            self._extra = self._settings.get("index-url", DEFAULT_INDEX)
        self._progress(f"Resolving {count(len(requirements), 'requirement')}, without installing anything.")
        done = self._pip(
            "install", "--dry-run", "--ignore-installed", "--progress-bar", "off", *words, *requirements,
            index_url=index_url,
            timeout_s=_RESOLVE_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing=f"find {listing(requirements)}", index_url=index_url)

    def _resolve_one(self, releases: TorchSet, build: TorchBuild, also: Sequence[str]) -> tuple[Wheel, ...]:
        try:
            return self._ask_index(releases, build, also)
        except EntryNotFoundError as error:
            # Mirrors of the torch index lack a dependency at times (pytorch/pytorch#193491); versions with a local part
            # exist on the torch index only, so that the default index cannot slip in a torch of its own.
            if self._extra is not None or self._context.is_offline or not is_gap(error):
                raise
            if build.local_tag is None or build.index_url is None or build.is_alone:
                raise
            self._extra = self._settings.get("index-url", DEFAULT_INDEX)
            missing = error.context.get("requirement")
            self._progress(Lasting(f"{missing} is missing there; taking it from the default index."))
            return self._ask_index(releases, build, also)

    def _ask_index(self, releases: TorchSet, build: TorchBuild, also: Sequence[str]) -> tuple[Wheel, ...]:
        wanted = [
            pinned(name, version, build.local_tag, build.device_extras) for name, version in wanted_versions(releases)
        ]
        self._progress(f"Asking {'the index' if build.index_url else 'the default index'} for {listing(wanted)}.")
        wanted += also
        if self._context.is_offline or (build.names_digests and self._pip_version >= GOOD_PIP):
            return self._resolve_by_metadata(wanted, build.index_url)
        why = "The pip of this Python is old" if build.names_digests else "This index publishes no SHA-256"
        self._progress(Lasting(f"{why}: pip fetches the wheels by itself, without a limit."))
        return self._resolve_by_fetching(wanted, build)

    def _resolve_by_metadata(self, wanted: Sequence[str], index_url: str | None) -> tuple[Wheel, ...]:
        report = self._work.temporary / "report.json"
        log = self._fresh_log()
        done = self._pip(
            "install", "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--progress-bar", "off",
            "--log", log, "--report", report, *wanted,
            index_url=index_url,
            timeout_s=_RESOLVE_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode != 0:
            lines = [*page_failures(read_text(log, _LOG_BYTES) or ""), *done.last_lines]
            raise explain_failure(lines, doing=f"find {listing(wanted)}", index_url=index_url)
        return parse_report(report.read_text(encoding="utf-8"))

    def _resolve_by_fetching(self, wanted: Sequence[str], build: TorchBuild) -> tuple[Wheel, ...]:
        """Let pip fetch everything in one go, building what is a source archive, and read what arrived."""
        cache, log, index_url = self._context.cache, self._fresh_log(), build.index_url
        archives = [word for name in build.source_packages for word in ("--no-binary", name)]
        with cache.arriving() as arriving:
            done = self._pip(
                "wheel", "--only-binary", ":all:", *archives, "--progress-bar", "off", "--log", log,
                "--wheel-dir", arriving, *wanted,
                index_url=index_url,
                timeout_s=FETCH_TIMEOUT_S,
                on_line=only_news(self._progress),
            )  # fmt: skip
            if done.returncode != 0:
                lines = [*page_failures(read_text(log, _LOG_BYTES) or ""), *done.last_lines]
                raise explain_failure(lines, doing=f"find {listing(wanted)}", index_url=index_url)
            wheels = []
            for path in sorted(arriving.glob("*.whl")):
                wheel = read_wheel(path)
                sha256, place = cache.adopt(path, None)
                is_built = wheel.name in build.source_packages
                wheels.append(replace(wheel, url=place.as_uri(), sha256=sha256, is_built=is_built))
        return tuple(wheels)

    def _fresh_log(self) -> Path:
        log = self._work.temporary / "pip.log"
        self._work.root.remove(log)
        return log

    # --- fetching ----------------------------------------------------------------------------------

    @property
    def _files(self) -> WheelFiles:
        return WheelFiles(
            context=self._context,
            python=self.python,
            uv=self._uv,
            root=self._work.root,
            folder=self._work.temporary,
            progress=self._progress,
        )

    def fetch(self, wheels: Sequence[Wheel], index_url: str | None) -> tuple[Wheel, ...]:
        """Return every wheel on this disk, verified, as `WheelFiles.fetch` does."""
        settings = without_indexes(self._settings)
        if self._extra is not None:
            settings["extra-index-url"] = self._extra
        return self._files.fetch(wheels, settings, index_url or self._settings.get("index-url"))

    # --- installing --------------------------------------------------------------------------------

    def install(self, wheels: Sequence[Wheel]) -> None:
        """Unpack the wheels into the folder, from this disk alone; raises where other versions result."""
        self._progress(f"Installing {count(len(wheels), 'package')}.")
        self._files.unpack(wheels, "--ignore-installed")
        self._check(wheels)

    def needed(
        self, wheels: Sequence[Wheel], before: Observation, changes: Sequence[PackageChange]
    ) -> tuple[Wheel, ...]:
        """Return the wheels that put an environment back: those of other versions, and what is known to have changed.

        The family is installed anew as a whole, unless all that is wrong is known to be in what it depends on.
        """
        now = {each.name: each.version for each in before.distributions}
        wrong = {each.package for each in changes} | {
            each.name for each in wheels if now.get(each.name) != each.version
        }
        if not changes or not wrong.isdisjoint(FAMILY):
            wrong |= set(FAMILY)
        return tuple(wheel for wheel in wheels if wheel.name in wrong)

    def put_back(self, wheels: Sequence[Wheel], before: Observation) -> None:
        """Install wheels anew into an environment in use."""
        for leftover in before.leftovers:
            environment_root(leftover.parent).remove_tree(leftover)
        self._drop_doubles(before)
        self._progress(f"Installing {listing([wheel.label for wheel in wheels])}.")
        self._files.unpack(wheels, "--force-reinstall")
        self._check(wheels)

    def _drop_doubles(self, before: Observation) -> None:
        """Remove all but one record of each of the family: pip uninstalls one and leaves the others to be found."""
        for name in FAMILY:
            for double in [each for each in before.distributions if each.name == name][1:]:
                record = double.location / f"{double.name}-{double.version}.dist-info"
                environment_root(double.location).remove_tree(record)

    def installed(self) -> tuple[Distribution, ...]:
        """Return what lies in the folder."""
        env = self._context.installer_environ({})
        _, import_path = ask_python(self._context.run, self.python, env, cwd=self._folder)
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


# --- small things --------------------------------------------------------------------------------------


def read_wheel(path: Path) -> Wheel:
    """Return what a wheel on this disk says of itself; raises NotTheFileError where it is no wheel."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
            headers = parse_metadata(archive.read(inside).decode("utf-8", "replace"))
        name, version = canonicalize_name(headers["name"]), headers["version"]
    except (zipfile.BadZipFile, StopIteration, KeyError) as error:
        raise NotTheFileError(f"{path.name} is no wheel.", path=str(path)) from error
    return Wheel(name=name, version=version, url=path.as_uri(), sha256=None)
