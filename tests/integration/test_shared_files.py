"""Two manifests in one tree: what they share is fetched once, and stays as long as one of them needs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.sandbox import Completed, Sandbox
from tests.support.stand_ins import write_stand_ins

ENCODER = "text_encoders/qwen_3_4b.safetensors"


class Two:
    """A tree for Klein and Z-Image-Turbo, which have the same text encoder."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        paths = write_stand_ins(sandbox.folder, sandbox.hub, "flux2-klein-4b", "z-image-turbo")
        self.klein, self.turbo = (str(paths[name]) for name in ("flux2-klein-4b", "z-image-turbo"))
        self.models = sandbox.tree / "models"
        self.encoder = self.models / ENCODER

    def run(self, *words: str) -> Completed:
        return self.sandbox.run(*words, "--comfyui", str(self.sandbox.tree))

    def install(self, manifest: str, chosen: str, *more: str) -> Completed:
        done = self.run("install", "--only", "files", "--manifest", manifest, "--set", chosen, *more)
        assert done.returncode == 0, done.said
        return done

    def verify(self, manifest: str, chosen: str) -> Completed:
        return self.run("verify", "--no-smoke", "--manifest", manifest, "--set", chosen)

    def fetches_of(self, name: str) -> int:
        """Return how many times the Hub was asked for a file's address."""
        return sum(each.path.endswith(name) for each in self.sandbox.heads())

    def receipt(self) -> dict[str, object]:
        return dict(json.loads((self.models / ".klein-setup" / "receipt.json").read_text(encoding="utf-8")))


@pytest.fixture
def two(sandbox: Sandbox) -> Two:
    return Two(sandbox)


def test_the_encoder_of_two_models_is_fetched_once_and_stays_with_the_second(two: Two) -> None:
    two.install(two.klein, "fp8")
    two.install(two.turbo, "bf16")
    assert two.fetches_of("qwen_3_4b.safetensors") == 1
    listed = two.receipt()["manifests"]
    assert isinstance(listed, dict)
    assert {name for name, files in listed.items() if ENCODER in files} == {"flux2-klein-4b", "z-image-turbo"}

    dry = two.run("uninstall", "--manifest", two.klein, "--dry-run")
    assert f"{two.encoder} stays: z-image-turbo needs it." in dry.said
    done = two.run("uninstall", "--manifest", two.klein, "--yes", "--json")
    assert done.returncode == 0, done.said
    assert not (two.models / "diffusion_models" / "flux-2-klein-4b-fp8.safetensors").exists()
    assert two.encoder.is_file()
    assert two.verify(two.turbo, "bf16").returncode == 0
    assert set(two.receipt()["manifests"]) == {"z-image-turbo"}  # type: ignore[call-overload]

    last = two.run("uninstall", "--manifest", two.turbo, "--yes")
    assert last.returncode == 0, last.said
    assert not two.models.exists()


def test_several_manifests_are_one_plan_with_each_file_once(two: Two) -> None:
    both = ("--manifest", two.klein, "--manifest", two.turbo)
    planned = two.run("plan", "--only", "files", *both, "--json")
    assert planned.returncode == 0, planned.said
    steps = [each["path"] for each in planned.json["steps"]]
    assert len(steps) == len(set(steps)) == 5  # three and three, one of them shared
    assert f"--manifest {two.klein} --manifest {two.turbo}" in planned.json["next_command"]
    done = two.run("install", "--only", "files", *both, "--json")
    assert done.returncode == 0, done.said
    assert two.fetches_of("qwen_3_4b.safetensors") == 1
    assert set(two.receipt()["manifests"]) == {"flux2-klein-4b", "z-image-turbo"}  # type: ignore[call-overload]
    assert two.run("verify", "--no-smoke", *both).returncode == 0
    two.encoder.write_bytes(b"\x00" + two.encoder.read_bytes()[1:])
    two.sandbox.expect(two.encoder, two.encoder.read_bytes())
    assert two.run("verify", "--no-smoke", *both).returncode == 1
    assert two.run("repair", "--only", "files", *both).returncode == 0
    alone = two.run("verify", "--no-smoke", "--manifest", two.turbo)  # each by itself is remembered, too
    assert alone.returncode == 0, alone.said


