"""What must not leave the program."""

from __future__ import annotations

import doctest
import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.core import redact as module
from provisioner.core.redact import printable, redact

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"

tokens = st.text(alphabet=string.ascii_letters + string.digits, min_size=30, max_size=40).map("hf_".__add__)
queries = st.text(alphabet=string.ascii_letters + string.digits + "%=&._-~/+", min_size=12, max_size=60)
prose = st.text(max_size=60)


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 2
    assert result.failed == 0


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://cdn.hf.co/a.bin?Expires=1&Signature=x", "https://cdn.hf.co/a.bin"),
        ("https://cdn.hf.co/a.bin#part", "https://cdn.hf.co/a.bin"),
        ("see https://h/x?a=1, then https://h/y?b=2 now", "see https://h/x then https://h/y now"),
        ("http://user:secret@proxy:3128/", "http://proxy:3128/"),
        ("http://us@er:p@ss@proxy:3128", "http://proxy:3128"),
        ("('https://h/x?Signature=abc', None)", "('https://h/x', None)"),
        (
            "Max retries exceeded with url: /a/b?X-Amz-Signature=abc (Caused by x)",
            "Max retries exceeded with url: /a/b (Caused by x)",
        ),
        ("is it there? yes", "is it there? yes"),
        (f"token {TOKEN}.", "token hf_***."),
        (f"x{TOKEN}", "xhf_***"),
        ("hf_transfer and D:\\hf_downloads stay", "hf_transfer and D:\\hf_downloads stay"),
        ("hf_onlysmallletters but long", "hf_*** but long"),
        ("Bearer abc.def-ghi", "Bearer ***"),
        ("a bearer token is needed", "a bearer token is needed"),
        ("Authorization: Basic dXNlcjpwYXNz and more\nnext line", "Authorization: ***\nnext line"),
        ("{'authorization': 'Bearer abc', 'range': 'bytes=0-'}", "{'authorization': ***, 'range': 'bytes=0-'}"),
        ('{"Proxy-Authorization": "Basic eHg="}', '{"Proxy-Authorization": ***}'),
        ("C:\\Users\\me\\models\\vae", "C:\\Users\\me\\models\\vae"),
    ],
)
def test_cuts_what_is_secret_and_leaves_the_rest(text: str, left: str) -> None:
    assert redact(text) == left


@given(prose, tokens, prose)
def test_no_token_survives_wherever_it_stands(before: str, token: str, after: str) -> None:
    assert token not in redact(f"{before}{token}{after}")


@given(queries)
def test_no_query_of_a_url_survives(query: str) -> None:
    assert redact(f"GET https://cdn.example/file?{query} failed") == "GET https://cdn.example/file failed"


@given(st.text(alphabet=string.ascii_letters + string.digits + ":@._-", max_size=40))
def test_no_password_of_a_url_survives(password: str) -> None:
    assert redact(f"via http://me:{password}@proxy.example:3128/x") == "via http://proxy.example:3128/x"


@given(prose, st.text(alphabet=string.printable, min_size=6, max_size=40), prose)
def test_no_known_secret_survives_plain_or_quoted(before: str, secret: str, after: str) -> None:
    known = secret.strip()
    if len(known) < module.SHORTEST_SECRET or "*" in known:
        return
    told = redact(f"{before}{known}{after} {quote(known, safe='')}", [secret])
    assert known not in told
    assert quote(known, safe="") not in told


def test_the_longest_secret_is_masked_first() -> None:
    assert redact("abcdefgh", ["abcd", "abcdefgh"]) == "***"


@pytest.mark.parametrize("secret", ["", "  ", "ab", "****"])
def test_what_is_too_short_to_be_a_secret_does_not_wreck_the_text(secret: str) -> None:
    assert redact("about a cab **** ", [secret]) == "about a cab **** "


@given(st.text(alphabet=string.printable + "\u6a21\u00e9", max_size=200))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;https://evil\x1b\\click\x1b]8;;\x1b\\", "click"),
        ("a\x9b31mb", "ab"),
        ("50 %\r100 %", "50 %\n100 %"),
        ("one\r\ntwo\tthree", "one\ntwo\tthree"),
        ("gpj.\u202eexe", "gpj.exe"),
        ("bell\x07 null\x00 del\x7f", "bell null del"),
        ("Mod\u00e8les \u6a21\u578b", "Mod\u00e8les \u6a21\u578b"),
    ],
)
def test_nothing_steers_the_terminal(text: str, left: str) -> None:
    assert printable(text) == left


@given(st.text())
def test_no_control_character_survives(text: str) -> None:
    left = printable(text)
    assert not [each for each in left if (ord(each) < 32 and each not in "\n\t") or 127 <= ord(each) < 160]
