"""Seeds verified files to other hosts of one network, and takes files from them: BitTorrent v2, by libtorrent.

The one module that knows libtorrent, which comes with the extra ``torrent``.  libtorrent writes what arrives to the
disk by itself, past ``provisioner/disk``: only into the staging folder that `fetch` is given, under names made of
digests or numbers.  A seed writes nothing: nothing is wanted of it, and uploading is all it does.  Nobody is looked
for: no DHT, no local discovery, no exchange of peers, no port mapping, no tracker, no proxy; the hosts that are named
are asked.  What a peer sent counts as a copy that lies somewhere on this machine: its SHA-256 decides.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provisioner.core.errors import StorageError, UsageError
from provisioner.core.models import BLOCK_SIZE, Artifact
from provisioner.core.ports import Cancelled
from provisioner.disk.root import Root, scratch_folder

if TYPE_CHECKING:
    from types import ModuleType

PIECE_SIZE = BLOCK_SIZE // 4
"""Bytes of a piece, 4 MiB: what is passed on as soon as it is whole; four of them are a block of ours."""

_NAME = "klein-setup"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LARGEST_TORRENT = 4 * 1024 * 1024  # bytes; 100 GB have 800 kB of piece hashes
_LIMITS = {"max_pieces": 262_144, "max_decode_depth": 20, "max_decode_tokens": 100_000}
_SLOWEST_BYTES_S = 64 * 1024  # as --stall-timeout says of connections
_UNFINISHED = ".part"  # which no search for files takes for one
_TICK_S = 0.2
_RECONNECT_S = 2.0
_FLUSH_S = 60.0
_MAKE_AGAIN = "Write it anew with `klein-setup seed --torrent FILE` on the host that seeds."


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """Whom to take files from, and how others reach this host."""

    torrent: Path
    hosts: tuple[tuple[str, int], ...]
    listen: str | None = None  # "10.0.0.5:6881"; None: nobody can connect to this host


@dataclass(frozen=True, slots=True, kw_only=True)
class Swarm:
    """How a transfer stands."""

    received: int  # bytes that have arrived and fit their piece's hash
    sent: int  # bytes of files sent to others
    wanted: int  # bytes
    peers: int  # connections
    rate_bytes_s: int  # of the last second, of what arrives


def load_libtorrent() -> ModuleType:
    """Return libtorrent; raises UsageError where it is not installed."""
    try:
        import libtorrent
    except ImportError as error:
        raise UsageError(
            f"Peers need libtorrent, which cannot be used here: {error}.", hint="pip install 'klein-setup[torrent]'"
        ) from error
    module: ModuleType = libtorrent
    return module


# --- the torrent -------------------------------------------------------------------------------------


def read_torrent(path: Path) -> bytes:
    """Return the bytes of a torrent; raises UsageError where it is none that could be used."""
    lt = load_libtorrent()
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_TORRENT + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", hint=_MAKE_AGAIN, path=str(path)) from error
    if len(data) > _LARGEST_TORRENT:
        raise UsageError(f"{path} is larger than {_LARGEST_TORRENT:,} bytes: no torrent of a set.", hint=_MAKE_AGAIN)
    try:
        has_v2 = lt.load_torrent_buffer(data, _LIMITS).ti.info_hashes().has_v2()
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a valid torrent: {error}.", hint=_MAKE_AGAIN, path=str(path)) from error
    if not has_v2:
        raise UsageError(
            f"{path} is a torrent of version 1, which has no SHA-256; expected version 2.", hint=_MAKE_AGAIN
        )
    return data


def infohash(torrent: bytes) -> str:
    """Return the SHA-256 by which peers know a torrent, in hex."""
    return str(load_libtorrent().load_torrent_buffer(torrent, _LIMITS).ti.info_hashes().v2)


def sizes_in(torrent: bytes) -> dict[str, int]:
    """Return the files of a torrent that are called by a SHA-256, with their sizes; others are none of ours."""
    parameters = load_libtorrent().load_torrent_buffer(torrent, _LIMITS)
    return {name: size for name, size in _files(parameters).values() if name is not None}


def _files(parameters: Any) -> Mapping[int, tuple[str | None, int]]:  # noqa: ANN401 - libtorrent has no types
    """Return name and size of each file by its index; no name for padding, links and what has no digest as its name."""
    layout = parameters.ti.layout()
    found: dict[int, tuple[str | None, int]] = {}
    for index in range(layout.num_files()):
        name = layout.file_name(index)
        is_ours = int(layout.file_flags(index)) == 0 and _DIGEST.fullmatch(name) is not None
        found[index] = (name if is_ours else None, layout.file_size(index))
    return found


@contextlib.contextmanager
def linked_by_digest(files: Mapping[str, Path]) -> Iterator[Path]:
    """Yield a folder with a link to each file, called by its SHA-256: how a torrent names files.

    Raises
    ------
    StorageError
        This system makes no links there.
    """
    with scratch_folder("klein-setup-seed-") as scratch:
        root = Root(scratch)
        root.make_folder(scratch / _NAME)
        for sha256, path in files.items():
            link = scratch / _NAME / sha256
            try:
                root.symlink(link, path.resolve())
            except StorageError:
                if not root.hard_link(path.resolve(), link):  # Windows, without the right to make symbolic links
                    raise
        yield scratch / _NAME


def make_torrent(folder: Path, sizes: Mapping[str, int], progress: Callable[[int, int], None]) -> bytes:
    """Read the files of a folder, each called by its SHA-256, and return their torrent: the same for the same files.

    Parameters
    ----------
    folder : Path
        As `linked_by_digest` makes it.
    sizes : mapping of str to int
        SHA-256 and size in bytes of each file.
    progress : callable
        Told how many pieces are hashed, and how many there are.
    """
    lt = load_libtorrent()
    entries = [lt.create_file_entry(f"{_NAME}/{sha256}", size) for sha256, size in sorted(sizes.items())]
    making = lt.create_torrent(entries, PIECE_SIZE, lt.create_torrent.v2_only)
    total = making.num_pieces()
    lt.set_piece_hashes(making, str(folder.parent), lambda piece: progress(piece + 1, total))
    made = making.generate()  # also has the time
    return bytes(lt.bencode({key: made[key] for key in (b"info", b"piece layers")}))


# --- sessions ----------------------------------------------------------------------------------------


def _open_session(lt: ModuleType, listen: str | None, *, down_bytes_s: int, up_bytes_s: int) -> Any:  # noqa: ANN401
    settings = {
        "user_agent": "klein-setup",
        "listen_interfaces": listen or "",
        "listen_system_port_fallback": False,
        "max_retry_port_bind": 0,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "proxy_type": lt.proxy_type_t.none,
        "enable_incoming_utp": False,  # on one floor TCP shares the wire well enough
        "enable_outgoing_utp": False,
        "allow_multiple_connections_per_ip": True,  # hosts behind one address
        "min_reconnect_time": 1,
        "max_failcount": 1_000_000,
        "connections_limit": 500,
        "unchoke_slots_limit": 16,
        "seed_choking_algorithm": lt.seed_choking_algorithm_t.round_robin,
        "download_rate_limit": down_bytes_s,
        "upload_rate_limit": up_bytes_s,
        "ignore_limits_on_local_network": False,
        "alert_mask": lt.alert_category.error | lt.alert_category.status | lt.alert_category.storage,
    }
    settings = {name: value for name, value in settings.items() if name in lt.default_settings()}
    session = lt.session(settings, flags=0)  # no plugins: those exchange peers
    session.add_extension(lt.create_smart_ban_plugin)  # who sends wrong bytes is asked no more
    return session


def _parameters(lt: ModuleType, torrent: bytes, folder: Path, ending: str = "") -> Any:  # noqa: ANN401
    """Return how a torrent is added: nothing in it is contacted, its files are called by their digests alone."""
    parameters = lt.load_torrent_buffer(torrent, _LIMITS)
    parameters.trackers, parameters.url_seeds, parameters.http_seeds, parameters.dht_nodes = [], [], [], []
    parameters.save_path = str(folder)
    flags = lt.torrent_flags
    parameters.flags &= ~(flags.auto_managed | flags.paused)
    parameters.flags |= flags.disable_dht | flags.disable_lsd | flags.disable_pex
    parameters.flags |= flags.override_trackers | flags.override_web_seeds
    parameters.renamed_files = {
        index: f"{name or index}{ending}" for index, (name, _size) in _files(parameters).items()
    }
    return parameters


def _check_listening(lt: ModuleType, session: Any, listen: str) -> None:  # noqa: ANN401
    """Wait until others can connect; raises UsageError where they cannot."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        session.wait_for_alert(200)
        for alert in session.pop_alerts():
            if isinstance(alert, lt.listen_succeeded_alert):
                return
            if isinstance(alert, lt.listen_failed_alert):
                raise UsageError(
                    f"--listen {listen}: {alert.error.message()}.", hint="Name an address of this host and a free port."
                )
    raise UsageError(f"Nobody can connect to {listen}.", hint="Name an address of this host and a free port.")


