"""Faults of the network, two and three at a time, in random places of a download."""

from __future__ import annotations

import random

from provisioner.rehearsal.faults import (
    CutAfter,
    Drip,
    Endless,
    ExpireSignatures,
    Fault,
    HtmlPage,
    IgnoreRange,
    LoginRedirect,
    OmitHeader,
    OtherContent,
    Place,
    RedirectElsewhere,
    ResetAfter,
    ShortLength,
    Stall,
    Status,
    WrongBytes,
    WrongLinkedEtag,
    WrongLinkedSize,
    WrongTotal,
)
from scripts.torturing.damages import damage
from scripts.torturing.kills import finish
from scripts.torturing.trial import BrokenPromiseError, Trial

STALL_TIMEOUT_S = "0.4"
PLACES: tuple[Place, ...] = ("content", "content", "content", "content", "head", "hub", "api")


def faults(trial: Trial) -> None:
    """Install through faults, then repair through faults, and each once more without."""
    trial.may_have_bad = True
    for command in ("install", "repair"):
        for _ in range(3):
            count = trial.chance.randint(2, 3)
            for _ in range(count):
                cause(trial)
            trial.hub.rate_bytes_s_per_connection = trial.chance.choice((None, None, 2_000_000))
            ended = trial.run(
                command,
                "--stall-timeout",
                STALL_TIMEOUT_S,
                "--connections",
                str(trial.chance.choice((1, 2, 8))),
            )
            trial.happened(count)
            trial.hub.clear_faults()
            if ended.status == 0:
                trial.look_at_success(ended)
                damage(trial, is_kind=True)
                command = "repair"
            elif ended.status not in {5, 6, 7}:
                raise BrokenPromiseError(f"a fault of the network ends so: {ended}")
        trial.hub.rate_bytes_s_per_connection = None
        trial.succeed("repair")
        trial.look_at_success()
        damage(trial, is_kind=True)
    trial.succeed("repair")
    finish(trial)


def cause(trial: Trial) -> None:
    """Let one thing go wrong somewhere."""
    chance = trial.chance
    fault = some_fault(trial, chance)
    place = chance.choice(PLACES)
    times = chance.choice((1, 1, 2, 5, None))
    name = chance.choice((None, None, *(each.name for each in trial.files)))
    trial.history.append(f"fault: {str(fault)[:80]} on {place}, {times} times, {name or 'any file'}")
    trial.hub.fault(fault, on=place, times=times, filename=name, skip=chance.choice((0, 0, 1, 2, 5)))


def some_fault(trial: Trial, chance: random.Random) -> Fault:
    """Return one of the faults, with numbers of its own."""
    at = chance.choice((0, 1, chance.random(), chance.randrange(100_000)))
    status = chance.choice((400, 401, 403, 404, 408, 410, 416, 425, 429, 500, 502, 503, 504, 522))
    file = chance.choice(trial.files)
    made: tuple[Fault, ...] = (
        CutAfter(at),
        ResetAfter(at),
        Stall(after=at, seconds=chance.choice((0.05, 0.2, 3.0))),
        Drip(bytes_each=chance.choice((1, 100)), every_s=0.05, after=at),
        WrongBytes(),
        WrongBytes(positions=(chance.randrange(len(file.data)),)),
        ShortLength(missing=chance.choice((1, 5000, 10**9))),
        Endless(limit=2_000_000),
        Status(status),
        Status(status, (("Retry-After", chance.choice(("0", "x", "99999", "-1"))),)),
        Status(206, (), b"no such range"),
        IgnoreRange(),
        OtherContent(etag="f" * 64, replacement=chance.choice((b"", b"other", bytes(len(file.data))))),
        WrongLinkedSize(chance.choice((0, 1, len(file.data) + 1, 2**62))),
        WrongLinkedEtag(),
        OmitHeader(chance.choice(("ETag", "Content-Range", "Content-Length", "X-Linked-Size", "Location"))),
        WrongTotal(chance.choice((0, 1, len(file.data) - 1, 2**62))),
        HtmlPage(),
        ExpireSignatures(after_requests=chance.choice((0, 1, 2))),
        RedirectElsewhere("http://127.0.0.1:9/nowhere"),
        LoginRedirect(),
    )
    return chance.choice(made)
