"""One building: what a set is resolved to, how its wheels arrive, and how they are unpacked into an environment.

It refuses to install anything before every wheel is on this disk and its metadata agrees with what was promised.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import re
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PureWindowsPath

from packaging.utils import canonicalize_name

from provisioner.core.errors import (
    CommandError,
    EntryNotFoundError,
    HashMismatchError,
    IntegrityError,
    KleinError,
    NetworkError,
    NotTheFileError,
    UsageError,
)
from provisioner.core.events import Lasting
from provisioner.core.ports import Download, ProcessResult, RunProcess
from provisioner.core.retries import FEW_RETRIES, Retries
from provisioner.core.units import count, human_bytes, listing
from provisioner.environment.installed import own_folders, parse_metadata, python_in, read_distributions
from provisioner.environment.installer import (
    DEFAULT_INDEX,
    Wheel,
    announced_bytes,
    check_indexes,
    check_wheels,
    explain_failure,
    is_gap,
    offline_error,
    page_failures,
    parse_report,
    requirement_line,
    route_to,
)
from provisioner.environment.package_list import PackageChange, enforced
from provisioner.environment.pip_settings import (
    installer_environment,
    parse_pip_settings,
    without_indexes,
    without_network,
)
from provisioner.environment.pythons import ask_python
from provisioner.environment.state import (
    FAMILY,
    Distribution,
    Observation,
    complaints_about_tags,
    pinned,
    wanted_versions,
)
from provisioner.environment.swap import Workspace, environment_root, read_text
from provisioner.machine.child_environment import child_environment
from provisioner.torch.builds import TorchBuild, TorchSet

Progress = Callable[[str], None]
"""Told one line at a time what goes on."""

VENV_TIMEOUT_S = 600.0
ASK_TIMEOUT_S = 120.0
INSTALL_TIMEOUT_S = 3 * 3600.0
_RESOLVE_TIMEOUT_S = 3600.0  # an index without PEP 658 makes pip fetch the wheels for it
_FETCH_TIMEOUT_S = 6 * 3600.0
_LARGEST_WHEEL_BYTES = 16 * 1024**3
_LOG_BYTES = 16 * 1024 * 1024

# The first pip whose ``--dry-run`` asks an index for metadata only; 25.2 still fetches every wheel (both tried).  Since
# 25.1 it also continues a broken download within its run.
_GOOD_PIP = (25, 3)


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What a building works with, whatever it builds."""

    run: RunProcess
    environ: Mapping[str, str]  # the person's
    pass_env: Collection[str] = ()  # names of those that programs get beside the usual ones
    download: Download | None = None  # brings the wheels; pip where None
    is_offline: bool = False  # nothing is fetched
    retries: Retries = FEW_RETRIES  # of a broken download

    @property
    def child_environ(self) -> dict[str, str]:
        """What programs get of the person's variables."""
        return child_environment(self.environ, self.pass_env)


def pip_settings(context: BuildContext, python: Path) -> dict[str, str]:
    """Return the person's settings that may stay, as an environment's own pip reads them; raises UsageError."""
    of_pip = [name for name in context.environ if name.upper().startswith("PIP_")]
    env = child_environment(context.environ, [*context.pass_env, *of_pip])
    done = context.run([python, "-I", "-m", "pip", "config", "list"], timeout_s=ASK_TIMEOUT_S, env=env)
    settings = parse_pip_settings(done.stdout, with_indexes=True) if done.returncode == 0 else {}
    check_indexes(settings)
    return settings


