"""Another release of ComfyUI than the pinned one: real git repositories on loopback, real pip, a second tag."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from provisioner.comfyui.checkout.checkout_receipt import RECEIPT
from provisioner.comfyui.checkout.checkouts import Checkouts
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.comfyui.releases import parse_comfy_table
from provisioner.core.errors import (
    AccessError,
    NetworkError,
    NotTheFileError,
    OfflineError,
    StalledError,
    UsageError,
)
from provisioner.files.download.small_file import fetch_bytes
from provisioner.files.download.whole_file import WholeFiles
from provisioner.machine.process import run_process
from scripts import refresh_comfyui
from tests.support.setup_fixture import GIT, SetupFixture, Upstream, git, inventory, write_tree

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="the driver's environment is made with links"),
    pytest.mark.skipif(shutil.which("git") is None, reason="makes real repositories"),
]
SHIPPED = Path(__file__).resolve().parents[2] / "manifests" / "comfyui.yaml"


def add_release(upstream: Path, version: str, requirements: str | None = None, *, tag: str | None = None) -> str:
    """Commit and tag another release of the stand-in; return its commit."""
    files = {"comfyui_version.py": f'__version__ = "{version}"\n'}
    files |= {} if requirements is None else {"requirements.txt": requirements}
    write_tree(upstream, files)
    git(upstream, "add", "-A", "-f")
    git(upstream, "commit", "-q", "-m", version)
    git(upstream, "tag", *(["-a", "-m", version] if tag is None else []), tag or f"v{version}")
    return git(upstream, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    """Return a repository with the pinned release, a newer one, and tags that name no release."""
    made = Upstream(tmp_path_factory.mktemp("upstream") / "ComfyUI")
    add_release(made.path, "0.34.0")
    add_release(made.path, "0.35.0", "torch>=2.99\neinops>=0.8\n")
    for odd in ("v0.36.0-rc1", "nightly", "v9.9.9;true", "v9.9.9é"):
        git(made.path, "tag", odd)
    return made


def commit_of(upstream: Upstream, version: str) -> str:
    return git(upstream.path, "rev-parse", f"v{version}^{{commit}}")


# --- the command ------------------------------------------------------------------------------------


def test_the_release_that_was_named_is_installed_recorded_and_held_to(setup: SetupFixture, upstream: Upstream) -> None:
    newer = commit_of(upstream, "0.34.0")
    installed = setup.run("install", "--only", "files,environment", "--yes", "--comfyui-version", "v0.34.0")
    assert installed.returncode == 0, installed.said
    said = installed.said
    assert "ComfyUI 0.33.0 is what this klein-setup was verified with, and 0.34.0 is not; newest seen 0.46.0" in said
    assert "resolved what ComfyUI 0.34.0 requires goes with this torch" in said
    receipt = json.loads((setup.tree / RECEIPT).read_text(encoding="utf-8"))
    assert (receipt["version"], receipt["commit"], receipt["tag"]) == ("0.34.0", newer, "v0.34.0")
    assert git(setup.tree, "rev-parse", "HEAD") == newer

    # One that does not go with the torch set of this environment is not moved to.
    before = inventory(setup.tree, ".venv")
    refused = setup.run("install", "--only", "environment", "--yes", "--comfyui-version", "0.35.0")
    assert refused.returncode == 8, refused.said
    assert "asks for torch>=2.99, and torch==2.15.0+cu130 is held. Nothing was changed." in refused.said
    assert inventory(setup.tree, ".venv") == before

    lock = setup.sandbox.folder / "lab.yaml"
    assert setup.run("manifest", "lock", "--output", lock).returncode == 0
    assert newer in lock.read_text(encoding="utf-8")
    # The tag is moved: neither the receipt's tree nor another computer with the lock follows it.
    moved = git(upstream.path, "rev-parse", "v0.35.0^{commit}")
    git(upstream.path, "tag", "-f", "v0.34.0", moved)
    try:
        refused = setup.run("install", "--only", "environment", "--yes", "--comfyui-version", "0.34.0", "--json")
        assert (refused.returncode, refused.codes) == (7, ["not-the-file"])
        (error,) = refused.json["errors"]
        assert moved[:12] in error["message"]
        assert f"the receipt of {setup.tree} names {newer[:12]}" in error["message"]
        assert inventory(setup.tree, ".venv") == before
        there = ("--manifest", lock, "--comfyui", setup.sandbox.folder / "another")
        elsewhere = setup.run("plan", "--only", "environment", "--json", *there)
        assert (elsewhere.returncode, elsewhere.codes) == (7, ["not-the-file"])
        assert f"names {newer[:12]}" in elsewhere.json["errors"][0]["message"]
    finally:
        git(upstream.path, "tag", "-f", "v0.34.0", newer)

    # What is there already needs no repository.  Then back to the one that was verified, because it is named.
    words = ("plan", "--only", "environment", "--comfyui-version", "0.34.0", "--offline", "--json")
    kept = setup.run(*words, source="https://git.example/comfy").json
    assert [each["kind"] for each in kept["steps"]] == ["keep-comfyui", "keep-environment"]
    back = setup.run("install", "--only", "environment", "--yes", "--comfyui-version", "pinned")
    assert back.returncode == 0, back.said
    assert git(setup.tree, "rev-parse", "HEAD") == setup.upstream.release["commit"]


def test_requirements_that_exclude_the_torch_set_are_said_with_both_sides_before_anything_is_changed(
    setup: SetupFixture,
) -> None:
    refused = setup.run("install", "--only", "environment", "--yes", "--comfyui-version", "latest")
    assert refused.returncode == 8, refused.said
    assert (
        "ComfyUI 0.35.0 cannot be installed here: its requirements.txt asks for torch>=2.99, and torch==2.15.0+cu130 "
        "is held. Nothing was changed."
    ) in refused.said
    assert not setup.tree.exists()


def test_what_the_models_need_moves_the_choice_and_is_never_gone_below(setup: SetupFixture) -> None:
    manifest = json.loads(setup.sandbox.manifest.read_text(encoding="utf-8"))
    manifest["artifacts"][0]["min_comfyui"] = "0.33.1"
    setup.sandbox.manifest.write_text(json.dumps(manifest), encoding="utf-8")
    name = manifest["artifacts"][0]["name"]

    planned = setup.run("plan", "--only", "environment", env={"COLUMNS": "300"}).said
    assert f"there is no ComfyUI yet; not 0.33.0, because {name} needs 0.33.1 or newer" in planned
    assert f"ComfyUI 0.34.0 ({commit_of(setup.upstream, '0.34.0')[:12]})" in planned

    refused = setup.run("plan", "--only", "environment", "--json", "--comfyui-version", "0.33.0")
    assert refused.returncode == 2
    assert f"ComfyUI 0.33.0 was asked for, and {name} needs 0.33.1 or newer." in refused.said

    nobody = setup.run("plan", "--only", "environment", "--json", "--offline", source="https://git.example/comfy")
    assert (nobody.returncode, nobody.codes) == (5, ["offline"])
    assert "--comfyui-version VERSION" in nobody.json["errors"][0]["hint"]
    hosts = setup.run("plan", "--only", "environment", "--json", "--hosts", source="https://git.example/comfy")
    assert hosts.returncode == 0, hosts.said
    assert "git.example" in [each["host"] for each in hosts.json["details"]["hosts"]["uses"]]


def test_the_pinned_release_needs_no_network_to_say_what_is_newer(setup: SetupFixture) -> None:
    planned = setup.run("plan", "--only", "environment", source="https://git.example/comfy", env={"COLUMNS": "200"})
    assert planned.returncode == 0, planned.said
    said = "0.33.0 is what this klein-setup was verified with; newest seen 0.46.0 (2026-11-18)"
    assert said in planned.said


# --- repositories -----------------------------------------------------------------------------------


def checkouts(*, has_git: bool = True, is_offline: bool = False, answer_timeout_s: float = 20.0) -> Checkouts:
    """Return what looks at repositories, with git or with a server's interface."""
    environ = {**os.environ, **GIT} if has_git else {**os.environ, "PATH": "/nowhere"}
    return Checkouts(
        run=run_process,
        download=WholeFiles().fetch,
        read=lambda url, most: fetch_bytes(url, most=most, timeout_s=answer_timeout_s),
        environ=environ,
        is_offline=is_offline,
        answer_timeout_s=answer_timeout_s,
    )


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[str]:
    """Serve the repositories in a folder with a real git daemon; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words: list[str | Path] = [
        "git",
        "daemon",
        "--listen=127.0.0.1",
        f"--port={port}",
        f"--base-path={folder}",
        "--export-all",
        folder,
    ]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, env={**os.environ, **GIT}) as process:
        try:
            until = time.monotonic() + 20
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert time.monotonic() < until, "the daemon does not answer"
                time.sleep(0.05)
            yield f"git://127.0.0.1:{port}"
        finally:
            process.terminate()


def test_tags_are_read_from_a_path_and_from_a_daemon(upstream: Upstream) -> None:
    found = checkouts(is_offline=True).releases_at(str(upstream.path))
    assert [each.version for each in found] == ["0.35.0", "0.34.0", "0.33.0"]
    assert [each.commit for each in found[1:]] == [commit_of(upstream, "0.34.0"), upstream.release["commit"]]
    with daemon(upstream.path.parent) as address:
        assert checkouts().releases_at(f"{address}/{upstream.path.name}") == found


def test_a_repository_without_tags_has_no_releases(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert checkouts().releases_at(str(tmp_path)) == ()


def test_offline_nobody_elsewhere_is_asked() -> None:
    with pytest.raises(OfflineError):
        checkouts(is_offline=True).releases_at("https://git.example/comfy")


@pytest.mark.parametrize("has_git", [True, False])
def test_a_server_that_never_answers_is_given_up_and_no_password_is_said(*, has_git: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = f"http://me:S3cretW0rd@127.0.0.1:{silent.getsockname()[1]}/o/ComfyUI"
        began = time.monotonic()
        with pytest.raises(StalledError) as caught:
            checkouts(has_git=has_git, answer_timeout_s=1.0).releases_at(source)
        assert time.monotonic() - began < 15
    assert "S3cretW0rd" not in f"{caught.value} {caught.value.hint} {caught.value.context}"


class Forge:
    """A server as Gitea is one: its list of tags, what it says of a commit, and archives."""

    def __init__(self, upstream: Upstream) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        forge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = forge.answers.get(self.path, (404, b"no"))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.source = f"http://127.0.0.1:{self.server.server_address[1]}/o/ComfyUI"
        api = "/api/v1/repos/o/ComfyUI"
        rows = [{"name": f"junk-{number}", "commit": {"sha": "e" * 40}} for number in range(50)]
        commit = commit_of(upstream, "0.34.0")
        tree = git(upstream.path, "rev-parse", f"{commit}^{{tree}}")
        self.tell(f"{api}/tags?limit=50&page=1", rows)
        self.tell(f"{api}/tags?limit=50&page=2", [{"name": "v0.34.0", "commit": {"sha": commit}}])
        self.tell(f"{api}/git/commits/{commit}", {"sha": commit, "commit": {"tree": {"sha": tree}}})
        archive = upstream.path.with_name("newer.zip")
        git(upstream.path, "archive", "--format=zip", "--prefix=ComfyUI-1/", f"--output={archive}", commit)
        self.answers[f"/o/ComfyUI/archive/{commit}.zip"] = (200, archive.read_bytes())

    def tell(self, path: str, value: object) -> None:
        self.answers[path] = (200, json.dumps(value).encode())


@pytest.fixture
def forge(upstream: Upstream) -> Iterator[Forge]:
    forge = Forge(upstream)
    threading.Thread(target=forge.server.serve_forever, args=(0.05,), daemon=True).start()
    yield forge
    forge.server.shutdown()
    forge.server.server_close()


def test_without_git_the_server_names_commit_and_tree_and_the_archive_is_held_to_it(
    forge: Forge, upstream: Upstream, tmp_path: Path
) -> None:
    without = checkouts(has_git=False)
    (found,) = without.releases_at(forge.source)
    release = without.with_tree(found, forge.source)
    assert (release.version, release.commit, release.tag) == ("0.34.0", commit_of(upstream, "0.34.0"), "v0.34.0")
    receipt = without.fetch(release, tmp_path / "ComfyUI", source=forge.source)
    assert (receipt.way, receipt.commit, receipt.tag, receipt.tree) == (
        "archive",
        release.commit,
        "v0.34.0",
        release.tree,
    )
    other = ComfyRelease(version="0.34.0", commit=release.commit, tree=upstream.release["tree"])
    with pytest.raises(NotTheFileError):
        without.fetch(other, tmp_path / "other", source=forge.source)


def test_a_bundle_holds_the_release_that_was_named_with_its_commit(forge: Forge, setup: SetupFixture) -> None:
    without_git = {"PATH": str(Path(sys.executable).parent), "COLUMNS": "200"}
    bundle = setup.sandbox.folder / "bundle"
    words = ("bundle", "create", bundle, "--yes", "--no-wheels", "--comfyui-version", "latest")
    made = setup.run(*words, source=forge.source, env=without_git)
    assert made.returncode == 0, made.said
    planned = setup.run("plan", "--from", bundle, "--only", "environment", env=without_git)
    assert f"ComfyUI 0.34.0 ({commit_of(setup.upstream, '0.34.0')[:12]})" in planned.said
    refused = setup.run("plan", "--from", bundle, "--comfyui-version", "0.33.0", env=without_git)
    assert "--from and --comfyui-version name two places" in refused.said


def test_a_server_that_says_something_else_is_an_error(forge: Forge) -> None:
    without = checkouts(has_git=False)
    api = "/api/v1/repos/o/ComfyUI/tags?limit=50&page=1"
    for answer, kind in (((200, b"<html>"), NetworkError), ((404, b"no"), AccessError), ((500, b"no"), NetworkError)):
        forge.answers[api] = answer
        with pytest.raises(kind):
            without.releases_at(forge.source)
    with pytest.raises(UsageError, match="git is not installed"):
        without.releases_at("git@git.example:o/ComfyUI")


# --- the maintainers' script ------------------------------------------------------------------------


def refreshed(table: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = refresh_comfyui.main([str(table), *words])
    said = capsys.readouterr()
    return status, said.out + said.err


def small_table(folder: Path, changes: Mapping[str, str]) -> Path:
    """Return a table whose rows are the stand-in's."""
    text = SHIPPED.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    begin = text.index('  - version: "0.33.1"')
    text = text[:begin] + text[text.index('  - version: "0.33.0"') :]
    begin = text.index('  - version: "0.32.0"')
    text = text[:begin] + text[text.index("\n# The nodes of our graph") :]
    start = text.index("  - id: nix-versions")
    text = text[:start] + text[text.index("  - id: klein-commit") :]
    path = folder / "comfyui.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_table_gets_a_row_for_every_new_release(
    tmp_path: Path, upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    release = upstream.release
    own: dict[str, Any] = {
        "2f35f4a08176d993cded35dac3332be4f7287f41": release["commit"],
        "668784f3dcf05f5adb6d12ee551dc476e2f56e46": release["tree"],
    }
    table = small_table(tmp_path, own)
    before = table.read_text(encoding="utf-8")
    with daemon(upstream.path.parent) as address:
        words = ("--repository", f"{address}/{upstream.path.name}")
        status, said = refreshed(table, *words, capsys=capsys)
        assert (status, table.read_text(encoding="utf-8")) == (1, before), said
        assert "2 new releases: 0.35.0, 0.34.0" in said
        assert refreshed(table, *words, "--write", capsys=capsys)[0] == 1
        read = parse_comfy_table(table.read_text(encoding="utf-8"), file="comfyui.yaml")
        assert [each.version for each in read.releases] == ["0.35.0", "0.34.0", "0.33.0"]
        row = read.release("0.34.0")
        assert row is not None
        assert (row.commit, row.sources) == (commit_of(upstream, "0.34.0"), ("tags",))
        assert row.tree == git(upstream.path, "rev-parse", "v0.34.0^{tree}")
        assert row.released == time.strftime("%Y-%m-%d", time.gmtime())
        assert read.pinned.version == "0.33.0"
        assert refreshed(table, *words, capsys=capsys)[0] == 0  # nothing differs any more


def test_a_tag_that_was_moved_is_told_and_never_written(
    tmp_path: Path, upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    table = small_table(tmp_path, {})
    before = table.read_text(encoding="utf-8")
    words = ("--repository", str(upstream.path), "--since", "v0.35.0", "--write")
    status, said = refreshed(table, *words, capsys=capsys)
    assert (status, table.read_text(encoding="utf-8")) == (1, before)
    assert "0.33.0: its tag leads to another commit than the table's" in said
    assert refreshed(table, "--repository", str(tmp_path / "none"), capsys=capsys)[0] == 5