def seed(
    torrent: bytes,
    folder: Path,
    listen: str,
    *,
    up_bytes_s: int | None,
    is_over: Cancelled,
    ready: Callable[[], None],
    tell: Callable[[Swarm], None],
) -> None:
    """Send the files of a folder to whoever asks, until `is_over` or KeyboardInterrupt; nothing is written.

    A file that is not any more what the torrent says is not sent.

    Raises
    ------
    UsageError
        Nobody could connect to `listen`.
    """
    lt = load_libtorrent()
    session = _open_session(lt, listen, down_bytes_s=0, up_bytes_s=up_bytes_s or 0)
    _check_listening(lt, session, listen)
    parameters = _parameters(lt, torrent, folder)
    # A piece that turns out to be wrong ends the seed mode; then, too, nothing is fetched into the user's files.
    parameters.flags |= lt.torrent_flags.seed_mode | lt.torrent_flags.upload_mode
    handle = session.add_torrent(parameters)
    ready()
    while not is_over():
        time.sleep(_TICK_S)
        status = handle.status()
        tell(_swarm(status))
        session.pop_alerts()


def _swarm(status: Any) -> Swarm:  # noqa: ANN401
    return Swarm(
        received=status.total_wanted_done,
        sent=status.total_payload_upload,
        wanted=status.total_wanted,
        peers=status.num_peers,
        rate_bytes_s=status.download_payload_rate,
    )


