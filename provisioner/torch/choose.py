"""Choose torch from the command line's options, with the shipped table and `select_torch_build`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from provisioner.core.models import Machine
from provisioner.torch.builds import App, TorchChoice

if TYPE_CHECKING:
    from provisioner.torch.build_table import TorchTable


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchOptions:
    """The command line's options about torch."""

    tag: str = "auto"  # or a build's tag
    python_version: str | None = None
    index_base: str | None = None
    force: bool = False


@lru_cache(maxsize=1)
def shipped_table() -> TorchTable:
    """Return the table of builds that comes with the program; it is read only once."""
    from provisioner.manifest.shipped import read_table_text
    from provisioner.torch.build_table import parse_torch_table

    text, file = read_table_text("torch")
    return parse_torch_table(text, file=file)


def choose_torch(
    machine: Machine, options: TorchOptions, *, app: App, python_version: str | None = None
) -> TorchChoice:
    """Return the torch build for a machine and why.

    Raises
    ------
    UnsupportedMachineError, UsageError
        As `select_torch_build`.
    """
    from provisioner.torch.select import select_torch_build

    return select_torch_build(
        machine,
        shipped_table(),
        app=app,
        python_version=python_version or options.python_version,
        forced=None if options.tag == "auto" else options.tag,
        index_base=options.index_base,
        force=options.force,
    )
