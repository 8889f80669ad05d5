"""Up to eight runs at once on one tree, some of them killed."""

from __future__ import annotations

import time

from scripts.torturing.damages import damage
from scripts.torturing.kills import finish
from scripts.torturing.trial import BrokenPromiseError, Trial

COMMANDS = (
    ("install",),
    ("install",),
    ("repair",),
    ("repair",),
    ("install", "--no-wait"),
    ("verify", "--no-smoke"),
    ("backups", "list"),
    ("uninstall", "--dry-run"),
)
REMOVING = ("uninstall", "--yes")


def crowds(trial: Trial) -> None:
    """Start many at once, thrice."""
    for number in range(3):
        removes = trial.chance.random() < 0.2
        trial.may_be_absent |= removes
        commands = [*(trial.chance.choice(COMMANDS) for _ in range(trial.chance.randint(2, 8)))]
        commands += [REMOVING] if removes else []
        trial.hub.rate_bytes_s_per_connection = trial.chance.choice((None, 1_000_000))
        running = []
        for command in commands:
            running.append(trial.start(*command))
            time.sleep(trial.chance.choice((0.0, 0.01, 0.05)))
        for run in running:
            if trial.chance.random() < 0.2:
                run.kill()
        ended = [run.wait() for run in running]
        for each in ended:  # only now: while one works, its own files are no leftovers
            trial.look_at(each)
            # 4: a file changed while it was read, or after the plan was shown; the error says so.
            if not each.is_killed and each.status not in {0, 1, 4, 10}:
                raise BrokenPromiseError(f"among {len(ended)} at once: {each}")
        trial.happened(len(ended))
        trial.hub.rate_bytes_s_per_connection = None
        trial.age_leftovers()
        trial.succeed("install")
        trial.succeed("repair")
        trial.look_at_success()
        if number < 2:
            damage(trial, trial.chance.randint(1, 2), is_kind=True)
    trial.age_leftovers()
    trial.succeed("repair")
    finish(trial)
