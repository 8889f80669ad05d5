"""Build the graph of the smoke test for ComfyUI's API, and the file names its loaders use.

Knows how nodes of ComfyUI are wired to an image and which node belongs to which part of the work; which sampler,
scheduler and latent a model needs stands in its manifest (`Recipe`).  Asks no server and chooses no seed: a graph is a
pure function of recipe, names and options.  Weights in GGUF, which need a custom node, and image-to-image are not
supported.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Literal

from provisioner.comfyui.model_paths import current_folder_name
from provisioner.comfyui.server.api import ListedModels
from provisioner.core.errors import ModelNotListedError, UsageError
from provisioner.core.models import Artifact, ArtifactSet, Recipe, Role
from provisioner.files.layout import safe_relative
from provisioner.smoke_test.results import DEFAULT_PROMPT, ImageOptions, ModelNames

Graph = dict[str, dict[str, Any]]
"""Node id -> ``class_type`` and ``inputs``; an input that is ``[id, number]`` is the output of another node."""

Phase = Literal["load", "encode", "sample", "decode", "save"]

LOAD_MODEL, LOAD_ENCODER, LOAD_VAE = "1", "2", "3"
ENCODE, NEGATIVE = "4", "5"
GUIDER, SAMPLER_NAME, SCHEDULER, LATENT, NOISE, SAMPLE = "6", "7", "8", "9", "10", "11"
DECODE, SAVE = "12", "13"
SHIFT, EMBED = "14", "15"

PHASES: Mapping[str, Phase] = MappingProxyType(
    {
        LOAD_MODEL: "load",
        LOAD_ENCODER: "load",
        LOAD_VAE: "load",
        ENCODE: "encode",
        NEGATIVE: "encode",
        SAMPLE: "sample",
        DECODE: "decode",
        SAVE: "save",
    }
)
"""Node id -> the part of the work that its time counts for; the others only hand settings on, in no time.

"load" is only reading the files: ComfyUI moves the weights to the GPU when they are first used, so that time counts as
"encode" and "sample".  "save" is writing the PNG, which takes a tenth of a second and more at 1024 x 1024.
"""

TILE_SIZE, TILE_OVERLAP = 512, 64
"""Pixels of a tile of `VAEDecodeTiled` and of the overlap of tiles; ComfyUI's own defaults."""

MAX_SIDE = 16384  # pixels, the bound of the nodes that make an empty latent
SIDE_STEP = 16  # pixels: 8 by the VAE, times 2 by its patches
MAX_STEPS = 4096  # the bound of a scheduler with a node of its own
MAX_GUIDANCE = 100.0  # the bound of CFGGuider
MAX_SEED = 2**64 - 1  # the bound of RandomNoise

_MOST_LISTED = 8  # names shown in a message


# --- the graph ------------------------------------------------------------------------------------


def build_graph(recipe: Recipe, names: ModelNames, options: ImageOptions) -> Graph:
    """Return the graph that generates the image described by `options`.

    At guidance 1 the negative conditioning is not computed (ComfyUI skips it), and a zeroed one is used instead, as
    in the official templates of distilled models; at any other guidance it is the encoding of an empty text, as in
    those of base models.

    Parameters
    ----------
    recipe : Recipe
        What the set's model needs.
    names : ModelNames
        The three files, spelled as the server lists them.
    options : ImageOptions
        Describes the image.
    """
    model, positive = [LOAD_MODEL if recipe.shift_node is None else SHIFT, 0], [ENCODE, 0]
    if recipe.embedded_guidance is not None:
        positive = [EMBED, 0]
    negative = _node("ConditioningZeroOut", conditioning=[ENCODE, 0])
    if is_guided(options):
        negative = _node("CLIPTextEncode", text="", clip=[LOAD_ENCODER, 0])
    size = {"width": options.width, "height": options.height}
    guided = {"positive": positive, "negative": [NEGATIVE, 0], "cfg": options.guidance}
    wires = {"noise": [NOISE, 0], "guider": [GUIDER, 0], "sampler": [SAMPLER_NAME, 0], "sigmas": [SCHEDULER, 0]}
    shift = _node(recipe.shift_node or "", model=[LOAD_MODEL, 0], shift=recipe.shift)
    embed = _node("FluxGuidance", conditioning=[ENCODE, 0], guidance=recipe.embedded_guidance)
    return {
        LOAD_MODEL: _node("UNETLoader", unet_name=names.diffusion_model, weight_dtype="default"),
        **({} if recipe.shift_node is None else {SHIFT: shift}),
        # Any other type reads another number of the encoder's layers, and the shapes do not match.
        LOAD_ENCODER: _node("CLIPLoader", clip_name=names.text_encoder, type=recipe.clip_type, device="default"),
        LOAD_VAE: _node("VAELoader", vae_name=names.vae),
        ENCODE: _node("CLIPTextEncode", text=options.prompt, clip=[LOAD_ENCODER, 0]),
        **({} if recipe.embedded_guidance is None else {EMBED: embed}),
        NEGATIVE: negative,
        GUIDER: _node("CFGGuider", model=model, **guided),
        SAMPLER_NAME: _node("KSamplerSelect", sampler_name=recipe.sampler),
        SCHEDULER: _node(recipe.scheduler_node, steps=options.steps, **size)
        if recipe.scheduler_node is not None
        else _node("BasicScheduler", model=model, scheduler=recipe.scheduler, steps=options.steps, denoise=1.0),
        LATENT: _node(recipe.latent, **size, batch_size=1),
        NOISE: _node("RandomNoise", noise_seed=options.seed),
        SAMPLE: _node("SamplerCustomAdvanced", **wires, latent_image=[LATENT, 0]),
        DECODE: _decode(options),
        SAVE: _node("SaveImage", images=[DECODE, 0], filename_prefix="klein-setup"),
    }


