"""Which files do not go together, with ComfyUI's message and what to do."""

from __future__ import annotations

import json
import re

import pytest

from provisioner.identify.family_table import FAMILIES
from provisioner.identify.identification import Identity, identify, pairing_problems
from provisioner.identify.pairing import comfyui_words
from provisioner.identify.partners import FLUX2_TEXT_WIDTHS, PARTNERS, Partners
from tests.support.model_headers import (
    DATA,
    Table,
    flux2,
    flux2_vae_bfl,
    header_bytes_of,
    klein_4b,
    klein_9b,
    quantised,
    qwen3_4b,
    qwen3_8b,
    qwen3_vl_4b,
    qwen3_vl_8b,
)

WORDS = json.loads((DATA / "comfyui_words.json").read_text(encoding="utf-8"))


def known(tensors: Table, metadata: dict[str, str] | None = None) -> Identity:
    return identify(*header_bytes_of(tensors, metadata))


def qwen3_06b() -> Identity:
    return known(
        {
            "model.layers.0.post_attention_layernorm.weight": ("BF16", [1024]),
            "model.layers.0.self_attn.q_norm.weight": ("BF16", [128]),
        }
    )


KLEIN_4B, KLEIN_9B = known(klein_4b()), known(klein_9b())
DEV = known(flux2(6144, 15360, 8, 48))
DISTILLED = known(*quantised(klein_4b(), "float8_e4m3fn"))
BASE = known(*quantised(klein_4b(), "float8_e4m3fn", kept=r"double_blocks\.0\.(img|txt)_attn\.proj"))
QWEN_4B, QWEN_8B = known(qwen3_4b()), known(qwen3_8b())
QWEN_VL_4B, QWEN_VL_8B = known(qwen3_vl_4b()), known(qwen3_vl_8b())
Z_IMAGE = known(
    {"cap_embedder.1.weight": ("BF16", [3840, 2560]), "noise_refiner.0.attention.k_norm.weight": ("BF16", [128])}
)
WAN = known({"head.modulation": ("BF16", [1, 2, 5120]), "head.head.weight": ("BF16", [64, 5120])})
_WI = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"
T5 = known({_WI: ("F16", [10240, 4096]), "shared.weight": ("F16", [32128, 4096])})
UMT5 = known({_WI: ("F16", [10240, 4096]), "shared.weight": ("F16", [256384, 4096])})
CLIP_L = known({"text_model.encoder.layers.0.mlp.fc1.weight": ("F16", [3072, 768])})
MISTRAL = known({f"model.layers.{layer}.post_attention_layernorm.weight": ("BF16", [5120]) for layer in (0, 39)})
VAE = known(flux2_vae_bfl())
FLUX1_VAE = known({"decoder.conv_in.weight": ("F32", [512, 16, 3, 3])})
SDXL_VAE = known({"decoder.conv_in.weight": ("F32", [512, 4, 3, 3])})
WAN_VAE = known({"decoder.middle.0.residual.0.gamma": ("BF16", [384, 1, 1, 1])})
FLUX1 = known({"double_blocks.0.img_attn.norm.key_norm.scale": ("BF16", [128]), "img_in.weight": ("BF16", [3072, 64])})
NO_METADATA = known(quantised(klein_4b(), "float8_e4m3fn")[0])
EMPTY, HTML = identify(b"", 0), identify(b"<!doctype html><html>", 21)
UNKNOWN = known({"x": ("BF16", [1])})


@pytest.mark.parametrize(
    ("diffusion", "encoder", "vae"),
    [
        (KLEIN_4B, QWEN_4B, VAE),
        (DISTILLED, QWEN_4B, VAE),
        (KLEIN_9B, QWEN_8B, VAE),
        (FLUX1, CLIP_L, FLUX1_VAE),
        (DEV, MISTRAL, VAE),
        (Z_IMAGE, QWEN_4B, FLUX1_VAE),
        (WAN, UMT5, WAN_VAE),
        (None, None, None),
        (KLEIN_4B, None, None),
        (None, QWEN_8B, FLUX1_VAE),
        (UNKNOWN, UNKNOWN, UNKNOWN),
        (KLEIN_4B, UNKNOWN, UNKNOWN),
    ],
)
def test_files_that_go_together_or_are_unknown_give_no_problem(
    diffusion: Identity | None, encoder: Identity | None, vae: Identity | None
) -> None:
    assert pairing_problems(diffusion, encoder, vae) == ()


