"""ComfyUI's own files for real: real git repositories, a real web server on loopback, real kills."""

from __future__ import annotations

import base64
import functools
import gzip
import http.server
import io
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provisioner.comfyui.checkout.archive import unpack
from provisioner.comfyui.checkout.checkout_receipt import (
    PLACING,
    RECEIPT,
    ROLLBACK_POINT,
    read_receipt,
    read_rollback_point,
    write_json,
    write_rollback_point,
)
from provisioner.comfyui.checkout.checkouts import Bounds, Checkouts, requirements_of
from provisioner.comfyui.checkout.git_tree import read_files, top_entries, tree_id
from provisioner.comfyui.checkout.repository import remove_repository, why_not_ours
from provisioner.comfyui.checkout_models import CheckoutReceipt, RollbackPoint, TreeFile
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.core.errors import (
    AccessError,
    CommandError,
    IntegrityError,
    KleinError,
    LockHeldError,
    NetworkError,
    NotTheFileError,
    NotWritableError,
    OfflineError,
    ServerError,
    StorageError,
    UsageError,
)
from provisioner.core.retries import Retries
from provisioner.disk.root import Root
from provisioner.files.download.limiter import RateLimiter
from provisioner.files.download.whole_file import WholeFiles
from provisioner.machine.process import Completed, run_process
from tests.support.setup_fixture import GIT, git

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="makes real repositories")
needs_posix = pytest.mark.skipif(os.name != "posix", reason="executable bits, links and signals as POSIX has them")

FILES = {
    "main.py": b"print('comfy')\n",
    "folder_paths.py": b"pass\n",
    "comfyui_version.py": b'__version__ = "0.33.0"\n',
    "requirements.txt": b"torch\ntorchsde # samplers\n\nav>=14\n",
    ".gitignore": b"/models/*\n!/models/vae\n/custom_nodes/*\n/output/\n/user/\n/temp/\n/.venv\n**/__pycache__\n",
    "run.bat": b"echo hello\r\npause\r\n",
    "a": b"sorts before a.b and a/\n",
    "a.b": b"x",
    "ab/c.py": b"y",
    "b/deep/er/file.txt": b"",
    "b-side": b"b- sorts before b/\n",
    "b.py": b"z\n",
    "comfy/sd.py": b"def load(): ...\n",
    "custom_nodes/example_node.py.example": b"example\n",
    "custom_nodes/websocket_image_save.py": b"shipped\n",
    "models/vae/put_vae_here": b"",
    "models/checkpoints/put_checkpoints_here": b"",
    "tools/run.sh": b"#!/bin/sh\n",
    "umlaut-\xc3\xa4.txt".encode("latin-1").decode("utf-8"): b"name beyond ASCII\n",
}
NEWER = {"comfyui_version.py": b'__version__ = "0.34.0"\n', "comfy/klein.py": b"k\n", "main.py": b"print('newer')\n"}
OLDER = {"comfyui_version.py": b'__version__ = "0.9.0"\n'}


def commit(folder: Path, files: Mapping[str, bytes], message: str, tag: str | None = None) -> ComfyRelease:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    git(folder, "add", "-A", "-f")
    git(folder, "commit", "-q", "-m", message)
    if tag is not None:
        git(folder, "tag", tag)
    return ComfyRelease(
        version=(tag or "v0.0.0").removeprefix("v"),
        commit=git(folder, "rev-parse", "HEAD"),
        tree=git(folder, "rev-parse", "HEAD^{tree}"),
    )


