"""What an application requires of an environment beside torch, and how its packages differ from what was installed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.environment.app_packages import requirement_lines
from provisioner.environment.package_list import PackageChange, PackageList, findings_of, requirements_digest
from provisioner.environment.requirements import unmet
from provisioner.environment.state import FAMILY, Observation

if TYPE_CHECKING:
    from provisioner.commands.run import Run
    from provisioner.commands.session import Session
    from provisioner.core.models import Finding
    from provisioner.torch.builds import App


def app_of(run: Run) -> App:
    """Return which program uses the files."""
    return "comfyui" if run.wanted.target == "comfyui" else "diffusers"


def needed_packages(
    app: App, tree: Path | None, seen: Observation, *, is_new: bool = False, more: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return the requirement lines of an application that an environment does not meet.

    Parameters
    ----------
    app : App
        Whose requirements.
    tree : Path or None
        ComfyUI, whose own list is read.
    seen : Observation
        What is installed.
    is_new : bool
        The environment will be made: nothing but the torch set is in it then.
    more : tuple of str
        Further requirements, which keep versions away that are known to fail.
    """
    installed = {} if is_new else {each.name: each.version for each in seen.distributions}
    present = FAMILY if is_new else [name for name in FAMILY if name in installed]
    lines = (*all_requirements(app, tree, present), *more)
    version = seen.python.version if seen.python is not None and not is_new else None
    return lines if version is None else unmet(lines, installed, python_version=version)


def all_requirements(app: App, tree: Path | None, present: Collection[str] = FAMILY) -> tuple[str, ...]:
    """Return the requirement lines of an application, met or not; of the torch set those about what is `present`."""
    if app != "comfyui" or tree is None:
        return requirement_lines(app)
    from provisioner.comfyui.checkout.checkouts import requirements_of
    from provisioner.comfyui.install_plan import requirements_to_install

    return requirements_to_install(requirements_of(tree), family=FAMILY, present=present)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedPackages:
    """An environment's packages beside the list of what was installed."""

    packages: PackageList | None = None  # None: no run of this user has listed them, so nothing is compared
    changes: tuple[PackageChange, ...] = ()
    findings: tuple[Finding, ...] = ()  # without those about versions of the torch set, which `drift` gives
    torch_findings: tuple[Finding, ...] = ()  # those of them that putting the torch set back fixes
    is_outdated: bool = False  # the application has other requirements than those the list was made for

    def is_excused(self, change: PackageChange) -> bool:
        """Whether a change is what other requirements may have brought about."""
        return self.is_outdated and change.what != "damaged"


def compare_packages(
    session: Session,
    seen: Observation,
    app: App,
    tree: Path | None,
    *,
    reads_files: bool,
    more: tuple[str, ...] = (),
    packages: PackageList | None = None,
) -> ComparedPackages:
    """Compare an environment of ours with the list that this user's runs keep of it.

    Parameters
    ----------
    session : Session
        The run.
    seen : Observation
        What is in the environment.
    app : App
        Whose requirements were resolved.
    tree : Path or None
        ComfyUI.
    reads_files : bool
        Read every file; else only versions and RECORDs are compared.
    more : tuple of str
        As for `needed_packages`.
    packages : PackageList, optional
        Another list, of a snapshot, to compare with.
    """
    if seen.receipt is None or seen.python is None:
        return ComparedPackages()
    reading = session.stages.stage("reading", "the environment's packages", "read") if reads_files else nullcontext()
    with reading:
        compared = session.environments.compare(seen.where, seen, reads_files=reads_files, packages=packages)
    if compared is None:
        return ComparedPackages()
    listed, changes, list_file = compared
    asked = requirements_digest((*all_requirements(app, tree), *more))
    is_outdated = packages is None and listed.requirements_sha256 not in (None, asked)

    def told(some: Iterable[PackageChange]) -> tuple[Finding, ...]:
        return findings_of(
            some, seen.where, list_file=list_file, is_outdated=is_outdated, distributions=seen.distributions
        )

    return ComparedPackages(
        packages=listed,
        changes=changes,
        findings=told(changes),
        torch_findings=told(each for each in changes if each.origin == "torch"),
        is_outdated=is_outdated,
    )
