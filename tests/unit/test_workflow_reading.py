"""Reading a workflow: its forms, its nodes with every subgraph dissolved, and what is refused."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Any

import pytest

from provisioner.core.errors import WorkflowError
from provisioner.workflow import flatten as flattening
from provisioner.workflow import read_workflow as reading
from provisioner.workflow.graph_values import FlatWorkflow, Wire
from provisioner.workflow.png_text import png_texts
from provisioner.workflow.read_workflow import read_workflow
from tests.support.workflows import Row, chunk, node, png, subgraph, workflow

LOADER = node(1, "UNETLoader", "a.safetensors", "default", outputs=["MODEL"])


def read(data: bytes) -> FlatWorkflow:
    return read_workflow(data, name="my.json")


def wire(flat: FlatWorkflow, key: str, name: str) -> tuple[str, int] | None:
    found = flat.nodes[key].wires.get(name)
    return None if found is None else (found.node, found.slot)


# --- forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [None, "workflow", "prompt"])
def test_a_workflow_may_stand_inside_a_request(wrap: str | None) -> None:
    document = json.loads(workflow(LOADER))
    flat = read(json.dumps(document if wrap is None else {wrap: document}).encode())
    assert flat.nodes["1"].values == ("a.safetensors", "default")
    assert not flat.is_api


def test_the_api_form_has_its_inputs_by_name() -> None:
    prompt = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "a.safetensors"}, "_meta": {"title": "Load"}},
        "2": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "pair": [1, 2], "seed": 3}},
        "extra": {"no": "node"},
    }
    flat = read(json.dumps(prompt).encode())
    assert flat.is_api
    assert flat.nodes["1"].given == {"unet_name": "a.safetensors"}
    assert flat.nodes["1"].title == "Load"
    assert flat.nodes["2"].wires == {"model": Wire(node="1", slot=0)}
    assert flat.nodes["2"].given == {"pair": [1, 2], "seed": 3}


def test_a_byte_order_mark_does_no_harm() -> None:
    assert "1" in read(b"\xef\xbb\xbf" + workflow(LOADER)).nodes


def test_an_image_holds_the_workflow_and_is_preferred_to_the_prompt() -> None:
    prompt = json.dumps({"7": {"class_type": "SaveImage", "inputs": {}}}).encode()
    assert set(read(png(prompt=prompt, workflow=workflow(LOADER))).nodes) == {"1"}
    assert set(read(png(prompt=prompt)).nodes) == {"7"}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"tEXt", b"workflow\0{}"),
        (b"zTXt", b"workflow\0\0" + zlib.compress(b"{}")),
        (b"iTXt", b"workflow\0\0\0en\0Ablauf\0{}"),
        (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"{}")),
    ],
)
def test_a_text_of_an_image_is_found_in_every_kind_of_chunk(kind: bytes, data: bytes) -> None:
    image = png() + chunk(b"IDAT", b"pixels") + chunk(kind, data)
    assert png_texts(image, ("workflow",), most=9) == {"workflow": b"{}"}


@pytest.mark.parametrize(
    "end",
    [
        chunk(b"tEXt", b"another\0{}"),
        chunk(b"tEXt", b"workflow\0" + bytes(10)),  # larger than allowed
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(10_000_000))),  # only once it is unpacked
        chunk(b"zTXt", b"workflow\0\0no zlib"),
        chunk(b"iTXt", b"workflow\0\0\0no end"),
        chunk(b"tEXt", b"workflow\0{}")[:-7],  # cut
        (2**31).to_bytes(4, "big") + b"tEXt",
    ],
)
def test_a_damaged_text_of_an_image_is_left_out(end: bytes) -> None:
    assert png_texts(png() + end, ("workflow",), most=9) == {}


def test_the_chunks_of_an_image_are_bounded() -> None:
    image = png() + chunk(b"skip", b"") * 100_000 + chunk(b"tEXt", b"workflow\0{}")
    assert png_texts(image, ("workflow",), most=9) == {}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(), "without a workflow"),
        (b"\xff\xd8\xff\xe0", "is a JPEG; expected JSON, or a PNG"),
        (b"RIFF....WEBP", "is a WebP"),
        (b"GIF89a", "is a GIF"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[1]", "is JSON, but no workflow"),
        (b'{"a": {"class_type": 3}}', "is JSON, but no workflow"),
        (b'{"a":' * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_workflow_is_refused_with_what_was_expected(data: bytes, said: str) -> None:
    with pytest.raises(WorkflowError, match=said) as caught:
        read(data)
    assert str(caught.value).startswith("my.json")


def test_what_is_larger_than_a_workflow_is_not_even_parsed() -> None:
    with pytest.raises(WorkflowError, match="52,428,801 bytes; a workflow has at most 52,428,800"):
        read(b"[" * (reading.LARGEST + 1))
    with pytest.raises(WorkflowError, match="at most 268,435,456"):
        read(png() + bytes(reading.LARGEST_IMAGE))


def test_what_cannot_be_a_node_or_a_link_is_left_out() -> None:
    broken: list[Any] = [{"id": 2}, {"type": "A"}, {"id": True, "type": "A"}, {"id": 3, "type": ""}, 7, None]
    links: list[Any] = [
        [1],
        "x",
        [None, 1, 0, 4, 0, "MODEL"],
        {"id": 9, "origin_id": None, "target_id": 3},
        [5, 1, "0", 4, 0, "M"],
    ]
    lora = node(4, "LoraLoaderModelOnly", "b.safetensors", inputs=[("model", "MODEL", 5, False)], title=3, mode="on")
    odd = node(6, "B", inputs=[("a", 7, [], False)], properties={"models": [{"url": "x"}], "proxyWidgets": [3]})
    flat = read(workflow(LOADER, *broken, lora, odd, links=links, definitions={"subgraphs": [3, {"id": 4}]}))
    assert list(flat.nodes) == ["1", "4", "6"]
    assert flat.nodes["4"].wires == {"model": Wire(node="1", slot=-1)}
    assert flat.nodes["6"].files == ()


def test_values_by_name_and_hashes_of_files_are_read() -> None:
    file = {"name": "a.safetensors", "hash": "AB" * 32, "hash_type": "SHA256", "directory": "vae"}
    one = node(1, "Custom", properties={"models": [file], "aux_id": "me/nodes", "ver": "abc"})
    one["widgets_values"] = {"model": "a.safetensors"}
    found = read(workflow(one)).nodes["1"]
    assert found.named == {"model": "a.safetensors"}
    assert found.files[0].sha256 == "AB" * 32
    assert (found.package.name, found.package.version) == ("me/nodes", "abc")


# --- what leads where ----------------------------------------------------------------------------

SAMPLER = node(
    9, "KSampler", 1, inputs=[("model", "MODEL", 90, False), ("seed", "INT", 91, True), ("lost", "INT", 99, False)]
)


def sampled(*nodes: dict[str, object], links: Iterable[Row]) -> FlatWorkflow:
    return read(workflow(LOADER, *nodes, SAMPLER, links=links))


def test_a_wire_leads_to_the_node_and_a_primitive_gives_its_value() -> None:
    flat = sampled(node(2, "PrimitiveNode", 77, "fixed"), links=[(90, 1, 0, 9, 0, "M"), (91, 2, 0, 9, 1, "INT")])
    assert wire(flat, "9", "model") == ("1", 0)
    assert flat.nodes["9"].given == {"seed": 77}
    assert set(flat.nodes) == {"1", "9"}


def test_a_primitive_without_a_value_gives_none() -> None:
    assert sampled(node(2, "PrimitiveNode"), links=[(91, 2, 0, 9, 1, "INT")]).nodes["9"].given == {}


@pytest.mark.parametrize("end", [[("", "*", 1, False)], []])
def test_a_reroute_is_followed(end: list[object]) -> None:
    flat = sampled(node(2, "Reroute", inputs=end), links=[(1, 1, 0, 2, 0, "M"), (90, 2, 0, 9, 0, "M")])
    assert wire(flat, "9", "model") == (("1", 0) if end else None)


def test_a_getter_finds_its_setter() -> None:
    nodes = [node(2, "SetNode", "m", inputs=[("MODEL", "MODEL", 1, False)]), node(3, "GetNode", "m")]
    links = [(1, 1, 0, 2, 0, "M"), (90, 3, 0, 9, 0, "M"), (91, 5, 0, 9, 1, "INT")]
    assert wire(sampled(*nodes, links=links), "9", "model") == ("1", 0)
    nodes[1] = node(3, "GetNode", "another")
    assert wire(sampled(*nodes, links=links), "9", "model") is None
    nodes = [node(2, "SetNode", "m", inputs=[("MODEL", "MODEL", None, False)]), node(3, "GetNode", "m")]
    assert wire(sampled(*nodes, links=links), "9", "model") is None


@pytest.mark.parametrize(
    ("mode", "inputs", "expected"),
    [
        (4, [("model", "MODEL", 1, False), ("clip", "CLIP", 2, False)], ("1", 0)),
        (4, [("clip", "CLIP", 2, False), ("model", "MODEL", 1, False)], ("1", 0)),  # by its type
        (4, [("clip", "CLIP", 2, False), ("any", "MODEL,LORA", 1, False)], ("1", 0)),  # by one of several
        (4, [("clip", "CLIP", 2, False)], None),
        (4, [("any", "*", 1, False)], ("1", 0)),
        (4, [("model", "MODEL", None, False)], None),
        (2, [("model", "MODEL", 1, False)], None),
    ],
)
def test_a_bypassed_node_hands_on_what_fits_and_a_muted_one_nothing(
    mode: int, inputs: list[object], expected: object
) -> None:
    lora = node(2, "LoraLoader", "b.safetensors", inputs=inputs, outputs=["MODEL"], mode=mode)
    links = [(1, 1, 0, 2, 0, "M"), (2, 1, 1, 2, 1, "CLIP"), (90, 2, 0, 9, 0, "M")]
    flat = sampled(lora, links=links)
    assert wire(flat, "9", "model") == expected
    assert flat.nodes["2"].why_off == f"node 2 is {'muted' if mode == 2 else 'bypassed'}"


def test_links_in_a_circle_are_an_error() -> None:
    nodes = [node(2, "Reroute", inputs=[("", "*", 1, False)]), node(3, "Reroute", inputs=[("", "*", 2, False)])]
    with pytest.raises(WorkflowError, match="round in a circle"):
        sampled(*nodes, links=[(1, 3, 0, 2, 0, "*"), (2, 2, 0, 3, 0, "*"), (90, 2, 0, 9, 0, "*")])


# --- subgraphs -----------------------------------------------------------------------------------

UUID = "3301b744-2960-415a-83b0-fe8a89d99fdb"
INNER = subgraph(
    UUID,
    node(8, "UNETLoader", "inner.safetensors", "default", inputs=[("unet_name", "COMBO", 1, True)], outputs=["MODEL"]),
    node(7, "Lora", "x", inputs=[("model", "MODEL", 2, False), ("strength", "FLOAT", 4, True)], outputs=["MODEL"]),
    links=[
        (1, -10, 0, 8, 0, "COMBO"),
        (2, 8, 0, 7, 0, "MODEL"),
        (3, 7, 0, -20, 0, "MODEL"),
        (4, -10, 1, 7, 1, "FLOAT"),
    ],
    inputs=[("file", 1), ("strength", 4, 44), ("clip", 45)],
    outputs=[("MODEL", 3), ("nothing",)],
)


def used(*values: object, inputs: object = (), links: Iterable[Row] = (), **more: object) -> FlatWorkflow:
    instance = node(5, UUID, *values, inputs=inputs, outputs=["MODEL"], **more)
    every = [*links, (90, 5, 0, 9, 0, "MODEL"), (91, 5, 1, 9, 1, "INT")]
    return read(workflow(LOADER, instance, node(2, "PrimitiveNode", "wired"), SAMPLER, links=every, subgraphs=[INNER]))


def test_a_subgraph_is_dissolved_and_its_instance_has_the_last_word() -> None:
    flat = used("outer.safetensors", 0.5)
    assert list(flat.nodes) == ["1", "9", "5:8", "5:7"]
    assert flat.nodes["5:8"].given == {"unet_name": "outer.safetensors"}
    assert flat.nodes["5:7"].given == {"strength": 0.5}
    assert wire(flat, "5:7", "model") == ("5:8", 0)
    assert wire(flat, "9", "model") == ("5:7", 0)
    assert wire(flat, "9", "seed") is None


def test_an_instance_without_values_leaves_those_inside() -> None:
    flat = used()
    assert flat.nodes["5:8"].given == {}
    assert flat.nodes["5:8"].values[0] == "inner.safetensors"


def test_a_wire_into_an_instance_wins_over_its_value() -> None:
    flat = used("outer.safetensors", 0.5, inputs=[("file", "COMBO", 20, True)], links=[(20, 2, 0, 5, 0, "COMBO")])
    assert flat.nodes["5:8"].given == {"unet_name": "wired"}


def test_values_by_name_are_used_where_their_number_does_not_fit() -> None:
    flat = used("only one", widgets_values_named={"file": "named.safetensors"})
    assert flat.nodes["5:8"].given == {"unet_name": "named.safetensors"}


def test_the_values_of_2025_follow_the_list_of_proxies() -> None:
    proxies = [["-1", "file"], ["7", "text"], ["8"], ["8", "weight_dtype"]]
    flat = used("outer.safetensors", "hi", 0, "fp8", properties={"proxyWidgets": proxies})
    assert flat.nodes["5:8"].given == {"unet_name": "outer.safetensors", "weight_dtype": "fp8"}
    assert flat.nodes["5:7"].given == {"text": "hi"}


@pytest.mark.parametrize("mode", [2, 4])
def test_a_subgraph_that_is_off_takes_all_its_nodes_along(mode: int) -> None:
    flat = used("x", 1, mode=mode, inputs=[("in", "MODEL", 20, False)], links=[(20, 1, 0, 5, 0, "MODEL")])
    state = "muted" if mode == 2 else "bypassed"
    assert flat.nodes["5:8"].why_off == flat.nodes["5:7"].why_off == f"node 5 is {state}"
    assert wire(flat, "9", "model") == (None if mode == 2 else ("1", 0))


def test_a_subgraph_in_a_subgraph_takes_the_outermost_value() -> None:
    outer = subgraph(
        "outer",
        node(6, UUID, "middle.safetensors", 1, inputs=[("file", "COMBO", 1, True)], outputs=["MODEL"]),
        links=[(1, -10, 0, 6, 0, "COMBO"), (2, 6, 0, -20, 0, "MODEL"), (3, -10, 9, 6, 1, "X")],
        inputs=[("chosen", 1)],
        outputs=[("MODEL", 2)],
    )
    instance = node(5, "outer", "outermost.safetensors", outputs=["MODEL"])
    flat = read(workflow(instance, SAMPLER, links=[(90, 5, 0, 9, 0, "MODEL")], subgraphs=[INNER, outer]))
    assert flat.nodes["5:6:8"].given == {"unet_name": "outermost.safetensors"}
    assert wire(flat, "9", "model") == ("5:6:7", 0)


def test_an_input_of_a_subgraph_that_does_not_exist_gives_nothing() -> None:
    odd = subgraph("odd", node(8, "A", inputs=[("a", "X", 1, True)]), links=[(1, -10, 5, 8, 0, "X")])
    assert read(workflow(node(5, "odd"), subgraphs=[odd])).nodes["5:8"].given == {}


def test_a_getter_finds_a_setter_around_its_subgraph() -> None:
    inside = subgraph(
        "in", node(3, "GetNode", "m"), node(4, "A", inputs=[("a", "M", 1, False)]), links=[(1, 3, 0, 4, 0, "M")]
    )
    setter = node(2, "SetNode", "m", inputs=[("MODEL", "MODEL", 7, False)])
    flat = read(workflow(LOADER, setter, node(5, "in"), links=[(7, 1, 0, 2, 0, "M")], subgraphs=[inside]))
    assert wire(flat, "5:4", "a") == ("1", 0)


def test_a_subgraph_that_contains_itself_is_an_error() -> None:
    one = subgraph("one", node(1, "two"))
    two = subgraph("two", node(1, "one"))
    with pytest.raises(WorkflowError, match="'the one' contains itself"):
        read(workflow(node(1, "one"), subgraphs=[one, two]))


def test_subgraphs_have_a_greatest_depth() -> None:
    chain = [subgraph(f"s{at}", node(1, f"s{at + 1}")) for at in range(40)]
    with pytest.raises(WorkflowError, match="more than 32 deep"):
        read(workflow(node(1, "s0"), subgraphs=chain))


def test_subgraphs_that_multiply_are_stopped() -> None:
    chain = [subgraph(f"s{at}", *(node(key, f"s{at + 1}") for key in range(10))) for at in range(9)]
    with pytest.raises(WorkflowError, match=f"more than {flattening.MOST_NODES:,} nodes"):
        read(workflow(node(1, "s0"), subgraphs=chain))


# --- group nodes, before subgraphs ---------------------------------------------------------------


@pytest.mark.parametrize("separator", [">", "/"])
@pytest.mark.parametrize("values", [("outer.safetensors", "default", 0.5), ()])
def test_a_group_node_is_a_subgraph_without_names(separator: str, values: tuple[object, ...]) -> None:
    loader = node(0, "UNETLoader", "inner.safetensors", "default", outputs=["MODEL"])
    lora = node(0, "Lora", 1.0, outputs=["MODEL", "CLIP"])
    lora["inputs"] = [
        {"name": "model", "type": "MODEL"},
        {"name": "clip", "type": "CLIP"},
        {"name": "strength", "type": "FLOAT", "widget": {"name": "strength"}},
    ]
    number = node(0, "PrimitiveFloat", outputs=["FLOAT"])
    wires = [[0, 0, 1, 0, "MODEL"], [2, 0, 1, 2, "FLOAT"], [1]]
    group = {"nodes": [loader, lora, number, {}], "links": wires, "external": [[0, 0, "MODEL"], []]}
    instance = node(5, f"workflow{separator}mine", *values, inputs=[("Lora clip", "CLIP", 20, False)])
    flat = read(
        workflow(
            LOADER,
            instance,
            SAMPLER,
            links=[(20, 1, 1, 5, 0, "CLIP"), (90, 5, 1, 9, 0, "MODEL")],
            extra={"groupNodes": {"mine": group}},
        )
    )
    assert flat.nodes["5:0"].values[0] == (values[0] if values else "inner.safetensors")
    assert flat.nodes["5:1"].values == ((0.5,) if values else (1.0,))
    assert wire(flat, "5:1", "model") == ("5:0", 0)
    assert wire(flat, "5:1", "clip") == ("1", 1)
    assert wire(flat, "9", "model") == ("5:1", 0)  # output 0 is the loader's, which is named as external
