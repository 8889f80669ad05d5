"""The JSON of a bundle: what is written is read back, and what a stick may hold instead is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from provisioner.bundle.image_layout import (
    BLOBS,
    LARGEST_JSON,
    MODEL_TYPE,
    MOST_MANIFEST_BYTES,
    MOST_PARTS,
    Blob,
    Listed,
    Part,
    artifacts_of,
    blob_artifacts,
    index_bytes,
    manifest_files,
    models_part,
    parse_index,
    parse_manifest,
)
from provisioner.core.errors import NotTheFileError
from provisioner.core.models import ArtifactSet
from tests.support.builders import artifact

ONE, TWO = artifact(b"one"), artifact(b"two")
WANTED = ArtifactSet(id="fp8", title="FP8", target="comfyui", artifacts=(ONE, TWO))
PART = models_part("klein", WANTED)


def listed_as(part: Part) -> tuple[Listed, bytes]:
    data, _ = manifest_files(part)
    return Listed(name=part.name, sha256=hashlib.sha256(data).hexdigest(), size=len(data)), data


def test_a_part_is_read_back_as_it_was_written() -> None:
    wheel = Blob(sha256="ab" * 32, size=7, title="torch-2.15.0-cp312.whl", kind="torch")
    comfyui = Part(
        name="comfyui", kind="comfyui", version="0.33.0", blobs=(Blob(sha256="c" * 64, size=1, title="x.zip"),)
    )
    program = Part(name="klein-setup", kind="program", blobs=(wheel,), version="0.1.0")
    for part in (PART, Part(name="wheels/linux", kind="wheels", blobs=(wheel,)), comfyui, program):
        listed, data = listed_as(part)
        again = parse_manifest(listed, data)
        assert again == part
        assert again is not None
        assert again.manifest_sha256 == listed.sha256
        assert parse_index(index_bytes([listed])) == (listed,)


def test_a_manifest_of_model_files_is_a_modelpack_manifest() -> None:
    manifest, config = (json.loads(each) for each in manifest_files(PART))
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == MODEL_TYPE == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert manifest["config"]["digest"] == f"sha256:{hashlib.sha256(manifest_files(PART)[1]).hexdigest()}"
    first = manifest["layers"][0]
    assert first["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"
    assert (first["digest"], first["size"]) == (f"sha256:{ONE.sha256}", ONE.size)
    assert first["annotations"]["org.cncf.model.filepath"] == f"{ONE.folder}/{ONE.name}"
    assert config["modelfs"]["diffIds"] == [f"sha256:{each.sha256}" for each in WANTED.artifacts]


def test_the_same_part_gives_the_same_bytes_and_the_index_is_in_order() -> None:
    assert manifest_files(PART) == manifest_files(models_part("klein", WANTED))
    rows = [Listed(name=name, sha256="0" * 64, size=1) for name in ("b", "a")]
    assert index_bytes(rows) == index_bytes(reversed(rows))


def test_files_of_a_set_become_blobs_once_for_each_content() -> None:
    found = blob_artifacts((ONE, TWO, ONE))
    assert [each.sha256 for each in found] == [ONE.sha256, TWO.sha256]
    assert {(each.folder, each.name) for each in found} == {(BLOBS, ONE.sha256), (BLOBS, TWO.sha256)}
    assert all(each.accept == () and each.sources for each in found)
    assert [each.id for each in artifacts_of((PART, PART))] == [f"{each.folder}/{each.name}" for each in (ONE, TWO)]
    assert PART.size == ONE.size + TWO.size


def changed(document: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> bytes:
    copied = json.loads(json.dumps(document))
    change(copied)
    return json.dumps(copied).encode()


INDEX = json.loads(index_bytes([listed_as(PART)[0]]))
MANIFEST = json.loads(manifest_files(PART)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda each: each.pop("manifests"), "no list of manifests"),
        (lambda each: each.update(manifests={}), "no list of manifests"),
        (lambda each: each["manifests"][0].update(digest="sha512:00"), "no SHA-256"),
        (lambda each: each["manifests"][0].update(digest="sha256:../../x"), "no SHA-256"),
        (lambda each: each["manifests"][0].update(size=LARGEST_JSON + 1), "a size that no file has"),
        (lambda each: each["manifests"][0].update(size=True), "a size that no file has"),
        (lambda each: each["manifests"].extend(each["manifests"]), "two manifests alike"),
        (lambda each: each.update(manifests=each["manifests"] * (MOST_PARTS + 1)), "at most 5,000"),
        (
            lambda each: each.update(manifests=[{**each["manifests"][0], "size": LARGEST_JSON}] * 5),
            "at most 16,777,216",
        ),
    ],
)
def test_an_index_that_is_none_of_a_bundle_is_refused(change: Callable[[dict[str, Any]], object], words: str) -> None:
    with pytest.raises(NotTheFileError, match=words):
        parse_index(changed(INDEX, change))


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"{}" + b" " * LARGEST_JSON])
def test_what_is_no_json_object_of_that_size_is_refused(data: bytes) -> None:
    with pytest.raises(NotTheFileError):
        parse_index(data)
    with pytest.raises(NotTheFileError):
        parse_manifest(Listed(name="x", sha256=hashlib.sha256(data).hexdigest(), size=len(data)), data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda each: each["layers"][0].update(digest="sha256:" + "A" * 64), "no SHA-256"),
        (lambda each: each["layers"][0].update(digest=None), "no SHA-256"),
        (lambda each: each["layers"][0].update(size=-1), "a size that no file has"),
        (lambda each: each["layers"][0].update(size="1"), "a size that no file has"),
        (lambda each: each["layers"][0].update(annotations={}), "without a title"),
        (
            lambda each: each["layers"][0].update(annotations={"org.opencontainers.image.title": "a\x1b[2J"}),
            "without a t",
        ),
        (lambda each: each.update(layers=each["layers"] * MOST_PARTS), "at most 5,000"),
        (lambda each: each.pop("config"), "no SHA-256"),
        (lambda each: each["config"].update(size=LARGEST_JSON + 1), "a size that no file has"),
    ],
)
def test_a_malformed_manifest_is_refused(change: Callable[[dict[str, Any]], object], words: str) -> None:
    data = changed(MANIFEST, change)
    with pytest.raises(NotTheFileError, match=words):
        parse_manifest(Listed(name="x", sha256=hashlib.sha256(data).hexdigest(), size=len(data)), data)


def test_another_manifest_than_the_index_names_is_refused_and_one_of_others_is_passed_over() -> None:
    listed, data = listed_as(PART)
    with pytest.raises(NotTheFileError, match="its SHA-256 is another"):
        parse_manifest(listed, data + b" ")
    other = changed(MANIFEST, lambda each: each.update(artifactType="application/vnd.docker.container"))
    assert parse_manifest(Listed(name="x", sha256=hashlib.sha256(other).hexdigest(), size=len(other)), other) is None


def test_a_title_never_becomes_a_path() -> None:
    hostile = Part(name="x", kind="models", blobs=(Blob(sha256="e" * 64, size=1, title="../../etc/passwd"),))
    (found,) = artifacts_of((hostile,))
    assert (found.folder, found.name) == (BLOBS, "e" * 64)


def test_the_manifests_of_one_index_are_read_up_to_a_total_however_often_one_is_named() -> None:
    rows = [Listed(name=str(number), sha256="0" * 64, size=LARGEST_JSON) for number in range(4)]
    assert sum(each.size for each in rows) == MOST_MANIFEST_BYTES
    assert parse_index(index_bytes(rows)) == tuple(rows)
    with pytest.raises(NotTheFileError, match="names manifests of 16,777,217 bytes"):
        parse_index(index_bytes([*rows, Listed(name="x", sha256="0" * 64, size=1)]))


def test_the_config_that_a_manifest_names_is_a_file_of_the_bundle() -> None:
    listed, data = listed_as(PART)
    part = parse_manifest(listed, data)
    assert part is not None
    config = manifest_files(PART)[1]
    assert (hashlib.sha256(config).hexdigest(), len(config)) in {
        (each.sha256, each.size) for each in artifacts_of([part])
    }
