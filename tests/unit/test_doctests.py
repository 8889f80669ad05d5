"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOW_POSIX = {  # their examples have paths and signals of POSIX
    "provisioner.cli.arguments",
    "provisioner.environment.installer",
    "provisioner.machine.process",
    "provisioner.ui.stream",
}
ON_LOOPBACK = {"provisioner.rehearsal.hub"}  # tests/integration/test_documentation.py runs these
FOLDERS = (ROOT / "provisioner", ROOT / "scripts")
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for folder in FOLDERS
    for path in sorted(folder.rglob("*.py"))
    # `inside` runs in the target environment and imports what only that has.
    if ">>> " in path.read_text(encoding="utf-8") and not path.stem.endswith("_script")
]


@pytest.mark.parametrize("module", sorted(set(WITH_EXAMPLES) - ON_LOOPBACK))
def test_the_examples_hold(module: str) -> None:
    if module in SHOW_POSIX and os.name == "nt":
        pytest.skip("its examples are those of POSIX")
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


def test_what_is_left_to_the_integration_tests_exists() -> None:
    assert set(WITH_EXAMPLES) >= ON_LOOPBACK
