"""Plans applied over ports in memory: which source serves, what stops a run, what is tried again, what is said."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from provisioner.core.errors import (
    AccessError,
    FileInUseError,
    GatedError,
    HashMismatchError,
    InsufficientSpaceError,
    KleinError,
    NetworkError,
    NotTheFileError,
    NotWritableError,
    OfflineError,
    RateLimitedError,
    SizeMismatchError,
    StorageError,
    UnreachableError,
)
from provisioner.core.events import Event, FileProgress, Notice, PlanMade, StepFinished, StepStarted
from provisioner.core.models import Artifact, Destination, FilesPlan, HubCacheTarget, HubFile, Outcome, Source, UrlFile
from provisioner.core.ports import Fetcher, FileDigest, Finder, Part, TransferProgress
from provisioner.files.engine import Engine
from provisioner.files.observe import Depth, Observer
from provisioner.files.planner import plan
from tests.support.builders import (
    MODELS,
    artifact,
    artifact_set,
    comfy_file,
    comfy_target,
    hub_blob,
    hub_file,
    local_copy,
    lookalike,
    manifest,
    sha256,
    variant,
)
from tests.support.memory import ListedFinder, MemoryPart, MemoryStore, ScriptedFetcher, digest_of

RIGHT = b"the right bytes"
WRONG = b"the wrong bytes"
FIRST, MIRROR = hub_file("first"), UrlFile(url="https://mirror.example/vae?signature=abc")
VAE = artifact(RIGHT, sources=(FIRST, MIRROR))
ENCODER = artifact(b"an encoder", id="encoder", folder="text_encoders", sources=(hub_file("encoder"),))
HOME = comfy_file(VAE).path
COPY = Path("/downloads/copy").absolute()


@dataclass
class Core:
    """The whole core, over ports in memory."""

    script: dict[Source, list[bytes | BaseException]] = field(default_factory=dict)
    wanted: tuple[Artifact, ...] = (VAE,)
    store: MemoryStore = field(default_factory=MemoryStore)
    copies: tuple[tuple[Artifact, Path], ...] = ()
    is_cache: bool = False
    depth: Depth = "claims"
    events: list[Event] = field(default_factory=list)
    fetcher: ScriptedFetcher = field(init=False)
    engine: Engine = field(init=False)
    observer: Observer = field(init=False)

    def __post_init__(self) -> None:
        self.fetcher = ScriptedFetcher(self.script)
        for each in self.wanted:
            self.fetcher.confirmed |= {source: each.sha256 for source in each.sources if isinstance(source, HubFile)}
        finders: list[Finder] = [ListedFinder(tuple(local_copy(wanted, path) for wanted, path in self.copies))]
        self.observer = Observer(
            store=self.store, finders=finders, events=self.events.append, is_unchanged=lambda one, other: one == other
        )
        self.engine = Engine(
            store=self.store, fetcher=self.fetcher, events=self.events.append, hash_again=self.hash_again
        )

    def hash_again(self, destination: Destination, label: str) -> FileDigest:
        stamp = self.store.stamp(destination.path)
        assert stamp is not None
        return self.observer.digest_of(destination.path, stamp, label)

    def look(self, rejected: frozenset[tuple[str, Path]] = frozenset()) -> FilesPlan:
        one = artifact_set(*self.wanted)
        target = HubCacheTarget(cache=MODELS) if self.is_cache else comfy_target()
        return plan(manifest(one), one, None, self.observer.observe(one, target, depth=self.depth, rejected=rejected))

    def provide(self) -> tuple[FilesPlan, list[Outcome]]:
        return self.engine.provide(self.look)

    def notices(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Notice)]


def came(outcomes: list[Outcome]) -> list[tuple[str, str]]:
    return [(outcome.step.kind, outcome.status) for outcome in outcomes]


# --- success -------------------------------------------------------------------------------------


def test_the_second_plan_is_empty_and_reads_and_fetches_nothing() -> None:
    core = Core({FIRST: [RIGHT], hub_file("encoder"): [b"an encoder"]}, wanted=(VAE, ENCODER))
    last, outcomes = core.provide()
    assert last.steps == ()
    assert came(outcomes) == [("fetch-file", "done"), ("fetch-file", "done")]
    assert core.store.files[HOME] == RIGHT
    asked, proved = len(core.fetcher.asked), len(core.store.proved)
    assert core.provide()[1] == []
    assert (len(core.fetcher.asked), len(core.store.proved)) == (asked, proved)


def test_an_outcome_says_where_the_bytes_came_from_and_how_many_they_were() -> None:
    core = Core({FIRST: [RIGHT]})
    ((outcome,)) = core.provide()[1]
    assert (outcome.detail, outcome.bytes_fetched, outcome.error) == ("fetched from the source of first", 15, None)
    assert outcome.seconds >= 0
    assert core.store.recorded == [(HOME, sha256(RIGHT), "the source of first")]


def test_a_file_in_the_way_is_set_aside_when_the_right_one_is_verified() -> None:
    core = Core({FIRST: [RIGHT]})
    core.store.put(HOME, WRONG)
    _, outcomes = core.provide()
    assert came(outcomes) == [("fetch-file", "done")]
    ((path, reason),) = core.store.aside
    assert (path, reason.partition(":")[0]) == (HOME, "other bytes of the right size")
    assert WRONG in core.store.files.values()


def test_a_right_file_without_a_receipt_gets_one_and_is_read_once() -> None:
    core = Core()
    core.store.put(HOME, RIGHT)
    _, outcomes = core.provide()
    assert came(outcomes) == [("record-receipt", "done")]
    assert core.store.recorded == [(HOME, sha256(RIGHT), "found in place")]
    assert core.store.proved == [HOME]


@pytest.mark.parametrize(
    ("copies", "source"), [((), "the source of first"), (((VAE, COPY),), f"hard-linked from {COPY}")]
)
@pytest.mark.parametrize("is_touched", [False, True], ids=["as it was", "written by somebody since"])
def test_a_kill_between_placing_and_receipt_costs_one_reading_and_no_knowledge_of_whose_it_is(
    copies: tuple[tuple[Artifact, Path], ...], source: str, is_touched: bool
) -> None:
    class Killed(MemoryStore):
        def record(self, destination: Destination, artifact: Artifact, file_digest: FileDigest, source: str) -> None:
            if not self.is_dead:
                self.is_dead = True
                raise KeyboardInterrupt
            super().record(destination, artifact, file_digest, source)

        is_dead = False

    core = Core({FIRST: [RIGHT]}, store=Killed(), copies=copies)
    core.store.put(COPY, RIGHT)
    with pytest.raises(KeyboardInterrupt):
        core.provide()
    if is_touched:
        core.store.put(HOME, RIGHT)
    again = Core(store=core.store)
    assert came(again.provide()[1]) == [("record-receipt", "done")]
    assert again.fetcher.asked == []
    assert core.store.recorded == [(HOME, sha256(RIGHT), "found in place" if is_touched else source)]


def test_a_receipt_that_is_written_anew_for_the_same_file_keeps_its_source() -> None:
    core = Core()
    core.store.put(HOME, RIGHT)
    core.store.lie(HOME, block=1)
    core.depth = "full"
    core.provide()
    assert core.store.recorded == [(HOME, sha256(RIGHT), "earlier")]


def test_repair_puts_right_what_rotted_under_a_valid_receipt() -> None:
    core = Core({FIRST: [b"####right by###"]})  # what is right is not asked for
    core.store.put(HOME, RIGHT)
    core.store.claim_now(HOME)
    core.store.rot(HOME, WRONG)
    core.depth = "full"
    assert core.look().steps
    core.depth = "claims"  # under the lock, as the command does it
    last, ((outcome,)) = core.provide()
    assert (last.steps, outcome.step.kind, outcome.status) == ((), "patch-file", "done")
    assert (outcome.bytes_fetched, outcome.detail) == (8, "2 blocks fetched from the source of first")
    assert core.store.files[HOME] == RIGHT
    assert (core.store.patched, core.store.kept) == (["in-place"], [WRONG])


def test_blocks_that_do_not_make_the_whole_are_given_up_and_the_file_is_fetched_whole() -> None:
    core = Core({FIRST: [b"####WRONGWR####", RIGHT], MIRROR: [b"####WRONGWR####"]})
    core.store.put(HOME, RIGHT)
    core.store.claim_now(HOME)
    core.store.rot(HOME, WRONG)
    core.depth = "full"
    last, outcomes = core.provide()
    assert last.steps == ()
    assert came(outcomes) == [("patch-file", "failed"), ("fetch-file", "done")]
    assert isinstance(outcomes[0].error, HashMismatchError)
    assert "Nothing was written into it" in str(outcomes[0].error)
    assert core.store.files[HOME] == RIGHT
    assert core.store.kept == []  # it was replaced whole, not block by block


def test_a_receipt_that_lies_of_a_right_file_costs_no_byte_of_it_and_is_written_anew() -> None:
    core = Core()
    core.store.put(HOME, RIGHT)
    core.store.lie(HOME, block=1)
    stamp = core.store.stamp(HOME)
    core.depth = "full"
    last, outcomes = core.provide()
    assert (last.steps, came(outcomes)) == ((), [("record-receipt", "done")])
    assert core.store.stamp(HOME) == stamp
    assert core.store.claims[HOME].file_digest == digest_of(RIGHT)
    assert core.store.aside == []


@pytest.mark.parametrize(("is_ours", "source"), [(False, "found in place"), (True, "earlier")])
def test_what_is_too_long_is_cut_without_the_network_and_stays_whose_it_is(is_ours: bool, source: str) -> None:
    core = Core()
    core.store.put(HOME, RIGHT)
    if is_ours:
        core.store.claim_now(HOME)
    core.store.put(HOME, RIGHT + b" and something more")
    last, ((outcome,)) = core.provide()
    assert (last.steps, outcome.step.kind, outcome.bytes_fetched) == ((), "patch-file", 0)
    assert outcome.detail == "19 bytes after its end cut off"
    assert core.store.files[HOME] == RIGHT
    assert core.store.kept == [RIGHT + b" and something more"]
    assert core.store.recorded == [(HOME, sha256(RIGHT), source)]


def test_a_truncated_file_fetches_only_the_rest() -> None:
    core = Core({FIRST: [b"########t bytes"]})
    core.store.put(HOME, RIGHT)
    core.store.claim_now(HOME)
    core.store.put(HOME, RIGHT[:9])
    last, ((outcome,)) = core.provide()
    assert (last.steps, outcome.step.kind, outcome.bytes_fetched) == ((), "patch-file", 7)
    assert (core.store.files[HOME], core.store.patched) == (RIGHT, ["continue"])


def test_a_file_in_a_folder_where_nothing_can_use_it_is_moved() -> None:
    misplaced = MODELS / "checkpoints" / "renamed.safetensors"
    core = Core(copies=((VAE, misplaced),))
    core.store.put(misplaced, RIGHT)
    last, ((outcome,)) = core.provide()
    assert (last.steps, outcome.step.kind, outcome.detail) == ((), "move-file", f"moved from {misplaced}")
    assert core.store.files == {HOME: RIGHT}


def test_a_misplaced_file_that_is_something_else_stays_where_it_is() -> None:
    misplaced = MODELS / "checkpoints" / "renamed.safetensors"
    core = Core({FIRST: [RIGHT]}, copies=((VAE, misplaced),))
    core.store.put(misplaced, WRONG)
    last, outcomes = core.provide()
    assert (last.steps, came(outcomes)) == ((), [("move-file", "failed"), ("fetch-file", "done")])
    assert core.store.files == {misplaced: WRONG, HOME: RIGHT}


def test_a_wrong_file_stays_where_it_is_while_its_successor_cannot_be_had() -> None:
    core = Core({FIRST: [UnreachableError("no route")], MIRROR: [UnreachableError("no route")]})
    core.store.put(HOME, WRONG)
    _, outcomes = core.provide()
    assert came(outcomes) == [("fetch-file", "failed")]
    assert (core.store.files[HOME], core.store.aside) == (WRONG, [])


# --- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        UnreachableError("no route"),
        RateLimitedError("wait an hour"),
        GatedError("accept the licence"),
        SizeMismatchError("another size"),
    ],
    ids=lambda error: error.code,
)
def test_the_next_source_is_tried_after(error: KleinError) -> None:
    core = Core({FIRST: [error], MIRROR: [RIGHT]})
    last, outcomes = core.provide()
    assert (last.steps, came(outcomes)) == ((), [("fetch-file", "done")])
    assert core.fetcher.asked == [FIRST, MIRROR]
    assert core.notices() == [f"org/name@5e0a5e0a5e0a: {error} Trying the next source."]


def test_the_next_source_is_tried_after_wrong_bytes_and_starts_from_the_first_byte() -> None:
    core = Core({FIRST: [WRONG], MIRROR: [RIGHT]})
    assert core.provide()[0].steps == ()
    assert core.store.files == {HOME: RIGHT}
    assert core.store.held == {}
    assert "They were discarded." in core.notices()[0]


@pytest.mark.parametrize(
    "error", [InsufficientSpaceError("the disk is full"), NotWritableError("no permission")], ids=lambda e: e.code
)
def test_no_other_source_is_tried_when_the_disk_refuses(error: StorageError) -> None:
    core = Core({FIRST: [RIGHT], MIRROR: [RIGHT]})
    core.store.write_error = error
    last, outcomes = core.provide()
    assert [type(step).__name__ for step in last.steps] == ["FetchFile"]
    assert [(outcome.status, outcome.error) for outcome in outcomes] == [("failed", error)]
    assert core.fetcher.asked == [FIRST]


def test_an_interruption_is_nobodys_failure() -> None:
    core = Core({FIRST: [KeyboardInterrupt()], MIRROR: [RIGHT]})
    with pytest.raises(KeyboardInterrupt):
        core.provide()
    assert core.fetcher.asked == [FIRST]


def test_the_error_of_the_first_source_speaks_for_all_of_them() -> None:
    core = Core({FIRST: [UnreachableError("no route")], MIRROR: [GatedError("accept the licence")]})
    ((outcome,)) = core.provide()[1]
    assert isinstance(outcome.error, UnreachableError)
    assert str(outcome.error) == "no route (https://mirror.example/vae: accept the licence)"
    assert outcome.error.context["other_sources"] == ["https://mirror.example/vae: accept the licence"]
    assert outcome.detail == str(outcome.error)


def test_wrong_bytes_weigh_more_than_a_source_that_was_not_reached() -> None:
    core = Core({FIRST: [UnreachableError("no route")], MIRROR: [WRONG]})
    ((outcome,)) = core.provide()[1]
    assert isinstance(outcome.error, HashMismatchError)
    assert "(org/name@5e0a5e0a5e0a: no route)" in str(outcome.error)
    assert "signature" not in str(outcome.error)


def test_wrong_bytes_are_kept_as_evidence_at_the_last_source_only() -> None:
    wanted = artifact(RIGHT, sources=(FIRST, MIRROR), lookalikes=(lookalike(WRONG, "The base model."),))
    core = Core({FIRST: [b"x" * 15], MIRROR: [WRONG]}, wanted=(wanted,))
    last, ((outcome,)) = core.provide()
    assert core.store.files == {HOME.with_name(HOME.name + ".bad"): WRONG}
    assert isinstance(outcome.error, HashMismatchError)
    assert outcome.error.context["observed"] in {sha256(WRONG), sha256(b"x" * 15)}
    assert "The base model." in f"{outcome.error} {outcome.error.context}"
    assert len(last.steps) == 1


def test_bytes_that_are_as_good_come_from_sources_of_their_own_after_the_artifacts() -> None:
    other, third = b"other bytes, as good as", hub_file("third")
    wanted = artifact(RIGHT, sources=(FIRST,), accept=(variant(other, sources=(third,)),))
    core = Core({FIRST: [GatedError("accept")], third: [other]}, wanted=(wanted,))
    last, outcomes = core.provide()
    assert (last.steps, came(outcomes)) == ((), [("fetch-file", "done")])
    assert core.store.files[HOME] == other


def test_a_snapshot_takes_only_the_commits_own_bytes() -> None:
    third = hub_file("third")
    wanted = artifact(RIGHT, sources=(FIRST,), accept=(variant(b"as good", sources=(third,)),))
    core = Core({FIRST: [GatedError("accept")]}, wanted=(wanted,), is_cache=True)
    assert came(core.provide()[1]) == [("fetch-file", "failed")]
    assert core.fetcher.asked == [FIRST]


# --- interrupted downloads -------------------------------------------------------------------------


def test_what_an_earlier_run_left_is_built_upon() -> None:
    core = Core({FIRST: [b"########t bytes"]})  # what is held is not asked for
    core.store.held[HOME] = RIGHT[:8]
    last, ((outcome,)) = core.provide()
    assert last.steps == ()
    assert (core.store.files[HOME], outcome.bytes_fetched) == (RIGHT, 7)


def test_damage_in_what_an_earlier_run_left_costs_one_restart() -> None:
    core = Core({FIRST: [RIGHT, RIGHT]})
    core.store.held[HOME] = b"????????"
    assert core.provide()[0].steps == ()
    assert core.store.files[HOME] == RIGHT
    assert core.fetcher.asked == [FIRST, FIRST]
    assert [part.resets for part in core.store.parts] == [1]
    assert core.notices() == ["vae/vae.safetensors: what an earlier run left here was damaged; fetching anew."]


def test_a_source_that_is_wrong_after_the_restart_too_is_given_up() -> None:
    core = Core({FIRST: [WRONG, WRONG], MIRROR: [RIGHT]})
    core.store.held[HOME] = b"????????"
    assert core.provide()[0].steps == ()
    assert core.fetcher.asked == [FIRST, FIRST, MIRROR]


class Breaking(ScriptedFetcher):
    """Delivers one block and then loses the connection."""

    def fetch(self, source: Source, artifact: Artifact, part: Part, **more: object) -> str:
        if not self.asked:
            self.asked.append(source)
            part.write(0, RIGHT[:4])
            part.finish_block(0, sha256(RIGHT[:4]))
            raise UnreachableError("the connection broke")
        return super().fetch(source, artifact, part, **more)  # type: ignore[arg-type]


def test_the_next_source_continues_where_the_first_broke_off() -> None:
    core = Core({MIRROR: [b"####right bytes"]})
    fetcher: Fetcher = Breaking(core.script)
    core.engine.fetcher = fetcher
    last, ((outcome,)) = core.provide()
    assert last.steps == ()
    assert (core.store.files[HOME], outcome.bytes_fetched) == (RIGHT, 11)


# --- copies from this machine ------------------------------------------------------------------------


def test_a_right_copy_is_placed_without_a_byte_from_the_network() -> None:
    core = Core(copies=((VAE, COPY),))
    core.store.put(COPY, RIGHT)
    last, ((outcome,)) = core.provide()
    assert (last.steps, outcome.detail) == ((), f"hard-linked from {COPY}")
    assert core.store.recorded == [(HOME, sha256(RIGHT), f"hard-linked from {COPY}")]
    assert {event.phase for event in core.events if isinstance(event, FileProgress)} == {"placing"}


def test_copies_that_turn_out_wrong_are_rejected_one_by_one_and_then_the_file_is_fetched() -> None:
    second = COPY.with_name("second")
    core = Core({FIRST: [RIGHT]}, copies=((VAE, COPY), (VAE, second)))
    core.store.put(COPY, WRONG)
    core.store.put(second, b"more like this!")
    last, outcomes = core.provide()
    assert last.steps == ()
    assert came(outcomes) == [("place-file", "failed"), ("place-file", "failed"), ("fetch-file", "done")]
    assert core.engine.rejected == {("vae", COPY), ("vae", second)}
    assert core.store.files[COPY] == WRONG


def test_a_whole_folder_of_lookalikes_does_not_keep_a_file_from_being_fetched() -> None:
    paths = [COPY.with_name(f"finetune-{number}") for number in range(6)]
    core = Core({FIRST: [RIGHT]}, copies=tuple((VAE, path) for path in paths))
    for path in paths:
        core.store.put(path, WRONG)
    last, outcomes = core.provide()
    assert last.steps == ()
    assert came(outcomes)[-1] == ("fetch-file", "done")


def test_two_files_with_each_others_names_are_no_failure_of_the_second() -> None:
    there = comfy_file(ENCODER).path
    core = Core({hub_file("encoder"): [b"an encoder"]}, wanted=(VAE, ENCODER), copies=((VAE, there), (ENCODER, HOME)))
    core.store.put(there, RIGHT)
    core.store.put(HOME, b"an encoder")
    last, outcomes = core.provide()
    assert last.steps == ()
    assert came(outcomes)[:2] == [("place-file", "done"), ("place-file", "skipped")]
    assert [outcome.error for outcome in outcomes if outcome.error is not None] == []
    assert core.engine.rejected == set()
    assert (core.store.files[HOME], core.store.files[there]) == (RIGHT, b"an encoder")


def test_wrong_copies_that_turn_up_one_after_the_other_do_not_use_up_the_rounds() -> None:
    """As after files that had each other's names: what stood there is a copy, once it is among the backups."""
    core = Core({FIRST: [RIGHT]})
    paths = [COPY.with_name(f"backup-{number}") for number in range(6)]
    plans = []
    for path in paths:
        seen = Core(copies=((VAE, path),))
        seen.store.put(path, WRONG)
        core.store.put(path, WRONG)
        plans.append(seen.look())
    turning_up = iter(plans)
    last, outcomes = core.engine.provide(lambda rejected: next(turning_up, None) or core.look(rejected))
    assert last.steps == ()
    assert came(outcomes) == [("place-file", "failed")] * len(paths) + [("fetch-file", "done")]


