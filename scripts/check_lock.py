#!/usr/bin/env python3
"""Check that ``scripts/locked/*.txt`` say what ``uv.lock`` says, and that the lock answers ``pyproject.toml``.

``uv.lock`` is for developers; the lists are the same choice for pip, which every Python has, and the wheels of uv in
``install.sh`` and ``install.ps1`` are those of the lock.  ``--write`` renews the lists with ``uv export``, and the
wheels.  The check itself needs neither uv nor a TOML reader (Python 3.10 has none): both files are
written by one program in one form, and what does not have that form is refused.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "klein-setup"
HOSTS = ("https://pypi.org/", "https://files.pythonhosted.org/")
GROUPS: dict[str, tuple[str, ...]] = {
    "run": ("image", "oci", "signing"),
    "tests": ("image", "oci", "signing", "test", "lint"),
}
EXTRAS = ("image", "oci", "signing")  # of those, the ones that users may choose; the others are dependency groups
INSTALLERS = {
    "install.sh": {
        "Linux-x86_64": "manylinux_2_17_x86_64",
        "Linux-aarch64": "manylinux_2_17_aarch64",
        "Darwin-arm64": "macosx_11_0_arm64",
        "Darwin-x86_64": "macosx_10_12_x86_64",
    },
    "install.ps1": {"AMD64": "win_amd64", "ARM64": "win_arm64"},
}  # what each calls a computer, and how the tags of uv's wheel for it begin
INSTALLER_FORMS = {
    "install.sh": "    {kind})\n        address={url}\n        sha256={sha256}\n        ;;\n",
    "install.ps1": '    "{kind}" {{\n        $address = "{url}"\n        $sha256 = "{sha256}"\n    }}\n',
}
INSTALLER_MARK = "# From uv.lock, by `python3 scripts/check_lock.py --write`.\n"
HEADER = "# Written by `python3 scripts/check_lock.py --write` from uv.lock; not by hand.\n"


class Pinned(NamedTuple):
    """One version of one package."""

    name: str
    version: str


class Entry(NamedTuple):
    """What ``uv.lock`` says of one version of one package."""

    hashes: frozenset[str]
    needs: frozenset[str]
    extras: dict[str, frozenset[str]]  # names needed by "package[extra]", and by a dependency group of the project


def parse_needs(text: str) -> frozenset[str]:
    """Return names, and ``name[extra]``, of the inline tables in a list of dependencies."""
    found: set[str] = set()
    for table in re.findall(r"\{ (name = [^}]*) \}", text):
        name = re.match(r'name = "([^"]+)"', table)
        if name is None:
            message = f"unexpected dependency in uv.lock: {table}"
            raise ValueError(message)
        found.add(name[1])
        extras = re.search(r"extra = \[([^\]]*)\]", table)
        found |= {f"{name[1]}[{extra}]" for extra in re.findall(r'"([^"]+)"', extras[1] if extras else "")}
    return frozenset(found)


def parse_lock(text: str) -> dict[Pinned, Entry]:
    """Return the packages of a ``uv.lock``; the project itself has an empty version."""
    entries: dict[Pinned, Entry] = {}
    for block in text.split("[[package]]\n")[1:]:
        name = re.search(r'^name = "([^"]+)"$', block, re.M)
        version = re.search(r'^version = "([^"]+)"$', block, re.M)
        if name is None or (version is None and name[1] != PROJECT):
            message = f"unexpected package in uv.lock: {block[:80]!r}"
            raise ValueError(message)
        head, *tables = re.split(r"^\[package\.([a-z-]+)\]$", block, flags=re.M)
        needs = re.search(r"^dependencies = \[(.*?)^\]$", head, re.M | re.S)
        extras = {
            key: parse_needs(listed)
            for table, body in zip(tables[::2], tables[1::2], strict=True)
            if table in {"optional-dependencies", "dev-dependencies"}
            for key, listed in re.findall(r"^([\w-]+) = \[(.*?)^\]$", body, re.M | re.S)
        }
        entries[Pinned(name[1], version[1] if version else "")] = Entry(
            hashes=frozenset(re.findall(r'hash = "(sha256:[0-9a-f]{64})"', head)),
            needs=parse_needs(needs[1] if needs else ""),
            extras=extras,
        )
    return entries


def parse_requirements(text: str) -> dict[Pinned, frozenset[str]]:
    """Return the packages of a hash-pinned list with their hashes."""
    found: dict[Pinned, frozenset[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        head, *hashes = re.split(r"\s+--hash=", line.strip())
        match = re.fullmatch(r"([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==([^\s;]+)(?: ; [^\\]*)?", head)
        if match is None or not hashes or not all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes):
            message = f"unexpected line in a locked list: {line[:80]!r}"
            raise ValueError(message)
        found[Pinned(match[1], match[2])] = frozenset(hashes)
    return found


def reachable(entries: dict[Pinned, Entry], groups: tuple[str, ...]) -> set[str]:
    """Return the names of every package that the project and those extras and groups of it need."""
    needs: dict[str, set[str]] = {}
    for pinned, entry in entries.items():
        needs.setdefault(pinned.name, set()).update(entry.needs)
        for extra, listed in entry.extras.items():
            needs.setdefault(f"{pinned.name}[{extra}]", set()).update(listed)
    found: set[str] = set()
    ahead = [PROJECT, *(f"{PROJECT}[{group}]" for group in groups)]
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead.extend(needs.get(name, ()))
    return {name for name in found if "[" not in name} - {PROJECT}


def complaints_about_list(kind: str, entries: dict[Pinned, Entry], listed: dict[Pinned, frozenset[str]]) -> list[str]:
    """Return where a locked list and the lock differ, a sentence each."""
    found: list[str] = []
    for pinned, hashes in listed.items():
        if pinned not in entries:
            found.append(f"{kind}.txt: {pinned.name} {pinned.version} is not in uv.lock")
        elif hashes != entries[pinned].hashes:
            found.append(f"{kind}.txt: the hashes of {pinned.name} {pinned.version} are not those of uv.lock")
    wanted = reachable(entries, GROUPS[kind])
    expected = {pinned for pinned in entries if pinned.name in wanted}
    found += [f"{kind}.txt: {pinned.name} {pinned.version} is missing" for pinned in sorted(expected - set(listed))]
    surplus = [pinned.name for pinned in sorted(listed) if pinned.name not in wanted]
    found += [f"{kind}.txt: {name} is needed by nothing" for name in surplus]
    return found


def complaints_about_hosts(lock: str) -> list[str]:
    """Return the addresses and local sources in the lock that are not PyPI's, a sentence each."""
    addresses = set(re.findall(r'"([a-z+]+://[^"]*)"', lock))
    found = [f"uv.lock names {address}" for address in sorted(addresses) if not address.startswith(HOSTS)]
    sources = set(re.findall(r"source = \{ (\w+) = \"([^\"]*)\"", lock))
    return found + [
        f"uv.lock takes a package from {kind} {place}"
        for kind, place in sorted(sources)
        if kind != "registry" and place != "."
    ]


