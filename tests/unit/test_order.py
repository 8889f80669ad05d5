"""What waits for what in a plan, and which tasks begin, wait or are left out as the others end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from provisioner.core.models import ComfyFile
from provisioner.plan.make_plan import make_plan
from provisioner.plan.order import TaskName, TaskState, next_moves, tasks_of
from provisioner.plan.steps import (
    GenerateImage,
    InstallPackages,
    KeepComfyUI,
    KeepEnvironment,
    MoveNodePack,
    Remove,
    RepairEnvironment,
    StartComfyUI,
    Step,
    UpdateComfyUI,
)
from tests.unit.test_make_plan import CHOICE, DOWNLOAD, FETCH, GET, MAKE, PACKAGES, RELEASE, TREE, WHERE, files

KEEP = KeepComfyUI(folder=TREE, version="0.33.0", reason="found")
UPDATE = UpdateComfyUI(folder=TREE, release=RELEASE, source="s", reason="old", download=DOWNLOAD)
REPAIR = RepairEnvironment(where=WHERE, choice=CHOICE, app="comfyui", reason="r", download=DOWNLOAD)
KEEP_ENVIRONMENT = KeepEnvironment(where=WHERE, reason="r")
START = StartComfyUI(folder=TREE, reason="for the test image")
IMAGE = GenerateImage(app="comfyui", reason="r")


def needs_of(*steps: Step) -> dict[TaskName, set[TaskName]]:
    return {task.name: set(task.needs) for task in tasks_of(make_plan(files(), steps))}


def file_in(folder: Path) -> Step:
    place = ComfyFile(root=folder, relative=PurePosixPath("vae/a.safetensors"))
    return replace(FETCH, destination=place)


def test_a_new_comfyui_comes_before_what_lies_in_its_folder_and_everything_else_goes_side_by_side() -> None:
    inside = (GET, file_in(TREE / "models"), replace(MAKE, where=TREE / ".venv"), PACKAGES, START, IMAGE)
    assert needs_of(*inside) == {
        "comfyui": set(),
        "files": {"comfyui"},
        "environment": {"comfyui"},
        "packages": {"comfyui", "environment"},
        "server": {"comfyui", "environment", "packages"},
        "image": {"comfyui", "files", "environment", "packages", "server"},
    }
    outside = needs_of(GET, file_in(Path("/models")), replace(MAKE, where=Path("/env")))
    assert outside == {"comfyui": set(), "files": set(), "environment": set()}


@pytest.mark.parametrize("comfyui", [KEEP, UPDATE])
@pytest.mark.parametrize("environment", [MAKE, REPAIR, KEEP_ENVIRONMENT])
def test_beside_a_comfyui_that_is_there_files_and_environment_wait_for_nothing(
    comfyui: Step, environment: Step
) -> None:
    needs = needs_of(comfyui, file_in(TREE / "models"), environment, START, IMAGE)
    assert needs["files"] == needs["environment"] == set()
    assert needs["server"] == {"comfyui", "environment"}
    assert "files" not in needs["server"]


def test_custom_nodes_wait_for_comfyui_and_its_start_for_them() -> None:
    first = MoveNodePack(folder=TREE / "custom_nodes" / "a", commit="a" * 40, branch=None, reason="r")
    second = replace(first, folder=TREE / "custom_nodes" / "b")
    steps = (UPDATE, first, second, PACKAGES, START)
    assert needs_of(*steps) == {
        "comfyui": set(),
        "nodes": {"comfyui"},
        "packages": {"comfyui"},
        "server": {"comfyui", "nodes", "packages"},
    }
    (nodes,) = (task for task in tasks_of(make_plan(files(), steps)) if task.name == "nodes")
    assert nodes.steps == (first, second)


def test_the_packages_of_diffusers_need_no_comfyui_and_a_server_that_runs_is_not_started() -> None:
    diffusers = InstallPackages(
        where=WHERE, app="diffusers", tree=None, lines=("diffusers",), reason="r", download=DOWNLOAD
    )
    assert needs_of(MAKE, diffusers, IMAGE) == {
        "environment": set(),
        "packages": {"environment"},
        "image": {"environment", "packages"},
    }
    assert needs_of(FETCH, IMAGE) == {"files": set(), "image": {"files"}}
    assert needs_of(PACKAGES) == {"packages": set()}


def test_the_files_are_one_task_and_what_is_removed_is_none() -> None:
    other = replace(FETCH, reason="another")
    tasks = tasks_of(make_plan(files(), (FETCH, other, Remove(what="file", path=TREE / "x", reason="r"))))
    assert [(task.name, task.steps) for task in tasks] == [("files", (FETCH, other))]


# --- what is next ------------------------------------------------------------------------------

TASKS = tasks_of(make_plan(files(), (KEEP, file_in(TREE / "models"), MAKE, PACKAGES, START, IMAGE)))


def moves(**states: TaskState) -> tuple[list[str], dict[str, str]]:
    """Return what begins, and what is left out because of which task; those that are not named are waiting."""
    found = next_moves(TASKS, {task.name: states.get(task.name, "waiting") for task in TASKS})
    return [task.name for task in found.start], {task.name: cause for task, cause in found.skip}


def test_a_run_from_its_beginning_to_its_end() -> None:
    assert moves() == (["comfyui", "files", "environment"], {})
    assert moves(comfyui="done", files="running", environment="running") == ([], {})
    assert moves(comfyui="done", files="running", environment="done") == (["packages"], {})
    assert moves(comfyui="done", files="running", environment="done", packages="done") == (["server"], {})
    ready: dict[str, TaskState] = {"comfyui": "done", "environment": "done", "packages": "done", "server": "done"}
    assert moves(**ready, files="running") == ([], {})
    assert moves(**ready, files="done") == (["image"], {})
    assert moves(**ready, files="done", image="done") == ([], {})


def test_an_environment_that_failed_stops_what_needs_it_and_not_the_files() -> None:
    left_out = {"packages": "environment", "server": "environment", "image": "environment"}
    assert moves(comfyui="done", files="running", environment="failed") == ([], left_out)
    assert moves(files="waiting", environment="failed")[0] == ["comfyui", "files"]
    after: dict[str, TaskState] = {"packages": "skipped", "server": "skipped"}
    assert moves(comfyui="done", files="done", environment="failed", **after) == ([], {"image": "environment"})


def test_files_that_failed_stop_the_image_and_a_server_that_nobody_would_use_but_not_the_environment() -> None:
    left_out = {"server": "files", "image": "files"}
    assert moves(comfyui="done", files="failed", environment="running") == ([], left_out)
    assert moves(comfyui="done", files="failed", environment="done") == (["packages"], left_out)
    running: dict[str, TaskState] = {"environment": "done", "packages": "done", "server": "running"}
    assert moves(comfyui="done", files="failed", **running) == ([], {"image": "files"})


def test_what_left_itself_out_stops_what_needs_it_as_a_failure_does() -> None:
    ready: dict[str, TaskState] = {"comfyui": "done", "environment": "done", "packages": "done", "files": "done"}
    assert moves(**ready, server="skipped") == ([], {"image": "server"})


def test_a_server_without_an_image_is_started_all_the_same() -> None:
    tasks = tasks_of(make_plan(files(), (START,)))
    assert [task.name for task in next_moves(tasks, {"server": "waiting"}).start] == ["server"]
