"""The file of a signature is read as what it is, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.core.errors import LockSignatureError
from provisioner.signing.sigstore_bundle import LARGEST_BUNDLE, Envelope, bundle_text, parse_bundle

ENVELOPE = Envelope(payload=b'{"a": 1}', signature=b"\x30\x01", key_id="ab" * 32)
TEXT = bundle_text(ENVELOPE)


def test_a_bundle_is_read_as_it_was_written() -> None:
    assert parse_bundle(TEXT.encode(), label="x.sig") == ENVELOPE


@pytest.mark.parametrize("hint", [None, ""])
def test_a_bundle_need_not_name_its_key(hint: str | None) -> None:
    document = json.loads(TEXT)
    document["verificationMaterial"]["publicKey"] = {"hint": hint}
    assert parse_bundle(json.dumps(document).encode(), label="x.sig").key_id is None


@given(end=st.integers(min_value=0, max_value=len(TEXT) - 2))
def test_a_bundle_that_is_cut_off_is_refused(end: int) -> None:
    with pytest.raises(LockSignatureError, match=r"x\.sig is damaged"):
        parse_bundle(TEXT[:end].encode(), label="x.sig")


def test_a_bundle_that_is_too_long_is_refused() -> None:
    with pytest.raises(LockSignatureError, match="damaged"):
        parse_bundle(TEXT.encode() + b" " * LARGEST_BUNDLE, label="x.sig")


def _envelope(name: str, value: object) -> Callable[[Any], None]:
    return lambda document: document["dsseEnvelope"].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda it: it.__setitem__("mediaType", "application/vnd.dev.sigstore.bundle.v0.2+json"), "mediaType"),
        (lambda it: it.__setitem__("verificationMaterial", {"certificate": {}}), "publicKey"),
        (lambda it: it.pop("dsseEnvelope"), "dsseEnvelope"),
        (_envelope("payloadType", "text/plain"), "payloadType"),
        (_envelope("payload", "e30"), "not valid base64"),
        (_envelope("payload", "e3\u00e40="), "not valid base64"),
        (_envelope("payload", None), "payload"),
        (_envelope("signatures", []), "signatures"),
        (_envelope("signatures", [{"sig": "MA=="}] * 2), "signatures"),
        (_envelope("signatures", [{"sig": "*"}]), "not valid base64"),
    ],
)
def test_a_bundle_of_another_kind_is_refused(change: Callable[[Any], None], complaint: str) -> None:
    document = json.loads(TEXT)
    change(document)
    with pytest.raises(LockSignatureError, match=f"x.sig is not a signature that can be read: .*{complaint}"):
        parse_bundle(json.dumps(document).encode(), label="x.sig")
