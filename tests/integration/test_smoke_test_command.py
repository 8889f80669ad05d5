"""``smoke-test``: the real command in a real process, against servers that answer as ComfyUI 0.33.0 was recorded."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from provisioner.smoke_test.graph import build_graph
from provisioner.smoke_test.image import read_image, seed_in
from provisioner.smoke_test.results import ImageOptions, ModelNames
from tests.support.builders import KLEIN_RECIPE, recording_of
from tests.support.comfy_server import Faults, ReplayServer
from tests.support.sandbox import Ahead, Completed, Running, Sandbox, sha256_of, wait_until
from tests.support.setup_fixture import (
    ENCODER,
    KLEIN,
    MODEL,
    VAE,
    inventory,
    main_py,
    rtx_4070,
    states,
    with_existing_tree,
)
from tests.support.workflows import node, subgraph, workflow

COLD = "ok_fp8_h200_cold_1024"
NAMES = ModelNames(diffusion_model=MODEL.name, text_encoder=ENCODER.name, vae=VAE.name)
SMALL = ("--size", "256x256")


@pytest.fixture(scope="module")
def sandbox(make_sandbox: Callable[[], Sandbox]) -> Sandbox:
    """A tree with the three files, and a Python and a ComfyUI of its owner's."""
    return with_existing_tree(make_sandbox())


def codes_of(document: dict[str, object]) -> list[tuple[str, str]]:
    """Return code and cause of every error of a document."""
    errors = document["errors"]
    assert isinstance(errors, list)
    return [(each["code"], each["context"].get("cause")) for each in errors]


# --- a server that runs already ----------------------------------------------------------------


def test_a_running_server_draws_and_is_left_running(sandbox: Sandbox, tmp_path: Path) -> None:
    image = tmp_path / "fox.png"
    before = states(sandbox.tree)
    with ReplayServer(COLD, folder=sandbox.tree) as server:
        done = sandbox.run(
            *("smoke-test", "--server", server.url, "--image", image, "--prompt", "a fox", "--seed", "7"), *SMALL
        )
        again = sandbox.run("smoke-test", "--server", server.url, "--image", image, "--json", "--seed", "8", *SMALL)
        asked = [path for method, path, _ in server.requests if method == "POST"]
        sent = server.asked("POST", "/prompt")[0]["prompt"]
    assert done.returncode == 0, done.said
    for words in (str(image), "256 x 256", "seed 7, 4 steps, guidance 1", "a fox", "took", "comfyui 0.33.0"):
        assert words in done.said
    assert sent == build_graph(KLEIN_RECIPE, NAMES, ImageOptions(prompt="a fox", seed=7, width=256, height=256))
    assert asked == ["/free", "/prompt"] * 2
    assert states(sandbox.tree) == before

    told = again.json["details"]["smoke_test"]
    assert (again.returncode, again.json["status"], again.json["errors"]) == (0, "ok", [])
    assert (told["backend"], told["is_proven"], told["device"], told["wish"]["seed"]) == ("comfyui", True, "cpu", 8)
    assert told["models"] == {"diffusion_model": MODEL.name, "text_encoder": ENCODER.name, "vae": VAE.name}
    assert told["picture"]["sha256"] == sha256_of(image)
    assert told["timings"]["start_s"] is None  # it ran before
    assert len(told["timings"]["steps_s"]) == 4
    assert seed_in(image.read_bytes()) == 8
    assert read_image(image.read_bytes()).width == 256


def test_an_image_without_a_name_is_kept_with_its_seed_in_the_name(sandbox: Sandbox) -> None:
    with ReplayServer(COLD, folder=sandbox.tree) as server:
        done = sandbox.run("smoke-test", "--server", server.url, "--json", *SMALL)
    told = done.json["details"]["smoke_test"]
    path = Path(told["picture"]["path"])
    assert path.parent == sandbox.home / "data" / "klein-setup" / "pictures"
    assert path.name.endswith(f"-{told['wish']['seed']}.png")
    assert sha256_of(path) == told["picture"]["sha256"]


