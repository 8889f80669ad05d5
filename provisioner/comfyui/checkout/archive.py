"""An archive of ComfyUI or of custom nodes: unpacked into nothing but its own folder.

ComfyUI's is proved by git's id of its tree.  Refused are names that climb or that a system reads differently, links
that leave the tree, devices, hard links, and anything beyond a size and a number of files that no release of ComfyUI
comes near.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import posixpath
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from provisioner.comfyui.checkout.checkout_receipt import tree_root
from provisioner.comfyui.checkout.git_tree import LINK, read_files, tree_id
from provisioner.comfyui.checkout_models import TreeFile
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.core.errors import (
    IntegrityError,
    NotTheFileError,
    StorageError,
)
from provisioner.core.ports import Cancelled
from provisioner.disk.calls import write_all
from provisioner.disk.os_errors import storage_error
from provisioner.disk.root import Root
from provisioner.disk.safe_path import complaint_about_path

_CHUNK_BYTES = 256 * 1024
_LONGEST_LINK = 1024  # bytes
_HEADER_BYTES = 64 * 1024  # between two files of a tar: their own headers have 2 KiB at most
_GLOBAL_HEADERS = 16  # git writes one, with the commit
_ZIP_END_BYTES = 22
_ZIP_LIST_BYTES = 8 * 1024 * 1024  # of a zip's list of files: room for 50,000, and 100 MB once it is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What an archive may have at most, and what it is called; ComfyUI 0.3.64 has 548 files, 15 MB unpacked."""

    archive_bytes: int = 512 * 1024 * 1024
    unpacked_bytes: int = 1024 * 1024 * 1024
    files: int = 50_000
    what: str = "ComfyUI"
    elsewhere: str = "Name another mirror with --comfyui-source."  # to do where the archive is no good
    has_folder: bool = True  # everything lies in one folder, as in an archive of GitHub's


class _OddArchiveError(Exception):
    """The archive holds what it may not: what, as a clause."""


@dataclass(frozen=True, slots=True)
class _Member:
    """One entry of an archive that is no folder."""

    name: str
    mode: str  # git's
    size: int  # as the archive says
    open: Callable[[], IO[bytes]]


# --- unpacking ---------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path, *, bounds: Bounds, cancelled: Cancelled) -> dict[str, str]:
    """Unpack an archive's single folder into `folder`, which is made; return git's mode of each path.

    Modes come from the archive's own directory, never from the disk: Windows has no executable bit.

    Raises
    ------
    NotTheFileError
        It is no archive, is damaged, or holds what no tree of ComfyUI holds.
    StorageError
        The disk refused.
    """
    with _named(bounds):
        return _unpack(archive, folder, bounds, cancelled)


@contextmanager
def _named(bounds: Bounds) -> Iterator[None]:
    """Say whose archive is odd."""
    try:
        yield
    except _OddArchiveError as error:
        raise NotTheFileError(f"The archive of {bounds.what} {error}.", hint=bounds.elsewhere) from error


def _unpack(archive: Path, folder: Path, bounds: Bounds, cancelled: Cancelled) -> dict[str, str]:
    root = tree_root(folder)
    root.make_folder()
    modes: dict[str, str] = {}
    links: dict[str, str] = {}
    left = bounds.unpacked_bytes
    with _members(archive, bounds) as members:
        for member in members:
            if cancelled():
                raise KeyboardInterrupt
            path = _path_inside(member.name, has_folder=bounds.has_folder)
            if path in modes or len(modes) >= bounds.files or member.size > left:
                raise _OddArchiveError(
                    f"holds {path!r} twice, more than {bounds.files:,} files, or more bytes than it may"
                )
            modes[path] = member.mode
            if member.mode == LINK:
                links[path] = _link_target(member, path)
            else:
                left -= _write(member, root, path, left)
    for path, target in links.items():  # last: nothing is ever written through one
        _make_link(root, path, target)
    return modes


