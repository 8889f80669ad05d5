"""Reads every template of comfyui-workflow-templates-json, and pins every one of their links at an embedded Hub.

    python3 scripts/read_templates.py WHEEL|FOLDER [--object-info FILE] [--prompt-url URL] [--write]

The Hub is made from the links: it has a small safetensors file for each name.  So this counts what is lost on the way
from a link to an artifact of a manifest that `manifest check` accepts, not whether the real files are still there.
With --object-info, the answer of a server to ``GET /object_info``, every template whose nodes that server has is
converted to API form; with --prompt-url each of them is sent there, and the server's own validation judges it.
With --write the result goes to scripts/results/read_templates.md, which is kept in the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from provisioner.commands.from_workflow import FromWorkflowOptions, run_from_workflow  # noqa: E402
from provisioner.commands.session import Session, Settings  # noqa: E402
from provisioner.core.errors import KleinError  # noqa: E402
from provisioner.core.models import HubFile  # noqa: E402 - found through the line above
from provisioner.rehearsal.hub import RehearsalHub  # noqa: E402
from provisioner.workflow.file_address import HubAddress, parse_address  # noqa: E402
from provisioner.workflow.model_files import model_files  # noqa: E402
from provisioner.workflow.needed_packs import lacking_nodes  # noqa: E402
from provisioner.workflow.prompt_graph import to_prompt  # noqa: E402
from provisioner.workflow.read_workflow import read_workflow  # noqa: E402

RESULT = ROOT / "scripts" / "results" / "read_templates.md"


@dataclass
class Tally:
    """What came of the templates."""

    templates: int = 0
    with_links: int = 0
    raised: list[str] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)  # read or switched off
    links: int = 0
    pinned: int = 0
    not_pinned: list[str] = field(default_factory=list)
    read_s: float = 0.0
    pinned_s: float = 0.0
    lacking: Counter[str] = field(default_factory=Counter)  # classes of nodes that the server does not have
    newer: int = 0  # templates whose index asks for a newer ComfyUI, of those whose nodes are all there
    converted: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)


def templates_of(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every workflow in a wheel or a folder."""
    for name, data in _files_of(source):
        if isinstance(found := json.loads(data), dict) and "nodes" in found:
            yield name, data


