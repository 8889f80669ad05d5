"""The memory of one GPU while a picture is drawn: NVML, asked every 50 milliseconds in a thread.

Never raises for a machine without NVIDIA, changes no setting, and makes up no figure: what NVML does not tell stays
unknown, with a reason.  NVML does not look at ``CUDA_VISIBLE_DEVICES``; a GPU is chosen by UUID, or by NVML's index.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from provisioner.smoke_test.measurement import VramSample, summarise_samples
from provisioner.smoke_test.results import VramReading

INTERVAL_S = 0.05
"""Seconds between two looks: short enough for the moment of a decode; it took 2.4 % of a core beside an H200."""

_NEVER_ANSWERED = frozenset({"NVMLError_NotSupported", "NVMLError_FunctionNotFound", "AttributeError"})
"""What a question that is not known here raises: asking it again is of no use."""

_JOIN_TIMEOUT_S = 5.0  # a driver that hangs shall not keep the program from ending

Parents = Callable[[int], Iterable[int]]
"""The process ids above a process, nearest first; empty where it is gone or nobody may ask."""


def parents_of(pid: int) -> tuple[int, ...]:
    """Return the process ids above a process, nearest first; empty where that cannot be learnt."""
    import psutil  # 20 ms that only a smoke test pays for

    try:
        return tuple(each.pid for each in psutil.Process(pid).parents())
    except (psutil.Error, OSError, ValueError):
        return ()


class VramSampler:
    """Watches one GPU from entering to leaving the context; the first look is taken before entering returns.

    Parameters
    ----------
    uuid : str, optional
        Of the GPU (or MIG device), as NVML spells it.
    index : int, optional
        NVML's index of it, taken where there is no `uuid`.
    pids : iterable of int, optional
        Processes whose memory is told apart, their children with them; `watch` adds to them later.
    interval_s : float, optional
        Seconds between two looks.
    library : module, optional
        Something with the functions of `pynvml`, which is imported where None.
    parents : callable, optional
        How to learn what stands above a process.

    Examples
    --------
    ::

        with VramSampler(uuid=gpu.uuid) as sampler:
            server = start()
            sampler.watch(server.pid)
            draw()
        sampler.reading  # None where `sampler.reason` says why
    """

    def __init__(
        self,
        uuid: str | None = None,
        index: int = 0,
        *,
        pids: Iterable[int] = (),
        interval_s: float = INTERVAL_S,
        library: Any = None,  # noqa: ANN401 - a module without types
        parents: Parents = parents_of,
    ) -> None:
        self._uuid = uuid
        self._index = index
        self._interval_s = interval_s
        self._library = library
        self._family = _Family(pids, parents)
        self._card: _Card | None = None
        self._samples: list[VramSample] = []
        self._reason: str | None = "nothing was measured yet"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, *pids: int) -> None:
        """Tell the memory of these processes apart too, from the next look on."""
        self._family.add(pids)

    @property
    def reason(self) -> str | None:
        """Why there is no reading; None where there is one."""
        return self._reason

    @property
    def reading(self) -> VramReading | None:
        """What was seen so far; None where nothing was, and then `reason` says why."""
        if self._card is None:
            return None
        return summarise_samples(
            tuple(self._samples), gpu_name=self._card.name, gpu_uuid=self._card.uuid, total_bytes=self._card.total_bytes
        )

    def __enter__(self) -> VramSampler:
        self._reason = self._open()
        if self._reason is None:
            self._thread = threading.Thread(target=self._run, name="vram-sampler", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(_JOIN_TIMEOUT_S)
        if not self._thread.is_alive():  # else NVML is still being asked, and must not be closed under the question
            self._look()
            self._shut()
        self._thread = None

    def _open(self) -> str | None:
        """Open NVML and take the first look; return why that is not possible."""
        if self._library is None:
            try:
                self._library = importlib.import_module("pynvml")
            except (ImportError, OSError) as error:
                return f"the Python module pynvml cannot be loaded: {error}"
        may_fail = _may_fail(self._library)
        try:
            self._library.nvmlInit()
        except may_fail as error:
            return f"NVML cannot be asked: {_said(error)}"
        try:
            card = _Card(self._library, self._uuid, self._index)
            self._samples.append(card.look(self._family))
        except may_fail as error:
            self._shut()
            which = self._uuid or f"GPU {self._index}"
            return f"NVML does not tell the memory of {which}: {_said(error)}"
        self._card = card
        return None

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        """Take a look; one that fails is left out, for the next one can succeed."""
        if self._card is not None:
            with contextlib.suppress(*_may_fail(self._library)):
                self._samples.append(self._card.look(self._family))

    def _shut(self) -> None:
        with contextlib.suppress(*_may_fail(self._library)):
            self._library.nvmlShutdown()


def _may_fail(library: Any) -> tuple[type[BaseException], ...]:  # noqa: ANN401
    """Return what a question can raise: NVML's own errors, and those of older bindings."""
    return (library.NVMLError, AttributeError, TypeError, ValueError, OSError)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