@pytest.mark.parametrize(
    ("diffusion", "encoder", "vae", "code", "words"),
    [
        (KLEIN_4B, QWEN_8B, VAE, "wrong-encoder", ("Qwen3-8B", "(512x12288 and 7680x3072)", "9B")),
        (KLEIN_9B, QWEN_4B, VAE, "wrong-encoder", ("Qwen3-4B", "(512x7680 and 12288x4096)", "4B")),
        (KLEIN_4B, qwen3_06b(), VAE, "wrong-encoder", ("Qwen3-0.6B", "(512x1024 and 7680x3072)")),
        (KLEIN_4B, MISTRAL, VAE, "wrong-encoder", ("Mistral", "(512x15360 and 7680x3072)")),
        (KLEIN_4B, QWEN_VL_4B, VAE, "wrong-encoder", ("Qwen3-VL-4B", "without an error", "Comfy-Org/ComfyUI#14526")),
        (KLEIN_9B, QWEN_VL_8B, VAE, "wrong-encoder", ("Qwen3-VL-8B", "without an error", "Use Qwen3-8B with")),
        (KLEIN_4B, QWEN_VL_8B, VAE, "wrong-encoder", ("Qwen3-VL-8B", "(512x12288 and 7680x3072)")),
        (DEV, QWEN_8B, VAE, "wrong-encoder", ("FLUX.2 [dev] needs Mistral Small or", "(512x12288 and 15360x6144)")),
        (FLUX1, QWEN_4B, FLUX1_VAE, "wrong-encoder", ("FLUX.1 [schnell] needs CLIP-L and T5-XXL, but", "[klein] 4B")),
        (FLUX1, CLIP_L, VAE, "wrong-vae", ("FLUX.1 [schnell] needs the VAE of 16 channels", "Use ae.safetensors.")),
        (Z_IMAGE, QWEN_8B, FLUX1_VAE, "wrong-encoder", ("Z-Image needs Qwen3-4B",)),
        (WAN, T5, WAN_VAE, "wrong-encoder", ("Wan needs UMT5-XXL, but the text encoder is a T5-XXL",)),
        (KLEIN_4B, CLIP_L, VAE, "wrong-encoder", ("CLIP-L", "Use Qwen3-4B with FLUX.2 [klein] 4B, or this")),
        (KLEIN_4B, QWEN_4B, FLUX1_VAE, "wrong-vae", ("16 channels", "but got 128 channels", "flux2-vae.safetensors")),
        (KLEIN_4B, QWEN_4B, SDXL_VAE, "wrong-vae", ("4 channels", "[512, 4, 3, 3]")),
        (KLEIN_9B, QWEN_8B, WAN_VAE, "wrong-vae", ("Wan 2.1",)),
        (DEV, MISTRAL, FLUX1_VAE, "wrong-vae", ("32 channels",)),
        (KLEIN_4B, VAE, None, "wrong-role", ("The text encoder file is the FLUX.2 VAE",)),
        (KLEIN_4B, QWEN_4B, EMPTY, "not-a-model", ("an empty file", "header too small")),
        (HTML, None, None, "not-a-model", ("web page", "header too large")),
        (NO_METADATA, QWEN_4B, VAE, "scales-ignored", ("wrong image",)),
    ],
)
def test_a_wrong_pair_is_named_with_what_comfyui_says_and_what_to_do(
    diffusion: Identity, encoder: Identity | None, vae: Identity | None, code: str, words: tuple[str, ...]
) -> None:
    (found,) = pairing_problems(diffusion, encoder, vae)
    assert (found.code, found.severity) == (code, "problem")
    assert found.hint
    told = f"{found.message} {found.hint}"
    assert [word for word in words if word not in told] == []
    assert "FLUX.2 [klein] needs the FLUX.2 VAE" not in told  # the advice of the sentence is not said twice


@pytest.mark.parametrize(
    ("diffusion", "steps", "guidance", "codes"),
    [
        (BASE, 4, 1.0, ["too-few-steps"]),
        (BASE, 9, None, ["too-few-steps"]),
        (BASE, 10, 5.0, []),
        (BASE, None, None, []),
        (DISTILLED, 4, 1.0, []),
        (DISTILLED, 4, 5.0, ["guidance"]),
        (DISTILLED, 20, None, []),
        (KLEIN_4B, 4, 5.0, []),  # in BF16 base and distilled have one header
        (FLUX1, 4, 5.0, []),
    ],
)
def test_steps_and_guidance_are_compared_with_the_model(
    diffusion: Identity, steps: int | None, guidance: float | None, codes: list[str]
) -> None:
    found = pairing_problems(
        diffusion, QWEN_4B if diffusion is not FLUX1 else None, None, steps=steps, guidance=guidance
    )
    assert [each.code for each in found] == codes
    assert {each.severity for each in found} <= {"warning"}
    assert all("ComfyUI does not say so" in each.message and each.hint for each in found)


