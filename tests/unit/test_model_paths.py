"""The folders ComfyUI reads: its defaults and those of `extra_model_paths.yaml`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.comfyui.model_paths import (
    MAX_CONFIG_CHARACTERS,
    ExtraPath,
    current_folder_name,
    folder_paths,
    parse_extra_model_paths,
)
from provisioner.core.errors import UsageError

RECORDING = Path(__file__).parents[1] / "contract" / "data" / "comfyui" / "GET_internal_folder_paths.json"
POSIX_FILE = PurePosixPath("/opt/ComfyUI/extra_model_paths.yaml")
WINDOWS_FILE = PureWindowsPath(r"C:\ComfyUI\extra_model_paths.yaml")


def parse(text: str, environ: Mapping[str, str] | None = None) -> list[tuple[str, str, bool]]:
    """Parse on a POSIX system; folder, path, default."""
    found = parse_extra_model_paths(text, file=POSIX_FILE, home=PurePosixPath("/home/ada"), environ=environ or {})
    return [(each.folder, str(each.path), each.is_default) for each in found]


def parse_on_windows(text: str, environ: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    home = PureWindowsPath(r"C:\Users\Ada")
    found = parse_extra_model_paths(text, file=WINDOWS_FILE, home=home, environ=environ or {})
    return [(each.folder, str(each.path)) for each in found]


def extra(folder: str, path: str, *, is_default: bool = False) -> ExtraPath[PurePosixPath]:
    return ExtraPath(folder=folder, path=PurePosixPath(path), is_default=is_default, section="s")


# --- what is read --------------------------------------------------------------------------------


def test_a_character_that_no_path_has_is_refused() -> None:
    for text in ('a:\n  vae: "x\\0y"\n', 'a:\n  base_path: "/x\\0y"\n  vae: v\n'):
        with pytest.raises(UsageError, match=r"line 2: .*NUL"):
            parse_extra_model_paths(text, file=PurePosixPath("/c/extra.yaml"), home=PurePosixPath("/h"), environ={})


def test_defaults_are_those_a_running_comfyui_answered() -> None:
    recorded = json.loads(RECORDING.read_text(encoding="utf-8"))["body"]
    base = PurePosixPath("/opt/ComfyUI-data")
    computed = folder_paths(base / "models", base=base)
    assert {folder: [str(path) for path in paths] for folder, paths in computed.items()} == recorded


def test_without_a_base_folder_only_the_models_folder_is_answered() -> None:
    computed = folder_paths(PurePosixPath("/m"))
    assert computed["diffusion_models"] == (PurePosixPath("/m/unet"), PurePosixPath("/m/diffusion_models"))
    assert "custom_nodes" not in computed


@pytest.mark.parametrize(
    ("extras", "expected"),
    [
        ([], ["/m/vae"]),
        ([("/a", False), ("/b", False)], ["/m/vae", "/a", "/b"]),
        ([("/a", True), ("/b", True)], ["/b", "/a", "/m/vae"]),
        ([("/a", True), ("/b", False), ("/c", True)], ["/c", "/a", "/m/vae", "/b"]),
        ([("/m/vae", False)], ["/m/vae"]),
        ([("/a", True), ("/m/vae", True)], ["/m/vae", "/a"]),
        ([("/a", False), ("/a", True)], ["/a", "/m/vae"]),
        ([("/a", True), ("/a", False)], ["/a", "/m/vae"]),
    ],
)
def test_a_default_goes_to_the_front_and_a_known_path_moves(
    extras: list[tuple[str, bool]], expected: list[str]
) -> None:
    lines = [extra("vae", path, is_default=is_default) for path, is_default in extras]
    assert [str(path) for path in folder_paths(PurePosixPath("/m"), lines)["vae"]] == expected


def test_output_folders_come_after_every_yaml_line() -> None:
    base = PurePosixPath("/c")
    computed = folder_paths(base / "models", [extra("text_encoders", "/x")], base=base)
    assert [str(path) for path in computed["text_encoders"]] == [
        "/c/models/text_encoders",
        "/c/models/clip",
        "/x",
        "/c/output/clip",
    ]


def test_a_folder_only_a_custom_node_knows_is_added() -> None:
    assert folder_paths(PurePosixPath("/m"), [extra("LLM", "/llm")])["LLM"] == (PurePosixPath("/llm"),)


# --- the YAML file ---------------------------------------------------------------------------------

WEBUI = """
a111:
    base_path: path/to/stable-diffusion-webui/

    checkpoints: models/Stable-diffusion
    vae: models/VAE
    loras: |
         models/Lora
         models/LyCORIS
    embeddings: embeddings