def _path_inside(name: str, *, has_folder: bool) -> str:
    """Return a member's path below the archive's single folder, refused where any system reads it differently."""
    _, slash, path = name.partition("/") if has_folder else ("", "/", name)
    complaint = "lies beside the archive's folder" if not slash else complaint_about_path(name)
    if complaint is None and any(part.lower() == ".git" for part in path.split("/")):
        complaint = "is git's own"
    if complaint is not None:
        raise _OddArchiveError(f"holds a path that {complaint}")
    return path


def _link_target(member: _Member, path: str) -> str:
    with member.open() as stream:
        data = stream.read(_LONGEST_LINK + 1)
    try:
        target = data.decode()
    except UnicodeDecodeError:
        target = ""
    real = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    is_inside = not real.startswith(("/", "../")) and real != ".."
    if not target or len(data) > _LONGEST_LINK or "\\" in target or ":" in target or not is_inside:
        raise _OddArchiveError(f"holds a link that leaves it ({path!r})")
    return target


def _write(member: _Member, root: Root, path: str, left: int) -> int:
    """Write one file; return its bytes."""
    written = 0
    destination = root.folder / path
    with _nothing_twice(path), member.open() as source:
        root.make_folder(destination.parent, is_flushed=False)
        try:
            with root.create(destination, is_executable=member.mode == "100755") as stream:
                while chunk := source.read(_CHUNK_BYTES):
                    written += len(chunk)
                    if written > left:
                        raise _OddArchiveError("holds more bytes than it says")
                    write_all(stream, chunk)
        except (EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
            raise _OddArchiveError(f"is damaged at {path!r}") from error
        except OSError as error:
            raise storage_error(error, destination, is_arrival_kept=False) from error
    return written


def _make_link(root: Root, path: str, target: str) -> None:
    """Make a link; where the system has none for everybody (Windows), a file with the target in it, as git does."""
    with _nothing_twice(path):
        root.make_folder((root.folder / path).parent, is_flushed=False)
        if sys.platform == "win32":
            root.write_new(root.folder / path, target.encode())
        else:
            root.symlink(root.folder / path, target)


@contextmanager
def _nothing_twice(path: str) -> Iterator[None]:
    """Say that the archive is wrong where its own files are in each other's way."""
    try:
        yield
    except StorageError as error:
        if error.context.get("errno") in {errno.EEXIST, errno.ENOTDIR, errno.ELOOP}:
            raise _OddArchiveError(f"holds {path!r} twice, as this file system reads names") from error
        raise


@contextmanager
def _members(archive: Path, bounds: Bounds) -> Iterator[Iterator[_Member]]:
    """Yield what an archive holds, folders left out; its kind is told by its first bytes."""
    try:
        with archive.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise storage_error(error, archive, doing="read") from error
    try:
        if head[:4] == b"PK\x03\x04":
            _check_zip_list(archive)
            with zipfile.ZipFile(archive) as opened:
                yield _zip_members(opened)
        elif head[:2] == b"\x1f\x8b":
            with gzip.open(archive) as unpacked:
                headers = _Headers(unpacked)
                with tarfile.open(fileobj=headers, mode="r:") as tar:
                    yield _tar_members(tar, headers, bounds)
        else:
            what = "a web page" if head.lstrip()[:1] == b"<" else "no zip or tar.gz file"
            raise _OddArchiveError(f"is {what}")
    except (EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise _OddArchiveError("is damaged or cut off") from error


def _zip_members(opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        mode = info.external_attr >> 16 if info.create_system == 3 else 0  # 3: written with Unix modes
        if info.is_dir():
            continue
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFLNK) or info.flag_bits & 0x1:
            raise _OddArchiveError(f"holds something else than files and links ({info.filename!r})")
        yield _Member(info.filename, _git_mode(mode), info.file_size, partial(opened.open, info))


def _check_zip_list(archive: Path) -> None:
    """Raise where the list of a zip's files is longer than any ComfyUI's: `zipfile` reads all of it at once."""
    with archive.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _ZIP_END_BYTES - 0xFFFF - 20))
        tail = stream.read()
    end = tail[-_ZIP_END_BYTES:]
    if not (end.startswith(b"PK\x05\x06") and end.endswith(b"\0\0")):  # a comment follows, such as git's own
        end = tail[max(0, tail.rfind(b"PK\x05\x06")) :]
    if int.from_bytes(end[12:16], "little") > _ZIP_LIST_BYTES or b"PK\x06\x07" in tail:  # the second: zip64
        raise _OddArchiveError("has a list of its files that is longer than any ComfyUI's")


