"""The pods of scripts/kubernetes, and the commands that their containers run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).resolve().parents[2] / "scripts" / "kubernetes"
FILES = sorted(KUBERNETES.glob("*.yaml"))
_IMAGE = re.compile(r"registry\.example\.org/klein-setup:")


def specs(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the specification of every pod in a file."""
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        spec = document["spec"]
        while "containers" not in spec and (inner := spec.get("template") or spec.get("jobTemplate")):
            spec = inner["spec"]
        if "containers" in spec:
            yield spec


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the containers of a pod with klein-setup's image, in the order in which they start."""
    every = [*spec.get("initContainers", ()), *spec["containers"]]
    return [each for each in every if _IMAGE.match(each["image"])]


def commands(container: dict[str, Any]) -> list[list[str]]:
    """Return the arguments of every klein-setup that a container runs, in a script and a probe, too."""
    command, arguments = container.get("command"), [str(each) for each in container.get("args", ())]
    found = [arguments] if command is None else []
    if command == ["/bin/sh", "-c"]:
        found += [shlex.split(line) for line in re.findall(r"klein-setup ([^;\n]*)", arguments[0])]
    probe = container.get("readinessProbe", {}).get("exec", {}).get("command", [])
    return found + ([probe[1:]] if probe[:1] == ["klein-setup"] else [])
