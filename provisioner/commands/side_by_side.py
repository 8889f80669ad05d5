"""Runs the tasks of a plan, each in a thread of its own as soon as what it needs is done.

The main thread waits: signals reach it alone, so it is the one that stops the others.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from provisioner.plan.order import Task, TaskName, TaskState, next_moves

_TICK_S = 0.2  # Windows notices Ctrl-C between two waits only

Came = TaskState | BaseException


def run_side_by_side(
    tasks: tuple[Task, ...],
    do: Callable[[Task], TaskState],
    *,
    states: dict[TaskName, TaskState],
    skip: Callable[[Task, TaskName], None],
    cancelled: threading.Event,
) -> None:
    """Do every task that can be done; return when none is left and no thread runs.

    Parameters
    ----------
    tasks : tuple of Task
        What is to be done.
    do : callable
        Does one, in a thread, and returns whether it is done, failed or skipped.
    states : dict of name to state
        Filled with where each task stands, for whoever is interested.
    skip : callable
        Told of a task that cannot be done any more, and which one failed before it.
    cancelled : threading.Event
        Stops what `do` does; set where a task raises or a signal comes.

    Raises
    ------
    BaseException
        What a task raised, or KeyboardInterrupt: everything was stopped.
    """
    states.update(dict.fromkeys((task.name for task in tasks), "waiting"))
    ended: queue.SimpleQueue[tuple[TaskName, Came]] = queue.SimpleQueue()
    threads: list[threading.Thread] = []

    def work(task: Task) -> None:
        came: Came
        try:
            came = do(task)
        except BaseException as error:  # it is raised again in the main thread
            came = error
        ended.put((task.name, came))

    try:
        while True:
            moves = next_moves(tasks, states)
            for task, cause in moves.skip:
                states[task.name] = "skipped"
                skip(task, cause)
            for task in moves.start:
                states[task.name] = "running"
                threads.append(threading.Thread(target=work, args=(task,), name=task.name, daemon=True))
                threads[-1].start()
            if "running" not in states.values():
                return
            name, came = _next(ended)
            if isinstance(came, BaseException):
                raise came
            states[name] = came
    except BaseException:
        cancelled.set()
        raise
    finally:
        for thread in threads:
            while thread.is_alive():
                if states.get("image") != "running":  # it says goodbye to the server
                    from provisioner.network.deadline import end_all  # requests takes a tenth of a second

                    end_all()
                thread.join(_TICK_S)


def _next(ended: queue.SimpleQueue[tuple[TaskName, Came]]) -> tuple[TaskName, Came]:
    while True:
        try:
            return ended.get(timeout=_TICK_S)
        except queue.Empty:
            continue
