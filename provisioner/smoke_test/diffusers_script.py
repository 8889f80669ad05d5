"""Run inside the created environment: generate one image with diffusers and report progress as JSON lines.

Needs nothing but the standard library and the packages of the environment; it is started by its path and imports
nothing of klein-setup.  It blocks the network, writes only the image, and never ends with only a traceback: the last
line on stdout is a ``done`` or a ``failed`` object.
"""

# ruff: noqa: ANN401 - torch and diffusers are not installed when this is checked

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

SCHEMA_VERSION = 1

PACKAGES = ("torch", "transformers", "accelerate", "diffusers")  # in the order in which they are imported
FIRST_DIFFUSERS = (0, 37)  # the first release with Flux2KleinPipeline

# What an image of 1024 x 1024 needs beside the weights, measured with the published shapes on an H200 (diffusers
# 0.42.1, 2026-11-23).  All parts on the card (15,964 MB): a peak of 18,628 MB allocated, 2,664 MB more, in the decoder.
# One part at a time (the largest has 8,045 MB, the transformer 7,751 MB): 8,409 MB and, with another torch, 9,182 MB.
WHOLE_HEADROOM_BYTES = 2816 * 1024**2
PART_HEADROOM_BYTES = 1536 * 1024**2
HEADROOM_PIXELS = 1024 * 1024

_BEAT_S = 1.0
_CONFIGS = ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")
_WEIGHTS = (".safetensors", ".bin")


class GenerationError(Exception):
    """Why there is no image.

    Parameters
    ----------
    kind : str
        Kebab-case.
    message : str
        For the user.
    **facts : object
        Further facts, as JSON values.
    """

    def __init__(self, kind: str, message: str, **facts: object) -> None:
        super().__init__(message)
        self.kind = kind
        self.facts = facts


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line of limited length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."


# --- reporting progress ------------------------------------------------------------------------


class Reporter:
    """Writes JSON lines to the stdout of this process; all other output to stdout goes to stderr."""

    def __init__(self) -> None:
        self._line_out = os.dup(1)
        os.dup2(2, 1)  # libraries print, also from C; only JSON lines may reach stdout
        self._lock = threading.Lock()

    def report(self, event: str, **facts: object) -> None:
        """Write one line; end this process where no one reads it any more."""
        line = json.dumps({"event": event, **facts}) + "\n"  # ASCII: the same in every locale
        try:
            with self._lock:
                data = line.encode("ascii")
                while data:
                    data = data[os.write(self._line_out, data) :]
        except OSError:
            os._exit(1)

    def beat(self) -> None:
        """Report every second that this process is alive, so that its parent can also stop it between two steps."""
        began = time.perf_counter()

        def forever() -> None:
            while True:
                time.sleep(_BEAT_S)
                self.report("alive", seconds=round(time.perf_counter() - began, 1), ram_bytes=peak_ram())

        threading.Thread(target=forever, daemon=True).start()


def peak_ram() -> int | None:
    """Return the most memory this process has had, in bytes; None on Windows, whose Python does not report it."""
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# --- blocking the network ----------------------------------------------------------------------


def forbid_network() -> list[str]:
    """Block every connection of Python code to other machines; return the growing list of attempts."""
    tried: list[str] = []

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            host = details[0]
        elif event in ("socket.connect", "socket.sendto") and isinstance(details[1], tuple):
            host = details[1][0]
        else:
            return
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host or "localhost")
        if name in ("localhost", "::1") or name.startswith("127."):
            return
        tried.append(name)
        raise OSError(errno.ENETUNREACH, f"the smoke test keeps the network off ({name})")

    sys.addaudithook(watch)
    return tried


def set_offline(cache: Path, scratch: str) -> None:
    """Set the variables that the libraries read when they are imported."""
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_CACHE"):
            del os.environ[name]
    os.environ.update(
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_CACHE=str(cache),
        HF_HOME=scratch,  # the user's tokens and modules are neither read nor written
        TOKENIZERS_PARALLELISM="false",
    )


# --- what is installed --------------------------------------------------------------------------


def numbers(version: str) -> tuple[int, int]:
    """Return (0, 37) for ``0.37.0.dev0``."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def installed_versions() -> dict[str, str]:
    """Return the versions of the required packages; raises GenerationError where one is missing or too old."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise GenerationError(
                "missing-package", f"{name} is not installed in {sys.prefix}.", package=name
            ) from None
    if numbers(found["diffusers"]) < FIRST_DIFFUSERS:
        raise GenerationError(
            "version-too-old",
            f"diffusers {found['diffusers']} does not support FLUX.2 [klein]; 0.37.0 is the first release that does.",
            package="diffusers",
            observed=found["diffusers"],
            needed="0.37.0",
        )
    return found


