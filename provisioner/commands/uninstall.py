"""Undoing what runs of ours did: files, environment and ComfyUI go as far as receipts say that they are ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.environment_part import EnvironmentWish, folder_of
from provisioner.commands.files_part import Ask, Job, need_yes
from provisioner.core.errors import EXIT_OK, UsageError
from provisioner.core.models import ComfyTarget, Finding, Report
from provisioner.core.records import dataclass
from provisioner.core.units import human_bytes

if TYPE_CHECKING:
    from provisioner.files.store.removal import Owned

PARTS = frozenset({"files", "environment", "comfyui"})
_WHY_KEPT = {
    "adopted": "it was there before klein-setup",
    "changed": "it changed after klein-setup proved it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UninstallWish:
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
            hint="There are three: files, environment, comfyui.",
        )
    return parts


def run_uninstall(job: Job, wish: UninstallWish, *, ask: Ask, say: Callable[[str], None]) -> Report:
    """Show what would go and what stays, ask once, and remove it.

    Raises
    ------
    AnswerNeededError
        Nobody agreed.
    StorageError
        The system refused to remove something; what was removed before is gone, the receipts are right.
    """
    files = _owned(job) if "files" in wish.parts else ()
    going = [each for each in files if each.state in {"ours", "missing"}]
    environment = _environment_of_ours(job, wish) if "environment" in wish.parts else None
    tree = _tree_of_ours(job) if "comfyui" in wish.parts else None
    kept = tuple(_kept(each) for each in files if each.state in _WHY_KEPT)
    for line in _lines(going, environment, tree):
        say(line)
    if not going and environment is None and tree is None:
        say("Nothing here was put there by klein-setup.")
        return job.report("uninstall", "ok", EXIT_OK, findings=kept)
    if wish.is_dry_run:
        return job.report("uninstall", "planned", EXIT_OK, findings=kept)
    if not job.wish.assume_yes:
        need_yes(ask, "Remove these?", hint="`klein-setup uninstall --dry-run` only shows them.")
    left = (*_remove_files(files), *_remove_programs(job, environment, tree, say))
    return job.report("uninstall", "ok", EXIT_OK, findings=(*kept, *left))


def _owned(job: Job) -> tuple[Owned, ...]:
    from provisioner.files.store.removal import owned_files

    return tuple(each for root in _roots(job) for each in owned_files(root))


def _roots(job: Job) -> tuple[Path, ...]:
    if isinstance(job.target, ComfyTarget):
        written = [folder.write_root for folder in job.target.folders]
        return tuple(dict.fromkeys((job.target.models, *written)))
    return tuple(sorted(folder for folder in job.target.cache.glob("models--*") if folder.is_dir()))


def _lines(going: list[Owned], environment: Path | None, tree: Path | None) -> list[str]:
    lines = [f"remove  {each.path}  ({human_bytes(each.size)})" for each in going if each.state == "ours"]
    if environment is not None:
        lines.append(f"remove  {environment}  (the virtual environment klein-setup made, or what is left of making it)")
    if tree is not None:
        lines.append(f"remove  {tree}  (ComfyUI's own files, as klein-setup put them there; yours stay)")
    return lines


def _kept(owned: Owned) -> Finding:
    return Finding(
        code="kept-file",
        severity="warning",
        message=f"{owned.path} stays: {_WHY_KEPT[owned.state]}.",
        path=owned.path,
        hint="Delete it yourself if you do not want it.",
    )


def _environment_of_ours(job: Job, wish: UninstallWish) -> Path | None:
    from provisioner.disk.locations import data_folder

    where = folder_of(job.target, EnvironmentWish(where=wish.environment), data_folder)
    seen = job.bench.environments.observe(where)
    return where if seen.receipt is not None or seen.interrupted is not None else None


def _tree_of_ours(job: Job) -> Path | None:
    if not isinstance(job.target, ComfyTarget) or job.target.models.name != "models":
        return None
    seen = job.bench.checkouts.describe(job.target.models.parent)
    return seen.tree if seen.receipt is not None else None


def _remove_files(files: tuple[Owned, ...]) -> tuple[Finding, ...]:
    from provisioner.files.store.receipts import drop_claims
    from provisioner.files.store.removal import forget_root, remove_file

    for each in files:
        if each.state in {"ours", "missing"}:
            remove_file(each)
        else:  # it stays and is nobody's but the user's from now on
            drop_claims(each.root, [each.relative])
    left = []
    for root in dict.fromkeys(each.root for each in files):
        stays = forget_root(root)
        if stays:
            left.append(
                Finding(
                    code="kept-aside",
                    severity="warning",
                    message=f"{stays[0].parent} stays: it holds files of yours that repairs set aside.",
                    path=stays[0].parent,
                    hint="`klein-setup aside list` shows them; `aside restore` puts one back.",
                )
            )
    return tuple(left)


def _remove_programs(
    job: Job, environment: Path | None, tree: Path | None, say: Callable[[str], None]
) -> tuple[Finding, ...]:
    if environment is not None:
        job.bench.environments.clear_leftovers(environment, progress=job.bench.notice)
        if job.bench.environments.observe(environment).receipt is not None:
            job.bench.environments.remove(environment)
    if tree is None:
        return ()
    removal = job.bench.checkouts.remove(tree)
    say(f"Removed {removal.removed_files} files of ComfyUI, {human_bytes(removal.removed_bytes)}.")
    return tuple(
        Finding(
            code="kept-file",
            severity="warning",
            message=f"{tree / each.path} stays: {each.reason}.",
            path=tree / each.path,
        )
        for each in removal.kept
    )
