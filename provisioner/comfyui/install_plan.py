"""Decide what to do with ComfyUI itself (install, update, keep, refuse), and explain git's errors.

Pure: it decides from what was found in a folder.  It never updates a tree without being told to, nor one with local
changes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from packaging.utils import canonicalize_name

from provisioner.comfyui.checkout_models import CheckoutKind, CheckoutPlan, ComfyCheckout
from provisioner.comfyui.release_models import ComfyRelease, ComfyTable
from provisioner.comfyui.releases import is_at_least
from provisioner.core.errors import (
    AccessError,
    CommandError,
    InsufficientSpaceError,
    KleinError,
    NotTheFileError,
    NotWritableError,
    StalledError,
    UnreachableError,
)
from provisioner.core.models import Finding, Remedy
from provisioner.core.redact import printable, redact
from provisioner.core.units import count, listing
from provisioner.network.certificates import certificate_error, certificate_problem, proxy_error, proxy_status

NEEDED_FOLDERS = (
    "custom_nodes",
    "input",
    "models/diffusion_models",
    "models/text_encoders",
    "models/vae",
    "output",
    "temp",
    "user",
)
"""Folders ComfyUI works with; it ends at its start where ``custom_nodes`` is missing (0.33.0, ``--base-directory``)."""

_SHOWN = 5  # names in a sentence


# --- versions ----------------------------------------------------------------------------------


def parse_version_file(text: str) -> str | None:
    r"""Return the version that ``comfyui_version.py`` assigns, without running it.

    >>> parse_version_file('# generated\n__version__ = "0.33.0"\n')
    '0.33.0'
    """
    found = re.search(r"^__version__\s*(?::\s*str\s*)?=\s*(['\"])([^'\"\n]{1,64})\1", text, re.M)
    return found[2] if found else None


def parse_project_version(text: str) -> str | None:
    r"""Return the version in the project table of a ``pyproject.toml``; trees before 0.3.13 have it nowhere else.

    >>> parse_project_version('[tool.x]\nversion = "9"\n[project]\nname = "ComfyUI"\nversion = "0.3.10" # set\n')
    '0.3.10'
    """
    inside = False
    for line in text.splitlines():
        header = re.match(r"\s*\[([^\]]*)\]", line)
        if header:
            inside = header[1].strip() == "project"
        found = re.match(r"\s*version\s*=\s*(['\"])([^'\"]{1,64})\1", line) if inside else None
        if found:
            return found[2]
    return None


def parse_requirements(text: str) -> tuple[str, ...]:
    r"""Return the requirements of a requirements file, without comments, continued lines joined.

    >>> parse_requirements("torch\n\n# more\nav>=14 # video\npydantic \\\n  ~=2.0\n")
    ('torch', 'av>=14', 'pydantic ~=2.0')
    """
    joined = re.sub(r"[ \t]*\\\r?\n[ \t]*", " ", text.removeprefix("\ufeff"))
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines())
    return tuple(line for line in lines if line)


def requirements_to_install(
    lines: Sequence[str], *, family: Collection[str], present: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return an application's requirements as those to install and those to leave out.

    Left out are options (they could name another index) and packages of the torch set that the set does not have: the
    default index could have one built for something else.

    Parameters
    ----------
    lines : sequence of str
        As `parse_requirements` gives them.
    family : collection of str
        The names that belong to a torch set.
    present : collection of str
        Those of them that are installed, and fixed by constraints.

    Returns
    -------
    tuple
        Lines to install, lines left out.

    Examples
    --------
    >>> requirements_to_install(["torch>=2.4", "torchaudio", "av"], family=("torch", "torchaudio"), present=("torch",))
    (('torch>=2.4', 'av'), ('torchaudio',))
    """

    def is_wanted(line: str) -> bool:
        name = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
        if name is None:
            return False
        return canonicalize_name(name[0]) not in family or canonicalize_name(name[0]) in present

    return tuple(filter(is_wanted, lines)), tuple(line for line in lines if not is_wanted(line))


# --- checking ----------------------------------------------------------------------------------

_HAS_PROGRAM: frozenset[CheckoutKind] = frozenset({"git", "source", "portable"})


