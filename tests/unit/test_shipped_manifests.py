"""The manifests that come with the program: whole, pinned, inside the root, and of the published size."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import yaml

from provisioner.core.errors import ManifestError, UsageError
from provisioner.core.models import Artifact, ArtifactSet, HubFile, Manifest, OperatingSystem
from provisioner.disk.safe_path import complaint_about_path
from provisioner.files.choose_set import choose_set, unmet_conditions
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import is_shipped, read_manifest_text, shipped_folder, shipped_manifests
from tests.support.builders import gpu, machine

ROOT = Path(__file__).resolve().parents[2]
KLEIN = ("flux2-klein-4b", "flux2-klein-9b")
IDS = shipped_manifests()
MIB = 2**20
SCHEMA = json.loads((ROOT / "manifests" / "schema.json").read_text(encoding="utf-8"))


def manifest_of(name: str) -> Manifest:
    text, label = read_manifest_text(name)
    return parse_manifest(text, file=label)


MANIFESTS = {name: manifest_of(name) for name in IDS}
ARTIFACTS = [(name, artifact) for name, manifest in MANIFESTS.items() for artifact in manifest.artifacts]
each_artifact = pytest.mark.parametrize(
    ("name", "artifact"), ARTIFACTS, ids=[f"{name}-{artifact.id}" for name, artifact in ARTIFACTS]
)


def artifact_of(artifact_id: str, name: str = "flux2-klein-4b") -> Artifact:
    return next(each for each in MANIFESTS[name].artifacts if each.id == artifact_id)


# --- what they hold ---------------------------------------------------------------------------------


def test_every_model_is_shipped_under_its_id() -> None:
    assert {*KLEIN, "z-image-turbo", "qwen-image-2512", "qwen-image-2.1", "qwen-image-edit-2511"} <= set(IDS)
    assert {"flux2-dev", "flux1-schnell"} <= set(IDS)
    for name, manifest in MANIFESTS.items():
        assert manifest.id == name


@pytest.mark.parametrize("name", IDS)
def test_a_shipped_manifest_satisfies_the_schema_too(name: str) -> None:
    text, _ = read_manifest_text(name)
    jsonschema.Draft202012Validator(SCHEMA).validate(yaml.safe_load(text))
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")


@each_artifact
def test_hashes_are_whole_revisions_pinned_sizes_positive_and_paths_inside_the_root(
    name: str, artifact: Artifact
) -> None:
    contents = [(each.size, each.sha256) for each in artifact.contents]
    contents += [(each.size, each.sha256) for each in artifact.lookalikes]
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) and size > 0 for size, sha256 in contents)
    assert complaint_about_path(f"{artifact.folder or 'x'}/{artifact.name}") is None
    for source in artifact.sources:
        assert isinstance(source, HubFile)
        assert re.fullmatch("[0-9a-f]{40}", source.revision)
        assert complaint_about_path(source.filename) is None
    assert artifact.name == artifact.sources[0].filename.rsplit("/", 1)[-1]  # type: ignore[union-attr]


@each_artifact
def test_every_file_says_where_its_digest_was_read_and_under_which_licence(name: str, artifact: Artifact) -> None:
    assert artifact.provenance is not None
    assert artifact.provenance.read_on in {"2026-11-23", "2026-11-26"}
    assert artifact.licence
    if artifact.provenance.agreeing == 1 and "Hub" not in artifact.provenance.read_from:
        assert artifact.provenance.confidence == "low"
    assert artifact.git_oid is None or not artifact.is_lfs


@pytest.mark.parametrize("name", IDS)
def test_one_artifact_is_one_content(name: str) -> None:
    digests = [content.sha256 for artifact in MANIFESTS[name].artifacts for content in artifact.contents]
    assert len(digests) == len(set(digests))


@pytest.mark.parametrize("name", IDS)
def test_ambiguous_sizes_are_told_apart_by_a_lookalike(name: str) -> None:
    artifacts = MANIFESTS[name].artifacts
    for one in artifacts:
        for other in artifacts:
            if one is not other and one.size == other.size:
                assert other.sha256 in {each.sha256 for each in one.lookalikes}, (one.id, other.id)


@pytest.mark.parametrize(
    ("name", "set_id", "total", "files"),
    [
        ("flux2-klein-4b", "fp8", 12_451_820_124, 3),
        ("flux2-klein-4b", "fp8-lean", 8_255_052_074, 3),
        ("flux2-klein-4b", "fp8-midi", 10_038_832_127, 3),
        ("flux2-klein-4b", "nvfp4", 6_644_841_042, 3),
        ("flux2-klein-4b", "bf16", 16_132_301_316, 3),
        ("flux2-klein-4b", "base-fp8", 12_470_694_092, 3),
        ("flux2-klein-4b", "diffusers", 15_980_141_329, 19),
        ("flux2-klein-9b", "fp8", 18_434_123_826, 3),
        ("flux2-klein-9b", "nvfp4", 12_899_766_931, 3),
        ("flux2-klein-9b", "bf16", 34_874_915_900, 3),
        ("flux2-klein-9b", "base-fp8", 18_568_340_770, 3),
        ("z-image-turbo", "bf16", 20_690_152_836, 3),
        ("z-image-turbo", "int8", 12_168_299_735, 3),
        ("qwen-image-2.1", "int8", 17_283_091_112, 3),
        ("qwen-image-2512", "fp8", 30_069_156_070, 3),
        ("qwen-image", "fp8", 30_069_112_062, 3),
        ("qwen-image-edit-2511", "fp8mixed", 30_172_239_743, 3),
        ("qwen-image-edit-2511", "int8", 30_137_560_750, 3),
        ("flux2-dev", "bf16-encoder", 71_290_016_131, 3),
        ("flux2-dev", "fp8-encoder", 53_826_453_243, 3),
        ("flux1-schnell", "bf16", 34_151_796_252, 4),
        ("flux1-schnell", "fp8", 17_236_328_572, 1),
        ("sdxl", "base", 6_938_078_334, 1),
        ("sd35-large", "fp8", 14_934_922_866, 1),
        ("hidream-i1", "full", 33_317_186_804, 6),
        ("hidream-i1", "dev", 33_317_186_804, 6),
        ("hidream-i1", "fast", 33_317_186_804, 6),
        ("wan22-5b", "fp16", 18_144_966_705, 3),
        ("ltx-2.5", "distilled", 39_709_872_236, 5),
    ],
)
def test_a_set_has_the_published_total(name: str, set_id: str, total: int, files: int) -> None:
    chosen = MANIFESTS[name].set_named(set_id)
    assert chosen is not None
    assert (chosen.size, len(chosen.artifacts)) == (total, files)


def test_the_sets_come_in_their_order_and_fp8_is_the_default() -> None:
    sets = {name: [each.id for each in manifest.sets] for name, manifest in MANIFESTS.items()}
    assert sets["flux2-klein-4b"] == ["fp8", "fp8-lean", "fp8-midi", "nvfp4", "bf16", "base-fp8", "diffusers"]
    assert sets["flux2-klein-9b"] == ["fp8", "nvfp4", "bf16", "base-fp8"]
    assert {MANIFESTS[name].default_set for name in KLEIN} == {"fp8"}


def test_a_set_with_a_recipe_is_a_transformer_an_encoder_and_a_vae_in_their_folders() -> None:
    assert all(each.recipe for name in KLEIN for each in MANIFESTS[name].sets if each.target == "comfyui")
    for manifest in MANIFESTS.values():
        for each in manifest.sets:
            if each.recipe is not None:
                assert [(file.role, file.folder) for file in each.artifacts] == [
                    ("diffusion_model", "diffusion_models"),
                    ("text_encoder", "text_encoders"),
                    ("vae", "vae"),
                ]


def test_the_two_files_called_flux2_vae_are_one_artifact_with_both_contents_and_both_sources() -> None:
    for name in (*KLEIN, "flux2-dev"):
        vae = artifact_of("flux2-vae", name)
        assert [content.size for content in vae.contents] == [336_213_556, 336_211_292]
        places = [vae.sources, *(variant.sources for variant in vae.accept)]
        assert [[source.repo_id for source in each if isinstance(source, HubFile)] for each in places] == [
            ["Comfy-Org/flux2-dev"],
            ["Comfy-Org/Flux-2-Klein-4B"],
        ]


def test_manifests_say_the_same_about_the_files_they_share() -> None:
    by_digest: dict[str, Artifact] = {}
    by_id: dict[str, str] = {}
    shared = 0
    for _, each in ARTIFACTS:
        plain = replace(each, note=None, min_comfyui=None, lookalikes=())
        shared += each.sha256 in by_digest
        assert by_digest.setdefault(each.sha256, plain) == plain, each.id
        assert by_id.setdefault(each.id, each.sha256) == each.sha256, each.id  # receipts know a file by its id
    assert shared >= 10
    assert artifact_of("qwen3-4b-bf16", "z-image-turbo").sha256 == artifact_of("qwen3-4b-bf16").sha256


def test_two_files_of_one_place_are_one_content() -> None:
    places: dict[str, set[str]] = {}
    for _, each in ARTIFACTS:
        if each.folder is not None:
            places.setdefault(f"{each.folder}/{each.name}".casefold(), set()).add(each.sha256)
    assert not {place: digests for place, digests in places.items() if len(digests) > 1}


def test_the_bf16_model_can_come_from_either_repository() -> None:
    repositories = [source.repo_id for source in artifact_of("klein-4b-bf16").sources if isinstance(source, HubFile)]
    assert repositories == ["Comfy-Org/Flux-2-Klein-4B", "black-forest-labs/FLUX.2-klein-4B"]


def test_what_the_hub_itself_confirms_says_so() -> None:
    confirmed = {
        "klein-4b-fp8",
        "klein-base-4b-fp8",
        "qwen3-4b-bf16",
        "flux2-vae",
    }
    found = {
        each.id
        for each in MANIFESTS["flux2-klein-4b"].artifacts
        if each.provenance is not None and "Hub" in each.provenance.read_from
    }
    assert found == confirmed
    encoder = artifact_of("qwen3-8b-bf16", "flux2-klein-9b").provenance
    assert encoder is not None
    assert (encoder.read_from, encoder.confidence) == ("the Hub's own pages", "high")


def test_the_diffusers_set_is_one_commit_of_one_repository() -> None:
    chosen = MANIFESTS["flux2-klein-4b"].set_named("diffusers")
    assert chosen is not None
    assert chosen.target == "hf_cache"
    first = [artifact.sources[0] for artifact in chosen.artifacts]
    places = {(source.repo_id, source.revision) for source in first if isinstance(source, HubFile)}
    assert places == {("black-forest-labs/FLUX.2-klein-4B", "e7b7dc27f91deacad38e78976d1f2b499d76a294")}
    assert all(artifact.folder is None for artifact in chosen.artifacts)
    unnamed = [each.name for each in chosen.artifacts if not each.is_lfs and each.git_oid is None]
    assert unnamed == ["LICENSE.md"]


def test_the_diffusers_checkout_has_every_file_the_pipeline_opens() -> None:
    chosen = MANIFESTS["flux2-klein-4b"].set_named("diffusers")
    assert chosen is not None
    paths = {
        source.filename for artifact in chosen.artifacts for source in artifact.sources if isinstance(source, HubFile)
    }
    assert {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors.index.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    } <= paths


def test_the_9b_is_gated_and_says_so_before_anything_is_fetched() -> None:
    manifest = MANIFESTS["flux2-klein-9b"]
    assert not manifest.licence.is_commercial_use_allowed
    assert manifest.licence.id == "flux-non-commercial"
    assert manifest.licence.notice is not None
    assert "no commercial use" in manifest.licence.notice
    for artifact in manifest.artifacts:
        assert artifact.is_gated == (artifact.role == "diffusion_model")
    assert not any(artifact.is_gated for artifact in MANIFESTS["flux2-klein-4b"].artifacts)


def test_a_condition_of_the_licence_is_said_whatever_the_gate_says() -> None:
    asked = {name for name, each in MANIFESTS.items() if not each.licence.is_commercial_use_allowed}
    conditional = {name for name, each in MANIFESTS.items() if each.licence.commercial_use_condition}
    assert {"flux2-dev", "sd35-large", "ltx-2.5", "hidream-i1"} <= conditional
    assert asked - conditional == {"flux2-klein-9b", "qwen-image-2.1"}
    assert not any(each.is_gated for each in MANIFESTS["flux2-dev"].artifacts)  # repackaged, and asked about


# What the largest card of a machine chooses; None: nothing suits, so that the default is taken and that is said.
CARDS = {8_188: 0, 12_282: 1, 24_564: 2, 81_559: 3}
CHOSEN: dict[str, list[str | None]] = {
    "flux1-schnell": [None, None, "bf16", "bf16"],
    "flux2-dev": [None, None, None, "bf16-encoder"],
    "flux2-klein-4b": ["fp8-lean", "fp8", "fp8", "fp8"],
    "flux2-klein-9b": [None, None, "fp8", "fp8"],
    "hidream-i1": [None, None, "dev", "dev"],
    "ltx-2.5": [None, None, "distilled", "distilled"],
    "qwen-image": [None, None, "fp8", "fp8"],
    "qwen-image-2.1": [None, "int8", "int8", "int8"],
    "qwen-image-2512": [None, None, "fp8", "fp8"],
    "qwen-image-edit-2511": [None, None, "fp8mixed", "fp8mixed"],
    "sd35-large": [None, None, "fp8", "fp8"],
    "sdxl": ["base", "base", "base", "base"],
    "wan22-5b": [None, "fp16", "fp16", "fp16"],
    "z-image-turbo": ["int8", "int8", "bf16", "bf16"],
}


@pytest.mark.parametrize("vram_mib", CARDS)
@pytest.mark.parametrize("name", IDS)
def test_each_class_of_memory_chooses_a_set(name: str, vram_mib: int) -> None:
    found = machine(gpu(memory_total_bytes=vram_mib * MIB))
    expected = CHOSEN[name][CARDS[vram_mib]]
    choice = choose_set(MANIFESTS[name], None, kind=None, look=lambda: found)
    assert choice.set.id == (expected or MANIFESTS[name].default_set)
    if len(MANIFESTS[name].sets) > 1:
        assert ("no set suits" in choice.because) == (expected is None)
    lacks = unmet_conditions(choice.set.conditions, found)
    assert bool(lacks) == (expected is None)


_FAMILIES = re.compile(
    r"z_?-?image|qwen[-_ ]?image|hidream|sdxl|schnell|\bwan[-_ ]?2|\bltx|flux\.?1|lumina|mistral|\"flux2\"",
    re.IGNORECASE,
)
_KNOW_FILES = ("identify/", "comfyui/server/failures.py", "workflow/")
"""What names models because it tells files, errors and nodes of any model apart; nothing is installed by it."""
_EXAMPLE = "image_z_image_turbo"  # the template that help texts name


def test_no_line_of_code_knows_a_model_that_a_manifest_brings() -> None:
    found = []
    for path in (ROOT / "provisioner").rglob("*.py"):
        relative = path.relative_to(ROOT / "provisioner").as_posix()
        if relative.startswith(_KNOW_FILES):
            continue
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        found += [
            f"{relative}:{number}: {line.strip()}"
            for number, line in lines
            if _FAMILIES.search(line.replace(_EXAMPLE, ""))
        ]
    assert found == []


def test_headers_are_described_for_the_files_of_the_default_set() -> None:
    default = MANIFESTS["flux2-klein-4b"].set_named("fp8")
    assert default is not None
    known = [artifact.fingerprint for artifact in default.artifacts]
    assert [each.tensors for each in known if each] == [309, 398, 251]
    assert all(each is not None and each.schema_sha256 and each.proof == "schema and size" for each in known)


def test_nothing_in_the_folder_names_the_place_it_was_made() -> None:
    for path in (ROOT / "manifests").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "/work/" not in text
        assert "/home/" not in text


# --- what auto would take -------------------------------------------------------------------------------


def holds(
    candidate: ArtifactSet, system: OperatingSystem, vram: int | None, capability: tuple[int, int] | None
) -> bool:
    """Whether a machine meets the conditions; what is not known meets no bound."""
    asked = candidate.conditions
    return (
        (not asked.platforms or system in asked.platforms)
        and (asked.min_vram_bytes is None or (vram is not None and vram >= asked.min_vram_bytes))
        and (
            asked.min_compute_capability is None
            or (capability is not None and capability >= asked.min_compute_capability)
        )
    )


@pytest.mark.parametrize(
    ("system", "vram_mib", "capability", "expected_4b", "expected_9b"),
    [
        ("linux", 12_282, (8, 9), "fp8", None),  # RTX 4070
        ("windows", 12_288, (8, 6), "fp8", None),  # RTX 3060
        ("windows", 24_564, (8, 9), "fp8", "fp8"),  # RTX 4090
        ("linux", 16_303, (12, 0), "fp8", "fp8"),  # RTX 5080
        ("windows", 12_227, (12, 0), "fp8", "nvfp4"),  # RTX 5070
        ("linux", 16_368, None, "fp8", "fp8"),  # an AMD card has no compute capability
        ("windows", 10_240, (8, 6), "fp8-lean", None),  # RTX 3080
        ("windows", 8_188, (8, 6), "fp8-lean", None),  # RTX 3070 Laptop
        ("windows", 8_151, (12, 0), "fp8-lean", None),  # RTX 5060
        ("linux", 6_144, (7, 5), None, None),
        ("linux", None, None, None, None),  # no GPU, or one that tells nothing
        ("macos", None, None, "bf16", None),
        ("macos", 49_152, None, "bf16", "bf16"),
    ],
)
def test_auto_takes_the_set_that_suits_the_card(
    system: OperatingSystem,
    vram_mib: int | None,
    capability: tuple[int, int] | None,
    expected_4b: str | None,
    expected_9b: str | None,
) -> None:
    vram = None if vram_mib is None else vram_mib * MIB
    chosen = [
        next(
            (
                each.id
                for each in MANIFESTS[name].sets
                if each.target == "comfyui" and holds(each, system, vram, capability)
            ),
            None,
        )
        for name in KLEIN
    ]
    assert chosen == [expected_4b, expected_9b]


def test_auto_never_takes_the_undistilled_model() -> None:
    for manifest in map(MANIFESTS.__getitem__, KLEIN):
        base, first = manifest.set_named("base-fp8"), manifest.sets[0]
        assert base is not None
        assert base.conditions == first.conditions
        assert manifest.sets.index(base) > 0


# --- finding and reading them --------------------------------------------------------------------------


def put(folder: Path, name: str, content: bytes = b"id: x\n") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_only_models_are_listed_and_not_the_other_data_of_the_folder(tmp_path: Path) -> None:
    for name in ("zeta.yaml", "alpha.yaml", "torch.yaml", "comfyui.yaml", "failures.yaml", "schema.json", "README.md"):
        put(tmp_path, name)
    assert shipped_manifests(tmp_path) == ("alpha", "zeta")


def test_a_checkout_is_read_from_its_manifests_folder() -> None:
    assert shipped_folder() == ROOT / "manifests"


def test_an_id_is_read_with_the_name_of_its_file_as_label(tmp_path: Path) -> None:
    put(tmp_path, "alpha.yaml", b"id: alpha\n")
    assert read_manifest_text("alpha", folder=tmp_path) == ("id: alpha\n", "alpha.yaml")


def test_a_path_is_read_with_itself_as_label(tmp_path: Path) -> None:
    path = str(put(tmp_path, "mine.yaml", b"id: mine\r\n"))
    assert read_manifest_text(path) == ("id: mine\r\n", path)


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = str(put(tmp_path, "mine.yaml", b"\xef\xbb\xbfid: mine\n"))
    assert read_manifest_text(path)[0] == "id: mine\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flux2-klein-4B", "Did you mean flux2-klein-4b?"),
        ("flux2-klein", "Did you mean flux2-klein-"),
        ("nothing-like-it", "There is no manifest 'nothing-like-it'."),
        ("torch", "There is no manifest 'torch'"),
        ("", "There is no manifest ''"),
        ("a\x00b", "There is no manifest 'a\\x00b'"),
        ("x" * 5000, "There is no manifest"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_an_unknown_id_is_answered_with_the_known_ones(name: str, expected: str) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)) as caught:
        read_manifest_text(name)
    assert caught.value.context["known"] == list(IDS)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.yaml", None, "there is no such file"),
        ("long.yaml", b"#" * (1024 * 1024 + 1), "is longer than 1048576 bytes"),
        ("latin.yaml", b"id: x\ntitle: \xe9t\xe9\n", "is not UTF-8 text: line 2 has the byte 0xe9"),
        ("utf16.yaml", "id: x".encode("utf-16"), "is not UTF-8 text: line 1 has the byte 0xff"),
        ("model.yaml", b"\x80\x02}q\x00.", "is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, name: str, content: bytes | None, expected: str) -> None:
    path = tmp_path / name if content is None else put(tmp_path, name, content)
    with pytest.raises(ManifestError, match=expected) as caught:
        read_manifest_text(str(path))
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_a_folder_is_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path), f"{tmp_path}/"):
        with pytest.raises(ManifestError, match="is a folder"):
            read_manifest_text(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "pipe.yaml"
    getattr(os, "mkfifo")(path)  # noqa: B009 - the type checker knows Windows, which has none
    with pytest.raises(ManifestError, match="is not a regular file"):
        read_manifest_text(str(path))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no such device")
def test_an_endless_device_is_refused() -> None:
    with pytest.raises(ManifestError, match="is not a regular file"):
        read_manifest_text("/dev/zero")


def test_a_path_no_system_takes_is_refused_with_the_reason() -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest_text("folder/\x00.yaml")


def test_a_file_that_may_not_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = put(tmp_path, "mine.yaml")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything, or the system has no such mode")
    with pytest.raises(ManifestError, match="Permission denied"):
        read_manifest_text(str(path))


# --- what the README says ----------------------------------------------------------------------------------


def readme() -> str:
    return (ROOT / "manifests" / "README.md").read_text(encoding="utf-8")


def test_the_example_of_the_readme_is_a_manifest() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", readme(), re.DOTALL)
    whole = next(each for each in blocks if each.startswith("schema_version"))
    assert parse_manifest(whole, file="README.md").sets[0].size == 4_406_838_076


def test_the_rule_for_schema_sha256_gives_the_published_value() -> None:
    # Qwen3-4B in BF16, as its published configuration lays it out: 36 layers of 11 tensors, embedding and norm.
    layer = {
        "input_layernorm": [2560],
        "mlp.down_proj": [2560, 9728],
        "mlp.gate_proj": [9728, 2560],
        "mlp.up_proj": [9728, 2560],
        "post_attention_layernorm": [2560],
        "self_attn.k_norm": [128],
        "self_attn.k_proj": [1024, 2560],
        "self_attn.o_proj": [2560, 4096],
        "self_attn.q_norm": [128],
        "self_attn.q_proj": [4096, 2560],
        "self_attn.v_proj": [1024, 2560],
    }
    shapes = {f"model.layers.{at}.{name}.weight": shape for at in range(36) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": [151936, 2560], "model.norm.weight": [2560]}
    lines = [f"{name}:{('BF16', tuple(shape))}" for name, shape in sorted(shapes.items())]
    known = artifact_of("qwen3-4b-bf16").fingerprint
    assert known is not None
    assert (known.tensors, known.dtypes) == (len(shapes), (("BF16", 398),))
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == known.schema_sha256
    assert 2 * sum(math.prod(shape) for shape in shapes.values()) == known.payload_bytes


def test_only_the_id_of_a_manifest_that_comes_with_us_counts_as_shipped() -> None:
    assert is_shipped("flux2-klein-4b")
    assert not any(
        map(is_shipped, ("torch", "mine", "./flux2-klein-4b", str(shipped_folder() / "flux2-klein-4b.yaml")))
    )
