"""The document of ``--json`` and the exit status."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest

from provisioner import __version__
from provisioner.comfyui.checkout_models import ComfyCheckout
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.core.errors import (
    AnswerNeededError,
    GatedError,
    GenerationError,
    HashMismatchError,
    InsufficientSpaceError,
    KleinError,
    LockHeldError,
    ManifestError,
    ModelNotListedError,
    ServerNotUsableError,
    SmokeTestError,
    UnreachableError,
)
from provisioner.core.events import Event, FileProgress, Notice, PlanMade, StepFinished, StepStarted
from provisioner.core.models import (
    AcceptedLock,
    Artifact,
    ArtifactSet,
    Check,
    ComfyFile,
    ComfyTarget,
    Config,
    Download,
    FetchFile,
    FilesPlan,
    FileSystem,
    Finding,
    FolderLink,
    Gpu,
    HubBlob,
    HubCacheTarget,
    HubFile,
    Licence,
    Lock,
    Machine,
    Manifest,
    Outcome,
    RecordReceipt,
    Remedy,
    SpaceNeed,
    Target,
)
from provisioner.core.program import Program
from provisioner.environment.package_list import PackageChange
from provisioner.plan.steps import GetComfyUI, KeepComfyUI, Plan
from provisioner.report.changes import ChangesSince
from provisioner.report.json_document import document, error_entry, event_line
from provisioner.report.json_value import json_value
from provisioner.report.outcome import (
    EnvironmentCheck,
    PackagesCheck,
    RehearsalCheck,
    RehearsalResult,
    Report,
    ReportStatus,
    StartedServer,
    UndoneUpdate,
    all_errors,
    exit_status_of,
    next_command,
    report_for_error,
)
from provisioner.report.transfer_record import FileTimes, TransferRecord
from provisioner.smoke_test.results import ImageOptions, SmokeTest, Timings
from tests.support.builders import manifest as a_manifest
from tests.support.builders import whole
from tests.support.schemas import conforming

TIME = "2026-11-26T13:46:46.123Z"
TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
ROOT = Path("/home/marta/ComfyUI/models")


def artifact(identity: str = "vae", size: int = 336_213_556) -> Artifact:
    return Artifact(
        id=identity,
        role="vae",
        name=f"{identity}.safetensors",
        folder="vae",
        size=size,
        sha256="d" * 64,
        sources=(HubFile(repo_id="org/name", revision="a" * 40, filename="vae.safetensors"),),
    )


def place(of: Artifact) -> ComfyFile:
    return ComfyFile(root=ROOT, relative=PurePosixPath("vae", of.name))


def manifest(*artifacts: Artifact, identity: str = "flux2-klein-4b", default_set: str = "fp8") -> Manifest:
    chosen = ArtifactSet(id="fp8", title="small", target="comfyui", artifacts=artifacts)
    licence = Licence(name="Apache-2.0", url="https://example.org", is_commercial_use_allowed=True)
    return Manifest(
        schema_version=1,
        id=identity,
        title="FLUX.2 [klein] 4B",
        licence=licence,
        default_set=default_set,
        sets=(chosen,),
        artifacts=artifacts,
        sha256="b" * 64,
    )


FIRST, SECOND = artifact("first", 1000), artifact("second", 500)
FETCH = FetchFile(artifact=FIRST, destination=place(FIRST), reason="missing", held_bytes=400)
RECORD = RecordReceipt(artifact=SECOND, destination=place(SECOND), reason="verified just now")
WARNING = Finding(
    code="stale-twin",
    severity="warning",
    message="unet/ is read first",
    remedy="by-hand",
    path=ROOT / "unet",
    hint="Move it.",
)


def plan(target: Target | None = None, *, of: Manifest | None = None, is_done: bool = False) -> Plan:
    chosen = of or manifest(FIRST, SECOND)
    files = FilesPlan(
        manifest=chosen,
        set=chosen.sets[0],
        target=target or ComfyTarget(given=ROOT.parent, models=ROOT, folders=()),
        steps=() if is_done else (FETCH, RECORD),
        checks=(
            Check(artifact=FIRST, destination=place(FIRST), status="ok" if is_done else "missing", basis="sha256"),
            Check(artifact=SECOND, destination=place(SECOND), status="ok", basis="sha256", observed_size=500),
        ),
        findings=(WARNING,),
        space=(
            SpaceNeed(
                file_system=FileSystem(path=Path("/home"), device=1, total_bytes=9000, free_bytes=100), needed_bytes=600
            ),
        ),
    )
    return whole(files)


def parsed(report: Report, *secrets: str) -> dict[str, Any]:
    """Return the document as a script reads it: through real JSON, NaN refused."""
    told: dict[str, Any] = json.loads(json.dumps(document(report, secrets=secrets), allow_nan=False))
    return conforming(told)


# --- the keys --------------------------------------------------------------------------------


def success() -> Report:
    outcomes = (Outcome(step=FETCH, status="done", detail="fetched", bytes_fetched=600, seconds=1.23456),)
    return Report(command="install", status="ok", exit_status=0, plan=plan(), outcomes=outcomes)


def failure() -> Report:
    error = HashMismatchError("first is another file", hint="Try again.", path=ROOT / "x")
    outcomes = (Outcome(step=FETCH, status="failed", detail="another file", error=error),)
    return report_for_error("install", error, plan=plan(), outcomes=outcomes)


def failure_before_anything() -> Report:
    return report_for_error("verify", ManifestError("x.yaml is wrong", issues=("x.yaml:3: id: missing",)))


@pytest.mark.parametrize("report", [success(), failure(), failure_before_anything()], ids=lambda each: str(each.status))
def test_the_document_conforms_to_its_schema_whatever_happened(report: Report) -> None:
    told = parsed(report)  # which validates
    assert (told["schema_version"], told["klein_setup"]) == (2, __version__)


def test_what_is_not_known_is_null_and_not_zero() -> None:
    told = parsed(failure_before_anything())
    assert told["machine"] == {}
    assert told["totals"] == {"size": None, "bytes_to_fetch": None, "bytes_estimated": None, "bytes_saved": None}
    assert told["manifest"] == {"id": "", "sha256": "", "set": "", "set_because": ""}
    assert told["errors"][0]["context"]["issues"] == ["x.yaml:3: id: missing"]
    assert (told["status"], told["exit_status"]) == ("failed", 2)


def test_a_step_carries_its_outcome_and_one_not_reached_carries_null() -> None:
    fetched, recorded = parsed(success())["steps"]
    assert fetched["path"] == "vae/first.safetensors"
    assert fetched["destination"] == str(ROOT / "vae" / "first.safetensors")
    assert fetched["bytes_to_fetch"] == 600
    assert fetched["outcome"] == {
        "status": "done",
        "detail": "fetched",
        "bytes_fetched": 600,
        "seconds": 1.235,
        "started_s": None,
        "error": None,
    }
    assert recorded["outcome"] is None
    assert recorded["bytes_to_fetch"] == 0


def test_steps_begin_after_the_first_of_them_began() -> None:
    times = {"seconds": 2.0, "status": "done", "detail": ""}
    first = Outcome(step=FETCH, started_s=1000.0, **times)  # type: ignore[arg-type]
    second = Outcome(step=RECORD, started_s=1002.5, **times)  # type: ignore[arg-type]
    told = parsed(replace(success(), outcomes=(first, second)))
    assert [step["outcome"]["started_s"] for step in told["steps"]] == [0.0, 2.5]


def test_the_details_say_licence_comfyui_and_how_the_files_came() -> None:
    record = TransferRecord(
        interval_s=0.5, received_bytes=(1, 2), files=(FileTimes(path="vae/a", seconds=(("fetching", 1.5),)),)
    )
    tree = ComfyCheckout(given=ROOT, kind="git", tree=ROOT, version="0.33.0", commit="c0de" * 10, local_changes=())
    told = parsed(replace(success(), transfers=record, comfyui=tree))["details"]
    assert told["licence"] == {"name": "Apache-2.0", "url": "https://example.org"}
    assert told["transfers"] == {
        "interval_s": 0.5,
        "received_bytes": [1, 2],
        "files": [{"path": "vae/a", "seconds": {"fetching": 1.5}}],
    }
    assert told["comfyui"] == {
        "path": str(ROOT),
        "version": "0.33.0",
        "commit": "c0de" * 10,
        "has_local_changes": False,
        "custom_nodes": [],
    }
    assert "transfers" not in parsed(success())["details"]


def test_outcomes_of_steps_that_the_last_plan_no_longer_has_are_told_too() -> None:
    done = Report(
        command="install",
        status="ok",
        exit_status=0,
        plan=plan(is_done=True),
        outcomes=(Outcome(step=FETCH, status="done", detail="fetched"),),
    )
    told = parsed(done)
    assert [step["outcome"]["status"] for step in told["steps"]] == ["done"]
    assert told["totals"] == {"size": 1500, "bytes_to_fetch": 0, "bytes_estimated": 0, "bytes_saved": 1500}


def test_totals_space_and_findings_are_those_of_the_plan() -> None:
    told = parsed(success())
    assert told["totals"] == {"size": 1500, "bytes_to_fetch": 600, "bytes_estimated": 0, "bytes_saved": 900}
    assert told["space"] == [{"path": str(Path("/home")), "needed_bytes": 600, "free_bytes": 100, "is_enough": False}]
    assert [finding["code"] for finding in told["findings"]] == ["stale-twin"]


def test_links_of_the_plan_are_told_with_who_agreed() -> None:
    link = FolderLink(path=ROOT / "vae", real=Path("/drive"), consent="remembered")
    told = parsed(replace(success(), plan=replace(plan(), links=(link,))))
    assert told["links"] == [{"path": str(ROOT / "vae"), "leads_to": str(Path("/drive")), "consent": "remembered"}]


def test_a_finding_of_plan_and_report_is_told_once() -> None:
    report = Report(command="plan", status="planned", exit_status=0, plan=plan(), findings=(WARNING,))
    assert len(parsed(report)["findings"]) == 1


def test_an_error_of_a_step_and_of_the_report_is_told_once() -> None:
    assert len(parsed(failure())["errors"]) == 1
    assert len(all_errors(failure())) == 1


def test_an_error_only_a_step_knows_is_told() -> None:
    error = UnreachableError("no connection")
    outcomes = (Outcome(step=FETCH, status="failed", detail="no connection", error=error),)
    report = Report(command="install", status="failed", exit_status=5, plan=plan(), outcomes=outcomes)
    assert [each["code"] for each in parsed(report)["errors"]] == ["unreachable"]


def test_the_versions_are_those_that_the_run_met_and_null_where_it_met_none() -> None:
    release = ComfyRelease(version="0.33.0", commit="c" * 40, tree="d" * 40)
    kept = KeepComfyUI(folder=ROOT, version="0.32.0", reason="found")
    got = GetComfyUI(
        folder=ROOT, release=release, source="x", reason="missing", download=Download(fetched_bytes=1, disk_bytes=1)
    )
    base = Report(command="install", status="ok", exit_status=0)
    smoke = SmokeTest(
        backend="comfyui", options=ImageOptions(), timings=Timings(), versions=(("torch", "2.15.0"), ("comfyui", "1"))
    )
    met = [
        parsed(report)["versions"]
        for report in (
            base,
            replace(base, plan=replace(plan(), steps=(kept,))),
            replace(base, outcomes=(Outcome(step=got, status="done", detail=""),)),
            replace(base, outcomes=(Outcome(step=got, status="failed", detail=""),)),
            replace(base, seen_versions=(("torch", "2.14.1+cpu"),)),
            replace(base, seen_versions=(("torch", "2.14.1+cpu"),), smoke_test=smoke),
        )
    ]
    assert [(each["comfyui"], each["torch"]) for each in met] == [
        (None, None),
        ("0.32.0", None),
        ("0.33.0", None),
        (None, None),
        (None, "2.14.1+cpu"),
        ("1", "2.15.0"),
    ]
    assert {each["klein_setup"] for each in met} == {__version__}


MACHINE = Machine(
    os="linux",
    os_release="6.1",
    is_wsl=False,
    architecture="x86_64",
    libc=None,
    python_version="3.11.7",
    gpus=(Gpu(vendor="nvidia", name="RTX 4090", index=0, compute_capability=(8, 9)),),
)


def test_the_machine_keeps_its_fields_and_lists_what_was_not_learnt() -> None:
    told = parsed(Report(command="detect", status="ok", exit_status=0, machine=MACHINE))["machine"]
    assert told["gpus"][0]["compute_capability"] == [8, 9]
    assert told["gpus"][0]["memory_total_bytes"] is None


def test_a_lock_whose_signature_was_verified_is_named() -> None:
    lock = Lock(manifest_sha256="ab" * 32, locked_on="2026-11-20", version=7, expires="2027-02-28")
    signed = AcceptedLock(name="lab.yaml", key_id="cd" * 32, version=7, sha256="ef" * 32, accepted_on="2026-11-27")
    wanted = replace(a_manifest(), lock=lock)
    details = parsed(Report(command="verify", status="ok", exit_status=0, manifest=wanted, signed_lock=signed))[
        "details"
    ]
    assert details["signed_lock"] == {
        "name": "lab.yaml",
        "version": 7,
        "expires": "2027-02-28",
        "key_id": "cd" * 32,
    }


def test_the_parts_a_run_had_stand_under_details_and_no_others() -> None:
    path = Path("x/.venv")
    told = parsed(
        Report(
            command="verify",
            status="interrupted",
            exit_status=0,
            given_arguments=("--comfyui", "x"),
            environment=EnvironmentCheck(
                path=path,
                holds=False,
                packages=PackagesCheck(
                    listed=3,
                    listed_at="2026-11-26T10:00:00+00:00",
                    is_outdated=False,
                    changed=(
                        PackageChange(package="av", what="replaced", locked="14.1", found="14.0", origin="application"),
                    ),
                ),
            ),
            manifest_argument="mine.yaml",
        )
    )
    assert told["details"] == {
        "manifest_argument": "mine.yaml",
        "environment": {
            "path": str(path),
            "holds": False,
            "packages": {
                "listed": 3,
                "listed_at": "2026-11-26T10:00:00+00:00",
                "is_outdated": False,
                "changed": [
                    {
                        "package": "av",
                        "what": "replaced",
                        "locked": "14.1",
                        "found": "14.0",
                        "origin": "application",
                        "files": [],
                    }
                ],
            },
        },
        "given_arguments": ["--comfyui", "x"],
    }


def test_detect_says_that_there_is_no_build_of_torch_where_it_looked() -> None:
    report = Report(command="detect", status="failed", exit_status=3)
    assert parsed(report)["details"] == {}
    assert parsed(replace(report, machine=MACHINE))["details"] == {"torch": None}


@pytest.mark.parametrize(
    ("parts", "details"),
    [
        (
            {"rehearsal": RehearsalResult(checks=(RehearsalCheck(claim="it fetched nothing", seen="0 requests"),))},
            {"claims": [{"claim": "it fetched nothing", "seen": "0 requests"}]},
        ),
        (
            {"rehearsal": RehearsalResult(checks=(), scratch_folder=Path("x"))},
            {"claims": [], "scratch_folder": "x"},
        ),
        ({"backups": ()}, {"aside": []}),
        (
            {"manifests": (manifest(FIRST, identity="mine"),)},
            {"manifests": [{"id": "mine", "title": "FLUX.2 [klein] 4B", "sha256": "b" * 64, "sets": ["fp8"]}]},
        ),
        (
            {"undone_update": UndoneUpdate(path=Path("c"), left="0.33.0", version="0.12.0", commit="a1", branch=None)},
            {"undo_update": {"path": "c", "left": "0.33.0", "version": "0.12.0", "commit": "a1", "branch": None}},
        ),
        ({"page": Path("x.html")}, {"page": "x.html"}),
        (
            {"config": Config(file=Path("klein-setup.toml"), settings={"comfyui": "x"})},
            {"config": {"file": "klein-setup.toml", "settings": {"comfyui": "x"}}},
        ),
        (
            {"server": StartedServer(url="http://127.0.0.1:1", was_running=True, template=None, log_path=None)},
            {"server": {"url": "http://127.0.0.1:1", "was_running": True, "template": None, "log_path": None}},
        ),
        (
            {"changes": ChangesSince(changes=())},
            {"changes": {"since": None, "changes": [], "checked": [], "mend_command": None}},
        ),
    ],
)
def test_each_part_has_its_key(parts: dict[str, Any], details: dict[str, object]) -> None:
    assert parsed(Report(command="x", status="ok", exit_status=0, **parts))["details"] == details


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (ComfyTarget(given=ROOT.parent, models=ROOT, folders=()), {"kind": "comfyui", "path": str(ROOT)}),
        (HubCacheTarget(cache=Path("/cache")), {"kind": "hf_cache", "path": str(Path("/cache"))}),
    ],
)
def test_the_target_is_named_by_kind_and_folder(target: Target, told: dict[str, str]) -> None:
    assert parsed(Report(command="plan", status="planned", exit_status=0, plan=plan(target)))["target"] == told


def test_a_file_of_an_hf_cache_is_known_by_its_name_in_the_repository() -> None:
    blob = HubBlob(root=Path("/c/models--o--n"), revision="a" * 40, filename="vae/config.json", is_lfs=False)
    assert blob.label == "vae/config.json"


# --- secrets ---------------------------------------------------------------------------------


def test_token_never_appears() -> None:
    url = f"https://me:pw@cdn.example/x?Signature={TOKEN}"
    error = GatedError(
        f"403 for {url}", hint=f"Use {TOKEN}", url=url, headers={"Authorization": f"Bearer {TOKEN}"}, raw=[TOKEN]
    )
    step = FetchFile(artifact=FIRST, destination=place(FIRST), reason=f"because {url}")
    odd = FilesPlan(
        manifest=manifest(FIRST),
        set=manifest(FIRST).sets[0],
        target=ComfyTarget(given=ROOT, models=Path(f"/x/{TOKEN}"), folders=()),
        steps=(step,),
        checks=(Check(artifact=FIRST, destination=place(FIRST), status="missing", basis="none", identity=url),),
        findings=(replace(WARNING, message=url, hint=url, path=Path(TOKEN)),),
    )
    outcomes = (Outcome(step=step, status="failed", detail=url, error=error),)
    report = replace(report_for_error("install", error, plan=whole(odd), outcomes=outcomes), manifest_argument=url)
    text = json.dumps(document(report))
    for event in (
        PlanMade(plan=odd),
        StepFinished(step=step, outcome=outcomes[0], number=1, total=1),
        Notice(message=url),
    ):
        text += event_line(event, time=TIME)
    assert TOKEN[3:] not in text
    assert "Signature" not in text
    assert "pw@" not in text


def test_a_secret_without_a_shape_is_masked_when_it_is_known() -> None:
    report = report_for_error("install", UnreachableError("proxy said: correct horse battery staple"))
    assert parsed(report, "correct horse battery staple")["errors"][0]["message"] == "proxy said: ***"


# --- exit statuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AnswerNeededError("x"), 2),
        (InsufficientSpaceError("x"), 4),
        (UnreachableError("x"), 5),
        (GatedError("x"), 6),
        (HashMismatchError("x"), 7),
        (LockHeldError("x"), 10),
        (KleinError("x"), 70),
        (ValueError("x"), 70),
        (KeyboardInterrupt(), 130),
        (SystemExit(), 0),
        (SystemExit(143), 143),
        (SystemExit("words"), 1),
    ],
)
def test_an_error_says_its_exit_status(error: BaseException, status: int) -> None:
    assert exit_status_of(error) == status


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interrupt_is_told_as_one_error_with_what_to_do(error: BaseException) -> None:
    told = parsed(report_for_error("install", error, plan=plan()))
    assert told["status"] == "interrupted"
    assert [(each["code"], each["exit_status"]) for each in told["errors"]] == [("interrupted", told["exit_status"])]
    assert "same command" in told["errors"][0]["hint"]


def test_a_defect_is_told_by_its_type() -> None:
    told = error_entry(TypeError("int + str"))
    assert told["code"] == "defect"
    assert told["message"] == "TypeError: int + str"
    assert told["exit_status"] == 70


# --- what to run next ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status", "expected"),
    [
        ("verify", "findings", "klein-setup repair --comfyui /c"),
        ("install", "findings", None),
        ("repair", "interrupted", "klein-setup repair --comfyui /c"),
        ("plan", "planned", "klein-setup install --comfyui /c"),
        ("install", "ok", "klein-setup verify --comfyui /c"),
        ("verify", "ok", None),
        ("install", "failed", None),
    ],
)
def test_the_next_command_follows_from_what_came_of_this_one(
    command: str, status: ReportStatus, expected: str | None
) -> None:
    target = ComfyTarget(given=PurePosixPath("/c"), models=ROOT, folders=())  # type: ignore[arg-type]
    assert next_command(Report(command=command, status=status, exit_status=0, plan=plan(target))) == expected


@pytest.mark.parametrize(
    ("command", "errors", "given", "expected"),
    [
        ("smoke-test", [GenerationError("x")], ("--size", "64x64", "--json=document"), "diagnose --size 64x64"),
        ("smoke-test", [GenerationError("x")], ("--server", "http://x"), None),  # it is not ours to start again
        ("smoke-test", [GenerationError("x")], ("--hf-cache=/c",), None),
        ("smoke-test", [GenerationError("x")], ("--gpu", "all"), None),
        ("smoke-test", [GenerationError("x")], ("--workflow", "w.json"), None),
        ("smoke-test", [GenerationError("x")], ("--gpu", "1"), "diagnose --gpu 1"),
        ("smoke-test", [ModelNotListedError("x")], (), None),  # repair comes first, as its hint says
        ("smoke-test", [InsufficientSpaceError("x")], (), None),
        ("smoke-test", [], (), None),
        ("start", [ServerNotUsableError("x")], (), None),
    ],
)
def test_an_image_that_failed_is_to_be_diagnosed(
    command: str, errors: list[Exception], given: tuple[str, ...], expected: str | None
) -> None:
    report = Report(command=command, status="failed", exit_status=9, errors=tuple(errors), given_arguments=given)
    assert next_command(report) == (None if expected is None else f"klein-setup {expected}")


def test_an_installation_whose_image_failed_is_to_be_diagnosed_in_its_folder() -> None:
    tree = ComfyTarget(given=PurePosixPath("/c"), models=ROOT, folders=())  # type: ignore[arg-type]
    report = Report(command="install", status="failed", exit_status=9, errors=(SmokeTestError("x"),), plan=plan(tree))
    assert next_command(report) == "klein-setup diagnose --comfyui /c"
    assert (
        next_command(replace(report, plan=plan(HubCacheTarget(cache=Path("/c"))))) is None
    )  # diffusers has no layers to leave out


def test_nothing_is_suggested_without_a_plan_or_with_an_empty_one() -> None:
    assert next_command(Report(command="verify", status="findings", exit_status=1)) is None
    done = plan(is_done=True)
    assert next_command(Report(command="plan", status="planned", exit_status=0, plan=done)) is None
    kept = replace(done, steps=(KeepComfyUI(folder=Path("/c"), version="0.33.0", reason="no update was asked for"),))
    assert next_command(Report(command="plan", status="planned", exit_status=0, plan=kept)) is None


@pytest.mark.parametrize(
    ("remedies", "expected"),
    [
        (("by-hand", "by-hand"), None),  # somebody else's files: no command of ours fixes them
        (("install-environment",), "klein-setup install --only environment --comfyui /c"),
        (("repair",), "klein-setup repair --comfyui /c"),
    ],
)
def test_repair_is_suggested_only_where_it_repairs(remedies: tuple[Remedy, ...], expected: str | None) -> None:
    target = ComfyTarget(given=PurePosixPath("/c"), models=ROOT, folders=())  # type: ignore[arg-type]
    found = tuple(replace(WARNING, severity="problem", remedy=remedy) for remedy in remedies)
    done = plan(target, is_done=True)
    report = Report(command="verify", status="findings", exit_status=1, plan=done, findings=found)
    assert next_command(report) == expected
    assert document(report)["next_command"] == expected


@pytest.mark.parametrize(
    ("command", "status", "given", "expected"),
    [
        ("plan", "planned", ("--comfyui", "my tree", "--cpu", "--json=document"), "install --comfyui 'my tree' --cpu"),
        ("plan", "planned", ("--comfyui", "/c", "--machine", "lab-3.json"), None),  # it is applied there, not here
        ("install", "interrupted", (), "install"),
        ("repair", "interrupted", ("--quiet", "--set", "fp8"), "repair --set fp8"),
        ("snapshot restore", "interrupted", ("restore", "20261127-031522"), "snapshot restore 20261127-031522"),
    ],
)
def test_what_was_planned_or_interrupted_is_done_with_the_same_arguments(
    command: str, status: ReportStatus, given: tuple[str, ...], expected: str | None
) -> None:
    report = Report(
        command=command,
        status=status,
        exit_status=0,
        plan=plan() if status == "planned" else None,
        given_arguments=given,
    )
    assert next_command(report) == (None if expected is None else f"klein-setup {expected}")


@pytest.mark.parametrize("option", ["--comfyui", "--hf-cache"])
def test_the_next_command_names_the_target_for_the_shell_it_was_started_from(option: str) -> None:
    path = Path("/my models")
    target: Target = (
        ComfyTarget(given=path, models=path, folders=()) if option == "--comfyui" else HubCacheTarget(cache=path)
    )
    report = Report(command="verify", status="findings", exit_status=1, plan=plan(target))
    assert next_command(report, Program("uvx klein-setup")) == f"uvx klein-setup repair {option} '{path}'"
    assert next_command(report, Program("klein-setup", "cmd")) == f'klein-setup repair {option} "{path}"'


def test_the_next_command_means_the_same_manifest_and_set() -> None:
    target = HubCacheTarget(cache=PurePosixPath("/c"))  # type: ignore[arg-type]
    other = plan(target, of=manifest(FIRST, SECOND, identity="mine", default_set="other"))
    report = Report(command="verify", status="findings", exit_status=1, plan=other)
    assert next_command(report) == "klein-setup repair --manifest mine --hf-cache /c"
    given = replace(report, manifest_argument="/at/mine.yaml", set_argument="auto")
    assert next_command(given) == "klein-setup repair --manifest /at/mine.yaml --set fp8 --hf-cache /c"


def test_where_every_file_is_missing_the_next_step_is_to_install() -> None:
    checks = tuple(replace(each, status="missing") for each in plan().checks)
    empty = replace(plan(), files=replace(plan().files, checks=checks))
    command = next_command(Report(command="verify", status="findings", exit_status=1, plan=empty))
    assert command is not None
    assert command.startswith("klein-setup install ")


# --- events and values -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            PlanMade(plan=plan().files),
            {
                "event": "plan-made",
                "totals": {"size": 1500, "bytes_to_fetch": 600, "bytes_estimated": 0, "bytes_saved": 900},
            },
        ),
        (StepStarted(step=FETCH, number=1, total=2), {"event": "step-started", "number": 1, "total": 2}),
        (
            StepFinished(step=FETCH, outcome=Outcome(step=FETCH, status="done", detail=""), number=1, total=2),
            {"event": "step-finished", "number": 1, "total": 2},
        ),
        (
            FileProgress(label="vae/x", phase="fetching", size=10, bytes_on_disk=4, rate_bytes_s=math.inf),
            {"event": "file-progress", "label": "vae/x", "phase": "fetching", "bytes_on_disk": 4, "rate_bytes_s": None},
        ),
        (Notice(message="a\nb\u2028c"), {"event": "notice", "message": "a\nb\u2028c", "severity": "info"}),
    ],
)
def test_an_event_is_one_line_of_ascii_with_its_name(event: Event, expected: dict[str, object]) -> None:
    line = event_line(event, time=TIME, host="lab-3")
    assert line.isascii()
    assert len(line.splitlines()) == 1
    told = conforming(json.loads(line), "events")
    assert {key: told[key] for key in ("time", "host", "klein_setup")} == {
        "time": TIME,
        "host": "lab-3",
        "klein_setup": __version__,
    }
    assert {key: told[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (PureWindowsPath("C:\\x"), "C:\\x"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"a"}), ["a"]),
        ((1, None, True), [1, None, True]),
        (-math.inf, None),
        (1.5, 1.5),
        (b"raw\xff", "raw\\xff"),
        (ValueError("why"), "why"),
        ({1: Path("x")}, {"1": "x"}),
        ({"Cookie": "a=b", "token": None}, {"Cookie": "***", "token": None}),
    ],
)
def test_any_value_becomes_json(value: object, told: object) -> None:
    assert json_value(value) == told
