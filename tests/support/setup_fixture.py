"""A whole setup for tests: Klein's three files in small, a stand-in for ComfyUI, a recorded GPU, small wheels.

The command is the real one.  Where an environment is made or ComfyUI is fetched, a small driver runs it with three
parts replaced: the probe, which no fake torch can pass, the table's pinned release, and how an environment gets its
pip, because unpacking and updating the one that Python brings takes half a minute.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from provisioner.comfyui.checkout.checkout_receipt import RECEIPT as COMFYUI_RECEIPT
from provisioner.core.models import Gpu, Machine
from provisioner.environment.swap import RECEIPT
from tests.support import warm
from tests.support.builders import recording_of
from tests.support.sandbox import ROOT, Completed, Sandbox, Wanted, tensors
from tests.support.schemas import conforming
from tests.support.warm import Warm
from tests.support.wheels import Toy, ToyIndex, content_of

GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}
PROBE = """
import json, sys, torch, torchvision, torchaudio
modules = (torch, torchvision, torchaudio)
print(json.dumps({"ok": True, "failures": [], "devices": [], "python": sys.version.split()[0],
    "packages": {each.__name__: each.__version__ for each in modules},
    "torch": {"cuda": torch.version.cuda, "arch_list": ["sm_86"]}}))
"""
DRIVER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from provisioner.environment import environments
from provisioner.cli import main as cli
from provisioner.commands import bundle, combination, inspect_comfyui, try_requirements
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.manifest import shipped
from tests.support import quick_venv

probe, pinned, *arguments = sys.argv[1:]
shipped.locked_list = lambda: Path(probe).with_name("locked.txt")
environments.PROBE = Path(probe)
quick_venv.use()
table = inspect_comfyui.read_table()
release = ComfyRelease(**json.loads(pinned))
for each in (bundle, combination, inspect_comfyui, try_requirements):
    each.read_table = lambda: replace(table, pinned=release, releases=(release,))
sys.exit(cli.main(arguments))
"""
MAIN = f"""import sys
sys.path.insert(0, {str(ROOT)!r})
sys.dont_write_bytecode = True
from tests.support.comfy_server import Faults, serve_as_comfyui
BEFORE
serve_as_comfyui(sys.argv, faults=FAULTS, draws=True)
"""


def main_py(faults: str = "Faults()", before: str = "") -> str:
    """Return the code of a stand-in for ComfyUI's main.py."""
    return MAIN.replace("BEFORE", before).replace("FAULTS", faults)


PROGRAM = {
    "main.py": main_py(),
    "folder_paths.py": "pass\n",
    "comfyui_version.py": '__version__ = "0.33.0"\n',
    "requirements.txt": "torch\ntorchvision\ntorchaudio\neinops>=0.8 # shapes\n",
    ".gitignore": "/models/*\n/custom_nodes/*\n/output/\n/input/\n/user/\n/temp/\n/.venv\n__pycache__\n",
    "comfy/sd.py": "def load(): ...\n",
}
TORCH = (
    Toy(name="torch", version="2.15.0+cu130", cuda="13.0", padding=100_000),
    Toy(name="torchvision", version="0.29.2+cu130", requires=("torch==2.15.0",)),
    Toy(name="torchaudio", version="2.11.0+cu130"),
)  # the newest that the torch table has for this GPU
EINOPS = Toy(name="einops", version="0.8.1")


@dataclass(frozen=True, kw_only=True)
class ModelFile(Wanted):
    """A file with the role of its folder."""

    def artifact(self) -> dict[str, object]:
        roles = {"diffusion_models": "diffusion_model", "text_encoders": "text_encoder", "vae": "vae"}
        return super().artifact() | {"role": roles[self.folder]}


MODEL = ModelFile(data=tensors(90_000, 1), name="flux-2-klein-4b-fp8.safetensors", folder="diffusion_models")
ENCODER = ModelFile(data=tensors(80_000, 2), name="qwen_3_4b.safetensors", folder="text_encoders")
VAE = ModelFile(data=tensors(70_000, 3), name="flux2-vae.safetensors", folder="vae")
KLEIN = (MODEL, ENCODER, VAE)  # under the names that the recorded server lists