"""


def test_reads_the_example_that_comfyui_ships() -> None:
    base = "/opt/ComfyUI/path/to/stable-diffusion-webui"
    assert parse(WEBUI) == [
        ("checkpoints", f"{base}/models/Stable-diffusion", False),
        ("vae", f"{base}/models/VAE", False),
        ("loras", f"{base}/models/Lora", False),
        ("loras", f"{base}/models/LyCORIS", False),
        ("embeddings", f"{base}/embeddings", False),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("# only a comment\n", []),
        ("a:\nb:\n", []),
        ("a: {}", []),
        ("a:\n  vae: m/vae", [("vae", "/opt/ComfyUI/m/vae", False)]),
        ("a:\n  vae: /abs/vae/", [("vae", "/abs/vae", False)]),
        ("a:\n  base_path: /b\n  vae: /abs/vae", [("vae", "/abs/vae", False)]),
        ("a:\n  base_path: ''\n  vae: v", [("vae", "/opt/ComfyUI/v", False)]),
        ("a:\n  base_path: ../shared\n  vae: ./v", [("vae", "/opt/shared/v", False)]),
        ("a:\n  vae: v\n  base_path: /b\n  is_default: true", [("vae", "/b/v", True)]),
        (
            "a:\n  unet: u\n  clip: c",
            [("diffusion_models", "/opt/ComfyUI/u", False), ("text_encoders", "/opt/ComfyUI/c", False)],
        ),
        ("a:\n  vae: |\n    x\n\n    y\n", [("vae", "/opt/ComfyUI/x", False), ("vae", "/opt/ComfyUI/y", False)]),
        (
            "a:\n  vae: old\n  loras: l\n  vae: new",
            [("vae", "/opt/ComfyUI/new", False), ("loras", "/opt/ComfyUI/l", False)],
        ),
        ("a: &x\n  vae: v\nb: *x", [("vae", "/opt/ComfyUI/v", False)] * 2),
        ("a:\n  vae: '~/v'", [("vae", "/opt/ComfyUI/~/v", False)]),
        ("a:\n  base_path: ~/m\n  vae: v", [("vae", "/home/ada/m/v", False)]),
        ("a:\n  base_path: '~'\n  vae: v", [("vae", "/home/ada/v", False)]),
        ("a:\n  base_path: $MODELS/x\n  vae: v", [("vae", "/data/x/v", False)]),
        ("a:\n  base_path: ${MODELS}2\n  vae: v", [("vae", "/data2/v", False)]),
        ("a:\n  base_path: /x/$NOT_SET\n  vae: v", [("vae", "/x/$NOT_SET/v", False)]),
        ("a:\n  base_path: 'D:\\models'\n  vae: v", [("vae", "/opt/ComfyUI/D:\\models/v", False)]),
    ],
)
def test_registers_what_comfyui_registers(text: str, expected: list[tuple[str, str, bool]]) -> None:
    assert parse(text, {"MODELS": "/data"}) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("true", True),
        ("yes", True),
        ('"true"', True),
        ('"false"', True),  # text, and not empty: Python's truth, which is what ComfyUI asks
        ("1", True),
        ("0.5", True),
        ("[x]", True),
        ("false", False),
        ("off", False),
        ("0", False),
        ('""', False),
        ("[]", False),
        ("", False),
    ],
)
def test_is_default_is_what_python_takes_for_true(value: str, expected: bool) -> None:
    assert parse(f"a:\n  is_default: {value}\n  vae: /v") == [("vae", "/v", expected)]


def test_remembers_section_and_base_of_each_line() -> None:
    text = "mine:\n  base_path: /b\n  vae: v\nother:\n  loras: /l\n"
    found = parse_extra_model_paths(text, file=POSIX_FILE, home=PurePosixPath("/h"), environ={})
    assert [(each.section, each.base) for each in found] == [("mine", PurePosixPath("/b")), ("other", None)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n  base_path: D:\\models\n  vae: sub/vae", r"D:\models\sub\vae"),
        ("a:\n  base_path: D:/models/\n  vae: vae", r"D:\models\vae"),
        ("a:\n  vae: models\\vae", r"C:\ComfyUI\models\vae"),
        ("a:\n  base_path: D:\\models\n  vae: E:\\vae", r"E:\vae"),
        ("a:\n  base_path: \\\\nas\\share\n  vae: vae", r"\\nas\share\vae"),
        ("a:\n  base_path: '%UserProfile%/m'\n  vae: vae", r"C:\Users\Ada\m\vae"),
        ("a:\n  base_path: $DRIVE/m\n  vae: vae", r"D:\m\vae"),
        ("a:\n  base_path: ${drive}/m\n  vae: vae", r"D:\m\vae"),
        ("a:\n  base_path: \"'%DRIVE%'\"\n  vae: vae", r"C:\ComfyUI\'%DRIVE%'\vae"),
        ("a:\n  base_path: 100%%/$$\n  vae: vae", r"C:\ComfyUI\100%\$\vae"),
        ("a:\n  base_path: ~\\m\n  vae: vae", r"C:\Users\Ada\m\vae"),
        ("a:\n  base_path: '%NOT_SET%'\n  vae: vae", r"C:\ComfyUI\%NOT_SET%\vae"),
    ],
)
def test_windows_paths_follow_the_rules_of_windows(text: str, expected: str) -> None:
    environ = {"USERPROFILE": r"C:\Users\Ada", "DRIVE": "D:"}
    assert parse_on_windows(text, environ) == [("vae", expected)]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a:\n  vae:\n    - x\n    - y\n", 2, ("a.vae", "list", "|")),
        ("a:\n  vae: 12\n", 2, ("a.vae", "number", "quotes")),
        ("a:\n  vae: 1.5\n", 2, ("number",)),
        ("a:\n  vae: yes\n", 2, ("yes/no",)),
        ("a:\n  vae: 2024-05-06\n", 2, ("date",)),
        ("a:\n  vae:\n", 2, ("no value", "delete")),
        ("a:\n  vae: {x: y}\n", 2, ("group of keys",)),
        ("a:\n  vae: !mine x\n", 2, ("!mine",)),
        ("a:\n  base_path:\n  vae: x\n", 2, ("a.base_path", "no value")),
        ("a:\n  base_path: ~bob/m\n  vae: x\n", 2, ("~bob", "in full")),
        ("a: models\n", 1, ("`a`", "section")),
        ("a: [x]\n", 1, ("section",)),
        ("- x\n", 1, ("named sections",)),
        ("just text\n", 1, ("named sections",)),
        ("a:\n  ? [x]\n  : y\n", 2, ("key that is not text",)),
        ("b: &b\n  vae: v\na:\n  <<: *b\n", 4, ("<<", "Write the lines out")),
        ("a:\n  vae: 'x\n", 3, ("not valid YAML",)),
        ('a:\n  vae: "D:\\models"\n', 2, ("not valid YAML", "single quotes")),
        ("a:\n\tvae: x\n", 2, ("not valid YAML",)),
        ("a:\n  is_default: true\n  base_path: D:\\models\n  vae: v\n", 4, ("Windows path",)),
        ("a:\n  is_default: true\n  base_path: $NOT_SET/m\n  vae: v\n", 4, ("not set",)),
        ("a:\n  is_default: true\n  vae: ~/m\n", 3, ("only in base_path",)),
    ],
)
def test_complains_with_file_line_and_key(text: str, line: int, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    said = f"{caught.value} {caught.value.hint}"
    assert f"{POSIX_FILE}, line {line}" in said
    assert caught.value.context["line"] == line
    assert all(word in said for word in words), said


@pytest.mark.parametrize("text", ["a: \x00", "[" * 5000, "a: " + "x" * MAX_CONFIG_CHARACTERS])
def test_hostile_text_is_refused_with_the_files_name(text: str) -> None:
    with pytest.raises(UsageError, match="extra_model_paths"):
        parse(text)


def test_a_windows_default_is_fine_on_windows() -> None:
    assert parse_on_windows("a:\n  is_default: true\n  base_path: D:\\m\n  vae: v\n") == [("vae", r"D:\m\v")]


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@` \n\t0~$<?,\\", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except UsageError as error:
        assert "extra_model_paths" in str(error)  # noqa: PT017
    else:
        assert all(PurePath(path).is_absolute() for _, path, _ in found)


def test_the_kind_of_path_given_is_the_kind_returned(tmp_path: Path) -> None:
    found = parse_extra_model_paths("a:\n  vae: v\n", file=tmp_path / "x.yaml", home=tmp_path, environ={})
    assert [each.path for each in found] == [tmp_path / "v"]
    assert isinstance(found[0].path, Path)


def test_old_names_are_translated_and_others_kept() -> None:
    assert [current_folder_name(name) for name in ("unet", "clip", "vae")] == [
        "diffusion_models",
        "text_encoders",
        "vae",
    ]
