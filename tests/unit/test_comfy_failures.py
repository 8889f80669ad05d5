"""Every known failure gets its own message and names its file; an unknown one shows what the server reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from provisioner.comfyui.server.api import NodeComplaint, NodeFailure, Refusal
from provisioner.comfyui.server.failures import (
    death_error,
    findings_in_log,
    gone_error,
    interrupted_error,
    is_port_taken,
    last_lines,
    models_behind,
    no_port_error,
    node_error,
    nodes_missing_error,
    not_comfyui_error,
    out_of_time_error,
    refusal_error,
    silent_start_error,
    unreachable_error,
)
from provisioner.comfyui.server.known_failures import known_failures
from provisioner.core.errors import (
    GenerationError,
    MemoryExhaustedError,
    ModelNotListedError,
    ServerNotUsableError,
    SmokeTestError,
)

KNOWN = known_failures()
LOG = Path("/logs/comfyui.log")


def graph(clip_type: str = "flux2") -> dict[str, dict[str, Any]]:
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "m.safetensors", "weight_dtype": "default"}},
        "2": {"class_type": "CLIPLoader", "inputs": {"clip_name": "t.safetensors", "type": clip_type}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "v.safetensors"}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["2", 0]}},
        "6": {"class_type": "CFGGuider", "inputs": {"model": ["1", 0], "positive": ["4", 0]}},
        "11": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["6", 0]}},
        "12": {"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["3", 0]}},
        "13": {"class_type": "SaveImage", "inputs": {"images": ["12", 0]}},
    }


def failure(node_id: str, kind: str, message: str) -> NodeFailure:
    node_class = str(graph()[node_id]["class_type"])
    return NodeFailure(node_id=node_id, node_class=node_class, exception_type=kind, exception_message=message)


SAFETENSORS = "safetensors._safetensors_rust.SafetensorError"
SHAPES = "mat1 and mat2 shapes cannot be multiplied (512x{} and {}x3072)"

CASES = [
    ("1", SAFETENSORS, "Error while deserializing header: HeaderTooLarge", "not-safetensors", "m.safetensors is no"),
    ("1", SAFETENSORS, "Error while deserializing header: HeaderTooSmall", "empty-file", "m.safetensors is empty"),
    ("2", SAFETENSORS, "Error while deserializing header: MetadataIncompleteBuffer", "truncated-file", "t.safetensors"),
    ("3", SAFETENSORS, "Error while deserializing header: InvalidHeaderDeserialization", "broken-header", "v.safe"),
    ("3", SAFETENSORS, "Error while deserializing header: invalid UTF-8 in header", "broken-header", "The VAE v.safe"),
    (
        "12",
        "RuntimeError",
        "expected input[1, 16, 8, 8] to have 4 channels, but got 16 channels",
        "wrong-vae",
        "v.safe",
    ),
    ("11", "RuntimeError", SHAPES.format(2560, 7680), "comfyui-too-old", "one layer of the text encoder t.safetensors"),
    ("11", "RuntimeError", SHAPES.format(4096, 12288), "comfyui-too-old", "(4096 values) where the model needs three"),
    ("11", "RuntimeError", SHAPES.format(7680, 12288), "wrong-text-encoder", "needs Qwen3-8B (12288 values)"),
    ("11", "RuntimeError", SHAPES.format(12288, 7680), "wrong-text-encoder", "12288, which is Qwen3-8B"),
    ("11", "RuntimeError", SHAPES.format(3072, 7680), "wrong-text-encoder", "which is three layers of Qwen3-0.6B"),
    ("11", "RuntimeError", SHAPES.format(4096, 7680), "wrong-text-encoder", "which is one layer of Qwen3-8B"),
    ("11", "RuntimeError", SHAPES.format(777, 999), "wrong-text-encoder", "needs an encoder of width 999"),
    ("12", "torch.OutOfMemoryError", "Allocation on device \nThis error", "gpu-out-of-memory", "VAEDecode (node 12)"),
    ("11", "torch.cuda.OutOfMemoryError", "CUDA out of memory. Tried", "gpu-out-of-memory", "ran out in Sampler"),
    ("11", "RuntimeError", "CUDA error: out of memory", "gpu-out-of-memory", "ran out in"),
    ("11", "RuntimeError", "MPS backend out of memory", "gpu-out-of-memory", "The GPU's memory"),
    ("2", "MemoryError", "", "ram-out-of-memory", "The machine's memory ran out in CLIPLoader (node 2)"),
    ("4", "RuntimeError", "DefaultCPUAllocator: can't allocate memory", "ram-out-of-memory", "CLIPTextEncode"),
    ("4", "RuntimeError", "CUDA error: no kernel image is available for execution", "no-kernel-image", "no code for"),
    ("4", "AssertionError", "Torch not compiled with CUDA enabled", "torch-without-cuda", "without CUDA"),
    ("11", "TypeError", "Trying to convert Float8_e4m3fn to the MPS backend", "fp8-on-mps", "m.safetensors"),
    ("11", "RuntimeError", "CUDA error: an illegal memory access was encountered", "gpu-fault", "The GPU failed"),
    (
        "1",
        "FileNotFoundError",
        "Model in folder 'diffusion_models' not found",
        "missing-file",
        "does not exist any more",
    ),
    (
        "1",
        "RuntimeError",
        "ERROR: Could not detect model type of: m.safetensors",
        "unknown-model",
        "recognise the diffusion model m.safetensors",
    ),
    ("1", SAFETENSORS, "No such device", "unknown", "SafetensorError: No such device"),
    ("6", "KeyError", "'odd'", "unknown", "CFGGuider (node 6) failed with KeyError: 'odd'"),
    ("6", "", "", "unknown", "failed with an error: no message"),
]


@pytest.mark.parametrize(("node_id", "kind", "message", "cause", "said"), CASES)
def test_a_node_that_raised_is_explained(node_id: str, kind: str, message: str, cause: str, said: str) -> None:
    error = node_error(failure(node_id, kind, message), graph(), KNOWN, log_path=LOG)
    assert error.context["cause"] == cause
    assert said in str(error)
    assert error.hint
    assert (error.context["node"], error.context["log_path"]) == (node_id, str(LOG))


def test_running_out_of_gpu_memory_names_what_helps() -> None:
    error = node_error(failure("12", "torch.OutOfMemoryError", "Allocation on device"), graph(), KNOWN)
    assert isinstance(error, MemoryExhaustedError)
    assert error.hint is not None
    for help_with in ("a smaller set", "Close other programs"):
        assert help_with in error.hint


def test_the_wrong_type_of_the_loader_is_blamed_before_the_file() -> None:
    error = node_error(failure("11", "RuntimeError", SHAPES.format(2560, 7680)), graph("lumina2"), KNOWN)
    assert error.context["cause"] == "wrong-clip-type"
    assert "as `lumina2`" in str(error)


def test_shapes_without_a_text_encoder_in_the_graph_stay_unknown() -> None:
    alone = {"11": {"class_type": "SamplerCustomAdvanced", "inputs": {}}}
    error = node_error(failure("11", "RuntimeError", SHAPES.format(1, 2)), alone, KNOWN)
    assert error.context["cause"] == "unknown"


def test_an_unknown_failure_shows_one_line_and_where_the_rest_is() -> None:
    error = node_error(failure("4", "ValueError", "\nfirst line\nsecond line"), graph(), KNOWN, log_path=LOG)
    assert "ValueError: first line" in str(error)
    assert "second line" not in str(error)
    assert error.hint is not None
    assert str(LOG) in error.hint


def test_the_files_of_a_node_are_those_of_every_loader_above_it() -> None:
    assert [use.file for use in models_behind(graph(), "12")] == ["v.safetensors", "m.safetensors", "t.safetensors"]
    assert [use.node_id for use in models_behind(graph(), "4")] == ["2"]
    assert models_behind(graph(), "not there") == ()


def test_a_graph_that_runs_in_a_circle_ends() -> None:
    circle = {"1": {"class_type": "A", "inputs": {"x": ["2", 0]}}, "2": {"class_type": "B", "inputs": {"x": ["1", 0]}}}
    assert models_behind(circle, "1") == ()


# --- rejected prompts --------------------------------------------------------------------------


def complaint(node_class: str, input_name: str, allowed: tuple[str, ...] = ()) -> NodeComplaint:
    return NodeComplaint(
        node_id="2",
        node_class=node_class,
        kind="value_not_in_list",
        message="Value not in list",
        details="d",
        input_name=input_name,
        received="x",
        allowed=allowed,
    )


@pytest.mark.parametrize(
    ("complaints", "kind", "cause", "said"),
    [
        ([complaint("CLIPLoader", "clip_name", allowed=())], ModelNotListedError, "missing-file", "it lists none"),
        ([complaint("VAELoader", "vae_name", allowed=tuple("abcdefg"))], ModelNotListedError, "missing-file", "2 more"),
        ([complaint("CLIPLoader", "type")], GenerationError, "comfyui-too-old", "Node 2 (CLIPLoader)"),
        ([complaint("KSamplerSelect", "sampler_name")], GenerationError, "bad-value", "Value not in list (d)"),
        (
            [complaint("UNETLoader", "unet_name"), complaint("VAELoader", "vae_name")],
            ModelNotListedError,
            "missing-file",
            "the VAE x",
        ),
    ],
)
def test_a_rejected_prompt_is_explained(
    complaints: list[NodeComplaint], kind: type[SmokeTestError], cause: str, said: str
) -> None:
    refusal = Refusal(status=400, kind="prompt_outputs_failed_validation", message="", details="",
                      complaints=tuple(complaints))  # fmt: skip
    error = refusal_error(refusal, graph())
    assert (type(error), error.context["cause"]) == (kind, cause)
    assert said in str(error)


def test_an_unknown_rejection_keeps_the_servers_message() -> None:
    error = refusal_error(Refusal(status=500, kind="odd", message="it", details="hurts"), {})
    assert "HTTP 500): it hurts" in str(error)


@pytest.mark.parametrize(
    ("kind", "node_class", "error", "cause", "said"),
    [
        ("missing_node_type", "CFGGuider", ModelNotListedError, "missing-node", "CFGGuider"),
        ("missing_node_type", None, ModelNotListedError, "missing-node", "Node 'X' not found"),
        ("prompt_no_outputs", None, GenerationError, "no-output-node", "no node that saves an image"),
    ],
)
def test_a_graph_that_cannot_run_there_is_explained(
    kind: str, node_class: str | None, error: type[SmokeTestError], cause: str, said: str
) -> None:
    found = refusal_error(
        Refusal(status=400, kind=kind, message="Node 'X' not found", details="", node_class=node_class), graph()
    )
    assert (type(found), found.context["cause"]) == (error, cause)
    assert said in str(found)
    assert found.hint


def test_missing_nodes_are_named() -> None:
    assert "ComfyUI 0.3.9 does not have the nodes A, B." in str(nodes_missing_error(["A", "B"], version="0.3.9"))


def test_an_interruption_and_a_timeout_name_the_node() -> None:
    assert "CLIPTextEncode (node 4)" in str(interrupted_error("4", graph()))
    assert "on the server, not by klein-setup" in str(interrupted_error(None, graph()))
    assert "VAEDecode (node 12)" in str(out_of_time_error(60, "12", graph(), KNOWN))
    assert "within 60 s; it had not begun" in str(out_of_time_error(60, None, graph(), KNOWN))


# --- deaths ------------------------------------------------------------------------------------

DEATHS = [
    ("OSError: Could not load\nRuntimeError: operator torchvision::nms does not exist", "torch-set-mismatch", "nms"),
    ("FileNotFoundError: [WinError 3] The system cannot find the path specified: 'C:\\\\b\\\\custom_nodes'",
     "custom-nodes-missing", "custom_nodes"),
    ('File "/c/utils/extra_config.py", line 10, in load\n    for c in config:\n'
     "TypeError: 'NoneType' object is not iterable", "empty-model-paths", "is empty"),
    ('File "/c/utils/extra_config.py", line 8, in load\n  x\nyaml.scanner.ScannerError: mapping values\n  in "x"',
     "broken-model-paths", "mapping values"),
    ("RuntimeError: Could not acquire lock on database '/c/user/comfyui.db'.", "database-locked", "Another ComfyUI"),
    ("AssertionError: Torch not compiled with CUDA enabled", "torch-without-cuda", "without CUDA"),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 12040).", "driver-too-old", "12040"),
    ("RuntimeError: Found no NVIDIA driver on your system.", "no-gpu", "no usable GPU"),
    ("RuntimeError: No CUDA GPUs are available", "no-gpu", "no usable GPU"),
    ("CUDA error: no kernel image is available", "no-kernel-image", "no code for this GPU"),
    ('OSError: [WinError 126] The module could not be found. Error loading "C:\\\\t\\\\lib\\\\fbgemm.dll"',
     "missing-library", "fbgemm.dll"),
    ("ModuleNotFoundError: No module named 'aiohttp'", "missing-module", "aiohttp"),
    ("ModuleNotFoundError: No module named 'comfy.ldm.models'", "incomplete-comfyui", "comfy.ldm.models"),
    ("ModuleNotFoundError: No module named 'comfy_extras'", "incomplete-comfyui", "comfy_extras"),
    ("ModuleNotFoundError: No module named 'comfy_kitchen'", "missing-module", "comfy_kitchen"),
    ("ImportError: libcudnn.so.9: cannot open shared object file", "broken-module", "libcudnn.so.9"),
    ("main.py: error: argument --user-directory: '/x' does not exist.", "unknown-option", "--user-directory"),
    ("python: can't open file '/c/main.py': [Errno 2] No such file or directory", "missing-program", "/c/main.py"),
    (r"python.exe: can't open file 'C:\\Users\\me\\main.py': [Errno 2] No such file or directory",
     "missing-program", r"at C:\Users\me\main.py."),
    ("line one\nline two", "server-died", "exit status 1: line two"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "cause", "said"), DEATHS)
def test_an_ended_server_is_explained_from_its_last_lines(text: str, cause: str, said: str) -> None:
    error = death_error(1, text.splitlines(), KNOWN, log_path=LOG, is_starting=True)
    assert error.context["cause"] == cause
    assert said in str(error)
    assert str(error).startswith("ComfyUI ended while it started")
    assert error.hint
    assert error.context["last_lines"]


@pytest.mark.parametrize(
    ("returncode", "kind", "said"),
    [
        (-9, MemoryExhaustedError, "most likely for lack of memory"),
        (137, MemoryExhaustedError, "most likely for lack of memory"),
        (-11, ServerNotUsableError, "signal 11 (it crashed)"),
        (3221225477, ServerNotUsableError, "0xC0000005 (it crashed)"),
        (-15, ServerNotUsableError, "signal 15,"),
    ],
)
def test_how_it_ended_is_reported(returncode: int, kind: type[SmokeTestError], said: str) -> None:
    error = death_error(returncode, [], KNOWN, log_path=LOG, node="VAEDecode (node 12)")
    assert type(error) is kind
    assert said in str(error)
    assert "in VAEDecode (node 12)" in str(error)


def test_secrets_and_escapes_of_a_log_are_not_shown() -> None:
    lines = ["token hf_AbCdEfGh1234567890", "\x1b[31mred https://h/x?sig=abc\x1b[0m", "", "end"]
    assert last_lines(lines) == ["token hf_***", "red https://h/x", "end"]
    error = death_error(1, ["Authorization: Bearer abcdef123"], KNOWN, log_path=LOG)
    assert "abcdef123" not in f"{error} {error.context}"


@pytest.mark.parametrize(
    ("line", "is_taken"),
    [
        ("Port 8188 is already in use on address 127.0.0.1. Please close the other application", True),
        (
            "OSError: [Errno 98] error while attempting to bind on address: address already in use",
            True,
        ),
        ("OSError: [WinError 10048] Only one usage of each socket address", True),
        ("To see the GUI go to: http://127.0.0.1:8188", False),
    ],
)
def test_a_taken_port_is_recognised_in_three_messages(line: str, is_taken: bool) -> None:
    assert is_port_taken(["Starting server", line], KNOWN) is is_taken


def test_a_silent_or_homeless_server_shows_its_last_line() -> None:
    assert "Its last line: cloning" in str(silent_start_error(300, ["cloning"], log_path=LOG))
    assert "It printed nothing." in str(silent_start_error(300, [], log_path=LOG))
    assert no_port_error(5, [], log_path=LOG).context["cause"] == "port-taken"


@pytest.mark.parametrize(
    ("status", "content_type", "beginning", "said"),
    [
        (200, "text/plain", "<!DOCTYPE html>", "web page"),
        (200, "text/html; charset=utf-8", "", "web page"),
        (404, "text/plain", "", "HTTP 404"),
        (403, "text/html", "<html>", "login"),
        (301, "", "", "another address"),
        (500, "text/html", "<html>", "failed (HTTP 500)"),
        (200, "application/json", "3", "not ComfyUI's"),
    ],
)
def test_another_program_is_recognised(status: int, content_type: str, beginning: str, said: str) -> None:
    error = not_comfyui_error("http://h:1", "/system_stats", status, content_type, beginning)
    assert said in str(error)
    assert error.context["cause"] == "not-comfyui"


def test_a_slow_server_is_not_one_that_is_away() -> None:
    slow, away = unreachable_error("http://h:1", "late", is_slow=True), unreachable_error("http://h:1", "refused")
    assert (slow.context["cause"], away.context["cause"]) == ("slow-server", "unreachable")


@pytest.mark.parametrize(("node", "said"), [("VAEDecode", " It had reached VAEDecode."), (None, "was finished.")])
def test_a_server_that_went_away_is_told_with_how_far_it_came(node: str | None, said: str) -> None:
    error = gone_error("http://h:1", node)
    assert str(error).endswith(said)
    assert (error.context["cause"], error.context["url"]) == ("server-gone", "http://h:1")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("nodes.py:1632: RuntimeWarning: invalid value encountered in cast", "picture-not-a-number"),
        ("unet unexpected: ['double_blocks.0.img_attn.proj.weight_scale']", "weights-ignored"),
        ("unet missing: ['img_in.weight']", "weights-missing"),
        ("Missing VAE keys ['decoder.conv_in.weight']", "weights-missing"),
        ("WARNING: You need pytorch with cu130 or higher to use optimized CUDA operations.", "slow-torch"),
    ],
)
def test_a_warning_in_the_log_becomes_a_finding(line: str, code: str) -> None:
    found = findings_in_log(["loaded", line, line], KNOWN, log_path=LOG)
    assert [each.code for each in found] == [code]
    assert (found[0].severity, found[0].path) == ("warning", LOG)


def test_a_quiet_log_has_no_findings() -> None:
    assert findings_in_log(["unet missing: []", "got prompt", "Prompt executed in 4.39 seconds"], KNOWN) == ()
