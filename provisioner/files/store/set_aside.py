"""What was set aside: kept with its reason under ``.klein-setup/aside/<time>/``, listed, put back, cleared.

A file that was replaced lies there whole.  Of a file that was repaired in place only the bytes that went lie there, in
``<name>.blocks`` with an index; together with the repaired file they give back the old one, byte for byte.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256 as digest_of
from pathlib import Path, PurePath
from typing import TypedDict

from provisioner.core.errors import HashMismatchError, StorageError, UsageError
from provisioner.core.models import STATE_FOLDER, BackupEntry
from provisioner.core.ports import FileDigest
from provisioner.disk.calls import DISK, SHARE, Share
from provisioner.disk.flush import flush_file
from provisioner.disk.os_errors import storage_error
from provisioner.disk.root import Root, free_name, half_written, is_link, waiting_for, waiting_name
from provisioner.disk.safe_path import complaint_about_path
from provisioner.files.store.read_at import OpenFile, fill

_REASONS = "why.jsonl"
_INDEX = "index.json"
_BLOCKS = ".blocks"
_RESTORING = ".restoring.part"
_LINK = "a link that nobody wrote down; what it leads to is not looked at"
_DEPTH = 3  # folders below a root in which another file system may be mounted, with an ``aside`` of its own
_TIME = "%Y%m%dT%H%M%SZ"


class Piece(TypedDict):
    """Some bytes of the old file, as the index names them."""

    offset: int
    size: int
    sha256: str
    name: str  # file beside the index


class Index(TypedDict):
    """What turns the repaired file back into the old one."""

    version: int
    was: str  # relative to the root
    old_size: int
    new_size: int
    new_sha256: str
    pieces: list[Piece]
    lost: list[list[int]]  # offset and length of what the disk did not give


# --- setting aside ---------------------------------------------------------------------------------


def backups_folder(root: Path) -> Path:
    """Return the folder for what is set aside now."""
    return root / STATE_FOLDER / "aside" / time.strftime(_TIME, time.gmtime())


def say_why(root: Root, folder: Path, path: Path, moved_to: Path, reason: str) -> None:
    """Write down where something was and why it went; raises StorageError."""
    was, now = path.relative_to(folder.parents[2]), moved_to.relative_to(folder)
    line = {"was": was.as_posix(), "is": now.as_posix(), "why": reason}
    if moved_to.is_symlink():
        line["link"] = str(moved_to.readlink())  # a relative one leads nowhere from here
    root.append_text(folder / _REASONS, json.dumps(line) + "\n")


def save_pieces(
    root: Root,
    path: Path,
    ranges: Iterable[tuple[int, int]],
    *,
    read: Callable[[int, int], bytes | None],
    old_size: int,
    new_size: int,
    new_sha256: str,
    reason: str,
    announce: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Keep some bytes of a file before they are overwritten, durably; return the folder they are in.

    Parameters
    ----------
    root, path : Root, Path
        The models root, and the file.
    ranges : iterable of (offset, length)
        The bytes that will go.
    read : callable
        Returns the bytes at an offset, or None where the disk does not give them.
    old_size, new_size, new_sha256 : int, int, str
        The file before and after.
    reason : str
        Why.
    announce : callable
        Told the folder before the first byte is written.

    Raises
    ------
    StorageError
        The disk refused; nothing was overwritten.
    """
    folder = backups_folder(root.folder)
    kept = free_name(folder / path.relative_to(root.folder).with_name(path.name + _BLOCKS))
    announce(kept)
    root.make_folder(kept)
    pieces: list[Piece] = []
    lost: list[list[int]] = []
    for offset, length in ranges:
        data = read(offset, length)
        if data is None:
            lost.append([offset, length])
            continue
        name = f"{offset:015d}"
        root.write_new(kept / name, data)
        pieces.append({"offset": offset, "size": len(data), "sha256": digest_of(data).hexdigest(), "name": name})
    index: Index = {
        "version": 1,
        "was": path.relative_to(root.folder).as_posix(),
        "old_size": old_size,
        "new_size": new_size,
        "new_sha256": new_sha256,
        "pieces": pieces,
        "lost": lost,
    }
    say_why(root, folder, path, kept, reason)
    root.write_text(kept / _INDEX, json.dumps(index) + "\n")  # last: without it they are not all there
    return kept


