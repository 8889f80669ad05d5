"""The probe on a real GPU, with the torch of the interpreter that runs the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from provisioner.core.models import Machine
from provisioner.environment.state import bare_uuid, judge_probe, known_uuids, parse_probe
from provisioner.machine.nvml import read_nvml
from provisioner.machine.readings import gpu_from_device
from provisioner.torch.builds import TorchBuild, TorchSet

pytestmark = pytest.mark.gpu

PROBE = Path(__file__).resolve().parents[2] / "provisioner" / "environment" / "probe_script.py"
EVERYTHING = {"expect": {"device": "cuda", "packages": ["torch", "torchvision", "torchaudio"]}}


def probe(*, prelude: str = "", environ: dict[str, str] | None = None) -> tuple[int, str]:
    """Run the probe in the running interpreter; `prelude` runs before it, to break something."""
    words = [str(PROBE), "--json", json.dumps(EVERYTHING)]
    if prelude:
        code = f"import runpy, sys\nsys.argv = {words!r}\n{textwrap.dedent(prelude)}\n"
        words = ["-c", code + f"runpy.run_path({str(PROBE)!r}, run_name='__main__')"]
    done = subprocess.run(
        [sys.executable, "-I", *words],
        env=os.environ | (environ or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert len(done.stdout.splitlines()) == 1, (done.stdout, done.stderr)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def line() -> str:
    """What the probe says of this machine; kept where the variable ``KLEIN_PROBE_RECORD`` says."""
    status, said = probe()
    record = os.environ.get("KLEIN_PROBE_RECORD")
    if record:
        Path(record).write_text(said, encoding="utf-8")
    assert status == 0, said
    return said


@pytest.fixture(scope="module")
def answer(line: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.fixture(scope="module")
def machine() -> Machine:
    reading = read_nvml()
    assert reading.reason is None, reading.reason
    return Machine(
        os="linux",
        os_release="",
        is_wsl=False,
        architecture="x86_64",
        libc=None,
        python_version="3.12.3",
        gpus=tuple(gpu_from_device(device) for device in reading.devices),
        driver_version=reading.driver_version,
    )


def test_every_device_computes_the_right_numbers(answer: dict[str, Any]) -> None:
    assert answer["failures"] == []
    assert answer["devices"]
    for device in answer["devices"]:
        assert {"float32", "float16", "bfloat16", "convolution"} <= set(device["checks"])


def test_fp8_is_computed_from_8_9_up(answer: dict[str, Any]) -> None:
    for device in answer["devices"]:
        assert ("float8_e4m3fn" in device["checks"]) == (tuple(device["capability"]) >= (8, 9))


def test_nvml_and_torch_mean_the_same_devices(answer: dict[str, Any], machine: Machine) -> None:
    assert {bare_uuid(device["uuid"]) for device in answer["devices"]} <= known_uuids(machine.gpus)


def test_torch_has_memory_to_give(answer: dict[str, Any]) -> None:
    for device in answer["devices"]:
        assert 0 < device["memory_free_bytes"] <= device["memory_total_bytes"]


def test_there_is_code_for_every_device(answer: dict[str, Any]) -> None:
    assert answer["torch"]["arch_list"]
    for device in answer["devices"]:
        assert device["code"]


def test_the_judgement_of_a_sound_machine_is_silent(line: str, machine: Machine) -> None:
    said = parse_probe(line)
    assert said is not None
    versions = dict(said.packages)
    # An image may have its set without tags in the versions; what the probe read decides.
    tag = versions["torch"].partition("+")[2] or None
    releases = TorchSet(torch=versions["torch"], torchvision=versions["torchvision"], torchaudio=None)
    build = TorchBuild(torch_backend="cu130", index_url=None, local_tag=tag, sets=(releases,))
    assert judge_probe(said, build, machine) == ()


def test_a_hidden_gpu_is_reported_in_a_sentence() -> None:
    status, said = probe(environ={"CUDA_VISIBLE_DEVICES": ""})
    answer = json.loads(said)
    assert (status, answer["code"]) == (1, "no-device")
    assert "torch cannot use the GPU" in answer["sentence"]
    assert answer["torch"]["arch_list"], "the list of architectures does not depend on a visible GPU"


def test_a_wrong_fp8_product_is_found() -> None:
    prelude = """
        import torch
        right = torch._scaled_mm
        torch._scaled_mm = lambda *given, **more: right(*given, **more) * 2
    """
    status, said = probe(prelude=prelude)
    answer = json.loads(said)
    assert (status, answer["code"]) == (1, "wrong-numbers")
    assert "an FP8 product on cuda:0" in answer["sentence"]


def test_a_build_without_code_for_the_device_is_found() -> None:
    prelude = """
        import torch
        torch._C._cuda_getArchFlags = lambda: "sm_50 sm_60"
    """
    status, said = probe(prelude=prelude)
    answer = json.loads(said)
    assert (status, answer["code"]) == (1, "no-kernel")
    assert "it holds sm_50 sm_60" in answer["sentence"]
