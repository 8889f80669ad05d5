"""Errors for every known failure of a ComfyUI server, each with a cause and a next step.

Works on the server's output and the graph it was given.  ``cause`` in an error's context is the kebab-case name of
the failure, for programs; an unknown failure is shown with its type, its first line and the log.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioner.comfyui.server.api import Graph, NodeComplaint, NodeFailure, Refusal, shortened
from provisioner.comfyui.server.launch import ServerAddress
from provisioner.core.errors import (
    GenerationError,
    MemoryExhaustedError,
    ModelNotListedError,
    ServerNotUsableError,
    SmokeTestError,
)
from provisioner.core.json_reader import as_dict
from provisioner.core.models import Finding, Remedy
from provisioner.core.redact import printable, redact

FILE_INPUTS = {
    "UNETLoader": "unet_name",
    "CLIPLoader": "clip_name",
    "VAELoader": "vae_name",
    "CheckpointLoaderSimple": "ckpt_name",
    "LoraLoaderModelOnly": "lora_name",
}
"""Loader nodes, and the input that names their file."""

_KIND_OF = {"UNETLoader": "diffusion model", "CLIPLoader": "text encoder", "VAELoader": "VAE"}
_KLEIN_SINCE = "0.9.2"  # the first release that loads Klein: Comfy-Org/ComfyUI pull 11890, changelog of 2026-01-15
_SHOWN_LINES = 40  # last lines of a server in an error

_REPAIR = "Run `klein-setup repair`, which checks every file and fixes what is wrong."
_RESTART = "A server that is already running keeps the files it loaded: restart it afterwards."
_UPDATE = f"Update ComfyUI to {_KLEIN_SINCE} or newer."
_TORCH = "Run `klein-setup install --only environment`, which chooses the build for this machine."
_LESS_VRAM = "Close other programs that use the GPU, or use a smaller set."  # the smoke test says which
_LESS_RAM = "Close other programs, add swap space, or use a smaller set."


# --- which file a node uses --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUse:
    """A loader of the graph and the file it names."""

    node_id: str
    node_class: str
    file: str
    clip_type: str | None = None  # CLIPLoader only

    @property
    def words(self) -> str:
        """The file's role and name.

        >>> ModelUse(node_id="3", node_class="VAELoader", file="ae.safetensors").words
        'the VAE ae.safetensors'
        """
        return f"the {_KIND_OF.get(self.node_class, 'model')} {self.file}"


def models_behind(graph: Graph, node_id: str) -> tuple[ModelUse, ...]:
    """Return the model files that a node uses: its own, else those of every loader it depends on.

    Examples
    --------
    >>> graph = {
    ...     "3": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
    ...     "12": {"class_type": "VAEDecode", "inputs": {"vae": ["3", 0]}},
    ... }
    >>> [use.file for use in models_behind(graph, "12")]
    ['ae.safetensors']
    """
    return tuple(use for each in _upstream(graph, node_id) if (use := _model_use(graph, each)) is not None)


def _upstream(graph: Graph, node_id: str) -> Iterator[str]:
    """Yield a node and everything it depends on, each once, nearest first."""
    waiting, seen = [node_id], {node_id}
    while waiting:
        current = waiting.pop(0)
        yield current
        for value in as_dict(graph.get(current, {}).get("inputs")).values():
            source = value[0] if isinstance(value, (list, tuple)) and value else None
            if isinstance(source, str) and source in graph and source not in seen:
                seen.add(source)
                waiting.append(source)


def _model_use(graph: Graph, node_id: str) -> ModelUse | None:
    node = graph.get(node_id, {})
    node_class, inputs = node.get("class_type"), as_dict(node.get("inputs"))
    file = inputs.get(FILE_INPUTS.get(str(node_class), ""))
    if not isinstance(file, str):
        return None
    kind = inputs.get("type")
    return ModelUse(
        node_id=node_id,
        node_class=str(node_class),
        file=printable(file),
        clip_type=kind if node_class == "CLIPLoader" and isinstance(kind, str) else None,
    )


# --- a node that raised ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A failure and what is needed to explain it."""

    failure: NodeFailure
    uses: tuple[ModelUse, ...]
    context: Mapping[str, object]

    @property
    def text(self) -> str:
        return f"{self.failure.exception_type}: {self.failure.exception_message}"

    def use_of(self, node_class: str) -> ModelUse | None:
        return next((use for use in self.uses if use.node_class == node_class), None)

    def file_of(self, node_class: str, otherwise: str) -> str:
        use = self.use_of(node_class)
        return otherwise if use is None else use.words

    @property
    def nearest(self) -> str:
        return self.uses[0].words if self.uses else "a model file"

    def error(self, kind: type[SmokeTestError], cause: str, message: str, hint: str) -> SmokeTestError:
        return kind(message, hint=hint, cause=cause, **self.context)


