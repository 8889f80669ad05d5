"""What pip and uv are told, and what their words mean: settings, arguments, reports, failures.

Pure: it starts nothing.  It keeps only those of a person's settings that say how to reach a network; the ones that say
what to install, from where, or where to, would make another environment than the one that was decided on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urldefrag, urlsplit

from packaging.utils import canonicalize_name

from provisioner.core.errors import (
    CommandError,
    EntryNotFoundError,
    HashMismatchError,
    InsufficientSpaceError,
    IntegrityError,
    KleinError,
    NotTheFileError,
    NotWritableError,
    OfflineError,
    RateLimitedError,
    ServerError,
    UnauthorizedError,
    UnreachableError,
    UsageError,
)
from provisioner.core.hosts import is_in_the_clear
from provisioner.core.json_reader import FieldError, Fields, parse_object
from provisioner.core.redact import printable, redact
from provisioner.core.route import Route
from provisioner.core.units import count, listing
from provisioner.environment.pip_settings import Settings
from provisioner.environment.state import FAMILY
from provisioner.network.certificates import certificate_error, certificate_problem, proxy_error, proxy_status

DEFAULT_INDEX = "https://pypi.org/simple"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One file that an installation needs, as the index offers it: a wheel, or a source archive."""

    name: str  # normalized
    version: str  # of the wheel's own metadata
    url: str
    sha256: str | None  # None where the index publishes none
    is_direct: bool = False  # the requirement named the address
    is_built: bool = False  # of a source archive, on this computer: made again, it has another SHA-256

    @property
    def file_name(self) -> str:
        """The wheel's own name, ``torch-2.14.1+cu130-cp312-cp312-manylinux_2_28_x86_64.whl``."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name

    @property
    def is_online(self) -> bool:
        """Whether it comes over a network, this computer's own included."""
        return self.url.lower().startswith(("https:", "http:"))

    @property
    def is_wheel(self) -> bool:
        """Whether it is one; else a source archive, which has to be built."""
        return self.file_name.endswith(".whl")

    @property
    def label(self) -> str:
        """Name and version, for a person."""
        return f"{self.name} {self.version}"

    @property
    def requirement(self) -> str:
        """The line of a requirements file that means this wheel, and with a digest no other file."""
        line = f"{self.name}=={self.version}"
        return line if self.sha256 is None else f"{line} --hash=sha256:{self.sha256}"


# --- settings ----------------------------------------------------------------------------------


def check_indexes(settings: Settings) -> None:
    """Raise UsageError where packages would be looked for in the clear, on another computer than this one."""
    for name in ("index-url", "extra-index-url", "find-links"):
        for address in settings.get(name, "").split():
            if is_in_the_clear(address):
                raise UsageError(
                    f"pip's {name} is {redact(address)}: http, which others on the network can change.",
                    hint="Use the https address of that index, in PIP_INDEX_URL or pip's configuration.",
                )


def check_wheels(wheels: Iterable[Wheel]) -> None:
    """Raise IntegrityError where an index names no SHA-256 for a file: then nobody knows what is to arrive."""
    bare = [wheel for wheel in wheels if wheel.sha256 is None and wheel.is_online]
    if bare:
        more = f" and {count(len(bare) - 1, 'other file')}" if len(bare) > 1 else ""
        raise IntegrityError(
            f"The index names no SHA-256 for {bare[0].label}{more} ({redact(bare[0].url)}): nothing was fetched.",
            hint="Use an index that does: `--torch-index URL` for torch, PIP_INDEX_URL for other packages. Or fetch "
            "these files yourself: name their folder with PIP_FIND_LINKS, and for torch pass --offline, too.",
            packages=[wheel.name for wheel in bare],
        )


def route_to(url: str, settings: Settings, index_url: str | None) -> Route:
    """Return how a person's pip settings say that a wheel's server is reached.

    The name and the password of the index are sent to its own origin only; pip leaves them out of its report.
    """
    parts = urlsplit(url)
    index = urlsplit(index_url or "")
    is_of_index = (parts.scheme, parts.hostname, parts.port) == (index.scheme, index.hostname, index.port)
    named = parts if parts.username else index if is_of_index else None
    trusted = settings.get("trusted-host", "").split()
    return Route(
        user=(unquote(named.username), unquote(named.password or "")) if named and named.username else None,
        proxy=settings.get("proxy"),
        certificates=Path(settings["cert"]) if "cert" in settings else None,
        client_certificate=Path(settings["client-cert"]) if "client-cert" in settings else None,
        checks_certificate=parts.hostname not in trusted and f"{parts.hostname}:{parts.port}" not in trusted,
    )


