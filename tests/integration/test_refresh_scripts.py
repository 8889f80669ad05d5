"""What maintainers run to see whether a manifest still says what the Hub says, and what it may write."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.manifest.parse import parse_manifest
from provisioner.rehearsal.content import Content
from provisioner.rehearsal.faults import Status
from provisioner.rehearsal.hub import RehearsalHub
from scripts import refresh_manifest
from scripts.refresh_manifest import Pin, contents_of
from tests.support.builders import COMMIT, OTHER_COMMIT, sha256

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_" + "aB3dE5gH" * 4
REPO, MIRROR = "org/model", "mirror/model"
HEAD = "feed" * 10
VAE, OTHER_VAE, CONFIG = b"vae " * 1000, b"another vae " * 500, b'{"hidden_size": 32}\n'
CHANGED = b"changed " * 700


class Tree:
    """A manifest in a scratch folder, and the hub it speaks of."""

    def __init__(self, folder: Path, hub: RehearsalHub, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = folder / "model.yaml"
        self.hub = hub
        self._capsys = capsys
        self.path.write_bytes(manifest().encode())

    def refresh(self, *options: str, endpoint: str | None = None) -> tuple[int, str, str]:
        """Return exit status, stdout and stderr of the script."""
        status = refresh_manifest.main([str(self.path), "--endpoint", endpoint or self.hub.endpoint, *options])
        said = self._capsys.readouterr()
        assert TOKEN not in said.out + said.err
        return status, said.out, said.err

    @property
    def text(self) -> str:
        return self.path.read_bytes().decode()


def manifest(**other: object) -> str:
    """Return a manifest whose comments, order and odd spacing are somebody's."""
    values = {
        "size": len(VAE),
        "sha256": sha256(VAE),
        "accepted": sha256(OTHER_VAE),
        "revision": COMMIT,
        "mirror": MIRROR,
        "git_oid": Content.of(CONFIG).git_oid(),
    }
    return TEXT.format_map(
        {**values, **other},
    )


TEXT = """\
# A comment at the top: größer, with more than ASCII.
schema_version: 1
id: model
title:   A model   # spaces that somebody put there
licence: {{name: Apache-2.0, url: https://example.org/licence, is_commercial_use_allowed: true}}
default_set: all
sets:
  - {{id: all, title: Everything, target: comfyui, artifacts: [vae]}}

artifacts:
  # --- the VAE ---
  - sha256: '{sha256}' # before the id, in single quotes
    id: vae
    role: vae
    folder: vae
    size:    {size}   # bytes
    sources:
      - {{repo_id: org/model, revision: "{revision}", filename: vae/vae.safetensors}}
      - {{repo_id: {mirror}, revision: "{revision}", filename: vae.safetensors}} # the same bytes
    accept:
      - size: 6000
        sha256: "{accepted}"
        what: another export
        sources: [{{repo_id: org/model, revision: "{revision}", filename: vae/other.safetensors}}]
    provenance: {{read_from: somewhere, read_on: "2026-11-23", agreeing: 3, confidence: high}}

  - id: config
    role: config
    size: 20
    sha256: "2b8d7fbc93fcc2ef84b8f3d8be2a5d5ec8e1a3b9d5ad7b7e7b0a5e4f0f2d1c6a"
    sources: [{{repo_id: org/model, revision: "{revision}", filename: config.json}}]
    is_lfs: false
    git_oid: "{git_oid}"
# the last comment
""".replace("2b8d7fbc93fcc2ef84b8f3d8be2a5d5ec8e1a3b9d5ad7b7e7b0a5e4f0f2d1c6a", sha256(CONFIG))


@pytest.fixture
def tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Tree]:
    """Return a manifest that says exactly what the hub says."""
    with RehearsalHub(tokens=[TOKEN]) as hub:
        publish(hub)
        yield Tree(tmp_path, hub, capsys)
        assert hub.violations == []


