"""Parsing a ComfyUI server's answers: recorded, odd, broken and hostile ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.comfyui.server.api import (
    HistoryEntry,
    NodeComplaint,
    NodeFailure,
    OutputFile,
    Refusal,
    as_id,
    knows_node,
    node_classes,
    parse_acceptance,
    parse_choices,
    parse_failure,
    parse_files,
    parse_folder_paths,
    parse_history,
    parse_queue,
    parse_refusal,
    parse_system_stats,
    shortened,
)
from provisioner.comfyui.server.launch import Launch, is_launched_as, parse_address, server_arguments
from provisioner.comfyui.server.messages import (
    Cached,
    Executed,
    Executing,
    Failed,
    Interrupted,
    Message,
    NodeStates,
    NodeTiming,
    Progress,
    RunRecord,
    Started,
    StepMark,
    Succeeded,
    parse_message,
    step_seconds,
)
from provisioner.core.errors import ServerNotUsableError, UsageError

NOTHING: list[object] = [
    None,
    [],
    {},
    "text",
    3,
    True,
    {"system": {}},
    {"system": 3},
    {"p": 3},
    [[]],
    {"p": {"status": 1}},
]


@pytest.mark.parametrize("body", NOTHING)
def test_nonsense_is_rejected_or_empty_and_never_a_crash(body: object) -> None:
    with pytest.raises(ServerNotUsableError):
        parse_system_stats(body)
    with pytest.raises(ServerNotUsableError):
        parse_acceptance(body)
    assert parse_folder_paths(body) == {}
    assert parse_choices(body, "VAELoader", "vae_name") == ()
    assert parse_files(body) == ()
    assert parse_queue(body) == frozenset()
    assert parse_refusal(400, body).complaints == ()
    assert parse_failure(body).node_id == ""
    assert parse_message(json.dumps({"type": "executing", "data": body})) is None


def test_an_old_server_without_versions_is_still_one() -> None:
    facts = parse_system_stats({"system": {"os": "posix"}, "devices": [{"name": "cuda:0", "type": "cuda", "index": 0}]})
    assert (facts.comfyui_version, facts.argv) == (None, ())
    assert facts.devices[0].index == 0


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ([["a", "b"], {}], ("a", "b")),
        (["COMBO", {"options": ["a", "b"]}], ("a", "b")),
        (["COMBO"], ()),
        (["COMBO", {"options": "a"}], ()),
        ([["a", 3, None]], ("a",)),
        ([], ()),
        ("a", ()),
    ],
)
def test_both_shapes_of_a_choice_are_read(declared: object, found: tuple[str, ...]) -> None:
    body = {"VAELoader": {"input": {"required": {"vae_name": declared}}}}
    assert parse_choices(body, "VAELoader", "vae_name") == found


def test_saved_images_come_before_previews_and_an_incomplete_name_is_none() -> None:
    output = {
        "images": [
            {"filename": "preview.png", "subfolder": "", "type": "temp"},
            {"filename": "", "type": "output"},
            {"subfolder": "x"},
            {"filename": "saved.png", "subfolder": 3},
        ]
    }
    assert [(each.filename, each.folder) for each in parse_files(output)] == [
        ("saved.png", "output"),
        ("preview.png", "temp"),
    ]
    assert parse_files(output)[0] == OutputFile(filename="saved.png", subfolder="", folder="output")


def test_a_plain_text_rejection_is_kept() -> None:
    assert parse_refusal(500, {"error": "no prompt"}).message == "no prompt"
    assert parse_refusal(502, "Bad Gateway").message == "Bad Gateway"


def test_an_end_without_messages_is_read_from_the_status() -> None:
    entry = parse_history({"p": {"status": {"status_str": "error"}, "outputs": {}}}, "p")
    assert entry is not None
    assert (entry.end, entry.files) == ("error", ())
    entry = parse_history({"p": {"outputs": {"9": {"images": [{"filename": "a.png"}]}}}}, "p")
    assert entry is not None
    assert (entry.end, len(entry.files)) == ("success", 1)


def test_ids_are_text_even_where_a_server_counts() -> None:
    assert (as_id(11), as_id("11"), as_id(True), as_id(None)) == ("11", "11", None, None)
    assert parse_queue({"queue_running": [[0, "a"]], "queue_pending": [[1, "b", {}], ["short"], 3]}) == {"a", "b"}


def test_what_is_shown_has_no_secret_no_escape_and_no_end() -> None:
    said = shortened("\x1b[31mfailed\x1b[0m\n https://u:p@h/x?token=secret " + "x" * 1000)
    assert said.startswith("failed https://h/x x")
    assert len(said) == 300


@pytest.mark.parametrize(
    ("body", "is_known"),
    [({"SaveImage": {"input": {}}}, True), ({}, False), ({"SaveImage": {}}, False), ({"Other": {"input": {}}}, False)],
)
def test_an_empty_description_means_that_the_server_lacks_the_node(body: object, is_known: bool) -> None:
    assert knows_node(body, "SaveImage") is is_known


def test_an_accepted_prompt_has_an_id() -> None:
    assert parse_acceptance({"prompt_id": "a-1", "number": 3, "node_errors": {}}) == "a-1"


def test_a_rejection_says_which_input_of_which_node_got_what() -> None:
    wrong = {
        "type": "value_not_in_list",
        "message": "Value not in list",
        "details": "vae_name: 'x' not in ['a']",
        "extra_info": {"input_name": "vae_name", "received_value": "x", "input_config": [["a"], {}]},
    }
    lacking = {"type": "required_input_missing", "message": "Required input is missing"}
    body = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt has errors", "details": ""},
        "node_errors": {
            "3": {"class_type": "VAELoader", "errors": [wrong]},
            "6": {"class_type": "CFGGuider", "errors": [lacking]},
        },
    }
    assert parse_refusal(400, body) == Refusal(
        status=400,
        kind="prompt_outputs_failed_validation",
        message="Prompt has errors",
        details="",
        complaints=(
            NodeComplaint(
                node_id="3",
                node_class="VAELoader",
                kind="value_not_in_list",
                message="Value not in list",
                details="vae_name: 'x' not in ['a']",
                input_name="vae_name",
                received="x",
                allowed=("a",),
            ),
            NodeComplaint(
                node_id="6",
                node_class="CFGGuider",
                kind="required_input_missing",
                message="Required input is missing",
                details="",
            ),
        ),
    )


def test_a_rejection_for_a_missing_class_names_it() -> None:
    extra = {"node_id": "7", "class_type": "EmptyFlux2LatentImage"}
    refusal = parse_refusal(400, {"error": {"type": "missing_node_type", "extra_info": extra}})
    assert (refusal.kind, refusal.node_id, refusal.node_class) == ("missing_node_type", "7", "EmptyFlux2LatentImage")


@pytest.mark.parametrize(
    ("messages", "entry"),
    [
        (
            [["execution_cached", {"nodes": ["1", 2]}], ["execution_interrupted", {"node_id": "11"}]],
            HistoryEntry(end="interrupted", cached=("1", "2"), node_id="11"),
        ),
        (
            [["execution_error", {"node_id": "1", "exception_type": "E", "exception_message": " it broke\n"}]],
            HistoryEntry(
                end="error",
                failure=NodeFailure(node_id="1", node_class="", exception_type="E", exception_message="it broke"),
                node_id="1",
            ),
        ),
        ([["execution_success", {}], ["odd"], 3], HistoryEntry(end="success")),
    ],
)
def test_how_a_prompt_ended_is_read_from_its_messages(messages: list[object], entry: HistoryEntry) -> None:
    assert parse_history({"p": {"status": {"messages": messages}}}, "p") == entry


@pytest.mark.parametrize("body", [{}, {"other": {"outputs": {}}}, None])
def test_a_prompt_the_server_does_not_report_has_not_ended(body: object) -> None:
    assert parse_history(body, "p") is None


def test_the_classes_of_a_graph_come_once_and_in_order() -> None:
    graph = {"1": {"class_type": "B"}, "2": {"class_type": "A"}, "3": {"class_type": "B"}, "4": {}}
    assert node_classes(graph) == ("B", "A")


# --- messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "3",
        "[" * 100_000,
        '{"type": "status", "data": {"status": {}}}',
        '{"type": "execution_success"}',
        '{"type": ["execution_success"], "data": {"prompt_id": "p"}}',
        '{"type": "progress_text", "data": {"prompt_id": "p"}}',
        '{"type": "progress", "data": {"prompt_id": "p", "node": "1", "value": NaN, "max": 4}}',
        '{"type": "progress", "data": {"prompt_id": "p", "node": "1", "value": 1, "max": Infinity}}',
        '{"type": "progress", "data": {"prompt_id": "p", "node": null, "value": 1, "max": 4}}',
        '{"type": "progress", "data": {"prompt_id": "p", "node": "1", "value": true, "max": "4"}}',
        '{"type": "executed", "data": {"prompt_id": "p"}}',
    ],
)
def test_a_message_that_says_nothing_about_a_prompt_is_none(text: str) -> None:
    assert parse_message(text) is None


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("execution_start", {}, Started(prompt_id="p")),
        ("execution_cached", {"nodes": ["1", 2, None]}, Cached(prompt_id="p", nodes=("1", "2"))),
        ("executing", {"node": "4"}, Executing(prompt_id="p", node_id="4")),
        ("executing", {"node": None}, Executing(prompt_id="p", node_id=None)),
        ("progress", {"node": 11, "value": 1, "max": 4}, Progress(prompt_id="p", node_id="11", value=1, maximum=4)),
        (
            "progress_state",
            {"nodes": {"1": {"state": "finished"}, "2": {"state": "running"}, "3": {"state": "pending"}, "4": 0}},
            NodeStates(prompt_id="p", running=("2",), finished=("1",)),
        ),
        ("executed", {"node": "13", "output": None}, Executed(prompt_id="p", node_id="13", files=())),
        ("execution_success", {}, Succeeded(prompt_id="p")),
        (
            "execution_error",
            {"node_id": "1", "node_type": "VAELoader", "exception_type": "E", "exception_message": "it broke"},
            Failed(
                prompt_id="p",
                failure=NodeFailure(
                    node_id="1", node_class="VAELoader", exception_type="E", exception_message="it broke"
                ),
            ),
        ),
        ("execution_interrupted", {"node_id": "11"}, Interrupted(prompt_id="p", node_id="11")),
    ],
)
def test_each_kind_of_message_has_its_value(kind: str, data: dict[str, object], message: Message) -> None:
    assert parse_message(message_text(kind, **data)) == message


RUN: list[tuple[float, Message]] = [
    (0.0, Started(prompt_id="p")),
    (0.0, Started(prompt_id="other")),
    (0.1, Cached(prompt_id="p", nodes=("1",))),
    (1.0, Executing(prompt_id="p", node_id="2")),
    (1.5, NodeStates(prompt_id="p", running=(), finished=("2", "1"))),
    (2.0, Executing(prompt_id="p", node_id="3")),
    (2.5, Progress(prompt_id="p", node_id="3", value=1, maximum=2)),
    (3.0, Executing(prompt_id="p", node_id="4")),
    (3.5, Executed(prompt_id="p", node_id="4", files=())),
    (4.0, Succeeded(prompt_id="p")),
    (9.0, Executing(prompt_id="other", node_id="5")),
]


def test_a_node_ends_when_reported_or_when_the_next_one_begins() -> None:
    record = RunRecord("p")
    heard = [record.add(message, at_s) for at_s, message in RUN]
    assert heard.count(False) == 2
    assert [(each.node_id, each.began_s, each.ended_s) for each in record.timings] == [
        ("2", 1.0, 1.5),
        ("3", 2.0, 3.0),
        ("4", 3.0, 4.0),
    ]
    assert (record.started_s, record.ended_s, record.end, record.node_id) == (0.0, 4.0, "success", "4")


def test_a_node_that_is_announced_twice_runs_on() -> None:
    record = RunRecord("p")
    for at_s in (1.0, 2.0):
        record.add(Executing(prompt_id="p", node_id="2"), at_s)
    before = record.timings
    assert before == ()
    record.add(Executing(prompt_id="p", node_id=None), 3.0)
    assert [(each.began_s, each.ended_s) for each in record.timings] == [(1.0, 3.0)]


BROKEN = NodeFailure(node_id="2", node_class="", exception_type="E", exception_message="it broke")


@pytest.mark.parametrize(
    ("last", "end", "node_id", "failure"),
    [
        (Failed(prompt_id="p", failure=BROKEN), "error", "2", BROKEN),
        (Interrupted(prompt_id="p", node_id="3"), "interrupted", "3", None),
        (Interrupted(prompt_id="p", node_id=None), "interrupted", "2", None),  # where it was
    ],
)
def test_a_prompt_that_did_not_succeed_says_how_and_where_it_ended(
    last: Message, end: str, node_id: str, failure: NodeFailure | None
) -> None:
    record = RunRecord("p")
    assert not record.has_run_a_node
    record.add(NodeStates(prompt_id="p", running=("1", "2"), finished=()), 1.0)
    record.add(last, 2.0)
    assert record.has_run_a_node
    assert (record.end, record.ended_s, record.node_id, record.failure) == (end, 2.0, node_id, failure)
    assert [(each.node_id, each.ended_s, each.seconds) for each in record.timings] == [("1", 2.0, 1.0), ("2", 2.0, 1.0)]


@pytest.mark.parametrize(
    ("marks", "seconds"),
    [
        ([(1, 1.5), (3, 2.5), (4, 2.75)], (0.5, 0.5, 0.5, 0.25)),  # 2 and 3 came as one report
        ([(1, 1.5), (1, 1.75), (2, 2.0)], (0.5, 0.5)),  # said twice
        ([], ()),
    ],
)
def test_steps_reported_together_share_their_time(marks: list[tuple[float, float]], seconds: tuple[float, ...]) -> None:
    sampler = NodeTiming(node_id="11", began_s=1.0, ended_s=3.0)
    other = StepMark(node_id="9", value=1, maximum=1, at_s=1.1)
    seen = [other, *(StepMark(node_id="11", value=value, maximum=4, at_s=at_s) for value, at_s in marks)]
    assert step_seconds("11", [sampler], seen) == seconds


def test_a_server_that_counts_without_end_fills_no_memory() -> None:
    record = RunRecord("p")
    for number in range(10_050):
        record.add(Progress(prompt_id="p", node_id="1", value=number, maximum=1e18), float(number))
    assert len(record.marks) == 10_000
    assert record.marks[-1].value == 10_049
    timing = NodeTiming(node_id="1", began_s=0.0, ended_s=1.0)
    huge = StepMark(node_id="1", value=1e15, maximum=1e15, at_s=1.0)
    assert step_seconds("1", [timing], [huge]) == ()


def test_steps_of_a_node_that_never_began_are_unknown() -> None:
    mark = StepMark(node_id="1", value=1, maximum=4, at_s=1.0)
    assert step_seconds("1", [], [mark]) == ()


# --- command line and address ------------------------------------------------------------------

LAUNCH = Launch(
    python=Path("/env/bin/python"), tree=Path("/comfy"), output=Path("/o ut"), user=Path("/u"), temp=Path("/t")
)


def test_the_server_is_headless_on_loopback_and_writes_only_where_it_is_told() -> None:
    words = server_arguments(replace(LAUNCH, base=Path("/base"), extra=("--cpu",)), 8190)
    assert words[:2] == (str(Path("/env/bin/python")), str(Path("/comfy/main.py")))
    text = " ".join(words).replace("\\", "/")
    for part in (
        "--listen 127.0.0.1 --port 8190 --disable-auto-launch",
        "--output-directory /o ut --user-directory /u --temp-directory /t",
        "--database-url sqlite:////u/comfyui.db",
        "--base-directory /base --cpu",
    ):
        assert part in text


def test_every_folder_the_server_writes_to_is_made_for_it() -> None:
    written = {Path(word) for word in server_arguments(LAUNCH, 8190) if Path(word) in LAUNCH.folders}
    assert written == set(LAUNCH.folders) == {Path("/o ut"), Path("/u"), Path("/t")}


@pytest.mark.parametrize(
    ("argv", "is_ours"),
    [
        (server_arguments(LAUNCH, 8190)[1:], True),
        (server_arguments(LAUNCH, 8191)[1:], False),
        (server_arguments(replace(LAUNCH, output=Path("/other")), 8190)[1:], False),
        ((), True),  # too old to say
    ],
)
def test_our_server_is_known_by_its_port_and_output_folder(argv: tuple[str, ...], is_ours: bool) -> None:
    assert is_launched_as(argv, LAUNCH, 8190) is is_ours


@pytest.mark.parametrize(
    ("text", "url", "is_loopback"),
    [
        ("http://127.0.0.1:8188", "http://127.0.0.1:8188", True),
        ("localhost:8188/", "http://localhost:8188", True),
        ("127.5.0.1:1", "http://127.5.0.1:1", True),
        ("http://[::1]:8188", "http://[::1]:8188", True),
        ("https://gpu.example/comfy/", "https://gpu.example/comfy", False),
        ("192.168.1.5:8188", "http://192.168.1.5:8188", False),
    ],
)
def test_an_address_is_read(text: str, url: str, is_loopback: bool) -> None:
    address = parse_address(text)
    assert (address.url, address.is_loopback) == (url, is_loopback)
    assert address.websocket == url.replace("http", "ws", 1) + "/ws"


@pytest.mark.parametrize(
    "text",
    ["", "ftp://host", "http://", "http://host:99999", "http://ho st", "http://u:p@host", "http://host/?a=b", "h#x"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


# --- a server that floods ------------------------------------------------------------------------


def message_text(kind: str, **data: object) -> str:
    return json.dumps({"type": kind, "data": {"prompt_id": "p", **data}})


def test_a_message_of_many_megabytes_is_not_parsed() -> None:
    assert parse_message(message_text("executed", node="1", output={"x": "a" * 5_000_000})) is None


def test_what_is_kept_of_a_flood_of_messages_is_bounded() -> None:
    record = RunRecord("p")
    image = {"filename": "a.png", "subfolder": "", "type": "output"}
    texts = [
        message_text("executed", node="1", output={"images": [image] * 5000}),
        message_text("execution_cached", nodes=[str(number) for number in range(50_000)]),
        *(message_text("executing", node=f"{number}") for number in range(12_000)),
        message_text("progress_state", nodes={f"x{number}": {"state": "running"} for number in range(12_000)}),
    ]
    for text in (*texts, texts[0]):
        message = parse_message(text)
        assert message is not None
        record.add(message, 1.0)
    assert len(record.files) <= 1000
    assert len(record.cached) <= 1000
    assert len(record.timings) <= 1000


def test_the_same_file_said_twice_is_one_file() -> None:
    record = RunRecord("p")
    for _ in range(3):
        message = parse_message(message_text("executed", node="1", output={"images": [{"filename": "a.png"}]}))
        assert message is not None
        record.add(message, 1.0)
    assert len(record.files) == 1


def test_an_endless_id_is_none() -> None:
    assert parse_message(message_text("executing", node="n" * 10_000)) == Executing(prompt_id="p", node_id=None)