def pip_version(context: BuildContext, python: Path) -> tuple[int, int]:
    """Return the version of a Python's pip, (25, 3); (0, 0) where it has none."""
    env = installer_environment(context.child_environ, {}, no_file=os.devnull)
    said = context.run([python, "-I", "-m", "pip", "--version"], timeout_s=ASK_TIMEOUT_S, env=env).stdout
    match = re.match(r"pip (\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else (0, 0)


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
        self._python = python
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
            here = f"{self._settings.get('find-links', '')} {self._work.wheels.as_uri()}"
            settings = without_network({**settings, "find-links": here})
        env = installer_environment(
            self._context.child_environ, settings, temporary=self._work.temporary, no_file=os.devnull
        )
        command = [self._python, "-I", "-m", "pip", *words]
        return self._context.run(command, timeout_s=timeout_s, env=env, on_line=on_line)

    @cached_property
    def _settings(self) -> Mapping[str, str]:
        return pip_settings(self._context, self._python)

    def need_pip(self) -> None:
        """See that the environment has pip (uv makes environments without)."""
        if self._pip_version != (0, 0):
            return
        env = installer_environment(self._context.child_environ, {}, no_file=os.devnull)
        done = self._context.run([self._python, "-I", "-m", "ensurepip"], timeout_s=VENV_TIMEOUT_S, env=env)
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing="put pip into the environment", index_url=None)
        del self._pip_version

    def improve_pip(self) -> None:
        """Bring a pip that resolves without fetching, from the person's own index; go on without where it has none."""
        if self._context.is_offline or self._pip_version >= _GOOD_PIP:
            return
        wanted = f"pip>={_GOOD_PIP[0]}.{_GOOD_PIP[1]}"
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
        return pip_version(self._context, self._python)

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
            raise offline_error(first, "find the torch set") from first
        raise first or UsageError("The torch build names no set of releases.")

    def _resolve_one(self, releases: TorchSet, build: TorchBuild, also: Sequence[str]) -> tuple[Wheel, ...]:
        try:
            return self._ask_index(releases, build, also)
        except EntryNotFoundError as error:
            # Mirrors of the torch index lack a dependency at times (pytorch/pytorch#193491); versions with a local part
            # exist on the torch index only, so that the default index cannot slip in a torch of its own.
            if self._extra is not None or self._context.is_offline or not is_gap(error):
                raise
            if build.local_tag is None or build.index_url is None:
                raise
            self._extra = self._settings.get("index-url", DEFAULT_INDEX)
            missing = error.context.get("requirement")
            self._progress(Lasting(f"{missing} is missing there; taking it from the default index."))
            return self._ask_index(releases, build, also)

    def _ask_index(self, releases: TorchSet, build: TorchBuild, also: Sequence[str]) -> tuple[Wheel, ...]:
        wanted = [pinned(name, version, build.local_tag) for name, version in wanted_versions(releases)]
        self._progress(f"Asking {'the index' if build.index_url else 'the default index'} for {listing(wanted)}.")
        wanted += also
        if self._pip_version >= _GOOD_PIP:
            return self._resolve_by_metadata(wanted, build.index_url)
        if self._context.download is not None:
            self._progress(Lasting("The pip of this Python fetches the wheels by itself, without a limit."))
        return self._resolve_by_fetching(wanted, build.index_url)

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

    def _resolve_by_fetching(self, wanted: Sequence[str], index_url: str | None) -> tuple[Wheel, ...]:
        """Let an older pip fetch everything in one go, and read the metadata in what arrived."""
        arriving, log = self._work.temporary / "arriving", self._fresh_log()
        with _watched(self._work.temporary, "Wheels", self._progress) as on_line:
            done = self._pip(
                "download", "--only-binary", ":all:", "--progress-bar", "off", "--find-links", self._work.wheels,
                "--log", log, "--dest", arriving, *wanted,
                index_url=index_url,
                timeout_s=_FETCH_TIMEOUT_S,
                on_line=on_line,
            )  # fmt: skip
        if done.returncode != 0:
            lines = [*page_failures(read_text(log, _LOG_BYTES) or ""), *done.last_lines]
            raise explain_failure(lines, doing=f"find {listing(wanted)}", index_url=index_url)
        wheels = []
        for path in sorted(arriving.glob("*.whl")):
            wheels.append(read_wheel(path))
            self._work.root.replace(path, self._work.wheels / path.name)
        return tuple(wheels)

    def _fresh_log(self) -> Path:
        log = self._work.temporary / "pip.log"
        self._work.root.remove(log)
        return log

    # --- fetching ----------------------------------------------------------------------------------

    def fetch(self, wheels: Sequence[Wheel], index_url: str | None) -> tuple[Wheel, ...]:
        """Bring every wheel to the work's folder; what an earlier building fetched and is whole stays.

        Returns
        -------
        tuple of Wheel
            The wheels, each with its SHA-256: that of the index, else of what arrived.
        """
        check_wheels(wheels, self._progress)
        wanted = {wheel.file_name for wheel in wheels}
        for path in self._work.wheels.glob("*.whl"):
            if path.name not in wanted:  # of an earlier try, or not from us: pip might prefer it
                self._work.root.remove(path)
        held = [wheel for wheel in wheels if _is_whole(self._work.wheels / wheel.file_name, wheel)]
        if held:
            self._progress(f"{count(len(held), 'wheel')} of {len(wheels)} have arrived already.")
        for number, wheel in enumerate(wheels, 1):
            if wheel in held:
                continue
            self._progress(f"Wheel {number} of {len(wheels)}: {wheel.label}.")
            self._fetch_one(wheel, index_url)
        return tuple(
            wheel if wheel.sha256 is not None else replace(wheel, sha256=_sha256(self._work.wheels / wheel.file_name))
            for wheel in wheels
        )

    def _insist(self, action: Callable[[], None]) -> None:
        for failures in itertools.count(1):
            try:
                action()
                return
            except NetworkError as error:
                pause_s = self._context.retries.pause_s(failures, jitter=random.random())  # noqa: S311 - spreads retries
                if pause_s is None:
                    raise
                self._progress(f"{error} Trying again in {pause_s:.2g} s.")
                time.sleep(pause_s)

    def _fetch_one(self, wheel: Wheel, index_url: str | None) -> None:
        destination = self._work.wheels / wheel.file_name
        if self._context.download is not None and wheel.url.startswith(("https:", "http:")):
            bring(
                self._context,
                wheel,
                destination,
                self._settings,
                index_url or self._settings.get("index-url"),
                self._progress,
            )
        else:
            self._insist(partial(self._fetch_with_pip, wheel, index_url))
        if not destination.is_file():
            raise NotTheFileError(f"pip brought another file than {wheel.file_name}.", path=str(destination))
        if wheel.sha256 is not None and _sha256(destination) != wheel.sha256:
            self._work.root.remove(destination)
            raise HashMismatchError(
                f"{wheel.file_name} has another SHA-256 than the index says.", expected=wheel.sha256
            )

    def _fetch_with_pip(self, wheel: Wheel, index_url: str | None) -> None:
        listed, arriving = self._work.temporary / "wheel.txt", self._work.temporary / "arriving"
        self._work.root.remove_tree(arriving)
        self._work.root.write_text(listed, requirement_line(wheel))  # it may be signed, and arguments are public
        with _watched(self._work.temporary, wheel.label, self._progress) as on_line:
            done = self._pip(
                "download", "--no-deps", "--progress-bar", "off", "--dest", arriving, "-r", listed,
                index_url=index_url,
                timeout_s=_FETCH_TIMEOUT_S,
                on_line=on_line,
            )  # fmt: skip
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing=f"fetch {wheel.label}", index_url=index_url)
        arrived = arriving / wheel.file_name
        if arrived.exists():
            self._work.root.replace(arrived, self._work.wheels / wheel.file_name)

    # --- installing --------------------------------------------------------------------------------

    def install(self, wheels: Sequence[Wheel]) -> None:
        """Unpack the wheels into the folder, from this disk alone; raises where other versions result."""
        self._progress(f"Installing {count(len(wheels), 'package')}.")
        listed = self._work.temporary / "wheels.txt"
        self._work.root.write_text(listed, "".join(f"{wheel.requirement}\n" for wheel in wheels))
        if self._uv is None:
            self._unpack("--ignore-installed", "-r", listed)
        else:
            self._unpack_with_uv(self._uv, listed)
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
        listed = self._work.temporary / "wheels.txt"
        self._work.root.write_text(listed, "".join(f"{wheel.requirement}\n" for wheel in wheels))
        self._unpack("--force-reinstall", "-r", listed)
        self._check(wheels)

    def _drop_doubles(self, before: Observation) -> None:
        """Remove all but one record of each of the family: pip uninstalls one and leaves the others to be found."""
        for name in FAMILY:
            for double in [each for each in before.distributions if each.name == name][1:]:
                record = double.location / f"{double.name}-{double.version}.dist-info"
                environment_root(double.location).remove_tree(record)

    def _unpack(self, *words: str | Path) -> None:
        done = self._pip(
            "install", "--no-index", "--no-deps", "--require-hashes", "--find-links", self._work.wheels,
            "--progress-bar", "off", *words,
            index_url="file:///nowhere",
            timeout_s=INSTALL_TIMEOUT_S,
            on_line=only_news(self._progress),
        )  # fmt: skip
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing="install the torch set", index_url=None)

    def _unpack_with_uv(self, uv: Path, listed: Path) -> None:
        env = installer_environment(self._context.child_environ, {}, temporary=self._work.temporary, no_file=os.devnull)
        done = self._context.run(
            [
                uv, "pip", "install", "--python", self._python, "--no-index", "--no-deps", "--require-hashes",
                "--find-links", self._work.wheels, "--cache-dir", self._work.temporary / "uv", "--no-progress",
                "--reinstall", "-r", listed,
            ],
            timeout_s=INSTALL_TIMEOUT_S,
            env=env,
        )  # fmt: skip
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing="install the torch set", index_url=None)

    def installed(self) -> tuple[Distribution, ...]:
        """Return what lies in the folder."""
        env = installer_environment(self._context.child_environ, {}, no_file=os.devnull)
        _, import_path = ask_python(self._context.run, self._python, env, cwd=self._folder)
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


