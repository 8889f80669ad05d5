"""Which set a run is about: the one that was named, the one that is installed, the first that suits the machine."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from provisioner.core.errors import UsageError
from provisioner.core.models import ArtifactSet, Conditions, Machine, SetChoice, TargetKind
from provisioner.files.choose_set import choose_set, machine_words, unmet_conditions
from tests.support.builders import GIB, artifact, artifact_set, gpu, machine, manifest

VAE = artifact(b"v" * 100)
ENCODER = artifact(b"e" * 300, id="encoder", folder="text_encoders")
BIG = artifact_set(VAE, id="big", conditions=Conditions(min_vram_bytes=20 * GIB))
FP4 = artifact_set(VAE, id="fp4", conditions=Conditions(min_compute_capability=(10, 0)))
SMALL = artifact_set(VAE, id="small", conditions=Conditions(min_vram_bytes=7 * GIB, platforms=("linux", "windows")))
CACHE = artifact_set(VAE, id="cache", target="hf_cache")
SMALL_CARD = machine(gpu(name="RTX 3060 Ti", memory_total_bytes=8 * GIB), driver_version="580.65")


def chosen(
    *sets: ArtifactSet,
    asked: str | None = None,
    kind: TargetKind | None = None,
    this: Machine | None = None,
    remembered: str | None = None,
    recorded: Collection[str] = (),
) -> SetChoice:
    def look() -> Machine:
        assert this is not None, "the machine was looked at"
        return this

    return choose_set(manifest(*sets), asked, kind=kind, look=look, remembered=remembered, recorded=lambda: recorded)


def test_a_named_set_is_taken_without_a_look_at_the_machine() -> None:
    assert chosen(SMALL, BIG, asked="big", remembered="small") == SetChoice(set=BIG)


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no set 'fp2'") as caught:
        chosen(SMALL, BIG, asked="fp2")
    assert caught.value.hint == "Choose one of: small, big, auto."


def test_the_installed_set_is_kept_without_a_look_at_the_machine() -> None:
    assert chosen(BIG, SMALL, remembered="small").set is SMALL
    both = artifact_set(VAE, ENCODER, id="both", conditions=BIG.conditions)
    listed = chosen(both, SMALL, recorded={VAE.id, "another"})
    assert (listed.set, listed.because) == (SMALL, "the receipt in this folder lists its files")
    assert chosen(both, SMALL, recorded={VAE.id, ENCODER.id}).set is both


@pytest.mark.parametrize("asked", [None, "auto"])
@pytest.mark.parametrize(
    ("this", "name", "because"),
    [
        (machine(gpu()), "big", ""),
        (SMALL_CARD, "small", "big needs 20.0 GiB of VRAM, but the largest GPU has 8.0 GiB"),
    ],
)
def test_else_the_first_set_that_the_machine_can_run(asked: str | None, this: Machine, name: str, because: str) -> None:
    choice = chosen(BIG, SMALL, asked=asked, this=this)
    assert (choice.set.id, choice.because, choice.machine) == (name, because, machine_words(this))


def test_auto_looks_at_the_machine_whatever_is_installed() -> None:
    assert chosen(BIG, SMALL, asked="auto", this=machine(gpu()), remembered="small", recorded={VAE.id}).set is BIG


def test_where_no_set_suits_the_default_is_taken_unless_one_was_demanded() -> None:
    choice = chosen(BIG, SMALL, this=machine(os="macos"))
    assert (choice.set, choice.because) == (BIG, "no set suits this machine; this is the default")
    assert choice.machine == "no GPU"
    with pytest.raises(UsageError) as caught:
        chosen(BIG, SMALL, asked="auto", this=machine(os="macos"))
    assert "big needs 20.0 GiB of VRAM, but no GPU was found." in str(caught.value)
    assert "small is made for linux, windows, and this is macos; needs 7.0 GiB" in str(caught.value)


def test_only_sets_for_the_named_kind_of_target_are_chosen() -> None:
    assert chosen(BIG, CACHE, kind="hf_cache").set is CACHE
    assert chosen(BIG, CACHE, SMALL, kind="comfyui", this=machine(os="macos")).set is BIG
    other = artifact_set(VAE, id="other", target="hf_cache", conditions=BIG.conditions)
    assert chosen(BIG, CACHE, other, kind="hf_cache", this=machine()).set is CACHE
    with pytest.raises(UsageError, match="klein has no set for --hf-cache"):
        chosen(BIG, SMALL, kind="hf_cache")
    with pytest.raises(UsageError, match="klein has no set for --comfyui"):
        chosen(CACHE, kind="comfyui")


def test_without_conditions_the_machine_is_not_looked_at() -> None:
    first, second = artifact_set(VAE, id="first"), artifact_set(VAE, id="second")
    assert chosen(first, second).set is first
    assert chosen(BIG).set is BIG


@pytest.mark.parametrize(
    ("this", "words"),
    [
        (machine(), "no GPU"),
        (SMALL_CARD, "RTX 3060 Ti, 8.0 GiB, driver 580.65"),
        (machine(gpu(memory_total_bytes=None), gpu(name="Large")), "Large, 24.0 GiB, and 1 more"),
        (machine(gpu(memory_total_bytes=None)), "A card"),
    ],
)
def test_a_machine_in_a_few_words(this: Machine, words: str) -> None:
    assert machine_words(this) == words


@pytest.mark.parametrize(
    ("conditions", "this", "said"),
    [
        (Conditions(), machine(), ()),
        (Conditions(platforms=("linux",)), machine(), ()),
        (Conditions(platforms=("windows", "macos")), machine(), ("is made for windows, macos, and this is linux",)),
        (Conditions(min_vram_bytes=8 * GIB), machine(gpu()), ()),
        (
            Conditions(min_vram_bytes=25 * GIB),
            machine(gpu()),
            ("needs 25.0 GiB of VRAM, but the largest GPU has 24.0 GiB",),
        ),
        (Conditions(min_vram_bytes=8 * GIB), machine(), ("needs 8.0 GiB of VRAM, but no GPU was found",)),
        (Conditions(min_vram_bytes=8 * GIB), machine(gpu(memory_total_bytes=None)), ()),
        (Conditions(min_vram_bytes=25 * GIB), machine(gpu(), gpu(memory_total_bytes=26 * GIB)), ()),
        (Conditions(min_compute_capability=(8, 9)), machine(gpu()), ()),
        (Conditions(min_compute_capability=(8, 9)), machine(gpu(compute_capability=(8, 6)), gpu()), ()),
        (
            Conditions(min_compute_capability=(10, 0)),
            machine(gpu()),
            ("needs compute capability 10.0, found 8.9",),
        ),
        (
            Conditions(min_compute_capability=(8, 9)),
            machine(gpu(vendor="amd", compute_capability=None)),
            ("needs compute capability 8.9, none is known",),
        ),
    ],
)
def test_conditions_say_what_a_machine_lacks(conditions: Conditions, this: Machine, said: tuple[str, ...]) -> None:
    assert unmet_conditions(conditions, this) == said
