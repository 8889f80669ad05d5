"""Which real folders are recognised as ComfyUI trees, and which paths stay inside them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from provisioner.comfyui.tree import check_inside, open_tree
from provisioner.core.errors import NotWritableError, PathOutsideRootError, UnreadableError, UsageError
from provisioner.core.models import Artifact, ComfyFile, ComfyTarget, FolderRoots, HubBlob
from provisioner.files.layout import destination_for

is_windows = sys.platform == "win32"


def open_it(given: Path, *extra_configs: Path) -> ComfyTarget:
    return open_tree(given, home=given.parent / "home", environ={}, extra_configs=extra_configs)


def make(root: Path, *entries: str) -> Path:
    """Make files, and folders where a name ends in a slash."""
    root.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        path = root / entry
        if entry.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("", encoding="utf-8")
    return root


def link_folder(link: Path, real: Path) -> None:
    """Make a link to a folder as a user of this system would: on Windows a junction, which needs no privilege."""
    if is_windows:
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(real)], check=True, capture_output=True)
    else:
        link.symlink_to(real, target_is_directory=True)


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


# --- links -----------------------------------------------------------------------------------------------


def place(root: Path, relative: str = "vae/x.safetensors") -> ComfyFile:
    return ComfyFile(root=root, relative=PurePosixPath(relative))


@pytest.mark.parametrize("follow_links", [False, True])
def test_what_is_plain_or_not_there_yet_is_inside(tmp_path: Path, follow_links: bool) -> None:
    root = make(tmp_path / "models", "vae/", "loras/x.safetensors")
    for relative in ("vae/x.safetensors", "new/deep/x.safetensors", "loras/x.safetensors", "x.safetensors"):
        check_inside(place(root, relative), follow_links=follow_links)
    check_inside(place(tmp_path / "not" / "there"), follow_links=follow_links)


def test_path_cannot_leave_the_root_through_a_link(tmp_path: Path) -> None:
    root = make(tmp_path / "models")
    outside = make(tmp_path / "outside", "deep/")
    link_folder(root / "vae", outside)
    for relative in ("vae/x.safetensors", "vae/deep/x.safetensors", "vae/new/x.safetensors"):
        with pytest.raises(PathOutsideRootError) as caught:
            check_inside(place(root, relative), follow_links=False)
        assert str(root / "vae") in str(caught.value)
        assert str(outside.resolve()) in str(caught.value)
        assert "--follow-links" in (caught.value.hint or "")
        assert "extra_model_paths.yaml" in (caught.value.hint or "")
        check_inside(place(root, relative), follow_links=True)


def test_a_link_that_stays_inside_and_a_root_that_is_a_link_are_fine(tmp_path: Path) -> None:
    root = make(tmp_path / "real" / "models", "diffusion_models/")
    link_folder(root / "unet", root / "diffusion_models")
    link_folder(tmp_path / "link", tmp_path / "real")
    for models in (root, tmp_path / "link" / "models"):
        check_inside(place(models, "unet/x.safetensors"), follow_links=False)


def test_a_neighbour_whose_name_begins_alike_is_outside(tmp_path: Path) -> None:
    root = make(tmp_path / "models")
    link_folder(root / "vae", make(tmp_path / "models2"))
    with pytest.raises(PathOutsideRootError):
        check_inside(place(root), follow_links=False)


@pytest.mark.skipif(is_windows, reason="a link to a file needs a privilege there")
def test_a_link_in_the_files_own_place_is_allowed(tmp_path: Path) -> None:
    root = make(tmp_path / "models", "vae/")
    make(tmp_path / "outside", "x.safetensors")
    (root / "vae" / "x.safetensors").symlink_to(tmp_path / "outside" / "x.safetensors")
    check_inside(place(root), follow_links=False)


@pytest.mark.skipif(is_windows, reason="relative links need a privilege there")
def test_a_link_that_climbs_is_outside(tmp_path: Path) -> None:
    root = make(tmp_path / "models", "deep/er/")
    (root / "deep" / "er" / "vae").symlink_to("../../..")
    with pytest.raises(PathOutsideRootError):
        check_inside(place(root, "deep/er/vae/x.safetensors"), follow_links=False)


@pytest.mark.parametrize("follow_links", [False, True])
def test_a_dead_link_on_the_way_is_reported(tmp_path: Path, follow_links: bool) -> None:
    root = make(tmp_path / "models")
    gone = make(tmp_path / "gone")
    link_folder(root / "vae", gone)
    gone.rmdir()
    with pytest.raises(UnreadableError, match="which does not exist"):
        check_inside(place(root), follow_links=follow_links)


@pytest.mark.skipif(is_windows, reason="junctions do not go round in circles")
@pytest.mark.parametrize("follow_links", [False, True])
def test_a_circle_of_links_is_said(tmp_path: Path, follow_links: bool) -> None:
    root = make(tmp_path / "models")
    (root / "vae").symlink_to("loop")
    (root / "loop").symlink_to("vae")
    with pytest.raises(UnreadableError, match="cannot be followed"):
        check_inside(place(root), follow_links=follow_links)


@pytest.mark.parametrize("relative", ["vae/x.safetensors", "vae/deep/x.safetensors"])
def test_a_file_where_a_folder_is_needed_is_said(tmp_path: Path, relative: str) -> None:
    root = make(tmp_path / "models", "vae")
    with pytest.raises(NotWritableError, match="vae is a file"):
        check_inside(place(root, relative), follow_links=False)


@pytest.mark.parametrize("relative", ["../x.safetensors", "vae/../../x.safetensors"])
def test_a_climbing_destination_is_refused_even_with_links_followed(tmp_path: Path, relative: str) -> None:
    with pytest.raises(PathOutsideRootError):
        check_inside(place(make(tmp_path / "models"), relative), follow_links=True)


def blob(root: Path) -> HubBlob:
    return HubBlob(root=root, revision="0" * 40, filename="vae/x.safetensors", is_lfs=True)


@pytest.mark.parametrize("folder", ["blobs", "snapshots"])
def test_the_folders_of_a_cache_are_checked_both(tmp_path: Path, folder: str) -> None:
    root = make(tmp_path / "models--a--b")
    check_inside(blob(root), follow_links=False)
    link_folder(root / folder, make(tmp_path / "outside"))
    with pytest.raises(PathOutsideRootError, match=folder):
        check_inside(blob(root), follow_links=False)


@pytest.mark.skipif(is_windows, reason="a link to a file needs a privilege there")
def test_the_links_a_cache_is_made_of_are_allowed(tmp_path: Path) -> None:
    root = make(tmp_path / "models--a--b", "blobs/abc", f"snapshots/{'0' * 40}/vae/")
    blob(root).path.symlink_to(Path("../../../blobs/abc"))
    check_inside(blob(root), follow_links=False)


def test_checking_follows_and_creates_nothing(tmp_path: Path) -> None:
    root = make(tmp_path / "models", "vae/")
    before = sorted(tmp_path.rglob("*"))
    check_inside(place(root, "new/deep/x.safetensors"), follow_links=True)
    assert sorted(tmp_path.rglob("*")) == before
