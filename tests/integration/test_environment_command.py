"""``--only environment``: the torch build chosen for a recorded machine, installed from a loopback index, proved, held.

The wheels are toys that pip really installs.  No toy can pass the real probe, so where an environment shall come about
a small program calls the same job with a toy probe; where it shall not, the real command runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builders import recording_of
from tests.support.sandbox import ROOT, Sandbox, tensors
from tests.support.setup_fixture import PROBE, rtx_4070
from tests.support.wheels import Faults, ToyIndex, own_pip, serving, torch_set

JOB = """
import os, sys
from pathlib import Path
from provisioner.commands.choose_environment import EnvironmentOptions, verify_environment
from provisioner.commands.install import RunUi, run_install
from provisioner.commands.look import InstallOptions
from provisioner.commands.run import Options, open_run
from provisioner.commands.session import Session, Settings
from provisioner.core.errors import KleinError
from provisioner.torch.choose import TorchOptions
from tests.support import quick_venv

quick_venv.use()
action, tree, manifest, index, probe = sys.argv[1:]
settings = Settings(probe_script=Path(probe), remembers=False)
session = Session(settings=settings, events=lambda event: print(event, flush=True))
run = open_run(session, Options(comfyui=Path(tree), manifest=manifest))
environment = EnvironmentOptions(torch=TorchOptions(index_base=index))
def show(plan):
    print(*(f"{step.kind}: {step.reason}" for step in plan.steps), sep="\\n")


ui = RunUi(ask=lambda question: False, show_plan=show, show_smoke=lambda smoke: None)
try:
    if action == "verify":
        report = verify_environment(run, run.report("verify", "ok", 0), None)
    else:
        asked = InstallOptions(parts=frozenset({"environment"}), environment=environment, are_parts_named=True)
        report = run_install(run, asked, ui)
except KleinError as error:
    print("error:", error)
    sys.exit(error.exit_status)
