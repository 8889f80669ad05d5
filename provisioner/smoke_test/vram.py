"""Measure the memory of one GPU while an image is generated: NVML, read every 50 milliseconds in a thread.

Never raises for a machine without NVIDIA, changes no setting, and estimates nothing: what NVML does not report is
unknown, with a reason.  NVML ignores ``CUDA_VISIBLE_DEVICES``; a GPU is chosen by UUID, or by NVML's index.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any

from provisioner.smoke_test.measurement import MOST_POINTS, VramSample, summarise_samples, thinned
from provisioner.smoke_test.results import CardUse, VramReading

INTERVAL_S = 0.05
"""Seconds between two readings: short enough for the peak of a decode; it took 2.4 % of a core beside an H200."""

_NEVER_ANSWERED = frozenset({"NVMLError_NotSupported", "NVMLError_FunctionNotFound", "AttributeError"})
"""Errors of a query that is not supported here: repeating it is useless."""

_MOST_PHASES = 50  # a graph of another server may go back and forth

_JOIN_TIMEOUT_S = 5.0  # a driver that hangs must not keep the program from ending

Parents = Callable[[int], Iterable[int]]
"""Returns the parent process ids of a process, nearest first; empty where it is gone or access is denied."""


def parents_of(pid: int) -> tuple[int, ...]:
    """Return the parent process ids of a process, nearest first; empty where they cannot be read."""
    import psutil  # takes 20 ms, needed for a smoke test only

    try:
        return tuple(each.pid for each in psutil.Process(pid).parents())
    except (psutil.Error, OSError, ValueError):
        return ()


def resident_bytes(pid: int) -> int | None:
    """Return the memory of a process and of all it started, in bytes; None where it cannot be read."""
    import psutil

    try:
        process = psutil.Process(pid)
        return sum(int(each.memory_info().rss) for each in (process, *process.children(recursive=True)))
    except (psutil.Error, OSError):
        return None


def uses_of(
    uuids: Iterable[str],
    pids: Iterable[int] = (),
    *,
    library: Any = None,  # noqa: ANN401 - a module without types
    parents: Parents = parents_of,
) -> tuple[CardUse, ...]:
    """Return what NVML says now of each of these cards; one that it does not know is left out.

    Parameters
    ----------
    uuids : iterable of str
        GPUs and MIG devices.
    pids : iterable of int
        Our processes, with their children.
    library, parents
        As for `VramSampler`.
    """
    if library is None:
        try:
            library = importlib.import_module("pynvml")
        except (ImportError, OSError):
            return ()
    may_fail = _may_fail(library)
    family = _Family(pids, parents)
    found = []
    try:
        library.nvmlInit()
    except may_fail:
        return ()
    try:
        for uuid in uuids:
            with contextlib.suppress(*may_fail):
                card = _Card(library, uuid, 0)
                used = card.look(family).used_bytes
                found.append(CardUse(uuid=uuid, used_bytes=used, is_ours=card.is_used_by(family)))
    finally:
        with contextlib.suppress(*may_fail):
            library.nvmlShutdown()
    return tuple(found)


class VramSampler:
    """Measures one GPU from entering to leaving the context; the first reading is taken on entering.

    Parameters
    ----------
    uuid : str, optional
        UUID of the GPU (or MIG device), as NVML spells it.
    index : int, optional
        NVML's index of it, used where there is no `uuid`.
    pids : iterable of int, optional
        Processes whose memory is measured separately, with their children; `watch` adds to them later.
    interval_s : float, optional
        Seconds between two readings.
    library : module, optional
        A module with the functions of `pynvml`; None imports that one.
    parents : callable, optional
        Returns the parents of a process.

    Examples
    --------
    ::

        with VramSampler(uuid=gpu.uuid) as sampler:
            server = start()
            sampler.watch(server.pid)
            generate()
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
        self._samples: tuple[VramSample, ...] = ()  # at most twice as many as a curve has points
        self._phases: list[tuple[str, float]] = []
        self._began_s = 0.0
        self._paused_at_s: float | None = None
        self._reason: str | None = "nothing was measured yet"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, *pids: int) -> None:
        """Measure the memory of these processes separately too, from the next reading on."""
        self._family.add(pids)

    def begin(self, phase: str) -> None:
        """Note that a part of the work begins now; the one that runs already is not noted again."""
        if not self._phases or self._phases[-1][0] != phase:
            self._phases = [*self._phases, (phase, time.monotonic() - self._began_s)][-_MOST_PHASES:]

    def pause(self) -> None:
        """Measure nothing until `resume`; the time between them is no part of the curve."""
        self._paused_at_s = time.monotonic()

    def resume(self) -> None:
        """Go on after a `pause`."""
        if self._paused_at_s is not None:
            self._began_s += time.monotonic() - self._paused_at_s
            self._paused_at_s = None

    @property
    def reason(self) -> str | None:
        """Why there is no reading; None where there is one."""
        return self._reason

    @property
    def reading(self) -> VramReading | None:
        """The measurements so far; None where there are none, and `reason` says why."""
        if self._card is None:
            return None
        return summarise_samples(
            self._samples,
            gpu_name=self._card.name,
            gpu_uuid=self._card.uuid,
            total_bytes=self._card.total_bytes,
            phases=self._phases,
        )

    def held_bytes(self) -> int | None:
        """Return the bytes in use now: of the watched processes where NVML says it, else of the card; None: unknown."""
        if self._card is None:
            return None
        try:
            sample = self._card.look(self._family)
        except _may_fail(self._library):
            return None
        return sample.used_bytes if sample.process_bytes is None else sample.process_bytes

    def __enter__(self) -> VramSampler:
        self._began_s = time.monotonic()
        self.begin("start")
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
        if not self._thread.is_alive():  # else NVML is still in use and must not be closed
            self._look()
            self._shut()
        self._thread = None

    def _open(self) -> str | None:
        """Open NVML and take the first reading; return the reason if that fails."""
        if self._library is None:
            try:
                self._library = importlib.import_module("pynvml")
            except (ImportError, OSError) as error:
                return f"the Python module pynvml cannot be loaded: {error}"
        may_fail = _may_fail(self._library)
        try:
            self._library.nvmlInit()
        except may_fail as error:
            return f"NVML cannot be used: {_said(error)}"
        try:
            card = _Card(self._library, self._uuid, self._index)
            self._keep(card.look(self._family))
        except may_fail as error:
            self._shut()
            which = self._uuid or f"GPU {self._index}"
            return f"NVML does not report the memory of {which}: {_said(error)}"
        self._card = card
        return None

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            if self._paused_at_s is None:
                self._look()

    def _look(self) -> None:
        """Take a reading; one that fails is left out, because the next one can succeed."""
        if self._card is not None:
            with contextlib.suppress(*_may_fail(self._library)):
                self._keep(self._card.look(self._family))

    def _keep(self, sample: VramSample) -> None:
        samples = (*self._samples, replace(sample, at_s=time.monotonic() - self._began_s))
        self._samples = thinned(samples) if len(samples) > 2 * MOST_POINTS else samples

    def _shut(self) -> None:
        with contextlib.suppress(*_may_fail(self._library)):
            self._library.nvmlShutdown()