def recipe_of(chosen: ArtifactSet) -> Recipe:
    """Return how an image is made with a set; raises UsageError where its manifest does not say."""
    if chosen.recipe is None:
        raise UsageError(
            f"No test image can be made with {chosen.id}: its manifest has no `recipe` and no `workflow` for it.",
            hint="Its files can be installed and verified; open ComfyUI's own template of the model to use them.",
            set=chosen.id,
        )
    return chosen.recipe


def is_guided(options: ImageOptions) -> bool:
    """Return whether the negative conditioning is used: at guidance 1 it is not."""
    return options.guidance != 1.0


def _node(class_type: str, /, **inputs: object) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _decode(options: ImageOptions) -> dict[str, Any]:
    samples = {"samples": [SAMPLE, 0], "vae": [LOAD_VAE, 0]}
    if not options.has_tiled_decode:
        return _node("VAEDecode", **samples)
    tiles = {"tile_size": TILE_SIZE, "overlap": TILE_OVERLAP}
    return _node("VAEDecodeTiled", **samples, **tiles, temporal_size=64, temporal_overlap=8)  # of videos: defaults


# --- the options ----------------------------------------------------------------------------------


def options_for(
    chosen: ArtifactSet,
    *,
    seed: int,
    prompt: str | None = None,
    width: int | None = None,
    height: int | None = None,
    steps: int | None = None,
    has_tiled_decode: bool = False,
) -> ImageOptions:
    """Return the options of an image: guidance comes from the set, so do steps unless given, the rest from the user.

    Parameters
    ----------
    chosen : ArtifactSet
        Its envelope says how many steps and which guidance the model was made for.
    seed : int
        0 to 2**64 - 1; a new one unless the user gave it, because ComfyUI answers a repeated graph from its cache.
    prompt, width, height, steps : optional
        The user's choice; pixels, multiples of 16.
    has_tiled_decode : bool, optional
        Decode in tiles, which needs far less peak memory and a little more time.

    Raises
    ------
    UsageError
        A number ComfyUI would reject; the message names the option's bounds.
    """
    plain = ImageOptions()
    envelope = chosen.envelope
    options = replace(
        plain,
        prompt=DEFAULT_PROMPT if prompt is None else prompt,
        seed=seed,
        width=plain.width if width is None else width,
        height=plain.height if height is None else height,
        steps=next(each for each in (steps, envelope.steps, plain.steps) if each is not None),
        guidance=plain.guidance if envelope.guidance is None else envelope.guidance,
        has_tiled_decode=has_tiled_decode,
    )
    check_options(options)
    return options


def check_options(options: ImageOptions) -> None:
    """Raise `UsageError` for options that ComfyUI would reject or silently round."""
    for what, side in (("width", options.width), ("height", options.height)):
        if not SIDE_STEP <= side <= MAX_SIDE or side % SIDE_STEP:
            expected = f"a multiple of {SIDE_STEP} from {SIDE_STEP} to {MAX_SIDE}"
            raise UsageError(
                f"The {what} of the image cannot be {side} pixels; expected {expected}.",
                hint=f"Use {_nearest_side(side)}.",
            )
    _check_bounds("seed", options.seed, 0, MAX_SEED)
    _check_bounds("number of steps", options.steps, 1, MAX_STEPS)
    _check_bounds("guidance", options.guidance, 0, MAX_GUIDANCE)


def _nearest_side(side: int) -> int:
    return max(SIDE_STEP, min(MAX_SIDE, round(side / SIDE_STEP) * SIDE_STEP))


