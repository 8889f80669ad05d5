"""``klein-setup seed``: verifies the files of a set and sends them to other hosts that ask; and how those take them."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.run import Run
from provisioner.commands.session import peers_folder
from provisioner.commands.verify_files import run_verify
from provisioner.core.errors import KleinError
from provisioner.core.events import Notice
from provisioner.core.models import FetchFile, FilesPlan
from provisioner.core.units import count, human_bytes
from provisioner.disk.locations import file_system_of
from provisioner.disk.locks import hold_place
from provisioner.disk.root import write_output
from provisioner.files import peers as swarm
from provisioner.report.outcome import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from provisioner.commands.session import Session

_TELL_EACH_S = 10.0


def run_seed(
    run: Run, listen: str, torrent: Path | None, say: Callable[[str], None], *, seconds: int | None = None
) -> Report:
    """Read every byte of the set; where all is right, write the torrent and seed, so many seconds or until Ctrl-C.

    Raises
    ------
    UsageError
        libtorrent is missing, or nobody could connect to the address.
    StorageError
        The torrent cannot be written.
    """
    swarm.load_libtorrent()
    session = run.session
    verified = run_verify(run, is_quick=False)
    checks = verified.plan.checks if verified.plan is not None else ()
    report = replace(verified, command="seed")
    if any(check.status != "ok" for check in checks):
        say("Nothing is seeded: only a set whose every file is right is. `klein-setup repair` puts it right.")
        return report
    exact = [each for each in checks if each.observed_sha256 in {None, each.artifact.sha256}]
    paths = {each.artifact.sha256: each.destination.path for each in exact}
    sizes = {each.artifact.sha256: each.artifact.size for each in exact}
    total = human_bytes(sum(sizes.values()))
    last_s, sent = time.monotonic(), 0

    def tell(now: swarm.Swarm) -> None:
        nonlocal last_s, sent
        sent = now.sent
        if time.monotonic() - last_s > _TELL_EACH_S:
            last_s = time.monotonic()
            line = f"{human_bytes(now.sent)} sent, {count(now.peers, 'peer')}"
            session.events(Notice(message=line, severity="progress"))

    with swarm.linked_by_digest(paths) as folder:
        data = _torrent_of(session, folder, sizes)
        if torrent is not None:
            write_output(torrent, data)
            say(f"{torrent} is the torrent; give it to the other hosts with --torrent.")
        until_s = None if seconds is None else time.monotonic() + seconds
        with contextlib.suppress(KeyboardInterrupt):  # how it is meant to be ended
            swarm.seed(
                data,
                folder,
                listen,
                up_bytes_s=session.settings.limit_bytes_s,
                is_over=lambda: session.cancelled.is_set() or (until_s is not None and time.monotonic() > until_s),
                ready=lambda: say(f"Seeding {total} on {listen}; infohash {swarm.infohash(data)}. Ctrl-C ends it."),
                tell=tell,
            )
    say(f"Seeding has ended: {human_bytes(sent)} sent.")
    return report


def _torrent_of(session: Session, folder: Path, sizes: Mapping[str, int]) -> bytes:
    with session.stages.stage("hashing", "the torrent", "made") as came_of_it:
        data = swarm.make_torrent(folder, sizes, lambda done, of: session.stages.say(f"piece {done:,} of {of:,}"))
        came_of_it(f"a torrent of {count(len(sizes), 'file')}")
    return data


# --- the other hosts -----------------------------------------------------------------------------------


def check_peers(peers: swarm.Peers) -> None:
    """Raise UsageError where libtorrent is missing, or the torrent is none that could be used."""
    swarm.read_torrent(peers.torrent)


def take_from_peers(run: Run, plan: FilesPlan) -> bool:
    """Bring what a plan would fetch from peers into the staging folder; return whether there is anything to look at.

    What does not come is no error: the plan's own sources have it.
    """
    session, peers = run.session, run.session.settings.peers
    if peers is None:
        return False
    data = swarm.read_torrent(peers.torrent)
    sizes = swarm.sizes_in(data)
    steps = [each for each in plan.steps if isinstance(each, FetchFile)]
    artifacts = [each.artifact for each in steps if sizes.get(each.artifact.sha256) == each.artifact.size]
    if not any(sizes.get(each.sha256) == each.size for each in run.wanted.artifacts):
        _warn(run, f"{peers.torrent} has no file of the set {run.wanted.id}: seed the same set of the same manifest.")
    if not artifacts:
        return False
    wanted, folder = sum(each.size for each in artifacts), peers_folder() / swarm.infohash(data)
    free = file_system_of(folder).free_bytes
    if free < wanted:
        _warn(run, f"{folder} has no room for {human_bytes(wanted)} from peers; fetching from the usual sources.")
        return False
    try:
        with (
            hold_place(
                "peers-",
                folder,
                guards=folder,
                wait=session.settings.wait_for_lock,
                notice=session.notice,
                cancelled=session.cancelled.is_set,
            ),
            session.stages.stage("fetching", "model files from peers", "fetched") as came_of_it,
        ):
            ended = swarm.fetch(
                data,
                artifacts,
                folder,
                peers,
                down_bytes_s=session.settings.limit_bytes_s,
                stall_timeout_s=session.settings.stall_timeout_s,
                cancelled=session.cancelled.is_set,
                tell=lambda now: session.stages.say(
                    f"{human_bytes(now.received)} of {human_bytes(wanted)} from {count(now.peers, 'peer')}"
                ),
            )
            came_of_it(f"{human_bytes(ended.received)} of {human_bytes(wanted)} from peers")
    except KleinError as error:
        _warn(run, f"Peers are of no use: {error} Fetching from the usual sources.")
        return False
    if ended.received < wanted:
        names = ", ".join(f"{host}:{port}" for host, port in peers.hosts)
        _warn(
            run,
            f"{human_bytes(wanted - ended.received)} did not come from the peers ({names}) before the stall timeout; "
            "fetching what is not whole from the usual sources.",
        )
    return True


def remove_staging(run: Run) -> None:
    """Remove what came from peers, where every file has its name."""
    if run.session.settings.peers is not None:
        swarm.remove_staging(peers_folder() / swarm.infohash(swarm.read_torrent(run.session.settings.peers.torrent)))


def _warn(run: Run, message: str) -> None:
    run.session.events(Notice(message=message, severity="warning"))
