"""Images generated with real diffusers on the CPU: the rehearsal's small repository, in a reused environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from provisioner.commands.rehearse import rehearse
from provisioner.commands.rehearse_image import check_other_image
from provisioner.core.errors import MemoryExhaustedError, NotWritableError, SmokeTestError, UsageError
from provisioner.disk.locks import hold_lock
from provisioner.disk.root import Root
from provisioner.machine.process import run_process
from provisioner.rehearsal.tiny_pipeline import small_diffusers_repository
from provisioner.report.outcome import Report
from provisioner.report.smoke_test_json import is_verified
from provisioner.smoke_test.diffusers_answers import DiffusersRun, GenerationEvent
from provisioner.smoke_test.diffusers_run import SCRIPT, clean_environment, generate_with_diffusers
from provisioner.smoke_test.image import judge, read_image
from provisioner.smoke_test.results import ImageOptions, SmokeTest, Timings
from tests.support.comfy_server import drawn_png

REQUIREMENTS = ("torch==2.13.0", "diffusers==0.42.1", "transformers==5.23.0", "accelerate==1.15.0", "pillow")
REPO = "rehearsal/small"
COMMIT = "5e0a" * 10
ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ImageOptions(seed=2**64 - 1, width=64, height=64)
pytestmark = pytest.mark.timeout(900)  # the first run on a machine fetches the environment
needs_tested_python = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="diffusers 0.42.1 asks for Python 3.11 or newer"
)


def python_of(where: Path) -> Path:
    return where / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.fixture(scope="session")
def python() -> Path:
    """An environment with diffusers: made once per machine (about 270 MB to fetch), in the user's cache folder."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    folder = Path.home() / ".cache" / "klein-setup-tests"
    where = folder / f"diffusers-0.42.1-transformers-5.23.0-torch-2.13.0-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(Root(folder), folder / f"{where.name}.lock", guards=where, wait=True, notice=print):
        if not (where / "whole").is_file() or not python_of(where).exists():
            make_environment(where)
    return python_of(where)


def make_environment(where: Path) -> None:
    shutil.rmtree(where, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", where], check=True, timeout=120)
    command: list[str | Path] = [python_of(where), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=560)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"diffusers 0.42.1 with torch 2.13.0 cannot be had here: {last}")
    (where / "whole").touch()


def write_cache(cache: Path) -> Path:
    """Write the small repository as an HF cache without links keeps it; return the snapshot."""
    snapshot = cache / "models--rehearsal--small" / "snapshots" / COMMIT
    for name, data in small_diffusers_repository().items():
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return snapshot


@pytest.fixture(scope="session")
def sound_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    write_cache(cache)
    return cache


def generate(
    python: Path,
    cache: Path,
    folder: Path,
    *,
    revision: str = COMMIT,
    timeout_s: float = 250.0,
    options: ImageOptions = OPTIONS,
    environ: dict[str, str] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    on_event: Callable[[GenerationEvent], None] = lambda event: None,
) -> DiffusersRun:
    return generate_with_diffusers(
        python,
        run=run_process,
        cache=cache,
        repo_id=REPO,
        revision=revision,
        options=options,
        output=folder / "out" / "fox.png",
        log_path=folder / "drawing.log",
        timeout_s=timeout_s,
        device="cpu",
        environ=os.environ | (environ or {}),
        cancelled=cancelled,
        on_event=on_event,
    )


def failure(caught: pytest.ExceptionInfo[SmokeTestError]) -> tuple[object, str]:
    assert caught.value.hint
    return caught.value.context["kind"], str(caught.value)


