"""Makes a run of the program small and quick."""

from __future__ import annotations


def make_small() -> None:
    """Change four numbers of the program; called before anything else of it is imported.

    Files have blocks of 64 KiB in place of 16 MiB, so that one of some hundred kilobytes has as many as a model; pauses
    between attempts are a fiftieth; the room that stays free is 64 KiB in place of 32 MiB.  Nothing else is changed;
    the tests of ``tests/integration/`` kill and cut the program with its own numbers.
    """
    from provisioner.core import models, retries

    models.BLOCK_SIZE = 64 * 1024
    defaults = retries.Retries.__init__.__kwdefaults__
    if defaults is not None:
        defaults.update(first_pause_s=0.01, longest_pause_s=0.16)
    retries.FEW_RETRIES = retries.Retries(attempts=3)
    from provisioner.files import planner  # whoever imports the size of a block finds the small one

    planner.SPACE_MARGIN = 64 * 1024
