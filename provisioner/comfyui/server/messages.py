"""Parse a ComfyUI server's WebSocket messages about a prompt, and collect them into one record.

Messages of another prompt, of an unknown type, or that are not JSON are ignored.  Times are those at which a message
arrived, in seconds since the prompt was sent; this module has no clock, its caller passes the time.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from provisioner.comfyui.server.api import NodeFailure, OutputFile, as_id, parse_failure, parse_files
from provisioner.core.exhaustive import assert_never
from provisioner.core.json_reader import as_dict, as_list, parse_object

MESSAGE_CHARACTERS = 4 * 1024 * 1024  # a traceback with its inputs; a node's output is a list of names
_MOST_FILES = 100  # the graph of the test image has one
_MOST_NODES = 1000  # and ids
_MOST_MARKS = 10_000  # progress reports kept, and steps distinguished: more than any real sampler has


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The prompt left the queue."""

    prompt_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """These nodes are not run: their results are cached."""

    prompt_id: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Executing:
    """A node begins; None where the server only reports that it is done."""

    prompt_id: str
    node_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of the running node."""

    prompt_id: str
    node_id: str
    value: float
    maximum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStates:
    """Every node that was reached, and whether it runs or has finished."""

    prompt_id: str
    running: tuple[str, ...]
    finished: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """An output node ended; the files it wrote."""

    prompt_id: str
    node_id: str
    files: tuple[OutputFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded:
    """The prompt ran to its end."""

    prompt_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A node raised."""

    prompt_id: str
    failure: NodeFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """Somebody stopped the prompt."""

    prompt_id: str
    node_id: str | None


Message = Started | Cached | Executing | Progress | NodeStates | Executed | Succeeded | Failed | Interrupted


def parse_message(text: str) -> Message | None:
    """Return the value of a text message; None where it is not about a prompt.

    Examples
    --------
    >>> parse_message('{"type": "execution_success", "data": {"prompt_id": "p"}}')
    Succeeded(prompt_id='p')
    >>> parse_message('{"type": "crystools.monitor", "data": {}}') is None
    True
    """
    body = as_dict(parse_object(text, most=MESSAGE_CHARACTERS))
    data = as_dict(body.get("data"))
    prompt_id = as_id(data.get("prompt_id"))
    kind = body.get("type")
    if prompt_id is None or not isinstance(kind, str):
        return None
    return _about_nodes(kind, prompt_id, data) or _about_the_prompt(kind, prompt_id, data)


def _about_the_prompt(kind: str, prompt_id: str, data: dict[str, object]) -> Message | None:
    if kind == "execution_start":
        return Started(prompt_id=prompt_id)
    if kind == "execution_cached":
        nodes = (as_id(each) for each in as_list(data.get("nodes")))
        return Cached(prompt_id=prompt_id, nodes=tuple(islice((each for each in nodes if each), _MOST_NODES)))
    if kind == "execution_success":
        return Succeeded(prompt_id=prompt_id)
    if kind == "execution_error":
        return Failed(prompt_id=prompt_id, failure=parse_failure(data))
    if kind == "execution_interrupted":
        return Interrupted(prompt_id=prompt_id, node_id=as_id(data.get("node_id")))
    return None


def _about_nodes(kind: str, prompt_id: str, data: dict[str, object]) -> Message | None:
    node_id = as_id(data.get("node"))
    if kind == "executing":
        return Executing(prompt_id=prompt_id, node_id=node_id)
    if kind == "executed" and node_id is not None:
        return Executed(prompt_id=prompt_id, node_id=node_id, files=parse_files(data.get("output")))
    if kind == "progress" and node_id is not None:
        value, maximum = _number(data.get("value")), _number(data.get("max"))
        if value is not None and maximum is not None:
            return Progress(prompt_id=prompt_id, node_id=node_id, value=value, maximum=maximum)
    if kind == "progress_state":
        states = {node: as_dict(each).get("state") for node, each in as_dict(data.get("nodes")).items()}
        return NodeStates(
            prompt_id=prompt_id,
            running=tuple(node for node, state in states.items() if state == "running"),
            finished=tuple(node for node, state in states.items() if state == "finished"),
        )
    return None


