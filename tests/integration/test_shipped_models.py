"""Every shipped manifest from plan to repair against the embedded hub, with stand-ins for its files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.commands.install import RunUi, run_install
from provisioner.commands.look import InstallOptions, plan_run
from provisioner.commands.run import Options, Run, open_run
from provisioner.commands.session import Session, Settings
from provisioner.commands.verify_files import run_verify
from provisioner.core.errors import AnswerNeededError
from provisioner.disk.root import flip_bit
from provisioner.manifest.shipped import shipped_manifests
from provisioner.rehearsal.hub import RehearsalHub
from tests.support.builders import gpu, machine, recording_of
from tests.support.sandbox import TOKEN, Sandbox
from tests.support.stand_ins import sets_of, write_stand_ins

FILES = InstallOptions(parts=frozenset({"files"}), are_parts_named=True)
GIB, MIB = 2**30, 2**20


def no(question: str) -> bool:
    raise AnswerNeededError(f"Nobody is there: {question}")


UI = RunUi(ask=no, show_plan=lambda plan: None, show_smoke=lambda smoke: None)


@pytest.fixture(scope="module")
def hub() -> Iterator[RehearsalHub]:
    with RehearsalHub(tokens=[TOKEN]) as hub:
        yield hub


@pytest.mark.parametrize("name", shipped_manifests())
def test_a_shipped_manifest_is_installed_verified_and_repaired(name: str, hub: RehearsalHub, tmp_path: Path) -> None:
    path = write_stand_ins(tmp_path, hub, name)[name]
    session = Session(
        settings=Settings(endpoint=hub.endpoint, sends_token=True, remembers=False),
        environ={"HF_TOKEN": TOKEN, "HF_HUB_CACHE": str(tmp_path / "cache")},
    )

    def run_of(set_id: str) -> Run:
        licence = open_run(
            session, Options(manifest=str(path), set_id=set_id, comfyui=tmp_path / set_id), with_machine=False
        ).manifest.licence
        accepted = frozenset() if licence.id is None else frozenset({licence.id})
        return open_run(
            session,
            Options(manifest=str(path), set_id=set_id, comfyui=tmp_path / set_id, accepted_licences=accepted),
            with_machine=False,
        )

    for chosen in sets_of(path):
        assert len(plan_run(run_of(chosen.id), FILES, "claims").steps) == len(chosen.artifacts)
        report = run_install(run_of(chosen.id), FILES, UI)
        assert (report.status, report.errors) == ("ok", ())
        assert run_verify(run_of(chosen.id), is_quick=False).exit_status == 0
    wrong = tmp_path / chosen.id / "models" / (chosen.artifacts[0].folder or "") / chosen.artifacts[0].name
    flip_bit(wrong, 5_000)
    assert run_verify(run_of(chosen.id), is_quick=False).exit_status == 1
    assert run_install(run_of(chosen.id), FILES, UI, "repair").status == "ok"
    assert run_verify(run_of(chosen.id), is_quick=False).exit_status == 0


def test_a_licence_with_a_condition_is_asked_about_although_nothing_is_gated(
    hub: RehearsalHub, tmp_path: Path, sandbox: Sandbox
) -> None:
    path = write_stand_ins(tmp_path, sandbox.hub, "flux2-dev")["flux2-dev"]
    words = ("install", "--only", "files", "--manifest", str(path), "--set", "fp8-encoder", "--yes")
    refused = sandbox.run(*words, "--json")
    assert refused.codes == ["answer-needed"]
    assert "--yes does not" in refused.said
    assert "commercial use under a condition: the model itself is for non-commercial" in refused.said
    assert not (sandbox.tree / "models" / "vae").exists()
    agreed = sandbox.run(*words, "--accept-licence", "flux-2-dev")
    assert agreed.returncode == 0, agreed.said


@pytest.mark.parametrize(("memory_mib", "chosen"), [(8_188, "int8"), (24_564, "bf16")])
def test_a_model_is_planned_by_its_shipped_name(sandbox: Sandbox, memory_mib: int, chosen: str) -> None:
    recording = sandbox.folder / "card.json"
    recording.write_text(
        recording_of(machine(gpu(memory_total_bytes=memory_mib * MIB), driver_version="580.95.05")), encoding="utf-8"
    )
    done = sandbox.run(
        *("plan", "--only", "files", "--manifest", "z-image-turbo", "--json"),
        env={"KLEIN_SETUP_MACHINE": str(recording)},
    )
    assert done.returncode == 0, done.said
    assert (done.json["manifest"]["id"], done.json["manifest"]["set"]) == ("z-image-turbo", chosen)
    assert sandbox.hub.requests == ()


def test_a_set_that_edits_has_no_test_image_and_says_so(sandbox: Sandbox) -> None:
    words = ("--manifest", "qwen-image-edit-2511", "--set", "fp8mixed", "--comfyui", str(sandbox.tree))
    drawn = sandbox.run("smoke-test", "--graph", *words)
    assert drawn.returncode == 2
    assert "its manifest has no `recipe` and no `workflow` for it" in drawn.said
    asked = sandbox.run("install", "--only", "smoke", *words)
    assert asked.returncode == 2
    assert "its manifest has no recipe and no workflow for it" in asked.said
