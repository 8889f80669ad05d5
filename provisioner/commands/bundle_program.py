"""klein-setup itself in a bundle: its wheel, what it needs, and the script that starts it there."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import provisioner
from provisioner import __version__
from provisioner.bundle.image_layout import Blob, Part
from provisioner.bundle.own_wheel import check_record, start_script, wheel_name, wheel_of
from provisioner.environment.bundled_wheels import BundledWheel, CollectedWheels
from provisioner.environment.locked_list import LockedList, parse_locked_list
from provisioner.manifest import shipped

START = "klein-setup.py"
"""The script's name, beside ``index.json``."""

NAME = "klein-setup"
"""Of the part."""

_PACKAGE = Path(provisioner.__file__).resolve().parent
_OF_A_CHECKOUT = (("manifests", "_manifests"), ("docs/schema", "_schema"))  # as pyproject.toml has it
START_KIND = "start"


def own_list() -> LockedList:
    """Return what klein-setup itself needs."""
    return parse_locked_list(shipped.locked_list().read_text(encoding="utf-8"))


def program_part(
    collected: CollectedWheels,
    before: Part | None,
    *,
    write: Callable[[str, bytes], None],
    copy: Callable[[str, Path], None],
) -> Part:
    """Put klein-setup for one system and Python into a bundle; return its part, with what it had for others.

    Parameters
    ----------
    collected : CollectedWheels
        With the wheels that klein-setup needs.
    before : Part or None
        What the bundle has so far.
    write, copy : callable
        Write bytes, or copy a file, to the place of the blob with a SHA-256.

    Raises
    ------
    IntegrityError
        A file of this installation was changed.
    NotTheFileError
        The part so far lists something that is no wheel.
    """
    kind = f"{sys.platform}-{platform.machine().lower()}-cp{collected.python.replace('.', '')}"
    blobs = [each for each in (() if before is None else before.blobs) if each.kind not in (kind, START_KIND)]
    for wheel, path in collected.own:
        blobs.append(Blob(sha256=wheel.sha256, size=path.stat().st_size, title=wheel.file_name, kind=kind))
        copy(wheel.sha256, path)

    def add(data: bytes, title: str, kind: str) -> None:
        blob = Blob(sha256=hashlib.sha256(data).hexdigest(), size=len(data), title=title, kind=kind)
        write(blob.sha256, data)
        blobs.append(blob)

    add(own_wheel(), wheel_name(__version__), kind)
    for each in blobs:
        BundledWheel(file_name=each.title, sha256=each.sha256, index="packages")  # or raises: some came with the bundle
    script = (_PACKAGE / "bundle" / "start_script.py").read_text(encoding="utf-8")
    add(start_script(script, ((each.kind or "", each.title, each.sha256) for each in blobs)), START, START_KIND)
    return Part(name=NAME, kind="program", blobs=tuple(blobs), version=__version__)


def start_of(part: Part) -> Blob | None:
    """Return the start script of a part; None where it has none, or several."""
    found = [each for each in part.blobs if each.kind == START_KIND]
    return found[0] if part.kind == "program" and len(found) == 1 else None


def own_wheel() -> bytes:
    """Return this very klein-setup as a wheel: a checkout as it lies there, an installation as it was installed.

    Raises
    ------
    IntegrityError
        A file of the installation was changed since.
    OSError
        A file cannot be read.
    """
    files = _below(_PACKAGE, "provisioner")
    records = list(_PACKAGE.parent.glob("klein_setup-*.dist-info/RECORD"))
    if records and (_PACKAGE / "_manifests").is_dir():
        check_record(records[0].read_text(encoding="utf-8"), files)
    else:
        for folder, name in _OF_A_CHECKOUT:
            files |= _below(_PACKAGE.parent / folder, f"provisioner/{name}")
        files["provisioner/_locked/run.txt"] = shipped.locked_list().read_bytes()
    return wheel_of(__version__, files)


def _below(folder: Path, name: str) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{name}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in found}
