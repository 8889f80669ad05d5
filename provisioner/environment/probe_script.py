"""Runs inside the environment that was built, and says in one JSON line what its torch can do on this machine.

Needs nothing but the standard library and, if it is there, torch with its companions; it is started by its path and
imports nothing of ours.  It changes nothing, and it never ends in a traceback: every failure is a code and a sentence.
"""

# ruff: noqa: ANN401 - torch is not there when this is checked

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

SCHEMA_VERSION = 1

FP8_FROM = (8, 9)  # torch._scaled_mm refuses below: "compute capability >= 9.0 or 8.9"
SIZE = 64  # of the matrices, a multiple of 16 as FP8 asks


class ProbeError(Exception):
    """Something the environment cannot do.

    Parameters
    ----------
    code : str
        Kebab-case.
    sentence : str
        For a person.
    """

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


def one_line(error: BaseException) -> str:
    """Return what an exception says, in one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."


# --- numbers that come out the same everywhere -------------------------------------------------


def pattern(torch: Any, rows: int, columns: int, step: int, limit: int) -> Any:
    """Return a float64 matrix of small integers on the CPU, made without chance."""
    numbers = torch.arange(rows * columns, dtype=torch.float64, device="cpu").reshape(rows, columns)
    return (numbers * step + torch.div(numbers, columns, rounding_mode="floor")) % (2 * limit + 1) - limit


def exact_product(torch: Any, device: str, dtype: Any) -> None:
    """Multiply integers from -2 to 2 on `device`; every dtype and every order of summation must give the same.

    The largest sum is 4 x 64 = 256, which bfloat16 with its 8 bits still holds exactly.
    """
    left = pattern(torch, SIZE, SIZE, 7, 2)
    right = pattern(torch, SIZE, SIZE, 11, 2)
    got = (left.to(device=device, dtype=dtype) @ right.to(device=device, dtype=dtype)).to("cpu").to(torch.float64)
    compare(got, left @ right, f"a {name_of(dtype)} product on {device}")


def fp8_product(torch: Any, device: str) -> None:
    """Multiply in FP8 (e4m3) with `torch._scaled_mm` and compare with the product in float32 on the CPU."""
    left = pattern(torch, SIZE, SIZE, 7, 2)
    right = pattern(torch, SIZE, SIZE, 11, 2)
    one = torch.ones((), dtype=torch.float32, device=device)
    eighth = torch.float8_e4m3fn
    got = torch._scaled_mm(
        left.to(torch.float32).to(device).to(eighth),
        right.to(torch.float32).to(device).t().contiguous().to(eighth).t(),  # the second operand is column-major
        scale_a=one,
        scale_b=one,
        out_dtype=torch.bfloat16,
    )
    reference = (left.to(torch.float32) @ right.to(torch.float32)).to(torch.float64)
    compare(got.to("cpu").to(torch.float64), reference, f"an FP8 product on {device}")


def convolution(torch: Any, device: str) -> None:
    """Convolve small integers on `device` (on NVIDIA: by cuDNN) and compare with the CPU."""
    image = pattern(torch, 16, 256, 5, 2).reshape(1, 16, 16, 16).to(torch.float32)
    weights = pattern(torch, 8, 144, 3, 2).reshape(8, 16, 3, 3).to(torch.float32)
    convolve = torch.nn.functional.conv2d
    reference = convolve(image.to(torch.float64), weights.to(torch.float64), padding=1)
    got = convolve(image.to(device), weights.to(device), padding=1).to("cpu").to(torch.float64)
    # Winograd and FFT algorithms round; the sums reach 576, so 0.5 finds a wrong number and forgives a rounding.
    compare(got, reference, f"a convolution on {device}", tolerance=0.5)


def compare(got: Any, reference: Any, what: str, *, tolerance: float = 0.0) -> None:
    """Raise unless the two agree."""
    worst = float((got - reference).abs().max())
    if not worst <= tolerance:  # also true of NaN
        raise ProbeError("wrong-numbers", f"{what} gave wrong numbers: off by {worst:g}.")


def name_of(dtype: Any) -> str:
    """Return ``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).rpartition(".")[2]


# --- machine code and devices ------------------------------------------------------------------


def parse_arch(name: str) -> tuple[str, int, int, bool] | None:
    """Return (kind, major, minor, is exact) of ``sm_90``, ``sm_100a`` or ``compute_120``; None for other names."""
    kind, _, number = name.partition("_")
    digits = number.rstrip("af")
    if kind not in ("sm", "compute") or not digits.isdigit() or len(digits) < 2:
        return None
    return kind, int(digits[:-1]), int(digits[-1]), number.endswith("a")


