"""Disks that are full at a random byte, or refuse a random call."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from scripts.torturing.damages import damage
from scripts.torturing.kills import MOST_CHANGES, finish
from scripts.torturing.trial import BrokenPromiseError, Trial

REFUSALS = ("ENOSPC", "EIO", "EACCES", "EROFS", "EDQUOT", "EMFILE", "EBUSY")


def disks(trial: Trial) -> None:
    """Install and repair on a disk that is full somewhere on the way, or refuses something, until it does not."""
    with small_disk(trial) as is_small:
        for command in ("install", "repair"):
            for _ in range(4):
                if is_small and trial.chance.random() < 0.5:
                    on_a_full_disk(trial, command)
                else:
                    on_a_refusing_disk(trial, command)
                trial.happened()
            trial.age_leftovers()
            trial.succeed(command)
            trial.look_at_success()
            damage(trial, trial.chance.randint(1, 2), is_kind=True)
        trial.age_leftovers()
        trial.succeed("repair")
        finish(trial)
        if trial.chance.random() < 0.5:
            leave(trial)


def on_a_full_disk(trial: Trial, *command: str) -> None:
    """Fill the disk but for a random number of bytes."""
    filler = trial.tree / "somebody else's.bin"
    room = trial.chance.choice((0, 4096, trial.chance.randrange(900_000)))
    with filler.open("wb") as stream:
        stream.write(bytes(max(1, shutil.disk_usage(trial.tree).free - room)))
    trial.history.append(f"{room:,} bytes are free")
    ended = trial.run(*command)
    filler.unlink()
    if ended.status not in {0, 4}:
        raise BrokenPromiseError(f"a full disk ends so: {ended}")
    if ended.status == 0:
        trial.look_at_success(ended)


def on_a_refusing_disk(trial: Trial, *command: str) -> None:
    """Let the system refuse the N-th change, or all from then on."""
    stays = trial.chance.random() < 0.4
    trip = {"at": trial.chance.randint(1, MOST_CHANGES), "does": trial.chance.choice(REFUSALS), "stays": stays}
    trial.may_leave, trial.settled = True, False  # where nothing can be removed, nothing is, until the next success
    ended = trial.run(*command, trip=trip)
    if ended.status not in {0, 4}:
        raise BrokenPromiseError(f"a disk that refuses ends so: {ended}")


def leave(trial: Trial) -> None:
    """Uninstall while the disk refuses something."""
    trial.may_be_absent = True
    on_a_refusing_disk(trial, "uninstall", "--yes")
    trial.happened()
    trial.succeed("uninstall", "--yes")


@contextlib.contextmanager
def small_disk(trial: Trial) -> Iterator[bool]:
    """Make the tree a file system of its own, in memory, where that may be done; yield whether it was."""
    if sys.platform != "linux" or os.geteuid() != 0:
        yield False
        return
    before = trial.tree.with_name("before")
    trial.tree.rename(before)
    trial.tree.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(trial.tree)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        trial.tree.rmdir()
        before.rename(trial.tree)
        yield False
        return
    try:
        subprocess.run(["cp", "-a", f"{before}/.", str(trial.tree)], check=True)
        yield True
    finally:
        subprocess.run(["umount", "-l", str(trial.tree)], check=True)
        with contextlib.suppress(OSError):
            Path(trial.tree).rmdir()
