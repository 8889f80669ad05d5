"""What a diagnosis has found so far, in the user's state folder: an interrupted one is continued from there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from provisioner.core.errors import StorageError
from provisioner.core.json_reader import as_dict
from provisioner.disk.last_run import write_for_user
from provisioner.disk.read_json import read_object

_SCHEMA_VERSION = 1
_FILE = "diagnosis.json"


class DiagnosisJournal:
    """The tries of one diagnosis, each under a name of its own; written after each.

    Parameters
    ----------
    folder : Path
        The user's state folder.  One that cannot be written to is no error: then nothing is continued.
    about : str
        What the diagnosis is about: one about something else, or a finished one, is not continued.
    is_fresh : bool
        Whether to begin anew in any case.
    """

    def __init__(self, folder: Path, about: str, *, is_fresh: bool = False) -> None:
        self.path = folder / _FILE
        self._about = about
        kept = {} if is_fresh else read_object(self.path) or {}
        is_this = kept.get("schema_version") == _SCHEMA_VERSION and kept.get("about") == about
        self._tries: dict[str, object] = as_dict(kept.get("tries")) if is_this and not kept.get("is_over") else {}

    def __len__(self) -> int:
        return len(self._tries)

    def known(self, name: str) -> dict[str, object] | None:
        """Return what was kept of a try; None where it was not made."""
        return as_dict(self._tries[name]) if name in self._tries else None

    def keep(self, name: str, what: Mapping[str, object]) -> None:
        """Keep what came of a try."""
        self._tries[name] = dict(what)
        self._write(is_over=False)

    def end(self) -> None:
        """Say that the diagnosis is over; the next one begins anew."""
        self._write(is_over=True)

    def _write(self, *, is_over: bool) -> None:
        document = {
            "schema_version": _SCHEMA_VERSION,
            "about": self._about,
            "is_over": is_over,
            "tries": self._tries,
        }
        with contextlib.suppress(StorageError):
            write_for_user(self.path, json.dumps(document, indent=1).encode() + b"\n")