def test_problems_come_before_warnings() -> None:
    found = pairing_problems(BASE, QWEN_8B, FLUX1_VAE, steps=4)
    assert [each.code for each in found] == ["wrong-encoder", "wrong-vae", "too-few-steps"]


def cut(tensors: Table) -> Identity:
    first, size = header_bytes_of(tensors)
    return identify(first, size - 1)


@pytest.mark.parametrize(
    ("recording", "identity"),
    [
        ("empty_file_as_model", EMPTY),
        ("html_page_as_model", HTML),
        ("truncated_diffusion_model", cut(klein_4b())),
    ],
)
def test_the_loaders_words_are_those_that_were_recorded(recording: str, identity: Identity) -> None:
    assert comfyui_words(identity) == WORDS[recording]


def test_nothing_is_quoted_that_no_run_has_printed() -> None:
    first, _ = header_bytes_of(klein_4b())
    assert comfyui_words(identify(first[:5000], 5000)) is None
    assert comfyui_words(identify(b"PK\x03\x04", 4)) is None


def test_the_words_about_a_vae_of_16_channels_are_those_that_were_recorded() -> None:
    (found,) = pairing_problems(KLEIN_4B, None, FLUX1_VAE)
    quoted = re.search(r'"(Given groups.*?)"', found.message)
    assert quoted is not None
    pattern = re.escape(quoted[1]).replace(re.escape("[1, 128, ...]"), r"\[1, 128, \d+, \d+\]")
    assert re.fullmatch(pattern, WORDS["flux1_vae"])


def test_the_words_about_an_encoder_are_those_that_were_recorded_but_for_the_width_of_the_model() -> None:
    (found,) = pairing_problems(KLEIN_4B, qwen3_06b(), None)
    assert WORDS["wrong_text_encoder_06b"].replace("x256)", "x3072)") in found.message


# --- the table of partners -----------------------------------------------------------------------

# Models of which nothing is known to go wrong here: no text encoder, no VAE, or several of each in one file.
WITHOUT_PARTNERS = {
    "ace-step", "ace-step-1.5", "hidream-o1", "hunyuan-dit", "hunyuan3d", "hunyuan3d-2.1", "pid", "pixeldit", "sd",
    "seedvr2", "stable-audio", "stable-audio-3", "stable-cascade",
}  # fmt: skip


def test_every_diffusion_model_has_partners_and_every_partner_is_known() -> None:
    known_ids = {role: {each.id for each in FAMILIES if each.role == role} for role in ("text_encoder", "vae")}
    diffusion = {each.id for each in FAMILIES if each.role == "diffusion_model"}
    assert diffusion == set(PARTNERS) | WITHOUT_PARTNERS
    assert set(PARTNERS).isdisjoint(WITHOUT_PARTNERS)
    encoders = {name for each in PARTNERS.values() for one in each.encoders for name in one.split("|")}
    assert encoders | set(FLUX2_TEXT_WIDTHS) <= known_ids["text_encoder"]
    assert {name for each in PARTNERS.values() for name in each.vaes} <= known_ids["vae"]
    assert all(each.name for each in FAMILIES if each.role in known_ids)


@pytest.mark.parametrize("row", PARTNERS.values(), ids=lambda row: row.title)
def test_each_model_takes_its_own_partners_and_says_which_those_are(row: Partners) -> None:
    diffusion = Identity(kind="safetensors", sentence="it", role="diffusion_model", family=family_with(row))
    for family in (each for one in row.encoders for each in one.split("|")):
        own = Identity(kind="safetensors", sentence="a", role="text_encoder", family=family)
        assert pairing_problems(diffusion, own, None) == ()
    for family in row.vaes:
        assert (
            pairing_problems(diffusion, None, Identity(kind="safetensors", sentence="a", role="vae", family=family))
            == ()
        )
    encoder = Identity(kind="safetensors", sentence="a T5-base text encoder", role="text_encoder", family="t5-base")
    vae = Identity(kind="safetensors", sentence="a tiny VAE", role="vae", family="taesd")
    found = {each.code: each for each in pairing_problems(diffusion, encoder, vae)}
    assert set(found) == ({"wrong-encoder"} if row.encoders else set()) | ({"wrong-vae"} if row.vaes else set())
    assert all(each.message.startswith(f"{row.title} needs ") and each.hint for each in found.values())


def family_with(row: Partners) -> str:
    return next(family for family, each in PARTNERS.items() if each is row)