def _check_bounds(what: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        raise UsageError(
            f"The {what} of the image cannot be {value}; expected {lowest:,} to {highest:,}.",
            hint="Give one within these bounds.",
        )


# --- the files, as the server names them ----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """The node that loads a role's file, and the input that lists what it can load."""

    role: Role
    field: str  # field of `ModelNames`
    class_type: str
    input_name: str
    folder: str  # ComfyUI models folder the list is made from


LOADERS: tuple[Loader, ...] = (
    Loader(
        role="diffusion_model",
        field="diffusion_model",
        class_type="UNETLoader",
        input_name="unet_name",
        folder="diffusion_models",
    ),
    Loader(
        role="text_encoder",
        field="text_encoder",
        class_type="CLIPLoader",
        input_name="clip_name",
        folder="text_encoders",
    ),
    Loader(role="vae", field="vae", class_type="VAELoader", input_name="vae_name", folder="vae"),
)
"""In the order of the graph.  ``GET /object_info/<class_type>`` returns what a running server lists."""


def names_for(chosen: ArtifactSet) -> ModelNames:
    """Return the names of a set's files for ComfyUI's loaders: paths under their folder, with slashes.

    A server on Windows lists them with backslashes; `pick_listed` spells them as the server does.  The name does not
    depend on which of ComfyUI's folders contains the file.

    Raises
    ------
    UsageError
        The set is not for ComfyUI, has no file or several for a role, or one that ComfyUI's own nodes do not load.
    """
    if chosen.target != "comfyui":
        raise UsageError(
            f"The set {chosen.id} is made for an HF cache, but ComfyUI reads its own folders.",
            hint="Choose a set made for ComfyUI.",
            set=chosen.id,
        )
    return ModelNames(**{loader.field: _loader_name(chosen, loader) for loader in LOADERS})


def _loader_name(chosen: ArtifactSet, loader: Loader) -> str:
    what = loader.role.replace("_", " ")
    found = [each for each in chosen.artifacts if each.role == loader.role]
    if len(found) != 1:
        counted = "no file" if not found else f"{len(found)} files"
        raise UsageError(
            f"The set {chosen.id} has {counted} for the role {loader.role}; expected one.",
            hint=f"Choose a set with one {what}, or correct the manifest.",
            set=chosen.id,
        )
    return _name_in_folder(chosen, found[0], loader)


def _name_in_folder(chosen: ArtifactSet, artifact: Artifact, loader: Loader) -> str:
    first, *rest = safe_relative(artifact.folder or "-").parts
    if current_folder_name(first) != loader.folder:
        raise UsageError(
            f"{artifact.id} belongs to the folder {artifact.folder}, which {loader.class_type} does not read;"
            f" expected {loader.folder}.",
            hint="Choose another set, or correct the manifest.",
            set=chosen.id,
        )
    if artifact.name.casefold().endswith(".gguf"):
        raise UsageError(
            f"{artifact.name} is a GGUF file, which ComfyUI loads only with a custom node.",
            hint="Choose a set of safetensors files.",
            set=chosen.id,
        )
    return str(PurePosixPath(*rest) / safe_relative(artifact.name))


def pick_listed(names: ModelNames, listed: ListedModels, *, ignore_case: bool = False) -> ModelNames:
    r"""Return the names as the server spells them.

    Parameters
    ----------
    names : ModelNames
        From `names_for`.
    listed : ListedModels
        What the server's loaders offer.
    ignore_case : bool, optional
        Whether ``A`` and ``a`` are one file where the server runs: on Windows and, as a rule, on macOS.

    Raises
    ------
    ModelNotListedError
        A file is not in its loader's list; the message names every such file, its folder and similar names.

    Examples
    --------
    >>> names = ModelNames(diffusion_model="sub/k.safetensors", text_encoder="q.safetensors", vae="v.safetensors")
    >>> windows = ListedModels(
    ...     diffusion_models=("sub\\k.safetensors",),
    ...     text_encoders=("q.safetensors",),
    ...     vaes=("v.safetensors",),
    ...     clip_types=(),
    ... )
    >>> pick_listed(names, windows).diffusion_model
    'sub\\k.safetensors'
    """
    picked: dict[str, str] = {}
    missing: list[str] = []
    said: list[str] = []
    for loader, offered in zip(LOADERS, (listed.diffusion_models, listed.text_encoders, listed.vaes), strict=True):
        wanted = getattr(names, loader.field)
        found = next((each for each in offered if _same_name(each, wanted, ignore_case=ignore_case)), None)
        if found is None:
            missing.append(f"{loader.folder}/{wanted}")
            said.append(f"{loader.folder}/{wanted} ({_what_is_there(wanted, offered)})")
        else:
            picked[loader.field] = found
    if missing:
        raise ModelNotListedError(
            f"ComfyUI does not list {'; '.join(said)}.",
            hint="Compare the folders the server reads (its extra_model_paths.yaml, --base-directory) with where the"
            " files are, and restart the server if it was started before them.",
            missing=missing,
        )
    return ModelNames(**picked)


def _same_name(one: str, other: str, *, ignore_case: bool) -> bool:
    """Return whether two names are one file, ignoring separators, Unicode composition and perhaps case."""
    first, second = (unicodedata.normalize("NFC", each.replace("\\", "/")) for each in (one, other))
    return first.casefold() == second.casefold() if ignore_case else first == second


def _what_is_there(wanted: str, offered: Sequence[str]) -> str:
    if not offered:
        return "the list is empty"
    import difflib  # needed only after a mistake

    close = difflib.get_close_matches(wanted, offered, n=3) or list(offered[:_MOST_LISTED])
    more = ", ..." if len(close) < len(offered) else ""
    return f"it lists {', '.join(close)}{more}"