def judge_checkout(checkout: ComfyCheckout, table: ComfyTable) -> tuple[Finding, ...]:
    """Return what the user should know about a tree before Klein runs in it.

    Local changes are no finding: they matter only for an update (`plan_checkout`).

    Parameters
    ----------
    checkout : ComfyCheckout
        The tree.
    table : ComfyTable
        Contains the oldest releases that work.
    """
    where = checkout.tree or checkout.given
    if checkout.kind == "other":
        return (
            Finding(
                code="comfyui-not-a-tree",
                severity="problem",
                message=f"{where} is not a ComfyUI tree.",
                remedy="by-hand",
                path=where,
                hint="Name ComfyUI's own folder, or a new or empty one.",
            ),
        )
    found = _judge_update(checkout, where)
    if checkout.kind in _HAS_PROGRAM:
        found += _judge_version(checkout, table)
    if checkout.kind in _HAS_PROGRAM or checkout.kind == "base":
        found += _judge_python(checkout)
    return tuple(found)


def _judge_update(checkout: ComfyCheckout, where: Path) -> list[Finding]:
    rollback_point = checkout.rollback_point
    if rollback_point is None or rollback_point.is_finished:
        return []
    was = rollback_point.version or rollback_point.commit[:12]
    return [
        Finding(
            code="comfyui-update-interrupted",
            severity="problem",
            message=f"An update of {where} from {was} was interrupted.",
            remedy="update-comfyui",
            path=where,
            hint="Run the update again; it first restores the previous state.",
        )
    ]


def _judge_version(checkout: ComfyCheckout, table: ComfyTable) -> list[Finding]:
    where, version = checkout.tree, checkout.version
    if version is None or is_at_least(version, "0") is None:
        return [
            Finding(
                code="comfyui-version-unknown",
                severity="warning",
                remedy="by-hand",
                message=f"The version of ComfyUI in {where} is not known"
                + (f"; it reports {printable(version)!r}." if version else "."),
                path=where,
                hint=f"Make sure that it is {table.minimum.version} or newer: older ones cannot load FLUX.2 [klein].",
            )
        ]
    for bound, code in ((table.minimum, "comfyui-too-old"), (table.advised, "comfyui-older-than-advised")):
        if not is_at_least(version, bound.version):
            is_minimum = bound is table.minimum
            verb = "is needed" if is_minimum else "is advised"
            remedy, hint = _how_to_update(checkout)
            return [
                Finding(
                    code=code,
                    severity="problem" if is_minimum else "warning",
                    message=f"{where} is ComfyUI {version}; {bound.version} or newer {verb}: {bound.because}.",
                    remedy=remedy,
                    path=where,
                    hint=hint,
                )
            ]
    return []


def too_old_for_models(checkout: ComfyCheckout, needed: str | None) -> tuple[Finding, ...]:
    """Return a finding where the ComfyUI that is there, and stays, does not load the set's files.

    Parameters
    ----------
    checkout : ComfyCheckout
        What is there.
    needed : str or None
        The first version that loads every file; None: no file says.
    """
    version = checkout.version
    if needed is None or version is None or is_at_least(version, needed) is not False:
        return ()
    remedy, hint = _how_to_update(checkout)
    return (
        Finding(
            code="comfyui-older-than-models",
            severity="problem",
            message=f"These models need ComfyUI {needed} or newer; {checkout.tree or checkout.given}, {version}, does "
            "not load them.",
            remedy=remedy,
            path=checkout.tree,
            hint=hint,
        ),
    )


def _how_to_update(checkout: ComfyCheckout) -> tuple[Remedy, str]:
    """Return what updates a ComfyUI: a portable build has its own updater, and a folder without git has none."""
    if checkout.kind == "portable":
        return "by-hand", "Run update\\update_comfyui_stable.bat in the portable build's folder."
    if not checkout.has_git:
        return "by-hand", "Install a newer ComfyUI in a new folder and point it at these models."
    return "update-comfyui", "Run the install again with --update-comfyui."


