"""Wheels by their SHA-256 in the user's cache: fetched by the range engine, several at a time, and used again.

It trusts no name and no time in that folder: whatever is taken from it is hashed first.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3

from provisioner.core.errors import (
    AccessError,
    EntryNotFoundError,
    HashMismatchError,
    KleinError,
    LockHeldError,
    NotTheFileError,
    OfflineError,
    ServerError,
    StorageError,
    UnauthorizedError,
)
from provisioner.core.events import Events, FileProgress, Phase
from provisioner.core.models import Artifact, UrlFile
from provisioner.core.ports import Brought, Cancelled, OnlineFile, TransferProgress
from provisioner.core.retries import PASSING_STATUSES, Retries, asked_patience_s
from provisioner.disk.calls import write_all
from provisioner.disk.locks import hold_lock
from provisioner.disk.root import Root, is_link
from provisioner.files.download.policy import parse_content_range
from provisioner.files.download.resolve import access_error
from provisioner.files.download.transfer import RangeFetcher
from provisioner.files.store.hash_file import hash_file
from provisioner.files.store.part_file import PartFile, remove_part
from provisioner.network.deadline import Deadline
from provisioner.network.http_session import (
    CONNECT_TIMEOUT_S,
    Credentials,
    may_pass,
    network_error,
    next_hop,
    open_session,
    shown,
)

SIDE_BY_SIDE = 4
"""Wheels that are fetched at a time."""

MOST_BYTES = 12_000_000_000
"""Bytes of all wheels together; beyond that the ones that were not used for the longest time go."""

UNUSED_S = 60 * 24 * 3600.0
"""Seconds after its last use at which a wheel goes."""

IN_USE_S = 24 * 3600.0
"""Seconds after its last use in which a wheel never goes: another run may be installing from it."""

_HINT = (
    "Run the same command again; or take another index: `--torch-index URL`, `--package-index URL` for other packages."
)
_ENTRY = re.compile(r"[0-9a-f]{64}")
_ARRIVING = "arriving-"
_ARRIVAL = re.compile(rf"{_ARRIVING}[0-9a-f]{{16}}")
_LOCK, _USED = "lock", "used"
_NOBODY_THERE = Retries(attempts=4)  # an index that does not answer at all: about three seconds
_MAX_HOPS = 6
_SIZE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One wheel of the cache."""

    sha256: str  # the name of its folder
    size: int  # bytes, with what has arrived of an unfinished one
    used_s: float  # when it was last used, seconds of the system's clock


def outlived(entries: Iterable[Entry], now_s: float, *, most_bytes: int = MOST_BYTES) -> list[Entry]:
    """Return the wheels to remove: those long unused, then the least recently used until the rest fits."""
    gone: list[Entry] = []
    kept_bytes = 0
    for entry in sorted(entries, key=lambda each: each.used_s, reverse=True):
        age_s = now_s - entry.used_s
        if age_s > IN_USE_S and (age_s > UNUSED_S or kept_bytes + entry.size > most_bytes):
            gone.append(entry)
        else:
            kept_bytes += entry.size
    return gone