def bring(
    context: BuildContext,
    wheel: Wheel,
    destination: Path,
    settings: Mapping[str, str],
    index_url: str | None,
    progress: Progress,
) -> None:
    """Bring one wheel by the context's `download`, which a limit of the rate holds for; raises as `Download`."""
    if context.download is None:
        raise AssertionError
    context.download(
        wheel.url,
        destination,
        what=wheel.label,
        hint="Check the user name and the password in the index address, or take another index (`--torch-index`).",
        most_bytes=_LARGEST_WHEEL_BYTES,
        sha256=wheel.sha256,
        route=route_to(wheel.url, settings, index_url),
        progress=progress,
    )


def _is_whole(path: Path, wheel: Wheel) -> bool:
    return wheel.sha256 is not None and path.is_file() and _sha256(path) == wheel.sha256


def read_wheel(path: Path) -> Wheel:
    """Return what a wheel on this disk says of itself; raises NotTheFileError where it is no wheel."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
            headers = parse_metadata(archive.read(inside).decode("utf-8", "replace"))
        name, version = canonicalize_name(headers["name"]), headers["version"]
    except (zipfile.BadZipFile, StopIteration, KeyError) as error:
        raise NotTheFileError(f"{path.name} is no wheel.", path=str(path)) from error
    return Wheel(name=name, version=version, url=path.as_uri(), sha256=_sha256(path))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(4 * 1024 * 1024):
            digest.update(chunk)
    return digest.hexdigest()


def only_news(progress: Progress) -> Callable[[str, str], None]:
    """Return a listener that passes on what a person wants to see of pip's chatter."""

    def listen(_: str, line: str) -> None:
        words = line.strip()
        if words.startswith("Processing "):
            progress(f"Unpacking {PureWindowsPath(words).name}")  # it knows both kinds of slashes
        elif words.startswith(("Downloading", "Collecting", "Building wheel", "Installing collected")):
            progress(words)

    return listen


@contextmanager
def _watched(folder: Path, label: str, progress: Progress) -> Iterator[Callable[[str, str], None]]:
    """Say every second how much of a wheel has arrived, by the size of what grows in `folder`.

    pip's own bar needs a terminal, and its line per second (``--progress-bar raw``) came with pip 24.1; the pip that
    Python 3.10 to 3.12 bring along is older.
    """
    stop, total = threading.Event(), [0]

    def listen(_: str, line: str) -> None:
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
    with contextlib.suppress(OSError):  # pip removes its folders while they are listed
        for path in folder.glob("pip-*/*"):
            sizes.append(path.stat().st_size if path.is_file() else 0)
    return max(sizes)
