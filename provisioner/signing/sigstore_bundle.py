"""The file of a signature: a sigstore bundle with a DSSE envelope, as OpenSSF Model Signing writes it for a key.

Text in, values out.  The bundle names a public key by the SHA-256 of its PEM text, and holds no certificate and no
entry of a public log.  Formats: github.com/sigstore/protobuf-specs (bundle v0.3), github.com/secure-systems-lab/dsse
(v1.0.0, ``PAE``), read 2026-11-27.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from provisioner.core.errors import LockSignatureError
from provisioner.core.json_reader import FieldError, Fields, parse_object

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"

LARGEST_BUNDLE = 1024 * 1024
"""Bytes; that of one lock has one kilobyte, an attestation some."""

HINT = "Copy the file and its signature again, both from the place that publishes them."


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A payload and its signature; nothing of it is verified."""

    payload: bytes  # an in-toto statement, JSON
    signature: bytes  # ECDSA, DER
    key_id: str | None  # SHA-256 of the PEM text of the public key; a claim


def signed_bytes(payload: bytes) -> bytes:
    """Return the bytes that are signed for a payload (DSSE's pre-authentication encoding).

    >>> signed_bytes(b"{}")
    b'DSSEv1 28 application/vnd.in-toto+json 2 {}'
    """
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode("ascii"), len(payload), payload)


def bundle_text(envelope: Envelope) -> str:
    """Return the text of a bundle."""
    document = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": envelope.key_id}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(envelope.payload).decode("ascii"),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(envelope.signature).decode("ascii"), "keyid": ""}],
        },
    }
    return json.dumps(document) + "\n"


def parse_bundle(data: bytes, *, label: str) -> Envelope:
    """Return what a bundle holds.

    Parameters
    ----------
    data : bytes
        The file.
    label : str
        Its name in messages.

    Raises
    ------
    LockSignatureError
        It is cut off, no bundle, or one of a kind that is not read: signed with a certificate, or several times.
    """
    document = parse_object(data, most=LARGEST_BUNDLE)
    if document is None:
        raise LockSignatureError(f"{label} is damaged: it is no JSON object.", hint=HINT, path=label)
    try:
        return _envelope(Fields(document))
    except ValueError as error:  # FieldError is one, and whatever base64 says
        raise LockSignatureError(
            f"{label} is not a signature that can be read: {_reason(error)}.",
            hint=f"{HINT} It has to be a sigstore bundle of one signature made with a key, which is what "
            "`klein-setup manifest lock --sign KEY` and `model_signing sign key` write.",
            path=label,
        ) from error


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, FieldError) else "a text in it is not valid base64"


def _envelope(document: Fields) -> Envelope:
    document.choice("mediaType", (MEDIA_TYPE,), MEDIA_TYPE)
    key_id = document.inner("verificationMaterial").inner("publicKey").optional_text("hint")
    envelope = document.inner("dsseEnvelope")
    envelope.choice("payloadType", (PAYLOAD_TYPE,), PAYLOAD_TYPE)
    signatures = envelope.objects("signatures")
    if len(signatures) != 1:
        envelope.complain("signatures", "a list of exactly one signature", None)
    return Envelope(
        payload=base64.b64decode(envelope.text("payload"), validate=True),
        signature=base64.b64decode(signatures[0].text("sig"), validate=True),
        key_id=key_id or None,
    )
