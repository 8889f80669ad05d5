"""The plan of the house: which rooms there are, what each module is, and what it may bring in.

``LAYER_OF`` is the one table.  The list of modules whose branches are all tested (``nox -s unit``) comes from it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "provisioner"

# Imports run from an upper floor to a lower one, or along a floor without a circle.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"__main__", "cli"}),
    frozenset({"commands"}),
    frozenset({"ui"}),
    frozenset({"report"}),
    frozenset({"rehearsal"}),
    frozenset({"plan"}),
    frozenset(
        {
            "files",
            "comfyui",
            "environment",
            "torch",
            "machine",
            "smoke_test",
            "manifest",
            "identify",
            "oci",
            "bundle",
            "signing",
            "workflow",
            "snapshot",
        }
    ),
    frozenset({"disk", "network", "processes"}),
    frozenset({"core"}),
)


class Layer(NamedTuple):
    """What the modules of one layer may import."""

    own: frozenset[str]  # layers of this package
    is_pure: bool = False  # no clock, disk, environment, process or network


DECISIONS = frozenset({"value", "decision"})
FLOWS = DECISIONS | {"port", "flow"}
EVERYTHING = FLOWS | {"effect", "rehearsal", "drawing", "edge"}

MAY_IMPORT = {
    "value": Layer(frozenset({"value"}), is_pure=True),
    "decision": Layer(DECISIONS, is_pure=True),  # a pure function of values
    "port": Layer(frozenset({"value"})),
    "effect": Layer(
        FLOWS - {"flow"} | {"effect"}
    ),  # of effects those of its own room, of the floor of disk/, and what ships
    "flow": Layer(FLOWS),  # decisions and ports put together
    "script": Layer(frozenset()),  # runs where nothing of ours is installed
    "rehearsal": Layer(DECISIONS | {"port", "rehearsal"}),
    "drawing": Layer(DECISIONS | {"port", "drawing"}),
    "edge": Layer(EVERYTHING),
}

# The longest name that fits decides; a folder's name covers what is in it.
LAYER_OF = {
    "provisioner": "value",  # the version
    "__main__": "edge",
    "cli": "edge",
    "commands": "edge",
    "commands.parts": "decision",
    "ui": "drawing",
    "report": "decision",
    "report.html": "drawing",
    "report.last_check": "effect",
    "rehearsal": "rehearsal",
    "plan": "decision",
    "plan.steps": "value",
    "bundle": "decision",
    "bundle.start_script": "script",
    "files": "decision",
    "files.download": "effect",
    "files.download.policy": "decision",
    "files.engine": "flow",
    "files.file_heads": "effect",
    "files.hub_cache": "effect",
    "files.hub_facts": "effect",
    "files.local_copies": "effect",
    "files.observe": "flow",
    "files.peers": "effect",
    "files.store": "effect",
    "files.timed_reading": "flow",
    "comfyui": "decision",
    "comfyui.checkout": "effect",
    "comfyui.checkout_models": "value",
    "comfyui.installed_programs": "effect",
    "comfyui.release_models": "value",
    "comfyui.server": "effect",
    "comfyui.server.api": "decision",
    "comfyui.server.catalogue": "decision",
    "comfyui.server.failures": "decision",
    "comfyui.server.launch": "decision",
    "comfyui.server.log_lines": "decision",
    "comfyui.server.messages": "decision",
    "comfyui.tree": "effect",
    "environment": "decision",
    "environment.build": "effect",
    "environment.build_context": "effect",
    "environment.bundle_cache": "effect",
    "environment.environments": "effect",
    "environment.installed": "effect",
    "environment.kept_packages": "effect",
    "environment.package_installer": "effect",
    "environment.probe_script": "script",
    "environment.pythons": "effect",
    "environment.read_python": "effect",
    "environment.swap": "effect",
    "environment.wheel_files": "effect",
    "torch": "decision",
    "torch.builds": "value",
    "torch.choose": "edge",
    "machine": "effect",
    "machine.child_environment": "decision",
    "machine.detection": "flow",
    "machine.readings": "decision",
    "machine.schedules": "decision",
    "smoke_test": "decision",
    "smoke_test.diffusers_run": "effect",
    "smoke_test.diffusers_script": "script",
    "smoke_test.media_script": "script",
    "smoke_test.results": "value",
    "smoke_test.vram": "effect",
    "manifest": "decision",
    "manifest.shipped": "effect",
    "manifest.table_source": "value",
    "identify": "decision",
    "identify.family_table": "value",
    "identify.partners": "value",
    "oci": "decision",
    "oci.logins": "effect",
    "oci.push": "effect",
    "oci.reference": "value",
    "oci.registry": "effect",
    "signing": "decision",
    "signing.ec_keys": "effect",
    "workflow": "decision",
    "workflow.graph_values": "value",
    "workflow.loader_table": "value",
    "snapshot": "decision",
    "snapshot.snapshot_shelf": "effect",
    "disk": "effect",
    "network": "effect",
    "network.certificates": "decision",
    "processes": "effect",
    "disk.real_paths": "decision",
    "disk.safe_path": "decision",
    "core": "value",
    "core.ports": "port",
}

# Packages from outside and the parts of the standard library that act on the machine, and who may know them.
MAY_USE = {
    "PIL": ("smoke_test.image", "smoke_test.image_figures", "ui.closing_card"),
    "cryptography": ("signing.ec_keys",),
    "huggingface_hub": (
        "files.hub_cache",
        "files.hub_facts",
        "commands.rehearse",
    ),  # the rehearsal checks with the real client
    "libtorrent": ("files.peers",),
    "oras": ("oci.registry",),
    "packaging": ("comfyui.install_plan", "comfyui.known_bad", "environment", "torch.select", "machine.readings"),
    "platformdirs": ("disk.locations",),
    "psutil": ("comfyui.server", "machine.memory_limits", "processes", "smoke_test.vram"),
    "pynvml": ("machine.nvml", "smoke_test.vram"),
    "requests": ("comfyui.checkout", "comfyui.server", "files.download", "network", "oci.push", "oci.registry"),
    "rich": ("ui",),
    "shutil": ("disk", "comfyui", "environment", "machine", "smoke_test", "rehearsal", "ui"),
    "subprocess": ("comfyui.server", "machine.process", "processes", "smoke_test.diffusers_script"),
    "textual_image": ("ui.closing_card",),
    "tomli": ("cli.config_file",),
    "tqdm": ("ui",),
    "truststore": ("network.system_store",),
    "urllib3": ("files.download", "network", "oci.registry"),
    "websockets": ("comfyui.server",),
    "yaml": ("manifest", "comfyui.model_paths"),
}

# fmt: off
IMPURE = frozenset({
    "asyncio", "ctypes", "datetime", "fcntl", "ftplib", "getpass", "glob", "http.client", "http.server", "logging",
    "mmap", "msvcrt", "multiprocessing", "os", "platform", "random", "secrets", "shutil", "signal", "socket", "sqlite3",
    "ssl", "subprocess", "tempfile", "threading", "time", "urllib.request", "winreg",
})
# fmt: on
IMPURE_CALLS = frozenset({"breakpoint", "eval", "exec", "input", "open", "print"})

# What changes a disk may be called in disk/ alone; the few others that do, each with its reason.
MAY_CHANGE_A_DISK = {
    "bundle.start_script": "runs where nothing of ours is installed",
    "cli.main": "opens the null device where a standard stream is closed",
    "files.peers": "libtorrent writes what peers send into a staging folder by itself",
    "smoke_test.diffusers_script": "runs in another Python, where nothing of ours is installed",
    "ui.stream": "opens the null device where a reader of ours has left",
}
# fmt: off
CHANGES_OF = {
    "os": frozenset({
        "chmod", "chown", "copy_file_range", "fchmod", "fchown", "ftruncate", "lchmod", "lchown", "link", "makedirs",
        "mkdir", "mkfifo", "mknod", "posix_fallocate", "pwrite", "pwritev", "remove", "removedirs", "rename", "renames",
        "replace", "rmdir", "symlink", "truncate", "unlink", "utime",
    }),
    "shutil": frozenset({
        "chown", "copy", "copy2", "copyfile", "copyfileobj", "copymode", "copystat", "copytree", "make_archive", "move",
        "rmtree", "unpack_archive",
    }),
}
CHANGES_OF_A_PATH = frozenset({
    "chmod", "hardlink_to", "lchmod", "mkdir", "rename", "rmdir", "symlink_to", "touch", "unlink",
})
# fmt: on
CHANGES_WITH_ONE_ARGUMENT = frozenset({"replace", "write_bytes", "write_text"})  # those of `Root` have two


def module_of(path: Path) -> str:
    """Return the name inside the package: ``files.engine``; the package itself is ``provisioner``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "provisioner"


