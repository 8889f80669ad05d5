"""What must not leave the program."""

from __future__ import annotations

import doctest
import string
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.core import redact as module
from provisioner.core.redact import passwords_in, printable, redact

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"

tokens = st.text(alphabet=string.ascii_letters + string.digits, min_size=30, max_size=40).map("hf_".__add__)
queries = st.text(alphabet=string.ascii_letters + string.digits + "%=&._-~/+", min_size=12, max_size=60)
prose = st.text(max_size=60)


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 2
    assert result.failed == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("https://a-token-of-mine@index.example/simple", ("a-token-of-mine", "YS10b2tlbi1vZi1taW5lOg==")),
        ("http://me:short@proxy:3128", ()),  # a word, most often
        ("https://host/me:password@x", ()),
        (
            "x http://a:password1@h y http://b:password2@h",
            ("password1", "YTpwYXNzd29yZDE=", "password2", "YjpwYXNzd29yZDI="),
        ),
    ],
)
def test_passwords_of_addresses_are_found_as_they_travel(text: str, found: tuple[str, ...]) -> None:
    assert passwords_in([text, "mail me@example.org", "https://host"]) == found


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://cdn.hf.co/a.bin?Expires=1&Signature=x", "https://cdn.hf.co/a.bin"),
        ("https://cdn.hf.co/a.bin#part", "https://cdn.hf.co/a.bin"),
        ("see https://h/x?a=1, then https://h/y?b=2 now", "see https://h/x then https://h/y now"),
        ("http://user:secret@proxy:3128/", "http://proxy:3128/"),
        ("http://us@er:p@ss@proxy:3128", "http://proxy:3128"),
        *((pinned, pinned) for pinned in (f"oci://registry.lab:5000/a/b:v1@sha256:{'0a' * 32}.",)),
        ("at/me:secret@sha256:0a0a", "at/***@sha256:0a0a"),
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


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("GET https://cdn.example/exp=1999999999~acl=*~hmac=0123456789abcdef/vae.bin failed", "0123456789abcdef"),
        ("GET https://cdn.example/a.bin;Signature=AbCd0123 failed", "AbCd0123"),
        ("GET https://cdn.example/s/q8Zk3PbVt0LmXw92YrTnEeUu/vae.bin failed", "q8Zk3PbVt0LmXw92YrTnEeUu"),
        ("sent eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjMifQ.c2lnbmF0dXJl", "eyJzdWIiOiIxMjMifQ"),
        ("curl -d token=abc123 failed", "abc123"),
        ("curl -d api_key='abc123' failed", "abc123"),
        ("HF_TOKEN=abc123 klein-setup", "abc123"),
        ("PASSWORD=abc/123+x", "abc/123+x"),
        ('{"access_token": "abc123", "next": 1}', "abc123"),
        ("Cookie: session=abc123; theme=dark", "abc123"),
        ("{'Set-Cookie': 'sid=abc123; Path=/'}", "abc123"),
        ("X-Api-Key: abc123", "abc123"),
        ("X-Amz-Security-Token: abc123", "abc123"),
        ("PRIVATE-TOKEN: abc123", "abc123"),
        ("the proxy me:abc123@proxy.example:3128 refused", "abc123"),
        ("HTTPS_PROXY=me:abc123@proxy.example:3128", "abc123"),
        ("via (me:ab@c123@proxy.example)", "c123"),
        ("//me:abc123@host/x", "abc123"),
    ],
)
def test_no_secret_survives_in_the_forms_that_servers_and_tools_print(text: str, secret: str) -> None:
    assert secret not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/black-forest-labs/FLUX.2-klein-4B/resolve/1234567890abcdef1234567890abcdef12345678/a.bin",
        "huggingface.co/Comfy-Org/flux2-dev@1234567890ab/split_files/vae/flux2-vae.safetensors",
        "127.0.0.1:8188/org/model@1234567890ab/vae.bin",
        "git@github.com:comfyanonymous/ComfyUI.git",
        "C:\\Users\\me@home\\models",
        "design=modern config=a.yaml tokens: 77",
        "The token that is set: HF_TOKEN.",
        "cookies are not sent; at 12:30 it ended",
    ],
)
def test_leaves_addresses_of_files_commits_and_prose(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("escape", ["\x1b[0m", "\x00", "\x1b]0;x\x07", "\u202e"])
def test_an_escape_inside_a_token_does_not_hide_it(escape: str) -> None:
    hidden = f"{TOKEN[:12]}{escape}{TOKEN[12:]}"
    assert TOKEN[12:] not in redact(f"sent {hidden} there")
    assert TOKEN[12:] not in printable(redact(f"sent {hidden} there"))
    assert "c123" not in redact(f"https://me:ab{escape}c123@host/x", ["abc123"])


def test_a_name_with_an_escape_and_no_secret_keeps_every_character() -> None:
    assert redact("models/a\x1b[31m.bin") == "models/a\x1b[31m.bin"


@pytest.mark.parametrize(
    "piece",
    ["a", "a:", "a:@", "a://", "://", "?a=", "hf_", "hf_a", "token", "sig=", "x-a-", "cookie ", "@a:", "eyJ", "eyJa.",
     " ", "bearer ", "authorization", "\x1b[0", "\x1b]", "\x9b1;", "/a", "Aa1", "'", "a\x00", "%2F"],
)  # fmt: skip
def test_200_000_characters_of_any_kind_take_no_time(piece: str) -> None:
    text = (piece * 200_000)[:200_000] + " eyJ hf_ authorization bearer cookie ?a=b token=c x-api-key: d x://me:p@h"
    began_s = time.process_time()
    redact(text, ["abcd1234"])
    assert time.process_time() - began_s < 3.0


def test_an_endless_text_is_cut_between_words() -> None:
    text = "word " * 400_000
    told = redact(text + TOKEN)
    assert len(told) <= module.LONGEST_TEXT + 60
    assert told.endswith("characters left out)")
    assert TOKEN[:8] not in redact("x" * (module.LONGEST_TEXT - 10) + TOKEN)


def test_what_steers_a_terminal_is_taken_out_before_secrets_are_looked_for() -> None:
    package = Path(module.__file__).parents[1]
    wrong = [str(path) for path in package.rglob("*.py") if "printable(redact(" in path.read_text(encoding="utf-8")]
    assert not wrong
