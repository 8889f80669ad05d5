"""Errors for every known failure of a ComfyUI server, each with a cause and a next step.

Works on the server's output, the graph it was given and the catalogue of known failures.  For programs an error's
context holds ``cause``, the kebab-case name of the failure, and ``layer``, what is at fault.  An unknown failure is
shown with its type, its first line and the log.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioner.comfyui.server.api import Graph, NodeComplaint, NodeFailure, Refusal, shortened
from provisioner.comfyui.server.catalogue import Catalogue, Layer, Match
from provisioner.comfyui.server.launch import ServerAddress
from provisioner.core.errors import (
    GenerationError,
    MemoryExhaustedError,
    ModelNotListedError,
    ServerNotUsableError,
    SmokeTestError,
)
from provisioner.core.json_reader import as_dict
from provisioner.core.models import Finding
from provisioner.core.redact import printable, redact
from provisioner.core.suggestions import did_you_mean

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

    def error(
        self,
        kind: type[SmokeTestError],
        cause: str,
        layer: Layer | None,
        message: str,
        hint: str,
        flags: Sequence[str] = (),
    ) -> SmokeTestError:
        return kind(message, hint=hint, cause=cause, **_said(layer, flags), **self.context)


def node_error(
    failure: NodeFailure, graph: Graph, catalogue: Catalogue, *, log_path: Path | None = None
) -> SmokeTestError:
    """Return the error for a node that raised while the prompt ran.

    Parameters
    ----------
    failure : NodeFailure
        The server's report.
    graph : mapping
        The prompt, which names the files the node uses.
    catalogue : Catalogue
        The known failures.
    log_path : Path, optional
        File with the server's output.

    Returns
    -------
    SmokeTestError
        Not raised.  ``cause``, ``layer`` (what is at fault, where it is known), ``node``, ``node_class``,
        ``exception_type`` and, where the graph names them, ``files`` are in its context.
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
    by_graph = (found for each in _GRAPH_CASES if (found := each(case)) is not None)
    return next(by_graph, None) or _known(case, graph, catalogue) or _unknown(case, log_path)


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
        "model-pairing",
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
    if wanted in _WANTED and loader.clip_type not in (None, "flux2"):
        return case.error(
            GenerationError,
            "wrong-clip-type",
            "model-pairing",
            f"The CLIPLoader reads {loader.words} as `{loader.clip_type}`, which gives {got} values where the model "
            f"needs {wanted}.",
            "Set the type of the CLIPLoader to `flux2`.",
        )
    if wanted == 3 * got:  # the right encoder, but only one of its layers
        return case.error(
            GenerationError,
            "comfyui-too-old",
            "comfyui",
            f"ComfyUI passes on one layer of {loader.words} ({got} values) where the model needs three ({wanted}).",
            _UPDATE,
        )
    is_known = wanted in _WANTED
    expected, file = _WANTED.get(wanted, (f"an encoder of width {wanted}", "the one the model was made for"))
    return case.error(
        GenerationError,
        "wrong-text-encoder",
        "model-pairing",
        f"{_capital(loader.words)} does not fit {case.file_of('UNETLoader', 'the diffusion model')}: "
        f"the model needs {f'{expected} ({wanted} values)' if is_known else expected}, the encoder gives {got}"
        f"{f', which is {_ENCODERS[got]}' if got in _ENCODERS else ''}.",
        f"Use {file} as the text encoder. {_REPAIR}",
    )


def _file_gone(case: _Case) -> SmokeTestError | None:
    is_gone = case.failure.exception_type == "FileNotFoundError"
    if not is_gone or case.failure.node_class not in FILE_INPUTS:
        return None
    what = f"{_capital(case.nearest)} was listed but does not exist any more."
    return case.error(ModelNotListedError, "missing-file", "model-files", what, _REPAIR)


_GRAPH_CASES: tuple[Callable[[_Case], SmokeTestError | None], ...] = (_flux1_vae, _shapes, _file_gone)
"""Failures that only the graph explains; all others are rows of the catalogue."""


