"""A workflow becomes the graph that a server accepts, and gets another text, seed, size and number of steps."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from provisioner.commands.workflow_image import WorkflowImage
from provisioner.core.errors import WorkflowError
from provisioner.smoke_test.results import ImageOptions
from provisioner.workflow.patch_prompt import Settings, patch_prompt, phases_of, settings_of
from provisioner.workflow.prompt_graph import Prompt, to_prompt
from provisioner.workflow.read_workflow import read_workflow
from tests.support.workflows import Row, node, subgraph, workflow

RECORDED = Path(__file__).parents[1] / "contract" / "data" / "comfyui-0.33.0" / "GET_parts_of_object_info.json"
INFO: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))


def converted(
    *nodes: dict[str, Any],
    links: Iterable[Row] = (),
    info: dict[str, Any] | None = None,
    subgraphs: Iterable[object] = (),
) -> Prompt:
    data = workflow(*nodes, links=links, subgraphs=subgraphs)
    return to_prompt(read_workflow(data, name="w.json"), {**INFO, **(info or {})}, name="w.json")


def of_one(kind: str, *values: object, info: dict[str, Any] | None = None, **more: object) -> dict[str, Any]:
    """Return the inputs of a single node."""
    inputs: dict[str, Any] = converted(node(1, kind, *values, **more), info=info)["1"]["inputs"]
    return inputs


def declared(**inputs: object) -> dict[str, Any]:
    """Return what a server says of the class "Mine"."""
    return {"Mine": {"input": {"required": inputs}, "input_order": {}}}


# --- widgets -------------------------------------------------------------------------------------


def test_values_stand_in_the_order_of_the_widgets_and_what_is_done_to_a_seed_between_them() -> None:
    expected = {"seed": 5, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "simple", "denoise": 1}
    assert of_one("KSampler", 5, "randomize", 20, 8, "euler", "simple", 1) == expected
    assert of_one("KSampler", 5, 20, 8, "euler", "simple", 1) == expected  # as before there was such a word


def test_a_flag_of_the_server_says_where_such_a_word_stands() -> None:
    assert of_one("PrimitiveInt", 7, "fixed") == {"value": 7}
    no_word = declared(seed=["INT", {"control_after_generate": False}], mode=[["fixed", "free"]])
    assert of_one("Mine", 7, "fixed", info=no_word) == {"seed": 7, "mode": "fixed"}


def test_a_word_that_the_next_widget_may_have_is_its_value_where_the_numbers_fit() -> None:
    info = declared(seed=["INT", {}], mode=["COMBO", {"options": ["fixed", "free"]}])
    assert of_one("Mine", 7, "fixed", info=info) == {"seed": 7, "mode": "fixed"}
    assert of_one("Mine", "hi", "fixed", info=declared(text=["STRING", {}], mode=[["fixed"]])) == {
        "text": "hi",
        "mode": "fixed",
    }
    assert of_one("Mine", 7, "fixed", "free", info=info) == {"seed": 7, "mode": "free"}
    other = declared(image_seed=["INT", {}], text=["STRING", {}], after=["INT", {}])
    assert of_one("Mine", 7, "fixed", 3, info=other) == {"image_seed": 7, "text": "fixed", "after": 3}
    assert of_one("Mine", 7, "fixed", 3, info=declared(image_seed=["INT", {}], after=["INT", {}])) == {
        "image_seed": 7,
        "after": 3,
    }


def test_what_nobody_touched_has_the_servers_default() -> None:
    assert of_one("EmptySD3LatentImage") == {"width": 1024, "height": 1024, "batch_size": 1}
    assert of_one("ImageCompare") == {"compare_view": ""}
    info = declared(a=[["x", "y"]], b=["COMBO", {"options": ["z"]}], c=["STRING", {}], d=["MODEL"], e=[])
    assert of_one("Mine", info=info) == {"a": "x", "b": "z"}


def test_an_input_that_only_takes_a_wire_has_no_value() -> None:
    forced = declared(a=["INT", {"forceInput": True}], b=["INT,FLOAT", {"widgetType": "INT"}], c=["STRING", {}])
    assert of_one("Mine", 4, "hi", info=forced) == {"b": 4, "c": "hi"}


def test_the_server_says_in_which_order_widgets_stand() -> None:
    info = {"Mine": {"input": {"required": {"a": ["INT"], "b": ["INT"]}}, "input_order": {"required": ["b", "c", 3]}}}
    assert of_one("Mine", 1, 2, info=info) == {"b": 1, "a": 2}


def test_a_choice_brings_further_inputs() -> None:
    values = ("clip", "mp4", "h264", "re-encode", 30.0)
    video = {"filename_prefix": "clip", "format": "mp4", "codec": "h264"}
    assert of_one("SaveVideo", *values) == {**video, "codec.encoding": "re-encode", "codec.encoding.crf": 30.0}
    assert of_one("SaveVideo", "clip", "mp4", "av1") == {**video, "codec": "av1"}  # one that this server does not know


def test_choices_in_choices_have_a_greatest_depth() -> None:
    spec: dict[str, Any] = {}
    spec["options"] = [{"key": "a", "inputs": {"required": {"x": ["COMFY_DYNAMICCOMBO_V3", spec]}}}]
    found = of_one("Mine", *["a"] * 40, info=declared(x=["COMFY_DYNAMICCOMBO_V3", spec]))
    assert len(found) == 17


def test_a_group_of_inputs_is_repeated() -> None:
    rows = {"template": {"required": {"name": ["STRING"], "weight": ["INT"]}}}
    info = declared(rows=["COMFY_DYNAMICGROUP_V3", rows], after=["INT"])
    expected = {"rows.0.name": "a", "rows.0.weight": 1, "rows.1.name": "b", "rows.1.weight": 2, "after": 9}
    assert of_one("Mine", 2, "a", 1, "b", 2, 9, info=info) == expected
    assert of_one("Mine", 10**9, 9, info=info) == {"after": 9}


def test_the_buttons_of_a_3d_viewer_have_values_of_their_own() -> None:
    values = ("m.glb", "upload3dmodel", "uploadExtraResources", "clear", "", 512, 512)
    expected = {"model_file": "m.glb", "image": "", "width": 512, "height": 512}
    assert of_one("Load3D", *values) == expected
    assert of_one("Load3D", "m.glb", "", 512, 512) == expected


def test_a_list_is_wrapped_so_that_it_is_no_wire() -> None:
    assert of_one("PrimitiveStringMultiline", ["1", 0]) == {"value": {"__value__": ["1", 0]}}


@pytest.mark.parametrize(("name", "spelled"), [("sub/b.safetensors", "sub\\b.safetensors"), ("x/y", "x/y")])
def test_a_file_is_named_as_the_server_lists_it(name: str, spelled: str) -> None:
    assert of_one("UNETLoader", name, "default")["unet_name"] == spelled


# --- values by name ------------------------------------------------------------------------------


def test_values_by_name_win_only_where_the_row_does_not_fit() -> None:
    named: dict[str, object] = {"image": "other.png", "upload": "image"}
    assert of_one("LoadImage", "in.png", "image", widgets_values_named=named) == {"image": "in.png"}
    named = {"width": 3, "height": 4, "batch_size": 2, "gone": 1}
    assert of_one("EmptySD3LatentImage", 1, widgets_values_named=named) == {"width": 3, "height": 4, "batch_size": 2}


def test_inputs_that_a_choice_brings_may_stand_by_name() -> None:
    info = declared(x=["COMFY_AUTOGROW_V3", {}], y=["STRING", {}])
    named = {"x.a": 1, "y": "hi", "y.a": 2}
    assert of_one("Mine", info=info, widgets_values_named=named) == {"x.a": 1, "y": "hi"}


# --- wires ---------------------------------------------------------------------------------------


def test_wires_and_primitives_win_over_widgets() -> None:
    prompt = converted(
        node(1, "UNETLoader", "a.safetensors", "default", outputs=["MODEL"]),
        node(2, "PrimitiveNode", 99, "fixed"),
        node(3, "PrimitiveInt", 30, "fixed", outputs=["INT"]),
        node(
            4,
            "KSampler",
            5,
            "randomize",
            20,
            8,
            "euler",
            "simple",
            1,
            inputs=[("model", "MODEL", 1, False), ("seed", "INT", 2, True), ("steps", "INT", 3, True)],
        ),
        links=[(1, 1, 0, 4, 0, "MODEL"), (2, 2, 0, 4, 1, "INT"), (3, 3, 0, 4, 2, "INT")],
    )
    inputs = prompt["4"]["inputs"]
    assert (inputs["model"], inputs["seed"], inputs["steps"], inputs["cfg"]) == (["1", 0], 99, ["3", 0], 8)
    assert set(prompt) == {"1", "3", "4"}


def test_what_is_muted_or_bypassed_is_left_out_and_so_are_wires_from_it() -> None:
    prompt = converted(
        node(1, "VAELoader", "v.safetensors", mode=2, outputs=["VAE"]),
        node(2, "VAEDecode", inputs=[("vae", "VAE", 1, False)]),
        links=[(1, 1, 0, 2, 0, "VAE")],
    )
    assert prompt == {"2": {"class_type": "VAEDecode", "inputs": {}}}


def test_an_input_without_a_widget_takes_the_value_of_the_widget_beside_it() -> None:
    inside = subgraph(
        "s",
        node(1, "PreviewAny", inputs=[("source", "*", 1, False)]),
        node(2, "EmptySD3LatentImage", 640, 480, 1, inputs=[("width", "INT", 2, True)]),
        node(3, "VAEDecode", inputs=[("vae", "VAE", 3, False)]),
        node(4, "Mine", inputs=[("gone", "INT", 4, True)]),
        links=[(1, -10, 0, 1, 0, "INT"), (2, -10, 0, 2, 0, "INT"), (3, -10, 1, 3, 0, "VAE"), (4, -10, 1, 4, 0, "INT")],
        inputs=[("width", 1, 2), ("vae", 3, 4)],
    )
    prompt = converted(node(5, "s"), subgraphs=[inside], info=declared())
    assert prompt["5:1"]["inputs"] == {"source": 640}
    assert prompt["5:3"]["inputs"] == {}  # the widget beside it has no value


def test_the_api_form_stays_as_it_is() -> None:
    prompt = {"1": {"class_type": "PrimitiveInt", "inputs": {"value": 3, "list": [1]}}}
    flat = read_workflow(
        json.dumps(prompt | {"2": {"class_type": "VAEDecode", "inputs": {"vae": ["9", 0]}}}).encode(), name="w"
    )
    assert to_prompt(flat, INFO, name="w")["1"]["inputs"] == {"value": 3, "list": {"__value__": [1]}}
    assert to_prompt(flat, INFO, name="w")["2"]["inputs"] == {}


def test_nodes_that_the_server_lacks_are_all_named() -> None:
    theirs = node(1, "Special\x1b[2J", properties={"cnr_id": "special-nodes"})
    nodes = [theirs, node(2, "Other"), node(3, "Third", mode=2), node(4, "VAEDecode")]
    with pytest.raises(
        WorkflowError, match=r"custom nodes special-nodes \(Special\) and nodes of .* \(Other\)\."
    ) as error:
        converted(*nodes)
    assert error.value.context["packs"] == ["special-nodes"]


# --- patching ------------------------------------------------------------------------------------


def of(class_type: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graph(**more: dict[str, Any]) -> Prompt:
    return {
        "clip": of("CLIPTextEncode", text="a dog", clip=["x", 0]),
        "guide": of("FluxGuidance", conditioning=["clip", 0], guidance=3.5),
        "latent": of("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "sample": of("KSampler", positive=["guide", 0], seed=1, steps=20, latent_image=["latent", 0]),
        **more,
    }


def test_everything_is_patched_where_it_is_known() -> None:
    before = graph()
    found = patch_prompt(before, text="a cat", seed=7, size=(128, 256), steps=4)
    assert found.done == {"prompt", "seed", "size", "steps"}
    assert found.prompt["clip"]["inputs"]["text"] == "a cat"
    assert found.prompt["latent"]["inputs"] == {"width": 128, "height": 256, "batch_size": 1}
    assert (found.prompt["sample"]["inputs"]["seed"], found.prompt["sample"]["inputs"]["steps"]) == (7, 4)
    assert before == graph()


def test_what_is_not_asked_for_or_not_known_stays() -> None:
    assert patch_prompt(graph()).done == frozenset()
    found = patch_prompt({"1": of("Paint", seed=1, text="x")}, text="y", seed=2, size=(1, 1), steps=3)
    assert found.done == frozenset()
    assert found.prompt["1"]["inputs"] == {"seed": 1, "text": "x"}


def test_a_value_in_a_primitive_is_changed_there() -> None:
    more = {
        "clip": of("CLIPTextEncode", text=["switch", 0]),
        "switch": of("ComfySwitchNode", switch=["flag", 0], on_true=["other", 0], on_false=["words", 0]),
        "flag": of("PrimitiveBoolean", value=False),
        "words": of("PrimitiveStringMultiline", value="a dog"),
        "number": of("PrimitiveInt", value=3),
        "noise": of("RandomNoise", noise_seed=["number", 0]),
    }
    found = patch_prompt(graph(**more), text="a cat", seed=7)
    assert found.prompt["words"]["inputs"]["value"] == "a cat"
    assert found.prompt["number"]["inputs"]["value"] == 7
    assert found.prompt["clip"]["inputs"]["text"] == ["switch", 0]


@pytest.mark.parametrize(
    "origin",
    [
        of("TextGenerate", prompt="a dog"),
        of("ComfySwitchNode", on_true=["clip", 0]),
        of("ComfySwitchNode", switch=True),
        of("PrimitiveString"),
        of("PrimitiveString", value=["origin", 0]),
    ],
)
def test_a_text_that_another_node_works_out_is_replaced(origin: dict[str, Any]) -> None:
    found = patch_prompt(graph(clip=of("CLIPTextEncode", text=["origin", 0]), origin=origin), text="a cat")
    assert found.prompt["clip"]["inputs"]["text"] == "a cat"


def test_a_size_that_another_node_works_out_is_replaced() -> None:
    latent = of("EmptyLatentImage", width=["measure", 0], height=["measure", 1])
    found = patch_prompt(graph(latent=latent, measure=of("GetImageSize")), size=(128, 256))
    assert found.prompt["latent"]["inputs"] == {"width": 128, "height": 256}
    assert patch_prompt(graph(latent=of("EmptyLatentAudio", seconds=3)), size=(1, 1)).done == frozenset()


def test_every_text_of_an_encoder_is_replaced() -> None:
    clip = of("CLIPTextEncodeSDXL", text_g="a", text_l="b")
    found = patch_prompt(graph(clip=clip), text="c").prompt["clip"]["inputs"]
    assert found == {"text_g": "c", "text_l": "c"}


@pytest.mark.parametrize(
    "guide",
    [
        of("FluxGuidance", conditioning=["guide", 0]),
        of("FluxGuidance"),
        of("Encode"),
        of("FluxGuidance", conditioning="x"),
    ],
)
def test_a_text_that_cannot_be_found_is_not_patched(guide: dict[str, Any]) -> None:
    assert patch_prompt(graph(guide=guide), text="c").done == frozenset()


def test_steps_that_samplers_share_are_not_patched() -> None:
    assert patch_prompt(graph(two=of("KSamplerAdvanced", noise_seed=1)), steps=4).done == frozenset()
    assert patch_prompt(graph(sample=of("KSampler", steps=["far", 0], seed=True)), steps=4, seed=1).done == frozenset()


# --- what a graph says of itself -----------------------------------------------------------------


@pytest.mark.parametrize("guided", [of("CFGGuider", cfg=1), of("KSamplerAdvanced", cfg=["number", 0])])
def test_a_graph_tells_what_it_generates(guided: dict[str, Any]) -> None:
    found = settings_of({"guided": guided, "number": of("PrimitiveFloat", value=1.0), **graph()})
    shared = guided["class_type"] == "KSamplerAdvanced"
    assert found == Settings(text="a dog", steps=None if shared else 20, guidance=1.0)


def test_what_a_graph_does_not_tell_is_not_made_up() -> None:
    assert settings_of({"1": of("Paint")}) == Settings()
    assert settings_of(graph(clip=of("CLIPTextEncode", text=["far", 0]))) == Settings(steps=20)


def test_the_frames_of_a_video_are_known_where_all_say_the_same() -> None:
    number = of("PrimitiveInt", value=81)
    film = of("WanImageToVideo", width=832, height=480, length=["n", 0])
    assert settings_of({"n": number, "1": film}).frames == 81
    assert settings_of({"n": number, "1": film, "2": of("Cut", length=5)}).frames == 81  # no size: of something else
    other = of("EmptyHunyuanLatentVideo", width=832, height=480, length=33)
    assert settings_of({"n": number, "1": film, "2": other}).frames is None


def test_the_parts_of_the_work_follow_from_the_classes_of_the_nodes() -> None:
    classes = [
        "UNETLoader",
        "CLIPTextEncode",
        "KSampler",
        "SamplerCustomAdvanced",
        "VAEDecodeTiled",
        "SaveImage",
        "KSamplerSelect",
    ]
    found = phases_of({each: of(each) for each in classes})
    assert list(found.values()) == ["load", "encode", "sample", "sample", "decode", "save"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (frozenset({"steps"}), "changed in it: seed; asked for, but none of its nodes is known to take it: steps."),
        (frozenset(), "changed in it: seed."),
    ],
)
def test_what_was_asked_for_and_could_not_be_changed_is_said(given: frozenset[str], said: str) -> None:
    image = WorkflowImage(
        label="x.json",
        make=lambda asked: patch_prompt(graph(two=of("KSamplerAdvanced", noise_seed=1)), steps=asked.steps),
        options=ImageOptions(),
        changed=frozenset({"seed"}),
        unchanged=given,
        is_stand_in=False,
        phases={},
        frames=None,
    )
    assert image.note == f"Generated with x.json; {said}"