STANDARD_LIBRARY = sys.stdlib_module_names | {"tomllib"}  # which Python 3.10 does not have
MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def covers(name: str, module: str) -> bool:
    """Whether `name` is the module or a folder above it."""
    return module == name or module.startswith(name + ".")


def layer_of(module: str) -> str | None:
    """Return the layer of a module, None where the table does not know it."""
    names = [name for name in LAYER_OF if covers(name, module)]
    return LAYER_OF[max(names, key=len)] if names else None


def room_of(module: str) -> str:
    """Return the folder of the package a module lies in."""
    return module.partition(".")[0]


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
    """Return the module of ours that an import such as ``provisioner.core.models.Gpu`` reaches."""
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
    if other is None:
        return None
    is_near = room_of(target) in {room_of(module), "disk", "network", "processes"} or target == "manifest.shipped"
    if other in MAY_IMPORT[layer].own and (layer != "effect" or other != "effect" or is_near):
        return None
    return f"{module} ({layer}) may not import {target} ({other})"


def complaint_about_foreign(module: str, layer: str, name: str) -> str | None:
    """Say why `module` may not import `name` from outside the package, or return None."""
    top = name.partition(".")[0]
    if top in STANDARD_LIBRARY:
        if MAY_IMPORT[layer].is_pure and any(covers(impure, name) for impure in IMPURE):
            return f"{module} is pure and imports {name}"
        if top not in MAY_USE:
            return None
    if layer in {"script", "edge"} and top in STANDARD_LIBRARY:
        return None
    if layer == "script" or any(covers(user, module) for user in MAY_USE.get(top, ())):
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