def _number(value: object) -> float | None:
    """Return a finite number; Python also reads NaN and Infinity from JSON."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


# --- the record --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTiming:
    """When a node ran, in seconds since the prompt was sent."""

    node_id: str
    began_s: float
    ended_s: float

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.ended_s - self.began_s


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMark:
    """One progress report: the node was at ``value`` of ``maximum``.  A server may skip steps (seen: 1, 3, 4)."""

    node_id: str
    value: float
    maximum: float
    at_s: float


End = Literal["success", "error", "interrupted"]


@dataclass(slots=True)
class RunRecord:
    """The record of one prompt, built from every message in the order of arrival."""

    prompt_id: str
    started_s: float | None = None  # when the prompt left the queue
    ended_s: float | None = None
    end: End | None = None
    failure: NodeFailure | None = None
    node_id: str | None = None  # the node that runs or ran last
    cached: tuple[str, ...] = ()
    files: list[OutputFile] = field(default_factory=list)
    marks: list[StepMark] = field(default_factory=list)
    _began: dict[str, float] = field(default_factory=dict)
    _ended: dict[str, float] = field(default_factory=dict)

    def add(self, message: Message, at_s: float) -> bool:
        """Add one message; return False where it is about another prompt."""
        if message.prompt_id != self.prompt_id:
            return False
        match message:
            case Started():
                self.started_s = at_s if self.started_s is None else self.started_s
            case Cached():
                self.cached = message.nodes
            case Executing():
                self._begin(message.node_id, at_s)
            case Progress():
                mark = StepMark(node_id=message.node_id, value=message.value, maximum=message.maximum, at_s=at_s)
                del self.marks[_MOST_MARKS - 1 :]
                self.marks.append(mark)
            case NodeStates():
                self._states(message, at_s)
            case Executed():
                new = (file for file in message.files if file not in self.files)
                self.files += islice(new, _MOST_FILES - len(self.files))
            case Succeeded():
                self._finish("success", at_s)
            case Failed():
                self.failure = message.failure
                self._finish("error", at_s)
            case Interrupted():
                self.node_id = message.node_id or self.node_id
                self._finish("interrupted", at_s)
            case _:
                assert_never(message)
        return True

    @property
    def timings(self) -> tuple[NodeTiming, ...]:
        """When each node ran, in the order in which they began; one without an end is left out."""
        return tuple(
            NodeTiming(node_id=node_id, began_s=began, ended_s=self._ended[node_id])
            for node_id, began in self._began.items()
            if node_id in self._ended
        )

    @property
    def has_run_a_node(self) -> bool:
        """Whether any node was run instead of taken from the cache."""
        return bool(self._began)

    def _begin(self, node_id: str | None, at_s: float) -> None:
        for running in self._began.keys() - self._ended.keys():
            if running != node_id:
                self._ended[running] = at_s
        if node_id is not None and (node_id in self._began or len(self._began) < _MOST_NODES):
            self._began.setdefault(node_id, at_s)
            self.node_id = node_id

    def _states(self, states: NodeStates, at_s: float) -> None:
        for node_id in states.running[: _MOST_NODES - len(self._began)]:
            self._began.setdefault(node_id, at_s)
            self.node_id = node_id
        for node_id in states.finished:  # a cached output node is "finished" without having begun
            if node_id in self._began:
                self._ended.setdefault(node_id, at_s)

    def _finish(self, end: End, at_s: float) -> None:
        self._begin(None, at_s)
        self.end = end
        self.ended_s = at_s


def step_seconds(node_id: str, timings: Collection[NodeTiming], marks: Collection[StepMark]) -> tuple[float, ...]:
    """Return the seconds of each step of a node that ended.

    The first one includes what the node does before its first report: a sampler loads the model onto the GPU.
    Steps between two progress reports share the time evenly, since the server did not report them separately.

    Examples
    --------
    >>> sampler = NodeTiming(node_id="11", began_s=1.0, ended_s=3.0)
    >>> seen = [StepMark(node_id="11", value=v, maximum=4, at_s=t) for v, t in ((1, 1.5), (3, 2.5), (4, 2.75))]
    >>> step_seconds("11", [sampler], seen)
    (0.5, 0.5, 0.5, 0.25)
    """
    before_s = next((each.began_s for each in timings if each.node_id == node_id), None)
    if before_s is None:
        return ()
    found: list[float] = []
    for mark in (each for each in marks if each.node_id == node_id):
        steps = int(mark.value) - len(found)
        if 0 < steps <= min(mark.maximum, _MOST_MARKS):
            found += [(mark.at_s - before_s) / steps] * steps
            before_s = mark.at_s
    return tuple(found)
