"""The real huggingface_hub client against the embedded hub: the one cannot drift from what the other asks.

The second half pins what that client (2.4.0, over HTTP) does *not* do.  When an upgrade makes one of those fail, the
client has learnt to verify, resume or retry, and this program may delegate more.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner.rehearsal import faults
from provisioner.rehearsal.hub import RehearsalHub
from tests.support.wine import needs

COMMIT = "0123456789abcdef" * 2 + "01234567"
TOKEN = "hf_reader"
STRANGER = "hf_stranger"
MIB = 1024 * 1024
WEIGHTS = random.Random(2).randbytes(24 * MIB)  # beyond two of the client's chunks of 10 MiB
CONFIG = b'{"hidden_size": 32}\n'
FILES: dict[str, bytes | Path] = {"unet/weights.safetensors": WEIGHTS, "config.json": CONFIG, "a b/ü.txt": b"text"}

PRELUDE = """
import hashlib, json, pathlib, sys
import huggingface_hub as hub
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download

def outcome(call):
    try:
        value = call()
        return pathlib.Path(value).stat().st_size if isinstance(value, str) else "ok"
    except Exception as error:
        return [each.__name__ for each in type(error).__mro__]

def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()

def say(**what):
    print(json.dumps(what))
"""


class Client:
    """Runs the real client in processes of their own: it reads its settings when it is imported."""

    def __init__(self, hub: RehearsalHub, home: Path) -> None:
        self.hub, self.home = hub, home

    def environment(self, token: str | None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            kept.pop(name, None)
            kept.pop(name.lower(), None)
        return kept | {
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONUTF8": "1",
            **({"HF_TOKEN": token} if token else {}),
        }

    def run(self, script: str, *, token: str | None = None) -> dict[str, Any]:
        done = self._start(["-c", PRELUDE + script], token)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def hf(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._start(["-c", "from huggingface_hub.cli.hf import main; main()", *arguments], None)

    def _start(self, arguments: list[str], token: str | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env=self.environment(token),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )


@pytest.fixture
def hub() -> Iterator[RehearsalHub]:
    with RehearsalHub(tokens=(STRANGER,)) as hub:
        hub.add_repository("org/name", COMMIT, FILES)
        yield hub
        assert hub.violations == []


@pytest.fixture
def client(hub: RehearsalHub, tmp_path: Path) -> Client:
    return Client(hub, tmp_path / "hf")


def partial_downloads(client: Client) -> list[Path]:
    return sorted(client.home.rglob("*.incomplete"))


# --- what it does ------------------------------------------------------------------------------


def test_downloads_files_and_snapshots_and_verifies_them(hub: RehearsalHub, client: Client) -> None:
    said = client.run(f"""
revision = hub.resolve_revision("org/name")
large = hf_hub_download("org/name", "unet/weights.safetensors", revision="main")
small = hf_hub_download("org/name", "config.json", revision="{COMMIT}")
folder = pathlib.Path(snapshot_download("org/name"))
say(version=hub.__version__, revision=revision.resolved, large=sha256(large), small=sha256(small),
    files={{path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}})
""")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items() if isinstance(data, bytes)}
    assert said["revision"] == COMMIT
    assert said["files"] == digests
    assert (said["large"], said["small"]) == (digests["unet/weights.safetensors"], digests["config.json"])
    blobs = {path.name for path in (client.home / "hub" / "models--org--name" / "blobs").iterdir()}
    if blobs:  # where links are not allowed the client keeps no blobs
        assert blobs >= {digests["unet/weights.safetensors"], git_oid(CONFIG)}
    verified = client.hf("cache", "verify", "org/name", "--revision", COMMIT, "--fail-on-missing-files", "--json")
    assert verified.returncode == 0, verified.stderr + verified.stdout
    large_gets = [each for each in hub.requests if each.listener == "content"]
    assert [(each.method, each.range, each.accept_encoding) for each in large_gets] == [("GET", None, "gzip, deflate")]


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def test_answers_questions_about_files_without_sending_them(hub: RehearsalHub, client: Client) -> None:
    said = client.run(f"""
api = HfApi()
files = api.get_paths_info("org/name", ["unet/weights.safetensors", "config.json", "unet", "none"], revision="{COMMIT}")
large = get_hf_file_metadata(hf_hub_url("org/name", "unet/weights.safetensors", revision="{COMMIT}"))
small = get_hf_file_metadata(hf_hub_url("org/name", "config.json"))
spaced = get_hf_file_metadata(hf_hub_url("org/name", "a b/ü.txt"))
info = api.model_info("org/name", files_metadata=True)
say(files=[[each.path, getattr(each, "size", None), each.lfs.sha256 if getattr(each, "lfs", None) else None,
            getattr(each, "blob_id", None)] for each in files],
    large=[large.commit_hash, large.etag, large.size, large.location.split("?")[0], large.xet_file_data],
    small=[small.commit_hash, small.etag, small.size], spaced=spaced.etag,
    info=[info.sha, info.gated, sorted(each.rfilename for each in info.siblings)],
    tree=sorted(each.path for each in api.list_repo_tree("org/name", recursive=True)))
