"""The tree of a manifest is kept for the next quick look, and is worth no more than the text it was read from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from provisioner.core.errors import ManifestError
from provisioner.manifest.manifest_cache import ManifestCache
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_manifest_text, shipped_manifests
from provisioner.manifest.strict_yaml import Issues, compose, node_of, plain_of
from tests.support.sandbox import Sandbox

NAME = "flux2-klein-4b"


@pytest.fixture
def manifest_cache(tmp_path: Path) -> ManifestCache:
    """Trees in a folder that does not exist yet."""
    return ManifestCache(lambda: tmp_path / "state" / "manifests")


def kept(manifest_cache: ManifestCache) -> list[Path]:
    """Return the files there are, the oldest first."""
    return sorted(manifest_cache.folder().glob("*"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("name", shipped_manifests())
def test_a_manifest_from_its_tree_is_the_manifest_from_its_text(manifest_cache: ManifestCache, name: str) -> None:
    text, file = read_manifest_text(name)
    read = parse_manifest(text, file=file)
    assert parse_manifest(text, file=file, composer=manifest_cache.keep) == read
    assert len(kept(manifest_cache)) == 1
    assert parse_manifest(text, file=file, composer=manifest_cache.recall) == read


def test_the_tree_is_what_a_quick_look_reads(manifest_cache: ManifestCache) -> None:
    text, file = read_manifest_text(NAME)
    title = parse_manifest(text, file=file, composer=manifest_cache.keep).title
    (path,) = kept(manifest_cache)
    path.write_text(path.read_text(encoding="utf-8").replace(title, "Another"), encoding="utf-8")
    assert parse_manifest(text, file=file, composer=manifest_cache.recall).title == "Another"
    assert parse_manifest(text, file=file, composer=manifest_cache.keep).title == title  # and puts it right
    assert parse_manifest(text, file=file, composer=manifest_cache.recall).title == title


def test_looking_writes_nothing_and_keeping_writes_once(manifest_cache: ManifestCache) -> None:
    text, file = read_manifest_text(NAME)
    parse_manifest(text, file=file, composer=manifest_cache.recall)
    assert not manifest_cache.folder().exists()
    parse_manifest(text, file=file, composer=manifest_cache.keep)
    (path,) = kept(manifest_cache)
    os.utime(path, ns=(1, 1))
    parse_manifest(text, file=file, composer=manifest_cache.keep)
    assert path.stat().st_mtime_ns == 1


def in_tree(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    """Return what changes the kept document."""

    def changed(content: bytes) -> bytes:
        whole = json.loads(content)
        whole["document"] = change(whole["document"])
        return json.dumps(whole).encode()

    return changed


def without_one_key(document: Any) -> object:  # noqa: ANN401 - JSON
    """Leave out what a manifest must have."""
    del document[1]["artifacts"]
    return document


def outside_the_tree(document: Any) -> object:  # noqa: ANN401 - JSON
    """Let the first artifact climb out of the folder."""
    first = document[1]["artifacts"][1][1][0]
    first[1]["folder"][1][1] = "../../elsewhere"
    return document


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda content: content[:-200], id="cut"),
        pytest.param(lambda _: b"[]", id="a list"),
        pytest.param(lambda _: b'{"klein_setup": "0"}', id="of another version"),
        pytest.param(lambda _: b"\xff\xfe", id="not UTF-8"),
        pytest.param(lambda _: b"[" * 100_000, id="deep"),
        pytest.param(in_tree(lambda _: None), id="no tree"),
        pytest.param(in_tree(lambda _: [1, "x"]), id="half a scalar"),
        pytest.param(in_tree(lambda _: [1, {"id": [1]}]), id="half an entry"),
        pytest.param(in_tree(lambda _: [1, {"id": ["1", [1, "x", True]]}]), id="a line in words"),
        pytest.param(in_tree(lambda _: ["1", []]), id="a list in a line of words"),
    ],
)
def test_what_is_no_tree_is_passed_over(manifest_cache: ManifestCache, spoil: Callable[[bytes], bytes]) -> None:
    text, file = read_manifest_text(NAME)
    read = parse_manifest(text, file=file, composer=manifest_cache.keep)
    (path,) = kept(manifest_cache)
    path.write_bytes(spoil(path.read_bytes()))
    assert parse_manifest(text, file=file, composer=manifest_cache.recall) == read


@pytest.mark.parametrize("change", [without_one_key, outside_the_tree])
def test_a_tree_of_other_hands_says_no_more_than_a_manifest_could(
    manifest_cache: ManifestCache, change: Callable[[Any], object]
) -> None:
    text, file = read_manifest_text(NAME)
    parse_manifest(text, file=file, composer=manifest_cache.keep)
    (path,) = kept(manifest_cache)
    path.write_bytes(in_tree(change)(path.read_bytes()))
    with pytest.raises(ManifestError):
        parse_manifest(text, file=file, composer=manifest_cache.recall)


@pytest.mark.parametrize("text", ["id: a\nid: b\n", "id: &a x\n", "id: [1, 2\n", ""])
def test_a_text_with_complaints_is_not_kept(manifest_cache: ManifestCache, text: str) -> None:
    for composer in (manifest_cache.keep, manifest_cache.recall, compose):
        with pytest.raises(ManifestError) as raised:
            parse_manifest(text, file="x.yaml", composer=composer)
        assert raised.value.context["file"] == "x.yaml"
    assert not manifest_cache.folder().exists()


def test_a_few_are_kept_and_the_oldest_go(manifest_cache: ManifestCache) -> None:
    for number in range(12):
        manifest_cache.keep(f"id: text-{number}\n", Issues("x", hint="y"))
        newest = max(kept(manifest_cache), key=lambda path: path.stat().st_ctime_ns)
        os.utime(newest, ns=(number, number))
    assert [path.stat().st_mtime_ns for path in kept(manifest_cache)] == list(range(4, 12))


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    manifest_cache = ManifestCache(lambda: tmp_path / "state" / "manifests")
    text, file = read_manifest_text(NAME)
    assert parse_manifest(text, file=file, composer=manifest_cache.keep).id == NAME
    assert parse_manifest(text, file=file, composer=manifest_cache.recall).id == NAME


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(JSON)
@example([0, "", 5])
@example([0, [], 5])
@example([0, {"": [0, [0, "", True], 5]}])
def test_any_json_is_a_tree_or_refused(value: object) -> None:
    try:
        node = node_of(value)
    except (LookupError, TypeError, ValueError):
        return
    assert plain_of(node) == value


@given(st.recursive(st.text("ab1 ", max_size=4), lambda inner: st.lists(inner, max_size=3)))
def test_a_tree_survives_being_kept(value: object) -> None:
    node = compose(json.dumps({"x": value}), Issues("x", hint="y"))
    plain = plain_of(node)
    assert plain_of(node_of(json.loads(json.dumps(plain)))) == plain


def test_a_quick_look_brings_in_nothing_heavy(sandbox: Sandbox) -> None:
    sandbox.publish(bytes(3_000_000))
    assert sandbox.install().returncode == 0
    look = partial(sandbox.run, "verify", "--quick", "--manifest", sandbox.manifest, "--comfyui", sandbox.tree)
    done = look(env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "provisioner.files.observe" in imported
    assert not imported & {"yaml", "requests", "huggingface_hub", "rich", "logging"}, sorted(imported)
