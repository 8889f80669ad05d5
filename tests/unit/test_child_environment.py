from __future__ import annotations

import re
from pathlib import Path

import pytest

from provisioner.cli.arguments import build_parser
from provisioner.core.errors import UsageError
from provisioner.machine.child_environment import PASSED, PASSED_BEGINNINGS, child_environment

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "child-processes.md"


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "NVIDIA_API_KEY", "CUDA_AUTH", "XDG_PASSWORD",
     "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PIP_INDEX_URL", "UV_INDEX_URL", "LD_PRELOAD",
     "GIT_DIR", "SSH_AUTH_SOCK", "OPENAI_API_KEY", "HF_TOKEN_PATH", "__PYVENV_LAUNCHER__"],
)  # fmt: skip
def test_what_is_not_in_the_list_passes_only_by_name(name: str) -> None:
    assert child_environment({name: "x"}) == {}
    assert child_environment({name: "x"}, [name.lower()]) == {name: "x"}


@pytest.mark.parametrize(
    "name",
    ["PATH", "Path", "SystemRoot", "HOME", "http_proxy", "SSL_CERT_FILE", "CUDA_VISIBLE_DEVICES", "HF_HOME", "LC_ALL",
     "CUBLAS_WORKSPACE_CONFIG", "TRITON_CACHE_DIR", "HSA_OVERRIDE_GFX_VERSION", "PYTORCH_CUDA_ALLOC_CONF"],
)  # fmt: skip
def test_what_programs_need_to_work_passes(name: str) -> None:
    assert child_environment({name: "x"}) == {name: "x"}


def test_the_document_names_exactly_what_passes() -> None:
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    named = set(re.findall(r"`([^`]+)`", "\n".join(rows)))
    assert named == PASSED | {f"{name}*" for name in PASSED_BEGINNINGS}


def test_a_value_in_the_place_of_a_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="name it alone"):
        build_parser("verify").parse_args(["verify", "--pass-env", "A=b"])
