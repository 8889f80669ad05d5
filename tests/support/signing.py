"""Key pairs and signed locks, made with the parts that the program itself uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from provisioner.signing.ec_keys import read_private_key
from provisioner.signing.lock_statement import lock_payload
from provisioner.signing.sigstore_bundle import bundle_text

AnyKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """Two PEM files."""

    private: Path
    public: Path

    def sign(self, lock: Path, *, password: str | None = None) -> Path:
        """Write the signature beside a lock."""
        return self.sign_payload(lock, lock_payload(lock.name, lock.read_bytes()), password=password)

    def sign_payload(self, lock: Path, payload: bytes, *, password: str | None = None) -> Path:
        """Write a signature of any payload beside a lock."""
        envelope = read_private_key(self.private, lambda: password).sign(payload)
        signature = lock.with_name(f"{lock.name}.sig")
        signature.write_text(bundle_text(envelope), encoding="ascii")
        return signature


def make_pair(folder: Path, name: str = "lab", *, curve: str = "P-256", password: str | None = None) -> KeyPair:
    """Write a new key pair: ``NAME.key``, encrypted if there is a password, and ``NAME.pub``."""
    return write_pair(folder, name, ec.generate_private_key(CURVES[curve]), password)


def write_pair(folder: Path, name: str, key: AnyKey, password: str | None = None) -> KeyPair:
    """Write a private key, and its public key."""
    encryption: serialization.KeySerializationEncryption = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password.encode("utf-8"))
    )
    pair = KeyPair(private=folder / f"{name}.key", public=folder / f"{name}.pub")
    pem = serialization.Encoding.PEM
    pair.private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
    pair.public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return pair
