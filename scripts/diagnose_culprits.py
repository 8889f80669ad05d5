"""Plant a culprit in a real ComfyUI, let ``klein-setup diagnose`` find it, and write down what it said.

Works on a copy of a ComfyUI with small models of random numbers on the CPU.  The text encoder of the copy is made
narrow (``comfy/text_encoders/llama.py``), so that an image takes seconds; all else is ComfyUI as it was released.

    python scripts/diagnose_culprits.py COMFYUI --work DIR [--only NAME ...] [--output results.md]

COMFYUI is a checkout with a ``.venv`` in which it runs.  One scenario takes from one to ten minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from provisioner.commands.rehearse import _manifest  # noqa: E402 - the rehearsal's own
from provisioner.rehearsal import tiny_models  # noqa: E402
from provisioner.rehearsal.tiny_pipeline import small_diffusers_repository  # noqa: E402

_NARROW = {
    "intermediate_size: int = 9728": "intermediate_size: int = 64",
    "num_attention_heads: int = 32": "num_attention_heads: int = 2",
    "num_key_value_heads: int = 8": "num_key_value_heads: int = 1",
}
_ZEROS = """

_before = Qwen3_4B.__init__
def _with_zeros(self, *args, **kwargs):  # the file has only the norms; what is left uninitialised may be no number
    _before(self, *args, **kwargs)
    with torch.no_grad():
        for name, each in self.named_parameters():
            each.zero_()
Qwen3_4B.__init__ = _with_zeros
"""
_HARMLESS = "NODE_CLASS_MAPPINGS = {}\n"
_PATCH = "import comfy.sd\n_before = comfy.sd.VAE.decode\ndef decode(self, *args, **kwargs):\n"
_PUT = "comfy.sd.VAE.decode = decode\nNODE_CLASS_MAPPINGS = {}\n"


def _patched(body: str, before: str = "") -> str:
    """Return a custom node whose code runs whenever an image is decoded."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{before}\n{_PATCH}{lines}{_PUT}"


