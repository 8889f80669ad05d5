"""What maintainers run to record what real things say: it asks, compares with what is kept, and keeps no secret."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from ctypes import Structure
from pathlib import Path
from typing import Any

import pynvml
import pytest

from provisioner.core.errors import UnsupportedMachineError
from provisioner.rehearsal.faults import Status
from provisioner.rehearsal.hub import RehearsalHub
from scripts import record_contract
from scripts.record_contract import Recording, Scrubber, keep, private_paths, record_nvml
from tests.support.builders import COMMIT
from tests.support.comfy_server import RECORDINGS, ReplayServer

TOKEN = "hf_" + "aB3dE5gH" * 4
KEPT = json.loads((RECORDINGS.parent / "nvml-h200-580" / "nvml-and-torch.json").read_text(encoding="utf-8"))
BASE = "/opt/ComfyUI-data"  # what the kept recordings have in place of the server's own folder
SAME = f"{BASE}={BASE}"


# --- NVML -------------------------------------------------------------------------------------------


def structure(kind: type[Structure], values: dict[str, Any]) -> Structure:
    made = kind()
    for name, value in values.items():
        setattr(made, name, value.encode() if isinstance(value, str) else value)
    return made


class Library:
    """A binding that answers what an H200 answered, in the real binding's structures and errors."""

    NVMLError = pynvml.NVMLError
    nvmlMemory_v2 = pynvml.nvmlMemory_v2
    is_open = False

    def __init__(self, *, has_gpu: bool = True, uuid: str = "GPU-4a3b2c1d-0000-1111-2222-333344445555") -> None:
        self._has_gpu = has_gpu
        self._uuid = uuid

    def nvmlInit(self) -> None:
        if not self._has_gpu:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def __getattr__(self, name: str) -> Callable[..., object]:
        def answer(*arguments: object, version: int | None = None) -> object:
            assert self.is_open
            if name == "nvmlDeviceGetUUID":
                return self._uuid
            if name == "nvmlDeviceGetHandleByIndex":
                return object()
            if name == "nvmlDeviceGetPciInfo":
                return structure(pynvml.nvmlPciInfo_t, KEPT["pci"])
            if name == "nvmlDeviceGetMemoryInfo":
                kind = pynvml.c_nvmlMemory_v2_t if version else pynvml.c_nvmlMemory_t
                return structure(kind, KEPT[f"{name}_v2" if version else name])
            value = KEPT[name]
            if isinstance(value, dict):
                raise pynvml.NVMLError(value["value"])
            return value

        return answer


def test_nvml_is_recorded_as_the_kept_recording_was() -> None:
    library = Library()
    recording = record_nvml(library)
    said = Scrubber({}, home="/", machine="")(recording.files["nvml.json"])
    assert recording.folder == "nvml-h200-580"
    assert {name: said[name] for name in said if name not in ("platform", "files")} == {
        name: KEPT[name] for name in said if name not in ("platform", "files")
    }
    assert not library.is_open
    assert "580.159.04" in recording.origin


def test_a_machine_without_nvml_is_told_in_words() -> None:
    with pytest.raises(UnsupportedMachineError, match="NVML does not answer"):
        record_nvml(Library(has_gpu=False))


# --- the Hub ----------------------------------------------------------------------------------------


def record_hub(hub: RehearsalHub, folder: Path, filename: str, *more: str) -> int:
    words = ["--endpoint", hub.endpoint, "--repo", "org/model", "--revision", COMMIT, "--filename", filename]
    return record_contract.main(["hub", *words, "--folder", str(folder), *more])


@pytest.fixture
def hub() -> Iterator[RehearsalHub]:
    with RehearsalHub(tokens=[TOKEN]) as hub:
        files: dict[str, bytes | Path] = {"vae/vae.safetensors": b"vae " * 1000, "config.json": b"{}"}
        hub.add_repository("org/model", COMMIT, files, is_gated=True, tokens=[TOKEN])
        yield hub
        assert hub.violations == []  # the content network never sees the token


def test_headers_of_a_file_are_recorded_from_the_head_to_the_first_byte(
    hub: RehearsalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert record_hub(hub, tmp_path, "vae/vae.safetensors") == 1
    assert list(tmp_path.iterdir()) == []  # it only looked
    assert record_hub(hub, tmp_path, "vae/vae.safetensors", "--write") == 1
    entries = json.loads((tmp_path / "hub" / "org--model--vae.safetensors.json").read_text(encoding="utf-8"))
    assert [(each["http"].split()[0], each["server"], each["status"]) for each in entries] == [
        ("HEAD", "hub", 302),
        ("GET", "hub", 302),
        ("GET", "content network", 206),
    ]
    assert entries[0]["headers"]["X-Repo-Commit"] == COMMIT
    assert entries[2]["headers"]["Content-Range"] == "bytes 0-0/4000"
    said = capsys.readouterr()
    kept = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "hub").iterdir())
    for secret in (TOKEN, "Signature", "Expires"):
        assert secret not in said.out + said.err + kept
    assert record_hub(hub, tmp_path, "vae/vae.safetensors", "--write") == 0


def test_a_refusal_is_an_answer_too(hub: RehearsalHub, tmp_path: Path) -> None:
    assert record_hub(hub, tmp_path, "config.json", "--write") == 1
    entries = json.loads((tmp_path / "hub" / "org--model--config.json.json").read_text(encoding="utf-8"))
    assert [(each["status"], each["headers"]["X-Error-Code"]) for each in entries] == [(401, "GatedRepo")] * 2


