"""Settings and cache as the Hub's own client reads them: the real client, in a process of its own, decides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from provisioner.core.errors import UsageError
from provisioner.core.models import Artifact, UrlFile
from provisioner.files.hub_cache import CachedFiles, Token, cache_folder, endpoint, find_token, is_offline
from tests.support.builders import COMMIT, artifact, hub_file, sha256, variant

DATA = b"the right bytes"
WEIGHTS = artifact(DATA, sources=(hub_file("weights.safetensors"),))
LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")

ASK = """
import json
from huggingface_hub import constants, get_token
print(json.dumps({"cache": constants.HF_HUB_CACHE, "token": get_token(), "offline": constants.HF_HUB_OFFLINE,
                  "endpoint": constants.ENDPOINT}))
"""


def environment(home: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return a clean environment for the client: nothing of the machine's but what starts a process."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "TEMP", "TMP") if name in os.environ}
    return kept | {"HOME": str(home), "USERPROFILE": str(home), "PYTHONUTF8": "1"} | dict(given)


def what_the_client_says(environ: Mapping[str, str]) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=dict(environ), capture_output=True, text=True, timeout=60, check=True
    )
    said: dict[str, object] = json.loads(done.stdout)
    return said


# --- the cache folder, and what else the client reads from the environment ---------------------------


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"XDG_CACHE_HOME": "{home}/xdg"},
        {"HF_HOME": "{home}/hf", "XDG_CACHE_HOME": "{home}/xdg"},
        {"HF_HUB_CACHE": "{home}/cache", "HF_HOME": "{home}/hf", "HF_TOKEN": "  hf_env\n"},
        {"HUGGINGFACE_HUB_CACHE": "{home}/old", "HF_HOME": "{home}/hf", "HUGGING_FACE_HUB_TOKEN": "hf_old"},
        {"HUGGINGFACE_HUB_CACHE": "{home}/old", "HF_HUB_CACHE": "{home}/new", "HF_TOKEN_PATH": "{home}/elsewhere"},
        {"HF_HOME": "~/in-home", "HF_HUB_OFFLINE": "yes", "HF_ENDPOINT": "https://mirror.example/"},
        {"HF_HOME": "$DATA/hf", "DATA": "{home}/data", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_\r\nsplit"},
    ],
    ids=lambda given: " ".join(sorted(given)) or "nothing set",
)
def test_agrees_with_the_client(tmp_path: Path, given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    environ = environment(tmp_path, {name: text.replace("{home}", str(tmp_path)) for name, text in given.items()})
    for folder in ("hf", "xdg/huggingface", ".cache/huggingface", "in-home", "data/hf"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "token").write_text(f"hf_of_{folder.replace('/', '_')}\n", encoding="utf-8")
    (tmp_path / "elsewhere").write_text("hf_elsewhere", encoding="utf-8")
    client = what_the_client_says(environ)
    for name in ("HOME", "USERPROFILE", "DATA"):  # what `~` and `$DATA` mean to this process
        monkeypatch.setenv(name, environ.get(name, ""))
    token = find_token(environ)
    assert cache_folder(environ) == Path(str(client["cache"]))
    assert (token.value if token else None) == client["token"]
    assert is_offline(False, environ) == client["offline"]
    assert endpoint(None, environ) == client["endpoint"]


# --- the token -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "found_in"),
    [
        ({"HF_TOKEN": "a", "HUGGING_FACE_HUB_TOKEN": "b", "HF_API_TOKEN": "c"}, "HF_TOKEN"),
        ({"HUGGING_FACE_HUB_TOKEN": "b", "HF_API_TOKEN": "c"}, "HUGGING_FACE_HUB_TOKEN"),
        ({"HF_API_TOKEN": "c"}, "HF_API_TOKEN"),
        ({"HF_TOKEN": " ", "HF_API_TOKEN": "c"}, "HF_API_TOKEN"),
        ({}, "token"),
        ({"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, None),
        ({"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_TOKEN": "a"}, "HF_TOKEN"),
        ({"HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}, "token"),
    ],
)
def test_the_token_is_the_first_that_is_set(tmp_path: Path, environ: dict[str, str], found_in: str | None) -> None:
    (tmp_path / "token").write_text("hf_secret\n", encoding="utf-8")
    token = find_token({"HF_HOME": str(tmp_path), **environ})
    assert (None if token is None else Path(token.found_in).name) == found_in


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe\x00"])
def test_a_token_file_that_says_nothing_is_no_token(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    assert find_token({"HF_HOME": str(tmp_path)}) is None
    assert find_token({"HF_HOME": str(tmp_path), "HF_TOKEN_PATH": str(tmp_path)}) is None


def test_a_token_never_shows_its_value() -> None:
    token = Token("hf_secret", "HF_TOKEN")
    assert "hf_secret" not in f"{token} {token!r} {(token,)}"
    assert "HF_TOKEN" in repr(token)


# --- the endpoint ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "environ", "address"),
    [
        (None, {}, "https://huggingface.co"),
        (None, {"HF_ENDPOINT": ""}, "https://huggingface.co"),
        (None, {"HF_ENDPOINT": "https://mirror.example/"}, "https://mirror.example"),
        ("http://127.0.0.1:8080", {"HF_ENDPOINT": "https://mirror.example"}, "http://127.0.0.1:8080"),
        ("https://host/with/path//", {}, "https://host/with/path"),
    ],
)
def test_the_endpoint_is_the_option_else_the_variable_else_the_hub(
    option: str | None, environ: dict[str, str], address: str
) -> None:
    assert endpoint(option, environ) == address


def test_an_address_with_a_password_is_refused_and_not_shown() -> None:
    address = "https://me:secret9@host"
    for option, environ in ((address, {}), (None, {"HF_ENDPOINT": address})):
        with pytest.raises(UsageError, match="holds a user name or a password") as caught:
            endpoint(option, environ)
        assert "secret9" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["hf-mirror.com", "ftp://host.example", "https://", "http://", "https://a b.example", "/"]
)
def test_what_is_no_address_of_a_hub_is_refused(address: str) -> None:
    for option, environ in ((address, {}), (None, {"HF_ENDPOINT": address})):
        with pytest.raises(UsageError, match="not the address of a Hub"):
            endpoint(option, environ)


@pytest.mark.parametrize(
    ("option", "environ", "offline"),
    [
        (False, {}, False),
        (True, {}, True),
        (False, {"HF_HUB_OFFLINE": "1"}, True),
        (False, {"HF_HUB_OFFLINE": "TRUE"}, True),
        (False, {"HF_HUB_OFFLINE": "0"}, False),
        (False, {"HF_HUB_OFFLINE": "no"}, False),
    ],
)
def test_offline_is_the_option_or_the_clients_variable(option: bool, environ: dict[str, str], offline: bool) -> None:
    assert is_offline(option, environ) == offline


# --- finding files in a cache ------------------------------------------------------------------------


def repository(cache: Path, name: str = "org--name") -> Path:
    folder = cache / f"models--{name}"
    for child in ("blobs", f"snapshots/{COMMIT}", "refs"):
        (folder / child).mkdir(parents=True)
    return folder


def found(cache: Path, wanted: Artifact = WEIGHTS) -> list[Path]:
    return [copy.path for copy in CachedFiles(cache).find(wanted, wanted.contents)]


def test_no_cache_no_copies(tmp_path: Path) -> None:
    assert found(tmp_path / "none") == []
    (tmp_path / "file").write_bytes(b"")
    assert found(tmp_path / "file") == []


def test_finds_the_file_itself_in_a_cache_without_links(tmp_path: Path) -> None:
    path = repository(tmp_path) / "snapshots" / COMMIT / "weights.safetensors"
    path.write_bytes(DATA)
    (copy,) = CachedFiles(tmp_path).find(WEIGHTS, WEIGHTS.contents)
    assert (copy.path, copy.origin, copy.size, copy.sha256) == (path.resolve(), "HF cache", len(DATA), sha256(DATA))
    assert copy.device == path.stat().st_dev


@LINKS
def test_finds_the_blob_behind_the_link_once(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    blob = folder / "blobs" / sha256(DATA)
    blob.write_bytes(DATA)
    (folder / "snapshots" / COMMIT / "weights.safetensors").symlink_to(f"../../blobs/{blob.name}")
    assert found(tmp_path) == [blob.resolve()]


@LINKS
def test_follows_a_blob_to_the_store_that_repositories_share(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    shared = tmp_path / "blobs" / "ab" / "xet"
    shared.parent.mkdir(parents=True)
    shared.write_bytes(DATA)
    (folder / "blobs" / sha256(DATA)).symlink_to("../../blobs/ab/xet")
    (folder / "snapshots" / COMMIT / "weights.safetensors").symlink_to(f"../../blobs/{sha256(DATA)}")
    assert found(tmp_path) == [shared.resolve()]


def test_finds_the_same_bytes_under_any_other_repository(tmp_path: Path) -> None:
    other = repository(tmp_path, "somebody--else") / "blobs" / sha256(DATA)
    other.write_bytes(DATA)
    assert found(tmp_path) == [other.resolve()]


def test_bytes_that_are_as_good_are_found_by_their_digest_only(tmp_path: Path) -> None:
    as_good = b"as good"
    wanted = artifact(
        DATA, accept=(variant(as_good),), sources=(hub_file("weights.safetensors"), UrlFile(url="https://x"))
    )
    folder = repository(tmp_path)
    (folder / "snapshots" / COMMIT / "weights.safetensors").write_bytes(as_good)  # not what that commit has
    assert found(tmp_path, wanted) == []
    (folder / "blobs" / sha256(as_good)).write_bytes(as_good)
    assert found(tmp_path, wanted) == [(folder / "blobs" / sha256(as_good)).resolve()]


@pytest.mark.parametrize("trouble", ["another size", "dangling", "circle", "unknown revision"])
def test_what_cannot_be_right_is_not_offered(tmp_path: Path, trouble: str) -> None:
    folder = repository(tmp_path)
    path, blob = folder / "snapshots" / COMMIT / "weights.safetensors", folder / "blobs" / sha256(DATA)
    if trouble == "another size":
        path.write_bytes(DATA[:-1])
        blob.write_bytes(DATA + b"x")
    elif trouble == "unknown revision":
        other = path.parents[1] / ("f" * 40)
        other.mkdir()
        (other / path.name).write_bytes(DATA)
    elif sys.platform == "win32":
        pytest.skip("links need a privilege on Windows")
    else:
        path.symlink_to("nowhere" if trouble == "dangling" else path.name)
        blob.symlink_to("nowhere" if trouble == "dangling" else blob.name)
    assert found(tmp_path) == []
