"""Cache the parsed trees of manifests, by the SHA-256 of their text.

Importing the YAML parser and reading a manifest takes longer than everything else in ``verify --quick``.  So the runs
that read everything anyway store the tree, and only ``verify --quick`` uses the stored one.  Its contents are checked
like those of a new tree: a tree that somebody changed can do no more than a manifest could.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from provisioner import __version__
from provisioner.core.errors import StorageError
from provisioner.disk.root import Root
from provisioner.manifest.strict_yaml import Issues, Node, compose, node_of, plain_of

_KEPT = 8
"""Number of texts kept: a user has one or two manifests, and one that changes often must not fill the disk."""

_LARGEST_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ManifestCache:
    """The cached trees in one folder, which need not exist."""

    folder: Callable[[], Path]

    def recall(self, text: str, issues: Issues) -> Node:
        """Return the tree of a text: the stored one, else a new one; writes nothing.  Raises ManifestError."""
        try:
            with self._path(text).open("rb") as stream:
                kept = json.loads(stream.read(_LARGEST_BYTES))
            if kept["klein_setup"] == __version__:
                return node_of(kept["document"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            pass  # missing or not readable: parse the text instead
        return compose(text, issues)

    def keep(self, text: str, issues: Issues) -> Node:
        """Return the newly parsed tree of a text, and store it if possible.  Raises ManifestError."""
        node = compose(text, issues)
        if issues.is_empty:
            with contextlib.suppress(OSError, StorageError):
                self._keep(self._path(text), node)
        return node

    def _path(self, text: str) -> Path:
        return self.folder() / f"{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}.json"

    def _keep(self, path: Path, node: Node) -> None:
        content = json.dumps({"klein_setup": __version__, "document": plain_of(node)}, separators=(",", ":")).encode()
        if path.is_file() and path.read_bytes() == content:
            return
        root = Root(path.parent, is_private=True)
        root.write_bytes(path, content)
        by_age = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime_ns, reverse=True)
        for forgotten in by_age[_KEPT:]:
            root.remove(forgotten)
