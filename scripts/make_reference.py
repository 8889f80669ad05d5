#!/usr/bin/env python3
"""Write the pages made from the program: docs/errors.md, manifest-keys.md, gpus.md and failures.md.

They come from the errors, manifests/schema.json, torch.yaml and failures.yaml.
Without ``--write`` only compare.  An error's page is its docstring: the first line says what happened, the rest what to
do.  What a key of a manifest means is written once, in the schema.  Which build a card gets is chosen as for a user.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from provisioner.comfyui.server.catalogue import KnownFailure  # noqa: E402 - found through the line above
from provisioner.comfyui.server.known_failures import known_failures  # noqa: E402
from provisioner.core.errors import (  # noqa: E402 - found through the line above when run as a script
    KleinError,
    UnsupportedMachineError,
)
from provisioner.core.models import Gpu, Machine  # noqa: E402
from provisioner.torch.choose import TorchOptions, choose_torch, shipped_table  # noqa: E402
from scripts.check_readme import codes_by_status, every_error, reason  # noqa: E402

Schema = dict[str, Any]
MADE = "<!-- Made by `python3 scripts/make_reference.py --write`; not by hand. -->\n\n"


# --- errors ------------------------------------------------------------------------------------


def told(error: type[KleinError]) -> tuple[str, str]:
    """Return (what happened, what to do) from a docstring; the second is empty where there is only one line."""
    text = inspect.cleandoc(error.__doc__ or "").replace("``", "`")
    head, _, rest = text.partition("\n\n")
    head = " ".join(head.split()).split(": the base of")[0]
    return head.rstrip(".") + ".", rest.strip()


def errors_page() -> str:
    """Return docs/errors.md: a section with an anchor for each code, in the order of the exit statuses."""
    by_code = {error.code: error for error in every_error()}
    lines = [
        "# Errors\n",
        MADE.rstrip("\n") + "\n",
        "Every error has a code. `--verbose` shows it with the address of its section here, `--json` as `code` in "
        "`errors`. The hint",
        "that klein-setup prints knows more than this page: it names the file, the address or the version. "
        "[exit-statuses.md](exit-statuses.md)",
        "lists the statuses.\n",
    ]
    for status, codes in codes_by_status().items():
        if not codes:
            continue
        lines += [f"## Exit status {status}\n", reason(status) + "\n"]
        for code in codes:
            happened, todo = told(by_code[code])
            lines += [f"### {code}\n", happened + "\n"]
            if todo:
                lines.append(todo + "\n")
    return "\n".join(lines)


# --- manifests ---------------------------------------------------------------------------------

# Where the schema describes an object, and the heading it gets.
OBJECTS = {
    "": "The manifest",
    "properties/licence": "`licence`",
    "$defs/set": "A set, in `sets`",
    "$defs/set/properties/conditions": "`conditions` of a set",
    "$defs/set/properties/envelope": "`envelope` of a set",
    "$defs/set/properties/recipe": "`recipe` of a set",
    "$defs/artifact": "An artifact, in `artifacts`",
    "$defs/source/oneOf/0": "A source on the Hub, in `sources`",
    "$defs/source/oneOf/1": "A source at any other address, in `sources`",
    "$defs/source/oneOf/2": "A source in an OCI registry, in `sources`",
    "$defs/variant": "Another accepted content, in `accept`",
    "$defs/content": "A content that is something else, in `lookalikes`",
    "$defs/fingerprint": "`fingerprint` of an artifact",
    "$defs/provenance": "`provenance` of an artifact",
    "$defs/custom_node": "A pack of custom nodes, in `custom_nodes`",
    "$defs/workflow": "`workflow`",
    "properties/lock": "`lock`",
    "properties/lock/properties/torch_wheels/items": "A wheel, in `torch_wheels`",
    "properties/lock/properties/bundle_parts/items": "A part of a bundle, in `bundle_parts`",
}
FORMS = ("id", "line", "prose", "listed", "node", "path", "url", "sha256", "git_hash", "size", "count", "memory")


def part_at(schema: Schema, where: str) -> Any:  # noqa: ANN401 - JSON
    """Return the part of a schema at a path of keys and positions."""
    found: Any = schema
    for step in filter(None, where.split("/")):
        found = found[int(step)] if isinstance(found, list) else found[step]
    return found


def objects_in(node: object, where: str = "") -> Iterator[str]:
    """Yield where a schema describes an object with keys of its own."""
    if isinstance(node, list):
        for position, each in enumerate(node):
            yield from objects_in(each, f"{where}/{position}")
    elif isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            yield where.lstrip("/")
        for key, each in node.items():
            yield from objects_in(each, f"{where}/{key}")


def form_of(what: Schema) -> str:
    """Return what a value looks like: ``list of id``, ``1 to 1000``, ``high, medium or low``."""
    if "$ref" in what:
        name = what["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.replace('_', '-')})" if name in FORMS else "mapping"
    if "const" in what:
        return f"`{what['const']}`"
    if "enum" in what:
        return ", ".join(f"`{each}`" for each in what["enum"])
    if "allOf" in what:
        return form_of(what["allOf"][0])
    if what.get("type") == "array":
        inner = form_of(what["items"])
        return "list of mappings" if inner == "mapping" else f"list of {inner}"
    if what.get("type") == "boolean":
        return "`true` or `false`"
    if what.get("type") == "object":
        return "mapping"
    if what.get("type") in {"integer", "number"}:
        most = what.get("maximum", what.get("exclusiveMaximum"))
        return f"number from {what['minimum']}, {'below' if 'exclusiveMaximum' in what else 'up to'} {most}"
    if "[0-9]{4}-" in what.get("pattern", ""):
        return "date in quotes"
    return "text"


def limits_of(what: Schema) -> str:
    """Return the bounds and the pattern of a form, as a sentence or nothing."""
    found = []
    if what.get("type") == "string" and "maxLength" in what:
        found.append(f"up to {what['maxLength']} characters")
    if what.get("type") == "integer":
        found.append(f"from {what['minimum']:,} to {what['maximum']:,}")
    if len(what.get("pattern", "")) in range(1, 60):
        found.append(f"pattern `{what['pattern']}`")
    return f" ({'; '.join(found)})" if found else ""


def cell(text: str) -> str:
    """Return text for one cell of a table."""
    return text.replace("|", "\\|")


def manifest_page(schema: Schema) -> str:
    """Return docs/manifest-keys.md.

    Raises
    ------
    ValueError
        The schema describes an object that has no heading here, or no longer one that has.
    """
    if set(objects_in(schema)) != set(OBJECTS):
        message = f"OBJECTS and the schema differ on {sorted(set(objects_in(schema)) ^ set(OBJECTS))}"
        raise ValueError(message)
    lines = [
        "# Keys of a manifest\n",
        MADE.rstrip("\n") + "\n",
        "[manifests/README.md](../manifests/README.md) has a complete manifest and says what a table cannot: which "
        "YAML is read, what the",
        "order of the sets means, how to read a digest. `klein-setup manifest check FILE` names every mistake with its "
        "line.\n",
    ]
    for where, heading in OBJECTS.items():
        part = part_at(schema, where)
        lines += [f"## {heading}\n", *([part["description"] + "\n"] if where and "description" in part else [])]
        lines += ["| key | form | meaning |", "|---|---|---|"]
        for key, what in part["properties"].items():
            meaning = what.get("description") or part_at(schema, what["$ref"].lstrip("#/"))["description"]
            required = "Required. " if key in part["required"] else ""
            needs = part.get("dependentRequired", {}).get(key, [])
            meaning += "".join(f" Needs `{each}`." for each in needs if f"needs {each}" not in meaning)
            lines.append(f"| `{key}` | {cell(form_of(what))} | {required}{cell(meaning)} |")
        lines.append("")
    lines += ["## Forms\n"]
    for name in FORMS:
        what = schema["$defs"][name]
        lines += [f"### {name.replace('_', '-')}\n", what["description"].rstrip(".") + limits_of(what) + ".\n"]
    return "\n".join(lines).rstrip("\n") + "\n"


# --- GPUs ----------------------------------------------------------------------------------------

_GPUS = """# Supported GPUs

