"""The events the engine sends while it works; a listener shows, counts or ignores them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from provisioner.core.models import FilesPlan, FileStep, Outcome

Phase = Literal[
    "hashing",  # reading a file that is there (``plan``, ``verify``): bytes_hashed moves
    "checking",  # reading back what an interrupted download left on disk: bytes_hashed moves up to bytes_on_disk
    "fetching",  # bytes arrive: bytes_on_disk moves
    "waiting",  # the server asked to wait, or a retry is due; ``note`` says which
    "proving",  # everything arrived, the last bytes are being hashed
    "placing",  # copying from elsewhere on this machine
    "syncing",  # flushing the bytes to the disk
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMade:
    """A plan was made; the steps follow."""

    plan: FilesPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """A step begins."""

    step: FileStep
    number: int  # from 1
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProgress:
    """Where one file stands; at most ten a second per file.

    A file that no step announced, such as a wheel, is complete when it was read to its end: ``hashing`` with
    ``bytes_hashed`` equal to ``size``.
    """

    label: str  # "vae/flux2-vae.safetensors"
    phase: Phase
    size: int  # bytes of the whole file
    bytes_on_disk: int = 0  # the frontier: everything before it is there
    bytes_hashed: int = 0
    bytes_received: int = 0  # over the network in this run; retries can push it past ``size``
    rate_bytes_s: float = 0.0  # of the last seconds
    connections: int = 0
    attempt: int = 1
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """A step ended."""

    step: FileStep
    outcome: Outcome
    number: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One line for the user: a retry, a renamed repository, a source that was given up."""

    message: str
    severity: Literal["info", "progress", "warning"] = "info"  # "progress": what an installer is doing now


StageState = Literal["started", "working", "done", "failed", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Work of which nobody knows how many bytes it has: an installer, a server's start, a step of the image.

    Several may be open at once; `key` says which of them an event speaks of.
    """

    doing: str  # "loading"
    what: str  # "the models"
    done: str  # for when it is over, "loaded"
    state: StageState
    detail: str = ""  # what goes on now, or, when it is done, what came of it
    seconds: float = 0.0  # since it began

    @property
    def key(self) -> tuple[str, str]:
        """What tells two open stages apart."""
        return self.doing, self.what


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReady:
    """ComfyUI answers, and goes on until it is ended."""

    url: str  # "http://127.0.0.1:8188"
    log_path: Path | None  # its output; None for a server that ran before


Event = PlanMade | StepStarted | FileProgress | StepFinished | Notice | Stage | ServerReady
Events = Callable[[Event], None]


class Lasting(str):
    """A line of progress that stays on the screen, where the others give way to the next one."""

    __slots__ = ()


def ignore(event: Event) -> None:
    """Listen to nothing."""
