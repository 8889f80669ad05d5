"""What an attestation holds, what it never holds, and how it is read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from provisioner.core.errors import LockSignatureError
from provisioner.core.models import Lock
from provisioner.report.attestation import PREDICATE_TYPE, Verified, parse_statement, statement_text
from provisioner.report.changes import CheckedState
from tests.support.builders import gpu, machine, manifest

STATE = CheckedState(
    taken_at="2026-11-27T10:00:00Z",
    klein_setup="0.1.0",
    python_version="3.12.3",
    torch="2.15.0+cu130",
    comfyui_version="0.33.0",
    comfyui_commit="2f" * 20,
    comfyui_has_local_changes=False,
    custom_nodes=("nodes-of-anna",),
)
LOCKED = replace(
    manifest(), lock=Lock(manifest_sha256="ab" * 32, locked_on="2026-11-20", version=7, expires="2027-02-28")
)
FULL = Verified(
    manifest=LOCKED,
    set_id="fp8",
    files={"vae/b.safetensors": "bb" * 32, "vae/a.safetensors": "aa" * 32},
    machine=machine(gpu(uuid="GPU-serial-number", compute_capability=(8, 9)), driver_version="580.1"),
    state=STATE,
    packages_sha256="cc" * 32,
    image_sha256="dd" * 32,
    image_made_at="2026-11-26T10:00:00Z",
)
BARE = replace(FULL, manifest=manifest(), state=CheckedState(taken_at="2026-11-27T10:00:00Z", klein_setup="0.1.0"),
               machine=machine(), packages_sha256=None, image_sha256=None, image_made_at=None)  # fmt: skip


def test_a_statement_names_every_file_and_with_what_it_runs() -> None:
    statement = json.loads(statement_text(FULL))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == PREDICATE_TYPE
    assert [each["name"] for each in statement["subject"]] == ["vae/a.safetensors", "vae/b.safetensors"]
    assert statement["subject"][0]["digest"] == {"sha256": "aa" * 32}
    predicate = statement["predicate"]
    assert predicate["timeVerified"] == "2026-11-27T10:00:00Z"
    assert predicate["verificationResult"] == "PASSED"
    assert predicate["lock"] == {"lockedOn": "2026-11-20", "version": 7, "expires": "2027-02-28"}
    assert predicate["manifest"]["sha256"] == LOCKED.sha256
    assert predicate["machine"]["gpus"][0]["computeCapability"] == "8.9"
    assert predicate["environment"]["torch"] == "2.15.0+cu130"
    assert predicate["environment"]["packagesSha256"] == "cc" * 32
    assert predicate["comfyui"]["commit"] == "2f" * 20
    assert predicate["comfyui"]["customNodes"] == 1
    assert predicate["image"] == {"sha256": "dd" * 32, "madeAt": "2026-11-26T10:00:00Z"}


def test_a_statement_has_no_serial_number_and_no_name_of_a_node() -> None:
    text = statement_text(FULL)
    assert "serial-number" not in text
    assert "anna" not in text


def test_a_recorded_machine_is_said_to_be_one() -> None:
    recorded = replace(FULL, machine=replace(FULL.machine, recorded_from="/home/anna/machine.json"))
    text = statement_text(recorded)
    assert parse_statement(text.encode(), label="x").is_recorded
    assert not parse_statement(statement_text(FULL).encode(), label="x").is_recorded
    assert "anna" not in text


def test_what_is_not_known_is_left_out() -> None:
    predicate = json.loads(statement_text(BARE))["predicate"]
    assert set(predicate) == {"verifier", "timeVerified", "verificationResult", "manifest", "machine"}


@pytest.mark.parametrize("verified", [FULL, BARE])
def test_a_statement_is_read_as_it_was_written(verified: Verified) -> None:
    found = parse_statement(statement_text(verified).encode(), label="x")
    assert found.files == verified.files
    assert found.time == verified.state.taken_at
    assert found.manifest_sha256 == verified.manifest.sha256
    assert found.lock_version == (verified.manifest.lock and 7)
    assert (found.torch, found.comfyui_commit) == (verified.state.torch, verified.state.comfyui_commit)
    assert found.gpus == tuple(each.name for each in verified.machine.gpus)


def _set(*path: str, to: object) -> Callable[[Any], None]:
    def change(statement: Any) -> None:  # noqa: ANN401 - JSON
        for each in path[:-1]:
            statement = statement[each]
        statement[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_set("_type", to="x"), "_type"),
        (_set("predicateType", to="https://slsa.dev/verification_summary/v1"), "predicateType"),
        (_set("predicate", "verificationResult", to="FAILED"), "verificationResult"),
        (_set("predicate", "manifest", to=None), "manifest"),
        (_set("predicate", "lock", to=[]), "lock"),
        (_set("subject", to=None), "subject"),
    ],
)
def test_another_statement_is_refused(change: Callable[[Any], None], complaint: str) -> None:
    statement = json.loads(statement_text(FULL))
    change(statement)
    with pytest.raises(LockSignatureError, match=f"x is no attestation of klein-setup: .*{complaint}"):
        parse_statement(json.dumps(statement).encode(), label="x")


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(LockSignatureError, match="no attestation"):
        parse_statement(b"[", label="x")