print(*(f"error: {error}" for error in report.errors), sep="\\n")
findings = (*(report.plan.findings if report.plan else ()), *report.findings)
print(*(f"{finding.code}: {finding.message}" for finding in findings), sep="\\n")
sys.exit(report.exit_status)
"""


@pytest.fixture(scope="module")
def index() -> Iterator[ToyIndex]:
    stray = next(toy for toy in torch_set("cu132") if toy.name == "torchaudio")
    with serving([*torch_set("cu130", padding=3_000_000), stray, own_pip()]) as index:
        yield index


class EnvironmentSetup:
    """A recorded machine, a tree, an index, and the job as a process."""

    def __init__(self, sandbox: Sandbox, index: ToyIndex, folder: Path) -> None:
        sandbox.publish(tensors(1000))
        self.sandbox, self.index, self.folder = sandbox, index, folder
        self.environment = sandbox.tree / ".venv"
        self.base = index.url
        (folder / "job.py").write_text(JOB, encoding="utf-8")
        (folder / "probe.py").write_text(PROBE, encoding="utf-8")
        (folder / "machine.json").write_text(recording_of(rtx_4070()), encoding="utf-8")
        self.variables: dict[str, str | None] = {
            "KLEIN_SETUP_MACHINE": str(folder / "machine.json"),
            "PIP_INDEX_URL": index.url,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_RETRIES": "0",
            "PIP_EXTRA_INDEX_URL": None,
            "PIP_FIND_LINKS": None,
            "PATH": f"{Path(sys.executable).resolve().parent}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, action: str) -> subprocess.Popen[str]:
        words = [action, str(self.sandbox.tree), str(self.sandbox.manifest), self.base, str(self.folder / "probe.py")]
        changed = {**self.sandbox.environ, **self.variables, "PYTHONPATH": str(ROOT)}
        environ = {name: value for name, value in changed.items() if value is not None}
        return subprocess.Popen(
            [sys.executable, str(self.folder / "job.py"), *words],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, action: str) -> tuple[int, str]:
        process = self.start(action)
        said, _ = process.communicate(timeout=180)
        return process.returncode, said

    def versions(self) -> dict[str, str]:
        names = "torch torchvision torchaudio"
        code = f"for name in '{names}'.split(): print(__import__(name).__version__)"
        done = subprocess.run(
            [self.environment / "bin" / "python", "-I", "-c", code], capture_output=True, text=True, check=True
        )
        return dict(zip(names.split(), done.stdout.split(), strict=True))


SET = {"torch": "2.14.1+cu130", "torchvision": "0.29.1+cu130", "torchaudio": "2.11.0+cu130"}


@pytest.fixture
def setup(sandbox: Sandbox, index: ToyIndex, tmp_path: Path) -> Iterator[EnvironmentSetup]:
    yield EnvironmentSetup(sandbox, index, tmp_path)
    index.faults = Faults()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_an_installation_killed_in_the_middle_is_run_again_and_then_holds(setup: EnvironmentSetup) -> None:
    """The whole life of an environment: killed, continued, proved, left alone, disturbed, noticed, put back."""
    setup.index.faults = Faults(bytes_per_s=1_500_000)
    process = setup.start("install")
    deadline = time.monotonic() + 120
    while not any("torch-2.14.1" in name for name in setup.index.fetched()):
        assert time.monotonic() < deadline, "no wheel was asked for"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not setup.environment.exists()

    setup.index.faults = Faults()
    status, said = setup.run("install")
    assert status == 0, said
    assert setup.versions() == SET

    asked = len(setup.index.requests)
    status, said = setup.run("install")
    assert status == 0, said
    assert "keep-environment: nothing changed since it was verified" in said
    assert len(setup.index.requests) == asked

    python = setup.environment / "bin" / "python"
    upgrade = [str(python), "-m", "pip", "install", "-q", "-U", "--no-input", "torch==2.13.0"]
    environ = {**os.environ, "PIP_INDEX_URL": setup.index.url}
    held = subprocess.run(upgrade, env=environ, capture_output=True, text=True, check=False)
    assert held.returncode != 0
    assert setup.versions() == SET

    stray = [str(python), "-m", "pip", "install", "-q", "--no-deps", "torchaudio==2.11.0+cu132"]
    subprocess.run(stray, env={**environ, "PIP_CONFIG_FILE": os.devnull}, check=True)
    status, said = setup.run("verify")
    assert status == 1, said
    assert "torchaudio" in said
    status, said = setup.run("repair")
    assert status == 0, said
    assert setup.run("verify")[0] == 0
    assert setup.versions() == SET


def test_an_environment_of_somebody_elses_is_not_replaced_unasked(setup: EnvironmentSetup) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(setup.environment)], check=True)
    mine = setup.environment / "mine.txt"
    mine.write_text("keep me", encoding="utf-8")
    done = setup.sandbox.install("--only", "environment", "--torch-index", setup.base, timeout=180, env=setup.variables)
    assert done.returncode == 2
    assert "was not made by klein-setup" in done.stderr
    assert mine.read_text(encoding="utf-8") == "keep me"
    assert not list(setup.sandbox.tree.glob(".venv.before*"))


def test_an_index_that_is_not_there_is_a_network_error_and_leaves_nothing(setup: EnvironmentSetup) -> None:
    setup.base = "http://127.0.0.1:9/whl"
    status, said = setup.run("install")
    assert status == 5, said
    assert not setup.environment.exists()


def test_a_torch_that_fails_the_real_probe_is_not_put_in_place(setup: EnvironmentSetup) -> None:
    done = setup.sandbox.install("--only", "environment", "--torch-index", setup.base, timeout=180, env=setup.variables)
    assert done.returncode == 8, done.said
    assert "torch" in done.stderr
    assert not setup.environment.exists()


def test_a_machine_without_a_gpu_has_to_be_accepted(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(1000))
    done = sandbox.install("--only", "environment")
    assert done.returncode == 3
    assert "Pass --cpu" in done.stderr


def test_the_plan_says_where_from_and_why(setup: EnvironmentSetup) -> None:
    done = setup.sandbox.run("plan", "--only", "environment", "--json", env=setup.variables)
    told = done.json["details"]["environment"]
    assert (done.returncode, told["action"], told["reason"]) == (0, "make", "there is none")
    assert told["path"] == str(setup.environment)
    assert told["torch"]["build"]["index_url"] == "https://download.pytorch.org/whl/cu130"
    assert not setup.sandbox.tree.exists()


def test_a_forced_build_that_cannot_work_is_refused(setup: EnvironmentSetup) -> None:
    done = setup.sandbox.install("--only", "environment", "--torch", "cu124", env=setup.variables)
    assert done.returncode == 2
    assert "cu124" in done.stderr


def test_an_unknown_part_is_a_usage_error(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(1000))
    done = sandbox.install("--only", "files,picture")
    assert (done.returncode, "'picture'" in done.stderr) == (2, True)