def test_a_copy_that_goes_away_is_no_failure_of_the_run() -> None:
    core = Core({FIRST: [RIGHT]}, copies=((VAE, COPY),))
    core.store.put(COPY, RIGHT)
    first = core.look()
    del core.store.files[COPY]
    plans = iter([first])
    last, outcomes = core.engine.provide(lambda rejected: next(plans, None) or core.look(rejected))
    assert last.steps == ()
    assert came(outcomes) == [("place-file", "failed"), ("fetch-file", "done")]


def test_one_rejected_copy_does_not_keep_the_others_from_being_placed() -> None:
    core = Core({FIRST: [RIGHT]}, wanted=(VAE, ENCODER), copies=((VAE, COPY), (ENCODER, COPY.with_name("e"))))
    core.store.put(COPY, WRONG)
    core.store.put(COPY.with_name("e"), b"an encoder")
    last, outcomes = core.provide()
    assert last.steps == ()
    assert came(outcomes) == [("place-file", "failed"), ("place-file", "done"), ("fetch-file", "done")]


@pytest.mark.parametrize("error", [InsufficientSpaceError("full"), FileInUseError("in use")], ids=lambda e: e.code)
def test_a_disk_that_refuses_a_copy_ends_the_run(error: StorageError) -> None:
    core = Core({FIRST: [RIGHT]}, copies=((VAE, COPY),))
    core.store.put(COPY, RIGHT)
    core.store.place_error = error
    _, outcomes = core.provide()
    assert [outcome.error for outcome in outcomes] == [error]
    assert core.fetcher.asked == []


