"""The test image on the page: the image itself, its parameters, the time and memory it took."""

from __future__ import annotations

from base64 import b64encode

from provisioner.core.json_reader import as_dict
from provisioner.core.units import count, gib, human_bytes, human_duration
from provisioner.report.html.charts import phases_chart
from provisioner.report.html.markup import (
    Html,
    badge,
    code,
    element,
    facts,
    joined,
    link,
    paragraphs,
    path,
    section,
    table,
)
from provisioner.report.html.moments import moment
from provisioner.report.html.node import Node
from provisioner.report.html.verdict import all_findings
from provisioner.report.web_addresses import template_page
from provisioner.smoke_test.image_verdict import figure_words, verdict_words
from provisioner.smoke_test.media import audio_figures, audio_words, video_figures, video_words

_MAGIC: tuple[tuple[bytes, int, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", 0, "image/png"),
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"WEBP", 8, "image/webp"),
)


def media_type(image: bytes) -> str | None:
    """Return the media type of these bytes; None if it is no image that the page shows.

    >>> media_type(bytes.fromhex("ffd8ffe0")), media_type(b"<svg onload=...>")
    ('image/jpeg', None)
    """
    return next((name for magic, start, name in _MAGIC if image[start : start + len(magic)] == magic), None)


def image_section(document: Node, image: bytes | None) -> Html:
    """Return the image, or a frame of the video, with everything known; of an earlier run where this one made none."""
    smoke, title, said = document.at("details", "smoke_test"), "Test image", ""
    if not smoke:
        last = document.at("details", "last_image")
        smoke, when = last.at("smoke_test"), moment(last.at("made_at").text)
        title = f"The last test image, {when}" if when else "The last test image"
        said = f"This run generated no image; this is the last one{_with_another_target(document, last)}."
    if not smoke:
        return Html("")
    embedded = _image(smoke, image)
    caption = element("figcaption", _prompt(smoke), facts(_parameters(smoke)))
    figure = element("figure", embedded, caption, class_="image" if embedded else "image alone")
    return section(
        title, paragraphs([said]), figure, phases_chart(smoke), paragraphs(_sentences(document, smoke)), name="picture"
    )


def cards_section(document: Node) -> Html:
    """Return a row for each GPU that was tested by itself."""
    rows = []
    for each in document.at("details", "cards").rows:
        card, peak, total = each.at("card"), each.at("peak_bytes").whole, each.at("card", "memory_total_bytes").whole
        number, place = card.at("gpu").whole or 0, card.at("mig_device").whole
        of = f" of {gib(total)}" if total is not None else ""
        rows.append(
            [
                f"GPU {number}" if place is None else f"GPU {number}:{place}",
                badge("ok", "good") if each.at("is_proven").flag else badge("failed", "bad"),
                joined([card.at("name").text, *([code(card.at("uuid").text)] if card.at("uuid").text else [])], " "),
                _duration(each.at("total_s")),
                _duration(each.at("warm_s")),
                f"{gib(peak)}{of}" if peak is not None else "",
                each.at("problem").text,
            ]
        )
    headings = ("GPU", "Result", "Name", "Took", "Next image", "VRAM at the peak", "What is wrong")
    return section("Each GPU", table("The test image on each GPU", headings, rows), name="cards") if rows else Html("")


def _duration(node: Node) -> str:
    return human_duration(node.number) if node.number is not None else ""


def _with_another_target(document: Node, last: Node) -> str:
    """Return for which files an earlier image was made, if not for those of this run."""
    then, now = last.at("target", "path").text, document.at("target", "path").text
    return f", with the models of {then}" if then and now and then != now else ""


def _image(smoke: Node, image: bytes | None) -> Html:
    """Return the image embedded in the page; nothing if there are no bytes to show."""
    media = media_type(image) if image is not None else None
    if image is None or media is None:
        return Html("")
    size = _shown(smoke)
    width, height = (size.at(name).whole for name in ("width", "height"))
    return element(
        "img",
        src=Html(f"data:{media};base64,{b64encode(image).decode('ascii')}"),
        alt=_alternative(smoke),
        width=str(width) if width else None,
        height=str(height) if height else None,
    )


def _alternative(smoke: Node) -> str:
    prompt, what = smoke.at("wish", "prompt").text, "image" if smoke.at("picture") else "video, one frame of it,"
    return f"The {what} generated for the prompt: {prompt}" if prompt else f"The generated {what.partition(',')[0]}"


def _shown(smoke: Node) -> Node:
    """Return the image, else the frame of the first video that has one."""
    frames = (each.at("frame") for each in smoke.at("media").rows)
    return smoke.at("picture") or next((each for each in frames if each), Node(None))


def _media(smoke: Node) -> list[tuple[str, Html]]:
    """Return what was seen and heard in each video and sound."""
    rows = []
    for each in smoke.at("media").rows:
        is_video = each.at("kind").text == "video"
        size, video, audio = each.at("size").whole, each.at("video"), each.at("audio")
        words = [f"{each.at('format').text}, {human_bytes(size)}" if size is not None else each.at("format").text]
        words += [video_words(video_figures(as_dict(video.value)))] if video else []
        words += [audio_words(audio_figures(as_dict(audio.value)))] if audio else []
        words += [] if each.at("decoder").text else ["not decoded, so it is not known whether it is right"]
        where = [path(each.at("path").text)] if each.at("path").text else []
        rows.append(("Video" if is_video else "Sound", joined(element("div", line) for line in (*where, *words))))
    return rows


