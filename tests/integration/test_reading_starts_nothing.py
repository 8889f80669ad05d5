"""Commands that look at a tree start nothing that lies in it: programs planted there would leave a mark."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from provisioner.environment.state import EnvironmentReceipt, receipt_text
from provisioner.torch.builds import TorchSet
from tests.support.sandbox import TOKEN, Sandbox
from tests.support.setup_fixture import KLEIN

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="plants shell scripts"),
    pytest.mark.skipif(shutil.which("git") is None, reason="makes a real repository"),
]

RECEIPT = EnvironmentReceipt(
    build_id="1-1",
    made_at="2026-01-01T00:00:00+00:00",
    installer="pip",
    python_version="3.12.3",
    python_home="/usr",
    torch_backend="cpu",
    index_url=None,
    local_tag="cpu",
    set=TorchSet(torch="2.14.1", torchvision="0.29.1", torchaudio="2.11.0"),
    versions=(("torch", "2.14.1"),),
    constraints=(),
)


class Trap:
    """A stranger's ComfyUI tree, in which everything that could be started leaves a mark."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.marks = sandbox.folder / "marks"
        self.marks.mkdir()
        for wanted in sandbox.publish(*KLEIN):
            sandbox.plant(sandbox.path(wanted), wanted.data)
        self.tree = sandbox.tree
        for name in ("main.py", "folder_paths.py", "comfy/sd.py"):
            path = self.tree / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("pass\n")

    def script(self, name: str) -> Path:
        """Return a program in the tree that writes its name and whether it got the token."""
        path = self.tree / "planted" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "$HF_TOKEN" > "{self.marks}/{name}"\nexec cat\n')
        path.chmod(0o755)
        return path

    def plant_git(self) -> None:
        """Make it a repository whose own settings start programs."""

        def git(*words: str) -> None:
            person = ("-c", "user.name=a", "-c", "user.email=a@example.org")
            subprocess.run(["git", "-C", self.tree, *person, *words], check=True, capture_output=True)

        git("init", "-q")
        git("add", "main.py", "folder_paths.py", "comfy")
        git("commit", "-q", "-m", "x")
        (self.tree / ".gitattributes").write_text("*.py filter=evil diff=evil\n")
        git("add", ".gitattributes")
        for key in ("filter.evil.clean", "filter.evil.smudge", "core.fsmonitor", "core.sshCommand", "diff.external",
                    "core.alternateRefsCommand", "core.pager", "credential.helper", "diff.evil.textconv"):  # fmt: skip
            git("config", key, str(self.script(key)))
        git("config", "extensions.partialClone", "evil")
        git("config", "remote.evil.url", "ssh://x/y")
        git("config", "remote.evil.promisor", "true")
        hooks = self.tree / ".git" / "hooks"
        hooks.mkdir(exist_ok=True)
        for name in ("post-index-change", "post-checkout", "reference-transaction"):
            shutil.copy(self.script(name), hooks / name)
        for path in self.tree.rglob("*.py"):
            os.utime(path, (1, 1))  # so that git looks at the content

    def plant_python(self) -> None:
        """Put an environment there whose Python is a script, with a receipt that calls it ours."""
        where = self.tree / ".venv"
        for name in ("python", "python3", "pip"):
            (where / "bin").mkdir(parents=True, exist_ok=True)
            shutil.copy(self.script(name), where / "bin" / name)
        (where / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12.3\n")
        site = where / "lib" / "python3.12" / "site-packages"
        for name, text in (
            ("torch-2.14.1.dist-info/METADATA", "Name: torch\nVersion: 2.14.1\n"),
            ("evil.pth", f"import os; os.system('touch {self.marks}/pth')\n"),
            ("sitecustomize.py", f"import os; os.system('touch {self.marks}/sitecustomize')\n"),
        ):
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
        (where / ".klein-setup").mkdir()
        (where / ".klein-setup" / "environment.json").write_text(receipt_text(RECEIPT))

    def started(self) -> set[str]:
        return {path.name for path in self.marks.iterdir()}


@pytest.fixture
def trap(sandbox: Sandbox) -> Trap:
    trap = Trap(sandbox)
    trap.plant_git()
    trap.plant_python()
    return trap


def test_a_plain_git_starts_what_is_planted(trap: Trap) -> None:
    subprocess.run(["git", "-C", trap.tree, "status"], check=True, capture_output=True)
    assert trap.started() == {"core.fsmonitor", "filter.evil.clean", "post-index-change"}


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "--cpu"),
        ("plan", "--only", "environment", "--cpu"),
        ("plan", "--only", "smoke", "--cpu"),
        ("manifest", "lock", "--output", "locked.yaml"),
        ("uninstall", "--dry-run"),
        ("verify", "--quick"),
        ("backups", "list"),
        ("smoke-test", "--graph"),
        ("doctor", "--comfyui", "ComfyUI"),
    ],
    ids=" ".join,
)
def test_a_command_that_looks_starts_nothing_of_the_tree(trap: Trap, words: tuple[str, ...]) -> None:
    done = trap.sandbox.run(*words)
    assert done.returncode in {0, 1}, done.said
    assert trap.started() == set()


def test_verify_says_which_python_it_starts_and_hands_it_no_token(trap: Trap) -> None:
    done = trap.sandbox.run("verify", "--no-smoke")
    assert trap.started() == {"python"}
    assert TOKEN not in (trap.marks / "python").read_text()
    assert "testing the environment" in done.said
