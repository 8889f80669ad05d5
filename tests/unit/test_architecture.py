"""The arrow of imports: every module of the package has a room here, and a room says what may be brought into it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "provisioner"


class Room(NamedTuple):
    """What the modules of one layer may import."""

    own: frozenset[str]  # layers of this package, beside its own unit
    is_pure: bool = False  # no clock, disk, environment, process or network


VALUES = frozenset({"value"})
DECISIONS = VALUES | {"decision"}
FLOWS = DECISIONS | {"port"}
EVERYTHING = FLOWS | {"effect", "flow", "rehearsal", "drawing", "edge"}

MAY_IMPORT = {
    "value": Room(VALUES, is_pure=True),
    "decision": Room(DECISIONS, is_pure=True),  # decisions do not know ports
    "port": Room(VALUES),
    "ground": Room(FLOWS),  # what several adapters stand on; it knows none of them
    "effect": Room(FLOWS | {"ground"}),  # adapters know neither each other nor the engine
    "flow": Room(FLOWS),
    "inside": Room(frozenset()),  # runs where nothing of ours is installed
    "rehearsal": Room(FLOWS),
    "drawing": Room(FLOWS),
    "edge": Room(EVERYTHING),
}

# The longest name that fits decides; a folder's name covers what is in it.
LAYER_OF = {
    "provisioner": "value",  # the version
    "checkout_models": "value",
    "comfy_models": "value",
    "errors": "value",
    "events": "value",
    "models": "value",
    "records": "value",
    "redact": "value",
    "smoke_models": "value",
    "torch_models": "value",
    "words": "value",
    "app_packages": "decision",
    "comfy_answers": "decision",
    "comfy_command": "decision",
    "comfy_failures": "decision",
    "comfy_messages": "decision",
    "comfy_table": "decision",
    "diffusers_answers": "decision",
    "blocks": "decision",
    "comfy_install": "decision",
    "changes": "decision",
    "environment": "decision",
    "graph": "decision",
    "identify": "decision",
    "installer": "decision",
    "layout": "decision",
    "lock": "decision",
    "machine": "decision",
    "manifest": "decision",
    "measurement": "decision",
    "mending": "decision",
    "model_paths": "decision",
    "picture": "decision",
    "parts": "decision",
    "requirements": "decision",
    "survey": "decision",
    "planner": "decision",
    "document": "decision",
    "report": "decision",
    "refusals": "decision",
    "safe_path": "decision",
    "smoke_report": "decision",
    "torch_build": "decision",
    "torch_gpus": "decision",
    "torch_reach": "decision",
    "torch_refusals": "decision",
    "torch_table": "decision",
    "torch_warnings": "decision",
    "transfer": "decision",
    "yaml_values": "decision",
    "ports": "port",
    "adapters": "effect",
    "adapters.turns": "ground",
    "detect": "flow",
    "engine": "flow",
    "observe": "flow",
    "inside": "inside",
    "rehearsal": "rehearsal",
    "rehearsal.picture_act": "edge",  # makes an environment and draws in it
    "rehearsal.story": "edge",  # the whole job end to end needs the whole program
    "page": "drawing",
    "ui": "drawing",
    "__main__": "edge",
    "arguments": "edge",
    "cli": "edge",
    "commands": "edge",
    "aside_job": "edge",
    "environment_job": "edge",
    "lock_job": "edge",
    "program_job": "edge",
    "report_job": "edge",
    "reverify_job": "edge",
    "setup_job": "edge",
    "survey_job": "edge",
    "smoke_job": "edge",
    "uninstall_job": "edge",
    "unload_job": "edge",
    "torch_wish": "edge",
    "wiring": "edge",
}

# Third-party packages, and who may know them.
MAY_USE = {
    "PIL": ("picture",),
    "filelock": ("adapters.turns",),
    "huggingface_hub": ("adapters.hub", "rehearsal.story"),  # the story proves with the real client what was placed
    "packaging": ("app_packages", "requirements", "torch_build", "machine"),
    "platformdirs": ("adapters.places",),
    "psutil": ("adapters.comfyui", "adapters.host", "adapters.process", "adapters.vram"),
    "pynvml": ("adapters.nvml", "adapters.vram"),
    "requests": ("adapters.checkout", "adapters.http", "adapters.comfyui"),
    "rich": ("ui",),
    "tqdm": ("ui",),
    "typing_extensions": tuple(LAYER_OF),  # what `typing` has only from Python 3.11 on
    "urllib3": ("adapters.http",),
    "websockets": ("adapters.comfyui",),
    "yaml": ("lock", "manifest", "model_paths", "yaml_values"),
}

# fmt: off
IMPURE = frozenset({
    "asyncio", "ctypes", "datetime", "fcntl", "ftplib", "getpass", "glob", "http.client", "http.server", "logging",
    "mmap", "msvcrt", "multiprocessing", "os", "platform", "random", "secrets", "shutil", "signal", "socket", "sqlite3",
    "ssl", "subprocess", "tempfile", "threading", "time", "urllib.request", "winreg",
})
# fmt: on
IMPURE_CALLS = frozenset({"breakpoint", "eval", "exec", "input", "open", "print"})


def module_of(path: Path) -> str:
    """Return the name inside the package: ``adapters.http.engine``; the package itself is ``provisioner``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "provisioner"