def node_error(failure: NodeFailure, graph: Graph, *, log_path: Path | None = None) -> SmokeTestError:
    """Return the error for a node that raised while the prompt ran.

    Parameters
    ----------
    failure : NodeFailure
        The server's report.
    graph : mapping
        The prompt, which names the files the node uses.
    log_path : Path, optional
        File with the server's output.

    Returns
    -------
    SmokeTestError
        Not raised.  ``cause``, ``node``, ``node_class``, ``exception_type`` and, where the graph names them,
        ``files`` are in its context.
    """
    uses = models_behind(graph, failure.node_id)
    context: dict[str, object] = {
        "node": failure.node_id,
        "node_class": failure.node_class,
        "exception_type": failure.exception_type,
        "exception_message": shortened(failure.exception_message),
        "files": [use.file for use in uses],
    }
    if log_path is not None:
        context["log_path"] = str(log_path)
    case = _Case(failure=failure, uses=uses, context=context)
    for name in _KNOWN:
        found = name(case)
        if found is not None:
            return found
    return _unknown(case, log_path)


# Messages of safetensors 0.6 and newer; older ones write them as one word, "HeaderTooLarge".
_BROKEN = {
    "incomplete metadata, file not fully covered": ("truncated-file", "is truncated: bytes are missing at its end"),
    "metadata incomplete buffer": ("truncated-file", "is truncated: its length is not what its header says"),
    "header too large": ("not-safetensors", "is not a safetensors file: most likely a web page saved under its name"),
    "header too small": ("empty-file", "is empty, or nearly so"),
    "invalid": ("broken-header", "has a header that cannot be read"),
}


def _broken_file(case: _Case) -> SmokeTestError | None:
    if "safetensorerror" not in case.failure.exception_type.lower():
        return None
    said = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", case.failure.exception_message).lower()
    for sign, (cause, what) in _BROKEN.items():
        if sign in said:
            return case.error(GenerationError, cause, f"{_capital(case.nearest)} {what}.", f"{_REPAIR} {_RESTART}")
    return None


def _flux1_vae(case: _Case) -> SmokeTestError | None:
    match = re.search(r"to have (\d+) channels, but got (\d+) channels", case.text)
    if match is None or case.use_of("VAELoader") is None:
        return None
    wanted, got = int(match[1]), int(match[2])
    vae = case.file_of("VAELoader", "the VAE")
    other = " It is the VAE of FLUX.1, or of another model with 16 channels." if wanted == 16 else ""
    return case.error(
        GenerationError,
        "wrong-vae",
        f"{_capital(vae)} does not belong to this model: it decodes {wanted} channels, the image has {got}.{other}",
        f"Use flux2-vae.safetensors. {_REPAIR}",
    )


# Widths of a text encoder's output, and of a transformer's input: the hidden size, three times it for FLUX.2
# (ComfyUI 0.33.0, comfy/text_encoders; BFL's model cards).
_ENCODERS = {
    1024: "Qwen3-0.6B",
    2560: "one layer of Qwen3-4B",
    3072: "three layers of Qwen3-0.6B",
    4096: "one layer of Qwen3-8B (T5-XXL is as wide)",
    7680: "Qwen3-4B",
    12288: "Qwen3-8B",
    15360: "the encoder of FLUX.2 [dev]",
}
_WANTED = {
    7680: ("Qwen3-4B", "qwen_3_4b.safetensors"),
    12288: ("Qwen3-8B", "qwen_3_8b_fp8mixed.safetensors"),
    15360: ("the encoder of FLUX.2 [dev]", "that of FLUX.2 [dev]"),
}


