"""Every exception this program raises on purpose: its code, its exit status, its facts.

Adapters turn a library's exceptions into these at the border.  A message says what happened to
which thing; the hint says what to do next.  No message, hint or context ever holds a token or the
query of a signed URL.

The docstring of a class becomes its section in docs/errors.md (``scripts/make_reference.py --write``):
the first line says what happened, the rest what to do.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_FINDINGS = 1
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

ERRORS_URL = "https://github.com/klein-setup/klein-setup/blob/main/docs/errors.md"
"""The page with a section for each code, which is its anchor; below ``Source`` of pyproject.toml."""


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
    """The command line names something that does not exist, or options that do not go together.

    Run the command with ``--help`` to see its options; the message names the word that does not fit.
    """

    code = "usage"
    exit_status = 2


class AnswerNeededError(UsageError):
    """A question would have to be asked, and there is no terminal to ask it on.

    Run it in a terminal, or pass ``--yes`` to go ahead.  A licence that does not allow commercial use needs
    ``--accept-licence ID``, a link that leads out of the folder ``--follow-links``.
    """

    code = "answer-needed"


class ManifestError(KleinError):
    """The manifest is wrong; ``issues`` lists every error, each with file, line and key.

    Run ``klein-setup manifest check FILE`` until it finds nothing; ``docs/manifest-keys.md`` lists every key.
    """

    code = "manifest-invalid"
    exit_status = 2

    def __init__(
        self, message: str, *, issues: tuple[str, ...] = (), hint: str | None = None, **context: object
    ) -> None:
        super().__init__(message, hint=hint, issues=list(issues), **context)
        self.issues = issues


class SigningKeyError(UsageError):
    """A key cannot be used: it is missing, of the wrong kind, or its password is not right.

    ``--sign`` takes a private and ``--verify-with`` a public key, in PEM, on the curve P-256, P-384 or P-521.
    [Sign a lock for many machines](how-to/sign-a-lock.md) shows how to make a pair.
    """

    code = "signing-key"


class WorkflowError(UsageError):
    """The file is no workflow of ComfyUI that can be read.

    Save it again in ComfyUI (Workflow, Save or Export), or use an image as ComfyUI wrote it; the message says what was
    expected.
    """

    code = "workflow-invalid"


# --- 3: the machine --------------------------------------------------------------------------


class UnsupportedMachineError(KleinError):
    """The machine cannot do what was asked: driver, GPU or Python.

    Run ``klein-setup detect``: it shows what was found, and why each build was or was not chosen.
    """

    code = "unsupported-machine"
    exit_status = 3


class DriverTooOldError(UnsupportedMachineError):
    """The NVIDIA driver is older than every build asks for that has code for this GPU.

    Install the driver that the message names, or a newer one, and restart.
    """

    code = "driver-too-old"


class NvidiaDriverMissingError(UnsupportedMachineError):
    """There is an NVIDIA GPU but no working driver for it.

    Install NVIDIA's driver and restart; ``nvidia-smi`` has to show the GPU.  Without a GPU, use ``--cpu``.
    """

    code = "nvidia-driver-missing"


class DriverDroppedGpuError(UnsupportedMachineError):
    """The NVIDIA driver is from a branch that no longer supports this GPU.

    Install the newest driver of the branch before the one that the message names.
    """

    code = "driver-dropped-gpu"


class GpuTooOldError(UnsupportedMachineError):
    """The GPU is older than all that torch has code for.

    Use another GPU, or ``--cpu``, which is slow.
    """

    code = "gpu-too-old"


class GpuUnsupportedError(UnsupportedMachineError):
    """No build of torch has code for this GPU on this system.

    Run ``klein-setup detect`` for the reason of each build.  Use another GPU or system, or ``--cpu``, which is slow.
    """

    code = "gpu-unsupported"


class GpuUnknownError(UnsupportedMachineError):
    """The GPU could not be identified, and the right build depends on it.

    Run ``klein-setup detect`` to see what was found.  If you know the right build, name it with ``--torch TAG``.
    """

    code = "gpu-unknown"


class JetsonIndexError(UnsupportedMachineError):
    """The GPU is a Jetson, for which NVIDIA publishes its own builds of torch.

    Install NVIDIA's own build for the Jetson, and use ``--torch none``.
    """

    code = "jetson-index"


class PlatformUnsupportedError(UnsupportedMachineError):
    """There are no wheels of torch for this system, its version, processor or C library.

    Update the system, or use another computer; the message says what torch needs.
    """

    code = "platform-unsupported"


class PythonUnsupportedError(UnsupportedMachineError):
    """No matched set of torch packages has wheels for this Python.

    Name a Python that the message lists with ``--python FILE``.
    """

    code = "python-unsupported"


# --- 4: storage ------------------------------------------------------------------------------


class StorageError(KleinError):
    """Disk full, not writable, or a path outside the root: the base of the errors with exit status 4.

    Read the message: it names the path.  Correct that and run the same command again.
    """

    code = "storage"
    exit_status = 4


class PlanOutdatedError(StorageError):
    """Files or folders changed after the plan was shown, so that applying it would do something else.

    Run the same command again and read the new plan.
    """

    code = "plan-outdated"


class InsufficientSpaceError(StorageError):
    """A file system has less free space than the plan needs, or became full while writing.

    Free the bytes that the message names, choose a smaller set with ``--set``, or another folder.  Run the same
    command again: what has arrived is kept.
    """

    code = "insufficient-space"


class PathTooLongError(StorageError):
    """A file's path would be longer than Windows lets programs open.

    Name a folder with a shorter path, or allow long paths on this computer (``LongPathsEnabled`` in the registry),
    which ComfyUI needs as well.
    """

    code = "path-too-long"


class FileTooLargeError(StorageError):
    """A file is larger than its drive can hold: FAT32 ends at 4 GiB.

    Name a folder on a drive with another file system (NTFS, exFAT, ext4, APFS), or choose a set of smaller files.
    """

    code = "file-too-large"


class NotWritableError(StorageError):
    """A folder or file cannot be written by this user.

    Give your user the right to write there, or name another folder.
    """

    code = "not-writable"


class PathOutsideRootError(StorageError):
    """A path would leave the folder it belongs to, by its text or through a link.

    Look at where the link or path leads.  If you want files there, name that folder itself.
    """

    code = "path-outside-root"


class FileInUseError(StorageError):
    """Another program has the file open, so the system does not let it be replaced.

    Close ComfyUI or the program that the message names, and run the same command again.
    """

    code = "file-in-use"


class FileInCloudError(StorageError):
    """A model file is kept in a cloud, OneDrive or iCloud for one, and its bytes are not on this disk.

    Reading it would download it first.  Choose "Always keep on this device" for it, or keep models in a folder that is
    not synchronised, and run the same command again.
    """

    code = "file-in-cloud"


class UnreadableError(StorageError):
    """A file that is there cannot be read.

    Check the rights of the file and the health of the disk.
    """

    code = "unreadable"


# --- 5: the network --------------------------------------------------------------------------


class NetworkError(KleinError):
    """The network or the server failed after every retry: the base of the errors with exit status 5.

    Run the same command again: what has arrived is kept.
    """

    code = "network"
    exit_status = 5


class UnreachableError(NetworkError):
    """No connection could be made, or every connection broke before a byte arrived.

    Check the connection, the proxy and the address (``HTTPS_PROXY``, ``--endpoint``), and run the same command again.
    """

    code = "unreachable"


class CertificateError(UnreachableError):
    """The certificate of a server was not accepted; ``reason`` in the context says why.

    Read the message: an unknown authority, another name, an expired certificate and a wrong date each have their own
    way out.  `docs/how-to/company-network.md` has them all.
    """

    code = "certificate"


class ProxyLoginError(UnreachableError):
    """The proxy asks who you are (407).

    Give it a name and a password with ``HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT``.
    """

    code = "proxy-login"


class ProxyRefusedError(UnreachableError):
    """The proxy does not let this computer reach a host.

    Ask those who run it to allow the hosts that `klein-setup plan --hosts` lists, or use a mirror that is allowed.
    """

    code = "proxy-refused"


class StalledError(NetworkError):
    """Connections stayed open and delivered too little for too long.

    Run the same command again: what has arrived is kept.  ``--stall-timeout SECONDS`` waits longer.
    """

    code = "stalled"


class RateLimitedError(NetworkError):
    """The server asked to wait (429) for longer than the limit.

    Wait some minutes.  With an account, ``HF_TOKEN`` gives you a larger allowance.
    """

    code = "rate-limited"


class ServerError(NetworkError):
    """The server kept answering with an error (5xx), or with something that is not valid HTTP.

    Try again later, or use a mirror with ``--endpoint URL``.
    """

    code = "server-error"


class OfflineError(NetworkError):
    """``--offline`` was given and something would have to be fetched; the message says what.

    Run once without ``--offline`` (or ``HF_HUB_OFFLINE``), or copy the files and name their folder with
    ``--look-in DIR``.
    """

    code = "offline"


# --- 6: access -------------------------------------------------------------------------------


class AccessError(KleinError):
    """Access denied or not found: the base of the errors with exit status 6.

    Check the address and your token.
    """

    code = "access"
    exit_status = 6


class UnauthorizedError(AccessError):
    """401: a token is needed, or the one that was sent is not valid.

    Set ``HF_TOKEN`` to a valid read token, or run ``hf auth login``.
    """

    code = "unauthorized"


class GatedError(AccessError):
    """403: the repository is gated and its licence was not accepted by this account.

    Open the page of the repository, accept the licence there, and set ``HF_TOKEN`` to a read token of that account.
    """

    code = "gated"


class RepositoryNotFoundError(AccessError):
    """404: no such repository at this endpoint, or it is private.

    Check the name in the manifest.  A private repository needs ``HF_TOKEN``; a mirror may not have it.
    """

    code = "repository-not-found"


class RevisionNotFoundError(AccessError):
    """404: the repository does not have this commit.

    Update klein-setup; if the manifest is yours, check its ``revision``.
    """

    code = "revision-not-found"


class EntryNotFoundError(AccessError):
    """404: the commit does not have this file.

    Update klein-setup; if the manifest is yours, check its ``filename``.
    """

    code = "entry-not-found"


# --- 7: integrity ----------------------------------------------------------------------------


class IntegrityError(KleinError):
    """The bytes are not the bytes the manifest names: the base of the errors with exit status 7.

    No wrong file was put in place.  Run ``klein-setup repair``.
    """

    code = "integrity"
    exit_status = 7


class HashMismatchError(IntegrityError):
    """All bytes arrived, but their SHA-256 is not the expected one.

    Run the same command again.  If it happens again, the source or something on the way changes the bytes: use another
    network or ``--endpoint URL``.
    """

    code = "hash-mismatch"


class SizeMismatchError(IntegrityError):
    """The server offers a file of another size than the manifest names.

    Nothing was put in place.  Use another ``--endpoint URL``, or update klein-setup.
    """

    code = "size-mismatch"


class NotTheFileError(IntegrityError):
    """The server answered with something else: a web page, or another file.

    Open the address in a browser: a login page or a proxy may answer in its place.
    """

    code = "not-the-file"


class LockDriftError(IntegrityError):
    """This machine differs from the one the locked manifest was made on (``--locked``).

    Restore the machine with ``klein-setup repair``, or write a new lock with
    ``klein-setup manifest lock --output FILE``.
    """

    code = "lock-drift"


class LockSignatureError(IntegrityError):
    """The signature of a lock is missing, damaged, made with another key, or of another file (``--verify-with``).

    Nothing of the lock was used.  Copy the lock and its ``.sig`` again, both from the place that publishes them.  If
    the key was changed, get the new public key in a way that you trust.
    """

    code = "lock-signature"


class LockExpiredError(IntegrityError):
    """A signed lock has expired, or this machine's clock is wrong: it is before the day of the lock.

    Get the current lock from those who sign it; they renew one by locking again with ``--expires``.  If the date that
    the message names as this machine's is wrong, set the clock.
    """

    code = "lock-expired"


class LockRollbackError(IntegrityError):
    """A signed lock is older than one that was accepted here, or another one of the same version.

    Get the current lock.  Where going back is meant, sign the old state again with a higher version, or accept the old
    one on this machine with ``klein-setup manifest accept FILE --verify-with KEY``.
    """

    code = "lock-rollback"


# --- 8, 9, 10 --------------------------------------------------------------------------------


class CommandError(KleinError):
    """A process we started failed; its last lines are in ``context``.

    Read the last lines of the program, which the message shows; the log has all of them.
    """

    code = "command-failed"
    exit_status = 8


class SmokeTestError(KleinError):
    """Installed, but no image was generated, or not on the expected device.

    Read the hint and the log.  ``klein-setup doctor`` collects what a report needs.
    """

    code = "smoke-test"
    exit_status = 9


class ServerNotUsableError(SmokeTestError):
    """A ComfyUI server did not start, does not answer, stopped by itself, or is another program.

    Read the log that the message names; the usual reason is a custom node.  A server you name with ``--server URL`` has
    to be ComfyUI, and to answer.
    """

    code = "comfyui-server"


class ModelNotListedError(SmokeTestError):
    """The server does not list a model file that is needed, or does not know a node class.

    Run ``klein-setup install``, which places the files where this server reads them, and restart the server.
    """

    code = "model-not-listed"


class GenerationError(SmokeTestError):
    """The server refused the graph or generated no image from it; ``cause`` says which failure it was.

    Follow the hint: it knows the cause where ComfyUI's message is known.  ``klein-setup verify`` checks the files.
    """

    code = "generation-failed"


class MemoryExhaustedError(SmokeTestError):
    """The GPU's memory, or the machine's, ran out while the image was generated.

    Close other programs that use the GPU, choose a smaller set (``--set fp8-lean``), or use ``--tiled-decode``.
    """

    code = "out-of-memory"


class RehearsalError(SmokeTestError):
    """A check of the rehearsal failed.

    Report it with ``klein-setup rehearse --keep``, which keeps its files.
    """

    code = "rehearsal-failed"


class LockHeldError(KleinError):
    """Another run is using this target, and ``--no-wait`` was given.

    Wait for the other run, or leave ``--no-wait`` out.
    """

    code = "lock-held"
    exit_status = 10
