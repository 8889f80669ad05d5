"""Build the command line of a ComfyUI server, and parse server addresses.

Only computes values: it starts nothing and reads neither the disk nor the environment.
"""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from provisioner.core.errors import UsageError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A ComfyUI server to start headless, which writes only into our folders."""

    python: Path  # the interpreter of ComfyUI's environment
    tree: Path  # the folder of main.py; the server starts in it
    output: Path
    user: Path
    temp: Path
    base: Path | None = None  # --base-directory: where models and custom nodes are, if not in the tree
    extra: tuple[str, ...] = ()  # "--cpu", "--reserve-vram", "2", ...

    @property
    def main(self) -> Path:
        """ComfyUI's main.py."""
        return self.tree / "main.py"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders that must exist: ComfyUI rejects a missing user directory."""
        return self.output, self.user, self.temp


def server_arguments(launch: Launch, port: int) -> tuple[str, ...]:
    """Return the command line of a headless server on one loopback port.

    The database is put beside the other files of this run: ComfyUI keeps it in its own tree, locks it, and a second
    server of the same tree ends with "Could not acquire lock on database" (read in ComfyUI's ``app/database/db.py``).
    SQLAlchemy needs forward slashes on Windows too.

    Examples
    --------
    >>> launch = Launch(python=Path("py"), tree=Path("c"), output=Path("o"), user=Path("u"), temp=Path("t"))
    >>> " ".join(server_arguments(launch, 8190)[2:6])
    '--listen 127.0.0.1 --port 8190'
    """
    base = () if launch.base is None else ("--base-directory", str(launch.base))
    return (
        str(launch.python),
        str(launch.main),
        "--listen",
        LOOPBACK,
        "--port",
        str(port),
        "--disable-auto-launch",
        "--output-directory",
        str(launch.output),
        "--user-directory",
        str(launch.user),
        "--temp-directory",
        str(launch.temp),
        "--database-url",
        f"sqlite:///{(launch.user / 'comfyui.db').as_posix()}",
        *base,
        *launch.extra,
    )


def is_launched_as(argv: tuple[str, ...], launch: Launch, port: int) -> bool:
    """Whether a server that reports the command line `argv` is the one started with `launch`.

    Another server that took the port first also answers, but has another output folder.

    >>> launch = Launch(python=Path("py"), tree=Path("c"), output=Path("o"), user=Path("u"), temp=Path("t"))
    >>> is_launched_as(server_arguments(launch, 8190)[1:], launch, 8190)
    True
    >>> is_launched_as(("main.py", "--port", "8190"), launch, 8190)
    False
    """
    pairs = set(itertools.pairwise(argv))
    return not argv or {("--port", str(port)), ("--output-directory", str(launch.output))} <= pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Where a server listens."""

    url: str  # "http://127.0.0.1:8188", without a slash at the end
    is_loopback: bool  # on this machine: no proxy is used

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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
