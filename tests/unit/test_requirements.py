"""Which requirements an environment meets."""

from __future__ import annotations

import pytest

from provisioner.environment.requirements import unmet

INSTALLED = {"torch": "2.11.0+cu130", "pillow": "13.0.0", "comfyui-frontend-package": "1.39.2", "odd": "not a version"}


@pytest.mark.parametrize(
    ("line", "is_met"),
    [
        ("torch", True),
        ("torch>=2.4", True),
        ("torch==2.11.0", True),
        ("torch==2.10.0", False),
        ("Pillow", True),
        ("comfyui_frontend_package==1.39.2", True),
        ("comfyui-frontend-package==1.40.0", False),
        ("pillow<13", False),
        ("av>=14", False),
        ("av>=14; python_version < '3.9'", True),
        ("av>=14; python_version >= '3.9'", False),
        ("odd>=1", False),
        ("pillow @ https://example.org/pillow.whl", True),
        ("-r other.txt", False),
        ("git+https://example.org/x.git", False),
    ],
)
def test_a_line_is_met_by_what_is_installed(line: str, is_met: bool) -> None:
    assert unmet([line], INSTALLED, python_version="3.12.3") == (() if is_met else (line,))
