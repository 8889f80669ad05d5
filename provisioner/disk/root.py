"""A folder below which this program changes things: the only calls that write, rename, link, remove or make folders.

A `Root` is resolved once.  Whatever is done below it is done in a folder that was reached step by step through no link:
by descriptors on POSIX, by comparing final paths on Windows.  A link on the way is refused, and the error names it,
unless it stays below the root or whoever asked agreed to it; below ``.klein-setup`` no link is ever followed.  The last
name of a path is never followed: what is written replaces a link, what is removed is the link itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from io import FileIO
from pathlib import Path, PurePath

from provisioner.core.errors import FileInUseError, PathOutsideRootError, StorageError
from provisioner.core.models import STATE_FOLDER
from provisioner.disk.calls import write_all
from provisioner.disk.clone import by_clonefile, ficlone, is_impossible
from provisioner.disk.flush import flush_file, flush_folder
from provisioner.disk.os_errors import storage_error
from provisioner.disk.patience import IN_USE, WRITES, is_held, patiently
from provisioner.disk.real_paths import is_among_records, is_link_status, is_same_path, way_of_link

_SAFE_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_FOLDER_FLAGS = _SAFE_FLAGS | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_PATH", os.O_RDONLY)
_NEW = os.O_CREAT | os.O_EXCL | _SAFE_FLAGS
_HAS_DESCRIPTORS = {
    os.open,
    os.mkdir,
    os.unlink,
    os.rmdir,
    os.rename,
    os.stat,
    os.link,
    os.symlink,
} <= os.supports_dir_fd
_COPY_STEP = 1024 * 1024  # bytes
_TOKEN_BYTES = 8
_WRITTEN_WITHIN_S = 60.0  # a small file has some kilobytes
Follows = Callable[[Path, Path], bool]
"""Whether a link that leads out of a root may be followed: the link, and where it leads."""


def is_link(path: str | Path, *, dir_fd: int | None = None) -> bool:
    """Whether a path is a link, or on Windows a junction; raises OSError where the system does not say."""
    try:
        status = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return is_link_status(status.st_mode, getattr(status, "st_reparse_tag", 0))


def links_leading_out(folder: Path, path: Path) -> tuple[tuple[Path, Path], ...]:
    """Return each link between a folder and what is below it that leads out of the folder, and where it leads.

    Raises
    ------
    PathOutsideRootError
        One of them is among the records of klein-setup, where no link is followed.
    StorageError
        The system does not say.
    """
    found: dict[Path, Path] = {}

    def note(link: Path, real: Path) -> bool:
        found[link] = real
        return True

    Root(folder, follows=note).check(path)
    return tuple(found.items())


def waiting_name(name: str, ending: str = ".tmp") -> str:
    """Return a name nobody can guess, beside `name`, for something that is not finished."""
    return f"{name}.{os.urandom(_TOKEN_BYTES).hex()}{ending}"


def waiting_for(path: Path, ending: str = ".tmp") -> list[Path]:
    """Return what lies beside a path under names of `waiting_name`."""
    pattern = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}{re.escape(ending)}")
    return [path.parent / name for name in _names(path.parent) if pattern.fullmatch(name)]


def half_written(folder: Path) -> list[Path]:
    """Return what was left in a folder where a run was killed while it wrote a small file."""
    pattern = re.compile(rf".+\.json\.([0-9a-f]{{{2 * _TOKEN_BYTES}}}|\d+)\.tmp")  # earlier releases wrote a number
    return [folder / name for name in _names(folder) if pattern.fullmatch(name)]


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:  # a Path for each of thousands of files takes ten times as long
            return [entry.name for entry in entries]
    except OSError:
        return []


def free_name(path: Path) -> Path:
    """Return the path, or one beside it that is not taken."""
    candidate, number = path, 1
    while os.path.lexists(candidate):
        candidate, number = path.with_name(f"{path.name}.{number}"), number + 1
    return candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A name in a folder that was reached through no link."""

    name: str | Path  # the whole path where the system has no descriptors of folders
    folder: int | None
    folder_path: Path

    def status(self) -> os.stat_result:
        """Return what has the name, a link being a link; raises OSError."""
        return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)

    def flush(self) -> None:
        """Hand the folder's list of names to the disk; raises OSError."""
        if self.folder is None:
            flush_folder(self.folder_path)
        else:
            flush_folder(".", dir_fd=self.folder)


