"""Put another text, seed, size or number of steps into a graph in API form, where the nodes that take it are known."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

from provisioner.smoke_test.graph import Phase
from provisioner.workflow.live_nodes import SWITCHES
from provisioner.workflow.prompt_graph import Prompt

Key = tuple[str, str]  # node and input

_POSITIVE = {
    "KSampler": "positive",
    "KSamplerAdvanced": "positive",
    "SamplerCustom": "positive",
    "CFGGuider": "positive",
    "DualCFGGuider": "cond1",
    "BasicGuider": "conditioning",
}
"""By class of node: the input that is drawn towards."""

_SEEDS = {
    "KSampler": "seed",
    "KSamplerAdvanced": "noise_seed",
    "SamplerCustom": "noise_seed",
    "RandomNoise": "noise_seed",
}
_STEPS = (
    "KSampler",
    "BasicScheduler",
    "Flux2Scheduler",
    "AlignYourStepsScheduler",
    "SDTurboScheduler",
)
_SIZED = ("Flux2Scheduler", "ModelSamplingFlux")  # beside everything that makes an empty latent image
_TEXTS = ("text", "prompt", "text_g", "text_l", "clip_l", "t5xxl")
_ONWARD = ("positive", "conditioning", "conditioning_1", "conditioning_to")
_VALUES = ("value", "text", "string", "prompt")
_MOST_HOPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Patched:
    """A graph, and what of it was changed."""

    prompt: Prompt
    done: frozenset[str] = field(default_factory=frozenset)  # "prompt", "seed", "size", "steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a graph generates, of its first sampler; None where that is not known."""

    text: str | None = None
    steps: int | None = None
    guidance: float | None = None
    frames: int | None = None  # of a video, where every node that has a size and a length has the same


def settings_of(prompt: Prompt) -> Settings:
    """Return what a graph generates, as far as it stands in it."""

    def first(keys: Iterator[Key]) -> object:
        return next((prompt[node]["inputs"].get(name) for node, name in keys), None)

    guided = (each for key, node in prompt.items() if node["class_type"] in _GUIDED for each in _numbers(prompt, key))
    text, steps, guidance = first(_texts(prompt)), first(_steps(prompt)), first(guided)
    sized = (key for key, node in prompt.items() if {"width", "height", "length"} <= node["inputs"].keys())
    lengths = {prompt[node]["inputs"][name] for key in sized for node, name in _literal(prompt, key, "length", int)}
    return Settings(
        text=text if isinstance(text, str) else None,
        steps=steps if isinstance(steps, int) else None,
        guidance=float(guidance) if isinstance(guidance, (int, float)) else None,
        frames=lengths.pop() if len(lengths) == 1 else None,
    )


def _numbers(prompt: Prompt, node: str) -> Iterator[Key]:
    yield from _literal(prompt, node, "cfg", int)
    yield from _literal(prompt, node, "cfg", float)


def phases_of(prompt: Prompt) -> dict[str, Phase]:
    """Return which part of the work a node belongs to, by its class; those that only hand settings on are left out."""
    found: dict[str, Phase] = {}
    for key, node in prompt.items():
        kind = node["class_type"]
        phase = next((each for each, words in _PHASES.items() if any(word in kind for word in words)), None)
        if phase is not None and kind != "KSamplerSelect":  # it names a sampler
            found[key] = phase
    return found


_PHASES: dict[Phase, tuple[str, ...]] = {
    "load": ("Loader",),
    "encode": ("TextEncode",),
    "sample": ("KSampler", "SamplerCustom"),
    "decode": ("VAEDecode",),
    "save": ("Save", "PreviewImage"),
}
_GUIDED = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "CFGGuider")