""")
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    by_path = {row[0]: row[1:] for row in said["files"]}
    assert set(by_path) == {"unet/weights.safetensors", "config.json", "unet"}
    assert by_path["unet/weights.safetensors"][:2] == [len(WEIGHTS), digest]
    assert by_path["config.json"] == [len(CONFIG), None, git_oid(CONFIG)]
    assert said["large"] == [COMMIT, digest, len(WEIGHTS), f"{hub.content_origin}/blob/{digest}", None]
    assert said["small"] == [COMMIT, git_oid(CONFIG), len(CONFIG)]
    assert said["spaced"] == git_oid(b"text")
    assert said["info"] == [COMMIT, False, sorted(FILES)]
    assert said["tree"] == sorted([*FILES, "unet", "a b"])
    assert not [each for each in hub.requests if each.listener == "content"]


REFUSALS = {
    "missing repository": ("org/none", COMMIT, "config.json"),
    "private": ("org/private", COMMIT, "config.json"),
    "gated": ("org/gated", COMMIT, "config.json"),
    "missing commit": ("org/name", "f" * 40, "config.json"),
    "missing branch": ("org/name", "none", "config.json"),
    "missing file": ("org/name", COMMIT, "none.json"),
}


@pytest.mark.parametrize("token", [None, STRANGER])
def test_refusals_become_the_errors_that_name_them(hub: RehearsalHub, client: Client, token: str | None) -> None:
    hub.add_repository("org/private", COMMIT, FILES, is_private=True, tokens=(TOKEN,))
    hub.add_repository("org/gated", COMMIT, FILES, is_gated=True, tokens=(TOKEN,))
    said = client.run(
        f"""
cases = json.loads({json.dumps(json.dumps(REFUSALS))})
ask = lambda r, v, f: get_hf_file_metadata(hf_hub_url(r, f, revision=v), token={token is not None} or None)
say(**{{name: outcome(lambda: ask(*case)) for name, case in cases.items()}},
    download=outcome(lambda: hf_hub_download("org/gated", "config.json")),
    info=outcome(lambda: HfApi().model_info("org/private")),
    paths=outcome(lambda: HfApi().get_paths_info("org/name", ["config.json"], revision="none")))
""",
        token=token,
    )
    expected = {
        "missing repository": "RepositoryNotFoundError",
        "private": "RepositoryNotFoundError",
        "gated": "GatedRepoError",
        "missing commit": "RevisionNotFoundError",
        "missing branch": "RevisionNotFoundError",
        "missing file": "RemoteEntryNotFoundError",
        "download": "GatedRepoError",
        "info": "RepositoryNotFoundError",
        "paths": "RevisionNotFoundError",
    }
    assert {name: mro[0] for name, mro in said.items()} == expected
    assert "EntryNotFoundError" in said["missing file"]
    assert "RepositoryNotFoundError" in said["gated"]  # a gated repository is a kind of missing one: order matters


def test_an_invalid_token_is_no_missing_repository(hub: RehearsalHub, client: Client) -> None:
    said = client.run('say(error=outcome(lambda: HfApi().model_info("org/name")))', token="hf_expired")
    assert said["error"][0] == "HfHubHTTPError"


def test_the_token_goes_to_the_hub_and_never_to_the_content_network(hub: RehearsalHub, client: Client) -> None:
    hub.add_repository("org/gated", COMMIT, FILES, is_gated=True, tokens=(TOKEN,))
    said = client.run(
        'say(size=outcome(lambda: hf_hub_download("org/gated", "unet/weights.safetensors")))', token=TOKEN
    )
    assert said["size"] == len(WEIGHTS)
    shown = {(each.listener, each.authorization) for each in hub.requests}
    assert shown == {("hub", f"Bearer {TOKEN}"), ("content", None)}


def test_follows_a_renamed_repository_and_a_mirror_that_answers_itself(hub: RehearsalHub, client: Client) -> None:
    hub.add_repository("org/mirror", COMMIT, FILES, is_direct=True)
    hub.rename("org/name", "team/renamed")
    said = client.run("""
