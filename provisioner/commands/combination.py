"""The combination of versions and hardware that a run sees, what is known to fail with it, and what avoids that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from provisioner.comfyui.known_bad import (
    Combination,
    known_bad,
    matching,
    options_that_avoid,
    reason,
    requirements_that_avoid,
)
from provisioner.commands.inspect_comfyui import ComfyUIInstall, read_table
from provisioner.commands.packages import app_of
from provisioner.environment.state import Observation
from provisioner.plan.steps import GetComfyUI, UpdateComfyUI

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provisioner.comfyui.release_models import KnownBad
    from provisioner.commands.run import Run
    from provisioner.core.models import Finding
    from provisioner.plan.steps import ComfyUIStep


def combination_of(run: Run, comfyui: ComfyUIInstall | None, environment: Path) -> Combination:
    """Return what ComfyUI, or diffusers, runs with here; nothing is started.

    Parameters
    ----------
    run : Run
        Where, and what is wanted.
    comfyui : ComfyUIInstall or None
        ComfyUI as it was found.
    environment : Path
        Our environment, or where it would be; a tree that brings its own Python is looked at there.
    """
    seen = run.session.environments.observe(environment)
    python = None if comfyui is None else comfyui.checkout.python
    if seen.receipt is None and python is not None:
        seen = run.session.environments.observe(_environment_of(python))
    found = Combination(
        machine=run.session.machine,
        app=app_of(run),
        python=None if seen.python is None else seen.python.version,
        packages=_versions(seen),
    )
    if comfyui is None or comfyui.checkout.tree is None:
        return found
    from provisioner.comfyui.checkout.checkouts import requirements_of

    checkout, tree = comfyui.checkout, comfyui.checkout.tree
    return replace(
        found,
        version=checkout.version,
        commit=checkout.commit,
        requirements=requirements_of(tree),
        custom_nodes=checkout.custom_nodes,
    )


def _environment_of(python: Path) -> Path:
    """Return the folder of an environment whose interpreter is given; Windows' portable Python lies at its top."""
    return python.parent.parent if python.parent.name in {"bin", "Scripts"} else python.parent


def _versions(seen: Observation) -> dict[str, str]:
    """Return the installed versions; of torch with what it was built for, which METADATA may leave out."""
    found = {each.name: each.version for each in seen.distributions}
    torch = seen.distribution("torch")
    if torch is not None and torch.tag is not None and "+" not in torch.version:
        found["torch"] = f"{torch.version}+{torch.tag}"
    return found


def check_combination(comfyui: ComfyUIInstall | None, seen: Combination, environment: Path) -> tuple[Finding, ...]:
    """Return what is known to fail with what is installed here, and what to do about it."""
    tree = None if comfyui is None else comfyui.checkout.tree
    table = read_table() if comfyui is None else comfyui.table
    options = () if comfyui is None else avoiding_options(comfyui, seen)
    return known_bad(seen, table, where=tree or environment, options=options)


def avoiding_options(comfyui: ComfyUIInstall, seen: Combination, given: Sequence[str] = ()) -> dict[str, KnownBad]:
    """Return the options that klein-setup adds when it starts this ComfyUI, each with the row it avoids.

    ComfyUI ends at its start with an option it does not have, so only those that its own source declares are given.
    """
    found = options_that_avoid(seen, comfyui.table, given)
    if not found:
        return {}
    from provisioner.commands.comfyui_flags import options_known_by

    declared = options_known_by(comfyui)
    return {option: row for option, row in found.items() if option in declared}


def start_options(run: Run, comfyui: ComfyUIInstall, environment: Path, given: Sequence[str]) -> tuple[str, ...]:
    """Return those options as arguments, and say of each what it avoids; `given` is what ComfyUI is told anyway."""
    found = avoiding_options(comfyui, combination_of(run, comfyui, environment), given)
    for option, row in found.items():
        run.session.stages.say(f"ComfyUI is started with {option}, because without it: {reason(row)}.")
    return tuple(found)


def requirements_here(
    run: Run,
    comfyui: ComfyUIInstall | None,
    seen: Combination,
    arriving: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> tuple[str, ...]:
    """Return what is required of the packages beside ComfyUI's own requirements.

    That is what works here where an older version does not, and what the custom nodes require that klein-setup
    installed.

    Parameters
    ----------
    run, comfyui, seen
        As for `combination_of`, and what that returned.
    arriving : mapping of str to sequence of str
        What custom nodes require that are being installed, by their names.
    """
    if comfyui is None:
        return ()
    from provisioner.environment.pack_requirements import joined

    of_packs = {} if comfyui.checkout.tree is None else run.session.packs.requirements(comfyui.checkout.tree)
    return (*requirements_that_avoid(seen, comfyui.table), *joined({**of_packs, **arriving}))


def avoided(comfyui: ComfyUIInstall, step: ComfyUIStep | None, seen: Combination) -> tuple[str, ...]:
    """Return what a plan does so that a known-bad combination does not come about, a sentence each.

    Of a ComfyUI that stays the findings speak; here it is about one that arrives.
    """
    if not isinstance(step, (GetComfyUI, UpdateComfyUI)):
        return tuple(
            f"{requirement} is required too, because with an older one: {reason(row)}."
            for requirement, row in requirements_that_avoid(seen, comfyui.table).items()
        )
    arriving = replace(seen, version=step.release.version, commit=step.release.commit, packages={}, requirements=())
    return (
        *(
            f"ComfyUI {step.release.version} is known to fail on machines like this: {reason(row)}."
            for row in matching(arriving, comfyui.table)
            if row.option is None and row.requirement is None
        ),
        *(
            f"klein-setup will start this ComfyUI with {option}, because without it: {reason(row)}."
            for option, row in options_that_avoid(arriving, comfyui.table).items()
        ),
    )
