"""Damage to a models folder: one function for each kind, and how many bytes its repair may fetch.

Every row of `DAMAGES` has files of its own, so that all of them can be done to one folder at once.  The numbers are
written down beside the damage, not worked out by the program under test.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from provisioner.core.models import BLOCK_SIZE, STATE_FOLDER
from tests.support.sandbox import Sandbox, Wanted, tensors

Where = Literal["untouched", "backups", "pieces", "nowhere"]
"""Where the user's bytes are after a repair: unchanged, whole in the backups, in pieces there, or there were none."""

_ROLES = {"diffusion_models": "diffusion_model", "text_encoders": "text_encoder", "vae": "vae"}
_LINKS_ARE_FREE = sys.platform != "win32"  # there a link needs a privilege


@dataclass(frozen=True, kw_only=True)
class Model(Wanted):
    """A file of the set, with the role of its folder."""

    has_digests: bool = False  # the manifest names the digest of every block, as a locked one does

    def artifact(self) -> dict[str, object]:
        entry = super().artifact() | {"role": _ROLES[self.folder]}
        return entry | {"blocks": list(self.blocks)} if self.has_digests else entry

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """SHA-256 of every block."""
        starts = range(0, len(self.data), BLOCK_SIZE)
        return tuple(sha256(self.data[at : at + BLOCK_SIZE]).hexdigest() for at in starts)

    def below(self, models: Path) -> Path:
        """Return where the file belongs."""
        return models / self.folder / self.name


Inflict = Callable[[Path, tuple[Model, ...]], None]
"""Does the damage: models folder and files in."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One kind of damage to a folder."""

    name: str
    files: tuple[Model, ...]
    inflict: Inflict
    status: str  # what `verify` calls each of the files
    says: str  # part of a sentence in which `verify` says what it is
    fetched: int  # bytes that `repair` may take from the network, all files of the row together
    old: Where  # where the user's bytes are afterwards
    kinds: tuple[str, ...]  # the steps that fix it, each plan's in order; a skipped one is done by the next

    @property
    def id(self) -> str:
        """The name as one word."""
        return self.name.replace(" ", "-")


# --- the damages -------------------------------------------------------------------------------------


def flip(*offsets: int) -> Inflict:
    """Flip one bit at each offset, in place."""

    def inflict(models: Path, files: tuple[Model, ...]) -> None:
        with files[0].below(models).open("r+b") as stream:
            for offset in offsets:
                stream.seek(offset)
                byte = stream.read(1)[0]
                stream.seek(offset)
                stream.write(bytes([byte ^ 1]))

    return inflict


def cut(length: int) -> Inflict:
    """Leave only the first bytes."""
    return lambda models, files: os.truncate(files[0].below(models), length)


def fill_with_zeros(start: int, length: int) -> Inflict:
    """Write zeros over a range."""

    def inflict(models: Path, files: tuple[Model, ...]) -> None:
        with files[0].below(models).open("r+b") as stream:
            stream.seek(start)
            stream.write(bytes(length))

    return inflict


def append(data: bytes) -> Inflict:
    """Write something after the end."""

    def inflict(models: Path, files: tuple[Model, ...]) -> None:
        with files[0].below(models).open("ab") as stream:
            stream.write(data)

    return inflict


def put_there(data: bytes) -> Inflict:
    """Put another file under the name, as a browser or a clone without LFS does."""

    def inflict(models: Path, files: tuple[Model, ...]) -> None:
        path = files[0].below(models)
        path.unlink()
        path.write_bytes(data)

    return inflict


def delete(models: Path, files: tuple[Model, ...]) -> None:
    """Delete the file."""
    files[0].below(models).unlink()


def swap(models: Path, files: tuple[Model, ...]) -> None:
    """Let two files change their names."""
    one, other = (each.below(models) for each in files)
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def move_to(folder: str, name: str | None = None) -> Inflict:
    """Move the file to another folder, or give it another name."""

    def inflict(models: Path, files: tuple[Model, ...]) -> None:
        path = models / folder / (name or files[0].name)
        path.parent.mkdir(parents=True, exist_ok=True)
        files[0].below(models).rename(path)

    return inflict


def older_file_in(folder: str, data: bytes) -> Inflict:
    """Put another file of the name where ComfyUI looks first."""

    def inflict(models: Path, files: tuple[Model, ...]) -> None:
        path = models / folder / files[0].name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return inflict


