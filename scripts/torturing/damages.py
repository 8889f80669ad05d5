"""What an accident, another program, or somebody who means ill does to a tree; then the program has to repair it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provisioner.core.models import STATE_FOLDER
from scripts.torturing.trial import BLOCK, SECTOR, BrokenPromiseError, Ended, ModelFile, Trial

Damage = Callable[[Trial, ModelFile], None]
HTML = b"<!DOCTYPE html><html><head><title>Log in</title></head><body>Please log in.</body></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 335304388\n"


def damages(trial: Trial) -> None:
    """Install, then damage and repair twice, and look at what every command makes of it."""
    trial.succeed("install")
    trial.look_at_success()
    for _ in range(2):
        count = trial.chance.randint(1, 6)
        damage(trial, count)
        look_on(trial)
        repair(trial)
        trial.happened(count)
    clear_the_way(trial)
    after(trial)


def damage(trial: Trial, count: int = 1, *, is_kind: bool = False) -> None:
    """Do some damages, and remember what the user has under our names now; kind ones are never refused."""
    for _ in range(count):
        kind = trial.chance.choice(KINDS[:3] if is_kind else KINDS)
        chosen = trial.chance.choice([each for each in kind if os.name != "nt" or each not in LINKS])
        file = trial.chance.choice(trial.files)
        trial.history.append(f"damage: {chosen.__name__} {file.name}")
        chosen(trial, file)
    note(trial)


def note(trial: Trial) -> None:
    """Remember what lies under our names: it may be replaced, and nothing of it be lost."""
    for file in trial.files:
        path = trial.path(file)
        found = path.read_bytes() if path.is_file() else None
        if found == file.data:
            continue
        trial.damaged.setdefault(path, [])
        if found is not None:
            trial.damaged[path].append(found)
            if not path.is_symlink():
                trial.theirs.keep(path, found, file.data)
        elif path.is_dir() and not path.is_symlink():
            for each in path.iterdir():
                trial.theirs.keep(each, each.read_bytes())


def look_on(trial: Trial) -> None:
    """Look at the damage with the commands that change nothing."""
    is_right = all(trial.path(each).is_file() and trial.path(each).read_bytes() == each.data for each in trial.files)
    before = trial.inventory()
    ended = trial.run("verify", "--no-smoke")
    if ended.status not in {0, 1, 4} or (ended.status == 0 and not is_right):
        raise BrokenPromiseError(f"a damaged tree is called right: {ended}" if not ended.status else str(ended))
    if trial.chance.random() < 0.3:
        trial.run("backups", "list")
        trial.run("uninstall", "--dry-run")
    now = trial.inventory()
    if changed := {name for name in {*before, *now} if before.get(name) != now.get(name)}:
        raise BrokenPromiseError(f"looking changed {', '.join(sorted(changed))}")


def repair(trial: Trial) -> Ended:
    """Repair; where the program refuses because of something planted, take that away and repair again.

    A repair that had nothing to write may have passed it: then it is in the way of a later one.
    """
    ended = trial.run("repair")
    if ended.status == 4 and trial.obstacles:
        clear_the_way(trial)
        note(trial)
        ended = trial.run("repair")
    if ended.status != 0:
        raise BrokenPromiseError(f"the damage is not repaired: {ended}")
    trial.look_at_success(ended)
    looked = trial.run("verify", "--no-smoke")
    if looked.status != 0:
        raise BrokenPromiseError(f"a repaired tree is not right: {looked}")
    return ended


def clear_the_way(trial: Trial) -> None:
    """Take away what the program may refuse to pass."""
    while trial.obstacles:
        trial.obstacles.pop(0)()


def after(trial: Trial) -> None:
    """Do one more thing with a repaired tree."""
    what = trial.chance.choice(("install", "uninstall", "clear", "nothing"))
    if what == "install":
        before = trial.hub.bytes_served
        trial.succeed("install")
        trial.hub.wait_until_idle()
        if trial.hub.bytes_served != before:
            raise BrokenPromiseError("a second installation fetched something")
    elif what == "uninstall":
        trial.may_be_absent = True
        trial.succeed("uninstall", "--yes")
    elif what == "clear":
        trial.theirs.let_go()
        trial.succeed("backups", "clear", "--yes")


# --- bytes -------------------------------------------------------------------------------------------


def _bytes(trial: Trial, file: ModelFile) -> bytearray | None:
    """Return what lies under a file's name, if it is a file of that name alone; None otherwise."""
    path = trial.path(file)
    is_plain = path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1
    return bytearray(path.read_bytes()) if is_plain else None


