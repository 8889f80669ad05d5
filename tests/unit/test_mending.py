"""The one command that mends what was found."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from provisioner.core.models import Finding
from provisioner.report.remedies import remedy_verb


def finding(code: str, severity: Literal["problem", "warning"] = "problem") -> Finding:
    return Finding(code=code, severity=severity, message="Something is not as it was.")


@pytest.mark.parametrize(
    ("codes", "files_are_wrong", "verb"),
    [
        ((), False, None),
        ((), True, "repair"),
        (("torch-replaced", "comfyui-too-old"), True, "repair"),
        (("never-proven",), False, "repair"),
        (("torch-replaced",), False, "install --only environment"),
        (("environment-broken",), False, "install --only environment"),
        (("probe-no-kernel",), False, "install --only environment"),
        (("gpu-without-code",), False, "install --only environment"),
        (("comfyui-too-old",), False, "install --update-comfyui"),
        (("comfyui-too-old", "torch-missing"), False, "install --update-comfyui"),
        (("comfyui-update-interrupted",), False, "install --update-comfyui"),
        (("package-missing",), False, "install --only environment"),
        (("driver-too-old",), False, None),
        (("probe-no-device", "torch-twice", "stale-twin"), False, None),
    ],
)
def test_there_is_one_command_that_mends(codes: tuple[str, ...], files_are_wrong: bool, verb: str | None) -> None:
    findings = tuple(map(finding, codes))
    assert remedy_verb(findings, files_are_wrong=files_are_wrong) == verb


@pytest.mark.parametrize(
    ("hint", "verb"),
    [
        ("Run the install again with --update-comfyui.", "install --update-comfyui"),
        ("Run update\\update_comfyui_stable.bat in the portable build's folder.", None),
    ],
)
def test_a_comfyui_that_has_its_own_updater_is_left_to_it(hint: str, verb: str | None) -> None:
    assert remedy_verb([replace(finding("comfyui-too-old"), hint=hint)]) == verb


def test_a_warning_asks_for_no_command() -> None:
    assert remedy_verb([finding("torch-replaced", "warning")]) is None
