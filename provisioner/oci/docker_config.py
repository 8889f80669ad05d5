"""Which login Docker's configuration has for a registry: pure, text in, login or helper out.

The rules are those of Docker's own client (docker/cli, cli/config/configfile/file.go, read 2026-11): a helper of this
registry, else the store of all of them, else what is written in the file itself.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from provisioner.core.json_reader import as_dict, parse_object
from provisioner.core.redact import SHORTEST_PASSWORD

_KEYS_OF_DOCKER_HUB = ("docker.io", "index.docker.io")  # "https://index.docker.io/v1/" in the file


@dataclass(frozen=True, slots=True)
class Login:
    """A user's name and password for one registry."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Helper:
    """A program that knows the login: ``docker-credential-NAME get``."""

    program: str
    key: str  # what it knows the registry by


def login_for(config: Mapping[str, object], registry: str) -> Login | Helper | None:
    """Return the login of a registry, or the helper that knows it; None where there is neither.

    Parameters
    ----------
    config : mapping
        The object in the file.
    registry : str
        Host and port, ``registry.lab:5000``.

    Examples
    --------
    >>> login_for({"auths": {"https://registry.lab/v1/": {"auth": "bWU6cEBzcw=="}}}, "registry.lab").user
    'me'
    >>> login_for({"credsStore": "pass", "credHelpers": {"other.lab": "gcloud"}}, "registry.lab")
    Helper(program='docker-credential-pass', key='registry.lab')
    """
    names = _KEYS_OF_DOCKER_HUB if registry == "registry-1.docker.io" else (registry,)
    key = "https://index.docker.io/v1/" if len(names) > 1 else registry
    helper = as_dict(config.get("credHelpers")).get(registry) or config.get("credsStore")
    if isinstance(helper, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,100}", helper):
        return Helper(f"docker-credential-{helper}", key)
    return saved_login(config, registry)


def saved_login(config: Mapping[str, object], registry: str) -> Login | None:
    """Return the login that is written in the file itself, which counts where a helper has none."""
    names = _KEYS_OF_DOCKER_HUB if registry == "registry-1.docker.io" else (registry,)
    for address, entry in as_dict(config.get("auths")).items():
        if _host_of(address) in names and isinstance(entry, dict) and (found := _login_in(entry)) is not None:
            return found
    return None


def parse_answer(text: str) -> Login | None:
    """Return the login in a helper's answer; None for a token of an identity, which only Docker's own services take."""
    found = parse_object(text) or {}
    user, password = found.get("Username"), found.get("Secret")
    if isinstance(user, str) and isinstance(password, str) and user and user != "<token>":
        return Login(user, password)
    return None


def passwords_of(text: str) -> tuple[str, ...]:
    """Return every secret in a configuration, as written and decoded: none of them is ever shown.

    >>> passwords_of('{"auths": {"registry.lab": {"auth": "bWU6bG9uZyBwYXNzd29yZA=="}}}')
    ('bWU6bG9uZyBwYXNzd29yZA==', 'long password')
    """
    found: list[str] = []
    for entry in as_dict((parse_object(text) or {}).get("auths")).values():
        if not isinstance(entry, dict):
            continue
        written = (entry.get(name) for name in ("auth", "password", "identitytoken", "registrytoken"))
        login = _login_in(entry)
        found += [each for each in (*written, login and login.password) if isinstance(each, str)]
    return tuple(dict.fromkeys(each for each in found if len(each) >= SHORTEST_PASSWORD))


def _login_in(entry: Mapping[object, object]) -> Login | None:
    written = entry.get("auth")
    if isinstance(written, str) and written:
        try:
            user, colon, password = base64.b64decode(written, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        return Login(user, password.rstrip("\0")) if colon else None
    user_name, secret = entry.get("username"), entry.get("password")
    return Login(user_name, secret) if isinstance(user_name, str) and isinstance(secret, str) and user_name else None


def _host_of(address: str) -> str:
    """Return the host of a key, which older clients wrote as a whole address."""
    return address.lower().removeprefix("https://").removeprefix("http://").partition("/")[0]