class Root:
    """A folder below which things are changed; every method raises StorageError where the system refuses.

    Parameters
    ----------
    folder : Path
        The folder as the user knows it; it may be a link itself, and need not exist.  Every path given to a method
        begins with it.
    follows : callable, optional
        Asked about a link that leads out of it; what it agrees to is followed.
    named : Path, optional
        A folder above it that the user named.  Links between the two are followed as those below it are: where they
        stay below what was named, or where that was agreed.
    is_private : bool
        Whether what is made is for this user alone (0600, 0700).
    holder : str
        What may have its files open, for messages.
    is_arrival_kept : bool
        Whether the next run builds on what has arrived, for messages.
    """

    def __init__(
        self,
        folder: Path,
        *,
        follows: Follows | None = None,
        named: Path | None = None,
        is_private: bool = False,
        holder: str = "whatever has the file open",
        is_arrival_kept: bool = True,
        platform: str = sys.platform,
        pauses_s: Sequence[float] | None = None,
        has_descriptors: bool = _HAS_DESCRIPTORS,
    ) -> None:
        self.folder = folder
        self._follows = follows
        self._named = named
        self._is_private = is_private
        self._error = partial(storage_error, holder=holder, is_arrival_kept=is_arrival_kept)
        self._holder = holder
        self._platform = platform
        self._patiently = (
            partial(patiently, platform=platform)
            if pauses_s is None
            else partial(patiently, platform=platform, pauses_s=pauses_s, pauses_for_holder_s=pauses_s)
        )
        self._has_descriptors = has_descriptors

    @cached_property
    def real(self) -> Path:
        """The folder itself, links resolved, once; raises PathOutsideRootError where it may not be reached."""
        if self._named is not None and self._named in self.folder.parents:
            return Root(self._named, follows=self._follows)._real_folder(self.folder)
        return Path(os.path.realpath(self.folder))

    # --- the way there ---------------------------------------------------------------------------

    def check(self, path: Path) -> None:
        """Raise PathOutsideRootError where a path is not below the root, or a link on the way to it leads elsewhere."""
        self._real_folder(path.parent)

    def holds(self, path: Path) -> bool:
        """Whether `check` passes."""
        try:
            self.check(path)
        except StorageError:
            return False
        return True

    def _real_folder(self, folder: Path) -> Path:
        """Return where a folder of the root really is; what is not there yet is where it would be."""
        real = self.real
        shown = self.folder
        for part in self.relative(folder).parts:
            shown, real = shown / part, real / part
            try:
                if _leads_elsewhere(real, None, self._has_descriptors):
                    real = self._followed(shown, Path(os.path.realpath(real)))
            except OSError as error:
                raise self._error(error, shown, doing="read") from error
        return real

    def relative(self, path: Path) -> PurePath:
        """Return a path relative to the root; raises PathOutsideRootError where it is not below it."""
        is_below = path == self.folder or self.folder in path.parents
        if not is_below or ".." in path.relative_to(self.folder).parts:
            raise PathOutsideRootError(f"{path} is not inside {self.folder}.", path=str(path), root=str(self.folder))
        return path.relative_to(self.folder)

    def _followed(self, link: Path, real: Path) -> Path:
        """Return where a link leads, or raise: among our own records none is followed, else only one that stays."""
        way = way_of_link(link.relative_to(self.folder), real, root=self.real)
        if way == "stays" or (way == "leaves" and self._follows is not None and self._follows(link, real)):
            return real
        raise self._refusal(link, real, is_record=way == "records")

    def _refusal(self, link: Path, real: Path, *, is_record: bool) -> PathOutsideRootError:
        if is_record:
            message = f"{link} is a link to {real}; among the records of klein-setup no link is followed."
            hint = "Remove that link, or put what it leads to in its place, and run the same command again."
        else:
            message = f"{link} is a link to {real}, outside of {self.folder}."
            hint = f"Name {real} itself, or pass --follow-links if that is where files shall be written and deleted."
        return PathOutsideRootError(message, hint=hint, path=str(link), root=str(self.folder), real=str(real))

    @contextlib.contextmanager
    def _at(self, path: Path, doing: str = "write") -> Iterator[Place]:
        """Yield a path's last name in its folder; what the system refuses inside becomes an error about the path."""
        if path == self.folder:
            raise PathOutsideRootError(f"{path} is the root itself.", path=str(path), root=str(path))
        real = self._real_folder(path.parent)
        folder = None
        try:
            if self._has_descriptors:
                folder = self._opened(real)
                yield Place(name=path.name, folder=folder, folder_path=real)
            else:
                if not is_same_path(Path(os.path.realpath(real)), real):
                    raise OSError(errno.ELOOP, "a link appeared on the way", str(path.parent))
                yield Place(name=real / path.name, folder=None, folder_path=real)
        except OSError as error:
            if is_among_records(self.relative(path)) and os.path.islink(real / path.name):  # noqa: PTH114 - never raises
                raise self._refusal(path, Path(os.path.realpath(real / path.name)), is_record=True) from error
            raise self._error(error, path, doing=doing) from error
        finally:
            if folder is not None:
                os.close(folder)

    def _opened(self, real: Path) -> int:
        """Open a folder, each step below the root by the folder above it, none through a link."""
        is_below = real == self.real or self.real in real.parents
        descriptor = os.open(self.real if is_below else real, _FOLDER_FLAGS)
        for part in real.relative_to(self.real).parts if is_below else ():
            above = descriptor
            try:
                descriptor = os.open(part, _FOLDER_FLAGS, dir_fd=above)
            finally:
                os.close(above)
        return descriptor

    # --- folders ---------------------------------------------------------------------------------

    def make_folder(self, folder: Path | None = None, *, is_flushed: bool = True) -> None:
        """Make a folder and those above it, each known to the disk before the next if they are to be flushed."""
        relative = self.relative(self.folder if folder is None else folder)
        self._make_self()
        made = self.folder
        for part in relative.parts:
            made = made / part
            with self._at(made, "create") as place:
                self._make(place.name, place.folder, place.flush if is_flushed else _leave)

    def _make_self(self) -> None:
        """Make the root and the folders above it, which are the user's choice."""
        try:
            missing = [each for each in (self.real, *self.real.parents) if not each.exists()]
            if not missing and not self.real.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.folder))
            for each in reversed(missing):
                self._make(each, None, partial(flush_folder, each.parent))
            if self._is_private and not missing and os.name != "nt" and self.real.stat().st_mode & 0o077:
                self.real.chmod(stat.S_IRWXU)  # made by an earlier release
        except OSError as error:
            raise self._error(error, self.folder, doing="create") from error

    def _make(self, name: str | Path, dir_fd: int | None, flush: Callable[[], None]) -> None:
        try:
            os.mkdir(name, 0o700 if self._is_private else 0o777, dir_fd=dir_fd)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd).st_mode):
                raise
        else:
            flush()

    def remove_folder(self, folder: Path) -> bool:
        """Remove a folder if it is empty; return whether it was removed."""
        with contextlib.suppress(StorageError), self._at(folder, "remove") as place:
            if stat.S_ISDIR(place.status().st_mode):
                os.rmdir(place.name, dir_fd=place.folder)
                return True
        return False

    def remove_tree(self, path: Path) -> None:
        """Remove a folder with everything in it, read-only entries included; of a link only itself, or nothing."""
        with _nothing_there(), self._at(path, "remove") as place:
            self._patiently(partial(_remove_tree, place.name, place.folder, self._has_descriptors), path)

    # --- files -----------------------------------------------------------------------------------

    def write_text(self, path: Path, text: str, *, is_name_flushed: bool = True) -> None:
        """Write a small UTF-8 file as `write_bytes` does."""
        self.write_bytes(path, text.encode("utf-8"), is_name_flushed=is_name_flushed)

    def write_bytes(self, path: Path, data: bytes, *, mode: int | None = None, is_name_flushed: bool = True) -> None:
        """Replace a small file in one step, so that a reader sees the old one or the new one; make its folder.

        Parameters
        ----------
        path : Path
            The file; a link in its place is replaced.
        data : bytes
            All of it.
        mode : int, optional
            Its permissions; else those of a new file.
        is_name_flushed : bool
            Without it the bytes are on the disk and a power cut may still bring the old file back.
        """
        self.make_folder(path.parent)
        waiting = path.with_name(waiting_name(path.name))
        try:
            with self._about(path), self.create(waiting) as stream:
                write_all(stream, data)
                if mode is not None and sys.platform != "win32":
                    os.fchmod(stream.fileno(), mode)
                flush_file(stream.fileno())
            self.replace(waiting, path, is_flushed=is_name_flushed)
        except BaseException:
            with contextlib.suppress(StorageError):
                self.remove(waiting)
            raise
        self.remove_abandoned(waiting_for(path))

    def remove_abandoned(self, half_written: Iterable[Path]) -> None:
        """Remove small files over which runs were killed, if the system lets us; not one that is being written now."""
        for path in half_written:
            with contextlib.suppress(OSError, StorageError):
                if time.time() - path.lstat().st_mtime > _WRITTEN_WITHIN_S:
                    self.remove(path)

    @contextlib.contextmanager
    def _about(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(error, path, doing="write") from error

    def create(self, path: Path, *, is_executable: bool = False) -> FileIO:
        """Return a new file, open for writing, for `write_all`; raises StorageError where anything has its name."""
        mode = 0o600 if self._is_private else 0o777 if is_executable else 0o666
        with self._at(path) as place:
            return os.fdopen(os.open(place.name, os.O_RDWR | _NEW, mode, dir_fd=place.folder), "w+b", buffering=0)

    def write_new(self, path: Path, data: bytes) -> None:
        """Write a file whose name is free, and hand its bytes to the disk."""
        with self._about(path), self.create(path) as stream:
            write_all(stream, data)
            flush_file(stream.fileno())

    def open_log(self, path: Path, *, is_new: bool = False) -> FileIO:
        """Return a log that is added to, or begun anew; it is for this user alone."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | (os.O_TRUNC if is_new else 0)
        return os.fdopen(self._open(path, flags, 0o600), "ab", buffering=0)

    def append_text(self, path: Path, text: str) -> None:
        """Add text to a file, which is made if it is not there."""
        descriptor = self._open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        with self._about(path), os.fdopen(descriptor, "ab", buffering=0) as stream:
            write_all(stream, text.encode("utf-8"))

    def open_file(self, path: Path, *, is_new: bool = False) -> int:
        """Return a descriptor that reads and writes anywhere in a file that has this name alone.

        With `is_new` the file is made where it is not there.
        """
        return self._open(path, os.O_RDWR | (os.O_CREAT if is_new else 0), 0o666)

    def open_appending(self, path: Path) -> int:
        """Return a descriptor that adds to the end of a file that is there."""
        return self._open(path, os.O_WRONLY | os.O_APPEND, 0o666)

    def _open(self, path: Path, flags: int, mode: int) -> int:
        with self._at(path) as place:
            if not self._has_descriptors and is_link(place.name):
                raise OSError(errno.ELOOP, "it is a link", str(path))
            begin = partial(os.open, place.name, flags | _SAFE_FLAGS, 0o600 if self._is_private else mode)
            opened = self._patiently(
                partial(begin, dir_fd=place.folder), path, pauses_s=(), holds=partial(is_held, access=WRITES)
            )
            status = os.fstat(opened)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                os.close(opened)
                raise OSError(errno.EMLINK, "it is no file, or a file with a second name", str(path))
            return opened

    def replace(
        self, source: Path, destination: Path, *, is_flushed: bool = True, source_root: Root | None = None
    ) -> None:
        """Give a file or folder another name in one step, durably; where it fails both are as they were.

        Parameters
        ----------
        source, destination : Path
            The old and the new name; what has the new one is replaced.
        is_flushed : bool
            Without it a power cut may bring the old names back.
        source_root : Root, optional
            The root of the old name, where it is another one.
        """
        with (source_root or self)._at(source) as old, self._at(destination) as new:
            try:
                self._patiently(partial(self._rename, old, new), source, destination)
            except PermissionError as error:
                if (held := self._holder_of(error, source, destination)) is not None:
                    raise self._in_use(held) from error
                raise
            if is_flushed:
                new.flush()
                if old.folder_path != new.folder_path:
                    old.flush()

    def _rename(self, old: Place, new: Place) -> None:
        move = partial(os.replace, old.name, new.name, src_dir_fd=old.folder, dst_dir_fd=new.folder)
        _although_read_only(move, new.name)

    def _holder_of(self, error: OSError, source: Path, destination: Path) -> Path | None:
        """Return which of two files of a refused rename another program holds, as far as that is known. Windows only.

        Of a file in the way the system says "access denied"; a folder is held by whatever has a file in it open.
        """
        if self._platform != "win32":
            return None
        if os.path.lexists(destination) and not is_held(source):
            return destination
        is_sources = is_held(source) or getattr(error, "winerror", None) in IN_USE or source.is_dir()
        return source if is_sources else None

    def _in_use(self, path: Path) -> FileInUseError:
        if is_among_records(self.relative(path) if self.folder in path.parents else path):
            closing = f"Close {self._holder}, such as a virus scanner or a backup program"
        else:
            closing = f"Close ComfyUI (it keeps model files mapped), or {self._holder}"
        return FileInUseError(
            f"{path} is open in another program and cannot be replaced or moved.",
            hint=f"{closing}, and run the same command again.",
            path=str(path),
        )

    def remove(self, path: Path) -> None:
        """Remove a file or a link, if there is one."""
        with _nothing_there(), self._at(path, "remove") as place:
            self._patiently(partial(_unlink, place.name, place.folder), path)

    def remove_if(self, path: Path, is_expected: Callable[[Path], bool]) -> bool:
        """Remove a file or a link if it is, at this moment, what was expected; return whether it was removed.

        Parameters
        ----------
        path : Path
            The file.
        is_expected : callable
            Told where it really is; looks at its content.  A file that changes meanwhile stays.
        """
        with _nothing_there(), self._at(path, "remove") as place:
            before = _stamp(place.status())
            if is_expected(place.folder_path / path.name) and _stamp(place.status()) == before:
                self._patiently(partial(_unlink, place.name, place.folder), path)
                return True
        return False

    # --- links and copies ------------------------------------------------------------------------

    def symlink(self, path: Path, target: Path | str, *, link: Callable[..., None] = os.symlink) -> None:
        """Make a link; where the system allows none it is a StorageError, too."""
        with self._at(path, "link") as place:
            try:
                link(target, place.name, dir_fd=place.folder)
            except NotImplementedError as error:
                raise OSError(errno.ENOTSUP, "it has no links", str(path)) from error

    def hard_link(self, source: Path, path: Path, *, link: Callable[..., None] = os.link) -> bool:
        """Give a file a second name; False where the file system, or a boundary between two, does not allow it."""
        with self._at(path, "link") as place:
            try:
                link(source, place.name, dst_dir_fd=place.folder)
            except FileExistsError:
                raise
            except OSError as error:
                if is_impossible(error):
                    return False
                raise
        return True

    def reflink(self, source: Path, path: Path, *, clone: Callable[[int, int], None] = ficlone) -> bool:
        """Make a new file share the disk blocks of another; False where the file system cannot.

        Linux: ``FICLONE``.  macOS: ``clonefileat``.  Elsewhere: False.  Both may be changed later without touching the
        other.
        """
        if self._platform == "darwin":
            with self._at(path, "link") as place:
                return by_clonefile(source, place.name, place.folder)
        if self._platform != "linux":
            return False
        with self._about(path), source.open("rb") as reader, self.create(path) as writer:
            try:
                clone(writer.fileno(), reader.fileno())
                return True
            except OSError as error:
                refused = error
        self.remove(path)
        if is_impossible(refused):
            return False
        raise self._error(refused, path, doing="link") from refused

    def copy_file(self, source: Path, path: Path) -> None:
        """Copy a file with its permissions and times, a link as a link, to a name that is free; make its folder."""
        self.make_folder(path.parent)
        with self._about(path):
            status = source.lstat()
            if stat.S_ISLNK(status.st_mode):
                self.symlink(path, os.readlink(source))  # noqa: PTH115 - Path.readlink rewrites what it reads
                return
            with source.open("rb") as reader, self.create(path) as writer:
                while piece := reader.read(_COPY_STEP):
                    write_all(writer, piece)
                if sys.platform != "win32":
                    os.fchmod(writer.fileno(), stat.S_IMODE(status.st_mode))
                os.utime(
                    writer.fileno() if os.utime in os.supports_fd else path,
                    ns=(status.st_atime_ns, status.st_mtime_ns),
                )


@contextlib.contextmanager
def _nothing_there() -> Iterator[None]:
    """Let pass that there is nothing to remove, nor a folder in which it would be."""
    try:
        yield
    except StorageError as error:
        if error.context.get("errno") not in {errno.ENOENT, errno.ENOTDIR}:
            raise


def _leave() -> None:
    """Leave it to the system when it writes."""


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode


def _unlink(name: str | Path, dir_fd: int | None) -> None:
    _although_read_only(partial(os.unlink, name, dir_fd=dir_fd), name)


def _although_read_only(action: Callable[[], None], name: str | Path) -> None:
    """Remove or replace what has a name; Windows refuses that for what is read-only, also a folder."""
    try:
        action()
    except PermissionError:
        if os.name != "nt" or not os.path.lexists(name) or os.lstat(name).st_mode & stat.S_IWRITE:
            raise
        os.chmod(name, stat.S_IWRITE)  # noqa: PTH101 - one kind of call for every system
        action()


def _leads_elsewhere(name: str | Path, dir_fd: int | None, has_descriptors: bool) -> bool:
    """Whether a name in a resolved folder is a link, or its final path is another; raises OSError.

    Windows has more ways to lead elsewhere than links and junctions say of themselves; the final path tells them all.
    """
    return is_link(name, dir_fd=dir_fd) or not (
        has_descriptors or is_same_path(Path(os.path.realpath(name)), Path(name))
    )


def _remove_tree(name: str | Path, dir_fd: int | None, has_descriptors: bool) -> None:
    """Remove what has a name in an open folder, our records last: they say that the rest is ours. Raises OSError."""
    status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        _unlink(name, dir_fd)
    elif _leads_elsewhere(name, dir_fd, has_descriptors):  # a junction, which goes without what it leads to
        os.rmdir(name)  # noqa: PTH106 - one kind of call for every system
    elif has_descriptors:
        inside = _opened_for_removal(name, dir_fd)
        try:
            for entry in sorted(os.listdir(inside), key=_is_state):  # noqa: PTH208 - a descriptor
                _remove_tree(entry, inside, has_descriptors)
        finally:
            os.close(inside)
        os.rmdir(name, dir_fd=dir_fd)
    else:
        for path in sorted(Path(name).iterdir(), key=lambda each: _is_state(each.name)):
            _remove_tree(path, None, has_descriptors)
        _although_read_only(partial(os.rmdir, name), name)


def _is_state(name: str) -> bool:
    return name == STATE_FOLDER


def _opened_for_removal(name: str | Path, dir_fd: int | None) -> int:
    """Open a folder whose entries may be removed: POSIX removes nothing in a read-only one."""
    flags = os.O_RDONLY | _SAFE_FLAGS | getattr(os, "O_DIRECTORY", 0)
    try:
        inside = os.open(name, flags, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(name, stat.S_IRWXU, dir_fd=dir_fd)
        inside = os.open(name, flags, dir_fd=dir_fd)
    with contextlib.suppress(OSError):
        if sys.platform != "win32" and os.fstat(inside).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(inside, stat.S_IRWXU)
    return inside


# --- outside of any tree ---------------------------------------------------------------------------


def write_output(path: Path, data: bytes) -> None:
    """Write a file that the user named, through a link or into a device if that is what it is; raises StorageError."""
    real = Path(os.path.realpath(path))
    try:
        status = real.stat() if real.exists() else None
        if status is not None and not stat.S_ISREG(status.st_mode):
            with real.open("wb") as stream:
                stream.write(data)
            return
        if status is None:
            real.parent.stat()  # a folder that is not there is a slip of the person's
    except OSError as error:
        raise storage_error(error, path) from error
    Root(real.parent).write_bytes(real, data, mode=None if status is None else stat.S_IMODE(status.st_mode))


def flip_bit(path: Path, offset: int) -> None:
    """Change one bit of a file and none of its times, as a failing disk does: for the rehearsal."""
    status = path.stat()
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextlib.contextmanager
def scratch_folder(prefix: str, *, is_kept: bool = False) -> Iterator[Path]:
    """Yield a new folder of this user's among the temporary files; it is removed afterwards unless it is kept."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        if not is_kept:
            with contextlib.suppress(StorageError):
                Root(folder.parent).remove_tree(folder)
