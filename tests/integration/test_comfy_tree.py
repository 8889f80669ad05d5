"""Which real folders are recognised as ComfyUI trees."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from provisioner.comfyui.tree import open_tree
from provisioner.core.errors import UnreadableError, UsageError
from provisioner.core.models import Artifact, ComfyTarget, FolderRoots
from provisioner.files.layout import destination_for
from tests.support.folders import link_folder, make
from tests.support.wine import needs

is_windows = sys.platform == "win32"


def open_it(given: Path, *extra_configs: Path) -> ComfyTarget:
    return open_tree(given, home=given.parent / "home", environ={}, extra_configs=extra_configs)


def roots(target: ComfyTarget, folder: str = "vae") -> FolderRoots:
    return next(each for each in target.folders if each.folder == folder)


VAE = Artifact(id="vae", role="vae", name="flux2-vae.safetensors", folder="vae", size=1, sha256="0" * 64, sources=())

CHECKOUT = ("main.py", "folder_paths.py", "models/vae/", "comfy/")

# --- which folder is a tree ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "given", "models"),
    [
        (CHECKOUT, ".", "models"),
        (("main.py", "folder_paths.py"), ".", "models"),
        (CHECKOUT, "models", "models"),
        (("main.py", "folder_paths.py", "models/"), "models", "models"),
        (("main.py", "folder_paths.py"), "models", "models"),
        (("ComfyUI/main.py", "ComfyUI/folder_paths.py", "python_embeded/"), ".", "ComfyUI/models"),
        (("models/", "custom_nodes/", "user/", "input/", "output/"), ".", "models"),
        (("models/odd/", "user/"), ".", "models"),
        (("models/checkpoints/",), ".", "models"),
        (("models/.DS_Store",), ".", "models"),
        (("diffusion_models/",), ".", "."),
        (("checkpoints/", "notes.txt"), ".", "."),
        (("vae/", ".klein-setup/"), ".", "."),
        (("models/odd/", "models/.klein-setup/"), ".", "models"),
        (("odd/", ".klein-setup/lock"), ".", "."),
    ],
)
def test_recognises_a_tree(tmp_path: Path, entries: tuple[str, ...], given: str, models: str) -> None:
    root = make(tmp_path / "tree", *entries)
    target = open_it(root / given)
    assert (target.models, target.is_new, target.config) == (root / models, False, None)
    assert destination_for(VAE, target).path == root / models / "vae" / VAE.name


@pytest.mark.parametrize(
    "entries",
    [
        None,
        (),
        (".DS_Store", "desktop.ini"),
        ("lost+found/",),
        (".klein-setup/lock",),
        (".venv/bin/python", "~venv/", ".venv.klein-setup/"),
    ],
)
def test_a_missing_or_empty_folder_is_a_new_tree(tmp_path: Path, entries: tuple[str, ...] | None) -> None:
    given = tmp_path / "new"
    if entries is not None:
        make(given, *entries)
    target = open_it(given)
    assert (target.models, target.is_new) == (given / "models", True)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (("holiday.jpg",), ("not a ComfyUI tree", "main.py", "python_embeded", "diffusion_models", "new or empty")),
        (("models/Stable-diffusion/x.ckpt",), ("not a ComfyUI tree",)),
        (("webui.py", "models/VAE/"), ("WebUI",)),
        (("model_index.json", "vae/", "unet/"), ("diffusers", "--hf-cache")),
        (("invokeai.yaml", "models/"), ("InvokeAI",)),
        (("ComfyUI/main.py", "ComfyUI/folder_paths.py", "notes.txt"), ("Name", "ComfyUI instead")),
        (("models--org--name/",), ("--hf-cache",)),
        (("vae",), ("not a ComfyUI tree",)),
        (("main.py", "folder_paths.py", "models"), ("models", "is a file")),
    ],
)
def test_refuses_what_is_no_tree_and_says_what_was_looked_for(
    tmp_path: Path, entries: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        open_it(make(tmp_path / "tree", *entries))
    said = f"{caught.value} {caught.value.hint}"
    assert all(word in said for word in words), said


@needs("no folder")
def test_a_file_is_no_tree(tmp_path: Path) -> None:
    make(tmp_path, "x.safetensors")
    with pytest.raises(UsageError, match="not a folder"):
        open_it(tmp_path / "x.safetensors")


def test_the_home_sign_is_understood(tmp_path: Path) -> None:
    make(tmp_path / "home" / "ComfyUI", *CHECKOUT)
    target = open_tree(Path("~/ComfyUI"), home=tmp_path / "home", environ={})
    assert target.models == tmp_path / "home" / "ComfyUI" / "models"


def test_opening_writes_nothing(tmp_path: Path) -> None:
    open_it(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_models_folder_on_a_drive_that_is_missing_is_reported(tmp_path: Path) -> None:
    root = make(tmp_path / "tree", "main.py", "folder_paths.py")
    make(tmp_path / "drive")
    link_folder(root / "models", tmp_path / "drive")
    (tmp_path / "drive").rmdir()
    with pytest.raises(UnreadableError, match="which does not exist") as caught:
        open_it(root)
    assert "Mount" in (caught.value.hint or "")


def test_a_tree_behind_a_dead_link_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    make(tmp_path / "drive")
    link_folder(tmp_path / "tree", tmp_path / "drive")
    (tmp_path / "drive").rmdir()
    with pytest.raises(UnreadableError, match="which does not exist"):
        open_it(tmp_path / "tree")


@pytest.mark.skipif(is_windows or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="root and Windows read it")
def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    root = make(tmp_path / "tree")
    root.chmod(0)
    try:
        with pytest.raises(UnreadableError, match="cannot be read"):
            open_it(root)
    finally:
        root.chmod(0o755)


# --- the YAML files --------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_the_yaml_beside_main_py_and_then_the_others(tmp_path: Path) -> None:
    root = make(tmp_path / "tree", *CHECKOUT)
    first = write(root / "extra_model_paths.yaml", "a:\n  base_path: ../one\n  vae: vae\n")
    second = write(tmp_path / "more.yaml", "b:\n  base_path: two\n  is_default: true\n  vae: models/vae\n")
    target = open_it(root, second)
    assert target.config == first
    assert roots(target).read == (
        tmp_path / "two" / "models" / "vae",
        root / "models" / "vae",
        tmp_path / "one" / "vae",
        root / "output" / "vae",
    )
    assert roots(target).write_root == tmp_path / "two" / "models"


def test_reads_only_the_name_comfyui_reads_and_only_beside_main_py(tmp_path: Path) -> None:
    yaml = "a:\n  is_default: true\n  vae: /else\n"
    checkout = make(tmp_path / "one", *CHECKOUT)
    write(checkout / "extra_model_paths.yml", yaml)
    base = make(tmp_path / "two", "models/", "user/")
    write(base / "extra_model_paths.yaml", yaml)
    for root in (checkout, base):
        target = open_it(root)
        assert target.config is None
        assert roots(target).write == root / "models" / "vae"


def test_a_models_folder_of_a_checkout_is_read_with_its_yaml(tmp_path: Path) -> None:
    root = make(tmp_path / "tree", *CHECKOUT)
    write(root / "extra_model_paths.yaml", "a:\n  base_path: ../one\n  vae: vae\n")
    assert tmp_path / "one" / "vae" in roots(open_it(root / "models")).read


def test_home_and_variables_reach_the_yaml(tmp_path: Path) -> None:
    yaml = write(tmp_path / "x.yaml", "a:\n  base_path: ~/m\n  vae: v\nb:\n  base_path: $STORE\n  vae: v\n")
    target = open_tree(
        tmp_path / "new", home=tmp_path / "h", environ={"STORE": str(tmp_path / "s")}, extra_configs=[yaml]
    )
    assert roots(target).read[1:3] == (tmp_path / "h" / "m" / "v", tmp_path / "s" / "v")
    assert target.config == yaml


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "does not exist"),
        (b"a:\n  vae: [x]\n", "line 2"),
        (b"\xff\xfea\x00:\x00", "not UTF-8"),
        (b"#" * (1024 * 1024 + 1), "larger than"),
    ],
)
def test_a_wrong_yaml_is_named(tmp_path: Path, data: bytes | None, words: str) -> None:
    yaml = tmp_path / "mine.yaml"
    if data is not None:
        yaml.write_bytes(data)
    with pytest.raises(UsageError, match=words) as caught:
        open_it(tmp_path / "new", yaml)
    assert "mine.yaml" in str(caught.value)


def test_a_yaml_that_is_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"mine\.yaml"):
        open_it(tmp_path / "new", make(tmp_path / "mine.yaml"))


def test_a_tree_reached_through_a_link_does_not_appear_twice(tmp_path: Path) -> None:
    real = make(tmp_path / "real", *CHECKOUT)
    text = f"a:\n  base_path: {real.resolve().as_posix()}\n  is_default: true\n  vae: models/vae\n"
    write(real / "extra_model_paths.yaml", text)
    link_folder(tmp_path / "link", real)
    target = open_it(tmp_path / "link")
    models = tmp_path / "link" / "models"
    assert roots(target).read == (models / "vae", tmp_path / "link" / "output" / "vae")
    assert (roots(target).write, roots(target).write_root) == (models / "vae", models)