# --- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (UnreachableError("no route"), "skipped"),
        (OfflineError("offline"), "skipped"),
        (NetworkError("anything"), "skipped"),
        (InsufficientSpaceError("full"), "skipped"),
        (GatedError("accept"), "done"),
        (AccessError("no"), "done"),
        (SizeMismatchError("another"), "done"),
    ],
    ids=lambda value: getattr(value, "code", value),
)
def test_after_a_failure_only_what_may_still_work_is_tried(error: KleinError, after: str) -> None:
    encoder = hub_file("encoder")
    wanted = (artifact(RIGHT, sources=(FIRST,)), ENCODER)
    core = Core({FIRST: [error], encoder: [b"an encoder"]}, wanted=wanted)
    last, outcomes = core.provide()
    assert came(outcomes) == [("fetch-file", "failed"), ("fetch-file", after)]
    assert [step.artifact.id for step in last.steps] == (["vae", "encoder"] if after == "skipped" else ["vae"])
    if after == "skipped":
        assert outcomes[1].detail == "an earlier step failed"


class Meeting(ScriptedFetcher):
    """Serves two files at once: the first tells that it leaves room, and goes on when the second is `until`."""

    def __init__(self, script: Mapping[Source, Sequence[bytes | BaseException]], core: Core, until: type) -> None:
        super().__init__(script)
        self.core, self.until = core, until

    def fetch(
        self, source: Source, artifact: Artifact, part: Part, *, progress: Callable[[TransferProgress], None]
    ) -> str:
        if source == FIRST:
            deadline = time.monotonic() + 10
            while not any(
                isinstance(event, self.until) and getattr(event, "number", 0) == 2 for event in list(self.core.events)
            ):
                assert time.monotonic() < deadline, "the second file never began"
                progress(TransferProgress(received=0, rate_bytes_s=1.0, connections=1, attempt=1, leaves_room=True))
                time.sleep(0.005)
            progress(TransferProgress(received=0, rate_bytes_s=1.0, connections=1, attempt=1))
        return super().fetch(source, artifact, part, progress=progress)


