"""The heavy runs of ``scripts/`` in small: what is run by hand only now and then has to work when it is.

`test_counted_work` runs ``count_work.py``.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from scripts.torture import KINDS
from scripts.torturing.call_order import has_strace
from tests.support.fleet import program

ROOT = Path(__file__).resolve().parents[2]
FORKS = pytest.mark.skipif(sys.platform == "win32", reason="runs are forked")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *(
            pytest.param(
                # Of seed 3 the trial of `programs` is the short one: an update and its undoing.
                ("torture.py", "--only", kind, "--events", "1", "--jobs", "1", "--seed", "3"),
                "Promises broken: 0.",
                marks=[FORKS, pytest.mark.skipif(kind == "calls" and not has_strace(), reason="needs strace")],
            )
            for kind in KINDS
        ),
        (("fuzz_identify.py", "--inputs", "300"), "Exceptions: 0. Promises broken: 0."),
        pytest.param(
            ("bench.py", "--size", "20M", "--rounds", "1", "--only", "fetch,hub,wheel"),
            "klein-setup install",
            marks=pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx"),
        ),
        (("time_to_image.py",), "10,000 Mbit/s"),
        pytest.param(
            ("play_fleet.py", "--hosts", "1"),
            "| 1.00 |",
            marks=pytest.mark.skipif(
                sys.platform != "linux" or program("ansible-playbook") is None, reason="needs ansible-core on Linux"
            ),
        ),
        pytest.param(
            ("bench_peers.py", "--hosts", "1", "--size", "8"),
            "| 1.00 times |",
            marks=pytest.mark.skipif(
                sys.platform != "linux" or find_spec("libtorrent") is None, reason="needs libtorrent on Linux"
            ),
        ),
        (("bench_verify.py", "--size", "20000000", "--files", "2", "--rounds", "1"), "klein-setup verify"),
    ],
    ids=lambda value: "-".join(value[:3]) if isinstance(value, tuple) else "",
)
def test_it_still_runs(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    folder = ("--folder", str(tmp_path)) if words[0] in {"bench.py", "bench_verify.py"} else ()
    before = {path: path.read_bytes() for path in (ROOT / "scripts" / "results").iterdir()}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / words[0], *words[1:], *folder],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=300,  # a machine with other work needs three times as long
        check=False,
    )
    # So small a file is read before a process has started: the benchmark then says that its bound does not hold.
    assert done.returncode in ({0, 1} if folder else {0}), done.stdout + done.stderr
    assert said in done.stdout
    assert {path: path.read_bytes() for path in (ROOT / "scripts" / "results").iterdir()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C for one process only")
def test_the_damaged_folder_is_served_until_it_is_stopped(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "damage_folder.py"), str(tmp_path / "folder")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", cwd=tmp_path) as served:
        assert served.stdout is not None
        try:
            verify, repair = served.stdout.readline(), served.stdout.readline()
            served.stdout.readline()
            env = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": ""}
            found = subprocess.run(verify.split(), env=env, capture_output=True, encoding="utf-8", check=False)
            assert found.returncode == 1, found.stderr
            mended = subprocess.run(repair.split(), env=env, capture_output=True, encoding="utf-8", check=False)
            assert mended.returncode == 0, mended.stderr
        finally:
            served.send_signal(signal.SIGINT)
            try:
                status = served.wait(timeout=20)
            finally:
                served.kill()
        assert status == 0