@dataclass(frozen=True, kw_only=True)
class WheelCache:
    """Wheels of every environment that this user makes.

    Parameters
    ----------
    folder : callable
        Returns where they lie.
    fetcher : callable
        Makes the range engine for one server; it shares bandwidth and connections with everything else.
    events : callable
        Told how far each wheel is.
    cancelled : callable
        True means: stop now.
    is_offline : bool
        ``--offline``: nothing is fetched.
    notice : callable
        Told one line a person may want to read.
    retries : Retries
        How often a server is asked for a size, before it counts as out of reach.
    """

    folder: Callable[[], Path]
    fetcher: Callable[[Credentials, Cancelled], RangeFetcher]
    events: Events
    cancelled: Cancelled = lambda: False
    is_offline: bool = False
    notice: Callable[[str], None] = lambda text: None
    retries: Retries = _NOBODY_THERE

    @cached_property
    def root(self) -> Root:
        """What changes anything in the cache."""
        return Root(self.folder(), is_private=True, holder="another run")

    # --- looking ---------------------------------------------------------------------------------

    def held(self) -> Mapping[str, Path]:
        """Return every complete wheel, by the SHA-256 it should have; none of them is verified."""
        return {
            entry.name: path
            for entry in self._folders()
            for path in sorted(entry.glob("*.whl"))
            if path.is_file() and not is_link(path)
        }

    def _folders(self) -> list[Path]:
        try:
            found = sorted(self.root.folder.iterdir())
        except OSError:
            return []
        return [path for path in found if _ENTRY.fullmatch(path.name) and path.is_dir() and not is_link(path)]

    # --- fetching --------------------------------------------------------------------------------

    def bring(self, files: Sequence[OnlineFile]) -> Brought:
        """Return these wheels, as `FileCache.bring` says."""
        wanted = {file.sha256: file for file in files}
        stop = threading.Event()
        with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="wheel") as pool:
            try:
                jobs = {pool.submit(self._one, file, stop): file for file in wanted.values()}
                ended, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            except BaseException:
                stop.set()
                raise
            errors = [error for job in ended if (error := job.exception()) is not None]
            if errors:
                stop.set()  # what has arrived of the others is kept
                for job in jobs:
                    job.cancel()
        if errors:
            raise next((error for error in errors if isinstance(error, Exception)), errors[0])
        came = {file.sha256: job.result() for job, file in jobs.items()}
        self.remove_outlived()
        return Brought(
            paths={sha256: path for sha256, path in came.items() if isinstance(path, Path)},
            refused=tuple((wanted[sha256], error) for sha256, error in came.items() if isinstance(error, KleinError)),
        )

    def _one(self, file: OnlineFile, stop: threading.Event) -> Path | KleinError:
        """Return one wheel, or why only another client may get it."""
        path = self.root.folder / file.sha256 / file.name
        self.root.make_folder(path.parent)
        with self._locked(path.parent, file.label, wait=True, cancelled=self._stopped(stop)):
            if self._is_whole(path, file, stop):
                self._use(path.parent)
                return path
            if self.is_offline:
                raise OfflineError(
                    f"{file.label} is not on this computer, and with --offline it is not fetched.",
                    hint="Run once without --offline.",
                    missing=[file.name],
                )
            try:
                is_sized = self._fetch(file, path, stop)
            except UnauthorizedError as error:
                return error
            except AccessError as error:
                raise EntryNotFoundError(
                    f"The index names {file.name}, and {shown(file.url)} does not have it.", hint=_HINT
                ) from error
            self._use(path.parent)
        return path if is_sized else ServerError(f"{shown(file.url)} does not say how large it is.", hint=_HINT)

    def _is_whole(self, path: Path, file: OnlineFile, stop: threading.Event) -> bool:
        """Whether the wheel is there with its digest; something else of that name is removed."""
        if not os.path.lexists(path):
            return False
        is_right = False
        if path.is_file() and not is_link(path):
            found = hash_file(path, progress=lambda _: None, cancelled=self._stopped(stop))
            is_right = found.sha256 == file.sha256
        if not is_right:
            self.notice(f"{file.label} in the cache was damaged; it is fetched again.")
            self.root.remove_tree(path)
        return is_right

    def _stopped(self, stop: threading.Event) -> Cancelled:
        return lambda: stop.is_set() or self.cancelled()

    def _fetch(self, file: OnlineFile, path: Path, stop: threading.Event) -> bool:
        """Fetch a wheel into its place; return whether its size could be known, without which there is no way."""
        parts = urlsplit(file.url)
        url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
        credentials = Credentials(None, url, file.route)
        size = self._size_of(url, credentials, self._stopped(stop))
        if size is None:
            return False
        source = UrlFile(url=url)
        artifact = Artifact(
            id=file.name, role="other", name=file.name, folder=None, size=size, sha256=file.sha256, sources=(source,)
        )
        fetcher = self.fetcher(credentials, self._stopped(stop))
        with PartFile(path, size=size, sha256=file.sha256, root=self.root) as part:
            tell = _Teller(self.events, file.label, part)
            has_looked = False
            while True:
                was_resumed = part.resumed_bytes > 0
                due = tell.due()
                fetcher.fetch(source, artifact, part, progress=tell.of_transfer)
                tell("proving", received=due)
                found = part.seal().sha256
                if found == file.sha256:
                    part.commit(shown(url))
                    tell("hashing")
                    return True
                if not was_resumed:
                    break
                if has_looked or not part.drop_wrong():
                    part.reset()
                has_looked = True
        remove_part(self.root, path)
        raise HashMismatchError(
            f"{file.name} came with another SHA-256 than the index names: {found}, expected {file.sha256}. "
            "Nothing was installed.",
            hint="It was replaced after it was listed, or something on the way changes it. " + _HINT,
            expected=file.sha256,
            observed=found,
        )

    # --- its size --------------------------------------------------------------------------------

    def _size_of(self, url: str, credentials: Credentials, cancelled: Cancelled) -> int | None:
        """Ask for the first byte, which says how many there are: an address may be signed for GET alone."""
        for failures in itertools.count(1):
            if cancelled():
                raise KeyboardInterrupt
            status, asked_s, cause = None, None, None
            try:
                status, headers = self._first_byte(url, credentials)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                cause, failure = error, network_error(error, url)
            else:
                if status not in PASSING_STATUSES:
                    return _read_size(url, status, headers)
                asked_s = asked_patience_s(status, headers, time.time())
                failure = ServerError(f"{shown(url)} answers {status}.", hint="Try again later.", status=status)
            jitter = random.random()  # noqa: S311 - spreads retries, keeps no secret
            pause_s = self.retries.pause_s(failures, status=status, asked_s=asked_s, jitter=jitter)
            if pause_s is None or (cause is not None and not may_pass(cause)):
                raise failure from cause
            until = time.monotonic() + pause_s
            while time.monotonic() < until and not cancelled():
                time.sleep(0.1)
        raise AssertionError

    def _first_byte(self, url: str, credentials: Credentials) -> tuple[int, dict[str, str]]:
        with open_session(credentials) as session:
            for _ in range(_MAX_HOPS):
                with (
                    Deadline(_SIZE_TIMEOUT_S),
                    session.get(
                        url,
                        headers={"Range": "bytes=0-0"},
                        stream=True,
                        allow_redirects=False,
                        timeout=(CONNECT_TIMEOUT_S, _SIZE_TIMEOUT_S),
                    ) as answer,
                ):
                    status, headers = answer.status_code, {name.lower(): text for name, text in answer.headers.items()}
                if status not in {301, 302, 303, 307, 308}:
                    return status, headers
                url = next_hop(url, headers.get("location"), stays_public=True, instead=credentials.instead)
        raise ServerError(f"{shown(url)} redirects in circles.", hint=_HINT)

    # --- what another client fetched ---------------------------------------------------------------

    @contextlib.contextmanager
    def arriving(self) -> Iterator[Path]:
        """Give an empty folder in the cache, and remove it afterwards."""
        folder = self.root.folder / f"{_ARRIVING}{secrets.token_hex(8)}"
        self.root.make_folder(folder)
        try:
            yield folder
        finally:
            with contextlib.suppress(StorageError):
                self.root.remove_tree(folder)

    def adopt(self, path: Path, sha256: str | None) -> tuple[str, Path]:
        """Take over a file from `arriving`, as `FileCache.adopt` says."""
        if is_link(path) or not path.is_file():
            raise NotTheFileError(f"{path.name} did not arrive as a file.", path=str(path))
        found = hash_file(path, progress=lambda _: None, cancelled=self.cancelled).sha256
        if sha256 is not None and found != sha256:
            raise HashMismatchError(
                f"{path.name} has another SHA-256 than the index names: {found}, expected {sha256}.",
                hint=_HINT,
                expected=sha256,
                observed=found,
            )
        place = self.root.folder / found / path.name
        self.root.make_folder(place.parent)
        with self._locked(place.parent, path.name, wait=True, cancelled=self.cancelled):
            self.root.replace(path, place)
            self._use(place.parent)
        return found, place

    # --- keeping it small ------------------------------------------------------------------------

    def remove_outlived(self, now_s: float | None = None) -> None:
        """Remove what `outlived` says, and what killed runs left; never what another run works on."""
        now_s = time.time() if now_s is None else now_s
        for each in outlived(map(_entry, self._folders()), now_s):
            folder = self.root.folder / each.sha256
            with contextlib.suppress(LockHeldError, StorageError, OSError):
                with self._locked(folder, each.sha256, wait=False, cancelled=self.cancelled):
                    for path in folder.iterdir():
                        if path.name != _LOCK:  # which Windows does not remove while it is held
                            self.root.remove_tree(path)
                self.root.remove_tree(folder)
        for path in self.root.folder.glob(f"{_ARRIVING}*"):
            with contextlib.suppress(StorageError, OSError):
                if _ARRIVAL.fullmatch(path.name) and now_s - path.lstat().st_mtime > IN_USE_S:
                    self.root.remove_tree(path)

    def _use(self, folder: Path) -> None:
        """Note that a wheel is used now."""
        with self.root.open_log(folder / _USED, is_new=True) as stream:
            write_all(stream, b"1")

    def _locked(
        self, folder: Path, label: str, *, wait: bool, cancelled: Cancelled
    ) -> contextlib.AbstractContextManager[None]:
        return hold_lock(
            self.root, folder / _LOCK, guards=Path(label), wait=wait, notice=self.notice, cancelled=cancelled
        )