def side_by_side(second: bytes | BaseException, *, until: type = StepFinished) -> tuple[Core, list[tuple[str, str]]]:
    """Fetch two files at once, the second's answer being given; return what came of them."""
    wanted = (artifact(RIGHT, sources=(FIRST,)), ENCODER)
    core = Core(wanted=wanted)
    core.engine.fetcher = Meeting({FIRST: [RIGHT], hub_file("encoder"): [second]}, core, until)
    core.engine.at_once = 2
    return core, came(core.provide()[1])


def test_files_that_do_not_depend_on_each_other_flow_at_once_and_outcomes_keep_the_plans_order() -> None:
    core, outcomes = side_by_side(b"an encoder")
    assert outcomes == [("fetch-file", "done"), ("fetch-file", "done")]
    ended = [event.number for event in core.events if isinstance(event, StepFinished)]
    assert ended == [2, 1], "the second was over while the first still flowed"
    assert core.look().steps == ()


@pytest.mark.parametrize("error", [InsufficientSpaceError("full"), UnreachableError("gone")], ids=lambda e: e.code)
def test_a_failure_of_disk_or_network_pauses_what_flows(error: KleinError) -> None:
    core, outcomes = side_by_side(error)
    assert outcomes == [("fetch-file", "skipped"), ("fetch-file", "failed")]
    assert [event.outcome.detail for event in core.events if isinstance(event, StepFinished)] == [
        str(error),
        "an earlier step failed; what has arrived is kept",
    ]


