"""What the files of an environment say of its Python is what the Python itself says."""

from __future__ import annotations

import os
import shutil
import sys
import venv
from pathlib import Path

import pytest

from provisioner.environment.installed import python_in
from provisioner.environment.pythons import ask_python
from provisioner.environment.read_python import import_path, read_python
from provisioner.environment.state import PythonFacts
from provisioner.machine.process import run_process

posix_only = pytest.mark.skipif(os.name != "posix", reason="links")


def read(where: Path) -> PythonFacts | str:
    python = python_in(where)
    assert python is not None
    return read_python(where, python)


@pytest.mark.parametrize("sees_others", [False, True])
def test_it_is_what_the_python_says(tmp_path: Path, sees_others: bool) -> None:
    where = tmp_path / "my env"
    venv.create(where, with_pip=False, system_site_packages=sees_others)
    site = next(where.rglob("site-packages"))
    (tmp_path / "added").mkdir()
    (site / "more.pth").write_text(f"# a comment\nimport sys\n{tmp_path / 'added'}\n../nowhere\n")
    home = tmp_path / "home"
    environ = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join([str(tmp_path / "a"), str(tmp_path)])}
    environ.pop("PYTHONUSERBASE", None)
    user = home / ".local" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    user.mkdir(parents=True)
    facts = read(where)
    assert isinstance(facts, PythonFacts)
    said, path = ask_python(run_process, facts.path, environ, cwd=tmp_path)
    assert (facts.version, facts.prefix, facts.base_prefix) == (said.version, said.prefix, said.base_prefix)
    standard = Path(os.__file__).parent
    packages = [each for each in path if Path(each) not in {standard, standard / "lib-dynload"} and ".zip" not in each]
    assert list(import_path(where, facts, environ, home)) == packages


@posix_only
def test_a_python_of_another_version_behind_the_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(sys.executable, tmp_path / "bin" / "python3.99")
    where = tmp_path / "env"
    venv.create(where, with_pip=False)
    (where / "bin" / "python").unlink()
    (where / "bin" / "python").symlink_to(tmp_path / "bin" / "python3.99")
    facts = read(where)
    assert isinstance(facts, PythonFacts)
    assert facts.version == "3.99"


@posix_only
def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    where = tmp_path / "env"
    (where / "bin").mkdir(parents=True)
    (where / "bin" / "python").write_text("#!/bin/sh\n")
    assert read(where) == f"{where / 'bin/python'} is not a program."
    (where / "bin" / "python").chmod(0o755)
    assert read(where) == f"no file in it says which Python {where / 'bin/python'} is."
    (where / "pyvenv.cfg").write_text("home = /gone/bin\nversion = 3.11.7\n")
    assert read(where) == "the Python it was made from is gone: /gone/bin."


@pytest.mark.parametrize(
    ("names", "version"),
    [
        (("python.exe", "python312._pth", "python312.dll", "Lib/site-packages/"), "3.12"),
        (("bin/python", "conda-meta/python-3.11.9-h955ad1f_0.json", "lib/python3.11/site-packages/"), "3.11.9"),
        (("bin/python", "lib/python3.13/site-packages/"), "3.13"),
    ],
)
def test_environments_without_a_settings_file_are_read_too(
    tmp_path: Path, names: tuple[str, ...], version: str
) -> None:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.touch(mode=0o755)
    facts = read(tmp_path)
    assert isinstance(facts, PythonFacts)
    assert facts.version == version
    assert [Path(each).name for each in import_path(tmp_path, facts, {}, tmp_path)] == ["site-packages"]
