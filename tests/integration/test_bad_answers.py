"""Servers that say something else than they should, and servers that are not there."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from provisioner.rehearsal.faults import (
    CutAfter,
    Endless,
    Fault,
    HtmlPage,
    IgnoreRange,
    LoginRedirect,
    OmitHeader,
    Place,
    RedirectElsewhere,
    Status,
    WrongBytes,
    WrongLinkedEtag,
    WrongLinkedSize,
    WrongTotal,
)
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

FILENAME = Wanted(data=b"").filename
SIZE = 2 * MIB
LARGE = 37 * MIB


# --- servers that are not there ------------------------------------------------------------------------

ABSENT = {
    "a closed port": "127.0.0.1 could not be reached",
    "a host name that does not exist": "no-such-host.invalid could not be reached",
    "a server that speaks another language": "127.0.0.1 could not be reached",
}


def speak_ssh(listener: socket.socket) -> None:
    """Greet every caller as an SSH server does, and hang up."""
    with contextlib.suppress(OSError):
        while True:
            caller, _ = listener.accept()
            with caller:
                caller.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")


@pytest.fixture(scope="module")
def absent(make_sandbox: Callable[[], Sandbox]) -> Iterator[dict[str, tuple[Sandbox, Running]]]:
    """Start a run against each; they spend their time waiting, so they do it side by side."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=speak_ssh, args=(listener,), daemon=True).start()
        endpoints = {
            "a closed port": f"http://127.0.0.1:{closed}",
            "a host name that does not exist": "http://no-such-host.invalid",
            "a server that speaks another language": f"http://127.0.0.1:{listener.getsockname()[1]}",
        }
        runs = {}
        for name, endpoint in endpoints.items():
            sandbox = make_sandbox()
            sandbox.publish(tensors(SIZE))
            runs[name] = sandbox, sandbox.start("install", "--json", "--verbose", "--endpoint", endpoint)
        yield runs
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def test_asks_more_than_once_before_it_says_so(absent: dict[str, tuple[Sandbox, Running]]) -> None:
    _, running = absent["a closed port"]
    wait_until(lambda: "[1/1] fetching" in running.stderr_so_far, what="the Hub was asked")
    time.sleep(0.5)
    assert running.process.poll() is None


# --- answers that are refused ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Refused:
    """An answer that is no use, and how the run ends."""

    fault: Fault
    status: int
    code: str
    says: str
    on: Place = "content"
    is_direct: bool = False
    most_content: int = 0  # bytes of content that may have been sent before it was noticed


PAGE = HtmlPage().page
REFUSED = {
    "a wrong X-Linked-Size": Refused(
        fault=WrongLinkedSize(SIZE + 1), on="head", status=7, code="size-mismatch", says="2,097,153 bytes instead of"
    ),
    "a wrong X-Linked-Etag": Refused(
        fault=WrongLinkedEtag("ab" * 32), on="head", status=7, code="not-the-file", says="Nothing was fetched"
    ),
    "a wrong length of a direct answer": Refused(
        fault=WrongLinkedSize(SIZE - 1), on="head", is_direct=True, status=7, code="size-mismatch", says="2,097,151"
    ),
    "a wrong total in Content-Range": Refused(
        fault=WrongTotal(SIZE + 9), status=7, code="size-mismatch", says="2,097,161 bytes", most_content=SIZE
    ),
    "a login page instead of the file": Refused(
        fault=LoginRedirect(), status=7, code="not-the-file", says="a web page instead of", most_content=1000
    ),
    "a login page when asked where the file is": Refused(
        fault=LoginRedirect(), on="head", status=7, code="not-the-file", says="a web page instead of"
    ),
    "a web page of another size": Refused(
        fault=HtmlPage(), status=7, code="not-the-file", says="a web page instead of", most_content=len(PAGE)
    ),
    "a web page of the same size": Refused(
        fault=HtmlPage(PAGE + b" " * (SIZE - len(PAGE))),
        status=7,
        code="hash-mismatch",
        says="other bytes than the manifest names",
        most_content=2 * SIZE,
    ),
    "a redirect in a circle": Refused(
        fault=RedirectElsewhere(f"/{REPOSITORY}/resolve/{REVISION}/{FILENAME}"),
        on="head",
        status=5,
        code="server-error",
        says="in circles",
    ),
    "a redirect of the content in a circle": Refused(
        fault=RedirectElsewhere(f"/{REPOSITORY}/resolve/{REVISION}/{FILENAME}"),
        is_direct=True,
        status=5,
        code="server-error",
        says="in circles",
    ),
    "a redirect to a file of this computer": Refused(
        fault=RedirectElsewhere("file:///etc/passwd"), on="head", status=5, code="server-error", says="to nowhere"
    ),
    "a redirect of the content to a file of this computer": Refused(
        fault=RedirectElsewhere("file:///etc/passwd"), status=5, code="server-error", says="to nowhere"
    ),
    "a 451": Refused(fault=Status(451), on="head", status=6, code="repository-not-found", says=REPOSITORY),
    "a 418": Refused(fault=Status(418), on="head", status=5, code="server-error", says="answers 418"),
}


def begin_refused(sandbox: Sandbox, case: Refused) -> Running:
    sandbox.publish(tensors(SIZE), is_direct=case.is_direct)
    sandbox.hub.fault(case.fault, on=case.on, times=None)
    return sandbox.start("install", "--json")


