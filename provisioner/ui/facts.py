"""The text of a machine and of a manifest, complete.

Values in, blocks of text out; no width, no colour code, no stream.
"""

from __future__ import annotations

from collections.abc import Sequence

from provisioner.core.models import (
    ROLE_WORDS,
    Artifact,
    ArtifactSet,
    Config,
    CustomNode,
    Gpu,
    HubFile,
    Licence,
    Machine,
    Manifest,
    OciFile,
    Provenance,
    Source,
)
from provisioner.core.units import count, exact_bytes, gib, human_bytes, listing
from provisioner.ui.text import BLANK, Block, Column, Grid, Para, Row, Span, pair, pair_blocks, span

# --- the machine -------------------------------------------------------------------------------


def machine_blocks(machine: Machine) -> list[Block]:
    """Return what was detected, and what could not be detected with the reason."""
    rows = [pair("system", _system_words(machine)), pair("Python", machine.python_version)]
    rows.append(pair("memory", _memory_words(machine)))
    rows += [row for gpu in machine.gpus for row in _gpu_rows(gpu)]
    if not machine.gpus:
        rows.append(pair("GPU", "none found", "warn"))
    if machine.driver_version:
        rows.append(pair("driver", _driver_words(machine)))
    rows += [
        pair("disk", f"{human_bytes(each.free_bytes)} free of {human_bytes(each.total_bytes)} on {each.path}")
        for each in machine.file_systems
    ]
    rows += [pair("unknown", f"{probe.source}: {probe.detail}", "warn") for probe in machine.probes if not probe.is_ok]
    if machine.recorded_from:
        rows.append(pair("recorded", f"read from {machine.recorded_from}, not from this computer", "warn"))
    return [Para(line=span("Machine", "title")), *pair_blocks(rows)]


