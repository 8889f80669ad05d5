"""A locked manifest says the same as the one it came from, and exactly what lies here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from provisioner.core.errors import LockDriftError, ManifestError
from provisioner.core.models import BLOCK_SIZE, Lock, Manifest, Source, UrlFile
from provisioner.manifest.entries import manifest_text, memory_text
from provisioner.manifest.lock_file import Verified, drift_from, locked_text, refuse_drift
from provisioner.manifest.parse import parse_manifest
from provisioner.oci.reference import parse_reference

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
LOCK = Lock(
    manifest_sha256="ab" * 32,
    locked_on="2026-11-23",
    torch_backend="cu130",
    torch="2.11.0",
    torch_wheels=(("torch-2.11.0+cu130-cp312-cp312-win_amd64.whl", "ef" * 32),),
    comfyui_commit="2f" * 20,
    comfyui_version="0.33.0",
    version=7,
    expires="2027-02-28",
    bundle_parts=(("comfyui", "cd" * 32),),
)


def shipped(name: str) -> Manifest:
    return parse_manifest((MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8"), file=name)


def proofs(manifest: Manifest, set_id: str) -> dict[str, Verified]:
    wanted = manifest.set_named(set_id)
    assert wanted is not None
    return {
        each.id: Verified(size=each.size, sha256=each.sha256, blocks=("cd" * 32,) * -(-each.size // BLOCK_SIZE))
        for each in wanted.artifacts
    }


CASES = [(name, each.id) for name in ("flux2-klein-4b", "flux2-klein-9b") for each in shipped(name).sets]


def test_a_digest_that_begins_like_a_number_is_quoted() -> None:
    manifest = shipped("flux2-klein-4b")
    odd = replace(manifest, artifacts=(replace(manifest.artifacts[0], sha256="0b" + "25d1" * 15 + "43"),), sets=())
    text = manifest_text(odd)
    assert "sha256: '0b25d1" in text
    assert "sha256: 0b25d1" not in text


@pytest.mark.parametrize(("name", "set_id"), CASES)
def test_every_shipped_set_is_locked_and_read_again_as_it_was(name: str, set_id: str) -> None:
    manifest = shipped(name)
    wanted = manifest.set_named(set_id)
    assert wanted is not None
    text = locked_text(manifest, wanted, proofs(manifest, set_id), LOCK)
    again = parse_manifest(text, file="locked")
    assert again.lock == LOCK
    assert again.licence == manifest.licence
    (only,) = again.sets
    assert again.default_set == set_id
    stripped = [replace(each, blocks=()) for each in only.artifacts]
    assert stripped == [replace(each, accept=()) for each in wanted.artifacts]
    assert replace(only, artifacts=()) == replace(wanted, artifacts=())
    assert all(len(each.blocks) == -(-each.size // BLOCK_SIZE) for each in only.artifacts)
    schema = json.loads((MANIFESTS / "schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load(text), schema)


@pytest.mark.parametrize("is_stand_in", [True, False])
def test_what_is_made_up_stays_so_when_it_is_locked(is_stand_in: bool) -> None:
    manifest = replace(shipped("flux2-klein-4b"), is_stand_in=is_stand_in)
    text = locked_text(manifest, manifest.sets[0], proofs(manifest, manifest.sets[0].id), LOCK)
    assert parse_manifest(text, file="locked").is_stand_in is is_stand_in
    jsonschema.validate(yaml.safe_load(text), json.loads((MANIFESTS / "schema.json").read_text(encoding="utf-8")))


def test_a_content_that_was_accepted_instead_is_what_is_locked() -> None:
    manifest = shipped("flux2-klein-4b")
    wanted = manifest.sets[0]
    vae = next(each for each in wanted.artifacts if each.accept)
    other = vae.accept[0]
    here = proofs(manifest, wanted.id)
    here[vae.id] = Verified(size=other.size, sha256=other.sha256, blocks=("ee" * 32,) * -(-other.size // BLOCK_SIZE))
    again = parse_manifest(locked_text(manifest, wanted, here, LOCK), file="locked")
    locked = next(each for each in again.artifacts if each.id == vae.id)
    assert (locked.size, locked.sha256, locked.accept) == (other.size, other.sha256, ())
    assert locked.sources == (other.sources or vae.sources)


@pytest.mark.parametrize(
    "mirror",
    [
        UrlFile(url="https://mirror.example/vae.safetensors"),
        parse_reference(f"oci://registry.example:5000/models:v1@sha256:{'ab' * 32}"),
    ],
)
def test_a_mirror_is_locked_as_the_address_it_is(mirror: Source) -> None:
    manifest = shipped("flux2-klein-4b")
    wanted = manifest.sets[0]
    first = replace(wanted.artifacts[0], sources=(*wanted.artifacts[0].sources, mirror))
    mirrored = replace(wanted, artifacts=(first, *wanted.artifacts[1:]))
    again = parse_manifest(locked_text(manifest, mirrored, proofs(manifest, wanted.id), LOCK), file="locked")
    assert again.sets[0].artifacts[0].sources == first.sources


def test_nothing_is_locked_that_was_not_verified() -> None:
    manifest = shipped("flux2-klein-4b")
    here = proofs(manifest, "fp8")
    name = next(iter(here))
    for wrong in (None, replace(here[name], sha256="00" * 32), replace(here[name], blocks=())):
        changed = {key: value for key, value in {**here, name: wrong}.items() if value is not None}
        with pytest.raises(ManifestError, match=r"klein|flux"):
            locked_text(manifest, manifest.sets[0], changed, LOCK)


@pytest.mark.parametrize("wrong", [["ab" * 32], ["xy" * 32], "ab" * 32, []])
def test_block_digests_that_cannot_be_right_are_complained_about(wrong: object) -> None:
    manifest = shipped("flux2-klein-4b")
    document = yaml.safe_load(locked_text(manifest, manifest.sets[0], proofs(manifest, "fp8"), LOCK))
    document["artifacts"][0]["blocks"] = wrong
    with pytest.raises(ManifestError) as raised:
        parse_manifest(yaml.safe_dump(document), file="locked.yaml")
    assert any("artifacts[0].blocks" in issue for issue in raised.value.issues)


def test_drift_is_told_for_what_is_known_and_differs() -> None:
    assert drift_from(LOCK, torch_backend="cu130", torch="2.11.0+cu130", comfyui_commit="2f" * 20) == ()
    assert drift_from(LOCK, torch_backend=None, torch=None, comfyui_commit=None) == ()
    ((name, _),) = LOCK.torch_wheels
    wheels = ((name, "00" * 32), ("torch-2.11.0+cu130-cp311-cp311-win_amd64.whl", "00" * 32))
    (other,) = drift_from(LOCK, torch_backend=None, torch=None, comfyui_commit=None, torch_wheels=wheels)
    assert name in other
    assert "ef" * 32 in other
    told = drift_from(LOCK, torch_backend="cu128", torch="2.13.0+cu128", comfyui_commit="00" * 20)
    assert [sentence.split(" is ")[0] for sentence in told] == ["torch", "torch's build", "ComfyUI's commit"]


def test_locked_refuses_drift_and_what_is_not_locked() -> None:
    manifest = shipped("flux2-klein-4b")
    with pytest.raises(ManifestError, match="not locked"):
        refuse_drift(manifest, ())
    locked = replace(manifest, lock=LOCK)
    refuse_drift(locked, ())
    with pytest.raises(LockDriftError, match="2026-11-23: torch is 2"):
        refuse_drift(locked, ("torch is 2 here and 3 in the lock",))


UNITS = {"MiB": 2**20, "GiB": 2**30, "MB": 10**6, "GB": 10**9}


@given(thousandths=st.integers(min_value=1000, max_value=999_999_999), unit=st.sampled_from(sorted(UNITS)))
@example(thousandths=8_400, unit="GB")
@example(thousandths=10_702_000, unit="MiB")
def test_every_amount_of_memory_a_manifest_can_name_is_written_so_that_it_reads_as_the_same(
    thousandths: int, unit: str
) -> None:
    count = round(float(f"{thousandths // 1000}.{thousandths % 1000:03}") * UNITS[unit])
    number, written = str(memory_text(count)).split()
    assert round(float(number) * UNITS[written]) == count
