"""Which AMD devices the probe makes compute, with a torch that only lists them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from provisioner.environment.probe_script import Probe


class Listing(Probe):
    """A probe that notes which devices would have to compute."""

    def checks(self, device: dict[str, Any], place: str, checks: list[tuple[str, Callable[[], Any]]]) -> None:
        device["checks"] = [place]


def torch_with(*architectures: str) -> SimpleNamespace:
    """Return what a torch for ROCm says of these devices."""
    return SimpleNamespace(
        version=SimpleNamespace(cuda=None, hip="7.15"),
        cuda=SimpleNamespace(
            is_available=lambda: True,
            device_count=lambda: len(architectures),
            get_device_properties=lambda index: SimpleNamespace(
                major=11, minor=0, name=f"GPU {index}", gcnArchName=f"{architectures[index]}:sramecc-:xnack-"
            ),
            mem_get_info=lambda index: (1, 2),
        ),
    )


@pytest.mark.parametrize(
    ("present", "targets", "computing", "codes"),
    [
        (["gfx1036", "gfx1100"], ["gfx1100"], [1], []),
        (["gfx1036", "gfx1100"], [], [0, 1], []),  # nobody says which
        (["gfx1100", "gfx1100", "gfx1036"], ["gfx1100"], [0, 1], []),
        (["gfx1036"], ["gfx1100"], [], ["no-device"]),
        ([], ["gfx1100"], [], ["no-device"]),
    ],
)
def test_only_the_gpus_that_the_build_was_chosen_for_have_to_compute(
    present: list[str], targets: list[str], computing: list[int], codes: list[str]
) -> None:
    probe = Listing({"device": "rocm", "architectures": targets})
    probe.exercise_cuda(torch_with(*present), wanted="rocm")
    devices = probe.answer["devices"]
    assert [each["architecture"] for each in devices] == present
    assert [each["index"] for each in devices if each["checks"]] == computing
    assert [each["code"] for each in probe.failures] == codes
    if codes:
        assert "gfx1100" in probe.failures[0]["sentence"]
