"""Every recorded exchange with ComfyUI 0.33.0, through the parsers and through the real client over real sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

from provisioner.comfyui.server.api import (
    NodeFailure,
    OutputFile,
    knows_node,
    node_classes,
    parse_acceptance,
    parse_choices,
    parse_folder_paths,
    parse_history,
    parse_queue,
    parse_refusal,
    parse_system_stats,
)
from provisioner.comfyui.server.client import ComfyClient, Generated, GenerationProgress
from provisioner.comfyui.server.failures import node_error, refusal_error
from provisioner.comfyui.server.known_failures import known_failures
from provisioner.comfyui.server.messages import RunRecord, parse_message, step_seconds
from provisioner.core.errors import GenerationError, ModelNotListedError, SmokeTestError
from tests.support.comfy_server import IMAGE, RECORDINGS, Faults, ReplayServer, graph_of, recording, whole_graph

SUCCESSES = ("ok_fp8", "ok_fp8_cpu_256", "ok_fp8_h200_cold_1024", "ok_fp8_h200_warm_1024")

# recording -> error, its cause, words of its message, words of its hint
FAILURES: dict[str, tuple[type[SmokeTestError], str, str, str]] = {
    "truncated_diffusion_model": (
        GenerationError,
        "truncated-file",
        "The diffusion model truncated.safetensors is truncated",
        "klein-setup repair",
    ),
    "html_page_as_model": (
        GenerationError,
        "not-safetensors",
        "htmlpage.safetensors is not a safetensors file",
        "repair",
    ),
    "empty_file_as_model": (GenerationError, "empty-file", "empty.safetensors is empty", "repair"),
    "flux1_vae": (GenerationError, "wrong-vae", "The VAE ae.safetensors does not belong", "flux2-vae.safetensors"),
    "wrong_text_encoder_06b": (
        GenerationError,
        "wrong-text-encoder",
        "needs Qwen3-4B (7680 values), the encoder gives 1024, which is Qwen3-0.6B",
        "qwen_3_4b.safetensors",
    ),
    "wrong_clip_type": (GenerationError, "wrong-clip-type", "qwen_3_4b.safetensors as `sd3`", "`flux2`"),
    "interrupted": (GenerationError, "interrupted", "CLIPTextEncode (node 4)", "again"),
    "bad_value": (GenerationError, "bad-value", "Node 8 (Flux2Scheduler) was rejected", "Correct node 8"),
    "missing_model_file": (ModelNotListedError, "missing-file", "diffusion model not-there.safetensors", "install"),
    "missing_node_type": (ModelNotListedError, "missing-node", "the node Flux9Scheduler", "0.9.2"),
    "no_output_node": (GenerationError, "no-output-node", "no node that saves an image", "SaveImage"),
}


def heard(name: str) -> RunRecord:
    """Return a recording's messages, added up at the times at which they arrived."""
    entries = recording(name)
    record = RunRecord(parse_acceptance(entries[0]["body"]))
    for entry in entries:
        message = parse_message(json.dumps(entry["ws"])) if "ws" in entry else None
        if message is not None:
            record.add(message, entry["t"])
    return record


def histories(name: str) -> list[Any]:
    return [entry["body"] for entry in recording(name) if entry.get("http", "").startswith("GET /history")]


def generate(
    name: str, faults: Faults | None = None, on_progress: Callable[[GenerationProgress], None] | None = None
) -> Generated:
    with ReplayServer(name, faults=faults) as server, ComfyClient(server.url, cancelled=lambda: False) as client:
        return client.generate(graph_of(name), on_progress=on_progress or (lambda progress: None), timeout_s=20)


def test_every_recording_is_tested() -> None:
    prompts = {path.stem for path in RECORDINGS.glob("*.json") if not path.name.startswith("GET_")}
    assert prompts == {*SUCCESSES, *FAILURES, "ok_videos_and_sounds"}


# --- single answers ----------------------------------------------------------------------------


def test_system_stats_say_versions_devices_and_the_command_line() -> None:
    facts = parse_system_stats(recording("GET_system_stats")["body"])
    assert (facts.comfyui_version, facts.torch_version, facts.os) == ("0.33.0", "2.11.0+cu130", "linux")
    assert facts.argv[:2] == ("main.py", "--cpu")
    assert [(each.name, each.kind, each.index) for each in facts.devices] == [("cpu", "cpu", None)]


def test_folder_paths_keep_the_order_in_which_the_server_looks() -> None:
    folders = parse_folder_paths(recording("GET_internal_folder_paths")["body"])
    assert folders["diffusion_models"] == (
        "/opt/ComfyUI-data/models/unet",
        "/opt/ComfyUI-data/models/diffusion_models",
        "/opt/ComfyUI-data/output/diffusion_models",
    )