def test_a_hub_that_is_not_there_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--endpoint", "http://127.0.0.1:9", "--repo", "a/b", "--revision", COMMIT, "--filename", "x"]
    assert record_contract.main(["hub", *words, "--folder", str(tmp_path)]) == 5
    assert "was not reached" in capsys.readouterr().err


# --- ComfyUI ----------------------------------------------------------------------------------------


def record_comfyui(server: str, folder: Path, *more: str) -> int:
    return record_contract.main(["comfyui", "--server", server, "--folder", str(folder), *more])


def test_a_server_is_recorded_in_the_form_of_the_kept_recordings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ReplayServer("missing_model_file") as server:
        assert record_comfyui(server.url, tmp_path, "--replace", SAME, "--write") == 1
        folder = tmp_path / RECORDINGS.name
        for path in folder.glob("*.json"):
            now, kept = (json.loads((each / path.name).read_text(encoding="utf-8")) for each in (folder, RECORDINGS))
            if path.name.startswith("GET_"):
                assert now["body"] == kept["body"], path.name
                assert set(now) == set(kept)
            else:
                assert [set(each) for each in now] == [set(each) for each in kept]
                assert now[0]["body"] == kept[0]["body"]
                assert now[0]["request"].keys() == kept[0]["request"].keys()
        assert len(list(folder.glob("*.json"))) == 9
        assert "Answers of a running ComfyUI 0.33.0" in (folder / "ORIGIN.md").read_text(encoding="utf-8")
        capsys.readouterr()
        assert record_comfyui(server.url, tmp_path, "--replace", SAME, "--write") == 0
        assert capsys.readouterr().out == ""


def test_folders_of_the_server_are_not_recorded_unless_something_stands_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ReplayServer("missing_model_file") as server:
        assert record_comfyui(server.url, tmp_path, "--write") == 2
        assert list(tmp_path.iterdir()) == []
        assert f"folders of this server would be recorded: {BASE}" in capsys.readouterr().err
        assert record_comfyui(server.url, tmp_path, "--replace", f"{BASE}=/comfy", "--write") == 1
    kept = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / RECORDINGS.name).iterdir())
    assert BASE not in kept
    assert "/comfy/models/vae" in kept


def test_a_prompt_that_is_accepted_all_the_same_is_taken_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ReplayServer("ok_fp8") as server:
        assert record_comfyui(server.url, tmp_path, "--replace", SAME, "--write") == 5
        method, path, body = server.requests[-1]
        assert (method, path, len(body["delete"])) == ("POST", "/queue", 1)
    assert "accepted a prompt with not-there.safetensors" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_something_else_than_comfyui_is_told_in_words(
    hub: RehearsalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fault(Status(500, body=b"<html>"), on="api")
    assert record_comfyui(hub.endpoint, tmp_path, "--write") == 5
    assert "does not answer as ComfyUI does" in capsys.readouterr().err


# --- what is kept -----------------------------------------------------------------------------------


def test_what_differs_from_one_second_to_the_next_is_no_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kept(free: int, total: int) -> int:
        return keep(Recording("x", "Of x.", {"x.json": [{"free": free, "total": total}]}), tmp_path, is_to_write=True)

    assert [kept(1, 9), kept(2, 9), kept(2, 8), kept(2, 8)] == [1, 0, 1, 0]
    assert json.loads((tmp_path / "x" / "x.json").read_text(encoding="utf-8")) == [{"free": 2, "total": 8}]
    assert "x/ORIGIN.md tells where the recordings come from; to be read again" in capsys.readouterr().out


def test_ids_tokens_and_names_of_the_machine_are_replaced() -> None:
    uuids = [f"GPU-{digit * 8}-0000-1111-2222-{digit * 12}" for digit in "abab"]
    scrub = Scrubber({"/srv/comfy": "/opt/ComfyUI"}, home="/home/somebody", machine="workhorse.example.org")
    said = scrub({"u": uuids, "p": ["/home/somebody/x", "/srv/comfy/y"], "t": f"Bearer {TOKEN}", "n": 3})
    zeros = "GPU-00000000-0000-0000-0000-00000000000"
    assert said["u"] == [f"{zeros}1", f"{zeros}2", f"{zeros}1", f"{zeros}2"]
    assert said["p"] == ["/home/user/x", "/opt/ComfyUI/y"]
    assert TOKEN not in said["t"]
    assert said["n"] == 3
    assert scrub(["at workhorse:1", "workhorses"]) == ["at host:1", "workhorses"]
    assert Scrubber({}, home="/", machine="gpu")(["/x/y", "gpu"]) == ["/x/y", "gpu"]


@pytest.mark.parametrize(
    ("argument", "is_private"),
    [
        (r"C:\Users\somebody\ComfyUI", True),
        ("sqlite:////srv/me/x.db", True),
        ("--base-directory=/srv/me", True),
        ("/opt/ComfyUI/models/vae", False),
        ("sqlite:////opt/ComfyUI/user/comfyui.db", False),
        ("main.py", False),
    ],
)
def test_a_folder_is_private_until_something_stands_for_it(argument: str, is_private: bool) -> None:
    body = {"system": {"argv": [argument]}}
    recording = Recording("x", "x", {"GET_system_stats.json": {"body": body}})
    assert private_paths(recording, ["/opt/ComfyUI"]) == [argument] * is_private
