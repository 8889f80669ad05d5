"""Build the command line of a ComfyUI server, and parse server addresses.

Only computes values: it starts nothing and reads neither the disk nor the environment.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from provisioner.core.errors import UsageError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A ComfyUI server to start; with folders of ours it writes only into them, without it is the user's own."""

    python: Path  # the interpreter of ComfyUI's environment
    tree: Path  # the folder of main.py; the server starts in it
    output: Path | None = None  # these three together, or none of them: ComfyUI then uses its own
    user: Path | None = None
    temp: Path | None = None
    base: Path | None = None  # --base-directory: where models and custom nodes are, if not in the tree
    extra: tuple[str, ...] = ()  # "--cpu", "--reserve-vram", "2", ...

    @property
    def main(self) -> Path:
        """ComfyUI's main.py."""
        return self.tree / "main.py"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders that must exist: ComfyUI rejects a missing user directory."""
        return tuple(each for each in (self.output, self.user, self.temp) if each is not None)


def server_arguments(launch: Launch, port: int) -> tuple[str, ...]:
    """Return the command line of a server on one loopback port.

    With folders of ours, the database is put beside the other files of this run: ComfyUI keeps it in its own tree,
    locks it, and a second server of the same tree ends with "Could not acquire lock on database" (read in ComfyUI's
    ``app/database/db.py``).  SQLAlchemy needs forward slashes on Windows too.

    Examples
    --------
    >>> launch = Launch(python=Path("py"), tree=Path("c"), output=Path("o"), user=Path("u"), temp=Path("t"))
    >>> " ".join(server_arguments(launch, 8190)[2:6])
    '--listen 127.0.0.1 --port 8190'
    """
    folders: tuple[str, ...] = ()
    if launch.user is not None:
        folders = (
            "--output-directory",
            str(launch.output),
            "--user-directory",
            str(launch.user),
            "--temp-directory",
            str(launch.temp),
            "--database-url",
            f"sqlite:///{(launch.user / 'comfyui.db').as_posix()}",
        )
    base = () if launch.base is None else ("--base-directory", str(launch.base))
    start = (str(launch.python), str(launch.main), "--listen", LOOPBACK, "--port", str(port), "--disable-auto-launch")
    return (*start, *folders, *base, *launch.extra)


def is_launched_as(argv: tuple[str, ...], launch: Launch, port: int) -> bool:
    """Whether a server that reports the command line `argv` is the one started with `launch`.

    Another server that took the port first also answers, but has another output folder.

    >>> launch = Launch(python=Path("py"), tree=Path("c"), output=Path("o"), user=Path("u"), temp=Path("t"))
    >>> is_launched_as(server_arguments(launch, 8190)[1:], launch, 8190)
    True
    >>> is_launched_as(("main.py", "--port", "8190"), launch, 8190)
    False
    """
    wanted = {("--port", str(port))}
    if launch.output is not None:
        wanted.add(("--output-directory", str(launch.output)))
    return not argv or wanted <= set(itertools.pairwise(argv))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Where a server listens."""

    url: str  # "http://127.0.0.1:8188", without a slash at the end
    is_loopback: bool  # on this machine: no proxy is used

    @property
    def host(self) -> str:
        """The name or number of the machine, without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port, also where the address leaves it out."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def websocket(self) -> str:
        """The address of its WebSocket."""
        return f"ws{self.url.removeprefix('http')}/ws"


def parse_address(text: str) -> ServerAddress:
    """Return the address of a server that the user named.

    Parameters
    ----------
    text : str
        ``http://host:port``, ``https://host/path`` or only ``host:port``.

    Raises
    ------
    UsageError
        It is not an http(s) address, or it contains a user name, a password or a query.

    Examples
    --------
    >>> parse_address("localhost:8188/").url
    'http://localhost:8188'
    >>> parse_address("https://gpu.example/comfy").websocket
    'wss://gpu.example/comfy/ws'
    """
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in {"http", "https"} or not host or any(each.isspace() for each in text):
        raise UsageError(
            "The address of the ComfyUI server is not an http or https address.",
            hint="Give it as http://127.0.0.1:8188.",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"The address of the ComfyUI server at {host} contains a user name, a password or a query.",
            hint="Give the address without them; servers that require a login are not supported.",
        )
    shown = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/")
    return ServerAddress(
        url=f"{parts.scheme}://{shown}{'' if port is None else f':{port}'}{path}", is_loopback=_is_loopback(host)
    )


_EVERYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - where such a server is reached from here


def listening_address(arguments: Sequence[str], port: int) -> ServerAddress:
    """Return where a ComfyUI with these arguments is reached on this machine.

    Parameters
    ----------
    arguments : sequence of str
        What the user passes to ComfyUI; as there, the last of several ``--port`` or ``--listen`` counts.
    port : int
        The port without ``--port``.

    Raises
    ------
    UsageError
        ``--port`` is no port.

    Examples
    --------
    >>> listening_address((), 8188).url
    'http://127.0.0.1:8188'
    >>> listening_address(("--lowvram", "--listen", "--port=8189"), 8188).url
    'http://127.0.0.1:8189'
    >>> listening_address(("--listen", "::", "--tls-keyfile", "k", "--tls-certfile", "c"), 8188).url
    'https://[::1]:8188'
    """
    given = dict(_options(arguments))
    text = given.get("--port", str(port))
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UsageError(f"{text!r} is not a port.", hint="Give a number from 1 to 65535: -- --port 8189")
    listen = given.get("--listen", LOOPBACK).split(",")[0] or LOOPBACK  # alone, it means every address
    host = _EVERYWHERE.get(listen, listen)
    scheme = "https" if "--tls-keyfile" in given and "--tls-certfile" in given else "http"
    address = parse_address(f"{scheme}://{f'[{host}]' if ':' in host else host}:{text}")
    return ServerAddress(url=address.url, is_loopback=True)  # whatever its number: it is this machine


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option with its value, which may be missing; "--port=8189" is two words as well."""
    words = [part for each in arguments for part in (each.split("=", 1) if each.startswith("--") else [each])]
    for word, following in itertools.pairwise([*words, "--"]):
        if word.startswith("--"):
            yield word, "" if following.startswith("--") else following


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
