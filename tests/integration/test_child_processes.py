"""Every kind of program we start is started for real and writes down the variables it got."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import psutil
import pytest

from provisioner.comfyui.checkout.checkouts import Checkouts
from provisioner.comfyui.server.launch import Launch
from provisioner.comfyui.server.server_process import start_server
from provisioner.comfyui.server.watchdog import Watcher
from provisioner.core.errors import ServerNotUsableError, SmokeTestError
from provisioner.environment.environments import Environments
from provisioner.environment.installed import python_in
from provisioner.files.download.whole_file import WholeFiles
from provisioner.machine.process import run_process
from provisioner.smoke_test.diffusers_run import generate_with_diffusers
from provisioner.smoke_test.results import ImageOptions
from tests.support.wheels import wheel_cache

MARK = "marked-4711"
SECRETS = {
    "HF_TOKEN": MARK,
    "AWS_SECRET_ACCESS_KEY": MARK,
    "NVIDIA_API_KEY": MARK,
    "GITHUB_TOKEN": MARK,
    "PIP_EXTRA_INDEX_URL": f"https://user:{MARK}@index.example/simple",
    "UV_INDEX_PRIVATE_PASSWORD": MARK,
    "PYTHONPATH": f"/{MARK}",
    "MY_OWN": MARK,
}
WRITE_DOWN = "import json, os, pathlib; pathlib.Path({path!r}).write_text(json.dumps(dict(os.environ)))\n"

posix_only = pytest.mark.skipif(os.name != "posix", reason="starts a shell script")


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A person's variables with secrets among them, in force for this process too."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


def written(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(path.read_text())
    return found


def leaked(found: dict[str, str]) -> set[str]:
    return {name for name, value in found.items() if MARK in value}


def test_a_program_gets_no_secrets(tmp_path: Path) -> None:
    run_process([sys.executable, "-c", WRITE_DOWN.format(path=str(tmp_path / "got"))], timeout_s=60)
    got = written(tmp_path / "got")
    assert leaked(got) == set()
    assert got["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("passed", [(), ("MY_OWN",)])
def test_a_server_gets_no_secrets_but_what_the_user_names(
    tmp_path: Path, environ: dict[str, str], passed: tuple[str, ...]
) -> None:
    (tmp_path / "main.py").write_text(WRITE_DOWN.format(path=str(tmp_path / "got")))
    launch = Launch(
        python=Path(sys.executable), tree=tmp_path, output=tmp_path / "o", user=tmp_path / "u", temp=tmp_path / "t"
    )
    with pytest.raises(ServerNotUsableError):
        start_server(launch, log_path=tmp_path / "log", cancelled=lambda: False, environ=environ, pass_env=passed)
    assert leaked(written(tmp_path / "got")) == set(passed)


@pytest.mark.skipif(sys.platform == "win32", reason="a job object there, no process")
def test_what_watches_a_server_gets_no_secrets() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as server:
        watcher = Watcher(server.pid)
        try:
            assert leaked(psutil.Process(watcher.pid).environ()) == set()
        finally:
            watcher.release()
            server.kill()


@posix_only
def test_git_gets_no_secrets(tmp_path: Path, environ: dict[str, str]) -> None:
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    code = "import json, os, pathlib, uuid\n" + WRITE_DOWN.replace("{path!r}", f"'{tmp_path}/got-' + uuid.uuid4().hex")
    program.write_text(f"#!{sys.executable}\n{code}")
    program.chmod(0o755)
    tree = tmp_path / "comfy"
    for name in (".git/HEAD", "main.py", "folder_paths.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("ref: refs/heads/master\n")
    found = {**environ, "PATH": str(program.parent)}
    Checkouts(run=run_process, environ=found, download=WholeFiles().fetch).describe(tree)
    answers = [written(path) for path in tmp_path.glob("got-*")]
    assert answers
    assert [leaked(each) for each in answers] == [set()] * len(answers)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without pip."""
    folder = tmp_path_factory.mktemp("env") / ".venv"
    venv.create(folder, with_pip=False)
    return folder


