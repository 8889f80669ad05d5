"""The probe with a real torch (2.13.0, the CPU build), in a virtual environment kept between runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from provisioner.environment.environments import Environments
from provisioner.environment.state import judge_probe, parse_probe, serves
from provisioner.machine.process import run_process
from provisioner.torch.builds import TorchBuild, TorchSet
from tests.support.wheels import wheel_cache

ROOT = Path(__file__).resolve().parents[2]
PROBE = ROOT / "provisioner" / "environment" / "probe_script.py"
TORCH = "2.13.0"
CPU = TorchBuild(
    torch_backend="cpu",
    index_url=None,
    local_tag="cpu",
    sets=(TorchSet(torch=TORCH, torchvision="0.28.0", torchaudio="2.11.0"),),
)


@pytest.fixture(scope="module")
def environment() -> Path:
    """An environment with a real torch: made once per machine (about 200 MB to fetch), in the user's cache folder."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    where = Path.home() / ".cache" / "klein-setup-tests" / f"torch-{TORCH}-{version}"
    if (where / "whole").is_file() and python_of(where).exists():
        return where
    shutil.rmtree(where, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", where], check=True, timeout=120)
    command: list[str | Path] = [python_of(where), "-m", "pip", "install", "--quiet", f"torch=={TORCH}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"torch {TORCH} cannot be had here: {last}")
    (where / "whole").touch()
    return where


Broken = Callable[..., tuple[int, dict[str, Any]]]


def python_of(where: Path) -> Path:
    return where / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def probe(environment: Path, expect: dict[str, Any], *, prelude: str = "") -> tuple[int, dict[str, Any]]:
    """Run the probe in a process of its own; `prelude` runs before it."""
    asked = json.dumps({"expect": expect})
    words = [str(PROBE), "--json", asked]
    if prelude:
        words = ["-c", in_front_of_the_probe(prelude, words)]
    done = subprocess.run(
        [python_of(environment), "-I", *words], capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, answer_in(done.stdout)


def in_front_of_the_probe(prelude: str, words: list[str]) -> str:
    code = f"import runpy, sys\nsys.argv = {words!r}\n{textwrap.dedent(prelude)}\n"
    return code + f"runpy.run_path({str(PROBE)!r}, run_name='__main__')"


def answer_in(said: str) -> dict[str, Any]:
    lines = said.splitlines()
    assert len(lines) == 1, said
    answer: dict[str, Any] = json.loads(lines[0])
    return answer


FORKED = """
import json, os, sys, torch
for line in sys.stdin:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        exec(compile(json.loads(line), "<probe>", "exec"), {"__name__": "__main__"})
        os._exit(99)  # the probe ends itself
    os.close(writer)
    with open(reader) as stream:
        said = stream.read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]), flush=True)
"""


@pytest.fixture(scope="module")
def broken(environment: Path) -> Iterator[Broken]:
    """Return what runs the probe after something was broken in the real torch, which is imported once for all."""
    if sys.platform == "win32":
        yield partial(probe, environment)
        return
    command: list[str | Path] = [python_of(environment), "-I", "-c", FORKED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as torch:
        assert torch.stdin is not None
        assert torch.stdout is not None

        def ask(expect: dict[str, Any], *, prelude: str = "") -> tuple[int, dict[str, Any]]:
            assert torch.stdin is not None
            assert torch.stdout is not None
            code = in_front_of_the_probe(prelude, [str(PROBE), "--json", json.dumps({"expect": expect})])
            print(json.dumps(code), file=torch.stdin, flush=True)
            status, said = json.loads(torch.stdout.readline())
            return status, answer_in(said)

        yield ask
        torch.stdin.close()


def test_a_sound_cpu_build_proves_itself(environment: Path) -> None:
    status, answer = probe(environment, {"device": "cpu", "packages": ["torch"]})
    assert (status, answer["ok"], answer["failures"]) == (0, True, [])
    assert answer["packages"]["torch"].split("+")[0] == TORCH
    assert answer["torch"]["cuda"] is None
    assert answer["prefix"] == str(environment)


def test_the_adapter_reads_the_same_answer_and_it_is_judged_sound(environment: Path, tmp_path: Path) -> None:
    envs = Environments(run=run_process, cache=wheel_cache(tmp_path))
    answer = envs.probe(environment, backend="cpu", packages=["torch"])
    seen = envs.observe(environment)
    torch = seen.distribution("torch")
    assert answer.ok
    assert torch is not None
    assert judge_probe(answer, CPU, None) == ()
    assert torch.tag == "cpu"
    assert torch.cuda is None
    assert dict(answer.packages)["torch"] == torch.built_version
    assert seen.second_torches == ()


def test_a_cpu_build_where_cuda_is_expected_is_said_in_a_sentence(broken: Broken) -> None:
    status, answer = broken({"device": "cuda", "packages": ["torch"]})
    assert status == 1
    assert answer["code"] == "no-gpu-build"
    assert answer["sentence"] == f"torch {answer['packages']['torch']} is built without CUDA."


def test_missing_companions_are_named(broken: Broken) -> None:
    _, answer = broken({"device": "cpu", "packages": ["torch", "torchvision", "torchaudio"]})
    assert [failure["code"] for failure in answer["failures"]] == ["torchvision-import", "torchaudio-import"]
    assert "No module named 'torchvision'" in answer["sentence"]


@pytest.mark.parametrize(("device", "code"), [("rocm", "no-gpu-build"), ("xpu", "no-device"), ("mps", "no-gpu-build")])
def test_every_kind_of_device_that_is_not_there_is_a_failure(broken: Broken, device: str, code: str) -> None:
    status, answer = broken({"device": device, "packages": []})
    assert (status, answer["code"]) == (1, code)


def test_wrong_numbers_are_found(broken: Broken) -> None:
    prelude = """
        import torch
        right = torch.Tensor.__matmul__
        def off_by_one_in_one_place(left, right_side):
            result = right(left, right_side)
            if result.dtype == torch.float32:
                result[3, 5] += 1
            return result
        torch.Tensor.__matmul__ = off_by_one_in_one_place
    """
    status, answer = broken({"device": "cpu"}, prelude=prelude)
    assert (status, answer["code"]) == (1, "wrong-numbers")
    assert answer["sentence"] == "a float32 product on cpu gave wrong numbers: off by 1."


def test_not_a_number_is_a_wrong_number(broken: Broken) -> None:
    prelude = """
        import torch
        right = torch.Tensor.__matmul__
        torch.Tensor.__matmul__ = lambda left, other: right(left, other) * (
            float("nan") if left.dtype == torch.float32 else 1.0
        )
    """
    _, answer = broken({"device": "cpu"}, prelude=prelude)
    assert answer["code"] == "wrong-numbers"


def test_what_a_library_prints_while_it_is_imported_does_not_spoil_the_line(broken: Broken) -> None:
    prelude = """
        import os, torch
        right = torch.Tensor.__matmul__
        def loud(left, other):
            print("hello"); os.write(1, b"from C\\n")
            return right(left, other)
        torch.Tensor.__matmul__ = loud
    """
    status, answer = broken({"device": "cpu"}, prelude=prelude)
    assert (status, answer["ok"]) == (0, True)


def test_a_torch_that_ends_the_program_is_a_failure(environment: Path) -> None:
    prelude = """
        import sys
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "torch":
                    raise SystemExit("libcudart is missing")
        sys.meta_path.insert(0, Finder())
    """
    status, answer = probe(environment, {"device": "cpu"}, prelude=prelude)
    assert (status, answer["code"]) == (1, "torch-import")
    assert "libcudart is missing" in answer["sentence"]


@pytest.mark.parametrize("words", [["--json", "{"], ["--json", "[]"], ["--json", '{"expect": 3}'], ["x"]])
def test_a_wrong_question_is_answered_in_one_line_too(environment: Path, words: list[str]) -> None:
    done = subprocess.run([python_of(environment), "-I", PROBE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    answer = parse_probe(done.stdout)
    assert answer is not None
    assert [code for code, _ in answer.failures] == ["usage"]


RULES = """
import importlib.util, json, sys
import torch.cuda
spec = importlib.util.spec_from_file_location("probe", sys.argv[1])
probe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(probe)
codes = sorted(torch.cuda.DEVICE_REQUIREMENT)
devices = [*codes, 88, 102, 122, 130]
print(json.dumps([
    [f"sm_{code}", device // 10, device % 10, torch.cuda._code_compatible_with_device(device, code),
     probe.serves(f"sm_{code}", (device // 10, device % 10), (13, 0))]
    for code in codes for device in devices
]))
"""


def test_our_rule_of_code_and_device_is_torchs_own(environment: Path) -> None:
    done = subprocess.run(
        [python_of(environment), "-I", "-c", RULES, str(PROBE)], capture_output=True, text=True, check=True, timeout=60
    )
    rows = json.loads(done.stdout)
    assert len(rows) > 300
    strange = [row for row in rows if not row[3] == row[4] == serves(row[0], (row[1], row[2]), (13, 0))]
    assert strange == []