BREAKS_SAMPLER = """import comfy.samplers
def sample(*args, **kwargs):
    raise RuntimeError("the sampler of this pack is broken")
comfy.samplers.KSAMPLER.sample = sample
NODE_CLASS_MAPPINGS = {}
"""
RAISES = 'raise RuntimeError("this pack cannot be imported")\n'
ENDS = "import sys\nsys.exit('this pack needs another Python')\n"
BLACK = _patched("return _before(self, *args, **kwargs) * 0")
LEAKS = _patched("kept.append(b'x' * (96 * 1024 * 1024))\nreturn _before(self, *args, **kwargs)", "kept = []")
HANGS = _patched(
    "calls.append(1)\nif len(calls) > 1:\n    time.sleep(100_000)\nreturn _before(self, *args, **kwargs)",
    "import time\ncalls = []",
)
DIES = _patched("import os\nos._exit(1)")
RAISES_LATE = _patched("raise ValueError('this pack breaks the decoder')")
FIRST_OF_TWO = "import comfy.sd\ncomfy.sd.a_flag_of_another_pack = True\nNODE_CLASS_MAPPINGS = {}\n"
SECOND_OF_TWO = _patched(
    "if getattr(comfy.sd, 'a_flag_of_another_pack', False):\n    raise ValueError('two packs patch the same thing')\n"
    "return _before(self, *args, **kwargs)"
)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A culprit that is planted, and what has to be said."""

    planted: str
    nodes: Mapping[str, str] = field(default_factory=dict)  # name, code; a name with .py is a single file
    harmless: int = 0  # packs beside them
    words: tuple[str, ...] = ()
    guilty: tuple[frozenset[str], ...] = ()  # the groups; empty: nothing is guilty
    layer: str | None = None
    most_starts: int | None = None


def _one(*names: str) -> tuple[frozenset[str], ...]:
    return (frozenset(names),)


SCENARIOS: dict[str, Scenario] = {
    "sixteen": Scenario(
        planted="one guilty pack among 16",
        nodes={"pack-11": RAISES_LATE}, harmless=15, guilty=_one("pack-11"), layer="custom-nodes", most_starts=8,
    ),
    "healthy": Scenario(planted="nothing; 3 harmless packs", harmless=3),
    "raises-at-import": Scenario(
        planted="a pack that raises at import, which ComfyUI survives", nodes={"raises": RAISES}, harmless=1
    ),
    "ends-at-import": Scenario(
        planted="a pack that ends the program at import, among 2",
        nodes={"b-ends": ENDS}, harmless=1, guilty=_one("b-ends"), layer="custom-nodes",
    ),
    "sampler": Scenario(
        planted="a pack that breaks the sampler, among 4",
        nodes={"m-breaks": BREAKS_SAMPLER}, harmless=3, guilty=_one("m-breaks"), layer="custom-nodes",
    ),
    "black": Scenario(
        planted="a pack that makes the image black, a single file among 2",
        nodes={"z_black.py": BLACK}, harmless=1, guilty=_one("z_black.py"), layer="custom-nodes",
    ),
    "dies": Scenario(
        planted="a pack that ends the server while it decodes",
        nodes={"y-dies": DIES}, harmless=0, guilty=_one("y-dies"), layer="custom-nodes",
    ),
    "two": Scenario(
        planted="two packs that are guilty each by itself, among 4",
        nodes={"pack-03": RAISES_LATE, "pack-06": BREAKS_SAMPLER}, harmless=2,
        guilty=(frozenset({"pack-03"}), frozenset({"pack-06"})), layer="custom-nodes",
    ),
    "pair": Scenario(
        planted="two packs that fail only together, among 4",
        nodes={"pack-02": FIRST_OF_TWO, "pack-07": SECOND_OF_TWO}, harmless=2,
        guilty=_one("pack-02", "pack-07"), layer="custom-nodes",
    ),
    "option": Scenario(
        planted="--use-sage-attention without its package, beside two options that do no harm",
        words=("--comfyui-args", "--reserve-vram 1 --use-sage-attention --disable-metadata"), harmless=2,
        guilty=_one("--use-sage-attention"), layer="options",
    ),
    "unknown-option": Scenario(
        planted="an option that ComfyUI does not have",
        words=("--comfyui-args", "--frobnicate"), guilty=_one("--frobnicate"), layer="options",
    ),
    "both": Scenario(
        planted="an option and a pack, guilty each by itself",
        nodes={"n-breaks": BREAKS_SAMPLER}, harmless=0, words=("--comfyui-args", "--use-sage-attention --fast"),
        guilty=(frozenset({"n-breaks"}), frozenset({"--use-sage-attention"})), layer="custom-nodes",
    ),
    "hangs": Scenario(
        planted="a pack that stands still at the second image",
        nodes={"h-hangs": HANGS}, harmless=0, guilty=_one("h-hangs"), layer="custom-nodes",
    ),
    "leaks": Scenario(
        planted="a pack that keeps 96 MiB with every image (--images 5)",
        nodes={"l-leaks": LEAKS}, harmless=0, words=("--images", "5"), guilty=_one("l-leaks"), layer="custom-nodes",
    ),
}  # fmt: skip


# --- the ComfyUI -----------------------------------------------------------------------------------


def small_models() -> tuple[tiny_models.TinyFile, ...]:
    """Return the three files: a narrow transformer, an encoder of norms alone, the whole VAE."""
    model, encoder, vae = map(tiny_models.load_table, ("flux-2-klein-4b-fp8", "qwen_3_4b", "flux2-vae"))

    def is_kept(name: str) -> bool:
        block = re.search(r"(double|single)_blocks\.(\d+)\.", name)
        return block is None or int(block[2]) < (1 if block[1] == "double" else 2)

    narrow = tuple(
        replace(each, shape=tuple(size // 24 if size % 3072 == 0 else size for size in each.shape))
        for each in model.tensors
        if is_kept(each.name)
    )
    names = {each.name for each in narrow}
    metadata = dict(model.metadata)
    layers = json.loads(metadata["_quantization_metadata"])
    layers["layers"] = {name: what for name, what in layers["layers"].items() if f"{name}.weight" in names}
    metadata["_quantization_metadata"] = json.dumps(layers)
    norms = tuple(each for each in encoder.tensors if "norm" in each.name)
    parts = ((model, narrow, metadata), (encoder, norms, encoder.metadata), (vae, vae.tensors, vae.metadata))
    return tuple(
        tiny_models.TinyFile(
            table.role,
            table.name,
            table.folder,
            tiny_models.safetensors_file(tensors, metadata=dict(said), seed=0),
        )
        for table, tensors, said in parts
    )


def make_tree(source: Path, work: Path) -> Path:
    """Return a copy of a ComfyUI with the small models, its manifest beside it."""
    tree = work / "ComfyUI"
    if not tree.exists():
        left_out = {".git", ".venv", "models", "user", "output", "temp", "__pycache__"}
        shutil.copytree(
            source,
            tree,
            ignore=lambda folder, names: left_out & set(names) if Path(folder) == source else {"__pycache__"},
        )
        (tree / ".venv").symlink_to((source / ".venv").resolve(), target_is_directory=True)
        llama = tree / "comfy" / "text_encoders" / "llama.py"
        text = llama.read_text(encoding="utf-8")
        before, name, after = text.partition("class Qwen3_4BConfig")
        for wide, narrow in _NARROW.items():
            if wide not in after:
                sys.exit(f"{llama} has no {wide!r}: this script is for another release")
            after = after.replace(wide, narrow, 1)
        llama.write_text(before + name + after + _ZEROS, encoding="utf-8")
        python = tree / ".venv" / "bin" / "python"  # as after a first start; diagnose itself writes no byte code
        subprocess.run([str(python), "-m", "compileall", "-q", str(tree), "-x", r"\.venv"], check=False)
    files = small_models()
    for each in files:
        path = tree / "models" / each.folder / each.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(each.data)
    manifest = _manifest(files, small_diffusers_repository())
    (work / "manifest.yaml").write_text(json.dumps(manifest), encoding="utf-8")
    return tree


def plant(tree: Path, scenario: Scenario) -> None:
    """Put the custom nodes of a scenario into the tree, and no others."""
    folder = tree / "custom_nodes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "websocket_image_save.py").write_text(_HARMLESS, encoding="utf-8")
    named = dict(scenario.nodes)
    number = 0
    while len(named) < len(scenario.nodes) + scenario.harmless:
        number += 1
        named.setdefault(f"pack-{number:02}", _HARMLESS)
    for name, code in named.items():
        path = folder / name if name.endswith(".py") else folder / name / "__init__.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")


def digest_of(tree: Path) -> str:
    """Return a digest of every file of a tree, byte code included, with its time of change."""
    digest = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        if path.is_symlink() or ".venv" in path.parts:
            continue
        status = path.lstat()
        digest.update(f"{path.relative_to(tree)} {status.st_mode} ".encode())
        if path.is_file():
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


# --- one scenario ----------------------------------------------------------------------------------


def run_scenario(name: str, work: Path, tree: Path, say: Callable[[str], None]) -> bool:
    """Run one scenario; say what came out, and return whether it was what was planted."""
    scenario = SCENARIOS[name]
    plant(tree, scenario)
    before = digest_of(tree)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "HF_", "KLEIN_"))}
    env |= {f"XDG_{each.upper()}_HOME": str(work / each) for each in ("state", "data", "config", "cache")}
    env |= {"HOME": str(work), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # other work may share the cores
    words = [sys.executable, "-m", "provisioner", "diagnose", "--json", "--manifest", str(work / "manifest.yaml")]
    words += ["--comfyui", str(tree), "--size", "64x64", "--fresh"]
    if "--comfyui-args" not in scenario.words:
        words += ["--comfyui-args", ""]
    began = time.monotonic()
    done = subprocess.run([*words, *scenario.words], env=env, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    (work / f"{name}.stderr.txt").write_text(done.stderr, encoding="utf-8")
    (work / f"{name}.json").write_text(done.stdout, encoding="utf-8")
    document = json.loads(done.stdout)
    found = document["details"].get("diagnosis", {"tries": [], "guilty": [], "conclusion": str(document["errors"])})
    groups = {frozenset(group) for each in found["guilty"] for group in each["groups"]}
    layers = [each["layer"] for each in found["guilty"]]
    is_right = groups == set(scenario.guilty) and (scenario.layer is None or scenario.layer in layers)
    is_right &= bool(scenario.guilty) or document["status"] == "ok"
    is_right &= scenario.most_starts is None or len(found["tries"]) <= scenario.most_starts
    is_same = digest_of(tree) == before
    number = len(found["custom_nodes"]) if found["tries"] else 0
    say(f"\n## {scenario.planted}\n")
    came = "As planted" if is_right else "NOT as planted"
    tree_is = "as it was" if is_same else "CHANGED"
    said = [f"{each['message']}\n>\n> {each['hint']}" for each in document["findings"]]
    rows = [
        f"| {each['what']} | {each['result']}{': ' + each['trouble']['message'][:140] if each['trouble'] else ''} |"
        f" {each['seconds']:.0f} |"
        for each in found["tries"]
    ]
    text = [
        f"\n## {scenario.planted}\n",
        f"{came}: exit status {done.returncode}, {len(found['tries'])} starts in {seconds:.0f} s, {number} packs.",
        f"The tree is {tree_is}.\n",
        *(f"> {each}\n" for each in said or [str(found["conclusion"] or document["errors"])]),
        "| start | result | seconds |\n| --- | --- | --- |",
        *rows,
    ]
    program = f"{sys.executable} -m provisioner"
    say("\n".join(text).replace(program, "klein-setup").replace(str(work), "WORK"))
    return is_right and is_same


def main() -> int:
    """Run the scenarios and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=sorted(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    tree = make_tree(options.comfyui.absolute(), work)
    version = re.search(r'"([\d.]+)"', (tree / "comfyui_version.py").read_text(encoding="utf-8"))
    lines = [
        "# diagnose: culprits that were planted",
        "",
        f"`scripts/diagnose_culprits.py`, {time.strftime('%Y-%m-%d', time.gmtime())}: ComfyUI "
        f"{version[1] if version else '?'} on the CPU, {os.cpu_count()} cores.  Small models of random",
        "numbers, the text encoder made narrow.  64 x 64 pixels, 4 steps.  One guilty pack among n is to be found in",
        f"ceil(log2 n) + 2 starts after the layers; 16 in {math.ceil(math.log2(16)) + 2}.",
    ]

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)
        if options.output is not None:
            options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")

    wrong = [name for name in options.only if not run_scenario(name, work, tree, say)]
    say(f"\n{len(options.only) - len(wrong)} of {len(options.only)} as planted{f'; not: {wrong}' if wrong else ''}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
