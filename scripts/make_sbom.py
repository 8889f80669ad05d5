#!/usr/bin/env python3
"""Write the list of everything the program is made of (CycloneDX 1.5) from ``uv.lock``, and check it.

``uv run nox -s sbom`` makes ``dist/klein-setup-VERSION.cdx.json`` for a release.  uv writes it, because uv wrote the
lock; it leaves out the program's own version, which stands in the package.  The check: CycloneDX's own schema, and the
same packages, versions and hashes as ``scripts/locked/run.txt``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.check_lock import GROUPS, PROJECT, Pinned, parse_requirements  # noqa: E402 - found through the line above


def exported(root: Path = ROOT) -> dict[str, Any]:
    """Return what uv says of the lock, without asking a network."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    options = ["--no-config", "--frozen", "--offline", "--quiet", "--no-default-groups"]
    options += [word for extra in GROUPS["run"] for word in ("--extra", extra)]
    form = ["--format", "cyclonedx1.5", "--preview-features", "sbom-export"]
    command = [sys.executable, "-m", "uv", "export", *options, *form]
    done = subprocess.run(command, cwd=root, env=environ, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def version_of(root: Path = ROOT) -> str:
    """Return the program's version; raises ValueError where there is none."""
    found = re.search(r'^__version__ = "([^"]+)"$', (root / "provisioner" / "__init__.py").read_text("utf-8"), re.M)
    if found is None:
        message = "provisioner/__init__.py names no version"
        raise ValueError(message)
    return found[1]


def named(document: dict[str, Any], version: str) -> dict[str, Any]:
    """Return the document as that of a version of this program."""
    program = document["metadata"]["component"]
    purl = f"pkg:pypi/{PROJECT}@{version}"
    program |= {"type": "application", "name": PROJECT, "version": version, "purl": purl}
    return document


def complaints(document: dict[str, Any], listed: dict[Pinned, frozenset[str]]) -> list[str]:
    """Return where the document and a hash-pinned list differ, a sentence each; empty when all is well."""
    program = document["metadata"]["component"]
    found = [] if program.get("version") else [f"{program.get('name')} has no version"]
    seen: dict[Pinned, frozenset[str]] = {}
    for each in document["components"]:
        references = [hash_ for one in each.get("externalReferences", ()) for hash_ in one.get("hashes", ())]
        hashes = {f"sha256:{one['content']}" for one in references if one["alg"] == "SHA-256"}
        seen[Pinned(each["name"], each["version"])] = frozenset(hashes)
    found += [f"{name} {version} is missing" for name, version in sorted(listed.keys() - seen.keys())]
    found += [f"{name} {version} is needed by nothing" for name, version in sorted(seen.keys() - listed.keys())]
    common = [each for each in sorted(listed.keys() & seen.keys()) if listed[each] != seen[each]]
    return found + [f"{each.name} {each.version} has other hashes" for each in common]


def schema_complaint(text: str) -> str | None:
    """Return what CycloneDX's own strict schema has against a document; needs the dependency group ``release``."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
    return None if error is None else f"not CycloneDX 1.5: {error.data}"


def main() -> int:
    """Write the file, unless something is wrong with it; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Write the CycloneDX list of what the program is made of, from uv.lock."
    )
    parser.add_argument("--output", type=Path, help="where to (default: dist/klein-setup-VERSION.cdx.json)")
    version = version_of()
    output = parser.parse_args().output or ROOT / "dist" / f"{PROJECT}-{version}.cdx.json"
    document = named(exported(), version)
    text = json.dumps(document, indent=2) + "\n"
    listed = parse_requirements((ROOT / "scripts" / "locked" / "run.txt").read_text(encoding="utf-8"))
    schema = schema_complaint(text)
    found = [*complaints(document, listed), *([] if schema is None else [schema])]
    for line in found:
        print(line)
    if found:
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8", newline="\n")
    print(f"{output}: {len(document['components'])} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