say(renamed=outcome(lambda: hf_hub_download("org/name", "unet/weights.safetensors")),
    small=outcome(lambda: hf_hub_download("org/name", "config.json")),
    info=HfApi().model_info("org/name").id,
    mirror=outcome(lambda: hf_hub_download("org/mirror", "unet/weights.safetensors")))
""")
    assert said == {"renamed": len(WEIGHTS), "small": len(CONFIG), "info": "team/renamed", "mirror": len(WEIGHTS)}


def test_resumes_within_one_call_after_a_cut(hub: RehearsalHub, client: Client) -> None:
    hub.fault(faults.CutAfter(0.6))
    said = client.run('say(digest=sha256(hf_hub_download("org/name", "unet/weights.safetensors")))')
    assert said["digest"] == hashlib.sha256(WEIGHTS).hexdigest()
    gets = [each for each in hub.requests if each.listener == "content"]
    # from the last whole chunk, and with nothing that ties the rest to what came before
    assert [(each.range, each.if_range) for each in gets] == [(None, None), (f"bytes={10 * MIB}-", None)]


# --- what it does not do -----------------------------------------------------------------------


def test_pins_that_flipped_bytes_are_accepted_and_only_verify_tells(hub: RehearsalHub, client: Client) -> None:
    hub.fault(faults.WrongBytes(count=3))
    said = client.run('say(digest=sha256(hf_hub_download("org/name", "unet/weights.safetensors")))')
    assert said["digest"] != hashlib.sha256(WEIGHTS).hexdigest()
    assert hub.faults_waiting == 0
    again = client.run('say(digest=sha256(hf_hub_download("org/name", "unet/weights.safetensors")))')
    assert again == said  # kept under the name of the right digest
    verified = client.hf("cache", "verify", "org/name", "--revision", COMMIT)
    assert verified.returncode == 1
    assert "unet/weights.safetensors: expected" in verified.stdout + verified.stderr


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.Status(503), "HfHubHTTPError"),
        (faults.Status(403), "HfHubHTTPError"),
        pytest.param(faults.ResetAfter(0.6), "ReadError", marks=needs("resets")),
        (faults.ShortLength(1000), "OSError"),
    ],
)
def test_pins_that_one_passing_fault_is_fatal_and_costs_all_bytes(
    hub: RehearsalHub, client: Client, fault: faults.Fault, error: str
) -> None:
    hub.fault(fault)
    said = client.run('say(error=outcome(lambda: hf_hub_download("org/name", "unet/weights.safetensors")))')
    assert said["error"][0] == error
    assert hub.faults_waiting == 0
    assert len([each for each in hub.requests if each.listener == "content"]) == 1
    assert partial_downloads(client) == []


def test_pins_that_other_content_after_a_cut_is_spliced_in(hub: RehearsalHub, client: Client) -> None:
    other = bytes(len(WEIGHTS))
    hub.fault(faults.CutAfter(0.6))
    hub.fault(faults.OtherContent("other", other), min_offset=1)
    said = client.run('say(digest=sha256(hf_hub_download("org/name", "unet/weights.safetensors")))')
    spliced = WEIGHTS[: 10 * MIB] + other[10 * MIB :]
    assert said["digest"] == hashlib.sha256(spliced).hexdigest()


@needs("resets")
def test_pins_that_a_second_run_starts_from_the_first_byte(hub: RehearsalHub, client: Client) -> None:
    hub.fault(faults.ResetAfter(0.9))
    script = 'say(error=outcome(lambda: hf_hub_download("org/name", "unet/weights.safetensors")))'
    client.run(script)
    hub.clear_requests()
    assert client.run(script)["error"] == len(WEIGHTS)
    assert [each.range for each in hub.requests if each.listener == "content"] == [None]


def test_pins_that_a_file_found_by_commit_is_believed_without_a_look(hub: RehearsalHub, client: Client) -> None:
    said = client.run(f"""
path = hf_hub_download("org/name", "config.json", revision="{COMMIT}")
pathlib.Path(path).resolve().write_bytes(b"broken")
say(size=outcome(lambda: hf_hub_download("org/name", "config.json", revision="{COMMIT}")))
""")
    assert said["size"] == len(b"broken")
    assert [each.method for each in hub.requests if each.path.endswith("config.json")] == ["HEAD", "HEAD", "GET"]


@pytest.mark.parametrize("header", ["X-Repo-Commit", "X-Linked-Etag"])
def test_refuses_a_hub_that_does_not_name_commit_or_digest(hub: RehearsalHub, client: Client, header: str) -> None:
    hub.fault(faults.OmitHeader(header), on="head", times=None)
    said = client.run('say(error=outcome(lambda: hf_hub_download("org/name", "unet/weights.safetensors")))')
    assert said["error"][0] == "LocalEntryNotFoundError"
