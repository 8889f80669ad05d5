"""What an application needs beside the torch set: requirement lines, and what is wrong with what is installed.

It refuses to name torch or anything that would choose a torch of its own; the set is held by constraints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from provisioner.core.models import Finding
from provisioner.torch.builds import App


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One distribution an application needs."""

    name: str  # normalized
    bounds: str  # "" for any
    tested: str  # the version it was seen to work with
    why: str  # what fails without it, or with another


DIFFUSERS: tuple[Package, ...] = (
    # The lower bounds were run together (diffusers 0.37.0, transformers 5.0.0), and so were the tested versions; a
    # diffusers 0.43 was not.
    Package(
        name="diffusers",
        bounds=">=0.37.0,<0.43",
        tested="0.42.1",
        why="0.37.0 is the first release with Flux2KleinPipeline",
    ),
    # The pipeline imports Qwen3ForCausalLM and Qwen2TokenizerFast; the repository's tokenizer is a `tokenizer.json`, so
    # that neither sentencepiece nor protobuf nor tiktoken is needed (seen without them).
    Package(name="transformers", bounds=">=5.0,<6", tested="5.23.0", why="it holds the text encoder, Qwen3"),
    Package(name="accelerate", bounds=">=1.15,<2", tested="1.15.0", why="parts of the pipeline wait in RAM by it"),
    Package(name="safetensors", bounds="", tested="0.8.0", why="the weights are in this format"),
    Package(name="pillow", bounds="", tested="13.0.0", why="the image is one of its objects"),
)
"""What ``Flux2KleinPipeline`` needs beside torch; seen working together on 2026-11-23 with torch 2.13.0."""

FIRST_PYTHON_OF_TESTED = "3.11"
"""diffusers 0.42.1 and transformers 5.23.0 ask for Python 3.11 or newer (their Requires-Python)."""

APPROXIMATE_BYTES = 79_000_000
"""Bytes to fetch for these, torchvision and what all of them need, the wheel of torch left out (pip on Linux, x86-64,
Python 3.11, 2026-11-23: 271 MB altogether, 192 MB of it the CPU build of torch 2.13.0)."""


def packages_of(app: App) -> tuple[Package, ...]:
    """Return what an application needs beside torch; ComfyUI brings a requirements file of its own."""
    return DIFFUSERS if app == "diffusers" else ()


def requirement_lines(app: App, *, is_exact: bool = False) -> tuple[str, ...]:
    """Return the requirements as pip takes them.

    Parameters
    ----------
    app : App
        Whose.
    is_exact : bool
        Exactly the versions that were tested, instead of the range.

    Examples
    --------
    >>> requirement_lines("diffusers")[0]
    'diffusers>=0.37.0,<0.43'
    >>> requirement_lines("diffusers", is_exact=True)[0]
    'diffusers==0.42.1'
    >>> requirement_lines("comfyui")
    ()
    """
    return tuple(
        f"{each.name}=={each.tested}" if is_exact else f"{each.name}{each.bounds}" for each in packages_of(app)
    )


def findings_about(app: App, installed: Mapping[str, str]) -> tuple[Finding, ...]:
    """Say what an environment lacks for an application; none means that its packages fit.

    Parameters
    ----------
    app : App
        Whose environment it is.
    installed : mapping
        Normalized names and versions of everything that is installed.
    """
    return tuple(_complaints(packages_of(app), installed))


def _complaints(packages: Iterable[Package], installed: Mapping[str, str]) -> Iterable[Finding]:
    hint = "Install what is needed: `klein-setup install --only environment`."
    for each in packages:
        version = installed.get(each.name)
        if version is None:
            message = f"{each.name} is not installed; {each.why}."
            yield Finding(
                code="package-missing", severity="problem", message=message, remedy="install-environment", hint=hint
            )
        elif not _fits(version, each.bounds):
            message = f"{each.name} {version} is installed, and {each.name}{each.bounds} is needed; {each.why}."
            yield Finding(
                code="package-version", severity="problem", message=message, remedy="install-environment", hint=hint
            )


def _fits(version: str, bounds: str) -> bool:
    try:
        return SpecifierSet(bounds).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False