def rtx_4070(**changes: object) -> Machine:
    """Return a Linux machine with one GPU that the torch table supports."""
    card = Gpu(vendor="nvidia", name="NVIDIA GeForce RTX 4070", index=0, compute_capability=(8, 9))
    machine = Machine(
        os="linux",
        os_release="6.8",
        is_wsl=False,
        architecture="x86_64",
        libc="glibc 2.36",
        python_version="3.12.3",
        gpus=(card,),
        driver_version="580.95.05",
    )
    return replace(machine, **changes)  # type: ignore[arg-type]


def index_of_toys(*more: Toy) -> ToyIndex:
    """Return an index with a torch set for that GPU and the stand-in's requirements."""
    return ToyIndex([*TORCH, EINOPS, *more])


def git(folder: Path, *words: str) -> str:
    """Run git in a folder, without the user's settings; return its output."""
    done = subprocess.run(
        ["git", "-C", folder, *words], capture_output=True, text=True, check=True, env={**os.environ, **GIT}
    )
    return done.stdout.strip()


def write_tree(folder: Path, files: Mapping[str, str]) -> None:
    """Write files below a folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def inventory(folder: Path, *without: str) -> dict[str, bytes | str | None]:
    """Return everything below a folder: contents of files, targets of links, None for folders."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] not in without:
            link = path.is_symlink()
            found[name] = str(path.readlink()) if link else path.read_bytes() if path.is_file() else None
    return found


def states(folder: Path, *without: str) -> dict[str, tuple[int, int, int]]:
    """Return size, mtime and inode of everything below a folder."""
    paths = [path for path in folder.rglob("*") if path.relative_to(folder).parts[0] not in without]
    return {str(path): (each.st_size, each.st_mtime_ns, each.st_ino) for path in paths for each in [path.lstat()]}


