"""Starts git so that nothing of a person's settings runs a program, asks a question or changes a byte.

Proxies, certificates and mirrors (``url.*.insteadOf``) of the person's configuration stay in force: the commit decides
whether what arrived is right, wherever it came from.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from provisioner.comfyui.checkout_models import TreeFile
from provisioner.comfyui.install_plan import explain_git_failure, lacks_commit, local_path, split_login
from provisioner.comfyui.release_models import ComfyRelease, WantedCommit
from provisioner.comfyui.which_release import parse_tags
from provisioner.core.errors import CommandError, KleinError, NotTheFileError, StalledError
from provisioner.core.ports import Cancelled, ProcessResult, RunProcess
from provisioner.core.redact import printable, redact
from provisioner.disk.programs import find_on_path
from provisioner.disk.root import scratch_folder
from provisioner.machine.child_environment import child_environment
from provisioner.network.certificates import bundle_in, certificate_problem, git_variables

Progress = Callable[[str], None]

QUICK_S = 120.0  # status and its like; the first look at a tree on a slow disk reads every file
_FETCH_S = 3600.0
_OUTPUT_BYTES = 64 * 1024 * 1024  # `ls-tree` names a thousand files in 100 kB; this is the bound, not the need
_TOLD_EVERY_S = 1.0
_FULL_BYTES = 1024 * 1024  # a disk with less left is full: a file system keeps some blocks to itself

# What a person may have set and what must not hold here; the command line wins over every file.
_SAFE = {
    "advice.detachedHead": "false",
    "color.ui": "false",
    "core.askPass": "",
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.longpaths": "true",
    "core.quotePath": "false",
    "credential.helper": "",
    "credential.interactive": "false",
    "fetch.recurseSubmodules": "false",
    "gc.auto": "0",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",
    "init.defaultBranch": "master",
    "init.templateDir": "",
    "maintenance.auto": "false",
    "protocol.ext.allow": "never",
    "protocol.file.allow": "always",
    "status.renames": "false",
    "submodule.recurse": "false",
}
# In a tree of our own the bytes are those of the commit.  In somebody's tree these are theirs: Git for Windows sets
# autocrlf for everybody, and without it every file would look changed.
_EXACT = {
    "core.attributesFile": os.devnull,
    "core.autocrlf": "false",
    "core.eol": "lf",
    "core.safecrlf": "false",
    "core.sparseCheckout": "false",
}
_KEPT = frozenset(
    {
        "GIT_CONFIG_GLOBAL",
        "GIT_CONFIG_NOSYSTEM",
        "GIT_CONFIG_SYSTEM",
        "GIT_EXEC_PATH",
        "GIT_PROXY_SSL_CAINFO",
        "GIT_SSH",
        "GIT_SSH_COMMAND",
        "GIT_SSL_CAINFO",
        "GIT_SSL_CAPATH",
        "SSH_AUTH_SOCK",
    }
)


def find_git(run: RunProcess, environ: Mapping[str, str]) -> Path | None:
    """Return git's path, None where there is none that works."""
    program = find_on_path("git", environ, cwd=Path.cwd(), is_windows=sys.platform == "win32")
    if program is None:
        return None
    try:
        if sys.platform == "darwin" and program == Path("/usr/bin/git"):
            # Without the developer tools this is a stand-in that opens a window and asks to install them.
            if run(["/usr/bin/xcode-select", "-p"], timeout_s=QUICK_S).returncode != 0:
                return None
        return program if run([program, "--version"], timeout_s=QUICK_S).returncode == 0 else None
    except CommandError:
        return None


def git_environment(environ: Mapping[str, str], tree: Path, pass_env: Collection[str] = ()) -> dict[str, str]:
    """Return the variables git runs with: no questions, English, and no repository but the tree's own."""
    kept = child_environment(environ, {*pass_env, *_KEPT})
    return (
        kept
        | git_variables(environ, os.path.isdir)
        | {
            "GCM_INTERACTIVE": "never",
            "GIT_ASKPASS": "",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_CEILING_DIRECTORIES": str(tree.parent),
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_OPTIONAL_LOCKS": "0",  # looking at a tree writes nothing in it
            "GIT_SSH_COMMAND": kept.get("GIT_SSH_COMMAND", "ssh -oBatchMode=yes"),
            "GIT_TERMINAL_PROMPT": "0",
            "LANGUAGE": "C",
            "LC_ALL": "C",
            "SSH_ASKPASS": "",
        }
    )