def serves(arch: str, capability: tuple[int, int], cuda: tuple[int, int]) -> bool:
    """Whether code of that name runs on a device: the rule of torch itself, ``torch/cuda/__init__.py`` (2.11, 2.13).

    Same major and no newer minor; the integrated 5.3, 6.2, 7.2, 10.1 and (before CUDA 13.2) 8.7 share no code with
    others; 11.0 only what was built for 11.0 or 10.1; intermediate code (``compute_``) serves all from its version on.
    """
    parsed = parse_arch(arch)
    if parsed is None:
        return False
    kind, major, minor, is_exact = parsed
    if kind == "compute":
        return (major, minor) <= capability
    if capability == (11, 0):
        return (major, minor) in ((11, 0), (10, 1))
    alone = {(5, 3), (6, 2), (7, 2), (10, 1)} | ({(8, 7)} if cuda < (13, 2) else set())
    if is_exact or capability in alone or (major, minor) in alone:
        return (major, minor) == capability
    return major == capability[0] and minor <= capability[1]


def arch_names(torch: Any) -> list[str]:
    """Return the architectures the build holds; `torch.cuda.get_arch_list` is empty without a GPU on torch 2.11."""
    flags = getattr(torch._C, "_cuda_getArchFlags", None)
    text = flags() if flags is not None else None
    return str(text).split() if text else []


def version_pair(text: str | None) -> tuple[int, int]:
    """Return (13, 2) for ``13.2``."""
    major, _, minor = (text or "").partition(".")
    minor = minor.partition(".")[0]
    return int(major) if major.isdigit() else 0, int(minor) if minor.isdigit() else 0


def gpu_uuid(properties: Any) -> str | None:
    """Return the UUID as NVML writes it, without its ``GPU-``; None where torch does not say (before 2.6)."""
    uuid = getattr(properties, "uuid", None)
    return str(uuid).lower() if uuid is not None else None


# --- what is looked at -------------------------------------------------------------------------


