"""What resolved paths have to do with each other, decided alike for Linux, macOS and Windows."""

from __future__ import annotations

import stat
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Literal

import pytest

from provisioner.disk.real_paths import (
    is_among_records,
    is_inside,
    is_link_status,
    is_same_path,
    way_of_link,
    without_prefix,
)

FOLDER = stat.S_IFDIR | 0o755


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (PureWindowsPath("//?/C:/a/b"), PureWindowsPath("C:/a/b")),
        (PureWindowsPath("//?/unc/nas/s/a"), PureWindowsPath("//nas/s/a")),
        (PureWindowsPath("C:/a"), PureWindowsPath("C:/a")),
        (PureWindowsPath("//?/Volume{26a21bda}/a"), PureWindowsPath("//?/Volume{26a21bda}/a")),  # never a relative one
        (PurePosixPath("//?/C:/a"), PurePosixPath("//?/C:/a")),
    ],
)
def test_a_prefix_is_left_out_where_the_rest_says_the_same(given: PurePath, expected: PurePath) -> None:
    assert without_prefix(given) == expected


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        (PurePosixPath("/a"), PurePosixPath("/a"), True),
        (PurePosixPath("/a"), PurePosixPath("/a/b/c"), True),
        (PurePosixPath("/a"), PurePosixPath("/ab"), False),
        (PurePosixPath("/a"), PurePosixPath("/"), False),
        (PurePosixPath("/a"), PurePosixPath("/A/b"), False),
        (PurePosixPath("/a"), PurePosixPath("/a/../b"), False),
        (PureWindowsPath("C:/a"), PureWindowsPath("c:/A/b"), True),
        (PureWindowsPath("C:/a"), PureWindowsPath("D:/a/b"), False),
        (PureWindowsPath("C:/a"), PureWindowsPath("//?/C:/a/b"), True),
        (PureWindowsPath("//?/UNC/nas/s/a"), PureWindowsPath("//nas/s/a/b"), True),
        (PureWindowsPath("//nas/s/a"), PureWindowsPath("//nas/t/a/b"), False),
    ],
)
def test_inside_means_below_once_links_are_resolved(root: PurePath, path: PurePath, expected: bool) -> None:
    assert is_inside(root, path) is expected


@pytest.mark.parametrize(
    ("mode", "tag", "expected"),
    [
        (stat.S_IFLNK | 0o777, 0, True),
        (FOLDER, 0, False),
        (stat.S_IFREG | 0o644, 0, False),
        pytest.param(stat.S_IFLNK, 0xA000000C, True, id="IO_REPARSE_TAG_SYMLINK"),
        pytest.param(FOLDER, 0xA0000003, True, id="IO_REPARSE_TAG_MOUNT_POINT, a junction or a mounted drive"),
        pytest.param(stat.S_IFREG, 0xA000001D, True, id="IO_REPARSE_TAG_LX_SYMLINK, a link made by WSL"),
        pytest.param(FOLDER, 0x9000001A, False, id="IO_REPARSE_TAG_CLOUD, OneDrive"),
        pytest.param(FOLDER, 0x9000601A, False, id="IO_REPARSE_TAG_CLOUD_6"),
        pytest.param(stat.S_IFREG, 0x80000013, False, id="IO_REPARSE_TAG_DEDUP"),
        pytest.param(stat.S_IFREG, 0x8000001B, False, id="IO_REPARSE_TAG_APPEXECLINK"),
    ],
)
def test_links_and_junctions_lead_elsewhere_and_files_in_a_cloud_do_not(mode: int, tag: int, expected: bool) -> None:
    assert is_link_status(mode, tag) is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (PurePosixPath("/a/b"), PurePosixPath("/a/b"), True),
        (PurePosixPath("/a/b"), PurePosixPath("/a/B"), False),
        (PurePosixPath("/a/\u00e9"), PurePosixPath("/a/e\u0301"), False),
        (PureWindowsPath("C:/a/b"), PureWindowsPath("c:/A/B"), True),
        (PureWindowsPath("C:/a/b"), PureWindowsPath("//?/C:/a/b"), True),
        (PureWindowsPath("C:/a/b"), PureWindowsPath("C:/a/c"), False),
        (PureWindowsPath("//?/Volume{1}/a"), PureWindowsPath("C:/a"), False),
    ],
)
def test_one_folder_by_two_resolved_paths(one: PurePath, other: PurePath, expected: bool) -> None:
    assert is_same_path(one, other) is expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("vae/x", False),
        (".klein-setup-2/x", False),
        ("vae/klein-setup", False),
        (".klein-setup/lock", True),
        (".venv.klein-setup/wheels/x", True),
        ("vae/.klein-setup/aside", True),
        (".Klein-Setup/lock", True),
        (".KLEIN-SETUP", True),
        (".klein-setup./lock", True),
        (".klein-setup . /lock", True),
        (".klein-setup::$INDEX_ALLOCATION/lock", True),
    ],
)
@pytest.mark.parametrize("kind", [PurePosixPath, PureWindowsPath])
def test_the_records_are_known_however_a_system_spells_them(kind: type[PurePath], path: str, expected: bool) -> None:
    assert is_among_records(kind(path)) is expected