def import_packages() -> tuple[Any, Any]:
    """Import the packages; return torch and the pipeline's class."""
    modules: dict[str, Any] = {}
    for name in PACKAGES:
        try:
            modules[name] = importlib.import_module(name)
            if name == "diffusers":
                modules["pipeline"] = modules[name].Flux2KleinPipeline
        except ModuleNotFoundError as error:
            package = error.name or name
            raise GenerationError(
                "missing-package", f"{name} cannot be imported: {one_line(error)}", package=package
            ) from error
        except (ImportError, AttributeError, RuntimeError, OSError) as error:
            # diffusers imports lazily and raises RuntimeError for what is missing.
            raise GenerationError(
                "broken-package", f"{name} cannot be imported: {one_line(error)}", package=name
            ) from error
    return modules["torch"], modules["pipeline"]


def find_snapshot(cache: Path, repo_id: str, revision: str) -> Path:
    """Return the folder of a commit in an HF cache; raises GenerationError naming every file that is missing."""
    snapshot = cache / ("models--" + repo_id.replace("/", "--")) / "snapshots" / revision
    if not snapshot.is_dir():
        raise GenerationError(
            "snapshot-incomplete", f"{cache} does not contain commit {revision} of {repo_id}.", path=str(snapshot)
        )
    missing = sorted(set(missing_files(snapshot)))
    if missing:
        named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise GenerationError("snapshot-incomplete", f"{snapshot} lacks {named}.", path=str(snapshot), missing=missing)
    return snapshot


def missing_files(snapshot: Path) -> Iterator[str]:
    """Yield the files that the pipeline needs and that are missing, relative to the snapshot."""
    for path in snapshot.rglob("*"):
        if path.is_symlink() and not path.exists():
            yield path.relative_to(snapshot).as_posix()
    if not (snapshot / "model_index.json").exists():
        yield "model_index.json"
        return
    for name, value in read_json(snapshot / "model_index.json").items():
        if isinstance(value, list) and None not in value:
            yield from missing_in_component(snapshot / name)


def missing_in_component(folder: Path) -> Iterator[str]:
    """Yield the missing files of a part of the pipeline: its configuration, or weights named by its index or format."""
    if not any((folder / name).is_file() for name in _CONFIGS):
        yield f"{folder.name}/config.json"
    for index in folder.glob("*.index.json"):
        for name in set(read_json(index).get("weight_map", {}).values()):
            if not (folder / str(name)).is_file():
                yield f"{folder.name}/{name}"
    if (folder / "config.json").is_file() and not any(path.suffix in _WEIGHTS for path in folder.glob("*")):
        yield f"{folder.name}/*.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; raises GenerationError where the file contains something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GenerationError(
            "snapshot-incomplete", f"{path} cannot be read: {one_line(error)}", path=str(path)
        ) from error
    if not isinstance(value, dict):
        raise GenerationError("snapshot-incomplete", f"{path} does not contain a JSON object.", path=str(path))
    return value


# --- the device --------------------------------------------------------------------------------


def choose_device(torch: Any, wanted: str) -> str:
    """Return the device to use; ``auto`` takes the first GPU.  Raises GenerationError."""
    kind, _, index = wanted.partition(":")
    has = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
        "cpu": True,
    }
    if kind == "auto":
        kind = next(name for name, is_there in has.items() if is_there)
        return kind if kind in ("cpu", "mps") else f"{kind}:0"
    if not has[kind]:
        why = "it is built without CUDA" if kind == "cuda" and not torch.version.cuda else "it finds none"
        raise GenerationError("no-device", f"torch {torch.__version__} cannot use {wanted}: {why}.", device=wanted)
    if kind in ("cpu", "mps"):
        return kind
    count = torch.cuda.device_count() if kind == "cuda" else torch.xpu.device_count()
    number = int(index or 0)
    if number >= count:
        raise GenerationError(
            "no-device", f"torch sees {count} device(s) but should use {kind}:{number}.", device=wanted
        )
    return f"{kind}:{number}"


