"""A loopback server that answers as a recorded ComfyUI did: HTTP, the WebSocket, and the faults a test switches on.

It replays `tests/contract/data/comfyui-0.33.0`.  Run as a program it is a stand-in for ComfyUI's ``main.py``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CARD = "cuda:0 NVIDIA GeForce RTX 4070 : cudaMallocAsync"
RECORDED_FOLDER = "/opt/ComfyUI-data"  # stands in the recordings for the folder of the server
RECORDINGS = Path(__file__).resolve().parents[1] / "contract" / "data" / "comfyui-0.33.0"
IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256))  # what /view hands out; nobody here decodes it
_WEBSOCKET_KEY = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


def recording(name: str) -> Any:  # noqa: ANN401 - whatever was recorded
    """Return a recorded exchange: a list of entries, or one answer."""
    return json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))


def whole_graph() -> dict[str, Any]:
    """Return the graph of the recorded runs."""
    graph: dict[str, Any] = recording("ok_fp8")[0]["request"]
    return graph


def graph_of(name: str) -> dict[str, Any]:
    """Return the graph that was sent in a recording; the long ones were recorded without it."""
    graph: dict[str, Any] = recording(name)[0].get("request") or whole_graph()
    return graph


@dataclass
class Faults:
    """What goes wrong, beside what was recorded."""

    drop_socket_after: int | None = None  # messages about the prompt, then the WebSocket breaks
    refuses_socket: bool = False
    goes_silent_after: int | None = None  # messages, then nothing more, the connection stays
    empty_histories: int = 0  # so many answers of /history are {}
    forgets: bool = False  # /history and /queue never heard of the prompt
    never_ends: bool = False  # the queue keeps the prompt, the end is not said
    has_noise: bool = False  # previews, unknown messages, other prompts' messages in between
    dies_after: int | None = None  # messages, then the process ends without a word (only as a program)
    exit_status: int = 1
    last_words: str = ""
    is_a_web_page: bool = False
    answers: dict[str, tuple[int, str, bytes]] = field(default_factory=dict)  # path -> another answer
    files_only_in_history: bool = False
    files: dict[str, bytes] = field(default_factory=dict)  # by name: what /view hands out in place of an image
    delay_s: float = 0.0  # between two messages
    missing: tuple[str, ...] = ()  # names that no loader lists
    is_on_processor: bool = False  # a stand-in says that it uses the card unless it was told not to
    second: Faults | None = None  # what goes wrong from the second prompt on, in place of these
    cards: dict[str, tuple[str, int]] = field(default_factory=dict)  # UUID -> name and memory of each card here
    draws: str = "as asked"  # or "black", "one colour", "another seed", "half an image"


def drawn_png(width: int, height: int, seed: int, kind: str = "as asked") -> bytes:
    """Return a PNG with the noise of a seed, and the seed in its text as ComfyUI writes the graph; small to decode."""
    level = {"black": 0, "one colour": 120}.get(kind)
    row = random.Random(seed).randbytes(3 * width) if level is None else bytes([level]) * (3 * width)
    rows = b"".join(b"\0" + row[shift:] + row[:shift] for shift in range(height)) if width * height < 1 << 18 else None
    rows = rows or (b"\0" + row) * height
    told = seed + 1 if kind == "another seed" else seed
    graph = {"10": {"class_type": "RandomNoise", "inputs": {"noise_seed": told}}}
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"tEXt", b"prompt\0" + json.dumps(graph).encode()),
        (b"IDAT", zlib.compress(rows, 1)),
        (b"IEND", b""),
    )
    whole = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return whole[: len(whole) // 2] if kind == "half an image" else whole


class ReplayServer:
    """Replays one recording to whoever sends a prompt."""

    def __init__(
        self,
        name: str = "ok_fp8_h200_warm_1024",
        *,
        faults: Faults | None = None,
        port: int = 0,
        folder: Path | None = None,
        argv: list[str] | None = None,
    ) -> None:
        self.entries: list[dict[str, Any]] = recording(name)
        self.folder = folder  # ComfyUI's own, in place of the recorded one; None: /view hands out IMAGE
        self.faults = faults or Faults()
        self.requests: list[tuple[str, str, Any]] = []  # method, path with query, decoded body
        self.argv = argv  # in place of the recorded one
        self.interrupted = threading.Event()
        self.sockets: dict[str, socket.socket] = {}
        self.histories = 0
        self.is_over = False
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self._http.replay = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def __enter__(self) -> ReplayServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def prompt_id(self) -> str:
        return str(self.entries[0]["body"]["prompt_id"])

    def close(self) -> None:
        self.interrupted.set()
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self.sockets.values()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._thread.join(timeout=5)

    def asked(self, method: str, path: str) -> list[Any]:
        """Return the bodies of the requests to a path."""
        return [body for verb, where, body in self.requests if verb == method and where.partition("?")[0] == path]

    # --- what is answered ----------------------------------------------------------------------

    def answer(self, method: str, target: str, body: Any) -> tuple[int, str, bytes]:  # noqa: ANN401 - JSON
        self.requests.append((method, target, body))
        path = urlsplit(target).path
        if path in self.faults.answers:
            return self.faults.answers[path]
        if self.faults.is_a_web_page:
            return 200, "text/html", b"<!DOCTYPE html><html><body>It works!</body></html>"
        if method == "POST":
            return self._answer_post(path, body)
        if path == "/view":
            (name,) = parse_qs(urlsplit(target).query)["filename"]
            return 200, "image/png", self.faults.files.get(name) or self._image()
        if path == "/queue":
            return _as_json(200, self._queue())
        if path.startswith("/history/"):
            return _as_json(200, self._history())
        return self._recorded(path)

    def _image(self) -> bytes:
        """Return the constant one, or for a server with its own folder an image for the last graph."""
        if self.folder is None:
            return IMAGE
        graph = self.asked("POST", "/prompt")[-1]["prompt"]
        inputs = {node["class_type"]: node["inputs"] for node in graph.values()}
        size = inputs["EmptyFlux2LatentImage"]
        return drawn_png(size["width"], size["height"], inputs["RandomNoise"]["noise_seed"], self.faults.draws)

    def _answer_post(self, path: str, body: Any) -> tuple[int, str, bytes]:  # noqa: ANN401 - JSON
        if path == "/prompt":
            first = self.entries[0]
            self.is_over = False
            if len(self.asked("POST", "/prompt")) > 1 and self.faults.second is not None:
                self.faults = self.faults.second
            if first["status"] == 200:
                connection = self.sockets.get(str(body.get("client_id")))
                threading.Thread(target=self._play, args=(connection,), daemon=True).start()
            return _as_json(first["status"], first["body"])
        if path == "/interrupt":
            self.interrupted.set()
        if path in {"/interrupt", "/free", "/queue"}:
            return 200, "text/plain", b""
        return 404, "text/plain", b"404: Not Found"

    def _recorded(self, path: str) -> tuple[int, str, bytes]:
        if path == "/object_info":
            return 200, "application/json", (RECORDINGS / "GET_parts_of_object_info.json").read_bytes()
        name = "GET" + path.replace("/", "_")
        if not (RECORDINGS / f"{name}.json").exists():
            known = path.startswith("/object_info/")
            return _as_json(200, _plain_node(path.rpartition("/")[2])) if known else (404, "text/plain", b"Not Found")
        found = recording(name)
        if path == "/system_stats" and self.argv is not None:
            found["body"]["system"]["argv"] = self.argv
            if self.folder is not None and "--cpu" not in self.argv and not self.faults.is_on_processor:
                found["body"]["devices"][0].update(name=CARD, type="cuda", index=0)
                seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
                if seen in self.faults.cards:
                    name, total = self.faults.cards[seen]
                    found["body"]["devices"][0].update(name=f"cuda:0 {name} : native", vram_total=total)
        if path == "/internal/folder_paths" and self.folder is not None:
            here = self.folder.as_posix()
            found["body"] = {
                kind: [each.replace(RECORDED_FOLDER, here) for each in folders]
                for kind, folders in found["body"].items()
            }
        for node in found["body"].values() if path.startswith("/object_info/") else ():
            for choices in node["input"]["required"].values():
                if isinstance(choices[0], list):
                    choices[0] = [each for each in choices[0] if each not in self.faults.missing]
        return _as_json(found["status"], found["body"])

    def _queue(self) -> dict[str, Any]:
        is_running = not self.is_over and not self.faults.forgets
        return {"queue_running": [[1, self.prompt_id, {}, {}, []]] if is_running else [], "queue_pending": []}

    def _history(self) -> Any:  # noqa: ANN401 - JSON
        self.histories += 1
        is_late = self.histories <= self.faults.empty_histories or not self.is_over
        if is_late or self.faults.forgets or self.faults.never_ends:
            return {}
        return next(
            (each["body"] for each in reversed(self.entries) if each.get("http", "").startswith("GET /his")), {}
        )

    # --- what is told --------------------------------------------------------------------------

    def _play(self, connection: socket.socket | None) -> None:
        for number, text in enumerate(self._messages()):
            if number == self.faults.dies_after:
                print(self.faults.last_words, file=sys.stderr, flush=True)  # noqa: T201 - as a program, into its log
                os._exit(self.faults.exit_status)
            if number == self.faults.goes_silent_after:
                connection = None
            if number == self.faults.drop_socket_after and connection is not None:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection = None
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.sendall(_frame(1, text.encode()))
                    if self.faults.has_noise:
                        connection.sendall(self._noise())
            time.sleep(self.faults.delay_s)
        self.is_over = not self.faults.never_ends

    def _messages(self) -> Iterator[str]:
        for entry in self.entries:
            if entry.get("http") == "POST /interrupt":
                self.interrupted.wait(timeout=10)
            message = entry.get("ws")
            if message is None or "sid" in message["data"]:
                continue
            if self.faults.files_only_in_history and message["type"] == "executed":
                continue
            if self.faults.never_ends and message["type"] == "execution_success":
                continue
            yield json.dumps(message)

    def _noise(self) -> bytes:
        other = {"prompt_id": "another", "node": "1", "exception_message": "not ours", "value": 1, "max": 2}
        texts = [
            {"type": "crystools.monitor", "data": {"cpu": 1}},
            {"type": "execution_error", "data": other},
            {"type": "progress", "data": {"prompt_id": self.prompt_id, "node": "11", "value": "half", "max": None}},
            ["no", "object"],
        ]
        preview = _frame(2, struct.pack(">II", 1, 2) + b"\x89PNG" + b"\0" * 70_000)
        return preview + _frame(1, b"no json") + b"".join(_frame(1, json.dumps(each).encode()) for each in texts)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def replay(self) -> ReplayServer:
        found: ReplayServer = self.server.replay  # type: ignore[attr-defined]
        return found

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        pass

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/ws":
            self._open_socket()
        else:
            self._send(*self.replay.answer("GET", self.path, None))

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._send(*self.replay.answer("POST", self.path, json.loads(data or b"null")))

    def _send(self, status: int, content_type: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def _open_socket(self) -> None:
        if self.replay.faults.refuses_socket or self.replay.faults.is_a_web_page:
            self._send(403, "text/plain", b"no WebSocket here")
            return
        key = self.headers["Sec-WebSocket-Key"] + _WEBSOCKET_KEY
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accepted = base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accepted)
        client_id = parse_qs(urlsplit(self.path).query)["clientId"][0]
        self.replay.sockets[client_id] = self.connection  # before the client can know that it is connected, and go on
        self.end_headers()
        first = {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": client_id}}
        self.connection.sendall(_frame(1, json.dumps(first).encode()))
        self.close_connection = True
        self._listen()

    def _listen(self) -> None:
        """Wait until the client hangs up: answer its closing frame as a server has to."""
        with contextlib.suppress(OSError):
            while head := self.connection.recv(2):
                if head[0] & 0x0F == 8:
                    self.connection.sendall(_frame(8, b""))
                    return
                self.connection.recv(4 + (head[1] & 0x7F))


def _frame(opcode: int, data: bytes) -> bytes:
    """Return one unmasked frame (RFC 6455, section 5.2)."""
    size = len(data)
    if size < 126:
        head = struct.pack(">BB", 0x80 | opcode, size)
    elif size < 65536:
        head = struct.pack(">BBH", 0x80 | opcode, 126, size)
    else:
        head = struct.pack(">BBQ", 0x80 | opcode, 127, size)
    return head + data


def _as_json(status: int, body: object) -> tuple[int, str, bytes]:
    return status, "application/json; charset=utf-8", json.dumps(body).encode()


def _plain_node(name: str) -> dict[str, Any]:
    """Return what /object_info says of a node class that every ComfyUI has, without its inputs."""
    return {} if name.startswith("NoSuch") else {name: {"input": {"required": {}}, "name": name}}


def free_port() -> int:
    """Return a port below those that systems give to connections, one of which may come before ComfyUI does."""
    while True:
        number = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", number))
            return number


def serve_as_comfyui(
    argv: list[str], name: str = "ok_fp8_h200_warm_1024", faults: Faults | None = None, *, draws: bool = False
) -> None:
    """Act as ComfyUI's main.py: listen on --port, print the command line, run until it is ended, or
    for the seconds of the variable STAND_IN_LIFE_S.

    With `draws` it reads the models folder beside main.py and hands out what it was asked for.
    """
    port = int(argv[argv.index("--port") + 1])
    folder = Path(argv[0]).resolve().parent if draws else None
    server = ReplayServer(name, faults=faults, port=port, folder=folder, argv=argv)
    print(f"To see the GUI go to: {server.url}", flush=True)  # noqa: T201 - the log of the stand-in
    life_s = os.environ.get("STAND_IN_LIFE_S")
    threading.Event().wait(None if life_s is None else float(life_s))
