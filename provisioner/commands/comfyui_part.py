"""The program half of a run: ComfyUI itself, and the packages it or diffusers needs in the environment.

Like `environment_job` it prints nothing.  A tree that was there before us is looked at and kept as it is, unless an
update is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.comfyui.checkout_models import CheckoutPlan, ComfyCheckout
from provisioner.comfyui.install_plan import judge_checkout, plan_checkout, requirements_to_install
from provisioner.comfyui.model_paths import CONFIG_NAME
from provisioner.comfyui.release_models import ComfyTable
from provisioner.commands.files_part import Run
from provisioner.core.errors import UsageError
from provisioner.core.models import ComfyTarget, Finding
from provisioner.environment.app_packages import requirement_lines
from provisioner.environment.requirements import unmet
from provisioner.environment.state import FAMILY

if TYPE_CHECKING:
    from provisioner.torch.builds import App


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyUIOptions:
    """What the command line asks for of ComfyUI itself."""

    source: str | None = None  # repository or archive, instead of the table's
    wants_update: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyUIInstall:
    """ComfyUI as it is here, and what is to be done about it."""

    table: ComfyTable
    checkout: ComfyCheckout
    plan: CheckoutPlan
    folder: Path  # where main.py is, or will be

    @property
    def has_one(self) -> bool:
        """Whether there is a program, or will be: a models folder by itself has none."""
        return self.checkout.tree is not None or self.plan.action == "clone"

    @property
    def is_ours_to_equip(self) -> bool:
        """Whether the environment is ours to make: a tree that brings its own Python keeps it."""
        return self.checkout.tree is None or self.checkout.receipt is not None or self.checkout.python is None

    def sentence(self) -> str:
        """Return the plan as a line for a person."""
        pinned = self.table.pinned
        words = {
            "clone": f"get ComfyUI {pinned.version} (commit {pinned.commit[:12]}) into {self.folder}",
            "update": f"move {self.folder} to {pinned.version}; the way back is kept",
            "none": f"{self._what_is_there()} stays as it is",
            "refuse": f"{self.folder} cannot be moved to {pinned.version}",
        }
        return f"ComfyUI: {words[self.plan.action]}; {self.plan.reason}."

    def _what_is_there(self) -> str:
        version = self.checkout.version
        return f"ComfyUI {version} in {self.folder}" if version else str(self.checkout.tree or self.checkout.given)


def read_table() -> ComfyTable:
    """Return the table of ComfyUI's releases that comes with the program."""
    from provisioner.comfyui.releases import parse_comfy_table
    from provisioner.manifest.shipped import read_comfy_table_text

    text, file = read_comfy_table_text()
    return parse_comfy_table(text, file=file)


def inspect_comfyui(run: Run, options: ComfyUIOptions | None = None) -> ComfyUIInstall | None:
    """Return ComfyUI as it is in the target and what it needs; None for a target that is no tree.

    Raises
    ------
    StorageError
        The folder cannot be read.
    """
    if not isinstance(run.target, ComfyTarget):
        return None
    table = read_table()
    checkout = run.session.checkouts.describe(run.target.given)
    plan = plan_checkout(checkout, table, wants_update=options is not None and options.wants_update)
    folder = checkout.tree or (run.target.models.parent if run.target.models.name == "models" else run.target.given)
    return ComfyUIInstall(table=table, checkout=checkout, plan=plan, folder=folder)


def check_comfyui(comfyui: ComfyUIInstall) -> tuple[Finding, ...]:
    """Say what a person should know of ComfyUI before Klein is drawn with it; an update will mend what it mends."""
    if comfyui.plan.action in {"clone", "update"}:
        return ()
    return (*judge_checkout(comfyui.checkout, comfyui.table), *_check_config(comfyui))


def _check_config(comfyui: ComfyUIInstall) -> tuple[Finding, ...]:
    """Say that the YAML beside main.py names nothing: ComfyUI 0.33.0 ends at start with a TypeError then (seen)."""
    tree = comfyui.checkout.tree
    config = None if tree is None else tree / CONFIG_NAME
    try:
        text = "" if config is None else config.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    if config is None or any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
        return ()
    return (
        Finding(
            code="comfyui-empty-config",
            severity="problem",
            remedy="by-hand",
            message=f"{config} holds nothing but comments, and ComfyUI ends at its start with such a file.",
            path=config,
            hint="Delete the file, or rename it to extra_model_paths.yaml.example.",
        ),
    )


def refuse_hopeless(comfyui: ComfyUIInstall) -> None:
    """Raise UsageError where what was asked for cannot be done."""
    if comfyui.plan.action == "refuse":
        raise UsageError(f"{comfyui.sentence()}", hint=comfyui.plan.hint or "Name another folder.")


def apply_comfyui(run: Run, comfyui: ComfyUIInstall, options: ComfyUIOptions) -> None:
    """Fetch or move ComfyUI; raises what `Checkouts.fetch` and `Checkouts.update` say."""
    source = options.source or comfyui.table.repository
    pinned = comfyui.table.pinned
    if comfyui.plan.action == "clone":
        run.session.checkouts.fetch(pinned, comfyui.folder, source=source, progress=run.session.say_progress)
    elif comfyui.plan.action == "update":
        run.session.checkouts.update(comfyui.folder, pinned, source=source, progress=run.session.say_progress)


# --- packages ----------------------------------------------------------------------------------------


def needed_packages(run: Run, app: App, tree: Path | None, where: Path) -> tuple[str, ...]:
    """Return the requirement lines that the environment does not meet yet."""
    seen = run.session.environments.observe(where)
    if seen.python is None:
        return ()
    installed = {each.name: each.version for each in seen.distributions}
    lines = requirement_lines(app)
    if app == "comfyui" and tree is not None:
        from provisioner.comfyui.checkout.checkouts import requirements_of

        present = [name for name in FAMILY if name in installed]
        lines, _ = requirements_to_install(requirements_of(tree), family=FAMILY, present=present)
    return unmet(lines, installed, python_version=seen.python.version)


def install_packages(
    run: Run, app: App, tree: Path | None, where: Path, *, use_uv: bool, say: Callable[[str], None]
) -> None:
    """Install what the application lacks, under the constraints that hold the torch set.

    Raises
    ------
    CommandError, IntegrityError, NetworkError
        As `Environments.install`; the torch set is what it was, or the error says that it is not.
    """
    lines = needed_packages(run, app, tree, where)
    if not lines:
        return
    run.session.environments.install(
        where, requirements=lines, installer="uv" if use_uv else "pip", progress=run.session.say_progress
    )
    left = needed_packages(run, app, tree, where)
    say(f"Packages: {len(lines) - len(left)} of {len(lines)} that {_called(app)} asks for were installed.")


def _called(app: App) -> str:
    return "ComfyUI" if app == "comfyui" else "diffusers"