def klein_workflow() -> bytes:
    """Return the graph for Klein as the editor saves it, the models in a subgraph whose instance names the files."""
    inside = subgraph(
        "models",
        node(1, "UNETLoader", "other.safetensors", "default", inputs=[("unet_name", "COMBO", 1, True)]),
        node(2, "CLIPLoader", ENCODER.name, "flux2", "default"),
        node(3, "VAELoader", VAE.name),
        links=[(1, -10, 0, 1, 0, "C"), (2, 1, 0, -20, 0, "M"), (3, 2, 0, -20, 1, "C"), (4, 3, 0, -20, 2, "V")],
        inputs=[("unet_name", 1)],
        outputs=[("MODEL", 2), ("CLIP", 3), ("VAE", 4)],
    )
    wires = ("noise", "guider", "sampler", "sigmas", "latent_image")
    return workflow(
        node(5, "models", MODEL.name),
        node(6, "CLIPTextEncode", "a dog", inputs=[("clip", "CLIP", 10, False)]),
        node(7, "ConditioningZeroOut", inputs=[("conditioning", "C", 11, False)]),
        node(
            8,
            "CFGGuider",
            1.0,
            inputs=[("model", "M", 12, False), ("positive", "C", 13, False), ("negative", "C", 14, False)],
        ),
        node(9, "KSamplerSelect", "euler"),
        node(10, "Flux2Scheduler", 4, 512, 512),
        node(11, "EmptyFlux2LatentImage", 512, 512, 1),
        node(12, "RandomNoise", 3, "randomize"),
        node(13, "SamplerCustomAdvanced", inputs=[(each, "X", at, False) for at, each in enumerate(wires, start=20)]),
        node(14, "VAEDecode", inputs=[("samples", "L", 30, False), ("vae", "V", 31, False)]),
        node(15, "SaveImage", "klein", inputs=[("images", "I", 32, False)]),
        node(16, "SaveImage", "other", mode=4, inputs=[("images", "I", 33, False)]),
        links=[
            (10, 5, 1, 6, 0, "CLIP"),
            (11, 6, 0, 7, 0, "C"),
            (12, 5, 0, 8, 0, "M"),
            (13, 6, 0, 8, 1, "C"),
            (14, 7, 0, 8, 2, "C"),
            *((at, origin, 0, 13, at - 20, "X") for at, origin in enumerate((12, 8, 9, 10, 11), start=20)),
            (30, 13, 0, 14, 0, "L"),
            (31, 5, 2, 14, 1, "V"),
            (32, 14, 0, 15, 0, "I"),
            (33, 14, 0, 16, 0, "I"),
        ],
        subgraphs=[inside],
    )


def test_any_workflow_is_generated_with_another_seed(sandbox: Sandbox, tmp_path: Path) -> None:
    path = sandbox.plant(tmp_path / "klein.json", klein_workflow())
    image = tmp_path / "dog.png"
    with ReplayServer(COLD, folder=sandbox.tree) as server:
        words = ("smoke-test", "--server", server.url, "--workflow", path, "--image", image)
        plain = sandbox.run(*words, "--json")
        asked = sandbox.run(*words, "--prompt", "a fox", "--seed", "7", "--steps", "3", *SMALL)
        shown = sandbox.run(*words, "--graph", "--seed", "7")
        first, second = (each["prompt"] for each in server.asked("POST", "/prompt"))
    assert plain.returncode == 0, plain.said
    told = plain.json["details"]["smoke_test"]
    assert (told["wish"]["prompt"], told["wish"]["steps"], told["picture"]["width"]) == ("a dog", 4, 512)
    assert first["12"]["inputs"]["noise_seed"] == told["wish"]["seed"] != 3
    assert first["5:1"]["inputs"]["unet_name"] == MODEL.name
    assert first["14"]["inputs"] == {"samples": ["13", 0], "vae": ["5:3", 0]}
    assert "16" not in first
    assert asked.returncode == 0, asked.said
    assert f"Generated with {path}; changed in it: prompt, seed, size, steps." in asked.said
    expected = build_graph(KLEIN_RECIPE, NAMES, ImageOptions(prompt="a fox", seed=7, width=256, height=256, steps=3))
    kinds = {node["class_type"]: node["inputs"] for node in second.values()}
    for each in expected.values():  # but for the ids of nodes and the name of the file it is the graph of ours
        values = {name: value for name, value in each["inputs"].items() if not isinstance(value, list)}
        values.pop("filename_prefix", None)
        assert values.items() <= kinds[each["class_type"]].items()
    assert json.loads(shown.stdout)["12"]["inputs"]["noise_seed"] == 7


def test_an_installation_ends_with_the_image_of_the_manifests_own_workflow(sandbox: Sandbox, tmp_path: Path) -> None:
    own = sandbox.plant(tmp_path / "own.json", klein_workflow())
    document = json.loads(sandbox.manifest.read_text(encoding="utf-8"))
    document["workflow"] = {"name": own.name, "sha256": sha256_of(own)}
    del document["sets"][0]["recipe"]
    manifest = sandbox.plant(tmp_path / "with.yaml", json.dumps(document).encode())
    with ReplayServer(COLD, folder=sandbox.tree) as server:
        words = ("--server", server.url, "--manifest", manifest, "--image", tmp_path / "x.png")
        done = sandbox.run("install", "--only", "files,smoke", *words, "--json")
        own.write_bytes(klein_workflow() + b" ")
        sandbox.expect(own, own.read_bytes())
        refused = sandbox.run("smoke-test", *words)
        (sent,) = server.asked("POST", "/prompt")
    assert done.returncode == 0, done.said
    assert done.json["details"]["smoke_test"]["picture"]["verdict"] == "noise"
    assert "5:1" in sent["prompt"]
    assert refused.returncode == 7
    assert f"{own} is not the workflow that the manifest names" in refused.said


