#!/usr/bin/env python3
"""Write docs/schema/ from the types that the documents are made of; without ``--write`` only compare.

A TypedDict or dataclass becomes an object with exactly its keys.  The comment beside a field becomes its description,
so what a key means is written once, where the program makes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from pathlib import Path, PurePath
from typing import Any, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from provisioner.comfyui.checkout_models import CheckoutReceipt, TreeFile  # noqa: E402 - found through the line above
from provisioner.core.events import FileProgress, Notice, ServerReady, Stage  # noqa: E402
from provisioner.core.models import BackupEntry, Machine  # noqa: E402
from provisioner.environment.package_list import PackageChange  # noqa: E402
from provisioner.environment.state import RECEIPT_SCHEMA, EnvironmentReceipt  # noqa: E402
from provisioner.files.scrub_order import ScrubSummary  # noqa: E402
from provisioner.files.store import receipts  # noqa: E402
from provisioner.report import json_document  # noqa: E402
from provisioner.report.changes import ChangesEntry  # noqa: E402
from provisioner.report.diagnosis_json import DiagnosisEntry  # noqa: E402
from provisioner.report.fleet_comparison import Fleet  # noqa: E402
from provisioner.report.outcome import (  # noqa: E402
    Bundle,
    EnvironmentCheck,
    EnvironmentResult,
    StartedServer,
    UndoneUpdate,
)
from provisioner.report.smoke_test_json import CardResultEntry, LastImageEntry, SmokeTestEntry  # noqa: E402
from provisioner.snapshot.setup_snapshot import SetupSnapshot  # noqa: E402
from provisioner.torch.builds import TorchChoice  # noqa: E402

FOLDER = ROOT / "docs" / "schema"
Schema = dict[str, Any]

DETAILS: dict[str, tuple[object, str]] = {
    "aside": (list[BackupEntry], "backups list, restore, clear: the entries"),
    "bundle": (Bundle, "doctor: the zip that was written"),
    "changes": (ChangesEntry, "verify: what changed since the last full check"),
    "claims": (list[json_document.ClaimEntry], "rehearse: what was checked"),
    "comfyui": (json_document.ComfyUIEntry, "ComfyUI as it was found, or left"),
    "environment": (EnvironmentResult | EnvironmentCheck, "install, repair: what it needed; verify: whether it holds"),
    "given_arguments": (tuple[str, ...], "of a run that can be continued or applied"),
    "last_image": (LastImageEntry, "of an earlier run; only in last-report.json, never printed"),
    "licence": (json_document.LicenceEntry, "of the models"),
    "manifest_argument": (str, "what was given for --manifest"),
    "more_manifest_arguments": (tuple[str, ...], "what else was given for --manifest"),
    "config": (json_document.ConfigEntry, "detect: the user's own defaults for options"),
    "manifests": (list[json_document.ShippedEntry], "manifest list, show, check"),
    "fleet": (Fleet, "fleet report: the hosts, those that need attention first"),
    "page": (str, "report, fleet report: the page that was written"),
    "pinned": (
        list[str],
        "install, plan, repair: tags of OCI registries, with the digests they name now",
    ),
    "not_restored": (list[str], "snapshot restore: what is not as it was, in sentences"),
    "snapshot": (SetupSnapshot, "snapshot show, export, restore: the snapshot"),
    "snapshot_image": (str, "snapshot show: its small image"),
    "snapshots": (list[json_document.SnapshotEntry], "snapshot list: the snapshots, the oldest first"),
    "scratch_folder": (str, "rehearse --keep: where its files are"),
    "scrub": (ScrubSummary, "verify, repair --for: what was read, and how long ago the rest was"),
    "server": (StartedServer, "start: the ComfyUI that was started or found"),
    "signed_lock": (json_document.SignedLockEntry, "the lock whose signature was verified (--verify-with)"),
    "cards": (list[CardResultEntry], "what came of each GPU that smoke-test --gpu names"),
    "smoke_test": (SmokeTestEntry, "the test image, with what was measured"),
    "diagnosis": (DiagnosisEntry, "every start of `diagnose`, and what is guilty"),
    "torch": (TorchChoice | None, "detect, doctor: the build for this machine; null: none suits it"),
    "hosts": (json_document.HostsEntry, "plan --hosts: every host that the run would contact"),
    "transfers": (json_document.TransfersEntry, "how the model files came"),
    "undo_update": (UndoneUpdate, "repair --undo-update: where ComfyUI is now"),
}
"""What ``details`` may hold, each key only where the run had that part.  `json_document._details` fills it."""

_PATTERNS = {
    "sha256": "^([0-9a-f]{64})?$",  # empty before a manifest was read
    "observed_sha256": "^[0-9a-f]{64}$",
    **dict.fromkeys(("time", "started_at", "ended_at"), r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z)?$"),
}
_LATE = {each.__name__: each for each in (EnvironmentReceipt, PackageChange, TorchChoice)}
_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


class Maker:
    """Collects the definitions of one schema."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self._kinds: dict[str, type] = {}

    def of(self, kind: Any) -> Schema:  # noqa: ANN401 - any annotation
        """Return the schema of what a value of this type looks like in JSON."""
        if kind in _PLAIN:
            return {"type": _PLAIN[kind]}
        if isinstance(kind, type) and issubclass(kind, PurePath):
            return {"type": "string"}
        origin, inner = get_origin(kind), get_args(kind)
        if origin is typing.Literal:
            return {"enum": list(inner)}
        if origin in {types.UnionType, typing.Union}:
            return _any_of([self.of(each) for each in inner])
        if origin is tuple and inner[-1] is not ...:
            return {"type": "array", "prefixItems": [self.of(each) for each in inner], "items": False,
                    "minItems": len(inner)}  # fmt: skip
        if origin in {list, tuple}:
            return {"type": "array", "items": self.of(inner[0])}
        if origin is dict:
            is_any = isinstance(inner[1], str) or str in get_args(inner[1])  # JsonValue; Python 3.10 leaves its name
            return {"type": "object", **({} if is_any else {"additionalProperties": self.of(inner[1])})}
        if typing.is_typeddict(kind) or dataclasses.is_dataclass(kind):
            return self._reference(kind)
        message = f"no schema is known for {kind!r}"
        raise TypeError(message)

    def _reference(self, kind: type) -> Schema:
        name = kind.__name__.removesuffix("Entry") or "Entry"
        if self._kinds.setdefault(name, kind) is not kind:
            message = f"{kind.__module__} and {self._kinds[name].__module__} both have a {name}"
            raise TypeError(message)
        if name not in self.definitions:
            self.definitions[name] = self.object_of(kind)
        return {"$ref": f"#/$defs/{name}"}

    def object_of(self, kind: type) -> Schema:
        """Return an object with exactly the keys of a TypedDict or dataclass."""
        said = _comments(kind)
        if "event" in kind.__annotations__:  # before Python 3.12 a TypedDict forgets what it inherits from
            said |= _comments(json_document.EventLine)
        properties: dict[str, Schema] = {}
        for name, hint in typing.get_type_hints(kind, localns=_LATE).items():
            pattern = {"pattern": _PATTERNS[name]} if name in _PATTERNS else {}
            description = {"description": _plain(said[name])} if name in said else {}
            properties[name] = {**self.of(hint), **pattern, **description}
        return _closed(properties, _plain((inspect.getdoc(kind) or "").partition("\n")[0]))


