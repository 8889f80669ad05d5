"""Which release of ComfyUI is meant: versions, tags, what the models need, what was recorded, and what a plan says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provisioner.comfyui.release_models import ComfyRelease, ComfyTable, SeenRelease, VersionBound
from provisioner.comfyui.which_release import (
    LATEST,
    Need,
    Recorded,
    check_has_tags,
    check_not_moved,
    check_suffices,
    commit_address,
    conflict_of,
    lowest_that_suffices,
    moved_by,
    nearest_versions,
    need_of,
    no_release_for,
    not_recorded,
    parse_tag_page,
    parse_tags,
    parse_tree,
    parse_wanted_version,
    release_named,
    releases_of,
    tags_address,
    verified_with,
)
from provisioner.core.errors import NotTheFileError, OfflineError, ServerError, UsageError
from provisioner.core.models import Download
from tests.support.builders import artifact

SOURCE = "https://me:secret@git.example/Comfy-Org/ComfyUI"
A, B, C, TREE = "a" * 40, "b" * 40, "c" * 40, "d" * 40
PINNED = ComfyRelease(version="0.33.0", commit=A, tree=TREE, released="2026-08-13")
NEWER = ComfyRelease(version="0.33.1", commit=B)
TABLE = ComfyTable(
    schema_version=1,
    repository="https://github.com/Comfy-Org/ComfyUI",
    pinned=PINNED,
    releases=(NEWER, PINNED),
    download=Download(fetched_bytes=1, disk_bytes=2),
    minimum=VersionBound(version="0.9.2", because="Klein came with it"),
    advised=VersionBound(version="0.10.0", because="small cards run out of memory before it"),
    nodes=(),
    sources=(),
    newest_seen=SeenRelease(version="0.46.0", released="2026-11-18"),
)
NEED = Need("0.41.0", "flux-3-klein.safetensors")


# --- what was asked for -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0.46.0", "v0.46.0"])
def test_a_version_is_that_of_a_tag_with_or_without_its_v(text: str) -> None:
    assert parse_wanted_version(text) == "0.46.0"


@pytest.mark.parametrize(
    "text", ["", "0.46", "0.46.0.1", "0.46.0-rc1", "00.1.0", "v", "Latest", "0.46.0\n", "-x", "0.4\uff16.0", "../0.1.0"]
)
def test_anything_else_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected one like 0\.46\.0, or latest, or pinned"):
        parse_wanted_version(text)


def test_of_several_manifests_the_newest_version_counts_whatever_its_letters() -> None:
    files = [artifact(id="a", min_comfyui="0.9.2"), artifact(id="b"), artifact(id="c", min_comfyui="0.10.0")]
    assert need_of(files) == Need("0.10.0", "c.safetensors")
    assert need_of([artifact(id="b")]) is None


def test_a_version_that_is_too_old_for_the_files_is_refused_with_both_numbers() -> None:
    check_suffices(NEWER, None, asked="0.33.1")
    check_suffices(replace(NEWER, version="0.41.0"), NEED, asked="0.41.0")
    with pytest.raises(UsageError) as caught:
        check_suffices(NEWER, NEED, asked="0.33.1")
    said = "ComfyUI 0.33.1 was asked for, and flux-3-klein.safetensors needs 0.41.0 or newer."
    assert str(caught.value) == said
    with pytest.raises(UsageError, match=r"ComfyUI 0\.33\.0 \(pinned\) was asked for"):
        check_suffices(PINNED, NEED, asked="pinned")


# --- tags -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("https://x.example/comfy.zip", "is an archive"),
        ("http://me:secret@x.example/y", "http://x.example/y is not encrypted"),
        ("git://x.example/y", "is not encrypted"),
    ],
)
def test_a_source_whose_tags_say_nothing_sure_is_refused(source: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_has_tags(source)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["https://x.example/y", "http://127.0.0.1:1/y", "git://127.0.0.1/y", "/srv/comfy", "git@x.example:y"]
)
def test_any_other_source_has_tags(source: str) -> None:
    check_has_tags(source)


def test_only_releases_count_among_tags_and_an_annotated_one_leads_to_its_commit() -> None:
    lines = [
        f"{A}\trefs/tags/v0.9.0",
        f"{A}\trefs/tags/v0.10.0",
        f"{B}\trefs/tags/v0.10.0^{{}}",
        f"{C}\trefs/tags/v0.11.0-rc1",
        f"{C}\trefs/tags/nightly",
        f"{C}\trefs/tags/v0.12.0;rm -rf ~",
        f"{C}\trefs/tags/v0.13.0\x1b[31m",
        f"{C}\trefs/heads/v0.14.0",
        "warning: something",
        "nonsense\trefs/tags/v0.15.0",
    ]
    found = parse_tags("\n".join(lines))
    assert [(each.version, each.commit, each.tag) for each in found] == [
        ("0.10.0", B, "v0.10.0"),
        ("0.9.0", A, "v0.9.0"),
    ]


def test_of_two_tags_of_one_version_the_one_with_a_v_counts() -> None:
    for commits in ({"0.1.0": A, "v0.1.0": B}, {"v0.1.0": B, "0.1.0": A}):
        assert [(each.commit, each.tag) for each in releases_of(commits)] == [(B, "v0.1.0")]
    assert releases_of({"0.1.0": A})[0].tag == "0.1.0"


def test_an_unknown_version_is_refused_with_the_nearest_ones() -> None:
    tags = releases_of({f"v0.{minor}.0": f"{minor:040x}" for minor in (1, 2, 3, 5, 6, 7, 9)})
    assert release_named(LATEST, tags, SOURCE).version == "0.9.0"
    assert release_named("0.5.0", tags, SOURCE).commit == f"{5:040x}"
    with pytest.raises(UsageError) as caught:
        release_named("0.4.0", tags, SOURCE)
    said = "has no ComfyUI 0.4.0; the nearest are 0.2.0, 0.3.0, 0.5.0, 0.6.0 and 0.9.0."
    assert str(caught.value) == f"https://git.example/Comfy-Org/ComfyUI {said}"
    assert nearest_versions("0.10.0", ["0.9.0"]) == ("0.9.0",)
    with pytest.raises(UsageError, match="has no tag of a release"):
        release_named(LATEST, (), SOURCE)


def test_the_lowest_release_that_suffices_comes_first() -> None:
    tags = releases_of({"v0.42.0": A, "v0.41.0": B, "v0.40.9": C})
    assert [each.version for each in lowest_that_suffices(tags, NEED)] == ["0.41.0", "0.42.0"]
    assert list(lowest_that_suffices((PINNED,), NEED)) == []


def test_a_tag_that_leads_elsewhere_than_it_did_is_refused_with_both_commits() -> None:
    found = ComfyRelease(version="0.46.0", commit=B, tag="v0.46.0")
    records = [Recorded("0.45.0", A, "the table"), Recorded("0.46.0", B, "the receipt of /comfy")]
    check_not_moved(found, records, SOURCE)
    with pytest.raises(NotTheFileError) as caught:
        check_not_moved(found, [*records, Recorded("0.46.0", C, "the lock of 2026-11-27")], SOURCE)
    said = str(caught.value)
    assert B[:12] in said
    assert f"the lock of 2026-11-27 names {C[:12]}" in said
    assert "secret" not in said + str(caught.value.context)


# --- servers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "api"),
    [
        ("https://github.com/Comfy-Org/ComfyUI", "https://api.github.com/repos/Comfy-Org/ComfyUI"),
        ("http://127.0.0.1:8080/o/r.git/", "http://127.0.0.1:8080/api/v1/repos/o/r"),
        ("https://git.example/below/o/r", "https://git.example/below/api/v1/repos/o/r"),
    ],
)
def test_a_server_is_asked_at_the_address_of_its_interface(source: str, api: str) -> None:
    assert tags_address(source, 1).startswith(f"{api}/tags?")
    assert commit_address(source, A) == f"{api}/git/commits/{A}"


def test_what_is_no_list_of_tags_is_an_error() -> None:
    assert parse_tag_page("[]", SOURCE) == {}
    for text in ("<html>", "{}", "null", "[1"):
        with pytest.raises(ServerError, match="no list of tags"):
            parse_tag_page(text, SOURCE)


def test_the_tree_is_that_of_the_commit_that_was_asked_for() -> None:
    assert parse_tree(f'{{"sha": "{A}", "tree": {{"sha": "{TREE}"}}}}', A) == TREE  # GitHub
    assert parse_tree(f'{{"sha": "{A}", "commit": {{"tree": {{"sha": "{TREE}"}}}}}}', A) == TREE  # Gitea
    assert parse_tree(f'{{"sha": "{B}", "tree": {{"sha": "{TREE}"}}}}', A) is None
    assert parse_tree(f'{{"sha": "{A}", "tree": {{"sha": "x"}}}}', A) is None
    assert parse_tree("nonsense", A) is None


# --- in words ---------------------------------------------------------------------------------------


def test_a_plan_says_what_was_verified_and_what_is_the_newest() -> None:
    verified = "ComfyUI 0.33.0 is what this klein-setup was verified with"
    assert verified_with(TABLE, PINNED) == f"{verified}; newest seen 0.46.0 (2026-11-18)."
    assert verified_with(TABLE, NEWER) == f"{verified}, and 0.33.1 is not; newest seen 0.46.0 (2026-11-18)."
    newest = ComfyRelease(version="0.47.0", commit=C)
    assert verified_with(TABLE, newest) == f"{verified}, and 0.47.0 is not."
    assert verified_with(replace(TABLE, newest_seen=None), PINNED) == f"{verified}; newest seen 0.33.1."
    alone = replace(TABLE, newest_seen=None, releases=(PINNED,))
    assert verified_with(alone, PINNED) == f"{verified}."


def test_why_another_release_is_taken_is_one_clause() -> None:
    said = "not 0.33.0, because flux-3-klein.safetensors needs 0.41.0 or newer"
    assert moved_by(NEED, PINNED) == said


def test_without_a_network_the_way_out_is_named() -> None:
    error = no_release_for(NEED, "0.33.1", "x.example could not be reached.")
    assert isinstance(error, OfflineError)
    assert "needs ComfyUI 0.41.0 or newer" in str(error)
    assert "up to 0.33.1" in str(error)
    assert "--comfyui-version VERSION" in str(error.hint)
    assert "the latest ComfyUI" in str(not_recorded(LATEST, TABLE, "with --offline, nobody is asked."))
    unknown = not_recorded("0.46.0", TABLE, "with --offline, nobody is asked.")
    assert "ComfyUI 0.46.0" in str(unknown)
    assert "0.33.1 and 0.33.0" in str(unknown.hint)


def test_a_conflict_is_said_with_both_sides() -> None:
    sides = ["kitchen 1.0 depends on torch>=2.16", "The user requested (constraint) torch==2.15.0+cu130"]
    said = conflict_of("0.46.0", [*sides, *sides])
    assert said == (
        "ComfyUI 0.46.0 cannot be installed here: kitchen 1.0 depends on torch>=2.16, and torch==2.15.0+cu130 is held"
    )
    two = conflict_of("0.46.0", [*sides, "The user requested (constraint) triton==3"])
    assert two.endswith("torch==2.15.0+cu130 and triton==3 are held")
    assert conflict_of("0.46.0", []).endswith("its requirements exclude each other")