def _may_fail(library: Any) -> tuple[type[BaseException], ...]:  # noqa: ANN401
    """Return the errors a query can raise: NVML's own, and those of older bindings."""
    return (library.NVMLError, AttributeError, TypeError, ValueError, OSError)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


class _Family:
    """The processes whose memory is measured separately, and everything they started."""

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
        """Whether a process is one of them; called once for each of the few that use a GPU."""
        with self._lock:
            if pid not in self._known:
                self._known[pid] = pid in self._roots or not self._roots.isdisjoint(self._parents(pid))
            return self._known[pid]


class _Card:
    """One GPU, read with the queries it supports."""

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
        """Return a sample; raises NVML's errors for the memory, none for the processes."""
        memory = self._memory()
        return VramSample(used_bytes=int(memory.used), free_bytes=int(memory.free), process_bytes=self._held_by(family))

    def is_used_by(self, family: _Family) -> bool:
        """Whether one of the processes is among those that use this card, also where its memory is not told."""
        found = [process for question in tuple(self._questions) for process in self._processes(question)]
        return bool(family) and any(process.pid in family for process in found)

    def _memory(self) -> Any:  # noqa: ANN401 - a structure of the binding
        """Return the memory, always by the same query: the first one counts the driver's own memory as used."""
        if self._has_second_question:
            try:
                return self._library.nvmlDeviceGetMemoryInfo(self._handle, version=self._library.nvmlMemory_v2)
            except _may_fail(self._library):
                if hasattr(self, "total_bytes"):
                    raise  # it worked before
                self._has_second_question = False
        return self._library.nvmlDeviceGetMemoryInfo(self._handle)

    def _held_by(self, family: _Family) -> int | None:
        """Return the bytes used by the processes; None where NVML reports none of them (WDDM, namespaces)."""
        if not family:
            return None
        held: dict[int, int] = {}
        for question in tuple(self._questions):
            for process in self._processes(question):
                used = getattr(process, "usedGpuMemory", None)
                if used is not None and process.pid in family:  # a process that computes and renders is in both lists
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
