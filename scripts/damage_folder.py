#!/usr/bin/env python3
"""Make a models folder with more than twenty damages to try ``verify`` and ``repair`` on, and a small Hub for it.

``python scripts/damage_folder.py DIR`` fills DIR (which must not exist yet), prints the two commands, and serves until
it is stopped.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from provisioner.rehearsal.hub import RehearsalHub  # noqa: E402 - found through the line above
from tests.support.damages import all_damages, make_folder, older_file  # noqa: E402
from tests.support.sandbox import TOKEN, Sandbox  # noqa: E402


def main() -> int:
    """Make the folder and serve its files; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--with-twin", action="store_true", help="also put an older file of the same name into unet/, which stays"
    )
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if folder.exists():
        parser.error(f"{folder} exists already; name a folder to make")
    with RehearsalHub(tokens=[TOKEN]) as hub, closing(Sandbox(folder, hub)) as sandbox:
        make_folder(sandbox, [*all_damages(), *([older_file()] if arguments.with_twin else [])])
        common = ["--manifest", str(sandbox.manifest), "--comfyui", str(sandbox.tree)]
        for command in (["verify"], ["repair", "--endpoint", hub.endpoint]):
            print(shlex.join([sys.executable, "-m", "provisioner", *command, *common]))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts us in the background ignores it
        print("Serving until Ctrl-C.", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
