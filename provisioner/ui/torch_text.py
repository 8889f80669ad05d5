"""The text of the chosen torch build: the build, the reasons, the runner-up, the warnings.

Values in, blocks of text out; no width, no colour code, no stream.
"""

from __future__ import annotations

from provisioner.core.units import count, listing
from provisioner.torch.builds import TorchBuild, TorchChoice, TorchSet, TorchWarning
from provisioner.ui.text import BLANK, Block, Para, Row, Span, pair, pair_blocks, span


def torch_blocks(choice: TorchChoice) -> list[Block]:
    """Return the chosen build with its versions and address, the reasons, the runner-up and the warnings."""
    rows = [pair("build", choice.build.torch_backend), *_set_rows(choice.build)]
    rows.append(pair("index", choice.build.index_url or "the installer's own default index"))
    if choice.build.sm or choice.build.ptx:
        rows.append(pair("code for", _code_words(choice.build)))
    if choice.build.gfx:
        rows.append(pair("code for", ", ".join(choice.build.gfx)))
    if choice.build.device_extras:
        rows.append(pair("with", f"the packages of {listing(choice.build.device_extras)}, which hold the code itself"))
    rows.append(pair("because", "\n".join(choice.reasons)))
    if choice.runner_up:
        rows.append(pair("runner-up", choice.runner_up))
    if choice.uncovered:
        rows.append(pair("not served", listing(choice.uncovered), "warn"))
    blocks: list[Block] = [Para(line=span("Torch", "title")), *pair_blocks(rows)]
    for warning in choice.warnings:
        blocks += _warning_blocks(warning)
    return blocks


def _set_rows(build: TorchBuild) -> list[Row]:
    """Return the newest set, and how far back other sets work too."""
    if not build.sets:
        return []
    newest, *older = build.sets
    rows = [pair("packages", _set_words(newest))]
    if older:
        back = f"back to torch {older[-1].torch}" if len(older) > 1 else f"torch {older[0].torch}"
        rows.append(pair("or", f"{count(len(older), 'older set')}, {back}, where the index has no newer one"))
    return rows


def _set_words(chosen: TorchSet) -> str:
    audio = f", torchaudio {chosen.torchaudio}" if chosen.torchaudio else ""
    return f"torch {chosen.torch}, torchvision {chosen.torchvision}{audio}"


def _code_words(build: TorchBuild) -> str:
    """Return the compute capabilities there is code for, virtual code marked."""
    written = [f"{sm // 10}.{sm % 10}" for sm in build.sm]
    virtual = [f"{sm // 10}.{sm % 10} and newer, compiled by the driver" for sm in build.ptx]
    return f"compute capability {', '.join([*written, *virtual])}"


def _warning_blocks(warning: TorchWarning) -> list[Block]:
    blocks: list[Block] = [
        BLANK,
        Para(line=(Span("warning", "warn"), Span(f"  {warning.message}")), indent=2, hang=9),
    ]
    if warning.hint:
        blocks.append(Para(line=(Span("hint:", "title"), Span(f" {warning.hint}")), indent=11, hang=2))
    return blocks
