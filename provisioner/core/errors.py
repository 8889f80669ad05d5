"""Every exception this program raises on purpose: its code, its exit status, its facts.

Adapters turn a library's exceptions into these at the border.  A message says what happened to
which thing; the hint says what to do next.  No message, hint or context ever holds a token or the
query of a signed URL.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_FINDINGS = 1
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class KleinError(Exception):
    """Base of every error raised on purpose.

    Parameters
    ----------
    message : str
        What happened, to which thing.
    hint : str, optional
        What to do next, in the imperative.
    **context : object
        Facts for ``--json``: ``path=...``, ``expected=...``, ``observed=...``.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = EXIT_DEFECT

    def __init__(self, message: str, *, hint: str | None = None, **context: object) -> None:
        super().__init__(message)
        self.hint = hint
        self.context = context


# --- 2: what was asked for -------------------------------------------------------------------


class UsageError(KleinError):
    """The command line names something that does not exist, or options that do not go together."""

    code = "usage"
    exit_status = 2


class AnswerNeededError(UsageError):
    """A question would have to be asked, and there is no terminal to ask it on."""

    code = "answer-needed"


class ManifestError(KleinError):
    """The manifest is wrong; ``issues`` lists every error, each with file, line and key."""

    code = "manifest-invalid"
    exit_status = 2

    def __init__(
        self, message: str, *, issues: tuple[str, ...] = (), hint: str | None = None, **context: object
    ) -> None:
        super().__init__(message, hint=hint, issues=list(issues), **context)
        self.issues = issues


# --- 3: the machine --------------------------------------------------------------------------


class UnsupportedMachineError(KleinError):
    """The machine cannot do what was asked: driver, GPU or Python."""

    code = "unsupported-machine"
    exit_status = 3


class DriverTooOldError(UnsupportedMachineError):
    """The NVIDIA driver is older than every build asks for that has code for this GPU."""

    code = "driver-too-old"


class NvidiaDriverMissingError(UnsupportedMachineError):
    """There is an NVIDIA GPU but no working driver for it."""

    code = "nvidia-driver-missing"


class DriverDroppedGpuError(UnsupportedMachineError):
    """The NVIDIA driver is from a branch that no longer supports this GPU."""

    code = "driver-dropped-gpu"


class GpuTooOldError(UnsupportedMachineError):
    """The GPU is older than all that torch has code for."""

    code = "gpu-too-old"


class GpuUnsupportedError(UnsupportedMachineError):
    """No build of torch has code for this GPU on this system."""

    code = "gpu-unsupported"


class GpuUnknownError(UnsupportedMachineError):
    """The GPU could not be identified, and the right build depends on it."""

    code = "gpu-unknown"


class JetsonIndexError(UnsupportedMachineError):
    """The GPU is a Jetson, for which NVIDIA publishes its own builds of torch."""

    code = "jetson-index"


class AmdOnWindowsError(UnsupportedMachineError):
    """AMD GPUs on Windows need AMD's own builds of torch."""

    code = "amd-on-windows"


class PlatformUnsupportedError(UnsupportedMachineError):
    """There are no wheels of torch for this system, its version, processor or C library."""

    code = "platform-unsupported"


class PythonUnsupportedError(UnsupportedMachineError):
    """No matched set of torch packages has wheels for this Python."""

    code = "python-unsupported"


# --- 4: storage ------------------------------------------------------------------------------


class StorageError(KleinError):
    """Disk full, not writable, or a path outside the root: the base of the errors with exit status 4."""

    code = "storage"
    exit_status = 4


class PlanOutdatedError(StorageError):
    """Files or folders changed after the plan was shown, so that applying it would do something else."""

    code = "plan-outdated"


class InsufficientSpaceError(StorageError):
    """A file system has less free space than the plan needs, or became full while writing."""

    code = "insufficient-space"


class NotWritableError(StorageError):
    """A folder or file cannot be written by this user."""

    code = "not-writable"


