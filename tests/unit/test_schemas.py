"""docs/schema/ says what the program prints, no more and no less."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from provisioner.core.models import Gpu
from provisioner.environment.state import EnvironmentReceipt, receipt_text
from provisioner.report.changes import Change, ChangesSince
from provisioner.report.json_document import document, report_line
from provisioner.report.outcome import (
    Bundle,
    BundledFile,
    EnvironmentCheck,
    EnvironmentResult,
    LeftOut,
    Report,
    RunFacts,
)
from provisioner.smoke_test.results import ImageOptions, SmokeTest, Timings
from provisioner.torch.builds import TorchBuild, TorchChoice, TorchSet
from scripts.make_schemas import FOLDER, schemas, text_of
from tests.support.builders import machine
from tests.support.schemas import check_output, conforming, validator

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(FOLDER.glob("*"))


def test_every_schema_is_what_the_types_say() -> None:
    assert {path.name: path.read_text(encoding="utf-8") for path in FILES} == {
        name: text_of(schema) for name, schema in schemas().items()
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_schema_is_one_and_has_a_name_of_its_own(path: Path) -> None:
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert re.fullmatch(rf"urn:klein-setup:{path.name.removesuffix('.schema.json')}:\d", schema["$id"])


def test_the_wheel_carries_them() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    shipped = project.partition("[tool.hatch.build.targets.wheel.force-include]")[2].partition("\n[")[0]
    assert '"docs/schema" = "provisioner/_schema"' in shipped


def whole() -> dict[str, Any]:
    """Return a document with parts of many kinds."""
    change = Change(what="torch", kind="changed", before="1", now="2", matters=True, sentence="It changed.")
    report = Report(
        command="verify",
        status="ok",
        exit_status=0,
        machine=machine(Gpu(vendor="nvidia", name="RTX 4070", index=0)),
        environment=EnvironmentCheck(path=Path("x"), holds=True),
        changes=ChangesSince(changes=(change,)),
        smoke_test=SmokeTest(backend="comfyui", options=ImageOptions(), timings=Timings()),
    )
    told: dict[str, Any] = json.loads(json.dumps(document(report)))
    return told


@pytest.mark.parametrize(
    "keys",
    [
        ("next_command",),
        ("versions", "torch"),
        ("machine", "os"),
        ("machine", "gpus", 0, "name"),
        ("details", "changes"),
        ("details", "changes", "changes", 0, "now"),
        ("details", "smoke_test", "wish", "seed"),
        ("details", "environment", "holds"),
    ],
)
def test_a_slip_in_a_key_is_found_at_every_depth(keys: tuple[str | int, ...]) -> None:
    good = conforming(whole())
    renamed, gone = copy.deepcopy(good), copy.deepcopy(good)
    *way, last = keys
    inside: Any = renamed
    lost: Any = gone
    for key in way:
        inside, lost = inside[key], lost[key]
    inside[f"{last}s"] = inside.pop(last)
    del lost[last]
    assert not validator("document").is_valid(renamed)
    assert validator("document").is_valid(gone) is (way == ["details"])  # a run has only some of them


@pytest.mark.parametrize(
    ("key", "value"), [("status", "fine"), ("exit_status", "0"), ("schema_version", 3), ("started_at", "yesterday")]
)
def test_a_value_of_another_kind_is_found(key: str, value: object) -> None:
    assert not validator("document").is_valid({**whole(), key: value})


@pytest.mark.parametrize(
    ("arguments", "stdout"),
    [
        (("verify", "--json"), '{"schema_version": 2}'),
        (("verify", "--json=events"), '{"event": "notice", "message": "x", "severity": "info"}'),
        (("verify", "--json=events"), '{"event": "another"}'),
    ],
)
def test_the_hook_of_the_test_suite_refuses_what_does_not_conform(arguments: tuple[str, ...], stdout: str) -> None:
    with pytest.raises(AssertionError, match=r"schema\.json"):
        check_output(arguments, stdout, 0)
    check_output(arguments[:1], stdout, 0)  # not asked for


def test_the_last_line_of_the_events_is_the_document_with_a_time() -> None:
    run = RunFacts(host="lab-3", started_at="2026-11-26T13:46:46.123Z", ended_at="2026-11-26T13:47:02.690Z", seconds=16)
    told = json.loads(report_line(document(Report(command="verify", status="ok", exit_status=0), run=run)))
    conforming(told, "events")
    assert (told["event"], told["time"], told["host"]) == ("report", "2026-11-26T13:47:02.690Z", "lab-3")


RECEIPT = EnvironmentReceipt(
    build_id="1",
    made_at="2026-11-26T13:46:46Z",
    installer="pip",
    python_version="3.11.7",
    python_home="/usr",
    torch_backend="cpu",
    index_url=None,
    local_tag="cpu",
    set=TorchSet(torch="2.14.1", torchvision="0.29.1", torchaudio=None),
    versions=(("torch", "2.14.1+cpu"),),
    constraints=("torch==2.14.1",),
)


def test_the_receipt_of_an_environment_conforms() -> None:
    conforming(json.loads(receipt_text(RECEIPT)), "environment-receipt")


def test_an_environment_that_was_made_and_a_zip_that_was_written_conform() -> None:
    build = TorchBuild(torch_backend="cpu", index_url=None, local_tag="cpu", sets=(RECEIPT.set,))
    choice = TorchChoice(build=build, reasons=("It fits.",), runner_up=None)
    made = EnvironmentResult(path=Path("x"), action="make", reason="there is none", torch=choice, receipt=RECEIPT)
    file = BundledFile(name="machine.json", what="this machine", size=7)
    bundle = Bundle(path=Path("x.zip"), size=9, files=(file,), left_out=(LeftOut(name="y", reason="it is not text"),))
    report = Report(command="install", status="ok", exit_status=0, environment=made, bundle=bundle)
    told = conforming(json.loads(json.dumps(document(report))))
    assert told["versions"]["torch"] == "2.14.1+cpu"
    assert told["details"]["bundle"]["left_out"] == [{"name": "y", "reason": "it is not text"}]