class _Family:
    """The processes whose memory is told apart, and everything they started."""

    def __init__(self, pids: Iterable[int], parents: Parents) -> None:
        self._roots = frozenset(pids)
        self._parents = parents
        self._known: dict[int, bool] = {}
        self._lock = threading.Lock()

    def add(self, pids: Iterable[int]) -> None:
        with self._lock:
            self._roots |= frozenset(pids)
            self._known.clear()

    def __bool__(self) -> bool:
        return bool(self._roots)

    def __contains__(self, pid: int) -> bool:
        """Whether a process is of the family; asked of the few that use a GPU, and of each once."""
        with self._lock:
            if pid not in self._known:
                self._known[pid] = pid in self._roots or not self._roots.isdisjoint(self._parents(pid))
            return self._known[pid]


class _Card:
    """One GPU, asked in the way it answers."""

    def __init__(self, library: Any, uuid: str | None, index: int) -> None:  # noqa: ANN401
        self._library = library
        by_uuid = uuid is not None
        self._handle = library.nvmlDeviceGetHandleByUUID(uuid) if by_uuid else library.nvmlDeviceGetHandleByIndex(index)
        self._has_second_question = True
        self._questions = ["nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"]
        self.total_bytes = int(self._memory().total)
        self.name = self._text("nvmlDeviceGetName") or "GPU"
        self.uuid = uuid or self._text("nvmlDeviceGetUUID")

    def look(self, family: _Family) -> VramSample:
        """Return a sample; raises what NVML raises for the memory, and nothing for the processes."""
        memory = self._memory()
        return VramSample(used_bytes=int(memory.used), free_bytes=int(memory.free), process_bytes=self._held_by(family))

    def _memory(self) -> Any:  # noqa: ANN401 - a structure of the binding
        """Return the memory, always by the same question: the first counts as used what the driver keeps for itself."""
        if self._has_second_question:
            try:
                return self._library.nvmlDeviceGetMemoryInfo(self._handle, version=self._library.nvmlMemory_v2)
            except _may_fail(self._library):
                if hasattr(self, "total_bytes"):
                    raise  # it did answer before
                self._has_second_question = False
        return self._library.nvmlDeviceGetMemoryInfo(self._handle)

    def _held_by(self, family: _Family) -> int | None:
        """Return the bytes a family holds; None where NVML names none of it, or no bytes (WDDM, other namespaces)."""
        if not family:
            return None
        held: dict[int, int] = {}
        for question in tuple(self._questions):
            for process in self._processes(question):
                used = getattr(process, "usedGpuMemory", None)
                if used is not None and process.pid in family:  # one that computes and draws stands in both lists
                    held[process.pid] = max(held.get(process.pid, 0), int(used))
        return sum(held.values()) if held else None

    def _processes(self, question: str) -> tuple[Any, ...]:
        try:
            return tuple(getattr(self._library, question)(self._handle))
        except _may_fail(self._library) as error:
            if type(error).__name__ in _NEVER_ANSWERED:
                self._questions.remove(question)
            return ()

    def _text(self, question: str) -> str | None:
        try:
            value = getattr(self._library, question)(self._handle)
        except _may_fail(self._library):
            return None
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
