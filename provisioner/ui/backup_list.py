"""The list of backups: how large, from where, when and why.

Values in, blocks of text out; no width, no colour code, no stream.
"""

from __future__ import annotations

from collections.abc import Sequence

from provisioner.core.models import BackupEntry
from provisioner.core.units import count, human_bytes
from provisioner.ui.text import BLANK, Block, Column, Grid, Para, Row, Span, span

_COLUMNS = (Column(), Column(is_path=True), Column(align="right"))


def backup_blocks(entries: Sequence[BackupEntry]) -> list[Block]:
    """Return a row for each backup, with its name for ``restore`` and the reason, and the sum."""
    if not entries:
        return [Para(line=span("There are no backups."))]
    rows = tuple(_row(entry) for entry in entries)
    total = human_bytes(sum(entry.size for entry in entries))
    return [
        Para(line=(Span("Backups", "title"),)),
        BLANK,
        Grid(columns=_COLUMNS, rows=rows),
        BLANK,
        Para(line=span(f"{count(len(entries), 'backup')}, {total}.")),
        Para(line=span("Put one back with `klein-setup backups restore NAME`.")),
        Para(line=span("Delete them for good with `klein-setup backups clear`.")),
    ]


def _row(entry: BackupEntry) -> Row:
    when = entry.time.replace("T", " ").removesuffix("Z")[:16] or "unknown time"
    notes = [span(f"name: {entry.id}", "dim"), span(entry.reason, "dim")]
    if entry.is_blocks:
        notes.append(span("only the bytes that a repair replaced; restore rebuilds the old file from them", "dim"))
    return Row((Span(when), Span(entry.was or entry.path.name), Span(human_bytes(entry.size))), tuple(notes))
