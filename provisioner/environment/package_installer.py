"""Packages beside the torch set: resolved once by pip, then installed each from the very file that it found.

pip does the resolving (``--dry-run --report``) and, as uv does, the comparing of digests (``--require-hashes``).
Wheels come through the cache; what is built from a source archive is fetched and built by pip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from provisioner.core.errors import KleinError
from provisioner.core.events import Lasting
from provisioner.core.models import STATE_FOLDER
from provisioner.core.units import count, listing
from provisioner.disk.file_digest import sha256_of
from provisioner.disk.root import Root
from provisioner.environment.build_context import (
    GOOD_PIP,
    INSTALL_TIMEOUT_S,
    BuildContext,
    Progress,
    only_news,
    pip_settings,
    pip_version,
)
from provisioner.environment.installer import (
    Wheel,
    check_wheels,
    explain_failure,
    links_page,
    offline_error,
    parse_report,
)
from provisioner.environment.locked_list import LockedList
from provisioner.environment.package_list import ListedPackage, listed, requirements_text
from provisioner.environment.pip_settings import without_network
from provisioner.environment.swap import CONSTRAINTS, environment_root
from provisioner.environment.wheel_files import WheelFiles, held_page

_WORK = Path(STATE_FOLDER, "installing")  # lists and temporary files, until the packages are installed
_FIRST_WITH_REPORT = (22, 2)  # pip's


@dataclass
class PackageInstaller:
    """Installs into one environment with its own pip, or with uv; its files are removed when the block ends.

    Parameters
    ----------
    context : BuildContext
        What it works with.
    where : Path
        The environment, whose lock is held.
    python : Path
        Its interpreter.
    uv : Path or None
        What installs; pip where None.
    progress : callable
        Told one line at a time.
    """

    context: BuildContext
    where: Path
    python: Path
    uv: Path | None
    progress: Progress
    _root: Root = field(init=False)

    def __enter__(self) -> PackageInstaller:
        """Remove what a run that was killed left: pip follows a link that has the report's name."""
        self._root = environment_root(self.where)
        self._root.remove_tree(self._work)
        self._root.make_folder(self._work)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the files in between."""
        self._root.remove_tree(self._work)

    @property
    def _work(self) -> Path:
        return self.where / _WORK

    def install(self, requirements: Sequence[str], *, has_constraints: bool) -> tuple[ListedPackage, ...] | None:
        """Install requirements under the constraints; return what was installed, None where its files are not known.

        Raises
        ------
        IntegrityError
            The index names no SHA-256 for one of the files.
        KleinError
            As `Environments.install`.
        """
        what = listing(requirements)
        words: list[str | Path] = [*requirements]
        if has_constraints:
            words += ["-c", str(self.where / CONSTRAINTS)]
        if not requirements:
            return ()
        if self._pip_version < _FIRST_WITH_REPORT:
            said = "The pip of this environment cannot say what it would install (22.2 can): nothing is listed."
            self.progress(Lasting(said))
            self._run(words, what)
            return None
        self.progress(f"Asking the index for {what}.")
        wheels = self._resolve(words, what)
        if any(wheel.is_direct and wheel.sha256 is None for wheel in wheels):
            self.progress(
                Lasting("A requirement is a folder or a repository, which has no SHA-256: nothing is listed.")
            )
            self._run(words, what)
            return None
        check_wheels(wheels)
        fetched = self._fetch([wheel for wheel in wheels if wheel.is_wheel])
        digests = {wheel.name: wheel.sha256 for wheel in fetched}
        packages = listed(
            (replace(wheel, sha256=digests.get(wheel.name, wheel.sha256)) for wheel in wheels), "application"
        )
        self._unpack(fetched)
        self._build([each for each in packages if each.name not in digests])
        return packages

    def try_out(self, requirements: Sequence[str], *, has_constraints: bool) -> None:
        """Let pip resolve requirements under the constraints; nothing is installed.  Raises as `install`."""
        if self._pip_version >= _FIRST_WITH_REPORT and requirements:
            words = ["-c", str(self.where / CONSTRAINTS)] if has_constraints else []
            self.progress(f"Resolving {count(len(requirements), 'requirement')}, without installing anything.")
            self._resolve([*requirements, *words], listing(requirements))

    def restore(self, packages: Sequence[ListedPackage]) -> None:
        """Install listed packages again, over what is there; raises as `install`.

        Those whose file an index still offers, or the cache holds, come from there; of the others pip looks for the
        file with the same SHA-256.
        """
        here = {each.name: wheel for each in packages if (wheel := self._held(each)) is not None}
        rest = [each for each in packages if each.name not in here]
        for each in rest:
            if each.sha256 is None:
                said = f"No SHA-256 was known of {each.name} {each.version}: its version is installed again."
                self.progress(Lasting(said))
        offered = {wheel.name: wheel for wheel in self._offered(rest)}
        same = [
            wheel
            for each in rest
            if (wheel := offered.get(each.name)) is not None and wheel.sha256 == each.sha256 and wheel.is_wheel
        ]
        fetched = self._fetch([*here.values(), *same])
        self._unpack(fetched, is_again=True)
        done = {wheel.name for wheel in fetched}
        self._build([each for each in packages if each.name not in done], is_again=True)

    def fetch_beside(self, requirements: Sequence[str], torch: Sequence[Wheel]) -> tuple[Wheel, ...]:
        """Return what requirements need beside a torch set that is not installed; wheels are on this disk, verified.

        Parameters
        ----------
        requirements : sequence of str
            Those of the application.
        torch : sequence of Wheel
            The set and what it needs, on this disk: pip takes these and no others.
        """
        if not requirements:
            return ()
        page, held = self._work / "torch.html", self._work / "torch.txt"
        self._root.write_text(page, links_page(torch))
        self._root.write_text(held, "".join(f"{each.name}=={each.version}\n" for each in torch))
        what = listing(requirements)
        self.progress(f"Asking the index for {what}.")
        names = {each.name for each in torch}
        found = self._resolve([*requirements, "-c", held, "--find-links", page.as_uri()], what)
        others = [each for each in found if each.name not in names]
        return (
            *self._fetch([each for each in others if each.is_wheel and not each.is_direct]),
            *(each for each in others if not each.is_wheel or each.is_direct),
        )

    def fetch_pip(self) -> Wheel:
        """Return the wheel of the pip that an environment out of a bundle gets, on this disk."""
        major, minor = GOOD_PIP
        wanted = f"pip>={major}.{minor}"
        found = self._resolve(["--no-deps", "--ignore-installed", "--only-binary", ":all:", wanted], wanted)
        return self._fetch(found)[0]

    def fetch_locked(self, wanted: LockedList) -> tuple[Wheel, ...]:
        """Return the wheels of a locked list for this Python and system, on this disk; raises as `install`."""
        page = self._work / "locked.txt"
        self._root.write_text(page, "".join(f"{line}\n" for line in wanted.requirements))
        what = "the packages of klein-setup itself"
        self.progress(f"Asking the index for {what}.")
        found = self._resolve(["--no-deps", "--ignore-installed", "--only-binary", ":all:", "-r", page], what)
        wanted.check(found)
        return self._fetch(found)

    # --- parts -----------------------------------------------------------------------------------

    @property
    def _files(self) -> WheelFiles:
        return WheelFiles(
            context=self.context,
            python=self.python,
            uv=self.uv,
            root=self._root,
            folder=self._work,
            progress=self.progress,
        )

    def _fetch(self, wheels: Sequence[Wheel]) -> tuple[Wheel, ...]:
        return self._files.fetch(wheels, self._settings, self._settings.get("index-url")) if wheels else ()

    def _held(self, package: ListedPackage) -> Wheel | None:
        """Return the wheel of a listed package if the cache has it, whole."""
        path = self.context.cache.held().get(package.sha256 or "")
        if path is None or sha256_of(path) != package.sha256:
            return None
        return Wheel(name=package.name, version=package.version, url=path.as_uri(), sha256=package.sha256)

    def _offered(self, packages: Sequence[ListedPackage]) -> tuple[Wheel, ...]:
        """Return which files an index offers of these versions."""
        if not packages:
            return ()
        words = [each.requirement.partition(" --hash")[0] for each in packages]
        return self._resolve(["--no-deps", "--ignore-installed", *words], listing(words))

    @cached_property
    def _settings(self) -> Mapping[str, str]:
        settings = pip_settings(self.context, self.python)
        if not self.context.is_offline:
            return settings
        page = held_page(self.context, self._root, self._work)
        settings = {**settings, "find-links": f"{settings.get('find-links', '')} {page}".strip()}
        return without_network(settings)

    @cached_property
    def _env(self) -> dict[str, str]:
        return self.context.installer_environ(self._settings, pip=self._pip_version)

    @cached_property
    def _pip_version(self) -> tuple[int, int]:
        return pip_version(self.context, self.python)

    def _resolve(self, words: Sequence[str | Path], what: str) -> tuple[Wheel, ...]:
        """Return what pip would install; nothing is installed."""
        report = self._work / "report.json"
        command: list[str | Path] = [self.python, "-I", "-m", "pip", "install", "--dry-run", "--progress-bar", "off"]
        command += ["--report", report, *words]
        done = self.context.run(command, timeout_s=INSTALL_TIMEOUT_S, env=self._env)
        if done.returncode != 0:
            raise self._failure(done.last_lines, f"find {what}")
        return parse_report(report.read_text(encoding="utf-8"))

    def _unpack(self, wheels: Sequence[Wheel], *, is_again: bool = False) -> None:
        if wheels:
            self.progress(f"Installing {count(len(wheels), 'package')}.")
            self._files.unpack(wheels, *(["--force-reinstall"] if is_again else []))

    def _build(self, packages: Sequence[ListedPackage], *, is_again: bool = False) -> None:
        """Let pip or uv fetch and install what is no wheel that we fetched, what has a digest by it."""
        words: list[str | Path] = ["--no-deps"]
        if is_again:
            words.append("--force-reinstall" if self.uv is None else "--reinstall")
        wanted = self._work / "wanted.txt"
        for is_known in (True, False):
            some = [each for each in packages if (each.sha256 is not None) is is_known]
            if some:
                what = listing([f"{each.name} {each.version}" for each in some])
                sources = [each.name for each in some if not each.file_name.endswith(".whl")]
                if sources:
                    said = f"The index has no wheel of {listing(sources)}: pip fetches the source and builds it."
                    self.progress(Lasting(said))
                self._root.write_text(wanted, requirements_text(some))
                hashes = ["--require-hashes"] if is_known else []
                self._run([*words, *hashes, "-r", wanted], what, number=len(some))

    def _run(self, words: Sequence[str | Path], what: str, *, number: int | None = None) -> None:
        if self.uv is None:
            command: list[str | Path] = [self.python, "-I", "-m", "pip", "install", "--progress-bar", "off", *words]
        else:
            command = [self.uv, "pip", "install", "--python", self.python, *words]
            command += ["--no-index"] if self._settings.get("no-index", "") not in ("", "0", "false", "no") else []
            command += ["--offline"] if self.context.is_offline else []
        self.progress(f"Installing {what if number is None else count(number, 'package')}.")
        env = self._env if self.uv is None else self._env | _uv_index_variables(self._settings)
        done = self.context.run(command, timeout_s=INSTALL_TIMEOUT_S, env=env, on_line=only_news(self.progress))
        if done.returncode != 0:
            raise self._failure(done.last_lines, f"install {what}")

    def _failure(self, lines: Sequence[str], doing: str) -> KleinError:
        error = explain_failure(lines, doing=doing, index_url=self._settings.get("index-url"))
        return offline_error(error, doing, is_bundle=self.context.is_bundle) if self.context.is_offline else error


def _uv_index_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Return a person's package mirror as uv's variables: it may hold a password, and arguments are public."""
    separators = {"index-url": " ", "extra-index-url": " ", "find-links": ","}
    return {
        f"UV_{option.upper().replace('-', '_')}": separator.join(settings[option].split())
        for option, separator in separators.items()
        if settings.get(option)
    }
