"""What is said of a file of a models folder."""

from __future__ import annotations

import json
import struct
from pathlib import Path, PurePosixPath

import pytest

from provisioner.core.models import Finding
from provisioner.files.unlisted import is_of_interest, judge_file
from provisioner.identify.identification import identify
from provisioner.identify.values import Identity
from tests.support.model_headers import flux2_vae_bfl, header_bytes_of

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 1\n"


def tensors(size: int = 64) -> bytes:
    head = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes([7]) * size


def judged(data: bytes, name: str = "x.safetensors", folder: str = "vae") -> tuple[Finding, ...]:
    path = PurePosixPath("models", folder, name)
    return judge_file(path, folder, len(data), identify(data, len(data), name=name, tail=data))


@pytest.mark.parametrize(
    ("data", "code", "severity"),
    [
        (b"", "broken-model", "problem"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "broken-model", "problem"),
        (tensors()[:-5], "broken-model", "problem"),
        (tensors() + b"more", "broken-model", "problem"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 1\n",
            "broken-model",
            "problem",
        ),
        (bytes(4096), "broken-model", "problem"),
        (b"\x80\x02}q\x00.", "pickle", "warning"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named(data: bytes, code: str, severity: str) -> None:
    (finding,) = judged(data, "x.ckpt" if code == "pickle" else "x.safetensors")
    assert (finding.code, finding.severity) == (code, severity)
    assert finding.hint


def test_a_well_formed_file_of_unknown_kind_is_left_in_peace() -> None:
    assert judged(tensors()) == ()


@pytest.mark.parametrize(
    ("folder", "codes"),
    [
        ("vae", []),
        ("text_encoders", ["wrong-folder"]),
        ("unet", ["wrong-folder"]),
        ("", []),  # beside the folders: nobody said what it is for
    ],
)
def test_a_model_in_the_folder_of_another_kind_is_told_where_it_belongs(folder: str, codes: list[str]) -> None:
    head, size = header_bytes_of(flux2_vae_bfl())
    path = PurePosixPath("models", folder, "x.safetensors")
    found = judge_file(path, folder, size, identify(head, size, name=path.name))
    assert [each.code for each in found] == codes
    assert all("Move it to vae" in str(each.hint) for each in found)


def test_what_is_wrong_inside_a_whole_file_is_said_with_its_name() -> None:
    inside = Finding(code="scales-ignored", severity="problem", message="It has no scales.", remedy="by-hand")
    path = PurePosixPath("models/vae/x.safetensors")
    identity = Identity(kind="safetensors", sentence="a model", findings=(inside,))
    (found,) = judge_file(path, "vae", 64, identity)
    assert (found.code, found.message) == ("scales-ignored", "models/vae/x.safetensors: It has no scales.")
    assert found.path == Path(path)


def test_an_unfinished_download_is_a_warning() -> None:
    (finding,) = judged(b"abc", "model.safetensors.part")
    assert (finding.code, finding.severity) == ("unfinished-file", "warning")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.safetensors", True),
        ("A.SAFETENSORS", True),
        ("a.gguf", True),
        ("a.ckpt", True),
        ("a.safetensors.part", True),
        ("put_vae_here", False),
        ("notes.txt", False),
        ("config.json", False),
    ],
)
def test_only_models_and_parts_of_them_are_looked_at(name: str, expected: bool) -> None:
    assert is_of_interest(PurePosixPath("vae", name)) is expected
