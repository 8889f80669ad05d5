"""Answers as values: errors, JSON, bytes of a file by range, and each of them as a fault leaves it.

Knows neither sockets nor what the hub holds.
"""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import parse_qs

from provisioner.rehearsal.content import Commit, Content
from provisioner.rehearsal.faults import (
    Fault,
    HtmlPage,
    LoginRedirect,
    OmitHeader,
    RedirectElsewhere,
    ShortLength,
    Status,
    WrongLinkedEtag,
    WrongLinkedSize,
    WrongTotal,
)
from provisioner.rehearsal.http_server import Answer, Request, Span


def json_answer(value: object) -> Answer:
    """Return 200 with `value` as JSON."""
    return Answer(200, (("Content-Type", "application/json; charset=utf-8"),), json.dumps(value).encode())


def html_answer(page: bytes) -> Answer:
    """Return 200 with a web page."""
    return Answer(200, (("Content-Type", "text/html; charset=utf-8"),), page)


def refusal(status: int, code: str, message: str) -> Answer:
    """Return an error as the hub words it: ``X-Error-Code`` (unless "") and ``X-Error-Message``."""
    headers = [("Content-Type", "application/json; charset=utf-8"), ("X-Error-Message", message)]
    if code:
        headers.append(("X-Error-Code", code))
    return Answer(status, tuple(headers), json.dumps({"error": message}).encode())


def denial(code: str, status: int) -> Answer:
    """Return an error as the content network words it."""
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code></Error>'.encode()
    return Answer(status, (("Content-Type", "application/xml"),), body)


def paths_info(commit: Commit, request: Request) -> list[dict[str, object]]:
    """Return what ``POST paths-info`` says; the paths come form encoded or as JSON."""
    text = request.body.decode("utf-8", "replace")
    if request.headers.get("content-type", "").startswith("application/json"):
        asked = json.loads(text).get("paths", [])
    else:
        asked = parse_qs(text).get("paths", [])
    folders = commit.folders()
    known = {path: entry.listing() for path, entry in commit.entries.items()} | folders
    return [known[path] for path in asked if path in known]  # unknown paths are silently absent


def select_bytes(request: Request, etag: str, size: int) -> tuple[int, int, bool]:
    """Return first byte, length and whether that is a part; a length of -1: the range cannot be satisfied.

    Several ranges, and a range whose ``If-Range`` is not the ETag, get the whole (RFC 9110, 13.1.5 and 14.2).
    """
    unit, _, asked = request.headers.get("range", "").partition("=")
    condition = request.headers.get("if-range")
    is_current = condition is None or condition == f'"{etag}"'
    first, dash, last = asked.strip().partition("-")
    is_single = dash and all(not bound or bound.isdecimal() for bound in (first, last)) and (first or last)
    if unit.strip().lower() != "bytes" or not is_single or not is_current:
        return 0, size, False
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if first and last and int(last) < int(first):
        return 0, size, False  # not a valid range: ignored
    return (start, stop - start, True) if start < stop else (start, -1, True)


def file_answer(
    request: Request, content: Content, etag: str, headers: tuple[tuple[str, str], ...], *, is_range_ignored: bool
) -> Answer:
    """Return 200, 206 or 416 for the bytes of a file."""
    start, length, is_part = (0, content.size, False) if is_range_ignored else select_bytes(request, etag, content.size)
    common = (("Content-Type", "application/octet-stream"), ("ETag", f'"{etag}"'), *headers)
    if length < 0:
        return Answer(416, (*common, ("Content-Range", f"bytes */{content.size}")))
    if not is_part:
        return Answer(200, common, Span(content, 0, content.size))
    content_range = ("Content-Range", f"bytes {start}-{start + length - 1}/{content.size}")
    return Answer(206, (*common, content_range), Span(content, start, length))


def disturbed(answer: Answer, fault: Fault | None) -> Answer:
    """Return `answer` as `fault` leaves it; what happens to the body on its way is left to the server."""
    return replace(_changed(answer, fault), fault=fault, filename=answer.filename)


def _changed(answer: Answer, fault: Fault | None) -> Answer:
    names = {name for name, _ in answer.headers}
    match fault:
        case Status():
            return Answer(fault.code, fault.headers, fault.body)
        case HtmlPage():
            return html_answer(fault.page)
        case RedirectElsewhere():
            return Answer(302, (("Location", fault.url),))
        case LoginRedirect():
            return Answer(302, (("Location", "/login"),))
        case OmitHeader():
            return answer.without(fault.name)
        case WrongLinkedSize() if "X-Linked-Size" in names:
            return answer.having("X-Linked-Size", str(fault.size))
        case WrongLinkedSize():
            return replace(answer, declared_length=fault.size)
        case WrongLinkedEtag():
            return answer.having("X-Linked-Etag" if "X-Linked-Etag" in names else "ETag", f'"{fault.etag}"')
        case ShortLength() if isinstance(answer.body, Span):
            return replace(answer, body=replace(answer.body, length=max(0, answer.body.length - fault.missing)))
        case WrongTotal():
            return _with_total(answer, fault.size)
        case _:
            return answer


def _with_total(answer: Answer, size: int) -> Answer:
    content_range = dict(answer.headers).get("Content-Range")
    if content_range is not None:
        return answer.having("Content-Range", f"{content_range.rpartition('/')[0]}/{size}")
    if isinstance(answer.body, Span):
        body = replace(answer.body, length=min(size, answer.body.length))
        return replace(answer, body=body, declared_length=size)
    return answer
