"""What Slurm, Kubernetes and GitHub would start, started without them: real processes, one folder, the embedded hub.

A node is a process with a home of its own.  A container is one with mounts of its own, as its pod says, and everything
else read-only.  Locks between nodes are those of this computer's file system; no network file system is here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from provisioner.core.models import BLOCK_SIZE
from provisioner.rehearsal.faults import Status
from tests.support.mounts import own_mounts
from tests.support.pods import KUBERNETES, containers, specs
from tests.support.sandbox import MIB, Sandbox, sha256_of, tensors, wait_until
from tests.support.setup_fixture import ENCODER, VAE, ModelFile

SCRIPTS = KUBERNETES.parent
MODEL = ModelFile(data=tensors(2 * BLOCK_SIZE + MIB), name="flux-2-klein-4b-fp8.safetensors", folder="diffusion_models")
FILES = (MODEL, ENCODER, VAE)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is tried here is for Linux")


@pytest.fixture
def site(sandbox: Sandbox) -> Sandbox:
    """Return a sandbox whose set has the name of ours, and a `klein-setup` that knows its manifest and its hub."""
    sandbox.publish(*FILES)
    names = [each.artifact()["id"] for each in FILES]
    sets = [{"id": "fp8", "title": "Small", "target": "comfyui", "artifacts": names}]
    sandbox.write_manifest(sets=sets, default_set="fp8")
    write_program(
        sandbox.folder / "bin" / "klein-setup",
        f"""
        hub="--endpoint {sandbox.hub.endpoint} --send-token --connections 1"
        case $1 in install | repair) ;; *) hub= ;; esac
        exec {shlex.quote(sys.executable)} -m provisioner "$@" --manifest {sandbox.manifest} $hub
        """,
    )
    return sandbox


def write_program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def whole(site: Sandbox, models: Path) -> bool:
    """Whether every file is there and right."""
    paths = {each: models / each.folder / each.name for each in FILES}
    return all(path.is_file() and sha256_of(path) == each.sha256 for each, path in paths.items())


# --- Slurm ------------------------------------------------------------------------------------------------


class Node:
    """A node that runs the prolog: its own home and log, the shared folder."""

    def __init__(self, site: Sandbox, name: str, **more: str) -> None:
        self.folder = site.folder / name
        self.folder.mkdir()
        write_program(self.folder / "logger", f'shift 2; echo "$*" >> {self.folder}/log')
        environ = {
            **site.environ,
            **{f"XDG_{each}_HOME": str(self.folder / each.lower()) for each in ("STATE", "DATA", "CONFIG", "CACHE")},
            "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}",
            "KLEIN_SETUP": str(site.folder / "bin" / "klein-setup"),
            "KLEIN_SETUP_COMFYUI": str(site.tree),
            **more,
        }
        self.process = subprocess.Popen(
            ["sh", str(SCRIPTS / "slurm" / "prolog.sh")], env=environ, cwd=self.folder, stderr=subprocess.DEVNULL
        )

    def ended(self) -> tuple[int, str]:
        """Return the exit status of the prolog and what it logged."""
        log = self.folder / "log"
        return self.process.wait(60), log.read_text(encoding="utf-8") if log.exists() else ""


def test_of_many_nodes_one_fetches_and_the_others_find_everything(site: Sandbox) -> None:
    site.tree.mkdir()
    site.hub.rate_bytes_s_per_connection = 20 * MIB
    nodes = [Node(site, f"n{number}") for number in range(5)]
    assert [node.ended() for node in nodes] == [(0, "")] * 5
    assert site.bytes_served() == sum(len(each.data) for each in FILES)
    assert whole(site, site.tree / "models")
    site.hub.clear_requests()
    assert Node(site, "late").ended() == (0, "")
    assert site.hub.requests == ()


def test_when_the_node_that_fetches_dies_another_continues_its_bytes(site: Sandbox) -> None:
    site.tree.mkdir()
    site.hub.rate_bytes_s_per_connection = 12 * MIB
    nodes = [Node(site, f"n{number}") for number in range(3)]
    wait_until(lambda: site.blocks_in_log(MODEL) >= 1, what="a block is on the disk")
    psutil.Process(json.loads((site.tree / "models" / ".klein-setup" / "lock.json").read_bytes())["pid"]).kill()
    ended = [node.ended() for node in nodes]
    assert [status for status, _ in ended] == [0, 0, 0]
    (said,) = (log for _, log in ended if log)
    assert "klein-setup install ended with exit status 137" in said
    assert site.bytes_served() < sum(len(each.data) for each in FILES) + BLOCK_SIZE
    assert whole(site, site.tree / "models")


def test_a_prolog_fails_only_for_what_is_wrong_with_its_node(site: Sandbox) -> None:
    status, log = Node(site, "without-mount").ended()
    assert (status, "is not there. Mount it on" in log) == (1, True)
    site.tree.mkdir()
    write_program(site.folder / "no-locks" / "findmnt", "echo rw,relatime,localflock")
    path = f"{site.folder / 'no-locks'}{os.pathsep}{os.environ['PATH']}"
    status, log = Node(site, "without-locks", PATH=path).ended()
    assert (status, site.hub.requests) == (0, ())
    site.hub.fault(Status(503), times=None)
    status, log = Node(site, "without-hub", KLEIN_SETUP_LIMIT_S="3").ended()
    assert (status, "not complete after 3 s; the next job continues." in log) == (0, True)


def test_a_job_begins_only_where_its_models_are_complete(site: Sandbox) -> None:
    environ = site.environ | {
        "KLEIN_SETUP": str(site.folder / "bin" / "klein-setup"),
        "KLEIN_SETUP_COMFYUI": str(site.tree),
    }
    words = ["sh", str(SCRIPTS / "slurm" / "job.sh"), "echo", "the job began"]
    site.tree.mkdir()
    before = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert (before.returncode, "the job began" in before.stdout) == (1, False)
    assert site.install("--only", "files").returncode == 0
    after = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert (after.returncode, "the job began" in after.stdout) == (0, True)


# --- Kubernetes -------------------------------------------------------------------------------------------


class Pod:
    """A pod's volumes as folders, and its containers as processes that see them where they are mounted."""

    def __init__(self, site: Sandbox, spec: dict[str, Any]) -> None:
        own = own_mounts()
        if own is None:
            pytest.skip("a container needs a mount namespace, and this user may not make one")
        self._site, self._own, self._root = site, own, site.folder / "root"
        self.containers = {each["name"]: each for each in containers(spec)}
        self.volumes = {each["name"]: site.folder / "volumes" / each["name"] for each in spec["volumes"]}
        for folder in self.volumes.values():
            folder.mkdir(parents=True, exist_ok=True)

    def command(self, name: str, words: list[str]) -> tuple[list[str], dict[str, str]]:
        """Return what starts words as this container, and its environment."""
        mounts, locked = [], []
        for each in self.containers[name]["volumeMounts"]:
            at = self._root / each["mountPath"].lstrip("/")
            at.mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {self.volumes[each['name']]} {at}")
            locked += [f"mount -o remount,ro,bind {at}"] if each.get("readOnly") else []
        script = " && ".join([*mounts, *locked, "mount -o remount,ro,bind /", 'exec "$@"'])
        environ = {
            name: value for name, value in self._site.environ.items() if not name.startswith(("XDG_", "HF_HOME"))
        }
        environ |= {"HOME": str(self._root / "home/klein"), "TMPDIR": str(self._root / "tmp")}
        environ |= {"PATH": f"{self._site.folder / 'bin'}{os.pathsep}{environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
        return [*self._own, "sh", "-c", script, "sh", *(self.seen(name, word) for word in words)], environ

    def seen(self, name: str, text: str) -> str:
        """Return a text with the paths of this container's volumes as they are here."""
        paths = "|".join(each["mountPath"] for each in self.containers[name]["volumeMounts"])
        return re.sub(rf"(?<!\S)({paths})(?!\S)", lambda found: f"{self._root}{found[0]}", text)

    def run(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Run the container to its end."""
        words, environ = self.command(name, ["klein-setup", *self.containers[name]["args"], *more])
        return subprocess.run(words, env=environ, cwd="/", capture_output=True, text=True, timeout=60, check=False)


def pod(site: Sandbox, name: str) -> Pod:
    (spec,) = specs(KUBERNETES / name)
    return Pod(site, spec)


def test_a_job_fills_its_volume_and_reads_it_back_with_everything_else_read_only(site: Sandbox) -> None:
    job = pod(site, "job.yaml")
    empty = job.run("verify")
    assert empty.returncode == 1, empty.stderr
    filled = job.run("fill")
    assert filled.returncode == 0, filled.stderr
    verified = job.run("verify")
    assert verified.returncode == 0, verified.stderr
    document = json.loads(verified.stdout)
    assert [each["basis"] for each in document["checks"]] == ["blocks"] * 3
    assert whole(site, job.volumes["cache"] / "models")

    damaged = job.volumes["cache"] / "models" / MODEL.folder / MODEL.name
    with damaged.open("r+b") as stream:
        stream.write(b"????")
    site.hub.clear_requests()
    assert pod(site, "cronjob.yaml").run("repair").returncode == 0
    assert site.bytes_served() == BLOCK_SIZE
    assert whole(site, job.volumes["cache"] / "models")


def test_the_image_has_every_file_that_its_wheel_is_made_of(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    text = (KUBERNETES / "Dockerfile").read_text(encoding="utf-8")
    for words in re.findall(r"^COPY (.+)$", text.partition("\nFROM ")[2].partition("\nFROM ")[0], re.M):
        *sources, _ = words.split()
        for source in sources:
            path = SCRIPTS.parent / source
            (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / source)
    command = [str(uv), "build", "--quiet", "--wheel", "--out-dir", str(tmp_path / "dist"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    if "Failed to fetch" in done.stderr or "error sending request" in done.stderr:
        pytest.skip("the package index does not answer, and the wheel cannot be built without it")
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(made).namelist())
    assert {"provisioner/_manifests/flux2-klein-4b.yaml", "provisioner/_schema/document.schema.json"} <= names


def test_an_init_container_costs_nothing_where_the_models_are(site: Sandbox) -> None:
    job, app = pod(site, "job.yaml"), pod(site, "init-container.yaml")
    assert job.run("fill").returncode == 0
    site.hub.clear_requests()
    again = app.run("models")
    assert (again.returncode, site.hub.requests) == (0, ()), again.stderr


def test_a_node_cache_is_ready_when_it_is_filled_and_its_scrub_ends_when_it_is_told_to(site: Sandbox) -> None:
    cache = pod(site, "daemonset.yaml")
    probe = cache.containers["scrub"]["readinessProbe"]["exec"]["command"]
    words, environ = cache.command("scrub", probe)
    assert subprocess.run(words, env=environ, cwd="/", capture_output=True, check=False).returncode == 1
    assert cache.run("fill").returncode == 0
    assert subprocess.run(words, env=environ, cwd="/", capture_output=True, check=False).returncode == 0
    words, environ = cache.command("scrub", [*cache.containers["scrub"]["command"], *cache.containers["scrub"]["args"]])
    log = site.folder / "scrub.log"
    with log.open("wb") as stream:
        scrub = subprocess.Popen(words, env=environ, cwd="/", stdout=stream, stderr=stream)
    wait_until(lambda: b"All 3 files are correct" in log.read_bytes(), what="every byte was read")
    scrub.terminate()
    assert scrub.wait(10) == 0
    site.hub.close()
    (cache.volumes["cache"] / "models" / VAE.folder / VAE.name).unlink()
    broken = subprocess.run(words, env=environ, cwd="/", capture_output=True, timeout=60, check=False)
    assert broken.returncode == 1


def test_an_image_volume_with_other_bytes_or_none_stops_the_pod(site: Sandbox) -> None:
    volume = pod(site, "image-volume.yaml")
    empty = volume.run("verify")
    assert empty.returncode == 1, empty.stderr
    models = volume.volumes["models"]
    for each in FILES:
        (models / each.folder).mkdir()
        (models / each.folder / each.name).write_bytes(each.data)
    right = volume.run("verify")
    assert right.returncode == 0, right.stdout
    (models / VAE.folder / VAE.name).write_bytes(VAE.data[:-1] + b"?")
    assert volume.run("verify").returncode == 1


# --- GitHub -----------------------------------------------------------------------------------------------


def test_the_action_installs_writes_a_summary_and_ends_with_the_exit_status(site: Sandbox) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    action = yaml.safe_load((SCRIPTS / "github-action" / "action.yml").read_text(encoding="utf-8"))
    (step,) = action["runs"]["steps"]
    version = action["inputs"]["version"]["default"]
    write_program(
        site.folder / "bin" / "pipx",
        f"""
        [ "$1 $2 $3 $4" = "run --spec klein-setup=={version} klein-setup" ] || exit 99
        shift 4
        exec {shlex.quote(sys.executable)} -m provisioner "$@"
        """,
    )
    given = {name: each.get("default", "") for name, each in action["inputs"].items()}
    given |= {"comfyui": str(site.tree), "manifest": str(site.manifest), "endpoint": site.hub.endpoint}
    environ = site.environ | {"PATH": f"{site.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for name, value in step["env"].items():
        environ[name] = given[value.split("inputs.")[1].split()[0]]
    environ |= {"RUNNER_TEMP": str(site.folder)}
    environ |= {name: str(site.folder / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    summary = site.folder / "GITHUB_STEP_SUMMARY"

    def run() -> int:
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        return subprocess.run(words, env=environ, cwd=site.folder, capture_output=True, check=False).returncode

    assert run() == 0
    assert whole(site, site.tree / "models")
    assert (site.folder / "GITHUB_OUTPUT").read_text(encoding="utf-8") == f"document={site.folder}/klein-setup.json\n"
    assert f"- fetch-file `{VAE.folder}/{VAE.name}`: done" in summary.read_text(encoding="utf-8")
    environ["SET"] = "no-such-set"
    assert run() == 2
    assert "**usage**: small has no set 'no-such-set'." in summary.read_text(encoding="utf-8")
