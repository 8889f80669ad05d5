#!/usr/bin/env python3
"""Write docs/errors.md from the classes of errors and docs/manifest-keys.md from manifests/schema.json.

Without ``--write`` only compare.  An error's page is its docstring: the first line says what happened, the rest what to
do.  What a key of a manifest means is written once, in the schema.
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
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from provisioner.core.errors import KleinError  # noqa: E402 - found through the line above when run as a script
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
    "$defs/artifact": "An artifact, in `artifacts`",
    "$defs/source/oneOf/0": "A source on the Hub, in `sources`",
    "$defs/source/oneOf/1": "A source at any other address, in `sources`",
    "$defs/variant": "Another accepted content, in `accept`",
    "$defs/content": "A content that is something else, in `lookalikes`",
    "$defs/fingerprint": "`fingerprint` of an artifact",
    "$defs/provenance": "`provenance` of an artifact",
    "properties/lock": "`lock`",
    "properties/lock/properties/torch_wheels/items": "A wheel, in `torch_wheels`",
}
FORMS = ("id", "line", "prose", "path", "url", "sha256", "git_hash", "size", "count", "memory")


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


def pages() -> dict[Path, str]:
    """Return the text of each page that is made."""
    schema: Schema = json.loads((ROOT / "manifests" / "schema.json").read_text(encoding="utf-8"))
    made = {"errors.md": errors_page(), "manifest-keys.md": manifest_page(schema)}
    return {ROOT / "docs" / name: re.sub(r"\n{3,}", "\n\n", text) for name, text in made.items()}


def main() -> int:
    """Compare or write; return 1 where a page differs and is not written."""
    parser = argparse.ArgumentParser(description="Check docs/errors.md and docs/manifest-keys.md.")
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