def fetch(
    torrent: bytes,
    artifacts: Sequence[Artifact],
    folder: Path,
    peers: Peers,
    *,
    down_bytes_s: int | None,
    stall_timeout_s: float,
    cancelled: Cancelled,
    tell: Callable[[Swarm], None],
) -> Swarm:
    """Take files from peers into a folder of ours; return how it ended: what is whole lies there by its SHA-256.

    Ends when all have come, or when for `stall_timeout_s` less than 64 KiB/s came.  While it runs, what has come is
    sent to others.  What is not whole keeps the ending ``.part``, and the next call continues it.  Nothing is verified.

    Parameters
    ----------
    torrent : bytes
        As `read_torrent` returned it; not trusted.
    artifacts : sequence of Artifact
        Which files are wanted; those of them that the torrent has with their size are asked for.
    folder : Path
        Where they lie; it is made.
    peers : Peers
        Who is asked, again and again while this lasts.
    down_bytes_s : int or None
        Limit of what arrives.
    stall_timeout_s : float
        How long almost nothing may come.
    cancelled : callable
        Asked while waiting; true raises KeyboardInterrupt.
    tell : callable
        Told how it stands, a few times a second.

    Raises
    ------
    UsageError
        A peer's name is unknown, or nobody could connect to ``peers.listen``.
    StorageError
        The folder cannot be made or written to.
    """
    lt = load_libtorrent()
    addresses = [_address(host, port) for host, port in peers.hosts]
    root = Root(folder, is_private=True)
    root.make_folder()
    wanted = {artifact.sha256: artifact.size for artifact in artifacts}
    session = _open_session(lt, peers.listen, down_bytes_s=down_bytes_s or 0, up_bytes_s=0)
    if peers.listen is not None:
        _check_listening(lt, session, peers.listen)
    parameters = _parameters(lt, torrent, folder, _UNFINISHED)
    files = _files(parameters)
    takes = {index: name for index, (name, size) in files.items() if name is not None and wanted.get(name) == size}
    parameters.file_priorities = [4 if index in takes else 0 for index in range(len(files))]
    handle = session.add_torrent(parameters)
    try:
        ended = _wait(lt, session, handle, addresses, stall_timeout_s=stall_timeout_s, cancelled=cancelled, tell=tell)
        done = handle.file_progress()
        whole = {name for index, name in takes.items() if done[index] == wanted[name]}
        _flush(lt, session, handle)
    finally:
        session.remove_torrent(handle)
        del handle, session  # waits until libtorrent has ended: nothing changes the folder from here on
    for name in sorted(whole):
        root.replace(folder / f"{name}{_UNFINISHED}", folder / name)
    return ended


