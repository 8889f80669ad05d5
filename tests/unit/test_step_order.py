"""Which steps of a plan run at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.core.models import (
    BLOCK_SIZE,
    Artifact,
    Damage,
    FetchFile,
    FileStep,
    LocalCopy,
    MoveFile,
    PatchFile,
    PlaceFile,
    RecordReceipt,
)
from provisioner.files.step_order import must_wait_for, next_step, uses_network
from tests.support.builders import artifact, comfy_file, hub_blob

MODELS, CACHE = Path("/models"), Path("/cache/models--a--b")


def named(name: str, data: bytes | None = None) -> Artifact:
    return artifact(data or name.encode(), id=name, name=f"{name}.safetensors")


A, B, C = named("a"), named("b"), named("c")


def fetch(of: Artifact, replaces: str | None = None) -> FetchFile:
    return FetchFile(artifact=of, destination=comfy_file(of, MODELS), reason="missing", replaces=replaces)


def copy(of: Artifact, path: str) -> LocalCopy:
    return LocalCopy(artifact_id=of.id, path=Path(path), origin="x", device=1, size=of.size, sha256=of.sha256)


def place(of: Artifact, path: str, replaces: str | None = None) -> PlaceFile:
    return PlaceFile(
        artifact=of, destination=comfy_file(of, MODELS), reason="missing", copy=copy(of, path), replaces=replaces
    )


def move(of: Artifact, path: str) -> MoveFile:
    return MoveFile(artifact=of, destination=comfy_file(of, MODELS), reason="misplaced", copy=copy(of, path))


def patch(of: Artifact, *bad: int, held: tuple[int, ...] = ()) -> PatchFile:
    damage = Damage(
        size=of.size,
        sha256=of.sha256,
        block_size=BLOCK_SIZE,
        digests=(of.sha256,),
        trusted_by="receipt",
        observed_size=of.size,
        bad_blocks=bad,
        held_blocks=held,
    )
    return PatchFile(artifact=of, destination=comfy_file(of, MODELS), reason="damaged", damage=damage, way="in-place")


def record(of: Artifact) -> RecordReceipt:
    return RecordReceipt(artifact=of, destination=comfy_file(of, MODELS), reason="no receipt")


def blob(of: Artifact, replaces: str | None = None) -> FetchFile:
    return FetchFile(artifact=of, destination=hub_blob(CACHE, of), reason="missing", replaces=replaces)


HOME_OF_B = str(comfy_file(B, MODELS).path)


@pytest.mark.parametrize(
    ("step", "earlier", "waits"),
    [
        (fetch(A), fetch(B), False),
        (fetch(A, "other bytes"), fetch(B, "other bytes"), False),
        (fetch(A), fetch(A), True),
        (fetch(replace(B, id="a")), fetch(A), True),
        (replace(fetch(A), destination=comfy_file(B, MODELS)), fetch(B), True),
        (patch(A, 0), patch(B, 0), False),
        (patch(A, 0), fetch(B), False),
        (place(A, HOME_OF_B), fetch(B), True),  # its bytes arrive first
        (place(A, HOME_OF_B), patch(B, 0), True),
        (place(A, "/elsewhere/a"), patch(B, 0), True),  # a link may lead to what is repaired
        (patch(B, 0), place(A, "/elsewhere/a"), True),
        (place(A, "/elsewhere/a"), fetch(B, "other bytes"), True),
        (fetch(B, "other bytes"), place(A, "/elsewhere/a"), True),
        (place(A, "/elsewhere/a"), fetch(B), False),
        (fetch(B), place(A, "/elsewhere/a"), False),
        (place(A, "/elsewhere/a"), place(B, "/elsewhere/b"), True),
        (move(A, "/elsewhere/a"), record(B), True),
        (move(A, "/elsewhere/a"), fetch(B), False),
        (record(A), record(B), True),
        (record(A), fetch(B), False),
        (replace(fetch(A), held_bytes=A.size), replace(fetch(B), held_bytes=B.size), False),
        (patch(A), patch(B), False),  # both are only too long
        (blob(A), blob(B), False),
        (blob(replace(A, id="other", name="other.json")), blob(A), True),  # one blob
        (blob(A), blob(B, "other bytes"), True),
        (blob(A, "other bytes"), blob(B), True),
        (blob(A, "other bytes"), fetch(B), False),
    ],
)
def test_what_shares_a_file_goes_in_the_plans_order(step: FileStep, earlier: FileStep, waits: bool) -> None:
    assert must_wait_for(step, earlier) == waits


def test_what_is_here_already_needs_no_network() -> None:
    assert uses_network(fetch(A))
    assert uses_network(patch(A, 0))
    here: tuple[FileStep, ...] = (patch(A), patch(A, 0, held=(0,)), place(A, "/x"), move(A, "/x"), record(A))
    assert not any(uses_network(step) for step in here)
    assert not uses_network(replace(fetch(A), held_bytes=A.size))


@pytest.mark.parametrize(
    ("over", "running", "number"),
    [
        ((), {}, 0),
        ((), {0: False}, 2),  # a copy needs no network, and waits for none of them
        ((), {0: False, 2: True}, None),
        ((), {0: True}, 1),  # the first waits for its digest
        ((), {0: True, 1: False}, 2),
        ((), {0: True, 1: True}, 2),
        ((), {0: True, 1: True, 2: True}, None),  # as many as may run
        ((0, 2), {}, 1),
        ((0, 1, 2), {}, 3),
        ((0, 1), {2: True}, None),  # 3 has the artifact of 2
        ((0, 1, 2, 3), {}, None),
    ],
)
def test_the_next_step_is_the_first_that_nothing_holds_up(
    over: tuple[int, ...], running: Mapping[int, bool], number: int | None
) -> None:
    steps = (fetch(A), fetch(B), place(C, "/elsewhere/c"), fetch(C))
    assert next_step(steps, over, running, at_once=3) == number
