"""The threads that hash: as many as there are cores, over all files together, and what they are given to do.

``hashlib`` lets other threads run while it digests, so blocks of one file keep every core busy.  A file that has to be
read in order keeps one thread for itself and goes first, because it takes longest.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

IN_ORDER = 0
"""Rank of work that one thread does alone, from a file's first byte to its last."""

BY_BLOCKS = 1
"""Rank of work that is split into blocks."""


def usable_cores() -> int:
    """Return how many cores this process may use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


class Task(Generic[T]):
    """Work that was given to the threads; `result` waits for it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done = threading.Event()
        self._value: T
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, on the thread that took it."""
        try:
            self._value = self._work()
        except BaseException as error:  # it belongs to whoever waits, an interruption too
            self._error = error
        finally:
            self._done.set()

    def wait(self) -> None:
        """Wait for its end, however it ended."""
        while not self._done.wait(0.5):  # with a time limit a signal is noticed on Windows too
            pass

    def result(self) -> T:
        """Wait; return what it gave or raise what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._value


class Hashers:
    """A bounded number of threads that are there only while there is work.

    Parameters
    ----------
    limit : int
        Most threads at a time.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit or usable_cores()
        self._waiting: list[tuple[int, int, Task[object]]] = []
        self._numbers = itertools.count()
        self._threads = 0
        self._lock = threading.Lock()

    def give(self, work: Callable[[], T], *, rank: int) -> Task[T]:
        """Queue work, lower ranks first and equal ones in order; return its task."""
        task = Task(work)
        with self._lock:
            heapq.heappush(self._waiting, (rank, next(self._numbers), task))  # type: ignore[misc]
            is_full = self._threads >= self.limit
            self._threads += not is_full
        if not is_full:
            threading.Thread(target=self._work, name="hash", daemon=True).start()
        return task

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                _, _, task = heapq.heappop(self._waiting)
            task.run()