def _judge_python(checkout: ComfyCheckout) -> list[Finding]:
    where = checkout.tree or checkout.given
    if checkout.python is not None:
        return []
    broken = [each.path for each in checkout.pythons if not each.is_there]
    if broken:
        return [
            Finding(
                code="comfyui-python-broken",
                severity="warning",
                remedy="by-hand",
                message=f"The Python of {where} is missing: {broken[0]} is a broken link.",
                path=broken[0],
                hint="Create the environment again; a system update may have removed the Python it was made from.",
            )
        ]
    return [
        Finding(
            code="comfyui-python-not-found",
            severity="warning",
            remedy="by-hand",
            message=f"{where} has no Python of its own.",
            path=where,
            hint="Name the Python it is started with, or let klein-setup create an environment for it.",
        )
    ]


# --- planning ----------------------------------------------------------------------------------


def plan_checkout(
    checkout: ComfyCheckout | None, table: ComfyTable, *, wants_update: bool = False, may_go_back: bool = False
) -> CheckoutPlan:
    """Return what to do with ComfyUI itself.

    Parameters
    ----------
    checkout : ComfyCheckout or None
        What was found; None where there is nothing.
    table : ComfyTable
        The pinned release.
    wants_update : bool
        Whether an existing tree should be moved to the pinned release.
    may_go_back : bool
        Whether that may be an older one.
    """
    if checkout is None or checkout.kind == "empty":
        return CheckoutPlan(action="clone", reason="there is no ComfyUI yet")
    if checkout.kind == "other":
        return CheckoutPlan(
            action="refuse", reason=f"{checkout.given} is not ComfyUI", hint="Name ComfyUI's own or an empty folder."
        )
    if checkout.tree is None and checkout.receipt is not None:
        return CheckoutPlan(action="clone", reason="its program, which klein-setup put there, is gone")
    if checkout.kind == "models":
        return CheckoutPlan(action="none", reason="only a models folder was named")
    if checkout.kind == "base":
        return CheckoutPlan(action="none", reason="ComfyUI itself is in another folder (Desktop, or --base-directory)")
    if not wants_update:
        return CheckoutPlan(action="none", reason="--update-comfyui would update it")
    return _plan_update(checkout, table.pinned, may_go_back=may_go_back)


def _plan_update(checkout: ComfyCheckout, pinned: ComfyRelease, *, may_go_back: bool) -> CheckoutPlan:
    is_whole = checkout.rollback_point is None or checkout.rollback_point.is_finished
    if checkout.commit == pinned.commit and is_whole:
        return CheckoutPlan(action="none", reason=f"it is {pinned.version} already")
    if not checkout.has_git:
        if checkout.commit is None and checkout.version == pinned.version:
            return CheckoutPlan(action="none", reason=f"it says that it is {pinned.version} already")
        return CheckoutPlan(
            action="refuse",
            reason="it is not a git checkout, so it cannot be updated",
            hint=_how_to_update(checkout)[1],
        )
    if checkout.local_changes is None:
        because = "" if checkout.why_unknown is None else f": {checkout.why_unknown.rstrip('.')}"
        return CheckoutPlan(
            action="refuse",
            reason=f"it is not known whether its files were changed{because}",
            hint="Install git, and make sure that the folder belongs to you.",
        )
    if checkout.local_changes and is_whole:
        return CheckoutPlan(
            action="refuse", reason=_changed_words(checkout.local_changes), hint="Commit, stash or undo the changes."
        )
    version = checkout.version
    if (
        not may_go_back
        and is_whole
        and version is not None
        and is_at_least(version, pinned.version)
        and version != pinned.version
    ):
        return CheckoutPlan(action="none", reason=f"{version} is newer than {pinned.version}; it is not downgraded")
    return CheckoutPlan(action="update", reason=f"from {version or 'an unknown version'} to {pinned.version}")


def _changed_words(paths: Sequence[str]) -> str:
    verb = "was" if len(paths) == 1 else "were"
    return f"{count(len(paths), 'file')} of ComfyUI itself {verb} changed: {_some(paths)}"