def _shapes(case: _Case) -> SmokeTestError | None:
    match = re.search(r"mat1 and mat2 shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)", case.text)
    loader = case.use_of("CLIPLoader")
    if match is None or loader is None:
        return None
    got, wanted = int(match[1]), int(match[2])
    if loader.clip_type not in (None, "flux2"):
        return case.error(
            GenerationError,
            "wrong-clip-type",
            f"The CLIPLoader reads {loader.words} as `{loader.clip_type}`, which gives {got} values where the model "
            f"needs {wanted}.",
            "Set the type of the CLIPLoader to `flux2`.",
        )
    if wanted == 3 * got:  # the right encoder, but only one of its layers
        return case.error(
            GenerationError,
            "comfyui-too-old",
            f"ComfyUI passes on one layer of {loader.words} ({got} values) where the model needs three ({wanted}).",
            _UPDATE,
        )
    is_known = wanted in _WANTED
    expected, file = _WANTED.get(wanted, (f"an encoder of width {wanted}", "the one the model was made for"))
    return case.error(
        GenerationError,
        "wrong-text-encoder",
        f"{_capital(loader.words)} does not fit {case.file_of('UNETLoader', 'the diffusion model')}: "
        f"the model needs {f'{expected} ({wanted} values)' if is_known else expected}, the encoder gives {got}"
        f"{f', which is {_ENCODERS[got]}' if got in _ENCODERS else ''}.",
        f"Use {file} as the text encoder. {_REPAIR}",
    )


def _gpu_memory(case: _Case) -> SmokeTestError | None:
    # torch's own class, the driver's "CUDA error: out of memory", and cudaMallocAsync's "Allocation on device".
    signs = ("outofmemoryerror", "out of memory", "allocation on device")
    if not any(sign in case.text.lower() for sign in signs):
        return None
    return case.error(
        MemoryExhaustedError,
        "gpu-out-of-memory",
        f"The GPU's memory ran out in {_node(case)}.",
        _LESS_VRAM,
    )


def _main_memory(case: _Case) -> SmokeTestError | None:
    said = case.text
    if case.failure.exception_type != "MemoryError" and "DefaultCPUAllocator" not in said and "os error 12" not in said:
        return None
    return case.error(
        MemoryExhaustedError, "ram-out-of-memory", f"The machine's memory ran out in {_node(case)}.", _LESS_RAM
    )


def _torch_build(case: _Case) -> SmokeTestError | None:
    said = case.text.lower()
    if "no kernel image is available" in said:
        what = "The installed build of torch has no code for this GPU."
        return case.error(GenerationError, "no-kernel-image", what, _TORCH)
    if "torch not compiled with cuda enabled" in said:
        what = "The installed torch is a build without CUDA."
        return case.error(GenerationError, "torch-without-cuda", what, _TORCH)
    if "float8" in said and "mps" in said:
        return case.error(
            GenerationError,
            "fp8-on-mps",
            f"Apple's GPU cannot use FP8 numbers, and {case.file_of('UNETLoader', 'the diffusion model')} is made of "
            "them.",
            "Use the files in BF16: `--set bf16`.",
        )
    if "device-side assert" in said or "illegal memory access" in said or "unspecified launch failure" in said:
        return case.error(
            GenerationError,
            "gpu-fault",
            f"The GPU failed in {_node(case)}: {shortened(case.failure.exception_message)}",
            "Restart ComfyUI; if it fails again, update the driver and check the system's log for GPU errors.",
        )
    return None