def constraint_value(path: Path) -> str:
    """Return a constraints file as ``PIP_CONSTRAINT`` takes it: pip splits the value at spaces, an address has none.

    >>> constraint_value(Path("/comfy/.venv/constraints.txt"))
    '/comfy/.venv/constraints.txt'
    >>> constraint_value(Path("/my comfy/constraints.txt"))
    'file:///my%20comfy/constraints.txt'
    """
    return path.as_uri() if re.search(r"\s", str(path)) else str(path)


def constraint_variables(path: Path) -> dict[str, str]:
    """Return the variables under which pip and uv hold to a constraints file, for an application that calls either.

    uv ignores ``PIP_CONSTRAINT`` and pip ignores ``UV_CONSTRAINT`` (uv 0.13.9, pip 26.3).
    """
    return {"PIP_CONSTRAINT": constraint_value(path), "UV_CONSTRAINT": constraint_value(path)}


# --- what pip resolved -------------------------------------------------------------------------


def parse_report(text: str) -> tuple[Wheel, ...]:
    """Return what ``pip install --dry-run --report`` would install; raises CommandError where it is not readable."""
    fields = Fields(parse_object(text) or {})
    try:
        return tuple(_wheel(entry) for entry in fields.objects("install"))
    except FieldError as error:
        raise CommandError(f"pip's report cannot be read ({error}).", hint="Use a newer pip.") from error


def _wheel(entry: Fields) -> Wheel:
    metadata, download = entry.inner("metadata"), entry.inner("download_info")
    return Wheel(
        name=canonicalize_name(metadata.text("name")),
        version=metadata.text("version"),
        url=urldefrag(download.text("url")).url,
        sha256=_sha256(download.values.get("archive_info")),
        is_direct=entry.optional_flag("is_direct") is True,
    )


def _sha256(archive: object) -> str | None:
    if not isinstance(archive, dict):
        return None
    hashes = archive.get("hashes")
    if isinstance(hashes, dict) and isinstance(hashes.get("sha256"), str):
        return str(hashes["sha256"])
    single = archive.get("hash")
    return single[7:] if isinstance(single, str) and single.startswith("sha256=") else None


def links_page(wheels: Iterable[Wheel]) -> str:
    """Return a page that pip and uv take with ``--find-links``: each file at its address, with its SHA-256."""
    lines = (
        f'<a href="{escape(wheel.url)}#sha256={wheel.sha256}">{escape(wheel.file_name)}</a><br>\n' for wheel in wheels
    )
    return f"<!DOCTYPE html>\n<html><body>\n{''.join(lines)}</body></html>\n"


def requirement_line(wheel: Wheel) -> str:
    r"""Return the line of a requirements file that means a wheel at its address; pip expands no variable in it.

    >>> requirement_line(Wheel(name="a", version="1", url="https://x/a.whl?s=${HF_TOKEN}\n-i", sha256=None))
    'https://x/a.whl?s=%24{HF_TOKEN}%0A-i\n'
    """
    address = re.sub(r"[^!-~]|[$\\]", lambda found: quote(found[0]), wheel.url)
    return f"{address}#sha256={wheel.sha256}\n" if wheel.sha256 else f"{address}\n"


# --- failures ----------------------------------------------------------------------------------

_NO_ROOM = ("no space left", "errno 28", "errno 122", "not enough space on the disk", "winerror 112", "disk quota")
_NO_PERMISSION = ("permission denied", "errno 13", "errno 30", "read-only file system", "winerror 5]")
_NO_NETWORK = (
    "connection broken",
    "connection refused",
    "connection reset",
    "connection aborted",
    "connectionerror",
    "connecttimeout",
    "could not fetch url",
    "failed to establish",
    "getaddrinfo failed",
    "incompleteread",
    "incomplete-download",
    "download failed because not enough bytes",
    "max retries exceeded",
    "name resolution",
    "network is unreachable",
    "no route to host",
    "proxyerror",
    "read timed out",
    "remote end closed",
    "sslerror",
    "temporary failure",
    "error sending request",
)
_MISSING = re.compile(
    r"(?:could not find a version that satisfies the requirement|no matching distribution found for) ([^\s;(]+)", re.I
)
_NOT_HERE = re.compile(r"[Bb]ecause (\S+) was not found in the (?:cache|provided package locations)")  # uv
_OFFERED = re.compile(r"\(from versions: ([^)]*)\)")
_INCONSISTENT = re.compile(r"inconsistent (?:version|name): expected '([^']*)', but metadata has '([^']*)'")


