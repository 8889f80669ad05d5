"""The guard below which a disk is changed: no link on the way is followed, by descriptors and by final paths alike."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner.core.errors import NotWritableError, PathOutsideRootError, StorageError
from provisioner.disk.calls import write_all
from provisioner.disk.root import (
    Root,
    free_name,
    half_written,
    links_leading_out,
    scratch_folder,
    waiting_for,
    waiting_name,
    write_output,
)
from tests.support.folders import link_folder

is_windows = sys.platform == "win32"  # where links to folders are junctions, which need no privilege
FILE_LINKS = pytest.mark.skipif(is_windows, reason="a link to a file needs a privilege there")
MODES = pytest.mark.skipif(is_windows, reason="there are no permissions as POSIX has them")
WAYS = {"final paths": False} if is_windows else {"descriptors": True, "final paths": False}
BY = pytest.mark.parametrize("has_descriptors", list(WAYS.values()), ids=list(WAYS))
Change = Callable[[Root, Path], object]

CHANGES: dict[str, Change] = {
    "write": lambda root, path: root.write_text(path, "x"),
    "create": lambda root, path: root.create(path.with_name("new")).close(),
    "write new": lambda root, path: root.write_new(path.with_name("new"), b"x"),
    "append": lambda root, path: root.append_text(path, "x"),
    "open": lambda root, path: os.close(root.open_file(path)),
    "log": lambda root, path: root.open_log(path).close(),
    "remove": lambda root, path: root.remove(path),
    "remove if": lambda root, path: root.remove_if(path, lambda real: True),
    "remove tree": lambda root, path: root.remove_tree(path),
    "make": lambda root, path: root.make_folder(path.with_name("folder")),
    "move there": lambda root, path: root.replace(root.folder / "mine", path),
    "move away": lambda root, path: root.replace(path, root.folder / "theirs"),
    "link": lambda root, path: root.symlink(path.with_name("link"), "x"),
    "hard link": lambda root, path: root.hard_link(root.folder / "mine", path.with_name("link")),
    "copy": lambda root, path: root.copy_file(root.folder / "mine", path.with_name("copy")),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A root with a file, and a folder of somebody's beside it."""
    for path in (tmp_path / "tree" / "mine", tmp_path / "elsewhere" / "x"):
        path.parent.mkdir()
        path.write_bytes(b"precious")
    return tmp_path / "tree"


def untouched(folder: Path) -> bool:
    elsewhere = folder.parent / "elsewhere"
    return [path.name for path in elsewhere.iterdir()] == ["x"] and (elsewhere / "x").read_bytes() == b"precious"


@BY
@pytest.mark.parametrize("name", CHANGES)
def test_nothing_is_changed_behind_a_folder_that_is_a_link(folder: Path, name: str, has_descriptors: bool) -> None:
    link_folder(folder / "vae", folder.parent / "elsewhere")
    with pytest.raises(PathOutsideRootError) as caught:
        CHANGES[name](Root(folder, has_descriptors=has_descriptors), folder / "vae" / "x")
    assert str(folder / "vae") in str(caught.value)
    assert "--follow-links" in (caught.value.hint or "")
    assert untouched(folder)
    assert (folder / "mine").read_bytes() == b"precious"


