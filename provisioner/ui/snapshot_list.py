"""Snapshots: a row for each, and everything that one of them says.

Values in, blocks of text out; no width, no colour code, no stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from provisioner.core.units import count, human_bytes
from provisioner.snapshot.setup_snapshot import OnShelf, SetupSnapshot
from provisioner.ui.text import BLANK, Block, Column, Grid, Para, Row, Span, span

_COLUMNS = (Column(), Column(), Column(is_path=True))
_PAIRS = (Column(), Column(is_path=True))


def snapshot_list_blocks(shelf: Sequence[OnShelf]) -> list[Block]:
    """Return a row for each snapshot, the newest last."""
    if not shelf:
        return [Para(line=span("There are no snapshots; the next test image that is right makes one."))]
    return [
        Para(line=(Span("Snapshots", "title"),)),
        BLANK,
        Grid(columns=_COLUMNS, rows=tuple(_row(each) for each in shelf)),
        BLANK,
        Para(line=span(f"{count(len(shelf), 'snapshot')}, {human_bytes(sum(each.size for each in shelf))}.")),
        Para(line=span("Bring one back with `klein-setup snapshot restore NAME`.")),
    ]


def _row(each: OnShelf) -> Row:
    snapshot = each.snapshot
    if snapshot is None:
        return Row((Span(each.name), Span("damaged", "bad"), Span("")), (span(each.problem or "", "dim"),))
    state = Span("verified", "good") if snapshot.is_proven else Span("not verified", "dim")
    return Row((Span(each.name), state, Span(snapshot.target)), (span(f"{snapshot.reason}; {_what(snapshot)}", "dim"),))


def _what(snapshot: SetupSnapshot) -> str:
    parts = [f"set {snapshot.set_id}"]
    if snapshot.comfyui is not None:
        parts.append(f"ComfyUI {snapshot.comfyui.version or (snapshot.comfyui.commit or 'unknown')[:12]}")
    if snapshot.environment is not None:
        parts.append(f"torch {snapshot.environment.set.torch} ({snapshot.environment.torch_backend})")
    return ", ".join(parts)


def snapshot_blocks(snapshot: SetupSnapshot, image: Path | None) -> list[Block]:
    """Return what a snapshot says."""
    rows = tuple(Row((Span(name, "dim"), Span(text))) for name, text in _pairs(snapshot, image))
    blocks: list[Block] = [
        Para(line=(Span(f"Snapshot {snapshot.name}", "title"),)),
        BLANK,
        Grid(columns=_PAIRS, rows=rows),
    ]
    if snapshot.node_packs:
        packs = tuple(
            Row((Span(each.name), Span(each.commit or each.version or "without git"))) for each in snapshot.node_packs
        )
        blocks += [BLANK, Para(line=(Span("Custom nodes", "title"),)), BLANK, Grid(columns=_PAIRS, rows=packs)]
    if snapshot.files:
        files = tuple(Row((Span(each.label), Span(each.sha256))) for each in snapshot.files)
        blocks += [BLANK, Para(line=(Span("Files", "title"),)), BLANK, Grid(columns=_PAIRS, rows=files)]
    return blocks


def _pairs(snapshot: SetupSnapshot, image: Path | None) -> Iterator[tuple[str, str]]:
    yield "taken", f"{snapshot.taken_at}, {snapshot.reason}"
    yield "folder", snapshot.target
    yield "manifest", f"{snapshot.manifest_argument}, set {snapshot.set_id}"
    if snapshot.comfyui is not None:
        changed = ", with local changes" if snapshot.comfyui.has_local_changes else ""
        branch = f" on {snapshot.comfyui.branch}" if snapshot.comfyui.branch else ""
        commit = snapshot.comfyui.commit or "an unknown commit"
        yield "ComfyUI", f"{snapshot.comfyui.version or ''} {commit}{branch}{changed}".strip()
    if snapshot.environment is not None:
        kept = snapshot.environment
        listed = 0 if kept.packages is None else len(kept.packages.packages)
        yield "environment", f"{kept.path}, Python {kept.python_version}, {kept.set.torch} ({kept.torch_backend})"
        yield "packages", f"{listed} by the SHA-256 of their files, {len(kept.others)} that somebody else installed"
    if image is not None:
        yield "image", str(image)