def page_failures(log: str) -> list[str]:
    """Return the lines of pip's log that say which pages of an index could not be read; its output hides them.

    A page that is not there is no failure: pip then looks elsewhere.  Neither is 403: download.pytorch.org answers
    so for a project it does not have.

    >>> page_failures("2026-11-23T04:03:38,380 Could not fetch URL http://x/torch/: 401 Client Error: no - skipping")
    ['Could not fetch URL http://x/torch/: 401 Client Error: no - skipping']
    """
    lines = [line.partition(" ")[2] for line in log.splitlines() if "Could not fetch URL" in line]
    return [line for line in lines if not re.search(r": 40[34] Client Error", line)]


def explain_failure(output: Iterable[str], *, doing: str, index_url: str | None) -> KleinError:
    """Return the error that an installer's last words amount to.

    Parameters
    ----------
    output : iterable of str
        Its lines, both streams.
    doing : str
        What it was to do: "install torch 2.14.1+cu130".
    index_url : str or None
        The index it was sent to.
    """
    lines = [redact(printable(line)).strip() for line in output]
    lines = [line for line in lines if line]
    text = "\n".join(lines)
    index = redact(index_url or "the default package index")
    facts = {"index_url": index, "last_lines": lines[-40:]}
    return (
        _disk(text, doing, facts)
        or _wrong_bytes(text, doing, index, facts)
        or _conflict(lines, text, doing, facts)
        or _on_the_way(text, doing, index, facts)
        or _refused(text, doing, index, facts)
        or _network(text, lines, doing, index, facts)
        or _not_offered(text, index, facts)
        or CommandError(f"pip could not {doing}: {_said(lines)}", hint=_LOOK, **facts)
    )


_LOOK = "Read the last lines below; the same command can be run again."


def _said(lines: Sequence[str]) -> str:
    """Return the line that says most: pip's own error, else the last one."""
    errors = [line for line in lines if line.startswith(("ERROR", "error:"))]
    return (errors or list(lines) or ["it said nothing."])[-1]


def _disk(text: str, doing: str, facts: Mapping[str, object]) -> KleinError | None:
    lowered = text.lower()
    if any(sign in lowered for sign in _NO_ROOM):
        hint = "Free some space (a CUDA build needs about 8 GB while it is installed) and run the same command again."
        return InsufficientSpaceError(f"The disk is full; pip could not {doing}.", hint=hint, **facts)
    if any(sign in lowered for sign in _NO_PERMISSION):
        hint = "Close what uses the environment, and look at who owns its folder."
        return NotWritableError(f"No permission to write; pip could not {doing}.", hint=hint, **facts)
    return None


def _wrong_bytes(text: str, doing: str, index: str, facts: Mapping[str, object]) -> KleinError | None:
    wrong = _INCONSISTENT.search(text)
    if wrong is not None:
        message = f"{index} offers a wheel named {wrong[1]} whose own metadata says {wrong[2]}."
        return NotTheFileError(message, hint="Take another index: `--torch-index URL`.", **facts)
    if "do not match the hashes" in text.lower() or "hash mismatch" in text.lower():
        message = f"{index}, or a proxy on the way, delivered other bytes than it announced; pip could not {doing}."
        return HashMismatchError(message, hint="Try again, then on another network or index.", **facts)
    return None


def _conflict(lines: Sequence[str], text: str, doing: str, facts: Mapping[str, object]) -> KleinError | None:
    """Two requirements exclude each other, most often because one wants another torch."""
    if "ResolutionImpossible" not in text and "conflicting dependencies" not in text and "unsatisfiable" not in text:
        return None
    start = next((at for at, line in enumerate(lines) if line.startswith("The conflict is caused by")), None)
    sides = (
        []
        if start is None
        else [line for line in lines[start + 1 :] if " depends on " in line or " requested " in line]
    )
    if start is None:
        sides = [line for line in lines if line.startswith(("Because", "And because", "╰─▶ Because"))]
    message = f"pip could not {doing}: the requirements exclude each other"
    message += f" ({listing(sides[:4])})." if sides else "."
    hint = "Remove or change the requirement for another torch; the packages in the environment are fixed on purpose."
    return CommandError(message, hint=hint, reason="conflict", sides=sides, **facts)


