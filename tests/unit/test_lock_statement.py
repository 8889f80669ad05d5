"""What a signature of a lock says, and which signed locks may be used."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provisioner.core.errors import (
    LockExpiredError,
    LockRollbackError,
    LockSignatureError,
    ManifestError,
    UsageError,
)
from provisioner.core.models import AcceptedLock, Lock, Manifest
from provisioner.manifest.parse import LARGEST_LOCK_VERSION, parse_manifest
from provisioner.signing.lock_statement import (
    check_fresh,
    check_not_older,
    check_payload,
    lock_payload,
    next_version,
    parse_expiry,
)


def clock(today: str) -> Callable[[int], str]:
    return lambda days: (datetime.date.fromisoformat(today) + datetime.timedelta(days=days)).isoformat()


TODAY = clock("2026-11-27")
TEXT = (Path(__file__).resolve().parents[2] / "manifests" / "flux2-klein-4b.yaml").read_text(encoding="utf-8")
CONTENT = b"id: lab\n"


def locked(*, expires: str | None = None, version: int | None = 7, locked_on: str = "2026-11-20") -> Manifest:
    lock = Lock(manifest_sha256="ab" * 32, locked_on=locked_on, version=version, expires=expires)
    return replace(parse_manifest(TEXT, file="lab.yaml"), lock=lock)


# --- the statement -----------------------------------------------------------------------------


def test_a_statement_is_about_the_file_it_was_made_for() -> None:
    check_payload(lock_payload("lab.yaml", CONTENT), "lab.yaml", CONTENT, label="lab.yaml")


def test_a_statement_names_the_digest_of_all_bytes() -> None:
    (resource,) = json.loads(lock_payload("lab.yaml", CONTENT))["predicate"]["resources"]
    assert resource == {"name": ".", "algorithm": "sha256", "digest": hashlib.sha256(CONTENT).hexdigest()}


def test_other_bytes_are_refused_with_both_digests() -> None:
    with pytest.raises(LockSignatureError, match="is not the file that was signed") as caught:
        check_payload(lock_payload("lab.yaml", CONTENT), "lab.yaml", CONTENT + b" ", label="/x/lab.yaml")
    assert caught.value.context["observed"] == hashlib.sha256(CONTENT + b" ").hexdigest()
    assert caught.value.context["expected"] == hashlib.sha256(CONTENT).hexdigest()


def test_another_name_is_refused() -> None:
    with pytest.raises(LockSignatureError, match=r"was signed as 'other\.yaml': it is another lock"):
        check_payload(lock_payload("other.yaml", CONTENT), "lab.yaml", CONTENT, label="lab.yaml")


def _set(*path: str | int, to: object) -> Callable[[Any], None]:
    def change(statement: Any) -> None:  # noqa: ANN401 - JSON
        for each in path[:-1]:
            statement = statement[each]
        statement[path[-1]] = to

    return change


def _twice(*path: str) -> Callable[[Any], None]:
    def change(statement: Any) -> None:  # noqa: ANN401 - JSON
        for each in path:
            statement = statement[each]
        statement.append(statement[0])

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_set("_type", to="https://in-toto.io/Statement/v0.1"), "_type"),
        (_set("predicateType", to="https://model_signing/Digests/v0.1"), "predicateType"),
        (_set("predicate", to=[]), "predicate"),
        (_set("predicate", "serialization", "method", to="shards"), "method"),
        (_set("predicate", "serialization", "hash_type", to="blake3"), "hash_type"),
        (_set("subject", to=[]), "subject"),
        (_twice("subject"), "subject"),
        (_set("predicate", "resources", to=[]), "resources"),
        (_twice("predicate", "resources"), "resources"),
        (_set("predicate", "resources", 0, "name", to="lab.yaml"), "name"),
        (_set("predicate", "resources", 0, "algorithm", to="blake3"), "algorithm"),
        (_set("predicate", "resources", 0, "digest", to="AB"), "digest"),
        (_set("subject", 0, "digest", "sha256", to="00" * 32), "sha256"),
        (_set("subject", 0, "name", to=1), "name"),
    ],
)
def test_a_statement_of_another_kind_is_refused(change: Callable[[Any], None], complaint: str) -> None:
    statement = json.loads(lock_payload("lab.yaml", CONTENT))
    change(statement)
    with pytest.raises(LockSignatureError, match=f"is not a lock: .*{complaint}"):
        check_payload(json.dumps(statement).encode(), "lab.yaml", CONTENT, label="lab.yaml")


def test_a_statement_that_is_no_json_is_refused() -> None:
    with pytest.raises(LockSignatureError, match="is not a lock"):
        check_payload(b"{", "lab.yaml", CONTENT, label="lab.yaml")


# --- version and expiry ------------------------------------------------------------------------


@pytest.mark.parametrize("expires", [None, "2026-11-27", "2099-01-01"])
def test_a_fresh_lock_has_its_version(expires: str | None) -> None:
    assert check_fresh(locked(expires=expires), TODAY, label="lab.yaml") == 7


def test_what_is_no_lock_or_has_no_version_is_refused() -> None:
    with pytest.raises(LockSignatureError, match="it is not a lock"):
        check_fresh(parse_manifest(TEXT, file="x"), TODAY, label="x")
    with pytest.raises(LockSignatureError, match="has no version"):
        check_fresh(locked(version=None), TODAY, label="x")


def test_an_expired_lock_is_refused_and_both_dates_are_named() -> None:
    with pytest.raises(
        LockExpiredError, match=r"its last day was 2026-11-26, and this machine's clock says 2026-11-27 \(UTC\)"
    ):
        check_fresh(locked(expires="2026-11-26"), TODAY, label="lab.yaml")


def test_a_clock_before_the_day_of_the_lock_is_named_as_what_is_wrong() -> None:
    fresh = locked(expires="2099-01-01")
    with pytest.raises(
        LockExpiredError, match=r"locked on 2026-11-20 by the clock of the machine that made it.*2026-11-18"
    ):
        check_fresh(fresh, clock("2026-11-18"), label="lab.yaml")
    assert check_fresh(fresh, clock("2026-11-19"), label="lab.yaml") == 7  # a clock without a time zone


@pytest.mark.parametrize(("locked_on", "expires"), [("2026-11-20", "2026-02-31"), ("2026-02-31", "2099-01-01")])
def test_a_date_that_the_calendar_does_not_have_is_refused(locked_on: str, expires: str) -> None:
    with pytest.raises(ManifestError, match="2026-02-31 is not a day of the calendar"):
        check_fresh(locked(locked_on=locked_on, expires=expires), TODAY, label="lab.yaml")


ACCEPTED = AcceptedLock(name="lab.yaml", key_id="k", version=7, sha256="aa", accepted_on="2026-11-25")


@pytest.mark.parametrize(
    ("before", "version", "sha256"), [(None, 1, "aa"), (ACCEPTED, 7, "aa"), (ACCEPTED, 8, "bb"), (ACCEPTED, 8, "aa")]
)
def test_the_same_or_a_newer_lock_is_accepted(before: AcceptedLock | None, version: int, sha256: str) -> None:
    check_not_older(before, replace(ACCEPTED, version=version, sha256=sha256), label="lab.yaml")


def test_an_older_lock_is_refused_with_both_versions() -> None:
    with pytest.raises(LockRollbackError, match="is version 6, and version 7 was accepted here on 2026-11-25"):
        check_not_older(ACCEPTED, replace(ACCEPTED, version=6), label="lab.yaml")


def test_another_lock_of_the_same_version_is_refused() -> None:
    with pytest.raises(LockRollbackError, match="is version 7 with other content"):
        check_not_older(ACCEPTED, replace(ACCEPTED, sha256="bb"), label="lab.yaml")


def test_a_version_grows_from_the_lock_that_is_replaced() -> None:
    assert next_version(Lock(manifest_sha256="", locked_on="", version=41)) == 42
    assert next_version(Lock(manifest_sha256="", locked_on="")) == 1
    with pytest.raises(UsageError, match="after which none comes"):
        next_version(Lock(manifest_sha256="", locked_on="", version=LARGEST_LOCK_VERSION))


@pytest.mark.parametrize(
    ("text", "day"),
    [("0d", "2026-11-27"), ("90d", "2027-02-25"), ("2026-11-27", "2026-11-27"), ("3650d", "2036-11-24")],
)
def test_an_expiry_is_days_or_a_date(text: str, day: str) -> None:
    assert parse_expiry(text, TODAY) == day


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "neither"),
        ("90", "neither"),
        ("-1d", "neither"),
        ("1e3d", "neither"),
        ("tomorrow", "neither"),
        ("2026-11-27T00:00", "neither"),
        ("2027-02-30", "not a day of the calendar"),
        ("2026-11-26", "is over: this machine's clock says 2026-11-27"),
        ("99999d", "more than ten years"),
        ("9999-12-31", "more than ten years"),
    ],
)
def test_an_expiry_that_is_none_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_expiry(text, TODAY)
