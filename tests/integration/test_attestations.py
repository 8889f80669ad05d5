"""`verify --attest` and `attestation` with the real command and real keys."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from provisioner.signing.sigstore_bundle import signed_bytes
from tests.support.sandbox import Sandbox, Wanted, tensors
from tests.support.signing import KeyPair, make_pair


@pytest.fixture
def published(sandbox: Sandbox) -> tuple[Wanted, KeyPair]:
    (wanted,) = sandbox.publish(tensors(2000))
    assert sandbox.install("--only", "files").returncode == 0
    return wanted, make_pair(sandbox.folder)


def test_a_signed_attestation_is_verified_by_us_and_by_openssl(
    sandbox: Sandbox, published: tuple[Wanted, KeyPair]
) -> None:
    wanted, pair = published
    output = sandbox.folder / "lab-3.json"
    done = sandbox.run("verify", "--attest", output, "--sign", pair.private)
    assert done.returncode == 0, done.said
    assert "lab-3.json attests 1 files and is signed with the key" in done.said
    read = sandbox.run("attestation", output, "--verify-with", pair.public)
    assert read.returncode == 0, read.said
    assert "1 files of small/tree are correct" in read.said
    envelope = json.loads(output.read_text())["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    statement = json.loads(payload)
    assert statement["subject"] == [{"name": "vae/small.safetensors", "digest": {"sha256": wanted.sha256}}]
    assert str(sandbox.folder) not in payload.decode()
    if shutil.which("openssl") is not None:
        (sandbox.folder / "signed").write_bytes(signed_bytes(payload))
        (sandbox.folder / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
        words = ["openssl", "dgst", "-sha256", "-verify", "lab.pub", "-signature", "signature", "signed"]
        said = subprocess.run(words, cwd=sandbox.folder, check=True, capture_output=True, text=True).stdout
        assert said == "Verified OK\n"


def test_an_attestation_of_another_key_or_with_a_changed_byte_is_refused(
    sandbox: Sandbox, published: tuple[Wanted, KeyPair]
) -> None:
    output = sandbox.folder / "lab-3.json"
    assert sandbox.run("verify", "--attest", output, "--sign", published[1].private).returncode == 0
    other = make_pair(sandbox.folder, "other")
    forged = sandbox.folder / "forged.json"
    document = json.loads(output.read_text())
    payload = base64.b64decode(document["dsseEnvelope"]["payload"]).replace(b"PASSED", b"PASSES")
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    forged.write_text(json.dumps(document))
    for path, key in ((output, other.public), (forged, published[1].public), (Path(__file__), published[1].public)):
        refused = sandbox.run("attestation", path, "--verify-with", key, "--json")
        assert (refused.returncode, refused.codes) == (7, ["lock-signature"])
    assert sandbox.run("attestation", output, "--json").codes == ["usage"]
    lock = sandbox.folder / "lab.yaml"
    assert sandbox.run("manifest", "lock", "--output", lock, "--sign", published[1].private).returncode == 0
    signature = sandbox.run("attestation", f"{lock}.sig", "--verify-with", published[1].public)
    assert "is no attestation of klein-setup" in signature.said


def test_the_statement_alone_names_the_version_of_the_lock(sandbox: Sandbox, published: tuple[Wanted, KeyPair]) -> None:
    _, pair = published
    lock, output = sandbox.folder / "lab.yaml", sandbox.folder / "statement.json"
    locked = sandbox.run("manifest", "lock", "--output", lock, "--sign", pair.private, "--lock-version", "7")
    assert locked.returncode == 0, locked.said
    done = sandbox.run("verify", "--manifest", lock, "--verify-with", pair.public, "--attest", output)
    assert done.returncode == 0, done.said
    assert "is not signed" in done.said
    assert json.loads(output.read_text())["predicate"]["lock"]["version"] == 7


def test_nothing_is_attested_that_is_not_right_or_was_not_read(
    sandbox: Sandbox, published: tuple[Wanted, KeyPair]
) -> None:
    wanted, pair = published
    output = sandbox.folder / "lab-3.json"
    for words in (
        ("--attest", output, "--quick"),
        ("--sign", pair.private),
        ("--attest", output, "--sign", pair.public),
    ):
        assert sandbox.run("verify", "--json", *words).returncode == 2
    sandbox.plant(sandbox.path(), wanted.data[:-1] + b"?")
    done = sandbox.run("verify", "--attest", output, "--sign", pair.private)
    assert done.returncode == 1
    assert "Nothing was attested" in done.said
    assert not output.exists()


def test_the_last_image_of_this_target_is_named_and_that_of_another_is_not(
    sandbox: Sandbox, published: tuple[Wanted, KeyPair]
) -> None:
    output = sandbox.folder / "statement.json"
    kept = sandbox.state / "last-report.json"

    def image(**changes: object) -> object:
        assert sandbox.run("verify").returncode == 0
        document = json.loads(kept.read_text(encoding="utf-8"))
        document["details"]["smoke_test"] = {"picture": {"sha256": "ab" * 32, "path": "/home/anna/fox.png"}}
        kept.write_text(json.dumps(document | changes), encoding="utf-8")
        assert sandbox.run("verify", "--attest", output).returncode == 0
        assert "anna" not in output.read_text()
        found: object = json.loads(output.read_text())["predicate"].get("image")
        return found

    made = image(ended_at="2026-11-26T10:00:00Z")
    assert made == {"sha256": "ab" * 32, "madeAt": "2026-11-26T10:00:00Z"}
    kept.unlink()
    assert image(target={"kind": "comfyui", "path": "/elsewhere"}) is None
