"""Drawing with diffusers on a real GPU, with the packages of the interpreter that runs the tests."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from provisioner.core.errors import MemoryExhaustedError, SmokeTestError
from provisioner.environment.state import bare_uuid
from provisioner.machine.nvml import read_nvml
from provisioner.machine.process import run_process
from provisioner.rehearsal.tiny_pipeline import small_diffusers_repository
from provisioner.smoke_test.diffusers_answers import DiffusersRun, GenerationEvent, Offload
from provisioner.smoke_test.diffusers_run import generate_with_diffusers
from provisioner.smoke_test.image import judge, read_image
from provisioner.smoke_test.results import ImageOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed here"),
]

REPO, COMMIT = "rehearsal/small", "5e0a" * 10
OPTIONS = ImageOptions(seed=7, width=256, height=256)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    for name, data in small_diffusers_repository().items():
        path = folder / "models--rehearsal--small" / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def generate(
    cache: Path,
    folder: Path,
    *,
    options: ImageOptions = OPTIONS,
    device: str = "cuda:0",
    offload: str = "auto",
    environ: dict[str, str] | None = None,
    events: list[GenerationEvent] | None = None,
) -> DiffusersRun:
    return generate_with_diffusers(
        Path(sys.executable),
        run=run_process,
        cache=cache,
        repo_id=REPO,
        revision=COMMIT,
        options=options,
        output=folder / "image.png",
        log_path=folder / "drawing.log",
        timeout_s=500.0,
        device=device,
        offload=next(each for each in ("auto", *get_args(Offload)) if each == offload),
        environ=os.environ | (environ or {}),
        on_event=(events if events is not None else []).append,
    )


@pytest.mark.parametrize("offload", get_args(Offload))
def test_an_image_is_generated_on_the_gpu_with_every_offload(cache: Path, tmp_path: Path, offload: str) -> None:
    done = generate(cache, tmp_path, offload=offload)
    assert judge(read_image(done.image), OPTIONS, is_stand_in=True) == ()
    assert done.done.offload == offload
    assert done.done.device.place == "cuda:0"
    assert len(done.done.timings.steps_s) == 4
    assert done.done.memory.allocated_bytes
    assert done.done.memory.reserved_bytes
    assert done.done.memory.allocated_bytes <= done.done.memory.reserved_bytes
    assert dict(done.done.versions)["diffusers"] == importlib.metadata.version("diffusers")


def test_the_device_is_one_that_nvml_knows_and_a_small_model_stays_on_it(cache: Path, tmp_path: Path) -> None:
    events: list[GenerationEvent] = []
    done = generate(cache, tmp_path, device="auto", events=events)
    known = {bare_uuid(device.uuid) for device in read_nvml().devices if device.uuid}
    assert done.done.device.uuid is not None
    assert bare_uuid(done.done.device.uuid) in known
    assert done.done.device.name
    assert done.done.device.free_bytes is not None
    assert done.done.offload == "none"
    assert events[0].pid


@pytest.fixture
def crowded() -> Iterator[None]:
    """Hold the memory of the card but for 2 GiB, as another program would."""
    torch = importlib.import_module("torch")
    free, _ = torch.cuda.mem_get_info(0)
    held = torch.empty(max(free - 2 * 1024**3, 0), dtype=torch.uint8, device="cuda:0")
    yield
    del held
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("crowded")
def test_a_card_without_free_memory_is_reported(cache: Path, tmp_path: Path) -> None:
    options = ImageOptions(seed=7, width=8192, height=8192, steps=1)  # one activation of the decoder takes 1 GB
    with pytest.raises(MemoryExhaustedError) as caught:
        generate(cache, tmp_path, options=options, offload="none")
    assert caught.value.context["memory"] == "vram"
    assert "cuda:0 ran out of memory" in str(caught.value)
    assert list(tmp_path.glob("image*")) == []


def test_a_hidden_gpu_is_reported_in_a_sentence(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SmokeTestError) as caught:
        generate(cache, tmp_path, environ={"CUDA_VISIBLE_DEVICES": ""})
    assert caught.value.context["kind"] == "no-device"
    assert "cannot use cuda:0" in str(caught.value)