def test_what_fails_for_two_at_once_is_said_once() -> None:
    wanted = (artifact(RIGHT, sources=(FIRST,)), ENCODER)
    core = Core(wanted=wanted)

    class BothFail(Meeting):
        def fetch(self, source: Source, artifact: Artifact, part: Part, **more: object) -> str:
            with contextlib.suppress(Exception):  # also when it is paused
                super().fetch(source, artifact, part, **more)  # type: ignore[arg-type]
            raise InsufficientSpaceError("full")

    core.engine.fetcher = BothFail({FIRST: [RIGHT], hub_file("encoder"): [b"an encoder"]}, core, StepStarted)
    core.engine.at_once = 2
    _, outcomes = core.provide()
    assert sorted(outcome.status for outcome in outcomes) == ["failed", "skipped"]
    assert [str(outcome.error) for outcome in outcomes if outcome.error is not None] == ["full"]


def test_wrong_bytes_and_a_closed_door_leave_the_other_file_alone() -> None:
    for error in (GatedError("accept"), SizeMismatchError("another")):
        _, outcomes = side_by_side(error)
        assert outcomes == [("fetch-file", "done"), ("fetch-file", "failed")]


def test_an_interruption_of_one_ends_all() -> None:
    with pytest.raises(KeyboardInterrupt):
        side_by_side(KeyboardInterrupt(), until=StepStarted)
    assert [each for each in threading.enumerate() if each.name.startswith("step ")] == []


