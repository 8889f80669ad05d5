"""What is still needed: every status of every file, and what stops a plan before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.core.errors import FileTooLargeError, InsufficientSpaceError, OfflineError, PathTooLongError
from provisioner.core.models import (
    Check,
    Conditions,
    Damage,
    FetchFile,
    FilesPlan,
    Finding,
    HubCacheTarget,
    HubFile,
    Inventory,
    LocalCopy,
    PatchFile,
    PlaceFile,
    RecordReceipt,
    UrlFile,
)
from provisioner.files.planner import (
    SPACE_MARGIN,
    check_file_sizes,
    check_offline,
    check_path_lengths,
    check_space,
    plan,
)
from tests.support.builders import (
    GIB,
    MODELS,
    artifact,
    artifact_set,
    check,
    comfy_file,
    file_system,
    hub_blob,
    hub_file,
    inventory,
    local_copy,
    machine,
    manifest,
    variant,
)

VAE = artifact(b"v" * 100)
ENCODER = artifact(b"e" * 300, id="encoder", folder="text_encoders")


def plan_for(*checks: Check, **more: object) -> FilesPlan:
    wanted = artifact_set(*(each.artifact for each in checks))
    return plan(manifest(wanted), wanted, None, inventory(*checks, **more))


# --- steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "steps"),
    [
        (check(VAE, "ok"), []),
        (check(VAE, "ok", basis="size", is_recorded=False), []),
        (check(VAE, "ok", basis="receipt", is_recorded=True), []),
        (check(VAE, "ok", basis="sha256", is_recorded=True), []),
        (check(VAE, "ok", basis="sha256", is_recorded=False), [RecordReceipt]),
        (check(VAE, "missing"), [FetchFile]),
        (check(VAE, "size-mismatch", observed_size=99), [FetchFile]),
        (check(VAE, "hash-mismatch", observed_size=100), [FetchFile]),
        (check(VAE, "unreadable"), [FetchFile]),
    ],
    ids=lambda value: f"{value.status}-{value.basis}" if isinstance(value, Check) else "",
)
def test_each_status_has_its_steps(found: Check, steps: list[type]) -> None:
    made = plan_for(found)
    assert [type(step) for step in made.steps] == steps
    replaced = [step.replaces for step in made.steps if isinstance(step, FetchFile) and step.replaces]
    assert bool(replaced) == (found.status not in {"ok", "missing"})


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (check(VAE, "missing"), "missing"),
        (check(VAE, "missing", held_bytes=40), "missing; an interrupted download is continued"),
        (check(VAE, "size-mismatch", observed_size=1234567), "1,234,567 bytes instead of 100"),
        (check(VAE, "size-mismatch", observed_size=1, identity="It is a web page."), "1 bytes instead of 100: It is a"),
        (check(VAE, "hash-mismatch"), "other bytes of the right size"),
        (check(VAE, "hash-mismatch", identity="The base model."), "other bytes of the right size: The base model."),
        (check(VAE, "unreadable", identity="No permission."), "cannot be read: No permission."),
        (check(VAE, "ok", basis="sha256", is_recorded=False), "its receipt is missing, incomplete or older than"),
    ],
)
def test_each_step_says_why(found: Check, reason: str) -> None:
    assert all(reason in step.reason for step in plan_for(found).steps)


def test_an_interrupted_download_counts_only_what_is_left() -> None:
    made = plan_for(check(VAE, "missing", held_bytes=40), check(ENCODER, "ok"))
    (step,) = made.steps
    assert isinstance(step, FetchFile)
    assert (step.held_bytes, step.bytes_to_fetch, made.bytes_to_fetch, made.bytes_saved) == (40, 60, 60, 340)


def test_a_copy_on_this_machine_is_preferred_to_the_network() -> None:
    first, second = (local_copy(VAE, Path(name)) for name in ("/a", "/b"))
    made = plan_for(check(VAE, "missing"), check(ENCODER, "missing"), copies=(first, second))
    place, fetch = made.steps
    assert isinstance(place, PlaceFile)
    assert isinstance(fetch, FetchFile)
    assert place.copy == first
    assert place.reason == f"missing; --look-in may hold the same bytes: {Path('/a')}"
    assert (made.bytes_to_fetch, made.bytes_saved) == (300, 100)


def test_a_copy_lying_under_another_wanted_name_is_taken_before_that_is_cleared() -> None:
    wrong_vae = check(VAE, "size-mismatch", observed_size=300)
    copy = local_copy(ENCODER, comfy_file(VAE).path)
    made = plan_for(wrong_vae, check(ENCODER, "missing"), copies=(copy,))
    assert [(step.artifact.id, step.kind) for step in made.steps] == [("encoder", "place-file"), ("vae", "fetch-file")]


def test_two_files_with_each_others_names_still_make_a_plan() -> None:
    swapped = (local_copy(ENCODER, comfy_file(VAE).path), local_copy(VAE, comfy_file(ENCODER).path))
    made = plan_for(check(VAE, "size-mismatch"), check(ENCODER, "size-mismatch"), copies=swapped)
    assert sorted((step.artifact.id, step.kind) for step in made.steps) == [
        ("encoder", "place-file"),
        ("vae", "place-file"),
    ]
    assert all(isinstance(step, PlaceFile) and step.replaces for step in made.steps)


# --- repairing by blocks -----------------------------------------------------------------------


def damage(bad: tuple[int, ...] = (1,), **more: object) -> Damage:
    """Return damage to the VAE: a hundred bytes in seven blocks of sixteen."""
    known: dict[str, object] = {
        "size": 100,
        "sha256": VAE.sha256,
        "block_size": 16,
        "digests": tuple("abcdefg"),
        "trusted_by": "receipt",
        "observed_size": 100,
        "bad_blocks": bad,
    }
    return Damage(**{**known, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "more", "way", "bytes_to_fetch", "room", "said"),
    [
        (damage(), {}, "in-place", 16, 32, "16 bytes of 100 bytes are fetched and written in place once"),
        (damage((1, 6)), {}, "in-place", 20, 40, "20 bytes of 100 bytes are fetched"),
        (damage((1, 6), held_blocks=(1,)), {}, "in-place", 4, 24, "4 bytes of 100 bytes are fetched"),
        (damage((), observed_size=130), {}, "in-place", 0, 30, "the 30 bytes that are too much are cut off"),
        (damage((5, 6), observed_size=90), {}, "continue", 20, 30, "it is continued as a download: 20 bytes of"),
        (damage((5, 6), observed_size=90), {"held_bytes": 16}, "beside", 20, 100, "copied into a new file"),
        (
            damage((5, 6), observed_size=90, trusted_by="header"),
            {"status": "size-mismatch"},
            "beside",
            20,
            100,
            "and more if the whole does not come right",
        ),
        (
            damage(is_shared=True, held_blocks=(1,)),
            {},
            "beside",
            16,
            100,
            "copied into a new file, 16 bytes of 100 bytes are fetched",
        ),
        (damage(unreadable="failed at byte 20"), {"status": "unreadable"}, "beside", 16, 100, "copied into a new file"),
    ],
)
def test_damage_is_repaired_in_the_way_that_suits_it(
    found: Damage, more: dict[str, object], way: str, bytes_to_fetch: int, room: int, said: str
) -> None:
    seen = check(VAE, **{"status": "hash-mismatch", "damage": found, **more})  # type: ignore[arg-type]
    made = plan_for(seen, check(ENCODER))
    (step,) = made.steps
    assert isinstance(step, PatchFile)
    assert (step.way, step.bytes_to_fetch, step.held_bytes) == (way, bytes_to_fetch, 100 - bytes_to_fetch)
    assert said in step.reason
    assert (made.bytes_to_fetch, made.bytes_saved) == (bytes_to_fetch, 400 - bytes_to_fetch)
    assert [need.needed_bytes for need in made.space] == [room + SPACE_MARGIN]


def test_a_download_that_is_nearly_done_is_continued_with_the_right_blocks_of_the_file() -> None:
    """Its log may lie, and then nothing but the bad blocks is fetched."""
    made = plan_for(check(VAE, "hash-mismatch", damage=damage((1, 2)), held_bytes=96))
    (step,) = made.steps
    assert isinstance(step, PatchFile)
    assert (step.way, step.bytes_to_fetch) == ("beside", 32)


def test_the_same_bytes_on_this_machine_are_preferred_to_a_repair() -> None:
    made = plan_for(check(VAE, "hash-mismatch", damage=damage()), copies=(local_copy(VAE, Path("/a")),))
    assert [step.kind for step in made.steps] == ["place-file"]


@pytest.mark.parametrize(("sources", "kind"), [((hub_file("as-good"),), "patch-file"), ((), "fetch-file")])
def test_what_is_as_good_is_repaired_from_who_publishes_it(sources: tuple[HubFile, ...], kind: str) -> None:
    good = variant(b"g" * 100, sources=sources)
    wanted = artifact(b"v" * 100, accept=(good,))
    made = plan_for(check(wanted, "hash-mismatch", damage=damage(sha256=good.sha256)))
    (step,) = made.steps
    assert step.kind == kind
    if isinstance(step, PatchFile):
        assert (step.artifact.sha256, step.artifact.sources) == (good.sha256, sources)


def test_a_truncated_blob_is_repaired_beside_it() -> None:
    place = hub_blob(Path("/cache"), VAE)
    made = plan_for(check(VAE, "size-mismatch", destination=place, damage=damage((6,), observed_size=96)))
    (step,) = made.steps
    assert isinstance(step, PatchFile)
    assert step.way == "beside"


def test_offline_counts_what_a_repair_would_fetch_and_lets_a_cut_pass() -> None:
    check_offline(plan_for(check(VAE, "size-mismatch", damage=damage((), observed_size=130))))
    with pytest.raises(OfflineError, match=r"vae.safetensors \(16 bytes"):
        check_offline(plan_for(check(VAE, "hash-mismatch", damage=damage())))


# --- misplaced files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "more", "kind", "said"),
    [
        ("checkpoints/x.safetensors", {}, "move-file", "in a folder where nothing can use it: it is moved"),
        ("loras/sub/x.safetensors", {}, "move-file", "it is moved"),
        ("vae/other-name.safetensors", {}, "place-file", "which stays, because a workflow may name it"),
        ("custom_node_of_somebody/x.safetensors", {}, "place-file", "may hold the same bytes"),
        ("x.safetensors", {}, "place-file", "may hold the same bytes"),
        (".klein-setup/aside/t/x.safetensors", {}, "place-file", "may hold the same bytes"),
        ("checkpoints/x.safetensors", {"device": 2}, "place-file", "which stays"),  # a rename cannot reach it
    ],
)
def test_a_file_is_moved_from_where_nothing_can_use_it_and_linked_from_where_something_may(
    path: str, more: dict[str, object], kind: str, said: str
) -> None:
    copy = local_copy(VAE, MODELS / path, **more)  # type: ignore[arg-type]
    (step,) = plan_for(check(VAE, "missing"), copies=(copy,)).steps
    assert step.kind == kind
    assert said in step.reason


def test_a_file_that_lies_where_another_belongs_is_not_moved() -> None:
    copy = local_copy(VAE, comfy_file(ENCODER).path)
    made = plan_for(check(VAE, "missing"), check(ENCODER, "size-mismatch"), copies=(copy,))
    assert [step.kind for step in made.steps] == ["place-file", "fetch-file"]


def test_nothing_is_moved_within_or_into_an_hf_cache() -> None:
    copy = local_copy(VAE, MODELS / "checkpoints" / "x.safetensors")
    seen = inventory(check(VAE, "missing", destination=hub_blob(Path("/cache"), VAE)), copies=(copy,))
    cached = replace(seen, target=HubCacheTarget(cache=Path("/cache")))
    wanted = artifact_set(VAE)
    assert [step.kind for step in plan(manifest(wanted), wanted, None, cached).steps] == ["place-file"]


def test_a_plan_carries_what_was_seen() -> None:
    finding = Finding(code="stale-twin", severity="problem", message="Something is read first.", remedy="by-hand")
    checks = (check(VAE, "ok"), check(ENCODER, "missing"))
    made = plan_for(*checks, findings=(finding,))
    assert (made.checks, made.findings) == (checks, (finding,))


# --- space ---------------------------------------------------------------------------------------


def test_space_is_counted_for_each_file_system_with_a_margin() -> None:
    slow, fast = file_system(Path("/slow"), device=1), file_system(Path("/fast"), device=2)
    checks = (check(VAE, "missing", device=1, held_bytes=10), check(ENCODER, "missing", device=2))
    made = plan_for(*checks, file_systems=(slow, fast, file_system(Path("/idle"), device=3)))
    assert [(need.file_system.path, need.needed_bytes) for need in made.space] == [
        (Path("/slow"), 90 + SPACE_MARGIN),
        (Path("/fast"), 300 + SPACE_MARGIN),
        (Path("/idle"), 0),
    ]


@pytest.mark.parametrize(("taken", "needed"), [(0, 100), (40, 60), (99, 1), (100, 0), (4096, 0)])
@pytest.mark.parametrize("damaged", [None, damage((5, 6), is_shared=True)], ids=["missing", "damaged"])
def test_what_a_part_file_has_taken_is_room(taken: int, needed: int, damaged: Damage | None) -> None:
    made = plan_for(check(VAE, "hash-mismatch" if damaged else "missing", taken_bytes=taken, damage=damaged))
    assert [need.needed_bytes for need in made.space] == [needed + SPACE_MARGIN if needed else 0]


@pytest.mark.parametrize(("device", "needed"), [(1, 0), (2, 100 + SPACE_MARGIN)])
def test_a_copy_needs_room_only_across_file_systems(device: int, needed: int) -> None:
    copy = local_copy(VAE, Path("/copy"), device=device)
    made = plan_for(check(VAE, "hash-mismatch", device=1), copies=(copy,))
    assert [need.needed_bytes for need in made.space] == [needed]


@pytest.mark.parametrize(
    ("kind", "needed"), [("ext4", 0), (None, 0), ("exfat", 100 + SPACE_MARGIN), ("FAT32", 100 + SPACE_MARGIN)]
)
def test_a_copy_on_a_file_system_without_links_takes_its_size_and_that_is_said(kind: str | None, needed: int) -> None:
    copy = local_copy(VAE, Path("/copy"), device=1)
    made = plan_for(check(VAE, "missing"), copies=(copy,), file_systems=(file_system(kind=kind),))
    assert [need.needed_bytes for need in made.space] == [needed]
    assert [each.code for each in made.findings] == (["no-links"] if needed else [])


@pytest.mark.parametrize(
    ("kind", "size", "is_refused"),
    [
        ("vfat", 2**32, True),
        ("FAT32", 2**32, True),
        ("vfat", 2**32 - 1, False),
        ("exfat", 2**40, False),
        ("NTFS", 2**40, False),
        (None, 2**40, False),
    ],
)
def test_a_file_that_is_too_large_for_fat_is_refused_before_the_first_byte(
    kind: str | None, size: int, is_refused: bool
) -> None:
    large = replace(VAE, size=size)
    made = plan_for(check(large, "missing"), file_systems=(file_system(kind=kind, free_bytes=2**50),))
    if not is_refused:
        check_file_sizes(made)
        return
    with pytest.raises(FileTooLargeError, match="no file there can have more than 4,294,967,295 bytes") as caught:
        check_file_sizes(made)
    assert caught.value.hint is not None
    assert "NTFS" in caught.value.hint


def test_a_file_that_is_there_may_be_as_large_as_it_is() -> None:
    made = plan_for(check(replace(VAE, size=2**33), "ok"), file_systems=(file_system(kind="vfat"),))
    check_file_sizes(made)


@pytest.mark.parametrize(("spare", "is_enough"), [(0, True), (-1, False)])
def test_full_disk_is_refused_before_the_first_byte(spare: int, is_enough: bool) -> None:
    system = file_system(free_bytes=100 + SPACE_MARGIN + spare)
    made = plan_for(check(VAE, "missing"), file_systems=(system,))
    assert [need.is_enough for need in made.space] == [is_enough]
    if is_enough:
        check_space(made.space)
        return
    with pytest.raises(InsufficientSpaceError, match="nothing was fetched") as caught:
        check_space(made.space)
    assert caught.value.context == {"needed": [100 + SPACE_MARGIN], "free": [system.free_bytes]}
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("Free 1 bytes")


@pytest.mark.parametrize(
    ("status", "length", "longest", "is_refused"),
    [
        ("missing", 214, 259, False),
        ("missing", 215, 259, True),  # its backup, beside the model, could not be opened
        ("hash-mismatch", 260, 259, True),
        ("ok", 300, 259, False),  # it is there, so it can be opened
        ("missing", 300, None, False),  # Linux, macOS, and Windows where long paths are allowed
    ],
)
def test_a_path_that_windows_would_not_open_is_refused_before_the_first_byte(
    status: str, length: int, longest: int | None, is_refused: bool
) -> None:
    place = comfy_file(VAE, Path("/", "x" * (length - len(str(comfy_file(VAE, Path("/")).path)) - 1)))
    assert len(str(place.path)) == length
    checks = [check(VAE, status, destination=place)]
    if not is_refused:
        check_path_lengths(checks, longest)
        return
    with pytest.raises(PathTooLongError, match=f"has {length} characters; Windows opens up to 259") as caught:
        check_path_lengths(checks, longest)
    assert caught.value.exit_status == 4
    assert caught.value.hint is not None
    assert r"HKLM\SYSTEM\CurrentControlSet\Control\FileSystem," in caught.value.hint


@pytest.mark.parametrize(("length", "longest", "is_refused"), [(67, 259, False), (68, 259, True), (300, None, False)])
def test_an_environment_whose_files_windows_would_not_open_is_refused(
    length: int, longest: int | None, is_refused: bool
) -> None:
    where = Path("/" + "x" * (length - 1))
    if not is_refused:
        check_path_lengths([], longest, where)
        return
    with pytest.raises(PathTooLongError, match=f"has {length} characters; .* torch's files have up to 192 more"):
        check_path_lengths([], longest, where)


# --- offline -------------------------------------------------------------------------------------


def test_offline_lists_every_file_that_would_be_fetched_and_where_it_is_published() -> None:
    signed = artifact(b"x", id="url", sources=(UrlFile(url="https://example.org/x?token=secret"),))
    made = plan_for(check(VAE, "missing", held_bytes=40), check(ENCODER, "ok"), check(signed, "missing"))
    with pytest.raises(OfflineError) as caught:
        check_offline(made)
    assert "2 of 3 files" in str(caught.value)
    assert "vae.safetensors (60 bytes, org/name/split_files/vae/vae.safetensors)" in str(caught.value)
    assert "https://example.org/x)" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.context == {"missing": ["vae.safetensors", "url.safetensors"]}


def test_offline_is_no_obstacle_when_copies_are_here() -> None:
    check_offline(plan_for(check(VAE, "missing"), copies=(local_copy(VAE, Path("/copy")),)))


# --- the set -------------------------------------------------------------------------------------

BIG = artifact_set(VAE, id="big", conditions=Conditions(min_vram_bytes=20 * GIB))


def test_a_set_that_does_not_suit_is_a_warning_of_the_plan() -> None:
    made = plan(manifest(BIG), BIG, machine(), inventory(check(VAE, "ok")))
    assert [(finding.code, finding.severity) for finding in made.findings] == [("set-does-not-suit", "warning")]
    assert "big needs 20.0 GiB" in made.findings[0].message
    assert made.steps == ()


def test_without_a_machine_nothing_is_said_about_conditions() -> None:
    assert plan(manifest(BIG), BIG, None, inventory(check(VAE, "ok"))).findings == ()


def test_an_empty_inventory_makes_an_empty_plan() -> None:
    nothing: tuple[LocalCopy, ...] = ()
    wanted = artifact_set()
    empty = Inventory(target=inventory().target, checks=(), copies=nothing)
    assert plan(manifest(wanted), wanted, machine(), empty).steps == ()
