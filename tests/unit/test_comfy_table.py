"""The table of ComfyUI releases: what the shipped one says, and that every mistake in one is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioner.comfyui.releases import is_at_least, parse_comfy_table, version_key
from provisioner.core.errors import ManifestError
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_table_text, shipped_manifests

TEXT, FILE = read_table_text("comfyui")
TABLE = parse_comfy_table(TEXT, file=FILE)


def issues_of(text: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_comfy_table(text, file="c.yaml")
    return list(caught.value.issues)


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def changed(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


# --- the shipped table ------------------------------------------------------------------------------


def test_the_shipped_table_is_no_model_manifest() -> None:
    assert FILE == "comfyui.yaml"
    assert "comfyui" not in shipped_manifests()
    with pytest.raises(ManifestError):
        parse_manifest(TEXT, file=FILE)


def test_a_table_that_is_missing_is_an_error_of_the_manifests(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"comfyui\.yaml: there is no such file"):
        read_table_text("comfyui", tmp_path)
    (tmp_path / "comfyui.yaml").write_bytes(b"\xef\xbb\xbfschema_version: 1\n")
    assert read_table_text("comfyui", tmp_path) == ("schema_version: 1\n", "comfyui.yaml")


def test_the_pinned_release_is_a_commit_with_its_tree() -> None:
    assert TABLE.repository == "https://github.com/Comfy-Org/ComfyUI"
    assert TABLE.pinned.version == "0.33.0"
    assert TABLE.pinned.commit == "2f35f4a08176d993cded35dac3332be4f7287f41"
    assert TABLE.pinned.tree == "668784f3dcf05f5adb6d12ee551dc476e2f56e46"
    assert TABLE.pinned.released == "2026-08-13"


def test_klein_came_with_0_9_2_and_its_memory_was_put_right_in_0_10_0() -> None:
    assert (TABLE.minimum.version, TABLE.advised.version) == ("0.9.2", "0.10.0")


def test_releases_are_newest_first_and_found_by_version() -> None:
    assert [each.version for each in TABLE.releases] == ["0.33.1", "0.33.0", "0.32.0", "0.31.0", "0.9.2"]
    assert TABLE.release("0.33.0") == TABLE.pinned
    assert TABLE.release("0.36.0") is None


def test_the_newest_release_that_was_heard_of_is_named_with_its_day() -> None:
    assert TABLE.newest_seen is not None
    assert (TABLE.newest_seen.version, TABLE.newest_seen.released) == ("0.46.0", "2026-11-18")


def test_a_manifest_asks_for_no_older_comfyui_than_the_minimum_of_klein() -> None:
    for name in (each for each in shipped_manifests() if "klein" in each):
        text = (Path(__file__).resolve().parents[2] / "manifests" / f"{name}.yaml").read_text(encoding="utf-8")
        for each in parse_manifest(text, file=name).artifacts:
            if each.min_comfyui is not None and each.role == "diffusion_model":
                assert is_at_least(each.min_comfyui, TABLE.minimum.version), each.id


# --- versions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "bound", "expected"),
    [
        ("0.33.0", "0.9.2", True),
        ("0.9.2", "0.10.0", False),
        ("v0.10.0", "0.10.0", True),
        ("0.9.2-3-gabcdef0", "0.9.2", True),
        ("0.9", "0.9.2", False),
        (" 1.0.0\n", "0.33.0", True),
        ("unknown", "0.9.2", None),
        ("", "0.9.2", None),
    ],
)
def test_versions_are_compared_part_by_part(version: str, bound: str, expected: bool | None) -> None:
    assert is_at_least(version, bound) is expected


def test_a_version_is_the_number_at_its_beginning() -> None:
    assert version_key("v0.33.0-5-g783545f6") == (0, 33, 0)


# --- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('pinned: "0.33.0"', "pinned: 0.33.2", "pinned: is '0.33.2', which is not in 'releases'"),
        ('pinned: "0.33.0"', 'pinned: "0.32.0"', "pinned: is 0.32.0, whose release has no 'tree'"),
        ('pinned: "0.33.0"', 'pinned: "0.33"', "pinned: is '0.33'; expected a quoted version"),
        ('pinned: "0.33.0"\n', "", "pinned: is missing"),
        ('pinned: "0.33.0"', 'pin: "0.33.0"', "pin: is not a key here; did you mean 'pinned'?"),
        ("github.com/Comfy-Org/ComfyUI", "github.com/Comfy-Org/ComfyUI.git", "repository: is 'https://github.com"),
        ("https://github.com/", "http://github.com/", "expected an https address without '.git'"),
        ("https://github.com/", "https://me:secret@github.com/", "repository: is 'https://"),
        ("2f35f4a08176d993cded35dac3332be4f7287f41", "2f35f4a", "commit: '2f35f4a' has 7 digits"),
        ("2f35f4a08176d993cded35dac3332be4f7287f41", "v0.33.0", "commit: 'v0.33.0' is a branch or a tag, which moves"),
        ("668784f3dcf05f5adb6d12ee551dc476e2f56e46", "tree", "releases[1].tree: 'tree' is not a hex number"),
        ("c2bcbecd82ec5ae66594340b395c24ef0217b238", "2f35f4a08176d993cded35dac3332be4f7287f41", "twice"),
        ('- version: "0.32.0"', '- version: "0.31.0"', "releases: names '0.31.0' twice"),
        ('released: "2026-08-13"', "released: 2026-08-13", "without quotes, which YAML reads as a date"),
        ('version: "0.10.0"', 'version: "0.9.1"', "advised: is 0.9.1, older than 'minimum' (0.9.2)"),
        ('version: "0.10.0"', 'version: "0.34.0"', "pinned: is 0.33.0, older than 'advised' (0.34.0)"),
        ("  because: the FLUX.2 [klein] models came with it\n", "", "minimum.because: is missing"),
        (
            'newest_seen: {version: "0.46.0"',
            'newest_seen: {version: "0.32.0"',
            "newest_seen: is 0.32.0, older than 'pinned'",
        ),
        ('released: "2026-11-18", ', "", "newest_seen.released: is missing"),
        ("sources: [docs-catalog]}", "sources: [docs]}", "the source 'docs', which is not in 'sources'"),
        ("{class: RandomNoise,", "{class: Random-Noise,", "expected the name of a node class like UNETLoader"),
        ("{class: RandomNoise,", "{class: KSamplerSelect,", "nodes: names 'KSamplerSelect for always' twice"),
        ("inputs: [noise_seed]", "inputs: []", "inputs: is empty"),
        ("inputs: [samples, vae]", "inputs: [vae, vae]", "inputs: names 'vae' twice"),
        ("use: guided", "use: guidd", "is 'guidd'; did you mean 'guided'?"),
        ("sources: [tags, run-h200]", "sources: [tag]", "names in 0.33.0 the source 'tag', which is not in 'sources'"),
        (
            "sources: [klein-commit, docs-changelog]",
            "sources: [klein-commit]",
            "contains 'docs-changelog', which no row",
        ),
        ("  - id: template\n", "  - id: tags\n", "sources: names 'tags' twice"),
        ("schema_version: 1\n", "", "schema_version: is missing; expected 1"),
        ("nodes:\n", "node_classes:\n", "node_classes: is not a key here"),
    ],
)
def test_a_mistake_is_named_with_its_key(old: str, new: str, said: str) -> None:
    found = issues_of(changed(old, new))
    assert [each for each in found if said in each], found


def test_every_mistake_is_named_at_once_and_with_its_line() -> None:
    text = changed('released: "2026-08-13"', 'released: "August"').replace("inputs: [noise_seed]", "inputs: [Seed]", 1)
    found = "\n".join(issues_of(text))
    assert f"c.yaml:{line_of(text, 'August')}: releases[0].released: is 'August'" in found
    assert f"c.yaml:{line_of(text, 'inputs: [Seed]')}: nodes[10].inputs[0]: is 'Seed'" in found


def test_a_newer_format_is_one_sentence() -> None:
    assert issues_of(changed("schema_version: 1", "schema_version: 2").replace("pinned:", "pins:")) == [
        f"c.yaml:{line_of(TEXT, 'schema_version')}: schema_version: is 2; expected 1: this table needs a newer"
        " klein-setup"
    ]


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "word\n", "{}\n", "releases: &a []\n"])
def test_a_text_that_is_no_table_is_refused(text: str) -> None:
    assert issues_of(text)
