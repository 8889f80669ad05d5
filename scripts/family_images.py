#!/usr/bin/env python3
"""Images by the real ComfyUI for shipped manifests of several families, with stand-ins for the published files.

    python3 scripts/family_images.py --comfyui TREE [--environment DIR] [--family ID ...] [--true-shapes]
                                     [--size WxH] [--steps N] [--folder DIR] [--check-shapes] [--write]

TREE is ComfyUI 0.33.0, DIR the environment with its requirements (default: TREE/.venv); nothing in them is changed.
The folder (default: a temporary one) needs room for the published files twice.  Of each family the
shapes of the files are asked of ComfyUI's own classes (`scripts/family_shapes.py`), stand-ins of random numbers are
written and published on an embedded Hub under the names of the shipped manifest, and then the real commands run:
`klein-setup install --only files`, `verify`, and `smoke-test`, which starts a copy of this ComfyUI.

The small stand-ins have a transformer of a block or two, and lack every tensor above 1 MiB that ComfyUI does not need
to recognise the family; ComfyUI leaves those as they are in memory, and `MALLOC_MMAP_THRESHOLD_` makes that zeros.
With `--true-shapes` every tensor is there at its published shape: what a machine with a GPU is measured with.
Random weights make noise, and the judge has to say so or be uncertain; the check is that the graph of the recipe or
the workflow ran through every node and gave an image of the size that was asked for.
`--check-shapes` only compares the bytes of the true shapes with the published size of each file.  With `--write` the
result goes to scripts/results/families.md, which is kept in the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from provisioner.manifest.shipped import read_manifest_text  # noqa: E402 - found through the line above
from provisioner.rehearsal.content import Content  # noqa: E402
from provisioner.rehearsal.hub import RehearsalHub  # noqa: E402
from provisioner.rehearsal.tiny_models import Tensor, in_file_order, safetensors_header, tensor_values  # noqa: E402

RESULT = ROOT / "scripts" / "results" / "families.md"
TOKEN = "hf_" + "FamilyStandIns00"  # of the embedded Hub
MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Family:
    """A shipped manifest, the set of it, and the large tensors that ComfyUI recognises the family by."""

    manifest: str
    set_id: str
    needed: str = "$^"  # regular expression
    whole: tuple[str, ...]  # beginnings of names, the VAE's: without it every image is one colour


FAMILIES = (
    Family(manifest="z-image-turbo", set_id="bf16", needed=r"^cap_embedder\.1\.weight", whole=("encoder.", "decoder.")),
    Family(
        manifest="qwen-image", set_id="fp8", needed=r"^(txt|img)_in\.weight", whole=("encoder.", "decoder.", "conv")
    ),
    Family(
        manifest="flux1-schnell",
        set_id="bf16",
        needed=r"^txt_in|block\.23\.layer\.1\.DenseReluDense\.wi_1|layers\.[01]\.mlp\.fc1",
        whole=("encoder.down.", "encoder.mid.", "encoder.conv", "encoder.norm", "decoder."),
    ),
    Family(
        manifest="sdxl",
        set_id="base",
        needed=r"label_emb|out_layers\.3|transformer_blocks\.0\.attn2\.to_k|proj_in|0\.op\.weight|layers\.[01]\.mlp\.fc1",
        whole=("first_stage_model.",),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Came:
    """What came of one family."""

    family: Family
    model_bytes: int
    install_s: float
    verify_s: float
    image_s: float
    said: Mapping[str, Any]  # details.smoke_test
    status: int
    errors: tuple[str, ...]


def main() -> int:
    """Run the families; 0 if every one gave an image of the size that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, metavar="TREE")
    parser.add_argument("--environment", type=Path, metavar="DIR")
    parser.add_argument("--family", action="append", choices=[each.manifest for each in FAMILIES])
    parser.add_argument("--true-shapes", action="store_true")
    parser.add_argument("--size", default="256x256", metavar="WxH")
    parser.add_argument("--steps", type=int, default=2, metavar="N")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep everything there (default: a scratch folder)")
    parser.add_argument("--check-shapes", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.environment = (options.environment or options.comfyui / ".venv").absolute()
    chosen = [each for each in FAMILIES if options.family is None or each.manifest in options.family]
    if options.check_shapes:
        for each in chosen:
            check_shapes(options, each)
        return 0
    with tempfile.TemporaryDirectory(prefix="families-", dir=options.folder) as scratch:
        is_right = True
        for family in chosen:
            came = run(options, family, Path(scratch) / family.manifest)
            shutil.rmtree(Path(scratch) / family.manifest)
            is_right = is_right and has_image(came, options.size)
            row = row_of(options, came)
            print(row, flush=True)
            if options.write:
                before = RESULT.read_text(encoding="utf-8") if RESULT.exists() else ""
                RESULT.write_text(page(before, [row]), encoding="utf-8")
    return 0 if is_right else 1


# --- stand-ins --------------------------------------------------------------------------------------


def shapes(options: argparse.Namespace, family: Family, *, is_small: bool) -> dict[str, tuple[Tensor, ...]]:
    """Return the tensors of each file, by its name."""
    python = options.environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    words = [str(python), str(ROOT / "scripts" / "family_shapes.py"), str(options.comfyui), family.manifest]
    done = subprocess.run([*words, *(["--small"] if is_small else [])], check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    return {
        name: tuple(Tensor(each, dtype, tuple(shape)) for each, (dtype, shape) in tensors.items())
        for name, tensors in found.items()
    }


def kept(family: Family, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return what a small stand-in has."""
    return tuple(
        each
        for each in tensors
        if each.size <= MIB or re.search(family.needed, each.name) or each.name.startswith(family.whole)
    )


def write_file(path: Path, tensors: tuple[Tensor, ...]) -> None:
    """Write a safetensors file of any size; a large tensor repeats a block of random numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks: dict[str, bytes] = {}
    with path.open("wb") as stream:
        stream.write(safetensors_header(tensors))
        for tensor in in_file_order(tensors):
            if tensor.size <= MIB:
                name = tensor.name.replace(".gamma", ".norm.weight")  # of a norm: 1, or every image is one colour
                stream.write(tensor_values(replace(tensor, name=name)))
                continue
            block = blocks.setdefault(tensor.dtype, tensor_values(Tensor("block", tensor.dtype, (MIB,))))
            whole, rest = divmod(tensor.size, len(block))
            for _ in range(whole):
                stream.write(block)
            stream.write(block[:rest])


def check_shapes(options: argparse.Namespace, family: Family) -> None:
    """Print by how many bytes the true shapes differ from the published size of each file."""
    found = shapes(options, family, is_small=False)
    for artifact in document_of(family)["artifacts"]:
        tensors = found[artifact["name"]]
        payload = sum(each.size for each in tensors)
        print(f"{artifact['name']}: {len(tensors)} tensors, {payload:,} bytes; published are {artifact['size']:,}")


# --- a run ------------------------------------------------------------------------------------------


def document_of(family: Family) -> dict[str, Any]:
    """Return the shipped manifest with the one set, as a document."""
    document: dict[str, Any] = yaml.safe_load(read_manifest_text(family.manifest)[0])
    document["sets"] = [each for each in document["sets"] if each["id"] == family.set_id]
    document["default_set"] = family.set_id
    wanted = document["sets"][0]["artifacts"]
    document["artifacts"] = [each for each in document["artifacts"] if each["id"] in wanted]
    return document


def publish(hub: RehearsalHub, family: Family, files: Mapping[str, Path], folder: Path) -> Path:
    """Publish the stand-ins, and write the manifest with their sizes and digests; return it."""
    document = document_of(family) | {"is_stand_in": True}
    places: dict[tuple[str, str], dict[str, bytes | Path]] = {}
    for artifact in document["artifacts"]:
        content = Content.of(files[artifact["name"]])
        artifact |= {"size": content.size, "sha256": content.sha256()}
        for key in ("accept", "lookalikes", "fingerprint"):
            artifact.pop(key, None)
        for source in artifact["sources"]:
            place = source["repo_id"], source["revision"]
            places.setdefault(place, {})[source["filename"]] = files[artifact["name"]]
    for (repo_id, revision), held in places.items():
        hub.add_repository(repo_id, revision, held, tokens=[TOKEN])
    manifest = folder / "manifest.yaml"
    manifest.write_text(json.dumps(document), encoding="utf-8")
    return manifest


def run(options: argparse.Namespace, family: Family, folder: Path) -> Came:
    """Install and verify the stand-ins of a family, and make an image."""
    files = {}
    for name, tensors in shapes(options, family, is_small=not options.true_shapes).items():
        files[name] = folder / "published" / name
        write_file(files[name], tensors if options.true_shapes else kept(family, tensors))
    tree = folder / "ComfyUI"
    own = {".git", ".venv", "models", "custom_nodes", "input", "output", "temp", "user"}  # of the one who uses it
    shutil.copytree(
        options.comfyui, tree, ignore=lambda path, names: own & set(names) if Path(path) == options.comfyui else ()
    )
    for name in ("models", "custom_nodes", "input"):
        (tree / name).mkdir()
    (tree / ".venv").symlink_to(options.environment, target_is_directory=True)
    with RehearsalHub(tokens=[TOKEN]) as hub:
        manifest = publish(hub, family, files, folder)
        where = ["--manifest", str(manifest), "--comfyui", str(tree)]
        licences = [each for each in [document_of(family)["licence"].get("id")] if each]
        accepted = [word for each in licences for word in ("--accept-licence", each)]
        hosts = ["--endpoint", hub.endpoint, "--send-token"]
        install_s, _ = klein_setup(folder, "install", "--only", "files", *where, *accepted, *hosts, "--yes")
        verify_s, _ = klein_setup(folder, "verify", "--no-smoke", *where)
        asked = ["--size", options.size, "--steps", str(options.steps), "--image", str(folder / "image.png")]
        asked += ["--smoke-timeout", "1800"]  # two cores need minutes for a text encoder
        image_s, done = klein_setup(
            folder, "smoke-test", *where, *asked, "--pass-env", "MALLOC_MMAP_THRESHOLD_", "--json", checks=False
        )
    document = json.loads(done.stdout)
    return Came(
        family=family,
        model_bytes=sum(path.stat().st_size for path in files.values()),
        install_s=install_s,
        verify_s=verify_s,
        image_s=image_s,
        said=document["details"].get("smoke_test") or {},
        status=done.returncode,
        errors=tuple(each["message"] for each in document["errors"]),
    )


def klein_setup(folder: Path, *words: str, checks: bool = True) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run the real command with a home of its own; return the seconds it took."""
    kept_names = {name: each for name, each in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    places = {f"XDG_{name}_HOME": str(folder / "home" / name.lower()) for name in ("STATE", "DATA", "CONFIG", "CACHE")}
    environ = {**kept_names, **places, "HOME": str(folder / "home"), "HF_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "provisioner", *words],
        env={**environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        check=False,
    )
    if checks and done.returncode:
        sys.stderr.write(done.stdout)
        raise SystemExit(f"klein-setup {words[0]} ended with {done.returncode}")
    return time.monotonic() - began, done


# --- the result -------------------------------------------------------------------------------------


def has_image(came: Came, size: str) -> bool:
    """Whether there is an image of the size that was asked for, and the command accepted it."""
    picture = came.said.get("picture") or {}
    return came.status == 0 and f"{picture.get('width')}x{picture.get('height')}" == size


HEAD = (
    *("manifest", "set", "shapes", "files", "install", "verify", "smoke-test"),
    *("steps", "device", "image", "judged", "exit status"),
)


def row_of(options: argparse.Namespace, came: Came) -> str:
    """Return the row of a family, with what went wrong in its last cell."""
    picture = came.said.get("picture") or {}
    cells = (
        came.family.manifest,
        came.family.set_id,
        "true" if options.true_shapes else "small",
        f"{came.model_bytes / 1e6:,.0f} MB",
        *(f"{seconds:.1f} s" for seconds in (came.install_s, came.verify_s, came.image_s)),
        str(options.steps),
        str(came.said.get("device")),
        f"{picture.get('width')}x{picture.get('height')}" if picture else "none",
        str(picture.get("verdict")),
        " ".join((str(came.status), *came.errors)),
    )
    return f"| {' | '.join(cells)} |"


def page(before: str, rows: list[str]) -> str:
    """Return the page of results; rows of other families and shapes stay as they were."""
    kept_rows = [line for line in before.splitlines() if line.startswith("| ")][1:]
    by_key = {tuple(row.split(" | ")[:3]): row for row in (*kept_rows, *rows)}
    head = [
        "# `scripts/family_images.py`",
        "",
        f"ComfyUI 0.33.0, Python {platform.python_version()}, {sys.platform}.",
        "",
    ]
    table = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD), *(by_key[key] for key in sorted(by_key))]
    return "\n".join((*head, *table, ""))


if __name__ == "__main__":
    sys.exit(main())
