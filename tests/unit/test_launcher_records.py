"""What the programs that install ComfyUI wrote down, on computers that are described; no file is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from provisioner.comfyui.launcher_records import Installed, recorded_trees
from provisioner.core.models import OperatingSystem

HOME = Path("/home/Jürgen")
CONFIG: Mapping[OperatingSystem, Path] = {
    "windows": HOME / "AppData/Roaming",
    "macos": HOME / "Library/Application Support",
    "linux": HOME / ".config",
}


def trees(records: Mapping[Path, object], system: OperatingSystem, installed: tuple[Installed, ...] = ()) -> list[Path]:
    texts = {path: each if isinstance(each, str) else json.dumps(each) for path, each in records.items()}
    environ = {"XDG_DATA_HOME": "/data"} if system == "linux" else {}
    found = recorded_trees(
        lambda path: texts.get(path), HOME, environ, system, drives=(Path("D:/"),), installed=installed
    )
    usual = recorded_trees(lambda path: None, HOME, environ, system, drives=(Path("D:/"),))
    return [each for each in found if each not in usual]


@pytest.mark.parametrize(
    ("system", "file"),
    [
        ("windows", CONFIG["windows"] / "Comfy Desktop/installations.json"),
        ("macos", CONFIG["macos"] / "Comfy Desktop/installations.json"),
        ("linux", Path("/data/comfyui-desktop-2/installations.json")),
    ],
)
def test_comfy_desktop_has_a_record_for_each_installation(system: OperatingSystem, file: Path) -> None:
    windows = system == "windows"
    records = [
        {"sourceId": "cloud", "installPath": "/cloud"},
        {"sourceId": "standalone", "installPath": "C:\\Users\\Jürgen\\A" if windows else "/home/Jürgen/A"},
        {"sourceId": "x", "installPath": None},
        {"sourceId": "x", "adopted": True, "installPath": "/apps/B", "adoptedBaseDir": "/home/Jürgen/Old"},
    ]
    first = Path("C:/Users/Jürgen/A/ComfyUI" if windows else "/home/Jürgen/A/ComfyUI")
    assert trees({file: records}, system) == [first, Path("/apps/B/ComfyUI"), Path("/home/Jürgen/Old")]


@pytest.mark.parametrize("system", ["windows", "macos", "linux"])
def test_the_older_desktop_names_its_base_folder(system: OperatingSystem) -> None:
    file = CONFIG[system] / "ComfyUI/config.json"
    path = "E:\\AI\\ComfyUI" if system == "windows" else "/ai/ComfyUI"
    assert trees({file: {"basePath": path}}, system) == [Path(path.replace("\\", "/"))]


def test_stability_matrix_has_its_library_elsewhere_and_its_packages_under_any_name() -> None:
    packages = [
        {"PackageName": "ComfyUI", "LibraryPath": "Packages\\My Comfy"},
        {"PackageName": "Fooocus", "LibraryPath": "Packages\\Fooocus"},
        {"PackageName": "ComfyUI"},
    ]
    records = {
        CONFIG["windows"] / "StabilityMatrix/library.json": {"LibraryPath": "D:\\SM"},
        Path("D:/SM/settings.json"): {"InstalledPackages": packages},
    }
    assert trees(records, "windows") == [Path("D:/SM/Packages/My Comfy")]


def test_a_portable_stability_matrix_keeps_its_data_beside_the_program() -> None:
    packages = {"InstalledPackages": [{"PackageName": "ComfyUI", "LibraryPath": "Packages\\ComfyUI"}]}
    records = {Path("D:/StabilityMatrix/Data/settings.json"): packages}
    assert trees(records, "windows") == [Path("D:/StabilityMatrix/Data/Packages/ComfyUI")]


def test_pinokio_and_swarmui_have_one_folder_for_it() -> None:
    found = recorded_trees(lambda path: None, HOME, {}, "linux")
    assert {HOME / "pinokio/api/comfy.git/app", HOME / "SwarmUI/dlbackend/comfy/ComfyUI"} <= set(found)


def test_what_windows_lists_is_looked_at_where_it_is_about_comfyui() -> None:
    installed = (Installed("ComfyUI 0.4.60", Path("D:/Apps/ComfyUI")), Installed("Notepad++", Path("C:/Notepad")))
    found = trees({}, "windows", installed)
    assert {Path("D:/Apps/ComfyUI"), Path("D:/Apps/ComfyUI/ComfyUI")} <= set(found)
    assert not [each for each in found if "Notepad" in str(each)]


@pytest.mark.parametrize(
    "record",
    [
        "",
        "{",
        "[" * 100_000,
        "7",
        {"basePath": 7},
        {"basePath": "ComfyUI"},
        {"basePath": "..\\ComfyUI"},
        {"basePath": "C:ComfyUI"},
        {"basePath": "C:/a\0b"},
        {"basePath": ""},
    ],
)
def test_a_record_of_another_form_names_nothing(record: object) -> None:
    text = record if isinstance(record, str) else json.dumps(record)
    files = {CONFIG["windows"] / "ComfyUI/config.json": text}
    for name in ("Comfy Desktop/installations.json", "StabilityMatrix/library.json", "StabilityMatrix/settings.json"):
        files[CONFIG["windows"] / name] = text
    assert trees(files, "windows") == []


def test_a_record_may_begin_with_a_byte_order_mark() -> None:
    file = CONFIG["windows"] / "ComfyUI/config.json"
    assert trees({file: '\ufeff{"basePath": "C:/ComfyUI"}'}, "windows") == [Path("C:/ComfyUI")]
