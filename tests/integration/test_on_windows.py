"""What only Windows does: files that another program holds, read-only files, names of devices, process trees."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from provisioner.core.errors import CommandError, FileInUseError
from provisioner.disk.locations import state_folder
from provisioner.disk.patience import READS, is_held
from provisioner.disk.read_json import read_object
from provisioner.disk.root import Root
from provisioner.machine.process import run_process
from provisioner.processes.job_object import CREATION_FLAGS, JobObject, resume
from tests.support.sandbox import Sandbox, tensors, wait_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "win32", reason="what only Windows does"),
    pytest.mark.usefixtures("cold_starts"),
]

NOBODY, READERS, ALL_BUT_RENAMES = 0, 1, 3  # FILE_SHARE_READ is 1, FILE_SHARE_WRITE 2, FILE_SHARE_DELETE 4


@contextmanager
def held(path: Path, shares: int = NOBODY) -> Iterator[None]:
    """Hold a file as another program does that lets others only read it, or nothing."""
    if sys.platform != "win32":
        return
    import _winapi

    handle = _winapi.CreateFile(str(path), READS, shares, 0, 3, 0, 0)
    try:
        yield
    finally:
        _winapi.CloseHandle(handle)


# --- one folder under several names -----------------------------------------------------------------


def respelled(tree: Path) -> dict[str, str]:
    text = str(tree)
    return {
        "prefix": f"\\\\?\\{text}",
        "case": text.swapcase(),
        "dots": f"{text}. ",
        "slashes": text.replace("\\", "/"),
        "rooted": text[2:],
    }


@pytest.mark.parametrize("way", ["prefix", "case", "dots", "slashes", "rooted"])
def test_another_spelling_of_the_folder_is_the_same_folder(sandbox: Sandbox, way: str) -> None:
    sandbox.publish(tensors(300_000))
    sandbox.tree = sandbox.folder / "Jürgen モデル" / "ComfyUI"
    sandbox.tree.parent.mkdir()
    assert sandbox.install("--only", "files", "--yes").returncode == 0
    sandbox.assert_in_place()
    sandbox.hub.clear_requests()
    again = sandbox.install("--only", "files", "--yes", "--json", "--comfyui", respelled(sandbox.tree)[way])
    assert (again.returncode, again.json["steps"], sandbox.gets()) == (0, [], []), again.said
    assert [each.name for each in sandbox.tree.parent.iterdir()] == ["ComfyUI"]


@pytest.mark.parametrize("name", ["\\\\.\\C:\\ComfyUI", "C:\\CON", "C:\\a:b", "\\\\?\\C:\\ComfyUI."])
def test_a_device_or_a_stream_is_no_folder(sandbox: Sandbox, name: str) -> None:
    sandbox.publish(tensors(300_000))
    done = sandbox.run("plan", "--comfyui", name)
    assert done.returncode == 2, done.said
    assert "is no name of a folder" in done.said


def test_a_file_that_is_only_in_a_cloud_is_not_read(placed: Sandbox) -> None:
    if sys.platform != "win32":
        return
    import ctypes

    ctypes.windll.kernel32.SetFileAttributesW(str(placed.path()), 0x1000)  # FILE_ATTRIBUTE_OFFLINE
    if not placed.path().stat().st_file_attributes & 0x1000:
        pytest.skip("this system does not keep the attribute")
    done = placed.run("verify")
    assert done.returncode == 4, done.said
    assert "are not on this disk" in done.said


# --- files that another program holds --------------------------------------------------------------


def test_a_record_that_is_being_replaced_is_waited_for_and_not_taken_for_none(tmp_path: Path) -> None:
    record = tmp_path / "receipt.json"
    record.write_text('{"a": 1}', encoding="utf-8")
    with ThreadPoolExecutor(1) as reader, held(record):
        reading = reader.submit(read_object, record)
        time.sleep(0.3)
        assert not reading.done()
    assert reading.result() == {"a": 1}


@pytest.fixture
def placed(sandbox: Sandbox) -> Sandbox:
    sandbox.publish(tensors(300_000))
    assert sandbox.install("--only", "files", "--yes").returncode == 0
    sandbox.hub.clear_requests()
    return sandbox


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_a_model_that_is_held_is_no_matter_of_permissions_and_is_not_fetched_again(
    placed: Sandbox, command: str
) -> None:
    with held(placed.path()):
        running = placed.start(command, *(["--only", "files", "--yes"] if command == "repair" else []))
        running.process.wait(60)
    done = running.wait()
    assert done.returncode == 4, done.said
    assert f"Another program holds {placed.path()} open" in done.said
    assert placed.gets() == []
    placed.assert_in_place()


def test_a_scanner_that_holds_what_has_arrived_is_waited_for(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(3_000_000))
    sandbox.hub.rate_bytes_s_per_connection = 1_500_000
    running = sandbox.start("install", "--only", "files", "--yes")
    wait_until(sandbox.part().exists, what="the file begins to grow")
    with held(sandbox.part(), ALL_BUT_RENAMES):
        wait_until(lambda: sandbox.bytes_served_so_far() >= len(wanted.data), what="all has arrived")
        time.sleep(5)
        assert not sandbox.path().exists()
    done = running.wait(60)
    assert done.returncode == 0, done.said
    assert f"Another program holds {sandbox.part()}, perhaps a virus scanner; waiting up to" in done.said, done.stderr
    sandbox.assert_in_place()
    assert len(sandbox.gets()) == 1


def move(root: Root, source: Path, destination: Path) -> FileInUseError:
    with pytest.raises(FileInUseError) as caught:
        root.replace(source, destination)
    return caught.value


def test_the_file_that_is_held_is_named_and_not_where_it_was_to_go(tmp_path: Path) -> None:
    source, destination = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    source.write_bytes(b"a")
    root = Root(tmp_path, pauses_s=())
    with held(source, ALL_BUT_RENAMES):
        assert str(move(root, source, destination)).startswith(f"{source} is open in another program")
    destination.write_bytes(b"b")
    with held(destination, ALL_BUT_RENAMES):
        assert str(move(root, source, destination)).startswith(f"{destination} is open in another program")
    root.replace(source, destination)
    assert destination.read_bytes() == b"a"


def test_a_record_that_is_held_is_not_blamed_on_comfyui(tmp_path: Path) -> None:
    receipt = tmp_path / ".klein-setup" / "receipt.json"
    receipt.parent.mkdir()
    receipt.write_text("{}", encoding="utf-8")
    with held(receipt, ALL_BUT_RENAMES), pytest.raises(FileInUseError) as caught:
        Root(tmp_path, pauses_s=()).write_text(receipt, "{}")
    assert caught.value.hint is not None
    assert "ComfyUI" not in caught.value.hint
    assert [path.name for path in receipt.parent.iterdir()] == ["receipt.json"]


def test_a_move_to_the_backups_that_is_refused_leaves_no_empty_folders(placed: Sandbox) -> None:
    path = placed.path()
    placed.plant(path, tensors(300_000, seed=1))
    with held(path, ALL_BUT_RENAMES):
        done = placed.run("repair", "--only", "files", "--yes", timeout=120)
    assert done.returncode == 4, done.said
    assert f"{path} is open in another program" in done.said
    assert not (placed.tree / "models" / ".klein-setup" / "aside").exists()


def test_who_holds_a_file_is_told_by_what_it_lets_others_do(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x")
    assert not is_held(path)
    with held(path, ALL_BUT_RENAMES):
        assert is_held(path)
        assert not is_held(path, READS)
    with held(path):
        assert is_held(path, READS)


# --- read-only files -------------------------------------------------------------------------------


def test_read_only_files_are_uninstalled(placed: Sandbox) -> None:
    placed.path().chmod(stat.S_IREAD)
    done = placed.run("uninstall", "--yes")
    assert done.returncode == 0, done.said
    assert not placed.path().exists()


def test_read_only_backups_are_cleared(placed: Sandbox) -> None:
    wrong = tensors(300_000, seed=2)
    placed.plant(placed.path(), wrong[:-1000] + bytes(1000)[:999] + b"x")
    assert placed.run("repair", "--only", "files", "--yes").returncode == 0
    kept = list(placed.backups().values())
    assert kept
    for path in kept:
        path.chmod(stat.S_IREAD)
    done = placed.run("backups", "clear", "--yes")
    assert done.returncode == 0, done.said
    assert placed.backups() == {}


def test_a_folder_with_read_only_entries_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").touch()
    for path in (folder / "inner" / "file", folder / "inner"):
        path.chmod(stat.S_IREAD)
    Root(tmp_path, pauses_s=()).remove_tree(folder)
    assert not folder.exists()


def test_a_read_only_file_is_replaced(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    old.chmod(stat.S_IREAD)
    new.write_bytes(b"new")
    Root(tmp_path, pauses_s=()).replace(new, old)
    assert old.read_bytes() == b"new"


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["C:\\x\\a:b", "C:\\CON", "C:\\x\\nul.txt", "C:\\x\\com1", "C:\\a|b"])
def test_a_folder_that_is_none_on_windows_is_refused(sandbox: Sandbox, name: str) -> None:
    sandbox.publish(tensors(1000))
    done = sandbox.run("plan", "--comfyui", name)
    assert done.returncode == 2, done.said
    assert "is no name of a folder" in done.said


def test_what_is_written_down_has_forward_slashes(placed: Sandbox) -> None:
    placed.plant(placed.path(), tensors(300_000, seed=3))
    assert placed.run("repair", "--only", "files", "--yes").returncode == 0
    records = [path for path in (placed.tree / "models" / ".klein-setup").rglob("why.jsonl")]
    assert records
    assert all("\\\\" not in path.read_text(encoding="utf-8") for path in records)


def test_the_tests_never_see_the_real_profile() -> None:
    assert "klein-setup-tests-" in str(state_folder())


# --- process trees ---------------------------------------------------------------------------------

GRANDCHILD = "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', {inner!r}]).pid, flush=True)"
SLEEP = "import time; time.sleep(120)"


def grandchild_of(run: Callable[[Callable[[str, str], None]], object]) -> psutil.Process:
    found: list[psutil.Process] = []
    run(lambda stream, line: found.append(psutil.Process(int(line))))
    return found[0]


def test_a_program_that_is_stopped_takes_along_what_its_ended_parent_left() -> None:
    """The one in between ends at once: nothing but the job knows of the last one."""
    between = GRANDCHILD.format(inner=SLEEP)
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {between!r}]); {SLEEP}"
    words = [sys.executable, "-c", outer]

    def run(on_line: Callable[[str, str], None]) -> None:
        with pytest.raises(CommandError, match="did not end within"):
            run_process(words, timeout_s=8, on_line=on_line)

    process = grandchild_of(run)
    wait_until(lambda: not process.is_running(), what="the last one has ended")


@pytest.mark.parametrize("error", [psutil.AccessDenied, KeyboardInterrupt])
def test_a_program_that_cannot_be_let_run_does_not_stay_for_ever(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started suspended, so that it is in its job before it starts anything."""
    suspended: list[psutil.Process] = []

    def refuse(process: psutil.Process) -> None:
        suspended.append(process)
        raise error

    monkeypatch.setattr(psutil.Process, "resume", refuse)
    with pytest.raises(CommandError if error is psutil.AccessDenied else error, match=r"be let run|^$"):
        run_process([sys.executable, "-c", "pass"], timeout_s=30)
    wait_until(lambda: not suspended[0].is_running(), what="it has ended")


def test_what_a_job_lets_go_of_goes_on_and_what_it_releases_ends() -> None:
    for let_go in (True, False):
        process = subprocess.Popen([sys.executable, "-c", SLEEP], creationflags=CREATION_FLAGS)
        job = JobObject(process.pid)
        resume(process)
        job.let_go() if let_go else job.release()
        if let_go:
            time.sleep(1)
            assert process.poll() is None
        else:
            process.wait(10)
        process.kill()
        process.wait()