# --- an image --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def generated(
    python: Path, sound_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DiffusersRun, list[GenerationEvent], Path]:
    """One image, generated while the caller has a token, a proxy and a Python path that lead nowhere."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "bad").mkdir()
    (folder / "bad" / "torch.py").write_text("raise SystemExit('the wrong torch')\n", encoding="utf-8")
    environ = {
        "PYTHONPATH": str(folder / "bad"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HF_TOKEN": "hf_" + "Drawing0nly" * 3,
        "HF_HUB_OFFLINE": "0",
    }
    events: list[GenerationEvent] = []
    options = ImageOptions(prompt='--a "fox" in snow, ünïcode 漢', seed=OPTIONS.seed, width=64, height=64)
    return (
        generate(python, sound_cache, folder, options=options, environ=environ, on_event=events.append),
        events,
        folder,
    )


@needs_tested_python
def test_the_small_pipeline_generates_an_image_in_four_steps(
    generated: tuple[DiffusersRun, list[GenerationEvent], Path],
) -> None:
    done = generated[0]
    facts = read_image(done.image)
    assert judge(facts, OPTIONS, is_stand_in=True) == ()
    assert (facts.width, facts.height, facts.mode) == (64, 64, "RGB")
    assert facts.minimum < facts.maximum
    assert done.done.device.label == "cpu"
    assert done.done.offload == "none"
    assert done.done.is_offline
    assert done.done.refused_connections == ()
    assert dict(done.done.versions)["diffusers"] == "0.42.1"
    assert dict(done.done.versions)["torch"].startswith("2.13.0")


@needs_tested_python
def test_every_part_of_the_run_is_timed(generated: tuple[DiffusersRun, list[GenerationEvent], Path]) -> None:
    timings = generated[0].done.timings
    parts = [timings.encode_s, *timings.steps_s, timings.decode_s]
    assert len(timings.steps_s) == 4
    assert all(part is not None and part > 0 for part in (timings.start_s, timings.load_s, *parts))
    spent = sum(part for part in parts if part is not None)
    assert timings.total_s is not None
    assert spent <= timings.total_s <= generated[0].seconds


@needs_tested_python
def test_the_events_come_in_order_and_name_the_process(
    generated: tuple[DiffusersRun, list[GenerationEvent], Path],
) -> None:
    events = [event for event in generated[1] if event.name != "alive"]
    assert [event.name for event in events] == ["started", "imported", "loaded", "encoded", *["step"] * 4, "decoded"]
    assert [event.number for event in events if event.name == "step"] == [1, 2, 3, 4]
    assert events[0].pid is not None
    assert not psutil.pid_exists(events[0].pid)


@needs_tested_python
def test_the_log_has_all_output_and_no_half_image_is_left(
    generated: tuple[DiffusersRun, list[GenerationEvent], Path],
) -> None:
    _, _, folder = generated
    log = (folder / "drawing.log").read_text(encoding="utf-8")
    assert '"event": "done"' in log
    assert '"event": "alive"' not in log
    assert [path.name for path in (folder / "out").iterdir()] == ["fox.png"]


# --- no image ----------------------------------------------------------------------------------------


@needs_tested_python
def test_weights_that_are_not_numbers_give_no_image(python: Path, tmp_path: Path) -> None:
    weights = write_cache(tmp_path / "cache") / "transformer" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    weights.write_bytes(data[:start] + b"\xc0\x7f" * ((len(data) - start) // 2))  # NaN in BF16
    with pytest.raises(SmokeTestError) as caught:
        generate(python, tmp_path / "cache", tmp_path)
    kind, said = failure(caught)
    assert kind == "nan"
    assert "The latents after step 1" in said
    assert list((tmp_path / "out").iterdir()) == []


@needs_tested_python
def test_a_truncated_file_is_named_as_one_that_cannot_be_loaded(python: Path, tmp_path: Path) -> None:
    weights = write_cache(tmp_path / "cache") / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SmokeTestError) as caught:
        generate(python, tmp_path / "cache", tmp_path)
    kind, said = failure(caught)
    assert kind == "snapshot-incomplete"
    assert "cannot be loaded" in said
    assert "Traceback" in (tmp_path / "drawing.log").read_text(encoding="utf-8")


@needs_tested_python
@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model-00002-of-00002.safetensors",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_missing_file_is_named_before_anything_is_imported(python: Path, tmp_path: Path, name: str) -> None:
    (write_cache(tmp_path / "cache") / name).unlink()
    events: list[GenerationEvent] = []
    with pytest.raises(SmokeTestError) as caught:
        generate(python, tmp_path / "cache", tmp_path, on_event=events.append)
    kind, said = failure(caught)
    assert kind == "snapshot-incomplete"
    assert name.partition("/")[0] in said
    assert [event.name for event in events if event.name != "alive"] == ["started"]


@needs_tested_python
def test_a_commit_that_is_not_in_the_cache_is_reported(python: Path, sound_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SmokeTestError) as caught:
        generate(python, sound_cache, tmp_path, revision="0" * 40)
    kind, said = failure(caught)
    assert kind == "snapshot-incomplete"
    assert "0" * 40 in said


@needs_tested_python
def test_a_branch_is_no_revision(python: Path, sound_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SmokeTestError) as caught:
        generate(python, sound_cache, tmp_path, revision="main")
    assert failure(caught)[0] == "usage"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without a package."""
    where = tmp_path_factory.mktemp("bare") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", where], check=True, timeout=120)
    return where


def test_an_environment_without_torch_says_what_is_missing(bare: Path, sound_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SmokeTestError) as caught:
        generate(python_of(bare), sound_cache, tmp_path)
    kind, said = failure(caught)
    assert kind == "missing-package"
    assert "torch is not installed" in said


