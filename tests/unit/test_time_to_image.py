"""The model of the time to the first image: what it may never say, whatever the link."""

from __future__ import annotations

import itertools

import pytest

from scripts.time_to_image import (
    LATENCIES_MS,
    MACHINES,
    MBIT,
    MODELS,
    RATES_MBIT,
    WHEELS,
    Link,
    Machine,
    Step,
    as_a_graph,
    bound_s,
    first_installation,
    in_series,
    total_s,
)

QUICK = Machine(
    hash_bytes_s=1e9, install_bytes_s=1e9, make_environment_s=1, resolve_s=1, start_server_s=1, load_and_draw_s=1
)
LINK = Link(rate=100.0, latency_s=0.0)


@pytest.mark.parametrize(("rate", "latency"), list(itertools.product(RATES_MBIT, LATENCIES_MS)))
@pytest.mark.parametrize("name", MACHINES)
def test_no_order_beats_the_bound_and_the_graph_is_never_later_than_the_series(
    name: str, rate: int, latency: int
) -> None:
    link = Link(rate=rate * MBIT, latency_s=latency / 1000)
    steps = first_installation(MACHINES[name], link, wheels=WHEELS, models=MODELS)
    serial, graph = in_series(steps, MACHINES[name], link), as_a_graph(steps, MACHINES[name], link)
    assert bound_s(steps, link) <= total_s(graph) <= total_s(serial)
    for step in steps:
        assert all(graph[need].ended_s <= graph[step.name].began_s for need in step.needs)


def test_what_arrives_shares_the_link_and_work_goes_beside_it() -> None:
    steps = (
        Step(name="one", bytes=500),
        Step(name="other", bytes=500),
        Step(name="work", work_s=7),
        Step(name="last", needs=("one", "other", "work"), work_s=3),
    )
    done = as_a_graph(steps, QUICK, LINK)
    assert (done["one"].ended_s, done["other"].ended_s, done["work"].ended_s) == (5, 10, 7)
    assert done["last"].ended_s == 13 == bound_s(steps, LINK)
    assert total_s(in_series(steps, QUICK, LINK)) == 20


def test_a_step_that_is_hashed_slower_than_it_arrives_leaves_the_rest_of_the_link() -> None:
    slow = Machine(
        hash_bytes_s=60, install_bytes_s=1, make_environment_s=1, resolve_s=1, start_server_s=1, load_and_draw_s=1
    )
    done = as_a_graph((Step(name="one", bytes=600), Step(name="other", bytes=400)), slow, LINK)
    assert (done["one"].ended_s, done["other"].ended_s) == (10, 10)


def test_a_connection_carries_one_window_in_a_round_trip() -> None:
    link = Link(rate=1000.0, latency_s=0.1, window=20)
    assert [link.rate_with(number) for number in (1, 4, 8)] == [200, 800, 1000]
    assert link.before_first_byte_s(2) == pytest.approx(0.6)
    done = in_series([Step(name="far", bytes=1000, requests=2)], QUICK, link)
    assert total_s(done) == pytest.approx(0.6 + 1000 / 200)


@pytest.mark.parametrize("needs", [("nobody",), ("itself",)])
def test_a_need_that_never_comes_is_an_error(needs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="wait for one another"):
        as_a_graph([Step(name="itself", needs=needs)], QUICK, LINK)
