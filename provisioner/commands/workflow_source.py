"""Finds the workflow that a person names: a file, an address, or a template of ComfyUI, installed or at the index."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from provisioner.commands.inspect_comfyui import inspect_comfyui
from provisioner.commands.run import Options, open_run
from provisioner.commands.session import Session
from provisioner.commands.templates import INDEX_BYTES, index_entry, template_files
from provisioner.core.errors import EntryNotFoundError, NotTheFileError, OfflineError, UsageError, WorkflowError
from provisioner.core.hosts import LOOPBACK
from provisioner.core.ports import OnlineFile
from provisioner.core.redact import redact
from provisioner.core.route import Route
from provisioner.environment.index_page import newest_wheel
from provisioner.workflow.read_workflow import LARGEST_IMAGE

_PACKAGE = "comfyui-workflow-templates-json"
_INDEX = "https://pypi.org/simple"
_PAGE_BYTES = 32 * 1024 * 1024
_ENTRY_BYTES = 64 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", re.ASCII)
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", re.ASCII)
_HINT = "Name a .json or .png file, an https address, or the id of a template such as image_flux2_klein_text_to_image."


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundWorkflow:
    """A workflow as it was found."""

    data: bytes
    label: str  # for a person
    name: str  # without its ending
    title: str
    min_comfyui: str | None = None  # of a template, as its index says
    is_template: bool = False
    path: Path | None = None  # of a file


def find_workflow(session: Session, named: str, comfyui: Path | None) -> FoundWorkflow:
    """Return the workflow that a person names.

    Parameters
    ----------
    session : Session
        What to work with.
    named : str
        A path, an https address, or the id of a template.
    comfyui : Path or None
        The ComfyUI whose templates are looked at first, instead of the usual one.

    Raises
    ------
    UsageError
        There is no such file and no such template, or it cannot be read.
    NetworkError, AccessError, IntegrityError
        The address does not give a workflow.
    """
    if re.match(r"[a-z]+://", named, re.IGNORECASE):
        return _at_address(session, named)
    path = Path(named).expanduser()
    if path.is_file() or "/" in named or "\\" in named or named.casefold().endswith((".json", ".png")):
        return _in_file(path)
    if not _NAME.fullmatch(named):
        raise UsageError(f"{redact(named)!r} is no file, no address and no id of a template.", hint=_HINT)
    return _installed(session, named, comfyui) or _at_index(session, named)


def _at_address(session: Session, url: str) -> FoundWorkflow:
    from urllib.parse import urlsplit

    from provisioner.files.download.small_file import fetch_bytes
    from provisioner.network.http_session import shown

    parts = urlsplit(url)
    is_here = session.settings.allows_loopback and parts.hostname in LOOPBACK
    if not parts.hostname or "@" in parts.netloc or (parts.scheme != "https" and not is_here):
        raise UsageError(
            f"{shown(url)} is no address that a workflow is read from: expected https, without a user name.", hint=_HINT
        )
    if session.is_offline:
        raise OfflineError(f"With --offline nothing is read from {shown(url)}.", hint="Name a file instead.")
    data = fetch_bytes(url, most=LARGEST_IMAGE)
    stem = parts.path.rsplit("/", 1)[-1].rpartition(".")[0] or parts.hostname
    return FoundWorkflow(data=data, label=shown(url), name=stem, title=_title(stem))


def _in_file(path: Path) -> FoundWorkflow:
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not there"
            raise UsageError(f"{path} {what}; expected a workflow.", hint=_HINT, path=str(path))
        with path.open("rb") as stream:
            data = stream.read(LARGEST_IMAGE + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}.", hint=_HINT, path=str(path)) from error
    return FoundWorkflow(data=data, label=str(path), name=path.stem, title=_title(path.stem), path=path)


def _installed(session: Session, name: str, comfyui: Path | None) -> FoundWorkflow | None:
    """Return a template that a ComfyUI on this computer has."""
    from provisioner.commands.choose_environment import environment_folder
    from provisioner.commands.comfyui_image import python_of

    run = open_run(session, Options(comfyui=comfyui), with_machine=False)
    install = inspect_comfyui(run)
    python = None if install is None else python_of(run, install, environment_folder(run, None))[0]
    path = None if python is None else template_files(python).get(f"{name}.json")
    if path is None:
        return None
    try:
        with path.open("rb") as stream:
            data = stream.read(LARGEST_IMAGE + 1)
        with path.with_name("index.json").open("rb") as stream:
            index = stream.read(INDEX_BYTES + 1)
    except OSError:
        return None
    return _template(data, index, name, f"the template {name} of {path.parent}")


def _at_index(session: Session, name: str) -> FoundWorkflow:
    """Return a template out of the newest package with templates; the wheel is kept for the next time."""
    from provisioner.files.download.small_file import fetch_bytes

    if session.is_offline:
        raise OfflineError(
            f"{name} is no template of a ComfyUI here, and with --offline the index is not asked.", hint=_HINT
        )
    url = f"{(session.settings.package_index or _INDEX).rstrip('/')}/{_PACKAGE}/"
    page = fetch_bytes(url, most=_PAGE_BYTES, accept="application/vnd.pypi.simple.v1+json, text/html;q=0.5")
    wheel = newest_wheel(page, url)
    if wheel is None:
        raise EntryNotFoundError(f"{redact(url)} lists no wheel of {_PACKAGE}.", hint="Name another --package-index.")
    file = OnlineFile(
        url=wheel.url, name=wheel.name, label=f"{_PACKAGE} {wheel.version}", sha256=wheel.sha256, route=Route()
    )
    brought = session.wheel_cache.bring([file])
    if wheel.sha256 not in brought.paths:
        raise brought.refused[0][1]
    try:
        with zipfile.ZipFile(brought.paths[wheel.sha256]) as archive:
            found = {each.filename.rsplit("/", 1)[-1]: each for each in archive.infolist() if not each.is_dir()}
            if f"{name}.json" not in found:
                raise _unknown(name, wheel.version, list(found))
            data = _member(archive, found[f"{name}.json"])
            index = _member(archive, found["index.json"]) if "index.json" in found else b"[]"
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise NotTheFileError(f"{wheel.name} is no archive that can be read: {error}.", hint="Try again.") from error
    return _template(data, index, name, f"the template {name} of {_PACKAGE} {wheel.version}")


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.file_size > _ENTRY_BYTES:
        raise WorkflowError(f"{entry.filename[:200]} has {entry.file_size:,} bytes; expected a workflow.")
    return archive.read(entry)


def _unknown(name: str, version: str, files: list[str]) -> UsageError:
    from provisioner.core.suggestions import did_you_mean

    known = [each.removesuffix(".json") for each in files if each.endswith(".json")]
    return UsageError(
        f"There is no file {name} here and no template of that name in {_PACKAGE} {version}."
        f"{did_you_mean(name, known)}",
        hint=_HINT,
    )


def _template(data: bytes, index: bytes, name: str, label: str) -> FoundWorkflow:
    entry = index_entry(index, name)
    title, version = entry.get("title"), entry.get("minComfyUIVersion")
    return FoundWorkflow(
        data=data,
        label=label,
        name=name,
        title=_title(title if isinstance(title, str) else name),
        is_template=True,
        min_comfyui=version if isinstance(version, str) and _VERSION.fullmatch(version) else None,
    )


def _title(text: str) -> str:
    """Return a text of somebody else's as one line for a manifest."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line[:120].strip() or "workflow"
