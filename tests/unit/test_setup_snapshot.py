"""What a snapshot says: written and read, which ones stay, and what is told of what could not be brought back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from provisioner.comfyui.checkout_models import NodePack
from provisioner.environment.package_list import ListedPackage, PackageList
from provisioner.snapshot.setup_snapshot import (
    KeptComfyUI,
    KeptEnvironment,
    KeptFile,
    KeptImage,
    OnShelf,
    SetupSnapshot,
    is_snapshot_name,
    packages_not_restored,
    packs_not_restored,
    parse_snapshot_text,
    snapshot_text,
    superfluous,
)
from provisioner.torch.builds import TorchSet

NAME = "20261127-031522"
EINOPS = ListedPackage(
    name="einops", version="0.8.1", origin="application", file_name="einops-0.8.1-py3-none-any.whl", sha256="e" * 64
)
WHOLE = SetupSnapshot(
    name=NAME,
    taken_at="2026-11-27T03:15:22Z",
    reason="the test image was right",
    klein_setup="0.1.0",
    kind="comfyui",
    target="/c",
    manifest_id="flux2-klein-4b",
    manifest_sha256="a" * 64,
    manifest_argument="flux2-klein-4b",
    set_id="fp8",
    comfyui=KeptComfyUI(version="0.33.0", commit="b" * 40, tree="c" * 40, branch="feature/x", has_local_changes=False),
    node_packs=(NodePack(name="pack", kind="git", commit="d" * 40, branch="main"), NodePack(name="x.py", kind="file")),
    environment=KeptEnvironment(
        path="/c/.venv",
        python_version="3.12.3",
        torch_backend="cu130",
        set=TorchSet(torch="2.15.0", torchvision="0.29.2", torchaudio=None),
        packages=PackageList(made_at="2026-11-27T03:15:22Z", packages=(EINOPS,)),
        others=(("numpy", "2.0"),),
    ),
    files=(KeptFile(label="vae/vae.safetensors", size=5, sha256="f" * 64),),
    image=KeptImage(sha256="0" * 64, seed=7, width=256, height=256, device="cpu"),
)
SPARE = replace(WHOLE, comfyui=None, node_packs=(), environment=None, files=(), image=None)


@pytest.mark.parametrize(
    "snapshot",
    [
        WHOLE,
        SPARE,
        replace(WHOLE, environment=replace(WHOLE.environment, packages=None) if WHOLE.environment else None),
        replace(SPARE, comfyui=KeptComfyUI(version=None, commit=None, tree=None, branch=None, has_local_changes=None)),
    ],
)
def test_what_is_written_is_read_back(snapshot: SetupSnapshot) -> None:
    assert parse_snapshot_text(snapshot_text(snapshot), name=NAME) == snapshot


DAMAGES: list[tuple[tuple[str, ...], object]] = [
    (("schema_version",), 2),
    (("name",), "20261127-031523"),
    (("kind",), "x"),
    (("manifest_sha256",), "A" * 64),
    (("files",), {}),
    (("files", "0", "size"), -1),
    (("files", "0", "sha256"), "../x"),
    (("comfyui", "commit"), "--upload-pack=x"),
    (("comfyui", "branch"), "-x"),
    (("node_packs", "0", "name"), "../.."),
    (("node_packs", "0", "name"), ".."),
    (("node_packs", "0", "name"), "a/b"),
    (("node_packs", "0", "kind"), "x"),
    (("node_packs", "0", "commit"), "HEAD"),
    (("environment", "packages"), {}),
    (("environment", "set", "torch"), 2),
    (("environment", "others"), [["numpy"]]),
    (("image", "seed"), "7"),
]


@pytest.mark.parametrize(
    ("where", "value"), DAMAGES, ids=lambda each: "/".join(each) if isinstance(each, tuple) else ""
)
def test_what_no_run_of_ours_wrote_is_refused(where: tuple[str, ...], value: object) -> None:
    document: Any = json.loads(snapshot_text(WHOLE))
    inner = document
    for key in where[:-1]:
        inner = inner[int(key)] if key.isdigit() else inner[key]
    inner[where[-1]] = value
    assert isinstance(parse_snapshot_text(json.dumps(document), name=NAME), str)


@pytest.mark.parametrize("text", ["", "[]", "{", "\ud800", b"\xff"])
def test_what_is_no_json_object_is_refused(text: str | bytes) -> None:
    assert parse_snapshot_text(text, name=NAME) == "it is no JSON object"


def test_only_a_name_of_a_snapshot_is_one() -> None:
    assert [each for each in (NAME, f"{NAME}-2", "x", f"../{NAME}", f"{NAME}.json", "") if is_snapshot_name(each)] == [
        NAME,
        f"{NAME}-2",
    ]


def test_the_same_setup_is_the_same_whenever_it_was_seen() -> None:
    other = replace(WHOLE, name="x", taken_at="y", reason="z", image=None)
    assert WHOLE.is_same_setup(other)
    assert (WHOLE.is_proven, other.is_proven) == (True, False)
    assert not WHOLE.is_same_setup(replace(WHOLE, set_id="bf16"))
    assert WHOLE.is_about("comfyui", "/c")
    assert not WHOLE.is_about("hf_cache", "/c")
    assert WHOLE.environment is not None
    assert WHOLE.environment.python_minor == "3.12"


def on_shelf(number: int, *, is_proven: bool = False, target: str = "/c", size: int = 10) -> OnShelf:
    snapshot = replace(WHOLE if is_proven else SPARE, target=target)
    return OnShelf(name=f"20261127-0000{number:02}", size=size, snapshot=snapshot)


def numbers(names: list[str]) -> list[int]:
    return [int(each[-2:]) for each in names]


def test_the_oldest_go_and_the_last_that_was_proven_of_each_folder_stays() -> None:
    shelf = [
        on_shelf(1, is_proven=True),
        on_shelf(2, is_proven=True),
        on_shelf(3, is_proven=True, target="/d"),
        OnShelf(name="20261127-000004", size=10, snapshot=None, problem="damaged"),
        on_shelf(5),
        on_shelf(6),
    ]
    assert superfluous(shelf, most=6) == []
    assert numbers(superfluous(shelf, most=5)) == [1]
    assert numbers(superfluous(shelf, most=1)) == [1, 4, 5]  # 2 and 3 are proven, 6 is the newest
    assert numbers(superfluous(shelf, most=20, most_bytes=35)) == [1, 4, 5]
    assert superfluous([], most=0) == []
    assert superfluous([on_shelf(1, size=99)], most_bytes=10) == []


def test_custom_nodes_that_are_others_are_told_each_with_its_reason() -> None:
    git, folder = NodePack(name="a", kind="git", commit="a" * 40, url="https://x.example/a"), NodePack
    then = (
        git,
        replace(git, name="gone"),
        folder(name="b", kind="folder", version="1.0"),
        folder(name="c", kind="folder"),
        folder(name="gone.py", kind="file"),
        replace(git, name="changed", has_local_changes=True),
        replace(git, name="d"),
    )
    now = (
        replace(git, commit="b" * 40, why_not_moved="files in it were changed"),
        folder(name="b", kind="folder", version="2.0"),
        folder(name="c", kind="folder", version="1.0"),
        replace(git, name="changed"),
        replace(git, name="d", commit="b" * 40),
        folder(name="new", kind="folder"),
    )
    assert packs_not_restored(then, now) == (
        "The custom node a was at aaaaaaaaaaaa and is not: files in it were changed.",
        "The custom node gone is gone; klein-setup fetches none. Install it again from https://x.example/a at "
        f"{'a' * 40}.",
        "The custom node b was version 1.0 and is 2.0: without git it cannot be moved back.",
        "The custom node c was version unknown and is 1.0: without git it cannot be moved back.",
        "The custom node gone.py is gone; klein-setup fetches none. Install it again.",
        "Files of the custom node changed had been changed; the changes were not kept.",
        "The custom node d was at aaaaaaaaaaaa and is not: it could not be moved.",
        "The custom node new is newer than the snapshot; it stays.",
    )
    assert packs_not_restored(then[:1], then[:1]) == ()


def test_packages_of_somebody_else_that_are_others_are_told() -> None:
    told = packages_not_restored([("numpy", "1.0"), ("same", "1"), ("gone", "2")], [("numpy", "2.0"), ("same", "1")])
    assert [each.split(":")[0] for each in told] == [
        "The package numpy 1.0 was not installed by klein-setup and is 2.0",
        "The package gone 2 was not installed by klein-setup and is gone",
    ]