class Upstream:
    """A repository with three releases; the middle one is what is installed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        folder.mkdir(parents=True)
        git(folder, "init", "-q", "-b", "master")
        git(folder, "config", "core.autocrlf", "false")
        (folder / "tools").mkdir()
        self.older = commit(folder, {**FILES, **OLDER}, "older", "v0.9.0")
        (folder / "comfyui_version.py").write_bytes(FILES["comfyui_version.py"])
        if os.name == "posix":
            (folder / "tools" / "run.sh").chmod(0o755)
            (folder / "tools" / "link").symlink_to("../b/deep")
        self.release = commit(folder, {}, "release", "v0.33.0")
        self.newer = commit(folder, NEWER, "newer", "v0.34.0")
        git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")

    def archive(self, kind: str, release: ComfyRelease, name: str = "ComfyUI-1234/") -> bytes:
        words = ["git", "-C", str(self.path), "archive", f"--format={kind}", f"--prefix={name}", release.commit]
        return subprocess.run(words, capture_output=True, check=True, env={**os.environ, **GIT}).stdout


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    return Upstream(tmp_path_factory.mktemp("up stream") / "ComfyUI")


DOWNLOAD = WholeFiles(retries=Retries(attempts=3, first_pause_s=0.01)).fetch


def checkouts(*, has_git: bool = True, more: Mapping[str, str] | None = None, wait: bool = True) -> Checkouts:
    environ = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", **(more or {})}
    if not has_git:
        environ["PATH"] = ""
    return Checkouts(run=run_process, environ=environ, download=DOWNLOAD, waits_for_lock=wait)


def everything(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder but git's own and ours."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith((".git/", ".klein-setup/")):
            continue
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def as_released(upstream: Upstream) -> dict[str, bytes | str]:
    files: dict[str, bytes | str] = dict(FILES)
    if os.name == "posix":
        files["tools/link"] = "../b/deep"
    return dict(sorted(files.items()))


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.parent.iterdir() if "klein-setup" in path.name]


# --- git's ids ---------------------------------------------------------------------------------


@needs_posix
def test_the_id_of_a_tree_is_gits(upstream: Upstream) -> None:
    rows = [row.split("\t") for row in git(upstream.path, "ls-tree", "-r", "-z", upstream.release.commit).split("\0")]
    modes = {row[1]: row[0].split()[0] for row in rows if row[0]}
    assert set(modes.values()) == {"100644", "100755", "120000"}
    plain = upstream.path.parent / "plain"
    git(upstream.path, "worktree", "add", "-q", "--detach", str(plain), upstream.release.commit)
    (plain / ".git").unlink()
    files = read_files(plain, modes, on_file=lambda: None)
    assert tree_id(files) == git(upstream.path, "rev-parse", f"{upstream.release.commit}^{{tree}}")
    rows_at_top = git(upstream.path, "ls-tree", upstream.release.commit).splitlines()
    assert [each.path for each in top_entries(files)] == [
        row.split("\t")[1].strip('"') for row in rows_at_top if "umlaut" not in row
    ] + [each.path for each in top_entries(files) if "umlaut" in each.path]


# --- getting it with git -----------------------------------------------------------------------


def spellings(upstream: Upstream, kind: str) -> str:
    if kind == "bare":
        bare = upstream.path.with_name("bare.git")
        if not bare.exists():
            git(upstream.path.parent, "clone", "-q", "--bare", str(upstream.path), str(bare))
        return str(bare)
    return upstream.path.as_uri() if kind == "file" else str(upstream.path)


@pytest.mark.parametrize("kind", ["path", "file", "bare"])
def test_a_checkout_is_the_commit_and_nothing_else(upstream: Upstream, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data" / "ComfyUI"
    said: list[str] = []
    receipt = checkouts().fetch(upstream.release, folder, source=spellings(upstream, kind), progress=said.append)
    assert everything(folder) == as_released(upstream)
    assert git(folder, "rev-parse", "HEAD") == upstream.release.commit
    assert git(folder, "rev-list", "--count", "HEAD") == "1"
    assert git(folder, "status", "--porcelain") == ""
    assert (receipt.way, receipt.tree) == ("git", upstream.release.tree)
    assert read_receipt(folder) == receipt
    assert (folder / "models" / "text_encoders").is_dir()
    assert leftovers(folder) == []
    assert said[-1] == f"ComfyUI 0.33.0 is in {folder}."


def test_settings_of_a_person_change_no_byte_and_start_nothing(upstream: Upstream, tmp_path: Path) -> None:
    settings = tmp_path / "gitconfig"
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch '{tmp_path}/hook-ran'\n")
    (hooks / "post-checkout").chmod(0o755)
    (tmp_path / "attributes").write_text("* text=auto eol=crlf\n")
    settings.write_text(
        f"[core]\n autocrlf = true\n hooksPath = {hooks}\n attributesFile = {tmp_path}/attributes\n"
        f" fsmonitor = touch {tmp_path}/fsmonitor-ran\n[fetch]\n recurseSubmodules = true\n"
        f"[init]\n templateDir = {tmp_path}/hooks\n"
    )
    folder = tmp_path / "ComfyUI"
    more = {"GIT_CONFIG_GLOBAL": str(settings), "GIT_DIR": str(tmp_path / "elsewhere"), "GIT_WORK_TREE": "/nowhere"}
    checkouts(more=more).fetch(upstream.release, folder, source=str(upstream.path))
    assert everything(folder) == as_released(upstream)
    assert {path.name for path in tmp_path.iterdir()} == {"gitconfig", "hooks", "attributes", "ComfyUI"}


def test_a_second_fetch_of_the_same_release_changes_nothing(upstream: Upstream, tmp_path: Path) -> None:
    folder = tmp_path / "ComfyUI"
    first = checkouts().fetch(upstream.release, folder, source=str(upstream.path))
    assert checkouts().fetch(upstream.release, folder, source="/nowhere") == first
    with pytest.raises(UsageError, match="holds a ComfyUI already"):
        checkouts().fetch(upstream.newer, folder, source=str(upstream.path))


def test_a_server_that_gives_out_no_commit_by_its_id_is_asked_for_the_tag(upstream: Upstream, tmp_path: Path) -> None:
    folder = tmp_path / "ComfyUI"
    with dumb_server(upstream) as (url, _):  # plain files: neither commits by id nor shallow copies
        checkouts().fetch(upstream.release, folder, source=f"{url}/dumb.git")
    assert everything(folder) == as_released(upstream)


def test_a_moved_tag_is_not_taken_for_the_commit(upstream: Upstream, tmp_path: Path) -> None:
    source = tmp_path / "mirror"
    other = Upstream(source)
    git(source, "checkout", "-q", "--orphan", "else")
    commit(source, {"main.py": b"other"}, "other")
    git(source, "tag", "-f", "v0.33.0")
    wanted = ComfyRelease(version="0.33.0", commit="12" * 20, tree=other.release.tree)
    with pytest.raises(NotTheFileError, match="does not have commit 121212121212"):
        checkouts().fetch(wanted, tmp_path / "ComfyUI", source=str(source))
    assert not (tmp_path / "ComfyUI").exists()
    assert leftovers(tmp_path / "ComfyUI") == []


def test_a_tree_that_is_not_the_tables_is_refused(upstream: Upstream, tmp_path: Path) -> None:
    wrong = ComfyRelease(version="0.33.0", commit=upstream.release.commit, tree="0" * 40)
    with pytest.raises(IntegrityError, match="has tree"):
        checkouts().fetch(wrong, tmp_path / "ComfyUI", source=str(upstream.path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("http://127.0.0.1:9/comfy", NetworkError),
        ("/nowhere/at/all", NetworkError),
        ("--upload-pack=touch x", NetworkError),
    ],
)
def test_a_source_that_is_not_there_is_a_network_error(tmp_path: Path, source: str, kind: type[KleinError]) -> None:
    with pytest.raises(kind):
        checkouts().fetch(ComfyRelease(version="0.33.0", commit="1" * 40), tmp_path / "ComfyUI", source=source)
    assert list(tmp_path.iterdir()) == []


def test_a_password_in_the_source_is_kept_and_shown_nowhere(upstream: Upstream, tmp_path: Path) -> None:
    said: list[str] = []
    arguments: list[str] = []

    def run(args: Sequence[str | Path], **how: Any) -> Completed:  # noqa: ANN401 - handed on
        arguments.extend(str(each) for each in args)
        return run_process(args, **how)

    with dumb_server(upstream) as (url, answers):
        source = url.replace("http://", "http://me:geheim%40123@") + "/dumb.git"
        careful = replace(checkouts(), run=run)
        careful.fetch(upstream.release, tmp_path / "ComfyUI", source=source, progress=said.append)
        assert f"{url}/dumb.git" in arguments
        assert "geheim" not in " ".join(arguments)
        assert set(answers.logins) == {"Basic " + base64.b64encode(b"me:geheim@123").decode()}
        with pytest.raises(KleinError) as error:
            checkouts().fetch(upstream.release, tmp_path / "Other", source=source + "x")
    kept = [path for path in (tmp_path / "ComfyUI").rglob("*") if path.is_file() and b"geheim" in path.read_bytes()]
    assert kept == []
    assert "geheim" not in "".join(said) + str(error.value) + str(error.value.context)


@needs_posix
@pytest.mark.skipif(os.access("/", os.W_OK), reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(NotWritableError, match="closed"):
        checkouts().fetch(upstream.release, tmp_path / "closed" / "ComfyUI", source=str(upstream.path))


def test_a_file_where_a_folder_is_needed_is_a_storage_error(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "ComfyUI"):
        with pytest.raises(StorageError, match="file"):
            checkouts().fetch(upstream.release, folder, source=str(upstream.path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_runs_do_not_build_in_one_place(upstream: Upstream, tmp_path: Path) -> None:
    folder = tmp_path / "ComfyUI"

    def second(line: str) -> None:
        if line.startswith("Fetching"):
            with pytest.raises(LockHeldError):
                checkouts(wait=False).fetch(upstream.release, folder, source=str(upstream.path))
            seen.append(line)

    seen: list[str] = []
    checkouts().fetch(upstream.release, folder, source=str(upstream.path), progress=second)
    assert len(seen) == 1


def test_a_cancelled_run_leaves_nothing(upstream: Upstream, tmp_path: Path) -> None:
    stopped = Checkouts(run=run_process, download=DOWNLOAD, environ=dict(os.environ), cancelled=lambda: True)
    with pytest.raises(KeyboardInterrupt):
        stopped.fetch(upstream.release, tmp_path / "ComfyUI", source=str(upstream.path))
    assert list(tmp_path.iterdir()) == []


# --- beside what lies there already ------------------------------------------------------------


@pytest.mark.parametrize("has_git", [True, False])
def test_models_and_environments_that_lie_there_stay(upstream: Upstream, tmp_path: Path, has_git: bool) -> None:
    folder = tmp_path / "ComfyUI"
    mine = {"models/vae/flux2-vae.safetensors": b"weights", ".venv/pyvenv.cfg": b"home", "models/vae/put_vae_here": b""}
    for name, content in mine.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    before = (folder / "models/vae/flux2-vae.safetensors").stat()
    (tmp_path / "comfy.zip").write_bytes(upstream.archive("zip", upstream.release))
    source = str(upstream.path) if has_git else str(tmp_path / "comfy.zip")
    checkouts(has_git=has_git).fetch(upstream.release, folder, source=source)
    assert everything(folder) == dict(sorted({**as_released(upstream), **mine}.items()))
    assert (folder / "models/vae/flux2-vae.safetensors").stat().st_ino == before.st_ino
    assert leftovers(folder) == []
    assert not (folder / PLACING).exists()
    if has_git:
        assert git(folder, "status", "--porcelain", "-uno") == ""


def test_another_file_in_the_way_is_named_and_nothing_moves(upstream: Upstream, tmp_path: Path) -> None:
    folder = tmp_path / "ComfyUI"
    folder.mkdir()
    (folder / "comfy").mkdir()
    (folder / "comfy" / "sd.py").write_text("mine\n")
    with pytest.raises(StorageError, match=r"comfy/sd\.py"):
        checkouts().fetch(upstream.release, folder, source=str(upstream.path))
    assert everything(folder) == {"comfy/sd.py": b"mine\n"}
    assert leftovers(folder) == []


@needs_posix
def test_a_linked_models_folder_is_not_written_through(upstream: Upstream, tmp_path: Path) -> None:
    folder, disk = tmp_path / "ComfyUI", tmp_path / "big disk"
    (disk / "vae").mkdir(parents=True)
    folder.mkdir()
    (folder / "models").symlink_to(disk)
    checkouts().fetch(upstream.release, folder, source=str(upstream.path))
    assert list(disk.rglob("*_here")) == []
    assert git(folder, "status", "--porcelain", "-uno") == ""
    assert checkouts().describe(folder).local_changes == ()


def test_a_placing_that_was_interrupted_goes_on(upstream: Upstream, tmp_path: Path) -> None:
    folder = tmp_path / "ComfyUI"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "mine.safetensors").write_bytes(b"w")
    older = checkouts().fetch(upstream.older, tmp_path / "older", source=str(upstream.path))
    # as a kill leaves it: half of an older release moved, the journal there, main.py not yet
    for name in ("comfyui_version.py", "a.b", "folder_paths.py"):
        shutil.copy(tmp_path / "older" / name, folder / name)
    write_json(Root(folder), folder / PLACING, {each.path: each.id for each in older.files})
    assert checkouts().describe(folder).kind == "empty"
    checkouts().fetch(upstream.release, folder, source=str(upstream.path))
    assert everything(folder) == dict(sorted({**as_released(upstream), "models/mine.safetensors": b"w"}.items()))


# --- kills -------------------------------------------------------------------------------------

SCRIPT = """
import os, sys
from pathlib import Path
from provisioner.comfyui.checkout.checkouts import Checkouts
from provisioner.files.download.whole_file import WholeFiles
from provisioner.machine.process import Completed, run_process
from provisioner.comfyui.release_models import ComfyRelease
version, commit, tree, folder, source, path = sys.argv[1:]
environ = dict(os.environ) if path == "git" else {**os.environ, "PATH": ""}
print("started", flush=True)
Checkouts(run=run_process, environ=environ, download=WholeFiles().fetch).fetch(
    ComfyRelease(version=version, commit=commit, tree=tree), Path(folder), source=source
)
"""


@needs_posix
@pytest.mark.parametrize("way", ["git", "archive"])
@pytest.mark.parametrize("moment", ["begun", "files there", "placing"])
def test_a_kill_at_any_moment_leaves_no_half_tree(
    large: tuple[Upstream, Path], tmp_path: Path, way: str, moment: str
) -> None:
    upstream, archive = large
    folder = tmp_path / "ComfyUI"
    staging = tmp_path / ".ComfyUI.klein-setup-new"
    if moment == "placing":
        (folder / "models").mkdir(parents=True)
        (folder / "models" / "mine.bin").write_bytes(b"w")
    sign = {"begun": staging, "files there": staging / "main.py", "placing": folder / PLACING}[moment]
    release = upstream.release
    source = str(upstream.path) if way == "git" else str(archive)
    words = [
        sys.executable,
        "-c",
        SCRIPT,
        release.version,
        release.commit,
        release.tree or "",
        str(folder),
        source,
        way,
    ]
    child = subprocess.Popen(words, cwd=ROOT)
    until = time.monotonic() + 30
    while not os.path.lexists(sign):
        assert time.monotonic() < until
        assert child.poll() is None
        time.sleep(0.0005)
    child.kill()
    child.wait(timeout=10)
    wanted = as_released(upstream)
    assert not (folder / "main.py").exists() or set(wanted) <= set(everything(folder))  # not there, or whole
    checkouts(has_git=way == "git").fetch(release, folder, source=source)
    assert set(wanted) <= set(everything(folder))
    assert checkouts().describe(folder).local_changes == ()
    assert leftovers(folder) == []
    assert not (folder / PLACING).exists()
    assert moment != "placing" or (folder / "models" / "mine.bin").read_bytes() == b"w"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Upstream, Path]:
    """A release of some hundred files, so that there is a middle to be killed in, and its archive."""
    home = tmp_path_factory.mktemp("large")
    upstream = Upstream(home / "ComfyUI")
    files = {f"web/{n % 20}/{n}.js": os.urandom(4000) for n in range(500)}
    git(upstream.path, "checkout", "-q", "v0.33.0")
    upstream.release = commit(upstream.path, files, "large", "v0.33.1")
    archive = home / "comfy.zip"
    archive.write_bytes(upstream.archive("zip", upstream.release))
    return upstream, archive


# --- archives ----------------------------------------------------------------------------------


class Answers:
    """What the server does, and what it was asked."""

    def __init__(self, failures: Sequence[int]) -> None:
        self.asked: list[str] = []
        self.logins: list[str | None] = []
        self.failures = list(failures)  # statuses, one for each request to come
        self.cut_at: int | None = None


@contextmanager
def web(root: Path, failures: Sequence[int] = ()) -> Iterator[tuple[str, Answers]]:
    answers = Answers(failures)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.asked.append(self.path)
            answers.logins.append(self.headers.get("Authorization"))
            if answers.failures:
                self.send_error(answers.failures.pop(0))
                return
            if answers.cut_at is not None:
                data = Path(self.translate_path(self.path)).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: answers.cut_at])
                answers.cut_at = None
                self.close_connection = True
                return
            super().do_GET()

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    handler = functools.partial(Handler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", answers
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def dumb_server(upstream: Upstream) -> Iterator[tuple[str, Answers]]:
    bare = upstream.path.with_name("dumb.git")
    if not bare.exists():
        git(upstream.path.parent, "clone", "-q", "--bare", str(upstream.path), str(bare))
        git(bare, "update-server-info")
    with web(upstream.path.parent) as (url, answers):
        yield url, answers


def put(root: Path, data: bytes, release: ComfyRelease, ending: str = "zip") -> Path:
    path = root / "ComfyUI" / "archive" / f"{release.commit}.{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_without_git_the_archive_of_the_commit_is_proved(upstream: Upstream, tmp_path: Path) -> None:
    put(tmp_path / "www", upstream.archive("zip", upstream.release), upstream.release)
    folder = tmp_path / "ComfyUI"
    with web(tmp_path / "www") as (url, answers):
        receipt = checkouts(has_git=False).fetch(upstream.release, folder, source=f"{url}/ComfyUI.git")
    assert answers.asked == [f"/ComfyUI/archive/{upstream.release.commit}.zip"]
    assert everything(folder) == as_released(upstream)
    assert (receipt.way, receipt.tree, read_receipt(folder)) == ("archive", upstream.release.tree, receipt)
    assert leftovers(folder) == []
    if os.name == "posix":
        assert os.access(folder / "tools" / "run.sh", os.X_OK)
    assert not (folder / "a").stat().st_mode & 0o111


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_on_this_disk_will_do(upstream: Upstream, tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"comfy.{kind}"
    archive.write_bytes(upstream.archive(kind, upstream.release))
    checkouts().fetch(upstream.release, tmp_path / "ComfyUI", source=archive.as_uri())
    assert everything(tmp_path / "ComfyUI") == as_released(upstream)
    assert archive.exists()


def test_what_may_pass_is_tried_again(upstream: Upstream, tmp_path: Path) -> None:
    put(tmp_path / "www", upstream.archive("zip", upstream.release), upstream.release)
    with web(tmp_path / "www") as (url, answers):
        answers.failures, answers.cut_at = [503], 1000
        checkouts(has_git=False).fetch(upstream.release, tmp_path / "ComfyUI", source=f"{url}/ComfyUI")
    assert len(answers.asked) == 3


@pytest.mark.parametrize(
    ("failures", "kind"), [([404], IntegrityError), ([403], AccessError), ([500, 502, 503], ServerError)]
)
def test_a_refusing_server_is_named(
    upstream: Upstream, tmp_path: Path, failures: list[int], kind: type[KleinError]
) -> None:
    (tmp_path / "www").mkdir()
    with web(tmp_path / "www", failures) as (url, _), pytest.raises(kind, match=r"127\.0\.0\.1"):
        checkouts(has_git=False).fetch(upstream.release, tmp_path / "ComfyUI", source=f"{url}/ComfyUI")
    assert not (tmp_path / "ComfyUI").exists()
    assert leftovers(tmp_path / "ComfyUI") == []


@pytest.mark.parametrize("has_git", [True, False])
def test_offline_nothing_is_asked_and_a_repository_on_this_disk_will_do(
    upstream: Upstream, tmp_path: Path, has_git: bool
) -> None:
    put(tmp_path / "www", upstream.archive("zip", upstream.release), upstream.release)
    offline = replace(checkouts(has_git=has_git), is_offline=True)
    with (
        web(tmp_path / "www") as (url, answers),
        pytest.raises(OfflineError, match="is not on this computer"),
    ):
        offline.fetch(upstream.release, tmp_path / "ComfyUI", source=f"{url}/ComfyUI")
    assert answers.asked == []
    assert not (tmp_path / "ComfyUI").exists()
    if has_git:
        offline.fetch(upstream.older, tmp_path / "ComfyUI", source=str(upstream.path))
        with pytest.raises(OfflineError):
            offline.update(tmp_path / "ComfyUI", upstream.newer, source="https://git.example/ComfyUI")


def test_a_limited_rate_holds_for_the_archive(upstream: Upstream, tmp_path: Path) -> None:
    archive = upstream.archive("zip", upstream.release)
    put(tmp_path / "www", archive, upstream.release)
    limited = replace(checkouts(has_git=False), download=WholeFiles(limiter=RateLimiter(len(archive))).fetch)
    began = time.monotonic()
    with web(tmp_path / "www") as (url, _):
        limited.fetch(upstream.release, tmp_path / "ComfyUI", source=f"{url}/ComfyUI")
    assert time.monotonic() - began >= 1.0


def test_without_git_a_repository_on_disk_is_no_source(upstream: Upstream, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="git is not installed"):
        checkouts(has_git=False).fetch(upstream.release, tmp_path / "ComfyUI", source=str(upstream.path))


def test_an_archive_larger_than_any_comfyui_is_not_read_to_its_end(upstream: Upstream, tmp_path: Path) -> None:
    put(tmp_path / "www", b"PK\x03\x04" + bytes(3_000_000), upstream.release)
    small = Checkouts(run=run_process, download=DOWNLOAD, environ={"PATH": ""}, bounds=Bounds(archive_bytes=1_000_000))
    with web(tmp_path / "www") as (url, _), pytest.raises(IntegrityError, match=r"larger than 1\.00 MB"):
        small.fetch(upstream.release, tmp_path / "ComfyUI", source=f"{url}/ComfyUI")


def zipped(*members: tuple[str, bytes, int]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, mode in members:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = 3, mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return out.getvalue()


def tarred(**changes: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("x/thing")
        for name, value in changes.items():
            setattr(info, name, value)
        archive.addfile(info)
    return out.getvalue()


PLAIN, LINK = 0o100644, 0o120777


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html><html>Sign in", "is a web page"),
        (b"", "no zip or tar.gz"),
        (b"PK\x03\x04" + bytes(100), "is damaged"),
        (b"\x1f\x8b\x08\x00" + bytes(100), "is damaged"),
        (zipped(("x/../../escaped", b"", PLAIN)), "climbs"),
        (zipped(("/etc/escaped", b"", PLAIN)), "is absolute"),
        (zipped(("x/C:/escaped", b"", PLAIN)), "drive or a hidden stream"),
        (zipped(("x/a\\..\\escaped", b"", PLAIN)), "backslash"),
        (zipped(("x/aux.py", b"", PLAIN)), "a device on Windows"),
        (zipped(("x/.GIT/config", b"[core]", PLAIN)), "git's own"),
        (zipped(("escaped", b"", PLAIN)), "beside the archive's folder"),
        (zipped(("x/l", b"/etc/passwd", LINK)), "a link that leaves it"),
        (zipped(("x/b/l", b"../../x/a", LINK)), "a link that leaves it"),
        (zipped(("x/l", b"b", LINK), ("x/l/escaped", b"", PLAIN)), "twice"),
        (zipped(("x/f", b"", PLAIN), ("x/f/g", b"", PLAIN)), "twice"),
        (zipped(("x/a", b"", 0o020644)), "something else than files and links"),
        (zipped(("x/a", bytes(3_000_000), PLAIN)), "more bytes than it may"),
        (zipped(*((f"x/{n}", b"", PLAIN) for n in range(60))), "more than 50 files"),
        (zipped(("x/a", b"", PLAIN), ("x/main.py", b"evil", PLAIN)), "is not ComfyUI 0.33.0"),
        (tarred(type=tarfile.CHRTYPE), "something else than files and links"),
        (tarred(type=tarfile.LNKTYPE, linkname="/etc/passwd"), "something else than files and links"),
        (tarred(type=tarfile.SYMTYPE, linkname="../../etc"), "a link that leaves it"),
        (tarred(name="x/../../escaped"), "climbs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # the bytes hold the time: every worker had other names
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_archive_writes_nothing_outside_and_leaves_nothing(
    upstream: Upstream, tmp_path: Path, data: bytes, said: str
) -> None:
    archive = tmp_path / "comfy.zip"
    archive.write_bytes(data)
    small = Checkouts(
        run=run_process, download=DOWNLOAD, environ={"PATH": ""}, bounds=Bounds(files=50, unpacked_bytes=1_000_000)
    )
    with pytest.raises((IntegrityError, StorageError), match=said):
        small.fetch(upstream.release, tmp_path / "in" / "ComfyUI", source=str(archive))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["comfy.zip", "in"]


def header(kind: bytes, size: int, name: str = "x/a") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def large_record(key: str, size: int) -> bytes:
    """Return one record of a pax header of exactly `size` bytes."""
    start = f"{size} {key}=".encode()
    return start + b"a" * (size - len(start) - 1) + b"\n"


MANY = 100_000_000
HEADERS_WITHOUT_END = {
    "one pax header": lambda: header(tarfile.XHDTYPE, MANY) + padded(large_record("comment", MANY)),
    "one long name": lambda: header(tarfile.GNUTYPE_LONGNAME, MANY) + padded(b"x/" + b"a" * MANY),
    "global pax headers": lambda: b"".join(
        header(tarfile.XGLTYPE, 500_000) + padded(large_record(f"k{n}", 500_000)) + header(tarfile.REGTYPE, 0, f"x/{n}")
        for n in range(100)
    ),
    "pax headers of every file": lambda: b"".join(
        header(tarfile.XHDTYPE, 500_000) + padded(large_record(f"k{n}", 500_000)) + header(tarfile.REGTYPE, 0, f"x/{n}")
        for n in range(100)
    ),
    "folders": lambda: b"".join(header(tarfile.DIRTYPE, 0, f"x/{n}") for n in range(60_000)),
}


@pytest.mark.parametrize("kind", HEADERS_WITHOUT_END)
def test_the_headers_of_an_archive_take_no_memory(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "comfy.tar.gz"
    archive.write_bytes(gzip.compress(HEADERS_WITHOUT_END[kind]() + bytes(1024), compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            unpack(archive, tmp_path / "in", bounds=Bounds(files=1000), cancelled=lambda: False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def test_the_list_of_a_zip_takes_no_memory(tmp_path: Path) -> None:
    entry = zipped(("x/a", b"", PLAIN))
    listed = entry[entry.index(b"PK\1\2") : entry.index(b"PK\5\6")]
    archive = tmp_path / "comfy.zip"
    count = 400_000
    start = len(entry) - len(listed) - 22
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(listed) * count, start, 0)
    archive.write_bytes(entry[:start] + listed * count + end)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="list of its files"):
            unpack(archive, tmp_path / "in", bounds=Bounds(), cancelled=lambda: False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def test_an_archive_without_a_known_tree_is_not_believed(upstream: Upstream, tmp_path: Path) -> None:
    archive = tmp_path / "comfy.zip"
    archive.write_bytes(upstream.archive("zip", upstream.release))
    unknown = ComfyRelease(version="0.33.0", commit=upstream.release.commit)
    with pytest.raises(IntegrityError, match="cannot be proved"):
        checkouts().fetch(unknown, tmp_path / "ComfyUI", source=str(archive))


# --- looking -----------------------------------------------------------------------------------


@pytest.fixture
def tree(upstream: Upstream, tmp_path: Path) -> Path:
    """A person's own clone, at the older release on a branch."""
    folder = tmp_path / "mine"
    git(tmp_path, "clone", "-q", str(upstream.path), str(folder))
    git(folder, "checkout", "-q", "-B", "stable", upstream.older.commit)
    return folder


