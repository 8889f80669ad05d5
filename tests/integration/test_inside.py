"""Whether the folders of a destination can be used: which links are followed, and what else may be in the way."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath

import pytest

from provisioner.core.errors import NotWritableError, PathOutsideRootError, UnreadableError
from provisioner.core.models import ComfyFile, Destination, HubBlob
from provisioner.disk.root import Root
from provisioner.files.store.inside import check_inside
from tests.support.folders import link_folder, make

is_windows = sys.platform == "win32"


def check(destination: Destination, follow_links: bool) -> None:
    check_inside(destination, Root(destination.root, follows=lambda _link, _real: follow_links))


def place(root: Path, relative: str = "vae/x.safetensors") -> ComfyFile:
    return ComfyFile(root=root, relative=PurePosixPath(relative))


@pytest.mark.parametrize("follow_links", [False, True])
def test_what_is_plain_or_not_there_yet_is_inside(tmp_path: Path, follow_links: bool) -> None:
    root = make(tmp_path / "models", "vae/", "loras/x.safetensors")
    for relative in ("vae/x.safetensors", "new/deep/x.safetensors", "loras/x.safetensors", "x.safetensors"):
        check(place(root, relative), follow_links)
    check(place(tmp_path / "not" / "there"), follow_links)


def test_path_cannot_leave_the_root_through_a_link(tmp_path: Path) -> None:
    root = make(tmp_path / "models")
    outside = make(tmp_path / "outside", "deep/")
    link_folder(root / "vae", outside)
    for relative in ("vae/x.safetensors", "vae/deep/x.safetensors", "vae/new/x.safetensors"):
        with pytest.raises(PathOutsideRootError) as caught:
            check(place(root, relative), False)
        assert str(root / "vae") in str(caught.value)
        assert str(outside.resolve()) in str(caught.value)
        assert "--follow-links" in (caught.value.hint or "")
        check(place(root, relative), True)


def test_a_link_that_stays_inside_and_a_root_that_is_a_link_are_fine(tmp_path: Path) -> None:
    root = make(tmp_path / "real" / "models", "diffusion_models/")
    link_folder(root / "unet", root / "diffusion_models")
    link_folder(tmp_path / "link", tmp_path / "real")
    for models in (root, tmp_path / "link" / "models"):
        check(place(models, "unet/x.safetensors"), False)


def test_a_neighbour_whose_name_begins_alike_is_outside(tmp_path: Path) -> None:
    root = make(tmp_path / "models")
    link_folder(root / "vae", make(tmp_path / "models2"))
    with pytest.raises(PathOutsideRootError):
        check(place(root), False)


@pytest.mark.skipif(is_windows, reason="a link to a file needs a privilege there")
def test_a_link_in_the_files_own_place_is_allowed(tmp_path: Path) -> None:
    root = make(tmp_path / "models", "vae/")
    make(tmp_path / "outside", "x.safetensors")
    (root / "vae" / "x.safetensors").symlink_to(tmp_path / "outside" / "x.safetensors")
    check(place(root), False)


@pytest.mark.skipif(is_windows, reason="relative links need a privilege there")
def test_a_link_that_climbs_is_outside(tmp_path: Path) -> None:
    root = make(tmp_path / "models", "deep/er/")
    (root / "deep" / "er" / "vae").symlink_to("../../..")
    with pytest.raises(PathOutsideRootError):
        check(place(root, "deep/er/vae/x.safetensors"), False)


@pytest.mark.parametrize("follow_links", [False, True])
def test_a_dead_link_on_the_way_is_reported(tmp_path: Path, follow_links: bool) -> None:
    root = make(tmp_path / "models")
    gone = make(tmp_path / "gone")
    link_folder(root / "vae", gone)
    gone.rmdir()
    with pytest.raises(UnreadableError, match="which does not exist"):
        check(place(root), follow_links)


def test_a_folder_that_another_thread_makes_meanwhile_is_no_dead_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, stat = make(tmp_path / "models"), Path.stat
    made: list[Path] = []

    def late(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path == root / "vae" and not made:
            made.append(path)
            path.mkdir()
            raise FileNotFoundError(path)  # as it was a moment ago
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", late)
    check(place(root), False)
    assert made == [root / "vae"]


@pytest.mark.skipif(is_windows, reason="junctions do not go round in circles")
@pytest.mark.parametrize("follow_links", [False, True])
def test_a_circle_of_links_is_said(tmp_path: Path, follow_links: bool) -> None:
    root = make(tmp_path / "models")
    (root / "vae").symlink_to("loop")
    (root / "loop").symlink_to("vae")
    with pytest.raises(UnreadableError, match="cannot be followed"):
        check(place(root), follow_links)


@pytest.mark.parametrize("relative", ["vae/x.safetensors", "vae/deep/x.safetensors"])
def test_a_file_where_a_folder_is_needed_is_said(tmp_path: Path, relative: str) -> None:
    root = make(tmp_path / "models", "vae")
    with pytest.raises(NotWritableError, match="vae is a file"):
        check(place(root, relative), False)


@pytest.mark.parametrize("relative", ["../x.safetensors", "vae/../../x.safetensors"])
def test_a_climbing_destination_is_refused_even_with_links_followed(tmp_path: Path, relative: str) -> None:
    with pytest.raises(PathOutsideRootError):
        check(place(make(tmp_path / "models"), relative), True)


def blob(root: Path) -> HubBlob:
    return HubBlob(root=root, revision="0" * 40, filename="vae/x.safetensors", is_lfs=True)


@pytest.mark.parametrize("folder", ["blobs", "snapshots"])
def test_the_folders_of_a_cache_are_checked_both(tmp_path: Path, folder: str) -> None:
    root = make(tmp_path / "models--a--b")
    check(blob(root), False)
    link_folder(root / folder, make(tmp_path / "outside"))
    with pytest.raises(PathOutsideRootError, match=folder):
        check(blob(root), False)


@pytest.mark.skipif(is_windows, reason="a link to a file needs a privilege there")
def test_the_links_a_cache_is_made_of_are_allowed(tmp_path: Path) -> None:
    root = make(tmp_path / "models--a--b", "blobs/abc", f"snapshots/{'0' * 40}/vae/")
    blob(root).path.symlink_to(Path("../../../blobs/abc"))
    check(blob(root), False)


def test_checking_follows_and_creates_nothing(tmp_path: Path) -> None:
    root = make(tmp_path / "models", "vae/")
    before = sorted(tmp_path.rglob("*"))
    check(place(root, "new/deep/x.safetensors"), True)
    assert sorted(tmp_path.rglob("*")) == before
