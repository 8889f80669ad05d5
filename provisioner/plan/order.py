"""What waits for what in a plan, and what is done next: whatever needs nothing of each other goes side by side.

A task is what one thread applies: one step, all steps that move or install custom nodes, or all of the model files,
which are a task of their own engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from provisioner.plan.steps import (
    FILE_STEPS,
    ComfyUIStep,
    EnvironmentStep,
    GenerateImage,
    GetComfyUI,
    InstallNodePack,
    InstallPackages,
    MoveNodePack,
    Plan,
    StartComfyUI,
    Step,
    place_of,
)

TaskName = Literal["comfyui", "nodes", "files", "environment", "packages", "node-packs", "server", "image"]
TaskState = Literal["waiting", "running", "done", "failed", "skipped"]

_ALL: frozenset[TaskName] = frozenset(get_args(TaskName))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one thread applies, and what has to be done before it can begin."""

    name: TaskName
    steps: tuple[Step, ...]  # one; of the files and of the custom nodes, all
    needs: frozenset[TaskName] = frozenset()
    serves: TaskName | None = None  # what it is done for: of no use where that cannot be done any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """What to do now."""

    start: tuple[Task, ...] = ()
    skip: tuple[tuple[Task, TaskName], ...] = ()  # each with what it cannot be done for: a task that failed


def tasks_of(plan: Plan) -> tuple[Task, ...]:
    """Return the tasks of a plan in the order of its steps, each with what it needs.

    - ComfyUI needs nothing; custom nodes need it.
    - Model files and the environment need a ComfyUI that is fetched anew only where they lie in its folder: that
      folder appears whole, by one rename.
    - Packages need the environment they go into, and the requirements.txt of ComfyUI.
    - Custom nodes that are installed need all of these: what they require has to agree with the rest.
    - ComfyUI's start needs the program and its packages, and no model file: it lists those when it is asked.
    - The test image needs everything.
    """
    steps: dict[TaskName, list[Step]] = {}
    for step in plan.steps:
        name = _name_of(step)
        if name is not None:
            steps.setdefault(name, []).append(step)
    return tuple(
        Task(
            name=name,
            steps=tuple(of_name),
            needs=_needs(name, steps) & steps.keys() - {name},
            serves="image" if name == "server" else None,
        )
        for name, of_name in steps.items()
    )


def _name_of(step: Step) -> TaskName | None:
    """Return which task a step belongs to; None for what is removed, which is applied elsewhere."""
    kinds: tuple[tuple[Any, TaskName], ...] = (
        (ComfyUIStep, "comfyui"),
        (MoveNodePack, "nodes"),
        (InstallNodePack, "node-packs"),
        (FILE_STEPS, "files"),
        (EnvironmentStep, "environment"),
        (InstallPackages, "packages"),
        (StartComfyUI, "server"),
        (GenerateImage, "image"),
    )
    return next((name for kind, name in kinds if isinstance(step, kind)), None)


def _needs(name: TaskName, steps: Mapping[TaskName, list[Step]]) -> frozenset[TaskName]:
    """Return what a task needs, whether the plan has it or not."""
    match name:
        case "comfyui":
            return frozenset()
        case "nodes":
            return frozenset({"comfyui"})
        case "files" | "environment":
            folder = next((step.folder for step in steps.get("comfyui", ()) if isinstance(step, GetComfyUI)), None)
            places = [place for step in steps[name] if (place := place_of(step)) is not None]
            lies_in_it = folder is not None and any(place.is_relative_to(folder) for place in places)
            return frozenset({"comfyui"}) if lies_in_it else frozenset()
        case "packages":
            is_of_comfyui = any(isinstance(step, InstallPackages) and step.app == "comfyui" for step in steps[name])
            return frozenset({"environment", "comfyui"}) if is_of_comfyui else frozenset({"environment"})
        case "node-packs":
            return frozenset({"comfyui", "nodes", "environment", "packages"})
        case "server":
            return frozenset({"comfyui", "nodes", "environment", "packages", "node-packs"})
        case _:
            return _ALL


def next_moves(tasks: tuple[Task, ...], states: Mapping[TaskName, TaskState]) -> Moves:
    """Return which of the waiting tasks begin now, and which cannot be done any more.

    A task that failed stops what needs it, and what is done only for that; everything else goes on.

    Parameters
    ----------
    tasks : tuple of Task
        All of them.
    states : mapping of name to state
        Where each stands.
    """
    by_name = {task.name: task for task in tasks}

    def cause(name: TaskName) -> TaskName | None:
        """Return the task that failed, for which this one cannot be done; itself where it failed."""
        if states[name] == "failed":
            return name
        if states[name] in {"running", "done"}:
            return None
        causes = (cause(each.name) for each in tasks if each.name in by_name[name].needs)
        found = next((each for each in causes if each is not None), None)
        return name if found is None and states[name] == "skipped" else found

    start: list[Task] = []
    skip: list[tuple[Task, TaskName]] = []
    for task in tasks:
        if states[task.name] != "waiting":
            continue
        why = cause(task.name) or (cause(task.serves) if task.serves in by_name else None)
        if why is not None:
            skip.append((task, why))
        elif all(states[need] == "done" for need in task.needs):
            start.append(task)
    return Moves(start=tuple(start), skip=tuple(skip))
