"""Private and public keys in PEM files: the one module that signs and verifies, with the package ``cryptography``.

Takes elliptic curve keys alone (P-256, P-384, P-521), with the digest that goes with each, as OpenSSF Model Signing
does.  No message holds anything of a key.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from provisioner.core.errors import LockSignatureError, SigningKeyError
from provisioner.disk.read_json import read_at_most
from provisioner.signing.sigstore_bundle import Envelope, signed_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
_LARGEST_KEY = 64 * 1024  # bytes
_HOW_TO = (
    "Make a pair with `openssl ecparam -genkey -name prime256v1 -noout -out lab.key` and "
    "`openssl ec -in lab.key -pubout -out lab.pub`."
)


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """Signs; shown, it is its id alone."""

    _key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        """Return nothing that the key could be found from."""
        return f"PrivateKey({self.id})"

    @property
    def id(self) -> str:
        """SHA-256 of the PEM text of its public key."""
        return _id_of(self._key.public_key())

    def sign(self, payload: bytes) -> Envelope:
        """Return a payload with its signature."""
        signature = self._key.sign(signed_bytes(payload), _ecdsa(self._key.curve.name))
        return Envelope(payload=payload, signature=signature, key_id=self.id)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Verifies signatures."""

    _key: ec.EllipticCurvePublicKey

    @property
    def id(self) -> str:
        """SHA-256 of its PEM text, as Model Signing names a key in a bundle."""
        return _id_of(self._key)

    def verify(self, envelope: Envelope, *, label: str) -> bytes:
        """Return the payload of an envelope that this key signed.

        Raises
        ------
        LockSignatureError
            Another key signed it, or nobody signed this payload.
        """
        from cryptography.exceptions import InvalidSignature

        if envelope.key_id is not None and envelope.key_id != self.id:
            raise LockSignatureError(
                f"{label} is signed with another key: {envelope.key_id[:16]}..., and --verify-with names "
                f"{self.id[:16]}... (SHA-256 of the public key).",
                hint="Use the public key of those who signed it. If they changed it, get the new one in a way that you "
                "trust.",
                path=label,
            )
        try:
            self._key.verify(envelope.signature, signed_bytes(envelope.payload), _ecdsa(self._key.curve.name))
        except InvalidSignature as error:
            raise LockSignatureError(
                f"The signature of {label} is wrong: the key did not sign this.",
                hint="Copy the file and its signature again; if it stays wrong, do not use them.",
                path=label,
            ) from error
        return envelope.payload


def read_private_key(path: Path, password: Callable[[], str | None]) -> PrivateKey:
    """Return the private key of a PEM file.

    Parameters
    ----------
    path : Path
        The file.
    password : callable
        Asked only where the key is encrypted; None where there is no password.

    Raises
    ------
    SigningKeyError
        It cannot be read, is no private key of a kind that is taken, or the password is missing or wrong.
    """
    serialization = _serialization()
    data = _read(path)
    if b"PUBLIC KEY-----" in data or b"BEGIN CERTIFICATE-----" in data:
        _refuse(path, "is a public key or a certificate; expected the private key", "Name the file of the pair that "
                "is kept secret.")  # fmt: skip
    try:
        try:
            key = serialization.load_pem_private_key(data, None)
        except TypeError:  # it is encrypted, says cryptography so
            word = password()
            if word is None:
                _refuse(path, "is encrypted, and no password was given", "Run it in a terminal, which asks for it, or "
                        "set KLEIN_SETUP_KEY_PASSWORD_FILE to a file that holds it.")  # fmt: skip
            key = serialization.load_pem_private_key(data, word.encode("utf-8"))
    except _refusals():
        is_encrypted = b"ENCRYPTED" in data
        _refuse(path, "cannot be opened with this password" if is_encrypted else "is not a private key in PEM",
                "Check the password, and that the file is whole." if is_encrypted else _HOW_TO)  # fmt: skip
    return PrivateKey(_checked(path, key))


def read_public_key(path: Path) -> PublicKey:
    """Return the public key of a PEM file; raises SigningKeyError."""
    serialization = _serialization()
    data = _read(path)
    if b"PRIVATE KEY-----" in data:
        _refuse(path, "is a private key; expected the public one", "Take it off this machine, and write its public key "
                "with `openssl ec -in lab.key -pubout -out lab.pub`.")  # fmt: skip
    try:
        key = serialization.load_pem_public_key(data)
    except _refusals():
        _refuse(path, "is not a public key in PEM", _HOW_TO)
    return PublicKey(_checked(path, key))


def _serialization() -> Any:  # noqa: ANN401 - a module
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise SigningKeyError(
            "Signatures need the package cryptography, which is not installed.",
            hint="Install it with klein-setup: `pip install 'klein-setup[signing]'`.",
        ) from error
    return serialization


def _refusals() -> tuple[type[Exception], ...]:
    """Return what cryptography raises for a file that holds no key it can read."""
    from cryptography.exceptions import UnsupportedAlgorithm

    return ValueError, TypeError, UnsupportedAlgorithm


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for a writer
            _refuse(path, "is not a regular file", "Name the file of the key.")
        with path.open("rb") as stream:
            data = read_at_most(stream, _LARGEST_KEY)
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it has no valid name"
        raise SigningKeyError(
            f"The key {path} cannot be read: {reason}.", hint="Check the path and its rights.", path=str(path)
        ) from error
    if len(data) > _LARGEST_KEY:
        _refuse(path, f"is longer than {_LARGEST_KEY} bytes, which no key is", "Name the file of the key.")
    return data


def _refuse(path: Path, complaint: str, hint: str) -> NoReturn:
    raise SigningKeyError(f"The key {path} {complaint}.", hint=hint, path=str(path)) from None


def _checked(path: Path, key: Any) -> Any:  # noqa: ANN401 - one of many classes
    """Return a key on one of the three curves; raises SigningKeyError for any other."""
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in _CURVES:
        kind = type(key).__name__.lstrip("_").removesuffix("PrivateKey").removesuffix("PublicKey")
        _refuse(path, f"is of the kind {curve or kind}; expected one on the curve P-256, P-384 or P-521", _HOW_TO)
    return key


def _ecdsa(curve: str) -> ec.ECDSA:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.ECDSA(getattr(hashes, _CURVES[curve])())


def _id_of(key: ec.EllipticCurvePublicKey) -> str:
    from cryptography.hazmat.primitives import serialization

    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()