class Device:
    """The device of one run: its name, its clock, its memory.

    Parameters
    ----------
    torch : module
        The torch of the environment.
    place : str
        ``cuda:0``, ``xpu:0``, ``mps`` or ``cpu``.
    """

    def __init__(self, torch: Any, place: str) -> None:
        self._torch = torch
        self.place = place
        self.kind = place.partition(":")[0]
        self._module = getattr(torch, self.kind) if self.kind in ("cuda", "xpu") else None

    def describe(self) -> dict[str, object]:
        """Return what is known about it, memory in bytes."""
        told: dict[str, object] = {"place": self.place, "name": None, "uuid": None}
        if self._module is not None:
            properties = self._module.get_device_properties(self.place)
            uuid = getattr(properties, "uuid", None)
            told |= {"name": str(properties.name), "uuid": None if uuid is None else str(uuid).lower()}
        free, total = self.memory()
        return told | {"free_bytes": free, "total_bytes": total}

    def memory(self) -> tuple[int | None, int | None]:
        """Return free and whole memory in bytes; None where it is the computer's own or not reported."""
        try:
            if self._module is not None:
                free, total = self._module.mem_get_info(self.place)
                return int(free), int(total)
        except (AttributeError, RuntimeError):  # XPU before torch 2.8, or a driver that does not report it
            pass
        return None, None

    def wait(self) -> None:
        """Wait until all work queued on it is done; otherwise a clock measures only the queuing."""
        if self._module is not None:
            self._module.synchronize(self.place)
        elif self.kind == "mps":
            self._torch.mps.synchronize()

    def peaks(self) -> dict[str, int | None]:
        """Return the peaks of torch's memory on it, in bytes."""
        if self._module is None:
            return {"allocated_bytes": None, "reserved_bytes": None}
        return {
            "allocated_bytes": int(self._module.max_memory_allocated(self.place)),
            "reserved_bytes": int(self._module.max_memory_reserved(self.place)),
        }


def choose_offload(wanted: str, kind: str, free: int | None, parts: Sequence[int], pixels: int) -> str:
    """Return ``none``, ``model`` or ``sequential``: the least offloading with which an image fits the free memory.

    Parameters
    ----------
    wanted : str
        One of the three, or ``auto``.
    kind : str
        ``cuda``, ``xpu``, ``mps`` or ``cpu``.
    free : int or None
        Free bytes of the device.
    parts : sequence of int
        Bytes of the weights of each part.
    pixels : int
        Number of pixels of the image.
    """
    if kind not in ("cuda", "xpu"):
        return "none"  # one memory only
    if wanted != "auto":
        return wanted
    if free is None:
        return "model"
    share = max(pixels / HEADROOM_PIXELS, 0.5)
    if sum(parts) + WHOLE_HEADROOM_BYTES * share <= free:
        return "none"
    return "model" if max(parts, default=0) + PART_HEADROOM_BYTES * share <= free else "sequential"


def part_sizes(pipe: Any) -> list[int]:
    """Return the bytes of the weights of every part of a pipeline in memory."""
    modules = [part for part in pipe.components.values() if hasattr(part, "parameters")]
    return [
        sum(each.numel() * each.element_size() for each in (*part.parameters(), *part.buffers())) for part in modules
    ]


# --- generating --------------------------------------------------------------------------------


