"""SIGKILL at random moments of every command that changes something."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from provisioner.core.models import STATE_FOLDER
from scripts.torturing.belongings import walk
from scripts.torturing.damages import damage, repair, touch
from scripts.torturing.trial import BLOCK, BrokenPromiseError, Ended, Trial

MOST_CHANGES = 90
"""About as many calls as an installation of four files changes the disk with."""

MOST_KILLS = 5


def kill_often(trial: Trial, *command: str, most: int = MOST_KILLS) -> Ended:
    """Run a command again and again, killed each time at another moment, and then to its end; return the last run."""
    for _ in range(most):
        if trial.chance.random() < 0.7:  # before a change of the disk, whichever it is
            at = trial.chance.randint(1, trial.chance.choice((4, 12, 40, MOST_CHANGES)))
            ended = trial.run(*command, trip={"at": at, "does": "kill"})
        else:  # in the middle of one, or of the network
            trial.hub.rate_bytes_s_per_connection = trial.chance.choice((None, 500_000, 3_000_000))
            running = trial.start(*command)
            time.sleep(trial.chance.uniform(0.0, 0.25))
            running.kill()
            ended = running.wait()
            trial.look_at(ended)
        if not ended.is_killed:
            return ended
        trial.happened()
        trial.age_leftovers()
    trial.hub.rate_bytes_s_per_connection = None
    return trial.run(*command)


def install(trial: Trial) -> None:
    """Kill installations into a new tree, then repairs of it, until both are done."""
    need_success(kill_often(trial, "install", "--connections", "1"))
    trial.look_at_success()
    check_served(trial)
    for _ in range(2):
        damage(trial, trial.chance.randint(1, 3), is_kind=True)
        need_success(kill_often(trial, "repair", most=3))
        finish(trial)


def check_served(trial: Trial) -> None:
    """Raise BrokenPromiseError where kills cost more than the block that was on its way at each of them."""
    trial.hub.wait_until_idle()
    twice = trial.hub.bytes_served - sum(len(each.data) for each in trial.files)
    if twice > (trial.events + 1) * BLOCK:
        raise BrokenPromiseError(f"{trial.events} kills let {twice:,} bytes be fetched twice")


def verify(trial: Trial) -> None:
    """Kill a look at a damaged tree: nothing changes."""
    trial.succeed("install")
    trial.look_at_success()
    damage(trial, is_kind=True)
    ended = kill_often(trial, "verify", "--no-smoke", most=2)
    if ended.status not in {0, 1}:
        raise BrokenPromiseError(f"verify could not look: {ended}")
    trial.succeed("repair")
    finish(trial)


def backups(trial: Trial) -> None:
    """Kill restoring and clearing of what a repair replaced."""
    trial.succeed("install")
    trial.look_at_success()
    damage(trial, 3, is_kind=True)
    repair(trial)
    trial.look_at_success()
    names = sorted(path.relative_to(trial.state / "aside").as_posix() for path in kept(trial))
    trial.may_be_absent = True
    for name in names[:2]:
        what_returns(trial)
        kill_often(trial, "backups", "restore", name, most=2)  # done already where the kill came late: exit 2
    trial.succeed("repair")
    finish(trial)
    trial.theirs.let_go()
    need_success(kill_often(trial, "backups", "clear", "--yes", most=3))
    trial.look_at_success()


def kept(trial: Trial) -> list[Path]:
    """Return what lies in the backups: files, and folders of pieces."""
    aside = trial.state / "aside"
    found = [path for path in aside.rglob("*") if path.name != "why.jsonl"]
    pieces = [path for path in found if path.is_dir() and ".blocks" in path.name]
    return pieces + [path for path in found if path.is_file() and not set(pieces) & set(path.parents)]


def what_returns(trial: Trial) -> None:
    """Any of the user's bytes may lie under its old name from now on."""
    for path, data in trial.theirs.kept():
        trial.damaged.setdefault(path, []).append(data)