def python_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_a_clone_is_described(tree: Path, upstream: Upstream) -> None:
    (tree / "custom_nodes" / "ComfyUI-Manager").mkdir()
    (tree / "custom_nodes" / "old.disabled").mkdir()
    (tree / "custom_nodes" / "own.py").write_text("")
    (tree / "models" / "vae" / "mine.safetensors").write_bytes(b"w")
    found = checkouts().describe(tree)
    assert (found.kind, found.version) == ("git", "0.9.0")
    assert (found.commit, found.branch, found.local_changes) == (upstream.older.commit, "stable", ())
    assert found.custom_nodes == ("ComfyUI-Manager", "own.py")
    assert requirements_of(tree) == ("torch", "torchsde", "av>=14")
    (tree / "comfy" / "sd.py").write_text("patched\n")
    assert checkouts().describe(tree).local_changes == ("comfy/sd.py",)
    without = checkouts(has_git=False).describe(tree)
    assert (without.commit, without.branch, without.local_changes) == (upstream.older.commit, "stable", None)
    assert without.why_unknown == "git is not installed"
    git(tree, "pack-refs", "--all")
    assert checkouts(has_git=False).describe(tree).commit == upstream.older.commit


def test_looking_writes_nothing(tree: Path) -> None:
    def stamps() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in tree.rglob("*")}

    os.utime(tree / "main.py", (1, 1))
    before = stamps()
    checkouts().describe(tree)
    assert stamps() == before