@dataclass(frozen=True, kw_only=True)
class Git:
    """git in one tree.

    Parameters
    ----------
    program : Path
        As `find_git` gave it.
    run : RunProcess
        Starts programs.
    environ : mapping
        The person's variables.
    pass_env : collection of str
        Names of those that git gets as well.
    settings : mapping
        Settings for this tree beside the safe ones, which win.
    variables : mapping
        Variables beside those of `git_environment`.
    is_windows : bool
        Whether git may know a second store of certificates, that of the system.
    tree : Path
        Where it works.
    is_ours : bool
        Whether the tree is one we make, whose bytes are the commit's whatever the person's settings.
    cancelled : Cancelled
        Asked at every line git says.
    progress : Progress
        Told how far git is.
    """

    program: Path
    run: RunProcess
    environ: Mapping[str, str]
    tree: Path
    cancelled: Cancelled
    progress: Progress
    is_ours: bool = False
    pass_env: Collection[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    is_windows: bool = sys.platform == "win32"

    def try_to(self, *words: str, timeout_s: float = QUICK_S, input_bytes: bytes | None = None) -> ProcessResult:
        """Run git and return what it said, whatever its exit status; raises CommandError where it does not end."""
        settings = {**self.settings, **_SAFE, **(_EXACT if self.is_ours else {})}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return self.run(
            [self.program, *options, "-C", self.tree, *words],
            timeout_s=timeout_s,
            env=git_environment(self.environ, self.tree, self.pass_env) | dict(self.variables),
            input_bytes=input_bytes,
            on_line=_listener(self.cancelled, self.progress),
            keep_bytes=_OUTPUT_BYTES,
        )

    def do(
        self, *words: str, doing: str, source: str = "", timeout_s: float = QUICK_S, input_bytes: bytes | None = None
    ) -> str:
        """Run git, which has to succeed, and return what it printed; raises what `explain_git_failure` returns."""
        done = self.try_to(*words, timeout_s=timeout_s, input_bytes=input_bytes)
        if done.returncode != 0:
            raise self._failure(done.last_lines, doing, source or str(self.tree))
        return done.stdout

    def _failure(self, lines: Sequence[str], doing: str, source: str, elsewhere: str | None = None) -> KleinError:
        """Return what git's failure amounts to; on a full disk git often names the file and not the reason."""
        if shutil.disk_usage(self.tree).free < _FULL_BYTES:
            lines = [*lines, "No space left on device"]
        return explain_git_failure(lines, doing=doing, source=source, path=str(self.tree), elsewhere=elsewhere)

    # --- asking ----------------------------------------------------------------------------------

    def ask(self, *words: str) -> str | None:
        """Return the one line git answers, or None where it cannot."""
        done = self.try_to(*words)
        return done.stdout.strip() or None if done.returncode == 0 else None

    def has_commit(self, commit: str) -> bool:
        """Whether the commit itself is here."""
        return self.try_to("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0

    def changed(self) -> tuple[str, ...]:
        """Return the tracked files that differ from the commit; raises KleinError where git cannot tell."""
        words = ("status", "--porcelain=v1", "-z", "--untracked-files=no", "--ignore-submodules=all")
        return tuple(line[3:] for line in self.do(*words, doing="compare the files").split("\0") if line)

    def files_of(self, commit: str) -> tuple[TreeFile, ...]:
        """Return every file of a commit."""
        return tuple(_rows(self.do("ls-tree", "-r", "-z", commit, doing="list the files")))

    # --- bringing a commit -----------------------------------------------------------------------

    def fetch(self, wanted: WantedCommit, source: str, *, is_shallow: bool) -> None:
        """Bring a commit into the repository; nothing in the tree changes.

        The commit is asked for by its id, then by its tag.  A plain web server without git's protocol has no
        shallow copies, so there everything comes.

        Raises
        ------
        NotTheFileError
            The source is there and does not have the commit, or its tag means another one.
        KleinError
            As `explain_git_failure`.
        """
        if self.has_commit(wanted.commit):
            return
        doing = f"fetch {wanted.what}"
        git, address = self.reaching(source)
        tags = () if wanted.tag is None else (wanted.tag,)
        depth = ("--depth=1",) if is_shallow else ()
        said: Sequence[str] = ()
        asked: list[tuple[tuple[str, ...], str]] = [(depth, wanted.commit), *((depth, tag) for tag in tags)]
        for options, ref in [*asked, *(((), tag) for tag in tags), ((), "+refs/heads/*:refs/klein-setup/*")]:
            if (options, ref) not in asked and "dumb http" not in "\n".join(said):
                break
            words = ("fetch", "--progress", "--no-tags", "--upload-pack=git-upload-pack", *options, "--", address, ref)
            done = git.over_the_network(*words, timeout_s=_FETCH_S)
            if self.has_commit(wanted.commit):
                return
            if done.returncode != 0:
                said = done.last_lines
                if not lacks_commit(said):
                    raise self._failure(said, doing, source, wanted.elsewhere)
        raise _no_commit(wanted, source)

    def tags_at(self, source: str, *, timeout_s: float) -> tuple[ComfyRelease, ...]:
        """Return the releases that a repository has tags of, newest first; nothing is fetched.

        git works in an empty folder of its own: the settings of no tree are read.

        Raises
        ------
        StalledError
            No answer within `timeout_s` seconds.
        KleinError
            As `explain_git_failure`.
        """
        doing = "list its releases"
        with scratch_folder("klein-setup-git-") as empty:
            git, address = replace(self, tree=empty).reaching(source)
            words = ("ls-remote", "--tags", "--upload-pack=git-upload-pack", "--", address)
            try:
                done = git.over_the_network(*words, timeout_s=timeout_s)
            except CommandError as error:
                if error.context.get("reason") != "timeout":
                    raise
                raise StalledError(
                    f"{redact(source)} did not answer within {timeout_s:g} s: git could not {doing}.",
                    hint="Run the same command again; --stall-timeout SECONDS waits longer.",
                ) from error
            if done.returncode != 0:
                raise git._failure(done.last_lines, doing, source)
        return parse_tags(done.stdout)

    def tree_at(self, release: ComfyRelease, source: str) -> str | None:
        """Return the id of the tree of a release's commit, which is fetched for it; raises as `fetch`."""
        with scratch_folder("klein-setup-git-") as empty:
            git = replace(self, tree=empty)
            git.do("init", "--quiet", doing="make a repository")
            git.fetch(release.wanted, source, is_shallow=True)
            return git.ask("rev-parse", f"{release.commit}^{{tree}}")

    def reaching(self, source: str) -> tuple[Git, str]:
        """Return a git that can log in at a source, and the address of it that may stand among its arguments."""
        place = local_path(source)
        address, login = split_login(source)
        if place is not None:
            address = os.path.abspath(place)  # noqa: PTH100 - git runs in another folder
        return replace(self, variables={**self.variables, **_login_variables(address, login)}), address

    def over_the_network(self, *words: str, timeout_s: float) -> ProcessResult:
        """Run git; on Windows once more with the system's certificates, where its own list lacks an authority."""
        done = self.try_to(*words, timeout_s=timeout_s)
        if done.returncode == 0 or not self._may_ask_windows(done.last_lines):
            return done
        git = replace(self, settings={**self.settings, "http.sslBackend": "schannel"})
        return git.try_to(*words, timeout_s=timeout_s)

    def _may_ask_windows(self, said: Sequence[str]) -> bool:
        """Whether git did not know an authority that the store of Windows may know: it may have a list of its own."""
        is_unknown = certificate_problem("\n".join(said)) == "unknown-issuer"
        return self.is_windows and is_unknown and bundle_in(self.environ) is None


def _login_variables(address: str, login: tuple[str, str] | None) -> dict[str, str]:
    """Return what lets git (2.31 and newer) log in at one address, without a word of it among anyone's arguments."""
    if login is None:
        return {}
    basic = base64.b64encode(":".join(login).encode()).decode()
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.{address}.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
    }


def _no_commit(wanted: WantedCommit, source: str) -> NotTheFileError:
    return NotTheFileError(
        f"{redact(source)} does not have commit {wanted.commit[:12]}, which is {wanted.what}.",
        hint=wanted.elsewhere,
        expected=wanted.commit,
        source=redact(source),
    )


def _rows(text: str) -> Iterator[TreeFile]:
    for row in text.split("\0"):
        if row:
            facts, _, path = row.partition("\t")
            mode, _, id_ = facts.split(" ")
            yield TreeFile(path=path, mode=mode, id=id_)


_COUNTED = re.compile(r"(?:remote: )?(Receiving objects|Resolving deltas|Updating files):\s+\d+%.*")


def _listener(cancelled: Cancelled, progress: Progress) -> Callable[[str, str], None]:
    """Return a listener that stops git when asked to, and passes on how far it is, once a second."""
    told_at = [time.monotonic()]

    def listen(_: str, line: str) -> None:
        if cancelled():
            raise KeyboardInterrupt
        now = time.monotonic()
        if now - told_at[0] >= _TOLD_EVERY_S and _COUNTED.match(line):
            told_at[0] = now
            progress(redact(printable(line)).strip())

    return listen