class Upstream:
    """A local repository with one release of the stand-in, and its archive."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        write_tree(folder, PROGRAM)
        git(folder, "init", "-q", "-b", "master")
        git(folder, "add", "-A", "-f")
        git(folder, "commit", "-q", "-m", "release")
        git(folder, "tag", "v0.33.0")
        git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
        self.release = {
            "version": "0.33.0",
            "commit": git(folder, "rev-parse", "HEAD"),
            "tree": git(folder, "rev-parse", "HEAD^{tree}"),
        }

    @functools.cached_property
    def archive(self) -> Path:
        """The release as GitHub packs it."""
        path = self.path.with_name("release.zip")
        git(self.path, "archive", "--format=zip", "--prefix=ComfyUI-1/", f"--output={path}", self.release["commit"])
        return path


class SetupFixture:
    """A sandbox with the three files, a recorded GPU, an index and a release of the stand-in.

    Parameters
    ----------
    sandbox : Sandbox
        Its hub gets the files.
    index : ToyIndex
        Where wheels come from.
    upstream : Upstream
        Where ComfyUI comes from.
    """

    def __init__(self, sandbox: Sandbox, index: ToyIndex, upstream: Upstream) -> None:
        sandbox.publish(*KLEIN)
        self.sandbox, self.index, self.upstream = sandbox, index, upstream
        self.tree = sandbox.tree
        self.environment = sandbox.tree / ".venv"
        self.images = sandbox.home / "data" / "klein-setup" / "pictures"
        self.runs = 0
        locked = f"einops==0.8.1 --hash=sha256:{hashlib.sha256(content_of(EINOPS)).hexdigest()}\n"
        write_tree(sandbox.folder, {"driver.py": DRIVER, "probe.py": PROBE, "locked.txt": locked})
        self.set_machine()
        sandbox.environ |= {
            **GIT,
            "KLEIN_SETUP_MACHINE": str(sandbox.folder / "machine.json"),
            "PIP_INDEX_URL": index.url,
            "PIP_CONFIG_FILE": os.devnull,
            "PATH": f"{Path(sys.executable).resolve().parent}{os.pathsep}{os.environ['PATH']}",
        }
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
            sandbox.environ.pop(name, None)

    def set_machine(self, **changes: object) -> None:
        """Record the machine with changed values."""
        text = recording_of(rtx_4070(**changes))
        (self.sandbox.folder / "machine.json").write_text(text, encoding="utf-8")

    def arguments(self, *given: str | Path, source: str | Path | None = None) -> list[str]:
        """Return a whole command line: manifest, tree, hub, index and ComfyUI's source where the command has them."""
        words = [str(each) for each in given]
        hub = ["--endpoint", self.sandbox.hub.endpoint, "--send-token"]
        if words[0] == "bundle":
            made_from = [
                *hub,
                "--comfyui-source",
                str(source or self.upstream.archive),
                "--torch-index",
                self.index.url,
            ]
            return [*words, "--manifest", str(self.sandbox.manifest), *made_from] if words[1] != "verify" else words
        if words[0] == "snapshot":
            from_here = ["--comfyui-source", str(source or self.upstream.path), "--torch-index", self.index.url]
            return [*words, *hub, *from_here] if words[1] == "restore" else words
        words += [] if "--manifest" in words else ["--manifest", str(self.sandbox.manifest)]
        words += [] if "--comfyui" in words else ["--comfyui", str(self.tree)]
        if "--from" in words:
            return words
        if words[0] in {"install", "repair", "plan"}:
            words += ["--send-token"]
            words += [] if "--endpoint" in words else ["--endpoint", self.sandbox.hub.endpoint]
            words += ["--comfyui-source", str(source or self.upstream.path)]
        if words[0] in {"install", "repair", "plan", "smoke-test"} and "--torch-index" not in words:
            words += ["--torch-index", self.index.url]
        return words

    def start(
        self, *given: str | Path, source: str | Path | None = None, env: Mapping[str, str] | None = None
    ) -> Warm | subprocess.Popen[str]:
        """Start the driver; what it prints is its one stream."""
        self.runs += 1
        driver = [str(self.sandbox.folder / "driver.py"), str(self.sandbox.folder / "probe.py")]
        words = [*driver, json.dumps(self.upstream.release), *self.arguments(*given, source=source)]
        environ = {**self.sandbox.environ, **(env or {})}
        with (self.sandbox.folder / f"driven-{self.runs}.err").open("wb") as errors:
            return warm.start(words, cwd=self.sandbox.folder, env=environ, stdout=None, stderr=errors)

    def run(
        self, *given: str | Path, source: str | Path | None = None, env: Mapping[str, str] | None = None
    ) -> Completed:
        """Run the driver to its end and check the sandbox's invariant."""
        began = time.monotonic()
        process = self.start(*given, source=source, env=env)
        said, _ = process.communicate(timeout=120)
        return self.completed(process, said, *given, seconds=time.monotonic() - began)

    def completed(
        self, process: Warm | subprocess.Popen[str], said: str, *given: str | Path, seconds: float = 0.0
    ) -> Completed:
        """Return what came of the driver that was started last and has ended; check the sandbox's invariant."""
        completed = Completed(
            arguments=tuple(map(str, given)),
            returncode=process.wait(),
            stdout=said,
            stderr=(self.sandbox.folder / f"driven-{self.runs}.err").read_text(encoding="utf-8"),
            seconds=seconds,
        )
        self.sandbox.check(completed)
        if completed.returncode == 0:
            self._check_receipts()
        return completed

    def _check_receipts(self) -> None:
        """Hold the receipts of ComfyUI and of the environment against their schemas."""
        for name, path in (
            ("comfyui-receipt", self.tree / COMFYUI_RECEIPT),
            ("environment-receipt", self.environment / RECEIPT),
        ):
            if path.is_file():
                conforming(json.loads(path.read_text(encoding="utf-8")), name)


def existing_tree(tree: Path, **files: str) -> Path:
    """Make a stand-in tree that has its own Python and no git; return it."""
    write_tree(tree, {**PROGRAM, **files})
    (tree / "custom_nodes").mkdir(exist_ok=True)
    (tree / "models").mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tree / ".venv")], check=True)
    return tree


def with_existing_tree(sandbox: Sandbox) -> Sandbox:
    """Return the sandbox with such a tree, and the three files installed into it."""
    sandbox.publish(*KLEIN)
    existing_tree(sandbox.tree)
    assert sandbox.install("--only", "files").returncode == 0
    return sandbox
