"""Packages beside the torch set: resolved once by pip, then installed each from the very file that it found.

pip does the resolving (``--dry-run --report``) and, as uv does, the comparing of digests (``--require-hashes``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from provisioner.core.errors import KleinError
from provisioner.core.events import Lasting
from provisioner.core.models import STATE_FOLDER
from provisioner.core.units import count, listing
from provisioner.disk.root import Root
from provisioner.environment.build import (
    INSTALL_TIMEOUT_S,
    BuildContext,
    Progress,
    bring,
    only_news,
    pip_settings,
    pip_version,
)
from provisioner.environment.installer import Wheel, check_wheels, explain_failure, offline_error, parse_report
from provisioner.environment.package_list import ListedPackage, listed, requirements_text
from provisioner.environment.pip_settings import installer_environment, without_network
from provisioner.environment.swap import CONSTRAINTS, environment_root

_REPORT = Path(STATE_FOLDER, "packages.json")  # what pip would install
_WANTED = Path(STATE_FOLDER, "wanted.txt")  # what is installed just now
_ARRIVING = Path(STATE_FOLDER, "arriving")  # wheels of packages, until they are installed
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
        self._clear()
        self._root.make_folder(self.where / STATE_FOLDER)  # one that is not of ours has none
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the files in between."""
        self._clear()

    def _clear(self) -> None:
        self._root.remove_tree(self.where / _ARRIVING)
        for name in (_REPORT, _WANTED):
            self._root.remove(self.where / name)

    def install(self, requirements: Sequence[str], *, has_constraints: bool) -> tuple[ListedPackage, ...] | None:
        """Install requirements under the constraints; return what was installed, None where its files are not known.

        Raises
        ------
        KleinError
            As `Environments.install`.
        """
        what = listing(requirements)
        words: list[str | Path] = [*requirements]
        if has_constraints:
            words += ["-c", str(self.where / CONSTRAINTS)]
        if not requirements:
            return ()
        if self.uv is not None and self.context.is_offline:  # pip cannot resolve from uv's cache
            self._run(words, what)
            return None
        if pip_version(self.context, self.python) < _FIRST_WITH_REPORT:
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
        check_wheels(wheels, self.progress)
        packages = listed(wheels, "application")
        self._install(wheels, packages, what)
        return packages

    def restore(self, packages: Sequence[ListedPackage]) -> None:
        """Install listed packages again, over what is there; raises as `install`."""
        what = listing([f"{each.name} {each.version}" for each in packages])
        for each in packages:
            if each.sha256 is None:
                said = f"No SHA-256 was known of {each.name} {each.version}: its version is installed again."
                self.progress(Lasting(said))
        wheels: tuple[Wheel, ...] = ()
        if self._is_limited:
            words = [
                "--no-deps",
                "--ignore-installed",
                *(each.requirement.partition(" --hash")[0] for each in packages),
            ]
            known = {each.name: each.sha256 for each in packages}
            wheels = tuple(replace(each, sha256=known[each.name]) for each in self._resolve(words, what))
        self._install(wheels, packages, what, is_again=True)

    # --- parts -----------------------------------------------------------------------------------

    @property
    def _is_limited(self) -> bool:
        return self.context.download is not None and not self.context.is_offline

    @cached_property
    def _settings(self) -> Mapping[str, str]:
        settings = pip_settings(self.context, self.python)
        return without_network(settings) if self.context.is_offline and self.uv is None else settings

    @cached_property
    def _env(self) -> dict[str, str]:
        return installer_environment(self.context.child_environ, self._settings, no_file=os.devnull)

    def _resolve(self, words: Sequence[str | Path], what: str) -> tuple[Wheel, ...]:
        """Return what pip would install; nothing is installed."""
        report = self.where / _REPORT
        command: list[str | Path] = [self.python, "-I", "-m", "pip", "install", "--dry-run", "--progress-bar", "off"]
        command += ["--report", report, *words]
        done = self.context.run(command, timeout_s=INSTALL_TIMEOUT_S, env=self._env)
        if done.returncode != 0:
            raise self._failure(done.last_lines, f"find {what}")
        return parse_report(report.read_text(encoding="utf-8"))

    def _install(
        self, wheels: Sequence[Wheel], packages: Sequence[ListedPackage], what: str, *, is_again: bool = False
    ) -> None:
        """Install exactly these files, those with a digest by it."""
        here = self._brought(wheels)
        packages = [replace(each, url=here.get(each.name, each.url)) for each in packages]
        words: list[str | Path] = ["--no-deps"]
        if is_again:
            words.append("--force-reinstall" if self.uv is None else "--reinstall")
        for is_known in (True, False):
            some = [each for each in packages if (each.sha256 is not None) is is_known]
            if some:
                self._root.write_text(self.where / _WANTED, requirements_text(some))
                hashes = ["--require-hashes"] if is_known else []
                self._run([*words, *hashes, "-r", self.where / _WANTED], what, number=len(some))

    def _brought(self, wheels: Sequence[Wheel]) -> dict[str, str]:
        """Bring the wheels by the context's `download` where the rate is limited; return addresses on this disk."""
        if not self._is_limited:
            return {}
        folder = self.where / _ARRIVING
        self._root.make_folder(folder)
        here = {}
        for wheel in wheels:
            if wheel.file_name.endswith(".whl"):
                path = folder / wheel.file_name
                bring(self.context, wheel, path, self._settings, self._settings.get("index-url"), self.progress)
                here[wheel.name] = path.as_uri()
        return here

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
        return offline_error(error, doing) if self.context.is_offline else error


def _uv_index_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Return a person's package mirror as uv's variables: it may hold a password, and arguments are public."""
    separators = {"index-url": " ", "extra-index-url": " ", "find-links": ","}
    return {
        f"UV_{option.upper().replace('-', '_')}": separator.join(settings[option].split())
        for option, separator in separators.items()
        if settings.get(option)
    }
