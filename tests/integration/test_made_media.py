"""Videos and sounds of a workflow: the real command, a real process that decodes, and files made here by Pillow.

What PyAV decodes is in the answers that `scripts/judge_media.py` recorded: tests/contract/test_media_answers.py.
"""

from __future__ import annotations

import importlib.util
import io
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from provisioner.commands.made_media import decode
from provisioner.smoke_test.media import MediaFormat, format_of
from tests.support.comfy_server import Faults, ReplayServer
from tests.support.sandbox import Completed, Sandbox, sha256_of
from tests.support.setup_fixture import with_existing_tree

RECORDED = "ok_videos_and_sounds"
FLAC = b"fLaC\0\0\0\x22" + bytes(10) + (44100 << 44 | 1 << 41 | 88200).to_bytes(8, "big") + bytes(16)


def pictures(kind: str, number: int = 8) -> list[Image.Image]:
    """Return frames of a square that moves, of one that stands, or black ones."""
    found = []
    for at in range(number):
        image = Image.new("RGB", (96, 96), "black") if kind == "black" else Image.radial_gradient("L").resize((96, 96))
        image = image.convert("RGB")
        if kind != "black":
            left = 8 * at if kind == "motion" else 30
            ImageDraw.Draw(image).rectangle((left, 20, left + 20, 60), fill=(250, 220, 10 + at * (kind == "motion")))
        found.append(image)
    return found


def animated(kind: str, form: str = "WEBP") -> bytes:
    frames = pictures(kind)
    written = io.BytesIO()
    frames[0].save(written, form, save_all=True, append_images=frames[1:], duration=125)
    return written.getvalue()


def form_of(data: bytes) -> MediaFormat:
    form = format_of(data)
    assert form is not None
    return form


# --- the process that decodes --------------------------------------------------------------------


@pytest.mark.parametrize("form", ["WEBP", "PNG", "GIF"])
def test_animated_images_are_decoded_frame_by_frame(form: str, tmp_path: Path) -> None:
    data = animated("motion", form)
    path = tmp_path / "made"
    path.write_bytes(data)
    answer = decode(path, form_of(data), python=Path(sys.executable), cancelled=lambda: False)
    assert (answer.complaint, answer.audio) == (None, None)
    assert (answer.decoder or "").startswith("Pillow ")
    assert answer.video is not None
    assert answer.frame is not None
    assert (answer.video.frames, answer.video.frames_stated, answer.video.width) == (8, 8, 96)
    assert answer.video.frames_per_second == pytest.approx(8, abs=0.4)  # GIF counts in hundredths of a second
    assert answer.video.change > 100
    assert answer.video.flat_frames == 0
    assert answer.frame[:2] == (96, 96)


def test_a_decoder_has_limits_and_can_be_cancelled(tmp_path: Path) -> None:
    data = animated("motion")
    path = tmp_path / "made.webp"
    path.write_bytes(data)
    form, python = form_of(data), Path(sys.executable)
    late = decode(path, form, python=python, cancelled=lambda: False, timeout_s=0.01)
    assert late.complaint == "decoding it takes longer than 0.01 s"
    if sys.platform == "linux":  # elsewhere the process is looked at five times a second, and is done before
        large = decode(path, form, python=python, cancelled=lambda: False, memory_bytes=1024)
        assert large.complaint is not None
        assert large.frame is None
    missing = decode(path, form, python=tmp_path / "no-python", cancelled=lambda: False)
    assert missing.decoder is None
    assert "could not be started" in (missing.complaint or "")
    with pytest.raises(KeyboardInterrupt):
        decode(path, form, python=python, cancelled=lambda: True)


def test_a_huge_frame_and_garbage_are_complaints(tmp_path: Path) -> None:
    huge = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0" + bytes(64)
    for data in (huge, b"RIFF\xff\xff\xff\xffWEBP" + random.Random(5).randbytes(4000), b"GIF89a" + bytes(300)):
        path = tmp_path / "made"
        path.write_bytes(data)
        answer = decode(path, form_of(data), python=Path(sys.executable), cancelled=lambda: False)
        assert answer.complaint
        assert answer.decoder
        assert answer.frame is None


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox(make_sandbox: Callable[[], Sandbox]) -> Sandbox:
    return with_existing_tree(make_sandbox())


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[ReplayServer]:
    """Answer as a ComfyUI did that made seven files; a test says which of them there are, and what is in them."""
    with ReplayServer(RECORDED, folder=sandbox.tree, faults=Faults()) as server:
        yield server


