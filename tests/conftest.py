"""Environment hygiene for every test: nothing of the developer's settings, tokens or caches reaches one."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

import pytest

DROPPED = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "KLEIN_SETUP_", "COMFYUI_")
DROPPED_NAMES = (
    *("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "TRANSFORMERS_CACHE"),
    "PYTHONDONTWRITEBYTECODE",
)

_SCRATCH = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Clean the environment before the first import: the Hub's client reads it once, then never again."""
    for name in list(os.environ):
        if name.startswith(DROPPED) or name in DROPPED_NAMES:
            del os.environ[name]
    sys.dont_write_bytecode = False  # each process would compile every test and the whole program again
    config.stash[_SCRATCH] = tempfile.mkdtemp(prefix="klein-setup-tests-")
    os.environ["HF_HOME"] = config.stash[_SCRATCH]
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if os.name == "nt":  # what a test without a sandbox leaves behind must not become a person's last tree
        os.environ["LOCALAPPDATA"] = os.environ["APPDATA"] = config.stash[_SCRATCH]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache folder that stood in for the developer's."""
    shutil.rmtree(config.stash[_SCRATCH], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long where processes share the tests, so that none of them is the last."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: "integration" not in item.path.parts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the tests under Wine came to, where ``.ci/run`` ran them before these."""
    if line := os.environ.get("WINDOWS_SUMMARY"):
        terminalreporter.write_line(line)
