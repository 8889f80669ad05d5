"""Two things at once: neither waits for the other to begin, and errors keep their order."""

from __future__ import annotations

import threading

import pytest

from provisioner.commands.verify_files import do_beside


def test_both_are_under_way_at_once() -> None:
    one, other = threading.Event(), threading.Event()

    def work() -> bool:
        one.set()
        return other.wait(10)

    def beside() -> bool:
        other.set()
        return one.wait(10)

    assert do_beside(work, beside) == (True, True)


def test_what_the_work_raises_waits_for_nobody() -> None:
    never = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        do_beside(lambda: (_ for _ in ()).throw(KeyboardInterrupt), never.wait)
    never.set()


def test_what_is_raised_beside_comes_when_the_work_is_done() -> None:
    done = []
    with pytest.raises(ZeroDivisionError):
        do_beside(lambda: done.append(1), lambda: 1 // 0)
    assert done == [1]