def _prompt(smoke: Node) -> Html:
    words = smoke.at("wish", "prompt").text
    return element("blockquote", f"\u201c{words}\u201d") if words else Html("")


def _parameters(smoke: Node) -> list[tuple[str, str]]:
    options, image, shown = smoke.at("wish"), smoke.at("picture"), _shown(smoke)
    models = joined([element("div", path(each.text)) for _, each in smoke.at("models").items if each.text])
    template = smoke.at("template").text
    result = _facts_of(image) if image else "" if smoke.at("media") else "No image was generated."
    return [
        ("Seed", _number(options.at("seed"))),
        ("Steps", _number(options.at("steps"))),
        ("Guidance", _number(options.at("guidance"))),
        ("Size", _extent(image) or ("" if smoke.at("media") else _extent(options))),
        ("Decoded", "in tiles" if options.at("has_tiled_decode").flag else ""),
        ("Generated by", {"comfyui": "ComfyUI", "diffusers": "diffusers"}.get(smoke.at("backend").text, "")),
        ("Device", smoke.at("device").text),
        ("Options of ComfyUI", _started_with(smoke.at("started_with"))),
        ("Next image", _next(smoke)),
        ("Models", models),
        ("Result", result),
        *_media(smoke),
        ("Verdict", _verdict(shown)),
        ("Figures", _figures(shown.at("figures"))),
        ("Template", link(template, template_page(template)) if template else ""),
        ("Saved at", path(image.at("path").text) if image.at("path").text else ""),
        ("Log", path(smoke.at("log_path").text) if smoke.at("log_path").text else ""),
    ]


def _next(smoke: Node) -> str:
    """Return how long an image with the models in memory took, and the median of how many that is."""
    warm, later = smoke.at("timings", "warm_s").number, len(smoke.at("images").rows) - 1
    if warm is None:
        return ""
    return human_duration(warm) if later < 2 else f"{human_duration(warm)}, the median of {later}"


def _started_with(started: Node) -> str:
    """Return the options that ComfyUI ran with, and where the user's come from."""
    if not started:
        return ""
    words, origin = " ".join(started.at("flags").texts) or "none", started.at("flags_from").text
    left_out = ", ".join(started.at("left_out").texts)
    return f"{words} (from {origin}{f', without its {left_out}' if left_out else ''})" if origin else words


def _number(node: Node) -> str:
    number = node.number
    if number is None:
        return ""
    return str(number) if isinstance(number, int) else f"{number:g}"


def _extent(node: Node) -> str:
    width, height = node.at("width").whole, node.at("height").whole
    return f"{width} \u00d7 {height}" if width and height else ""


def _facts_of(image: Node) -> Html:
    """Return size, brightness and digest of the image, to compare it with another run."""
    parts: list[str] = []
    size = image.at("size").number
    if size is not None:
        parts.append(human_bytes(size))
    deviation = image.at("deviation").number
    low, high = image.at("minimum").whole, image.at("maximum").whole
    if low is not None and high is not None:
        spread = f" (spread {deviation:.0f})" if deviation is not None else ""
        parts.append(f"brightness from {low} to {high}{spread}")
    digest = image.at("sha256").text
    shown = joined(["SHA-256 ", code(f"{digest[:12]}\u2026", title=digest)]) if digest else ""
    return joined([*parts, *([shown] if shown else [])], ", ")


def _verdict(image: Node) -> str:
    """Return what the image looks like and why; nothing of an earlier version, which did not say."""
    words = verdict_words(
        image.at("verdict").text,
        image.at("because").text,
        is_noise_expected=image.at("is_noise_expected").flag is True,
    )
    return words[:1].upper() + words[1:]


def _figures(figures: Node) -> str:
    known = {name: value.number for name, value in figures.items}
    return figure_words({name: value for name, value in known.items() if value is not None})


def _sentences(document: Node, smoke: Node) -> list[str]:
    """Return the figures in sentences: the steps one by one, then the notes, else the memory that was measured.

    A note that stands among the findings, or names the template that has its own row, is not said again.
    """
    template = smoke.at("template").text
    said = {each.at("message").text for each in all_findings(document)}
    notes = [each for each in smoke.at("notes").texts if each not in said and not (template and template in each)]
    steps = [row.number for row in smoke.at("timings", "steps_s").rows]
    known = [step for step in steps if step is not None]
    sentences = []
    if len(known) > 1:
        each = ", ".join(f"{step:.2f}" for step in known)
        sentences.append(f"The {count(len(known), 'step')} took {each} seconds.")
    return [*sentences, *(notes or [_memory_sentence(smoke.at("vram"))])]


def _memory_sentence(vram: Node) -> str:
    peak, total, free = (vram.at(key).whole for key in ("peak_used_bytes", "total_bytes", "free_at_start_bytes"))
    if peak is None or total is None:
        return ""
    words = f"At the peak {gib(peak)} of the {gib(total)} of {vram.at('gpu_name').text or 'the GPU'} were in use"
    return f"{words}; {gib(free)} were free at the start." if free is not None else f"{words}."