def declared(pyproject: str) -> set[str]:
    """Return the dependencies of ``pyproject.toml``, its extras' too, without spaces, markers as uv writes them."""
    block = re.search(r"^dependencies = \[\n(.*?)^\]$", pyproject, re.M | re.S)
    if block is None:
        message = "pyproject.toml has no list of dependencies"
        raise ValueError(message)
    extras = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", pyproject, re.M | re.S)
    listed = re.findall(r'^\s*"([^"]+)",', block[1], re.M)
    listed += re.findall(r'^\w+ = \["([^"]+)"\]$', extras[1] if extras else "", re.M)
    return {line.replace(" ", "").replace(";python_version", ";python_full_version") for line in listed}


def answered(lock: str) -> set[str]:
    """Return the dependencies of the project that the lock was made for, in the same form."""
    block = re.search(r"^requires-dist = \[\n(.*?)^\]$", lock, re.M | re.S)
    form = r'name = "([^"]+)"(?:, marker = "(?:extra [^"]+|([^"]+))")?(?:, specifier = "([^"]+)")?'
    rows = re.findall(form, block[1] if block else "")
    return {(name + specifier + (marker and f";{marker}")).replace(" ", "") for name, marker, specifier in rows}


def with_wheels_of_uv(name: str, script: str, lock: str) -> str:
    """Return ``install.sh`` or ``install.ps1`` with the wheels of uv that the lock names, after its mark."""
    block = next(block for block in lock.split("[[package]]\n") if block.startswith('name = "uv"\n'))
    wheels = re.findall(r'url = "([^"]+/uv-[^/"]+-py3-none-([^"/]+)\.whl)", hash = "sha256:([0-9a-f]{64})"', block)
    rows = "".join(
        INSTALLER_FORMS[name].format(kind=kind, url=url, sha256=sha256)
        for kind, tag in INSTALLERS[name].items()
        for url, tags, sha256 in wheels
        if tags.split(".")[0] == tag
    )
    row = INSTALLER_FORMS[name].format(kind="@", url="@", sha256="@")
    known = re.escape(row.replace("{{", "{")).replace("@", r'[^\s"]+')
    return re.sub(rf"({re.escape(INSTALLER_MARK)})(?:{known})*", lambda found: found[1] + rows, script)