class PathOutsideRootError(StorageError):
    """A path would leave the folder it belongs to, by its text or through a link."""

    code = "path-outside-root"


class FileInUseError(StorageError):
    """Another program has the file open, so the system does not let it be replaced."""

    code = "file-in-use"


class UnreadableError(StorageError):
    """A file that is there cannot be read."""

    code = "unreadable"


# --- 5: the network --------------------------------------------------------------------------


class NetworkError(KleinError):
    """The network or the server failed after every retry: the base of the errors with exit status 5."""

    code = "network"
    exit_status = 5


class UnreachableError(NetworkError):
    """No connection could be made, or every connection broke before a byte arrived."""

    code = "unreachable"


class StalledError(NetworkError):
    """Connections stayed open and delivered too little for too long."""

    code = "stalled"


class RateLimitedError(NetworkError):
    """The server asked to wait (429) for longer than the limit."""

    code = "rate-limited"


class ServerError(NetworkError):
    """The server kept answering with an error (5xx), or with something that is not valid HTTP."""

    code = "server-error"


class OfflineError(NetworkError):
    """``--offline`` was given and something would have to be fetched; the message says what."""

    code = "offline"


# --- 6: access -------------------------------------------------------------------------------


class AccessError(KleinError):
    """Access denied or not found: the base of the errors with exit status 6."""

    code = "access"
    exit_status = 6


class UnauthorizedError(AccessError):
    """401: a token is needed, or the one that was sent is not valid."""

    code = "unauthorized"


class GatedError(AccessError):
    """403: the repository is gated and its licence was not accepted by this account."""

    code = "gated"


class RepositoryNotFoundError(AccessError):
    """404: no such repository at this endpoint, or it is private."""

    code = "repository-not-found"


class RevisionNotFoundError(AccessError):
    """404: the repository does not have this commit."""

    code = "revision-not-found"


class EntryNotFoundError(AccessError):
    """404: the commit does not have this file."""

    code = "entry-not-found"


# --- 7: integrity ----------------------------------------------------------------------------


class IntegrityError(KleinError):
    """The bytes are not the bytes the manifest names: the base of the errors with exit status 7."""

    code = "integrity"
    exit_status = 7


class HashMismatchError(IntegrityError):
    """All bytes arrived, but their SHA-256 is not the expected one."""

    code = "hash-mismatch"


class SizeMismatchError(IntegrityError):
    """The server offers a file of another size than the manifest names."""

    code = "size-mismatch"


class NotTheFileError(IntegrityError):
    """The server answered with something else: a web page, or another file."""

    code = "not-the-file"


class LockDriftError(IntegrityError):
    """This machine differs from the one the locked manifest was made on (``--locked``)."""

    code = "lock-drift"


# --- 8, 9, 10 --------------------------------------------------------------------------------


class CommandError(KleinError):
    """A process we started failed; its last lines are in ``context``."""

    code = "command-failed"
    exit_status = 8


class SmokeTestError(KleinError):
    """Installed, but no image was generated, or not on the expected device."""

    code = "smoke-test"
    exit_status = 9


class ServerNotUsableError(SmokeTestError):
    """A ComfyUI server did not start, does not answer, stopped by itself, or is another program."""

    code = "comfyui-server"


class ModelNotListedError(SmokeTestError):
    """The server does not list a model file that is needed, or does not know a node class."""

    code = "model-not-listed"


class GenerationError(SmokeTestError):
    """The server refused the graph or generated no image from it; ``cause`` says which failure it was."""

    code = "generation-failed"


class MemoryExhaustedError(SmokeTestError):
    """The GPU's memory, or the machine's, ran out while the image was generated."""

    code = "out-of-memory"


class RehearsalError(SmokeTestError):
    """A check of the rehearsal failed."""

    code = "rehearsal-failed"


class LockHeldError(KleinError):
    """Another run is using this target, and ``--no-wait`` was given."""

    code = "lock-held"
    exit_status = 10