def _address(host: str, port: int) -> tuple[str, int]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(
            f"The peer {host} is not known: {error.strerror}.", hint="Check the name of --peer."
        ) from error
    return str(found[0][4][0]), port


def _wait(
    lt: ModuleType,
    session: Any,  # noqa: ANN401
    handle: Any,  # noqa: ANN401
    addresses: Sequence[tuple[str, int]],
    *,
    stall_timeout_s: float,
    cancelled: Cancelled,
    tell: Callable[[Swarm], None],
) -> Swarm:
    """Connect and wait until everything came, or nothing comes."""
    mark, mark_s, connect_s = 0, time.monotonic(), 0.0
    while True:
        if cancelled():
            raise KeyboardInterrupt
        now_s, status = time.monotonic(), handle.status()
        swarm = _swarm(status)
        tell(swarm)
        if status.is_finished or status.errc.value():
            return swarm
        is_checking = status.state in {lt.torrent_status.checking_files, lt.torrent_status.checking_resume_data}
        if is_checking or swarm.received - mark >= _SLOWEST_BYTES_S * stall_timeout_s:
            mark, mark_s = swarm.received, now_s
        if now_s - mark_s > stall_timeout_s:
            return swarm
        if (
            not is_checking and now_s - connect_s > _RECONNECT_S
        ):  # a connection that was refused once is not tried again
            connect_s = now_s
            connected = {each.ip for each in handle.get_peer_info()}
            for address in addresses:
                if address not in connected:
                    handle.connect_peer(address)
        session.pop_alerts()
        time.sleep(_TICK_S)


def _flush(lt: ModuleType, session: Any, handle: Any) -> None:  # noqa: ANN401
    """Wait until what came can be read back: a torrent says that it is finished before that."""
    handle.flush_cache()
    until = time.monotonic() + _FLUSH_S
    while time.monotonic() < until:
        session.wait_for_alert(200)
        if any(isinstance(alert, lt.cache_flushed_alert) for alert in session.pop_alerts()):
            return


def remove_staging(folder: Path) -> None:
    """Remove a folder of `fetch`, as far as the system lets us."""
    if os.path.lexists(folder):
        with contextlib.suppress(StorageError):
            Root(folder.parent).remove_tree(folder)
