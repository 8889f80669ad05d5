"""Query a ComfyUI server, have it generate an image, a video or sound, follow its progress, and fetch what it made.

The WebSocket reports a prompt's progress quickly, ``/history`` reliably: what the first misses is read from the second,
so a broken connection costs timings but not the image.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

from provisioner.comfyui.server.api import (
    Graph,
    HistoryEntry,
    ListedModels,
    NodeFailure,
    OutputFile,
    ServerFacts,
    knows_node,
    parse_acceptance,
    parse_choices,
    parse_folder_paths,
    parse_history,
    parse_queue,
    parse_refusal,
    parse_system_stats,
)
from provisioner.comfyui.server.failures import (
    gone_error,
    interrupted_error,
    node_error,
    out_of_time_error,
    refusal_error,
)
from provisioner.comfyui.server.known_failures import known_failures
from provisioner.comfyui.server.launch import ServerAddress, parse_address
from provisioner.comfyui.server.messages import Executing, Message, NodeTiming, Progress, RunRecord, Started, StepMark
from provisioner.comfyui.server.server_process import ServerProcess
from provisioner.comfyui.server.web import MEGABYTE, Web
from provisioner.comfyui.server.websocket import Listener
from provisioner.core.errors import GenerationError, ServerNotUsableError
from provisioner.core.json_reader import as_dict
from provisioner.core.ports import Cancelled

_TICK_S = 0.25  # between two checks of cancellation, the clock and the server's process
_POLL_S = 0.5  # between two requests to /history once the WebSocket is lost
_PATIENCE_S = 10.0
_HISTORY_S = 10.0  # for one answer about a prompt
_ACCEPT_S = 120.0  # for accepting a prompt: a busy server is slow to answer
_DEATH_S = 1.0  # after its connections broke, until its process is seen to have ended
_GOODBYE_S = 3.0  # for telling a server to stop
_QUEUE_BYTES = 32 * MEGABYTE  # every waiting prompt with its graph and workflow
_CLASSES_BYTES = 128 * MEGABYTE  # 1.6 MB without custom nodes and files; lists of files stand in it repeatedly
_IMAGE_BYTES = 128 * MEGABYTE  # 4096 x 4096 pixels in 16 bits
_MEDIA_BYTES = 256 * MEGABYTE  # a minute at 32 Mbit/s; held in memory until it is written
_IMAGE_S = 60.0  # until an image has arrived
_MEDIA_S = 300.0
_MOST_MEDIA = 8  # videos and sounds of one prompt that are fetched


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationProgress:
    """The progress of a prompt; sent with every report of the server."""

    at_s: float  # since the prompt was sent
    node_id: str | None  # None: it left the queue, no node runs yet
    node_class: str | None
    value: float | None = None  # steps done, where the node reports them
    maximum: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What was generated.  Times are seconds since the prompt was sent, by our clock."""

    image: bytes | None  # the content of the server's file; None: there is none, but `media`
    files: tuple[OutputFile, ...]  # what was saved, else previews
    prompt_id: str
    was_cached: bool  # nothing ran: the server returned an earlier image
    was_followed: bool  # False: the WebSocket was lost, timings may be missing
    total_s: float  # until the server reported the end, without fetching the image
    queued_s: float | None = None  # until it left the queue
    cached: tuple[str, ...] = ()  # nodes that were not run
    nodes: tuple[NodeTiming, ...] = ()  # nodes that were, in order
    steps: tuple[StepMark, ...] = ()  # every progress report, in order

    @property
    def media(self) -> tuple[OutputFile, ...]:
        """The videos and sounds, for `ComfyClient.fetch`; at most 8."""
        return tuple(each for each in self.files if each.kind != "image")[:_MOST_MEDIA]


