"""Removes what must not leave the program: secrets, and characters that control a terminal.

Everything that is shown, logged or printed as JSON passes through here.  When in doubt it cuts too
much: a lost query is an inconvenience, a leaked signature or token is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "***"

SHORTEST_SECRET = 4
"""Characters.  Masking anything shorter would garble every sentence, and no token is that short."""

# Compiled when a text first needs them: together they cost milliseconds, and most texts need none.
_URL = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<authority>[^\s/?#\"'<>]*)(?P<path>[^\s?#\"'<>]*)(?P<rest>[?#][^\s\"'<>]*)?"

# urllib3 names only the path of a failed request: "Max retries exceeded with url: /x?X-Amz-Signature=..."
_BARE_QUERY = r"(?<=[^\s?])\?[\w.%~\[\]-]+=[^\s\"'<>)]*"

# The Hub's tokens are hf_ and 34 letters and digits of both cases.  Short words in lower case are
# left alone: people call folders "hf_downloads", and a path with a gap in it helps nobody.
_OF_THE_HUB = r"hf_(?:(?=[A-Za-z0-9]*[A-Z0-9])[A-Za-z0-9]{8,}|[a-z]{16,})"

_AUTHORIZATION = r"(?i)(?P<name>authorization[\"']?\s*[:=]\s*)(?:\"[^\"\r\n]*\"?|'[^'\r\n]*'?|[^\s\"'][^\r\n]*)"
_BEARER = r"(?i)\b(?P<name>bearer\s+)(?!tokens?\b)[^\s\"',;]+"

_ESCAPE_SEQUENCE = (
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # operating system command: titles, links, the clipboard
    r"|[\x1b\x9b]\[?[0-?]*[ -/]*[@-~]"  # control sequence, or a two-character escape
)
# C0 and C1 controls, line and paragraph separators, and the marks that turn the direction of text.
_CONTROL = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]"


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without tokens, passwords and the queries of URLs.

    Parameters
    ----------
    text : str
        Anything that is about to leave the program.
    secrets : iterable of str
        Values known to be secret; each is masked wherever it stands, also in its URL-quoted form.

    Returns
    -------
    str
        The text, with ``***`` for what was masked.  A URL loses its user name, password, query and
        fragment without a trace.

    Examples
    --------
    >>> redact("GET https://u:p@cdn.example/a.bin?Expires=1&Signature=abc failed")
    'GET https://cdn.example/a.bin failed'
    >>> redact("sent Authorization: Bearer hf_AbCdEfGh123")
    'sent Authorization: ***'
    """
    known = _spellings(secrets)
    text = _mask(text, known)
    lower = text.lower()
    if "uthor" in lower:  # without the letter i, which has look-alikes in other alphabets
        text = re.sub(_AUTHORIZATION, rf"\g<name>{MASK}", text)
    if "bearer" in lower:
        text = re.sub(_BEARER, rf"\g<name>{MASK}", text)
    if "://" in text:
        text = re.sub(_URL, _bare_url, text)
    if "?" in text:
        text = re.sub(_BARE_QUERY, "", text)
    if "hf_" in text:
        text = re.sub(_OF_THE_HUB, f"hf_{MASK}", text)
    return _mask(text, known)  # again: what was cut may have joined the two halves of one


def _spellings(secrets: Iterable[str]) -> list[str]:
    """Return every spelling to look for, longest first, so that no tail of a longer one stays."""
    plain = {secret.strip() for secret in secrets}
    long_enough = {each for each in plain if len(each) >= SHORTEST_SECRET and each.strip("*")}
    if not long_enough:
        return []
    from urllib.parse import quote  # most runs have no token, and it takes milliseconds to import

    quoted = {quote(each, safe="", errors="replace") for each in long_enough}
    return sorted(long_enough | quoted, key=lambda each: (-len(each), each))


def _mask(text: str, secrets: list[str]) -> str:
    """Return `text` with every one of the `secrets` replaced."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def _bare_url(match: re.Match[str]) -> str:
    """Return scheme, host and path of a matched URL."""
    host = match["authority"].rpartition("@")[2]
    return f"{match['scheme']}{host}{match['path']}"


def printable(text: str) -> str:
    r"""Return `text` without anything that moves a cursor, colours, beeps or reverses.

    Newlines and tabs stay; a carriage return becomes a newline.  For text that came from a server,
    a file or a process.

    >>> printable("a\x1b[31mred\x1b[0m\x07 b")
    'ared b'
    """
    if text.replace("\n", "").isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(_CONTROL, "", re.sub(_ESCAPE_SEQUENCE, "", text))