def test_an_old_tree_is_described_by_its_tag(tree: Path) -> None:
    git(tree, "rm", "-q", "comfyui_version.py")
    git(tree, "commit", "-q", "-m", "as it was in 2024")
    found = checkouts().describe(tree)
    assert found.version is not None
    assert found.version.startswith("0.9.0-1-g")


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")


@pytest.mark.parametrize(
    ("names", "below", "kind", "tree"),
    [
        ((), "absent", "empty", None),
        ((".venv/", ".DS_Store", ".klein-setup/"), ".", "empty", None),
        (("models/.klein-setup/", "models/vae/"), ".", "empty", None),
        (("main.py", "folder_paths.py"), ".", "source", "."),
        (("main.py", "folder_paths.py", ".git/HEAD"), ".", "git", "."),
        (("main.py", "folder_paths.py", "models/"), "models", "source", "."),
        (("python_embeded/python.exe", "ComfyUI/main.py", "ComfyUI/folder_paths.py"), ".", "portable", "ComfyUI"),
        (("python_embeded/python.exe", "ComfyUI/main.py", "ComfyUI/folder_paths.py"), "ComfyUI", "portable", "ComfyUI"),
        (("models/", "custom_nodes/", "user/", ".venv/bin/python"), ".", "base", None),
        (("models/checkpoints/",), ".", "base", None),
        (("vae/", "checkpoints/"), ".", "models", None),
        (("invoices.xlsx",), ".", "other", None),
        (("main.py",), ".", "other", None),
    ],
)
def test_a_folder_is_called_what_it_is(
    tmp_path: Path, names: tuple[str, ...], below: str, kind: str, tree: str | None
) -> None:
    folder = tmp_path / "thing"
    folder.mkdir()
    make(folder, *names)
    found = checkouts(has_git=False).describe(folder / below)
    assert found.kind == kind
    assert found.tree == (None if tree is None else folder / tree)