def _file_gone(case: _Case) -> SmokeTestError | None:
    is_gone = case.failure.exception_type == "FileNotFoundError"
    if not is_gone or case.failure.node_class not in FILE_INPUTS:
        return None
    what = f"{_capital(case.nearest)} was listed but does not exist any more."
    return case.error(ModelNotListedError, "missing-file", what, _REPAIR)


def _undetected(case: _Case) -> SmokeTestError | None:
    said = case.text.lower()
    if "could not detect model type" not in said:
        return None
    return case.error(
        GenerationError,
        "unknown-model",
        f"ComfyUI does not recognise {case.nearest}.",
        f"{_REPAIR} If the files are correct, ComfyUI is too old: {_UPDATE[0].lower()}{_UPDATE[1:]}",
    )


_KNOWN: tuple[Callable[[_Case], SmokeTestError | None], ...] = (
    _main_memory,
    _gpu_memory,
    _broken_file,
    _flux1_vae,
    _shapes,
    _torch_build,
    _file_gone,
    _undetected,
)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _node(case: _Case) -> str:
    return f"{case.failure.node_class or 'a node'} (node {case.failure.node_id or '?'})"


def _unknown(case: _Case, log_path: Path | None) -> SmokeTestError:
    lines = case.failure.exception_message.splitlines()
    first = shortened(next((line for line in lines if line.strip()), "no message"))
    where = f" The full output is in {log_path}." if log_path else ""
    return case.error(
        GenerationError,
        "unknown",
        f"{_node(case)} failed with {case.failure.exception_type or 'an error'}: {first}",
        f"Run `klein-setup verify` to rule out broken files.{where}",
    )


# --- a prompt that was rejected ----------------------------------------------------------------


def refusal_error(refusal: Refusal, graph: Graph) -> SmokeTestError:
    """Return the error for a prompt that the server did not accept; not raised."""
    context: dict[str, object] = {"status": refusal.status}
    if refusal.kind == "missing_node_type":
        return nodes_missing_error([refusal.node_class or refusal.message])
    if refusal.kind == "prompt_no_outputs":
        return GenerationError(
            "The graph has no node that saves an image.",
            hint="Add a SaveImage node; `klein-setup smoke-test` without a graph of your own uses one.",
            cause="no-output-node",
            **context,
        )
    if refusal.complaints:
        return _complaints_error(refusal, graph, context)
    said = " ".join(each for each in (refusal.message, refusal.details) if each) or "without a reason"
    return GenerationError(
        f"The server rejected the graph (HTTP {refusal.status}): {said}",
        hint="Check the server's log; an older or newer ComfyUI may have other nodes.",
        cause="refused",
        **context,
    )


def _complaints_error(refusal: Refusal, graph: Graph, context: dict[str, object]) -> SmokeTestError:
    sentences = [_complaint_words(each) for each in refusal.complaints]
    context["complaints"] = sentences
    missing = [each for each in refusal.complaints if _is_missing_file(each)]
    if missing:
        context["files"] = [each.received for each in missing]
        return ModelNotListedError(
            " ".join(_missing_words(each) for each in missing),
            hint=f"Run `klein-setup install`, which places the files where this server reads them. {_RESTART}",
            cause="missing-file",
            **context,
        )
    first = refusal.complaints[0]
    is_old = first.kind == "value_not_in_list" and first.input_name == "type" and first.node_class == "CLIPLoader"
    node = graph.get(first.node_id, {})
    return GenerationError(
        " ".join(sentences),
        hint=_UPDATE if is_old else f"Correct node {first.node_id} ({node.get('class_type', first.node_class)}).",
        cause="comfyui-too-old" if is_old else "bad-value",
        **context,
    )


def _is_missing_file(complaint: NodeComplaint) -> bool:
    return complaint.kind == "value_not_in_list" and FILE_INPUTS.get(complaint.node_class) == complaint.input_name


def _missing_words(complaint: NodeComplaint) -> str:
    kind = _KIND_OF.get(complaint.node_class, "model")
    return f"The server does not list the {kind} {complaint.received}; it lists {_listed_words(complaint.allowed)}."


