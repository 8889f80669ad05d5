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
from provisioner.disk.atomic import Move, flush_file, make_folder, replace, write_text_durably
from provisioner.disk.os_errors import storage_error
from provisioner.files.store.read_at import OpenFile, fill

_REASONS = "why.jsonl"
_INDEX = "index.json"
_BLOCKS = ".blocks"
_DEPTH = 3  # folders below a root in which another file system may be mounted, with an ``aside`` of its own
_TIME = "%Y%m%dT%H%M%SZ"

Share = Callable[[int, int, int, int, int], int]
"""Copies within the system: two descriptors, a length, two offsets in; how much out. Raises OSError."""

_SHARE: Share | None = getattr(os, "copy_file_range", None)  # Linux


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


def free_name(path: Path) -> Path:
    """Return the path, or one beside it that is not taken."""
    candidate, number = path, 1
    while os.path.lexists(candidate):
        candidate, number = path.with_name(f"{path.name}.{number}"), number + 1
    return candidate


def say_why(folder: Path, path: Path, moved_to: Path, reason: str) -> None:
    """Write down where something was and why it went; raises StorageError."""
    line = {"was": str(path.relative_to(folder.parents[2])), "is": str(moved_to.relative_to(folder)), "why": reason}
    if moved_to.is_symlink():
        line["link"] = str(moved_to.readlink())  # a relative one leads nowhere from here
    try:
        with (folder / _REASONS).open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(line) + "\n")
    except OSError as error:
        raise storage_error(error, folder / _REASONS) from error


