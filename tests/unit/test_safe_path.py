"""Paths that mean one and the same file on three systems, and those that do not."""

from __future__ import annotations

import ntpath
import posixpath
from pathlib import PurePath, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.disk.safe_path import complaint_about_folder, complaint_about_path

GOOD = (
    "vae/flux2-vae.safetensors",
    "flux-2-klein-4b-fp8.safetensors",
    "split_files/text_encoders/qwen_3_4b.safetensors",
    "loras/flux/style v2.safetensors",
    "text_encoder/model-00001-of-00002.safetensors",
    ".gitattributes",
    "a..b/c...d",
    "console.txt",
    "nullable/auxiliary.json",
    "com10.json",
    "modèle/été.safetensors",
    "模型/权重.safetensors",
    "backup~1a.txt",
    "a" * 200,
)

BAD = (
    ("", "is empty"),
    ("/etc/passwd", "is absolute"),
    ("//server/share", "is absolute"),
    ("../x", "climbs"),
    ("a/../../x", "climbs"),
    ("a/..", "climbs"),
    ("./a", "'.' as a folder name"),
    ("a/./b", "'.' as a folder name"),
    ("a//b", "empty folder name"),
    ("a/", "empty folder name"),
    ("a\\b", "backslash"),
    ("..\\x", "backslash"),
    ("\\\\server\\share", "backslash"),
    ("C:/x", "drive letter"),
    ("c:x", "drive letter"),
    ("x.safetensors:hidden", "hidden stream"),
    ("models/C:", "names a drive"),
    ("CON", "a device on Windows"),
    ("vae/nul.safetensors", "a device on Windows"),
    ("aux.tar.gz", "a device on Windows"),
    ("com1", "a device on Windows"),
    ("LPT9.txt", "a device on Windows"),
    ("com\u00b9.txt", "a device on Windows"),
    ("CONIN$", "a device on Windows"),
    ("nul .txt", "a device on Windows"),
    ("vae./x", "drops dots and spaces"),
    ("vae/x.", "drops dots and spaces"),
    ("vae/x ", "drops dots and spaces"),
    (" vae/x", "drops dots and spaces"),
    ("...", "drops dots and spaces"),
    ("a\nb", "control or invisible"),
    ("a\x00b", "control or invisible"),
    ("a\x1b[31m", "control or invisible"),
    ("a\x7f", "control or invisible"),
    ("é\x85", "control or invisible"),
    ("invoice\u202etxt.safetensors", "control or invisible"),
    ("zero\u200bwidth", "control or invisible"),
    ("no\u00a0break", "control or invisible"),
    ("bom\ufeff", "control or invisible"),
    ("half\ud800", "control or invisible"),
    ("e\u0301te\u0301", "NFC"),
    ("a*b", "allows none of"),
    ("what?", "allows none of"),
    ('a"b', "allows none of"),
    ("<x>", "allows none of"),
    ("a|b", "allows none of"),
    ("KLEIN-~1", "short form"),
    ("vae/FLUX2-~2.SAF", "short form"),
    ("a" * 201, "has a name of 201 bytes"),
    ("é" * 101, "has a name of 202 bytes"),
    ("/".join(["abcdefghi"] * 50), "characters long"),
)


@pytest.mark.parametrize("text", GOOD)
def test_a_path_every_system_reads_alike_is_accepted(text: str) -> None:
    assert complaint_about_path(text) is None


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[ascii(text)[:40] for text, _ in BAD])
def test_a_path_some_system_misreads_is_refused_with_the_reason(text: str, expected: str) -> None:
    complaint = complaint_about_path(text)
    assert complaint is not None
    assert expected in complaint
    assert complaint.isprintable()


PIECES = ("a", "Z", ".", "/", "\\", ":", " ", "~", "1", "é", "\n", "nul", "con")


@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
def test_what_is_accepted_stays_inside_the_root_on_both_kinds_of_path(text: str) -> None:
    if complaint_about_path(text) is not None:
        return
    assert posixpath.normpath(posixpath.join("/root", text)) == "/root/" + text
    assert ntpath.normpath(ntpath.join("C:\\root", text)) == "C:\\root\\" + text.replace("/", "\\")
    assert PurePosixPath(text).parts == PureWindowsPath(text).parts


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        (PureWindowsPath("C:/x/ComfyUI"), None),
        (PureWindowsPath("C:ComfyUI"), None),
        (PureWindowsPath("//nas/share/ComfyUI"), None),
        (PureWindowsPath("//?/C:/x/ComfyUI"), None),
        (PureWindowsPath("PROGRA~1/ComfyUI"), None),  # a person's own spelling of a folder that is there
        (PureWindowsPath("../ComfyUI"), None),
        (PureWindowsPath("//nas/share"), None),
        (PureWindowsPath("//?/UNC/nas/share/ComfyUI"), None),
        (PureWindowsPath("C:/Users/Jürgen/モデル"), None),
        (PureWindowsPath("C:/ComfyUI. "), None),  # Windows drops them, and so means C:/ComfyUI
        (PureWindowsPath("//?/C:/ComfyUI."), "only a path after"),
        (PureWindowsPath("//?/UNC/nas/share/ComfyUI /x"), "only a path after"),
        (PureWindowsPath("//?/C:/NUL/x"), "a device"),
        (PureWindowsPath("//./C:/ComfyUI"), "names a device"),
        (PureWindowsPath("//./pipe/x"), "names a device"),
        (PureWindowsPath("//?/GLOBALROOT/Device/HarddiskVolume1/x"), "names a device"),
        (PureWindowsPath("//?/Volume{26a21bda-a627-11d7-9931-806e6f6e6963}/x"), "names a device"),
        (PureWindowsPath("C:/x/a:b"), "a hidden stream"),
        (PureWindowsPath("C:/x:y/ComfyUI"), "a hidden stream"),
        (PureWindowsPath("C:/CON"), "a device"),
        (PureWindowsPath("C:/x/nul.models/y"), "a device"),
        (PureWindowsPath("C:/x/com1"), "a device"),
        (PureWindowsPath("C:/x/what?"), "none of"),
        (PurePosixPath("/x/a:b"), None),
        (PurePosixPath("/x/CON"), None),
        (PurePosixPath("/x/what?"), None),
    ],
)
def test_a_folder_that_a_person_names_may_be_called_anything_that_is_a_folder_there(
    folder: PurePath, words: str | None
) -> None:
    complaint = complaint_about_folder(folder)
    assert complaint is None if words is None else words in (complaint or "")
