"""``klein-setup uninstall``: removes what receipts say is ours: files, environment and ComfyUI."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.choose_environment import environment_folder
from provisioner.commands.questions import Ask, agree_to_links, need_yes
from provisioner.commands.run import Run, tree_roots
from provisioner.commands.shared_files import needed_by, other_manifests
from provisioner.core.errors import EXIT_OK, StorageError, UsageError
from provisioner.core.models import STATE_FOLDER, ComfyTarget, Finding, Outcome
from provisioner.core.units import count, human_bytes, listing
from provisioner.disk.root import is_link
from provisioner.files import planner
from provisioner.files.layout import destination_for
from provisioner.plan.make_plan import make_plan
from provisioner.plan.steps import Remove
from provisioner.report.outcome import Report

if TYPE_CHECKING:
    from provisioner.comfyui.checkout_models import PackCheck
    from provisioner.core.ports import FileDigest
    from provisioner.files.store.removal import Owned

PARTS = frozenset({"files", "environment", "comfyui", "custom-nodes"})
_WHY_KEPT = {
    "adopted": "it was there before klein-setup",
    "changed": "it changed after klein-setup verified it",
    "behind-link": "a folder on the way to it is a link that leads elsewhere",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UninstallOptions:
    """What the command line asks for."""

    parts: frozenset[str] = PARTS
    environment: Path | None = None
    is_dry_run: bool = False


def parse_parts(text: str | None) -> frozenset[str]:
    """Return the parts that ``--only`` names, all for None; raises UsageError."""
    if text is None:
        return PARTS
    parts = frozenset(part.strip() for part in text.split(","))
    unknown = sorted(parts - PARTS)
    if unknown:
        raise UsageError(
            f"--only knows no part {', '.join(map(repr, unknown))} here.",
            hint="There are four: files, environment, comfyui, custom-nodes.",
        )
    return parts


def run_uninstall(run: Run, options: UninstallOptions, *, ask: Ask, say: Callable[[str], None]) -> Report:
    """Show what would go and what stays, ask once, and remove it.

    Where manifests are named, only their files go, and of those none that another manifest in the tree needs; ComfyUI,
    its custom nodes and the environment stay as long as there is another.  Else everything goes.

    Raises
    ------
    AnswerNeededError
        Nobody agreed.
    StorageError
        The system refused to remove something; what was removed before is gone, the receipts are right.
    """
    is_named = run.options.is_manifest_named
    others = other_manifests(run) if is_named else {}
    parts = frozenset({"files"}) if others and options.parts == PARTS else options.parts
    files = _owned(run) if "files" in parts else ()
    shared: tuple[Finding, ...] = ()
    if is_named:
        everything = files
        files, shared = _only_named(run, everything, others)
        left_out = len(everything) - len(files) - len(shared)
        if left_out:
            say(
                f"{count(left_out, 'more file')} here {'is' if left_out == 1 else 'are'} of no manifest that was "
                "named; `klein-setup uninstall` without --manifest is about every file."
            )
    environment = _environment_of_ours(run, options) if "environment" in parts else None
    tree = _tree_of_ours(run) if "comfyui" in parts else None
    packs = _packs_of_ours(run) if "custom-nodes" in parts else {}
    kept = (*shared, *(_kept(run, each) for each in files if each.state in _WHY_KEPT))
    steps = [*_pack_steps(packs), *_steps(run, files, environment, tree)]
    links = run.session.links.on_the_way_of(steps)
    plan = make_plan(planner.no_steps(run.manifest, run.wanted, run.target), steps, links=links)
    for each in steps:
        size = "" if each.what == "file" else f"{human_bytes(each.size or 0)}; "  # a file's reason is its size
        say(f"remove  {each.path}  ({size}{each.reason})")
    for link in plan.links:
        say(f"link    {link.path} leads to {link.real}: what is removed behind it is removed there")
    if not plan.steps:
        say("Nothing here was installed by klein-setup.")
        return run.report("uninstall", "ok", EXIT_OK, plan=plan, findings=kept)
    if options.is_dry_run:
        return run.report("uninstall", "planned", EXIT_OK, plan=plan, findings=kept)
    agree_to_links(run, plan.links, ask)
    if not run.options.assume_yes:
        need_yes(
            ask,
            f"Remove these, {human_bytes(plan.bytes_to_remove)}?",
            hint="`klein-setup uninstall --dry-run` only shows them.",
        )
    roots = _roots(run) if "files" in parts else ()
    left = (
        *_remove_files(run, files, roots),
        *_remove_packs(run, packs, is_environment_gone=environment is not None),
        *_remove_programs(run, environment, tree, say),
    )
    stays = {finding.path: finding.message for finding in left if finding.code == "kept-file"}
    outcomes = tuple(
        Outcome(step=step, status="skipped", detail=stays[step.path])
        if isinstance(step, Remove) and step.path in stays
        else Outcome(step=step, status="done", detail="removed")
        for step in plan.steps
    )
    return run.report("uninstall", "ok", EXIT_OK, plan=plan, outcomes=outcomes, findings=(*kept, *left))


def _only_named(
    run: Run, files: tuple[Owned, ...], others: Mapping[str, frozenset[Path]]
) -> tuple[tuple[Owned, ...], tuple[Finding, ...]]:
    """Return the files that the named manifests name, by place and digest, and what stays because others need it."""
    own: dict[Path, set[str]] = {}
    for part in run.parts:
        for each in part.manifest.sets:
            for artifact in each.artifacts if each.target == part.set.target else ():
                place = destination_for(artifact, run.target).path
                own.setdefault(place, set()).update(content.sha256 for content in artifact.contents)
    found = [each for each in files if each.sha256 in own.get(each.path, ())]
    shared = tuple(
        Finding(
            code="kept-file",
            severity="warning",
            remedy="by-hand",
            message=f"{each.path} stays: {listing(names)} {'needs' if len(names) == 1 else 'need'} it.",
            path=each.path,
            hint="`klein-setup uninstall` without --manifest removes the files of every manifest.",
        )
        for each in found
        if each.state == "ours" and (names := needed_by(each.path, others))
    )
    return tuple(each for each in found if not needed_by(each.path, others)), shared


def _owned(run: Run) -> tuple[Owned, ...]:
    from provisioner.files.store.removal import owned_files

    return tuple(each for root in _roots(run) for each in owned_files(run.session.root(root)))


def _roots(run: Run) -> tuple[Path, ...]:
    if isinstance(run.target, ComfyTarget):
        return tree_roots(run.target)
    return tuple(sorted(folder for folder in run.target.cache.glob("models--*") if folder.is_dir()))


def _steps(run: Run, files: tuple[Owned, ...], environment: Path | None, tree: Path | None) -> list[Remove]:
    steps = [
        Remove(what="file", path=each.path, size=each.size, reason=human_bytes(each.size))
        if each.state == "ours"
        else Remove(what="file", path=each.path, size=0, reason="it is gone already; its receipt is removed")
        for each in files
        if each.state in {"ours", "missing"}
    ]
    if environment is not None:
        reason, size = "the virtual environment klein-setup made, or what is left of making it", _size_of(environment)
        if is_link(environment):
            reason, size = "the link to a virtual environment klein-setup made; what it leads to stays", 0
        steps.append(Remove(what="environment", path=environment, size=size, reason=reason))
    if tree is not None:
        reason = "ComfyUI's own files, as klein-setup put them there; yours stay"
        size = run.session.checkouts.removable(tree).removed_bytes
        steps.append(Remove(what="comfyui", path=tree, size=size, reason=reason))
    return steps


def _size_of(folder: Path) -> int:
    """Return the bytes of every file below a folder; a link counts for itself."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 - an environment has 30,000 files
    return size


