"""One manifest of the sets of several."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provisioner.core.errors import UsageError
from provisioner.core.models import ArtifactSet, Conditions, Licence, Lock, Manifest
from provisioner.manifest.combine import combined
from tests.support.builders import artifact, artifact_set, hub_file, manifest

ENCODER = artifact(b"the encoder", id="encoder", folder="text_encoders", name="q.safetensors")
ONE = artifact(b"one", id="model", folder="diffusion_models", name="one.safetensors")
OTHER = artifact(b"other", id="model", folder="diffusion_models", name="other.safetensors")
GIB = 2**30


def of(name: str, *artifacts: object, **more: object) -> tuple[Manifest, ArtifactSet]:
    chosen = artifact_set(*artifacts, id=f"set-{name}", **more)  # type: ignore[arg-type]
    return manifest(chosen, id=name, title=name.upper()), chosen


def test_a_file_that_two_sets_share_is_in_it_once_with_the_sources_of_both() -> None:
    elsewhere = replace(ENCODER, sources=(hub_file("other/q.safetensors"), *ENCODER.sources))
    whole = combined([of("a", ONE, ENCODER), of("b", OTHER, elsewhere)])
    assert (whole.id, whole.title) == ("a+b", "A and B")
    (chosen,) = whole.sets
    assert chosen.id == whole.default_set == "set-a+set-b"
    assert [each.name for each in chosen.artifacts] == ["one.safetensors", "q.safetensors", "other.safetensors"]
    assert chosen.artifacts[1].sources == (*ENCODER.sources, hub_file("other/q.safetensors"))
    assert chosen.recipe is None


def test_two_files_of_one_id_get_ids_of_their_own() -> None:
    ids = [each.id for each in combined([of("a", ONE), of("b", OTHER)]).artifacts]
    assert ids == ["model", f"model-{OTHER.sha256[:12]}"]


@pytest.mark.parametrize("name", ["one.safetensors", "ONE.safetensors"])
def test_other_bytes_in_one_place_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"b wants other bytes as diffusion_models/"):
        combined([of("a", ONE), of("b", replace(OTHER, name=name))])


def test_a_lock_stands_alone() -> None:
    locked, chosen = of("b", OTHER)
    lock = Lock(manifest_sha256="0" * 64, locked_on="2026-11-23")
    with pytest.raises(UsageError, match="b is locked"):
        combined([of("a", ONE), (replace(locked, lock=lock), chosen)])


def test_every_licence_is_in_it_and_none_twice() -> None:
    (a, one), (b, two), (c, three) = of("a", ONE), of("b", OTHER), of("c", ENCODER)
    other = Licence(name="NC", url="https://l", is_commercial_use_allowed=False, id="nc")
    whole = combined([(a, one), (b, two), (replace(c, licence=other), three)])
    assert whole.licences == (a.licence, other)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (Conditions(), Conditions(), Conditions()),
        (
            Conditions(min_vram_bytes=7 * GIB, platforms=("linux", "windows")),
            Conditions(min_vram_bytes=11 * GIB, min_compute_capability=(8, 9)),
            Conditions(min_vram_bytes=11 * GIB, min_compute_capability=(8, 9), platforms=("linux", "windows")),
        ),
        (
            Conditions(platforms=("linux", "windows"), min_compute_capability=(10, 0)),
            Conditions(platforms=("windows", "macos"), min_compute_capability=(8, 9)),
            Conditions(platforms=("windows",), min_compute_capability=(10, 0)),
        ),
    ],
)
def test_a_machine_has_to_suit_every_set(first: Conditions, second: Conditions, expected: Conditions) -> None:
    whole = combined([of("a", ONE, conditions=first), of("b", OTHER, conditions=second)])
    assert whole.sets[0].conditions == expected
