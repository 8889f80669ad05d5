"""Real keys and real signatures: ours, OpenSSL's, and those of OpenSSF Model Signing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from provisioner.core.errors import LockSignatureError, SigningKeyError
from provisioner.signing.ec_keys import read_private_key, read_public_key
from provisioner.signing.lock_statement import check_payload
from provisioner.signing.sigstore_bundle import parse_bundle, signed_bytes
from tests.support.signing import CURVES, AnyKey, make_pair, write_pair

PASSWORD = "correct horse"
CONTENT = b"id: lab\n"


def never() -> str | None:
    pytest.fail("asked for a password")


@pytest.mark.parametrize("curve", CURVES)
def test_what_a_key_signs_its_public_key_verifies(tmp_path: Path, curve: str) -> None:
    pair = make_pair(tmp_path, curve=curve)
    key, public = read_private_key(pair.private, never), read_public_key(pair.public)
    envelope = key.sign(b"{}")
    assert public.verify(envelope, label="x") == b"{}"
    assert key.id == public.id == envelope.key_id
    assert repr(key) == f"PrivateKey({key.id})"


def test_a_changed_payload_or_signature_is_refused(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    public = read_public_key(pair.public)
    envelope = read_private_key(pair.private, never).sign(b"{}")
    for wrong in (
        replace(envelope, payload=b"{ }"),
        replace(envelope, signature=envelope.signature[:-1]),
        replace(envelope, signature=b""),
    ):
        with pytest.raises(LockSignatureError, match="The signature of x is wrong"):
            public.verify(wrong, label="x")


def test_another_key_is_named_by_its_id_and_refused_also_where_the_bundle_does_not_say_it(tmp_path: Path) -> None:
    mine, other = make_pair(tmp_path), make_pair(tmp_path, "other")
    envelope = read_private_key(other.private, never).sign(b"{}")
    public = read_public_key(mine.public)
    with pytest.raises(LockSignatureError, match=f"x is signed with another key: {str(envelope.key_id)[:16]}"):
        public.verify(envelope, label="x")
    for claimed in (None, public.id):
        with pytest.raises(LockSignatureError, match="The signature of x is wrong"):
            public.verify(replace(envelope, key_id=claimed), label="x")


def test_an_encrypted_key_is_opened_with_its_password_alone(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, password=PASSWORD)
    assert read_private_key(pair.private, lambda: PASSWORD).id == read_public_key(pair.public).id
    for given, complaint in (("wrong", "cannot be opened with this password"), (None, "no password was given")):
        with pytest.raises(SigningKeyError, match=complaint) as caught:
            read_private_key(pair.private, lambda given=given: given)  # type: ignore[misc]
        assert PASSWORD not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"


def _other_kinds(folder: Path) -> dict[str, tuple[Path, Path]]:
    keys: dict[str, AnyKey] = {
        "RSA": rsa.generate_private_key(65537, 2048),
        "Ed25519": ed25519.Ed25519PrivateKey.generate(),
        "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    }
    pairs = {name: write_pair(folder, name, key) for name, key in keys.items()}
    return {name: (pair.private, pair.public) for name, pair in pairs.items()}


def test_keys_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    for name, (private, public) in _other_kinds(tmp_path).items():
        expected = f"is of the kind {name}; expected one on the curve P-256, P-384 or P-521"
        with pytest.raises(SigningKeyError, match=expected):
            read_private_key(private, never)
        with pytest.raises(SigningKeyError, match=expected):
            read_public_key(public)


def test_the_wrong_half_of_a_pair_is_refused_by_name(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    with pytest.raises(SigningKeyError, match="is a public key or a certificate; expected the private key"):
        read_private_key(pair.public, never)
    with pytest.raises(SigningKeyError, match="is a private key; expected the public one"):
        read_public_key(pair.private)


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lab.key"
    path.write_bytes(content)
    with pytest.raises(SigningKeyError, match="is not a private key in PEM"):
        read_private_key(path, never)
    path.write_bytes(content.replace(b"PRIVATE", b"PUBLIC"))
    with pytest.raises(SigningKeyError, match="is not a public key in PEM"):
        read_public_key(path)


def test_a_key_that_is_not_there_a_folder_and_a_long_file_are_refused(tmp_path: Path) -> None:
    for name, complaint in (("none", "No such file"), (".", "is not a regular file"), ("long", "is longer than")):
        (tmp_path / "long").write_bytes(b"x" * 70_000)
        with pytest.raises(SigningKeyError, match=complaint):
            read_public_key(tmp_path / name)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed here")
@pytest.mark.parametrize("curve", CURVES)
def test_openssl_verifies_what_we_sign(tmp_path: Path, curve: str) -> None:
    pair = make_pair(tmp_path, curve=curve)
    envelope = read_private_key(pair.private, never).sign(b"{}")
    (tmp_path / "sig").write_bytes(envelope.signature)
    (tmp_path / "data").write_bytes(signed_bytes(b"{}"))
    digest = {"P-256": "sha256", "P-384": "sha384", "P-521": "sha512"}[curve]
    words = ["openssl", "dgst", f"-{digest}", "-verify", str(pair.public), "-signature", "sig", "data"]
    assert subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, text=True).stdout == "Verified OK\n"
    (tmp_path / "data").write_bytes(signed_bytes(b"{ }"))
    assert subprocess.run(words, cwd=tmp_path, check=False, capture_output=True).returncode != 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed here")
def test_keys_as_the_manual_makes_them_are_taken(tmp_path: Path) -> None:
    for words in (
        ("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", "lab.key"),
        ("ec", "-in", "lab.key", "-pubout", "-out", "lab.pub"),
        ("ec", "-in", "lab.key", "-aes256", "-passout", f"pass:{PASSWORD}", "-out", "secret.key"),
    ):
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)
    public = read_public_key(tmp_path / "lab.pub")
    assert read_private_key(tmp_path / "lab.key", never).id == public.id
    assert read_private_key(tmp_path / "secret.key", lambda: PASSWORD).id == public.id


@pytest.mark.parametrize("curve", CURVES)
def test_model_signing_verifies_what_we_sign_and_we_what_it_signs(tmp_path: Path, curve: str) -> None:
    pytest.importorskip("OpenSSL", reason="model-signing 1.1.1 imports pyOpenSSL and does not ask for it")
    pair, lock = make_pair(tmp_path, curve=curve), tmp_path / "lab.yaml"

    def theirs(*words: str | Path) -> int:
        command = [sys.executable, "-m", "model_signing", *words, "--signature", "lab.yaml.sig", "lab.yaml"]
        return subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode

    lock.write_bytes(CONTENT)
    pair.sign(lock)
    assert theirs("verify", "key", "--public_key", pair.public) == 0
    lock.write_bytes(CONTENT + b" ")
    assert theirs("verify", "key", "--public_key", pair.public) != 0
    assert theirs("sign", "key", "--private_key", pair.private) == 0
    envelope = parse_bundle((tmp_path / "lab.yaml.sig").read_bytes(), label="lab.yaml.sig")
    payload = read_public_key(pair.public).verify(envelope, label="lab.yaml")
    check_payload(payload, "lab.yaml", CONTENT + b" ", label="lab.yaml")