def test_a_template_is_the_one_that_the_server_offers(sandbox: Sandbox, tmp_path: Path) -> None:
    document = json.loads(sandbox.manifest.read_text(encoding="utf-8"))
    document["workflow"] = {"name": "image_mine"}
    manifest = sandbox.plant(tmp_path / "with.yaml", json.dumps(document).encode())
    with ReplayServer(COLD, folder=sandbox.tree) as server:
        server.faults.answers["/templates/image_mine.json"] = (200, "application/json", klein_workflow())
        words = ("smoke-test", "--server", server.url, "--manifest", manifest, "--image", tmp_path / "x.png")
        done, other = sandbox.run_each([words, (*words, "--steps", "5000")])
        (sent,) = server.asked("POST", "/prompt")
    assert done.returncode == 0, done.said
    assert "Generated with ComfyUI's template image_mine; changed in it: seed." in done.said
    assert "5:1" in sent["prompt"]
    assert other.returncode == 2
    assert "'5000' is not a number of steps from 1 to 4096" in other.said


def test_a_workflow_whose_nodes_are_not_there_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    mine = node(1, "Mine", properties={"cnr_id": "my-nodes"})
    path = sandbox.plant(tmp_path / "mine.json", workflow(mine))
    with ReplayServer(COLD, folder=sandbox.tree) as server:
        done = sandbox.run("smoke-test", "--server", server.url, "--workflow", path)
        assert server.asked("POST", "/prompt") == []
    assert done.returncode == 2
    assert "needs what this ComfyUI does not have: the custom nodes my-nodes (Mine)" in done.said
    assert "manifest from-workflow" in done.said  # which pins them
    pinned = {"repository": "https://github.com/owner/my-nodes", "commit": "1a" * 20}
    pinned |= {"id": "my-nodes", "read_from": "a test", "read_on": "2026-11-27"}
    manifest = json.loads(sandbox.manifest.read_text(encoding="utf-8")) | {"custom_nodes": [pinned]}
    sandbox.manifest.write_text(json.dumps(manifest), encoding="utf-8")
    with ReplayServer(COLD, folder=sandbox.tree) as server:
        done = sandbox.run("smoke-test", "--server", server.url, "--workflow", path)
    assert "--custom-node my-nodes" in done.said
    shown = sandbox.run("manifest", "show", sandbox.manifest)
    assert "my-nodes" in shown.said
    assert "commit 1a1a1a1a1a1a" in shown.said
    graph = sandbox.run("smoke-test", "--graph", "--workflow", path)
    assert graph.returncode == 2
    assert "Name it with --server URL" in graph.said


FAILURES = {  # recording -> code, cause, words of the sentence
    "truncated_diffusion_model": ("generation-failed", "truncated-file", f"The diffusion model {MODEL.name} is trunc"),
    "html_page_as_model": ("generation-failed", "not-safetensors", f"{MODEL.name} is not a safetensors file"),
    "empty_file_as_model": ("generation-failed", "empty-file", f"{MODEL.name} is empty"),
    "flux1_vae": ("generation-failed", "wrong-vae", f"The VAE {VAE.name} does not belong"),
    "wrong_text_encoder_06b": ("generation-failed", "wrong-text-encoder", "gives 1024, which is Qwen3-0.6B"),
    "wrong_clip_type": ("generation-failed", "comfyui-too-old", f"one layer of the text encoder {ENCODER.name}"),
    "interrupted": ("generation-failed", "interrupted", "CLIPTextEncode (node 4)"),
    "bad_value": ("generation-failed", "bad-value", "Node 8 (Flux2Scheduler) was rejected"),
    "missing_model_file": ("model-not-listed", "missing-file", "not-there.safetensors"),
    "missing_node_type": ("model-not-listed", "missing-node", "the node Flux9Scheduler"),
    "no_output_node": ("generation-failed", "no-output-node", "no node that saves an image"),
    "ok_fp8": ("generation-failed", "cached", "generated nothing"),
}


