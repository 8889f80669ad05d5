"""Environments that get their pip in a tenth of a second, for tests of what comes after.

Everything else is real: a virtual environment made by ``venv``, with the pip of the tests.  Unpacking and then
replacing the pip that Python brings takes ten seconds; `test_environment.py` tests that too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from provisioner.environment import environments as environment
from provisioner.environment.state import PythonFacts


class QuickEnvironments(environment.Environments):
    """Real environments, except for how they get their pip."""

    def _make_venv(self, python: PythonFacts, folder: Path, prompt: str) -> None:
        words: list[str | Path] = ["-I", "-m", "venv", "--without-pip", "--prompt", prompt, folder]
        subprocess.run([python.path, *words], check=True, env=self._context.child_environ)
        site = next(folder.rglob("site-packages"))
        pip = metadata.distribution("pip")
        for name in ("pip", f"pip-{pip.version}.dist-info"):
            shutil.copytree(str(pip.locate_file(name)), site / name)
        if os.name != "nt":  # there it is a program, and `python -m pip` does without
            script = folder / "bin" / "pip"
            script.write_text(f"#!{folder / 'bin' / 'python'}\nfrom pip._internal.cli.main import main\nmain()\n")
            script.chmod(0o755)


def use() -> None:
    """Let every environment of this process be made that way."""
    environment.Environments._make_venv = QuickEnvironments._make_venv  # type: ignore[method-assign, assignment]
