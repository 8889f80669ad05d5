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
from provisioner.manifest.manifest_cache import Documents
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_manifest_text, shipped_manifests
from provisioner.manifest.strict_yaml import Issues, compose, node_of, plain_of
from tests.support.world import World

NAME = "flux2-klein-4b"


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    """Trees in a folder that does not exist yet."""
    return Documents(lambda: tmp_path / "state" / "manifests")


def kept(documents: Documents) -> list[Path]:
    """Return the files there are, the oldest first."""
    return sorted(documents.folder().glob("*"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("name", shipped_manifests())
def test_a_manifest_from_its_tree_is_the_manifest_from_its_text(documents: Documents, name: str) -> None:
    text, file = read_manifest_text(name)
    read = parse_manifest(text, file=file)
    assert parse_manifest(text, file=file, composer=documents.keep) == read
    assert len(kept(documents)) == 1
    assert parse_manifest(text, file=file, composer=documents.recall) == read


def test_the_tree_is_what_a_quick_look_reads(documents: Documents) -> None:
    text, file = read_manifest_text(NAME)
    title = parse_manifest(text, file=file, composer=documents.keep).title
    (path,) = kept(documents)
    path.write_text(path.read_text(encoding="utf-8").replace(title, "Another"), encoding="utf-8")
    assert parse_manifest(text, file=file, composer=documents.recall).title == "Another"
    assert parse_manifest(text, file=file, composer=documents.keep).title == title  # and puts it right
    assert parse_manifest(text, file=file, composer=documents.recall).title == title


def test_looking_writes_nothing_and_keeping_writes_once(documents: Documents) -> None:
    text, file = read_manifest_text(NAME)
    parse_manifest(text, file=file, composer=documents.recall)
    assert not documents.folder().exists()
    parse_manifest(text, file=file, composer=documents.keep)
    (path,) = kept(documents)
    os.utime(path, ns=(1, 1))
    parse_manifest(text, file=file, composer=documents.keep)
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
def test_what_is_no_tree_is_passed_over(documents: Documents, spoil: Callable[[bytes], bytes]) -> None:
    text, file = read_manifest_text(NAME)
    read = parse_manifest(text, file=file, composer=documents.keep)
    (path,) = kept(documents)
    path.write_bytes(spoil(path.read_bytes()))
    assert parse_manifest(text, file=file, composer=documents.recall) == read


@pytest.mark.parametrize("change", [without_one_key, outside_the_tree])
def test_a_tree_of_other_hands_says_no_more_than_a_manifest_could(
    documents: Documents, change: Callable[[Any], object]
) -> None:
    text, file = read_manifest_text(NAME)
    parse_manifest(text, file=file, composer=documents.keep)
    (path,) = kept(documents)
    path.write_bytes(in_tree(change)(path.read_bytes()))
    with pytest.raises(ManifestError):
        parse_manifest(text, file=file, composer=documents.recall)


@pytest.mark.parametrize("text", ["id: a\nid: b\n", "id: &a x\n", "id: [1, 2\n", ""])
def test_a_text_with_complaints_is_not_kept(documents: Documents, text: str) -> None:
    for composer in (documents.keep, documents.recall, compose):
        with pytest.raises(ManifestError) as raised:
            parse_manifest(text, file="x.yaml", composer=composer)
        assert raised.value.context["file"] == "x.yaml"
    assert not documents.folder().exists()


def test_a_few_are_kept_and_the_oldest_go(documents: Documents) -> None:
    for number in range(12):
        documents.keep(f"id: text-{number}\n", Issues("x", hint="y"))
        newest = max(kept(documents), key=lambda path: path.stat().st_ctime_ns)
        os.utime(newest, ns=(number, number))
    assert [path.stat().st_mtime_ns for path in kept(documents)] == list(range(4, 12))


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    documents = Documents(lambda: tmp_path / "state" / "manifests")
    text, file = read_manifest_text(NAME)
    assert parse_manifest(text, file=file, composer=documents.keep).id == NAME
    assert parse_manifest(text, file=file, composer=documents.recall).id == NAME


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


def test_a_quick_look_brings_in_neither_yaml_nor_inspect(world: World) -> None:
    world.publish(bytes(3_000_000))
    assert world.install().returncode == 0
    look = partial(world.run, "verify", "--quick", "--manifest", world.manifest, "--comfyui", world.tree)
    done = look(env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "provisioner.files.observe" in imported
    assert not imported & {"yaml", "dataclasses", "inspect", "requests", "huggingface_hub", "rich", "logging"}, sorted(
        imported
    )