def _plain(text: str) -> str:
    return text.replace("``", "`")


def _any_of(options: list[Schema]) -> Schema:
    """Return a choice; plain types become one list."""
    if all(set(each) == {"type"} for each in options):
        return {"type": [each["type"] for each in options]}
    if options[-1] == {"type": "null"} and len(options) == 2 and set(options[0]) == {"enum"}:
        return {"enum": [*options[0]["enum"], None]}
    return {"anyOf": options}


def _closed(properties: dict[str, Schema], description: str, *, required: list[str] | None = None) -> Schema:
    needed = list(properties) if required is None else required
    about = {"description": description} if description else {}
    return {"type": "object", **about, "properties": properties, "required": needed, "additionalProperties": False}


def _comments(kind: type) -> dict[str, str]:
    """Return the comment beside each field of a class."""
    return dict(re.findall(r"^    (\w+): [^#\n]*# (.+)$", inspect.getsource(kind), re.MULTILINE))


def _whole(name: str, version: int, title: str, body: Schema, definitions: dict[str, Schema]) -> Schema:
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:klein-setup:{name}:{version}",
        "title": title,
    }
    return {**head, **body, **({"$defs": dict(sorted(definitions.items()))} if definitions else {})}


def _document(maker: Maker) -> Schema:
    """Return the document: closed, but for the context of an error."""
    details = {name: {**maker.of(kind), "description": said} for name, (kind, said) in DETAILS.items()}
    machine = maker.of(Machine)
    empty: Schema = {"type": "object", "maxProperties": 0}
    special: dict[str, Schema] = {
        "schema_version": {"const": json_document.SCHEMA_VERSION},
        "machine": {"anyOf": [empty, machine]},
        "details": _closed(details, "The parts that this run had", required=[]),
    }
    body = maker.object_of(json_document.ReportDocument)
    body["properties"] |= {name: {**body["properties"][name], **given} for name, given in special.items()}
    return body