def read_index(folder: Path) -> Index | None:
    """Return the index of saved pieces, or None where it is not there or not whole."""
    try:
        index: Index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        if index["version"] != 1 or min(int(index["old_size"]), int(index["new_size"])) < 0:
            return None
        for piece in index["pieces"]:
            if PurePath(piece["name"]).name != piece["name"] or int(piece["offset"]) < 0 or int(piece["size"]) < 0:
                return None
        str(index["was"]), str(index["new_sha256"]), list(index["lost"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return index


def is_backup(root: Root, folder: Path) -> bool:
    """Whether a folder that somebody wrote down lies in the ``aside`` of a root, with no way out of it."""
    return _is_below(folder, root.folder / STATE_FOLDER / "aside") and root.holds(folder / _INDEX)


def drop_unfinished(root: Root, folder: Path) -> None:
    """Remove saved pieces without an index: a kill came first, and the file still has those bytes."""
    with contextlib.suppress(OSError, StorageError):
        inside = list(folder.iterdir())
        unfinished = half_written(folder)
        if any(not (path.name.isdecimal() or path in unfinished) for path in inside):
            return  # an index, or nothing of ours
        for path in inside:
            root.remove(path)
        root.remove_folder(folder)


def drop_all_unfinished(root: Root) -> None:
    """Remove every unfinished saving and restoring below a root; for who has its lock, for another run may be at it."""
    aside = root.folder / STATE_FOLDER / "aside"
    if root.holds(aside / _INDEX):
        for path in list(aside.rglob(f"*{_BLOCKS}*")):
            if path.is_dir() and root.holds(path / _INDEX):
                _drop_restoring(root, root.folder.joinpath(*path.relative_to(aside).parts[1:]))
                drop_unfinished(root, path)


def _drop_restoring(root: Root, saved: Path) -> None:
    """Remove what a kill left of making an old file again from its saved pieces; they are still there."""
    target = saved.with_name(saved.name.rpartition(_BLOCKS)[0])
    for path in waiting_for(target, _RESTORING):
        with contextlib.suppress(StorageError):
            root.remove(path)


# --- listing ---------------------------------------------------------------------------------------


def list_backups(roots: Sequence[Path]) -> tuple[BackupEntry, ...]:
    """Return everything set aside below some roots, oldest first; what cannot be read is left out."""
    places = dict.fromkeys(place for root in roots for place in _places(root))
    found = [entry for place in places for entry in _entries(place)]
    return tuple(sorted(found, key=lambda entry: (entry.time, str(entry.root), entry.id)))


def _places(root: Path) -> Iterator[Path]:
    """Yield the folders at or below a root that have an ``aside``; raises PathOutsideRootError where that is a link."""
    for where, folders, _files in os.walk(root, onerror=lambda error: None):
        here = Path(where)
        if (here / STATE_FOLDER / "aside").is_dir():
            Root(here).check(here / STATE_FOLDER / "aside" / _REASONS)
            yield here
        is_deep = len(here.relative_to(root).parts) >= _DEPTH
        folders[:] = [] if is_deep else sorted(name for name in folders if name != STATE_FOLDER)


def _entries(root: Path) -> Iterator[BackupEntry]:
    """Yield what lies in an ``aside``; of what lies behind a link there the link itself, which is all that is ours."""
    for folder in sorted(_subfolders(root / STATE_FOLDER / "aside")):
        if is_link(folder):
            yield _entry(root, folder, was="", reason=_LINK)
            continue
        told: set[Path] = set()
        for line in _lines(folder):
            path = folder / line["is"]
            if not _is_below(path, folder) or not os.path.lexists(path) or _links_above(folder, path):
                continue
            if path not in told:
                told.add(path)
                yield _entry(root, path, was=line["was"], reason=line["why"])
        for path in _unexplained(folder, told):
            yield _entry(root, path, was="", reason=_LINK if path.is_dir() else "nobody wrote down why")


def _links_above(folder: Path, path: Path) -> bool:
    """Whether one of the folders between two is a link."""
    return any(is_link(each) for each in path.parents if folder in each.parents)


def _entry(root: Path, path: Path, *, was: str, reason: str) -> BackupEntry:
    inside = path.relative_to(root / STATE_FOLDER / "aside")
    return BackupEntry(
        id=inside.as_posix(),
        root=root,
        was=PurePath(was).as_posix() if was else "",
        path=path,
        time=_shown_time(inside.parts[0]),
        reason=reason,
        size=_size_of(path),
        is_blocks=path.name.partition(_BLOCKS)[1] == _BLOCKS and (path / _INDEX).is_file(),
    )


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _lines(folder: Path) -> list[dict[str, str]]:
    """Return what ``why.jsonl`` says, leaving out lines that are not whole."""
    try:
        texts = (folder / _REASONS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    lines = []
    for text in texts:
        try:
            entry = json.loads(text)
            lines.append({key: str(entry[key]) for key in ("was", "is", "why")})
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return lines


def _is_below(path: Path, folder: Path) -> bool:
    """Whether a path that somebody wrote down stays in its folder."""
    inside = path.relative_to(folder) if folder in path.parents else None
    return inside is not None and ".." not in inside.parts


def _unexplained(folder: Path, told: set[Path]) -> Iterator[Path]:
    """Yield files, and links, that no line speaks of: a kill came between the move and its line."""
    records = {folder / _REASONS, *waiting_for(folder / _REASONS)}
    for where, folders, names in os.walk(folder, onerror=lambda error: None):
        here = Path(where)
        folders[:] = [name for name in folders if here / name not in told]
        for name in sorted((*names, *(each for each in folders if is_link(here / each)))):
            if here / name not in told and here / name not in records:
                yield here / name


def _shown_time(name: str) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.strptime(name, _TIME))
    except ValueError:
        return ""


def _size_of(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_size_of(Path(where, name)) for where, _, names in os.walk(path) for name in names)
    try:
        return path.lstat().st_size
    except OSError:
        return 0


# --- putting back ----------------------------------------------------------------------------------


def put_back(
    root: Root,
    entry: BackupEntry,
    *,
    hash_file: Callable[[Path], FileDigest],
    opener: Callable[[Path], OpenFile],
    move_to_backups: Callable[[Path, str], Path],
) -> Path:
    """Give what was set aside its old name again; what is there now is set aside in its turn. Return that path.

    Raises
    ------
    UsageError
        Nobody wrote down where it was.
    HashMismatchError
        Saved bytes need the file they were taken from, and that has changed; nothing was done.
    StorageError
        The disk refused; both are still there.
    """
    if complaint_about_path(entry.was) is not None or STATE_FOLDER in PurePath(entry.was).parts:
        raise UsageError(
            f"Nobody wrote down where {entry.path} was.", hint="Move it yourself to where you want it.", id=entry.id
        )
    target = entry.root.joinpath(*PurePath(entry.was).parts)
    root.check(target)
    reason = f"the backup of {entry.time} was put back in its place"
    if entry.is_blocks:
        _put_blocks_back(root, entry, target, reason, hash_file, opener, move_to_backups)
    else:
        if os.path.lexists(target):
            move_to_backups(target, reason)
        root.make_folder(target.parent)
        root.replace(entry.path, target)
    _forget(root, entry)
    return target


def _put_blocks_back(
    root: Root,
    entry: BackupEntry,
    target: Path,
    reason: str,
    hash_file: Callable[[Path], FileDigest],
    opener: Callable[[Path], OpenFile],
    move_to_backups: Callable[[Path, str], Path],
) -> None:
    """Make the old file beside the repaired one, then let them change places."""
    index = read_index(entry.path)
    if index is None or index["lost"]:
        lost = "the disk did not give all of them" if index else "their index cannot be read"
        raise StorageError(f"The bytes in {entry.path} do not make the old file: {lost}.", path=str(entry.path))
    file_digest = hash_file(target)
    if file_digest.sha256 != index["new_sha256"]:
        raise HashMismatchError(
            f"{target} is not the file that was repaired: the bytes in the backup do not fit it.",
            hint="Run `klein-setup repair` first; nothing was changed.",
            path=str(target),
            expected=index["new_sha256"],
            observed=file_digest.sha256,
        )
    pieces = [(piece["offset"], _piece(entry.path / piece["name"], piece)) for piece in index["pieces"]]
    waiting = target.with_name(waiting_name(target.name, _RESTORING))
    try:
        with root.create(waiting) as stream:
            kept = [(0, min(index["old_size"], index["new_size"]))]
            copy_ranges(opener, target, stream.fileno(), kept)
            for offset, data in pieces:
                DISK.write(stream.fileno(), data, offset)
            DISK.set_size(stream.fileno(), index["old_size"])
            flush_file(stream.fileno())
        move_to_backups(target, reason)
        root.replace(waiting, target)
    except OSError as error:
        raise storage_error(error, waiting) from error
    finally:
        with contextlib.suppress(StorageError):
            root.remove(waiting)
    root.remove_tree(entry.path)


def _piece(path: Path, piece: Piece) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise storage_error(error, path, doing="read") from error
    if len(data) != piece["size"] or digest_of(data).hexdigest() != piece["sha256"]:
        raise HashMismatchError(f"{path} is damaged; nothing was changed.", path=str(path))
    return data


def copy_ranges(
    opener: Callable[[Path], OpenFile],
    source: Path,
    writer: int,
    ranges: Iterable[tuple[int, int]],
    *,
    share: Share | None = SHARE,
) -> None:
    """Copy some ranges of a file to the same offsets of another that is open for writing; raises OSError.

    Where the file system can share disk blocks, ``copy_file_range`` does (btrfs and XFS), and nothing is copied.
    """
    file = opener(source)
    try:
        with source.open("rb", buffering=0) as reader:
            for offset, length in ranges:
                done = 0
                while done < length and share is not None:
                    try:
                        moved = share(reader.fileno(), writer, length - done, offset + done, offset + done)
                    except OSError:
                        share = None  # another file system, or a kernel without it
                        break
                    if not moved:
                        break
                    done += moved
                _copy_range(file, writer, offset + done, offset + length)
    finally:
        file.close()


def _copy_range(file: OpenFile, writer: int, offset: int, end: int) -> None:
    view = memoryview(bytearray(1024 * 1024))
    while offset < end:
        count = fill(file, view[: min(len(view), end - offset)], offset)
        if not count:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        DISK.write(writer, view[:count], offset)
        offset += count


# --- clearing --------------------------------------------------------------------------------------


def clear_backups(roots: Callable[[Path], Root], entries: Sequence[BackupEntry]) -> int:
    """Delete what was set aside, for good; return the bytes that were freed. Raises StorageError."""
    freed = 0
    for entry in entries:
        root = roots(entry.root)
        root.remove_tree(entry.path)
        _forget(root, entry)
        freed += entry.size
    return freed


def _forget(root: Root, entry: BackupEntry) -> None:
    """Take an entry's line out of the reasons, and remove folders that are empty now."""
    aside = entry.root / STATE_FOLDER / "aside"
    first, _, rest = entry.id.partition("/")
    folder, inside = aside / first, PurePath(rest)
    if is_link(folder):
        return
    with contextlib.suppress(FileNotFoundError):
        texts = (folder / _REASONS).read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [text for text in texts if not _speaks_of(text, inside)]
        if kept:
            root.write_text(folder / _REASONS, "".join(text + "\n" for text in kept))
        else:
            for record in (folder / _REASONS, *waiting_for(folder / _REASONS)):
                root.remove(record)
    for empty in (*(folder / parent for parent in inside.parents), aside):
        root.remove_folder(empty)


def _speaks_of(text: str, inside: PurePath) -> bool:
    try:
        return PurePath(str(json.loads(text)["is"])) == inside
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