FAULTS: dict[str, tuple[Faults, str, str]] = {  # what is wrong -> code, words of the sentence
    "a web page": (Faults(is_a_web_page=True), "comfyui-server", "web page"),
    "not listed": (Faults(missing=(VAE.name,)), "model-not-listed", f"list vae/{VAE.name} (it lists ae.safetensors"),
    "no flux2": (Faults(missing=("flux2",)), "model-not-listed", "type flux2 of CLIPLoader"),
    "an old server": (
        Faults(answers={"/object_info/Flux2Scheduler": (200, "application/json", b"{}")}),
        "model-not-listed",
        "Flux2Scheduler",
    ),
    "no image": (Faults(answers={"/view": (200, "text/html", b"<html>")}), "generation-failed", "a web page"),
    "half an image": (Faults(draws="half an image"), "generation-failed", "cannot be decoded"),
    "black": (Faults(draws="black"), "smoke-test", "black"),
    "one colour": (Faults(draws="one colour"), "smoke-test", "one colour"),
    "another seed": (Faults(draws="another seed"), "smoke-test", "it is an older one"),
}


@pytest.fixture(scope="module")
def ahead(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ahead]:
    """The runs of both tables, some side by side, each with a server of its own."""
    folder = tmp_path_factory.mktemp("images")
    with contextlib.ExitStack() as stack:

        def begin(name: str, recorded: str, faults: Faults | None) -> Callable[[Sandbox], Running]:
            def start(sandbox: Sandbox) -> Running:
                server = stack.enter_context(ReplayServer(recorded, folder=sandbox.tree, faults=faults))
                server.interrupted.set()  # by somebody else, in the recording of that name
                image = folder / f"{name}.png"
                return sandbox.start("smoke-test", "--server", server.url, "--json", "--image", image, *SMALL)

            return start

        cases = {name: begin(name, name, None) for name in FAILURES}
        cases |= {name: begin(name, COLD, faults) for name, (faults, _, _) in FAULTS.items()}
        yield Ahead(lambda: sandbox, cases, at_once=3)


@pytest.mark.parametrize("name", FAILURES)
def test_every_recorded_failure_is_told_with_its_cause_and_exit_status_9(ahead: Ahead, name: str) -> None:
    code, cause, sentence = FAILURES[name]
    _, done = ahead.take(name)
    assert done.returncode == 9
    assert codes_of(done.json) == [(code, cause)]
    error = done.json["errors"][0]
    assert sentence in error["message"]
    assert error["hint"]
    assert done.json["details"].get("smoke_test") is None
    assert not image_of(done).exists()


def image_of(done: Completed) -> Path:
    """Return where a run was to keep its image."""
    return Path(done.arguments[done.arguments.index("--image") + 1])


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_that_cannot_draw_it_is_told_apart(ahead: Ahead, name: str) -> None:
    _, code, sentence = FAULTS[name]
    _, done = ahead.take(name)
    assert (done.returncode, done.codes) == (9, [code])
    assert sentence in done.json["errors"][0]["message"]
    told = done.json["details"].get("smoke_test")
    assert told is None or told["is_proven"] is False
    is_to_be_looked_at = code == "smoke-test"  # it came, and is a bad one
    assert image_of(done).exists() == is_to_be_looked_at == (told is not None)


# --- what the image looks like ------------------------------------------------------------------


@pytest.mark.parametrize("is_stand_in", [True, False])
def test_noise_is_expected_of_stand_ins_and_a_failure_of_published_weights(
    sandbox: Sandbox, tmp_path: Path, is_stand_in: bool
) -> None:
    manifest = tmp_path / "models.yaml"
    document = json.loads(sandbox.manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps(document | {"is_stand_in": is_stand_in}), encoding="utf-8")
    page = tmp_path / "page.html"
    words = ("smoke-test", "--manifest", manifest, "--images", "3", "--size", "512x512")
    with ReplayServer(COLD, folder=sandbox.tree) as server:
        told = sandbox.run(*words, "--server", server.url, "--json", "--image", tmp_path / "fox.png")
    assert sandbox.run("report", "--output", page).returncode == 0
    smoke = told.json["details"]["smoke_test"]
    picture, verdicts = smoke["picture"], [each["verdict"] for each in smoke["images"]]
    assert (picture["verdict"], picture["is_noise_expected"], set(verdicts)) == ("noise", is_stand_in, {"noise"})
    assert picture["figures"]["edge_peakedness"] < 5
    if is_stand_in:
        assert (told.returncode, smoke["is_proven"], len(verdicts), smoke["findings"]) == (0, True, 3, [])
    else:
        assert (told.returncode, smoke["is_proven"], told.codes) == (9, False, ["smoke-test"])
        assert "looks like noise" in told.json["errors"][0]["message"]
        assert "picture-noise" in [each["code"] for each in smoke["findings"]]
    as_expected = "Looks like noise, as expected of stand-ins for the models: no edge"
    assert (as_expected in page.read_text(encoding="utf-8")) is is_stand_in


