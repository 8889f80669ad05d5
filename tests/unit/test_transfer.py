"""How many connections, how long to wait, what headers say: decisions, with time and link simulated."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from provisioner.core.errors import ServerError
from provisioner.core.retries import MAX_PATIENCE_S, PASSING_STATUSES, Retries, asked_patience_s
from provisioner.files.download.policy import (
    GAIN_TO_KEEP,
    WINDOW_S,
    ContentRange,
    Need,
    Ramp,
    Shares,
    parse_content_range,
    parse_rate,
    share,
    strong_etag,
)
from provisioner.network.http_session import next_hop

MB = 1_000_000
TICK_S = 0.1
Link = Callable[[int], float]  # connections -> bytes per second altogether


def ramped(link: Link, *, limit: int = 8, wanted: int = 2, seconds: float = 10.0, slow_start_s: float = 0.0) -> Ramp:
    """Return a ramp after some seconds of a link; connections take their time until they deliver."""
    ramp = Ramp(limit=limit, wanted=wanted)
    received, active, since = 0.0, 0, 0.0
    for tick in range(int(seconds / TICK_S)):
        now = tick * TICK_S
        if ramp.observe(now, int(received), active) != active and now - since >= slow_start_s:
            active, since = ramp.wanted, now
        received += link(active) * TICK_S
    return ramp


# --- connections -----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 16])
def test_grows_to_the_limit_while_each_connection_is_capped(limit: int) -> None:
    assert ramped(lambda count: count * 40 * MB, limit=limit).wanted == limit


@pytest.mark.parametrize("wanted", [1, 2, 4])
def test_stays_where_it_began_when_the_link_is_capped_in_total(wanted: int) -> None:
    assert ramped(lambda count: 100 * MB, wanted=wanted).wanted == max(wanted, 1)


@pytest.mark.parametrize(("cap", "wanted"), [(3, 3), (4, 4), (6, 6)])
def test_settles_near_the_number_that_fills_the_link(cap: int, wanted: int) -> None:
    settled = ramped(lambda count: min(count, cap) * 40 * MB).wanted
    assert wanted <= settled <= 8
    assert min(settled, cap) == cap  # nothing is left on the table


def test_steps_back_when_more_connections_make_it_slower() -> None:
    assert ramped(lambda count: 100 * MB if count <= 2 else 80 * MB).wanted == 2


def test_grows_one_by_one_when_doubling_paid_little() -> None:
    rates = {2: 100, 4: 120, 5: 130, 6: 140, 7: 150, 8: 160}
    seen: list[int] = []

    def link(count: int) -> float:
        if count and (not seen or seen[-1] != count):
            seen.append(count)
        return rates.get(count, 0) * MB

    assert ramped(link).wanted == 8
    assert seen == [2, 4, 5, 6, 7, 8]


def test_connections_that_do_not_deliver_yet_are_not_judged() -> None:
    assert ramped(lambda count: count * 40 * MB, slow_start_s=1.0, seconds=30).wanted == 8
    ramp = Ramp()
    for tick in range(100):
        assert ramp.observe(tick * TICK_S, tick * MB, active=1) == 2


def test_one_window_is_measured_from_when_all_deliver() -> None:
    ramp = Ramp()
    assert ramp.observe(0.0, 0, active=2) == 2
    assert ramp.observe(WINDOW_S / 2, 10 * MB, active=2) == 2
    assert ramp.observe(WINDOW_S, 20 * MB, active=2) == 4


@pytest.mark.parametrize(("wanted", "after"), [(8, 4), (5, 2), (2, 1), (1, 1)])
def test_backs_off_by_half_and_stays_there(wanted: int, after: int) -> None:
    ramp = Ramp(wanted=wanted)
    ramp.back_off()
    for tick in range(100):
        assert ramp.observe(tick * TICK_S, tick * tick * MB, active=after) == after


def test_a_link_that_delivered_nothing_does_not_divide_by_zero() -> None:
    assert 1 <= ramped(lambda count: 0.0).wanted <= 8


@given(
    rates=st.lists(st.floats(0, 1e10), min_size=9, max_size=9),
    limit=st.integers(1, 8),
    wanted=st.integers(1, 8),
)
@example(rates=[0, 0, 1, 0, 952_381, 0, 0, 0, 0], limit=5, wanted=1)  # ends in the middle of trying a fifth
def test_never_wants_none_or_more_than_the_limit(rates: list[float], limit: int, wanted: int) -> None:
    ramp = ramped(lambda count: rates[count], limit=limit, wanted=wanted)
    assert 1 <= ramp.wanted <= limit
    settled = ramp.wanted
    assert ramp.observe(1e9, 10**15, active=0) == settled  # a window that was open is not judged: nobody delivered
    assert ramp.observe(1e9, 10**15, active=settled) == settled


@given(cap=st.integers(1, 12))
def test_what_it_settles_on_is_within_a_step_of_the_best_rate(cap: int) -> None:
    ramp = ramped(lambda count: min(count, cap) * 10 * MB)
    best = min(cap, 8)
    assert min(ramp.wanted, cap) * GAIN_TO_KEEP >= best


def test_a_server_that_asks_for_less_gets_half_and_keeps_it() -> None:
    ramp = Ramp(wanted=8)
    ramp.back_off()
    for tick in range(100):
        assert ramp.observe(tick * TICK_S, tick * tick * MB, active=4) == 4


# --- which file gets them ----------------------------------------------------------------------------


LARGE = Need(blocks=1000)
BOUND = Need(blocks=1000, held=4, is_digest_bound=True)


@pytest.mark.parametrize(
    ("wanted", "needs", "connections", "leaves_room"),
    [
        (2, (), (), True),
        (2, (LARGE,), (2,), False),
        (8, (LARGE,), (8,), False),
        (4, (LARGE, LARGE), (3, 1), False),  # one that was begun by somebody else gets one, the oldest the rest
        (4, (Need(blocks=1), LARGE), (1, 3), False),
        (4, (Need(blocks=0), LARGE), (0, 4), False),
        (4, (Need(blocks=3),), (3,), True),  # its last blocks
        (4, (Need(blocks=1), Need(blocks=1)), (1, 1), True),
        (4, (Need(blocks=1), Need(blocks=3)), (1, 3), False),
        (2, (BOUND,), (4,), True),  # the digest is what it waits for: the wire is free
        (2, (BOUND, LARGE), (2, 2), False),
        (2, (BOUND, BOUND), (2, 2), True),
        (1, (Need(blocks=9, held=8, is_digest_bound=True),), (4,), True),
        (2, (LARGE, BOUND), (2, 2), False),
        (1, (LARGE, LARGE), (1, 1), False),  # more than the wire pays for, but nobody starves
    ],
)
def test_connections_go_to_the_oldest_file_that_has_a_use_for_them(
    wanted: int, needs: tuple[Need, ...], connections: tuple[int, ...], leaves_room: bool
) -> None:
    assert share(wanted, 8, needs) == Shares(connections=connections, leaves_room=leaves_room)


def test_a_file_beyond_the_limit_waits() -> None:
    assert share(2, 2, (LARGE, BOUND, LARGE)) == Shares(connections=(1, 1, 0), leaves_room=False)
    assert share(1, 1, (BOUND,)) == Shares(connections=(1,), leaves_room=False)


@given(
    limit=st.integers(1, 16),
    wanted=st.integers(1, 16),
    needs=st.lists(
        st.builds(Need, blocks=st.integers(0, 20), held=st.integers(0, 16), is_digest_bound=st.booleans()), max_size=6
    ),
)
def test_never_more_than_the_limit_nor_than_a_file_has_blocks_and_nobody_starves(
    limit: int, wanted: int, needs: list[Need]
) -> None:
    shares = share(min(wanted, limit), limit, needs)
    assert sum(shares.connections) <= limit
    for number, (given_to, need) in enumerate(zip(shares.connections, needs, strict=True)):
        assert given_to <= need.blocks
        assert given_to or not need.blocks or sum(shares.connections[:number]) == sum(shares.connections) == limit


# --- waiting ---------------------------------------------------------------------------------------


ALWAYS = Retries(attempts=100)


@given(failures=st.integers(1, 50), jitter=st.floats(0, 1, exclude_max=True))
def test_a_delay_is_never_longer_than_eight_seconds_nor_shorter_than_half_its_length(
    failures: int, jitter: float
) -> None:
    shortest, delay = ALWAYS.pause_s(failures, jitter=0.0), ALWAYS.pause_s(failures, jitter=jitter)
    assert shortest is not None
    assert delay is not None
    assert shortest <= delay <= 2 * shortest <= 8.0


def test_delays_double_until_it_is_given_up() -> None:
    pauses = [Retries().pause_s(failures, jitter=0.5) for failures in range(1, 8)]
    assert pauses == [0.375, 0.75, 1.5, 3.0, 6.0, None, None]


@pytest.mark.parametrize(
    ("status", "asked_s", "pause_s"),
    [
        (503, None, 0.375),
        (429, 0.0, 0.0),
        (429, MAX_PATIENCE_S, MAX_PATIENCE_S),
        (429, MAX_PATIENCE_S + 1, None),
        (404, None, None),
        (404, 3.0, None),
        (None, None, 0.375),  # no answer at all
    ],
)
def test_only_what_may_pass_is_tried_again(status: int | None, asked_s: float | None, pause_s: float | None) -> None:
    assert Retries().pause_s(1, status=status, asked_s=asked_s, jitter=0.5) == pause_s
    assert (status in PASSING_STATUSES) == (status in {429, 503})


NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": " 120 "}, 120.0),
        ({"retry-after": "9" * 400}, float("inf")),
        ({"retry-after": formatdate(NOW + 90, usegmt=True)}, 90.0),
        ({"retry-after": formatdate(NOW - 90, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": "\u00b2"}, None),  # a digit to str.isdigit, not to float
        ({"retry-after": "\u0663"}, None),
        ({"retry-after": "Thu, 01 Jan 99999 00:00:00 GMT"}, None),
        ({"ratelimit": '"resolvers";r=0;t=172'}, 172.0),
        ({"ratelimit": "t=5"}, 5.0),
        ({"ratelimit": '"resolvers";r=2999;t=172'}, None),  # something else refused
        ({"ratelimit": '"resolvers";r=0;start=9'}, None),
        ({"ratelimit": ""}, None),
        ({"retry-after": "3", "ratelimit": '"api";r=0;t=172'}, 3.0),
        ({"retry-after": "later", "ratelimit": '"api";r=0;t=172'}, 172.0),
    ],
)
def test_asked_patience_is_read_from_either_header(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_patience_s(429, headers, NOW) == seconds
    assert asked_patience_s(200, headers, NOW) is None
    of_503 = {name: text for name, text in headers.items() if name != "ratelimit"}  # every answer has it
    assert asked_patience_s(503, headers, NOW) == asked_patience_s(429, of_503, NOW)


@given(retry_after=st.text(max_size=60), rate_limit=st.text(max_size=60))
@example(retry_after="Mon, 01 Jan 0001 00:00:00 -0000", rate_limit="")
@example(retry_after="Fri, 31 Dec 9999 23:59:59 -2359", rate_limit="")
@example(retry_after=",,,", rate_limit="t=")
def test_no_header_can_break_it(retry_after: str, rate_limit: str) -> None:
    seconds = asked_patience_s(429, {"retry-after": retry_after, "ratelimit": rate_limit}, NOW)
    assert seconds is None or seconds >= 0


# --- headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("bytes 0-0/1", ContentRange(0, 0, 1)),
        ("bytes 16-31/100", ContentRange(16, 31, 100)),
        (" bytes 16-31/100 ", ContentRange(16, 31, 100)),
        ("bytes 16-31/*", ContentRange(16, 31, None)),
        (None, None),
        ("", None),
        ("bytes */100", None),
        ("bytes 31-16/100", None),
        ("bytes 0-100/100", None),  # the last byte of 100 is number 99
        ("bytes 0-15", None),
        ("bytes=0-15/100", None),
        ("items 0-15/100", None),
        ("bytes -1-15/100", None),
        ("bytes 0-15/100, bytes 20-30/100", None),
        ("bytes \u0660-\u0661/\u0669", None),
        (f"bytes 0-{'9' * 5000}/*", None),
    ],
)
def test_content_range_is_read_or_refused(text: str | None, parsed: ContentRange | None) -> None:
    assert parse_content_range(text) == parsed


@given(first=st.integers(0, 10**12), length=st.integers(1, 10**9), rest=st.integers(0, 10**9))
def test_content_range_round_trips(first: int, length: int, rest: int) -> None:
    last = first + length - 1
    assert parse_content_range(f"bytes {first}-{last}/{last + 1 + rest}") == ContentRange(first, last, last + 1 + rest)


@given(st.text(max_size=80))
def test_no_content_range_can_break_it(text: str) -> None:
    parsed = parse_content_range(text)
    assert parsed is None or 0 <= parsed.first <= parsed.last


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ('"abc"', True),
        ('""', True),
        ('W/"abc"', False),
        ("abc", False),
        ('"', False),
        ('"abc', False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_strong_etag_ties_ranges_together(text: str | None, usable: bool) -> None:
    assert strong_etag(text) == (text if usable else None)


# --- rates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1", 1),
        ("2000000", 2_000_000),
        ("500k", 500_000),
        ("500K", 500_000),
        ("10M", 10_000_000),
        ("10MB", 10_000_000),
        ("10MB/s", 10_000_000),
        ("2.5MB/s", 2_500_000),
        ("1g", 1_000_000_000),
        ("8MiB", 8 * 1024**2),
        ("8Mi", 8 * 1024**2),
        ("1GiB/s", 1024**3),
        (" 3 k ", 3000),
        ("12 MBps", 12_000_000),
    ],
)
def test_a_rate_is_bytes_per_second(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "10T",
        "10i",
        "10iB",
        "-1M",
        "1e6",
        "10Mbps",
        "1,5M",
        "0",
        "0.4",
        "0M",
        "1.M",
        "M",
        "9" * 400,
        "\u0661M",
    ],
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        parse_rate(text)


@given(count=st.integers(1, 9999), unit=st.sampled_from(["", "k", "M", "G"]), binary=st.booleans())
def test_rates_scale_with_their_unit(count: int, unit: str, binary: bool) -> None:
    base = 1024 if binary and unit else 1000
    assert parse_rate(f"{count}{unit}{'iB' if binary and unit else ''}") == count * base ** ["", "k", "M", "G"].index(
        unit
    )


@given(st.text(max_size=40))
def test_any_text_is_a_rate_above_zero_or_refused(text: str) -> None:
    try:
        rate = parse_rate(text)
    except ValueError:
        return
    assert rate > 0


def test_a_public_address_of_a_manifest_leads_into_no_private_network() -> None:
    with pytest.raises(ServerError, match="into a private network"):
        next_hop("https://files.example/x", "https://169.254.169.254/latest?Signature=abc", stays_public=True)
    assert next_hop("https://hub.corp/x", "https://10.0.0.7/y", stays_public=True) == "https://10.0.0.7/y"
    assert next_hop("https://files.example/x", "https://10.0.0.7/y") == "https://10.0.0.7/y"  # the user's own Hub
