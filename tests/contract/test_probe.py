"""What the probe said on a real GPU, and what is made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.core.models import Gpu, Machine
from provisioner.environment.state import ProbeAnswer, judge_probe, parse_probe
from provisioner.torch.builds import TorchBuild, TorchSet

DATA = Path(__file__).parent / "data" / "probe-h200"
UUID = "00000000-0000-0000-0000-000000000001"
BUILD = TorchBuild(
    torch_backend="cu130",
    index_url="https://download.pytorch.org/whl/cu130",
    local_tag="cu130",
    sets=(TorchSet(torch="2.11.0", torchvision="0.26.0", torchaudio="2.11.0"),),
)


def recorded(name: str) -> ProbeAnswer:
    answer = parse_probe((DATA / name).read_text(encoding="utf-8"))
    assert answer is not None
    return answer


def machine(uuid: str) -> Machine:
    gpu = Gpu(vendor="nvidia", name="NVIDIA H200", index=0, uuid=uuid, compute_capability=(9, 0))
    return Machine(
        os="linux",
        os_release="6.18.44",
        is_wsl=False,
        architecture="x86_64",
        libc="glibc 2.39",
        python_version="3.12.3",
        gpus=(gpu,),
        driver_version="580.159.04",
    )


def test_a_sound_answer_is_read_whole() -> None:
    answer = recorded("sound.json")
    assert answer.ok
    assert (answer.cuda, answer.hip, answer.cudnn) == ("13.0", None, 91900)
    assert answer.arch_list == ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
    (device,) = answer.devices
    assert (device.kind, device.capability, device.uuid) == ("cuda", (9, 0), UUID)
    assert "float8_e4m3fn" in device.checks
    assert device.memory_free_bytes == 149_347_762_176


@pytest.mark.parametrize("prefix", ["GPU-", "MIG-"])
def test_a_sound_answer_on_the_same_gpu_is_silent(prefix: str) -> None:
    assert judge_probe(recorded("sound.json"), BUILD, machine(prefix + UUID)) == ()


def test_another_gpu_than_nvml_names_is_a_problem() -> None:
    other = machine("GPU-00000000-0000-0000-0000-000000000002")
    assert [each.code for each in judge_probe(recorded("sound.json"), BUILD, other)] == ["probe-other-device"]


def test_another_tag_than_promised_is_a_problem() -> None:
    (finding,) = judge_probe(recorded("sound.json"), replace(BUILD, local_tag="cu126"), None)
    assert finding.code == "probe-tag"
    assert "torchaudio 2.11.0+cu130" in finding.message


def test_a_hidden_gpu_has_a_hint() -> None:
    (finding,) = judge_probe(recorded("gpu-hidden.json"), BUILD, machine(f"GPU-{UUID}"))
    assert (finding.code, finding.severity) == ("probe-no-device", "problem")
    assert "CUDA_VISIBLE_DEVICES" in (finding.hint or "")