def covers(name: str, module: str) -> bool:
    """Whether `name` is the module or a folder above it."""
    return module == name or module.startswith(name + ".")


def layer_of(module: str) -> str | None:
    """Return the layer of a module, None where the table does not know it."""
    names = [name for name in LAYER_OF if covers(name, module)]
    return LAYER_OF[max(names, key=len)] if names else None


def unit_of(module: str) -> str:
    """Return the unit a module belongs to: one adapter, one drawing, or the rehearsal as a whole."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "adapters" else parts[0]


def imports_of(tree: ast.Module) -> list[tuple[int, str]]:
    """Return (line, dotted name) of every import, wherever it stands."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append((node.lineno, "." * node.level))
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def own_module(name: str) -> str:
    """Return the module of ours that an import such as ``provisioner.models.Gpu`` reaches."""
    parts = name.split(".")[1:]
    while parts:
        stem = PACKAGE.joinpath(*parts)
        if stem.with_suffix(".py").is_file() or stem.is_dir():
            return ".".join(parts)
        parts.pop()
    return "provisioner"


def complaint_about_own(module: str, layer: str, target: str) -> str | None:
    """Say why `module` may not import our own `target`, or return None."""
    other = layer_of(target)
    if other is None or other in MAY_IMPORT[layer].own:
        return None
    if unit_of(target) == unit_of(module) and layer == other:
        return None
    return f"{module} ({layer}) may not import {target} ({other})"


def complaint_about_foreign(module: str, layer: str, name: str) -> str | None:
    """Say why `module` may not import `name` from outside the package, or return None."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        touched = [impure for impure in IMPURE if covers(impure, name)]
        return f"{module} is pure and imports {name}" if MAY_IMPORT[layer].is_pure and touched else None
    if layer == "inside" or any(covers(user, module) for user in MAY_USE.get(top, ())):
        return None
    return f"{module} may not use {top}; MAY_USE says who may"


def complaints(module: str, source: str) -> list[str]:
    """Return what is wrong with the imports of one module, a sentence each."""
    layer = layer_of(module)
    if layer is None:
        return [f"{module} has no layer: give it one in LAYER_OF of tests/unit/test_architecture.py"]
    tree = ast.parse(source)
    found: list[str] = []
    for line, name in imports_of(tree):
        if name.startswith("."):
            said: str | None = f"{module} imports relatively; write the name in full"
        elif covers("provisioner", name):
            said = complaint_about_own(module, layer, own_module(name))
        else:
            said = complaint_about_foreign(module, layer, name)
        if said is not None:
            found.append(f"line {line}: {said}")
    if MAY_IMPORT[layer].is_pure:
        found += [
            f"line {node.lineno}: {module} is pure and calls {node.func.id}()"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS
        ]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    assert complaints(module_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("planner", "import os", "planner is pure and imports os"),
        ("planner", "from os.path import join", "planner is pure and imports os.path.join"),
        ("planner", "def f():\n    from urllib.request import urlopen", "planner is pure and imports urllib.request"),
        ("planner", "from provisioner.ports import Store", "planner (decision) may not import ports (port)"),
        ("planner", "open('x')", "planner is pure and calls open()"),
        ("models", "from provisioner.planner import plan", "models (value) may not import planner (decision)"),
        ("engine", "from provisioner.adapters import store", "engine (flow) may not import adapters.store (effect)"),
        ("adapters.hub", "import provisioner.adapters.store", "adapters.hub (effect) may not import adapters.store"),
        ("adapters.store.x", "from provisioner.engine import Engine", "may not import engine (flow)"),
        ("adapters.turns", "import provisioner.adapters.store", "adapters.turns (ground) may not import"),
        ("engine", "import provisioner.adapters.turns", "engine (flow) may not import adapters.turns (ground)"),
        ("adapters.host", "import requests", "adapters.host may not use requests"),
        ("ui.tables", "from provisioner.wiring import Workbench", "ui.tables (drawing) may not import wiring (edge)"),
        ("inside.probe", "from provisioner.models import Gpu", "inside.probe (inside) may not import models (value)"),
        ("engine", "from . import errors", "engine imports relatively"),
        ("helpers", "", "helpers has no layer"),
    ],
)
def test_a_forbidden_import_is_named(module: str, source: str, said: str) -> None:
    assert [line for line in complaints(module, source) if said in line]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("planner", "from urllib.parse import urlsplit\nfrom pathlib import Path\nfrom provisioner.models import Gpu"),
        ("adapters.store.x", "from provisioner.adapters.store.durable import replace\nimport os"),
        ("adapters.store.x", "from provisioner.adapters.turns import hold_lock"),
        ("inside.probe", "import torch, json"),
        ("cli", "from provisioner.adapters.store import FileStore"),
        ("rehearsal.hub", "from provisioner.rehearsal.wire import Listener\nimport socket"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert complaints(module, source) == []


def test_the_wheel_carries_only_data_from_manifests() -> None:
    allowed = {".yaml", ".json", ".md"}
    others = [path for path in (ROOT / "manifests").rglob("*") if path.is_file() and path.suffix not in allowed]
    assert others == []
    assert {path.name for path in (ROOT / "manifests").glob("*.json")} <= {"schema.json"}
