"""Walks a plan through the ports, says what happens, returns what came of it.  It decides nothing the plan has not.

Steps that do not depend on each other run at once, each in a thread of its own; what begins when is decided by
`next_step`.  The thread that applies the plan starts them, waits for them, and does nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from provisioner.core.errors import (
    AccessError,
    HashMismatchError,
    IntegrityError,
    KleinError,
    NetworkError,
    NotTheFileError,
    UnreadableError,
)
from provisioner.core.events import Events, FileProgress, Notice, Phase, PlanMade, StepFinished, StepStarted
from provisioner.core.exhaustive import assert_never
from provisioner.core.models import (
    Artifact,
    Destination,
    FetchFile,
    FilesPlan,
    FileStep,
    HubBlob,
    HubFile,
    MoveFile,
    OciFile,
    Outcome,
    PatchFile,
    PlaceFile,
    RecordReceipt,
    Registry,
    Source,
    UrlFile,
)
from provisioner.core.ports import (
    FOUND_IN_PLACE,
    Fetcher,
    FileDigest,
    GrowingFile,
    Store,
    TransferProgress,
    source_of_copy,
)
from provisioner.core.units import count
from provisioner.files.offers import offers_of
from provisioner.files.step_order import next_step, uses_network

_MAX_ROUNDS = 4
_POLL_S = 0.5  # with a time limit a signal is noticed on Windows too
_STOP_S = 5.0
"""Seconds that a step which only waits for the network has to notice an interruption."""


@dataclass
class Engine:
    """Applies plans.

    Parameters
    ----------
    store : Store
        The files.
    fetcher : Fetcher
        The network.
    events : callable
        Told everything that happens.
    hash_again : callable
        The proof of a file that was read a moment ago: path and label in, proof out.
    at_once : int
        Most steps at a time.
    registry : Registry, optional
        Where every file is asked for first.
    """

    store: Store
    fetcher: Fetcher
    events: Events
    hash_again: Callable[[Destination, str], FileDigest]
    at_once: int = 1
    registry: Registry | None = None
    rejected: set[tuple[str, Path]] = field(default_factory=set)

    def provide(self, look: Callable[[frozenset[tuple[str, Path]]], FilesPlan]) -> tuple[FilesPlan, list[Outcome]]:
        """Apply plans until one is empty or a step fails for good; return the last plan and every outcome.

        Parameters
        ----------
        look : callable
            Looks at the target anew and plans; given the copies that turned out to be something else.
        """
        outcomes: list[Outcome] = []
        plan = look(frozenset(self.rejected))
        rounds = 0
        while plan.steps and rounds < _MAX_ROUNDS:
            known = len(self.rejected)
            self.events(PlanMade(plan=plan))
            came = self.apply(plan)
            outcomes += came
            failed = [outcome for outcome in came if outcome.status == "failed"]
            retriable = [outcome for outcome in failed if is_retriable(outcome)]
            plan = look(frozenset(self.rejected))
            rounds += len(self.rejected) == known  # a copy that was ruled out is progress; there are not many
            if len(failed) > len(retriable):
                break
        return plan, outcomes

    def apply(self, plan: FilesPlan) -> list[Outcome]:
        """Apply every step and return what came of each, in the plan's order.

        A step begins when those before it that it depends on are over, and when those that run leave it room.  After a
        failure of the disk or the network nothing begins any more, and what is being fetched is paused.
        """
        return _Walk(self, plan.steps).run()


class _Paused(Exception):
    """A step ends before its time, because another one failed or the run was interrupted; what has arrived is kept."""


_AN_EARLIER_ONE_FAILED = "an earlier step failed"


class _Walk:
    """One plan on its way."""

    def __init__(self, engine: Engine, steps: Sequence[FileStep]) -> None:
        self.engine = engine
        self.steps = steps
        self.outcomes: dict[int, Outcome] = {}
        self.running: dict[int, _Work] = {}
        # In C, and not a condition: a signal inside a condition's Python code could leave its lock taken for ever.
        self.heard: SimpleQueue[tuple[int, Outcome | BaseException] | None] = SimpleQueue()
        self.pause = threading.Event()
        self.halt = threading.Event()
        self.is_stopped = False
        self.blocked: set[str] = set()
        self.gone: set[Path] = set()  # what was there was moved to the backups by an earlier step

    def run(self) -> list[Outcome]:
        """Apply every step; raises what a step raised that is no error of ours, an interruption too."""
        try:
            while len(self.outcomes) < len(self.steps):
                self._begin_what_can()
                self._take_one()
        except BaseException:
            self._leave()
            raise
        return [self.outcomes[number] for number in range(len(self.steps))]

    def _begin_what_can(self) -> None:
        while True:
            room = {number: work.leaves_room for number, work in self.running.items()}
            number = next_step(self.steps, self.outcomes, room, at_once=self.engine.at_once)
            if number is None:
                return
            step = self.steps[number]
            self.engine.events(StepStarted(step=step, number=number + 1, total=len(self.steps)))
            reason = self._why_skipped(step)
            if reason is not None:
                self._end(number, Outcome(step=step, status="skipped", detail=reason))
                continue
            self.running[number] = work = _Work(self, number, step)
            work.thread.start()

    def _why_skipped(self, step: FileStep) -> str | None:
        if self.is_stopped or step.artifact.id in self.blocked:
            return _AN_EARLIER_ONE_FAILED
        if isinstance(step, (PlaceFile, MoveFile)) and step.copy.path in self.gone:
            # Two files had each other's names: the next plan finds this one's bytes among the backups.
            return "its bytes are in the backups; they are used next"
        return None

    def _take_one(self) -> None:
        """Wait until a step is over or leaves room."""
        if not self.running:
            return
        try:
            heard = self.heard.get(timeout=_POLL_S)
        except Empty:
            return
        if heard is None:
            return
        number, came = heard
        self.running.pop(number).thread.join()
        if isinstance(came, BaseException):
            raise came
        self._end(number, came)

    def _end(self, number: int, outcome: Outcome) -> None:
        step = self.steps[number]
        if outcome.status == "done" and not isinstance(step, RecordReceipt) and step.replaces is not None:
            self.gone.add(step.destination.path)
        if outcome.status == "failed":
            self.blocked.add(step.artifact.id)
            if isinstance(outcome.error, KleinError) and not isinstance(outcome.error, (AccessError, IntegrityError)):
                if self.is_stopped:  # the disk or the network fails for all of them: it is said once
                    outcome = replace(outcome, status="skipped", detail=_AN_EARLIER_ONE_FAILED, error=None)
                self.is_stopped = True
                self.pause.set()
        self.outcomes[number] = outcome
        self.engine.events(StepFinished(step=step, outcome=outcome, number=number + 1, total=len(self.steps)))

    def _leave(self) -> None:
        """Stop the steps that run and wait for them; one that hangs in a request writes nothing any more."""
        self.halt.set()
        until = time.monotonic() + _STOP_S
        for work in self.running.values():
            while work.thread.is_alive() and (not work.is_on_network or time.monotonic() < until):
                work.thread.join(0.05)


class _Work:
    """One step on its way, in a thread of its own."""

    def __init__(self, walk: _Walk, number: int, step: FileStep) -> None:
        engine = walk.engine
        self.store, self.fetcher, self.events = engine.store, engine.fetcher, engine.events
        self.hash_again, self.rejected = engine.hash_again, engine.rejected
        self._registry = engine.registry
        self.leaves_room = not uses_network(step)
        self.is_on_network = False
        self._walk, self._number, self._step = walk, number, step
        self.thread = threading.Thread(target=self._run, name=f"step {step.destination.label}", daemon=True)

    def _run(self) -> None:
        """Do the step and tell its outcome, or what was raised that is no error of ours."""
        try:
            came: Outcome | BaseException = self._outcome(self._step, time.monotonic())
        except BaseException as error:  # it belongs to whoever waits, an interruption too
            came = error
        self._walk.heard.put((self._number, came))

    def _leave_room(self, leaves_room: bool) -> None:
        if leaves_room and not self.leaves_room:
            self.leaves_room = True
            self._walk.heard.put(None)
        self.leaves_room = leaves_room

    def _check_paused(self) -> None:
        if self._walk.pause.is_set() or self._walk.halt.is_set():
            raise _Paused

    @contextmanager
    def _on_network(self) -> Iterator[None]:
        self.is_on_network = True
        try:
            yield
        finally:
            self.is_on_network = False

    def _outcome(self, step: FileStep, began_s: float) -> Outcome:
        try:
            detail, fetched = self._do(step)
        except _Paused:
            return Outcome(step=step, status="skipped", detail=f"{_AN_EARLIER_ONE_FAILED}; what has arrived is kept")
        except KleinError as error:
            return Outcome(
                step=step,
                status="failed",
                detail=str(error),
                error=error,
                seconds=time.monotonic() - began_s,
                started_s=began_s,
            )
        return Outcome(
            step=step,
            status="done",
            detail=detail,
            bytes_fetched=fetched,
            seconds=time.monotonic() - began_s,
            started_s=began_s,
        )

    def _do(self, step: FileStep) -> tuple[str, int]:
        step = self._confirmed(step)
        match step:
            case RecordReceipt():
                file_digest = self.hash_again(step.destination, step.destination.label)
                source = self.store.source_of(step.destination, file_digest)
                self.store.record(step.destination, step.artifact, file_digest, source)
                return "receipt written", 0
            case PlaceFile() | MoveFile():
                return self._place(step), 0
            case FetchFile():
                return self._fetch(step, offers_of(step, self._registry))
            case PatchFile():
                return self._patch(step)
            case _:
                assert_never(step)

    def _confirmed(self, step: FileStep) -> FileStep:
        """Return the step with the Hub's id of the content, which a snapshot takes from nobody else.

        A manifest of somebody else's may name a genuine repository and commit, and bytes of its own.
        """
        destination = step.destination
        if isinstance(step, RecordReceipt) or not isinstance(destination, HubBlob) or destination.is_shipped:
            return step
        artifact = step.artifact
        source = next(each for each in artifact.sources if isinstance(each, HubFile))
        with self._on_network():
            blob_id = self.fetcher.blob_id(source)
        ours = artifact.sha256 if artifact.is_lfs else artifact.git_oid
        is_lfs = len(blob_id) == len(artifact.sha256)
        if artifact.is_lfs is not is_lfs or (ours is not None and ours != blob_id):
            named = f"the SHA-256 {artifact.sha256}" if artifact.is_lfs else f"the git id {ours or 'of a small file'}"
            raise NotTheFileError(
                f"The Hub does not confirm {source.filename} of {source.repo_id}: at commit {source.revision[:12]} it "
                f"has {'the SHA-256' if is_lfs else 'the git id'} {blob_id}, the manifest names {named}.",
                hint="Nothing was put into the HF cache. Correct the manifest (with `is_lfs`) if it is yours; else do "
                "not use it.",
                expected=blob_id,
                observed=ours,
            )
        return replace(step, destination=replace(destination, blob_id=blob_id))

    # --- a copy from this machine ------------------------------------------------------------------

    def _place(self, step: PlaceFile | MoveFile) -> str:
        place = self.store.place_copy if isinstance(step, PlaceFile) else self.store.move_file
        label = step.destination.label
        tell = _Teller(self.events, label, step.copy.size)

        def progress(done: int) -> None:
            self._check_paused()
            tell("placing", bytes_on_disk=done, bytes_hashed=done)

        try:
            way, file_digest = place(
                step.copy, step.destination, step.artifact, progress=progress, replaces=step.replaces
            )
        except KleinError as error:
            if _is_rejection(error):
                self.rejected.add((step.artifact.id, step.copy.path))
            raise
        self.store.record(step.destination, step.artifact, file_digest, source_of_copy(way, step.copy.path))
        return f"{way} from {step.copy.path}"

    # --- a file from the network -------------------------------------------------------------------

    def _fetch(self, step: FetchFile | PatchFile, offers: list[tuple[Source, Artifact]]) -> tuple[str, int]:
        """Try the sources in order; the bytes decide.  Raises the first source's error when none has them."""
        failures: list[tuple[Source, KleinError]] = []
        for number, (source, content) in enumerate(offers, start=1):
            is_last = number == len(offers)
            try:
                return self._fetch_from(source, replace(step, artifact=content), is_last=is_last)
            except (NetworkError, AccessError, IntegrityError) as error:
                failures.append((source, error))
                if not is_last:
                    self.events(Notice(message=f"{_name(source)}: {error} Trying the next source.", severity="warning"))
        raise _summary(failures)

    def _fetch_from(self, source: Source, step: FetchFile | PatchFile, *, is_last: bool) -> tuple[str, int]:
        label = step.destination.label
        tell = _Teller(self.events, label, step.artifact.size)
        is_theirs = isinstance(step, PatchFile) and self._standing_source(step) == FOUND_IN_PLACE
        has_looked = False
        with self._open(step) as part:
            while True:
                was_resumed = part.resumed_bytes > 0
                received, came_from = self._receive(source, step.artifact, part, tell)
                file_digest = self._seal(part, received, tell)
                if file_digest.sha256 == step.artifact.sha256:
                    break
                if was_resumed:
                    is_right_in_part = not has_looked and part.drop_wrong()
                    has_looked = True
                    anew = "fetching its wrong blocks anew" if is_right_in_part else "fetching anew"
                    self.events(Notice(message=f"{label}: {_why_anew(step)}; {anew}."))
                    if not is_right_in_part:
                        part.reset()
                    continue
                if isinstance(step, PatchFile) and step.way == "in-place":
                    part.keep_as_bad()
                    raise _not_repaired(step, came_from, file_digest)
                raise self._wrong_bytes(step.artifact, part, came_from, file_digest, is_last=is_last)
            tell.of_part("syncing", part, received)
            recorded_as = FOUND_IN_PLACE if is_theirs else came_from
            part.commit(recorded_as)
        self.store.record(step.destination, step.artifact, file_digest, recorded_as)
        return f"fetched from {came_from}", received

    def _seal(self, part: GrowingFile, received: int, tell: _Teller) -> FileDigest:
        self._leave_room(True)

        def progress() -> None:
            if self._walk.halt.is_set():
                raise _Paused
            tell.of_part("proving", part, received)

        return part.seal(progress)

    def _standing_source(self, step: PatchFile) -> str:
        """Return what the receipt says of a damaged file: without one it is the user's own, and is only repaired."""
        claim = self.store.claim(step.destination)
        return FOUND_IN_PLACE if claim is None else claim.source

    def _open(self, step: FetchFile | PatchFile) -> AbstractContextManager[GrowingFile]:
        match step:
            case FetchFile():
                return self.store.part(step.destination, step.artifact, replaces=step.replaces)
            case PatchFile():
                reason = step.replaces or step.reason
                return self.store.patch(step.destination, step.artifact, step.damage, way=step.way, reason=reason)
            case _:
                assert_never(step)

    def _receive(self, source: Source, artifact: Artifact, part: GrowingFile, tell: _Teller) -> tuple[int, str]:
        received = 0
        missing = part.missing_blocks()
        due = sum(min(part.block_size, part.size - index * part.block_size) for index in missing)

        def progress(at: TransferProgress) -> None:
            nonlocal received
            self._check_paused()
            self._leave_room(at.leaves_room)
            received = at.received
            is_checking = part.hashed < min(part.resumed_bytes, part.frontier) and at.received == 0
            phase: Phase = "waiting" if at.note else "checking" if is_checking else "fetching"
            tell.of_part(phase, part, received, at)

        self._leave_room(False)
        with self._on_network():
            came_from = self.fetcher.fetch(source, artifact, part, progress=progress)
        return max(received, due), came_from

    # --- a damaged file ----------------------------------------------------------------------------

    def _patch(self, step: PatchFile) -> tuple[str, int]:
        """Repair a file by its blocks; one whose whole does not come right is fetched whole by the next plan."""
        try:
            detail, fetched = (
                self._fetch(step, offers_of(step, self._registry)) if step.damage.bad_blocks else self._cut(step)
            )
        except KleinError as error:
            if _is_rejection(error):
                self.rejected.add((step.artifact.id, step.destination.path))
            raise
        if not step.damage.bad_blocks or fetched > step.damage.bad_bytes:  # none, or all of it: it did not come right
            return detail, fetched
        return f"{count(len(step.damage.bad_blocks), 'block')} {detail}", fetched

    def _cut(self, step: PatchFile) -> tuple[str, int]:
        """Cut off what is too much, without the network; the first bytes are hashed once more."""
        tell = _Teller(self.events, step.destination.label, step.artifact.size)
        source = self._standing_source(step)
        with self._open(step) as part:
            file_digest = self._seal(part, 0, tell)
            if file_digest.sha256 != step.artifact.sha256:
                part.keep_as_bad()
                raise _not_repaired(step, "the file itself", file_digest)
            part.commit(source)
        self.store.record(step.destination, step.artifact, file_digest, source)
        return f"{count(step.damage.extra_bytes, 'byte')} after its end cut off", 0

    def _wrong_bytes(
        self, artifact: Artifact, part: GrowingFile, came_from: str, file_digest: FileDigest, *, is_last: bool
    ) -> HashMismatchError:
        kept = "They were discarded."
        if is_last:
            bad = part.keep_as_bad()
            kept = f"They were {'discarded' if bad is None else f'kept as {bad}'}; nothing was put in place."
        else:
            part.reset()
        known = next((each.what for each in artifact.lookalikes if each.sha256 == file_digest.sha256), None)
        what = f" They are: {known}" if known else ""
        return HashMismatchError(
            f"{came_from} sent other bytes than the manifest names for {artifact.name}: SHA-256 {file_digest.sha256}, "
            f"expected {artifact.sha256}.{what} {kept}",
            hint="If it happens again, the source or something between it and you changes the bytes: use another "
            "--endpoint or network.",
            expected=artifact.sha256,
            observed=file_digest.sha256,
        )


