"""The words of a ComfyUI server become lines for a person, each once, and the parts of the curve of the memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from provisioner.comfyui.server.client import GenerationProgress
from provisioner.commands.comfyui_image import _teller
from provisioner.smoke_test.graph import DECODE, ENCODE, LOAD_ENCODER, LOAD_MODEL, SAMPLE, SAVE


def test_each_part_is_noted_when_its_first_node_runs() -> None:
    lines: list[str] = []
    begun: list[str] = []
    stages = SimpleNamespace(begin=lambda *words: lines.append(" ".join(words[:2])), say=lines.append)
    tell = _teller(cast("Any", stages), begun.append)
    for node, value in (
        (None, None),
        (LOAD_ENCODER, None),
        (ENCODE, None),
        (LOAD_MODEL, None),
        (SAMPLE, 1.0),
        (SAMPLE, 1.0),
        (SAMPLE, 2.0),
        ("99", None),
        (DECODE, None),
        (SAVE, None),
    ):
        maximum = None if value is None else 2.0
        tell(GenerationProgress(at_s=0.0, node_id=node, node_class=None, value=value, maximum=maximum))
    assert begun == ["load", "encode", "load", "sample", "sample", "sample", "decode", "save"]
    assert lines == [
        "loading the models",
        "encoding the prompt",
        "loading the models",
        "denoising the image",
        "step 1 of 2",
        "step 1 of 2",
        "step 2 of 2",
        "decoding the image",
        "saving the image",
    ]
