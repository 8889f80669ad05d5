"""The table of torch builds: what the shipped one says, and that every mistake in one is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioner.core.errors import ManifestError
from provisioner.core.models import Download
from provisioner.manifest.shipped import read_table_text, shipped_manifests
from provisioner.torch.build_table import BuildKind, VersionRange, parse_torch_table, version_of

TEXT, FILE = read_table_text("torch")
TABLE = parse_torch_table(TEXT, file=FILE)


def issues_of(text: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_torch_table(text, file="t.yaml")
    return list(caught.value.issues)


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def changed(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


# --- the shipped table ------------------------------------------------------------------------------


def test_the_shipped_table_is_no_model_manifest() -> None:
    assert FILE == "torch.yaml"
    assert "torch" not in shipped_manifests()


def test_a_table_that_is_missing_is_an_error_of_the_manifests(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"torch\.yaml: there is no such file"):
        read_table_text("torch", tmp_path)
    (tmp_path / "torch.yaml").write_bytes(b"\xef\xbb\xbfschema_version: 1\n")
    assert read_table_text("torch", tmp_path) == ("schema_version: 1\n", "torch.yaml")


def test_builds_are_in_the_order_of_preference() -> None:
    nvidia = [build.tag for build in TABLE.builds_of("nvidia") if not build.only_on_request]
    assert nvidia == ["cu130", "cu132", "cu126", "cu128", "cu129"]
    assert [build.tag for build in TABLE.builds_of("nvidia") if build.only_on_request] == ["cu118", "cu124"]
    assert TABLE.builds_of("amd")[0].tag == "rocm7.2"
    assert [each.tag for kind in ("intel", "apple", "cpu") for each in TABLE.builds_of(kind)] == [
        "xpu",
        "default",
        "cpu",
    ]


def test_every_source_has_the_day_it_was_read_and_every_row_a_source() -> None:
    assert all(source.read_on.startswith("2026-") for source in TABLE.sources)
    assert all(build.sources for build in TABLE.builds)
    assert all(release.sources for release in TABLE.releases)


def test_releases_are_newest_first_and_offers_too() -> None:
    versions = [release.version for release in TABLE.releases]
    assert versions == sorted(versions, reverse=True)
    cu129 = TABLE.build("cu129")
    assert cu129 is not None
    assert [offer.release.torch for offer in cu129.offers_for("win_amd64")] == ["2.9.0", "2.8.0"]
    assert "2.12.0" not in [offer.release.torch for offer in cu129.offers_for("linux_x86_64")]
    assert cu129.offers_for("macosx_arm64") == ()


@pytest.mark.parametrize(
    ("tag", "linux", "windows"),
    [
        ("cu118", "450.80.02", "452.39"),
        ("cu126", "525.60.13", "528.33"),
        ("cu128", "525.60.13", "528.33"),
        ("cu130", "580", "580"),
        ("cu132", "580", "580"),
    ],
)
def test_driver_floors_are_those_of_minor_version_compatibility(tag: str, linux: str, windows: str) -> None:
    build = TABLE.build(tag)
    assert build is not None
    assert dict(build.min_driver) == {"linux": linux, "windows": windows}


def test_no_wheel_holds_sm_89() -> None:
    assert all(89 not in wheels.sm for build in TABLE.builds for wheels in build.wheels)


def test_an_unknown_tag_is_none() -> None:
    assert TABLE.build("cu999") is None


@pytest.mark.parametrize("kind", ["nvidia", "cpu"])
def test_a_build_is_estimated_as_its_kind(kind: BuildKind) -> None:
    estimates = {TABLE.download_of(build.tag) for build in TABLE.builds_of(kind)}
    assert estimates == {TABLE.downloads[kind].download}
    assert min(each.fetched_bytes for each in estimates) > 0


def test_an_unknown_build_is_estimated_at_nothing() -> None:
    assert TABLE.download_of("cu999") == Download(fetched_bytes=0, disk_bytes=0)


# --- versions and ranges ----------------------------------------------------------------------------


def test_a_range_holds_what_it_says() -> None:
    held = VersionRange(lowest=(2, 12), before=(2, 14), without=((2, 12, 0),))
    assert [
        version for version in ((2, 11, 0), (2, 12, 0), (2, 12, 1), (2, 13, 0), (2, 14), (2, 14, 0)) if version in held
    ] == [
        (2, 12, 1),
        (2, 13, 0),
    ]


def test_versions_are_compared_part_by_part() -> None:
    assert version_of("2.9") < version_of("2.10") < version_of("2.10.1")


# --- digests ----------------------------------------------------------------------------------------

DIGEST = f'        - "{"0" * 64}  torch-2.15.0+xpu-cp312-cp312-win_amd64.whl"\n'
DIGESTS = f'    digests:\n      read_on: "2026-11-26"\n      files:\n{DIGEST}'


def test_digests_are_read_with_where_they_came_from() -> None:
    row = DIGESTS.replace("files", "read_from: https://x.example/whl/xpu\n      files")
    table = parse_torch_table(TEXT.replace("    kind: intel\n", f"    kind: intel\n{row}"), file="torch.yaml")
    digests = next(each for each in table.builds if each.kind == "intel").digests
    assert digests is not None
    assert (digests.read_from, digests.read_on) == ("https://x.example/whl/xpu", "2026-11-26")
    assert digests.files == (("torch-2.15.0+xpu-cp312-cp312-win_amd64.whl", "0" * 64),)
    assert all(each.digests is None for each in TABLE.builds)  # none is known of the shipped table's yet


# --- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    kind: nvidia\n", "    kind: nvidea\n", "builds[0].kind: is 'nvidea'; did you mean 'nvidia'?"),
        ("    kind: nvidia\n", "    kind: nvidia\n    vendor: x\n", "vendor: is not a key here; did you mean 'kind'?"),
        (
            '    cuda: "13.0"\n',
            "    cuda: 13.0\n",
            "builds[0].cuda: is '13.0' without quotes, which YAML reads as a number",
        ),
        ('    cuda: "13.0"\n', "", "builds[0].cuda: is missing; expected it in a build for NVIDIA GPUs"),
        ('    min_driver: {linux: "580", windows: "580"}\n', "", "builds[0].min_driver: is missing"),
        (', windows: "580"}', "}", "builds[0].min_driver: names linux only; expected linux and windows"),
        ('{linux: "580", windows: "580"}', "{mac: '580'}", "names neither 'linux' nor 'windows'"),
        ('torch: ">=2.9,<2.11"', 'torch: "2.9-2.11"', "wheels[0].torch: is '2.9-2.11'; expected a quoted range"),
        (
            'torch: ">=2.9,<2.11"',
            'torch: ">=2.11,<2.9"',
            "wheels[0].torch: is '>=2.11,<2.9', which contains no version",
        ),
        ('torch: ">=2.9,<2.11"', 'torch: ">=2.1,<2.2"', "builds[0].wheels: has in entry 0 a range that contains none"),
        ('torch: ">=2.9,<2.11"', 'torch: ">=2.9,<2.12"', "describes torch 2.11.0 for linux_x86_64 twice"),
        ("sm: [75, 80, 86, 90, 100, 120], ptx", "sm: [75, 75], ptx", "wheels[0].sm: names '75' twice"),
        ("sm: [75, 80, 86, 90, 100, 120], ptx", "sm: [7], ptx", "is 7, too small"),
        ("sm: [75, 80, 86, 90, 100, 120], ptx: [120]", "gfx: [gfx1100]", "has in entry 0 no 'sm'"),
        ("sm: [75, 80, 86, 90, 100, 120], ptx: [120]", "sm: [75], gfx: [gfx1]", "expected an AMD architecture"),
        ("    kind: intel\n", "    kind: intel\n    cuda: '13.0'\n", "cuda: is given in a build for intel"),
        (
            "    kind: amd\n",
            "    kind: cpu\n",
            "wheels: has in entry 0 the key 'gfx'; expected none in a build for cpu",
        ),
        ("  - tag: cu132\n", "  - tag: cu130\n", "builds: names 'cu130' twice"),
        ("  - {sm: 52,", "  - {sm: 50,", "gpus: names '50' twice"),
        ("    - {code: 62,", "    - {code: 53,", "machine_code.only_on: names '53' twice"),
        ("    - {gpu: 62,", "    - {gpu: 53,", "machine_code.not_on: names '53' twice"),
        ('torch: "2.14.0"\n', 'torch: "2.14.1"\n', "sets: names '(2, 14, 1)' twice"),
        ("  - {name: linux_aarch64,", "  - {name: linux_x86_64,", "platforms: has no entry for linux_aarch64"),
        ("  - id: diffusers\n    title", "  - id: comfyui\n    title", "apps: has no entry for diffusers"),
        (
            "  - kind: apple\n    download",
            "  - kind: cpu\n    download",
            "downloads: has no entry for apple; expected one",
        ),
        ("    wants_cuda_from_sm: 75\n", "", "apps[0].wants_cuda: is given alone"),
        ("    kind: cpu\n", "    kind: apple\n", "builds: has no build of the kind cpu"),
        (
            "sources: [comfyui, package-index, download-sizes]",
            "sources: [comfyu, package-index, download-sizes]",
            "names in comfyui the source 'comfyu'",
        ),
        ("sources: [comfyui, package-index, download-sizes]", "sources: []", "apps[0].sources: is empty"),
        ("  - id: wheel\n", "  - id: other\n", "sources: contains 'other', which no row names"),
        ('"5690",', '"5691",', "intel_gpus[2].pci_ids: names '5691' twice"),
        ('["1435", "163f"]', '["1435", "744c"]', "amd_gpus: names '744c' twice"),
        ("  - gfx: gfx1201\n", "  - gfx: navi48\n", "amd_gpus[0].gfx: is 'navi48'"),
        ("[windows 11, ubuntu 26.04]", "[Windows]", "validated_on[0]: is 'Windows'"),
        ("  - os: linux\n", "  - os: windows\n", "alternatives: names 'windows' twice"),
        ("  - tag: rocm7.2.1\n", "  - tag: rocm7.14.1\n", "known_broken: names 'rocm7.14.1' twice"),
        ("    index: https://stable", "    index: http://stable", "index: is 'http://stable"),
        ('{adrenalin: "26.8.1", file', '{adrenalin: "new", file', "radeon_driver.adrenalin: is 'new'"),
        ('    torchaudio: "2.11.0.2"', '    torchaudio: "2.11+x"', "torchaudio: is '2.11+x'"),
        ("sources: [pci-ids, therock, gfx1033-numbers]", "sources: [pci]", "names in gfx1033 the source 'pci'"),
        ("index_base: https://", "index_base: http://", "index_base: is 'http://download"),
        ("    confidence: A\n", "    confidence: high\n", "builds[0].confidence: is 'high'; expected one of A, B, C"),
        ("    kind: intel\n", f"    kind: intel\n{DIGESTS}", "read_from: is missing"),
        (
            "    kind: intel\n",
            "    kind: intel\n" + DIGESTS.replace("files", "read_from: http://x.example\n      files"),
            "read_from: is 'http://x.example'",
        ),
        ("    kind: intel\n", "    kind: intel\n" + DIGESTS.replace("0  torch", "0 torch"), "as sha256sum prints them"),
        ("    kind: intel\n", "    kind: intel\n" + DIGESTS.replace("torch-", "numpy-"), "as sha256sum prints them"),
        ("    kind: intel\n", f"    kind: intel\n{DIGESTS}{DIGEST}", "digests.files: names 'torch-2.15.0+xpu-cp312"),
        ('read_on: "2026-11-23"', "read_on: 2026-11-23", "without quotes, which YAML reads as a date"),
        ("schema_version: 1\n", "", "schema_version: is missing; expected 1"),
    ],
)
def test_a_mistake_is_named_with_its_key(old: str, new: str, said: str) -> None:
    found = issues_of(changed(old, new))
    assert [each for each in found if said in each], found


def test_every_mistake_is_named_at_once_and_with_its_line() -> None:
    text = changed("    kind: nvidia\n", "    kind: other\n").replace("  - {sm: 52,", "  - {sm: many,", 1)
    found = issues_of(text)
    assert f"t.yaml:{line_of(text, '  - {sm: many')}: gpus[1].sm: is 'many'" in "\n".join(found)
    assert f"t.yaml:{line_of(text, 'kind: other')}: builds[0].kind: is 'other'" in "\n".join(found)


def test_a_newer_format_is_one_sentence() -> None:
    assert issues_of(changed("schema_version: 1", "schema_version: 2").replace("kind: nvidia", "kind: new")) == [
        f"t.yaml:{line_of(TEXT, 'schema_version')}: schema_version: is 2; expected 1: this table needs a newer"
        " klein-setup"
    ]


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "word\n", "{}\n", "builds: &a []\n"])
def test_a_text_that_is_no_table_is_refused(text: str) -> None:
    assert issues_of(text)
