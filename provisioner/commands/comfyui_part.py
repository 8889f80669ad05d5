"""The program half of a run: ComfyUI itself, and the packages it or diffusers needs in the environment.

Like `environment_job` it prints nothing.  A tree that was there before us is looked at and kept as it is, unless an
update is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.comfyui.checkout_models import CheckoutPlan, ComfyCheckout
from provisioner.comfyui.install_plan import judge_checkout, plan_checkout, requirements_to_install
from provisioner.comfyui.model_paths import CONFIG_NAME
from provisioner.comfyui.release_models import ComfyTable
from provisioner.commands.files_part import Job
from provisioner.core.errors import UsageError
from provisioner.core.models import ComfyTarget, Finding
from provisioner.core.records import dataclass
from provisioner.environment.app_packages import requirement_lines
from provisioner.environment.requirements import unmet
from provisioner.environment.state import FAMILY

if TYPE_CHECKING:
    from provisioner.torch.builds import App


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramWish:
    """What the command line asks for of ComfyUI itself."""

    source: str | None = None  # repository or archive, instead of the table's
    wants_update: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
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


def look_at_program(job: Job, wish: ProgramWish | None = None) -> Program | None:
    """Return ComfyUI as it is in the target and what it needs; None for a target that is no tree.

    Raises
    ------
    StorageError
        The folder cannot be read.
    """
    if not isinstance(job.target, ComfyTarget):
        return None
    table = read_table()
    checkout = job.bench.checkouts.describe(job.target.given)
    plan = plan_checkout(checkout, table, wants_update=wish is not None and wish.wants_update)
    folder = checkout.tree or (job.target.models.parent if job.target.models.name == "models" else job.target.given)
    return Program(table=table, checkout=checkout, plan=plan, folder=folder)


def check_program(program: Program) -> tuple[Finding, ...]:
    """Say what a person should know of ComfyUI before Klein is drawn with it; an update will mend what it mends."""
    if program.plan.action in {"clone", "update"}:
        return ()
    return (*judge_checkout(program.checkout, program.table), *_check_config(program))


def _check_config(program: Program) -> tuple[Finding, ...]:
    """Say that the YAML beside main.py names nothing: ComfyUI 0.33.0 ends at start with a TypeError then (seen)."""
    tree = program.checkout.tree
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
            message=f"{config} holds nothing but comments, and ComfyUI ends at its start with such a file.",
            path=config,
            hint="Delete the file, or rename it to extra_model_paths.yaml.example.",
        ),
    )


def refuse_hopeless(program: Program) -> None:
    """Raise UsageError where what was asked for cannot be done."""
    if program.plan.action == "refuse":
        raise UsageError(f"{program.sentence()}", hint=program.plan.hint or "Name another folder.")


def apply_program(job: Job, program: Program, wish: ProgramWish) -> None:
    """Fetch or move ComfyUI; raises what `Checkouts.fetch` and `Checkouts.update` say."""
    source = wish.source or program.table.repository
    pinned = program.table.pinned
    if program.plan.action == "clone":
        job.bench.checkouts.fetch(pinned, program.folder, source=source, progress=job.bench.say_progress)
    elif program.plan.action == "update":
        job.bench.checkouts.update(program.folder, pinned, source=source, progress=job.bench.say_progress)


# --- packages ----------------------------------------------------------------------------------------


def needed_packages(job: Job, app: App, tree: Path | None, where: Path) -> tuple[str, ...]:
    """Return the requirement lines that the environment does not meet yet."""
    seen = job.bench.environments.observe(where)
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
    job: Job, app: App, tree: Path | None, where: Path, *, has_uv: bool, say: Callable[[str], None]
) -> None:
    """Install what the application lacks, under the constraints that hold the torch set.

    Raises
    ------
    CommandError, IntegrityError, NetworkError
        As `Environments.install`; the torch set is what it was, or the error says that it is not.
    """
    lines = needed_packages(job, app, tree, where)
    if not lines:
        return
    job.bench.environments.install(
        where, requirements=lines, installer="uv" if has_uv else "pip", progress=job.bench.say_progress
    )
    left = needed_packages(job, app, tree, where)
    say(f"Packages: {len(lines) - len(left)} of {len(lines)} that {_called(app)} asks for were installed.")


def _called(app: App) -> str:
    return "ComfyUI" if app == "comfyui" else "diffusers"