def publish(hub: RehearsalHub, **other: bytes) -> None:
    """Publish the manifest's files at its commit."""
    vae = other.get("vae", VAE)
    files: dict[str, bytes | Path] = {
        "vae/vae.safetensors": vae,
        "vae/other.safetensors": other.get("accepted", OTHER_VAE),
        "config.json": other.get("config", CONFIG),
    }
    hub.add_repository(REPO, COMMIT, files)
    hub.add_repository(MIRROR, COMMIT, {"vae.safetensors": other.get("mirror", vae)})


# --- the Hub says the same --------------------------------------------------------------------------


def test_a_manifest_that_says_what_the_hub_says_is_left_alone(tree: Tree) -> None:
    before = tree.text
    assert tree.refresh("--write") == (0, "", "")
    assert tree.text == before


def test_it_runs_as_a_script_from_anywhere(tree: Tree, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "refresh_manifest.py", tree.path, "--endpoint", tree.hub.endpoint],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- the Hub says otherwise -------------------------------------------------------------------------


def test_a_changed_digest_is_shown_and_written_only_on_demand(tree: Tree) -> None:
    publish(tree.hub, vae=CHANGED)
    before = tree.text
    status, out, err = tree.refresh()
    assert (status, err, tree.text) == (1, "", before)
    assert f"vae: sha256 is {sha256(CHANGED)} at the Hub, {sha256(VAE)} here" in out
    assert f"-  - sha256: '{sha256(VAE)}' # before the id, in single quotes" in out
    assert f"+  - sha256: '{sha256(CHANGED)}' # before the id, in single quotes" in out
    assert "vae: provenance belong" in out.replace("belongs", "belong")
    assert "to be read again" in out

    assert tree.refresh("--write")[0] == 1
    assert tree.text == manifest(sha256=sha256(CHANGED), size=len(CHANGED))
    assert tree.refresh("--write") == (0, "", "")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_everything_but_the_value_is_kept_byte_for_byte(tree: Tree, ending: str, mark: str) -> None:
    tree.path.write_bytes((mark + manifest(accepted=sha256(b"wrong"))).replace("\n", ending).encode())
    assert tree.refresh("--write")[0] == 1
    assert tree.path.read_bytes() == (mark + manifest()).replace("\n", ending).encode()
    assert [path.name for path in tree.path.parent.iterdir()] == [tree.path.name]


def test_a_file_that_git_keeps_is_fetched_and_compared_by_its_bytes(tree: Tree) -> None:
    other = b'{"hidden_size": 64}\n'
    publish(tree.hub, config=other)
    status, out, _ = tree.refresh("--write")
    assert status == 1
    assert f"config: git_oid is {Content.of(other).git_oid()} at the Hub" in out
    now = parse_manifest(tree.text, file="x").artifacts[1]
    assert (now.sha256, now.git_oid) == (sha256(other), Content.of(other).git_oid())
    assert tree.refresh() == (0, "", "")


def test_a_git_id_that_is_not_stated_is_added(tree: Tree) -> None:
    whole = tree.text
    tree.path.write_text(re.sub(r"    git_oid: .*\n", "", whole), encoding="utf-8")
    status, out, _ = tree.refresh("--write")
    assert status == 1
    assert f"config: git_oid is {Content.of(CONFIG).git_oid()} at the Hub, not stated here" in out
    assert parse_manifest(tree.text, file="x").artifacts == parse_manifest(whole, file="x").artifacts
    assert tree.refresh() == (0, "", "")


def test_a_missing_file_is_named_and_nothing_is_written_in_its_place(tree: Tree) -> None:
    tree.hub.add_repository(MIRROR, COMMIT, {"elsewhere.safetensors": VAE})
    before = tree.text
    status, out, err = tree.refresh("--write")
    assert (status, err, tree.text) == (1, "", before)
    assert f"{MIRROR} at {COMMIT[:8]} has no file vae.safetensors" in out


