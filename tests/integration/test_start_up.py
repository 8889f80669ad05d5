"""What a start costs, counted in modules and not in seconds, which a busy machine stretches.

Measured on 2026-11-26 with Python 3.11 on Linux.  Who raises a bound says in the commit what the module is needed for.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.sandbox import Sandbox, tensors

# Each takes from 5 to 400 ms.
HEAVY = {
    *{"PIL", "asyncio", "cryptography", "email", "filelock", "fsspec", "hf_xet", "http", "httpx", "huggingface_hub"},
    *{"importlib.metadata", "logging", "multiprocessing", "packaging", "platformdirs", "psutil", "pynvml", "requests"},
    *{"rich", "socket", "ssl", "subprocess", "tempfile", "torch", "tqdm", "typing_extensions", "unittest", "urllib3"},
    *{"websockets", "xml"},
}
if sys.platform != "linux":
    HEAVY -= {"platformdirs"}  # elsewhere it says where the state folder is
if sys.version_info < (3, 11):
    HEAVY -= {"typing_extensions"}


def imported(sandbox: Sandbox, *arguments: str) -> set[str]:
    """Return the modules that a run imports and a Python that does nothing does not."""
    found = []
    for what in (("-c", "pass"), ("-m", "provisioner", *sandbox.completed(arguments))):
        command = (sys.executable, "-X", "importtime", *what)
        done = subprocess.run(command, env=sandbox.environ, capture_output=True, encoding="utf-8", check=True)
        lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
        found.append({line.rpartition("|")[2].strip() for line in lines})
    return found[1] - found[0]


@pytest.mark.parametrize(
    ("arguments", "own", "every"),
    [
        (("--help",), 7, 61),
        (("--version",), 7, 60),
        (("install", "--help"), 7, 61),
        (("verify", "--quick"), 83, 182),
        (("verify", "--quick", "--json"), 86, 184),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else None,
)
def test_a_start_imports_few_modules_and_none_that_is_heavy(
    sandbox: Sandbox, arguments: tuple[str, ...], own: int, every: int
) -> None:
    sandbox.publish(tensors(100_000))
    if "verify" in arguments:
        assert sandbox.install().returncode == 0
    modules = imported(sandbox, *arguments)
    assert "provisioner.cli.main" in modules  # it was counted at all
    assert sorted(name for name in modules if name in HEAVY or name.partition(".")[0] in HEAVY) == []
    assert "verify" in arguments or not any(name.partition(".")[0] == "yaml" for name in modules)
    ours = {name for name in modules if name.partition(".")[0] == "provisioner"}
    if sys.platform == "linux":
        assert len(ours) <= own + 2, sorted(ours)
        assert len(modules) <= every * 1.25, sorted(modules)  # what the standard library imports differs by release