def test_a_file_that_cannot_be_set_aside_is_not_fetched_over() -> None:
    class Stuck(MemoryStore):
        def set_aside(self, destination: Destination, reason: str) -> Path:
            raise FileInUseError("ComfyUI has it open")

    core = Core({FIRST: [RIGHT]}, store=Stuck())
    core.store.put(HOME, WRONG)
    _, outcomes = core.provide()
    assert came(outcomes) == [("fetch-file", "failed")]
    assert core.store.files == {HOME: WRONG}


def test_a_folder_that_never_comes_right_ends_after_a_few_rounds() -> None:
    class Forgetful(MemoryStore):
        def record(self, destination: Destination, artifact: Artifact, file_digest: FileDigest, source: str) -> None:
            self.recorded.append((destination.path, file_digest.sha256, source))

    core = Core(store=Forgetful())
    core.store.put(HOME, RIGHT)
    last, outcomes = core.provide()
    assert [step.kind for step in last.steps] == ["record-receipt"]
    assert 1 < len(outcomes) < 10


# --- events ----------------------------------------------------------------------------------------


def test_events_tell_the_plan_each_step_and_its_phases_in_order() -> None:
    core = Core({FIRST: [RIGHT]})
    core.store.put(HOME, b"short")
    core.provide()
    said = [(type(event).__name__, getattr(event, "phase", "")) for event in core.events]
    assert said == [
        ("PlanMade", ""),
        ("StepStarted", ""),
        ("FileProgress", "fetching"),
        ("FileProgress", "proving"),
        ("FileProgress", "syncing"),
        ("StepFinished", ""),
    ]
    numbers = [(event.number, event.total) for event in core.events if isinstance(event, (StepStarted, StepFinished))]
    assert numbers == [(1, 1), (1, 1)]
    (made,) = [event for event in core.events if isinstance(event, PlanMade)]
    assert [step.kind for step in made.plan.steps] == ["fetch-file"]