def changes_of_a_disk(source: str) -> list[str]:
    """Return the calls of a module that change a disk, or could: line and name."""
    found: list[str] = []
    tree = ast.parse(source)
    writing = ("tempfile", "libtorrent")  # which write by themselves
    found += [
        f"{line}: imports {name}" for line, name in imports_of(tree) if any(covers(each, name) for each in writing)
    ]
    for line, name in imports_of(tree):
        module, _, function = name.rpartition(".")
        found += [f"{line}: imports {name}"] if function in CHANGES_OF.get(module, ()) else []
    for node in ast.walk(tree):
        change = _change(node)
        found += [f"{node.lineno}: {change}"] if change is not None and isinstance(node, ast.expr) else []
    return found


def _change(node: ast.AST) -> str | None:
    """Return the name of what changes a disk in one node of a syntax tree."""
    owner = node.value.id if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else ""
    if isinstance(node, ast.Attribute) and node.attr in CHANGES_OF.get(owner, ()):  # called, or handed on to be called
        return f"{owner}.{node.attr}"
    if not isinstance(node, ast.Call):
        return None
    words = [each.value for each in node.args if isinstance(each, ast.Constant)]
    if isinstance(node.func, ast.Name):
        if node.func.id == "getattr" and isinstance(node.args[0], ast.Name):
            return next((str(word) for word in words if word in CHANGES_OF.get(node.args[0].id, ())), None)
        return "open" if node.func.id == "open" and _writes(node, 1) else None
    if not isinstance(node.func, ast.Attribute):
        return None
    name, owner = node.func.attr, ast.unparse(node.func.value)
    if owner in CHANGES_OF:
        return "os.open" if name == "open" and ast.unparse(node.args[1]) != "os.O_RDONLY" else None
    if name in CHANGES_OF_A_PATH or (name in CHANGES_WITH_ONE_ARGUMENT and len(node.args) == 1 and not node.keywords):
        return name
    return "open" if name == "open" and _writes(node, 1 if owner in {"io", "tarfile", "zipfile"} else 0) else None


