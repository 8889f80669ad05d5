"""The wheels of a bundle as the cache of an installation: copied into the user's own cache, each by its SHA-256."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from packaging.tags import platform_tags

from provisioner.core.errors import HashMismatchError, NotTheFileError
from provisioner.core.ports import Brought, FileCache, OnlineFile
from provisioner.core.units import count
from provisioner.disk.file_digest import sha256_of
from provisioner.disk.root import Root, is_link
from provisioner.environment.bundled_wheels import BundledWheel

_SIDE_BY_SIDE = 4
_HINT = "Copy the bundle again from where it was made, or make it anew."


@dataclass(frozen=True, kw_only=True)
class BundleCache:
    """A `FileCache` that holds what a bundle lists for this computer's system, and nothing else.

    Parameters
    ----------
    cache : FileCache
        The user's; what it has already is not copied.
    wheels : sequence of BundledWheel
        What the bundle lists.
    blob : callable
        Returns the place of a blob by its SHA-256.
    bring_blobs : callable
        Has blobs lie in their places, by their SHA-256: those of a bundle that is not on this computer.
    notice : callable
        Told one line when wheels are copied.
    """

    cache: FileCache
    wheels: Sequence[BundledWheel]
    blob: Callable[[str], Path]
    bring_blobs: Callable[[Sequence[str]], None] = lambda digests: None
    notice: Callable[[str], None] = lambda line: None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    _taken: dict[str, Path] = field(default_factory=dict, repr=False, compare=False)

    def held(self) -> Mapping[str, Path]:
        """Return the wheels in the user's cache, by their SHA-256; the first call copies them there.

        Raises
        ------
        NotTheFileError
            The bundle lacks a blob that it lists; nothing was copied.
        HashMismatchError
            A blob has another SHA-256.
        StorageError
            The disk refused.
        """
        with self._lock:
            if not self._taken:
                self._taken.update(self._take())
        return self._taken

    def _take(self) -> dict[str, Path]:
        systems = {"any", *platform_tags()}
        wanted = {each.sha256: each for each in self.wheels if any(tag.platform in systems for tag in each.tags)}
        here = whole(self.cache, wanted)
        here = {sha256: path for sha256, path in here.items() if path.name == wanted[sha256].file_name}
        left = [each for sha256, each in wanted.items() if sha256 not in here]
        if left:
            self.bring_blobs([each.sha256 for each in left])
        gone = [each for each in left if is_link(self.blob(each.sha256)) or not self.blob(each.sha256).is_file()]
        if gone:
            more = f" and {count(len(gone) - 1, 'other file')}" if len(gone) > 1 else ""
            raise NotTheFileError(
                f"The bundle lists {gone[0].file_name}{more} and does not have it: {self.blob(gone[0].sha256)}.",
                hint=_HINT,
                path=str(self.blob(gone[0].sha256)),
                missing=[each.file_name for each in gone],
            )
        if left:
            self.notice(f"Copying {count(len(left), 'wheel')} out of the bundle.")
        pool = ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="wheel")
        try:
            copied = list(pool.map(self._copy, left))
        finally:
            pool.shutdown(cancel_futures=True)
        return here | {each.sha256: path for each, path in zip(left, copied, strict=True)}

    def _copy(self, wheel: BundledWheel) -> Path:
        blob = self.blob(wheel.sha256)
        with self.cache.arriving() as arriving:
            root, path = Root(arriving, is_private=True), arriving / wheel.file_name
            if not root.reflink(blob, path):
                root.copy_file(blob, path)
            try:
                return self.cache.adopt(path, wheel.sha256)[1]
            except HashMismatchError as error:
                observed = error.context["observed"]
                raise HashMismatchError(
                    f"{wheel.file_name} in the bundle is damaged: {blob} has the SHA-256 {observed}.",
                    hint=_HINT,
                    expected=wheel.sha256,
                    observed=observed,
                    path=str(blob),
                ) from error

    def bring(self, files: Sequence[OnlineFile]) -> Brought:
        """Return files as the user's cache does."""
        return self.cache.bring(files)

    def arriving(self) -> AbstractContextManager[Path]:
        """Return a folder as the user's cache does."""
        return self.cache.arriving()

    def adopt(self, path: Path, sha256: str | None) -> tuple[str, Path]:
        """Take over a file as the user's cache does."""
        return self.cache.adopt(path, sha256)


def whole(cache: FileCache, digests: Collection[str]) -> dict[str, Path]:
    """Return those of the wheels with these SHA-256 that a cache holds, each read and found right."""
    held = cache.held()
    some = [(sha256, held[sha256]) for sha256 in digests if sha256 in held]
    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="wheel") as pool:
        found = list(pool.map(lambda each: _is_whole(*each), some))
    return {sha256: path for (sha256, path), is_right in zip(some, found, strict=True) if is_right}


def _is_whole(sha256: str, path: Path) -> bool:
    try:
        return sha256_of(path) == sha256
    except OSError:
        return False