def test_progress_names_the_file_and_counts_what_is_on_disk() -> None:
    core = Core({FIRST: [RIGHT]})
    core.provide()
    told = [event for event in core.events if isinstance(event, FileProgress)]
    assert {(event.label, event.size) for event in told} == {("vae/vae.safetensors", 15)}
    assert [(event.bytes_on_disk, event.bytes_received) for event in told] == [(4, 4), (15, 15), (15, 15)]


CONFIG = artifact(b"{}", sources=(FIRST,), is_lfs=False)


@pytest.mark.parametrize(
    ("wanted", "confirmed"),
    [(VAE, "0" * 64), (VAE, "0" * 40), (CONFIG, "0" * 64), (replace(CONFIG, git_oid="1" * 40), "0" * 40)],
)
def test_a_snapshot_takes_nothing_that_the_hub_names_otherwise(wanted: Artifact, confirmed: str) -> None:
    core = Core({FIRST: [RIGHT]}, wanted=(wanted,), is_cache=True)
    core.fetcher.confirmed[FIRST] = confirmed
    _, ((outcome,)) = core.provide()
    assert isinstance(outcome.error, NotTheFileError)
    assert confirmed in str(outcome.error)
    assert core.fetcher.asked == []


def test_a_snapshot_takes_no_bytes_of_another_address() -> None:
    wanted = replace(VAE, sources=(FIRST, UrlFile(url="https://example.org/x")))
    core = Core({FIRST: [UnreachableError("gone")], wanted.sources[1]: [RIGHT]}, wanted=(wanted,), is_cache=True)
    assert came(core.provide()[1]) == [("fetch-file", "failed")]
    assert core.fetcher.asked == [FIRST]