def _complaint_words(complaint: NodeComplaint) -> str:
    details = f" ({complaint.details})" if complaint.details else ""
    return f"Node {complaint.node_id} ({complaint.node_class}) was rejected: {complaint.message}{details}."


def _listed_words(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others.

    >>> _listed_words(["a", "b"]), _listed_words([])
    ('a, b', 'none')
    """
    shown = ", ".join(printable(each) for each in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "none"


def nodes_missing_error(missing: Sequence[str], *, version: str | None = None) -> SmokeTestError:
    """Return the error for node classes that the server lacks."""
    names = ", ".join(shortened(each) for each in missing)
    which = "ComfyUI" if version is None else f"ComfyUI {version}"
    return ModelNotListedError(
        f"{which} does not have the node{'s' if len(missing) > 1 else ''} {names}.",
        hint=_UPDATE,
        cause="missing-node",
        nodes=list(missing),
    )


def interrupted_error(node_id: str | None, graph: Graph) -> SmokeTestError:
    """Return the error for a prompt that another client stopped."""
    node_class = graph.get(node_id or "", {}).get("class_type")
    where = f" in {node_class} (node {node_id})" if node_class else ""
    return GenerationError(
        f"The prompt was interrupted on the server{where}, not by klein-setup.",
        hint="Run the command again while no one else uses the server.",
        cause="interrupted",
    )


def out_of_time_error(timeout_s: float, node_id: str | None, graph: Graph) -> SmokeTestError:
    """Return the error for a prompt that took longer than its time limit."""
    node_class = graph.get(node_id or "", {}).get("class_type")
    where = f"; it had reached {node_class} (node {node_id})" if node_class else "; it had not begun"
    return GenerationError(
        f"No image was generated within {timeout_s:g} s{where}.",
        hint="Check the server's log. On a CPU, or while other prompts wait in its queue, allow more time.",
        cause="timeout",
    )


# --- a server that does not answer-------------------------------------------------------------


def last_lines(lines: Iterable[str]) -> list[str]:
    """Return the end of a server's output, redacted for showing."""
    shown = [redact(printable(line)).rstrip() for line in lines]
    return [line for line in shown if line.strip()][-_SHOWN_LINES:]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sign:
    """A cause of a server's end, and how its output shows it."""

    cause: str
    pattern: re.Pattern[str]
    message: str  # may use the pattern's groups
    hint: str


def _sign(cause: str, pattern: str, message: str, hint: str) -> _Sign:
    return _Sign(cause=cause, pattern=re.compile(pattern), message=message, hint=hint)


# First match wins, so causes come before mere symptoms.  Read in runs of ComfyUI 0.33.0
# (torchaudio, custom_nodes) and in ComfyUI's and torch's sources.
_DEATHS = (
    _sign(
        "torch-set-mismatch",
        r"PyTorch has CUDA version ([\d.]+) whereas TorchAudio has CUDA version ([\d.]+)",
        "torch was built for CUDA {0} and torchaudio for CUDA {1}; they must come from one index.",
        _TORCH,
    ),
    _sign(
        "torch-set-mismatch",
        r"operator (torchvision::\w+) does not exist",
        "torchvision was built for another torch ({0} is missing); they must come from one index.",
        _TORCH,
    ),
    _sign(
        "custom-nodes-missing",
        r"(?:No such file or directory|cannot find the path specified): '([^'\n]*custom_nodes)'",
        "The folder {0} is missing, without which ComfyUI does not start.",
        "Create that empty folder: `--base-directory` needs one named custom_nodes.",
    ),
    _sign(
        "empty-model-paths",
        r"extra_config\.py(?:.|\n)*'NoneType' object is not iterable",
        "The extra_model_paths.yaml that ComfyUI reads is empty.",
        "Remove the file, or name a folder in it.",
    ),
    _sign(
        "broken-model-paths",
        r"extra_config\.py(?:.|\n)*\n((?:yaml\.\S+|AttributeError|TypeError|UnicodeDecodeError)[^\n]*)",
        "ComfyUI cannot read extra_model_paths.yaml: {0}",
        "Correct the file; `klein-setup verify` names the line.",
    ),
    _sign(
        "database-locked",
        r"Could not acquire lock on database|already using this database|[Dd]atabase is locked",
        "Another ComfyUI of the same tree is using its database.",
        "Stop the other ComfyUI, or use it with `--server`.",
    ),
    _sign(
        "torch-without-cuda",
        r"Torch not compiled with CUDA enabled",
        "The installed torch is a build without CUDA.",
        _TORCH,
    ),
    _sign(
        "driver-too-old",
        r"The NVIDIA driver on your system is too old \(found version (\d+)\)",
        "The NVIDIA driver is too old for the installed torch (CUDA {0}).",
        "Update the driver, or run `klein-setup install --only environment`, which chooses a build that it supports.",
    ),
    _sign(
        "no-gpu",
        r"Found no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device is detected",
        "ComfyUI finds no usable GPU.",
        "Check the driver with `klein-setup detect`, and CUDA_VISIBLE_DEVICES; give `--cpu` to run without one.",
    ),
    _sign(
        "no-kernel-image",
        r"no kernel image is available",
        "The installed build of torch has no code for this GPU.",
        _TORCH,
    ),
    _sign(
        "gpu-out-of-memory",
        r"OutOfMemoryError|CUDA out of memory",
        "The GPU's memory ran out.",
        _LESS_VRAM,
    ),
    _sign(
        "missing-library",
        r"\[WinError 126\][^\n]*?([\w.-]+\.dll)",
        "Windows cannot load {0} of torch.",
        "Install Microsoft's Visual C++ Redistributable, then run the command again.",
    ),
    _sign(
        "incomplete-comfyui",
        r"(?:ModuleNotFoundError|ImportError): No module named '"
        r"((?:comfy(?:_api|_api_nodes|_config|_execution|_extras)?|app|api_server|middleware|nodes|execution|folder_paths"
        r"|node_helpers|latent_preview|server|utils|protocol)(?:\.[\w.]+)?)'",
        "Files of ComfyUI itself are missing: its module {0} is not there.",
        "In a git checkout `git checkout -- .` brings them back; else get ComfyUI anew with `klein-setup install`.",
    ),
    _sign(
        "missing-module",
        r"(?:ModuleNotFoundError|ImportError): No module named '([^'\n]+)'",
        "The Python module {0} is missing from ComfyUI's environment.",
        "Run `klein-setup install --only environment`, which installs what ComfyUI needs.",
    ),
    _sign(
        "broken-module",
        r"ImportError: ([^\n]+)",
        "A Python module of ComfyUI's environment cannot be loaded: {0}",
        "Run `klein-setup install --only environment`.",
    ),
    _sign(
        "unknown-option",
        r"error: (unrecognized arguments: [^\n]+|argument [^\n]+)",
        "ComfyUI rejects its command line: {0}",
        "Update ComfyUI, or omit the extra options.",
    ),
    _sign(
        "missing-program",
        r"can't open file '?([^'\n]+?)'?: \[Errno 2\]",
        "There is no ComfyUI at {0}.",
        "Give `--comfyui` the folder that contains ComfyUI's main.py.",
    ),
)

_PORT_TAKEN = re.compile(
    r"is already in use on address|(?i:address already in use)|\[WinError 10048\]|EADDRINUSE|\[Errno (?:48|98)\]"
)


def is_port_taken(lines: Iterable[str]) -> bool:
    """Whether a server's output says that another program uses its port.

    >>> is_port_taken(["Port 8188 is already in use on address 127.0.0.1. Please close the other application"])
    True
    """
    return _PORT_TAKEN.search("\n".join(lines)) is not None


def death_error(
    returncode: int, lines: Sequence[str], *, log_path: Path, node: str | None = None, is_starting: bool = False
) -> SmokeTestError:
    """Return the error for a server of ours that ended on its own.

    Parameters
    ----------
    returncode : int
        Its exit status; negative is the signal that ended it.
    lines : sequence of str
        The end of its output.
    log_path : Path
        File with all of its output.
    node : str, optional
        What it was doing, as text: "CLIPTextEncode (node 4)".
    is_starting : bool
        Whether it had not answered yet.
    """
    shown = last_lines(lines)
    context: dict[str, object] = {"returncode": returncode, "last_lines": shown, "log_path": str(log_path)}
    when = "while it started" if is_starting else f"in {node}" if node else "while it ran"
    text = "\n".join(printable(line) for line in lines)
    for sign in _DEATHS:
        match = sign.pattern.search(text)
        if match is not None:
            groups = [shortened(_unescaped(group)) for group in match.groups()]
            return _death_kind(sign.cause)(
                f"ComfyUI ended {when}. {sign.message.format(*groups)}", hint=sign.hint, cause=sign.cause, **context
            )
    if returncode in {-9, 137} or "MemoryError" in text:
        return MemoryExhaustedError(
            f"ComfyUI ended {when}: the system ended it, most likely for lack of memory.",
            hint=_LESS_RAM,
            cause="ram-out-of-memory",
            **context,
        )
    said = f": {shortened(shown[-1])}" if shown else ", without output"
    return ServerNotUsableError(
        f"ComfyUI ended {when} with {_exit_in_words(returncode)}{said}",
        hint=f"Read the log at {log_path}.",
        cause="server-died",
        **context,
    )


def _unescaped(text: str) -> str:
    r"""Return a path as it is spelled, where Python showed it as a literal, with each backslash doubled.

    >>> print(_unescaped(r"C:\\ComfyUI\\main.py"), _unescaped(r"\\host\share"))
    C:\ComfyUI\main.py \\host\share
    """
    is_literal = all(len(run) % 2 == 0 for run in re.findall(r"\\+", text))
    return text.replace("\\\\", "\\") if is_literal else text


def _death_kind(cause: str) -> type[SmokeTestError]:
    return MemoryExhaustedError if cause == "gpu-out-of-memory" else ServerNotUsableError


def _exit_in_words(returncode: int) -> str:
    """Return how a process ended, in words.

    >>> _exit_in_words(1), _exit_in_words(-11), _exit_in_words(3221225477)
    ('exit status 1', 'signal 11 (it crashed)', 'exit status 0xC0000005 (it crashed)')
    """
    crashed = " (it crashed)"
    if returncode < 0:
        return f"signal {-returncode}{crashed if returncode in {-4, -6, -7, -8, -10, -11} else ''}"
    if returncode > 0xFFFF:  # Windows: an NTSTATUS
        return f"exit status 0x{returncode:X}{crashed if returncode == 0xC0000005 else ''}"
    return f"exit status {returncode}"


def silent_start_error(timeout_s: float, lines: Sequence[str], *, log_path: Path) -> SmokeTestError:
    """Return the error for a server of ours that runs but never answered."""
    shown = last_lines(lines)
    said = f" Its last line: {shortened(shown[-1])}" if shown else " It printed nothing."
    return ServerNotUsableError(
        f"ComfyUI did not answer within {timeout_s:g} s and was stopped.{said}",
        hint=f"Read the log at {log_path}; the usual reason is custom nodes that install things at start.",
        cause="start-timeout",
        last_lines=shown,
        log_path=str(log_path),
    )


def no_port_error(tries: int, lines: Sequence[str], *, log_path: Path) -> SmokeTestError:
    """Return the error for a server of ours for which every port was taken."""
    return ServerNotUsableError(
        f"ComfyUI's port was taken {tries} times in a row, on different ports.",
        hint="Look for a program on this machine that opens many ports, and run the command again.",
        cause="port-taken",
        last_lines=last_lines(lines),
        log_path=str(log_path),
    )


def port_taken_error(address: ServerAddress, holder: str | None) -> SmokeTestError:
    """Return the error for a port the user named, or the usual one, on which another program answers."""
    return ServerNotUsableError(
        f"Port {address.port} is taken by {holder or 'another program'}, which is no ComfyUI that can be used here.",
        hint=f"End that program, or choose another port with `klein-setup start --port {address.port + 1}`.",
        cause="port-taken",
        url=address.url,
    )


def unreachable_error(url: str, reason: str, *, is_slow: bool = False) -> SmokeTestError:
    """Return the error for a server that does not answer; a slow one may only be busy."""
    return ServerNotUsableError(
        f"No ComfyUI server answers at {url}: {shortened(reason)}.",
        hint="Wait until the server is less busy, or restart it."
        if is_slow
        else "Start ComfyUI there, correct `--server`, or omit it to have one started.",
        cause="slow-server" if is_slow else "unreachable",
        url=url,
    )


def gone_error(url: str, node: str | None) -> SmokeTestError:
    """Return the error for a server, not ours, that stopped answering or no longer knows the prompt."""
    where = f" It had reached {node}." if node else ""
    return ServerNotUsableError(
        f"The ComfyUI server at {url} stopped or was restarted before the image was finished.{where}",
        hint="Check the server's log: most often its memory ran out.",
        cause="server-gone",
        url=url,
    )


def not_comfyui_error(url: str, path: str, status: int, content_type: str, beginning: str) -> SmokeTestError:
    """Return the error for an answer that is not a ComfyUI server's.

    Parameters
    ----------
    url : str
        The server's address.
    path : str
        The requested path, "/system_stats".
    status : int
        HTTP status.
    content_type : str
        Its content type.
    beginning : str
        The beginning of its answer.
    """
    is_page = "html" in content_type.lower() or beginning.lstrip().lower().startswith(("<!doctype", "<html"))
    if status in {401, 403}:
        what, hint = "asks for a login", "Use a server without one, or omit `--server` to have one started."
    elif 300 <= status < 400:
        what, hint = "redirects to another address", "Give `--server` that address."
    elif status >= 500:
        what, hint = f"failed (HTTP {status})", "Check the server's log and restart it."
    elif is_page:
        what, hint = "answered with a web page", "Check the address and the port: another program listens there."
    else:
        said = f"HTTP {status}" if status != 200 else "something that is not ComfyUI's"
        what, hint = f"answered with {said}", "Check the address and the port: another program may listen there."
    return ServerNotUsableError(
        f"{url} is not a usable ComfyUI server: asked for {path}, it {what}.",
        hint=hint,
        cause="not-comfyui",
        url=url,
        status=status,
        content_type=shortened(content_type),
    )


# --- warnings in a server's log ----------------------------------------------------------------

_LOG_WARNINGS: tuple[tuple[str, re.Pattern[str], str, str, Remedy], ...] = (
    (
        "picture-not-a-number",
        re.compile(r"invalid value encountered in cast"),
        "The image contained values that are not numbers (NaN), which are black.",
        "Run `klein-setup verify`; if the files are correct, start ComfyUI with `--fp32-vae`.",
        "by-hand",
    ),
    (
        "weights-ignored",
        re.compile(r"unet unexpected:[^\n]*_scale"),
        "ComfyUI ignored the scales of the FP8 weights: the file lacks `_quantization_metadata`; the image is wrong.",
        _REPAIR,
        "repair",
    ),
    (
        "weights-missing",
        re.compile(r"(?:unet|clip) missing: \[[^\]]|Missing VAE keys \[[^\]]"),
        "A model file lacks weights that ComfyUI needs; the image may be wrong.",
        _REPAIR,
        "repair",
    ),
    (
        "slow-torch",
        re.compile(r"need pytorch with cu130 or higher"),
        "With this build of torch ComfyUI cannot use its fastest operations, which need CUDA 13.0.",
        "Run `klein-setup detect`, which says whether the driver supports a newer build.",
        "by-hand",
    ),
)


def findings_in_log(lines: Iterable[str], *, log_path: Path | None = None) -> tuple[Finding, ...]:
    """Return the warnings in a server's output, each kind once."""
    text = "\n".join(lines)
    return tuple(
        Finding(code=code, severity="warning", message=message, remedy=remedy, path=log_path, hint=hint)
        for code, pattern, message, hint, remedy in _LOG_WARNINGS
        if pattern.search(text)
    )
