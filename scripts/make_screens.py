#!/usr/bin/env python3
"""Write docs/images/: pictures of what klein-setup shows in a real terminal and of its page, from real runs.

``plan`` is the real plan of the real manifest for a recorded RTX 4070.  The other runs are those of the tests' setup
(`tests.support.setup_fixture`): the real command with an embedded hub, small files, small wheels and a stand-in for
ComfyUI.  tmux is the terminal; rich turns what it holds into an SVG.  Chromium takes the picture of the page.  Needs
both, and the packages of the tests: ``uv run python scripts/make_screens.py``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from provisioner.rehearsal.hub import RehearsalHub  # noqa: E402 - found through the line above when run as a script
from tests.support.sandbox import TOKEN, Sandbox, tensors  # noqa: E402
from tests.support.setup_fixture import KLEIN, ModelFile, SetupFixture, Upstream, index_of_toys  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SCRATCH = Path("/tmp/klein-screens")  # noqa: S108 - short, because it is on the pictures; made anew and owned by us
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PROMPT = "$ "
SIZES = ((80, 24), (120, 40))
MIB = 1024 * 1024
REAL = """#!{python}
import sys
sys.path.insert(0, {root!r})
from provisioner.cli.entry import run
run()
"""
STAND_IN = """#!{python}
import json, sys
sys.path.insert(0, {root!r})
from dataclasses import replace
from pathlib import Path
from provisioner.cli import main as cli
from provisioner.commands import inspect_comfyui
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.environment import environments
from tests.support import quick_venv

environments.PROBE = Path({probe!r})
quick_venv.use()
table = inspect_comfyui.read_table()
release = ComfyRelease(**json.loads({release!r}))
inspect_comfyui.read_table = lambda: replace(table, pinned=release, releases=(release,))
build_parser = cli.build_parser


def with_defaults(command=None):
    parser = build_parser(command)
    for action in parser._actions:
        for each in (action.choices or {{}}).values() if isinstance(action.choices, dict) else ():
            known = {{option.dest for option in each._actions}}
            each.set_defaults(**{{key: value for key, value in {defaults!r}.items() if key in known}})
    return parser


