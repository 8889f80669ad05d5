"""Environments for real: real virtual environments, the real pip and uv, small wheels from an index on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.core.errors import (
    CommandError,
    EntryNotFoundError,
    HashMismatchError,
    InsufficientSpaceError,
    KleinError,
    LockHeldError,
    NotTheFileError,
    OfflineError,
    ServerError,
    UnauthorizedError,
    UnreachableError,
    UnsupportedMachineError,
    UsageError,
)
from provisioner.core.events import FileProgress
from provisioner.disk.root import Root
from provisioner.environment.build import Builder
from provisioner.environment.build_context import BuildContext
from provisioner.environment.environments import Environments
from provisioner.environment.installed import python_in
from provisioner.environment.state import EnvironmentReceipt, drift, receipt_text
from provisioner.environment.swap import CONSTRAINTS, Journal, Workspace, read_receipt
from provisioner.files.download.limiter import RateLimiter
from provisioner.files.download.wheel_cache import WheelCache
from provisioner.machine.process import run_process
from provisioner.torch.builds import TorchBuild, TorchSet
from tests.support.quick_venv import QuickEnvironments
from tests.support.wheels import Faults, Toy, ToyIndex, content_of, own_pip, serving, torch_set, wheel_cache

ROOT = Path(__file__).resolve().parents[2]
NEW = TorchSet(torch="2.14.1", torchvision="0.29.1", torchaudio="2.11.0")
NEWER = TorchSet(torch="2.15.0", torchvision="0.29.2", torchaudio="2.11.0")
BIN = "Scripts" if os.name == "nt" else "bin"

GOOD_PROBE = """
import json, sys, torch, torchvision, torchaudio
modules = (torch, torchvision, torchaudio)
print(json.dumps({"ok": True, "failures": [], "devices": [], "python": sys.version.split()[0],
    "packages": {each.__name__: each.__version__ for each in modules},
    "torch": {"cuda": torch.version.cuda, "arch_list": ["sm_90"]}}))
"""
BAD_PROBE = """
import json
print(json.dumps({"ok": False, "failures": [{"code": "wrong-numbers", "sentence": "a product gave wrong numbers."}]}))
"""


@pytest.fixture(scope="module")
def index() -> Iterator[ToyIndex]:
    with serving([*torch_set("cu130", padding=400_000), own_pip()]) as index:
        yield index


@pytest.fixture(autouse=True)
def _healthy(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "index" in request.fixturenames:
        request.getfixturevalue("index").faults = Faults()


def variables(index: ToyIndex, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """A person's environment without settings of their own, whose default index is the toy one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "PYTHON"))}
    ours = {"PIP_INDEX_URL": index.url, "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": os.devnull}
    return kept | ours | dict(more or {})


def environments(
    index: ToyIndex,
    tmp: Path,
    *,
    probe: str = GOOD_PROBE,
    more: Mapping[str, str] | None = None,
    kind: type[Environments] = Environments,
) -> Environments:
    script = tmp / "toy_probe.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(probe, encoding="utf-8")
    return kind(
        run=run_process,
        cache=wheel_cache(tmp / "cache"),
        environ=variables(index, more),
        home=tmp,
        probe_script=script,
    )


def build(index: ToyIndex, *sets: TorchSet, tag: str | None = "cu130") -> TorchBuild:
    return TorchBuild(torch_backend=tag or "cpu", index_url=index.url, local_tag=tag, sets=sets or (NEW,))