def link_to_nowhere(models: Path, files: tuple[Model, ...]) -> None:
    """Leave a link to a drive that is not plugged in."""
    delete(models, files)
    files[0].below(models).symlink_to(models.parent / "unplugged" / files[0].name)


def link_to_itself(models: Path, files: tuple[Model, ...]) -> None:
    """Leave a link that leads to itself."""
    delete(models, files)
    files[0].below(models).symlink_to(files[0].name)


def folder_instead(models: Path, files: tuple[Model, ...]) -> None:
    """Leave a folder under the name, with something in it."""
    delete(models, files)
    files[0].below(models).mkdir()
    (files[0].below(models) / "notes.txt").write_bytes(b"unpacked here by an archiver\n")


def spoil_receipt(models: Path, files: tuple[Model, ...]) -> None:
    """Let the receipt name other blocks than those of the file."""
    _edit_receipt(models, files[0], lambda entry: entry.update(blocks=["0" * 64] * len(entry["blocks"])))


def lose_receipt(then: Inflict) -> Inflict:
    """Forget the file, then do something to it."""

    def inflict(models: Path, files: tuple[Model, ...]) -> None:
        _edit_receipt(models, files[0], None)
        then(models, files)

    return inflict


def foreign_part(then: Inflict | None = None) -> Inflict:
    """Leave the unfinished download of another program beside it."""

    def inflict(models: Path, files: tuple[Model, ...]) -> None:
        path = files[0].below(models)
        path.with_name(path.name + ".part").write_bytes(b"a browser wrote this " * 500 + files[0].name.encode())
        if then is not None:
            then(models, files)

    return inflict


def second_name(then: Inflict) -> Inflict:
    """Give the file a second name, which is the user's own, then do something to both."""

    def inflict(models: Path, files: tuple[Model, ...]) -> None:
        other = models / "checkpoints" / "my-own-name.bin"
        other.parent.mkdir(parents=True, exist_ok=True)
        os.link(files[0].below(models), other)
        then(models, files)

    return inflict


def touch(models: Path, files: tuple[Model, ...]) -> None:
    """Change the time stamps, as an unpacked backup does."""
    os.utime(files[0].below(models), ns=(1_600_000_000_000_000_000, 1_600_000_000_000_000_000))


def _edit_receipt(models: Path, file: Model, change: Callable[[dict[str, Any]], None] | None) -> None:
    path = models / STATE_FOLDER / "receipt.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    if change is None:
        del document["files"][f"{file.folder}/{file.name}"]
    else:
        change(document["files"][f"{file.folder}/{file.name}"])
    path.write_text(json.dumps(document), encoding="utf-8")


# --- the table ---------------------------------------------------------------------------------------

_TAIL = 70_000
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 335304388\n"
_HTML = b"<!DOCTYPE html><html><head><title>Log in</title></head><body>Please log in.</body></html>\n"
_JSON = b'{"error":"Invalid username or password."}'


def _model(name: str, blocks: int = 0, *, folder: str = "vae", extra: int = 0, has_digests: bool = False) -> Model:
    """Return a file of so many whole blocks and a short one; no two names give the same size or the same bytes."""
    seed = zlib.crc32(name.encode())
    size = blocks * BLOCK_SIZE + _TAIL + (extra or seed % 50_000)
    return Model(data=_content(size, seed), name=f"{name}.safetensors", folder=folder, has_digests=has_digests)


def _content(size: int, seed: int) -> bytes:
    """Return a well-formed file in which no two blocks are alike: a short one of random bytes, turned and repeated.

    Quick, because every collection of the tests makes all of them.
    """
    short = tensors(_TAIL, seed)
    head, noise = short[:128], short[128:]
    fields = json.loads(head[8:])
    fields["weight"].update(shape=[size - 128], data_offsets=[0, size - 128])
    # The length of the noise divides no block, so every block begins at another place of it.
    times, rest = divmod(size - 128, len(noise))
    return b"".join([head[:8], json.dumps(fields).encode().ljust(120), *[noise] * times, noise[:rest]])


def _row(
    name: str,
    file: Model | tuple[Model, ...],
    inflict: Inflict,
    *,
    status: str,
    says: str = "",
    fetched: int = 0,
    old: Where = "nowhere",
    kinds: tuple[str, ...] = (),
) -> Damage:
    files = file if isinstance(file, tuple) else (file,)
    return Damage(
        name=name, files=files, inflict=inflict, status=status, says=says, fetched=fetched, old=old, kinds=kinds
    )


