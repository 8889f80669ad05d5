"""The embedded hub as a plain HTTP client sees it: its answers, its faults, its end."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from provisioner.rehearsal import faults
from provisioner.rehearsal.hub import RehearsalHub
from tests.support.wine import needs

COMMIT = "c0ffee" + "0" * 34
WEIGHTS = random.Random(1).randbytes(300_000)
CONFIG = b'{"hidden_size": 32}\n'
TOKEN = "hf_reader"


class Reply:
    """What came back; ``error`` is the exception that ended the body."""

    def __init__(self, status: int, headers: http.client.HTTPMessage, body: bytes, error: Exception | None) -> None:
        self.status, self.headers, self.body, self.error = status, headers, body, error


def ask(
    url: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    limit: int | None = None,
    token: str | None = None,
    **headers: str,
) -> Reply:
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
        with connection.getresponse() as response:
            received, error = b"", None
            try:
                while piece := response.read1(65536):
                    received += piece
                    if limit is not None and len(received) > limit:
                        break
            except (OSError, http.client.HTTPException) as broken:
                error = broken
            if error is None and response.length:
                error = http.client.IncompleteRead(received, response.length)  # read1 does not say so itself
            return Reply(response.status, response.headers, received, error)
    finally:
        connection.close()


@pytest.fixture
def hub() -> Iterator[RehearsalHub]:
    with RehearsalHub(tokens=("hf_stranger",)) as hub:
        hub.add_repository("org/open", COMMIT, {"model/weights.safetensors": WEIGHTS, "config.json": CONFIG})
        yield hub
        assert [each for each in hub.violations if "token" not in each] == []


def resolve(hub: RehearsalHub, filename: str = "model/weights.safetensors", repo_id: str = "org/open") -> str:
    return f"{hub.endpoint}/{repo_id}/resolve/{COMMIT}/{filename}"


def signed(hub: RehearsalHub) -> str:
    location = ask(resolve(hub), method="HEAD").headers["Location"]
    assert isinstance(location, str)
    return location


def test_redirects_a_large_file_to_a_signed_address_on_another_origin(hub: RehearsalHub) -> None:
    reply = ask(resolve(hub), method="HEAD")
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert reply.status == 302
    assert reply.headers["Content-Length"] == "0"
    assert reply.headers["X-Repo-Commit"] == COMMIT
    assert reply.headers["X-Linked-Size"] == str(len(WEIGHTS))
    assert reply.headers["X-Linked-Etag"] == f'"{digest}"'
    assert reply.headers["Location"].startswith(f"{hub.content_origin}/blob/{digest}?Expires=")
    assert reply.headers["RateLimit"] == '"resolvers";r=2999;t=172'
    assert not any(name.lower().startswith("x-xet") for name in reply.headers)
    answer = ask(reply.headers["Location"])
    assert (answer.status, answer.body, answer.headers["ETag"]) == (200, WEIGHTS, f'"{digest}"')


def test_answers_a_small_file_by_its_git_blob_id(hub: RehearsalHub) -> None:
    reply = ask(resolve(hub, "config.json"))
    assert (reply.status, reply.headers["X-Repo-Commit"]) == (307, COMMIT)
    assert reply.headers["Location"].startswith("/api/resolve-cache/models/org/open/")
    answer = ask(hub.endpoint + reply.headers["Location"])
    blob = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG, usedforsecurity=False).hexdigest()
    assert (answer.status, answer.body, answer.headers["ETag"]) == (200, CONFIG, f'"{blob}"')


def test_a_direct_repository_answers_with_the_bytes_themselves(hub: RehearsalHub) -> None:
    hub.add_repository("org/mirror", COMMIT, {"a.safetensors": WEIGHTS}, is_direct=True)
    url = resolve(hub, "a.safetensors", "org/mirror")
    head, part = ask(url, method="HEAD"), ask(url, Range="bytes=10-19")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(WEIGHTS)), b"")
    assert (part.status, part.body, part.headers["X-Repo-Commit"]) == (206, WEIGHTS[10:20], COMMIT)


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "start", "stop"),
    [
        ("bytes=0-9", 206, "bytes 0-9/300000", 0, 10),
        ("bytes=299990-", 206, "bytes 299990-299999/300000", 299_990, 300_000),
        ("bytes=-5", 206, "bytes 299995-299999/300000", 299_995, 300_000),
        ("bytes=299990-400000", 206, "bytes 299990-299999/300000", 299_990, 300_000),
        ("bytes=300000-", 416, "bytes */300000", 0, 0),
        ("bytes=9-3", 200, None, 0, 300_000),
        ("bytes=0-1,5-6", 200, None, 0, 300_000),
        ("lines=0-1", 200, None, 0, 300_000),
    ],
)
def test_ranges_are_answered_as_rfc_9110_asks(
    hub: RehearsalHub, asked: str, status: int, content_range: str | None, start: int, stop: int
) -> None:
    reply = ask(signed(hub), Range=asked)
    assert (reply.status, reply.headers["Content-Range"], reply.body) == (status, content_range, WEIGHTS[start:stop])


def test_if_range_with_another_etag_gets_the_whole_file(hub: RehearsalHub) -> None:
    etag = f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert ask(signed(hub), Range="bytes=5-", If_Range=etag).status == 206
    assert ask(signed(hub), Range="bytes=5-", If_Range='"else"').body == WEIGHTS


def test_files_given_by_path_are_served_from_where_they_lie(hub: RehearsalHub, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(WEIGHTS)
    hub.add_repository("org/path", COMMIT, {"w.safetensors": path}, is_direct=True)
    url = resolve(hub, "w.safetensors", "org/path")
    assert ask(url).body == WEIGHTS
    assert ask(url, Range="bytes=1000-1999").body == WEIGHTS[1000:2000]
    hub.fault(faults.WrongBytes((1500,)))
    assert [a == b for a, b in zip(ask(url).body, WEIGHTS, strict=True)].index(False) == 1500


@pytest.mark.parametrize(
    ("repo_id", "revision", "filename", "token", "status", "code"),
    [
        ("org/none", COMMIT, "config.json", None, 401, "RepoNotFound"),
        ("org/none", COMMIT, "config.json", "hf_stranger", 404, "RepoNotFound"),
        ("org/private", COMMIT, "config.json", None, 401, "RepoNotFound"),
        ("org/private", COMMIT, "config.json", "hf_stranger", 404, "RepoNotFound"),
        ("org/private", COMMIT, "config.json", TOKEN, 307, None),
        ("org/gated", COMMIT, "config.json", None, 401, "GatedRepo"),
        ("org/gated", COMMIT, "config.json", "hf_stranger", 403, "GatedRepo"),
        ("org/gated", COMMIT, "config.json", TOKEN, 307, None),
        ("org/open", COMMIT, "config.json", "hf_expired", 401, None),
        ("org/open", "f" * 40, "config.json", None, 404, "RevisionNotFound"),
        ("org/open", COMMIT, "none.json", None, 404, "EntryNotFound"),
        ("org/open", "main", "config.json", None, 307, None),
    ],
)
def test_refuses_as_the_real_hub_does(
    hub: RehearsalHub, repo_id: str, revision: str, filename: str, token: str | None, status: int, code: str | None
) -> None:
    files = {"config.json": CONFIG}
    hub.add_repository("org/private", COMMIT, files, is_private=True, tokens=(TOKEN,))
    hub.add_repository("org/gated", COMMIT, files, is_gated=True, tokens=(TOKEN,))
    for method in ("HEAD", "GET"):
        reply = ask(f"{hub.endpoint}/{repo_id}/resolve/{revision}/{filename}", method=method, token=token)
        assert (reply.status, reply.headers["X-Error-Code"]) == (status, code)
        assert (reply.headers["X-Error-Message"] is not None) == (status >= 400)
        if code == "EntryNotFound":
            assert reply.headers["X-Repo-Commit"] == COMMIT


def test_a_renamed_repository_is_found_under_its_old_name(hub: RehearsalHub) -> None:
    hub.rename("org/open", "team/renamed")
    for path in (f"/org/open/resolve/{COMMIT}/config.json", "/api/models/org/open?blobs=true"):
        reply = ask(hub.endpoint + path)
        assert (reply.status, reply.headers["Location"]) == (307, path.replace("org/open", "team/renamed"))
    assert json.loads(ask(f"{hub.endpoint}/api/models/team/renamed").body)["id"] == "team/renamed"


def test_lists_files_and_folders_by_tree_and_by_paths(hub: RehearsalHub) -> None:
    url = f"{hub.endpoint}/api/models/org/open"
    tree = {item["path"]: item for item in json.loads(ask(f"{url}/tree/{COMMIT}?recursive=true").body)}
    assert set(tree) == {"model", "model/weights.safetensors", "config.json"}
    assert tree["model/weights.safetensors"]["lfs"]["oid"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert {item["path"] for item in json.loads(ask(f"{url}/tree/main").body)} == {"model", "config.json"}
    info = ask(f"{url}/paths-info/main", method="POST", body=b"paths=config.json&paths=none&paths=model&expand=False")
    assert json.loads(info.body) == [tree["config.json"], tree["model"]]
    as_json = ask(
        f"{url}/paths-info/main", method="POST", body=b'{"paths": ["config.json"]}', Content_Type="application/json"
    )
    assert json.loads(as_json.body) == [tree["config.json"]]
    assert json.loads(ask(url).body)["sha"] == COMMIT
    assert json.loads(ask(f"{url}/revision/{COMMIT}?blobs=true").body)["siblings"][0]["size"] == len(CONFIG)
    assert ask(f"{url}/xet-read-token/{COMMIT}").status == 404


@pytest.mark.parametrize("path", ["/", "/api/datasets/org/open", "/org/open", "/api/models/org/open/other"])
def test_knows_nothing_else(hub: RehearsalHub, path: str) -> None:
    assert ask(hub.endpoint + path).status == 404


def test_an_address_needs_its_signature_and_dies_with_it(hub: RehearsalHub) -> None:
    address = signed(hub)
    assert ask(address.split("?")[0]).status == 403
    assert ask(address + "x").status == 403
    assert ask(f"{hub.content_origin}/blob/{'0' * 64}").status == 404
    hub.signature_lifetime_s = -1
    assert ask(signed(hub)).status == 403
    assert ask(address).status == 200


def test_records_each_request_and_keeps_the_query_apart(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.clear_requests()
    ask(address, Range="bytes=0-99", If_Range='"x"', User_Agent="me", Accept_Encoding="identity")
    ask(resolve(hub, "config.json"), method="HEAD")
    assert hub.wait_until_idle()
    first, second = hub.requests
    assert (first.listener, first.method, first.status, first.filename) == (
        "content", "GET", 200, "model/weights.safetensors",
    )  # fmt: skip
    assert (first.range, first.if_range, first.user_agent, first.accept_encoding, first.authorization) == (
        "bytes=0-99", '"x"', "me", "identity", None,
    )  # fmt: skip
    assert "Signature" in first.query
    assert "Signature" not in first.path
    assert (second.listener, second.method, second.status, second.bytes_sent) == ("hub", "HEAD", 307, 0)
    assert hub.bytes_served == first.bytes_sent == len(WEIGHTS)


def test_a_token_shown_to_the_content_network_is_a_violation_that_does_not_repeat_it(hub: RehearsalHub) -> None:
    ask(signed(hub), token=TOKEN)
    assert len(hub.violations) == 1
    assert TOKEN not in hub.violations[0]


# --- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [150_000, 0.5])
def test_cut_promises_everything_and_ends_early(hub: RehearsalHub, at: float) -> None:
    address = signed(hub)
    hub.fault(faults.CutAfter(at))
    reply = ask(address)
    assert (reply.body, reply.headers["Content-Length"]) == (WEIGHTS[:150_000], str(len(WEIGHTS)))
    assert isinstance(reply.error, http.client.IncompleteRead)
    assert ask(address).body == WEIGHTS
    assert [each.bytes_sent for each in hub.requests[1:]] == [150_000, 300_000]
    assert hub.faults_waiting == 0


@needs("resets")
def test_reset_ends_with_a_reset_connection(hub: RehearsalHub) -> None:
    hub.fault(faults.ResetAfter(1000))
    assert isinstance(ask(signed(hub)).error, ConnectionResetError)


@pytest.mark.parametrize("fault", [faults.CutAfter(0), faults.ResetAfter(0)])
def test_an_answer_without_body_is_cut_before_it_begins(hub: RehearsalHub, fault: faults.Fault) -> None:
    hub.fault(fault, on="head")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(resolve(hub), method="HEAD")
    assert hub.requests[0].status is None


def test_stall_and_drip_take_their_time(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.fault(faults.Stall(1000, 0.3))
    hub.fault(faults.Drip(bytes_each=1, every_s=0.1, after=len(WEIGHTS) - 3))
    hub.fault(faults.Stall(0, 0.3), on="head")
    for url, method, body in ((address, "GET", WEIGHTS), (address, "GET", WEIGHTS), (resolve(hub), "HEAD", b"")):
        began = time.monotonic()
        assert ask(url, method=method).body == body
        assert time.monotonic() - began > 0.25


def test_status_replaces_the_answer_with_its_headers(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.fault(faults.Status(429, (("Retry-After", "3"),), b"slow down"))
    reply = ask(address)
    assert (reply.status, reply.headers["Retry-After"], reply.body) == (429, "3", b"slow down")


def test_short_length_is_short_in_both(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.fault(faults.ShortLength(100), times=2)
    assert (ask(address).body, ask(address, Range="bytes=0-999").body) == (WEIGHTS[:-100], WEIGHTS[:900])


def test_ignored_range_gets_everything(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.fault(faults.IgnoreRange())
    reply = ask(address, Range="bytes=5-9")
    assert (reply.status, reply.body) == (200, WEIGHTS)


def test_wrong_bytes_have_the_right_length_and_wait_for_the_part_that_holds_them(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.fault(faults.WrongBytes((70_000,)))
    assert ask(address, Range="bytes=0-999").body == WEIGHTS[:1000]
    wrong = ask(address, Range="bytes=65536-131071").body
    assert [i for i in range(65536) if wrong[i] != WEIGHTS[65536 + i]] == [70_000 - 65536]
    hub.fault(faults.WrongBytes(count=2))
    wrong = ask(address, Range="bytes=100-399").body
    assert [i for i in range(300) if wrong[i] != WEIGHTS[100 + i]] == [100, 200]


def test_other_content_stays_until_the_faults_are_cleared(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.fault(faults.OtherContent("other", b"x" * len(WEIGHTS)), min_offset=100)
    assert ask(address, Range="bytes=0-9").body == WEIGHTS[:10]
    for _ in range(2):
        reply = ask(address, Range="bytes=100-109")
        assert (reply.status, reply.body, reply.headers["ETag"]) == (206, b"x" * 10, '"other"')
    hub.clear_faults()
    assert ask(address, Range="bytes=100-109").body == WEIGHTS[100:110]


def test_wrong_headers_are_wrong_for_one_request(hub: RehearsalHub) -> None:
    hub.fault(faults.WrongLinkedSize(7), on="head")
    hub.fault(faults.WrongLinkedEtag("e" * 64), on="head")
    hub.fault(faults.OmitHeader("x-repo-commit"), on="head")
    first, second, third, fourth = (ask(resolve(hub), method="HEAD").headers for _ in range(4))
    assert first["X-Linked-Size"] == "7"
    assert second["X-Linked-Etag"] == f'"{"e" * 64}"'
    assert third["X-Repo-Commit"] is None
    assert (fourth["X-Linked-Size"], fourth["X-Repo-Commit"]) == (str(len(WEIGHTS)), COMMIT)


def test_wrong_headers_of_a_direct_answer_are_its_own(hub: RehearsalHub) -> None:
    hub.add_repository("org/mirror", COMMIT, {"a.safetensors": WEIGHTS}, is_direct=True)
    url = resolve(hub, "a.safetensors", "org/mirror")
    hub.fault(faults.WrongLinkedSize(7), on="head")
    hub.fault(faults.WrongLinkedEtag("e"), on="head")
    assert ask(url, method="HEAD").headers["Content-Length"] == "7"
    assert ask(url, method="HEAD").headers["ETag"] == '"e"'


def test_wrong_total_lies_in_content_range_or_content_length(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.fault(faults.WrongTotal(400_000), times=2)
    assert ask(address, Range="bytes=0-9").headers["Content-Range"] == "bytes 0-9/400000"
    reply = ask(address)
    assert (reply.headers["Content-Length"], reply.body) == ("400000", WEIGHTS)
    assert reply.error is not None


def test_endless_goes_on_until_the_client_or_the_limit_ends_it(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.fault(faults.Endless())
    hub.fault(faults.Endless(limit=1_000_000))
    assert ask(address, limit=5_000_000).body.startswith(WEIGHTS + bytes(1000))
    reply = ask(address)
    assert reply.headers["Transfer-Encoding"] == "chunked"
    assert isinstance(reply.error, http.client.IncompleteRead)


def test_a_web_page_may_come_instead_of_the_file(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.fault(faults.HtmlPage())
    hub.fault(faults.LoginRedirect())
    hub.fault(faults.RedirectElsewhere("http://example.invalid/x"), on="hub")
    assert ask(address).body.startswith(b"<!DOCTYPE html>")
    assert ask(address).headers["Location"] == "/login"
    assert ask(resolve(hub)).headers["Location"] == "http://example.invalid/x"
    for origin in (hub.endpoint, hub.content_origin):
        assert ask(f"{origin}/login").headers["Content-Type"].startswith("text/html")


def test_signatures_expire_after_so_many_requests_until_resolved_anew(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.fault(faults.ExpireSignatures(2))
    assert [ask(address, Range="bytes=0-9").status for _ in range(4)] == [206, 206, 403, 403]
    assert [ask(signed(hub), Range="bytes=0-9").status for _ in range(2)] == [206, 206]


def test_a_fault_finds_the_request_it_is_meant_for(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.fault(faults.Status(503), on="content", filename="*.gguf")
    hub.fault(faults.Status(500), on="api")
    hub.fault(faults.Status(502), on="head", filename="model/*", skip=1, times=None)
    assert ask(address).status == 200
    assert ask(f"{hub.endpoint}/api/models/org/open").status == 500
    assert [ask(resolve(hub), method="HEAD").status for _ in range(3)] == [302, 502, 502]
    assert ask(resolve(hub, "config.json"), method="HEAD").status == 307
    assert [each.fault for each in hub.requests[-2:]] == ["Status", None]


# --- pace and end ------------------------------------------------------------------------------


def test_a_connection_gets_no_more_than_its_rate(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.rate_bytes_s_per_connection = 600_000
    hub.latency_s = 0.05
    began = time.monotonic()
    assert ask(address).body == WEIGHTS
    assert time.monotonic() - began > 0.45


def test_connections_are_kept_alive(hub: RehearsalHub) -> None:
    parts = urlsplit(signed(hub))
    connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    ports = set()
    for _ in range(3):
        connection.request("GET", f"{parts.path}?{parts.query}", headers={"Range": "bytes=0-9"})
        assert connection.getresponse().read() == WEIGHTS[:10]
        ports.add(connection.sock.getsockname()[1])
    connection.close()
    assert len(ports) == 1


def test_a_client_that_hangs_up_is_no_violation(hub: RehearsalHub) -> None:
    parts = urlsplit(signed(hub))
    hub.rate_bytes_s_per_connection = 1_000_000
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as client:
        client.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        client.recv(100)
    assert hub.wait_until_idle()
    assert hub.violations == []


@pytest.mark.parametrize("fault", [faults.Stall(10, 60.0), faults.Drip(1, 60.0), faults.Endless(), faults.Stall(0, 60)])
def test_close_ends_whatever_is_under_way(fault: faults.Fault) -> None:
    before = set(threading.enumerate())
    hub = RehearsalHub()
    hub.add_repository("org/open", COMMIT, {"model/weights.safetensors": WEIGHTS})
    parts = urlsplit(signed(hub))
    hub.fault(fault)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as client:
        client.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        client.recv(100)
        began = time.monotonic()
        hub.close()
        assert time.monotonic() - began < 20  # each fault takes a minute and more
    assert set(threading.enumerate()) <= before
    hub.close()


def test_serves_a_folder_as_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.safetensors").write_bytes(WEIGHTS)
    command = [sys.executable, "-m", "provisioner.rehearsal.hub", "--repository", "org/name", "--revision", COMMIT]
    root = Path(__file__).parents[2]
    process = subprocess.Popen([*command, "--direct", str(tmp_path)], stdout=subprocess.PIPE, cwd=root, text=True)
    try:
        assert process.stdout is not None
        endpoint = json.loads(process.stdout.readline())["endpoint"]
        assert ask(f"{endpoint}/org/name/resolve/{COMMIT}/sub/w.safetensors").body == WEIGHTS
    finally:
        process.kill()
        process.communicate()


def test_what_was_under_way_when_the_record_was_cleared_stays_out_of_it(hub: RehearsalHub) -> None:
    address = signed(hub)
    hub.fault(faults.Stall(1000, 0.3))
    slow = threading.Thread(target=ask, args=(address,))
    slow.start()
    while len(hub.requests) < 2 or hub.requests[1].bytes_sent < 1000:
        time.sleep(0.01)
    hub.clear_requests()
    ask(resolve(hub, "config.json"), method="HEAD")
    slow.join()
    assert [(each.method, each.bytes_sent) for each in hub.requests] == [("HEAD", 0)]