@pytest.fixture(scope="module")
def refused(make_sandbox: Callable[[], Sandbox]) -> Ahead:
    """Start the runs against answers that are no use, a few at a time."""
    return Ahead(make_sandbox, {name: partial(begin_refused, case=case) for name, case in REFUSED.items()})


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str, refused: Ahead) -> None:
    case = REFUSED[name]
    sandbox, done = refused.take(name)
    assert (done.returncode, done.codes) == (case.status, [case.code]), done.stderr
    assert case.says in done.said
    assert done.json["errors"][0]["hint"]
    assert done.seconds < 10
    assert sandbox.bytes_served() <= case.most_content
    sandbox.assert_nothing_placed()


def test_refuses_a_wrong_size_before_the_first_byte(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    sandbox.hub.fault(WrongLinkedSize(SIZE * 2), on="head", times=None)
    done = sandbox.install()
    assert done.returncode == 7
    assert sandbox.gets() == []
    assert len(sandbox.heads()) == 1
    assert not sandbox.part().exists() or sandbox.bytes_in_log() == 0


def test_reads_no_more_of_an_endless_range_than_it_asked_for(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(LARGE))
    sandbox.hub.fault(Endless(), times=None)
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    sandbox.assert_in_place()


def test_refuses_an_endless_body_as_soon_as_it_is_longer_than_the_file(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(LARGE))
    sandbox.hub.fault(IgnoreRange(), times=1)  # from now on the whole is asked for, without a range,
    sandbox.hub.fault(Endless(), times=None)  # and goes on for gigabytes
    done = sandbox.install("--connections", "1", "--json")  # a second connection could take the first fault's place
    assert (done.returncode, done.codes) == (7, ["size-mismatch"]), done.stderr
    assert "more bytes than" in done.said
    assert done.seconds < 10
    assert sandbox.part().stat().st_size == LARGE
    sandbox.assert_nothing_placed()


def test_takes_the_second_source_when_the_first_says_no(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(Wanted(data=tensors(SIZE), repositories=(REPOSITORY, MIRROR)))
    sandbox.hub.fault(Status(404, (("X-Error-Code", "EntryNotFound"),)), on="head")
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    sandbox.assert_in_place(wanted)
    assert MIRROR in sandbox.receipt()["vae/small.safetensors"]["source"]


def test_names_every_source_when_all_fail(sandbox: Sandbox) -> None:
    sandbox.publish(Wanted(data=tensors(SIZE), repositories=(REPOSITORY, MIRROR)))
    sandbox.hub.fault(Status(404, (("X-Error-Code", "EntryNotFound"),)), on="head")
    sandbox.hub.fault(WrongBytes(), times=None)
    done = sandbox.install("--json")
    assert (done.returncode, done.codes) == (7, ["hash-mismatch"])  # wrong bytes weigh more than a 404
    assert f"{MIRROR}@" in done.said
    assert f"{REPOSITORY} has no file" in done.said


# --- answers that are odd and fine ---------------------------------------------------------------------


def test_follows_a_renamed_repository_on_the_same_origin(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    sandbox.hub.rename(REPOSITORY, "org/new-name")
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    assert [each.authorization for each in sandbox.heads()] == [f"Bearer {TOKEN}"] * 2
    assert "new-name" in sandbox.heads()[1].path
    sandbox.assert_in_place(wanted)


@pytest.mark.parametrize("size", [SIZE, LARGE])
def test_takes_the_bytes_from_a_mirror_that_answers_directly(sandbox: Sandbox, size: int) -> None:
    (wanted,) = sandbox.publish(tensors(size), is_direct=True)
    sandbox.hub.fault(CutAfter(0.5))
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    assert {each.listener for each in sandbox.hub.requests} == {"hub"}
    assert sandbox.bytes_served() == size
    sandbox.assert_in_place(wanted)


@pytest.mark.parametrize("header", ["ETag", "X-Repo-Commit", "Accept-Ranges", "Content-Length", "Date"])
def test_a_mirror_may_leave_headers_out(sandbox: Sandbox, header: str) -> None:
    sandbox.publish(tensors(SIZE), is_direct=True)
    for place in ("head", "content"):
        sandbox.hub.fault(OmitHeader(header), on=place, times=None)
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    sandbox.assert_in_place()


def test_a_mirror_without_head_is_asked_for_ranges_all_the_same(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE), is_direct=True)
    sandbox.hub.fault(Status(405), on="head", times=None)
    assert sandbox.install().returncode == 0
    sandbox.assert_in_place()


def test_a_small_file_comes_from_the_hub_itself(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(Wanted(data=b'{"hidden_size": 32}\n', name="config.json", folder="vae"))
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    assert {each.listener for each in sandbox.hub.requests} == {"hub"}
    sandbox.assert_in_place(wanted)


# --- servers that are not there, in the end ------------------------------------------------------------


@pytest.mark.parametrize("name", ABSENT)
def test_says_that_the_hub_cannot_be_reached(name: str, absent: dict[str, tuple[Sandbox, Running]]) -> None:
    sandbox, running = absent[name]
    done = running.wait()
    assert (done.returncode, done.codes) == (5, ["unreachable"]), done.stderr
    assert ABSENT[name] in done.json["errors"][0]["message"]
    assert "HF_ENDPOINT" in done.json["errors"][0]["hint"]
    assert sandbox.hub.requests == ()
    sandbox.assert_nothing_placed()