def test_two_sources_that_disagree_are_left_to_a_person(tree: Tree) -> None:
    publish(tree.hub, mirror=CHANGED)
    before = tree.text
    status, out, _ = tree.refresh("--write")
    assert (status, tree.text) == (1, before)
    assert f"vae.safetensors of {MIRROR} at {COMMIT[:8]} has {len(CHANGED)} bytes, sha256 {sha256(CHANGED)}" in out
    assert "\n+" not in out


def test_what_the_reader_would_refuse_is_shown_and_never_written(tree: Tree) -> None:
    said = f"    fingerprint: {{header_bytes: 92, payload_bytes: {len(VAE) - 100}}}\n    provenance: {{read_from: some"
    text = manifest().replace("    provenance: {read_from: some", said)
    tree.path.write_text(text, encoding="utf-8")
    assert tree.refresh() == (0, "", "")
    publish(tree.hub, vae=CHANGED)
    status, out, err = tree.refresh("--write")
    assert (status, tree.text) == (2, text)
    assert f"+    size:    {len(CHANGED)}   # bytes" in out
    assert "fingerprint" in err


# --- commits ----------------------------------------------------------------------------------------


def test_a_newer_commit_with_the_same_files_is_not_worth_a_word(tree: Tree) -> None:
    files: dict[str, bytes | Path] = {
        "vae/vae.safetensors": VAE,
        "vae/other.safetensors": OTHER_VAE,
        "config.json": CONFIG,
        "README.md": b"new",
    }
    tree.hub.add_repository(REPO, HEAD, files)
    assert tree.refresh("--move", "--write") == (0, "", "")


def newer(hub: RehearsalHub) -> None:
    """Add a commit that changes the VAE, to both repositories."""
    files: dict[str, bytes | Path] = {"vae/vae.safetensors": CHANGED, "vae/other.safetensors": OTHER_VAE}
    hub.add_repository(REPO, HEAD, {**files, "config.json": CONFIG})
    hub.add_repository(MIRROR, HEAD, {"vae.safetensors": CHANGED})


def test_a_newer_commit_with_other_bytes_is_a_note_and_the_pin_stays(tree: Tree) -> None:
    newer(tree.hub)
    before = tree.text
    status, out, err = tree.refresh("--write")
    assert (status, err, tree.text) == (0, "", before)
    assert f"note: vae/vae.safetensors of {REPO} at {COMMIT[:8]} differs in the newer commit {HEAD}" in out
    assert sha256(CHANGED) in out


def test_move_takes_a_whole_pin_to_the_newest_commit_with_its_digests(tree: Tree) -> None:
    newer(tree.hub)
    status, out, _ = tree.refresh("--move", "--write")
    assert status == 1
    assert f"{REPO} at {COMMIT[:8]} moves to {HEAD}" in out
    assert tree.text == manifest(revision=HEAD, sha256=sha256(CHANGED), size=len(CHANGED))
    assert tree.refresh("--move", "--write") == (0, "", "")


def test_a_pin_is_not_moved_where_another_source_would_then_disagree(tree: Tree) -> None:
    files: dict[str, bytes | Path] = {"vae/vae.safetensors": CHANGED, "vae/other.safetensors": OTHER_VAE}
    tree.hub.add_repository(REPO, HEAD, {**files, "config.json": CONFIG})
    before = tree.text
    status, out, _ = tree.refresh("--move", "--write")
    assert (status, tree.text) == (0, before)
    assert f"{REPO} at {COMMIT[:8]} is not moved" in out


def test_a_commit_that_is_gone_is_told_and_replaced_only_with_move(tree: Tree) -> None:
    tree.path.write_text(manifest(revision=OTHER_COMMIT), encoding="utf-8")
    before = tree.text
    status, out, _ = tree.refresh("--write")
    assert (status, tree.text) == (1, before)
    assert f"{MIRROR} at {OTHER_COMMIT[:8]}: there is no such commit; the newest is {COMMIT}" in out
    assert tree.refresh("--write", "--move")[0] == 1
    assert tree.text == manifest()


