"""What a stranger's manifest may put into an HF cache: nothing that the Hub does not confirm, no code, no ``main``."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.sandbox import REPOSITORY, REVISION, TOKEN, Completed, Sandbox, tensors

GOOD = tensors(300_000)
EVIL = tensors(300_000, seed=1)
CODE = b"import os\nos.system('calc')\n"


@pytest.fixture
def stranger() -> Iterator[str]:
    """Serve the stranger's bytes; the address of the folder."""
    served = {"/weights.safetensors": EVIL, "/modeling_x.py": CODE, "/config.json": b'{"a": 2}\n'}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = served[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def entry(name: str, data: bytes, *urls: str, is_lfs: bool) -> dict[str, Any]:
    return {
        "id": Path(name).stem.replace("_", "-"),
        "role": "other",
        "name": Path(name).name,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "sources": [
            {"repo_id": REPOSITORY, "revision": REVISION, "filename": name},
            *({"url": url} for url in urls),
        ],
        "is_lfs": is_lfs,
    }


def install(sandbox: Sandbox, *entries: dict[str, Any], options: tuple[str, ...] = ()) -> Completed:
    one = {"id": "cache", "title": "All", "target": "hf_cache", "artifacts": [each["id"] for each in entries]}
    sandbox.write_manifest(default_set="cache", sets=[one], artifacts=list(entries))
    return sandbox.run("install", "--hf-cache", str(sandbox.cache), "--only", "files", "--allow-loopback", *options)


def snapshot(sandbox: Sandbox) -> Path:
    return sandbox.cache / f"models--{REPOSITORY.replace('/', '--')}" / "snapshots" / REVISION


def test_bytes_of_another_address_do_not_fill_a_snapshot_of_a_genuine_repository(
    sandbox: Sandbox, stranger: str
) -> None:
    sandbox.hub.add_repository(REPOSITORY, REVISION, {"weights.safetensors": GOOD}, tokens=[TOKEN])
    done = install(
        sandbox, entry("weights.safetensors", EVIL, f"{stranger}/weights.safetensors", is_lfs=True), options=("--json",)
    )
    assert done.returncode == 7
    assert not snapshot(sandbox).exists()
    (error,) = done.json["errors"]
    assert "weights.safetensors" in error["message"]
    assert "SHA-256" in error["message"]


def test_a_file_that_the_commit_does_not_have_is_not_added_to_it(sandbox: Sandbox, stranger: str) -> None:
    sandbox.hub.add_repository(REPOSITORY, REVISION, {"weights.safetensors": GOOD}, tokens=[TOKEN])
    done = install(sandbox, entry("config.json", b'{"a": 2}\n', f"{stranger}/config.json", is_lfs=False))
    assert done.returncode == 6
    assert f"{REPOSITORY} has no file config.json" in done.said
    assert not snapshot(sandbox).exists()


def test_a_small_file_of_another_address_is_not_taken_for_the_hubs_own(sandbox: Sandbox, stranger: str) -> None:
    sandbox.hub.add_repository(REPOSITORY, REVISION, {"config.json": b'{"a": 1}\n'}, tokens=[TOKEN])
    done = install(sandbox, entry("config.json", b'{"a": 2}\n', f"{stranger}/config.json", is_lfs=False))
    assert done.returncode == 7
    assert not snapshot(sandbox).joinpath("config.json").exists()


def test_a_file_from_this_machine_is_confirmed_too(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.hub.add_repository(REPOSITORY, REVISION, {"config.json": b'{"a": 1}\n'}, tokens=[TOKEN])
    folder = tmp_path / "downloads"
    folder.mkdir()
    folder.joinpath("config.json").write_bytes(b'{"a": 2}\n')
    wanted = entry("config.json", b'{"a": 2}\n', is_lfs=False)
    done = install(sandbox, wanted, options=("--look-in", str(folder)))
    assert done.returncode == 7
    assert "its git id is" in done.said
    assert not snapshot(sandbox).joinpath("config.json").exists()
    offline = install(sandbox, wanted, options=("--look-in", str(folder), "--offline"))
    assert offline.returncode == 5
    assert "confirm" in offline.said
    assert not snapshot(sandbox).joinpath("config.json").exists()


@pytest.mark.parametrize("name", ["modeling_x.py", "pytorch_model.bin", "data/x.PKL", "lib.so"])
def test_code_is_refused_before_anything_is_fetched(sandbox: Sandbox, stranger: str, name: str) -> None:
    sandbox.hub.add_repository(REPOSITORY, REVISION, {name: CODE}, tokens=[TOKEN])
    done = install(sandbox, entry(name, CODE, f"{stranger}/modeling_x.py", is_lfs=False))
    assert done.returncode == 2
    assert name in done.said
    assert "runs as code" in done.said
    assert sandbox.hub.requests == ()
    assert not sandbox.cache.exists()


def test_what_the_hub_confirms_is_placed_and_main_is_not_named(sandbox: Sandbox) -> None:
    files = {"weights.safetensors": GOOD, "config.json": b'{"a": 1}\n'}
    sandbox.hub.add_repository(REPOSITORY, REVISION, files, tokens=[TOKEN])
    entries = [entry(name, data, is_lfs=name.endswith("tensors")) for name, data in files.items()]
    assert install(sandbox, *entries).returncode == 0
    assert {path.name: path.read_bytes() for path in snapshot(sandbox).iterdir()} == files
    assert not (snapshot(sandbox).parents[1] / "refs").exists()


def test_an_address_of_this_machine_needs_an_option(sandbox: Sandbox, stranger: str) -> None:
    data = tensors(300_000)
    wanted = {
        **entry("weights.safetensors", data, is_lfs=True),
        "role": "vae",
        "folder": "vae",
        "sources": [{"url": f"{stranger}/weights.safetensors"}],
    }
    one = {"id": "tree", "title": "All", "target": "comfyui", "artifacts": [wanted["id"]]}
    sandbox.write_manifest(default_set="tree", sets=[one], artifacts=[wanted])
    for command in ("plan", "install"):
        done = sandbox.run(command, "--only", "files")
        assert done.returncode == 2
        assert "--allow-loopback" in done.said
    assert sandbox.run("plan", "--only", "files", "--allow-loopback").returncode == 0