def test_an_environments_python_gets_no_secrets(tmp_path: Path, environ: dict[str, str], where: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text(WRITE_DOWN.format(path=str(tmp_path / "got")))
    Environments(run=run_process, cache=wheel_cache(tmp_path), environ=environ, probe_script=script).probe(
        where, backend="cpu"
    )
    assert leaked(written(tmp_path / "got")) == set()


def test_pip_gets_the_index_and_no_other_secrets(tmp_path: Path, environ: dict[str, str], where: Path) -> None:
    """The pip here writes its variables down and answers `config list` as the real one does."""
    site = next(where.rglob("site-packages"))
    (site / "pip").mkdir(exist_ok=True)
    (site / "pip" / "__main__.py").write_text(
        "import json, os, pathlib, sys\n"
        f"pathlib.Path({str(tmp_path)!r}, 'got-' + sys.argv[1]).write_text(json.dumps(dict(os.environ)))\n"
        """print(":env:.extra-index-url=%r" % os.environ.get("PIP_EXTRA_INDEX_URL"))\n"""
    )
    Environments(run=run_process, cache=wheel_cache(tmp_path), environ=environ).install(where, ["nothing"])
    assert leaked(written(tmp_path / "got-config")) == {"PIP_EXTRA_INDEX_URL"}
    assert leaked(written(tmp_path / "got-install")) == {"PIP_EXTRA_INDEX_URL"}


@posix_only
def test_uv_gets_the_index_and_nobody_sees_its_password(tmp_path: Path, environ: dict[str, str], where: Path) -> None:
    """Whoever is logged in can read the arguments of every program, but not its variables."""
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    got = f"import json, os, pathlib, sys\npathlib.Path({str(tmp_path / 'got')!r})"
    program.write_text(
        f"#!{sys.executable}\n{got}.write_text(json.dumps({{**os.environ, 'argv': ' '.join(sys.argv)}}))\n"
    )
    program.chmod(0o755)
    site = next(where.rglob("site-packages"))
    (site / "pip").mkdir(exist_ok=True)
    lines = [f":env:.index-url='https://me:{MARK}@a.example'", f":env:.find-links='https://me:{MARK}@b.example /srv'"]
    (site / "pip" / "__main__.py").write_text(f"print({chr(10).join(lines)!r})\n")
    found = {**environ, "PATH": f"{program.parent}{os.pathsep}{environ['PATH']}"}
    Environments(run=run_process, cache=wheel_cache(tmp_path), environ=found).install(
        where, ["nothing"], installer="uv"
    )
    pips = {"PIP_INDEX_URL", "PIP_FIND_LINKS"}  # uv reads none of them
    assert leaked(written(tmp_path / "got")) - pips == {"UV_INDEX_URL", "UV_FIND_LINKS"}
    assert written(tmp_path / "got")["UV_FIND_LINKS"] == f"https://me:{MARK}@b.example,/srv"


def test_the_diffusers_script_gets_no_secrets(tmp_path: Path, environ: dict[str, str], where: Path) -> None:
    python = python_in(where)
    assert python is not None
    script = tmp_path / "script.py"
    script.write_text(WRITE_DOWN.format(path=str(tmp_path / "got")))
    options = ImageOptions(prompt="a", seed=1, width=64, height=64, steps=1, guidance=1.0)
    with pytest.raises(SmokeTestError):
        generate_with_diffusers(
            python,
            run=run_process,
            cache=tmp_path,
            repo_id="a/b",
            revision="0" * 40,
            options=options,
            output=tmp_path / "i.png",
            log_path=tmp_path / "log",
            timeout_s=60,
            environ=environ,
            script=script,
        )
    assert leaked(written(tmp_path / "got")) == set()