@pytest.mark.parametrize(
    ("platform", "names", "environ", "found"),
    [
        ("linux", ("ComfyUI/.venv/bin/python", "ComfyUI/venv/bin/python"), {}, [".venv", "venv"]),
        ("linux", ("venv/bin/python", "ComfyUI/env/bin/python"), {}, ["env", "beside"]),
        ("win32", ("ComfyUI/venv/Scripts/python.exe",), {}, ["venv"]),
        ("win32", ("ComfyUI/.venv/bin/python",), {}, []),
        ("win32", ("ComfyUI/env/python.exe",), {}, ["env"]),
        ("linux", ("python_embeded/python.exe", "ComfyUI/.venv/bin/python"), {}, ["portable", ".venv"]),
        ("linux", ("conda/bin/python",), {"CONDA_PREFIX": "conda"}, ["active"]),
    ],
)
def test_a_tree_has_its_pythons_likeliest_first(
    tmp_path: Path, platform: str, names: tuple[str, ...], environ: Mapping[str, str], found: list[str]
) -> None:
    from provisioner.comfyui.checkout.describe import describe_tree

    make(tmp_path, "ComfyUI/main.py", "ComfyUI/folder_paths.py", *names)
    environ = {name: str(tmp_path / value) for name, value in environ.items()}
    seen = describe_tree(tmp_path / "ComfyUI", lambda _: None, environ=environ, platform=platform)
    assert [each.origin for each in seen.pythons] == found


@needs_posix
def test_a_python_that_leads_nowhere_is_seen_as_broken(tmp_path: Path) -> None:
    make(tmp_path, "main.py", "folder_paths.py", ".venv/bin/")
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/nowhere/python3.9")
    found = checkouts(has_git=False).describe(tmp_path)
    assert [(each.origin, each.is_there) for each in found.pythons] == [(".venv", False)]
    assert found.python is None


# --- updating ----------------------------------------------------------------------------------


def test_an_update_moves_to_the_commit_and_back_to_the_branch(tree: Path, upstream: Upstream) -> None:
    (tree / "models" / "vae" / "mine.safetensors").write_bytes(b"w")
    rollback_point = checkouts().update(tree, upstream.newer, source=str(upstream.path))
    assert (rollback_point.commit, rollback_point.branch, rollback_point.version) == (
        upstream.older.commit,
        "stable",
        "0.9.0",
    )
    found = checkouts().describe(tree)
    assert (found.commit, found.branch, found.version, found.local_changes) == (
        upstream.newer.commit,
        None,
        "0.34.0",
        (),
    )
    assert found.rollback_point == rollback_point
    assert rollback_point.is_finished
    assert git(tree, "rev-parse", "--is-shallow-repository") == "false"
    assert found.receipt is None  # we did not make it, so nothing of it is ours to remove
    checkouts().go_back(tree)
    found = checkouts().describe(tree)
    assert (found.commit, found.branch, found.version, found.rollback_point) == (
        upstream.older.commit,
        "stable",
        "0.9.0",
        None,
    )
    assert (tree / "models" / "vae" / "mine.safetensors").read_bytes() == b"w"
    with pytest.raises(UsageError, match="There is no update"):
        checkouts().go_back(tree)


def test_changed_files_stop_an_update_and_are_named(tree: Path, upstream: Upstream) -> None:
    (tree / "comfy" / "sd.py").write_text("patched\n")
    with pytest.raises(CommandError, match=r"1 file of ComfyUI itself was changed: comfy/sd\.py") as error:
        checkouts().update(tree, upstream.newer, source=str(upstream.path))
    assert error.value.context["files"] == ["comfy/sd.py"]
    assert "git stash" in (error.value.hint or "")
    assert (tree / "comfy" / "sd.py").read_text() == "patched\n"
    assert git(tree, "rev-parse", "HEAD") == upstream.older.commit
    assert not (tree / ROLLBACK_POINT).exists()