def said_by(comfyui: Path, *words: str, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run([comfyui, *words], capture_output=True, text=True, check=False, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def codes(where: Path, envs: Environments) -> set[str]:
    seen = envs.observe(where)
    return {finding.code for finding in drift(seen.receipt, seen, None)}


@pytest.fixture(scope="module")
def template(index: ToyIndex, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """An environment made once: (where, what was said, what the index was asked)."""
    home = tmp_path_factory.mktemp("my comfy")
    said: list[str] = []
    index.requests.clear()
    environments(index, home).create(build(index, NEWER, NEW), home / ".venv", progress=said.append)
    return home / ".venv", said, list(index.requests)


@pytest.fixture
def made(template: tuple[Path, list[str], list[str]]) -> Path:
    """The environment made once, for tests that only look."""
    return template[0]


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy of it, for tests that change it; its scripts are those of the original."""
    where = tmp_path / "own" / ".venv"
    shutil.copytree(made, where, symlinks=True)
    Root(where).write_text(where / "pip.conf", f"[global]\nconstraint = {where / CONSTRAINTS}\n")
    return where


# --- making ------------------------------------------------------------------------------------


def test_a_new_environment_works_under_its_final_name(made: Path) -> None:
    assert said_by(made / BIN / "torch-where") == str(made)
    assert str(made) in said_by(made / BIN / "pip", "--version")
    assert sorted(path.name for path in made.parent.iterdir()) == [".venv", "cache", "toy_probe.py"]


def test_nothing_in_it_knows_the_folder_it_was_built_in(made: Path) -> None:
    texts = [path for path in (made / BIN).iterdir() if path.is_file() and not path.is_symlink()]
    assert [path.name for path in (*texts, made / "pyvenv.cfg") if b"~venv" in path.read_bytes()] == []
    if os.name == "posix":
        told = said_by(Path("/bin/sh"), "-c", f". '{made}/bin/activate' && echo $VIRTUAL_ENV && command -v pip")
        assert told.splitlines() == [str(made), str(made / "bin" / "pip")]


def test_a_new_environment_does_not_drift(made: Path, index: ToyIndex, tmp_path: Path) -> None:
    seen = environments(index, tmp_path).observe(made)
    assert seen.receipt is not None
    assert drift(seen.receipt, seen, None) == ()
    assert {each.name: each.tag for each in seen.distributions}["torchaudio"] == "cu130"
    assert seen.constraints == (
        "torch==2.14.1+cu130",
        "torchvision==0.29.1+cu130",
        "torchaudio==2.11.0+cu130",
        "triton==3.6.0",
    )


def test_the_newest_set_the_index_has_is_taken(template: tuple[Path, list[str], list[str]]) -> None:
    where, said, _ = template
    receipt = read_receipt(where)
    assert receipt is not None
    assert receipt.set == NEW
    assert [line for line in said if line.startswith("torch 2.15.0 cannot be had") and "2.14.1+cu130" in line]


def test_the_metadata_of_all_three_is_read_before_the_first_wheel_arrives(
    template: tuple[Path, list[str], list[str]],
) -> None:
    asked = [path for path in template[2] if "/pip" not in path]
    first_wheel = next(number for number, path in enumerate(asked) if path.endswith(".whl"))
    described = [path for path in asked[:first_wheel] if path.endswith(".metadata")]
    assert len(described) == 5
    assert len({path for path in asked if path.endswith(".whl")}) == 5


def test_the_receipt_survives_writing_and_reading(made: Path) -> None:
    receipt = read_receipt(made)
    assert receipt is not None
    assert receipt.probe is not None
    assert dict(receipt.probe.packages)["torch"] == "2.14.1+cu130"


def test_uv_makes_the_same_environment(index: ToyIndex, made: Path, tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists() and shutil.which("uv") is None:
        pytest.skip("uv is not installed here")
    envs = environments(index, tmp_path, kind=QuickEnvironments)
    where = tmp_path / "env"
    receipt = envs.create(build(index), where, installer="uv")
    first = read_receipt(made)
    assert first is not None
    assert (receipt.versions, receipt.constraints) == (first.versions, first.constraints)
    assert said_by(where / BIN / "torch-where") == str(where)
    assert codes(where, envs) == set()


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_a_uv_that_fails_is_no_reason_to_fail(index: ToyIndex, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho no such option >&2\nexit 2\n")
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    envs, said = environments(index, tmp_path, more={"PATH": path}, kind=QuickEnvironments), list[str]()
    envs.create(build(index), tmp_path / "env", installer="auto", progress=said.append)
    assert "uv could not install the wheels (no such option); pip does it." in said
    assert codes(tmp_path / "env", envs) == set()


def test_an_older_pip_makes_it_too(tmp_path: Path) -> None:
    with serving(torch_set("cu130")) as poor:  # it offers no pip, so the one Python brings along has to do
        envs = environments(poor, tmp_path)
        receipt = envs.create(build(poor), tmp_path / "venv")
        assert receipt.set == NEW
        assert said_by(tmp_path / "venv" / BIN / "torch-where") == str(tmp_path / "venv")


def test_settings_that_point_elsewhere_change_nothing(index: ToyIndex, tmp_path: Path) -> None:
    elsewhere, stray = tmp_path / "elsewhere", tmp_path / "stray" / "torch"
    stray.mkdir(parents=True)
    (stray / "__init__.py").write_text("raise SystemExit('the wrong torch')", encoding="utf-8")
    config = tmp_path / "config" / "pip"
    config.mkdir(parents=True)
    lines = ["[global]", f"target = {elsewhere}", "no-deps = true", "require-virtualenv = true", "user = true"]
    (config / "pip.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==2.9.0\n", encoding="utf-8")
    with serving([*torch_set("cu130", torch="2.99.0"), *torch_set("cu130"), own_pip()]) as hostile:
        more = {
            "PIP_INDEX_URL": hostile.url,
            "PIP_EXTRA_INDEX_URL": hostile.url,
            "PIP_TARGET": str(elsewhere),
            "PIP_PREFIX": str(elsewhere),
            "PIP_USER": "1",
            "PIP_NO_DEPS": "1",
            "PIP_NO_BINARY": ":all:",
            "PIP_CONSTRAINT": str(constraints),
            "PIP_REQUIRE_VIRTUALENV": "1",
            "UV_INDEX_URL": hostile.url,
            "UV_DEFAULT_INDEX": hostile.url,
            "UV_CONSTRAINT": str(constraints),
            "UV_TARGET": str(elsewhere),
            "XDG_CONFIG_HOME": str(config.parent),
            "PYTHONPATH": str(stray.parent),
            "PYTHONHOME": str(elsewhere),
            "VIRTUAL_ENV": str(elsewhere),
        }
        envs = environments(index, tmp_path, more=more, kind=QuickEnvironments)
        envs.environ.pop("PIP_CONFIG_FILE")  # type: ignore[attr-defined]
        where = tmp_path / "env"
        receipt = envs.create(build(index), where)
        assert [name for name in hostile.fetched() if not name.startswith("pip-")] == []
    assert receipt.set == NEW
    assert not elsewhere.exists()
    assert said_by(where / BIN / "torch-where") == str(where)


# --- what an index can do wrong ----------------------------------------------------------------


def maker(
    index: ToyIndex,
    made: Path,
    tmp: Path,
    *,
    default: ToyIndex | None = None,
    cache: WheelCache | None = None,
    environ: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Builder:
    """Work on an environment that is there, up to the point where something would be installed."""
    work = Workspace(tmp / "env")
    work.begin("toy")
    context = BuildContext(
        run=run_process, environ=environ or variables(default or index), cache=cache or wheel_cache(tmp)
    )
    return Builder(context, made, work, progress)


def swapped(old: str, **changes: object) -> list[Toy]:
    return [replace(toy, **changes) if toy.name == old else toy for toy in torch_set("cu130")]  # type: ignore[arg-type]


def test_a_gap_in_the_torch_index_is_filled_from_the_default_index(made: Path, tmp_path: Path) -> None:
    default_toys = [toy for toy in torch_set(None, torch="2.99.0") if toy.name != "triton"]
    with (
        serving([toy for toy in torch_set("cu130") if toy.name != "sympy"]) as poor,
        serving(default_toys) as default,
    ):
        making = maker(poor, made, tmp_path, default=default)
        releases, wheels = making.resolve(build(poor))
        making.fetch(wheels, poor.url)
        assert releases == NEW
        assert default.fetched() == ["sympy-1.14.0-py3-none-any.whl"]
        assert len(wheel_cache(tmp_path).held()) == 5


@pytest.mark.parametrize("without", ["torch", "torchvision", "torchaudio"])
def test_an_index_without_the_wheel_is_named_with_what_it_has(made: Path, tmp_path: Path, without: str) -> None:
    with (
        serving(swapped(without, version="1.0.0+cpu")) as poor,
        pytest.raises(EntryNotFoundError, match=rf"no wheel of {without}==.*1\.0\.0\+cpu"),
    ):
        maker(poor, made, tmp_path).resolve(build(poor))


def test_an_index_that_is_not_there_is_named(made: Path, tmp_path: Path, index: ToyIndex) -> None:
    index.faults = Faults(is_gone=True)
    with pytest.raises(EntryNotFoundError, match="it offers none at all"):
        maker(index, made, tmp_path).resolve(build(index))


@pytest.mark.parametrize(
    ("faults", "error"), [(Faults(is_refused=True), UnauthorizedError), (Faults(is_broken=True), ServerError)]
)
def test_a_refusing_index_is_not_called_empty(
    made: Path, tmp_path: Path, index: ToyIndex, faults: Faults, error: type[KleinError]
) -> None:
    index.faults = faults
    with pytest.raises(error):
        maker(index, made, tmp_path).resolve(build(index))


def test_an_unreachable_index_is_a_network_error(made: Path, tmp_path: Path) -> None:
    with serving(torch_set("cu130")) as gone:
        pass
    with pytest.raises(UnreachableError, match="could not be reached"):
        maker(gone, made, tmp_path).resolve(build(gone))


@pytest.mark.parametrize("name", ["torch", "torchvision", "torchaudio"])
def test_a_wheel_whose_metadata_says_another_tag_is_refused_before_it_arrives(
    made: Path, tmp_path: Path, name: str
) -> None:
    version = next(toy.version for toy in torch_set("cu130") if toy.name == name)
    toys = swapped(name, inner_version=version.replace("cu130", "cpu"))
    with serving(toys) as lying:
        with pytest.raises(NotTheFileError, match=r"\+cpu"):
            maker(lying, made, tmp_path).resolve(build(lying))
        assert lying.fetched() == []


def test_a_set_of_several_builds_is_refused_even_without_a_promised_tag(made: Path, tmp_path: Path) -> None:
    toys = [*torch_set("cu132")[:1], *torch_set("cu130")[1:]]
    with serving(toys) as mixed, pytest.raises(NotTheFileError, match="different builds"):
        maker(mixed, made, tmp_path).resolve(build(mixed, tag=None))


def test_other_bytes_than_announced_are_refused(made: Path, tmp_path: Path, index: ToyIndex) -> None:
    making = maker(index, made, tmp_path)
    _, wheels = making.resolve(build(index))
    index.faults.wrong_bytes.add(wheels[0].file_name)
    with pytest.raises(HashMismatchError, match=rf"{re.escape(wheels[0].file_name)} came with another SHA-256"):
        making.fetch(wheels, index.url)
    assert not list((tmp_path / "wheels").rglob("torch-*"))
    index.faults = Faults()
    assert len(making.fetch(wheels, index.url)) == 5


def test_a_cut_download_is_continued_and_what_arrived_is_kept(made: Path, tmp_path: Path, index: ToyIndex) -> None:
    making = maker(index, made, tmp_path)
    _, wheels = making.resolve(build(index))
    last = wheels[-1].file_name
    index.faults.cut_after[last] = 100
    with pytest.raises(UnreachableError):
        making.fetch(wheels, index.url)
    assert len(wheel_cache(tmp_path).held()) == len(wheels) - 1
    index.faults = Faults()
    index.requests.clear()
    making.fetch(wheels, index.url)
    assert index.fetched() == [last]


def test_a_wheel_says_how_far_it_is_as_a_model_does(made: Path, tmp_path: Path) -> None:
    heard: list[FileProgress] = []
    cache = wheel_cache(tmp_path, events=lambda event: heard.append(event) if isinstance(event, FileProgress) else None)
    with serving(torch_set("cu130", padding=3_000_000)) as slow:
        making = maker(slow, made, tmp_path, cache=cache)
        _, wheels = making.resolve(build(slow))
        slow.faults.bytes_per_s = 3_000_000.0
        making.fetch(wheels[:1], slow.url)
    size = len(next(path for path in cache.held().values() if path.name.startswith("torch-")).read_bytes())
    assert {(each.label, each.size) for each in heard} == {("torch 2.14.1+cu130", size)}
    assert len({each.bytes_on_disk for each in heard if each.phase == "fetching"}) > 2
    assert (heard[-1].phase, heard[-1].bytes_hashed, heard[-1].bytes_received) == ("hashing", size, size)


def test_a_limited_rate_holds_for_wheels(made: Path, tmp_path: Path) -> None:
    with serving(torch_set("cu130", padding=1_500_000)) as index:
        making = maker(index, made, tmp_path, cache=wheel_cache(tmp_path, limiter=RateLimiter(1_000_000)))
        _, wheels = making.resolve(build(index))
        began = time.monotonic()
        making.fetch(wheels, index.url)
        assert time.monotonic() - began > 1.4


def test_offline_the_wheels_that_are_here_are_taken_and_others_are_named(
    made: Path, tmp_path: Path, index: ToyIndex
) -> None:
    folder = tmp_path / "mine"
    environ = variables(index, {"PIP_FIND_LINKS": str(folder)})
    context = BuildContext(run=run_process, environ=environ, cache=wheel_cache(tmp_path), is_offline=True)
    work = Workspace(tmp_path / "env")
    work.begin("toy")
    offline = Builder(context, made, work, lambda line: None)
    index.requests.clear()
    with pytest.raises(OfflineError, match=r"torch==2\.14\.1") as raised:
        offline.resolve(build(index))
    assert "PIP_FIND_LINKS" in (raised.value.hint or "")
    folder.mkdir()
    for toy in torch_set("cu130"):
        (folder / toy.file_name).write_bytes(toy.content())
    releases, wheels = offline.resolve(build(index))
    assert {wheel.sha256 for wheel in offline.fetch(wheels, index.url)} == {
        sha256_of(toy) for toy in torch_set("cu130")
    }
    assert releases == NEW
    assert index.requests == []


def sha256_of(toy: Toy) -> str:
    return hashlib.sha256(content_of(toy)).hexdigest()


# --- failures that must leave what was there ---------------------------------------------------


def test_a_failed_proof_leaves_the_environment_that_was_there(own: Path, tmp_path: Path, index: ToyIndex) -> None:
    before = read_receipt(own)
    with pytest.raises(CommandError, match="wrong numbers"):
        environments(index, tmp_path, probe=BAD_PROBE, kind=QuickEnvironments).create(build(index), own)
    assert read_receipt(own) == before
    assert codes(own, environments(index, tmp_path)) <= {"building-interrupted"}
    assert not own.with_name("~venv").exists()


def test_wheels_that_do_not_fit_together_are_no_matter_of_repair(own: Path, tmp_path: Path, index: ToyIndex) -> None:
    probe = BAD_PROBE.replace("wrong-numbers", "torchvision-import")
    with pytest.raises(CommandError, match="does not pass its checks") as caught:
        environments(index, tmp_path, probe=probe, kind=QuickEnvironments).create(build(index), own)
    assert "--torch-index URL" in (caught.value.hint or "")
    assert "repair" not in (caught.value.hint or "")


def test_a_kill_while_a_wheel_arrives_costs_only_what_is_in_flight(own: Path, tmp_path: Path, index: ToyIndex) -> None:
    before, padding = read_receipt(own), 40_000_000  # three blocks of 16 MiB
    with serving([*torch_set("cu130", padding=padding), own_pip()]) as slow:
        order = {toy.name: toy.file_name for toy in slow.toys}
        envs = environments(slow, tmp_path, kind=QuickEnvironments)
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from provisioner.machine.process import run_process\n"
            "from provisioner.torch.builds import TorchBuild, TorchSet\n"
            "from tests.support.quick_venv import QuickEnvironments\n"
            "from tests.support.wheels import wheel_cache\n"
            "where, probe, url, cache = sys.argv[1:]\n"
            "releases = TorchSet(torch='2.14.1', torchvision='0.29.1', torchaudio='2.11.0')\n"
            "build = TorchBuild(torch_backend='cu130', index_url=url, local_tag='cu130', sets=(releases,))\n"
            "envs = QuickEnvironments(run=run_process, probe_script=Path(probe), cache=wheel_cache(Path(cache)))\n"
            "envs.create(build, Path(where), progress=print)\n"
        )
        slow.faults.bytes_per_s = 10_000_000.0
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(own), str(envs.probe_script), slow.url, str(tmp_path / "cache")],
            env=variables(slow, {"PYTHONPATH": str(ROOT)}),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            log = tmp_path / "cache" / "wheels" / sha256_of(slow.toys[0]) / f"{order['torch']}.part.jsonl"
            wait_for(lambda: log.exists() and log.read_text().count('block":') > 1, process)  # the first names none
        finally:
            kill(process)
            process.wait()
        assert said_by(own / BIN / "python", "-c", "import torch; print(torch.__version__)") == "2.14.1+cu130"
        assert read_receipt(own) == before
        assert "was interrupted" in (envs.observe(own).interrupted or "")
        time.sleep(0.2)  # the server notices that nobody reads
        slow.faults = Faults()
        slow.requests.clear()
        slow.sent.clear()
        said: list[str] = []
        receipt = envs.create(build(slow), own, progress=said.append)
        assert 0 < slow.sent[order["torch"]] <= padding - 16 * 1024**2 + 10_000
    assert receipt != before
    assert [line for line in said if "interrupted" in line]
    assert sorted(path.name for path in own.parent.iterdir()) == [".venv"]


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and the pip it started, without a word."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], check=True)
    else:
        os.killpg(process.pid, signal.SIGKILL)


def wait_for(happened: object, process: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    assert callable(happened)
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "it never came to that point"
        time.sleep(0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="mounting needs root on Linux")
def test_a_full_disk_leaves_the_environment_that_was_there(tmp_path: Path, index: ToyIndex, own: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", small], check=False).returncode != 0:
        pytest.skip("this machine mounts nothing")
    try:
        where = small / ".venv"
        where.mkdir()
        (where / "pyvenv.cfg").write_text("home = /nowhere\n", encoding="utf-8")
        with (
            serving([*torch_set("cu130", padding=60_000_000), own_pip()]) as large,
            pytest.raises(InsufficientSpaceError, match="full"),
        ):
            environments(large, tmp_path, kind=QuickEnvironments).create(build(large), where)
        assert (where / "pyvenv.cfg").read_text(encoding="utf-8") == "home = /nowhere\n"
        assert not where.with_name("~venv").exists()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_broken_environment_of_somebody_elses_is_kept_beside_the_new_one(tmp_path: Path, index: ToyIndex) -> None:
    where = tmp_path / "comfy" / "venv"
    (where / "bin").mkdir(parents=True)
    (where / "pyvenv.cfg").write_text("home = /gone/bin\n", encoding="utf-8")
    (where / "bin" / "python").symlink_to("/gone/bin/python3.11")
    envs = environments(index, tmp_path, kind=QuickEnvironments)
    assert codes(where, envs) == {"environment-broken"}
    assert "/gone/bin/python3.11" in (envs.observe(where).broken or "")
    said: list[str] = []
    envs.create(build(index), where, progress=said.append)
    kept = [path for path in where.parent.iterdir() if path.name.startswith("venv.before-")]
    assert len(kept) == 1
    assert (kept[0] / "pyvenv.cfg").read_text(encoding="utf-8") == "home = /gone/bin\n"
    assert str(kept[0]) in said[-1]
    assert codes(where, envs) == set()


def test_a_folder_that_is_no_environment_is_not_touched(tmp_path: Path, index: ToyIndex) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(UsageError, match="no virtual environment"):
        environments(index, tmp_path).create(build(index), tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_a_python_outside_the_bounds_is_refused(tmp_path: Path, index: ToyIndex) -> None:
    with pytest.raises(UnsupportedMachineError, match=r"wheels for 3\.98 and 3\.99"):
        environments(index, tmp_path).create(
            build(index), tmp_path / "env", python=Path(sys.executable), python_versions=("3.98", "3.99")
        )
    assert not (tmp_path / "env").exists()


def test_two_runs_do_not_build_in_one_place(tmp_path: Path, index: ToyIndex) -> None:
    from provisioner.environment.swap import only_one

    envs = replace(environments(index, tmp_path), waits_for_lock=False)
    with only_one(tmp_path / "env", wait=True, notice=print), pytest.raises(LockHeldError):
        envs.create(build(index), tmp_path / "env")


# --- changing places ---------------------------------------------------------------------------


def folder(path: Path, build_id: str | None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "pyvenv.cfg").write_text(f"{path.name}\n", encoding="utf-8")
    if build_id is not None:
        receipt = EnvironmentReceipt(
            build_id=build_id, made_at="", installer="pip", python_version="3.11.7", python_home="/usr",
            torch_backend="cpu", index_url=None, local_tag="cpu", set=NEW, versions=(), constraints=(),
        )  # fmt: skip
        Root(path).write_text(path / ".klein-setup" / "environment.json", receipt_text(receipt))
    return path


KILLED_REMOVAL = """
import os, signal, sys
from pathlib import Path
from provisioner.environment.environments import Environments
from provisioner.machine.process import run_process

where, left = Path(sys.argv[1]), int(sys.argv[2])

def die(event, given):
    global left
    if event in {"os.remove", "os.rmdir", "os.rename"}:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

environments = Environments(run=run_process, cache=None)
sys.addaudithook(die)
environments.clear_leftovers(where)
environments.remove(where)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("at", range(1, 12, 2))
def test_a_removal_that_is_killed_is_finished_by_the_next(at: int, tmp_path: Path) -> None:
    where = folder(tmp_path / "tree" / ".venv", "b1").parent / ".venv"
    records = [f".klein-setup/{each}" for each in ("constraints.txt", "packages.txt", "building")]
    for name in ("bin/python", "bin/pip", "lib/a/b.py", *records):
        path = where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", encoding="utf-8")
    mine = tmp_path / "tree" / "mine.txt"
    mine.write_text("mine", encoding="utf-8")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED_REMOVAL, where, str(at)], env=environ, check=False)
    assert killed.returncode == -9
    envs = Environments(run=run_process, cache=wheel_cache(tmp_path / "cache"))
    envs.clear_leftovers(where)
    if where.exists():
        assert (where / "bin" / "python").exists(), "half an environment is in its place"
        envs.remove(where)
    assert list((tmp_path / "tree").iterdir()) == [mine]


def test_a_removal_leaves_nothing_of_an_interrupted_building(tmp_path: Path) -> None:
    where = folder(tmp_path / "tree" / ".venv", "b1")
    work = Workspace(where)
    work.begin("b2", is_in_place=True)
    envs = Environments(run=run_process, cache=wheel_cache(tmp_path / "cache"))
    assert "was interrupted" in (envs.observe(where).interrupted or "")
    envs.remove(where)
    assert list((tmp_path / "tree").iterdir()) == []
    assert envs.observe(where).interrupted is None


def test_an_environment_that_fails_in_its_place_makes_room_for_the_old_one(tmp_path: Path) -> None:
    where = folder(tmp_path / "env", "old")
    work = Workspace(where)
    staging = folder(work.begin("new"), "new")

    def fail() -> None:
        raise CommandError("it does not start")

    with pytest.raises(CommandError):
        work.swap(staging, "new", "now", fail)
    receipt = read_receipt(where)
    assert receipt is not None
    assert receipt.build_id == "old"


@pytest.mark.parametrize("theirs", [None, "notes.txt", ".klein-setup/notes.txt"])
def test_a_kill_over_the_first_file_of_a_building_leaves_no_folder(tmp_path: Path, theirs: str | None) -> None:
    work = Workspace(tmp_path / ".venv")
    staging = work.begin("new")
    (staging / ".klein-setup" / "building").rename(staging / ".klein-setup" / f"building.{'a' * 16}.tmp")
    if theirs is not None:
        (staging / theirs).write_text("mine", encoding="utf-8")
    assert work.recover() is not None
    assert staging.exists() == (theirs is not None)


@pytest.mark.parametrize("moved", [0, 1, 2])
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_kill_while_folders_change_places_is_put_right(tmp_path: Path, moved: int, is_ours: bool) -> None:
    where = folder(tmp_path / "env", "old" if is_ours else None)
    work = Workspace(where)
    staging = folder(work.begin("new"), "new")
    old = work.folder / "old" if is_ours else tmp_path / "env.before-20261123-061404"
    work.note(Journal(build_id="new", stage="swapping", staging=staging.name, old=str(old)))
    if moved >= 1:
        where.rename(old)
    if moved == 2:
        staging.rename(where)
    assert work.interrupted() is not None
    assert work.recover() is not None
    receipt = read_receipt(where)
    assert (receipt.build_id if receipt else None) == {2: "new"}.get(moved, "old" if is_ours else None)
    assert old.exists() == (moved == 2 and not is_ours)
    assert not work.folder.exists()
    assert not staging.exists()
    assert work.recover() is None


# --- living with it ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop() -> Iterator[ToyIndex]:
    """The default index later on: a newer torch, and packages that want another."""
    others = [
        Toy(name="nice", version="1.0", requires=("torch>=2.0",)),
        Toy(name="greedy", version="1.0", requires=("torch==2.13.0",)),
    ]
    older = [Toy(name="torch", version="2.13.0"), Toy(name="torchaudio", version="2.11.0+cu132", cuda="13.2")]
    with serving([*torch_set(None, torch="2.15.0"), *older, *others]) as shop:
        yield shop


def test_a_plain_upgrade_in_the_environment_is_held(own: Path, shop: ToyIndex, tmp_path: Path) -> None:
    env = {name: value for name, value in variables(shop).items() if name != "PIP_CONFIG_FILE"}
    said_by(own / BIN / "python", "-m", "pip", "install", "--upgrade", "torch", "nice", env=env)
    assert said_by(own / BIN / "python", "-c", "import torch, nice; print(torch.__version__)") == "2.14.1+cu130"
    assert codes(own, environments(shop, tmp_path)) == set()


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_more_is_installed_under_the_constraints(own: Path, shop: ToyIndex, tmp_path: Path, installer: str) -> None:
    envs = environments(shop, tmp_path)
    envs.install(own, ["torch", "nice"], installer="uv" if installer == "uv" else "pip")
    seen = envs.observe(own)
    assert {each.name: each.version for each in seen.distributions}["nice"] == "1.0"
    assert drift(seen.receipt, seen, None) == ()


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_more_packages_come_through_the_cache_and_leave_nothing(
    own: Path, shop: ToyIndex, tmp_path: Path, installer: str
) -> None:
    envs = environments(shop, tmp_path)
    shop.requests.clear()
    envs.install(own, ["torch", "nice"], installer="uv" if installer == "uv" else "pip")
    assert "nice" in {each.name for each in envs.observe(own).distributions}
    assert shop.fetched() == ["nice-1.0-py3-none-any.whl"] == [path.name for path in envs.cache.held().values()]
    assert {path.name for path in (own / ".klein-setup").iterdir()} == {"constraints.txt", "environment.json"}
    assert not list(own.rglob("direct_url.json"))  # the index is where they come from, not a file of the cache


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_offline_nothing_more_is_installed(own: Path, shop: ToyIndex, tmp_path: Path, installer: str) -> None:
    offline = replace(environments(shop, tmp_path), is_offline=True)
    shop.requests.clear()
    with pytest.raises(OfflineError, match="nicer"):
        offline.install(own, ["nicer"], installer="uv" if installer == "uv" else "pip")
    assert shop.requests == []


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_package_that_wants_another_torch_fails_by_name(
    own: Path, shop: ToyIndex, tmp_path: Path, installer: str
) -> None:
    envs = environments(shop, tmp_path)
    with pytest.raises(CommandError, match="greedy") as caught:
        envs.install(own, ["greedy"], installer="uv" if installer == "uv" else "pip")
    assert caught.value.context["reason"] == "conflict"
    assert codes(own, envs) == set()


def test_the_variables_hold_an_application_that_calls_pip(own: Path, shop: ToyIndex, tmp_path: Path) -> None:
    envs = environments(shop, tmp_path)
    env = variables(shop) | envs.variables(own)
    said_by(own / BIN / "python", "-m", "pip", "install", "--upgrade", "torch", env=env)
    assert codes(own, envs) == set()


def test_a_replaced_torch_is_noticed_and_put_back(own: Path, shop: ToyIndex, index: ToyIndex, tmp_path: Path) -> None:
    said_by(own / BIN / "python", "-m", "pip", "install", "torch==2.13.0", "torchaudio==2.11.0+cu132", "nice",
            env=variables(shop))  # fmt: skip
    (own / CONSTRAINTS).unlink()
    next((own / "lib").glob("python*/site-packages")).joinpath("~orch").mkdir()
    envs = environments(index, tmp_path)
    assert codes(own, envs) == {
        "torch-replaced",
        "torchaudio-replaced",
        "constraints-changed",
        "uninstall-interrupted",
    }
    envs.repair(build(index), own)
    assert codes(own, envs) == set()
    names = {each.name for each in envs.observe(own).distributions}
    assert "nice" in names
    assert not own.with_name(".venv.klein-setup").exists()


def test_a_torchaudio_of_another_build_is_noticed_without_a_receipt(own: Path, shop: ToyIndex, tmp_path: Path) -> None:
    said_by(own / BIN / "python", "-m", "pip", "install", "torchaudio==2.11.0+cu132", env=variables(shop))
    seen = environments(shop, tmp_path).observe(own)
    assert {finding.code for finding in drift(None, seen, None)} == {"torchaudio-of-another-build"}


def test_a_second_torch_on_the_path_is_noticed(made: Path, index: ToyIndex, tmp_path: Path) -> None:
    stray = tmp_path / "stray" / "torch"
    stray.mkdir(parents=True)
    (stray / "__init__.py").write_text("", encoding="utf-8")
    envs = environments(index, tmp_path, more={"PYTHONPATH": str(stray.parent)})
    seen = envs.observe(made)
    assert [(each.path, each.is_first) for each in seen.second_torches] == [(stray, True)]
    assert codes(made, envs) == {"torch-twice"}


def test_an_environment_that_is_not_there_is_said_so(index: ToyIndex, tmp_path: Path) -> None:
    assert codes(tmp_path / "nothing", environments(index, tmp_path)) == {"environment-missing"}


# --- the probe's end of it ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "probe-died", "signal 11"),
        ("print('no JSON')", "probe-died", "no JSON"),
        ("raise SystemExit(3)", "probe-died", "exit status 3"),
    ],
)
def test_a_probe_that_dies_is_an_answer(
    made: Path, index: ToyIndex, tmp_path: Path, script: str, code: str, says: str
) -> None:
    answer = environments(index, tmp_path, probe=script).probe(made, backend="cpu")
    assert not answer.ok
    assert [found for found, _ in answer.failures] == [code]
    assert says in answer.failures[0][1]


def test_the_real_probe_says_what_is_wrong_with_a_toy_torch(made: Path) -> None:
    python = python_in(made)
    assert python is not None
    script = ROOT / "provisioner" / "environment" / "probe_script.py"
    done = subprocess.run(
        [python, "-I", script, "--json", json.dumps({"expect": {"device": "cuda", "packages": ["torchvision"]}})],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert {failure["code"] for failure in answer["failures"]} >= {"torch-broken", "cpu-matmul"}
