"""Which parts a run has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.commands.parts import can_generate, needs_program, parse_parts
from provisioner.core.errors import UsageError
from provisioner.core.models import ArtifactSet, ManifestWorkflow
from provisioner.manifest.parse import parse_manifest

MANIFEST = Path(__file__).resolve().parents[2] / "manifests" / "flux2-klein-4b.yaml"
SETS = parse_manifest(MANIFEST.read_text(encoding="utf-8"), file="m").sets


def without(role: str) -> ArtifactSet:
    return replace(SETS[0], artifacts=tuple(each for each in SETS[0].artifacts if each.role != role))


@pytest.mark.parametrize("wanted", SETS, ids=lambda each: each.id)
def test_every_shipped_set_can_draw_and_so_has_every_part(wanted: ArtifactSet) -> None:
    assert can_generate(wanted)
    assert parse_parts(None, wanted) == {"files", "environment", "smoke"}


@pytest.mark.parametrize("role", ["diffusion_model", "text_encoder", "vae"])
def test_a_set_that_lacks_a_model_has_files_and_no_image(role: str) -> None:
    assert parse_parts(None, without(role)) == {"files"}
    with pytest.raises(UsageError, match="cannot generate"):
        parse_parts("files,smoke", without(role))
    assert parse_parts("files,environment", without(role)) == {"files", "environment"}


def test_a_whole_model_without_a_recipe_gets_its_program_and_no_image() -> None:
    wanted = replace(SETS[0], recipe=None)
    assert needs_program(wanted)
    assert not can_generate(wanted)
    assert parse_parts(None, wanted) == {"files", "environment"}
    with pytest.raises(UsageError, match="its manifest has no recipe and no workflow for it") as caught:
        parse_parts("smoke", wanted)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_set_with_a_workflow_makes_an_image_whatever_its_files_are(kept: int) -> None:
    plain = replace(SETS[0], recipe=None, artifacts=SETS[0].artifacts[:kept])
    wanted = replace(plain, workflow=ManifestWorkflow(name="image_x"))
    assert needs_program(wanted)
    assert can_generate(wanted)
    assert parse_parts(None, wanted) == {"files", "environment", "smoke"}
    assert not can_generate(replace(plain, workflow=None))


def test_one_file_with_everything_in_it_is_a_whole_model() -> None:
    checkpoint = replace(SETS[0].artifacts[0], role="checkpoint")
    assert needs_program(replace(SETS[0], artifacts=(checkpoint,), recipe=None))


@pytest.mark.parametrize("text", ["smoke", "files, smoke", "environment"])
def test_parts_that_are_named_are_the_ones(text: str) -> None:
    assert parse_parts(text, SETS[0]) == {part.strip() for part in text.split(",")}


@pytest.mark.parametrize("text", ["", "file", "files,,smoke", "files;smoke"])
def test_a_part_that_does_not_exist_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="knows no part"):
        parse_parts(text, SETS[0])