class ComfyClient:
    """A client of one server, which klein-setup started if its `process` is given.

    Parameters
    ----------
    url : str
        ``http://host:port``.
    cancelled : callable
        Called often; True raises KeyboardInterrupt from the current call.
    process : ServerProcess, optional
        The server's process: its end is noticed at once and explained from its log.
    patience_s : float
        Seconds of silence on the WebSocket after which ``/history`` is read, since a message may have been lost;
        seconds for which a server may not answer, or not know the prompt, before it counts as gone; and seconds
        for which ``/history`` may stay empty after the end.

    Raises
    ------
    UsageError
        `url` is not an http(s) address.
    """

    def __init__(
        self,
        url: str,
        *,
        cancelled: Cancelled,
        process: ServerProcess | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self.address: ServerAddress = parse_address(url)
        self.patience_s = patience_s
        self._cancelled = cancelled
        self._process = process
        self._web = Web(self.address, cancelled=cancelled)

    def __enter__(self) -> ComfyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the server is not changed."""
        self._web.close()

    # Every method below raises ServerNotUsableError where nothing answers, or not as a ComfyUI server does, and
    # KeyboardInterrupt where the run was cancelled.

    def system_stats(self) -> ServerFacts:
        """Return the server's versions, devices and packages."""
        return parse_system_stats(self._web.get_json("/system_stats"))

    def folder_paths(self) -> dict[str, tuple[str, ...]]:
        """Return the folders the server reads for each kind of model, in its order; empty where it reports none."""
        answer = self._web.get("/internal/folder_paths")
        return parse_folder_paths(answer.json()) if answer.status == 200 else {}

    def listed_models(self, node_classes: Iterable[str] = ()) -> ListedModels:
        """Return the models the loaders offer, and which of the `node_classes` the server lacks."""
        loaders = {name: self._object_info(name) for name in ("UNETLoader", "CLIPLoader", "VAELoader")}
        others = [name for name in dict.fromkeys(node_classes) if name not in loaders]
        answers = loaders | {name: self._object_info(name) for name in others}
        return ListedModels(
            diffusion_models=parse_choices(loaders["UNETLoader"], "UNETLoader", "unet_name"),
            text_encoders=parse_choices(loaders["CLIPLoader"], "CLIPLoader", "clip_name"),
            vaes=parse_choices(loaders["VAELoader"], "VAELoader", "vae_name"),
            clip_types=parse_choices(loaders["CLIPLoader"], "CLIPLoader", "type"),
            missing_nodes=tuple(name for name, answer in answers.items() if not knows_node(answer, name)),
        )

    def node_classes(self) -> dict[str, object]:
        """Return what the server says of every class of node that it has."""
        return as_dict(self._web.get_json("/object_info", timeout_s=_ACCEPT_S, most_bytes=_CLASSES_BYTES))

    def template(self, name: str) -> bytes | None:
        """Return a workflow template that the server offers, as it is in its packages; None where it has none."""
        answer = self._web.get(f"/templates/{name}.json")
        return answer.data if answer.status == 200 and isinstance(answer.json(), dict) else None

    def _object_info(self, node_class: str) -> object:
        return self._web.get_json(f"/object_info/{node_class}")

    def free(self) -> None:
        """Make the server unload its models and empty its cache.

        A loader that is cached does not notice that its file was replaced (seen with 0.33.0).
        """
        answer = self._web.post("/free", {"unload_models": True, "free_memory": True})
        if answer.status != 200:
            raise self._web.wrong("/free", answer)

    def generate(
        self,
        graph: Graph,
        *,
        timeout_s: float = 1800.0,
        on_progress: Callable[[GenerationProgress], None] = lambda progress: None,
    ) -> Generated:
        """Return what a prompt makes, after sending it and following it to its end: the first image, names of the rest.

        Parameters
        ----------
        graph : mapping
            The prompt in API form.
        timeout_s : float
            Seconds until the prompt must have ended, including its wait in the queue.
        on_progress : callable
            Called on this thread with every progress report.

        Returns
        -------
        Generated
            The image's bytes, the names of videos and sounds, and the timings.  Previews count where nothing is saved.

        Raises
        ------
        GenerationError, ModelNotListedError, MemoryExhaustedError
            Rejected, failed, interrupted, or out of time; the message names the cause.
        ServerNotUsableError
            The server stopped answering.
        KeyboardInterrupt
            The run was cancelled; the server was told to drop the prompt.
        """
        listener = Listener(self.address, client_id := uuid.uuid4().hex)
        sent_at = time.monotonic()
        run: _Run | None = None
        try:
            run = _Run(self, graph, RunRecord(self._send(graph, client_id)), listener, sent_at, on_progress)
            try:
                run.follow(timeout_s, self._cancelled)
                return run.result()
            except BaseException:
                if not run.has_ended:
                    self._drop(run.record.prompt_id)
                raise
        except ServerNotUsableError:
            self._wait_for_death(run.node if run else None)
            raise
        finally:
            listener.close()

    def fetch(self, file: OutputFile) -> bytes:
        """Return the content of a file that the server wrote.

        Raises
        ------
        GenerationError
            It is not there, is empty, or has more than 128 MiB (a video or a sound: 256 MiB).
        """
        query = {"filename": file.filename, "subfolder": file.subfolder, "type": file.folder}
        is_image = file.kind == "image"
        most = _IMAGE_BYTES if is_image else _MEDIA_BYTES
        answer = self._web.get("/view", query=query, timeout_s=_IMAGE_S if is_image else _MEDIA_S, most_bytes=most)
        if answer.status != 200 or not answer.data:
            raise GenerationError(
                f"The {file.kind} was generated but cannot be fetched: the server answers HTTP {answer.status}"
                f"{'' if answer.data else ' without a byte'}.",
                hint="Check that the server may write to its output folder, and that the disk is not full.",
                cause="picture-not-there",
            )
        return answer.data

    @property
    def web(self) -> Web:
        """HTTP access to the server, for following one prompt."""
        return self._web

    def raise_death(self, node: str | None) -> None:
        """Raise where the server is our own and has ended."""
        death = None if self._process is None else self._process.death(node=node)
        if death is not None:
            raise death

    def failure(self, failure: NodeFailure, graph: Graph) -> Exception:
        """Return the error for a node that raised."""
        log_path = None if self._process is None else self._process.log_path
        return node_error(failure, graph, known_failures(), log_path=log_path)

    def out_of_time(self, timeout_s: float, node_id: str | None, graph: Graph) -> Exception:
        """Return the error for a prompt that did not end in time."""
        lines = () if self._process is None else self._process.output()
        return out_of_time_error(timeout_s, node_id, graph, known_failures(), lines)

    def _send(self, graph: Graph, client_id: str) -> str:
        answer = self._web.post("/prompt", {"prompt": graph, "client_id": client_id}, timeout_s=_ACCEPT_S)
        body = answer.json()
        if answer.status == 200:
            return parse_acceptance(body)
        if not isinstance(body, dict):
            raise self._web.wrong("/prompt", answer)
        raise refusal_error(parse_refusal(answer.status, body), graph)

    def _wait_for_death(self, node: str | None) -> None:
        """Wait briefly for a server of ours whose connections broke to end, and raise why it ended."""
        deadline = time.monotonic() + _DEATH_S
        while self._process is not None and time.monotonic() < deadline:
            self.raise_death(node)
            time.sleep(0.05)

    def _drop(self, prompt_id: str) -> None:
        """Try to tell the server to drop this prompt."""
        if self._process is not None and self._process.returncode is not None:
            return
        web = Web(self.address, cancelled=lambda: False)  # the run is cancelled: that must not stop this too
        try:
            web.post("/queue", {"delete": [prompt_id]}, timeout_s=_GOODBYE_S)
            web.post("/interrupt", {"prompt_id": prompt_id}, timeout_s=_GOODBYE_S)
        except ServerNotUsableError:
            pass  # it is gone or hangs: the caller needs the error that stopped us
        finally:
            web.close()


class _Run:
    """One prompt being followed."""

    def __init__(
        self,
        client: ComfyClient,
        graph: Graph,
        record: RunRecord,
        listener: Listener,
        sent_at: float,
        on_progress: Callable[[GenerationProgress], None],
    ) -> None:
        self.record = record
        self._client = client
        self._web = client.web
        self._graph = graph
        self._listener = listener
        self._sent_at = sent_at
        self._on_progress = on_progress
        self._history: HistoryEntry | None = None
        self._next_poll = 0.0
        self._unknown_since: float | None = None  # since when the server does not know the prompt, or does not answer

    def follow(self, timeout_s: float, cancelled: Cancelled) -> None:
        """Wait for the end of the prompt; raise if it failed."""
        while not self.has_ended:
            if cancelled():
                raise KeyboardInterrupt
            if self._seconds() > timeout_s:
                raise self._client.out_of_time(timeout_s, self.record.node_id, self._graph)
            message = self._listener.next_message(_TICK_S)
            if message is not None:
                self._take(message)
                continue
            self._client.raise_death(self.node)
            if not self._listener.is_open:
                time.sleep(_TICK_S)
            self._ask_if_due()
        self._judge()
        while not self._files and self._seconds_since_end() < self._client.patience_s:
            if cancelled():
                raise KeyboardInterrupt
            self._history = self._ask_history()
            if not self._files:
                time.sleep(_TICK_S)

    def result(self) -> Generated:
        """Return the fetched image, the names of what else was made, and the timings."""
        record, files = self.record, self._files
        if not files:
            raise GenerationError(
                "The server finished but names no image, video or sound.",
                hint="Check that the graph has a node that saves one, and look at the server's log.",
                cause="no-picture",
            )
        ended_s = self._seconds() if record.ended_s is None else record.ended_s
        first = next((each for each in files if each.kind == "image"), None)
        cached = record.cached or (self._history.cached if self._history else ())
        was_followed = record.end is not None and self._listener.is_whole
        return Generated(
            image=None if first is None else self._client.fetch(first),
            files=tuple(files),
            prompt_id=record.prompt_id,
            was_cached=not record.has_run_a_node and bool(cached) and (was_followed or set(self._graph) <= set(cached)),
            was_followed=was_followed,
            total_s=ended_s,
            queued_s=record.started_s,
            cached=cached,
            nodes=record.timings,
            steps=tuple(record.marks),
        )

    @property
    def _files(self) -> list[OutputFile]:
        """What was saved, else what is shown as a preview."""
        files = self.record.files or (list(self._history.files) if self._history else [])
        return [each for each in files if each.folder == "output"] or files

    @property
    def node(self) -> str | None:
        """The node that runs or ran last, as text."""
        node_id = self.record.node_id
        node_class = self._graph.get(node_id or "", {}).get("class_type")
        return f"{node_class} (node {node_id})" if node_class else None

    @property
    def has_ended(self) -> bool:
        """Whether the server has finished the prompt or it failed."""
        return self.record.end is not None or self._history is not None

    def _seconds(self) -> float:
        return time.monotonic() - self._sent_at

    def _seconds_since_end(self) -> float:
        return 0.0 if self.record.ended_s is None else self._seconds() - self.record.ended_s

    def _take(self, message: Message) -> None:
        at_s = self._seconds()
        if not self.record.add(message, at_s):
            return
        node_id = getattr(message, "node_id", None)
        node_class = self._graph.get(node_id or "", {}).get("class_type")
        shown = str(node_class) if node_class else None
        match message:
            case Started():
                self._on_progress(GenerationProgress(at_s=at_s, node_id=None, node_class=None))
            case Executing(node_id=str()):
                self._on_progress(GenerationProgress(at_s=at_s, node_id=node_id, node_class=shown))
            case Progress():
                self._on_progress(
                    GenerationProgress(
                        at_s=at_s, node_id=node_id, node_class=shown, value=message.value, maximum=message.maximum
                    )
                )
            case _:
                pass

    def _ask_if_due(self) -> None:
        now = time.monotonic()
        patience_s = self._client.patience_s
        is_silent = now - self._listener.last_sign > patience_s
        if (self._listener.is_open and not is_silent) or now < self._next_poll:
            return
        self._next_poll = now + (patience_s if self._listener.is_open else min(_POLL_S, patience_s))
        try:
            self._history = self._ask_history()
            is_known = self._history is not None or self.record.prompt_id in parse_queue(
                self._web.get_json("/queue", timeout_s=_HISTORY_S, most_bytes=_QUEUE_BYTES)
            )
        except ServerNotUsableError as error:
            is_known = error.context.get("cause") == "slow-server"  # busy, not gone
        if is_known:
            self._unknown_since = None
        elif self._unknown_since is None:
            self._unknown_since = now
        elif now - self._unknown_since > patience_s:
            raise gone_error(self._client.address.url, self.node)

    def _ask_history(self) -> HistoryEntry | None:
        prompt_id = self.record.prompt_id
        return parse_history(self._web.get_json(f"/history/{prompt_id}", timeout_s=_HISTORY_S), prompt_id)

    def _judge(self) -> None:
        """Raise if the prompt failed."""
        end = self.record.end or (self._history.end if self._history else None)
        failure = self.record.failure or (self._history.failure if self._history else None)
        if end == "interrupted":
            node_id = self.record.node_id or (self._history.node_id if self._history else None)
            raise interrupted_error(node_id, self._graph)
        if end == "error" and failure is not None:
            raise self._client.failure(failure, self._graph)
        if self.record.ended_s is None:
            self.record.ended_s = self._seconds()