def test_a_snapshot_file_is_named_as_in_the_repository() -> None:
    core = Core({FIRST: [RIGHT]}, is_cache=True)
    core.provide()
    assert {event.label for event in core.events if isinstance(event, FileProgress)} == {"first"}
    assert core.store.files[hub_blob(MODELS, VAE).path] == RIGHT


@pytest.mark.parametrize(
    ("hashed", "received", "note", "phase"),
    [(0, 0, "", "checking"), (8, 0, "", "fetching"), (0, 4, "", "fetching"), (0, 0, "429", "waiting")],
)
def test_the_phase_says_whether_bytes_come_are_read_back_or_are_waited_for(
    hashed: int, received: int, note: str, phase: str
) -> None:
    class Slow(MemoryPart):
        @property
        def hashed(self) -> int:
            return hashed

    class SlowStore(MemoryStore):
        def part(self, destination: Destination, artifact: Artifact, *, replaces: str | None = None) -> MemoryPart:
            return Slow(self, destination, artifact, replaces)

    class Telling(ScriptedFetcher):
        def fetch(self, source: Source, artifact: Artifact, part: Part, **more: object) -> str:
            tell = more["progress"]
            assert callable(tell)
            tell(TransferProgress(received=received, rate_bytes_s=2.0, connections=3, attempt=4, note=note))
            raise KeyboardInterrupt

    core = Core(store=SlowStore())
    core.store.held[HOME] = RIGHT[:8]
    core.engine.fetcher = Telling({})
    with pytest.raises(KeyboardInterrupt):
        core.provide()
    (told,) = [event for event in core.events if isinstance(event, FileProgress)]
    assert (told.phase, told.note, told.rate_bytes_s, told.connections, told.attempt) == (phase, note, 2.0, 3, 4)