def load(torch: Any, pipeline: Any, options: argparse.Namespace) -> Any:
    """Return the pipeline of the commit from the cache only; raises GenerationError where a file is broken."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype]
    snapshot = find_snapshot(options.cache, options.repo, options.revision)
    try:
        # By its name and commit, as a user's own program would; torch_dtype is the name that 0.37 knows.
        pipe = pipeline.from_pretrained(
            options.repo,
            revision=options.revision,
            cache_dir=str(options.cache),
            local_files_only=True,
            torch_dtype=dtype,
        )
    except (MemoryError, ImportError, GenerationError):
        raise
    except Exception as error:
        if memory_of(torch, error) is not None:
            raise
        broken = type(error).__name__ in ("SafetensorError", "LocalEntryNotFoundError")
        if broken or isinstance(error, (OSError, ValueError)) or "size mismatch" in str(error):
            message = f"The files of {snapshot} cannot be loaded: {one_line(error)}"
            raise GenerationError(
                "snapshot-incomplete", message, path=str(snapshot), exception=type(error).__name__
            ) from error
        raise
    pipe.set_progress_bar_config(disable=True)
    return pipe


def place(pipe: Any, device: Device, offload: str) -> None:
    """Move the pipeline to its device, or set up its offloading."""
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device.place)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device.place)
    else:
        pipe.to(device.place)


class Stopwatch:
    """Times the parts of one pipeline call from inside, and checks its values.

    Parameters
    ----------
    torch : module
        The torch of the environment.
    device : Device
        Waited for before the clock is read.
    report : callable
        Called when a part ends.
    steps : int
        Number of denoising steps.
    """

    def __init__(self, torch: Any, device: Device, report: Callable[..., None], steps: int) -> None:
        self._torch, self._device, self._report, self._wanted = torch, device, report, steps
        self.encode_s: float | None = None
        self.decode_s: float | None = None
        self.steps_s: list[float] = []
        self._mark = time.perf_counter()

    def begin(self) -> None:
        """Start the clock of the first part."""
        self._mark = self.read()

    def read(self) -> float:
        """Return the time once the device is done."""
        self._device.wait()
        return time.perf_counter()

    def attach(self, pipe: Any) -> None:
        """Wrap the two parts of the pipeline that have no callback."""
        encode, decode = pipe.encode_prompt, pipe.vae.decode

        def timed_encode(*given: Any, **named: Any) -> Any:
            result = encode(*given, **named)
            self.encode_s = (self.encode_s or 0.0) + self._lap()
            self.check(result[0], "The encoded prompt", "encode")
            self._report("encoded", seconds=rounded(self.encode_s))
            return result

        def timed_decode(*given: Any, **named: Any) -> Any:
            self._mark = self.read()
            result = decode(*given, **named)
            self.decode_s = self._lap()
            self.check(result[0], "The decoded image", "decode")
            self._report("decoded", seconds=rounded(self.decode_s))
            return result

        pipe.encode_prompt, pipe.vae.decode = timed_encode, timed_decode

    def on_step(self, _pipe: Any, number: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Record the end of a step; the pipeline calls this."""
        self.steps_s.append(self._lap())
        self.check(tensors["latents"], f"The latents after step {number + 1}", "denoise")
        self._report("step", number=number + 1, total=self._wanted, seconds=rounded(self.steps_s[-1]))
        return {}

    def _lap(self) -> float:
        now = self.read()
        spent, self._mark = now - self._mark, now
        return spent

    def check(self, tensor: Any, what: str, phase: str) -> None:
        """Raise GenerationError if a value is NaN or infinite."""
        if not bool(self._torch.isfinite(tensor).all()):
            raise GenerationError("nan", f"{what} contains values that are not numbers.", phase=phase)


def rounded(seconds: float | None) -> float | None:
    """Return seconds to a tenth of a millisecond."""
    return None if seconds is None else round(seconds, 4)


def generate(pipe: Any, watch: Stopwatch, torch: Any, options: argparse.Namespace) -> float:
    """Generate and save the image; return the seconds from the call to the image."""
    watch.attach(pipe)
    watch.begin()
    began = time.perf_counter()
    image = pipe(
        prompt=options.prompt,  # the pipeline's first positional parameter is an image
        width=options.width,
        height=options.height,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        generator=torch.Generator("cpu").manual_seed(options.seed),  # the same noise on every device
        callback_on_step_end=watch.on_step,
        callback_on_step_end_tensor_inputs=["latents"],
    ).images[0]
    total = watch.read() - began
    part = options.output.with_name(options.output.name + ".part")
    image.save(part, format="PNG")
    part.replace(options.output)
    return total


def run(options: argparse.Namespace, report: Callable[..., None]) -> dict[str, object]:
    """Do all the work; return the facts of the ``done`` line."""
    tried = forbid_network()
    report("started", pid=os.getpid(), python=sys.version.split()[0], prefix=sys.prefix)
    versions = installed_versions()
    find_snapshot(options.cache, options.repo, options.revision)  # before the imports, which can take a minute
    began = time.perf_counter()
    torch, pipeline = import_packages()
    start_s = time.perf_counter() - began
    versions["torch"] = str(torch.__version__)  # wheels of the default index keep their tag out of the metadata
    report("imported", seconds=rounded(start_s), versions=versions)
    device = Device(torch, choose_device(torch, options.device))
    try:
        generated = load_and_generate(torch, pipeline, device, options, report)
    except GenerationError:
        raise
    except Exception as error:
        raise in_words(torch, error, device) from error
    generated["seconds"]["start"] = rounded(start_s)
    return {
        "schema_version": SCHEMA_VERSION,
        "picture": {"path": str(options.output), "width": options.width, "height": options.height},
        "dtype": options.dtype,
        "versions": versions,
        "is_offline": os.environ.get("HF_HUB_OFFLINE") == "1",
        "refused_connections": tried,
        **generated,
    }