@pytest.mark.parametrize(
    ("node_class", "input_name", "some"),
    [
        ("UNETLoader", "unet_name", {"flux-2-klein-4b-fp8.safetensors", "flux-2-klein-4b.safetensors"}),
        ("CLIPLoader", "clip_name", {"qwen_3_06b.safetensors", "qwen_3_4b.safetensors"}),
        ("CLIPLoader", "type", {"flux2", "stable_diffusion"}),
        ("CLIPLoader", "device", {"default", "cpu"}),
        ("VAELoader", "vae_name", {"ae.safetensors", "flux2-vae.safetensors"}),
        ("Flux2Scheduler", "steps", set()),
        ("VAELoader", "not_an_input", set()),
    ],
)
def test_a_loader_lists_what_it_can_load(node_class: str, input_name: str, some: set[str]) -> None:
    found = parse_choices(recording(f"GET_object_info_{node_class}")["body"], node_class, input_name)
    assert some <= set(found)
    assert bool(found) == bool(some)


@pytest.mark.parametrize(
    ("name", "is_known"), [("EmptyFlux2LatentImage", True), ("Flux2Scheduler", True), ("NoSuchNode", False)]
)
def test_an_unknown_node_is_an_empty_answer(name: str, is_known: bool) -> None:
    assert knows_node(recording(f"GET_object_info_{name}")["body"], name) is is_known


def test_an_empty_queue_and_an_unknown_prompt_say_nothing() -> None:
    assert parse_queue(recording("GET_queue")["body"]) == frozenset()
    assert parse_history(recording("GET_history_none")["body"], "none") is None


# --- prompts, through the parsers --------------------------------------------------------------


@pytest.mark.parametrize("name", SUCCESSES)
def test_a_good_run_ends_with_one_image(name: str) -> None:
    record = heard(name)
    assert record.end == "success"
    assert [file.folder for file in record.files] == ["output"]
    entry = parse_history(histories(name)[-1], record.prompt_id)
    assert entry is not None
    assert (entry.end, list(entry.files)) == ("success", record.files)
    assert entry.cached == record.cached


def test_a_whole_run_is_timed_node_by_node_and_step_by_step() -> None:
    record = heard("ok_fp8_h200_cold_1024")
    seconds = {each.node_id: round(each.seconds, 3) for each in record.timings}
    assert len(seconds) == 13
    assert (seconds["4"], seconds["11"], seconds["12"]) == (2.546, 1.915, 0.6)  # encode, sample, decode
    steps = step_seconds("11", record.timings, record.marks)
    assert [round(each, 3) for each in steps] == [1.706, 0.054, 0.054, 0.07]  # the server skipped the report of step 2
    assert sum(steps) == pytest.approx(record.marks[-1].at_s - 2.997)


def test_a_warm_run_runs_only_what_the_seed_changed() -> None:
    record = heard("ok_fp8_h200_warm_1024")
    assert [each.node_id for each in record.timings] == ["10", "11", "12", "13"]
    assert record.cached == tuple("123456789")


def test_a_cached_run_runs_no_node() -> None:
    record = heard("ok_fp8")
    assert (record.timings, record.marks, record.has_run_a_node) == ((), [], False)
    assert set(record.cached) == set(whole_graph())


@pytest.mark.parametrize("faults", [None, Faults(files_only_in_history=True)])
def test_the_client_names_videos_and_sounds_and_fetches_them(faults: Faults | None) -> None:
    with (
        ReplayServer("ok_videos_and_sounds", faults=faults) as server,
        ComfyClient(server.url, cancelled=lambda: False) as client,
    ):
        generated = client.generate(graph_of("ok_videos_and_sounds"), timeout_s=20)
        server.faults.answers["/view"] = (200, "video/mp4", b"a film")
        film = next(each for each in generated.media if each.filename.endswith(".mp4"))
        assert client.fetch(film) == b"a film"
        asked = next(target for _, target, _ in server.requests if target.startswith("/view"))
    assert generated.image is None
    assert sorted((each.kind, each.filename.rpartition(".")[2], each.subfolder) for each in generated.media) == [
        ("audio", "flac", "audio"),
        ("audio", "mp3", "audio"),
        ("audio", "opus", "audio"),
        ("video", "mp4", "video"),
        ("video", "png", ""),
        ("video", "webm", ""),
        ("video", "webp", ""),
    ]
    assert asked == "/view?filename=klein_00001_.mp4&subfolder=video&type=output"


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_a_failure_is_named_with_its_cause(name: str) -> None:
    error = parsed_error(name)
    kind, cause, message, hint = FAILURES[name]
    assert type(error) is kind
    assert error.context["cause"] == cause
    assert message in str(error)
    assert error.hint is not None
    assert hint in error.hint


def parsed_error(name: str) -> SmokeTestError:
    """Return the error of a recording, by the decisions alone."""
    first = recording(name)[0]
    if first["status"] != 200:
        return refusal_error(parse_refusal(first["status"], first["body"]), graph_of(name))
    if name == "interrupted":
        return caught(name)
    failure = heard(name).failure
    assert failure is not None
    return node_error(failure, graph_of(name), known_failures())


@pytest.mark.parametrize("name", [name for name in FAILURES if recording(name)[0]["status"] == 200])
def test_the_history_agrees_with_the_messages(name: str) -> None:
    record = heard(name)
    entry = parse_history(histories(name)[-1], record.prompt_id)
    assert entry is not None
    assert (entry.end, entry.failure, entry.node_id) == (record.end, record.failure, record.node_id)


