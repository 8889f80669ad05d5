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

SHORTEST_PASSWORD = 8
"""Characters.  A shorter one is often a word, and is masked only where it stands in an address."""

LONGEST_TEXT = 256 * 1024
"""Characters.  A server may send any number; nobody reads more, and every pattern below costs time."""

# Compiled when a text first needs them: together they cost milliseconds, and most texts need none.
# None may look at a character more than a fixed number of times: 200 kB of one letter took 33 s once, because the
# pattern of a URL began at each of them with a scheme of any length.
_URL = r"://(?P<authority>[^\s/?#\"'<>]*)(?P<path>[^\s?#\"'<>]*)(?:[?#][^\s\"'<>]*)?"
_LONGEST_WORD_IN_A_PATH = 20  # letters of both cases and digits without a break: a longer one is a signature

# urllib3 names only the path of a failed request: "Max retries exceeded with url: /x?X-Amz-Signature=..."
_BARE_QUERY = r"(?<=[^\s?])\?[\w.%~\[\]-]+=[^\s\"'<>)]*"

# The Hub's tokens are hf_ and 34 letters and digits of both cases.  Short words in lower case are
# left alone: people call folders "hf_downloads", and a path with a gap in it helps nobody.
_OF_THE_HUB = r"hf_(?:(?=[A-Za-z0-9]*[A-Z0-9])[A-Za-z0-9]{8,}|[a-z]{16,})"
_JSON_WEB = r"eyJ[\w-]{12,}(?:\.[\w.-]*)?"  # a JSON Web Token: base64 of '{"', then its payload

# Headers whose whole value is secret, to the end of the line or of the quotes.
_HEADER = (
    r"(?i)(?P<name>(?:authorization|(?:private|auth|security)-token|\b(?:set-)?cookie|\bx-(?:[a-z]{1,16}-){0,3}key)"
    r"[\"']?\s*[:=]\s*)(?:\"[^\"\r\n]*\"?|'[^'\r\n]*'?|[^\s\"'][^\r\n]*)"
)
_BEARER = r"(?i)\b(?P<name>bearer\s+)(?!tokens?\b)[^\s\"',;]+"
_NAME_OF_ONE = (
    r"(?:token|secret|passw(?:or)?d|passphrase|pwd|api[_-]?key|access[_-]?key(?:[_-]?id)?|credentials?|hmac|"
    r"(?<![a-z])(?:sig|auth)|signature)"
)
# token=x, --password=x, {"api_key": "x"}; the name may end a longer one, such as HF_TOKEN.
_ASSIGNED = rf"(?i)(?P<name>{_NAME_OF_ONE}(?:=|[\"']\s{{0,4}}:\s{{0,4}}(?=[\"'])))(?!\*\*\*)[\"']?[^\s\"'&,;<>)]+"
_WORD = r"[^\s\"'<>]+"

_ESCAPE_SEQUENCE = (
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # operating system command: titles, links, the clipboard
    r"|[\x1b\x9b]\[?[0-?]*[ -/]*[@-~]"  # control sequence, or a two-character escape
)
# C0 and C1 controls, line and paragraph separators, and the marks that turn the direction of text.
_CONTROL = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]"


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without tokens, passwords, cookies, signatures and the queries of URLs.

    A secret is also found where characters that steer a terminal stand inside it; such a text comes back as
    `printable` leaves it.

    Parameters
    ----------
    text : str
        Anything that is about to leave the program.  What goes beyond ``LONGEST_TEXT`` characters is left out, with
        a word about it.
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
    if len(text) > LONGEST_TEXT:
        text = _shortened(text)
    masked = _redacted(text, known)
    if _is_printable(text):
        return masked
    plain = printable(text)
    seen = _redacted(plain, known)
    if masked == text and seen == plain:
        return text
    masked = _redacted(printable(masked), known)
    if seen == masked:
        return seen
    same = next((i for i, (a, b) in enumerate(zip(seen, masked, strict=False)) if a != b), min(len(seen), len(masked)))
    return seen[:same] + MASK  # from here on each may hold what the other masks


