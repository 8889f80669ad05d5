"""The Hub's client, for what it is good at: settings, the token, and reading the user's HF cache.

It never fetches a model file: it compares sizes only, and since 1.18 starts at byte 0 after a kill (read in
huggingface_hub 2.4.0 and measured against a loopback hub, 2026-11-23).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioner.core.errors import UsageError
from provisioner.core.models import Artifact, HubFile, LocalCopy, Variant

DEFAULT_ENDPOINT = "https://huggingface.co"
_TRUE = {"1", "on", "yes", "true"}


@dataclass(frozen=True, slots=True)
class Token:
    """A token and where it was found; the value is never shown."""

    value: str
    found_in: str

    def __repr__(self) -> str:
        """Return where it was found, not what it is."""
        return f"Token(found_in={self.found_in!r})"


def endpoint(option: str | None, environ: Mapping[str, str]) -> str:
    """Return the Hub's address: the option, else ``HF_ENDPOINT``, else the Hub; raises UsageError for another kind."""
    address = (option or environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    if "@" in address:
        raise UsageError(
            f"The address of the Hub in {'--endpoint' if option else 'HF_ENDPOINT'} holds a user name or a password; "
            "none is sent to a Hub.",
            hint="Write it as https://host; a token comes from HF_TOKEN, with --send-token.",
        )
    if not address.startswith(("https://", "http://")) or len(address) < 10 or any(c.isspace() for c in address):
        raise UsageError(
            f"{address!r} is not the address of a Hub.",
            hint="Write it as https://host, with --endpoint or in HF_ENDPOINT.",
        )
    return address


def is_offline(option: bool, environ: Mapping[str, str]) -> bool:
    """Whether the network is off: ``--offline``, or ``HF_HUB_OFFLINE`` as the Hub's own client reads it."""
    return option or environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


def find_token(environ: Mapping[str, str]) -> Token | None:
    """Return the token to use: ``HF_TOKEN``, then ``HF_API_TOKEN`` (comfy-cli's), then the file of `hf auth login`."""
    found = find_tokens(environ)
    return found[0] if found else None


def find_tokens(environ: Mapping[str, str]) -> tuple[Token, ...]:
    """Return every token that is there, the one to use first."""
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN")
    found = [Token(_cleaned(environ.get(name, "")), name) for name in names]
    if environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() not in _TRUE:
        path = _token_file(environ)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found.append(Token(_cleaned(path.read_text(encoding="utf-8")), str(path)))
    return tuple(each for each in found if each.value)


def _cleaned(text: str) -> str:
    """Return a token without the line ends that a file or a careless paste brings along; a header cannot hold them."""
    return text.replace("\r", "").replace("\n", "").strip()


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder that holds ``models--*``, by the client's own rules (constants.py of huggingface_hub 2.4.0)."""
    chosen = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return _expanded(chosen) if chosen else _home(environ) / "hub"


def _token_file(environ: Mapping[str, str]) -> Path:
    chosen = environ.get("HF_TOKEN_PATH")
    return _expanded(chosen) if chosen else _home(environ) / "token"


def _home(environ: Mapping[str, str]) -> Path:
    if chosen := environ.get("HF_HOME"):
        return _expanded(chosen)
    if caches := environ.get("XDG_CACHE_HOME"):
        return _expanded(caches) / "huggingface"
    return Path.home() / ".cache" / "huggingface"


def _expanded(text: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(text)))  # noqa: PTH111 - in the client's order


class CachedFiles:
    """Finds an artifact's bytes in an HF cache; both layouts, links followed to the file itself."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def find(self, artifact: Artifact, contents: Sequence[Variant]) -> tuple[LocalCopy, ...]:
        """Return the cached files that would be right by their name; none of them is verified."""
        if not os.access(self._cache, os.R_OK | os.X_OK):
            return ()
        found: dict[Path, LocalCopy] = {}
        for content in contents:
            for path in (*self._by_revision(artifact, content), *self._by_digest(content)):
                copy = self._copy(path, artifact, content)
                if copy is not None:
                    found.setdefault(copy.path, copy)
        return tuple(found.values())

    def _by_digest(self, content: Variant) -> list[Path]:
        """Return any repository's blob of that SHA-256: the same bytes are published under several names."""
        return sorted(self._cache.glob(f"models--*/blobs/{content.sha256}"))

    def _by_revision(self, artifact: Artifact, content: Variant) -> list[Path]:
        """Return the very file of the very commit, as the client would load it."""
        if content.sha256 != artifact.sha256:
            return []
        from huggingface_hub import try_to_load_from_cache

        paths = []
        for source in artifact.sources:
            if isinstance(source, HubFile):
                hit = try_to_load_from_cache(
                    source.repo_id, source.filename, cache_dir=self._cache, revision=source.revision
                )
                if isinstance(hit, str):
                    paths.append(Path(hit))
        return paths

    def _copy(self, path: Path, artifact: Artifact, content: Variant) -> LocalCopy | None:
        try:
            # Snapshot -> blob -> shared store: up to two links, and the last file is read-only.
            real = path.resolve(strict=True)
            status = real.stat()
        except (OSError, RuntimeError):
            return None
        if status.st_size != content.size:
            return None
        return LocalCopy(
            artifact_id=artifact.id,
            path=real,
            origin="HF cache",
            device=status.st_dev,
            size=content.size,
            sha256=content.sha256,
        )