class Probe:
    """One run: an answer that grows, and the failures met on the way.

    Parameters
    ----------
    expect : mapping
        ``device``: ``cuda``, ``rocm``, ``xpu``, ``mps`` or ``cpu``; ``packages``: distributions that must import;
        ``architectures``: AMD's, those of the GPUs that must compute, the others being left alone.
    """

    def __init__(self, expect: Mapping[str, Any]) -> None:
        self.expect = expect
        self.failures: list[dict[str, str]] = []
        self.answer: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "python": platform.python_version(),
            "prefix": sys.prefix,
            "packages": {},
            "torch": None,
            "devices": [],
        }

    def fail(self, code: str, sentence: str) -> None:
        """Note a failure."""
        self.failures.append({"code": code, "sentence": sentence})

    def attempt(self, code: str, what: str, action: Callable[[], Any]) -> tuple[bool, Any]:
        """Do something; whatever it raises becomes a failure.  Return whether it went well, and its result."""
        try:
            return True, action()
        except ProbeError as error:
            self.fail(error.code, error.sentence)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a library that exits while it is imported is a failure too
            self.fail(code, f"{what}: {type(error).__name__}: {one_line(error)}")
        return False, None

    def run(self) -> dict[str, Any]:
        """Look at everything and return the answer."""
        started = time.perf_counter()
        is_there, torch = self.attempt(
            "torch-import", "torch cannot be imported", lambda: importlib.import_module("torch")
        )
        if is_there:
            self.attempt("torch-broken", "torch does not describe itself", lambda: self.describe(torch))
            self.companions(torch)
            self.exercise(torch)
        self.answer["failures"] = self.failures
        self.answer["ok"] = not self.failures
        first = self.failures[0] if self.failures else {"code": None, "sentence": None}
        self.answer["code"], self.answer["sentence"] = first["code"], first["sentence"]
        self.answer["seconds"] = round(time.perf_counter() - started, 3)
        return self.answer

    def describe(self, torch: Any) -> None:
        """Write down what torch says of itself."""
        self.answer["packages"]["torch"] = str(torch.__version__)
        self.answer["torch"] = {
            "version": str(torch.__version__),
            "file": torch.__file__,
            "cuda": torch.version.cuda,
            "hip": getattr(torch.version, "hip", None),
            "xpu": getattr(torch.version, "xpu", None),
            "arch_list": arch_names(torch),
            "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        }

    def companions(self, torch: Any) -> None:
        """Import the packages that must agree with torch: their own guards compare versions while they load."""
        for name in self.expect.get("packages", ()):
            if name == "torch":
                continue
            is_there, module = self.attempt(
                f"{name}-import", f"{name} cannot be imported", partial(importlib.import_module, name)
            )
            if is_there:
                self.answer["packages"][name] = str(getattr(module, "__version__", "unknown"))
        if "torchvision" in self.answer["packages"]:
            self.attempt("torchvision-broken", "torchvision's own operators do not work", lambda: suppress_boxes(torch))

    def exercise(self, torch: Any) -> None:
        """Compute on the processor, then on every device the build is for."""
        self.attempt("cpu-matmul", "the processor cannot multiply", lambda: exact_product(torch, "cpu", torch.float32))
        wanted = self.expect.get("device", "cpu")
        ways: dict[str, Callable[[Any], None]] = {
            "cuda": partial(self.exercise_cuda, wanted="cuda"),
            "rocm": partial(self.exercise_cuda, wanted="rocm"),
            "mps": self.exercise_mps,
            "xpu": self.exercise_xpu,
        }
        if wanted in ways:
            self.attempt("device", "torch cannot be asked about its devices", partial(ways[wanted], torch))

    def exercise_cuda(self, torch: Any, wanted: str) -> None:
        """Every CUDA or ROCm device: who it is, whether there is code for it, and whether it computes."""
        built_for = torch.version.cuda if wanted == "cuda" else getattr(torch.version, "hip", None)
        if not built_for:
            label = "CUDA" if wanted == "cuda" else "ROCm"
            self.fail("no-gpu-build", f"torch {torch.__version__} is built without {label}.")
            return
        if not torch.cuda.is_available():
            # The reason is only in the exception: no driver, a driver too old, or no device left visible.
            if self.attempt("no-device", "torch cannot use the GPU", torch.cuda.init)[0]:
                self.fail("no-device", "torch finds no GPU, and does not say why.")
            return
        for index in range(torch.cuda.device_count()):
            self.attempt("device", f"device {index} does not answer", partial(self.cuda_device, torch, index))
        targets = self.expect.get("architectures") or ()
        found = [str(device["architecture"]) for device in self.answer["devices"]]
        if wanted == "rocm" and targets and not set(found) & set(targets):
            self.fail("no-device", f"torch finds {' and '.join(found) or 'no GPU'}, not {' or '.join(targets)}.")

    def cuda_device(self, torch: Any, index: int) -> None:
        """One device."""
        properties = torch.cuda.get_device_properties(index)
        capability = (int(properties.major), int(properties.minor))
        is_nvidia = bool(torch.version.cuda)
        device: dict[str, Any] = {
            "index": index,
            "kind": "cuda" if is_nvidia else "rocm",
            "name": str(properties.name),
            "uuid": gpu_uuid(properties),
            "capability": list(capability) if is_nvidia else None,
            "architecture": None
            if is_nvidia
            else str(getattr(properties, "gcnArchName", "")).partition(":")[0] or None,
            "checks": [],
        }
        self.answer["devices"].append(device)
        targets = self.expect.get("architectures") or ()
        if not is_nvidia and targets and device["architecture"] not in targets:
            return  # there is no code for it, and nothing is going to use it
        if is_nvidia:
            device["code"] = self.code_for(torch, capability, str(properties.name))
        place = f"cuda:{index}"
        checks: list[tuple[str, Callable[[], Any]]] = [
            ("float32", lambda: exact_product(torch, place, torch.float32)),
            ("float16", lambda: exact_product(torch, place, torch.float16)),
            ("bfloat16", lambda: exact_product(torch, place, torch.bfloat16)),
            ("convolution", lambda: convolution(torch, place)),
        ]
        if is_nvidia and capability >= FP8_FROM:
            checks.append(("float8_e4m3fn", lambda: fp8_product(torch, place)))
        self.checks(device, place, checks)
        is_known, memory = self.attempt(
            "memory", f"{place} does not tell its memory", lambda: torch.cuda.mem_get_info(index)
        )
        if is_known:
            device["memory_free_bytes"], device["memory_total_bytes"] = int(memory[0]), int(memory[1])

    def code_for(self, torch: Any, capability: tuple[int, int], name: str) -> list[str]:
        """Return the architectures of the build that run on the device; none is a failure."""
        cuda = version_pair(torch.version.cuda)
        fitting = [arch for arch in arch_names(torch) if serves(arch, capability, cuda)]
        if not fitting:
            held = " ".join(arch_names(torch)) or "none"
            major, minor = capability
            self.fail(
                "no-kernel", f"torch {torch.__version__} has no code for {name} (sm_{major}{minor}); it holds {held}."
            )
        return fitting

    def checks(self, device: dict[str, Any], place: str, checks: list[tuple[str, Callable[[], Any]]]) -> None:
        """Run named computations; what works is listed, what does not is a failure."""
        for name, action in checks:
            if self.attempt("compute", f"{place} cannot compute in {name}", action)[0]:
                device["checks"].append(name)

    def exercise_mps(self, torch: Any) -> None:
        """Compute on Apple's GPU."""
        if not torch.backends.mps.is_built():
            self.fail("no-gpu-build", f"torch {torch.__version__} is built without MPS.")
            return
        if not torch.backends.mps.is_available():
            self.fail("no-device", "torch cannot use the GPU: MPS needs Apple silicon and macOS 14 or newer.")
            return
        device: dict[str, Any] = {
            "index": 0, "kind": "mps", "name": "Apple GPU", "uuid": None, "capability": None, "architecture": None,
            "checks": [],
        }  # fmt: skip
        self.answer["devices"].append(device)
        self.checks(
            device,
            "mps",
            [
                ("float32", lambda: exact_product(torch, "mps", torch.float32)),
                ("float16", lambda: exact_product(torch, "mps", torch.float16)),
                ("convolution", lambda: convolution(torch, "mps")),
            ],
        )
        recommended = getattr(torch.mps, "recommended_max_memory", None)
        if recommended is not None:
            is_known, memory = self.attempt("memory", "the GPU does not tell its memory", recommended)
            device["memory_total_bytes"] = int(memory) if is_known else None

    def exercise_xpu(self, torch: Any) -> None:
        """Compute on Intel's GPUs."""
        xpu = getattr(torch, "xpu", None)
        if xpu is None or not xpu.is_available():
            self.fail("no-device", f"torch {torch.__version__} finds no Intel GPU.")
            return
        for index in range(xpu.device_count()):
            self.attempt("device", f"device {index} does not answer", partial(self.xpu_device, torch, index))

    def xpu_device(self, torch: Any, index: int) -> None:
        """One Intel device."""
        properties = torch.xpu.get_device_properties(index)
        place = f"xpu:{index}"
        device: dict[str, Any] = {
            "index": index, "kind": "xpu", "name": str(properties.name), "uuid": gpu_uuid(properties),
            "capability": None, "architecture": None, "checks": [],
            "memory_total_bytes": int(properties.total_memory),
        }  # fmt: skip
        self.answer["devices"].append(device)
        self.checks(
            device,
            place,
            [
                ("float32", lambda: exact_product(torch, place, torch.float32)),
                ("bfloat16", lambda: exact_product(torch, place, torch.bfloat16)),
                ("convolution", lambda: convolution(torch, place)),
            ],
        )


def suppress_boxes(torch: Any) -> None:
    """Run torchvision's ``nms``: "operator torchvision::nms does not exist" is how a wrong pair shows."""
    operations = importlib.import_module("torchvision.ops")
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]])
    kept = operations.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept != [0, 2]:
        raise ProbeError("torchvision-broken", f"torchvision's nms gave {kept} where 0 and 2 are right.")