def uninstall(trial: Trial) -> None:
    """Kill removing, with a file in between that became the user's own."""
    trial.succeed("install")
    trial.look_at_success()
    trial.may_be_absent = True
    ours = {path: _stamp(path) for path in map(trial.path, trial.files)}
    if trial.chance.random() < 0.5:
        damage(trial, is_kind=True)
    changed = {path for path, stamp in ours.items() if os.path.lexists(path) and _stamp(path) != stamp}
    need_success(kill_often(trial, "uninstall", "--yes", most=4))
    for path in ours:
        if path.exists() and path not in changed:  # what somebody touched is theirs, whatever its bytes
            raise BrokenPromiseError(f"{path.name} is still there after uninstall")
    trial.succeed("install")
    trial.succeed("repair")
    finish(trial)


def hub_cache(trial: Trial) -> None:
    """Kill installation, repair and removal in a cache of the Hub's client."""
    trial.use_hub_cache()
    trial.theirs.stay(trial.home / "hf" / "hub" / "models--somebody--else" / "blobs" / ("a" * 64), b"somebody else's")
    need_success(kill_often(trial, "install", most=4))
    trial.look_at_success()
    file = trial.chance.choice(trial.files)
    blob, data = trial.path(file).resolve(), bytearray(file.data)
    data[trial.chance.randrange(len(data))] ^= 1
    blob.write_bytes(data)
    trial.damaged[trial.path(file)] = [bytes(data)]
    trial.theirs.keep(blob, bytes(data), file.data)
    need_success(kill_often(trial, "repair", most=3))
    trial.look_at_success()
    trial.may_be_absent = True
    need_success(kill_often(trial, "uninstall", "--yes", most=3))
    left = [path for path in walk(trial.models) if not path.is_dir() and STATE_FOLDER not in path.parts]
    if left and trial.models.exists():
        raise BrokenPromiseError(f"left in the cache after uninstall: {', '.join(map(str, left))}")
    need_success(kill_often(trial, "install", most=0))
    trial.look_at_success()


def _stamp(path: Path) -> tuple[int, int, bytes]:
    """Return what changes with a file; Windows has no time of the change."""
    facts = os.lstat(path)
    return facts.st_mtime_ns, facts.st_ctime_ns, path.read_bytes() if path.is_file() else b""


def lock(trial: Trial) -> None:
    """Kill the writing of a locked manifest: there is none, the one before, or a whole one."""
    trial.succeed("install")
    trial.look_at_success()
    output = trial.folder / "locked.yaml"
    command = ("manifest", "lock", "--output", str(output))
    if trial.chance.random() < 0.5:
        trial.succeed(*command)
    before = output.read_bytes() if output.exists() else None
    ended = kill_often(trial, *command, most=1)
    for _ in range(3):
        ended = kill_often(trial, *command, most=1)
        text = output.read_bytes() if output.exists() else None
        if text != before and trial.run("manifest", "check", str(output)).status != 0:
            raise BrokenPromiseError(f"{output.name} is half a manifest after {ended}")
    need_success(ended)


def need_success(ended: Ended) -> None:
    """Raise BrokenPromiseError unless a run ended well."""
    if ended.status != 0:
        raise BrokenPromiseError(f"the next run does not succeed: {ended}")


def finish(trial: Trial) -> None:
    """Look at a tree that was repaired, as the program and as we see it, after a run that had something to do."""
    touch(trial, trial.files[0])
    trial.succeed("repair")
    trial.settled = True
    trial.look_at_success()
    ended = trial.run("verify", "--no-smoke")
    need_success(ended)


COMMANDS: tuple[Callable[[Trial], None], ...] = (install, install, verify, backups, uninstall, hub_cache, lock)


def kills(trial: Trial) -> None:
    """Play one of them."""
    trial.chance.choice(COMMANDS if os.name != "nt" else [each for each in COMMANDS if each is not hub_cache])(trial)