def _kept(run: Run, owned: Owned) -> Finding:
    hint = "Delete it yourself if you do not want it."
    if owned.state == "behind-link":
        try:
            run.session.root(owned.root).check(owned.path)
        except StorageError as error:
            hint = f"{error} {error.hint or ''}".strip()
    return Finding(
        code="kept-file",
        severity="warning",
        remedy="by-hand",
        message=f"{owned.path} stays: {_WHY_KEPT[owned.state]}.",
        path=owned.path,
        hint=hint,
    )


def _environment_of_ours(run: Run, options: UninstallOptions) -> Path | None:
    where = environment_folder(run, options.environment)
    seen = run.session.environments.observe(where)
    return where if seen.receipt is not None or seen.interrupted is not None else None


def _tree_of_ours(run: Run) -> Path | None:
    if not isinstance(run.target, ComfyTarget) or run.target.models.name != "models":
        return None
    where = run.target.models.parent
    seen = run.session.checkouts.describe(where)
    # without a program: a removal that was interrupted goes on
    return (seen.tree or where) if seen.receipt is not None else None


def _packs_of_ours(run: Run) -> Mapping[Path, PackCheck]:
    """Return the packs of custom nodes that this user's own receipts name, by folder."""
    if not isinstance(run.target, ComfyTarget) or run.target.models.name != "models":
        return {}
    from provisioner.comfyui.checkout.node_packs import FOLDER

    tree = run.session.checkouts.describe(run.target.models.parent).tree or run.target.models.parent
    return {tree / FOLDER / each.receipt.name: each for each in run.session.packs.check_all(tree)}


