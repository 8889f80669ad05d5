"""Pushes blobs and manifests to an OCI registry: the uploads of the distribution spec, version 1.1 ("Push").

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#push.  What the registry has is not sent again.
A blob goes in chunks; after a broken connection the registry says how much has arrived, and the rest follows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from provisioner.core.errors import HashMismatchError, ServerError
from provisioner.core.models import OciRepository
from provisioner.network.http_session import origin, shown
from provisioner.oci.registry import OciRegistries, RegistryClient

if TYPE_CHECKING:
    import requests

CHUNK_BYTES = 16 * 1024 * 1024
_CHUNK_S = 600.0
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBlob:
    """A file to push."""

    sha256: str  # 64 lower-case hex digits
    size: int  # bytes
    title: str  # for a person
    path: Path | None  # None: it is not here; the registry has to have it


@dataclass
class Pusher:
    """Pushes into one repository.

    Parameters
    ----------
    registries : OciRegistries
        Who asks, with the logins that are saved.
    repository : OciRepository
        Where to.
    pause_s : callable
        Told the bytes of each chunk that has arrived; returns how many seconds to wait before the next one.
    """

    registries: OciRegistries
    repository: OciRepository
    pause_s: Callable[[int], float] = lambda sent: 0.0
    # Where the upload of a blob goes on, and its bytes there (None: to be asked), by its SHA-256.
    _begun: dict[str, tuple[str, int | None]] = field(default_factory=dict)

    def push_blob(self, blob: LocalBlob) -> bool:
        """Bring a blob into the registry; return whether anything had to be sent.

        Raises
        ------
        HashMismatchError
            The file has other bytes than its SHA-256 says: the registry refused them.
        EntryNotFoundError
            It is neither here nor there.
        KleinError
            As `OciRegistries.locate`.
        """
        if self.registries.ask(self.repository, lambda client: self._has(client, blob)):
            return False
        while True:  # each chunk has its own patience
            sent = self.registries.ask(self.repository, lambda client: self._send_chunk(client, blob))
            if not sent:
                break
            self.registries.wait(self.pause_s(sent))
        self.registries.ask(self.repository, lambda client: self._finish(client, blob))
        return True

    def push_manifest(self, data: bytes, media_type: str, reference: str) -> None:
        """Write a manifest under a tag or ``sha256:DIGEST``; raises as `push_blob`."""
        url = f"{self._base}/manifests/{reference}"

        def put(client: RegistryClient) -> None:
            answer = _closed(client.request("PUT", url, {"Content-Type": media_type}, data))
            if answer.status_code != 201:
                raise client.refusal(url, answer, "no such repository, or lacks a file of the manifest")
            named = answer.headers.get("Docker-Content-Digest", "")
            if named.startswith("sha256:") and named[7:] != hashlib.sha256(data).hexdigest():
                raise ServerError(
                    f"{self.repository} kept another manifest than it was sent, {named}.", hint="Use another registry."
                )

        self.registries.ask(self.repository, put)

    @property
    def _base(self) -> str:
        return f"{self.repository.base}/v2/{self.repository.name}"

    def _send_chunk(self, client: RegistryClient, blob: LocalBlob) -> int:
        """Send the next bytes of a blob; return how many they were, 0 where none is left."""
        at, arrived = self._where(client, blob)
        assert blob.path is not None  # noqa: S101 - `_has` raised
        with blob.path.open("rb") as stream:
            stream.seek(arrived)
            chunk = stream.read(min(CHUNK_BYTES, blob.size - arrived))
        if not chunk:
            return 0
        self._begun[blob.sha256] = (at, None)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{arrived}-{arrived + len(chunk) - 1}",
        }
        answer = _closed(client.request("PATCH", at, headers, chunk, timeout_s=_CHUNK_S))
        if answer.status_code != 202:
            raise client.refusal(at, answer, f"lost what it had of {blob.title}")
        self._begun[blob.sha256] = (self._next(blob, at, answer), arrived + len(chunk))
        return len(chunk)

    def _finish(self, client: RegistryClient, blob: LocalBlob) -> None:
        at, arrived = self._where(client, blob)
        url = f"{at}{'&' if '?' in at else '?'}digest=sha256:{blob.sha256}"
        headers = {"Content-Type": "application/octet-stream"}
        answer = None if arrived != blob.size else _closed(client.request("PUT", url, headers, timeout_s=_CHUNK_S))
        if answer is None or answer.status_code == 400:
            raise HashMismatchError(
                f"{blob.title} has other bytes than its SHA-256 says; {self.repository} does not take it.",
                hint="Verify the bundle, then run the same command again.",
                expected=blob.sha256,
                path=str(blob.path),
            )
        if answer.status_code != 201:
            raise client.refusal(at, answer, f"lost what it had of {blob.title}")
        del self._begun[blob.sha256]

    def _has(self, client: RegistryClient, blob: LocalBlob) -> bool:
        """Whether the registry has a blob, with its size; raises where it is missing and not here either."""
        url = f"{self._base}/blobs/sha256:{blob.sha256}"
        answer = _closed(client.request("HEAD", url, {"Accept-Encoding": "identity"}))
        if answer.status_code in {200, 307}:
            return answer.headers.get("Content-Length") == str(blob.size) or answer.status_code == 307
        if answer.status_code != 404 or blob.path is None:
            raise client.refusal(url, answer, f"no blob sha256:{blob.sha256} ({blob.title})")
        return False

    def _where(self, client: RegistryClient, blob: LocalBlob) -> tuple[str, int]:
        """Return where a blob is sent to, and how many of its bytes are there."""
        at, arrived = self._begun.get(blob.sha256, ("", None))
        if at and arrived is None:  # a connection broke: the registry knows what came through
            answer = _closed(client.request("GET", at))
            known = _RANGE.fullmatch(answer.headers.get("Range", ""))
            if answer.status_code == 204 and known is not None:
                at, arrived = self._next(blob, at, answer), int(known[1]) + 1 if int(known[1]) else 0
        if arrived is None:
            url = f"{self._base}/blobs/uploads/"
            answer = _closed(client.request("POST", url))
            if answer.status_code != 202:
                raise client.refusal(url, answer, "no such repository")
            at, arrived = self._next(blob, url, answer), 0
        self._begun[blob.sha256] = (at, arrived)
        return at, arrived

    def _next(self, blob: LocalBlob, url: str, answer: requests.Response) -> str:
        at = urljoin(url, answer.headers.get("Location", ""))
        if origin(at) != origin(self.repository.base):
            raise ServerError(
                f"{self.repository} wants {blob.title} to be sent to {shown(at)}, where a login is not sent.",
                hint="Use a registry that takes uploads itself.",
            )
        return at


def _closed(response: requests.Response) -> requests.Response:
    """Return an answer of which only the head counts."""
    response.close()
    return response
