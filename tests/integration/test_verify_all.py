"""`verify --all` and the pairing of the three files, with the real command on files with true headers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.model_headers import Table, header_bytes_of, klein_4b, published, qwen3_8b, qwen3_vl_4b
from tests.support.sandbox import Completed, Sandbox, tensors
from tests.support.setup_fixture import KLEIN, MODEL

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


def test_every_other_file_of_the_folder_is_looked_at_and_none_is_touched(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(2000))
    assert sandbox.install("--only", "files").returncode == 0
    models = sandbox.tree / "models"
    sandbox.plant(models / "loras" / "page.safetensors", b"<!DOCTYPE html><html><body>Sign in</body></html>")
    sandbox.plant(models / "loras" / "sound.safetensors", tensors(3000))
    sandbox.plant(models / "checkpoints" / "old.ckpt", b"\x80\x02}q\x00.")
    sandbox.plant(models / "vae" / "begun.safetensors.crdownload", tensors(4000)[:900])
    name, table, metadata = next(each for each in published() if each[0] == "flux2-vae-ldm")
    sparse(models / "loras" / f"{name}.safetensors", table, metadata)
    sparse(models / "unet" / "klein.safetensors", klein_4b(), short_by=1)
    before = sandbox.snapshot()
    seen = sandbox.run("verify", "--all", "--json")
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
    after = sandbox.snapshot()
    assert {path: after[path] for path in before if str(models) in path} == {
        path: state for path, state in before.items() if str(models) in path
    }
    plain = sandbox.run("verify", "--json")
    assert (plain.returncode, found(plain)) == (0, {})


def test_an_encoder_of_the_other_model_is_named_with_what_comfyui_will_say(sandbox: Sandbox) -> None:
    sandbox.publish(*KLEIN)
    assert sandbox.install("--only", "files").returncode == 0
    _, encoder, _ = KLEIN
    for wanted, table in ((MODEL, klein_4b()), (encoder, qwen3_8b())):
        sandbox.path(wanted).unlink()
        sparse(sandbox.path(wanted), table)
    sandbox.files = ()  # gigabytes of zeros are not to be digested after every run
    seen = sandbox.run("verify", "--json")
    assert seen.returncode == 1
    said = " ".join(each["message"] for each in seen.json["findings"])
    assert "mat1 and mat2 shapes cannot be multiplied (512x12288 and 7680x3072)" in said
    sparse(sandbox.path(encoder), qwen3_vl_4b())  # which ComfyUI loads without a word
    seen = sandbox.run("verify", "--json")
    (wrong,) = [each for each in seen.json["findings"] if each["code"] == "wrong-encoder"]
    assert "the text encoder is a Qwen3-VL-4B text encoder, BF16, for Krea 2 and Mage-Flow." in wrong["message"]
    assert "ComfyUI loads it without an error, and images can degrade" in wrong["message"]