def _pack_steps(packs: Mapping[Path, PackCheck]) -> list[Remove]:
    steps = []
    for path, found in packs.items():
        if found.is_gone:
            reason, size = "it is gone already; its receipt is removed", 0
        elif found.is_ours_alone:
            reason, size = "custom nodes, as klein-setup installed them", _size_of(path)
        else:
            reason, size = f"it holds something of yours: it is switched off, as {path.name}.disabled, and stays", 0
        steps.append(Remove(what="custom-nodes", path=path, size=size, reason=reason))
    return steps


def _remove_packs(run: Run, packs: Mapping[Path, PackCheck], *, is_environment_gone: bool) -> tuple[Finding, ...]:
    left: list[Finding] = []
    for path, found in packs.items():
        tree, name = path.parent.parent, found.receipt.name
        why = run.session.packs.remove(tree, name, progress=run.session.notice)
        if why is not None:
            hint = "Delete the folder yourself if you do not want it."
            left.append(
                Finding(
                    code="kept-file",
                    severity="warning",
                    remedy="by-hand",
                    message=f"{path} stays: {why}.",
                    path=path,
                    hint=hint,
                )
            )
        if found.receipt.requirements and not is_environment_gone:
            required = listing(found.receipt.requirements)
            left.append(
                Finding(
                    code="kept-packages",
                    severity="warning",
                    remedy="by-hand",
                    message=f"The packages that {name} required stay in the environment: {required}.",
                    hint="They go with the environment: `klein-setup uninstall --only environment`.",
                )
            )
    return tuple(left)


def _remove_files(run: Run, files: tuple[Owned, ...], roots: tuple[Path, ...]) -> tuple[Finding, ...]:
    """Remove files, then the records of these roots: a killed call may have left those alone."""
    from provisioner.files.store.receipts import Receipts
    from provisioner.files.store.removal import forget_root, remove_file

    left: list[Finding] = []
    for each in files:
        root = run.session.root(each.root)
        now = each
        if each.state in {"ours", "missing"}:
            now = remove_file(root, each, hash_file=_digest_of(run))
            left += [_kept(run, now)] if now.state in _WHY_KEPT else []
        if now.state in {"adopted", "changed"}:  # it stays and is nobody's but the user's from now on
            Receipts().drop_claims(root, [each.relative])
    named = {part.manifest.id for part in run.parts} if run.options.is_manifest_named else None
    for folder in (each for each in roots if (each / STATE_FOLDER).is_dir()):
        Receipts().drop_manifests(run.session.root(folder), named)
        stays = forget_root(run.session.root(folder))
        if stays and stays[0].name == "aside":
            left.append(
                Finding(
                    code="kept-aside",
                    severity="warning",
                    remedy="by-hand",
                    message=f"{stays[0].parent} stays: it holds backups of your files that repairs replaced.",
                    path=stays[0].parent,
                    hint="`klein-setup backups list` shows them; `klein-setup backups restore NAME` puts one back.",
                )
            )
    return tuple(left)


def _digest_of(run: Run) -> Callable[[Path], FileDigest]:
    return lambda path: run.session.store.hash_file(path, progress=lambda _count: None)


def _remove_programs(
    run: Run, environment: Path | None, tree: Path | None, say: Callable[[str], None]
) -> tuple[Finding, ...]:
    if environment is not None:
        run.session.environments.clear_leftovers(environment, progress=run.session.notice)
        if run.session.environments.observe(environment).receipt is not None:
            run.session.environments.remove(environment)
    if tree is None:
        return ()
    removal = run.session.checkouts.remove(tree)
    say(f"Removed {removal.removed_files} files of ComfyUI, {human_bytes(removal.removed_bytes)}.")
    return tuple(
        Finding(
            code="kept-file",
            severity="warning",
            remedy="by-hand",
            message=f"{tree / each.path} stays: {each.reason}.",
            path=tree / each.path,
        )
        for each in removal.kept
    )
