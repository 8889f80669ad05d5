"""The graph of the smoke test: the one a server drew from, the names of its files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.comfyui.release_models import NodeUse
from provisioner.comfyui.releases import parse_comfy_table
from provisioner.comfyui.server.api import ListedModels
from provisioner.core.errors import ModelNotListedError, PathOutsideRootError, UsageError
from provisioner.core.models import Artifact, ArtifactSet, Envelope, Recipe, Role
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_manifest_text, read_table_text, shipped_manifests
from provisioner.smoke_test.graph import (
    DECODE,
    EMBED,
    ENCODE,
    GUIDER,
    LATENT,
    LOAD_ENCODER,
    LOAD_MODEL,
    LOADERS,
    NOISE,
    PHASES,
    SAMPLE,
    SAMPLER_NAME,
    SAVE,
    SCHEDULER,
    SHIFT,
    Graph,
    build_graph,
    is_guided,
    names_for,
    options_for,
    pick_listed,
    recipe_of,
)
from provisioner.smoke_test.results import DEFAULT_PROMPT, ImageOptions, ModelNames
from tests.support.builders import artifact, artifact_set

RECORDINGS = Path(__file__).resolve().parents[1] / "contract" / "data" / "comfyui-0.33.0"
NAMES = ModelNames(
    diffusion_model="flux-2-klein-4b-fp8.safetensors", text_encoder="qwen_3_4b.safetensors", vae="flux2-vae.safetensors"
)
LISTED = ListedModels(
    diffusion_models=("empty.safetensors", "flux-2-klein-4b-fp8.safetensors"),
    text_encoders=("qwen_3_06b.safetensors", "qwen_3_4b.safetensors"),
    vaes=("ae.safetensors", "flux2-vae.safetensors", "pixel_space"),
    clip_types=("flux2",),
)


def shipped_sets() -> list[ArtifactSet]:
    parsed = [parse_manifest(read_manifest_text(name)[0], file=name) for name in shipped_manifests()]
    return [replace(each, id=f"{manifest.id}:{each.id}") for manifest in parsed for each in manifest.sets]


SETS = shipped_sets()
DRAWN_SETS = [each for each in SETS if each.recipe is not None]
KLEIN = recipe_of(next(each for each in SETS if each.id == "flux2-klein-4b:fp8"))
TABLE = parse_comfy_table(read_table_text("comfyui")[0], file="comfyui.yaml")


def of_role(role: Role, folder: str | None = None, name: str | None = None) -> Artifact:
    folders = {"diffusion_model": "diffusion_models", "text_encoder": "text_encoders", "vae": "vae"}
    return artifact(id=role, role=role, folder=folder or folders[role], name=name or f"{role}.safetensors")


ENCODER, VAE = of_role("text_encoder"), of_role("vae")


def shape_of(graph: Graph) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {node_id: (node["class_type"], tuple(node["inputs"])) for node_id, node in graph.items()}


def links_of(graph: Graph) -> list[tuple[str, str]]:
    return [
        (node_id, value[0])
        for node_id, node in graph.items()
        for value in node["inputs"].values()
        if type(value) is list
    ]


# --- the graph ------------------------------------------------------------------------------------


def test_the_graph_is_the_one_that_comfyui_0_33_0_accepted_and_drew() -> None:
    recorded = json.loads((RECORDINGS / "ok_fp8.json").read_text(encoding="utf-8"))[0]["request"]
    options = ImageOptions(prompt="A cat holding a sign that says hello world", seed=0, width=64, height=64)
    recorded["13"]["inputs"]["filename_prefix"] = "klein-setup"
    assert build_graph(KLEIN, NAMES, options) == recorded


@pytest.mark.parametrize("chosen", DRAWN_SETS, ids=lambda each: each.id)
def test_every_shipped_set_with_a_recipe_gives_a_graph(chosen: ArtifactSet) -> None:
    names = names_for(chosen)
    graph = build_graph(recipe_of(chosen), names, options_for(chosen, seed=7))
    assert [
        graph[node]["inputs"][key] for node, key in (("1", "unet_name"), ("2", "clip_name"), ("3", "vae_name"))
    ] == [
        names.diffusion_model,
        names.text_encoder,
        names.vae,
    ]
    assert graph[NOISE]["inputs"] == {"noise_seed": 7}
    assert json.loads(json.dumps(graph)) == graph


@pytest.mark.parametrize("chosen", SETS, ids=lambda each: each.id)
def test_every_shipped_set_has_the_steps_and_guidance_of_its_model(chosen: ArtifactSet) -> None:
    options = options_for(chosen, seed=1)
    assert (options.steps, options.guidance) == (chosen.envelope.steps, chosen.envelope.guidance)
    if "klein" in chosen.id:
        is_base = "base" in chosen.id
        assert is_guided(options) == is_base
        assert is_base or (options.steps, options.guidance) == (4, 1.0)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("is_tiled", [False, True])
def test_the_table_of_nodes_is_what_the_graph_uses(guidance: float, is_tiled: bool) -> None:
    graph = build_graph(KLEIN, NAMES, ImageOptions(guidance=guidance, has_tiled_decode=is_tiled))
    uses: set[NodeUse] = {"always", "guided" if guidance != 1.0 else "distilled"}
    uses.add("tiled-decode" if is_tiled else "whole-decode")
    needed = {(each.class_type, each.inputs) for each in TABLE.nodes if each.use in uses}
    assert set(shape_of(graph).values()) == needed


def test_inputs_are_those_the_server_describes() -> None:
    shapes = {name: set(inputs) for name, inputs in shape_of(build_graph(KLEIN, NAMES, ImageOptions())).values()}
    checked = 0
    for path in RECORDINGS.glob("GET_object_info_*.json"):
        for name, described in json.loads(path.read_text(encoding="utf-8"))["body"].items():
            required = set(described["input"]["required"])
            assert required <= shapes[name] <= required | set(described["input"].get("optional", {})), name
            checked += 1
    assert checked == 5


def test_guidance_takes_an_empty_text_for_its_negative_and_guidance_1_a_zeroed_one() -> None:
    plain, guided = (build_graph(KLEIN, NAMES, ImageOptions(guidance=each)) for each in (1.0, 5.0))
    assert plain["5"] == {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["4", 0]}}
    assert guided["5"] == {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["2", 0]}}
    assert guided["6"]["inputs"]["cfg"] == 5.0
    assert {key: node for key, node in guided.items() if key not in {"5", "6"}} == {
        key: node for key, node in plain.items() if key not in {"5", "6"}
    }


def test_a_tiled_decode_changes_that_node_and_no_other() -> None:
    plain, tiled = (build_graph(KLEIN, NAMES, ImageOptions(has_tiled_decode=each)) for each in (False, True))
    assert tiled[DECODE]["class_type"] == "VAEDecodeTiled"
    assert tiled[DECODE]["inputs"]["tile_size"] == 512
    assert tiled[DECODE]["inputs"]["overlap"] == 64
    assert {key for key in plain if plain[key] != tiled[key]} == {DECODE}


def test_a_recipe_with_a_shift_puts_its_node_between_model_and_sampler() -> None:
    recipe = Recipe(
        clip_type="lumina2",
        latent="EmptySD3LatentImage",
        sampler="res_multistep",
        scheduler="simple",
        shift_node="ModelSamplingAuraFlow",
        shift=3.0,
    )
    graph = build_graph(recipe, NAMES, ImageOptions(steps=8, width=512, height=256))
    shift = {"class_type": "ModelSamplingAuraFlow", "inputs": {"model": [LOAD_MODEL, 0], "shift": 3.0}}
    assert graph[SHIFT] == shift
    assert graph[GUIDER]["inputs"]["model"] == [SHIFT, 0]
    assert graph[SCHEDULER] == {
        "class_type": "BasicScheduler",
        "inputs": {"model": [SHIFT, 0], "scheduler": "simple", "steps": 8, "denoise": 1.0},
    }
    assert graph[LATENT] == {
        "class_type": "EmptySD3LatentImage",
        "inputs": {"width": 512, "height": 256, "batch_size": 1},
    }
    assert graph[LOAD_ENCODER]["inputs"]["type"] == "lumina2"
    assert graph[SAMPLER_NAME]["inputs"] == {"sampler_name": "res_multistep"}
    order = list(graph)
    assert all(order.index(source) < order.index(node) for node, source in links_of(graph))


def test_an_embedded_guidance_is_a_node_behind_the_prompt() -> None:
    graph = build_graph(replace(KLEIN, embedded_guidance=4.0), NAMES, ImageOptions())
    assert graph[EMBED] == {"class_type": "FluxGuidance", "inputs": {"conditioning": [ENCODE, 0], "guidance": 4.0}}
    assert graph[GUIDER]["inputs"]["positive"] == [EMBED, 0]
    assert EMBED not in build_graph(KLEIN, NAMES, ImageOptions())


def test_a_set_without_a_recipe_says_so() -> None:
    with pytest.raises(UsageError, match="has no `recipe`") as caught:
        recipe_of(artifact_set(VAE))
    assert caught.value.exit_status == 2


def test_size_and_steps_reach_the_latent_and_the_scheduler() -> None:
    graph = build_graph(KLEIN, NAMES, ImageOptions(width=768, height=512, steps=9))
    assert graph[LATENT]["inputs"] == {"width": 768, "height": 512, "batch_size": 1}
    assert graph[SCHEDULER]["inputs"] == {"steps": 9, "width": 768, "height": 512}


def test_every_node_that_works_has_a_phase_and_every_wire_comes_from_an_earlier_node() -> None:
    graph = build_graph(KLEIN, NAMES, ImageOptions())
    assert set(graph) - set(PHASES) == {GUIDER, SAMPLER_NAME, SCHEDULER, LATENT, NOISE}  # they only hand settings on
    order = list(graph)
    assert all(order.index(source) < order.index(node) for node, source in links_of(graph))
    assert (PHASES["4"], PHASES[SAMPLE], PHASES[DECODE], PHASES[SAVE]) == ("encode", "sample", "decode", "save")


def test_the_recorded_run_counts_its_steps_on_the_step_node() -> None:
    recorded = json.loads((RECORDINGS / "ok_fp8_h200_cold_1024.json").read_text(encoding="utf-8"))
    progress = [each["ws"]["data"] for each in recorded if each.get("ws", {}).get("type") == "progress"]
    assert progress
    assert {each["node"] for each in progress} == {SAMPLE}


# --- what to draw ---------------------------------------------------------------------------------


def test_what_the_user_asks_for_goes_over_what_is_usual() -> None:
    chosen = artifact_set(VAE, envelope=Envelope(steps=20, guidance=5.0))
    options = options_for(chosen, seed=2**64 - 1, prompt="", width=16, height=2048, has_tiled_decode=True)
    assert options == ImageOptions(
        prompt="", seed=2**64 - 1, width=16, height=2048, steps=20, guidance=5.0, has_tiled_decode=True
    )


def test_a_set_without_an_envelope_is_run_as_the_distilled_model() -> None:
    options = options_for(artifact_set(VAE), seed=5)
    assert (options.prompt, options.steps, options.guidance, options.width, options.height) == (
        DEFAULT_PROMPT,
        4,
        1.0,
        1024,
        1024,
    )


@pytest.mark.parametrize(
    ("width", "height", "seed", "said"),
    [
        (1000, 1024, 0, "The width of the image cannot be 1000 pixels; expected a multiple of 16 from 16 to 16384."),
        (1024, 0, 0, "The height of the image cannot be 0 pixels"),
        (32768, 1024, 0, "The width of the image cannot be 32768 pixels"),
        (1024, 1024, -1, "The seed of the image cannot be -1; expected 0 to 18,446,744,073,709,551,615."),
        (1024, 1024, 2**64, "The seed of the image cannot be 18446744073709551616"),
    ],
)
def test_options_that_comfyui_would_reject_are_rejected_first(width: int, height: int, seed: int, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        options_for(artifact_set(VAE), seed=seed, width=width, height=height)
    assert str(caught.value).startswith(said)
    assert caught.value.hint


@pytest.mark.parametrize("envelope", [Envelope(steps=0), Envelope(steps=4097), Envelope(guidance=100.5)])
def test_an_envelope_out_of_bounds_is_refused(envelope: Envelope) -> None:
    with pytest.raises(UsageError, match="of the image cannot be"):
        options_for(artifact_set(VAE, envelope=envelope), seed=0)


@pytest.mark.parametrize(("side", "hint"), [(1000, "Use 992."), (7, "Use 16."), (99999, "Use 16384.")])
def test_the_hint_names_the_nearest_side(side: int, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        options_for(artifact_set(VAE), seed=0, width=side)
    assert caught.value.hint == hint


# --- names ------------------------------------------------------------------------------------------


def test_names_are_paths_under_the_loaders_folder() -> None:
    model = of_role("diffusion_model", folder="diffusion_models/flux/klein")
    assert names_for(artifact_set(model, ENCODER, VAE)) == ModelNames(
        diffusion_model="flux/klein/diffusion_model.safetensors",
        text_encoder="text_encoder.safetensors",
        vae="vae.safetensors",
    )


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (artifact_set(ENCODER, VAE), "has no file for the role diffusion_model; expected one"),
        (artifact_set(of_role("diffusion_model"), ENCODER, ENCODER, VAE), "has 2 files for the role text_encoder"),
        (artifact_set(of_role("diffusion_model", name="k-Q4_K_M.GGUF"), ENCODER, VAE), "is a GGUF file"),
        (artifact_set(of_role("diffusion_model", folder="checkpoints"), ENCODER, VAE), "UNETLoader does not read"),
        (artifact_set(VAE, target="hf_cache"), "made for an HF cache"),
    ],
)
def test_a_set_that_comfyuis_own_nodes_cannot_load_is_rejected(chosen: ArtifactSet, said: str) -> None:
    with pytest.raises(UsageError, match="(?i)" + said) as caught:
        names_for(chosen)
    assert caught.value.hint


def test_a_name_that_leaves_the_folder_is_refused() -> None:
    with pytest.raises(PathOutsideRootError):
        names_for(artifact_set(of_role("diffusion_model", folder="diffusion_models/.."), ENCODER, VAE))


def test_names_that_are_listed_are_taken_as_they_are() -> None:
    assert pick_listed(NAMES, LISTED) == NAMES


@pytest.mark.parametrize(
    ("wanted", "listed", "ignore_case"),
    [
        ("klein/k.safetensors", "klein\\k.safetensors", False),
        ("k\u00fcche/k.safetensors", "ku\u0308che/k.safetensors", False),  # macOS lists decomposed letters
        ("Klein/K.safetensors", "klein\\k.SAFETENSORS", True),
    ],
)
def test_a_name_is_spelled_as_the_server_does(wanted: str, listed: str, ignore_case: bool) -> None:
    names = replace(NAMES, diffusion_model=wanted)
    lists = replace(LISTED, diffusion_models=("other.safetensors", listed))
    assert pick_listed(names, lists, ignore_case=ignore_case).diffusion_model == listed


def test_case_counts_where_the_server_distinguishes_it() -> None:
    with pytest.raises(ModelNotListedError):
        pick_listed(replace(NAMES, vae="Flux2-VAE.safetensors"), LISTED)


def test_every_file_that_is_not_listed_is_named_with_what_is() -> None:
    names = replace(NAMES, diffusion_model="flux-2-klein-4b-fp9.safetensors", vae="missing.safetensors")
    with pytest.raises(ModelNotListedError) as caught:
        pick_listed(names, replace(LISTED, vaes=()))
    assert str(caught.value) == (
        "ComfyUI does not list diffusion_models/flux-2-klein-4b-fp9.safetensors"
        " (it lists flux-2-klein-4b-fp8.safetensors, ...); vae/missing.safetensors (the list is empty)."
    )
    assert caught.value.context["missing"] == [
        "diffusion_models/flux-2-klein-4b-fp9.safetensors",
        "vae/missing.safetensors",
    ]
    assert "extra_model_paths.yaml" in (caught.value.hint or "")


def test_a_long_list_is_shortened() -> None:
    with pytest.raises(ModelNotListedError) as caught:
        pick_listed(NAMES, replace(LISTED, vaes=tuple(f"{number:04}" for number in range(500))))
    assert "it lists 0000, 0001, 0002, 0003, 0004, 0005, 0006, 0007, ..." in str(caught.value)


def test_a_loader_is_known_for_every_name() -> None:
    assert [loader.field for loader in LOADERS] == ["diffusion_model", "text_encoder", "vae"]
    graph = build_graph(KLEIN, NAMES, ImageOptions())
    for node, loader in zip(("1", "2", "3"), LOADERS, strict=True):
        assert graph[node]["class_type"] == loader.class_type
        assert graph[node]["inputs"][loader.input_name] == getattr(NAMES, loader.field)


# --- the official workflow -------------------------------------------------------------------------

# The names with "klein" in comfyui-workflow-templates-json 0.1.50, read from the wheel on 2026-11-23, and one of a
# later generation that a newer core lists.
