"""``klein-setup detect``: this machine, and the torch build that suits it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.session import Session
from provisioner.core.errors import EXIT_OK, KleinError, UnsupportedMachineError, UsageError
from provisioner.core.models import Machine
from provisioner.report.outcome import Report

if TYPE_CHECKING:
    from provisioner.torch.builds import App, TorchChoice
    from provisioner.torch.choose import TorchOptions


def run_detect(
    session: Session,
    paths: tuple[Path, ...],
    options: TorchOptions,
    app: App,
    show: Callable[[Machine, TorchChoice | None], None],
) -> Report:
    """Show the machine and the torch build that suits it; a machine that no build suits is an error, and shown too."""
    report = detected(session, paths, options, app)
    if report.machine is not None:
        show(report.machine, report.torch)
    return report


def detected(session: Session, paths: tuple[Path, ...], options: TorchOptions, app: App) -> Report:
    """Return the machine and the torch build that suits it; where none does, the report has an error."""
    from provisioner.torch.choose import choose_torch

    machine = session.detect_machine(paths)
    choice: TorchChoice | None = None
    errors: tuple[KleinError, ...] = ()
    try:
        choice = None if options.tag == "none" else choose_torch(machine, options, app=app)
    except (UnsupportedMachineError, UsageError) as error:
        errors = (error,)
    return Report(
        command="detect",
        status="failed" if errors else "ok",
        exit_status=errors[0].exit_status if errors else EXIT_OK,
        machine=machine,
        errors=errors,
        torch=choice,
    )
