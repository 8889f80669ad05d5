"""Documents of several machines, checked before they become one page: each is a document, and no host comes twice."""

from __future__ import annotations

from collections.abc import Sequence

from provisioner.core.errors import UsageError
from provisioner.core.json_reader import parse_object
from provisioner.report.json_document import SCHEMA_VERSION

LARGEST_DOCUMENT = 8 * 1024 * 1024
"""Bytes.  A document has about 20 kB."""

_HINT = "Make it with `klein-setup verify --json > FILE` on that machine."


def read_documents(
    texts: Sequence[tuple[str, bytes]],
) -> tuple[tuple[dict[str, object], ...], tuple[UsageError, ...]]:
    """Return the documents in the order given, and an error for each text that cannot be merged.

    Parameters
    ----------
    texts : sequence of (str, bytes)
        The name of each file, for the errors, and what it holds.
    """
    documents: list[dict[str, object]] = []
    errors: list[UsageError] = []
    file_of: dict[str, str] = {}
    for name, text in texts:
        try:
            document, host = _checked(name, text)
            if host in file_of:
                raise UsageError(
                    f"{file_of[host]} and {name} are both of the host {host}.",
                    hint="Give one document for each machine; rename a host in one of them if they are two machines.",
                    path=name,
                )
        except UsageError as error:
            errors.append(error)
        else:
            file_of[host] = name
            documents.append(document)
    return tuple(documents), tuple(errors)


def _checked(name: str, text: bytes) -> tuple[dict[str, object], str]:
    """Return a document and its host; raises UsageError where it cannot be merged."""
    if len(text) > LARGEST_DOCUMENT:
        raise UsageError(f"{name} has more than 8 MiB: no document of klein-setup is so large.", hint=_HINT, path=name)
    document = parse_object(text)
    if document is None and b'"event"' in text[: text.find(b"\n")]:
        raise UsageError(
            f"{name} holds the lines of --json=events, not one document.",
            hint='Keep its last line, the one with "event": "report".',
            path=name,
        )
    if document is None:
        raise UsageError(f"{name} is not a JSON object.", hint=_HINT, path=name)
    version, host = document.get("schema_version"), document.get("host")
    if not isinstance(version, int) or not all(isinstance(document.get(each), str) for each in ("command", "status")):
        raise UsageError(f"{name} is JSON, but not a document of klein-setup --json.", hint=_HINT, path=name)
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{name} has schema_version {version}; {SCHEMA_VERSION} is expected.",
            hint="Use the same version of klein-setup on every machine, and for the page.",
            path=name,
        )
    if not isinstance(host, str) or not host:
        raise UsageError(
            f"{name} does not name its host.", hint="Make it anew with this version of klein-setup.", path=name
        )
    return document, host