class _Teller:
    """Says how far one wheel is."""

    def __init__(self, events: Events, label: str, part: PartFile) -> None:
        self._events, self._label, self._part = events, label, part
        self._received = 0

    def due(self) -> int:
        """Return the bytes that are missing."""
        return sum(
            min(self._part.block_size, self._part.size - index * self._part.block_size)
            for index in self._part.missing_blocks()
        )

    def of_transfer(self, at: TransferProgress) -> None:
        """Say what the engine says."""
        self("waiting" if at.note else "fetching", at, received=at.received)

    def __call__(self, phase: Phase, at: TransferProgress | None = None, *, received: int = 0) -> None:
        """Say where the wheel stands; read to its end, it is complete."""
        self._received = max(self._received, received)  # the last word of the engine comes before the last byte
        self._events(
            FileProgress(
                label=self._label,
                phase=phase,
                size=self._part.size,
                bytes_on_disk=self._part.bytes_on_disk,
                bytes_hashed=self._part.hashed,
                bytes_received=self._received,
                rate_bytes_s=at.rate_bytes_s if at else 0.0,
                connections=at.connections if at else 0,
                attempt=at.attempt if at else 1,
                note=at.note if at else "",
            )
        )


def _read_size(url: str, status: int, headers: dict[str, str]) -> int | None:
    """Return what an answer says of a file's size, None where it says nothing; raises AccessError, ServerError."""
    if status == 206:
        span = parse_content_range(headers.get("content-range"))
        return span.total if span is not None else None
    if status == 200:
        length = headers.get("content-length", "")
        return int(length) if length.isdigit() and int(length) > 0 else None
    refusal = access_error(status, headers, UrlFile(url=url))
    raise refusal or ServerError(f"{shown(url)} answers {status}.", hint=_HINT, status=status)


def _entry(folder: Path) -> Entry:
    size, used_s = 0, folder.lstat().st_mtime
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run has just given it another name
            status = path.lstat()
            size += status.st_size
            used_s = status.st_mtime if path.name == _USED else used_s
    return Entry(sha256=folder.name, size=size, used_s=used_s)