def load_and_generate(
    torch: Any, pipeline: Any, device: Device, options: argparse.Namespace, report: Callable[..., None]
) -> dict[str, Any]:
    """Load the pipeline, move it to its device, generate; return the measurements."""
    described = device.describe()
    began = time.perf_counter()
    pipe = load(torch, pipeline, options)
    weights = part_sizes(pipe)
    offload = choose_offload(options.offload, device.kind, device.memory()[0], weights, options.width * options.height)
    place(pipe, device, offload)
    if options.tiled:
        pipe.vae.enable_tiling()
    device.wait()
    load_s = time.perf_counter() - began
    report("loaded", seconds=rounded(load_s), device=described, offload=offload, weights_bytes=sum(weights))
    watch = Stopwatch(torch, device, report, options.steps)
    total_s = generate(pipe, watch, torch, options)
    return {
        "seconds": {
            "load": rounded(load_s),
            "encode": rounded(watch.encode_s),
            "steps": [rounded(each) for each in watch.steps_s],
            "decode": rounded(watch.decode_s),
            "total": rounded(total_s),
        },
        "device": described,
        "offload": offload,
        "memory": {**device.peaks(), "ram_bytes": peak_ram()},
    }


# --- failures ----------------------------------------------------------------------------------


def memory_of(torch: Any, error: BaseException) -> str | None:
    """Return which memory ran out, ``vram`` or ``ram``; None where memory was not the cause.

    >>> memory_of(None, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
    'ram'
    """
    text = str(error).lower()
    of_torch: Any = getattr(torch, "OutOfMemoryError", ())
    if isinstance(error, of_torch) or "cuda error: out of memory" in text or "hip error: out of memory" in text:
        return "vram"
    signs = (
        "defaultcpuallocator",
        "not enough memory: you tried to allocate",
        "cannot allocate memory",
        "os error 1455",
    )
    return "ram" if isinstance(error, MemoryError) or any(sign in text for sign in signs) else None


def in_words(torch: Any, error: Exception, device: Device) -> GenerationError:
    """Return the error for an exception of the libraries."""
    said, name = one_line(error), type(error).__name__
    memory = memory_of(torch, error)
    if memory is not None:
        free, total = (None, None) if memory == "ram" else device.memory()
        facts: dict[str, object] = {"memory": memory, "free_bytes": free, "total_bytes": total}
        return GenerationError("out-of-memory", said, device=device.place, **facts)
    if "no kernel image is available" in said:
        return GenerationError("no-kernel-image", said, device=device.place)
    if isinstance(error, ImportError):
        return GenerationError("missing-package", said, package=getattr(error, "name", None))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT):
        return GenerationError("not-written", f"The image cannot be saved: {said}")
    return GenerationError("other", f"{name}: {said}", exception=name)


# --- the command line --------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser that raises GenerationError for wrong arguments."""

    def error(self, message: str) -> NoReturn:
        """Raise GenerationError with the parser's message."""
        raise GenerationError("usage", f"The image script was called with wrong arguments: {message}.")


def of_form(pattern: str) -> Callable[[str], str]:
    """Return an argument type that accepts only text matching `pattern`."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {pattern}")
        return text

    return check


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Return the parsed options; raises GenerationError."""
    parser = Parser(prog="diffusers_script.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--repo", type=of_form(r"[\w.-]+/[\w.-]+"), required=True)
    parser.add_argument("--revision", type=of_form("[0-9a-f]{40}"), required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", type=of_form(r"auto|cpu|mps|(cuda|xpu)(:\d+)?"), default="auto")
    parser.add_argument("--offload", choices=("auto", "none", "model", "sequential"), default="auto")
    parser.add_argument("--tiled", action="store_true")  # decode in pieces, for cards with little memory
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Generate the image, with JSON lines on stdout; return the exit status: 0 with an image, else 1."""
    reporter = Reporter()
    with contextlib.ExitStack() as leaving:
        try:
            options = parse_arguments(arguments)
            scratch = tempfile.mkdtemp(prefix="klein-setup-draw-")
            leaving.callback(shutil.rmtree, scratch, ignore_errors=True)
            set_offline(options.cache, scratch)
            reporter.beat()
            done = run(options, reporter.report)
        except GenerationError as error:
            traceback.print_exc()  # on stderr, which goes into the log
            reporter.report("failed", kind=error.kind, message=str(error), **error.facts)
            return 1
        except KeyboardInterrupt:
            reporter.report("failed", kind="interrupted", message="The generation was interrupted.")
            return 1
        except BaseException as error:  # so that there is always an answer
            traceback.print_exc()
            memory = memory_of(sys.modules.get("torch"), error)
            kind, facts = ("out-of-memory", {"memory": memory}) if memory else ("other", {})
            reporter.report("failed", kind=kind, message=f"{type(error).__name__}: {one_line(error)}", **facts)
            return 1
        reporter.report("done", **done)
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