def only(server: ReplayServer, **files: bytes) -> None:
    """Leave the server these outputs alone, by the extension of their recorded names."""
    kept = []
    for entry in server.entries:
        message = entry.get("ws", {})
        if message.get("type") != "executed":
            kept.append(entry)
            continue
        names = [each["filename"] for group in ("images", "audio") for each in message["data"]["output"].get(group, [])]
        extension = names[0].rpartition(".")[2]
        if extension in files:
            kept.append(entry)
            server.faults.files[names[0]] = files[extension]
    server.entries = kept


def made(sandbox: Sandbox, server: ReplayServer, image: Path, *more: str) -> Completed:
    graph = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "klein"}}}
    flow = sandbox.plant(image.with_name("flow.json"), json.dumps(graph).encode())
    return sandbox.run("smoke-test", "--server", server.url, "--workflow", flow, "--image", image, *more)


def test_a_video_of_a_workflow_is_kept_judged_and_shown(sandbox: Sandbox, server: ReplayServer, tmp_path: Path) -> None:
    film = animated("motion")
    only(server, webp=film)
    done = made(sandbox, server, tmp_path / "fox.png", "--json")
    assert done.returncode == 0, done.said
    told = done.json["details"]["smoke_test"]
    (entry,) = told["media"]
    assert (told["is_proven"], told["picture"], told["wish"]["width"]) == (True, None, 96)
    assert (entry["kind"], entry["format"], entry["sha256"]) == ("video", "WebP", sha256_of(film))
    assert (entry["path"], entry["frame"]["path"]) == (str(tmp_path / "fox.webp"), str(tmp_path / "fox-frame.png"))
    assert (tmp_path / "fox.webp").read_bytes() == film
    assert entry["frame"]["sha256"] == sha256_of(tmp_path / "fox-frame.png")
    assert entry["video"]["frames"] == 8
    assert told["images"][0]["verdict"] == entry["frame"]["verdict"]
    page = tmp_path / "page.html"
    assert sandbox.run("report", "--output", page).returncode == 0
    assert "The video, one frame of it, generated for the prompt" in page.read_text(encoding="utf-8")
    assert "data:image/png;base64," in page.read_text(encoding="utf-8")


FAULTS_OF_FILES: dict[str, tuple[dict[str, bytes], tuple[str, ...]]] = {  # what there is -> words of what is said
    "frozen": ({"webp": animated("frozen")}, ("The video is frozen",)),
    "another kind": ({"mp4": animated("motion")}, ("calls the video `.mp4`, but its bytes are WebP",)),
    "several": ({"webp": animated("motion"), "png": animated("black", "PNG")}, ("The video is black", "fox-2.webp")),
}


@pytest.mark.parametrize("name", FAULTS_OF_FILES)
def test_what_is_wrong_with_a_video_ends_with_9(
    name: str, sandbox: Sandbox, server: ReplayServer, tmp_path: Path
) -> None:
    files, said = FAULTS_OF_FILES[name]
    only(server, **files)
    done = made(sandbox, server, tmp_path / "fox.png")
    assert done.returncode == 9, done.said
    for words in said:
        assert words in done.said


@pytest.mark.skipif(importlib.util.find_spec("av") is not None, reason="this Python has PyAV, and decodes it")
def test_what_nothing_decodes_is_not_called_right(sandbox: Sandbox, server: ReplayServer, tmp_path: Path) -> None:
    only(server, flac=FLAC)
    done = made(sandbox, server, tmp_path / "song.png", "--json")
    assert done.returncode == 9
    told = done.json["details"]["smoke_test"]
    assert (told["is_proven"], told["media"][0]["decoder"], told["media"][0]["audio"]) == (False, None, None)
    (error,) = done.json["errors"]
    assert "it was not decoded: this Python has no PyAV that can be imported" in error["message"]
    assert "by its header it has 2.0 s, 44100 Hz and 2 channels" in error["message"]
    assert (tmp_path / "song.flac").read_bytes() == FLAC
