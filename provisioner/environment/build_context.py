"""What every installation works with, and what its Python's pip says of itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from provisioner.core.ports import FileCache, RunProcess
from provisioner.environment.installer import check_indexes
from provisioner.environment.pip_settings import (
    Settings,
    installer_environment,
    only_index,
    parse_pip_settings,
    parse_pip_version,
    settings_in,
    without_indexes,
)
from provisioner.machine.child_environment import child_environment
from provisioner.network.certificates import pip_variables, retries_variables, uv_variables
from provisioner.network.system_files import store_for_old_pips

Progress = Callable[[str], None]
"""Told one line at a time what goes on."""

ASK_TIMEOUT_S = 120.0
INSTALL_TIMEOUT_S = 3 * 3600.0
FETCH_TIMEOUT_S = 6 * 3600.0

GOOD_PIP = (25, 3)
"""The first pip whose ``--dry-run`` asks an index for metadata only; 25.2 still fetches every wheel (both tried)."""


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What a building works with, whatever it builds."""

    run: RunProcess
    environ: Mapping[str, str]  # the person's
    cache: FileCache  # brings the wheels, and keeps them for the next environment
    pass_env: Collection[str] = ()  # names of those that programs get beside the usual ones
    is_offline: bool = False  # nothing is fetched
    package_index: str | None = None  # instead of pip's own, for everything but torch
    is_bundle: bool = False  # packages come from `cache` alone, which is a bundle's: no index, no other folder

    @property
    def child_environ(self) -> dict[str, str]:
        """What programs get of the person's variables."""
        return child_environment(self.environ, self.pass_env)

    def installer_environ(
        self, settings: Settings, *, pip: tuple[int, int] = (0, 0), temporary: Path | None = None
    ) -> dict[str, str]:
        """Return the environment pip or uv runs in.

        Parameters
        ----------
        settings : mapping
            pip's settings to put back.
        pip : tuple of int
            Its version, where it fetches: an old one has to be told to trust whom the system trusts.
        temporary : Path, optional
            Where temporary files go.
        """
        child = child_environment(self.environ, {*self.pass_env, "NETRC"})
        made = installer_environment(child, settings, temporary=temporary, no_file=os.devnull)
        made = retries_variables(self.environ) | made  # what the person set counts
        return made | pip_variables(self.environ, pip, store_for_old_pips()) | uv_variables(self.environ, os.path.isdir)


def pip_settings(context: BuildContext, python: Path) -> dict[str, str]:
    """Return the person's settings that may stay, as a Python's own pip reads them; raises UsageError.

    Where it has no pip, what the variables say.
    """
    of_pip = [name for name in context.environ if name.upper().startswith("PIP_")]
    env = child_environment(context.environ, [*context.pass_env, *of_pip])
    done = context.run([python, "-I", "-m", "pip", "config", "list"], timeout_s=ASK_TIMEOUT_S, env=env)
    settings = parse_pip_settings(done.stdout, with_indexes=True) if done.returncode == 0 else settings_in(env)
    if context.package_index is not None:
        settings = only_index(settings, context.package_index)
    if context.is_bundle:
        settings = without_indexes(settings)
    check_indexes(settings)
    return settings


def pip_version(context: BuildContext, python: Path) -> tuple[int, int]:
    """Return the version of a Python's pip, (25, 3); (0, 0) where it has none."""
    env = context.installer_environ({})
    said = context.run([python, "-I", "-m", "pip", "--version"], timeout_s=ASK_TIMEOUT_S, env=env).stdout
    return parse_pip_version(said)


def only_news(progress: Progress) -> Callable[[str, str], None]:
    """Return a listener that passes on what a person wants to see of pip's chatter."""

    def listen(_: str, line: str) -> None:
        words = line.strip()
        if words.startswith("Processing "):
            file = words.removeprefix("Processing ").partition(" (from ")[0]
            progress(f"Unpacking {PureWindowsPath(file).name}")  # it knows both kinds of slashes
        elif words.startswith(("Downloading", "Collecting", "Building wheel", "Installing collected")):
            progress(words)

    return listen