def _files_of(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        yield from ((path.stem, path.read_bytes()) for path in sorted(source.rglob("templates/*.json")))
        return
    with zipfile.ZipFile(source) as wheel:
        for name in sorted(wheel.namelist()):
            if "/templates/" in name and name.endswith(".json"):
                yield Path(name).stem, wheel.read(name)


def links_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every entry of ``properties.models``, found without the program's own reader."""
    graphs = [document, *(document.get("definitions") or {}).get("subgraphs", [])]
    nodes = [node for graph in graphs for node in graph["nodes"]]
    return [each for node in nodes for each in (node.get("properties") or {}).get("models") or []]


def content_of(name: str) -> bytes:
    """Return a safetensors file that differs for every name."""
    payload = hashlib.sha256(name.encode()).digest()
    head = json.dumps({"w": {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}}).encode()
    return struct.pack("<Q", len(head)) + head + payload


def publish(hub: RehearsalHub, links: Iterable[dict[str, Any]]) -> None:
    """Give the Hub every file that the links name, with the hash that a link states."""
    files: dict[str, dict[str, bytes]] = {}
    digests: dict[str, dict[str, str]] = {}
    for link in links:
        address = parse_address(link["url"])
        if isinstance(address, HubAddress):
            files.setdefault(address.repo_id, {})[address.filename] = content_of(link["name"])
            if link.get("hash"):
                digests.setdefault(address.repo_id, {})[address.filename] = link["hash"].lower()
    for repo_id, found in files.items():
        commit = hashlib.sha1(repo_id.encode(), usedforsecurity=False).hexdigest()
        known = digests.get(repo_id)
        hub.add_repository(repo_id, commit, found, lfs=lambda _name, _size: True, digests=known)


def pin_one(tally: Tally, hub: RehearsalHub, folder: Path, name: str, data: bytes) -> None:
    """Make the manifest of one template and count the links that became sources of it."""
    links = links_of(json.loads(data))
    path, output = folder / f"{name}.json", folder / f"{name}.yaml"
    path.write_bytes(data)
    session = Session(Settings(endpoint=hub.endpoint), environ={})
    report = run_from_workflow(session, FromWorkflowOptions(workflow=str(path), output=output), say=lambda _line: None)
    artifacts = () if report.manifest is None else report.manifest.artifacts
    sources = {(each.repo_id, each.filename) for one in artifacts for each in one.sources if isinstance(each, HubFile)}
    for link in links:
        address = parse_address(link["url"])
        tally.links += 1
        if isinstance(address, HubAddress) and (address.repo_id, address.filename) in sources:
            tally.pinned += 1
        else:
            tally.not_pinned.append(f"{name}: {link['url']}")


def read_all(source: Path) -> Tally:
    """Read and pin every template."""
    tally = Tally()
    found = dict(templates_of(source))
    started = time.monotonic()
    for name, data in found.items():
        tally.templates += 1
        try:
            files = model_files(read_workflow(data, name=name))
        except Exception as error:
            tally.raised.append(f"{name}: {type(error).__name__}: {error}")
            continue
        tally.files.update("read" if each.why_off is None else "switched off" for each in files)
    tally.read_s = time.monotonic() - started
    linked = {name: data for name, data in found.items() if links_of(json.loads(data))}
    tally.with_links = len(linked)
    started = time.monotonic()
    with RehearsalHub() as hub, tempfile.TemporaryDirectory(prefix="read-templates-") as folder:
        publish(hub, (link for data in linked.values() for link in links_of(json.loads(data))))
        for name, data in linked.items():
            try:
                pin_one(tally, hub, Path(folder), name, data)
            except KleinError as error:
                tally.raised.append(f"{name}: {type(error).__name__}: {error}")
    tally.pinned_s = time.monotonic() - started
    return tally


def convert_all(tally: Tally, source: Path, object_info: dict[str, Any], url: str | None) -> None:
    """Convert every template whose nodes the server has; send each to its validation, if there is an address."""
    versions = _versions(source)
    for name, data in templates_of(source):
        flat = read_workflow(data, name=name)
        lacking = lacking_nodes(flat, object_info)
        tally.lacking.update(kind for classes in lacking.values() for kind in classes)
        if lacking:
            tally.answers["lacks a node"] += 1
            continue
        is_newer = versions.get(name, (0,)) > _RELEASE
        tally.newer += is_newer
        try:
            prompt = to_prompt(flat, object_info, name=name)
        except Exception as error:
            tally.raised.append(f"{name}: {type(error).__name__}: {error}")
            continue
        tally.converted += 1
        if url is None:
            continue
        answer = requests.post(url, json={"prompt": prompt}, timeout=60)
        found = answer.json()
        errors = {
            f"{each['class_type']}: {one['message'].lower()} ({str(one.get('details'))[:90]})"
            for each in (found.get("node_errors") or {}).values()
            for one in each["errors"]
        }
        verdict = "refused" if answer.status_code != 200 else "accepted in part" if errors else "accepted"
        tally.answers[verdict] += 1
        if errors:
            asks = "; its index asks for a newer ComfyUI" if is_newer else ""
            tally.refused.append(f"{name} ({verdict}{asks}): {'; '.join(sorted(errors))}")


_RELEASE = (0, 33, 0)
"""The release of ComfyUI whose answers are recorded."""


def _versions(source: Path) -> dict[str, tuple[int, ...]]:
    """Return which ComfyUI each template asks for, by its package's index."""
    index = json.loads(dict(_files_of(source)).get("index", b"[]"))
    found = {each["name"]: each.get("minComfyUIVersion") or "0" for one in index for each in one["templates"]}
    return {name: tuple(int(part) for part in text.split(".") if part.isdigit()) for name, text in found.items()}


def page_of(tally: Tally, source: Path) -> str:
    """Return the result as Markdown."""
    share = 100 * tally.pinned / max(1, tally.links)
    lines = [
        "# `scripts/read_templates.py`",
        "",
        f"{source.name}, Python {sys.version.split()[0]}, {sys.platform}.",
        "",
        f"Workflows read: {tally.templates} in {tally.read_s:.1f} s, {tally.with_links} of them with links."
        f" Exceptions: {len(tally.raised)}.",
        f"Model files: {tally.files['read']} that a run reads, {tally.files['switched off']} switched off.",
        f"Links: {tally.links}, of which {tally.pinned} became sources of a checked manifest ({share:.1f} %),"
        f" in {tally.pinned_s:.0f} s.",
        "",
        *_about_conversion(tally),
        *(f"- raised: {each}" for each in tally.raised),
        *(f"- not pinned: {each}" for each in tally.not_pinned),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _about_conversion(tally: Tally) -> list[str]:
    if not tally.converted:
        return []
    said = ", ".join(f"{each} {count}" for each, count in sorted(tally.answers.items()))
    return [
        f"Converted by the /object_info of ComfyUI {'.'.join(map(str, _RELEASE))}: {tally.converted}; of these"
        f" {tally.newer} ask for a newer one.",
        f"What its own validation (POST /prompt) says: {said}.",
        f"Classes of nodes that it lacks: {len(tally.lacking)}.",
        "",
        *(f"- {each}" for each in tally.refused),
    ]


def main() -> int:
    """Run; return 0 where nothing raised and at least 95 % of the links were pinned."""
    parser = argparse.ArgumentParser(description="Read and pin every template of ComfyUI.")
    parser.add_argument("source", type=Path, metavar="WHEEL|FOLDER")
    parser.add_argument("--object-info", type=Path, metavar="FILE", help="the answer of a server to GET /object_info")
    parser.add_argument(
        "--prompt-url", metavar="URL", help="where converted graphs are sent: http://127.0.0.1:8188/prompt"
    )
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    tally = read_all(options.source)
    if options.object_info:
        object_info = json.loads(options.object_info.read_bytes())
        convert_all(tally, options.source, object_info, options.prompt_url)
    page = page_of(tally, options.source)
    sys.stdout.write(page)
    if options.write:
        RESULT.write_text(page, encoding="utf-8")
    return 0 if not tally.raised and tally.pinned * 100 >= tally.links * 95 else 1


if __name__ == "__main__":
    sys.exit(main())
