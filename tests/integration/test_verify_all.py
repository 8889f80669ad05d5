"""`verify --all` and the pairing of the three files, with the real command on files with true headers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.model_headers import Table, header_bytes_of, klein_4b, published, qwen3_8b
from tests.support.studio import KLEIN, MODEL
from tests.support.world import Completed, World, tensors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="NTFS reserves what `truncate` asks for")


END = b"\x01" * 65_536  # a file that ends in zeros is a hole of its own kind


def sparse(path: Path, table: Table, metadata: dict[str, str] | None = None, *, short_by: int = 0) -> Path:
    """Make a file with a true header and its true size, gigabytes that take no room."""
    first, size = header_bytes_of(table, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(first)
        stream.seek(size - short_by - len(END))
        stream.write(END)
    return path


def found(run: Completed) -> dict[str, str]:
    """Return the code of each finding by the file it is about."""
    return {Path(each["path"]).name: each["code"] for each in run.json["findings"] if each["path"]}


def test_every_other_file_of_the_folder_is_looked_at_and_none_is_touched(world: World) -> None:
    world.publish(tensors(2000))
    assert world.install("--only", "files").returncode == 0
    models = world.tree / "models"
    world.plant(models / "loras" / "page.safetensors", b"<!DOCTYPE html><html><body>Sign in</body></html>")
    world.plant(models / "loras" / "sound.safetensors", tensors(3000))
    world.plant(models / "checkpoints" / "old.ckpt", b"\x80\x02}q\x00.")
    world.plant(models / "vae" / "begun.safetensors.crdownload", tensors(4000)[:900])
    name, table, metadata = next(each for each in published() if each[0] == "flux2-vae-ldm")
    sparse(models / "loras" / f"{name}.safetensors", table, metadata)
    sparse(models / "unet" / "klein.safetensors", klein_4b(), short_by=1)
    before = world.snapshot()
    seen = world.run("verify", "--all", "--json")
    assert seen.returncode == 1
    assert found(seen) == {
        "page.safetensors": "broken-model",
        "old.ckpt": "pickle",
        "begun.safetensors.crdownload": "unfinished-file",
        f"{name}.safetensors": "wrong-folder",
        "klein.safetensors": "broken-model",
    }
    assert seen.json["next_command"] is None  # nothing of ours mends what is the user's
    assert [each["status"] for each in seen.json["checks"]] == ["ok"]
    after = world.snapshot()
    assert {path: after[path] for path in before if str(models) in path} == {
        path: state for path, state in before.items() if str(models) in path
    }
    plain = world.run("verify", "--json")
    assert (plain.returncode, found(plain)) == (0, {})


def test_an_encoder_of_the_other_model_is_named_with_what_comfyui_will_say(world: World) -> None:
    world.publish(*KLEIN)
    assert world.install("--only", "files").returncode == 0
    _, encoder, _ = KLEIN
    for wanted, table in ((MODEL, klein_4b()), (encoder, qwen3_8b())):
        world.path(wanted).unlink()
        sparse(world.path(wanted), table)
    world.files = ()  # gigabytes of zeros are not to be digested after every run
    seen = world.run("verify", "--json")
    assert seen.returncode == 1
    said = " ".join(each["message"] for each in seen.json["findings"])
    assert "mat1 and mat2 shapes cannot be multiplied (512x12288 and 7680x3072)" in said