cli.build_parser = with_defaults
sys.exit(cli.main(sys.argv[1:]))
"""


class Terminal:
    """A tmux of its own with one shell in it.

    Parameters
    ----------
    columns, lines : int
        Its size.
    environ : dict of str to str
        The environment of the shell, which starts in its ``HOME``.
    """

    def __init__(self, columns: int, lines: int, environ: dict[str, str]) -> None:
        self.columns, self.lines = columns, lines
        self._tmux = ["tmux", "-L", f"klein-screens-{columns}", "-f", "/dev/null"]
        environ = {**environ, "TERM": "xterm-256color", "HISTFILE": ""}
        environ.pop("TMUX", None)
        setting = ["set", "-g", "status", "off", ";", "set", "-g", "default-terminal", "tmux-256color", ";"]
        shell = f"env PS1={shlex.quote(PROMPT)} bash --norc --noprofile"
        size = ["-x", str(columns), "-y", str(lines), "-c", environ["HOME"]]
        subprocess.run([*self._tmux, *setting, "new-session", "-d", *size, shell], env=environ, check=True)

    def close(self) -> None:
        """End the shell and this tmux."""
        subprocess.run([*self._tmux, "kill-server"], check=False)

    def text(self, *options: str) -> str:
        """Return what the terminal shows."""
        capture = [*self._tmux, "capture-pane", "-p", *options]
        return subprocess.run(capture, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout

    def type(self, line: str) -> None:
        """Type a line and press Enter."""
        subprocess.run([*self._tmux, "send-keys", "-l", line], check=True)
        subprocess.run([*self._tmux, "send-keys", "Enter"], check=True)

    def run(self, line: str) -> None:
        """Type a line and wait until the prompt is back."""
        self.type("clear")
        self.wait(lambda: self.text().strip() == PROMPT.strip())
        self.type(line)
        self.wait(lambda: self.text().rstrip().endswith(f"\n{PROMPT.strip()}"))

    def wait(self, is_so: Callable[[], bool], timeout_s: float = 180.0) -> None:
        """Wait until something is so.

        Raises
        ------
        TimeoutError
            It took longer than `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > deadline:
                message = f"the terminal still shows:\n{self.text()}"
                raise TimeoutError(message)
            time.sleep(0.1)

    def svg(self) -> str:
        """Return what it shows as an SVG, with its colours."""
        shown = list(AnsiDecoder().decode(self.text("-e").rstrip("\n")))
        if shown and shown[-1].plain.strip() == PROMPT.strip():
            shown.pop()  # the prompt that waits for the next command
        console = Console(
            record=True, width=self.columns, file=io.StringIO(), force_terminal=True, color_system="truecolor"
        )
        for line in [*shown, Text()]:  # a picture that ends with the last line cuts its descenders
            console.print(line, soft_wrap=True)
        size = f"{self.columns}x{self.lines}"
        svg = console.export_svg(title=f"klein-setup, {size}", theme=DIMMED_MONOKAI, unique_id=f"klein-{size}")
        return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)  # they would be fetched from somebody's server


@contextmanager
def home() -> Iterator[SetupFixture]:
    """Make a fresh home folder with a hub, wheels and a ComfyUI to install from.

    Raises
    ------
    FileExistsError
        `SCRATCH` is there already.
    """
    SCRATCH.mkdir()
    sandboxes: list[Sandbox] = []
    index = index_of_toys()
    try:
        with RehearsalHub(tokens=[TOKEN]) as hub:
            sandboxes.append(Sandbox(SCRATCH / "sandbox", hub))
            setup = SetupFixture(sandboxes[0], index, Upstream(SCRATCH / "upstream" / "ComfyUI"))
            publish(setup)
            you = SCRATCH / "you"
            you.mkdir()
            setup.sandbox.environ |= {"HOME": str(you), "HF_ENDPOINT": hub.endpoint}
            for name in ("HF_TOKEN", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME"):
                setup.sandbox.environ.pop(name, None)
            write_program(setup, STAND_IN)
            yield setup
    finally:
        index.close()
        for each in sandboxes:
            each.close()
        shutil.rmtree(SCRATCH)


def publish(setup: SetupFixture) -> None:
    """Put larger files on the hub, so that there is something to see, under the names of the real ones."""
    sizes = (96 * MIB, 64 * MIB, 48 * MIB)
    files = [
        ModelFile(data=tensors(size, seed), name=each.name, folder=each.folder)
        for seed, (each, size) in enumerate(zip(KLEIN, sizes, strict=True))
    ]
    setup.sandbox.publish(*files)
    names = [each.artifact()["id"] for each in files]
    sets = [{"id": "fp8", "title": "small stand-ins", "target": "comfyui", "artifacts": names}]
    setup.sandbox.write_manifest(title="Stand-ins for FLUX.2 [klein] 4B", sets=sets, default_set="fp8")


def write_program(setup: SetupFixture, code: str) -> None:
    """Put a ``klein-setup`` onto the PATH of the terminal."""
    folder = SCRATCH / "bin"
    folder.mkdir(exist_ok=True)
    defaults = {
        "manifest": str(setup.sandbox.manifest),
        "torch_index": setup.index.url,
        "comfyui_source": str(setup.upstream.path),
    }
    facts = {
        "python": sys.executable,
        "root": str(ROOT),
        "probe": str(setup.sandbox.folder / "probe.py"),
        "release": json.dumps(setup.upstream.release),
        "defaults": defaults,
    }
    program = folder / "klein-setup"
    program.write_text(code.format(**facts), encoding="utf-8")
    program.chmod(0o755)
    if not setup.sandbox.environ["PATH"].startswith(str(folder)):
        setup.sandbox.environ["PATH"] = f"{folder}:{setup.sandbox.environ['PATH']}"


def record(columns: int, lines: int, output: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, SVG) of each picture in one size; the page of the run goes into `output`, as a PNG."""
    with home() as setup:
        hub = setup.sandbox.hub
        terminal = Terminal(columns, lines, setup.sandbox.environ)
        try:
            write_program(setup, REAL)
            terminal.run("klein-setup plan --comfyui ComfyUI")
            yield "plan", terminal.svg()
            write_program(setup, STAND_IN)
            hub.rate_bytes_s_per_connection = 2 * MIB
            terminal.type("clear; klein-setup install --comfyui ComfyUI --yes")
            terminal.wait(lambda: "/s" in terminal.text())
            time.sleep(4)
            yield "install-running", terminal.svg()
            hub.rate_bytes_s_per_connection = None
            terminal.wait(lambda: terminal.text().rstrip().endswith(f"\n{PROMPT.strip()}"))
            yield "install", terminal.svg()
            terminal.run("klein-setup report --output page.html")
            photograph(SCRATCH / "you" / "page.html", output / "page.png")
            flip_a_bit(SCRATCH / "you" / "ComfyUI" / "models" / "text_encoders" / KLEIN[1].name)
            terminal.run("klein-setup verify --comfyui ComfyUI --no-smoke")
            yield "verify", terminal.svg()
            terminal.run("klein-setup repair --comfyui ComfyUI --yes")
            yield "repair", terminal.svg()
        finally:
            terminal.close()


def photograph(page: Path, image: Path) -> None:
    """Take a picture of the first screen of a page, with Chromium."""
    with sync_playwright() as playwright:
        is_root = sys.platform != "win32" and os.geteuid() == 0  # Chromium's sandbox refuses that user
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=not is_root)
        shown = browser.new_page(viewport={"width": 1000, "height": 1250})
        shown.goto(page.as_uri())
        shown.screenshot(path=image)
        browser.close()
    with Image.open(image) as taken:
        taken.quantize(128).save(image, optimize=True)


def flip_a_bit(path: Path) -> None:
    """Damage the third block of a file."""
    with path.open("r+b") as file:
        file.seek(40 * MIB)
        byte = file.read(1)[0]
        file.seek(40 * MIB)
        file.write(bytes([byte ^ 1]))


def main() -> int:
    """Write the pictures; return the exit status."""
    parser = argparse.ArgumentParser(description="Write docs/images/ from real runs in tmux.")
    parser.add_argument("--output", type=Path, default=IMAGES, metavar="DIR", help="where to write them")
    output: Path = parser.parse_args().output
    if shutil.which("tmux") is None or CHROMIUM is None:
        print("make_screens: tmux and chromium are needed.", file=sys.stderr)
        return 2
    output.mkdir(parents=True, exist_ok=True)
    for columns, lines in SIZES:
        for name, svg in record(columns, lines, output):
            path = output / f"{name}-{columns}x{lines}.svg"
            path.write_text(svg, encoding="utf-8", newline="\n")
            print(shlex.quote(str(path)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
