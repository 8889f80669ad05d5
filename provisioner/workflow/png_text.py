"""The texts in a PNG: ComfyUI keeps the workflow of an image there (tEXt, zTXt and iTXt chunks).

PNG Specification, third edition, section 11.3.3.  Pixels are not looked at: a damaged image still gives its workflow.
"""

from __future__ import annotations

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 100_000


def png_texts(data: bytes, wanted: tuple[str, ...], *, most: int) -> dict[str, bytes]:
    """Return the wanted texts by keyword, in UTF-8 or Latin-1 as they stand; damaged and larger ones are left out.

    Parameters
    ----------
    data : bytes
        The file, from its signature on; what follows a cut is missing.
    wanted : tuple of str
        Keywords.
    most : int
        Bytes of an unpacked text.

    Examples
    --------
    >>> chunk = b"workflow" + bytes(1) + b"{}"
    >>> png_texts(SIGNATURE + len(chunk).to_bytes(4, "big") + b"tEXt" + chunk + bytes(4), ("workflow",), most=9)
    {'workflow': b'{}'}
    """
    found: dict[str, bytes] = {}
    at = len(SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if len(kind) < 4 or at + 8 + length > len(data):
            break
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, _, rest = data[at + 8 : at + 8 + length].partition(b"\0")
            name = keyword.decode("latin-1")
            text = _text(kind, rest, most) if name in wanted else None
            if text is not None:
                found.setdefault(name, text)
        at += 12 + length
    return found


def _text(kind: bytes, rest: bytes, most: int) -> bytes | None:
    """Return the text of a chunk, from behind its keyword; None where it is too large or cannot be unpacked."""
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed = rest[:1] == b"\1"
        _, separator, rest = rest[2:].partition(b"\0")  # the language
        _, more, rest = rest.partition(b"\0")  # the keyword in that language
        if not separator or not more:
            return None
    elif is_packed:
        rest = rest[1:]  # the method: there is one
    if is_packed:
        unpacker = zlib.decompressobj()
        try:
            rest = unpacker.decompress(rest, most + 1)
        except zlib.error:
            return None
    return rest if len(rest) <= most else None
