"""The known failures: each row against what users reported, against each other, and against hostile logs."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from provisioner.comfyui.releases import version_key
from provisioner.comfyui.server.api import NodeComplaint, NodeFailure, Refusal
from provisioner.comfyui.server.catalogue import Match, Where, parse_catalogue
from provisioner.comfyui.server.failures import (
    death_error,
    findings_in_log,
    is_port_taken,
    node_error,
    out_of_time_error,
    refusal_error,
)
from provisioner.comfyui.server.known_failures import known_failures
from provisioner.core.errors import ManifestError, SmokeTestError
from provisioner.core.models import Finding
from provisioner.manifest.shipped import read_table_text

KNOWN = known_failures()
PINNED = "0.33.0"
REPORTED: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "data" / "failure_samples.yaml").read_text(encoding="utf-8")
)
SAMPLES = [(each, sample) for each in REPORTED for sample in each.get("samples", ())]
GRAPH: dict[str, dict[str, Any]] = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "m.safetensors"}},
    "2": {"class_type": "CLIPLoader", "inputs": {"clip_name": "t.safetensors", "type": "flux2"}},
    "3": {"class_type": "VAELoader", "inputs": {"vae_name": "v.safetensors"}},
    "11": {"class_type": "SamplerCustomAdvanced", "inputs": {"model": ["1", 0], "clip": ["2", 0]}},
    "12": {"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["3", 0]}},
}
NODES = {"UNETLoader": "1", "SamplerCustomAdvanced": "11", "VAEDecode": "12"}


def matched(sample: dict[str, Any]) -> tuple[Match, ...]:
    """Return the rows that match a sample."""
    text = sample.get("text", "")
    if sample["where"] != "node-error":
        return KNOWN.matches(sample["where"], text, exit_status=sample.get("exit_status"))
    classes = (sample["node"], sample.get("behind", "UNETLoader"))
    said = f"{sample['exception']}: {text}"
    return KNOWN.matches("node-error", said, exception=sample["exception"], classes=classes)


def refusal(name: str) -> SmokeTestError:
    """Return the answer to a prompt that names a missing file, or a missing node."""
    complaint = NodeComplaint(node_id="2", node_class="VAELoader", kind="value_not_in_list", message="m", details="",
                              input_name="vae_name", received="x", allowed=())  # fmt: skip
    if name == "node-missing":
        return refusal_error(
            Refusal(status=400, kind="missing_node_type", message="Node 'X' not found", details=""), {}
        )
    return refusal_error(Refusal(status=400, kind="prompt_outputs_failed_validation", message="", details="",
                                 complaints=(complaint,)), {})  # fmt: skip


def answer(name: str, sample: dict[str, Any]) -> SmokeTestError | Finding:
    """Return what the user is told."""
    text, where = sample.get("text", ""), sample["where"]
    if where == "refusal":
        return refusal(name)
    if where == "log-line":
        (found,) = findings_in_log(text.splitlines(), KNOWN)
        return found
    if where == "hang":
        return out_of_time_error(60, "11", GRAPH, KNOWN, text.splitlines())
    if where == "server-death":
        return death_error(sample["exit_status"], text.splitlines(), KNOWN, log_path=Path("/l/comfyui.log"))
    graph = GRAPH | ({"1": {"class_type": sample["behind"], "inputs": {}}} if "behind" in sample else {})
    failure = NodeFailure(node_id=NODES[sample["node"]], node_class=sample["node"],
                          exception_type=sample["exception"], exception_message=text)  # fmt: skip
    return node_error(failure, graph, KNOWN)


def layer_of(found: SmokeTestError | Finding) -> object:
    """Return the layer in an error's context; that of a finding is its row's."""
    if isinstance(found, SmokeTestError):
        return found.context.get("layer")
    return next(each.layer for each in KNOWN.failures if each.cause == found.code and "log-line" in each.where)


@pytest.mark.parametrize(
    ("reported", "sample"), SAMPLES, ids=[f"{each['id']}-{at}" for at, (each, _) in enumerate(SAMPLES)]
)
def test_a_reported_failure_is_answered_with_its_layer_and_what_helps(
    reported: dict[str, Any], sample: dict[str, Any]
) -> None:
    found = answer(reported["id"], sample)
    assert layer_of(found) == reported["layer"]
    assert reported["says"] in f"{found.hint} {found.message if isinstance(found, Finding) else found}"
    if sample["row"] != "graph":
        assert matched(sample)[0].failure.id == sample["row"]


def test_at_least_110_of_119_reported_failures_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    unanswered = {each["id"]: each["unanswered"] for each in REPORTED if "unanswered" in each}
    judged = [each["id"] for each in REPORTED if "layer_because" in each]
    answered = len(REPORTED) - len(unanswered)
    with capsys.disabled():
        sys.stdout.write(f"\n{answered} of {len(REPORTED)} failures answered, {len(judged)} with a layer of our own\n")
    assert (len(REPORTED), answered >= 110) == (119, True), unanswered


def test_no_row_takes_the_sample_of_another() -> None:
    """A general row may match too, but only after the special one; without the special one it is a fallback."""
    general = {"gpu-out-of-memory", "cuda-oom-bare", "broken-module", "node-kills-start", "missing-module",
               "python-memory", "friendly-large", "gpu-fault"}  # fmt: skip
    others = {
        (sample["row"], each.failure.id)
        for _, sample in SAMPLES
        if sample["where"] != "refusal"
        for each in matched(sample)
        if each.failure.id != sample["row"]
    }
    assert {second for _, second in others} <= general
    order = [each.id for each in KNOWN.failures]
    assert all(order.index(first) < order.index(second) for first, second in others)


# --- the same failures with other words ----------------------------------------------------------

LOADER, SAMPLER = "UNETLoader", "SamplerCustomAdvanced"
VARIANTS = [
    ("node-error", "RuntimeError", SAMPLER, "\x1b[31mHostBuffer.read_file_slice failed\x1b[0m\r\n", "aimdo-read-slice"),
    ("node-error", "RuntimeError", SAMPLER, "Fault failed: 17", "aimdo-fault"),
    ("node-error", "RuntimeError", LOADER, "VRAM grow failed: 5 bytes", "aimdo-vram-grow"),
    ("node-error", "MemoryError", LOADER, "VBAR allocation failed", "aimdo-vbar-oom"),
    ("node-error", "RuntimeError", LOADER, r"ModelMMAP allocation failed for D:\m\ü x.safetensors", "aimdo-mmap"),
    ("node-error", "OSError", LOADER, "Die Auslagerungsdatei ist zu klein. (os error 1455)", "os-1455"),
    ("node-error", "OSError", LOADER, "ページング ファイルが小さすぎます。 (os error 1455)", "os-1455"),
    ("node-error", "OSError", SAMPLER, "系统资源不足 (os error 1450)", "os-1450"),
    ("node-error", "OSError", LOADER, "[WinError 1450] Nicht genügend Systemressourcen", "os-1450"),
    ("node-error", "RuntimeError", LOADER, "DefaultCPUAllocator: not enough memory: you tried 7 bytes",
     "cpu-allocator"),
    ("node-error", "torch.OutOfMemoryError", SAMPLER, "HIP out of memory. Tried 2 GiB", "gpu-out-of-memory"),
    ("node-error", "RuntimeError", SAMPLER, "UR_RESULT_ERROR_UNKNOWN", "xpu-lost"),
    ("node-error", "RuntimeError", SAMPLER, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", "cudnn-not-init"),
    ("node-error", "RuntimeError", LOADER, "shape '[9216, 3072]' is invalid for input of size 12", "file-truncated"),
    ("node-error", "JSONDecodeError", LOADER, "Expecting value: line 1 column 9 (char 8)", "file-not-json"),
    ("node-error", "KeyError", LOADER, "'F4_E2M1'", "dtype-unknown"),
    ("node-error", "OSError", "SaveImage", "[Errno 28] Kein Speicherplatz mehr verfügbar", "disk-full"),
    ("node-error", "OSError", "SaveImage", "[WinError 112] Es steht nicht genug Speicherplatz zur Verfügung",
     "disk-full"),
    ("node-error", "PermissionError", "SaveImage", "[WinError 5] Zugriff verweigert: 'C:\\\\x'", "permission"),
    ("node-error", "OSError", LOADER, "[WinError 389] Der Clouddateivorgang wurde abgebrochen", "cloud-placeholder"),
    ("server-death", "", "", "OSError: [WinError 1455] Le fichier de pagination est insuffisant", "winerror-1455"),
    ("server-death", "", "", 'OSError: [WinError 1114] DLL 初期化 "E:\\torch\\lib\\shm.dll"', "dll-1114"),
    ("server-death", "", "", 'OSError: [WinError 126] Nie można odnaleźć modułu "C:\\t\\c10_cuda.dll"', "dll-126"),
    ("server-death", "", "", "ImportError: DLL load failed\r\nOSError: [WinError 4551] blockiert", "app-control"),
    ("server-death", "", "", "OSError: [WinError 225] Der Vorgang enthält einen Virus", "quarantine"),
    ("server-death", "", "", "OSError: [Errno 10013] Zugriff auf einen Socket", "port-forbidden"),
    ("server-death", "", "", "OSError: [WinError 10048] Normalerweise darf jede Socketadresse", "port-used"),
    ("server-death", "", "", "tokenizers>=0.22,<0.23 is required for a normal functioning of this module, "
     "but found tokenizers==0.21.1.", "hub-version"),
    ("log-line", "", "", "\x1b[33m   1.2 seconds (IMPORT FAILED): D:\\c\\custom_nodes\\x\x1b[0m\r", "node-import"),
    ("log-line", "", "", "Tesla P40 with CUDA capability sm_61 is not compatible with the current PyTorch",
     "arch-warning"),
    ("log-line", "", "", "Installed comfyui-workflow-templates version 0.1 is lower than the recommended version 0.2.",
     "frontend-old"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "exception", "node", "text", "row"), VARIANTS)
def test_another_number_path_or_language_is_the_same_failure(
    where: Where, exception: str, node: str, text: str, row: str
) -> None:
    said = f"{exception}: {text}" if exception else text
    found = KNOWN.matches(where, said, exception=exception, classes=(node,), exit_status=1)
    assert found[0].failure.id == row


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("node-error", "KeyError: 'odd'"),
        ("node-error", "ValueError: 1455 is not a colour"),
        ("server-death", "To see the GUI go to: http://127.0.0.1:8188\nimport times: 0.0 seconds: /c/custom_nodes/x"),
        ("log-line", "got prompt\nPrompt executed in 4.39 seconds"),
        ("log-line", "   0.0 seconds (IMPORT FAILED): /c/ComfyUI/comfy_extras/nodes_latent.py"),  # no custom node
        ("log-line", r"Cannot import C:\C\comfy_api_nodes\nodes_x.py module for custom nodes: No module named 'y'"),
        ("hang", "got prompt\nRequested to load Flux2"),
    ],
)
def test_an_ordinary_text_is_no_known_failure(where: Where, text: str) -> None:
    assert KNOWN.matches(where, text, classes=("CFGGuider",), exit_status=1) == ()


def test_a_module_that_something_went_on_without_did_not_end_the_server() -> None:
    said = ["ModuleNotFoundError: No module named 'triton'", *["got prompt"] * 9]
    assert death_error(1, said, KNOWN, log_path=Path("/l")).context["cause"] == "server-died"
    assert death_error(1, said[:3], KNOWN, log_path=Path("/l")).context["cause"] == "missing-module"


def test_a_json_error_of_another_node_is_not_blamed_on_a_file() -> None:
    said = "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
    assert KNOWN.matches("node-error", said, exception="JSONDecodeError", classes=("ApiNode", LOADER)) == ()


def test_a_port_that_windows_keeps_is_tried_elsewhere() -> None:
    assert is_port_taken(["OSError: [Errno 10013] error while attempting to bind on address"], KNOWN)


# --- hostile texts -------------------------------------------------------------------------------


def hostile() -> Iterator[str]:
    """Yield 100 kB each: the beginnings of patterns, again and again."""
    starts: tuple[str, ...] = (
        "extra_config.py ",
        "extra_config.py\n",
        "[WinError 126]",
        "Cannot import x",
        "ImportError: ",
        "float8mps",
    )
    starts += ("flash_attn_2_cuda", "No module named '", "can't open file '", "a<", "a.", "Prompt executed", "\\", " ")
    starts += (
        "terminate called after throwing an instance of 'c10::Error'",
        "Installed a version ",
        "KeyError: '",
        "[",
    )
    for start in starts:
        yield (start * (100_000 // len(start) + 1))[:100_000]


def test_a_hostile_log_of_100_kb_costs_little() -> None:
    began = time.process_time()
    count = 0
    for text in hostile():
        for where in get_args(Where):
            KNOWN.matches(where, text, exception="SafetensorError", classes=("UNETLoader",))
            count += 1
    assert (time.process_time() - began) / count < 0.5  # measured: 0.02 s for each


# --- the table itself ----------------------------------------------------------------------------


def test_a_remedy_names_only_options_that_the_pinned_comfyui_has() -> None:
    since = {each.name: each.since for each in KNOWN.flags}
    own = {"--only", "--set", "--server", "--comfyui", "--tiled-decode"}  # of klein-setup
    for row in KNOWN.failures:
        named = set(re.findall(r"--[a-z][\w-]+", row.remedy))
        assert named - own == set(row.flags), row.id
        newer = [flag for flag in row.flags if version_key(since[flag]) > version_key(PINNED)]
        assert not newer or (row.versions or "").startswith(tuple(since[flag] for flag in newer)), row.id


def test_every_row_is_reached_and_written_as_a_sentence() -> None:
    for row in KNOWN.failures:
        assert row.remedy.endswith("."), row.id
        assert row.sentence.endswith((".", "}")), row.id


ROW = """schema_version: 1
failures:
  - {id: a, layer: disk, where: [hang], pattern: "full (x)", sentence: "Full {0}.", remedy: "Do.", threads: [A/b#1]}
flags: [{name: --cpu, since: "0.3.10"}]
sources: [{id: s, what: it, read_on: "2026-11-26"}]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("full (x)", "full (x", "is not a regular expression"),
        ("Full {0}.", "Full {1}.", "names {1}, which is neither"),
        ("Full {0}.", "Full {0.", "has braces that do not fit"),
        ("layer: disk", "layer: disc", "one of model-files"),
        (', threads: [A/b#1]', "", "has no 'threads' and no 'sources'"),
        ('pattern: "full (x)", sentence: "Full {0}."', "sentence: Full.", "has no 'pattern' and no 'exit_statuses'"),
        ("threads: [A/b#1]", "threads: [A/b#1], flags: [--gpu]", "the option --gpu, which is not in 'flags'"),
        ("[A/b#1]", "[b#1]", "a thread like"),
        ("sources: [{", "sources: [{id: s, what: it, read_on: '2026-11-26'}, {", "names 's' twice"),
    ],
)  # fmt: skip
def test_a_table_with_a_mistake_is_refused(old: str, new: str, said: str) -> None:
    text = ROW.replace("threads: [A/b#1]", "threads: [A/b#1], sources: [s]")
    assert parse_catalogue(text, file="f.yaml").failures[0].cause == "a"
    base = ROW if "threads" in old and not new else text
    assert old in base
    with pytest.raises(ManifestError) as caught:
        parse_catalogue(base.replace(old, new), file="f.yaml")
    assert any(said in each for each in caught.value.issues), caught.value.issues


def test_the_table_ships_and_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    assert read_table_text("failures")[1] == "failures.yaml"
    (tmp_path / "failures.yaml").write_bytes(b"\xef\xbb\xbfschema_version: 1\n")
    assert read_table_text("failures", tmp_path) == ("schema_version: 1\n", "failures.yaml")
    with pytest.raises(ManifestError):
        read_table_text("failures", tmp_path / "missing")
