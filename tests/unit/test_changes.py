"""What moved since the last full check: sentences, what is looked at again, the one command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.core.models import Finding
from provisioner.report.changes import (
    EVERY_PART,
    ChangesSince,
    CheckedState,
    SeenFile,
    SeenGpu,
    changes_entry,
    checked_state_document,
    checks_for,
    compare,
    parse_checked_state,
    summary,
    without_files,
)

BEFORE = CheckedState(
    taken_at="2026-11-01T08:00:00Z",
    klein_setup="0.1.0",
    driver_version="580.159.04",
    cuda_driver_version=(13, 0),
    gpus=(SeenGpu(name="RTX 4070", uuid="GPU-1"),),
    os_release="6.8.0-45",
    python_version="3.12.3",
    torch="2.14.1+cu130",
    torchvision="0.29.1+cu130",
    torchaudio="2.11.0+cu130",
    comfyui_version="0.33.0",
    comfyui_commit="c0de" * 10,
    comfyui_has_local_changes=False,
    custom_nodes=("ComfyUI-Manager",),
    wanted="flux2-klein-4b/fp8",
    files=(SeenFile(label="vae/flux2-vae.safetensors", size=336_213_556, sha256="a" * 64),),
    extra_model_paths_sha256="e" * 64,
)
VAE = BEFORE.files[0]


def moved(**changes: object) -> list[tuple[str, str, bool, str]]:
    """Return what `compare` says when these fields are different now."""
    now = replace(BEFORE, taken_at="2026-11-23T06:00:00Z", **changes)  # type: ignore[arg-type]
    return [(each.what, each.kind, each.matters, each.sentence) for each in compare(BEFORE, now)]


def finding(code: str, severity: str = "problem") -> Finding:
    return Finding(code=code, severity=severity, message="m", remedy="by-hand")  # type: ignore[arg-type]


# --- comparing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        (
            {"driver_version": "590.20", "cuda_driver_version": (13, 1)},
            [("driver", "changed", True, "The NVIDIA driver changed from 580.159.04 to 590.20.")],
        ),
        (
            {"driver_version": None, "cuda_driver_version": None},
            [("driver", "gone", True, "The NVIDIA driver (580.159.04) is gone or does not respond.")],
        ),
        (
            {"cuda_driver_version": (13, 1)},
            [("cuda-driver", "changed", True, "The CUDA version of the driver changed from 13.0 to 13.1.")],
        ),
        ({"os_release": "6.8.0-60"}, [("system", "changed", False, "The system changed from 6.8.0-45 to 6.8.0-60.")]),
        ({"torch": "2.15.0"}, [("torch", "changed", True, "torch changed from 2.14.1+cu130 to 2.15.0.")]),
        (
            {"torchaudio": None},
            [("torchaudio", "gone", True, "torchaudio (2.11.0+cu130) is gone or does not respond.")],
        ),
        (
            {"python_version": "3.13.1"},
            [("python", "changed", True, "The environment's Python changed from 3.12.3 to 3.13.1.")],
        ),
        (
            {"comfyui_version": "0.35.1", "comfyui_commit": "beef" * 10},
            [("comfyui", "changed", True, "ComfyUI changed from 0.33.0 to 0.35.1.")],
        ),
        (
            {"comfyui_commit": "beef" * 10},
            [("comfyui-commit", "changed", True, "ComfyUI's commit changed from c0dec0dec to beefbeefb.")],
        ),
        (
            {"comfyui_has_local_changes": True},
            [("comfyui-edits", "appeared", True, "ComfyUI's own files were edited.")],
        ),
        ({"comfyui_has_local_changes": None}, []),
        (
            {"custom_nodes": ("B", "A")},
            [
                ("custom-nodes", "appeared", True, "New custom nodes: A and B."),
                ("custom-nodes", "gone", True, "Removed custom nodes: ComfyUI-Manager."),
            ],
        ),
        (
            {"custom_nodes": ("ComfyUI-Manager", *"abcdefghi")},
            [("custom-nodes", "appeared", True, "New custom nodes: a, b, c, d, e and 4 more.")],
        ),
        (
            {"extra_model_paths_sha256": "f" * 64},
            [
                (
                    "extra-model-paths",
                    "changed",
                    True,
                    "extra_model_paths.yaml was changed: ComfyUI may read its models from other folders.",
                )
            ],
        ),
        (
            {"extra_model_paths_sha256": None},
            [
                (
                    "extra-model-paths",
                    "gone",
                    True,
                    "extra_model_paths.yaml is gone: ComfyUI may read its models from other folders.",
                )
            ],
        ),
        (
            {"wanted": "flux2-klein-4b/bf16", "files": ()},
            [
                (
                    "set",
                    "changed",
                    False,
                    "The chosen set changed from flux2-klein-4b/fp8 to flux2-klein-4b/bf16.",
                )
            ],
        ),
        ({"klein_setup": "0.2.0"}, [("klein-setup", "changed", False, "klein-setup changed from 0.1.0 to 0.2.0.")]),
    ],
)
def test_each_move_is_a_sentence(changes: dict[str, object], expected: list[tuple[str, str, bool, str]]) -> None:
    assert moved(**changes) == expected


@pytest.mark.parametrize(
    ("file", "kind", "sentence"),
    [
        (replace(VAE, sha256="b" * 64), "changed", "has other content of the same size."),
        (replace(VAE, sha256="b" * 64, size=12_000_000), "changed", "has other content, 336 MB then and 12.0 MB now."),
        (replace(VAE, sha256=None, size=1), "changed", "has other content, 336 MB then and 1 byte now."),
        (replace(VAE, sha256=None, size=None), "gone", "is gone."),
    ],
)
def test_a_file_that_is_not_what_it_was_is_named(file: SeenFile, kind: str, sentence: str) -> None:
    assert moved(files=(file,)) == [("file", kind, True, f"{VAE.label} {sentence}")]


def test_a_file_that_was_not_read_and_has_its_size_has_not_moved() -> None:
    assert moved(files=(replace(VAE, sha256=None),)) == []


def test_a_file_whose_blocks_are_wrong_has_moved_whatever_its_size() -> None:
    damaged = replace(VAE, sha256=None, is_damaged=True)
    (change,) = compare(replace(BEFORE, files=(VAE,)), replace(BEFORE, files=(damaged,)))
    assert change.sentence == f"{VAE.label} has other content of the same size."
    assert (change.before, change.now) == (VAE.sha256[:12] if VAE.sha256 else "", f"{VAE.size} bytes, damaged")


def test_a_file_that_is_new_is_named_and_one_that_never_was_is_not() -> None:
    new, never = SeenFile(label="new", size=5, sha256=None), SeenFile(label="never", size=None, sha256=None)
    assert moved(files=(VAE, new, never)) == [("file", "appeared", True, "new is new.")]


def test_changes_of_files_are_told_apart_by_their_labels_and_not_by_their_sentences() -> None:
    gone, other, new = "vae/x.safetensors", "more/vae/x.safetensors", "vae/x.safetensors.old"
    before = [SeenFile(label=label, size=5, sha256="a" * 64) for label in (gone, other)]
    after = [SeenFile(label=label, size=5, sha256="b" * 64) for label in (other, new)]
    found = compare(replace(BEFORE, files=tuple(before)), replace(BEFORE, files=tuple(after), driver_version="600.1"))
    assert [(each.what, each.kind, each.about) for each in found] == [
        ("driver", "changed", None),
        ("file", "gone", gone),
        ("file", "changed", other),
        ("file", "appeared", new),
    ]
    assert [each.about for each in without_files(found, {gone})] == [None, other, new]
    assert without_files(found, ()) == found


def test_a_file_is_named_by_the_beginnings_of_its_digests() -> None:
    (change,) = compare(BEFORE, replace(BEFORE, files=(replace(VAE, sha256="b" * 64),)))
    assert (change.before, change.now) == ("a" * 12, "b" * 12)


@pytest.mark.parametrize(
    ("gpus", "sentences"),
    [
        ((SeenGpu(name="RTX 4070", uuid="gpu-1"),), []),
        ((SeenGpu(name="RTX 4070"),), []),
        ((), ["The GPU RTX 4070 is gone."]),
        (
            (SeenGpu(name="RTX 5090", uuid="GPU-2"),),
            ["The GPU RTX 4070 is gone.", "New GPU: RTX 5090."],
        ),
        (
            (SeenGpu(name="RTX 4070", uuid="GPU-1"), SeenGpu(name="RTX 4070", uuid="GPU-2")),
            ["New GPU: RTX 4070."],
        ),
    ],
)
def test_cards_are_told_apart_by_uuid_and_else_by_name(gpus: tuple[SeenGpu, ...], sentences: list[str]) -> None:
    assert [sentence for _, _, _, sentence in moved(gpus=gpus)] == sentences


def test_what_can_break_the_setup_comes_first() -> None:
    assert [matters for _, _, matters, _ in moved(os_release="7", klein_setup="9", torch="2.15.0")] == [
        True,
        False,
        False,
    ]


def test_what_was_not_looked_at_is_not_said_to_be_gone() -> None:
    now = CheckedState(
        taken_at="now", klein_setup="0.1.0", looked_at=("files",), wanted=BEFORE.wanted, files=BEFORE.files
    )
    assert compare(BEFORE, now) == ()
    assert compare(now, BEFORE) == ()


def test_edits_of_comfyui_that_are_gone_are_said_too() -> None:
    edited = replace(BEFORE, comfyui_has_local_changes=True)
    (change,) = compare(edited, BEFORE)
    assert change.sentence == "ComfyUI's own files match the release again; they had been edited."
    assert (change.kind, change.before, change.now) == ("gone", "edited", None)


def test_without_an_earlier_state_nothing_changed() -> None:
    assert compare(None, BEFORE) == ()


# --- keeping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [BEFORE, CheckedState(taken_at="t", klein_setup="v", looked_at=("machine",))])
def test_a_state_comes_back_as_it_went(state: CheckedState) -> None:
    assert parse_checked_state(json.dumps(checked_state_document(state), allow_nan=False)) == (state, None)


TEXTS = st.text(max_size=8)
MAYBE = st.none() | TEXTS


@given(
    state=st.builds(
        CheckedState,
        taken_at=TEXTS,
        klein_setup=TEXTS,
        looked_at=st.just(EVERY_PART),
        driver_version=MAYBE,
        cuda_driver_version=st.none() | st.tuples(st.integers(0, 99), st.integers(0, 99)),
        gpus=st.lists(st.builds(SeenGpu, name=TEXTS, uuid=MAYBE), max_size=2).map(tuple),
        torch=MAYBE,
        custom_nodes=st.lists(TEXTS, max_size=2).map(tuple),
        files=st.lists(
            st.builds(SeenFile, label=TEXTS, size=st.none() | st.integers(0, 2**63), sha256=MAYBE), max_size=2
        ).map(tuple),
    )
)
def test_any_state_comes_back_and_nothing_moved_in_it(state: CheckedState) -> None:
    back, reason = parse_checked_state(json.dumps(checked_state_document(state)))
    assert (back, reason) == (state, None)
    if len({file.label for file in state.files}) == len(state.files):
        assert compare(back, state) == ()


def test_keys_of_a_newer_version_are_passed_over() -> None:
    document: dict[str, object] = {**checked_state_document(BEFORE), "moon": "full", "looked_at": [*EVERY_PART, "moon"]}
    document["gpus"] = [{"name": "RTX 4070", "uuid": "GPU-1", "colour": "black"}]
    assert parse_checked_state(json.dumps(document)) == (BEFORE, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_version": 2}, "its schema_version is '2', and 1 is expected"),
        ({"schema_version": True}, "its schema_version is 'True', and 1 is expected"),
        ({"taken_at": None}, "its key taken_at: must be a string; not null"),
        ({"torch": 2.14}, "its key torch: must be a string or null; not 2.14"),
        ({"looked_at": "files"}, 'its key looked_at: must be a list; not "files"'),
        ({"custom_nodes": [1]}, "its key custom_nodes[0]: must be a string; not 1"),
        ({"gpus": ["RTX"]}, 'its key gpus[0]: must be an object; not "RTX"'),
        ({"gpus": [{}]}, "its key gpus[0].name: must be a string; it is missing"),
        (
            {"files": [{"label": "x", "size": -1}]},
            "its key files[0].size: must be a whole number from 0 up or null; not -1",
        ),
        (
            {"files": [{"label": "x", "size": True}]},
            "its key files[0].size: must be a whole number from 0 up or null; not true",
        ),
        (
            {"cuda_driver_version": [13]},
            "its key cuda_driver_version: must be two whole numbers, such as [8, 9], or null; not [13]",
        ),
        (
            {"cuda_driver_version": [13, "0"]},
            'its key cuda_driver_version: must be two whole numbers, such as [8, 9], or null; not [13, "0"]',
        ),
        ({"comfyui_has_local_changes": 1}, "its key comfyui_has_local_changes: must be true, false or null; not 1"),
    ],
)
def test_a_broken_state_is_none_with_the_reason(change: dict[str, object], reason: str) -> None:
    assert parse_checked_state(json.dumps({**checked_state_document(BEFORE), **change})) == (None, reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is not a JSON object"),
        ("{", "it is not a JSON object"),
        ("[" * 100_000, "it is not a JSON object"),
        ("[]", "it is not a JSON object"),
        ("{}", "its schema_version is 'None', and 1 is expected"),
    ],
)
def test_what_is_no_state_at_all_is_none_with_the_reason(text: str, reason: str) -> None:
    assert parse_checked_state(text) == (None, reason)


# --- what follows ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "checked"),
    [
        ({}, ()),
        ({"klein_setup": "9"}, ()),
        ({"driver_version": "590.20"}, ("whether torch still computes on this GPU with this driver",)),
        (
            {"torch": "2.15.0"},
            (
                "whether the torch packages belong together",
                "whether torch still computes on this GPU with this driver",
            ),
        ),
        ({"files": ()}, ("every byte of the model files",)),
        ({"custom_nodes": ()}, ("whether it still generates an image",)),
        (
            {"comfyui_version": "0.35.1"},
            ("whether this ComfyUI has the nodes Klein needs", "whether it still generates an image"),
        ),
    ],
)
def test_what_moved_says_what_is_looked_at_again(changes: dict[str, object], checked: tuple[str, ...]) -> None:
    assert checks_for(compare(BEFORE, replace(BEFORE, **changes))) == checked  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Nothing changed since the last full check."),
        ({"os_release": "7"}, "1 thing changed since the last full check; none of it affects what was verified."),
        ({"torch": "3"}, "1 thing changed since the last full check, and it can break the setup."),
        (
            {"torch": "3", "driver_version": "600"},
            "2 things changed since the last full check, and each can break the setup.",
        ),
        (
            {"torch": "3", "os_release": "7"},
            "2 things changed since the last full check; 1 of them can break the setup.",
        ),
    ],
)
def test_how_much_moved_is_one_sentence(changes: dict[str, object], said: str) -> None:
    assert summary(compare(BEFORE, replace(BEFORE, **changes))) == said  # type: ignore[arg-type]


def test_the_changes_as_json_have_these_keys() -> None:
    changes = compare(BEFORE, replace(BEFORE, driver_version="590.20"))
    since = ChangesSince(changes=changes, since=BEFORE.taken_at, checked=("x",), mend="klein-setup repair")
    entry = changes_entry(since)
    assert json.loads(json.dumps(entry)) == {
        "since": "2026-11-01T08:00:00Z",
        "changes": [
            {
                "what": "driver",
                "kind": "changed",
                "before": "580.159.04",
                "now": "590.20",
                "matters": True,
                "sentence": "The NVIDIA driver changed from 580.159.04 to 590.20.",
            }
        ],
        "checked": ["x"],
        "mend_command": "klein-setup repair",
    }