def _events(maker: Maker) -> Schema:
    """Return one line of ``--json=events``: an event, or the document as the last one."""
    lines: list[Schema] = [maker.of(json_document.PlanMadeLine), maker.of(json_document.StepLine)]
    about = maker.object_of(json_document.EventLine)["properties"]
    for kind in (FileProgress, Notice, Stage, ServerReady):
        line = maker.object_of(kind)
        named = {"event": {"const": json_document.event_name(kind)}, **about, **line["properties"]}
        if "rate_bytes_s" in named:  # infinity is written as null
            named["rate_bytes_s"]["type"] = ["number", "null"]
        maker.definitions[kind.__name__] = _closed(named, line["description"])
        lines.append({"$ref": f"#/$defs/{kind.__name__}"})
    document = _document(maker)
    properties = {"event": {"const": "report"}, "time": about["time"], **document["properties"]}
    maker.definitions["Report"] = _closed(properties, document["description"])
    return {"oneOf": [*lines, {"$ref": "#/$defs/Report"}]}


def schemas() -> dict[str, Schema]:
    """Return every schema by its file name."""
    found: dict[str, Schema] = {}

    def add(name: str, version: int, title: str, make: typing.Callable[[Maker], Schema]) -> None:
        maker = Maker()
        body = make(maker)
        found[f"{name}.schema.json"] = _whole(name, version, title, body, maker.definitions)

    version = json_document.SCHEMA_VERSION
    add("document", version, "What klein-setup --json prints", _document)
    add("events", version, "One line of what klein-setup --json=events prints", _events)
    add("receipt", receipts.SCHEMA_VERSION, ".klein-setup/receipt.json of a models folder", _receipt)
    add("environment-receipt", RECEIPT_SCHEMA, "The receipt in an environment", _environment_receipt)
    add("comfyui-receipt", 1, ".klein-setup/comfyui.json of a ComfyUI folder", _comfyui_receipt)
    return found


def _versioned(version: int, body: Schema) -> Schema:
    properties = {"schema_version": {"const": version}, **body["properties"]}
    return {**body, "properties": properties, "required": ["schema_version", *body["required"]]}


def _receipt(maker: Maker) -> Schema:
    entries = {"type": "object", "additionalProperties": maker.of(receipts.Entry)}
    placing = {**entries, "description": "what was about to get its name when a run was killed"}
    files = {**entries, "description": "what was verified, by its path below the models folder"}
    texts = {"type": "array", "items": {"type": "string"}}
    manifests = {
        "type": "object",
        "additionalProperties": texts,
        "description": "what the folder was filled for: manifests by id, each with its files",
    }
    body = _closed({"files": files, "placing": placing, "manifests": manifests}, "", required=["files"])
    return {**_versioned(receipts.SCHEMA_VERSION, body), "additionalProperties": True}  # a later release may add keys


def _environment_receipt(maker: Maker) -> Schema:
    return _versioned(RECEIPT_SCHEMA, maker.object_of(EnvironmentReceipt))


def _comfyui_receipt(maker: Maker) -> Schema:
    row = maker.of(tuple[tuple[str, str, str], ...])
    rows = {**row, "description": f"mode, git id, path ({(inspect.getdoc(TreeFile) or '').partition(',')[0]})"}
    body = maker.object_of(CheckoutReceipt)
    body["properties"] |= {"entries": rows, "files": rows}
    maker.definitions.clear()
    return _versioned(1, body)


def text_of(schema: Schema) -> str:
    """Return a schema as its file holds it."""
    return json.dumps(schema, indent=1) + "\n"


def main() -> int:
    """Compare or write; return 1 where they differed."""
    parser = argparse.ArgumentParser(description="Compare docs/schema/ with the program's types.")
    parser.add_argument("--write", action="store_true", help="write the files")
    write = parser.parse_args().write
    stale = [
        name
        for name, schema in schemas().items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text(encoding="utf-8") != text_of(schema)
    ]
    for name in stale:
        print(f"docs/schema/{name} is stale{': written' if write else ''}")
        if write:
            (FOLDER / name).write_text(text_of(schemas()[name]), encoding="utf-8", newline="\n")
    return 1 if stale and not write else 0


if __name__ == "__main__":
    sys.exit(main())
