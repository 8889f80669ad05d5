from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.comfyui.checkout_models import CheckoutAction, CheckoutPlan, ComfyCheckout
from provisioner.comfyui.release_models import ComfyRelease, ComfyTable, VersionBound
from provisioner.core.errors import PlanOutdatedError, UsageError
from provisioner.core.models import (
    Download,
    FetchFile,
    FilesPlan,
    FileSystem,
    Finding,
    PatchFile,
    RecordReceipt,
    SpaceNeed,
)
from provisioner.environment.state import Distribution, EnvironmentReceipt, Observation, ProbeAnswer, PythonFacts
from provisioner.files.planner import SPACE_MARGIN, no_steps
from provisioner.plan.make_plan import check_unchanged, comfyui_step, environment_step, make_plan
from provisioner.plan.steps import (
    STEPS,
    ExpectedRate,
    GenerateImage,
    GetComfyUI,
    InstallPackages,
    KeepComfyUI,
    KeepEnvironment,
    MakeEnvironment,
    Plan,
    Remove,
    RepairEnvironment,
    StartComfyUI,
    Step,
    UpdateComfyUI,
    download_of,
    place_of,
    replaced_by,
)
from provisioner.report.outcome import Report
from provisioner.torch.builds import TorchBuild, TorchChoice, TorchSet
from provisioner.ui.tables import plan_blocks, report_blocks
from provisioner.ui.text import Grid, laid_out, rendered
from tests.support.builders import artifact, artifact_set, comfy_file, comfy_target, manifest, whole

TREE = Path("/comfy")
WHERE = TREE / ".venv"
RELEASE = ComfyRelease(version="0.33.0", commit="a" * 40, tree="b" * 40)
DOWNLOAD = Download(fetched_bytes=100, disk_bytes=300)
BOUND = VersionBound(version="0.9.2", because="x")
TABLE = ComfyTable(
    schema_version=1,
    repository="https://git.example/ComfyUI",
    pinned=RELEASE,
    releases=(RELEASE,),
    download=DOWNLOAD,
    minimum=BOUND,
    advised=BOUND,
    nodes=(),
    sources=(),
)
TORCH = TorchSet(torch="2.15.0", torchvision="0.29.2", torchaudio="2.11.0")
BUILD = TorchBuild(torch_backend="cu130", index_url="https://index.example/cu130", local_tag="cu130", sets=(TORCH,))
CHOICE = TorchChoice(build=BUILD, reasons=("it fits",), runner_up=None)
VAE = artifact(b"v" * 100)
SET = artifact_set(VAE)
FETCH = FetchFile(artifact=VAE, destination=comfy_file(VAE), reason="missing")
REPLACE = replace(FETCH, reason="other bytes", replaces="other bytes")
DISK = FileSystem(path=TREE, device=1, total_bytes=10**12, free_bytes=10**9)


def files(*steps: FetchFile | PatchFile | RecordReceipt, space: tuple[SpaceNeed, ...] = ()) -> FilesPlan:
    return replace(no_steps(manifest(SET), SET, comfy_target()), steps=steps, space=space)


# --- ComfyUI -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "tree", "kind"),
    [
        ("clone", None, "get-comfyui"),
        ("update", TREE, "update-comfyui"),
        ("none", TREE, "keep-comfyui"),
        ("none", None, None),
    ],
)
def test_what_is_done_about_comfyui(action: CheckoutAction, tree: Path | None, kind: str | None) -> None:
    checkout = ComfyCheckout(given=TREE, kind="git", tree=tree, version="0.32.0")
    planned = CheckoutPlan(action=action, reason="because")
    step = comfyui_step(checkout, planned, TABLE, folder=TREE, source="https://mirror.example")
    assert (None if step is None else (step.kind, step.folder, step.reason)) == (kind and (kind, TREE, "because"))
    if isinstance(step, (GetComfyUI, UpdateComfyUI)):
        assert (step.release, step.source, step.download) == (RELEASE, "https://mirror.example", DOWNLOAD)
    if isinstance(step, KeepComfyUI):
        assert step.version == "0.32.0"


