"""Reads Docker's configuration and asks its credential helpers: who we are at a registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from provisioner.core.json_reader import parse_object
from provisioner.disk.locations import docker_config_file
from provisioner.oci.docker_config import Helper, Login, login_for, parse_answer, saved_login

_LARGEST_BYTES = 1024 * 1024


def read_config(environ: Mapping[str, str]) -> str:
    """Return the text of the configuration; empty where it cannot be read."""
    try:
        with docker_config_file(environ).open("rb") as stream:
            return stream.read(_LARGEST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


class DockerLogins:
    """The logins that ``docker login`` and ``oras login`` have saved.

    Parameters
    ----------
    environ : mapping
        The environment variables that count.
    ask : callable
        Runs a helper: its name and what to write to it in, what it answered out; None where it is not there or failed.
    """

    def __init__(self, environ: Mapping[str, str], ask: Callable[[str, str], str | None]) -> None:
        self._environ = environ
        self._ask = ask

    @property
    def path(self) -> Path:
        """Where they are read from."""
        return docker_config_file(self._environ)

    def of(self, registry: str) -> Login | None:
        """Return the login for host and port of a registry, None where none is saved."""
        config = parse_object(read_config(self._environ)) or {}
        found = login_for(config, registry)
        if isinstance(found, Helper):
            return parse_answer(self._ask(found.program, found.key) or "") or saved_login(config, registry)
        return found