class _Headers(io.RawIOBase):
    """The tar inside a gz: `tarfile` reads headers of any length at once, so what it may read of them is bounded."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self.left: int | None = _HEADER_BYTES  # None: the bytes of a file, which are counted where they are written
        self._stream = stream

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes; raises tarfile.ReadError for more than may be read."""
        wanted = -1 if size is None else size
        if self.left is not None:
            self.left -= wanted
            if wanted < 0 or self.left < 0:
                raise tarfile.ReadError("the headers are too long")
        return self._stream.read(wanted)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _tar_members(tar: tarfile.TarFile, stream: _Headers, bounds: Bounds) -> Iterator[_Member]:
    for _ in range(2 * bounds.files):  # folders, too
        stream.left = _HEADER_BYTES
        info = tar.next()
        stream.left = None
        tar.members.clear()  # type: ignore[attr-defined]  # with the headers of each
        if info is None:
            return
        if len(tar.pax_headers) > _GLOBAL_HEADERS:
            raise _OddArchiveError("has more headers than any ComfyUI's")
        if info.isdir():
            continue
        if info.issym():
            target = os.fsencode(info.linkname)
            yield _Member(info.name, LINK, len(target), partial(io.BytesIO, target))
        elif info.isreg():
            yield _Member(info.name, _git_mode(info.mode), info.size, partial(_tar_stream, tar, info))
        else:
            raise _OddArchiveError(f"holds something else than files and links ({info.name!r})")
    raise _OddArchiveError(f"holds more than {bounds.files:,} files and as many folders")


def _tar_stream(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    if stream is None:
        raise _OddArchiveError(f"is damaged at {info.name!r}")
    return stream


def _git_mode(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return LINK
    return "100755" if mode & 0o111 else "100644"


# --- proving -----------------------------------------------------------------------------------


def read_unpacked(folder: Path, modes: dict[str, str], *, bounds: Bounds, cancelled: Cancelled) -> tuple[TreeFile, ...]:
    """Return every file of an unpacked archive with git's id of what the disk holds.

    Raises
    ------
    NotTheFileError
        The disk holds other names than the archive: a file system that takes two for one.
    StorageError
        Something cannot be read.
    """

    def look() -> None:
        if cancelled():
            raise KeyboardInterrupt

    with _named(bounds):
        try:
            return read_files(folder, modes, on_file=look)
        except ValueError as error:
            raise _OddArchiveError(f"does not lie on this disk as it should: {error}") from error
        except OSError as error:
            raise storage_error(error, folder, doing="read") from error


def verify_tree(
    folder: Path, modes: dict[str, str], release: ComfyRelease, *, bounds: Bounds, cancelled: Cancelled
) -> tuple[TreeFile, ...]:
    """Return the files of an unpacked tree, verified to be the release's.

    Raises
    ------
    IntegrityError
        They are not, or the release's tree is not known.
    """
    if release.tree is None:
        raise IntegrityError(
            f"An archive of ComfyUI {release.version} cannot be proved: the id of its tree is not known.",
            hint="Install git, which verifies a commit by itself.",
        )
    files = read_unpacked(folder, modes, bounds=bounds, cancelled=cancelled)
    found = tree_id(files)
    if found != release.tree:
        raise NotTheFileError(
            f"The archive is not ComfyUI {release.version}: its files make up tree {found[:12]}, not "
            f"{release.tree[:12]}.",
            hint="Run the same command again, or name another mirror with --comfyui-source.",
            expected=release.tree,
            observed=found,
        )
    return files
