"""The picture of a smoke test on the page: the image itself, what it was made from, where the time and memory went."""

from __future__ import annotations

from base64 import b64encode

from provisioner.core.units import count, gib, human_bytes, human_duration
from provisioner.report.html.markup import Html, code, element, facts, joined, paragraphs, path, section
from provisioner.report.html.node import Node

_MAGIC: tuple[tuple[bytes, int, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", 0, "image/png"),
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"WEBP", 8, "image/webp"),
)


def media_type(picture: bytes) -> str | None:
    """Return what a browser calls these bytes; None where it is no picture that the page shows.

    >>> media_type(bytes.fromhex("ffd8ffe0")), media_type(b"<svg onload=...>")
    ('image/jpeg', None)
    """
    return next((name for magic, start, name in _MAGIC if picture[start : start + len(magic)] == magic), None)


def picture_section(document: Node, picture: bytes | None) -> Html:
    """Return the picture with everything known of it; nothing where no smoke test was made."""
    smoke = document.at("details", "smoke_test")
    if not smoke:
        return Html("")
    image = _image(smoke, picture)
    caption = element("figcaption", _prompt(smoke), facts(_parameters(smoke)))
    figure = element("figure", image, caption, class_=None if image else "alone")
    return section("The picture", figure, _phases(smoke), paragraphs(_sentences(smoke)), name="picture")


def _image(smoke: Node, picture: bytes | None) -> Html:
    """Return the picture inside the page itself; nothing where there are no bytes to show."""
    media = media_type(picture) if picture is not None else None
    if picture is None or media is None:
        return Html("")
    size = smoke.at("picture")
    width, height = (size.at(name).whole for name in ("width", "height"))
    return element(
        "img",
        src=Html(f"data:{media};base64,{b64encode(picture).decode('ascii')}"),
        alt=_alternative(smoke),
        width=str(width) if width else None,
        height=str(height) if height else None,
    )


def _alternative(smoke: Node) -> str:
    prompt = smoke.at("wish", "prompt").text
    return f"The picture that was drawn for the prompt: {prompt}" if prompt else "The picture that was drawn"


def _prompt(smoke: Node) -> Html:
    words = smoke.at("wish", "prompt").text
    return element("blockquote", f"\u201c{words}\u201d") if words else Html("")


def _parameters(smoke: Node) -> list[tuple[str, str]]:
    wish, picture = smoke.at("wish"), smoke.at("picture")
    models = joined([element("div", path(each.text)) for _, each in smoke.at("models").items if each.text])
    came = _came(picture) if picture else "None came out."
    return [
        ("Seed", _number(wish.at("seed"))),
        ("Steps", _number(wish.at("steps"))),
        ("Guidance", _number(wish.at("guidance"))),
        ("Size", _extent(picture) or _extent(wish)),
        ("Decoded", "in tiles" if wish.at("has_tiled_decode").flag else ""),
        ("Drawn by", {"comfyui": "ComfyUI", "diffusers": "diffusers"}.get(smoke.at("backend").text, "")),
        ("Device", smoke.at("device").text),
        ("Models", models),
        ("Came out", came),
        ("Kept at", path(picture.at("path").text) if picture.at("path").text else ""),
        ("Whole log", path(smoke.at("log_path").text) if smoke.at("log_path").text else ""),
    ]


def _number(node: Node) -> str:
    number = node.number
    if number is None:
        return ""
    return str(number) if isinstance(number, int) else f"{number:g}"


def _extent(node: Node) -> str:
    width, height = node.at("width").whole, node.at("height").whole
    return f"{width} \u00d7 {height}" if width and height else ""


def _came(picture: Node) -> Html:
    """Return what the picture's bytes are, so that another run can be compared with it."""
    parts: list[str] = []
    size = picture.at("size").number
    if size is not None:
        parts.append(human_bytes(size))
    deviation = picture.at("deviation").number
    low, high = picture.at("minimum").whole, picture.at("maximum").whole
    if low is not None and high is not None:
        spread = f" (spread {deviation:.0f})" if deviation is not None else ""
        parts.append(f"brightness from {low} to {high}{spread}")
    digest = picture.at("sha256").text
    shown = joined(["SHA-256 ", code(f"{digest[:12]}\u2026", title=digest)]) if digest else ""
    return joined([*parts, *([shown] if shown else [])], ", ")


# --- where the time went -----------------------------------------------------------------------

_PHASES = (
    ("start_s", "Starting"),
    ("load_s", "Loading the models"),
    ("encode_s", "Reading the prompt"),
    ("steps_s", "Drawing"),
    ("decode_s", "Decoding"),
)


def _phases(smoke: Node) -> Html:
    """Return the parts of the time, as a bar and in words."""
    found = []
    for number, (key, name) in enumerate(_PHASES, 1):
        seconds = _seconds(smoke.at("timings", key))
        if seconds is not None and seconds >= 0:
            found.append((f"p{number}", name, seconds))
    if not found:
        return Html("")
    bar = element(
        "div",
        *(element("span", class_=tone, style=f"flex-grow:{max(seconds, 0.01):.3f}") for tone, _, seconds in found),
        class_="phases",
        aria_hidden="true",
    )
    named = [
        element("li", element("i", class_=tone, aria_hidden="true"), name, " ", element("b", human_duration(seconds)))
        for tone, name, seconds in found
    ]
    return joined([bar if len(found) > 1 else "", element("ul", *named, class_="key")])


def _seconds(node: Node) -> float | None:
    """Return one time, or the sum of a list of them."""
    if node.number is not None:
        return node.number
    parts = [row.number for row in node.rows]
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _sentences(smoke: Node) -> list[str]:
    """Return what the figures mean: the steps one by one, then what was noted, else the memory that was read."""
    steps = [row.number for row in smoke.at("timings", "steps_s").rows]
    known = [step for step in steps if step is not None]
    sentences = []
    if len(known) > 1:
        each = ", ".join(f"{step:.2f}" for step in known)
        sentences.append(f"The {count(len(known), 'step')} took {each} seconds.")
    return [*sentences, *(smoke.at("notes").texts or [_memory_sentence(smoke.at("vram"))])]


def _memory_sentence(vram: Node) -> str:
    peak, total, free = (vram.at(key).whole for key in ("peak_used_bytes", "total_bytes", "free_at_start_bytes"))
    if peak is None or total is None:
        return ""
    words = f"At its peak {gib(peak)} of the {gib(total)} of {vram.at('gpu_name').text or 'the GPU'} were in use"
    return f"{words}; {gib(free)} were free at the start." if free is not None else f"{words}."
