"""klein-setup itself as a wheel: the same files give the same bytes.

The form is that of https://packaging.python.org/en/latest/specifications/binary-distribution-format/.  What klein-setup
needs stands in its locked list, each by its SHA-256, and not here.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping

from provisioner.core.errors import IntegrityError

_MOMENT = (1980, 1, 1, 0, 0, 0)  # the first that a zip can name
_FILES = {
    "WHEEL": "Wheel-Version: 1.0\nGenerator: klein-setup bundle\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "entry_points.txt": "[console_scripts]\nklein-setup = provisioner.cli.entry:run\n",
}


def wheel_name(version: str) -> str:
    """Return the name of the file."""
    return f"klein_setup-{version}-py3-none-any.whl"


def wheel_of(version: str, files: Mapping[str, bytes]) -> bytes:
    """Return a wheel with these files of the package, by their names in it, ``provisioner/__init__.py``."""
    info = f"klein_setup-{version}.dist-info"
    content = dict(sorted(files.items()))
    content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: klein-setup\nVersion: {version}\n".encode()
    content |= {f"{info}/{name}": text.encode() for name, text in _FILES.items()}
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in content.items())
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, _MOMENT)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            made.writestr(entry, data)
    return stream.getvalue()


def check_record(record: str, files: Mapping[str, bytes]) -> None:
    """Raise IntegrityError where a file is not the one that was installed.

    Parameters
    ----------
    record : str
        ``RECORD`` of the installation.
    files : mapping of str to bytes
        What lies there now, by the names in it.
    """
    listed = {row[0]: row[1] for row in csv.reader(record.splitlines()) if len(row) == 3}
    for name, data in files.items():
        if listed.get(name) != f"sha256={_digest(data)}":
            raise IntegrityError(
                f"klein-setup's own file {name} is not the one that was installed.",
                hint="Install klein-setup again, then run the same command.",
            )


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def start_script(script: str, wheels: Iterable[tuple[str, str, str]]) -> bytes:
    """Return the start script with its list of wheels.

    Parameters
    ----------
    script : str
        The text of ``start_script.py``.
    wheels : iterable of tuple
        System and Python, file name, SHA-256.
    """
    listed: dict[str, list[list[str]]] = {}
    for kind, name, sha256 in sorted(wheels, key=lambda each: (each[0], not each[1].startswith("pip-"), each[1])):
        listed.setdefault(kind, []).append([name, sha256])
    empty = 'WHEELS: "dict[str, list[list[str]]]" = {}\n'
    before, found, after = script.partition(empty)
    if not found:
        raise AssertionError
    lines = []
    for kind, rows in listed.items():
        lines += [f"    {kind!r}: [\n", *(f"        {row!r},\n" for row in rows), "    ],\n"]
    return f"{before}{empty[:-3]}{{\n{''.join(lines)}}}\n{after}".encode()
