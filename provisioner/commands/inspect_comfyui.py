"""The program half of a run: ComfyUI itself, and the packages it or diffusers needs in the environment.

Like `choose_environment` it prints nothing.  A tree that was there before us is looked at and kept as it is, unless an
update is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from provisioner.comfyui.batch_files import unread_folders
from provisioner.comfyui.checkout_models import CheckoutPlan, ComfyCheckout
from provisioner.comfyui.install_plan import judge_checkout, plan_checkout, too_old_for_models
from provisioner.comfyui.model_paths import CONFIG_NAME
from provisioner.comfyui.release_models import ComfyRelease, ComfyTable
from provisioner.comfyui.which_release import LATEST, verified_with
from provisioner.commands.choose_release import ReleaseChooser
from provisioner.commands.run import Run
from provisioner.core.errors import UsageError
from provisioner.core.models import ComfyTarget, Finding
from provisioner.report.outcome import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyUIOptions:
    """What the command line asks for of ComfyUI itself."""

    source: str | None = None  # repository or archive, instead of the table's
    wants_update: bool = False
    version: str | None = (
        None  # "0.46.0", "latest" or "pinned": what a new ComfyUI is to be, or an existing one moved to
    )
    bundled: ComfyRelease | None = None  # the one that a bundle holds: no other can come
    may_ask: bool = True  # False: nobody is contacted, and a release whose commit is not known here has none
    release: ComfyRelease | None = None  # the very release that is wanted, be it older; else the table's


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyUIInstall:
    """ComfyUI as it is here, and what is to be done about it."""

    table: ComfyTable
    checkout: ComfyCheckout
    plan: CheckoutPlan
    folder: Path  # where main.py is, or will be
    min_version: str | None = None  # the first that loads every file of the set; None: not known
    note: str | None = None  # what klein-setup was verified with, where ComfyUI arrives
    unread: tuple[Finding, ...] = ()  # what the portable build's own batch files say otherwise

    @property
    def has_one(self) -> bool:
        """Whether there is a program, or will be: a models folder by itself has none."""
        return self.checkout.tree is not None or self.plan.action == "clone"

    @property
    def is_ours_to_equip(self) -> bool:
        """Whether the environment is ours to make: a tree that brings its own Python keeps it."""
        return self.checkout.tree is None or self.checkout.receipt is not None or self.checkout.python is None


def read_table() -> ComfyTable:
    """Return the table of ComfyUI's releases that comes with the program."""
    from provisioner.comfyui.releases import parse_comfy_table
    from provisioner.manifest.shipped import read_table_text

    text, file = read_table_text("comfyui")
    return parse_comfy_table(text, file=file)


def inspect_comfyui(run: Run, options: ComfyUIOptions | None = None) -> ComfyUIInstall | None:
    """Return ComfyUI as it is in the target and what it needs; None for a target that is no tree.

    Raises
    ------
    StorageError
        The folder cannot be read.
    KleinError
        Of `options`: as `ReleaseChooser.choose`.
    """
    if not isinstance(run.target, ComfyTarget):
        return None
    checkout = run.session.checkouts.describe(run.target.given)
    shipped = table = read_table()
    plan = plan_checkout(checkout, table)
    if options is not None:
        table, plan = _planned(run, options, shipped, checkout)
    arrives = plan.action in {"clone", "update"}
    folder = checkout.tree or (run.target.models.parent if run.target.models.name == "models" else run.target.given)
    return ComfyUIInstall(
        table=_with_own(table, checkout),
        checkout=checkout,
        plan=plan,
        folder=folder,
        min_version=run.wanted.min_comfyui,
        note=verified_with(shipped, table.pinned) if arrives else None,
        unread=_unread(run, run.target, checkout),
    )


def _with_own(table: ComfyTable, checkout: ComfyCheckout) -> ComfyTable:
    """Return the table with the release that klein-setup put there by its tag: it is a release, if an unknown one."""
    receipt = checkout.receipt
    if receipt is None or receipt.tag is None or receipt.commit != checkout.commit:
        return table
    return _knowing(table, ComfyRelease(version=receipt.version, commit=receipt.commit, tag=receipt.tag))


def _knowing(table: ComfyTable, release: ComfyRelease) -> ComfyTable:
    """Return the table with one more release."""
    is_known = any(release.commit == each.commit for each in table.releases)
    return table if is_known else replace(table, releases=(*table.releases, release))


def _planned(
    run: Run, options: ComfyUIOptions, table: ComfyTable, checkout: ComfyCheckout
) -> tuple[ComfyTable, CheckoutPlan]:
    """Return the plan for the release that is chosen, and the table with that one pinned; asks a repository if need be.

    Naming a version asks for an update, too.  An existing ComfyUI goes back to an older one only where that is named.
    """
    if options.release is not None:
        table = replace(table, pinned=options.release)
        return table, plan_checkout(checkout, table, wants_update=True, may_go_back=True)
    wants_update = options.wants_update or options.version is not None
    plan = plan_checkout(checkout, table, wants_update=wants_update, may_go_back=True)
    if plan.action != "clone" and checkout.tree is None and options.version is not None:
        hint = "Leave --comfyui-version out, or name ComfyUI's own folder or a new one with --comfyui DIR."
        raise UsageError(f"ComfyUI {options.version} cannot be put into {checkout.given}: {plan.reason}.", hint=hint)
    if plan.action != "clone" and not (wants_update and checkout.tree is not None):
        return table, plan
    source = options.source or table.repository
    chooser = ReleaseChooser(run=run, table=table, checkout=checkout, source=source, may_ask=options.may_ask)
    chosen = chooser.choose(options.version) if options.bundled is None else chooser.take(options.bundled)
    table = replace(_knowing(table, chosen.release) if chosen.release.tag else table, pinned=chosen.release)
    is_named = options.version not in (None, LATEST)
    plan = plan_checkout(checkout, table, wants_update=wants_update, may_go_back=is_named)
    if chosen.why is not None and plan.action in {"clone", "update"}:
        plan = replace(plan, reason=f"{plan.reason}; {chosen.why}")
    return table, plan


def _unread(run: Run, target: ComfyTarget, checkout: ComfyCheckout) -> tuple[Finding, ...]:
    """Return what the batch files of a portable build give to ComfyUI that is not looked at here."""
    if checkout.kind != "portable" or checkout.tree is None:
        return ()
    from provisioner.comfyui.installed_programs import batch_files_of

    folder = checkout.tree.parent
    read = (*run.options.extra_model_paths, checkout.tree, target.models)
    return unread_folders(batch_files_of(folder), folder, [each.expanduser().absolute() for each in read])


def with_comfyui(report: Report, comfyui: ComfyUIInstall | None) -> Report:
    """Return a report that says which ComfyUI there is."""
    return report if comfyui is None or comfyui.checkout.tree is None else replace(report, comfyui=comfyui.checkout)


def check_comfyui(comfyui: ComfyUIInstall) -> tuple[Finding, ...]:
    """Return what a person should know about a ComfyUI before an image is generated with it."""
    if comfyui.plan.action in {"clone", "update"}:
        return ()  # the release that comes was chosen so that it loads them
    too_old = too_old_for_models(comfyui.checkout, comfyui.min_version)
    judged = judge_checkout(comfyui.checkout, comfyui.table)
    if any(each.code == "comfyui-too-old" for each in judged):
        too_old = ()  # it says the same
    return (*judged, *too_old, *_check_config(comfyui), *comfyui.unread)


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