def test_a_server_that_does_not_answer_is_reported(sandbox: Sandbox) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = sandbox.run("smoke-test", "--server", url)
    assert done.returncode == 9
    assert "refused" in done.said


def test_a_server_of_another_tree_is_not_asked_to_draw(sandbox: Sandbox, tmp_path: Path) -> None:
    for each in KLEIN:
        path = tmp_path / "models" / each.folder / each.name
        path.parent.mkdir(parents=True)
        path.write_bytes(each.data)
    with ReplayServer(COLD, folder=tmp_path) as server:
        done = sandbox.run("smoke-test", "--server", server.url)
        assert server.asked("POST", "/prompt") == []
    assert done.returncode == 9
    assert f"does not read the verified file {sandbox.path(MODEL)}" in done.said
    assert str(tmp_path / "models") in done.said


def test_a_file_that_is_gone_is_named_before_anybody_is_asked_to_draw(sandbox: Sandbox) -> None:
    gone = sandbox.path(VAE)
    data = gone.read_bytes()
    gone.unlink()
    try:
        with ReplayServer(COLD, folder=sandbox.tree) as server:
            done = sandbox.run("smoke-test", "--server", server.url, "--json")
            assert server.asked("POST", "/prompt") == []
    finally:
        gone.write_bytes(data)
    assert (done.returncode, done.codes) == (9, ["model-not-listed"])
    assert str(gone) in done.json["errors"][0]["message"]
    assert "klein-setup repair" in done.json["errors"][0]["hint"]


def test_an_image_that_cannot_be_kept_is_told_before_it_is_drawn(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with ReplayServer(COLD, folder=sandbox.tree) as server:
        done = sandbox.run("smoke-test", "--server", server.url, "--image", tmp_path / "file" / "fox.png", *SMALL)
        assert server.asked("POST", "/prompt") == []
    assert done.returncode == 4
    assert "cannot be saved" in done.said
    assert (tmp_path / "file").read_text() == "mine"


# --- words that are wrong, and the graph -------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("--size", "1000x1024"),
        ("--seed", str(2**64)),
        ("--server", "ftp://example.org"),
        ("--server", "http://me:hunter22@127.0.0.1:8188"),
    ],
)
def test_what_cannot_be_asked_for_is_a_usage_error(sandbox: Sandbox, words: tuple[str, str]) -> None:
    done = sandbox.run("smoke-test", *words)
    assert done.returncode == 2
    assert "hunter22" not in done.said


def test_the_graph_is_printed_as_json_and_nothing_is_drawn(sandbox: Sandbox) -> None:
    before = states(sandbox.tree)
    done = sandbox.run(
        "smoke-test", "--graph", "--seed", "5", "--prompt", "a fox", "--size", "512x768", "--tiled-decode"
    )
    options = ImageOptions(prompt="a fox", seed=5, width=512, height=768, has_tiled_decode=True)
    assert done.returncode == 0
    assert json.loads(done.stdout) == build_graph(KLEIN_RECIPE, NAMES, options)
    assert states(sandbox.tree) == before


def test_a_set_without_the_three_files_has_no_graph(sandbox: Sandbox, make_sandbox: Callable[[], Sandbox]) -> None:
    other = make_sandbox()
    other.publish(VAE)
    done = other.run("smoke-test", "--graph")
    assert done.returncode == 2
    assert "its manifest has no `recipe` and no `workflow` for it" in done.said


# --- a server of our own -----------------------------------------------------------------------


@pytest.fixture
def comfyui(sandbox: Sandbox) -> Iterator[Path]:
    """The stand-in's main.py, put back afterwards."""
    main = sandbox.tree / "main.py"
    before = main.read_bytes()
    yield main
    main.write_bytes(before)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Return somebody's process that looks like a ComfyUI."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "main.py", "--port", "8188"])
    yield process
    process.kill()
    process.wait()


