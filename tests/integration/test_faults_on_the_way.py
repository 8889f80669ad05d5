"""What goes wrong between the content network and the disk: each fault of a real network, once and for ever."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from provisioner.core.models import BLOCK_SIZE, HubFile
from provisioner.files.download.transfer import RangeFetcher
from provisioner.network.http_session import Credentials
from provisioner.rehearsal.faults import (
    CutAfter,
    Drip,
    ExpireSignatures,
    Fault,
    IgnoreRange,
    OmitHeader,
    OtherContent,
    Place,
    RedirectElsewhere,
    ResetAfter,
    ShortLength,
    Stall,
    Status,
    WrongBytes,
    WrongLinkedSize,
)
from tests.support.builders import artifact, comfy_file
from tests.support.memory import MemoryPart, MemoryStore
from tests.support.sandbox import (
    MIB,
    MIRROR,
    REPOSITORY,
    REVISION,
    TOKEN,
    Ahead,
    Running,
    Sandbox,
    Wanted,
    tensors,
    wait_until,
)

SMALL = 3 * MIB  # one block
LARGE = 37 * MIB  # two blocks and a third that is short


def served_besides(sandbox: Sandbox, wanted: Wanted) -> int:
    """Return the bytes that were sent in vain."""
    sandbox.hub.wait_until_idle()
    return sum(each.bytes_sent for each in sandbox.gets(wanted) if each.status in {200, 206}) - len(wanted.data)


# --- faults that stay ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Staying:
    """A fault that does not go away, and how the run ends."""

    fault: Fault
    status: int
    code: str
    says: str
    on: Place = "content"
    skip: int = 1  # the first block arrives: there is something to keep
    arguments: tuple[str, ...] = ()


STAYING = {
    "connections that end before their first byte": Staying(
        fault=CutAfter(0), status=5, code="unreachable", says="run the same command again"
    ),
    "connections that are reset before their first byte": Staying(
        fault=ResetAfter(0), status=5, code="unreachable", says="run the same command again"
    ),
    "answers that are always short": Staying(
        fault=ShortLength(LARGE), status=5, code="unreachable", says="breaks off again and again"
    ),
    "answers of one byte": Staying(
        fault=WrongLinkedSize(1), status=5, code="unreachable", says="breaks off again and again"
    ),
    "503 for content": Staying(fault=Status(503), status=5, code="server-error", says="answers 503"),
    "503 when asked where the file is": Staying(
        fault=Status(503), on="head", skip=0, status=5, code="server-error", says="answers 503"
    ),
    "429 that names no time": Staying(fault=Status(429), status=5, code="rate-limited", says="429"),
    "403 from the content network": Staying(
        fault=Status(403), status=6, code="access", says="keeps refusing addresses the Hub has just signed"
    ),
    "content that never comes": Staying(
        fault=Stall(after=0, seconds=60),
        status=5,
        code="stalled",
        says="did not answer in time",
        arguments=("--stall-timeout", "0.5"),
    ),
    "content that only drips": Staying(
        fault=Drip(bytes_each=1, every_s=0.1),
        status=5,
        code="stalled",
        says="delivers next to nothing",
        arguments=("--stall-timeout", "2"),  # a busy hub may leave half a second between two drops
    ),
}

Started = dict[str, tuple[Sandbox, Running]]


@pytest.fixture(scope="module")
def stayed(make_sandbox: Callable[[], Sandbox]) -> Started:
    """Start a run against every fault that stays; they spend their time waiting, so they do it side by side."""
    started: Started = {}
    for name, case in STAYING.items():
        sandbox = make_sandbox()
        sandbox.publish(tensors(LARGE))
        sandbox.hub.fault(case.fault, on=case.on, times=None, skip=case.skip)
        started[name] = sandbox, sandbox.start("install", "--connections", "1", "--json", *case.arguments)
    return started


PATIENT = [name for name, case in STAYING.items() if case.code != "access"]


@pytest.mark.parametrize("name", PATIENT)
def test_does_not_give_up_at_the_first_refusal(name: str, stayed: Started) -> None:
    sandbox, running = stayed[name]
    where = sandbox.heads if STAYING[name].on == "head" else sandbox.gets
    wait_until(lambda: len(where()) >= STAYING[name].skip + 2, what="it asks again")
    assert running.process.poll() is None


# --- faults that pass ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Passing:
    """A fault that goes away, and what getting over it may cost."""

    fault: Fault
    on: Place = "content"
    times: int = 1
    skip: int = 0
    in_vain: int = 0  # most bytes that may be sent twice
    heads: int = 1


PASSING = {
    "a connection that ends at 60 per cent": Passing(fault=CutAfter(0.6)),
    "every connection that ends at 60 per cent of what is left": Passing(fault=CutAfter(0.6), times=8),
    "a connection that ends before its first byte": Passing(fault=CutAfter(0)),
    "a connection that is reset at 60 per cent": Passing(fault=ResetAfter(0.6), in_vain=BLOCK_SIZE),
    "a connection that is reset before its first byte": Passing(fault=ResetAfter(0)),
    "an answer whose body and length are both short": Passing(fault=ShortLength(1_000_000)),
    "a single 503 for content": Passing(fault=Status(503)),
    "a single 500 for content": Passing(fault=Status(500)),
    "two 503 when asked where the file is": Passing(fault=Status(503), on="head", times=2, heads=3),
    "a HEAD whose connection ends without an answer": Passing(fault=CutAfter(0), on="head", heads=2),
    "a HEAD whose connection is reset": Passing(fault=ResetAfter(0), on="head", heads=2),
    "an address that is refused the first time": Passing(fault=Status(403), heads=2),
    "an address that is refused when a second block is asked for": Passing(fault=Status(403), skip=2, heads=2),
    "an address that expires on the way": Passing(fault=ExpireSignatures(1), heads=2),
    "a server that ignores Range from the start": Passing(fault=IgnoreRange(), times=99, in_vain=2 * LARGE),
    "a server that ignores Range later on": Passing(fault=IgnoreRange(), skip=2, times=99, in_vain=2 * LARGE),
    "a server without X-Repo-Commit": Passing(fault=OmitHeader("X-Repo-Commit"), on="head"),
    "a server without X-Linked-Etag": Passing(fault=OmitHeader("X-Linked-Etag"), on="head"),
    "a server without X-Linked-Size": Passing(fault=OmitHeader("X-Linked-Size"), on="head"),
    "a content network without ETag": Passing(fault=OmitHeader("ETag"), times=99),
}


def begin_passing(sandbox: Sandbox, case: Passing) -> Running:
    sandbox.publish(tensors(LARGE))
    sandbox.hub.fault(case.fault, on=case.on, times=case.times, skip=case.skip)
    return sandbox.start("install")


@pytest.fixture(scope="module")
def passed(make_sandbox: Callable[[], Sandbox]) -> Ahead:
    """Start the runs against faults that pass, a few at a time."""
    return Ahead(make_sandbox, {name: partial(begin_passing, case=case) for name, case in PASSING.items()})


@pytest.mark.parametrize("name", PASSING)
def test_gets_over(name: str, passed: Ahead) -> None:
    case = PASSING[name]
    sandbox, done = passed.take(name)
    (wanted,) = sandbox.files
    assert (done.returncode, done.stderr.count("error:")) == (0, 0), done.stderr
    sandbox.assert_in_place()
    if case.times < 99:
        assert sandbox.hub.faults_waiting == 0
    assert served_besides(sandbox, wanted) <= case.in_vain
    assert len(sandbox.heads()) == case.heads
    assert not any(request.authorization for request in sandbox.gets())


def test_a_cut_is_continued_from_its_last_byte(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SMALL))
    sandbox.hub.fault(CutAfter(0.6))
    assert sandbox.install().returncode == 0
    first, second = sandbox.gets()
    assert first.bytes_sent == int(0.6 * SMALL)
    assert second.range == f"bytes={int(0.6 * SMALL)}-{SMALL - 1}"
    assert second.if_range == f'"{wanted.sha256}"'


def test_restarts_when_the_server_ignores_range(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(LARGE))
    sandbox.hub.fault(CutAfter(0.6))
    sandbox.hub.fault(IgnoreRange(), times=None)
    done = sandbox.install("--connections", "1", "--verbose")
    assert done.returncode == 0
    assert "does not send ranges" in done.said
    assert sandbox.gets()[-1].range is None
    sandbox.assert_in_place(wanted)


def test_waits_out_a_total_stall_on_another_connection(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SMALL))
    sandbox.hub.fault(Stall(after=0.5, seconds=40))
    done = sandbox.install("--stall-timeout", "1")
    assert done.returncode == 0, done.stderr
    assert done.seconds < 30  # not the 40 of the stall
    assert sandbox.gets()[1].range == f"bytes={SMALL // 2}-{SMALL - 1}"
    sandbox.assert_in_place(wanted)


@pytest.mark.parametrize("limit", [(), ("--limit-rate", "20M")], ids=["unlimited", "limited"])
def test_opens_a_connection_anew_that_only_drips(sandbox: Sandbox, limit: tuple[str, ...]) -> None:
    (wanted,) = sandbox.publish(tensors(SMALL))
    sandbox.hub.fault(Drip(bytes_each=1, every_s=0.2, after=0.5))
    done = sandbox.install("--stall-timeout", "1", *limit)
    assert done.returncode == 0, done.stderr  # and not after the days that the rest would drip
    continued = sandbox.gets()[1].range
    assert continued is not None
    assert int(continued.removeprefix("bytes=").partition("-")[0]) >= SMALL // 2
    sandbox.assert_in_place(wanted)


@pytest.mark.parametrize("place", ["content", "head"])
def test_waits_as_long_as_a_429_asks(sandbox: Sandbox, place: Place) -> None:
    sandbox.publish(tensors(SMALL))
    sandbox.hub.fault(Status(429, (("Retry-After", "3"),)), on=place)
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    asked = [each.at for each in (sandbox.gets() if place == "content" else sandbox.heads())]
    assert 2.99 <= asked[1] - asked[0] < 20
    sandbox.assert_in_place()


def test_shows_the_token_to_the_hub_alone_when_redirected_to_a_third_origin(
    sandbox: Sandbox, make_sandbox: Callable[[], Sandbox]
) -> None:
    other = make_sandbox()
    (wanted,) = sandbox.publish(tensors(SMALL))
    other.publish(wanted, is_direct=True)
    elsewhere = f"{other.hub.endpoint}/{REPOSITORY}/resolve/{REVISION}/{wanted.filename}"
    sandbox.hub.fault(RedirectElsewhere(elsewhere), times=None)
    assert sandbox.install().returncode == 0
    sandbox.assert_in_place()
    assert {each.authorization for each in sandbox.heads()} == {f"Bearer {TOKEN}"}
    assert other.gets()
    assert {each.authorization for each in (*other.gets(), *sandbox.gets())} == {None}


# --- other content ---------------------------------------------------------------------------------


def test_refuses_same_size_wrong_content(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(LARGE))
    sandbox.hub.fault(WrongBytes(count=1), times=None)
    done = sandbox.install("--json")
    assert (done.returncode, done.codes) == (7, ["hash-mismatch"])
    sandbox.assert_nothing_placed()
    bad = sandbox.path().with_name(wanted.name + ".bad")
    assert bad.stat().st_size == LARGE
    assert str(bad) in done.json["errors"][0]["message"]
    assert wanted.sha256 in done.json["errors"][0]["message"]
    assert served_besides(sandbox, wanted) == 0  # a wrong hash of a full download is not tried again


def test_takes_the_second_source_when_the_first_sends_wrong_bytes(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(Wanted(data=tensors(SMALL), repositories=(REPOSITORY, MIRROR)))
    sandbox.hub.fault(WrongBytes(count=1))
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    assert "Trying the next source" in done.said
    sandbox.assert_in_place()
    assert MIRROR in sandbox.receipt()["vae/small.safetensors"]["source"]
    assert not sandbox.path().with_name(wanted.name + ".bad").exists()


def test_starts_again_when_the_content_changes_on_the_way_and_is_right_in_the_end(sandbox: Sandbox) -> None:
    right, wrong = tensors(LARGE), tensors(LARGE, seed=1)
    (wanted,) = sandbox.publish(right)
    sandbox.hub.fault(OtherContent("1" * 64, wrong))
    sandbox.hub.fault(OtherContent(wanted.sha256, right), skip=1)
    done = sandbox.install("--connections", "1", "--verbose")
    assert done.returncode == 0, done.stderr
    assert "starting again from the first byte" in done.said
    sandbox.assert_in_place()


def test_refuses_content_that_changed_on_the_way_and_stays_wrong(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(LARGE))
    sandbox.hub.fault(OtherContent("1" * 64, tensors(LARGE, seed=1)), skip=1)
    done = sandbox.install("--connections", "1", "--json")
    assert (done.returncode, done.codes) == (7, ["hash-mismatch"])
    assert sandbox.gets()[-1].range == f"bytes={2 * BLOCK_SIZE}-{LARGE - 1}"  # all of it was fetched anew
    sandbox.assert_nothing_placed()


def test_a_connection_left_behind_by_a_restart_writes_nothing_any_more(sandbox: Sandbox) -> None:
    right, wrong = tensors(LARGE), tensors(LARGE, seed=1)
    (wanted,) = sandbox.publish(right)
    sandbox.hub.rate_bytes_s_per_connection = 20 * MIB
    sandbox.hub.fault(OtherContent("1" * 64, wrong))  # the first block comes from other content,
    sandbox.hub.fault(Stall(after=0.25, seconds=4.2), min_offset=BLOCK_SIZE)  # the second hangs in the middle of it,
    sandbox.hub.fault(OtherContent(wanted.sha256, right))  # what is asked for next is right and starts the file anew,
    sandbox.hub.fault(Stall(after=0.5, seconds=2), min_offset=2 * BLOCK_SIZE)  # and is not done when the first wakes
    done = sandbox.install("--connections", "2", "--verbose")
    assert done.returncode == 0, done.stderr
    assert sandbox.hub.faults_waiting == 0
    assert done.said.count("starting again from the first byte") == 1
    sandbox.assert_in_place()


def test_answers_that_are_looked_at_in_another_order_than_they_were_sent_start_the_file_anew_once() -> None:
    data = b"the right bytes"
    wanted = artifact(data, sources=(HubFile(repo_id=REPOSITORY, revision=REVISION, filename="x.bin"),))
    second_came, asked = threading.Event(), []

    class Changing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(200, "new", "", len(data))

        def do_GET(self) -> None:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            asked.append(first)
            etag = "old" if asked.count(first) == 1 == len(asked) else "new"
            if etag == "old":  # sent before the other, read after it
                second_came.wait(5)
                time.sleep(0.2)
            self.answer(206, etag, f"bytes {first}-{last}/{len(data)}", last + 1 - first)
            self.wfile.write(data[first : last + 1])
            second_came.set()

        def answer(self, status: int, etag: str, content_range: str, length: int) -> None:
            self.send_response(status)
            self.send_header("ETag", f'"{etag}"')
            if content_range:
                self.send_header("Content-Range", content_range)
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    notices: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Changing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fetcher = RangeFetcher(
            credentials=Credentials(None, f"http://127.0.0.1:{server.server_port}"), notice=notices.append
        )
        part = MemoryPart(MemoryStore(), comfy_file(wanted), wanted, None)
        fetcher.fetch(wanted.sources[0], wanted, part, progress=lambda _: None)
        server.shutdown()
    assert bytes(part.data) == data
    assert len([text for text in notices if "starting again from the first byte" in text]) == 1


# --- faults that stay, in the end ------------------------------------------------------------------


@pytest.mark.parametrize("name", STAYING)
def test_gives_up_after_a_bounded_time_and_continues_later(name: str, stayed: Started) -> None:
    case, (sandbox, running) = STAYING[name], stayed[name]
    done = running.wait()
    assert (done.returncode, done.codes) == (case.status, [case.code]), done.stderr
    assert case.says in done.said
    sandbox.assert_nothing_placed()
    held = sandbox.bytes_in_log()
    assert held == (BLOCK_SIZE if case.skip else 0)
    sandbox.hub.clear_faults()
    sandbox.hub.clear_requests()
    again = sandbox.install()
    assert again.returncode == 0, again.stderr
    assert sandbox.bytes_served() == LARGE - held
    sandbox.assert_in_place()


def test_does_not_wait_for_a_429_that_asks_for_an_hour(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(LARGE))
    sandbox.hub.fault(Status(429, (("Retry-After", "3600"),)), times=None, skip=1)
    done = sandbox.install("--connections", "1", "--json")
    assert (done.returncode, done.codes) == (5, ["rate-limited"])
    assert done.seconds < 30
    assert "3600 s" in done.said
    assert sandbox.bytes_in_log() == BLOCK_SIZE


def test_survives_a_network_on_which_everything_happens(sandbox: Sandbox) -> None:
    files = sandbox.publish(*(Wanted(data=tensors(LARGE, seed), name=f"{seed}.safetensors") for seed in range(3)))
    source = random.Random(7)
    faults: list[Fault] = [CutAfter(0.3), ResetAfter(0.7), Status(503), ShortLength(99), Status(403), CutAfter(0)]
    for fault in source.choices(faults, k=14):
        sandbox.hub.fault(fault, skip=source.randrange(2))
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    sandbox.assert_in_place(*files)