@pytest.mark.parametrize("hint", ["Commit them.", None])
def test_an_update_that_cannot_be_made_is_an_error(hint: str | None) -> None:
    planned = CheckoutPlan(action="refuse", reason="files were changed", hint=hint)
    with pytest.raises(UsageError, match=r"comfy cannot be moved to 0\.33\.0: files were changed\.") as caught:
        comfyui_step(ComfyCheckout(given=TREE, kind="git"), planned, TABLE, folder=TREE, source="x")
    assert caught.value.hint == (hint or "Name another folder.")


# --- the environment ---------------------------------------------------------------------------

PYTHON = PythonFacts(path=WHERE / "bin/python", version="3.12.4", prefix=WHERE, base_prefix=Path("/usr"))
RECEIPT = EnvironmentReceipt(
    build_id="1",
    made_at="2026-11-01T00:00:00Z",
    installer="pip",
    python_version="3.12.4",
    python_home="/usr",
    torch_backend="cu130",
    index_url=BUILD.index_url,
    local_tag="cu130",
    set=TORCH,
    versions=(),
    constraints=(),
    probe=ProbeAnswer(ok=True),
)
SOUND = Observation(where=WHERE, is_there=True, python=PYTHON, receipt=RECEIPT)
PROBLEM = Finding(code="torch-replaced", severity="problem", message="torch was replaced.", remedy="repair")
WARNING = replace(PROBLEM, severity="warning")


@pytest.mark.parametrize(
    ("seen", "drifted", "kind", "reason"),
    [
        (Observation(where=WHERE, is_there=False), (), "make-environment", "there is none"),
        (Observation(where=WHERE, is_there=False, interrupted="cut off"), (), "make-environment", "cut off"),
        (replace(SOUND, broken="no Python"), (), "make-environment", "cannot be used: no Python"),
        (replace(SOUND, receipt=None), (), "make-environment", "was not made by klein-setup"),
        (
            replace(SOUND, receipt=replace(RECEIPT, torch_backend="cu126")),
            (),
            "make-environment",
            "it has cu126, this machine needs cu130",
        ),
        (SOUND, (WARNING, PROBLEM), "repair-environment", "torch was replaced"),
        (replace(SOUND, receipt=replace(RECEIPT, probe=None)), (), "repair-environment", "it was never verified"),
        (SOUND, (WARNING,), "keep-environment", "nothing changed since it was verified"),
    ],
)
def test_what_an_environment_needs(seen: Observation, drifted: tuple[Finding, ...], kind: str, reason: str) -> None:
    step = environment_step(
        seen, CHOICE, drifted, where=WHERE, app="comfyui", download=DOWNLOAD, python_versions=("3.12",)
    )
    assert (step.kind, step.where, step.choice) == (kind, WHERE, CHOICE)
    assert reason in step.reason
    if isinstance(step, MakeEnvironment):
        assert step.python_versions == ("3.12",)
        assert bool(step.replaces) == seen.is_there
        assert step.is_foreign == (seen.is_there and seen.receipt is None)


OLDER = replace(TORCH, torch="2.14.0")


@pytest.mark.parametrize(
    ("exactly", "python", "kind", "reason"),
    [
        (TORCH, "3.12", "keep-environment", "nothing changed"),
        (OLDER, "3.12", "make-environment", "it has torch 2.15.0 and had torch 2.14.0 then"),
        (TORCH, "3.11", "make-environment", "it has Python 3.12.4 and had 3.11 then"),
    ],
)
def test_an_environment_of_an_earlier_time_is_made_anew_where_it_is_another(
    exactly: TorchSet, python: str, kind: str, reason: str
) -> None:
    step = environment_step(
        SOUND,
        CHOICE,
        (),
        where=WHERE,
        app="comfyui",
        download=DOWNLOAD,
        python_versions=(python,),
        exactly=exactly,
    )
    assert step.kind == kind
    assert reason in step.reason
    assert not isinstance(step, MakeEnvironment) or step.replaces == step.reason


