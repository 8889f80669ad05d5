"""The one command that fixes what was found."""

from __future__ import annotations

from typing import get_args

import pytest

from provisioner.core.models import Finding, Remedy
from provisioner.report.remedies import remedy_verb


def problem(remedy: Remedy) -> Finding:
    return Finding(code="x", severity="problem", message="Something is not as it was.", remedy=remedy)


@pytest.mark.parametrize(
    ("remedies", "files_are_wrong", "verb"),
    [
        ((), False, None),
        ((), True, "repair"),
        (("install-environment", "update-comfyui"), True, "repair"),
        (("install-environment", "repair"), False, "repair"),
        (("install-environment",), False, "install --only environment"),
        (("update-comfyui",), False, "install --update-comfyui"),
        (("update-comfyui", "install-environment"), False, "install --update-comfyui"),
        (("install-environment", "install"), False, "install"),
        (("by-hand", "install-environment"), False, "install --only environment"),
        (("by-hand", "by-hand"), False, None),
    ],
)
def test_one_command_fixes_what_was_found(
    remedies: tuple[Remedy, ...], files_are_wrong: bool, verb: str | None
) -> None:
    assert remedy_verb(map(problem, remedies), files_are_wrong=files_are_wrong) == verb


def test_every_remedy_but_a_persons_own_hand_is_a_command() -> None:
    assert [remedy for remedy in get_args(Remedy) if remedy_verb([problem(remedy)]) is None] == ["by-hand"]


def test_a_warning_asks_for_no_command() -> None:
    warning = Finding(code="x", severity="warning", message="Something moved.", remedy="install-environment")
    assert remedy_verb([warning]) is None
