"""What lies in a target, over a store in memory: every depth, every verdict, and files that do not hold still."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from provisioner.core.errors import FileInCloudError, FileInUseError, PathOutsideRootError
from provisioner.core.events import Event, FileProgress
from provisioner.core.models import Artifact, Check, Destination, HubCacheTarget, Inventory, LocalCopy, Target
from provisioner.core.ports import Finder, Stamp
from provisioner.files.observe import Depth, Observer
from tests.support.builders import (
    MODELS,
    artifact,
    artifact_set,
    comfy_file,
    comfy_target,
    file_system,
    hub_blob,
    local_copy,
    lookalike,
    sha256,
    variant,
)
from tests.support.memory import ListedFinder, MemoryStore, digests_of

RIGHT = b"the right bytes"
WRONG = b"the wrong bytes"
AS_GOOD = b"others, as good"
HEADER = json.dumps({"w": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}).encode()
TENSORS = len(HEADER).to_bytes(8, "little") + HEADER + bytes(8)
VAE = artifact(RIGHT)
HOME = comfy_file(VAE).path
DEPTHS: tuple[Depth, ...] = ("claims", "full", "quick")


def same(claimed: Stamp, found: Stamp) -> bool:
    return claimed == found


@dataclass
class Scene:
    """A tree in memory and what looks at it."""

    store: MemoryStore = field(default_factory=MemoryStore)
    finders: list[Finder] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    observer: Observer = field(init=False)

    def __post_init__(self) -> None:
        self.observer = Observer(
            store=self.store, finders=self.finders, events=self.events.append, is_unchanged=same, threads=1
        )

    def look(
        self,
        *artifacts: Artifact,
        depth: Depth = "claims",
        target: Target | None = None,
        rejected: frozenset[tuple[str, Path]] = frozenset(),
    ) -> Inventory:
        return self.observer.observe(artifact_set(*artifacts), target or comfy_target(), depth=depth, rejected=rejected)

    def check(self, wanted: Artifact = VAE, depth: Depth = "claims", target: Target | None = None) -> Check:
        (found,) = self.look(wanted, depth=depth, target=target).checks
        return found


@pytest.fixture
def scene() -> Scene:
    return Scene()


# --- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "data", "is_claimed", "verdict"),
    [
        ("claims", None, False, ("missing", "none", False)),
        ("full", None, False, ("missing", "none", False)),
        ("quick", None, False, ("missing", "none", False)),
        ("claims", RIGHT, True, ("ok", "receipt", True)),
        ("claims", RIGHT, False, ("ok", "sha256", False)),
        ("full", RIGHT, True, ("ok", "blocks", True)),
        ("full", RIGHT, False, ("ok", "sha256", False)),
        ("quick", RIGHT, True, ("ok", "receipt", True)),
        ("claims", WRONG, True, ("hash-mismatch", "sha256", False)),  # the receipt says so itself
        ("claims", WRONG, False, ("hash-mismatch", "sha256", False)),
        ("full", WRONG, False, ("hash-mismatch", "sha256", False)),
        ("claims", b"short", False, ("size-mismatch", "size", False)),
        ("full", b"short", True, ("size-mismatch", "size", False)),
        ("quick", b"short", False, ("size-mismatch", "size", False)),
        ("claims", AS_GOOD, False, ("ok", "sha256", False)),
        ("claims", AS_GOOD, True, ("ok", "receipt", True)),
    ],
)
def test_a_file_is_judged_by_what_is_known_of_it(
    scene: Scene, depth: Depth, data: bytes | None, is_claimed: bool, verdict: tuple[str, str, bool]
) -> None:
    wanted = artifact(RIGHT, accept=(variant(AS_GOOD),))
    if data is not None:
        scene.store.put(HOME, data)
    if is_claimed:
        scene.store.claim_now(HOME)
    found = scene.check(wanted, depth)
    assert (found.status, found.basis, found.is_recorded) == verdict
    assert found.observed_size in {None, len(data or b"")}
    if found.basis in {"sha256", "blocks", "receipt"}:
        assert found.observed_sha256 == sha256(data or b"")


def test_blocks_of_a_receipt_prove_a_file_only_where_a_run_of_this_user_bound_them(scene: Scene) -> None:
    scene.store.is_every_receipt_bound = False
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    for basis in ("sha256", "blocks"):  # what was read whole is bound from then on
        scene.observer = replace(scene.observer, _digests={}, _surveys={})
        found = scene.check(depth="full")
        assert (found.status, found.basis, found.is_recorded) == ("ok", basis, True)
        assert scene.store.bound == {sha256(RIGHT)}


def test_a_look_that_is_not_full_binds_nothing(scene: Scene) -> None:
    scene.store.is_every_receipt_bound = False
    scene.store.put(HOME, RIGHT)
    assert scene.check(depth="claims").basis == "sha256"
    assert scene.store.bound == set()


def test_blocks_nobody_bound_still_say_what_can_be_kept(scene: Scene) -> None:
    scene.store.is_every_receipt_bound = False
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.put(HOME, WRONG)
    damaged = scene.check(depth="full")
    assert (damaged.status, damaged.basis) == ("hash-mismatch", "sha256")
    scene.store.put(HOME, RIGHT)
    scene.store.unreadable[HOME] = "the disk failed"
    scene.store.refused[HOME] = {2}
    assert scene.check(depth="full").status == "unreadable"
    assert scene.store.bound == set()


@pytest.mark.parametrize(("is_bound", "basis"), [(True, "blocks"), (False, "size")])
def test_a_file_cut_short_is_judged_by_blocks_only_where_they_were_bound(
    scene: Scene, is_bound: bool, basis: str
) -> None:
    scene.store.is_every_receipt_bound = is_bound
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.put(HOME, RIGHT[:-1])
    found = scene.check(depth="full")
    assert found.damage is not None  # what may be kept is known either way
    assert (found.status, found.basis) == ("size-mismatch", basis)


def test_a_receipt_is_worth_nothing_once_the_file_was_touched(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.put(HOME, WRONG)
    assert scene.check().status == "hash-mismatch"


def test_rot_without_a_trace_is_seen_by_a_full_look_only(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.rot(HOME, WRONG)
    assert scene.check(depth="claims").status == "ok"
    assert scene.check(depth="full").status == "hash-mismatch"


def test_what_a_full_look_saw_outranks_the_receipt_for_the_rest_of_the_run(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.rot(HOME, WRONG)
    scene.check(depth="full")
    found = scene.check(depth="claims")  # as `repair` looks again under the lock
    assert (found.status, found.basis) == ("hash-mismatch", "blocks")
    assert (scene.store.surveyed, scene.store.proved) == ([HOME], [])


def test_a_file_that_did_not_change_is_read_once(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    assert [scene.check(depth="full").status for _ in range(3)] == ["ok"] * 3
    assert scene.store.proved == [HOME]


def test_reading_is_told_at_the_start_at_the_end_and_not_too_often_between(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.check(depth="full")
    told = [event for event in scene.events if isinstance(event, FileProgress)]
    assert [each.bytes_hashed for each in told] == [1, 15]  # not the second byte, which came in the same moment
    assert {(each.label, each.phase, each.size) for each in told} == {("vae/vae.safetensors", "hashing", 15)}


# --- by blocks -----------------------------------------------------------------------------------


def test_a_file_with_a_receipt_is_read_by_blocks_and_not_a_second_time_as_a_whole(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    found = [scene.check(depth="full") for _ in range(2)]
    assert [(each.status, each.basis, each.is_recorded) for each in found] == [("ok", "blocks", True)] * 2
    assert (scene.store.surveyed, scene.store.proved) == ([HOME], [])


def test_a_touched_file_whose_blocks_are_right_needs_only_a_receipt(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.put(HOME, RIGHT)
    found = scene.check(depth="claims")
    assert (found.status, found.basis, found.is_recorded) == ("ok", "blocks", False)


@pytest.mark.parametrize(
    ("data", "bad", "said"),
    [
        (WRONG, (1, 2), "blocks 1-2 (of 0 to 3) differ"),
        (b"THE right bytes", (0,), "block 0 (of 0 to 3) differs"),
        (b"the right bytEZ", (3,), "block 3 (of 0 to 3) differs"),
    ],
)
def test_blocks_that_differ_from_bound_ones_are_named_without_reading_the_whole_again(
    scene: Scene, data: bytes, bad: tuple[int, ...], said: str
) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.rot(HOME, data)
    for depth in ("full", "claims"):  # under the lock, as `repair` does it
        found = scene.check(depth=depth)
        assert (found.status, found.basis, found.identity) == ("hash-mismatch", "blocks", said)
        assert found.damage is not None
        assert (found.damage.bad_blocks, found.damage.trusted_by) == (bad, "receipt")
    assert (scene.store.surveyed, scene.store.proved) == ([HOME], [])


@pytest.mark.parametrize("is_manifests", [False, True])
def test_blocks_that_differ_from_ones_nobody_bound_are_named_once_the_whole_is_known_to_be_wrong(
    scene: Scene, is_manifests: bool
) -> None:
    scene.store.is_every_receipt_bound = False
    scene.store.put(HOME, RIGHT)
    if not is_manifests:
        scene.store.claim_now(HOME)
    scene.store.rot(HOME, WRONG)
    for depth in ("full", "claims"):
        found = scene.check(artifact(RIGHT, blocks=digests_of(RIGHT) if is_manifests else ()), depth=depth)
        assert (found.status, found.basis) == ("hash-mismatch", "sha256")
        assert found.damage is not None
        assert (found.damage.bad_blocks, found.damage.trusted_by) == ((1, 2), "manifest" if is_manifests else "receipt")
    assert scene.store.proved == [HOME]


def test_other_content_of_the_same_size_that_is_as_good_is_not_taken_for_damage(scene: Scene) -> None:
    as_good = b"the right BYTES"
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.rot(HOME, as_good)
    found = scene.check(artifact(RIGHT, accept=(variant(as_good),)), depth="full")
    assert (found.status, found.basis, found.observed_sha256) == ("ok", "sha256", sha256(as_good))


def test_a_file_of_which_no_block_is_right_is_named_by_its_content(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.rot(HOME, bytes(15))
    found = scene.check(depth="full")
    assert found.damage is None
    assert "zero" in (found.identity or "").lower()


@pytest.mark.parametrize("block", range(4))
def test_a_receipt_that_lies_of_a_block_does_not_make_a_right_file_wrong(scene: Scene, block: int) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.lie(HOME, block=block)
    seen = scene.look(VAE, depth="full")
    (found,) = seen.checks
    assert (found.status, found.basis, found.is_recorded, found.damage) == ("ok", "sha256", False, None)
    assert [(each.code, each.severity) for each in seen.findings] == [("receipt-wrong", "warning")]
    assert scene.check(depth="claims").is_recorded is False  # still to be written anew, under the lock


def test_blocks_that_the_manifest_names_need_no_receipt(scene: Scene) -> None:
    wanted = artifact(RIGHT, blocks=digests_of(RIGHT))
    scene.store.put(HOME, RIGHT)
    found = scene.check(wanted, "full")
    assert (found.status, found.basis, found.is_recorded) == ("ok", "blocks", False)
    scene.store.put(HOME, RIGHT[:9])
    damage = scene.check(wanted, "claims").damage
    assert damage is not None
    assert (damage.bad_blocks, damage.trusted_by) == ((2, 3), "manifest")


def test_a_receipt_that_says_otherwise_than_the_manifest_is_written_anew(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.lie(HOME, block=1)
    found = scene.check(artifact(RIGHT, blocks=digests_of(RIGHT)), "full")
    assert (found.status, found.basis, found.is_recorded) == ("ok", "blocks", False)


def test_a_manifest_that_is_wrong_about_a_block_does_not_make_a_right_file_wrong(scene: Scene) -> None:
    wanted = artifact(RIGHT, blocks=("0" * 64, *digests_of(RIGHT)[1:]))
    scene.store.put(HOME, RIGHT)
    assert scene.check(wanted, "full").status == "ok"


def test_a_receipt_about_other_content_is_not_compared_with(scene: Scene) -> None:
    scene.store.put(HOME, WRONG)
    scene.store.claim_now(HOME)
    found = scene.check(depth="full")
    assert (found.status, found.damage, scene.store.surveyed) == ("hash-mismatch", None, [])


@pytest.mark.parametrize("depth", ["claims", "full"])
@pytest.mark.parametrize(
    ("data", "bad", "said"),
    [
        (RIGHT[:9], (2, 3), "truncated at byte 9 of 15; its first 8 bytes are right"),
        (RIGHT[:8], (2, 3), "truncated at byte 8 of 15; what is there is right"),
        (b"THE right", (0, 2, 3), "truncated at byte 9 of 15; block 0 (of 0 to 3) differs"),
        (RIGHT + b"!", (), "1 byte too long; the first 15 bytes are right"),
        (WRONG + b"!", (1, 2), "1 byte too long; blocks 1-2 (of 0 to 3) differ"),
    ],
)
def test_of_a_file_of_another_length_the_right_blocks_are_known(
    scene: Scene, depth: Depth, data: bytes, bad: tuple[int, ...], said: str
) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.put(HOME, data)
    found = scene.check(depth=depth)
    assert (found.status, found.basis, found.identity) == ("size-mismatch", "blocks", said)
    assert found.damage is not None
    assert (found.damage.bad_blocks, found.damage.observed_size) == (bad, len(data))


@pytest.mark.parametrize("depth", ["claims", "full"])
def test_what_is_too_long_is_proven_by_its_beginning_without_any_receipt(scene: Scene, depth: Depth) -> None:
    scene.store.put(HOME, RIGHT + b"appended")
    found = scene.check(depth=depth)
    assert found.damage is not None
    assert (found.damage.bad_blocks, found.damage.trusted_by, found.damage.extra_bytes) == ((), "whole", 8)


def test_a_longer_file_that_is_something_else_is_not_cut(scene: Scene) -> None:
    scene.store.put(HOME, WRONG + b"appended")
    assert scene.check(depth="full").damage is None


def test_a_longer_file_that_is_whole_by_itself_is_not_even_read(scene: Scene) -> None:
    wanted = artifact(TENSORS[:-1])
    scene.store.put(HOME, TENSORS)
    assert (scene.check(wanted, "full").damage, scene.store.proved) == (None, [])


def test_quick_reads_nothing_of_a_file_of_another_length(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.put(HOME, RIGHT[:9])
    assert scene.check(depth="quick").damage is None
    assert (scene.store.surveyed, scene.store.proved) == ([], [])


def test_what_the_disk_does_not_give_is_unreadable_where_it_refused_and_the_rest_is_kept(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.refused[HOME] = {2}
    for depth in ("full", "claims"):  # what this run could not read it does not believe a receipt about
        found = scene.check(depth=depth)
        assert (found.status, found.basis) == ("unreadable", "blocks")
        assert found.identity == "the disk failed at byte 8; block 2 (of 0 to 3) cannot be used"
        assert found.damage is not None
        assert found.damage.bad_blocks == (2,)


def test_a_disk_that_fails_under_one_file_does_not_keep_the_others_from_being_read(scene: Scene) -> None:
    other = artifact(b"another", id="other")
    scene.store.put(HOME, RIGHT)
    scene.store.put(comfy_file(other).path, b"another")
    scene.store.refused[HOME] = {1}
    seen = scene.look(VAE, other, depth="full")
    assert [check.status for check in seen.checks] == ["unreadable", "ok"]
    assert "at byte 4" in (seen.checks[0].identity or "")


def test_a_file_that_could_not_be_read_is_not_believed_by_its_receipt_either(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    claim = scene.store.claims[HOME]
    scene.store.claims[HOME] = replace(claim, file_digest=replace(claim.file_digest, blocks=()))
    scene.store.refused[HOME] = {1}
    assert [scene.check(depth=depth).status for depth in ("full", "claims")] == ["unreadable"] * 2


def test_a_file_that_changes_while_its_blocks_are_read_gets_no_verdict(scene: Scene) -> None:
    while_reading(scene, lambda: scene.store.put(HOME, WRONG))
    scene.store.claim_now(HOME)
    with pytest.raises(FileInUseError, match="changed while it was read"):
        scene.check(depth="full")


def test_blocks_that_were_given_up_are_not_offered_again(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.rot(HOME, WRONG)
    seen = scene.look(VAE, depth="full", rejected=frozenset({(VAE.id, HOME)}))
    assert [(check.status, check.damage) for check in seen.checks] == [("hash-mismatch", None)]


def test_bytes_with_a_second_name_are_known_to_be_shared(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    scene.store.rot(HOME, WRONG)
    scene.store.shared.add(HOME)
    damage = scene.check(depth="full").damage
    assert damage is not None
    assert damage.is_shared


# --- quick ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "status", "findings"),
    [
        ("vae.safetensors", TENSORS, "ok", ["never-proven"]),
        ("vae.sft", TENSORS, "ok", ["never-proven"]),
        ("vae.safetensors", bytes(len(TENSORS)), "hash-mismatch", []),
        ("config.json", bytes(len(TENSORS)), "ok", ["never-proven"]),
    ],
)
def test_quick_looks_at_the_header_and_says_what_was_never_verified(
    scene: Scene, name: str, data: bytes, status: str, findings: list[str]
) -> None:
    wanted = artifact(TENSORS, name=name)
    scene.store.put(comfy_file(wanted).path, data)
    seen = scene.look(wanted, depth="quick")
    assert [check.status for check in seen.checks] == [status]
    assert [finding.code for finding in seen.findings] == findings
    assert {(finding.severity, finding.remedy) for finding in seen.findings} <= {("problem", "repair")}
    assert scene.store.proved == []


def test_quick_says_nothing_of_what_has_a_receipt(scene: Scene) -> None:
    scene.store.put(HOME, RIGHT)
    scene.store.claim_now(HOME)
    assert scene.look(VAE, depth="quick").findings == ()


# --- what it is instead --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "data", "said"),
    [
        ("full", WRONG, "The base model."),
        ("full", b"<!DOCTYPE html>", "web page"),
        ("quick", b"", "empty"),
        ("full", bytes(15), "zero"),
    ],
)
def test_a_wrong_file_is_named_by_its_content(scene: Scene, depth: Depth, data: bytes, said: str) -> None:
    wanted = artifact(RIGHT, lookalikes=(lookalike(WRONG, "The base model."),))
    scene.store.put(HOME, data)
    assert said.lower() in (scene.check(wanted, depth).identity or "").lower()


def test_a_file_with_the_record_of_aria2_beside_it_is_named_as_unfinished(scene: Scene) -> None:
    header = b'{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    scene.store.put(HOME, len(header).to_bytes(8, "little") + header + b"ab")
    assert "aria2" not in (scene.check(artifact(RIGHT)).identity or "")
    scene.store.put(HOME.with_name(f"{HOME.name}.aria2"), b"record")
    assert "aria2" in (scene.check(artifact(RIGHT)).identity or "")


def test_a_lookalike_of_that_size_is_only_a_suspicion_until_it_is_read(scene: Scene) -> None:
    other = b"another model altogether"
    wanted = artifact(RIGHT, lookalikes=(lookalike(other, "The base model."),))
    scene.store.put(HOME, bytes(len(other)))
    assert (scene.check(wanted).identity or "").endswith("By its size it may be: The base model.")
    scene.store.put(HOME, bytes(len(other) + 1))
    assert "may be" not in (scene.check(wanted).identity or "")


# --- files that cannot be read, go away or change --------------------------------------------------


@pytest.mark.parametrize("depth", DEPTHS)
def test_what_cannot_be_read_is_there_and_unreadable(scene: Scene, depth: Depth) -> None:
    scene.store.unreadable[HOME] = "no permission"
    found = scene.check(depth=depth)
    assert (found.status, found.basis) == ("unreadable", "none")
    assert "no permission" in (found.identity or "")


def while_reading(scene: Scene, act: Callable[[], object]) -> None:
    scene.store.put(HOME, RIGHT)

    def meanwhile(path: Path) -> None:
        act()

    scene.store.while_reading = meanwhile


def test_what_goes_away_while_it_is_read_is_missing(scene: Scene) -> None:
    while_reading(scene, lambda: scene.store.files.pop(HOME))
    assert scene.check(depth="full").status == "missing"


def test_what_changes_while_it_is_read_gets_no_verdict(scene: Scene) -> None:
    while_reading(scene, lambda: scene.store.put(HOME, WRONG))
    with pytest.raises(FileInUseError, match="changed while it was read"):
        scene.check(depth="full")


def test_what_becomes_unreadable_while_it_is_read_is_unreadable(scene: Scene) -> None:
    while_reading(scene, lambda: scene.store.unreadable.update({HOME: "the disk failed"}))
    assert scene.check(depth="full").status == "unreadable"


def test_what_vanishes_between_two_looks_is_missing(scene: Scene) -> None:
    class Vanishing(MemoryStore):
        looks = 0

        def stamp(self, path: Path) -> Stamp | None:
            self.looks += 1
            return super().stamp(path) if self.looks == 1 else None

    other = Scene(store=Vanishing())
    other.store.put(HOME, RIGHT)
    assert other.check().status == "missing"


@pytest.mark.parametrize(("data", "status"), [(None, "missing"), (WRONG, "hash-mismatch"), (b"short", "size-mismatch")])
def test_bytes_of_an_interrupted_download_are_counted(scene: Scene, data: bytes | None, status: str) -> None:
    scene.store.held[HOME] = b"the right"
    if data is not None:
        scene.store.put(HOME, data)
    found = scene.check()
    assert (found.status, found.held_bytes) == (status, 9)


def test_a_link_that_leads_out_of_the_tree_stops_the_look(scene: Scene) -> None:
    def outside(destination: Destination) -> None:
        raise PathOutsideRootError(str(destination.path))

    scene.store.outside = outside
    with pytest.raises(PathOutsideRootError):
        scene.check()


# --- several folders -----------------------------------------------------------------------------

MODEL = artifact(RIGHT, id="model", role="diffusion_model", folder="diffusion_models")
OWN = MODELS / "diffusion_models" / MODEL.name
TWIN = MODELS / "unet" / MODEL.name


@pytest.mark.parametrize(
    ("twin", "own", "place", "status", "findings"),
    [
        (None, None, OWN, "missing", []),
        (None, RIGHT, OWN, "ok", []),
        (None, WRONG, OWN, "hash-mismatch", []),
        (RIGHT, None, TWIN, "ok", []),
        (RIGHT, WRONG, TWIN, "ok", []),
        (WRONG, None, OWN, "missing", ["stale-twin"]),
        (WRONG, RIGHT, OWN, "ok", ["stale-twin"]),
        (WRONG, WRONG, OWN, "hash-mismatch", ["stale-twin"]),
    ],
)
def test_a_stale_twin_that_comfyui_reads_first_is_a_problem(
    scene: Scene, twin: bytes | None, own: bytes | None, place: Path, status: str, findings: list[str]
) -> None:
    for path, data in ((TWIN, twin), (OWN, own)):
        if data is not None:
            scene.store.put(path, data)
    seen = scene.look(MODEL)
    assert [(check.destination.path, check.status) for check in seen.checks] == [(place, status)]
    assert [(finding.code, finding.severity, finding.path) for finding in seen.findings] == [
        (code, "problem", TWIN) for code in findings
    ]


def test_a_twin_that_is_the_same_file_through_a_linked_folder_is_no_twin(scene: Scene) -> None:
    scene.store.put(OWN, WRONG)
    scene.store.link(OWN, TWIN)
    seen = scene.look(MODEL)
    assert [(check.destination.path, check.status) for check in seen.checks] == [(OWN, "hash-mismatch")]
    assert seen.findings == ()


def test_an_unreadable_twin_is_a_stale_twin(scene: Scene) -> None:
    scene.store.put(OWN, RIGHT)
    scene.store.unreadable[TWIN] = "the link leads nowhere"
    (finding,) = scene.look(MODEL).findings
    assert "the link leads nowhere" in finding.message
    assert finding.hint is not None
    assert "unet/model.safetensors" in finding.hint


def test_each_file_system_of_the_target_is_listed_once_and_every_check_names_its_own(scene: Scene) -> None:
    fast = file_system(MODELS / "diffusion_models", device=2)
    scene.store.devices[OWN.parent] = fast
    second = artifact(b"x", id="second")
    seen = scene.look(VAE, MODEL, second)
    assert [check.device for check in seen.checks] == [1, 2, 1]
    assert {system.device for system in seen.file_systems} == {1, 2}
    assert len(seen.file_systems) == 2


# --- the same bytes elsewhere ----------------------------------------------------------------------

COPY = Path("/downloads/copy.safetensors").absolute()


def seen_copies(scene: Scene, wanted: Artifact = VAE, **more: object) -> list[Path]:
    return [copy.path for copy in scene.look(wanted, **more).copies]  # type: ignore[arg-type]


def test_copies_are_looked_for_only_where_something_is_missing(scene: Scene) -> None:
    finder = ListedFinder((local_copy(VAE, COPY),))
    scene.finders.append(finder)
    scene.store.put(COPY, RIGHT)
    assert seen_copies(scene) == [COPY]
    scene.store.put(HOME, RIGHT)
    assert seen_copies(scene) == []
    assert len(finder.asked) == 1


def test_what_kind_a_file_system_is_matters_where_something_will_be_written(scene: Scene) -> None:
    assert [each.kind for each in scene.look(VAE).file_systems] == ["ext4"]
    scene.store.files[HOME] = RIGHT
    assert [each.kind for each in scene.look(VAE).file_systems] == [None]


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_file_whose_bytes_are_in_a_cloud_is_not_read(scene: Scene, depth: Depth) -> None:
    scene.store.files[HOME] = RIGHT
    scene.store.claim_now(HOME)
    scene.store.in_cloud.add(HOME)
    with pytest.raises(FileInCloudError, match="are not on this disk") as caught:
        scene.check(depth=depth)
    assert caught.value.hint is not None
    assert "Always keep on this device" in caught.value.hint
    assert scene.store.proved == []


def test_a_copy_whose_bytes_are_in_a_cloud_is_not_offered(scene: Scene) -> None:
    scene.store.files[COPY] = RIGHT
    scene.finders.append(ListedFinder((local_copy(VAE, COPY),)))
    assert scene.look(VAE).copies != ()
    scene.store.in_cloud.add(COPY)
    assert scene.look(VAE).copies == ()


def test_each_copy_is_offered_once_in_the_order_of_the_finders(scene: Scene) -> None:
    other = COPY.with_name("other")
    for path in (COPY, other):
        scene.store.put(path, RIGHT)
    scene.finders.append(ListedFinder((local_copy(VAE, COPY),)))
    scene.finders.append(ListedFinder((local_copy(VAE, COPY, origin="HF cache"), local_copy(VAE, other))))
    assert seen_copies(scene) == [COPY, other]
    assert [copy.origin for copy in scene.look(VAE).copies] == ["--look-in", "--look-in"]


Trait = Literal["gone", "unreadable", "another size", "the file itself", "its second name", "read before"]


@pytest.mark.parametrize(
    "trait", ["gone", "unreadable", "another size", "the file itself", "its second name", "read before"]
)
def test_a_copy_that_is_known_to_be_no_good_is_not_offered(scene: Scene, trait: Trait) -> None:
    path, store = COPY, scene.store
    store.put(HOME, WRONG)
    store.put(COPY, RIGHT)
    if trait == "gone":
        del store.files[COPY]
    elif trait == "unreadable":
        store.unreadable[COPY] = "no permission"
    elif trait == "another size":
        store.put(COPY, b"short")
    elif trait == "the file itself":
        path = HOME
    elif trait == "its second name":
        store.link(HOME, COPY)
    else:
        store.put(COPY, WRONG)
        stamp = store.stamp(COPY)
        assert stamp is not None
        scene.observer.digest_of(COPY, stamp, "copy")
    scene.finders.append(ListedFinder((local_copy(VAE, path),)))
    assert seen_copies(scene) == []


def test_a_copy_that_was_read_and_is_right_is_offered(scene: Scene) -> None:
    scene.store.put(COPY, RIGHT)
    stamp = scene.store.stamp(COPY)
    assert stamp is not None
    scene.observer.digest_of(COPY, stamp, "copy")
    scene.finders.append(ListedFinder((local_copy(VAE, COPY),)))
    assert seen_copies(scene) == [COPY]


def test_a_copy_beside_an_unreadable_file_is_offered(scene: Scene) -> None:
    scene.store.unreadable[HOME] = "no permission"
    scene.store.put(COPY, RIGHT)
    scene.finders.append(ListedFinder((local_copy(VAE, COPY),)))
    assert seen_copies(scene) == [COPY]


@pytest.mark.parametrize(
    ("rejected", "offered"),
    [
        ([], ["0", "1", "2", "3"]),
        (["0"], ["1", "2", "3"]),
        (["1", "0"], ["2", "3"]),
        (["0", "1", "2"], []),  # three tries are enough
    ],
)
def test_rejected_copies_are_not_offered_again(scene: Scene, rejected: list[str], offered: list[str]) -> None:
    copies: list[LocalCopy] = []
    for name in ("0", "1", "2", "3"):
        scene.store.put(COPY.with_name(name), RIGHT)
        copies.append(local_copy(VAE, COPY.with_name(name)))
    scene.finders.append(ListedFinder(tuple(copies)))
    given = frozenset((VAE.id, COPY.with_name(name)) for name in rejected) | {("another", COPY.with_name("3"))}
    assert [path.name for path in seen_copies(scene, rejected=given)] == offered


def test_bytes_that_are_as_good_count_in_a_models_folder_and_not_in_a_snapshot(scene: Scene) -> None:
    wanted = artifact(RIGHT, accept=(variant(AS_GOOD),))
    cache = HubCacheTarget(cache=MODELS)
    finder = ListedFinder()
    scene.finders.append(finder)
    scene.look(wanted)
    scene.look(wanted, target=cache)
    assert [len(contents) for _, contents in finder.asked] == [2, 1]
    scene.store.put(hub_blob(MODELS, wanted).path, AS_GOOD)
    assert scene.check(wanted, "full", cache).status == "hash-mismatch"


def test_a_snapshot_file_is_labelled_by_its_name_in_the_repository(scene: Scene) -> None:
    cache = HubCacheTarget(cache=MODELS)
    scene.store.put(hub_blob(MODELS, VAE).path, RIGHT)
    assert scene.check(VAE, "full", cache).status == "ok"
    labels = {event.label for event in scene.events if isinstance(event, FileProgress)}
    assert labels == {"split_files/vae/vae.safetensors"}