def complaints(root: Path = ROOT) -> list[str]:
    """Return everything that does not agree, a sentence each; empty when all is well."""
    lock = (root / "uv.lock").read_text(encoding="utf-8")
    entries = parse_lock(lock)
    found = complaints_about_hosts(lock)
    stale = declared((root / "pyproject.toml").read_text(encoding="utf-8")) ^ answered(lock)
    found += [f"pyproject.toml and uv.lock differ on {name}; run `uv lock`" for name in sorted(stale)]
    for kind in GROUPS:
        listed = parse_requirements((root / "scripts" / "locked" / f"{kind}.txt").read_text(encoding="utf-8"))
        found += complaints_about_list(kind, entries, listed)
    for name in INSTALLERS:
        script = (root / "scripts" / name).read_text(encoding="utf-8")
        if with_wheels_of_uv(name, script, lock) != script:
            found.append(f"{name}: the wheels of uv are not those of uv.lock")
    return found


def write(root: Path = ROOT) -> None:
    """Renew the locked lists and the installers from ``uv.lock``, whatever index this machine is configured for."""
    lock = (root / "uv.lock").read_text(encoding="utf-8")
    for name in INSTALLERS:
        path = root / "scripts" / name
        script = path.read_text(encoding="utf-8")
        path.write_text(with_wheels_of_uv(name, script, lock), encoding="utf-8", newline="\n")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    options = ["--no-config", "--frozen", "--format", "requirements-txt", "--quiet"]
    shape = ["--no-emit-project", "--no-default-groups", "--no-annotate", "--no-header"]
    for kind, groups in GROUPS.items():
        chosen = [word for name in groups for word in ("--extra" if name in EXTRAS else "--group", name)]
        done = subprocess.run(
            ["uv", "export", *options, *shape, *chosen],
            cwd=root,
            env=environ,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            check=True,
        )
        (root / "scripts" / "locked" / f"{kind}.txt").write_text(HEADER + done.stdout, encoding="utf-8", newline="\n")


def main() -> int:
    """Print what does not agree; return 1 if anything does not."""
    parser = argparse.ArgumentParser(
        description="Check that scripts/locked/*.txt and the installers agree with uv.lock."
    )
    parser.add_argument("--write", action="store_true", help="renew the lists with `uv export`, then check")
    if parser.parse_args().write:
        write()
    found = complaints()
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