@pytest.mark.parametrize(
    ("link", "real", "root", "expected"),
    [
        ("vae", "/m/unet", "/m", "stays"),
        ("vae", "/m/unet/deep", "/m", "stays"),
        ("vae", "/m", "/m", "leaves"),
        ("vae", "/", "/m", "leaves"),
        ("vae", "/m2", "/m", "leaves"),
        ("vae", "/M/unet", "/m", "leaves"),  # on a disk of macOS it may be the same: then it is asked about
        ("vae", "/m/../n", "/m", "leaves"),
        ("vae", "/m/.klein-setup", "/m", "leaves"),
        ("vae", "/m/.KLEIN-SETUP/aside", "/m", "leaves"),
        (".klein-setup", "/m/unet", "/m", "records"),
        ("vae/.klein-setup/aside", "/m/unet", "/m", "records"),
        (".Klein-Setup", "/m/unet", "/m", "records"),
    ],
)
def test_where_a_link_leads_on_posix(
    link: str, real: str, root: str, expected: Literal["records", "stays", "leaves"]
) -> None:
    assert way_of_link(PurePosixPath(link), PurePosixPath(real), root=PurePosixPath(root)) == expected


@pytest.mark.parametrize(
    ("link", "real", "root", "expected"),
    [
        ("vae", "C:/M/unet", "c:/m", "stays"),
        ("vae", "//?/C:/m/unet", "C:/m", "stays"),
        ("vae", "C:/m/unet", "//?/C:/m", "stays"),
        ("vae", "//nas/s/m/unet", "//?/UNC/nas/s/m", "stays"),
        ("vae", "D:/m/unet", "C:/m", "leaves"),
        ("vae", "C:/M", "c:/m", "leaves"),
        ("vae", "//?/Volume{0123}/unet", "C:/m", "leaves"),
        ("vae", "//nas/s/m", "C:/m", "leaves"),
        ("vae", "//?/C:/m/.KLEIN-SETUP", "C:/m", "leaves"),
        ("vae", "C:/m/.klein-setup./aside", "C:/m", "leaves"),
        (".KLEIN-SETUP", "C:/m/unet", "C:/m", "records"),
        (".klein-setup::$INDEX_ALLOCATION", "C:/m/unet", "C:/m", "records"),
    ],
)
def test_where_a_link_or_a_junction_leads_on_windows(
    link: str, real: str, root: str, expected: Literal["records", "stays", "leaves"]
) -> None:
    assert way_of_link(PureWindowsPath(link), PureWindowsPath(real), root=PureWindowsPath(root)) == expected
