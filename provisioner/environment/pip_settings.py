"""What of a person's settings pip and uv are told: how to reach a network, never what to install or where to.

Only the standard library is needed, and nothing else of this package: `scripts/private_environment.py` reads a person's
settings with it before anything is installed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

# How pip reaches a network, whatever it fetches.
_NETWORK_SETTINGS = frozenset(
    {
        "cache-dir",
        "cert",
        "client-cert",
        "default-timeout",
        "keyring-provider",
        "no-cache-dir",
        "proxy",
        "retries",
        "timeout",
        "trusted-host",
    }
)
# Where it looks for packages: a mirror of the default index.  Never for the torch set, whose index was decided on.
_INDEX_SETTINGS = frozenset({"extra-index-url", "find-links", "index-url", "no-index"})

# Anything that says which Python, which folder, or what else is importable.
_DROPPED = ("PIP_", "PYTHON", "UV_", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV", "CONDA_PREFIX", "PIPX_")

Settings = Mapping[str, str]


def without_indexes(settings: Settings) -> dict[str, str]:
    """Return the settings without those that say where to look for packages."""
    return {name: value for name, value in settings.items() if name not in _INDEX_SETTINGS}


def only_index(settings: Settings, index_url: str) -> dict[str, str]:
    """Return settings with which packages come from one index; folders on this disk may still hold some.

    >>> only_index({"index-url": "https://a", "extra-index-url": "https://b", "timeout": "9"}, "https://c")
    {'timeout': '9', 'index-url': 'https://c'}
    """
    kept = without_indexes(settings)
    local = [each for each in settings.get("find-links", "").split() if "://" not in each or each.startswith("file:")]
    return kept | ({"find-links": " ".join(local)} if local else {}) | {"index-url": index_url}


def without_network(settings: Settings) -> dict[str, str]:
    """Return settings with which pip fetches nothing: only indexes and folders on this disk are left.

    >>> without_network({"index-url": "https://pypi.org/simple", "find-links": "https://x.example /srv/wheels"})
    {'find-links': '/srv/wheels', 'no-index': '1'}
    """
    kept = without_indexes(settings)
    for name in ("index-url", "find-links"):
        local = [each for each in settings.get(name, "").split() if "://" not in each or each.startswith("file:")]
        if local:
            kept[name] = " ".join(local)
    return kept if "index-url" in kept else kept | {"no-index": "1"}


def settings_in(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings to keep that pip's own variables hold.

    >>> settings_in({"PIP_INDEX_URL": "https://mirror.example/simple", "PIP_USER": "1", "HOME": "/home/me"})
    {'index-url': 'https://mirror.example/simple'}
    """
    found = {name[4:].lower().replace("_", "-"): value for name, value in environ.items() if name[:4].upper() == "PIP_"}
    return {name: value for name, value in found.items() if name in _NETWORK_SETTINGS | _INDEX_SETTINGS}


def parse_pip_version(text: str) -> tuple[int, int]:
    """Return the version in what ``pip --version`` printed; (0, 0) where it printed none.

    >>> parse_pip_version("pip 25.3 from /usr/lib/python3/dist-packages/pip (python 3.13)"), parse_pip_version("no pip")
    ((25, 3), (0, 0))
    """
    match = re.match(r"pip (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def parse_pip_settings(text: str, *, with_indexes: bool) -> dict[str, str]:
    r"""Return the settings to keep out of what ``pip config list`` printed; the environment's win over the files'.

    Parameters
    ----------
    text : str
        Lines such as ``global.proxy='http://proxy:3128'`` and ``:env:.index-url='...'``.
    with_indexes : bool
        Keep also where packages are looked for.

    Examples
    --------
    >>> parse_pip_settings("global.index-url='https://mirror.example/simple'", with_indexes=True)
    {'index-url': 'https://mirror.example/simple'}
    >>> parse_pip_settings("global.index-url='https://mirror.example'\ninstall.user='true'", with_indexes=False)
    {}
    """
    wanted = _NETWORK_SETTINGS | (_INDEX_SETTINGS if with_indexes else frozenset())
    found: dict[str, tuple[int, str]] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(global|install|:env:)\.([a-z-]+)=('.*'|\".*\")", line.strip())
        if match is None or match[2] not in wanted:
            continue
        rank = ("global", "install", ":env:").index(match[1])
        if match[2] not in found or rank >= found[match[2]][0]:
            found[match[2]] = (rank, " ".join(str(ast.literal_eval(match[3])).split()))
    return {name: value for name, (_, value) in found.items()}


def installer_environment(
    environ: Mapping[str, str], settings: Settings, *, temporary: Path | None = None, no_file: str = "/dev/null"
) -> dict[str, str]:
    """Return the environment an installer runs in.

    Parameters
    ----------
    environ : mapping
        The user's variables.  Of those, everything of pip's, uv's and Python's own is left out.
    settings : mapping
        pip's settings to put back, as `parse_pip_settings` gives them.
    temporary : Path, optional
        Where temporary files go.  pip unpacks wheels of gigabytes there, and ``/tmp`` is often small and in memory.
    no_file : str
        ``os.devnull``: named as configuration file, it makes pip read no other.
    """
    kept = {name: value for name, value in environ.items() if not name.upper().startswith(_DROPPED)}
    kept["PIP_CONFIG_FILE"] = no_file
    kept["PYTHONUTF8"] = "1"  # what they print is read as UTF-8
    kept["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    kept["PIP_NO_INPUT"] = "1"
    kept["UV_NO_CONFIG"] = "1"
    for name, value in settings.items():
        kept["PIP_" + name.upper().replace("-", "_")] = value
    if temporary is not None:
        for name in ("TMPDIR", "TEMP", "TMP"):
            kept[name] = str(temporary)
    return kept