def all_damages() -> tuple[Damage, ...]:
    """Return every damage that this system allows, each with files of its own."""
    return tuple([*_of_bytes(), *_of_content(), *_of_places(), *_of_records()])


def _of_bytes() -> Iterator[Damage]:
    """Yield what leaves most of a file right."""
    patch, fetch = ("patch-file",), ("fetch-file",)
    one, two, hole = _model("one-bit", 2, folder="diffusion_models"), _model("two-blocks", 2), _model("hole", 2)
    last, third = _model("last-byte", 1), _model("a-third", 3, folder="text_encoders")
    long, shared = _model("too-long"), _model("second-name", 1)
    yield _row(
        "one bit flipped in the middle block", one, flip(BLOCK_SIZE + 4_321),
        status="hash-mismatch", says="block 1 (of 0 to 2) differs", fetched=BLOCK_SIZE, old="pieces", kinds=patch,
    )  # fmt: skip
    yield _row(
        "two separate blocks", two, flip(77, len(two.data) - 1),
        status="hash-mismatch", says="blocks 0 and 2 (of 0 to 2) differ",
        fetched=len(two.data) - BLOCK_SIZE, old="pieces", kinds=patch,
    )  # fmt: skip
    yield _row(
        "a hole of zeros over two blocks", hole, fill_with_zeros(BLOCK_SIZE - 500_000, 1_000_000),
        status="hash-mismatch", says="blocks 0-1 (of 0 to 2) differ", fetched=2 * BLOCK_SIZE, old="pieces", kinds=patch,
    )  # fmt: skip
    yield _row(
        "truncated by one byte", last, cut(len(last.data) - 1),
        status="size-mismatch", says=f"truncated at byte {len(last.data) - 1:,} of {len(last.data):,}",
        fetched=len(last.data) - BLOCK_SIZE, old="pieces", kinds=patch,
    )  # fmt: skip
    yield _row(
        "truncated at a third", third, cut(len(third.data) // 3),
        status="size-mismatch", says=f"truncated at byte {len(third.data) // 3:,} of {len(third.data):,}",
        fetched=len(third.data) - BLOCK_SIZE, old="pieces", kinds=patch,
    )  # fmt: skip
    yield _row(
        "garbage after the end", long, append(b"<html>appended by a download manager</html>"),
        status="size-mismatch", says="43 bytes too long", old="pieces", kinds=patch,
    )  # fmt: skip
    yield _row(
        "a second name and one bit flipped", shared, second_name(flip(BLOCK_SIZE + 9)),
        status="hash-mismatch", says="block 1 (of 0 to 1) differs",
        fetched=len(shared.data) - BLOCK_SIZE, old="backups", kinds=patch,
    )  # fmt: skip
    empty = _model("empty")
    yield _row(
        "emptied", empty, cut(0),
        status="size-mismatch", says="an empty file", fetched=len(empty.data), old="backups", kinds=fetch,
    )  # fmt: skip


def _of_content() -> Iterator[Damage]:
    """Yield what has to be fetched whole."""
    fetch = ("fetch-file",)
    gone, other = _model("deleted"), _model("another-file")
    yield _row("deleted", gone, delete, status="missing", fetched=len(gone.data), kinds=fetch)
    pages = {
        "a web page": (_HTML, "a web page (HTML), not a model"),
        "a Git LFS pointer": (_LFS, "a Git LFS pointer"),
        "a JSON error": (_JSON, "Invalid username or password."),
    }
    for name, (data, says) in pages.items():
        file = _model(name.replace(" ", "-").lower())
        yield _row(
            name, file, put_there(data),
            status="size-mismatch", says=says, fetched=len(file.data), old="backups", kinds=fetch,
        )  # fmt: skip
    yield _row(
        "another file of the same size", other, put_there(tensors(len(other.data), 4)),
        status="hash-mismatch", says="safetensors", fetched=len(other.data), old="backups", kinds=fetch,
    )  # fmt: skip
    folder = _model("folder-instead")
    yield _row(
        "a folder under the name", folder, folder_instead,
        status="unreadable", says="a folder or the like", fetched=len(folder.data), old="backups", kinds=fetch,
    )  # fmt: skip
    if _LINKS_ARE_FREE:
        nowhere, loop = _model("unplugged"), _model("loop")
        yield _row(
            "a link to nowhere", nowhere, link_to_nowhere,
            status="unreadable", says="which is not there", fetched=len(nowhere.data), old="backups", kinds=fetch,
        )  # fmt: skip
        yield _row(
            "a link to itself", loop, link_to_itself,
            status="unreadable", fetched=len(loop.data), old="backups", kinds=fetch,
        )  # fmt: skip


def _of_places() -> Iterator[Damage]:
    """Yield what is right and lies elsewhere."""
    # The second of two finds its bytes in the backups, one plan later; its link then changes a time stamp of the first.
    both = ("place-file", "place-file", "place-file", "record-receipt")
    yield _row(
        "two names swapped", (_model("swapped-a"), _model("swapped-b", folder="text_encoders")), swap,
        status="size-mismatch", kinds=both,
    )  # fmt: skip
    alike = _model("alike-a", extra=60_001), _model("alike-b", extra=60_001)
    yield _row("two names of equal size swapped", alike, swap, status="hash-mismatch", kinds=both)
    yield _row(
        "in the wrong folder", _model("misplaced"), move_to("checkpoints"), status="missing", kinds=("move-file",)
    )
    yield _row(
        "under a wrong name", _model("misnamed"), move_to("vae", "misnamed (1).safetensors"),
        status="missing", old="untouched", kinds=("place-file",),
    )  # fmt: skip


def _of_records() -> Iterator[Damage]:
    """Yield what happened to receipts, time stamps and other programs' files."""
    record = ("record-receipt",)
    yield _row("the receipt spoiled", _model("receipt-spoiled", 1), spoil_receipt, status="ok", kinds=record)
    yield _row("time stamps changed", _model("touched", 1), touch, status="ok", kinds=record)
    lost, locked = _model("receipt-lost", 1), _model("receipt-lost-locked", 1, has_digests=True)
    yield _row(
        "no receipt and one bit flipped", lost, lose_receipt(flip(BLOCK_SIZE + 3)),
        status="hash-mismatch", says="safetensors", fetched=len(lost.data), old="backups", kinds=("fetch-file",),
    )  # fmt: skip
    yield _row(
        "no receipt but a locked manifest and one bit flipped", locked, lose_receipt(flip(BLOCK_SIZE + 3)),
        status="hash-mismatch", says="block 1 (of 0 to 1) differs",
        fetched=len(locked.data) - BLOCK_SIZE, old="pieces", kinds=("patch-file",),
    )  # fmt: skip
    cut_off = _model("receipt-lost-truncated", 2)
    yield _row(
        "no receipt and truncated", cut_off, lose_receipt(cut(BLOCK_SIZE + 77)),
        status="size-mismatch", says="its own header asks for",
        fetched=len(cut_off.data) - BLOCK_SIZE, old="backups", kinds=("patch-file",),
    )  # fmt: skip
    yield _row("another program's part beside it", _model("part-beside"), foreign_part(), status="ok", old="untouched")
    file = _model("part-instead")
    yield _row(
        "another program's part instead of it", file, foreign_part(delete),
        status="missing", fetched=len(file.data), old="backups", kinds=("fetch-file",),
    )  # fmt: skip


OLDER_FILE = _model("stale-twin", folder="diffusion_models")
OLDER_BYTES = tensors(90_123, 5)


def older_file() -> Damage:
    """Return an old file in ``unet``, which ComfyUI reads first: reported, and not changed."""
    return _row(
        "an old twin in unet",
        OLDER_FILE,
        older_file_in("unet", OLDER_BYTES),
        status="ok",
        says="reads",
        old="untouched",
    )


# --- the folder --------------------------------------------------------------------------------------

BYSTANDERS = {
    "loras/mine.safetensors": tensors(12_345, 6),
    "vae/somebody-elses.safetensors": tensors(23_456, 7),
    "vae/notes about vae.txt": b"do not delete\n",
    "checkpoints/half.safetensors.crdownload": b"half of something " * 99,
}
"""The user's other files, which must not change."""


def make_folder(sandbox: Sandbox, damages: Iterable[Damage]) -> None:
    """Put every file where an installation puts it, let the command write the receipt, then do the damage."""
    rows = tuple(damages)
    models = sandbox.tree / "models"
    sandbox.publish(*(each for row in rows for each in row.files))
    for row in rows:
        for each in row.files:
            sandbox.plant(each.below(models), each.data)
    installed = sandbox.install("--json")
    assert installed.returncode == 0, installed.stderr
    assert sandbox.hub.requests == (), "every file was there already"
    for name, data in BYSTANDERS.items():
        sandbox.plant(models / name, data)
    for row in rows:
        row.inflict(models, row.files)
        for path in (each.below(models) for each in row.files):
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                sandbox.expect(path, path.read_bytes())
