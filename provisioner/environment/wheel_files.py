"""Wheels from an index to a folder: fetched through the cache by their SHA-256, then unpacked without the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from provisioner.core.errors import HashMismatchError, KleinError, NotTheFileError
from provisioner.core.events import Lasting
from provisioner.core.ports import OnlineFile
from provisioner.core.units import count
from provisioner.disk.file_digest import sha256_of
from provisioner.disk.root import Root
from provisioner.environment.build_context import (
    FETCH_TIMEOUT_S,
    INSTALL_TIMEOUT_S,
    BuildContext,
    Progress,
    only_news,
    pip_version,
)
from provisioner.environment.installer import (
    Wheel,
    check_wheels,
    explain_failure,
    links_page,
    requirement_line,
    route_to,
)
from provisioner.environment.pip_settings import Settings


@dataclass(frozen=True, kw_only=True)
class WheelFiles:
    """Brings wheels and unpacks them into one environment.

    Parameters
    ----------
    context : BuildContext
        What it works with.
    python : Path
        The environment's interpreter.
    uv : Path or None
        What unpacks; pip where None.
    root, folder : Root, Path
        Where the installers' lists and temporary files go.
    progress : callable
        Told one line at a time.
    """

    context: BuildContext
    python: Path
    uv: Path | None
    root: Root
    folder: Path
    progress: Progress

    # --- fetching --------------------------------------------------------------------------------

    def fetch(self, wheels: Sequence[Wheel], settings: Settings, index_url: str | None) -> tuple[Wheel, ...]:
        """Return the same wheels on this disk, each verified.

        Parameters
        ----------
        wheels : sequence of Wheel
            What pip resolved.
        settings : mapping
            pip's: how a network is reached.  For the wheels that pip has to fetch, also where packages are.
        index_url : str or None
            The index they come from.

        Raises
        ------
        IntegrityError
            The index names no SHA-256 for one, or its bytes have another.
        KleinError
            As `FileCache.bring`; what arrived is kept.
        """
        check_wheels(wheels)
        far = {wheel.sha256: wheel for wheel in wheels if wheel.is_online and wheel.sha256 is not None}
        if far:
            self.progress(f"Fetching {count(len(far), 'wheel')}.")
        brought = self.context.cache.bring(
            [
                OnlineFile(
                    url=wheel.url,
                    name=wheel.file_name,
                    label=wheel.label,
                    sha256=sha256,
                    route=route_to(wheel.url, settings, index_url),
                )
                for sha256, wheel in far.items()
            ]
        )
        paths = dict(brought.paths)
        for file, error in brought.refused:
            paths[file.sha256] = self._with_pip(far[file.sha256], error, settings, index_url)
        return tuple(
            replace(wheel, url=paths[wheel.sha256].as_uri()) if wheel.sha256 in paths else _verified(wheel)
            for wheel in wheels
        )

    def _with_pip(self, wheel: Wheel, why: KleinError, settings: Settings, index_url: str | None) -> Path:
        """Let pip fetch one wheel: it knows keyrings, and needs no size."""
        self.progress(Lasting(f"{why} pip fetches {wheel.label} instead; --limit-rate does not hold for it."))
        cache, listed = self.context.cache, self.folder / "wheel.txt"
        line = requirement_line(wheel)  # it may be signed, and arguments are public
        self.root.write_bytes(listed, line.encode("utf-8"), mode=0o600)
        named = settings if index_url is None else {**settings, "index-url": index_url}
        with cache.arriving() as arriving:
            words: list[str | Path] = [
                "download",
                "--no-deps",
                "--progress-bar",
                "off",
                "--dest",
                arriving,
                "-r",
                listed,
            ]
            try:
                done = self.context.run(
                    [self.python, "-I", "-m", "pip", *words],
                    timeout_s=FETCH_TIMEOUT_S,
                    env=self._env(named, pip_version(self.context, self.python)),
                    on_line=only_news(self.progress),
                )
            finally:
                self.root.remove(listed)
            if done.returncode != 0:
                raise explain_failure(done.last_lines, doing=f"fetch {wheel.label}", index_url=index_url)
            return cache.adopt(arriving / wheel.file_name, wheel.sha256)[1]

    # --- unpacking -------------------------------------------------------------------------------

    def unpack(self, wheels: Sequence[Wheel], *words: str) -> None:
        """Install wheels that `fetch` returned, from this disk alone, each by its SHA-256.

        Where uv fails, pip does it: nobody chose the uv that is found, or its version.

        Parameters
        ----------
        wheels : sequence of Wheel
            The files.
        words : str
            What pip is told beside: ``"--force-reinstall"``.

        Raises
        ------
        KleinError
            pip or uv failed: another digest, the disk.
        """
        listed, page = self.folder / "wheels.txt", self.folder / "wheels.html"
        self.root.write_text(listed, "".join(f"{wheel.requirement}\n" for wheel in wheels))
        self.root.write_text(page, links_page(wheels))
        common: list[str | Path] = ["--no-index", "--no-deps", "--require-hashes", "--find-links", page.as_uri()]
        if self.uv is not None:
            command: list[str | Path] = [self.uv, "pip", "install", "--python", self.python, *common, "--no-progress"]
            # Its usual cache would share its files with the environment: who changes one changes the other.
            command += ["--cache-dir", self.folder / "uv", *(["--reinstall"] if words else []), "-r", listed]
            done = self.context.run(command, timeout_s=INSTALL_TIMEOUT_S, env=self._env({}))
            if done.returncode == 0:
                return
            said = done.last_lines[-1].strip() if done.last_lines else f"exit status {done.returncode}"
            self.progress(Lasting(f"uv could not install the wheels ({said}); pip does it."))
            self.root.remove_tree(self.folder / "uv")
        command = [self.python, "-I", "-m", "pip", "install", *common, "--progress-bar", "off", *words, "-r", listed]
        news = only_news(self.progress)
        done = self.context.run(command, timeout_s=INSTALL_TIMEOUT_S, env=self._env({}), on_line=news)
        if done.returncode != 0:
            raise explain_failure(done.last_lines, doing=f"install {count(len(wheels), 'wheel')}", index_url=None)

    def _env(self, settings: Settings, pip: tuple[int, int] = (0, 0)) -> dict[str, str]:
        """Return an installer's environment; temporary files go where the environment is."""
        return self.context.installer_environ(settings, pip=pip, temporary=self.folder)


def held_page(context: BuildContext, root: Root, folder: Path) -> str:
    """Return the address of a page of every wheel that the cache holds: where ``--offline`` looks."""
    page = folder / "held.html"
    held = context.cache.held()
    root.write_text(
        page,
        links_page(Wheel(name="", version="", url=path.as_uri(), sha256=sha256) for sha256, path in held.items()),
    )
    return page.as_uri()


def path_of(wheel: Wheel) -> Path:
    """Return where a wheel lies that is on this disk."""
    return Path(url2pathname(urlsplit(wheel.url).path))


def _verified(wheel: Wheel) -> Wheel:
    """Return a wheel on this disk with its digest."""
    path = path_of(wheel)
    try:
        found = sha256_of(path)
    except OSError as error:
        raise NotTheFileError(f"{path} cannot be read: {error.strerror or error}.", path=str(path)) from error
    if wheel.sha256 not in (None, found):
        raise HashMismatchError(
            f"{path} has another SHA-256 than was expected: {found} instead of {wheel.sha256}.",
            hint="Delete that file, and run the same command again without --offline.",
            expected=wheel.sha256,
            observed=found,
            path=str(path),
        )
    return replace(wheel, sha256=found)