def test_verify_names_who_else_needs_a_wrong_file(two: Two) -> None:
    two.install(two.klein, "fp8")
    two.install(two.turbo, "bf16")
    two.encoder.write_bytes(b"\x00" + two.encoder.read_bytes()[1:])
    two.sandbox.expect(two.encoder, two.encoder.read_bytes())
    done = two.verify(two.klein, "fp8")
    assert done.returncode == 1
    assert f"{ENCODER} is part of z-image-turbo, too." in done.said


def test_without_a_manifest_everything_goes(two: Two) -> None:
    two.install(two.klein, "fp8")
    two.install(two.turbo, "bf16")
    done = two.sandbox.run("uninstall", "--yes", "--comfyui", str(two.sandbox.tree))
    assert done.returncode == 0, done.said
    assert not two.models.exists()


def test_a_planted_list_of_manifests_keeps_a_file_and_removes_none(two: Two) -> None:
    two.install(two.klein, "fp8")
    mine = two.sandbox.plant(two.models / "vae" / "mine.safetensors", b"my own")
    document = two.receipt()
    document["manifests"] = {
        "flux2-klein-4b": ["vae/mine.safetensors", "../outside", "loras/none.safetensors"],
        "an-intruder": [ENCODER, "../../etc/passwd"],
        "Not a name\x1b[31m": ["vae/flux2-vae.safetensors"],
        "z-image-turbo": "no list",
    }
    (two.models / ".klein-setup" / "receipt.json").write_text(json.dumps(document), encoding="utf-8")
    done = two.run("uninstall", "--manifest", two.klein, "--yes")
    assert done.returncode == 0, done.said
    assert mine.read_bytes() == b"my own"
    assert f"{two.encoder} stays: an-intruder needs it." in done.said
    assert "\x1b[31m" not in done.said
    assert two.encoder.is_file()
    assert not (two.models / "vae" / "flux2-vae.safetensors").exists()
    everything = two.sandbox.run("uninstall", "--yes", "--comfyui", str(two.sandbox.tree))
    assert everything.returncode == 0
    assert not two.encoder.exists()
    assert mine.read_bytes() == b"my own"


def test_a_planted_claim_about_a_file_that_no_manifest_names_removes_nothing(two: Two, tmp_path: Path) -> None:
    two.install(two.klein, "fp8")
    mine = two.sandbox.plant(two.models / "loras" / "mine.safetensors", b"my own")
    document = two.receipt()
    files = document["files"]
    assert isinstance(files, dict)
    status = mine.stat()
    entry = dict(next(iter(files.values())))
    import hashlib

    files["loras/mine.safetensors"] = entry | {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
        "sha256": hashlib.sha256(b"my own").hexdigest(),
        "blocks": [],
    }
    (two.models / ".klein-setup" / "receipt.json").write_text(json.dumps(document), encoding="utf-8")
    done = two.run("uninstall", "--manifest", two.klein, "--yes")
    assert done.returncode == 0, done.said
    assert mine.read_bytes() == b"my own"
    assert "1 more file here is of no manifest that was named" in done.said
    assert not two.encoder.exists()


@pytest.mark.parametrize("words", [("--set", "fp8"), ("--hf-cache",)])
def test_several_manifests_go_into_one_tree_with_the_sets_that_suit(two: Two, words: tuple[str, ...]) -> None:
    where = () if words == ("--hf-cache",) else ("--comfyui", str(two.sandbox.tree))
    done = two.sandbox.run("plan", "--manifest", two.klein, "--manifest", two.turbo, *words, *where)
    assert done.returncode == 2
    assert "Several manifests go into one ComfyUI tree" in done.said
    start = two.sandbox.run("smoke-test", "--graph", "--manifest", two.klein, "--manifest", two.turbo)
    assert start.returncode == 2
    assert "is about one manifest" in start.said