def _known(case: _Case, graph: Graph, catalogue: Catalogue) -> SmokeTestError | None:
    """Return the error for a failure that the catalogue explains."""
    failure = case.failure
    behind = (str(graph[each].get("class_type")) for each in _upstream(graph, failure.node_id) if each in graph)
    matches = catalogue.matches(
        "node-error",
        case.text,
        exception=failure.exception_type,
        classes=(failure.node_class, *behind),
    )
    if not matches:
        return None
    row = matches[0].failure
    message = _sentence(
        matches[0],
        where=f" in {_node(case)}",
        file=case.nearest,
        model=case.file_of("UNETLoader", "the diffusion model"),
        message=shortened(failure.exception_message),
    )
    kind = MemoryExhaustedError if row.is_about_memory else GenerationError
    return case.error(kind, row.cause, row.layer, message, row.remedy, row.flags)


_NOT_NAMED = "(not named)"


def _sentence(
    match: Match, *, where: str = "", file: str = "a model file", model: str = "the diffusion model", message: str = ""
) -> str:
    groups = [shortened(_unescaped(each)) for each in match.groups]
    groups += [_NOT_NAMED] * 4
    said = match.failure.sentence.format(*groups, where=where, file=file, model=model, message=message)
    return _capital(said) if match.failure.sentence.startswith("{file}") else said  # "torch" stays as it is


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
        None,
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
            layer="model-files",
            **context,
        )
    first = refusal.complaints[0]
    is_old = first.kind == "value_not_in_list" and first.input_name == "type" and first.node_class == "CLIPLoader"
    node = graph.get(first.node_id, {})
    return GenerationError(
        " ".join(sentences),
        hint=_UPDATE if is_old else f"Correct node {first.node_id} ({node.get('class_type', first.node_class)}).",
        cause="comfyui-too-old" if is_old else "bad-value",
        **_said("comfyui" if is_old else None),
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


def nodes_missing_error(
    missing: Sequence[str], *, version: str | None = None, since: str | None = None
) -> SmokeTestError:
    """Return the error for node classes that the server lacks; `since` is the first release that loads the model."""
    names = ", ".join(shortened(each) for each in missing)
    which = "ComfyUI" if version is None else f"ComfyUI {version}"
    return ModelNotListedError(
        f"{which} does not have the node{'s' if len(missing) > 1 else ''} {names}.",
        hint=_UPDATE if since is None else f"Update ComfyUI to {since} or newer.",
        cause="missing-node",
        layer="comfyui",
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


def out_of_time_error(
    timeout_s: float, node_id: str | None, graph: Graph, catalogue: Catalogue, lines: Iterable[str] = ()
) -> SmokeTestError:
    """Return the error for a prompt that took longer than its time limit; `lines` is the server's output."""
    node_class = graph.get(node_id or "", {}).get("class_type")
    where = f"; it had reached {node_class} (node {node_id})" if node_class else "; it had not begun"
    message = f"No image was generated within {timeout_s:g} s{where}."
    hint = "Check the server's log. On a CPU, or while other prompts wait in its queue, allow more time."
    matches = catalogue.matches("hang", "\n".join(lines)) if node_id else ()
    if not matches:
        return GenerationError(message, hint=hint, cause="timeout")
    row = matches[0].failure
    said = f"{message} {_sentence(matches[0])}"
    return GenerationError(said, hint=f"{hint} {row.remedy}", cause="timeout", **_said(row.layer, row.flags))


# --- a server that does not answer-------------------------------------------------------------


def last_lines(lines: Iterable[str]) -> list[str]:
    """Return the end of a server's output, redacted for showing."""
    shown = [redact(printable(line)).rstrip() for line in lines]
    return [line for line in shown if line.strip()][-_SHOWN_LINES:]


def is_port_taken(lines: Iterable[str], catalogue: Catalogue) -> bool:
    """Whether a server's output says that its port cannot be used: another program has it, or the system."""
    matches = catalogue.matches("server-death", "\n".join(lines))
    return any(each.failure.layer == "port" for each in matches)


def death_error(
    returncode: int,
    lines: Sequence[str],
    catalogue: Catalogue,
    *,
    log_path: Path,
    node: str | None = None,
    is_starting: bool = False,
) -> SmokeTestError:
    """Return the error for a server of ours that ended on its own.

    Parameters
    ----------
    returncode : int
        Its exit status; negative is the signal that ended it.
    lines : sequence of str
        The end of its output.
    catalogue : Catalogue
        The known failures.
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
    matches = catalogue.matches("server-death", "\n".join(lines), exit_status=returncode)
    if matches:
        row = matches[0].failure
        kind = MemoryExhaustedError if row.is_about_memory else ServerNotUsableError
        return kind(
            f"ComfyUI ended {when}. {_sentence(matches[0])}",
            hint=row.remedy,
            cause=row.cause,
            **_said(row.layer, row.flags),
            **context,
        )
    said = f": {shortened(shown[-1])}" if shown else ", without output"
    return ServerNotUsableError(
        f"ComfyUI ended {when} with {_exit_in_words(returncode)}{said}",
        hint=f"Read the log at {log_path}.",
        cause="server-died",
        **context,
    )


def rejected_options_error(
    lines: Sequence[str], *, version: str | None, origin: str, known: Collection[str], log_path: str
) -> SmokeTestError:
    """Return the error for options of the user's that this ComfyUI does not take.

    Parameters
    ----------
    lines : sequence of str
        The end of its output, in which argparse names the option.
    version : str or None
        Of ComfyUI.
    origin : str
        Where the options come from, as a clause.
    known : collection of str
        The options that this ComfyUI has; empty where that is not known.
    log_path : str
        File with its output.
    """
    which = "ComfyUI" if version is None else f"ComfyUI {version}"
    text = "\n".join(lines)
    unknown = re.search(r"error: unrecognized arguments: ([^\n]+)", text)
    wrong = re.search(r"error: argument (--[\w-]+)[^:\n]{0,300}: ([^\n]+)", text)
    if unknown is not None:
        words = unknown[1].split()
        names = [word.partition("=")[0] for word in words if word.startswith("-")] or words[:1]
        meant = did_you_mean(names[0], known) if len(names) == 1 else ""
        shown = " and ".join(map(shortened, names))
        message = f"{which} has no option {shown}, which stands in {origin}.{meant}"
    elif wrong is not None:
        names = [wrong[1]]
        message = f"{which} does not take {wrong[1]} as it stands in {origin}: {shortened(wrong[2])}."
    else:
        names = []
        message = f"{which} does not take the options of {origin}."
    return ServerNotUsableError(
        message,
        hint="Correct or leave out that option there; another release of ComfyUI may have it.",
        cause="unknown-option",
        version=version,
        last_lines=list(lines),
        log_path=log_path,
        **_said("start-options", names),
    )


def _unescaped(text: str) -> str:
    r"""Return a path as it is spelled, where Python showed it as a literal, with each backslash doubled.

    >>> print(_unescaped(r"C:\\ComfyUI\\main.py"), _unescaped(r"\\host\share"))
    C:\ComfyUI\main.py \\host\share
    """
    is_literal = all(len(run) % 2 == 0 for run in re.findall(r"\\+", text))
    return text.replace("\\\\", "\\") if is_literal else text


def _said(layer: Layer | None, flags: Sequence[str] = ()) -> dict[str, object]:
    """Return what an error's context says of what is at fault, and ComfyUI's options that its hint names."""
    return {**({} if layer is None else {"layer": layer}), **({"flags": list(flags)} if flags else {})}


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


def too_large_error(url: str, path: str, most_bytes: int) -> SmokeTestError:
    """Return the error for an answer with more bytes than are read."""
    return ServerNotUsableError(
        f"The answer of {url} to {path} has more than {most_bytes:,} bytes.",
        hint="Make less with the workflow; if it is no file that it made, check that a ComfyUI server answers there.",
        cause="answer-too-large",
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


def findings_in_log(lines: Iterable[str], catalogue: Catalogue, *, log_path: Path | None = None) -> tuple[Finding, ...]:
    """Return the warnings in a server's output, each kind once."""
    found = {each.failure.cause: each for each in reversed(catalogue.matches("log-line", "\n".join(lines)))}
    return tuple(
        Finding(
            code=code,
            severity="warning",
            message=_sentence(match),
            remedy=match.failure.action,
            path=log_path,
            hint=match.failure.remedy,
        )
        for code, match in reversed(found.items())
    )