def patch_prompt(
    prompt: Prompt,
    *,
    text: str | None = None,
    seed: int | None = None,
    size: tuple[int, int] | None = None,
    steps: int | None = None,
) -> Patched:
    """Return a copy of a graph with other values; what is None, or has no known place in it, stays as it is.

    A text or a size that another node works out (a language model, the size of an input image) is replaced by what is
    given; a value that stands in a primitive is changed there.

    Parameters
    ----------
    prompt : Prompt
        In API form.
    text : str, optional
        What the image shows: of the nodes that encode it for a sampler's positive side.
    seed : int, optional
        Of every sampler.
    size : tuple of int, optional
        Width and height in pixels.
    steps : int, optional
        Of denoising; not where a run is shared by several samplers (KSamplerAdvanced), which count them together.
    """
    made = copy.deepcopy(prompt)
    wanted: dict[str, list[tuple[Key, object]]] = {
        "prompt": [(key, text) for key in _texts(made)] if text is not None else [],
        "seed": [(key, seed) for key in _seeds(made)] if seed is not None else [],
        "size": [(key, size[at]) for key, at in _sizes(made)] if size is not None else [],
        "steps": [(key, steps) for key in _steps(made)] if steps is not None else [],
    }
    done: set[str] = set()
    for what, changes in wanted.items():
        for (node, name), value in changes:
            made[node]["inputs"][name] = value
            done.add(what)
    return Patched(prompt=made, done=frozenset(done))


def _seeds(prompt: Prompt) -> Iterator[Key]:
    for key, node in prompt.items():
        name = _SEEDS.get(node["class_type"])
        if name is not None:
            yield from _literal(prompt, key, name, int)


def _steps(prompt: Prompt) -> Iterator[Key]:
    if any(node["class_type"] == "KSamplerAdvanced" for node in prompt.values()):
        return
    for key, node in prompt.items():
        if node["class_type"] in _STEPS:
            yield from _literal(prompt, key, "steps", int)


def _sizes(prompt: Prompt) -> Iterator[tuple[Key, int]]:
    for key, node in prompt.items():
        kind = node["class_type"]
        if kind in _SIZED or (kind.startswith("Empty") and "Latent" in kind):
            for at, name in enumerate(("width", "height")):
                if name in node["inputs"]:
                    yield from ((each, at) for each in list(_literal(prompt, key, name, int)) or [(key, name)])


def _texts(prompt: Prompt) -> Iterator[Key]:
    """Find the text of each sampler: back from its positive side, through what only adds to a conditioning."""
    for key, node in prompt.items():
        name = _POSITIVE.get(node["class_type"])
        at: Key | None = None if name is None else (key, name)
        for _ in range(_MOST_HOPS):
            wire = None if at is None else _wire(prompt, at)
            if wire is None:
                break
            inputs = prompt[wire]["inputs"]
            if "Encode" in prompt[wire]["class_type"] and any(each in inputs for each in _TEXTS):
                for each in (each for each in _TEXTS if each in inputs):
                    yield from list(_literal(prompt, wire, each, str)) or [(wire, each)]
                break
            at = next(((wire, each) for each in _ONWARD if each in inputs), None)


def _literal(prompt: Prompt, node: str, name: str, kind: type) -> Iterator[Key]:
    """Find where the value of an input stands: there, in a primitive, or behind the open side of a switch."""
    at = (node, name)
    for _ in range(_MOST_HOPS):
        value = prompt[at[0]]["inputs"].get(at[1])
        if isinstance(value, kind) and not isinstance(value, bool):
            yield at
            return
        wire = _wire(prompt, at)
        if wire is None:
            return
        inputs, class_type = prompt[wire]["inputs"], prompt[wire]["class_type"]
        if class_type in SWITCHES:
            decides, sides = SWITCHES[class_type]
            chosen = _boolean(prompt, wire, decides)
            if chosen is None:
                return
            at = (wire, sides[chosen])
            continue
        names = [each for each in _VALUES if each in inputs] if class_type.startswith("Primitive") else []
        if not names:
            return
        at = (wire, names[0])


def _boolean(prompt: Prompt, node: str, name: str) -> bool | None:
    value = prompt[node]["inputs"].get(name)
    wire = _wire(prompt, (node, name))
    if wire is not None:
        value = prompt[wire]["inputs"].get("value")
    return value if isinstance(value, bool) else None


def _wire(prompt: Prompt, at: Key) -> str | None:
    """Return the node that an input is wired to, where the graph has it."""
    value = prompt[at[0]]["inputs"].get(at[1])
    if isinstance(value, list) and len(value) == 2 and value[0] in prompt:
        return str(value[0])
    return None
