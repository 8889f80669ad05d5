"""Which model files a workflow names, and which of them a run would read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from provisioner.workflow.loader_table import LOADER_INPUTS, ROLES
from provisioner.workflow.model_files import ModelFile, model_files
from provisioner.workflow.read_workflow import read_workflow
from tests.support.workflows import HUB, Row, node, subgraph, workflow

URL = f"{HUB}/o/r/resolve/main/split_files/diffusion_models/a.safetensors"


def found(*nodes: dict[str, Any], links: Iterable[Row] = (), subgraphs: Iterable[object] = ()) -> tuple[ModelFile, ...]:
    return model_files(read_workflow(workflow(*nodes, links=links, subgraphs=subgraphs), name="w"))


def loader(key: int = 1, name: str = "a.safetensors", **more: object) -> dict[str, Any]:
    return node(key, "UNETLoader", name, "default", outputs=["MODEL"], **more)


def sink(key: int, link: int) -> dict[str, Any]:
    return node(key, "SaveImage", "x", inputs=[("images", "MODEL", link, False)])


USED = {"links": [(1, 1, 0, 2, 0, "MODEL")]}


def test_a_file_has_its_folder_role_and_addresses() -> None:
    only = found(loader(models=[("a.safetensors", URL, "diffusion_models")]), sink(2, 1), **USED)
    assert only == (
        ModelFile(
            name="a.safetensors",
            folder="diffusion_models",
            role="diffusion_model",
            nodes=("UNETLoader 1",),
            urls=(URL,),
        ),
    )
    assert only[0].label == "diffusion_models/a.safetensors"


def test_the_api_form_names_files_by_its_loaders() -> None:
    prompt = {
        "1": {"class_type": "DualCLIPLoader", "inputs": {"clip_name1": "l.safetensors", "clip_name2": "t.safetensors"}},
        "2": {"class_type": "CheckpointLoader", "inputs": {"config_name": "v1.yaml", "ckpt_name": "c.safetensors"}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}},
        "4": {"class_type": "Save", "inputs": {"a": ["1", 0], "b": ["2", 0], "c": ["3", 0]}},
    }
    files = model_files(read_workflow(json.dumps(prompt).encode(), name="w"))
    assert [each.label for each in files] == [
        "text_encoders/l.safetensors",
        "text_encoders/t.safetensors",
        "checkpoints/c.safetensors",
    ]
    assert not any(each.why_off for each in files)


def test_the_value_of_a_subgraphs_instance_decides_which_file_is_read() -> None:
    inner = subgraph(
        "s",
        node(8, "UNETLoader", "old.safetensors", inputs=[("unet_name", "COMBO", 1, True)], outputs=["MODEL"]),
        links=[(1, -10, 0, 8, 0, "COMBO"), (2, 8, 0, -20, 0, "MODEL")],
        inputs=[("f", 1)],
        outputs=[("MODEL", 2)],
    )
    inner["nodes"][0]["properties"]["models"] = [{"name": "old.safetensors", "url": URL, "directory": "x"}]
    other = loader(3, "new.safetensors", models=[("new.safetensors", URL + "?2", "diffusion_models")], mode=4)
    links = [(1, 5, 0, 2, 0, "MODEL")]
    new, old = found(node(5, "s", "new.safetensors"), sink(2, 1), other, links=links, subgraphs=[inner])
    assert (new.label, new.urls, new.why_off) == ("diffusion_models/new.safetensors", (URL + "?2",), None)
    assert new.nodes == ("UNETLoader 3", "UNETLoader 5:8")  # one reads it, though the other is bypassed
    assert (old.label, old.why_off) == ("x/old.safetensors", "node 5:8 loads another file")


def test_one_file_of_several_nodes_is_one_with_every_address() -> None:
    digest = {"hash": "AB" * 32, "hash_type": "SHA256"}
    second = loader(3, "A.safetensors")
    second["properties"] = {"models": [{"name": "A.safetensors", "url": URL + "?2", **digest}]}
    (only,) = found(loader(models=[("a.safetensors", URL, "diffusion_models")]), second, sink(2, 1), **USED)
    assert only.urls == (URL, URL + "?2")
    assert only.sha256 == ("ab" * 32,)
    assert only.nodes == ("UNETLoader 1", "UNETLoader 3")


def test_an_address_in_a_note_serves_a_file_that_has_none() -> None:
    note = node(7, "MarkdownNote", f"[get it]({URL}?download=true) and <https://example.com/page>, not {HUB}/x/y.txt")
    (only,) = found(loader(name="sub\\a.safetensors"), sink(2, 1), note, **USED)
    assert (only.name, only.urls) == ("sub/a.safetensors", (URL + "?download=true",))


def test_an_unknown_nodes_file_has_no_folder_unless_another_node_names_it() -> None:
    custom = node(3, "MyLoader", "z.safetensors", "a.safetensors", "two\nlines.safetensors", "https://x/y.safetensors")
    files = found(loader(models=[("a.safetensors", URL, "diffusion_models")]), custom, sink(2, 1), **USED)
    assert [each.label for each in files] == ["diffusion_models/a.safetensors", "?/z.safetensors"]
    named = node(3, "MyLoader", "z.safetensors", models=[("z.safetensors", URL, "loras"), ("readme.txt", URL, "loras")])
    assert [each.label for each in found(named)] == ["loras/z.safetensors"]


def test_the_folders_that_were_renamed_have_their_new_names() -> None:
    (only,) = found(node(1, "Mine", models=[("a.safetensors", URL, "unet/sub")]))
    assert (only.folder, only.role) == ("diffusion_models/sub", "diffusion_model")


@pytest.mark.parametrize(
    ("name", "folder", "said"),
    [
        ("../../.bashrc.safetensors", "vae", "climbs out with '..'"),
        ("..\\x.safetensors", "vae", "climbs out with '..'"),
        ("/etc/x.safetensors", "vae", "is absolute"),
        ("C:x.safetensors", "vae", "starts with a drive letter"),
        ("x\x1b[31m.safetensors", "vae", "has a control or invisible character"),
        ("x.safetensors", "../custom_nodes", "climbs out with '..'"),
    ],
)
def test_a_name_that_leaves_its_folder_is_marked(name: str, folder: str, said: str) -> None:
    (only,) = found(node(1, "Mine", models=[(name, URL, folder)]))
    assert only.complaint == said


# --- what is not read ----------------------------------------------------------------------------


def only_reason(*nodes: dict[str, Any], links: Iterable[Row]) -> str | None:
    (only,) = found(loader(), *nodes, links=links)
    return only.why_off


def test_a_loader_that_nothing_uses_is_off() -> None:
    assert only_reason(links=[]) == "nothing uses it"
    assert only_reason(sink(2, 1), links=[(1, 1, 0, 2, 0, "MODEL")]) is None
    muted = {**sink(2, 1), "mode": 2}
    assert only_reason(muted, links=[(1, 1, 0, 2, 0, "MODEL")]) == "nothing uses it"


def switch(*values: object, decided_by: int | None = None) -> dict[str, Any]:
    sides = [("on_false", "*", 1, False), ("on_true", "*", 3, False)]
    return node(4, "ComfySwitchNode", *values, inputs=[*sides, ("switch", "BOOLEAN", decided_by, True)], outputs=["*"])


LORA = node(3, "LoraLoaderModelOnly", "l.safetensors", inputs=[("model", "MODEL", 2, False)], outputs=["MODEL"])
LINKS = [(1, 1, 0, 4, 0, "*"), (2, 1, 0, 3, 0, "MODEL"), (3, 3, 0, 4, 1, "*"), (5, 4, 0, 9, 0, "*")]


@pytest.mark.parametrize(
    ("deciding", "is_on"),
    [
        (switch(True), True),
        (switch(False), False),
        (switch(), True),  # not known before the run
    ],
)
def test_a_switch_leaves_one_side_out(deciding: dict[str, Any], is_on: bool) -> None:
    model, lora = found(loader(), LORA, deciding, sink(9, 5), links=LINKS)
    assert model.why_off is None
    assert lora.why_off == (None if is_on else "a switch does not select it")


@pytest.mark.parametrize("kind", ["PrimitiveBoolean", "PrimitiveNode", "Compare"])
def test_a_switch_may_be_decided_elsewhere(kind: str) -> None:
    decider = node(6, kind, False, outputs=["BOOLEAN"])
    links = [*LINKS, (6, 6, 0, 4, 2, "BOOLEAN")]
    _, lora = found(loader(), LORA, switch(True, decided_by=6), decider, sink(9, 5), links=links)
    assert lora.why_off == (None if kind == "Compare" else "a switch does not select it")


def test_what_only_an_unused_node_needs_is_off_too() -> None:
    encoder = node(7, "CLIPLoader", "c.safetensors", outputs=["CLIP"])
    writer = node(3, "TextGenerate", inputs=[("clip", "CLIP", 2, False)], outputs=["STRING"])
    links = [(1, 1, 0, 4, 0, "*"), (2, 7, 0, 3, 0, "CLIP"), (3, 3, 0, 4, 1, "*"), (5, 4, 0, 9, 0, "*")]
    _, off = found(loader(), encoder, writer, switch(False), sink(9, 5), links=links)
    assert off.why_off == "it is used only by what a switch does not select"


def test_both_sides_of_a_switch_may_be_the_same_wire() -> None:
    both = node(4, "ComfySwitchNode", False, inputs=[("on_false", "*", 1, False), ("on_true", "*", 3, False)])
    links = [(1, 1, 0, 4, 0, "*"), (3, 1, 0, 4, 1, "*")]
    assert only_reason(both, links=links) is None


def test_nodes_in_a_circle_are_looked_at_once() -> None:
    one = node(3, "A", inputs=[("a", "X", 2, False), ("b", "X", 1, False)], outputs=["X"])
    two = node(4, "B", inputs=[("a", "X", 3, False)], outputs=["X"])
    links = [(1, 1, 0, 3, 1, "X"), (2, 4, 0, 3, 0, "X"), (3, 3, 0, 4, 0, "X"), (5, 4, 0, 9, 0, "X")]
    assert only_reason(one, two, sink(9, 5), links=links) is None


def test_a_wire_from_a_node_that_is_not_there_is_no_trouble() -> None:
    prompt = {"4": {"class_type": "Save", "inputs": {"a": ["77", 0]}}}
    assert model_files(read_workflow(json.dumps(prompt).encode(), name="w")) == ()


def test_the_table_of_loaders_holds_together() -> None:
    assert LOADER_INPUTS["LTXAVTextEncoderLoader"][1].position == 1
    folders = {each.folder for row in LOADER_INPUTS.values() for each in row}
    assert set(ROLES) <= folders