def passwords_in(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the passwords of the addresses in some texts: as written, decoded, and as basic authentication sends them.

    >>> passwords_in(["http://me:p%40ssword@proxy:3128", "https://h/x", "me@example.org"])
    ('p%40ssword', 'p@ssword', 'bWU6cEBzc3dvcmQ=')
    """
    found: list[str] = []
    for text in texts:
        if "://" not in text or "@" not in text:
            continue
        from base64 import b64encode
        from urllib.parse import unquote

        for login in re.findall(r"://([^\s/?#\"'<>]*)@", text):
            user, colon, password = login.partition(":")
            plain = unquote(password if colon else user)  # an index may take a token as the user's name
            if len(plain) >= SHORTEST_PASSWORD:
                basic = b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
                found += [password if colon else user, plain, basic]
    return tuple(dict.fromkeys(found))


def _redacted(text: str, known: list[str]) -> str:
    """Return `text` without what the patterns and the `known` secrets find, reading each character as it stands."""
    text = _mask(text, known)
    lower = text.lower()
    if any(each in lower for each in ("uthor", "oken", "ook", "ey")):  # without i and k, which have look-alikes
        text = re.sub(_HEADER, rf"\g<name>{MASK}", text)
    if "bearer" in lower:
        text = re.sub(_BEARER, rf"\g<name>{MASK}", text)
    if "://" in text:
        text = re.sub(_URL, _bare_url, text)
    if "?" in text:
        text = re.sub(_BARE_QUERY, "", text)
    if "=" in text or ":" in text:
        text = re.sub(_ASSIGNED, rf"\g<name>{MASK}", text)
    if "@" in text:
        text = re.sub(_WORD, _without_login, text)
    if "hf_" in text:
        text = re.sub(_OF_THE_HUB, f"hf_{MASK}", text)
    if "eyJ" in text:
        text = re.sub(_JSON_WEB, MASK, text)
    return _mask(text, known)  # again: what was cut may have joined the two halves of one


def _shortened(text: str) -> str:
    """Return the beginning of a text, cut where no word goes on: half a secret would not be found."""
    end = LONGEST_TEXT
    while end and not text[end - 1].isspace():
        end -= 1
    kept = text[:end].rstrip()
    return f"{kept} ({len(text) - len(kept):,} characters left out)"


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
    """Return host and path of a matched URL; its scheme stands before the match."""
    host = match["authority"].rpartition("@")[2]
    return f"://{host}{'/'.join(map(_segment, match['path'].split('/')))}"


def _segment(text: str) -> str:
    """Return one part of a path, or the mask where it is a signature: content networks sign there too."""
    if len(text) < _LONGEST_WORD_IN_A_PATH and "=" not in text:
        return text
    runs = re.findall(rf"[A-Za-z0-9]{{{_LONGEST_WORD_IN_A_PATH},}}", text)
    is_signature = any(
        any(map(str.islower, run)) and any(map(str.isupper, run)) and any(map(str.isdigit, run)) for run in runs
    )
    return MASK if is_signature else re.sub(_ASSIGNED, rf"\g<name>{MASK}", text)


def _without_login(match: re.Match[str]) -> str:
    """Return a word without ``user:password`` before an ``@``; a scheme need not stand before it."""
    before, at, host = match[0].rpartition("@")
    path, slash, login = before.rpartition("/")
    user, colon, password = login.partition(":")
    if not colon or not password or password.startswith("\\"):  # a drive of Windows
        return match[0]
    if re.match(r"sha256:[0-9a-f]{64}\b", host):  # a tag, pinned: oci://registry/name:tag@sha256:...
        return match[0]
    name = user.rpartition("=")[0]
    return f"{path}{slash}{name}{'=' if name else ''}{MASK}{at}{host}"


def _is_printable(text: str) -> bool:
    return text.replace("\n", "").isprintable()


def printable(text: str) -> str:
    r"""Return `text` without anything that moves a cursor, colours, beeps or reverses.

    Newlines and tabs stay; a carriage return becomes a newline.  For text that came from a server,
    a file or a process.

    >>> printable("a\x1b[31mred\x1b[0m\x07 b")
    'ared b'
    """
    if _is_printable(text):
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(_CONTROL, "", re.sub(_ESCAPE_SEQUENCE, "", text))