def config_blocks(config: Config) -> list[Block]:
    """Return the user's own defaults for options, each as the file has it."""
    rows = [pair("file", f"{config.file}{'' if config.settings else ' (sets nothing)'}")]
    for key, value in config.settings.items():
        rows.append(pair(key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return [Para(line=span("Defaults of options", "title")), *pair_blocks(rows)]


def _system_words(machine: Machine) -> str:
    names = {"linux": "Linux", "windows": "Windows", "macos": "macOS", "other": "unknown system"}
    parts = [f"{names[machine.os]} {machine.os_release}", machine.architecture]
    parts += [machine.libc] if machine.libc else []
    return ", ".join(parts) + (" (under WSL)" if machine.is_wsl else "")


def _memory_words(machine: Machine) -> str:
    if machine.memory_total_bytes is None:
        return "unknown"
    parts = [gib(machine.memory_total_bytes)]
    if machine.memory_available_bytes is not None:
        parts.append(f"{gib(machine.memory_available_bytes)} available")
    if machine.memory_physical_bytes is not None:
        parts.append(f"the limit of this container (the computer has {gib(machine.memory_physical_bytes)})")
    if machine.swap_total_bytes is not None:
        name = "page file" if machine.os == "windows" else "swap"
        parts.append(f"{name} {gib(machine.swap_total_bytes)}" if machine.swap_total_bytes else f"no {name}")
    return ", ".join(parts)


def _gpu_rows(gpu: Gpu) -> list[Row]:
    """Return a GPU with its UUID, and the MIG devices carved out of it: what ``smoke-test --gpu`` takes."""
    rows = [pair(f"GPU {gpu.index}", _gpu_words(gpu))]
    rows += [pair("", gpu.uuid, "dim")] if gpu.uuid else []
    sizes = gpu.mig_memory_bytes or (None,) * len(gpu.mig_devices)
    for number, (uuid, size) in enumerate(zip(gpu.mig_devices, sizes, strict=False)):
        rows.append(pair(f"GPU {gpu.index}:{number}", f"{gib(size)}, {uuid}" if size is not None else uuid))
    return rows


def _gpu_words(gpu: Gpu) -> str:
    """Return a GPU's name and what the choice depends on; what is unknown is left out, never shown as zero."""
    parts = [gpu.name]
    if gpu.memory_total_bytes is not None:
        parts.append(gib(gpu.memory_total_bytes))
    if gpu.memory_free_bytes is not None:
        parts.append(f"{gib(gpu.memory_free_bytes)} free")
    if gpu.compute_capability is not None:
        parts.append("compute capability {}.{}".format(*gpu.compute_capability))
    if gpu.architecture:
        parts.append(gpu.architecture)
    if gpu.is_display_attached:
        parts.append("drives a display")
    if gpu.is_mig_enabled:
        parts.append(f"MIG on, {count(len(gpu.mig_devices), 'device')}")
    if gpu.driver_model:
        parts.append(gpu.driver_model)
    return ", ".join(parts)


def _driver_words(machine: Machine) -> str:
    newest = "{}.{}".format(*machine.cuda_driver_version) if machine.cuda_driver_version else None
    return f"{machine.driver_version}" + (f", supports CUDA up to {newest}" if newest else "")


# --- manifests ---------------------------------------------------------------------------------


def licence_notice_blocks(licence: Licence) -> list[Block]:
    """Return the licence notice, shown before anything is fetched; highlighted if commercial use is not allowed."""
    commercial = licence.commercial_use_words
    if commercial is None:
        return [BLANK, Para(line=span(licence.notice), indent=2)] if licence.notice else []
    words = f"{commercial.rstrip('.')} ({licence.url}); --accept-licence {licence.id} accepts it."
    body = f"{words}\n{licence.notice}" if licence.notice else words
    return [BLANK, Para(line=(Span("licence", "warn"), Span(f"  {body}")), indent=2, hang=9)]


def manifests_blocks(manifests: Sequence[Manifest]) -> list[Block]:
    """Return the manifests there are, each with its sets and their sizes."""
    blocks: list[Block] = []
    for manifest in manifests:
        allowed = manifest.licence.is_commercial_use_allowed
        conditional = ", commercial use under a condition"
        commercial = "" if allowed else conditional if allowed is None else ", no commercial use"
        blocks.append(
            Para(
                line=(Span(manifest.id, "title"), Span(f"  {manifest.title}; {manifest.licence.name}{commercial}")),
                hang=2,
            )
        )
        blocks += [Grid(columns=_SET_COLUMNS, rows=tuple(_set_row(manifest, each) for each in manifest.sets)), BLANK]
    return blocks[:-1]


_SET_COLUMNS = (Column(), Column(align="right"), Column(align="right"), Column(is_optional=True))


def _set_row(manifest: Manifest, chosen: ArtifactSet) -> Row:
    is_default = chosen.id == manifest.default_set
    return Row(
        (
            Span(chosen.id, "command" if is_default else ""),
            Span(human_bytes(chosen.size)),
            Span(count(len(chosen.artifacts), "file"), "dim"),
            Span(f"{chosen.title}{' (default)' if is_default else ''}"),
        )
    )


def manifest_summary_blocks(manifest: Manifest, whole: str) -> list[Block]:
    """Return one manifest in one screen: its licence, a row for each set, and what machine each is chosen for.

    It ends with the command that shows the whole of it.
    """
    return [
        *_manifest_head(manifest),
        BLANK,
        *pair_blocks([pair(each.id, _summary_of(manifest, each)) for each in manifest.sets]),
        *custom_node_blocks(manifest.custom_nodes),
        BLANK,
        Para(line=span(f"Every file, with its digest and its sources: `{whole}`", "dim")),
    ]


def _summary_of(manifest: Manifest, chosen: ArtifactSet) -> str:
    default = " (default)" if chosen.id == manifest.default_set else ""
    return "; ".join([f"{human_bytes(chosen.size)}{default}, {chosen.title}", *_condition_words(chosen)])


def manifest_blocks(manifest: Manifest) -> list[Block]:
    """Return one manifest: licence, sets with their files, and where each digest comes from."""
    blocks = _manifest_head(manifest)
    blocks += pair_blocks([pair("sha256", f"{manifest.sha256} of the manifest itself")])
    for each in manifest.sets:
        blocks += _set_blocks(manifest, each)
    blocks += [BLANK, Para(line=span("Files", "title"))]
    for artifact in manifest.artifacts:
        blocks += _artifact_blocks(artifact)
    return blocks


def _manifest_head(manifest: Manifest) -> list[Block]:
    """Return a manifest's names and its licence."""
    licence = manifest.licence
    rows = [pair("licence", f"{licence.name}, {licence.url}")]
    title = Para(line=(Span(manifest.id, "title"), Span(f"  {manifest.title}")), hang=2)
    return [title, *pair_blocks(rows), *licence_notice_blocks(licence)]


def _set_blocks(manifest: Manifest, chosen: ArtifactSet) -> list[Block]:
    """Return a set: its title, conditions, envelope and files."""
    default = " (default)" if chosen.id == manifest.default_set else ""
    target = "ComfyUI" if chosen.target == "comfyui" else "diffusers, in an HF cache"
    head = Para(
        line=(Span("Set ", "title"), Span(chosen.id, "title"), Span(f"{default}  {chosen.title}; for {target}")), hang=2
    )
    rows = tuple(
        Row((Span(ROLE_WORDS[each.role], "dim"), Span(_wanted_path(each)), Span(human_bytes(each.size))))
        for each in chosen.artifacts
    )
    grid = Grid(columns=(Column(), Column(is_path=True), Column(align="right")), rows=rows)
    facts = [
        f"{exact_bytes(chosen.size)} ({human_bytes(chosen.size)})",
        *_condition_words(chosen),
        *_envelope_words(chosen),
    ]
    notes: list[Block] = [Para(line=span("; ".join(facts), "dim"), indent=2)]
    notes += [Para(line=span(chosen.note, "dim"), indent=2)] if chosen.note else []
    return [BLANK, head, *notes, grid]


def custom_node_blocks(packs: Sequence[CustomNode]) -> list[Block]:
    """Return the packs of custom nodes that a manifest pins, each with what proves it and where it comes from."""
    if not packs:
        return []
    head = Para(line=(Span("Custom nodes", "title"), Span("  third-party code, installed only if you agree to each")))
    rows = tuple(
        Row((Span(each.id), Span(each.version or ""), Span(each.pin, "dim"), Span(each.address))) for each in packs
    )
    return [BLANK, head, Grid(columns=(Column(), Column(), Column(), Column(is_path=True)), rows=rows)]


def _wanted_path(artifact: Artifact) -> str:
    return f"{artifact.folder}/{artifact.name}" if artifact.folder else artifact.name


def _condition_words(chosen: ArtifactSet) -> list[str]:
    """Return what ``--set auto`` requires of a machine."""
    asked = chosen.conditions
    words = [f"from {gib(asked.min_vram_bytes)} of VRAM"] if asked.min_vram_bytes is not None else []
    if asked.min_compute_capability is not None:
        words.append("from compute capability {}.{}".format(*asked.min_compute_capability))
    return words + ([f"on {listing(asked.platforms)}"] if asked.platforms else [])


def _envelope_words(chosen: ArtifactSet) -> list[str]:
    """Return the published figures with their source."""
    envelope = chosen.envelope
    words = [f"{gib(envelope.vram_bytes)} of VRAM at the peak"] if envelope.vram_bytes is not None else []
    words += [count(envelope.steps, "step")] if envelope.steps is not None else []
    words += [f"guidance {envelope.guidance}"] if envelope.guidance is not None else []
    return [f"{', '.join(words)}{f' ({envelope.source})' if envelope.source else ''}"] if words else []


def _artifact_blocks(artifact: Artifact) -> list[Block]:
    """Return one file: size, digest, sources and how reliable the digest is."""
    rows = [pair("size", exact_bytes(artifact.size)), pair("sha256", artifact.sha256)]
    rows += [pair("source", _source_words(source)) for source in artifact.sources]
    if artifact.provenance is not None:
        rows.append(pair("read from", _provenance_words(artifact.provenance)))
    if artifact.licence:
        rows.append(pair("licence", artifact.licence + (", gated" if artifact.is_gated else "")))
    rows += [
        pair("accepted", f"{human_bytes(each.size)}, sha256 {each.sha256}: {each.what}") for each in artifact.accept
    ]
    rows += [
        pair("refused", f"{human_bytes(each.size)}, sha256 {each.sha256}: {each.what}") for each in artifact.lookalikes
    ]
    if artifact.min_comfyui:
        rows.append(pair("ComfyUI", f"{artifact.min_comfyui} or newer"))
    if artifact.note:
        rows.append(pair("note", artifact.note))
    return [BLANK, Para(line=span(_wanted_path(artifact), "title"), indent=2), *pair_blocks(rows)]


def _source_words(source: Source) -> str:
    if isinstance(source, HubFile):
        return f"{source.repo_id} at {source.revision}: {source.filename}"
    return str(source) if isinstance(source, OciFile) else source.url


def _provenance_words(provenance: Provenance) -> str:
    agreeing = count(provenance.agreeing, "independent publication")
    verb = "agrees" if provenance.agreeing == 1 else "agree"
    return f"{provenance.read_from}, {provenance.read_on}; {agreeing} {verb}; confidence {provenance.confidence}"