@pytest.mark.parametrize("name", CHANGES)
def test_what_leads_elsewhere_and_does_not_say_so_is_told_by_its_final_path(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has more kinds of it than links and junctions, and not each is to be seen in a status."""
    link_folder(folder / "vae", folder.parent / "elsewhere")
    monkeypatch.setattr("provisioner.disk.root.is_link", lambda *_arguments, **_keywords: False)
    with pytest.raises(PathOutsideRootError, match="vae is a link to"):
        CHANGES[name](Root(folder, has_descriptors=False), folder / "vae" / "x")
    assert untouched(folder)


@BY
@pytest.mark.parametrize("name", CHANGES)
def test_nothing_is_changed_behind_a_link_that_appears_at_the_last_moment(
    folder: Path, name: str, has_descriptors: bool
) -> None:
    class Raced(Root):
        """Somebody puts a link there right after the way was looked at."""

        def _real_folder(self, folder: Path) -> Path:
            real = super()._real_folder(folder)
            vae = self.folder / "vae"
            if folder == vae and not vae.with_name("was").exists():
                vae.rename(vae.with_name("was"))
                link_folder(vae, self.folder.parent / "elsewhere")
            return real

    (folder / "vae").mkdir()
    (folder / "vae" / "x").write_bytes(b"x")
    with contextlib.suppress(StorageError):  # where there is nothing to remove any more that is no error
        CHANGES[name](Raced(folder, has_descriptors=has_descriptors), folder / "vae" / "x")
    assert untouched(folder)


@BY
def test_a_link_that_stays_below_the_root_is_followed_but_not_among_our_records(
    folder: Path, has_descriptors: bool
) -> None:
    root = Root(folder, has_descriptors=has_descriptors)
    (folder / "unet").mkdir()
    link_folder(folder / "diffusion_models", folder / "unet")
    root.write_text(folder / "diffusion_models" / "x", "right")
    assert (folder / "unet" / "x").read_text(encoding="utf-8") == "right"
    root.make_folder(folder / ".klein-setup")
    link_folder(folder / ".klein-setup" / "aside", folder / "unet")
    link_folder(folder / "loras", folder / ".klein-setup")
    for path in (folder / ".klein-setup" / "aside" / "x", folder / "loras" / "receipt.json"):
        with pytest.raises(PathOutsideRootError):
            root.remove(path)
        with pytest.raises(PathOutsideRootError):
            root.write_text(path, "wrong")
    assert [path.name for path in (folder / "unet").iterdir()] == ["x"]


@BY
@FILE_LINKS
@pytest.mark.parametrize(("name", "target"), [("open", "x"), ("append", "x"), ("log", "none"), ("make", "none")])
def test_a_link_in_the_place_of_a_record_is_named_and_not_taken_for_a_bad_disk(
    folder: Path, name: str, target: str, has_descriptors: bool
) -> None:
    link = folder / ".klein-setup" / "folder"
    link.parent.mkdir()
    link.symlink_to(folder.parent / "elsewhere" / target)
    with pytest.raises(PathOutsideRootError, match=r"is a link to .*elsewhere") as caught:
        CHANGES[name](Root(folder, has_descriptors=has_descriptors), link)
    assert "Remove that link" in (caught.value.hint or "")
    assert untouched(folder)


@BY
def test_a_link_out_of_the_root_is_followed_where_that_was_agreed_to(folder: Path, has_descriptors: bool) -> None:
    asked: list[tuple[Path, Path]] = []

    def follows(link: Path, real: Path) -> bool:
        asked.append((link, real))
        return True

    link_folder(folder / "vae", folder.parent / "elsewhere")
    root = Root(folder, follows=follows, has_descriptors=has_descriptors)
    root.write_text(folder / "vae" / "deep" / "y", "y")
    assert (folder.parent / "elsewhere" / "deep" / "y").read_text(encoding="utf-8") == "y"
    assert set(asked) == {(folder / "vae", folder.parent / "elsewhere")}
    link_folder(folder / ".klein-setup", folder.parent / "elsewhere")
    with pytest.raises(PathOutsideRootError):  # of our own records nobody is asked
        root.write_text(folder / ".klein-setup" / "receipt.json", "{}")


@BY
def test_the_root_itself_may_be_a_link_and_is_looked_up_once(folder: Path, has_descriptors: bool) -> None:
    link = folder.parent / "models"
    link_folder(link, folder)
    root = Root(link, has_descriptors=has_descriptors)
    root.write_text(link / "vae" / "x", "x")
    link.unlink()
    link_folder(link, folder.parent / "elsewhere")
    root.write_text(link / "vae" / "y", "y")
    assert sorted(path.name for path in (folder / "vae").iterdir()) == ["x", "y"]
    assert untouched(folder)


@FILE_LINKS
@BY
def test_the_last_name_is_never_followed(folder: Path, has_descriptors: bool) -> None:
    root, link = Root(folder, has_descriptors=has_descriptors), folder / "link"
    theirs = folder.parent / "elsewhere" / "x"
    link.symlink_to(theirs)
    for change in (root.open_file, root.open_appending, root.open_log, lambda path: root.append_text(path, "x")):
        with pytest.raises(StorageError):
            change(link)
    root.write_text(link, "replaced")
    assert (link.is_symlink(), link.read_text(encoding="utf-8")) == (False, "replaced")
    for remove in (root.remove, root.remove_tree, lambda path: root.remove_if(path, lambda real: True)):
        link.unlink(missing_ok=True)
        link.symlink_to(theirs.parent)
        remove(link)
        assert not os.path.lexists(link)
    assert untouched(folder)


@BY
def test_a_file_with_a_second_name_is_not_written_into(folder: Path, has_descriptors: bool) -> None:
    os.link(folder.parent / "elsewhere" / "x", folder / "x")
    with pytest.raises(StorageError, match="second name"):
        Root(folder, has_descriptors=has_descriptors).open_file(folder / "x")
    assert untouched(folder)


@pytest.mark.parametrize("path", ["../elsewhere/x", "vae/../../elsewhere/x", "/etc/passwd", ""])
def test_a_path_that_is_not_below_the_root_is_refused(folder: Path, path: str) -> None:
    root = Root(folder)
    for change in (root.remove, root.open_file, lambda each: root.write_text(each, "x")):
        with pytest.raises(PathOutsideRootError):
            change(folder / path)
    assert not root.holds(folder / path)
    assert untouched(folder)


@MODES
@BY
def test_a_tree_goes_with_what_is_read_only_and_links_in_it_lead_nowhere(folder: Path, has_descriptors: bool) -> None:
    deep = folder / "tree" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x")
    (deep / "file").chmod(0o400)
    (deep / "link").symlink_to(folder.parent / "elsewhere")
    deep.chmod(0o500)
    (folder / "tree").chmod(0o500)
    try:
        Root(folder, has_descriptors=has_descriptors).remove_tree(folder / "tree")
    finally:
        for path in (folder / "tree", deep):
            if path.exists():
                path.chmod(0o700)
    assert not (folder / "tree").exists()
    assert untouched(folder)


@BY
def test_a_tree_with_links_in_it_goes_and_what_they_lead_to_stays(folder: Path, has_descriptors: bool) -> None:
    (folder / "tree" / "a").mkdir(parents=True)
    link_folder(folder / "tree" / "a" / "link", folder.parent / "elsewhere")
    root = Root(folder, has_descriptors=has_descriptors)
    root.remove_tree(folder / "tree")
    assert not (folder / "tree").exists()
    link_folder(folder / "link", folder.parent / "elsewhere")
    root.remove_tree(folder / "link")
    assert not os.path.lexists(folder / "link")
    assert untouched(folder)


@BY
@pytest.mark.parametrize("is_agreed", [True, False])
def test_a_link_between_what_was_named_and_the_root_is_one_on_the_way(
    folder: Path, has_descriptors: bool, is_agreed: bool
) -> None:
    asked: list[tuple[Path, Path]] = []

    def follows(link: Path, real: Path) -> bool:
        asked.append((link, real))
        return is_agreed

    link_folder(folder / "models", folder.parent / "elsewhere")
    assert links_leading_out(folder, folder / "models" / "vae" / "y") == (
        (folder / "models", folder.parent / "elsewhere"),
    )
    root = Root(folder / "models", named=folder, follows=follows, has_descriptors=has_descriptors)
    assert root.holds(folder / "models" / "vae" / "y") is is_agreed
    if is_agreed:
        root.write_text(folder / "models" / "y", "y")
        assert (folder.parent / "elsewhere" / "y").read_text(encoding="utf-8") == "y"
    else:
        with pytest.raises(PathOutsideRootError, match="models"):
            root.write_text(folder / "models" / "y", "y")
        assert untouched(folder)
    assert set(asked) == {(folder / "models", folder.parent / "elsewhere")}
    Root(folder / "models", has_descriptors=has_descriptors).write_text(folder / "models" / "z", "named itself")


def test_a_file_is_removed_only_if_it_is_what_was_expected_and_stays_that(folder: Path) -> None:
    root, mine = Root(folder), folder / "mine"
    assert not root.remove_if(folder / "none", lambda real: True)
    assert not root.remove_if(folder / "none" / "none", lambda real: True)
    assert not root.remove_if(mine, lambda real: False)

    def change(real: Path) -> bool:
        real.write_bytes(b"saved just now")
        return True

    assert not root.remove_if(mine, change)
    assert mine.read_bytes() == b"saved just now"
    assert root.remove_if(mine, lambda real: real.read_bytes() == b"saved just now")
    assert not mine.exists()


def test_what_is_not_there_need_not_be_removed_and_what_cannot_be_is_an_error(folder: Path) -> None:
    root = Root(folder)
    for path in (folder / "none", folder / "none" / "none", folder / "mine" / "none"):
        root.remove(path)
        root.remove_tree(path)
        assert not root.remove_folder(path)
    assert not root.remove_folder(folder / "mine")
    (folder / "full").mkdir()
    (folder / "full" / "x").touch()
    assert not root.remove_folder(folder / "full")
    with pytest.raises(StorageError):
        root.remove(folder / "full")
    with pytest.raises(StorageError):
        root.make_folder(folder / "mine" / "below")


@MODES
def test_what_is_private_is_for_this_user_alone(tmp_path: Path) -> None:
    root = Root(tmp_path / "state" / "klein-setup", is_private=True)
    root.write_text(root.folder / "logs" / "x", "x")
    root.open_log(root.folder / "log").close()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (root.folder, *root.folder.rglob("*"))}
    assert modes == {"klein-setup": 0o700, "logs": 0o700, "x": 0o600, "log": 0o600}
    root.folder.chmod(0o755)  # as an earlier release made it
    Root(root.folder, is_private=True).write_text(root.folder / "y", "y")
    assert stat.S_IMODE(root.folder.stat().st_mode) == 0o700


@FILE_LINKS
def test_a_copy_keeps_its_permissions_and_times_and_a_link_stays_one(folder: Path) -> None:
    root, mine = Root(folder), folder / "mine"
    mine.chmod(0o640)
    os.utime(mine, ns=(1_000_000_000, 2_000_000_000))
    (folder / "link").symlink_to("mine")
    root.copy_file(mine, folder / "kept" / "mine")
    root.copy_file(folder / "link", folder / "kept" / "link")
    copied = (folder / "kept" / "mine").stat()
    assert (stat.S_IMODE(copied.st_mode), copied.st_mtime_ns) == (0o640, 2_000_000_000)
    assert (folder / "kept" / "link").readlink() == Path("mine")
    with pytest.raises(StorageError):
        root.copy_file(mine, folder / "kept" / "mine")


@BY
def test_a_small_file_is_written_and_what_killed_runs_left_of_it_is_removed(
    folder: Path, has_descriptors: bool
) -> None:
    name = f"report.json.{'a' * 16}.tmp"
    old, new, other = (folder / each for each in (name, name.replace("a", "b"), f"report.json.{'a' * 15}.tmp"))
    for path in (old, new, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (0, 0))
    Root(folder, has_descriptors=has_descriptors).write_text(folder / "report.json", "whole")
    assert (folder / "report.json").read_bytes() == b"whole"
    assert [path.exists() for path in (old, new, other)] == [False, True, True]


@BY
def test_of_a_tree_our_records_are_removed_last(
    folder: Path, has_descriptors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say whose the rest is, when a kill comes in between."""
    for name in (".klein-setup/environment.json", "a", "z/y", "~"):
        path = folder / "environment" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    gone: list[str] = []

    def note(name: str | Path, dir_fd: int | None) -> None:
        gone.append(Path(name).name)
        os.unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr("provisioner.disk.root._unlink", note)
    Root(folder, has_descriptors=has_descriptors).remove_tree(folder / "environment")
    assert sorted(gone) == ["a", "environment.json", "y", "~"]
    assert gone[-1] == "environment.json"
    assert not (folder / "environment").exists()


def test_what_is_half_written_is_known_by_its_name(folder: Path) -> None:
    names = ["receipt.json.0123456789abcdef.tmp", "receipt.json.4711.tmp", "receipt.json.tmp", "x.0123456789abcdef.tmp"]
    for name in names:
        (folder / name).touch()
    assert sorted(path.name for path in half_written(folder)) == sorted(names[:2])
    assert [path.name for path in waiting_for(folder / "x")] == names[3:]
    assert waiting_for(folder / "none" / "x") == half_written(folder / "none") == []
    assert waiting_name("x") != waiting_name("x")
    assert free_name(folder / "mine").name == "mine.1"


@FILE_LINKS
def test_what_the_user_names_is_written_where_it_leads(folder: Path) -> None:
    page, link = folder / "page.html", folder / "link.html"
    page.write_bytes(b"old")
    page.chmod(0o640)
    link.symlink_to(page)
    write_output(link, b"new")
    assert (link.is_symlink(), page.read_bytes(), stat.S_IMODE(page.stat().st_mode)) == (True, b"new", 0o640)
    write_output(folder / "second.html", b"new")
    write_output(Path(os.devnull), b"nothing")
    for path in (folder / "none" / "page.html", folder):
        with pytest.raises(StorageError):
            write_output(path, b"x")


@MODES
@pytest.mark.parametrize("is_kept", [True, False])
def test_a_scratch_folder_goes_unless_it_is_kept(is_kept: bool) -> None:
    with scratch_folder("klein-setup-test-", is_kept=is_kept) as scratch:
        (scratch / "x").touch()
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    assert scratch.exists() == is_kept
    if is_kept:
        Root(scratch.parent).remove_tree(scratch)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o500)
    with pytest.raises(NotWritableError):
        Root(folder).write_text(folder / "closed" / "x", "x")


def test_everything_is_written_where_the_system_takes_a_little_at_a_time(folder: Path) -> None:
    with Root(folder).create(folder / "new") as stream:
        write_all(stream, b"x" * 3_000_000)
    assert (folder / "new").stat().st_size == 3_000_000
