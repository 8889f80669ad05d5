"""What a person and a script see: the only part of the program that prints or asks.

Importing it pulls in neither rich nor tqdm: tables are laid out here, and bars, which need one of
the two, are drawn only while something moves on a terminal.
"""

from __future__ import annotations

from provisioner.ui.console import Mode, Ui

__all__ = ["Mode", "Ui"]
