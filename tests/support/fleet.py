"""Hosts for the Ansible collection: folders of this computer, each a recorded machine, over the local connection."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.support.sandbox import ROOT, Sandbox, Wanted, sha256_of, wait_until

COLLECTION = ROOT / "scripts" / "ansible"
RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=0\s+failed=(\d+)", re.M)


def program(name: str) -> list[str] | None:
    """Return how a program of ansible-core, ``ansible-playbook``, is called: by this Python, or by its name on PATH."""
    if importlib.util.find_spec("ansible") is not None:  # its script names the folder in which it was installed
        return [sys.executable, "-m", "ansible", name.removeprefix("ansible-")]
    found = shutil.which(name)
    return None if found is None else [found]


def install_collection(folder: Path) -> Path:
    """Install the collection below a folder, as a person does; return the folder."""
    galaxy = program("ansible-galaxy") or []
    words = [*galaxy, "collection", "install", "--offline", str(COLLECTION), "-p", str(folder)]
    environ = {**os.environ, "ANSIBLE_HOME": str(folder / "home")}
    subprocess.run(words, env=environ, check=True, capture_output=True, timeout=120)
    return folder


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a play said."""

    status: int
    text: str

    @property
    def changed(self) -> dict[str, int]:
        """How many tasks changed something, by host; only of hosts on which nothing failed."""
        return {name: int(changed) for name, changed, failed in RECAP.findall(self.text) if failed == "0"}

    @property
    def failed(self) -> set[str]:
        """The hosts on which a task failed."""
        return {name for name, _, failed in RECAP.findall(self.text) if failed != "0"}

    @property
    def said(self) -> str:
        """The text with white space reduced to single blanks."""
        return " ".join(self.text.replace("\\n", " ").split())


class Fleet:
    """Hosts in a folder, and the hub that is their mirror."""

    def __init__(self, folder: Path, sandbox: Sandbox, collections: Path) -> None:
        self.folder, self.sandbox = folder, sandbox
        self.hosts: dict[str, dict[str, Any]] = {}
        self.environ = {
            **sandbox.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_LOCALHOST_WARNING": "False",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "False",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORKS": "8",
            "ANSIBLE_PIPELINING": "True",
        }
        del self.environ["HF_TOKEN"], self.environ["PYTHONPATH"]

    def add(self, name: str, recording: str, **more: object) -> None:
        """Add a host that is another recorded machine, with folders of its own."""
        home = self.folder / name
        home.mkdir(parents=True)
        (home / "machine.json").write_text(recording, encoding="utf-8")
        variables = {
            "KLEIN_SETUP_MACHINE": str(home / "machine.json"),
            "PYTHONPATH": str(ROOT),
            **{f"XDG_{each}_HOME": str(home / each.lower()) for each in ("STATE", "DATA", "CONFIG", "CACHE")},
        }
        self.hosts[name] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "ansible_async_dir": str(home / "async"),
            "klein_setup_command": [sys.executable, "-m", "provisioner"],
            "klein_setup_environment": variables,
            "klein_setup_comfyui": str(home / "ComfyUI"),
            "klein_setup_manifest": str(self.sandbox.manifest),
            "klein_setup_endpoint": self.sandbox.hub.endpoint,
            "klein_setup_only": ["files"],
            "klein_setup_test_image": False,
            "klein_setup_poll_s": 0,
            **more,
        }

    def command(self, playbook: str, *options: str, **variables: object) -> list[str]:
        """Return the command line of a play, and write its inventory."""
        inventory = self.folder / "hosts.yml"
        inventory.write_text(yaml.safe_dump({"all": {"hosts": self.hosts}}), encoding="utf-8")
        words = [*(program("ansible-playbook") or []), f"klein_setup.fleet.{playbook}", "-i", str(inventory)]
        return [*words, *options, *(["-e", json.dumps(variables)] if variables else [])]

    def play(self, playbook: str, *options: str, before: tuple[str, ...] = (), **variables: object) -> Played:
        """Run a playbook to its end."""
        words = [*before, *self.command(playbook, *options, **variables)]
        done = subprocess.run(
            words, env=self.environ, cwd=self.folder, capture_output=True, text=True, timeout=240, check=False
        )
        return Played(status=done.returncode, text=done.stdout + done.stderr)

    def kill_after_a_block(self, name: str, wanted: Wanted) -> None:
        """Kill klein-setup on a host as soon as a block of a file is on the disk."""
        tree = self.hosts[name]["klein_setup_comfyui"]
        log = self.path(name, wanted).with_name(f"{wanted.name}.part.jsonl")
        wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") > 1, what=f"a block on {name}", timeout_s=60)
        found = [each for each in psutil.process_iter(["cmdline"]) if tree in (each.info["cmdline"] or [])]
        assert len(found) == 1
        found[0].kill()

    def path(self, name: str, wanted: Wanted) -> Path:
        """Return where a file lies on a host."""
        return Path(self.hosts[name]["klein_setup_comfyui"]) / "models" / wanted.folder / wanted.name

    def has(self, name: str) -> set[str]:
        """Return the names of the models on a host, after comparing the bytes of each."""
        found = [each for each in self.sandbox.files if self.path(name, each).is_file()]
        assert all(sha256_of(self.path(name, each)) == each.sha256 for each in found), name
        return {each.name for each in found}

    def install(self, name: str) -> None:
        """Install on one host with the command alone, which is quicker than a play."""
        host = self.hosts[name]
        words = [*host["klein_setup_command"], "install", "--only", "files", "--no-input"]
        words += ["--comfyui", host["klein_setup_comfyui"], "--manifest", host["klein_setup_manifest"]]
        words += ["--endpoint", host["klein_setup_endpoint"]]
        environ = self.environ | host["klein_setup_environment"]
        subprocess.run(words, env=environ, check=True, capture_output=True, timeout=60)