def test_an_old_commit_that_prose_still_names_is_pointed_out(tree: Tree) -> None:
    newer(tree.hub)
    tree.path.write_text(manifest().replace("# the last comment", f"# read at {COMMIT}"), encoding="utf-8")
    out = tree.refresh("--move", "--write")[1]
    assert f"line {len(tree.text.splitlines())} still names {COMMIT}; to be read again" in out


# --- it cannot be looked at -------------------------------------------------------------------------


def test_a_private_repository_is_told_the_others_are_compared_and_nothing_is_written(tree: Tree) -> None:
    publish(tree.hub, vae=CHANGED)
    tree.hub.add_repository(MIRROR, COMMIT, {"vae.safetensors": CHANGED}, is_private=True, tokens=[TOKEN])
    before = tree.text
    status, out, err = tree.refresh("--write")
    assert (status, tree.text) == (6, before)
    assert f"+    size:    {len(CHANGED)}   # bytes" in out
    assert f"does not show {MIRROR}" in err or f"who asks for {MIRROR} (401)" in err
    assert tree.refresh("--write", "--skip", MIRROR)[0] == 1
    assert tree.text == manifest(sha256=sha256(CHANGED), size=len(CHANGED))


def test_of_a_gated_repository_only_what_has_to_be_fetched_needs_a_token(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: dict[str, bytes | Path] = {"vae/vae.safetensors": VAE, "vae/other.safetensors": OTHER_VAE}
    tree.hub.add_repository(REPO, COMMIT, {**files, "config.json": CONFIG}, is_gated=True, tokens=[TOKEN])
    status, _, err = tree.refresh("--write")
    assert status == 6
    assert f"{REPO} is gated" in err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert tree.refresh("--write") == (0, "", "")


def test_a_wrong_token_is_told_and_not_shown(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN[::-1])
    status, out, err = tree.refresh("--write")
    assert status == 6
    assert "(401)" in err
    assert TOKEN[::-1] not in out + err


def test_a_hub_that_is_not_there_is_told_in_words(tree: Tree) -> None:
    before = tree.text
    status, out, err = tree.refresh("--write", endpoint="http://127.0.0.1:9")
    assert (status, out, tree.text) == (5, "", before)
    assert "http://127.0.0.1:9 was not reached" in err


def test_a_hub_in_trouble_is_told_in_words(tree: Tree) -> None:
    tree.hub.fault(Status(503), on="api", times=None)
    status, out, err = tree.refresh("--write")
    assert (status, out) == (5, "")
    assert "the Hub answers 503" in err


def test_a_file_that_is_no_manifest_is_refused_with_its_lines(tree: Tree) -> None:
    tree.path.write_text("id: x\n", encoding="utf-8")
    status, out, err = tree.refresh("--write")
    assert (status, out) == (2, "")
    assert "model.yaml:1: artifacts: is missing" in err


SPARSE = pytest.mark.skipif(sys.platform == "win32", reason="there a file without content takes its room on the disk")

# --- the shipped manifest ---------------------------------------------------------------------------


@SPARSE
def test_the_shipped_manifest_of_the_9b_is_compared_file_by_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ROOT / "manifests" / "flux2-klein-9b.yaml"
    published: dict[Pin, dict[str, tuple[int, str]]] = {}
    for content in contents_of(parse_manifest(source.read_text(encoding="utf-8"), file=source.name)):
        for offer in content.offers:
            published.setdefault(offer.pin, {})[offer.filename] = (content.size, content.sha256)
    with RehearsalHub() as hub:
        for number, (pin, files) in enumerate(published.items()):
            paths: dict[str, bytes | Path] = {}
            for at, (name, (size, _)) in enumerate(files.items()):
                paths[name] = path = tmp_path / f"{number}-{at}"
                with path.open("wb") as file:
                    file.truncate(size)  # takes no room
            digests = {name: digest for name, (_, digest) in files.items()}
            hub.add_repository(pin.repo_id, pin.revision, paths, is_gated=True, digests=digests)
        status = refresh_manifest.main([str(source), "--endpoint", hub.endpoint])
    assert (status, capsys.readouterr().out) == (0, "")
