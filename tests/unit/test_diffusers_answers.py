"""Parsing the image script's output, line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from provisioner.core.errors import MemoryExhaustedError, SmokeTestError
from provisioner.environment.app_packages import requirement_lines
from provisioner.smoke_test.diffusers_answers import (
    DiffusersRun,
    GenerationDevice,
    GenerationDone,
    GenerationEvent,
    GenerationFailed,
    after,
    explain,
    explain_death,
    explain_timeout,
    notes_about,
    parse_answer,
)
from provisioner.smoke_test.results import ImageOptions, Timings

REPO = "black-forest-labs/FLUX.2-klein-4B"
LOG = Path("drawing.log")

DONE: dict[str, Any] = {
    "event": "done",
    "schema_version": 1,
    "picture": {"path": "fox.png", "width": 1024, "height": 1024},
    "seconds": {"start": 5.5, "load": 8.25, "encode": 0.5, "steps": [0.4, 0.3, 0.3, 0.3], "decode": 0.2, "total": 2},
    "device": {
        "place": "cuda:0",
        "name": "NVIDIA GeForce RTX 4070",
        "uuid": "1b2c",
        "free_bytes": 11_000_000_000,
        "total_bytes": 12_000_000_000,
    },
    "offload": "model",
    "dtype": "bf16",
    "memory": {"allocated_bytes": 9_182_000_000, "reserved_bytes": 9_225_000_000, "ram_bytes": None},
    "versions": {"torch": "2.14.1+cu130", "diffusers": "0.42.1"},
    "is_offline": True,
    "refused_connections": [],
}


def done_with(**changes: object) -> str:
    return json.dumps({**DONE, **changes})


def failed(kind: str, facts: dict[str, object], message: str = "so it is.") -> GenerationFailed:
    answer = parse_answer(json.dumps({"event": "failed", "kind": kind, "message": message, **facts}))
    assert isinstance(answer, GenerationFailed)
    return answer


def test_an_image_is_read_with_every_figure() -> None:
    assert parse_answer(json.dumps(DONE)) == GenerationDone(
        image_path=Path("fox.png"),
        timings=Timings(
            start_s=5.5, load_s=8.25, encode_s=0.5, steps_s=(0.4, 0.3, 0.3, 0.3), decode_s=0.2, total_s=2.0
        ),
        device=GenerationDevice(
            place="cuda:0",
            name="NVIDIA GeForce RTX 4070",
            uuid="1b2c",
            free_bytes=11_000_000_000,
            total_bytes=12_000_000_000,
        ),
        offload="model",
        dtype="bf16",
        memory=parse_done().memory,
        versions=(("torch", "2.14.1+cu130"), ("diffusers", "0.42.1")),
        is_offline=True,
    )
    assert parse_done().memory.allocated_bytes == 9_182_000_000
    assert parse_done().memory.ram_bytes is None


def parse_done() -> GenerationDone:
    answer = parse_answer(json.dumps(DONE))
    assert isinstance(answer, GenerationDone)
    return answer


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Loading pipeline components...: 20%",
        "[1, 2]",
        '"done"',
        "{}",
        '{"event": 7}',
        '{"event": "from a newer script", "seconds": "many"}',
    ],
)
def test_lines_of_others_mean_nothing(line: str) -> None:
    assert parse_answer(line) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (done_with(schema_version=2), "schema_version: must be 1; not 2"),
        (done_with(picture="fox.png"), 'picture: must be an object; not "fox.png"'),
        (done_with(picture={"path": 7}), "picture.path: must be a string; not 7"),
        (done_with(seconds={"steps": "four"}), 'seconds.steps: must be a list; not "four"'),
        (done_with(seconds={"steps": [True]}), "steps[0]: must be a number of seconds; not true"),
        (done_with(seconds={"steps": [], "load": -1}), "load: must be a number of seconds; not -1"),
        (done_with(seconds={"steps": [], "load": float("nan")}), "load: must be a number of seconds; not NaN"),
        (done_with(offload="all"), 'offload: must be one of none, model, sequential; not "all"'),
        (done_with(is_offline="yes"), "is_offline: must be true or false"),
        (
            done_with(memory={"allocated_bytes": 1.5}),
            "allocated_bytes: must be a whole number from 0 up or null; not 1.5",
        ),
        ('{"event": "step", "number": "two"}', "number: must be a whole number"),
        ('{"event": "step", "number": true}', "number: must be a whole number"),
        ('{"event": "failed", "kind": "nan"}', "message: must be a string; it is missing"),
    ],
)
def test_a_line_of_ours_with_other_values_is_an_error(line: str, said: str) -> None:
    with pytest.raises(SmokeTestError) as caught:
        parse_answer(line)
    assert said in str(caught.value)
    assert caught.value.context["kind"] == "not-understood"


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ('{"event": "started", "pid": 7}', GenerationEvent(name="started", pid=7)),
        (
            '{"event": "alive", "seconds": 3, "ram_bytes": 9}',
            GenerationEvent(name="alive", seconds=3.0, ram_bytes=9),
        ),
        (
            '{"event": "loaded", "seconds": 8.2}',
            GenerationEvent(name="loaded", seconds=8.2),
        ),
        (
            '{"event": "step", "number": 2, "total": 4, "seconds": 0.25}',
            GenerationEvent(name="step", number=2, total=4, seconds=0.25),
        ),
    ],
)
def test_an_event_is_read(line: str, event: GenerationEvent) -> None:
    assert parse_answer(line) == event


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("missing-package", "--only environment"),
        ("broken-package", "--only environment"),
        ("version-too-old", "--only environment"),
        ("snapshot-incomplete", "klein-setup repair"),
        ("no-kernel-image", "--torch auto"),
        ("no-device", "driver"),
        ("nan", "klein-setup verify"),
        ("not-written", "another folder"),
        ("interrupted", "again"),
        ("of a newer script", "log"),
    ],
)
def test_every_failure_has_a_cause_and_a_next_step(kind: str, hint: str) -> None:
    error = explain(failed(kind, {"package": "x"}, "the very words."), repo_id=REPO, log_path=LOG)
    assert error.exit_status == 9
    assert error.context == {"kind": kind, "log": "drawing.log", "package": "x"}
    assert REPO in str(error)
    assert "the very words." in str(error)
    assert error.hint is not None
    assert hint in error.hint


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {"memory": "vram", "device": "cuda:1", "free_bytes": 1_000_000, "total_bytes": 12_000_000_000},
            "cuda:1 ran out of memory (1.00 MB of 12.00 GB free at the end).",
        ),
        ({"memory": "vram"}, "the device ran out of memory."),
        ({"memory": "ram"}, "the computer ran out of RAM."),
    ],
)
def test_which_memory_ran_out_is_distinguished(facts: dict[str, object], said: str) -> None:
    error = explain(failed("out-of-memory", facts), repo_id=REPO)
    assert isinstance(error, MemoryExhaustedError)
    assert said in str(error)
    assert ("RAM" in said) == ("swap" in str(error.hint))


@pytest.mark.parametrize(
    ("returncode", "kind", "said"),
    [
        (-9, "out-of-memory", "ran out of RAM"),
        (137, "out-of-memory", "ran out of RAM"),
        (0xC0000017, "out-of-memory", "ran out of RAM"),
        (-11, "died", "signal 11 in the first step"),
        (3, "died", "exit status 3 in the first step without an answer: Segmentation fault"),
    ],
)
def test_a_script_that_ended_is_explained_with_how_and_where(returncode: int, kind: str, said: str) -> None:
    last = ["Segmentation fault", '{"event": "encoded"}', ""]
    where = after(GenerationEvent(name="encoded"))
    error = explain_death(returncode, last, phase=where, repo_id=REPO, log_path=LOG)
    assert error.context["kind"] == kind
    assert isinstance(error, MemoryExhaustedError) == (kind == "out-of-memory")
    assert said in str(error)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (None, "before it could begin"),
        (GenerationEvent(name="imported"), "while it loaded the models"),
        (GenerationEvent(name="step", number=1, total=4), "after step 1 of 4"),
        (GenerationEvent(name="alive", seconds=3.0), "while it ran"),
    ],
)
def test_a_script_that_took_too_long_says_where_it_was(event: GenerationEvent | None, said: str) -> None:
    error = explain_timeout(90, phase=after(event), repo_id=REPO)
    assert f"within 1 min 30 s; it was ended {said}." in str(error)
    assert error.context["kind"] == "timeout"


def test_a_run_is_a_smoke_test_with_notes_on_its_figures() -> None:
    run = DiffusersRun(image=b"", done=parse_done(), log_path=LOG, seconds=20.0)
    smoke = run.smoke_test(ImageOptions())
    assert (smoke.backend, smoke.device) == ("diffusers", "cuda:0 NVIDIA GeForce RTX 4070")
    assert smoke.versions[1] == ("diffusers", "0.42.1")
    assert smoke.notes == notes_about(run.done)
    assert "enable_model_cpu_offload" in smoke.notes[0]
    assert "9.18 GB" in smoke.notes[1]


def test_a_processor_has_no_memory_of_its_own_to_tell_of() -> None:
    device = {"place": "cpu", "name": None, "uuid": None, "free_bytes": None, "total_bytes": None}
    memory = {"allocated_bytes": None, "reserved_bytes": None, "ram_bytes": 9}
    answer = parse_answer(done_with(device=device, offload="none", memory=memory))
    assert isinstance(answer, GenerationDone)
    assert notes_about(answer) == ()


# --- what the environment needs --------------------------------------------------------------------


def test_no_requirement_names_torch() -> None:
    names = {Requirement(line).name for line in requirement_lines("diffusers")}
    assert not names & {"torch", "torchvision", "torchaudio", "xformers"}


def test_comfyui_brings_its_own_requirements() -> None:
    assert requirement_lines("comfyui") == ()


def test_an_event_names_the_part_that_begins_after_it() -> None:
    events = [
        GenerationEvent(name="started"),
        GenerationEvent(name="imported"),
        GenerationEvent(name="loaded"),
        GenerationEvent(name="encoded"),
        GenerationEvent(name="step", number=1, total=2),
        GenerationEvent(name="step", number=2, total=2),
        GenerationEvent(name="decoded"),
    ]
    assert [each.next_phase for each in events] == [None, "load", "encode", "sample", None, "decode", "save"]