def _in_place(change: Callable[[random.Random, bytearray], None], name: str) -> Damage:
    def inflict(trial: Trial, file: ModelFile) -> None:
        data = _bytes(trial, file)
        if data:
            change(trial.chance, data)
            status = trial.path(file).stat()
            trial.path(file).write_bytes(data)
            if trial.chance.random() < 0.5:  # as a failing disk does: no time is changed
                os.utime(trial.path(file), ns=(status.st_atime_ns, status.st_mtime_ns))

    inflict.__name__ = name
    return inflict


def _flip(chance: random.Random, data: bytearray) -> None:
    for _ in range(chance.choice((1, 1, 2, 40))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _zero(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data)) // SECTOR * SECTOR
    length = min(chance.choice((SECTOR, 4096, 3 * BLOCK)), len(data) - at)
    data[at : at + length] = bytes(length)


def _cut(chance: random.Random, data: bytearray) -> None:
    del data[chance.choice((0, 1, len(data) - 1, min(BLOCK, len(data) - 1), chance.randrange(len(data)))) :]


def _extend(chance: random.Random, data: bytearray) -> None:
    data += chance.randbytes(chance.choice((1, 43, BLOCK)))


def _shuffle(chance: random.Random, data: bytearray) -> None:
    one, other = (chance.randrange(len(data)) // SECTOR * SECTOR for _ in range(2))
    piece = data[one : one + SECTOR]
    data[one : one + SECTOR], data[other : other + len(piece)] = data[other : other + len(piece)], piece


def _replace(chance: random.Random, data: bytearray) -> None:
    data[:] = chance.choice((HTML, POINTER, b"", b'{"error":"no"}', chance.randbytes(len(data)), b"PK\x03\x04" * 99))


# --- names -------------------------------------------------------------------------------------------


def delete(trial: Trial, file: ModelFile) -> None:
    """Delete the file."""
    if _bytes(trial, file) is not None:
        trial.path(file).unlink()


def swap(trial: Trial, file: ModelFile) -> None:
    """Let two files change their names."""
    other = trial.chance.choice(trial.files)
    if other is not file and _bytes(trial, file) is not None and _bytes(trial, other) is not None:
        between = trial.models / "between"
        trial.path(file).rename(between)
        trial.path(other).rename(trial.path(file))
        between.rename(trial.path(other))


def move(trial: Trial, file: ModelFile) -> None:
    """Move the file to another folder, or give it another name."""
    if _bytes(trial, file) is not None:
        name = trial.chance.choice((file.name, f"{Path(file.name).stem} (1).safetensors"))
        target = trial.models / trial.chance.choice(("checkpoints", file.folder)) / name
        if not os.path.lexists(target):
            target.parent.mkdir(exist_ok=True)
            trial.path(file).rename(target)


def folder_instead(trial: Trial, file: ModelFile) -> None:
    """Leave a folder under the name, with something in it."""
    if _bytes(trial, file) is not None:
        trial.path(file).unlink()
        trial.path(file).mkdir()
        (trial.path(file) / "notes.txt").write_bytes(f"unpacked here: {trial.chance.random()}".encode())


def link_instead(trial: Trial, file: ModelFile) -> None:
    """Leave a link under the name: to nowhere, to itself, to a file of the user's."""
    if _bytes(trial, file) is not None:
        trial.path(file).unlink()
        target = trial.chance.choice(("not plugged in", file.name, "models/big.safetensors", "house"))
        trial.path(file).symlink_to(target if target == file.name else trial.theirs.outside / target)


def link_to_the_same(trial: Trial, file: ModelFile) -> None:
    """Move the file to the user's other folder and leave a link to it."""
    data = _bytes(trial, file)
    if data is not None and bytes(data) == file.data:
        target = trial.theirs.outside / "models" / file.name
        target.write_bytes(data)
        trial.path(file).unlink()
        trial.path(file).symlink_to(target)
        trial.theirs.seal_outside()


def second_name(trial: Trial, file: ModelFile) -> None:
    """Give the file another name, which is the user's own, and damage both."""
    data = _bytes(trial, file)
    other = trial.models / "checkpoints" / f"my-own-{trial.chance.getrandbits(32):08x}.bin"
    if data:
        other.parent.mkdir(exist_ok=True)
        data[trial.chance.randrange(len(data))] ^= 1
        trial.path(file).write_bytes(data)
        os.link(trial.path(file), other)
        trial.theirs.stays(other)


def touch(trial: Trial, file: ModelFile) -> None:
    """Change the time stamps, as an unpacked backup does: to a day earlier, so that a second time changes them too."""
    if _bytes(trial, file) is not None:
        earlier_ns = trial.path(file).stat().st_mtime_ns - 86_400 * 10**9
        os.utime(trial.path(file), ns=(earlier_ns, earlier_ns))


def folder_link(trial: Trial, file: ModelFile) -> None:
    """Let the folder of the file be a link to the user's other drive."""
    folder, drive = trial.path(file).parent, trial.theirs.outside / "drive"
    if folder.name == "loras" or folder.is_symlink() or drive.exists():
        return
    moved = folder.with_name(f"{folder.name} before")
    folder.rename(moved)
    drive.mkdir()
    (drive / "theirs.bin").write_bytes(b"on another drive")
    folder.symlink_to(drive)
    trial.theirs.seal_outside()
    hidden = trial.theirs.suspend(folder)

    def undo() -> None:
        folder.unlink()
        moved.rename(folder)
        trial.theirs.resume(hidden)

    trial.obstacles.append(undo)


# --- names that we use -------------------------------------------------------------------------------


def foreign_names(trial: Trial, file: ModelFile) -> None:
    """Leave files of the user's under names that a download, a repair or a wrong file gets."""
    ending = trial.chance.choice((".part", ".bad", ".patch.part", ".part.jsonl", ".patch.part.jsonl", ".tmp"))
    path = trial.path(file).with_name(file.name + ending)
    if not os.path.lexists(path):
        data = f"of the user's: {trial.chance.random()}\n".encode() * trial.chance.choice((1, 5000))
        path.write_bytes(data)
        trial.theirs.keep(path, data)


def linked_names(trial: Trial, file: ModelFile) -> None:
    """Leave a link to a file of the user's under a name that we write to."""
    ending = trial.chance.choice((".part", ".part.jsonl", ".patch.part", ".patch.part.jsonl", ".bad"))
    path = trial.path(file).with_name(file.name + ending)
    if not os.path.lexists(path):
        path.symlink_to(trial.theirs.outside / trial.chance.choice(("house/.bash_profile", "models/big.safetensors")))
        trial.theirs.may_go(path)


def lying_part(trial: Trial, file: ModelFile) -> None:
    """Leave a part of ours whose log says what is not so."""
    path, chance = trial.path(file), trial.chance
    kind = chance.choice(("download", "patch"))
    name = f"{file.name}.part" if kind == "download" else f"{file.name}.patch.part"
    part, log = path.with_name(name), path.with_name(f"{name}.jsonl")
    if os.path.lexists(part) or os.path.lexists(log):
        return
    size = len(file.data)
    part.write_bytes(chance.choice((bytes(size), chance.randbytes(size), file.data, file.data[: size // 2], b"")))
    head: dict[str, Any] = {"version": 1, "size": size, "sha256": file.sha256, "block_size": BLOCK}
    head |= {"kind": "patch"} if kind == "patch" else {}
    head |= chance.choice(({}, {}, {}, {"size": 2**62}, {"sha256": "0" * 64}, {"taken_over": chance.randrange(size)}))
    lines: list[object] = [head]
    for block in range(-(-size // BLOCK)):
        lines.append(
            {"block": block, "sha256": f"{chance.getrandbits(256):064x}", "slot": chance.choice((block, 0, 7))}
        )
    lines.append(
        chance.choice(({"block": 2**70, "sha256": "f" * 64, "slot": 0}, {"aside": "../../outside", "inode": 1}, 7))
    )
    trial.theirs.may_go(part)
    trial.theirs.may_go(log)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


# --- records -----------------------------------------------------------------------------------------

JUNK: tuple[object, ...] = (None, [], {}, -1, 2**70, 1.5, "", "\0", "../../outside/house/photo.jpg", True, "x" * 5000)


def no_receipt(trial: Trial, file: ModelFile) -> None:  # noqa: ARG001 - as every damage
    """Lose the receipt."""
    _write_record(trial, "receipt.json", None)


def broken_receipt(trial: Trial, file: ModelFile) -> None:  # noqa: ARG001 - as every damage
    """Leave a receipt that nobody can read."""
    whole = _record(trial, "receipt.json")
    texts = (
        "",
        "[]",
        "null",
        "{",
        "\ufeff{}",
        "[" * 9999,
        '{"schema_version": 1, "files": []}',
        whole[: len(whole) // 2],
    )
    _write_record(trial, "receipt.json", trial.chance.choice(texts))


def lying_receipt(trial: Trial, file: ModelFile) -> None:
    """Let the receipt say something else: junk in a random place, or the files of one name under another."""
    try:
        document = json.loads(_record(trial, "receipt.json"))
        entries = document["files"]
        names = [each for each in sorted(entries) if isinstance(entries[each], dict)]
    except (ValueError, KeyError, TypeError, RecursionError):  # the last: of a receipt that was broken before
        return
    if not names:
        return
    chance = trial.chance
    name, other = chance.choice(names), chance.choice(names)
    lie = chance.randrange(6)
    if lie == 0:
        entries[name], entries[other] = entries[other], entries[name]
    elif lie == 1:
        entries[chance.choice(("../../outside/house/photo.jpg", "loras/mine.safetensors", "/etc/passwd"))] = entries[
            name
        ]
    elif lie == 2:
        path = trial.path(file)
        if path.is_file():
            status = path.stat()
            stamp = {"mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns, "inode": status.st_ino}
            entries[f"{file.folder}/{file.name}"] = {
                **entries[name],
                **stamp,
                "size": status.st_size,
                "sha256": file.sha256,
            }
    elif lie == 3:
        entries[name][chance.choice(sorted(entries[name]) or ["size"])] = chance.choice(JUNK)
    elif lie == 4:
        document[chance.choice(("files", "placing"))] = chance.choice(JUNK)
    else:
        document["placing"] = {name: entries[other], "loras/mine.safetensors": entries[name]}
    _write_record(trial, "receipt.json", json.dumps(document))


def newer_receipt(trial: Trial, file: ModelFile) -> None:  # noqa: ARG001 - as every damage
    """Leave the receipt of a later release: it is not replaced, and the user moves it away."""
    text = '{"schema_version": 99, "files": {"later": "than us"}}'
    _write_record(trial, "receipt.json", text)
    trial.obstacles.append(lambda: _expect_and_remove(trial.state / "receipt.json", text))


def lying_records(trial: Trial, file: ModelFile) -> None:
    """Leave other records with junk in them."""
    name = trial.chance.choice(("lock.json", "comfyui.json", "proven.json", "aside/20250101T000000Z/why.jsonl"))
    line = json.dumps(
        {
            "was": trial.chance.choice(
                ("../../outside/house/photo.jpg", f"{file.folder}/{file.name}", "", "/etc/passwd")
            ),
            "is": trial.chance.choice(("../../../../outside/house/photo.jpg", "x", "", str(trial.theirs.outside))),
            "why": trial.chance.choice(JUNK),
            "pid": trial.chance.choice(JUNK),
            "host": trial.chance.choice(JUNK),
        }
    )
    _write_record(trial, name, line + "\n")
    trial.theirs.may_lie(trial.state / name)


def linked_records(trial: Trial, file: ModelFile) -> None:  # noqa: ARG001 - as every damage
    """Leave a link, or a folder, where a record of ours is written."""
    name = trial.chance.choice(("receipt.json", "lock", "lock.json", "aside"))
    path = trial.state / name
    if path.is_symlink() or (path.is_dir() and not path.is_symlink()):
        return
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if trial.chance.random() < 0.7:
        path.symlink_to(trial.theirs.outside / trial.chance.choice(("house", "models/receipt.json", "not there")))
        trial.obstacles.append(lambda: path.unlink() if path.is_symlink() else None)
    elif name != "aside":
        path.mkdir()
        trial.obstacles.append(lambda: path.rmdir() if path.is_dir() else None)
    trial.theirs.may_lie(path)


def _record(trial: Trial, name: str) -> str:
    try:
        return (trial.state / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _write_record(trial: Trial, name: str, text: str | None) -> None:
    path = trial.state / name
    if path.is_symlink() or path.is_dir() or any(each.is_symlink() for each in path.parents):
        return
    if text is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _expect_and_remove(path: Path, text: str) -> None:
    if path.is_file() and not path.is_symlink() and '"schema_version": 99' in path.read_text(encoding="utf-8"):
        if path.read_text(encoding="utf-8") != text:
            raise BrokenPromiseError("the receipt of a later release was changed")
        path.unlink()


def stray_state(trial: Trial, file: ModelFile) -> None:  # noqa: ARG001 - as every damage
    """Leave a folder of records where none is ours: in another models folder."""
    folder = trial.models / "checkpoints" / STATE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "receipt.json").write_text('{"schema_version": 1, "files": {"../../x": {}}}', encoding="utf-8")


BYTES: tuple[Damage, ...] = tuple(
    _in_place(change, change.__name__.strip("_")) for change in (_flip, _zero, _cut, _extend, _shuffle, _replace)
)
NAMES: tuple[Damage, ...] = (
    delete,
    swap,
    move,
    folder_instead,
    link_instead,
    link_to_the_same,
    second_name,
    touch,
    foreign_names,
    linked_names,
    lying_part,
)
RECORDS: tuple[Damage, ...] = (
    no_receipt,
    broken_receipt,
    lying_receipt,
    lying_receipt,
    newer_receipt,
    lying_records,
    linked_records,
    folder_link,
    stray_state,
)
KINDS = (BYTES, BYTES, NAMES, RECORDS)
LINKS: tuple[Damage, ...] = (link_instead, link_to_the_same, linked_names, linked_records, folder_link)
"""Need a link, which Windows lets few users make."""