BROKEN_CAUSE = {
    "empty": "aimdo-mmap",
    "four_bytes": "empty-file",
    "header_cut": "truncated-file",
    "header_only": "truncated-file",
    "half": "truncated-file",
    "last_bytes_cut": "truncated-file",
    "lfs_pointer": "not-safetensors",
    "html_page": "not-safetensors",
    "zeros": "not-safetensors",
    "header_length_huge": "not-safetensors",
    "header_no_json": "not-safetensors",
}
OTHER_FILE_CAUSE = {"UNETLoader": "unknown-model", "CLIPTextEncode": "wrong-text-encoder", "VAELoader": "wrong-vae"}
_BROKEN_FILES = RECORDINGS.parent / "comfyui-0.33.0-h200" / "broken_files.jsonl"
BROKEN = [json.loads(line) for line in _BROKEN_FILES.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("said", [each for each in BROKEN if "node" in each], ids=lambda each: str(each["damage"]))
def test_a_broken_file_is_named_where_comfyui_streams_memory(said: dict[str, str]) -> None:
    graph = whole_graph()
    (node,) = (name for name, each in graph.items() if each["class_type"] == said["node"])
    failure = NodeFailure(
        node_id=node, node_class=said["node"], exception_type=said["exception"], exception_message=said["message"]
    )
    error = node_error(failure, graph, known_failures())
    cause = BROKEN_CAUSE.get(said["damage"]) or OTHER_FILE_CAUSE[said["node"]]
    assert (error.context["cause"], error.context["layer"]) == (cause, "model-files")
    assert said["file"] in str(error)
    assert "klein-setup repair" in (error.hint or "")


def test_every_kind_of_damage_is_there_for_every_file() -> None:
    seen = {(each["file"], each["damage"]) for each in BROKEN}
    assert len(seen) == len(BROKEN) == 44
    silent = {each["damage"] for each in BROKEN if each["end"] == "success"}
    assert silent == {"healthy", "trailing_bytes", "zeroed_half"}


def test_the_history_can_be_empty_right_after_the_end() -> None:
    first, second = histories("wrong_text_encoder_06b")
    prompt_id = heard("wrong_text_encoder_06b").prompt_id
    assert parse_history(first, prompt_id) is None
    assert parse_history(second, prompt_id) is not None


# --- prompts, through the client ---------------------------------------------------------------


def caught(name: str, faults: Faults | None = None) -> SmokeTestError:
    """Return what the client raises for a recording; for the interruption another client interrupts."""

    def interrupt(progress: GenerationProgress) -> None:
        if name == "interrupted" and progress.node_id == "2":
            requests.post(f"{server.url}/interrupt", json={}, timeout=10).raise_for_status()

    with ReplayServer(name, faults=faults) as server:
        with (
            ComfyClient(server.url, cancelled=lambda: False, patience_s=0.3) as client,
            pytest.raises(SmokeTestError) as raised,
        ):
            client.generate(graph_of(name), on_progress=interrupt, timeout_s=20)
        return raised.value


@pytest.mark.parametrize("name", SUCCESSES)
def test_the_client_returns_the_image(name: str) -> None:
    record = heard(name)
    seen: list[GenerationProgress] = []
    generated = generate(name, on_progress=seen.append)
    assert generated.image == IMAGE
    assert generated.files[0] == OutputFile(filename=record.files[0].filename, subfolder="", folder="output")
    assert generated.was_cached is (name == "ok_fp8")
    assert generated.was_followed
    assert [each.node_id for each in generated.nodes] == [each.node_id for each in record.timings]
    assert [each.value for each in generated.steps] == [each.value for each in record.marks]
    assert [each.value for each in seen if each.value is not None] == [each.value for each in record.marks]
    assert {each.node_class for each in seen if each.node_id == "11"} <= {"SamplerCustomAdvanced"}
    assert generated.queued_s is not None
    assert 0 <= generated.queued_s <= generated.total_s


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_the_client_raises_what_the_parsers_name(name: str) -> None:
    raised, parsed = caught(name), parsed_error(name)
    assert (type(raised), str(raised), raised.hint) == (type(parsed), str(parsed), parsed.hint)


def test_the_client_lists_models_and_misses_nodes() -> None:
    wanted = (*node_classes(whole_graph()), "NoSuchNode")
    with ReplayServer() as server, ComfyClient(server.url, cancelled=lambda: False) as client:
        listed = client.listed_models(wanted)
        folders = client.folder_paths()
        facts = client.system_stats()
    assert "flux-2-klein-4b-fp8.safetensors" in listed.diffusion_models
    assert listed.text_encoders == ("qwen_3_06b.safetensors", "qwen_3_4b.safetensors")
    assert "flux2-vae.safetensors" in listed.vaes
    assert "flux2" in listed.clip_types
    assert listed.missing_nodes == ("NoSuchNode",)
    assert folders == parse_folder_paths(recording("GET_internal_folder_paths")["body"])
    assert facts == parse_system_stats(recording("GET_system_stats")["body"])
