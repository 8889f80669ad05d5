"""Counts the work of each command: files opened, bytes, system calls, requests, memory.  No clock, so no noise.

    python3 scripts/count_work.py [--files 3] [--blocks 3] [--write]

``tests/integration/test_counted_work.py`` runs this with its defaults, and has bounds for the counts.  With --write the
table goes to scripts/results/counted_work.md, which is kept in the repository.  Linux only; needs the packages of the
tests.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from provisioner.core.models import BLOCK_SIZE  # noqa: E402
from provisioner.rehearsal.hub import RehearsalHub  # noqa: E402
from tests.support.counted import (  # noqa: E402
    IS_COUNTED,
    Work,
    damaging,
    each_command,
    on_a_recorded_machine,
    small_files,
)
from tests.support.sandbox import TOKEN, Sandbox, Wanted, tensors  # noqa: E402

RESULT = ROOT / "scripts" / "results" / "counted_work.md"
COLUMNS = {
    "opened": "files opened",
    "listed": "folders listed",
    "read": "bytes read",
    "written": "bytes written",
    "calls": "read and write calls",
    "changed": "names and times changed",
    "flushed": "flushes",
    "children": "processes",
    "connections": "connections",
    "requests": "requests",
    "fetched": "bytes fetched",
    "modules": "modules",
    "peak": "MB allocated at once",
}


def count(files: int, blocks: int) -> dict[str, Work]:
    """Return the work of each command on so many files of a kilobyte, and one of so many blocks of 16 MiB."""
    wanted = [*small_files(files), Wanted(data=tensors(blocks * BLOCK_SIZE), name="big.safetensors")]
    with tempfile.TemporaryDirectory(prefix="count-work-") as folder, RehearsalHub(tokens=[TOKEN]) as hub:
        sandbox = on_a_recorded_machine(Sandbox(Path(folder) / "sandbox", hub))
        sandbox.publish(*wanted)
        return each_command(sandbox, damage=damaging(sandbox.path(wanted[-1]), BLOCK_SIZE // 2))


def table(found: dict[str, Work], files: int, blocks: int) -> str:
    """Return the counts as Markdown, a row for each command."""
    lines = [
        "# Counted work",
        "",
        f"`python3 scripts/count_work.py`, {time.strftime('%Y-%m-%d', time.gmtime())}: Python "
        f"{platform.python_version()} on {platform.system()}; {files} files of 1 kB and one of {blocks} blocks "
        f"of 16 MiB ({blocks * BLOCK_SIZE:,} bytes).  Modules' own bytes are not counted.",
        "",
        f"| command | {' | '.join(COLUMNS.values())} |",
        f"|---|{'---:|' * len(COLUMNS)}",
    ]
    for name, work in found.items():
        cells = [
            f"{work.peak / 1e6:.0f}" if each.name == "peak" else f"{getattr(work, each.name):,}"
            for each in sorted(fields(Work), key=lambda each: list(COLUMNS).index(each.name))
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Count, print, and with --write keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=3, help="small files (default: 3)")
    parser.add_argument("--blocks", type=int, default=3, help="blocks of the big one (default: 3)")
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if not IS_COUNTED:
        sys.exit("count_work: this system has no /proc/self/io")
    text = table(count(arguments.files, arguments.blocks), arguments.files, arguments.blocks)
    sys.stdout.write(text)
    if arguments.write:
        RESULT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