@needs_posix
def test_an_update_starts_nothing_that_the_trees_settings_name(tree: Path, upstream: Upstream, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\nexec cat\n")
    program.chmod(0o755)
    (tree / ".git" / "info" / "attributes").write_text("*.py filter=evil\n")
    for key in ("filter.evil.clean", "filter.evil.smudge", "core.alternateRefsCommand", "core.fsmonitor"):
        git(tree, "config", key, str(program))
    git(tree, "config", "filter.evil.required", "true")
    git(tree, "config", f"remote.{upstream.path}.url", str(upstream.path))
    git(tree, "config", f"remote.{upstream.path}.uploadpack", f"touch '{tmp_path}/started'; git-upload-pack")
    for path in tree.rglob("*.py"):
        os.utime(path, (1, 1))
    checkouts().update(tree, upstream.newer, source=str(upstream.path))
    checkouts().go_back(tree)
    assert not (tmp_path / "started").exists()


def plant_record(tree: Path, commit: str, target: str, branch: str | None = None, *, is_finished: bool = False) -> None:
    """Put a record of an update there that nobody made."""
    point = RollbackPoint(
        commit=commit, target=target, branch=branch, version="0.1", started_at="now", is_finished=is_finished
    )
    write_rollback_point(tree, point)


@needs_posix
@pytest.mark.parametrize("name", [b"a=b", b"\xff"], ids=["with =", "no UTF-8"])
@pytest.mark.parametrize("is_update", [True, False])
def test_a_filter_whose_name_git_cannot_be_told_is_refused(
    tree: Path, upstream: Upstream, tmp_path: Path, name: bytes, is_update: bool
) -> None:
    mark = str(tmp_path / "started")
    (tree / ".git" / "info" / "attributes").write_bytes(b"*.py filter=" + name + b"\n")
    with (tree / ".git" / "config").open("ab") as config:
        config.write(b'[filter "%s"]\n\tsmudge = touch %s; cat\n' % (name, os.fsencode(mark)))
        config.write(b"\tclean = touch %s; cat\n" % os.fsencode(mark))
    plant_record(tree, git(upstream.path, "rev-parse", "v0.33.0"), upstream.older.commit)
    update = functools.partial(checkouts().update, tree, upstream.newer, source=str(upstream.path))
    go_back = functools.partial(checkouts().go_back, tree)
    with pytest.raises(UsageError, match=r"git settings of .* contain filter\..*\.(clean|smudge), which may start"):
        (update if is_update else go_back)()
    assert not Path(mark).exists()


@needs_posix
@pytest.mark.parametrize("section", ['includeIf "onbranch:stable"', "include"])
def test_settings_that_include_others_are_refused(tree: Path, upstream: Upstream, tmp_path: Path, section: str) -> None:
    git(tree, "checkout", "-q", "--detach", upstream.newer.commit)
    (tree / ".git" / "info" / "attributes").write_text("*.py filter=q\n")
    (tree / ".git" / "x").write_text(f'[filter "q"]\n\tclean = touch {tmp_path}/started; cat\n')
    with (tree / ".git" / "config").open("a") as config:
        config.write(f"[{section}]\n\tpath = x\n")
    plant_record(tree, upstream.older.commit, upstream.newer.commit, "stable", is_finished=True)
    with pytest.raises(UsageError, match=r"include(if\.onbranch:stable)?\.path, which may start programs"):
        checkouts().go_back(tree)
    assert git(tree, "rev-parse", "HEAD") == upstream.newer.commit
    assert not (tmp_path / "started").exists()


def test_more_settings_than_anybody_writes_are_refused(tree: Path, upstream: Upstream) -> None:
    with (tree / ".git" / "config").open("a") as config:
        config.write('[filter "' + "x" * 1000 + '"]\n' + "\tclean = cat\n" * 2000)
    with pytest.raises(UsageError, match="too many settings"):
        checkouts().update(tree, upstream.newer, source=str(upstream.path))


@needs_posix
def test_a_git_file_that_git_reads_otherwise_is_refused(tree: Path, upstream: Upstream, tmp_path: Path) -> None:
    (tree / ".git" / "info" / "attributes").write_text("*.py filter=q\n")
    git(tree, "config", "filter.q.smudge", f"touch {tmp_path}/started; cat")
    (tree / ".git").rename(tree / "a\nb")
    (tree / ".git").write_text("gitdir: a\nb\n")
    plant_record(tree, upstream.newer.commit, upstream.older.commit)
    with pytest.raises(UsageError, match="names no repository"):
        checkouts().go_back(tree)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("is_finished", [True, False])
def test_core_worktree_leads_to_no_other_folder(
    tree: Path, upstream: Upstream, tmp_path: Path, is_finished: bool
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "main.py").write_text("mine\n")
    (home / "a").write_text("mine\n")
    git(tree, "checkout", "-q", "--detach", upstream.newer.commit)
    git(tree, "config", "core.worktree", "../../home")
    plant_record(tree, upstream.older.commit, upstream.newer.commit, is_finished=is_finished)
    checkouts().go_back(tree)
    assert {path.name: path.read_text() for path in home.iterdir()} == {"main.py": "mine\n", "a": "mine\n"}
    assert (tree / "main.py").read_bytes() == FILES["main.py"]
    git(tree, "config", "--unset", "core.worktree")
    assert git(tree, "status", "--porcelain", "-uno") == ""


def test_undoing_an_update_overwrites_no_file_that_git_does_not_know(tree: Path, upstream: Upstream) -> None:
    gone = commit(tree, {"presets.json": b"of ComfyUI\n"}, "with presets")
    git(tree, "rm", "-q", "presets.json")
    without = commit(tree, {}, "without presets")
    (tree / "presets.json").write_text("mine\n")
    plant_record(tree, gone.commit, without.commit, is_finished=True)
    with pytest.raises(CommandError, match="go back to"):
        checkouts().go_back(tree)
    assert (tree / "presets.json").read_text() == "mine\n"
    assert git(tree, "rev-parse", "HEAD") == without.commit


@pytest.mark.parametrize("has_target", [True, False])
def test_a_record_that_nobody_made_overwrites_no_file(tree: Path, upstream: Upstream, has_target: bool) -> None:
    gone = commit(tree, {"presets.json": b"of ComfyUI\n"}, "with presets")
    git(tree, "rm", "-q", "presets.json")
    without = commit(tree, {}, "without presets")
    (tree / "presets.json").write_text("mine\n")
    (tree / "main.py").write_text("edited\n")
    plant_record(tree, gone.commit, without.commit if has_target else "12" * 20)
    checkouts().go_back(tree)
    kept = {path.name: path.read_text() for path in (tree / ".klein-setup" / "aside").rglob("*") if path.is_file()}
    assert kept == {"presets.json": "mine\n", "main.py": "edited\n"}
    assert git(tree, "status", "--porcelain", "-uno") == ""
    assert git(tree, "rev-parse", "HEAD") == gone.commit


def test_a_record_that_nobody_made_removes_no_folder(tree: Path, upstream: Upstream) -> None:
    planted = commit(tree, {"mine": b"a file where the person has a folder\n"}, "planted")
    git(tree, "checkout", "-q", "--detach", upstream.older.commit)
    (tree / "mine").mkdir()
    (tree / "mine" / "weights").write_text("weights\n")
    plant_record(tree, planted.commit, upstream.older.commit)
    with pytest.raises(CommandError, match="put files back"):
        checkouts().go_back(tree)
    assert (tree / "mine" / "weights").read_text() == "weights\n"


@needs_posix
def test_a_record_that_nobody_made_replaces_no_link(tree: Path, upstream: Upstream, tmp_path: Path) -> None:
    shutil.move(tree / "models", tmp_path / "models elsewhere")
    (tree / "models").symlink_to(tmp_path / "models elsewhere")
    plant_record(tree, upstream.older.commit, upstream.newer.commit)
    with pytest.raises(CommandError, match="put files back"):
        checkouts().go_back(tree)
    assert (tree / "models").is_symlink()


@pytest.mark.parametrize("moved", ["files", "index", "HEAD"])
def test_an_update_that_was_killed_at_any_point_leaves_nothing(tree: Path, upstream: Upstream, moved: str) -> None:
    before = everything(tree)
    git(tree, "fetch", "-q", str(upstream.path), upstream.newer.commit)
    plant_record(tree, upstream.older.commit, upstream.newer.commit, "stable")
    git(tree, "checkout", "-q", "--detach", upstream.newer.commit)
    if moved != "HEAD":
        git(tree, "symbolic-ref", "HEAD", "refs/heads/stable")
    if moved == "files":
        git(tree, "read-tree", "--reset", upstream.older.commit)
    checkouts().go_back(tree)
    assert everything(tree) == before
    assert git(tree, "status", "--porcelain") == ""
    assert git(tree, "symbolic-ref", "HEAD") == "refs/heads/stable"
    assert not (tree / ".klein-setup" / "aside").exists()


def test_an_update_that_fails_goes_back(tree: Path, upstream: Upstream) -> None:
    (tree / "comfy" / "klein.py").write_text("mine, untracked, in the way\n")
    with pytest.raises(CommandError, match="check out"):
        checkouts().update(tree, upstream.newer, source=str(upstream.path))
    found = checkouts().describe(tree)
    assert (found.commit, found.branch, found.local_changes, found.rollback_point) == (
        upstream.older.commit,
        "stable",
        (),
        None,
    )
    assert (tree / "comfy" / "klein.py").read_text() == "mine, untracked, in the way\n"


def test_an_update_that_is_cancelled_goes_all_the_way_back(tree: Path, upstream: Upstream) -> None:
    stopped = threading.Event()

    def stopping_run(args: Sequence[str | Path], **options: Any) -> Completed:  # noqa: ANN401 - handed on
        done = run_process(args, **options)
        if "checkout" in args and upstream.newer.commit in args:
            stopped.set()
            raise KeyboardInterrupt
        return done

    hurried = Checkouts(run=stopping_run, download=DOWNLOAD, cancelled=stopped.is_set)
    with pytest.raises(KeyboardInterrupt):
        hurried.update(tree, upstream.newer, source=str(upstream.path))
    found = checkouts().describe(tree)
    assert (found.commit, found.branch, found.local_changes) == (upstream.older.commit, "stable", ())
    assert found.rollback_point is None


def test_an_update_whose_commit_is_not_to_be_had_changes_nothing(tree: Path, tmp_path: Path) -> None:
    other = Upstream(tmp_path / "other")
    git(other.path, "commit", "-q", "--amend", "--allow-empty", "-m", "rewritten")
    wanted = ComfyRelease(version="9.9.9", commit="12" * 20)
    before = everything(tree)
    with pytest.raises(NotTheFileError):
        checkouts().update(tree, wanted, source=str(other.path))
    assert everything(tree) == before
    assert checkouts().describe(tree).rollback_point is None


@pytest.mark.parametrize("is_updated_again", [True, False])
def test_an_interrupted_update_is_put_back_and_what_is_strange_is_kept(
    tree: Path, upstream: Upstream, is_updated_again: bool
) -> None:
    git(tree, "fetch", "-q", str(upstream.path), upstream.newer.commit)
    rollback_point = RollbackPoint(
        commit=upstream.older.commit, branch="stable", version="0.9.0", target=upstream.newer.commit, started_at="now"
    )
    write_rollback_point(tree, rollback_point)
    # as a kill leaves it: some files new, one half written, one gone, one the person edited since, git's lock there
    (tree / "comfyui_version.py").write_bytes(NEWER["comfyui_version.py"])
    (tree / "main.py").write_bytes(b"print(")
    (tree / "a.b").unlink()
    (tree / "comfy" / "sd.py").write_text("edited since\n")
    lock = tree / ".git" / "index.lock"
    lock.write_bytes(b"")
    threading.Timer(0.3, lock.unlink).start()
    if is_updated_again:
        checkouts().update(tree, upstream.newer, source=str(upstream.path))
    else:
        checkouts().go_back(tree)
    found = checkouts().describe(tree)
    assert found.local_changes == ()
    assert found.commit == (upstream.newer if is_updated_again else upstream.older).commit
    kept = {path.name: path.read_bytes() for path in (tree / ".klein-setup" / "aside").rglob("*") if path.is_file()}
    assert kept == {"main.py": b"print(", "sd.py": b"edited since\n"}


def test_a_tree_of_ours_is_updated_with_its_receipt(upstream: Upstream, tmp_path: Path) -> None:
    folder = tmp_path / "ComfyUI"
    checkouts().fetch(upstream.older, folder, source=str(upstream.path))
    checkouts().update(folder, upstream.newer, source=str(upstream.path))
    receipt = read_receipt(folder)
    assert receipt is not None
    assert (receipt.commit, receipt.previous_commits) == (upstream.newer.commit, (upstream.older.commit,))
    assert checkouts().remove(folder).kept == ()
    assert not folder.exists()


def test_what_is_no_checkout_is_not_updated(upstream: Upstream, tmp_path: Path) -> None:
    make(tmp_path, "main.py", "folder_paths.py")
    with pytest.raises(UsageError, match="no git checkout"):
        checkouts().update(tmp_path, upstream.newer, source=str(upstream.path))


# --- removing ----------------------------------------------------------------------------------


def made(upstream: Upstream, tmp_path: Path, way: str) -> tuple[Path, CheckoutReceipt]:
    folder = tmp_path / "ComfyUI"
    archive = tmp_path / "comfy.zip"
    archive.write_bytes(upstream.archive("zip", upstream.release))
    source = str(upstream.path) if way == "git" else str(archive)
    return folder, checkouts().fetch(upstream.release, folder, source=source)


@pytest.mark.parametrize("way", ["git", "archive"])
def test_an_untouched_tree_goes_without_a_trace(upstream: Upstream, tmp_path: Path, way: str) -> None:
    folder, receipt = made(upstream, tmp_path, way)
    cache = folder / "comfy" / "__pycache__"
    cache.mkdir()
    (cache / "sd.cpython-312.pyc").write_bytes(b"compiled")
    preview = checkouts().removable(folder)
    assert (preview.removed_files, preview.is_folder_gone) == (len(receipt.files), False)
    assert len(everything(folder)) == len(receipt.files) + 1
    done = checkouts().remove(folder)
    assert (done.removed_files, done.kept, done.is_folder_gone) == (len(receipt.files), (), True)
    assert done.removed_bytes == preview.removed_bytes > 0
    assert not folder.exists()


@pytest.mark.parametrize("way", ["git", "archive"])
def test_everything_of_the_persons_stays_and_is_named(upstream: Upstream, tmp_path: Path, way: str) -> None:
    folder, _ = made(upstream, tmp_path, way)
    mine = {
        "comfy/sd.py": b"patched\n",
        "custom_nodes/manager/x.py": b"node",
        "custom_nodes/manager/__pycache__/x.cpython-312.pyc": b"c",
        "models/vae/flux2-vae.safetensors": b"weights",
        "output/fox.png": b"png",
        "notes.txt": b"mine",
    }
    for name, content in mine.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    preview = checkouts().removable(folder)
    done = checkouts().remove(folder)
    assert everything(folder) == dict(sorted(mine.items()))
    assert {each.path: each.reason for each in done.kept} == {
        "comfy/sd.py": "was changed",
        "comfy": "holds files of yours",
        "custom_nodes": "holds files of yours",
        "models": "holds files of yours",
        "output": "holds files of yours",
        "notes.txt": "is not ComfyUI's",
    }
    assert {each.path for each in preview.kept} <= {each.path for each in done.kept}
    assert not (folder / ".git").exists()
    assert not (folder / RECEIPT).exists()
    with pytest.raises(UsageError, match="not made by klein-setup"):
        checkouts().remove(folder)


@pytest.mark.parametrize("is_file", [True, False])
def test_a_repository_of_the_persons_beside_our_records_stays_and_is_named(
    upstream: Upstream, tmp_path: Path, is_file: bool
) -> None:
    folder, _ = made(upstream, tmp_path, "git")
    theirs = folder / ".klein-setup" / "git-to-remove"
    if is_file:
        theirs.write_text("mine\n")
    else:
        git(tmp_path, "clone", "-q", "--bare", str(upstream.path), str(theirs))
    before = sorted(theirs.rglob("*"))
    preview = checkouts().removable(folder)
    done = checkouts().remove(folder)
    for removal in (preview, done):
        assert [(each.path, each.reason) for each in removal.kept] == [
            (".klein-setup/git-to-remove", "is not ComfyUI's")
        ]
    assert sorted(theirs.rglob("*")) == before
    assert not (folder / ".git").exists()
    assert not (folder / RECEIPT).exists()


def test_a_repository_whose_removal_was_interrupted_anywhere_is_still_known(upstream: Upstream, tmp_path: Path) -> None:
    folder, receipt = made(upstream, tmp_path, "git")
    (folder / ".git" / "gc.log").write_text("warning\n")
    reasons: list[str | None] = []

    def look(event: str, given: tuple[object, ...]) -> None:
        if event in {"os.remove", "os.rmdir"} and is_looking:
            is_looking.clear()  # looking may not be looked at
            reasons.append(why_not_ours(folder / ".git", receipt))
            is_looking.append(True)

    is_looking = [True]
    sys.addaudithook(look)  # it stays for the rest of the process, and does nothing more
    remove_repository(Root(folder), folder / ".git")
    is_looking.clear()
    assert len(reasons) > 20
    assert set(reasons) == {None}
    assert not (folder / ".git").exists()


def test_a_repository_with_commits_of_the_persons_stays(upstream: Upstream, tmp_path: Path) -> None:
    folder, _ = made(upstream, tmp_path, "git")
    git(folder, "checkout", "-q", "-b", "mine")
    assert {each.path for each in checkouts().removable(folder).kept} >= {".git"}
    git(folder, "checkout", "-q", "--detach")
    done = checkouts().remove(folder)
    assert [(each.path, each.reason) for each in done.kept] == [(".git", "holds a branch of yours (refs/heads/mine)")]
    assert (folder / ".git" / "HEAD").exists()


def commit_own(folder: Path) -> None:
    """Commit something on no branch."""
    (folder / "mine.py").write_bytes(b"years of work\n")
    git(folder, "add", "-f", "mine.py")
    git(folder, "commit", "-q", "-m", "mine")


def commit_and_leave(folder: Path) -> None:
    """Commit something on no branch and go back to where the tree was."""
    commit_own(folder)
    git(folder, "checkout", "-q", "--detach", "HEAD~1")


def tag_and_leave(folder: Path) -> None:
    commit_own(folder)
    git(folder, "tag", "mine")
    git(folder, "checkout", "-q", "--detach", "HEAD~1")
    shutil.rmtree(folder / ".git" / "logs")


def tag_packed(folder: Path) -> None:
    tag_and_leave(folder)
    git(folder, "pack-refs", "--all")


def stage(folder: Path) -> None:
    (folder / "main.py").write_bytes(b"years of work\n")
    git(folder, "add", "main.py")
    (folder / "main.py").write_bytes(FILES["main.py"])


def stash(folder: Path) -> None:
    (folder / "main.py").write_bytes(b"years of work\n")
    git(folder, "stash", "--quiet")
    shutil.rmtree(folder / ".git" / "logs")


def leave_no_trace(folder: Path) -> None:
    """Commit something and go back with no log that tells."""
    commit_own(folder)
    git(folder, "reset", "--quiet", "--hard", "HEAD~1")
    shutil.rmtree(folder / ".git" / "logs")


def drop_a_stash(folder: Path) -> None:
    (folder / "main.py").write_bytes(b"years of work\n")
    git(folder, "stash", "--quiet")
    git(folder, "stash", "drop", "--quiet")


def break_an_object(folder: Path) -> None:
    objects = folder / ".git" / "objects" / "ab"
    objects.mkdir(exist_ok=True)
    (objects / ("c" * 38)).write_bytes(b"no object")


def hook(folder: Path) -> None:
    (folder / ".git" / "hooks").mkdir(exist_ok=True)
    (folder / ".git" / "hooks" / "pre-commit").write_text("#!/bin/sh\n", encoding="utf-8")


WORK: dict[str, tuple[Callable[[Path], object], str]] = {
    "commit with a tag": (tag_and_leave, "a tag of yours (refs/tags/mine)"),
    "packed tag": (tag_packed, "a tag of yours (refs/tags/mine)"),
    "commit in the log": (commit_and_leave, "a commit of yours, which its log"),
    "added change": (stage, "changes of yours that were added"),
    "stash": (stash, "a stash of yours"),
    "commit that nothing names": (leave_no_trace, "a commit of yours that no name leads to"),
    "dropped stash": (drop_a_stash, "a commit of yours that no name leads to"),
    "broken object": (break_an_object, "cannot be read (its object abcccc"),
    "fetched branch": (
        lambda folder: git(folder, "update-ref", "refs/remotes/origin/x", "HEAD"),
        "what you fetched of yours (refs/remotes/origin/x)",
    ),
    "hook": (hook, "something of yours (hooks)"),
    "settings": (lambda folder: git(folder, "config", "user.name", "me"), "settings of yours"),
    "index of another kind": (
        lambda folder: git(folder, "update-index", "--index-version", "4"),
        "cannot be read (its index has version 4)",
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_a_repository_with_work_in_it_stays_whatever_names_it(upstream: Upstream, tmp_path: Path, name: str) -> None:
    folder, _ = made(upstream, tmp_path, "git")
    work, why = WORK[name]
    work(folder)
    before = {path: path.read_bytes() for path in (folder / ".git").rglob("*") if path.is_file()}
    done = checkouts().remove(folder)
    (reason,) = [each.reason for each in done.kept if each.path == ".git"]
    assert why in reason
    assert {path: path.read_bytes() for path in (folder / ".git").rglob("*") if path.is_file()} == before


def test_a_commit_of_the_persons_that_an_update_left_behind_stays(upstream: Upstream, tmp_path: Path) -> None:
    folder, _ = made(upstream, tmp_path, "git")
    commit_own(folder)
    checkouts().update(folder, upstream.newer, source=str(upstream.path))
    assert ".git" in {each.path for each in checkouts().remove(folder).kept}


@pytest.mark.parametrize("changes", [{"commit": "--orphan=x"}, {"target": "--help"}, {"branch": "--orphan=x"}])
def test_a_rollback_point_that_we_cannot_have_written_is_none(tmp_path: Path, changes: dict[str, str]) -> None:
    value = {"commit": "0" * 40, "branch": None, "version": None, "target": "1" * 40, "started_at": "", **changes}
    write_json(Root(tmp_path), tmp_path / ROLLBACK_POINT, value)
    assert read_rollback_point(tmp_path) is None


@needs_posix
def test_a_folder_that_became_a_link_is_not_followed(upstream: Upstream, tmp_path: Path) -> None:
    folder, _ = made(upstream, tmp_path, "archive")
    shutil.move(folder / "models", tmp_path / "models elsewhere")
    (folder / "models").symlink_to(tmp_path / "models elsewhere")
    checkouts().remove(folder)
    assert (tmp_path / "models elsewhere" / "vae" / "put_vae_here").exists()
    assert (folder / "models").is_symlink()


def damaged(change: Callable[[dict[str, object]], None], folder: Path) -> None:
    import json

    value = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    change(value)
    (folder / RECEIPT).write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["files"].append(["100644", "0" * 40, "../../etc/passwd"]),
        lambda value: value["files"].pop(),
        lambda value: value.update(tree="0" * 40),
        lambda value: value.pop("files"),
        lambda value: value.update(schema_version=99),
        lambda value: value.update(files="x"),
        lambda value: value.update(surprise=1),
        lambda value: value.update(folders=None),
    ],
)
def test_a_receipt_that_does_not_fit_together_removes_nothing(
    upstream: Upstream, tmp_path: Path, change: Callable[[dict[str, object]], None]
) -> None:
    folder, _ = made(upstream, tmp_path, "archive")
    damaged(change, folder)
    with pytest.raises(UsageError, match="damaged"):
        checkouts().remove(folder)
    assert everything(folder) == as_released(upstream)


def test_files_that_make_up_no_tree_are_refused() -> None:
    twice = TreeFile(path="a", mode="100644", id="0" * 40)
    with pytest.raises(ValueError, match="twice"):
        tree_id([twice, twice])
    with pytest.raises(ValueError, match="a file and a folder"):
        tree_id([twice, TreeFile(path="a/b", mode="100644", id="0" * 40)])
