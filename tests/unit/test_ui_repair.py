"""Repairs and backups on the terminal: the plan, the progress, the result, the list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.core.events import FileProgress
from provisioner.core.models import (
    BackupEntry,
    Damage,
    FetchFile,
    FileStep,
    MoveFile,
    Outcome,
    OutcomeStatus,
    PatchFile,
    PatchWay,
    RecordReceipt,
)
from provisioner.files.blocks import damage_sentence
from provisioner.files.planner import plan as made_plan
from provisioner.plan.steps import Plan
from provisioner.report.json_document import document
from provisioner.report.outcome import Report
from provisioner.ui.backup_list import backup_blocks
from provisioner.ui.board import Board, started_words
from provisioner.ui.tables import plan_blocks, report_blocks
from provisioner.ui.text import Block, laid_out, rendered
from tests.support.builders import (
    MODELS,
    artifact,
    artifact_set,
    check,
    comfy_file,
    inventory,
    local_copy,
    manifest,
    whole,
)
from tests.support.schemas import conforming

KEPT = "what is replaced moves to .klein-setup/aside once the new file is verified"
VAE = artifact(b"v" * 100_000)
DAMAGE = Damage(
    size=100_000,
    sha256=VAE.sha256,
    block_size=16_000,
    digests=("d",) * 7,
    trusted_by="receipt",
    observed_size=100_000,
    bad_blocks=(2, 3),
    held_blocks=(3,),
)
PATCH = PatchFile(
    artifact=VAE, destination=comfy_file(VAE), reason="blocks 2-3 differ", damage=DAMAGE, way="in-place", replaces="x"
)
COPY = local_copy(VAE, MODELS / "checkpoints" / "vae.safetensors")
MOVE = MoveFile(artifact=VAE, destination=comfy_file(VAE), reason="missing", copy=COPY)
FETCH = FetchFile(artifact=VAE, destination=comfy_file(VAE), reason="missing")


def plan_of(*steps: FileStep) -> Plan:
    wanted = artifact_set(VAE)
    made = made_plan(manifest(wanted), wanted, None, inventory(check(VAE, "hash-mismatch", damage=DAMAGE)))
    return whole(replace(made, steps=steps))


def outcome(step: FileStep, status: OutcomeStatus = "done") -> Outcome:
    return Outcome(step=step, status=status, detail="what came of it", error=OSError("x") if status != "done" else None)


def written(blocks: list[Block]) -> str:
    return "\n".join(rendered(line, is_coloured=False) for line in laid_out(blocks, width=None))


@pytest.mark.parametrize(
    ("step", "word", "said"),
    [
        (PATCH, "repair", KEPT),
        (replace(PATCH, way="beside"), "repair", KEPT),
        (MOVE, "move", f"from the {COPY.origin} at checkpoints/vae.safetensors"),
        (replace(MOVE, replaces="in the way"), "replace", KEPT),
    ],
)
def test_a_plan_says_what_a_repair_does_and_what_it_keeps(step: FileStep, word: str, said: str) -> None:
    told = written(plan_blocks(plan_of(step)))
    row = next(line for line in told.splitlines() if "vae/vae.safetensors" in line)
    assert row.split()[0] == word
    assert said in told
    assert told.count(KEPT) == (said == KEPT)  # once for all, and only where something is replaced


def test_verify_says_where_the_bytes_of_a_missing_file_may_be() -> None:
    wanted = artifact_set(VAE)
    made = made_plan(manifest(wanted), wanted, None, inventory(check(VAE, "missing"), copies=(COPY,)))
    report = Report(command="verify", status="findings", exit_status=1, plan=whole(made))
    assert "its bytes may be in checkpoints/vae.safetensors" in written(report_blocks(report))


def test_a_length_that_is_wrong_is_said_once() -> None:
    damage = replace(DAMAGE, observed_size=90_000)
    sentence = damage_sentence(damage)
    wanted = artifact_set(VAE)
    seen = check(VAE, "size-mismatch", damage=damage, identity=sentence, observed_size=90_000)
    made = made_plan(manifest(wanted), wanted, None, inventory(seen))
    report = Report(command="verify", status="findings", exit_status=1, plan=whole(made))
    for told in (written(report_blocks(report)), written(plan_blocks(whole(made)))):
        assert told.count("90,000") == 1
        assert sentence in " ".join(told.split())


def test_what_became_of_a_file_is_not_its_receipt() -> None:
    done = [outcome(MOVE), outcome(RecordReceipt(artifact=VAE, destination=comfy_file(VAE), reason="verified"))]
    report = Report(command="repair", status="ok", exit_status=0, plan=plan_of(), outcomes=tuple(done))
    row = next(line for line in written(report_blocks(report)).splitlines() if "vae/vae.safetensors" in line)
    assert row.split()[0] == "moved"


def test_a_plan_counts_only_the_bytes_that_a_repair_fetches() -> None:
    told = written(plan_blocks(plan_of(PATCH)))
    assert "16.0 kB in 1 file" in told
    assert "84.0 kB already on this machine" in told


@pytest.mark.parametrize(
    ("outcomes", "word"),
    [
        ((outcome(PATCH),), "repaired"),
        ((outcome(MOVE),), "moved"),
        ((outcome(replace(MOVE, replaces="in the way")),), "replaced"),
        ((outcome(PATCH, "failed"),), "failed"),
        ((outcome(PATCH, "failed"), outcome(FETCH)), "fetched"),
        ((outcome(PATCH, "failed"), outcome(FETCH, "skipped")), "failed"),
    ],
)
def test_a_report_says_what_became_of_a_damaged_file(outcomes: tuple[Outcome, ...], word: str) -> None:
    report = Report(command="repair", status="ok", exit_status=0, plan=plan_of(), outcomes=outcomes)
    row = next(line for line in written(report_blocks(report)).splitlines() if "vae/vae.safetensors" in line)
    assert row.split()[0] == word


@pytest.mark.parametrize(("step", "said"), [(PATCH, "repairing vae/vae.safetensors"), (MOVE, "moving vae/vae.")])
def test_a_step_begins_with_what_it_does(step: FileStep, said: str) -> None:
    assert started_words(step).startswith(said)


def test_the_board_counts_what_is_right_in_a_damaged_file_as_there() -> None:
    board = Board()
    board.expect(plan_of(PATCH).files)
    assert (board.done_and_total, board.files) == ((84_000, 100_000), (0, 1))
    board.move(FileProgress(label="vae/vae.safetensors", phase="fetching", size=100_000, bytes_on_disk=90_000))
    assert board.done_and_total == (90_000, 100_000)
    board.finish(PATCH)
    assert (board.done_and_total, board.files) == ((100_000, 100_000), (1, 1))


@pytest.mark.parametrize("way", ["in-place", "continue", "beside"])
def test_the_document_says_which_blocks_and_how(way: PatchWay) -> None:
    report = Report(command="repair", status="ok", exit_status=0, plan=plan_of(replace(PATCH, way=way)))
    told = conforming(document(report))
    (step,), (seen,) = told["steps"], told["checks"]
    assert (step["kind"], step["way"], step["blocks"], step["bytes_to_fetch"]) == ("patch-file", way, [2, 3], 16_000)
    assert step["replaces"] == "x"
    assert seen["damage"] == {"block_size": 16_000, "bad_blocks": [2, 3], "trusted_by": "receipt"}


def test_the_document_has_the_keys_of_a_repair_for_other_steps_too() -> None:
    told = conforming(document(Report(command="repair", status="ok", exit_status=0, plan=plan_of(MOVE))))
    assert [(step["kind"], step["way"], step["blocks"]) for step in told["steps"]] == [("move-file", None, None)]


def test_backups_are_listed_with_their_name_and_reason() -> None:
    entry = BackupEntry(
        id="20261123T061404Z/vae/vae.safetensors",
        root=MODELS,
        was="vae/vae.safetensors",
        path=MODELS / ".klein-setup/aside/20261123T061404Z/vae/vae.safetensors",
        time="2026-11-23T06:14:04Z",
        reason="other bytes of the right size",
        size=4_000_000_000,
    )
    unknown = replace(entry, id="x/y", was="", path=Path("/m/y.blocks"), time="", size=1_000, is_blocks=True)
    told = written(backup_blocks([entry, unknown]))
    for words in (
        "2026-11-23 06:14  vae/vae.safetensors  4.00 GB",
        "name: 20261123T061404Z/vae/vae.safetensors",
        "other bytes of the right size",
        "unknown time",
        "y.blocks",
        "only the bytes that a repair replaced",
        "2 backups, 4.00 GB.",
        "klein-setup backups restore NAME",
    ):
        assert words in told
    assert told.count("only the bytes that a repair replaced") == 1


def test_no_backups_is_said_in_a_line() -> None:
    assert written(backup_blocks(())) == "There are no backups."