def _writes(node: ast.Call, position: int) -> bool:
    """Whether a call of open writes; a mode that comes from elsewhere may be anything."""
    given = [each.value for each in node.keywords if each.arg == "mode"] + list(node.args[position : position + 1])
    parts = [part for each in given for part in ast.walk(each)]
    modes = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    is_writing = any(re.fullmatch(r"[rbt]*[wax+][rbt+]*", mode) for mode in modes)
    return is_writing or any(isinstance(part, ast.Name) and "mode" in part.id for part in parts)


def arrows() -> dict[tuple[str, str], list[str]]:
    """Return each arrow between two rooms with the imports that make it."""
    found: dict[tuple[str, str], list[str]] = {}
    for module, path in MODULES.items():
        for line, name in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            if covers("provisioner", name):
                target = own_module(name)
                if room_of(target) not in {room_of(module), "provisioner"} and module != "provisioner":
                    found.setdefault((room_of(module), room_of(target)), []).append(f"{module}:{line} -> {target}")
    return found


def floor_of(room: str) -> int:
    """Return how far down a room is."""
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    assert complaints(module_of(path), path.read_text(encoding="utf-8")) == []


def test_only_the_room_for_it_changes_a_disk() -> None:
    found = {name: changes_of_a_disk(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    changing = {name: lines for name, lines in found.items() if lines and not covers("disk", name)}
    assert {name: lines for name, lines in changing.items() if name not in MAY_CHANGE_A_DISK} == {}
    assert set(MAY_CHANGE_A_DISK) <= set(changing)  # a reason that is not needed any more goes


@pytest.mark.parametrize(
    "source",
    [
        "os.unlink(path)",
        "run(os.rename)",
        "from os import replace",
        "from shutil import rmtree",
        "shutil.copy2(a, b)",
        "import tempfile",
        "import libtorrent",
        "getattr(os, 'pwrite', None)",
        "path.unlink(missing_ok=True)",
        "path.replace(other)",
        "path.write_text('x')",
        "path.open('ab')",
        "path.open(mode)",
        "path.open(mode='r+')",
        "open(path, 'w')",
        "io.open(path, 'w')",
        "os.open(path, os.O_RDONLY | os.O_CREAT)",
    ],
)
def test_what_changes_a_disk_is_found(source: str) -> None:
    assert len(changes_of_a_disk(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "root.write_text(path, text)",
        "root.replace(old, new)",
        "text.replace('a', 'b')",
        "replace(value, field=1)",
        "path.open('rb')",
        "path.open()",
        "open(path)",
        "tarfile.open(path, 'r:gz')",
        "os.open(path, os.O_RDONLY)",
        "os.stat(path)",
    ],
)
def test_what_only_reads_passes(source: str) -> None:
    assert changes_of_a_disk(source) == []


def test_no_import_goes_to_an_upper_floor() -> None:
    upward = {rooms: said for rooms, said in arrows().items() if floor_of(rooms[0]) > floor_of(rooms[1])}
    assert upward == {}


def test_no_circle_of_rooms() -> None:
    below: dict[str, set[str]] = {}
    for room, target in arrows():
        below.setdefault(room, set()).add(target)
    assert list(TopologicalSorter(below).static_order())  # raises CycleError, which names the circle


def test_the_table_names_nothing_that_is_gone() -> None:
    known = {name for module in MODULES for name in (module, *(module.rpartition(".")[:1]))}
    assert set(LAYER_OF) - known == set()
    assert {user for users in MAY_USE.values() for user in users} - known == set()
    assert {room for floor in FLOORS for room in floor} == {room_of(module) for module in MODULES} - {"provisioner"}


def test_no_two_modules_have_the_same_name() -> None:
    """A file of ``commands/`` is called as the command is typed; every other name is used once."""
    names = Counter(module.rpartition(".")[2] for module, path in MODULES.items() if path.name != "__init__.py")
    assert [name for name, times in names.items() if times > 1] == []


def test_a_room_has_only_a_sentence_in_its_init() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert isinstance(body[0], ast.Expr), path
        assert len(body) == (1 if path.parent != PACKAGE else 2), path  # the package itself has its version


def test_no_exemption_of_ruff_is_for_files_that_are_gone() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.partition("[tool.ruff.lint.per-file-ignores]\n")[2].partition("\n[")[0]
    written = re.findall(r'^"([^"]+)" = \[', table, re.MULTILINE)
    patterns = [name.replace("{bootstrap,klein_setup,run_checks,run_tests}", "bootstrap") for name in written]
    assert len(patterns) > 5
    assert [pattern for pattern in patterns if not list(ROOT.glob(pattern))] == []


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("files.planner", "import os", "files.planner is pure and imports os"),
        ("files.planner", "from os.path import join", "files.planner is pure and imports os.path.join"),
        ("files.planner", "def f():\n    from urllib.request import urlopen", "is pure and imports urllib.request"),
        ("files.planner", "from provisioner.core.ports import Store", "may not import core.ports (port)"),
        ("files.planner", "open('x')", "files.planner is pure and calls open()"),
        ("core.models", "from provisioner.files.planner import plan", "may not import files.planner (decision)"),
        ("files.engine", "from provisioner.files.store import patch", "may not import files.store.patch (effect)"),
        ("files.hub_cache", "import provisioner.machine.host", "(effect) may not import machine.host (effect)"),
        ("files.store.x", "from provisioner.files.engine import Engine", "may not import files.engine (flow)"),
        ("disk.locks", "import provisioner.files.store.patch", "disk.locks (effect) may not import"),
        ("machine.host", "import requests", "machine.host may not use requests"),
        ("files.engine", "import subprocess", "files.engine may not use subprocess"),
        ("ui.tables", "from provisioner.commands.session import Session", "may not import commands.session (edge)"),
        ("environment.probe_script", "from provisioner.core.models import Gpu", "may not import core.models (value)"),
        ("files.engine", "from . import errors", "files.engine imports relatively"),
        ("helpers", "", "helpers has no layer"),
    ],
)
def test_a_forbidden_import_is_named(module: str, source: str, said: str) -> None:
    assert [line for line in complaints(module, source) if said in line]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("files.planner", "from urllib.parse import urlsplit\nfrom provisioner.core.models import Gpu"),
        ("files.store.x", "from provisioner.files.store.patch import PatchPart\nimport os"),
        ("files.store.x", "from provisioner.disk.locks import hold_lock"),
        ("environment.probe_script", "import torch, json"),
        ("cli.main", "from provisioner.files.store.file_store import FileStore"),
        ("rehearsal.hub", "from provisioner.rehearsal.http_server import Listener\nimport socket"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert complaints(module, source) == []


def test_the_wheel_carries_only_data_from_manifests() -> None:
    allowed = {".yaml", ".json", ".md"}
    others = [path for path in (ROOT / "manifests").rglob("*") if path.is_file() and path.suffix not in allowed]
    assert others == []
    assert {path.name for path in (ROOT / "manifests").glob("*.json")} <= {"schema.json"}
