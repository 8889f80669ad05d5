"""The requirements of a ComfyUI that klein-setup was not verified with: resolved before anything is changed.

The release is fetched beside and read there.  Nothing that a person has is touched.
"""

from __future__ import annotations

from dataclasses import replace

from provisioner.comfyui.install_plan import requirements_to_install
from provisioner.comfyui.known_bad import requirements_that_avoid
from provisioner.comfyui.which_release import conflict_of
from provisioner.commands.combination import combination_of
from provisioner.commands.inspect_comfyui import inspect_comfyui, read_table
from provisioner.commands.look import InstallOptions
from provisioner.commands.run import Run
from provisioner.core.errors import CommandError, EntryNotFoundError, KleinError
from provisioner.disk.root import scratch_folder
from provisioner.environment.state import FAMILY
from provisioner.plan.steps import GetComfyUI, InstallPackages, MakeEnvironment, Plan, UpdateComfyUI

_HINT = "Name another release with --comfyui-version, or another build of torch with --torch."


def try_requirements(run: Run, options: InstallOptions, plan: Plan) -> None:
    """Let pip resolve what the release of a plan requires, under the torch set that holds; nothing is changed.

    Nothing is done where that release is the one klein-setup was verified with, where the packages are those of a
    snapshot, or where the plan installs none.

    Raises
    ------
    CommandError
        The requirements exclude the torch set, or each other; the message names both sides.
    EntryNotFoundError
        An index has no wheel of one of them.
    KleinError
        As `Checkouts.fetch` and `Environments.try_out`.
    """
    step = next((each for each in plan.steps if isinstance(each, (GetComfyUI, UpdateComfyUI))), None)
    packages = next((each for each in plan.steps if isinstance(each, InstallPackages)), None)
    if step is None or packages is None or options.snapshot is not None:
        return
    if step.release.commit == read_table().pinned.commit:
        return
    from provisioner.comfyui.checkout.checkouts import requirements_of  # git and archives, which few plans need

    make = next((each for each in plan.steps if isinstance(each, MakeEnvironment)), None)
    session, what = run.session, f"what ComfyUI {step.release.version} requires"
    with (
        scratch_folder("klein-setup-try-") as folder,
        session.stages.stage("resolving", what, "resolved") as came_of_it,
    ):
        tree = folder / "ComfyUI"
        session.checkouts.fetch(step.release, tree, source=step.source, progress=session.stages.teller)
        asked = requirements_of(tree)
        lines = (*requirements_to_install(asked, family=FAMILY, present=FAMILY)[0], *_more(run, step, packages, asked))
        try:
            session.environments.try_out(
                lines,
                None if make is None else make.choice.build,
                packages.where,
                python=None if make is None else make.python,
                python_versions=() if make is None else make.python_versions,
                progress=session.stages.teller,
            )
        except KleinError as error:
            explained = _explained(error, step.release.version)
            if explained is None:
                raise
            raise explained from error
        came_of_it(f"what ComfyUI {step.release.version} requires goes with this torch")


def _more(
    run: Run, step: GetComfyUI | UpdateComfyUI, packages: InstallPackages, asked: tuple[str, ...]
) -> tuple[str, ...]:
    """Return what is required beside, so that it works on this machine."""
    comfyui = inspect_comfyui(run)
    if comfyui is None:
        return ()
    seen = combination_of(run, comfyui, packages.where)
    arriving = replace(seen, version=step.release.version, commit=step.release.commit, requirements=asked)
    table = replace(comfyui.table, releases=(*comfyui.table.releases, step.release))
    return tuple(requirements_that_avoid(arriving, table))


def _explained(error: KleinError, version: str) -> KleinError | None:
    """Return an error of pip's in words about this release; None where it is about something else."""
    sides = error.context.get("sides")
    if error.context.get("reason") == "conflict" and isinstance(sides, list):
        said = f"{conflict_of(version, list(map(str, sides)))}. Nothing was changed."
        return CommandError(said, hint=_HINT, **error.context)
    if isinstance(error, EntryNotFoundError):
        said = f"ComfyUI {version} cannot be installed here: {str(error).rstrip('.')}. Nothing was changed."
        return EntryNotFoundError(said, hint=_HINT, **error.context)
    return None