def save_pieces(
    root: Path,
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
    root, path : Path
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
    folder = backups_folder(root)
    kept = free_name(folder / path.relative_to(root).with_name(path.name + _BLOCKS))
    announce(kept)
    make_folder(kept)
    pieces: list[Piece] = []
    lost: list[list[int]] = []
    for offset, length in ranges:
        data = read(offset, length)
        if data is None:
            lost.append([offset, length])
            continue
        name = f"{offset:015d}"
        _write_durably(kept / name, data)
        pieces.append({"offset": offset, "size": len(data), "sha256": digest_of(data).hexdigest(), "name": name})
    index: Index = {
        "version": 1,
        "was": path.relative_to(root).as_posix(),
        "old_size": old_size,
        "new_size": new_size,
        "new_sha256": new_sha256,
        "pieces": pieces,
        "lost": lost,
    }
    say_why(folder, path, kept, reason)
    write_text_durably(kept / _INDEX, json.dumps(index) + "\n")  # last: without it they are not all there
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


def is_backup(root: Path, folder: Path) -> bool:
    """Whether a folder that somebody wrote down lies in the ``aside`` of a root, with no way out of it."""
    return _is_below(folder, root / STATE_FOLDER / "aside") and not folder.is_symlink()


def drop_unfinished(folder: Path) -> None:
    """Remove saved pieces without an index: a kill came first, and the file still has those bytes."""
    with contextlib.suppress(OSError):
        inside = list(folder.iterdir())
        if any(not (path.name.isdecimal() or path.match(f"{_INDEX}.*.tmp")) for path in inside):
            return  # an index, or nothing of ours
        for path in inside:
            path.unlink()
        folder.rmdir()


def drop_all_unfinished(root: Path) -> None:
    """Remove every unfinished saving below a root; for who has its lock, for another run may be at it."""
    for path in list((root / STATE_FOLDER / "aside").rglob(f"*{_BLOCKS}*")):
        if path.is_dir() and not path.is_symlink():
            drop_unfinished(path)


def _write_durably(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as stream:
            stream.write(data)
            stream.flush()
            flush_file(stream.fileno())
    except OSError as error:
        raise storage_error(error, path) from error


# --- listing ---------------------------------------------------------------------------------------


def list_backups(roots: Sequence[Path]) -> tuple[BackupEntry, ...]:
    """Return everything set aside below some roots, oldest first; what cannot be read is left out."""
    places = dict.fromkeys(place for root in roots for place in _places(root))
    found = [entry for place in places for entry in _entries(place)]
    return tuple(sorted(found, key=lambda entry: (entry.time, str(entry.root), entry.id)))


def _places(root: Path) -> Iterator[Path]:
    """Yield the folders at or below a root that have an ``aside``."""
    for where, folders, _files in os.walk(root, onerror=lambda error: None):
        here = Path(where)
        if (here / STATE_FOLDER / "aside").is_dir():
            yield here
        is_deep = len(here.relative_to(root).parts) >= _DEPTH
        folders[:] = [] if is_deep else sorted(name for name in folders if name != STATE_FOLDER)


def _entries(root: Path) -> Iterator[BackupEntry]:
    for folder in sorted(_subfolders(root / STATE_FOLDER / "aside")):
        told: set[Path] = set()
        for line in _lines(folder):
            path = folder / line["is"]
            if path in told or not os.path.lexists(path) or not _is_below(path, folder):
                continue
            told.add(path)
            yield _entry(root, folder, path, was=line["was"], reason=line["why"])
        for path in _unexplained(folder, told):
            yield _entry(root, folder, path, was="", reason="nobody wrote down why")


def _entry(root: Path, folder: Path, path: Path, *, was: str, reason: str) -> BackupEntry:
    inside = path.relative_to(folder)
    return BackupEntry(
        id=f"{folder.name}/{inside.as_posix()}",
        root=root,
        was=PurePath(was).as_posix() if was else "",
        path=path,
        time=_shown_time(folder.name),
        reason=reason,
        size=_size_of(path),
        is_blocks=path.name.partition(_BLOCKS)[1] == _BLOCKS and (path / _INDEX).is_file(),
    )


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
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
    """Yield files that no line speaks of: a kill came between the move and its line."""
    for where, folders, names in os.walk(folder, onerror=lambda error: None):
        here = Path(where)
        folders[:] = [name for name in folders if here / name not in told]
        for name in sorted(names):
            if here / name not in told and not (here == folder and name == _REASONS):
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
    entry: BackupEntry,
    *,
    hash_file: Callable[[Path], FileDigest],
    opener: Callable[[Path], OpenFile],
    move_to_backups: Callable[[Path, Path, str], Path],
    move: Move = replace,
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
    target = entry.root.joinpath(*PurePath(entry.was).parts)
    if not entry.was or not _is_below(target, entry.root):
        raise UsageError(
            f"Nobody wrote down where {entry.path} was.", hint="Move it yourself to where you want it.", id=entry.id
        )
    reason = f"the backup of {entry.time} was put back in its place"
    if entry.is_blocks:
        _put_blocks_back(entry, target, reason, hash_file, opener, move_to_backups, move)
    else:
        if os.path.lexists(target):
            move_to_backups(entry.root, target, reason)
        make_folder(target.parent)
        move(entry.path, target)
    _forget(entry)
    return target


def _put_blocks_back(
    entry: BackupEntry,
    target: Path,
    reason: str,
    hash_file: Callable[[Path], FileDigest],
    opener: Callable[[Path], OpenFile],
    move_to_backups: Callable[[Path, Path, str], Path],
    move: Move,
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
            hint="Run klein-setup repair first; nothing was changed.",
            path=str(target),
            expected=index["new_sha256"],
            observed=file_digest.sha256,
        )
    pieces = [(piece["offset"], _piece(entry.path / piece["name"], piece)) for piece in index["pieces"]]
    waiting = target.with_name(target.name + ".restoring.part")
    try:
        waiting.unlink(missing_ok=True)
        copy_ranges(opener, target, waiting, [(0, min(index["old_size"], index["new_size"]))])
        with waiting.open("r+b") as stream:
            for offset, data in pieces:
                stream.seek(offset)
                stream.write(data)
            stream.truncate(index["old_size"])
            stream.flush()
            flush_file(stream.fileno())
        move_to_backups(entry.root, target, reason)
        move(waiting, target)
    except OSError as error:
        raise storage_error(error, waiting) from error
    finally:
        with contextlib.suppress(OSError):
            waiting.unlink(missing_ok=True)
    _remove(entry.path)


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
    copy: Path,
    ranges: Iterable[tuple[int, int]],
    *,
    share: Share | None = _SHARE,
) -> None:
    """Copy some ranges of a file to the same offsets of another, which is made if it is not there; raises OSError.

    Where the file system can share disk blocks, ``copy_file_range`` does (btrfs and XFS), and nothing is copied.
    """
    file = opener(source)
    try:
        with copy.open("r+b" if copy.exists() else "xb") as stream, source.open("rb", buffering=0) as reader:
            for offset, length in ranges:
                done = 0
                while done < length and share is not None:
                    try:
                        moved = share(reader.fileno(), stream.fileno(), length - done, offset + done, offset + done)
                    except OSError:
                        share = None  # another file system, or a kernel without it
                        break
                    if not moved:
                        break
                    done += moved
                _copy_range(file, stream.fileno(), offset + done, offset + length)
    finally:
        file.close()


def _copy_range(file: OpenFile, writer: int, offset: int, end: int) -> None:
    view = memoryview(bytearray(1024 * 1024))
    while offset < end:
        count = fill(file, view[: min(len(view), end - offset)], offset)
        if not count:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        os.lseek(writer, offset, os.SEEK_SET)
        left = view[:count]
        while left:
            left = left[os.write(writer, left) :]
        offset += count


# --- clearing --------------------------------------------------------------------------------------


def clear_backups(entries: Sequence[BackupEntry]) -> int:
    """Delete what was set aside, for good; return the bytes that were freed. Raises StorageError."""
    freed = 0
    for entry in entries:
        _remove(entry.path)
        _forget(entry)
        freed += entry.size
    return freed


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; links are not followed."""
    try:
        if path.is_dir() and not path.is_symlink():
            import shutil  # brings the compressors along, and a start does not need it

            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path, doing="remove") from error


def _forget(entry: BackupEntry) -> None:
    """Take an entry's line out of the reasons, and remove folders that are empty now."""
    folder = entry.root / STATE_FOLDER / "aside" / entry.id.partition("/")[0]
    inside = PurePath(entry.id.partition("/")[2])
    with contextlib.suppress(FileNotFoundError):
        texts = (folder / _REASONS).read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [text for text in texts if not _speaks_of(text, inside)]
        if kept:
            write_text_durably(folder / _REASONS, "".join(text + "\n" for text in kept))
        else:
            (folder / _REASONS).unlink()
    for empty in (*(folder / parent for parent in inside.parents), folder.parent):
        with contextlib.suppress(OSError):  # it is not empty
            empty.rmdir()


def _speaks_of(text: str, inside: PurePath) -> bool:
    try:
        return PurePath(str(json.loads(text)["is"])) == inside
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