class _Teller:
    """Says where one file stands, at most ten times a second for each phase."""

    def __init__(self, events: Events, label: str, size: int) -> None:
        self._events = events
        self._label = label
        self._size = size
        self._last = (0.0, "")

    def of_part(self, phase: Phase, part: GrowingFile, received: int, at: TransferProgress | None = None) -> None:
        """Say how far a growing file is."""
        self(
            phase,
            bytes_on_disk=part.bytes_on_disk,
            bytes_hashed=part.hashed,
            bytes_received=received,
            rate_bytes_s=at.rate_bytes_s if at else 0.0,
            connections=at.connections if at else 0,
            attempt=at.attempt if at else 1,
            note=at.note if at else "",
        )

    def __call__(
        self,
        phase: Phase,
        *,
        bytes_on_disk: int = 0,
        bytes_hashed: int = 0,
        bytes_received: int = 0,
        rate_bytes_s: float = 0.0,
        connections: int = 0,
        attempt: int = 1,
        note: str = "",
    ) -> None:
        """Send the event unless one of the same phase was sent a moment ago."""
        now = time.monotonic()
        if self._last[1] == phase and now - self._last[0] < 0.1:
            return
        self._last = (now, phase)
        self._events(
            FileProgress(
                label=self._label,
                phase=phase,
                size=self._size,
                bytes_on_disk=bytes_on_disk,
                bytes_hashed=bytes_hashed,
                bytes_received=bytes_received,
                rate_bytes_s=rate_bytes_s,
                connections=connections,
                attempt=attempt,
                note=note,
            )
        )