def test_another_amd_gpu_needs_its_own_packages() -> None:
    """The build is the same one, and without them every computation fails."""
    build = replace(BUILD, torch_backend="rocm10.0.0", device_extras=("device-gfx1100", "device-gfx1201"))
    there = [Distribution(name=f"amd-torch-device-{gfx}", version="2.13.0", location=WHERE) for gfx in ("gfx1100", "x")]
    seen = replace(SOUND, receipt=replace(RECEIPT, torch_backend="rocm10.0.0"), distributions=tuple(there))
    lacking = environment_step(seen, replace(CHOICE, build=build), (), where=WHERE, app="comfyui", download=DOWNLOAD)
    assert (lacking.kind, lacking.reason) == (
        "repair-environment",
        "it lacks the packages of device-gfx1201, which this machine's GPU needs",
    )
    for extras in (("device-gfx1100",), ("device-all",), ()):
        other = replace(CHOICE, build=replace(build, device_extras=extras))
        assert (
            environment_step(seen, other, (), where=WHERE, app="comfyui", download=DOWNLOAD).kind == "keep-environment"
        )


# --- the whole ---------------------------------------------------------------------------------

GET = GetComfyUI(folder=TREE, release=RELEASE, source="s", reason="there is none", download=DOWNLOAD)
MAKE = MakeEnvironment(where=WHERE, choice=CHOICE, app="comfyui", reason="there is none", download=DOWNLOAD)
PACKAGES = InstallPackages(where=WHERE, app="comfyui", tree=TREE, lines=("einops",), reason="r", download=DOWNLOAD)
EVERY: tuple[Step, ...] = (
    GET,
    UpdateComfyUI(folder=TREE, release=RELEASE, source="s", reason="old", download=DOWNLOAD),
    KeepComfyUI(folder=TREE, version=None, reason="found"),
    MAKE,
    RepairEnvironment(where=WHERE, choice=CHOICE, app="comfyui", reason="r", download=DOWNLOAD),
    KeepEnvironment(where=WHERE, reason="r"),
    PACKAGES,
    FETCH,
    StartComfyUI(folder=TREE, reason="r"),
    GenerateImage(app="comfyui", reason="r"),
    Remove(what="file", path=TREE / "x", reason="r"),
)


def test_every_kind_of_step_has_a_place_and_says_what_it_changes() -> None:
    assert {type(step) for step in EVERY} | {type(step) for step in (FETCH,)} <= set(STEPS)
    assert [place_of(step) for step in EVERY] == [
        TREE,
        TREE,
        TREE,
        WHERE,
        WHERE,
        WHERE,
        WHERE,
        FETCH.destination.path,
        TREE,
        None,
        TREE / "x",
    ]
    plan = make_plan(files(), EVERY)
    assert {step.kind for step in EVERY if step not in plan.to_do} == {"keep-comfyui", "keep-environment"}
    assert {step.kind for step in plan.to_do if step not in plan.changes} == {"start-comfyui", "generate-image"}
    assert [download_of(step) is not None for step in EVERY].count(True) == 5
    assert [replaced_by(step) for step in (GET, replace(MAKE, replaces="why"), REPLACE)] == [None, "why", "other bytes"]


def test_the_totals_count_files_exactly_and_the_rest_by_estimate() -> None:
    plan = make_plan(files(FETCH), [GET, FETCH, MAKE, PACKAGES], notes=("No image.",))
    assert plan.bytes_to_fetch == VAE.size + 300
    assert (plan.estimated_bytes, plan.bytes_saved) == (300, SET.size - VAE.size)
    assert (plan.file_steps, plan.to_do, plan.is_about_files) == ((FETCH,), (GET, FETCH, MAKE, PACKAGES), True)
    assert (plan.manifest, plan.set, plan.target, plan.checks) == (manifest(SET), SET, comfy_target(), ())
    assert plan.notes == ("No image.",)
    removal = [Remove(what="file", path=TREE / name, reason="r", size=size) for name, size in (("x", 7), ("y", None))]
    assert make_plan(files(), [*removal, GET]).bytes_to_remove == 7
    assert not make_plan(files(), [GET]).is_about_files