`klein-setup detect` shows what yours gets, and why. The tables are made from `manifests/torch.yaml`; how sure each
row is, and where it was read, stands there. Sets and their memory are in [what goes where](what-goes-where.md).

**FP8** says whether ComfyUI multiplies in FP8 on the GPU. Where it does not, FP8 files work all the same: they are
stored as they are and computed in a wider type, which is slower. On Apple chips they do not load.
"""

_NVIDIA = """
## NVIDIA

The build is that of the newest driver a GPU works with; on drivers before 580 it is `cu126`, or `cu128` for
Blackwell.

"""

_AMD = """
## AMD

On Linux most cards get PyTorch's own build. On Windows, and for the cards that it leaves out, the build is AMD's
(`rocm10.0.0`, from AMD's index alone): the code for each architecture is in packages of their own, about 1.8 GB,
and klein-setup fetches those of your card only. Without the right ones every computation fails. Windows tells no
program the architecture of a card, so it is found by its PCI id, else by its name.

- **Driver on Windows**: AMD validated this build with Adrenalin 26.8.1 and Windows 11 25H2, and names no oldest
  driver. An older one is a warning; an update is the first thing to try when torch fails with "invalid argument".
- **No SHA-256**: AMD's index publishes none. What arrives over https is taken as it is; its SHA-256 is then kept,
  and `repair` takes no other file.
- **A processor's GPU beside a card** is left out, and ComfyUI is started with `HIP_VISIBLE_DEVICES` so that it
  sees the card only.
- **A processor's GPU alone** uses the computer's memory; half of it counts when a set is chosen.
- **WSL**: Windows shows no AMD GPU to klein-setup there. Use it on Windows itself.
- `HSA_OVERRIDE_GFX_VERSION` is never set: with it torch hangs on some cards.
- **Cards without a build**: `--cpu`. ZLUDA is a last resort that klein-setup does not install. DirectML is gone:
  ComfyUI 0.46.0 removed its option.
- ROCm 7.14.1, which some tools installed, is known to be broken on Windows; `--torch rocm7.14.1` is refused.

"listed" means that AMD's matrix names the cards. The others are built for and may be slow or fail.

"""

_INTEL = """
## Intel

Arc cards and the Arc graphics of Core Ultra processors get the build `xpu`, on Windows 11 and Linux. UHD and Iris
Xe are not validated and get the CPU build. ComfyUI uses no FP8 on any of them. A processor's GPU uses the
computer's memory.

"""

_APPLE = """
## Apple

Apple chips get torch from the default index, with MPS from macOS 14 on; torch 2.12 and newer need macOS 14. FP8
does not load on MPS and no variable changes that, so the set is `bf16`, 16 GB of files: comfortable with 24 GB of
memory, with 16 GB it swaps, with 8 GB it does not fit (computed from the sizes, not measured). Intel Macs have no
current torch.

## Other systems

- **ARM64 Linux** (GH200, GB10, Jetson Thor) is served by `cu130`. A Jetson Orin needs NVIDIA's own builds for its
  JetPack.
- **Windows on Arm**: no index of torch has wheels. NVIDIA publishes its own for RTX Spark, at
  `https://pypi.nvidia.com/nvtorch_oot/`; install them yourself and use `--torch none`.
- **Python** 3.10 to 3.14 are served everywhere. The free-threaded 3.13t and 3.14t are used where `--python` names one,
  except for AMD's build; what has no wheel for them, such as safetensors 0.8.0, is built from source. ComfyUI has no
  Python 3.15 yet, because torchaudio has none.
"""


def gpus_page() -> str:
    """Return docs/gpus.md; which build a card gets is what the program chooses for it."""
    table = shipped_table()
    nvidia = ["| GPU | compute capability | driver | build | FP8 |", "|---|---|---|---|---|"]
    for row in table.gpus:
        if row.is_jetson:
            continue
        gpu = Gpu(vendor="nvidia", name="x", index=0, uuid="x", compute_capability=(row.sm // 10, row.sm % 10))
        driver = "582" if row.dropped_from else "610"
        architecture = "aarch64" if row.sm == 121 else "x86_64"
        found = _build_for(gpu, "linux", driver=driver, architecture=architecture)
        needs = f"{row.min_driver or '525.60.13 (Windows 528.33)'} or newer"
        needs += f", before {row.dropped_from}" if row.dropped_from else ""
        nvidia.append(f"| {row.names} | {row.sm // 10}.{row.sm % 10} | {needs} | `{found}` | {_yes(row.sm >= 89)} |")
    amd = ["| cards | architecture | Linux | Windows | FP8 | AMD |", "|---|---|---|---|---|---|"]
    for card in table.amd_gpus:
        gpu = Gpu(vendor="amd", name=card.names[0], index=0, pci_id=f"1002:{card.pci_ids[0]}", architecture=card.gfx)
        builds = [f"`{found}`" if found else "none" for found in (_build_for(gpu, "linux"), _build_for(gpu, "windows"))]
        note = "computes wrong numbers" if card.wrong else "listed" if card.is_validated else "not listed"
        names = ", ".join(card.names)
        amd.append(f"| {names} | {card.gfx} | {builds[0]} | {builds[1]} | {_yes(card.has_fp8)} | {note} |")
    intel = ["| GPU | validated on |", "|---|---|"]
    for chip in table.intel_gpus:
        intel.append(f"| {', '.join(chip.names)} | {', '.join(chip.validated_on)} |")
    return "".join(
        [
            MADE,
            _GPUS,
            _NVIDIA,
            "\n".join(nvidia) + "\n",
            _AMD,
            "\n".join(amd) + "\n",
            _INTEL,
            "\n".join(intel) + "\n",
            _APPLE,
        ]
    )


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _build_for(
    gpu: Gpu, os: Literal["linux", "windows"], *, driver: str | None = None, architecture: str = "x86_64"
) -> str | None:
    machine = Machine(
        os=os,
        os_release="11" if os == "windows" else "6.17",
        is_wsl=False,
        architecture=architecture,
        libc="glibc 2.39" if os == "linux" else None,
        python_version="3.12.3",
        gpus=(gpu,),
        driver_version=driver,
    )
    try:
        return choose_torch(machine, TorchOptions(), app="comfyui").build.torch_backend
    except UnsupportedMachineError:
        return None


_LAYERS = {
    "model-files": "Model files",
    "model-pairing": "Files that do not go together",
    "gpu-memory": "Memory of the GPU",
    "computer-memory": "Memory of the computer",
    "memory-streaming": "Memory streaming (dynamic VRAM)",
    "driver": "Driver",
    "torch": "The build of torch",
    "packages": "Other packages of the environment",
    "comfyui": "ComfyUI itself",
    "frontend": "ComfyUI's web page",
    "database": "ComfyUI's database",
    "custom-node": "Custom nodes",
    "start-options": "Options ComfyUI was started with",
    "network": "Network",
    "port": "Port",
    "disk": "Disk",
    "permissions": "Permissions",
    "antivirus": "Virus scanners",
}
_FILLED = {"where": "", "file": "the file", "model": "the model", "message": "..."}


def failures_page() -> str:
    """Return docs/failures.md, by layer."""
    rows = known_failures().failures
    parts = [
        f"""{MADE}# Known failures of ComfyUI

When a server of ComfyUI fails, klein-setup says what is at fault and what to do.  These {len(rows)} are known, beside
those that the graph itself explains (a VAE or text encoder of another model, a missing file or node).
[manifests/README.md](../manifests/README.md) says how a row is written; where each was read is in
`manifests/failures.yaml`.
"""
    ]
    for layer, title in _LAYERS.items():
        lines = [f"| `{each.id}` | {_example(each)} | {each.remedy} |" for each in rows if each.layer == layer]
        if lines:
            parts.append(
                "\n".join([f"## {title}", "", "| name | what it is | what to do |", "|---|---|---|", *lines, ""])
            )
    return "\n".join(parts)


def _example(row: KnownFailure) -> str:
    text = row.sentence.format(*["..."] * 4, **_FILLED).replace("|", "\\|")
    return text[:1].upper() + text[1:]


def pages() -> dict[Path, str]:
    """Return the text of each page that is made."""
    schema: Schema = json.loads((ROOT / "manifests" / "schema.json").read_text(encoding="utf-8"))
    made = {"errors.md": errors_page(), "manifest-keys.md": manifest_page(schema), "gpus.md": gpus_page()}
    made["failures.md"] = failures_page()
    return {ROOT / "docs" / name: re.sub(r"\n{3,}", "\n\n", text) for name, text in made.items()}


def main() -> int:
    """Compare or write; return 1 where a page differs and is not written."""
    parser = argparse.ArgumentParser(description="Check docs/errors.md, docs/manifest-keys.md and docs/gpus.md.")
    parser.add_argument("--write", action="store_true", help="write them")
    write = parser.parse_args().write
    status = 0
    for path, text in pages().items():
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if write:
            path.write_text(text, encoding="utf-8", newline="\n")
        elif before != text:
            status = 1
            name = path.relative_to(ROOT).as_posix()
            print("".join(difflib.unified_diff(before.splitlines(True), text.splitlines(True), name, "made")), end="")
    return status


if __name__ == "__main__":
    sys.exit(main())