def changed_error(where: str, paths: Sequence[str]) -> KleinError:
    """Return the error that names the changed files because of which a tree is not updated."""
    return CommandError(
        f"{where} was not updated: {_changed_words(paths)}.",
        hint="Keep the changes with `git stash` (or commit them on a branch) and run the same command again.",
        reason="local-changes",
        path=where,
        files=list(paths),
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return listing([*map(printable, names[:_SHOWN]), *([f"{more} more"] if more > 0 else [])])


# --- addresses ---------------------------------------------------------------------------------

_ARCHIVES = (".zip", ".tar.gz", ".tgz")


def is_archive(source: str) -> bool:
    """Whether a source names an archive rather than a repository.

    >>> is_archive("https://mirror.example/comfy-0.33.0.zip?x=1"), is_archive("https://github.com/Comfy-Org/ComfyUI")
    (True, False)
    """
    return urlsplit(source).path.lower().endswith(_ARCHIVES)


def is_web_address(source: str) -> bool:
    """Whether a source is fetched by HTTP."""
    return source.lower().startswith(("https://", "http://"))


def local_path(source: str) -> str | None:
    """Return the local path that a source names, as a path or a ``file:`` address; None for any other source.

    >>> local_path("file:///srv/my%20comfy.git"), local_path("/srv/comfy"), local_path("https://x.example/y")
    ('/srv/my comfy.git', '/srv/comfy', None)
    """
    if source.lower().startswith("file:"):
        path = unquote(urlsplit(source).path)
        return path[1:] if re.match(r"/[A-Za-z]:", path) else path
    is_elsewhere = "://" in source or re.match(r"[\w.-]+@[\w.-]+:", source) is not None
    return None if is_elsewhere else source


def split_login(source: str) -> tuple[str, tuple[str, str] | None]:
    """Return a source without the name and the password in it, and these two if a web server is to get them.

    Every user of a computer can read the arguments of git.  For ssh the user's name stays: it is part of the address.

    >>> split_login("https://me:p%40ss@x.example:3/y.git")
    ('https://x.example:3/y.git', ('me', 'p@ss'))
    >>> split_login("ssh://git:password@x.example/y"), split_login("/srv/comfy")
    (('ssh://git@x.example/y', None), ('/srv/comfy', None))
    """
    parts = urlsplit(source)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return source, None
    user, _, password = login.partition(":")
    if parts.scheme.lower() not in {"http", "https"}:
        return urlunsplit(parts._replace(netloc=f"{user}@{host}")), None
    return urlunsplit(parts._replace(netloc=host)), (unquote(user), unquote(password))


def archive_address(source: str, release: ComfyRelease) -> str | None:
    """Return the address of the archive of a release's commit on GitHub, Gitea or Forgejo.

    >>> archive_address("https://github.com/Comfy-Org/ComfyUI.git/", ComfyRelease(version="1.0.0", commit="c0ffee"))
    'https://github.com/Comfy-Org/ComfyUI/archive/c0ffee.zip'

    Returns
    -------
    str or None
        None where the source is not a web address.
    """
    if is_archive(source):
        return source
    if not is_web_address(source):
        return None
    return f"{source.rstrip('/').removesuffix('.git')}/archive/{release.commit}.zip"


# --- git's errors ------------------------------------------------------------------------------

_NO_ROOM = ("no space left on device", "disk quota exceeded", "not enough space on the disk")
_NO_PERMISSION = (
    "cannot mkdir",
    "could not create leading directories",
    "could not create work tree dir",
    "insufficient permission",
    "operation not permitted",
    "permission denied",
    "read-only file system",
    "unable to create file",
)
_NO_ACCESS = (
    "authentication failed",
    "could not read password",
    "could not read username",
    "host key verification failed",
    "invalid username or password",
    "permission denied (publickey",
    "the requested url returned error: 401",
    "the requested url returned error: 403",
)
_NO_REPOSITORY = (
    "does not appear to be a git repository",
    "repository not found",
    "the requested url returned error: 404",
    "' not found",
)
_NO_COMMIT = (
    "couldn't find remote ref",
    "no such remote ref",
    "not our ref",
    "remote did not send all necessary objects",
    "server does not allow request for unadvertised object",
)
_NO_NETWORK = (
    "connection refused",
    "connection reset",
    "connection timed out",
    "could not connect",
    "could not resolve",
    "couldn't connect",
    "early eof",
    "empty reply from server",
    "failed to connect",
    "gnutls",
    "network is unreachable",
    "no route to host",
    "openssl",
    "rpc failed",
    "the remote end hung up",
    "the requested url returned error: 5",
    "schannel",
    "ssl",
    "unable to access",
    "unexpected disconnect",
)
_STALLED = ("operation too slow", "timed out")
_DAMAGED = (
    "bad object",
    "corrupt",
    "fsck error",
    "hash mismatch",
    "index-pack failed",
    "invalid index-pack",
    "sha1 mismatch",
)


_Meaning = tuple[tuple[str, ...], type[KleinError], str, str]
_NO_MEANING: _Meaning = ((), CommandError, "git could not {doing}: {last}", "See git's output.")

# In this order: a message may match several.
_MEANINGS: tuple[_Meaning, ...] = (
    (
        _NO_ROOM,
        InsufficientSpaceError,
        "The disk of {path} is full: git could not {doing}.",
        "Free some space and run the same command again.",
    ),
    (
        _NO_ACCESS,
        AccessError,
        "{source} requires a login: git could not {doing}.",
        "Name a repository that can be read without an account, or set git up for this one.",
    ),
    (
        _NO_PERMISSION,
        NotWritableError,
        "No permission to write {path}: git could not {doing} ({last}).",
        "Name a folder that you may write to, or change the owner of this one.",
    ),
    (
        _NO_COMMIT,
        NotTheFileError,
        "{source} does not have the commit: git could not {doing}.",
        "Name a complete and current mirror of ComfyUI with --comfyui-source.",
    ),
    (
        _STALLED,
        StalledError,
        "{source} stopped answering: git could not {doing}.",
        "Run the same command again.",
    ),
    (
        _NO_REPOSITORY,
        UnreachableError,
        "{source} is not a git repository: git could not {doing}.",
        "Correct --comfyui-source to the address or folder of a repository.",
    ),
    (
        _NO_NETWORK,
        UnreachableError,
        "{source} could not be reached: git could not {doing} ({last}).",
        "Check the connection (and HTTPS_PROXY behind a proxy), then run the same command again.",
    ),
    (
        _DAMAGED,
        NotTheFileError,
        "{source} sent damaged data: git could not {doing} ({last}).",
        "Run the same command again, or name another mirror with --comfyui-source.",
    ),
)


def lacks_commit(lines: Sequence[str]) -> bool:
    """Whether git's output means that the server answered but does not offer the commit by its id."""
    said = "\n".join(lines).lower()
    return any(sign in said for sign in (*_NO_COMMIT, "dumb http transport does not support shallow"))


def explain_git_failure(
    lines: Sequence[str], *, doing: str, source: str, path: str, elsewhere: str | None = None
) -> KleinError:
    """Return the error that git's last lines mean.

    Parameters
    ----------
    lines : sequence of str
        What git printed, in English (``LC_ALL=C``).
    doing : str
        ``"fetch ComfyUI 0.33.0"``.
    source : str
        Address of the repository.
    path : str
        Folder git worked in.
    elsewhere : str, optional
        What to do where the source is at fault, unless that is naming another source of ComfyUI.
    """
    shown = [redact(printable(line)).strip() for line in lines if line.strip()]
    said = "\n".join(shown).lower()
    facts = {"last_lines": shown[-20:], "source": redact(source), "path": path}
    host = urlsplit(source).hostname or redact(source)
    so = f"git could not {doing}."
    if (reason := certificate_problem(said)) is not None:
        return certificate_error(host, reason, bundle=None, today=None, consequence=so, **facts)
    if (status := proxy_status(said)) is not None:
        return proxy_error(host, status, consequence=so, **facts)
    last = next((line for line in reversed(shown) if line.startswith(("fatal:", "error:"))), "".join(shown[-1:]))
    words = {"source": redact(source), "path": path, "doing": doing, "last": last}
    _, kind, sentence, hint = next((row for row in _MEANINGS if any(sign in said for sign in row[0])), _NO_MEANING)
    if elsewhere is not None and "--comfyui-source" in hint:
        hint = elsewhere
    return kind(sentence.format_map(words), hint=hint, **facts)