def test_a_diffusers_without_the_model_is_rejected_by_its_version(
    bare: Path, sound_cache: Path, tmp_path: Path
) -> None:
    """Only the names and versions of packages are there: that is all the script looks at before it imports one."""
    asked: list[str | Path] = [python_of(bare), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    made = []
    for name, version in (("torch", "2.13.0"), ("transformers", "5"), ("accelerate", "1"), ("diffusers", "0.36.0")):
        made.append(packages / f"{name}-{version}.dist-info")
        made[-1].mkdir(parents=True)
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (made[-1] / "METADATA").write_text(metadata, encoding="utf-8")
    try:
        with pytest.raises(SmokeTestError) as caught:
            generate(python_of(bare), sound_cache, tmp_path)
    finally:
        for each in made:
            shutil.rmtree(each)
    kind, said = failure(caught)
    assert kind == "version-too-old"
    assert "diffusers 0.36.0" in said
    assert "0.37.0" in said


def test_a_python_that_is_not_there_is_an_error_of_ours(sound_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SmokeTestError) as caught:
        generate(tmp_path / "no-python", sound_cache, tmp_path)
    assert failure(caught)[0] == "no-python"


def test_a_log_that_cannot_be_written_is_reported_before_anything_starts(sound_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way", encoding="utf-8")
    with pytest.raises(NotWritableError):
        generate(tmp_path / "no-python", sound_cache, tmp_path)


# --- ended from outside ------------------------------------------------------------------------------


class Ending:
    """Records the events, and acts when the image process is known."""

    def __init__(self, action: Callable[[int], None] = lambda pid: None) -> None:
        self.pid = 0
        self._action = action

    def __call__(self, event: GenerationEvent) -> None:
        if event.pid is not None:
            self.pid = event.pid
            self._action(event.pid)

    @property
    def is_over(self) -> bool:
        return self.pid > 0 and not psutil.pid_exists(self.pid)


@needs_tested_python
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is how Linux and macOS end what takes too much memory")
def test_a_process_that_is_killed_is_most_likely_out_of_memory(python: Path, sound_cache: Path, tmp_path: Path) -> None:
    ending = Ending(lambda pid: psutil.Process(pid).kill())
    with pytest.raises(MemoryExhaustedError) as caught:
        generate(python, sound_cache, tmp_path, on_event=ending)
    assert "while it imported torch and diffusers" in str(caught.value)
    assert ending.is_over


@needs_tested_python
def test_a_cancelled_run_ends_with_its_process(python: Path, sound_cache: Path, tmp_path: Path) -> None:
    ending = Ending()
    with pytest.raises(KeyboardInterrupt):
        generate(python, sound_cache, tmp_path, on_event=ending, cancelled=lambda: ending.pid > 0)
    assert ending.is_over
    assert not (tmp_path / "out" / "fox.png").exists()


# A program that generates as klein-setup does and prints the id of the image process.
DRAWING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from provisioner.smoke_test.diffusers_run import generate_with_diffusers
from provisioner.machine.process import run_process
from provisioner.smoke_test.results import ImageOptions

folder = Path(sys.argv[2])
generate_with_diffusers(
    Path(sys.executable), script=folder / "script.py", run=run_process, cache=folder, repo_id="a/b", revision="0" * 40,
    options=ImageOptions(seed=1), output=folder / "out.png", log_path=folder / "log", timeout_s=120,
    on_event=lambda event: event.pid is None or print(event.pid, flush=True),
)
"""

# The real script's reporting, in a process that is busy for a minute: needs no model and no torch.
BUSY = f"""
import importlib.util, os, time
spec = importlib.util.spec_from_file_location("draw", {str(SCRIPT)!r})
draw = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw)
reporter = draw.Reporter()
reporter.beat()
reporter.report("started", pid=os.getpid(), python="", prefix="")
time.sleep(60)
"""


def test_the_script_does_not_outlive_a_killed_klein_setup(tmp_path: Path) -> None:
    """Its sign of life, every second, is read by no one; the import of torch delays it for up to 2 s."""
    (tmp_path / "script.py").write_text(BUSY, encoding="utf-8")
    words = [sys.executable, "-c", DRAWING, str(ROOT), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        drawing = psutil.Process(int(process.stdout.readline()))
        assert drawing.is_running()
        process.kill()
    try:
        drawing.wait(timeout=10)
    except psutil.TimeoutExpired:
        drawing.kill()
        raise


@needs_tested_python
def test_a_run_that_takes_too_long_is_ended(python: Path, sound_cache: Path, tmp_path: Path) -> None:
    ending = Ending()
    with pytest.raises(SmokeTestError) as caught:
        generate(python, sound_cache, tmp_path, on_event=ending, timeout_s=1.0)
    assert failure(caught)[0] == "timeout"
    assert ending.is_over


def test_nothing_of_a_persons_python_hub_or_proxy_reaches_the_script() -> None:
    kept = clean_environment(
        {
            "PATH": "/bin",
            "PYTHONPATH": "/x",
            "PYTHONHOME": "/x",
            "VIRTUAL_ENV": "/x",
            "HF_TOKEN": "hf_x",
            "HF_HOME": "/x",
            "HF_ENDPOINT": "http://127.0.0.1:1",
            "https_proxy": "http://127.0.0.1:9",
            "CUDA_VISIBLE_DEVICES": "1",
        }
    )
    assert json.dumps(kept, sort_keys=True) == json.dumps(
        {"CUDA_VISIBLE_DEVICES": "1", "HF_ENDPOINT": "http://127.0.0.1:1", "PATH": "/bin", "PYTHONUTF8": "1"}
    )


# --- the rehearsal -----------------------------------------------------------------------------------


def rehearsal(
    *, has_image: bool, environment: Path | None = None, keep: bool = False, image_folder: Path | None = None
) -> tuple[Report, list[str]]:
    said: list[str] = []
    report = rehearse(
        events=lambda event: None,
        say=said.append,
        cancelled=threading.Event(),
        has_image=has_image,
        environment=environment,
        keep=keep,
        image_folder=image_folder,
    )
    return report, said


@needs_tested_python
def test_the_rehearsal_ends_with_an_image_and_keeps_it_where_it_says(python: Path, tmp_path: Path) -> None:
    report, said = rehearsal(has_image=True, environment=python.parent.parent, image_folder=tmp_path / "pictures")
    assert report.exit_status == 0
    smoke = report.smoke_test
    assert smoke is not None
    image = tmp_path / "pictures" / "klein-rehearsal.png"
    assert smoke.image_path == image
    assert judge(read_image(image.read_bytes()), OPTIONS, is_stand_in=True) == ()
    assert smoke.is_stand_in
    assert is_verified(smoke)
    assert any(line.startswith("The image") and line.endswith(f": {image}") for line in said)
    assert report.rehearsal is not None
    names = [each.claim for each in report.rehearsal.checks[-6:]]
    assert "it was generated offline" in names
    assert "generating the image did not change the cache" in names


@pytest.mark.parametrize("keep", [True, False])
def test_an_image_stays_with_the_scratch_folder_or_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    """What generates it is tested above; here it is a file with some bytes."""
    (tmp_path / "pictures").write_bytes(b"")  # a file in the folder's place

    def generated(sandbox: Any, choice: object) -> SmokeTest:  # noqa: ANN401 - private
        path = sandbox.folder / "image.png"
        path.write_bytes(b"an image")
        return SmokeTest(backend="diffusers", options=OPTIONS, timings=Timings(), image_path=path)

    monkeypatch.setattr("provisioner.commands.rehearse._step_image", generated)
    report, said = rehearsal(has_image=True, keep=keep, image_folder=tmp_path / "pictures")
    assert report.exit_status == 0
    assert report.smoke_test is not None
    assert report.rehearsal is not None
    folder, image = report.rehearsal.scratch_folder, report.smoke_test.image_path
    told = next(line for line in said if line.startswith("The image"))
    if not keep:
        assert (folder, image) == (None, None)
        assert told.endswith(": deleted with the scratch folder; --keep keeps both")
        return
    assert folder is not None
    try:
        assert image == folder / "image.png"
        assert image.read_bytes() == b"an image"
        assert told.endswith(f": {image}")
    finally:
        shutil.rmtree(folder)


def test_a_rehearsal_without_an_image_needs_no_environment() -> None:
    report, said = rehearsal(has_image=False)
    assert report.exit_status == 0
    assert report.smoke_test is None
    assert not any(line.startswith("Image") for line in said)
    assert report.rehearsal is not None
    claims = [each.claim for each in report.rehearsal.checks]
    assert (len(claims), claims.count("every file has the SHA-256 the manifest names")) == (36, 5)
    assert "every file of the workflow is pinned to a commit, with its size and SHA-256" in claims


def test_a_rehearsal_rejects_a_folder_without_a_comfyui_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(f"In {tmp_path} there is no ComfyUI")):
        rehearse(
            events=lambda event: None,
            say=lambda line: pytest.fail(line) if line.startswith("  ok") else None,
            cancelled=threading.Event(),
            has_image=True,
            comfyui=tmp_path,
        )


def test_the_image_of_the_second_model_has_the_size_of_its_workflow() -> None:
    passed: dict[str, bool] = {}

    def check(name: str, ok: bool, seen: str) -> None:
        passed[name] = ok

    for side in (256, 512):
        image = read_image(drawn_png(side, side, 7))
        check_other_image(check, SmokeTest(backend="comfyui", options=OPTIONS, timings=Timings(), image=image))
        assert passed == {
            "the image has the size that the workflow says": side == 256,
            "nothing is wrong with it": True,
        }


def test_a_rehearsal_rejects_a_folder_that_is_no_environment(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot generate"):
        rehearsal(has_image=True, environment=tmp_path)
