"""What is installed, and on what -> combinations that are known to fail, and what avoids them.

A row of ``manifests/comfyui.yaml`` matches where all of it is there; what is not known matches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from provisioner.comfyui.release_models import ComfyRelease, ComfyTable, KnownBad
from provisioner.comfyui.releases import is_at_least
from provisioner.core.models import Finding, Gpu, Machine

_GB = 1000**3
_AS_SOLD = 1.1  # what is sold as 24 GB has 24 GiB, 25.8 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """What is installed, and on what.  None or nothing: not known."""

    machine: Machine
    app: Literal["comfyui", "diffusers"] = "comfyui"
    version: str | None = None  # of ComfyUI
    commit: str | None = None
    requirements: tuple[str, ...] = ()  # lines of ComfyUI's requirements.txt
    custom_nodes: tuple[str, ...] = ()  # folders
    python: str | None = None  # of the environment, "3.12.3"
    packages: Mapping[str, str] = field(default_factory=dict)  # versions by normalized name: {"av": "16.1.0"}


def known_bad(
    combination: Combination, table: ComfyTable, *, where: Path, options: Collection[str] = ()
) -> tuple[Finding, ...]:
    """Return a warning for each row that the combination matches.

    Parameters
    ----------
    combination : Combination
        What is installed, and on what.
    table : ComfyTable
        Contains the rows.
    where : Path
        ComfyUI's folder, or the environment.
    options : collection of str
        The options that klein-setup itself starts this ComfyUI with.
    """
    return tuple(
        Finding(
            code="comfyui-known-bad",
            severity="warning",
            message=f"{_subject(row, combination)} is known to fail on machines like this: {reason(row)}.",
            remedy="by-hand",
            path=where,
            hint=_hint(row, options),
        )
        for row in matching(combination, table)
    )


def matching(combination: Combination, table: ComfyTable) -> tuple[KnownBad, ...]:
    """Return the rows that a combination matches."""
    return tuple(
        row for row in table.known_bad if _matches(row, combination, table) and _has_packages(row, combination)
    )


def reason(row: KnownBad) -> str:
    """Return what fails, with its thread: a clause."""
    return f"{row.symptom} ({row.threads[0]})"


def options_that_avoid(combination: Combination, table: ComfyTable, given: Collection[str] = ()) -> dict[str, KnownBad]:
    """Return the options with which ComfyUI works here, each with the row it avoids.

    What the user gives wins: the same option, its opposite, or another of the options that name an attention, of which
    ComfyUI takes only one.  With ``--cpu`` no GPU is used.
    """
    found: dict[str, KnownBad] = {}
    if "--cpu" in given:
        return found
    for row in matching(combination, table):
        if row.option is not None and not any(_is_settled(row.option, each) for each in given):
            found.setdefault(row.option, row)
    return found


def requirements_that_avoid(combination: Combination, table: ComfyTable) -> dict[str, KnownBad]:
    """Return the requirements with which pip takes versions that work here, each with the row it avoids.

    The versions that are installed do not matter.  Left out is a requirement for a package that ComfyUI does not
    require, or requires in exactly another version, which pip could not bring together.
    """
    found: dict[str, KnownBad] = {}
    for row in table.known_bad:
        if row.requirement is not None and _matches(row, combination, table):
            needed = Requirement(row.requirement)
            asked = [each for each in _parsed(combination.requirements) if canonicalize_name(each.name) == needed.name]
            exact = [part.version for each in asked for part in each.specifier if part.operator == "=="]
            if asked and all(needed.specifier.contains(each, prereleases=True) for each in exact):
                found.setdefault(row.requirement, row)
    return found


def release_that_works(
    machine: Machine, table: ComfyTable, *, needs_tree: bool = False
) -> tuple[ComfyRelease, KnownBad | None]:
    """Return the release to install here, and the row because of which it is not the pinned one.

    The pinned one, unless it is known to fail on this machine and neither an option nor a requirement avoids that: then
    the newest other one that is not known to fail and not older than advised; the pinned one where there is none.

    Parameters
    ----------
    machine : Machine
        Where it will run.
    table : ComfyTable
        Contains the releases.
    needs_tree : bool
        Without git only a release whose tree is known can be verified.
    """
    bad = _unavoidable(table.pinned, machine, table)
    if bad is None:
        return table.pinned, None
    for release in table.releases:
        is_usable = bool(is_at_least(release.version, table.advised.version)) and (release.tree or not needs_tree)
        if is_usable and _unavoidable(release, machine, table) is None:
            return release, bad
    return table.pinned, None


def works_here(release: ComfyRelease, machine: Machine, table: ComfyTable) -> bool:
    """Whether no row says of a release that it fails on this machine whatever it is started with."""
    return _unavoidable(release, machine, table) is None


def _unavoidable(release: ComfyRelease, machine: Machine, table: ComfyTable) -> KnownBad | None:
    seen = Combination(machine=machine, version=release.version, commit=release.commit)
    return next((row for row in matching(seen, table) if row.option is None and row.requirement is None), None)


# --- matching ------------------------------------------------------------------------------------


def _matches(row: KnownBad, seen: Combination, table: ComfyTable) -> bool:
    """Whether everything but the packages is as the row says."""
    return (
        row.app == seen.app
        and _has_release(row, seen, table)
        and (row.python is None or _is_in(seen.python, row.python))
        and (row.driver is None or _is_in(seen.machine.driver_version, row.driver))
        and (not row.custom_nodes or not {each.lower() for each in seen.custom_nodes}.isdisjoint(_lower(row)))
        and _has_machine(row, seen)
    )


def _lower(row: KnownBad) -> Iterator[str]:
    return (each.lower() for each in row.custom_nodes)


def _has_release(row: KnownBad, seen: Combination, table: ComfyTable) -> bool:
    if row.since is None and row.before is None and not row.is_unreleased:
        return True
    version = seen.version
    if version is None or (row.since is not None and is_at_least(version, row.since) is not True):
        return False
    if row.before is not None and is_at_least(version, row.before) is not False:
        return False
    return not row.is_unreleased or (
        seen.commit is not None and seen.commit not in {each.commit for each in table.releases}
    )


def _has_packages(row: KnownBad, seen: Combination) -> bool:
    tag = _torch_tag(seen)
    if row.torch_tags and not tag.startswith(row.torch_tags):
        return False
    if not all(_is_met(Requirement(each), seen.packages) for each in row.packages):
        return False
    if row.outdated is None or row.outdated not in seen.packages:
        return row.outdated is None
    asked = [each for each in _parsed(seen.requirements) if canonicalize_name(each.name) == row.outdated]
    return any(not _is_met(each, seen.packages) for each in asked)


def _has_machine(row: KnownBad, seen: Combination) -> bool:
    machine = seen.machine
    if row.os not in (None, machine.os) or (row.is_wsl and not machine.is_wsl):
        return False
    memory, most = machine.memory_total_bytes, row.max_memory_gb
    if most is not None and (memory is None or memory > most * _AS_SOLD * _GB):
        return False
    meant = sum(_is_meant(row, gpu) for gpu in machine.gpus)
    is_about_a_gpu = any((row.vendor, row.sm, row.max_sm, row.architectures, row.max_vram_gb))
    return not is_about_a_gpu or (meant >= (row.min_gpus or 1) and _torch_tag(seen) != "cpu")


def _is_meant(row: KnownBad, gpu: Gpu) -> bool:
    sm = None if gpu.compute_capability is None else gpu.compute_capability[0] * 10 + gpu.compute_capability[1]
    memory, most = gpu.memory_total_bytes, row.max_vram_gb
    return (
        row.vendor in (None, gpu.vendor)
        and (not row.sm or sm in row.sm)
        and (row.max_sm is None or (sm is not None and sm <= row.max_sm))
        and (not row.architectures or (gpu.architecture or "").startswith(row.architectures))
        and (most is None or (memory is not None and memory <= most * _AS_SOLD * _GB))
    )


def _torch_tag(seen: Combination) -> str:
    return seen.packages.get("torch", "").partition("+")[2]


def _is_met(requirement: Requirement, packages: Mapping[str, str]) -> bool:
    version = packages.get(canonicalize_name(requirement.name))
    return version is not None and _is_in(version, str(requirement.specifier))


def _is_in(version: str | None, specifier: str) -> bool:
    try:
        return version is not None and SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _parsed(lines: Collection[str]) -> Iterator[Requirement]:
    for line in lines:
        try:
            yield Requirement(line)
        except InvalidRequirement:
            continue


def _is_settled(option: str, given: str) -> bool:
    """Whether an option of the user's decides what another one would.

    >>> _is_settled("--disable-dynamic-vram", "--enable-dynamic-vram")
    True
    >>> _is_settled("--use-quad-cross-attention", "--use-sage-attention"), _is_settled("--disable-x", "--fast")
    (True, False)
    """
    opposite = re.sub(r"^--disable-", "--enable-", option)
    return given in {option, opposite} or all(re.fullmatch(r"--use-.*-attention", each) for each in (option, given))


# --- words ---------------------------------------------------------------------------------------


def _subject(row: KnownBad, seen: Combination) -> str:
    """Return what of the combination the row is about: "ComfyUI 0.35.1 with comfy-aimdo 0.6.0"."""
    parts = [f"ComfyUI {seen.version}"] if row.since or row.before else []
    names = [Requirement(each).name for each in row.packages] + [row.outdated] * (row.outdated is not None)
    names += ["torch"] * (bool(row.torch_tags) and "torch" not in names)
    parts += [f"{name} {seen.packages[name]}" for name in names if name is not None]
    parts += [f"Python {seen.python}"] * (row.python is not None)
    parts += [f"the driver {seen.machine.driver_version}"] * (row.driver is not None)
    return " with ".join(parts[:1] + [", ".join(parts[1:])] * (len(parts) > 1))


def _hint(row: KnownBad, options: Collection[str]) -> str:
    told = [] if row.good is None else [f"Known to work: {row.good}."]
    if row.option is not None and row.option in options:
        told.append(f"klein-setup starts this ComfyUI with {row.option}; give it that yourself where you start it.")
    elif row.option is not None:
        told.append(f"Start ComfyUI with {row.option}.")
    if row.requirement is not None:
        told.append(f"Install `{row.requirement}` into its environment.")
    return " ".join(told)