def _on_the_way(text: str, doing: str, index: str, facts: Mapping[str, object]) -> KleinError | None:
    """Return the error for a certificate that was not accepted, or a proxy that let nothing through."""
    named = re.search(r"host='([^']+)'", text)
    host = named[1] if named else urlsplit(index).hostname or index
    so = f"pip could not {doing}."
    if (reason := certificate_problem(text)) is not None:
        return certificate_error(host, reason, bundle=None, today=None, consequence=so, **facts)
    status = proxy_status(text)
    return None if status is None else proxy_error(host, status, consequence=so, **facts)


def _refused(text: str, doing: str, index: str, facts: Mapping[str, object]) -> KleinError | None:
    if re.search(r"\b40[13] (client error|forbidden|unauthorized)|http status (code )?:?\s*40[13]", text.lower()):
        return UnauthorizedError(
            f"{index} refused access; pip could not {doing}.",
            hint="Check the user name and password in the index address, or take another index.",
            **facts,
        )
    if "429 client error" in text.lower() or "too many requests" in text.lower():
        return RateLimitedError(f"{index} asked for patience (429); pip could not {doing}.", hint="Try later.", **facts)
    if re.search(r"\b50[0-9] server error|too many 5\d\d error", text.lower()):
        message = f"{index} answered with a server error; pip could not {doing}."
        return ServerError(message, hint="Try again later, or take a mirror: `--torch-index URL`.", **facts)
    return None


def _network(text: str, lines: Sequence[str], doing: str, index: str, facts: Mapping[str, object]) -> KleinError | None:
    lowered = text.lower()
    if not any(sign in lowered for sign in _NO_NETWORK):
        return None
    signs = [line for line in lines if any(sign in line.lower() for sign in _NO_NETWORK)]
    hint = "Check the network, HTTPS_PROXY and the index address; what has arrived is kept."
    return UnreachableError(f"{index} could not be reached to {doing}: {signs[-1][:200]}", hint=hint, **facts)


def _not_offered(text: str, index: str, facts: Mapping[str, object]) -> KleinError | None:
    missing = _MISSING.search(text)
    if missing is None:
        return None
    wanted = missing[1].rstrip(".,")
    offered = _OFFERED.search(text)
    versions = [] if offered is None or offered[1] == "none" else offered[1].split(", ")
    message = f"{index} has no wheel of {wanted} for this Python and system; "
    message += f"it offers {listing(versions[-6:])}." if versions else "it offers none at all."
    hint = "Check the index address (`--torch-index`), or choose another build with `--torch`."
    return EntryNotFoundError(message, hint=hint, requirement=wanted, offered=versions, **facts)


def offline_error(error: KleinError, doing: str, *, is_bundle: bool = False) -> KleinError:
    """Return what a failure means with ``--offline``: what pip did not find is not here, or not in the bundle."""
    lines = error.context.get("last_lines")
    named = _NOT_HERE.search("\n".join(map(str, lines))) if isinstance(lines, list) else None
    if named is None and not isinstance(error, (EntryNotFoundError, UnreachableError)):
        return error
    missing = named[1] if named is not None else str(error.context.get("requirement", "something"))
    if is_bundle:
        return bundle_lacks([missing], doing, lines)
    return OfflineError(
        f"{missing} is not on this computer, and with --offline it is not fetched; pip could not {doing}.",
        hint="Run once without --offline, or name a folder that has the wheels with PIP_FIND_LINKS.",
        missing=[missing],
        last_lines=lines,
    )


def bundle_lacks(missing: Sequence[str], doing: str, lines: object = None) -> OfflineError:
    """Return the error for packages that are in no wheel of a bundle."""
    return OfflineError(
        f"The bundle has no wheel of {listing(list(missing))} for this Python and system; pip could not {doing}.",
        hint="Make the bundle anew, on a computer that has what is to be installed here.",
        missing=list(missing),
        last_lines=lines,
    )


def is_gap(error: KleinError) -> bool:
    """Whether an index lacks something beside the three: a mirror gap, which the default index can fill.

    Only versions with a local part (``+cu130``) make that safe: the default index has none of those.
    """
    requirement = error.context.get("requirement")
    if not isinstance(error, EntryNotFoundError) or not isinstance(requirement, str):
        return False
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return name is not None and canonicalize_name(name[0]) not in FAMILY