def test_findings_of_files_and_of_the_rest_are_each_there_once() -> None:
    of_files = replace(files(), findings=(PROBLEM,))
    assert make_plan(of_files, [], findings=(PROBLEM, WARNING)).findings == (PROBLEM, WARNING)


def test_room_is_counted_together_on_one_disk_with_one_margin() -> None:
    need = SpaceNeed(file_system=DISK, needed_bytes=1000)
    plan = make_plan(files(FETCH, space=(need,)), [GET, FETCH, MAKE], file_systems={TREE: DISK, WHERE: DISK})
    assert [each.needed_bytes for each in plan.space] == [1000 + 300 + 300]
    other = replace(DISK, device=2)
    split = make_plan(files(FETCH, space=(need,)), [GET, FETCH, MAKE], file_systems={TREE: other, WHERE: other})
    assert [each.needed_bytes for each in split.space] == [1000, 600 + SPACE_MARGIN]
    free = replace(GET, download=Download(fetched_bytes=0, disk_bytes=0))
    nothing = make_plan(files(), [free, KeepEnvironment(where=WHERE, reason="r")], file_systems={TREE: DISK})
    assert nothing.space == ()
    assert make_plan(files(FETCH, space=(need,)), [GET]).space == ()


# --- the world changed ---------------------------------------------------------------------------


@pytest.mark.parametrize("now", [files(), files(FETCH), files(REPLACE)])
def test_fewer_steps_and_new_ones_that_replace_nothing_are_fine(now: FilesPlan) -> None:
    check_unchanged(whole(files(REPLACE)), now)


def test_a_file_that_would_be_replaced_without_having_been_shown_is_an_error() -> None:
    shown: Plan = whole(files(FETCH))
    with pytest.raises(PlanOutdatedError, match="changed after the plan was shown: other bytes") as caught:
        check_unchanged(shown, files(REPLACE))
    assert caught.value.exit_status == 4
    assert "Run the same command again" in (caught.value.hint or "")


def test_the_rows_of_a_plan_stand_in_the_order_in_which_they_are_done() -> None:
    plan = make_plan(files(FETCH), [GET, FETCH, MAKE, PACKAGES])
    grid = next(block for block in plan_blocks(plan) if isinstance(block, Grid))
    assert [row.cells[0].text for row in grid.rows] == ["get", "fetch", "make", "install"]
    without = make_plan(files(), [GET, MAKE])
    grid = next(block for block in plan_blocks(without) if isinstance(block, Grid))
    assert [row.cells[0].text for row in grid.rows][:1] == ["get"]


def test_a_warning_is_said_once_and_a_problem_also_at_the_end() -> None:
    warning, problem = replace(WARNING, message="a small thing"), replace(PROBLEM, message="a large one")
    plan = make_plan(files(FETCH), [FETCH], findings=(problem, warning))
    report = Report(command="install", status="findings", exit_status=1, plan=plan)

    def said(*before: Finding) -> str:
        lines = laid_out(report_blocks(report, said=before), width=None)
        return "\n".join(rendered(line, is_coloured=False) for line in lines)

    assert "a small thing" in said()
    assert "a small thing" not in said(problem, warning)
    assert "a large one" in said(problem, warning)


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (None, ""),
        (ExpectedRate(17_600_000), "; about 1 min 8 s at 17.6 MB/s, the rate of the last download"),
        (ExpectedRate(500_000, is_limit=True), "; about 40 min at 500 kB/s, as --limit-rate says"),
    ],
)
def test_a_plan_says_how_long_it_takes_where_that_is_known(rate: ExpectedRate | None, words: str) -> None:
    step = replace(FETCH, artifact=replace(FETCH.artifact, size=1_200_000_000))
    plan = replace(make_plan(files(step), [step]), rate=rate)
    rows = [rendered(line, is_coloured=False) for line in laid_out(plan_blocks(plan), width=None)]
    assert next(row for row in rows if "to fetch" in row) == f"  to fetch  1.20 GB in 1 file{words}"