def servers_of(main: Path) -> list[psutil.Process]:
    """Return the processes that run a main.py."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(main) in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_server_of_our_own_is_started_draws_and_is_stopped(
    sandbox: Sandbox, comfyui: Path, bystander: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    before = inventory(sandbox.tree)
    image = tmp_path / "fox.png"
    done = sandbox.run("smoke-test", "--image", image, "--json", "--reserve-vram", "1.5", *SMALL)
    assert done.returncode == 0, done.stderr
    told = done.json["details"]["smoke_test"]
    assert told["timings"]["start_s"] > 0
    assert sha256_of(image) == told["picture"]["sha256"]
    log = Path(told["log_path"])
    assert "To see the GUI go to" in log.read_text(encoding="utf-8")
    assert log.is_relative_to(sandbox.home)
    assert servers_of(comfyui) == []
    assert bystander.poll() is None
    assert inventory(sandbox.tree) == before  # its output, its user folder and its database lie elsewhere


def test_what_the_server_is_started_with_is_what_was_asked_for(sandbox: Sandbox, comfyui: Path, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    before = f"import json, os; json.dump([sys.executable, *sys.argv], open({str(told)!r}, 'w'))"
    comfyui.write_text(main_py(before=before), encoding="utf-8")
    assert sandbox.run("smoke-test", "--reserve-vram", "1.5", *SMALL).returncode == 0
    python, _, *options = json.loads(told.read_text())
    assert Path(python).parent == sandbox.tree / ".venv" / ("Scripts" if os.name == "nt" else "bin")
    assert "--cpu" in options  # no GPU is here
    assert options[options.index("--reserve-vram") + 1] == "1.5"
    output = Path(options[options.index("--output-directory") + 1])
    assert not output.is_relative_to(sandbox.tree)
    assert not output.exists()  # it was scratch


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import torch_that_is_not_there", "torch_that_is_not_there"),
        ("print('goodbye'); raise SystemExit(3)", "exit status 3"),
        ("import time; print('installing things', flush=True); time.sleep(60)", "installing things"),
    ],
)
def test_a_server_that_does_not_come_up_is_explained_and_ended(
    sandbox: Sandbox, comfyui: Path, code: str, sentence: str
) -> None:
    comfyui.write_text(code + "\n", encoding="utf-8")
    done = sandbox.run("smoke-test", "--smoke-timeout", "1.5")
    assert done.returncode == 9
    assert sentence in done.said
    assert servers_of(comfyui) == []


def test_a_server_that_dies_while_it_draws_is_explained(sandbox: Sandbox, comfyui: Path) -> None:
    faults = "Faults(dies_after=12, delay_s=0.02, last_words='torch.OutOfMemoryError: CUDA out of memory.')"
    comfyui.write_text(main_py(faults), encoding="utf-8")
    done = sandbox.run("smoke-test", "--json", *SMALL)
    assert (done.returncode, done.codes) == (9, ["out-of-memory"])
    hint = done.json["errors"][0]["hint"]
    assert "`--reserve-vram 2`" in hint
    assert "Decode in tiles" in hint
    assert "The manifest has no smaller set that can replace " in hint  # it has only the one that has just failed


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_run_that_is_interrupted_takes_its_server_with_it(sandbox: Sandbox, comfyui: Path) -> None:
    comfyui.write_text(main_py("Faults(never_ends=True)"), encoding="utf-8")
    running = sandbox.start("smoke-test", *SMALL)
    wait_until(lambda: "starting ComfyUI" in running.stderr_so_far, what="the server is started")
    wait_until(lambda: "decoding the image" in running.stderr_so_far, what="it draws")
    assert len(servers_of(comfyui)) == 1
    running.send(signal.SIGINT)
    assert running.wait(20).returncode == 130
    assert servers_of(comfyui) == []


def test_an_image_from_the_processor_is_no_proof_of_a_card(sandbox: Sandbox, comfyui: Path, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(recording_of(rtx_4070()), encoding="utf-8")
    comfyui.write_text(main_py("Faults(is_on_processor=True)"), encoding="utf-8")
    done = sandbox.run("smoke-test", "--json", *SMALL, env={"KLEIN_SETUP_MACHINE": str(tmp_path / "machine.json")})
    assert (done.returncode, done.codes) == (9, ["smoke-test"])
    assert "NVIDIA GeForce RTX 4070" in done.json["errors"][0]["message"]
    assert [each["code"] for each in done.json["details"]["smoke_test"]["findings"]] == ["picture-other-device"]


# --- several cards ------------------------------------------------------------------------------

FIRST, SECOND = "GPU-aaaa-1", "GPU-bbbb-2"
SIZE = 12 * 1024**3
TWO_CARDS = f"cards={{{FIRST!r}: ('NVIDIA GeForce RTX 4070', {SIZE}), {SECOND!r}: ('NVIDIA GeForce RTX 4070', {SIZE})}}"


@pytest.fixture
def with_two_cards(tmp_path: Path) -> dict[str, str]:
    (card,) = rtx_4070().gpus
    cards = [replace(card, uuid=uuid, index=n, memory_total_bytes=SIZE) for n, uuid in enumerate((FIRST, SECOND))]
    (tmp_path / "machine.json").write_text(recording_of(rtx_4070(gpus=tuple(cards))), encoding="utf-8")
    return {"KLEIN_SETUP_MACHINE": str(tmp_path / "machine.json")}


def test_each_card_generates_the_same_image_and_one_that_fails_does_not_stop_the_next(
    sandbox: Sandbox, comfyui: Path, with_two_cards: dict[str, str], tmp_path: Path
) -> None:
    dies = f"dies_after=6 if os.environ['CUDA_VISIBLE_DEVICES'] == {FIRST!r} else None"
    comfyui.write_text(main_py(f"Faults({TWO_CARDS}, {dies})", before="import os"), encoding="utf-8")
    words = ("smoke-test", "--gpu", "all", "--image", tmp_path / "fox.png", "--images", "1", *SMALL)
    done = sandbox.run(*words, "--json", env=with_two_cards)
    first, second = done.json["details"]["cards"]
    assert (done.returncode, done.codes) == (9, ["comfyui-server"])
    assert done.json["errors"][0]["message"].startswith("GPU 0, NVIDIA GeForce RTX 4070: ComfyUI ended")
    assert [each["card"]["uuid"] for each in (first, second)] == [FIRST, SECOND]
    assert (first["is_proven"], first["picture"], second["is_proven"]) == (False, None, True)
    assert second["picture"] == str(tmp_path / "fox-gpu1.png")
    assert second["problem"] is None
    assert Path(second["picture"]).is_file()
    shown = sandbox.run(*words, env=with_two_cards)
    assert [line.split()[:3] for line in shown.stdout.splitlines() if " GPU " in line and "4070," in line] == [
        ["failed", "GPU", "0"],
        ["ok", "GPU", "1"],
    ]
    page = tmp_path / "page.html"
    assert sandbox.run("report", "--output", page, env=with_two_cards).returncode == 0
    assert "The test image on each GPU" in page.read_text(encoding="utf-8")


def test_the_card_is_told_to_the_process_and_compared_with_what_it_used(
    sandbox: Sandbox, comfyui: Path, with_two_cards: dict[str, str]
) -> None:
    swapped = f"cards={{{FIRST!r}: ('NVIDIA GeForce RTX 4070', {SIZE}), {SECOND!r}: ('NVIDIA T4', {SIZE})}}"
    comfyui.write_text(main_py(f"Faults({swapped})"), encoding="utf-8")
    right = sandbox.run("smoke-test", "--gpu", FIRST, "--json", *SMALL, env=with_two_cards)
    assert right.returncode == 0, right.stderr
    told = right.json["details"]["smoke_test"]
    assert (told["card"]["gpu"], told["card"]["is_chosen_by_us"]) == (0, True)
    assert told["device"] == "cuda:0 NVIDIA GeForce RTX 4070 : native"  # which the stand-in says for that UUID alone
    wrong = sandbox.run("smoke-test", "--gpu", "1", "--json", *SMALL, env=with_two_cards)
    assert wrong.returncode == 9
    assert [each["code"] for each in wrong.json["details"]["smoke_test"]["findings"]] == ["image-on-another-gpu"]
    assert "NVIDIA T4" in wrong.json["errors"][0]["message"]


def test_without_a_name_the_users_choice_stays_and_else_it_is_ours(
    sandbox: Sandbox, comfyui: Path, with_two_cards: dict[str, str], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    before = f"import os; open({str(told)!r}, 'w').write(os.environ.get('CUDA_VISIBLE_DEVICES', '-'))"
    comfyui.write_text(main_py(f"Faults({TWO_CARDS})", before=before), encoding="utf-8")
    for environ, seen, index in (({}, FIRST, 0), ({"CUDA_VISIBLE_DEVICES": "1"}, "1", 1)):
        done = sandbox.run("smoke-test", "--images", "1", "--json", *SMALL, env={**with_two_cards, **environ})
        assert (done.returncode, told.read_text()) == (0, seen)
        assert done.json["details"]["smoke_test"]["card"]["gpu"] == index


@pytest.mark.parametrize(
    ("words", "environ", "sentence"),
    [
        (("--gpu", "2"), {}, "There is no GPU 2 here"),
        (("--gpu", "0"), {"CUDA_VISIBLE_DEVICES": "1"}, "hidden by CUDA_VISIBLE_DEVICES=1"),
        (("--gpu", "0", "--server", "http://127.0.0.1:1"), {}, "runs already, on the GPU that it was started with"),
        (("--gpu", "0", "--comfyui-args=--cuda-device 1"), {}, "chooses a GPU too, with --cuda-device 1"),
    ],
)
def test_a_card_that_cannot_be_given_is_a_usage_error_that_lists_them(
    sandbox: Sandbox, with_two_cards: dict[str, str], words: tuple[str, ...], environ: dict[str, str], sentence: str
) -> None:
    done = sandbox.run("smoke-test", *words, "--json", env={**with_two_cards, **environ})
    (error,) = done.json["errors"]
    assert done.returncode == 2
    assert sentence in error["message"]
    assert "GPU 1" in error["hint"] or FIRST in error["hint"] or "Leave --gpu out" in error["hint"]


def test_an_option_that_chooses_a_gpu_is_left_to_comfyui(
    sandbox: Sandbox, comfyui: Path, with_two_cards: dict[str, str], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    before = f"import os; open({str(told)!r}, 'w').write(os.environ.get('CUDA_VISIBLE_DEVICES', '-'))"
    comfyui.write_text(main_py(before=before), encoding="utf-8")
    words = ("smoke-test", "--comfyui-args=--cuda-device 1", "--images", "1", "--json", *SMALL)
    done = sandbox.run(*words, env=with_two_cards)
    assert (done.returncode, told.read_text()) == (0, "-"), done.stderr
    card = done.json["details"]["smoke_test"]["card"]
    assert (card["gpu"], card["is_chosen_by_us"]) == (1, False)


# --- the images after the first ------------------------------------------------------------------


@pytest.fixture
def with_card(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "machine.json").write_text(recording_of(rtx_4070()), encoding="utf-8")
    return {"KLEIN_SETUP_MACHINE": str(tmp_path / "machine.json")}


def test_on_a_gpu_the_same_server_makes_a_second_image_with_another_seed(
    sandbox: Sandbox, comfyui: Path, with_card: dict[str, str], tmp_path: Path
) -> None:
    image = tmp_path / "fox.png"
    done = sandbox.run("smoke-test", "--json", "--seed", "7", "--image", image, *SMALL, env=with_card)
    assert done.returncode == 0, done.stderr
    told = done.json["details"]["smoke_test"]
    assert [each["seed"] for each in told["images"]] == [7, 8]
    assert told["timings"]["warm_s"] == told["images"][1]["total_s"] > 0
    assert all(each["memory_bytes"] > 5_000_000 for each in told["images"])  # a Python holds more
    assert seed_in(image.read_bytes()) == 7  # the first is the one that is kept
    assert [each for each in image.parent.iterdir() if each.suffix == ".png"] == [image]
    shown = sandbox.run("smoke-test", "--images", "3", *SMALL, env=with_card)
    assert "for each of 2 more of the same prompt, with the models in memory" in shown.said


def test_on_a_cpu_it_is_one_image_unless_more_are_asked_for(sandbox: Sandbox, comfyui: Path) -> None:
    one = sandbox.run("smoke-test", "--json", *SMALL).json["details"]["smoke_test"]
    assert (len(one["images"]), one["timings"]["warm_s"]) == (1, None)
    two = sandbox.run("smoke-test", "--json", "--images", "2", *SMALL).json["details"]["smoke_test"]
    assert len(two["images"]) == 2


@pytest.mark.parametrize(
    ("second", "code", "words"),
    [
        ("never_ends=True", "later-image-hangs", "image 2 did not come within 3.0 s; it had reached SaveImage"),
        ("draws='black'", "picture-black", "Image 2: "),
        ("draws='half an image'", "later-image-fails", "but image 2 failed: The image"),
        ("dies_after=6, exit_status=3", "later-image-fails", "but image 2 failed: ComfyUI ended"),
    ],
)
def test_a_second_image_that_does_not_come_is_no_success_and_the_first_is_kept(
    sandbox: Sandbox, comfyui: Path, with_card: dict[str, str], tmp_path: Path, second: str, code: str, words: str
) -> None:
    comfyui.write_text(main_py(f"Faults(second=Faults({second}))"), encoding="utf-8")
    image = tmp_path / "fox.png"
    done = sandbox.run("smoke-test", "--json", "--smoke-timeout", "3", "--image", image, *SMALL, env=with_card)
    assert (done.returncode, done.codes) == (9, ["smoke-test"]), done.stderr
    told = done.json["details"]["smoke_test"]
    assert [each["code"] for each in told["findings"]] == [code]
    assert words in done.json["errors"][0]["message"]
    assert told["picture"]["sha256"] == sha256_of(image)
    assert servers_of(comfyui) == []


def test_an_empty_extra_model_paths_file_is_named_before_comfyui_dies_of_it(sandbox: Sandbox, comfyui: Path) -> None:
    config = comfyui.with_name("extra_model_paths.yaml")
    config.write_text("# nothing\n", encoding="utf-8")
    try:
        done = sandbox.run("smoke-test", *SMALL)
    finally:
        config.unlink()
    assert done.returncode == 9
    assert "holds nothing but comments" in done.said


def test_without_a_comfyui_the_way_to_one_is_told(make_sandbox: Callable[[], Sandbox]) -> None:
    sandbox = make_sandbox()
    sandbox.publish(*KLEIN)
    assert sandbox.install("--only", "files").returncode == 0
    done = sandbox.run("smoke-test")
    assert done.returncode == 2
    assert "--server URL" in done.said