# --- one line ----------------------------------------------------------------------------------


def parse_arguments(arguments: list[str]) -> Mapping[str, Any]:
    """Return what is expected, out of ``--json '{"expect": {...}}'``; nothing is expected without it."""
    if not arguments:
        return {}
    if len(arguments) != 2 or arguments[0] != "--json":
        raise ProbeError("usage", "The probe takes --json and one JSON object.")
    try:
        asked = json.loads(arguments[1])
        expect = asked.get("expect", {})
        expect.get("device")
    except (ValueError, AttributeError) as error:
        raise ProbeError("usage", f"The probe was not asked in JSON: {one_line(error)}.") from None
    return dict(expect)


def failed(code: str, sentence: str) -> dict[str, Any]:
    """Return the answer of a probe that could not even begin, or was stopped."""
    failure = {"code": code, "sentence": sentence}
    return {"schema_version": SCHEMA_VERSION, "ok": False, **failure, "failures": [failure]}


def main(arguments: list[str]) -> int:
    """Print one JSON line and return the exit status: 0 where everything works, else 1."""
    # Libraries print when they are imported; only our line may reach stdout.
    line_out = os.dup(1)
    os.dup2(2, 1)
    try:
        answer = Probe(parse_arguments(arguments)).run()
    except ProbeError as error:
        answer = failed(error.code, error.sentence)
    except KeyboardInterrupt:
        answer = failed("interrupted", "The probe was interrupted.")
    except BaseException as error:  # the answer of last resort
        answer = failed("probe-defect", f"The probe itself failed: {type(error).__name__}: {one_line(error)}.")
    with os.fdopen(line_out, "w", encoding="ascii", newline="\n") as stream:
        stream.write(json.dumps(answer) + "\n")  # ASCII: no locale can spoil it
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