def is_retriable(outcome: Outcome) -> bool:
    """Whether a failed step only means that the next plan takes another way: a copy, or blocks, were no good."""
    return isinstance(outcome.step, (PlaceFile, MoveFile, PatchFile)) and _is_rejection(outcome.error)


def _why_anew(step: FetchFile | PatchFile) -> str:
    if isinstance(step, PatchFile) and step.damage.trusted_by == "header":
        return "what is there is not the beginning of the right file"
    return "what an earlier run left here was damaged"


def _not_repaired(step: PatchFile, came_from: str, file_digest: FileDigest) -> HashMismatchError:
    return HashMismatchError(
        f"With its bad blocks from {came_from}, {step.artifact.name} is still another file: "
        f"SHA-256 {file_digest.sha256}, "
        f"expected {step.artifact.sha256}. Nothing was written into it.",
        hint="The block digests it was compared with are not those of the whole; it is fetched whole.",
        expected=step.artifact.sha256,
        observed=file_digest.sha256,
    )


def _is_rejection(error: Exception | None) -> bool:
    """Whether a failed placing only means that the copy was no good: the next plan takes another way."""
    return isinstance(error, (HashMismatchError, UnreadableError))


def _summary(failures: Sequence[tuple[Source, KleinError]]) -> KleinError:
    """Return the first source's error; with several sources it says what the others answered."""
    _, first = failures[0]
    # Wrong bytes weigh more than a source that could not be reached.
    first = next((error for _, error in failures if isinstance(error, HashMismatchError)), first)
    others = [f"{_name(source)}: {error}" for source, error in failures if error is not first]
    if others:
        first.context["other_sources"] = others
        first.args = (f"{first} ({'; '.join(others)})",)
    return first


def _name(source: Source) -> str:
    match source:
        case HubFile():
            return f"{source.repo_id}@{source.revision[:12]}"
        case UrlFile():
            return source.url.partition("?")[0]
        case OciFile():
            return str(source)
        case _:
            assert_never(source)
