"""What maintainers run to see whether the table of torch builds still says what the wheel indexes say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

from provisioner.torch.build_table import parse_torch_table
from provisioner.torch.choose import shipped_table
from scripts import refresh_torch
from scripts.wheel_pages import Wheel, parse_html_page, parse_json_page, wheel_of
from tests.support.wheels import Toy, ToyIndex

ROOT = Path(__file__).resolve().parents[2]
LINUX, WINDOWS, MAC = "manylinux_2_28_x86_64", "win_amd64", "macosx_14_0_arm64"
PYTHONS = ("3.11", "3.12", "3.13", "3.13t")


@dataclass(frozen=True, kw_only=True)
class Binary(Toy):
    """A wheel for one Python and one system."""

    tag: str = "cp312-cp312-win_amd64"

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}-{self.tag}.whl"


class TaggedIndex(ToyIndex):
    """As the real ones: a page for each tag as HTML, one page of all, and the default index as JSON under ``pypi``."""

    refused: tuple[str, int] | None = None  # a part of a path, and the status of what has it
    digest: str | None = None  # of every wheel, where the pages name any

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        handler = super()._handler()
        # Otherwise head and body, each a segment of its own, wait 40 ms for each other on a connection that is kept.
        return type("Handler", (handler,), {"disable_nagle_algorithm": True})

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        if self.refused is not None and self.refused[0] in request.path:
            return self._send(request, self.refused[1], b"no", "text/plain")
        return super()._answer(request)

    def _send_project(self, request: BaseHTTPRequestHandler, project: str) -> None:
        where = unquote(request.path).strip("/").split("/")[1]
        toys = [each for each in self.toys if each.name == project and _is_in(each, where)]
        if not toys:
            return self._send(request, 404, b"no such project", "text/plain")
        if where == "pypi":
            page = {"meta": {"api-version": "1.1"}, "name": project, "files": [self._entry(each) for each in toys]}
            return self._send(request, 200, json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")
        lines = "".join(self._anchor(each) for each in toys)
        return self._send(request, 200, f"<!DOCTYPE html><body>{lines}</body>".encode(), "text/html")

    def _entry(self, toy: Toy) -> dict[str, Any]:
        """Return what the page says of a wheel that nobody fetches, so that hundreds of them need not be made."""
        entry = {
            "filename": toy.file_name,
            "url": f"/files/{quote(toy.file_name)}",
            "hashes": {"sha256": self.digest} if self.digest else {},
        }
        return entry | {"core-metadata": True, "size": size_of(toy), "upload-time": "2026-10-28T10:00:00Z"}


def size_of(toy: Toy) -> int:
    """Return the bytes a page says a wheel has."""
    return 800_000_000 + len(toy.file_name)


def _is_in(toy: Toy, where: str) -> bool:
    local = toy.version.partition("+")[2]
    return local == "" if where == "pypi" else local == where if where != toy.name else local != ""


def wheels(name: str, version: str, systems: tuple[str, ...], pythons: tuple[str, ...] = PYTHONS) -> list[Toy]:
    """Return the wheels of one release for those systems and Pythons."""
    found: list[Toy] = []
    for system in systems:
        for python in pythons:
            number = f"cp{python.replace('.', '').removesuffix('t')}"
            abi = f"{number}t" if python.endswith("t") else number
            needs = {"torchvision": (f"torch=={VISIONS.get(version)}",)}.get(name, ())
            found.append(Binary(name=name, version=version, tag=f"{number}-{abi}-{system}", requires=needs))
    return found


VISIONS = {"0.29.0": "2.14.0", "0.29.1": "2.14.1", "0.30.0": "2.16.0"}


def released(torch: str, vision: str, tags: tuple[str, ...] = ("cu130", "cpu")) -> list[Toy]:
    """Return what one release of torch puts on the indexes."""
    found = wheels("torch", torch, (LINUX, WINDOWS, MAC)) + wheels("torchvision", vision, (LINUX, WINDOWS, MAC))
    for tag in tags:
        found += wheels("torch", f"{torch}+{tag}", (LINUX, WINDOWS))
        found += wheels("torchvision", f"{vision}+{tag}", (LINUX, WINDOWS))
    return found


def everything() -> list[Toy]:
    """Return what the table below describes."""
    audio = [
        toy
        for local in ("", "+cu130", "+cpu")
        for toy in wheels("torchaudio", f"2.11.0{local}", (LINUX, WINDOWS), PYTHONS[:3])
    ]
    return released("2.14.0", "0.29.0") + released("2.14.1", "0.29.1") + audio


TEXT = """\
# Builds, and nothing but: größer.
schema_version: 1
index_base: https://download.pytorch.org/whl
apps:
  - {id: comfyui, title: ComfyUI, min_torch: "2.7", preferred_torch: "2.11", min_python: "3.10",
     needs_torchaudio: true, packages: {fetched_bytes: 1, disk_bytes: 2}, sources: [pages]}
  - {id: diffusers, title: diffusers, min_torch: "2.6", preferred_torch: "2.11", min_python: "3.10",
     needs_torchaudio: false, packages: {fetched_bytes: 1, disk_bytes: 2}, sources: [pages]}

sets: # newest first
  # the newest
  - torch: "2.14.1"
    torchvision: "0.29.1"
    torchaudio: "2.11.0"
    python: ["3.11", "3.12", "3.13", "3.13t"]   # free-threaded too
    torchaudio_python: ["3.11", "3.12", "3.13"]
    sources: [pages]
  - torch: "2.14.0"
    torchvision: "0.29.0"
    torchaudio: "2.11.0"
    python: ["3.11", "3.12", "3.13", "3.13t"]
    torchaudio_python: ["3.11", "3.12", "3.13"]
    sources: [pages]

platforms:
  - {name: linux_x86_64, os: linux, architecture: x86_64, min_glibc: "2.28", sources: [pages]}
  - {name: win_amd64, os: windows, architecture: x86_64, sources: [pages]}
  - {name: macosx_arm64, os: macos, architecture: arm64, sources: [pages]}
downloads:
  - {kind: nvidia, download: {fetched_bytes: 3, disk_bytes: 7}, sources: [pages]}
  - {kind: amd, download: {fetched_bytes: 3, disk_bytes: 7}, sources: [pages]}
  - {kind: intel, download: {fetched_bytes: 3, disk_bytes: 7}, sources: [pages]}
  - {kind: apple, download: {fetched_bytes: 3, disk_bytes: 7}, sources: [pages]}
  - {kind: cpu, download: {fetched_bytes: 3, disk_bytes: 7}, sources: [pages]}
without_wheels:
  - {os: windows, architecture: arm64, what: there is none, hint: Use another., sources: [pages]}
gpus:
  - {sm: 90, names: H100, sources: [pages]}
machine_code:
  only_on:
    - {code: 53, gpus: [53], sources: [pages]}
  not_on:
    - {gpu: 53, code: [50], sources: [pages]}
intel_gpus:
  - {names: [Arc], pci_ids: ["5690"], validated_on: [windows 11], sources: [pages]}

builds:
  - tag: cu130
    kind: nvidia
    because: it is first
    cuda: "13.0"
    min_driver: {linux: "580", windows: "580"}
    verified_torch: "2.14.1"   # seen
    confidence: A
    sources: [pages]
    wheels:
      - {platforms: [linux_x86_64, win_amd64], torch: ">=2.14,<2.15", sm: [75, 90]} # its code
  - tag: default
    kind: apple
    because: it is Apple's
    is_default_index: true
    confidence: A
    sources: [pages]
    wheels:
      - {platforms: [macosx_arm64], torch: ">=2.14,<2.16"}
  - tag: cpu
    kind: cpu
    because: it needs no GPU
    confidence: A
    sources: [pages]
    wheels:
      - {platforms: [linux_x86_64, win_amd64], torch: ">=2.14,<2.16"}

sources:
  - {id: pages, what: the pages, read_on: "2026-11-23"}
# the last comment
"""


class Tree:
    """A table in a scratch folder, and the index it speaks of."""

    def __init__(self, folder: Path, index: TaggedIndex, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = folder / "torch.yaml"
        self.index = index
        self._capsys = capsys
        self.path.write_bytes(TEXT.encode())

    def refresh(self, *options: str) -> tuple[int, str, str]:
        """Return exit status, stdout and stderr of the script; what is given last counts."""
        status = refresh_torch.main([str(self.path), *self.addresses, *options])
        said = self._capsys.readouterr()
        return status, said.out, said.err

    @property
    def addresses(self) -> list[str]:
        return ["--torch-index", self.index.url, "--default-index", f"{self.index.url}/pypi"]

    @property
    def text(self) -> str:
        return self.path.read_bytes().decode()

    def without(self, *parts: str) -> None:
        """Take wheels from the index by parts of their names."""
        self.index.toys = [toy for toy in self.index.toys if not all(part in toy.file_name for part in parts)]


@pytest.fixture
def tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Tree]:
    """Return a table that says exactly what the indexes say."""
    index = TaggedIndex(everything())
    try:
        yield Tree(tmp_path, index, capsys)
    finally:
        index.close()


# --- the indexes say the same -----------------------------------------------------------------------


def test_a_table_that_says_what_the_indexes_say_is_left_alone(tree: Tree) -> None:
    assert tree.refresh("--write") == (0, "", "")
    assert tree.text == TEXT
    assert tree.index.fetched() == []  # pages only, no wheel


def test_it_runs_as_a_script_from_anywhere(tree: Tree, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "refresh_torch.py", tree.path, *tree.addresses],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- digests ----------------------------------------------------------------------------------------


def test_a_digest_that_was_read_in_the_clear_is_not_recorded(tree: Tree) -> None:
    tree.index.digest = "a" * 64
    status, out, _ = tree.refresh("--write")
    assert (status, tree.text) == (0, TEXT)
    assert "note: cu130: digests are recorded from an https index only" in out


@pytest.mark.parametrize("has_some", [False, True])
def test_recorded_digests_are_read_back_and_never_replaced_by_others(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, has_some: bool
) -> None:
    def https(*given: Any) -> refresh_torch.Comparison:  # noqa: ANN401 - handed on
        return replace(comparison(*given), base="https://x.example/whl", default="https://x.example/simple")

    comparison = refresh_torch.Comparison
    monkeypatch.setattr(refresh_torch, "Comparison", https)
    tree.index.digest = "a" * 64
    if has_some:
        row = 'digests:\n      read_from: https://old.example\n      read_on: "2026-01-01"\n      files: # some\n'
        row += f'        - "{"b" * 64}  torch-2.13.0+cu130-cp312-cp312-win_amd64.whl"\n    '
        before = TEXT.replace("    sources: [pages]\n    wheels:\n", f"    sources: [pages]\n    {row}wheels:\n", 1)
        tree.path.write_text(before, encoding="utf-8")
    status, out, err = tree.refresh("--write")
    assert (status, err) == (1, "")
    assert "cu130: the index names 22 digests that the table does not have" in out  # 8 + 8 + 6 wheels of 2.14.1
    builds = parse_torch_table(tree.text, file="torch.yaml").builds
    assert [len(each.digests.files) if each.digests else 0 for each in builds] == [22, 8, 22]
    assert builds[0].digests is not None
    assert builds[0].digests.read_from == "https://x.example/whl/cu130"
    assert ("torch-2.14.1+cu130-cp312-cp312-win_amd64.whl", "a" * 64) in builds[0].digests.files
    assert tree.refresh("--write") == (0, "", "")
    written = tree.text
    tree.index.digest = "c" * 64
    status, out, _ = tree.refresh("--write")
    assert (status, tree.text) == (1, written)
    assert "torch-2.14.1+cu130-cp312-cp312-win_amd64.whl has another SHA-256 on the index than in the table" in out


# --- builds -----------------------------------------------------------------------------------------


def test_a_new_build_is_described_and_left_to_a_person(tree: Tree) -> None:
    tree.index.toys += wheels("torch", "2.14.1+cu134", (LINUX,), ("3.12", "3.13"))
    status, out, err = tree.refresh("--write")
    assert (status, err, tree.text) == (1, "", TEXT)
    assert "new build, cu134: torch 2.14.1, linux_x86_64 (3.12, 3.13); its driver and machine code" in out


def test_an_old_build_that_was_left_out_is_only_a_note(tree: Tree) -> None:
    tree.index.toys += wheels("torch", "2.7.1+cu118", (LINUX,)) + wheels("torch", "2.0.0+cu117", (LINUX,))
    status, out, _ = tree.refresh()
    assert (status, out) == (0, "torch.yaml: note: cu118 is not in the table; its newest torch is 2.7.1\n")


@pytest.mark.parametrize("is_forbidden", [False, True])
def test_a_vanished_build_is_told_and_left_to_a_person(tree: Tree, is_forbidden: bool) -> None:
    tree.without("+cu130")
    if is_forbidden:  # as stores of plain files answer for what they do not have
        tree.index.refused = ("/cu130/", 403)
    status, out, err = tree.refresh("--write")
    assert (status, err, tree.text) == (1, "", TEXT)
    assert out == "torch.yaml: cu130 has gone: its index has no torch; to be read again\n"


def test_a_release_that_vanished_from_a_build_is_taken_out_of_its_range(tree: Tree) -> None:
    tree.without("torch-2.14.0+cu130")
    status, out, _ = tree.refresh()
    assert (status, tree.text) == (1, TEXT)
    assert "cu130: no torch 2.14.0 for linux_x86_64, win_amd64" in out
    assert tree.refresh("--write")[0] == 1
    assert tree.text == TEXT.replace('torch: ">=2.14,<2.15", sm', 'torch: ">=2.14,<2.15,!=2.14.0", sm')
    assert tree.refresh("--write") == (0, "", "")


def test_a_release_that_vanished_for_one_system_only_asks_for_a_row_of_its_own(tree: Tree) -> None:
    tree.without("torch-2.14.0+cu130", WINDOWS)
    status, out, _ = tree.refresh("--write")
    assert (status, tree.text) == (1, TEXT)
    assert "cu130: no torch 2.14.0 for win_amd64\n" in out
    assert "its row for torch 2.14.0 is to be split by hand" in out


def test_the_newest_release_that_was_seen_moves_up_and_down(tree: Tree) -> None:
    older = TEXT.replace('verified_torch: "2.14.1"', 'verified_torch: "2.14.0"')
    tree.path.write_text(older, encoding="utf-8")
    status, out, _ = tree.refresh("--write")
    assert (status, tree.text) == (1, TEXT)
    assert "cu130: 2.14.1 is the newest torch on its index, verified_torch says 2.14.0" in out
    assert "its note, sources and confidence were written for 2.14.0; to be read again" in out
    assert tree.refresh("--write") == (0, "", "")

    tree.without("torch-2.14.1+cu130")
    tree.refresh("--write")
    assert tree.text == older.replace('torch: ">=2.14,<2.15", sm', 'torch: ">=2.14,<2.15,!=2.14.1", sm')
    assert tree.refresh("--write") == (0, "", "")


def test_a_release_that_is_still_to_come_to_a_build_stays_in_its_range(tree: Tree) -> None:
    tree.path.write_text(TEXT.replace('verified_torch: "2.14.1"', 'verified_torch: "2.14.0"'), encoding="utf-8")
    tree.without("torch-2.14.1+cu130")
    assert tree.refresh("--write") == (0, "", "")


def test_wheels_outside_of_every_range_are_named_and_their_code_left_to_a_person(tree: Tree) -> None:
    tree.index.toys += wheels("torch", "2.15.0+cu130", (LINUX,))
    status, out, _ = tree.refresh("--write")
    assert (status, tree.text) == (1, TEXT)
    assert "cu130: there is torch 2.15.0 for linux_x86_64; its machine code is to be read" in out


def test_a_torchaudio_that_comes_to_a_build_without_one_is_told(tree: Tree) -> None:
    text = TEXT.replace("    verified_torch", "    has_torchaudio: false\n    verified_torch")
    tree.path.write_text(text, encoding="utf-8")
    status, out, _ = tree.refresh("--write")
    assert (status, tree.text) == (1, text)
    assert "cu130: there is torchaudio 2.11.0 now, and has_torchaudio is false" in out


# --- releases ---------------------------------------------------------------------------------------


def test_the_pythons_of_a_release_are_those_with_wheels(tree: Tree) -> None:
    tree.without("torch-2.14.1-cp313-cp313t")
    tree.index.toys += wheels("torch", "2.14.1", (LINUX, WINDOWS, MAC), ("3.14",))
    status, out, _ = tree.refresh("--write")
    assert status == 1
    assert "torch 2.14.1: python says 3.11, 3.12, 3.13, 3.13t; the default index has wheels of torch 2.14.1 for " in out
    assert "for 3.11, 3.12, 3.13, 3.14\n" in out
    wanted = TEXT.replace('"3.13", "3.13t"]   # free', '"3.13", "3.14"]   # free')
    assert tree.text == wanted
    assert tree.refresh("--write") == (0, "", "")


def test_a_python_that_only_some_systems_have_is_left_as_the_table_says(tree: Tree) -> None:
    tree.without("torch-2.14.1-cp313-cp313t", WINDOWS)
    tree.index.toys += wheels("torch", "2.14.1", (LINUX,), ("3.14",))
    assert tree.refresh("--write") == (0, "", "")


def test_a_release_that_is_gone_is_told_and_left_to_a_person(tree: Tree) -> None:
    tree.without("torchvision-0.29.0-")
    status, out, _ = tree.refresh("--write")
    assert (status, tree.text) == (1, TEXT)
    assert out == "torch.yaml: torchvision 0.29.0 is not on the default index; to be read again\n"


def test_a_new_release_becomes_a_row_only_where_a_source_vouches_for_it(tree: Tree) -> None:
    tree.index.toys += released("2.16.0", "0.30.0", tags=())
    status, out, _ = tree.refresh("--write")
    assert (status, tree.text) == (1, TEXT)
    largest = max(size_of(toy) for toy in tree.index.toys if toy.file_name.startswith("torch-2.16.0-"))
    assert "new release, torch 2.16.0: linux_x86_64 (3.11, 3.12, 3.13, 3.13t), win_amd64" in out
    assert f"up to {largest:,} bytes; since 2026-10-28" in out
    assert '  - torch: "2.16.0"\n    torchvision: "0.30.0"\n    torchaudio: "2.11.0"\n' in out

    status, out, _ = tree.refresh("--write", "--source", "pages")
    assert "whether torchaudio 2.11.0 loads under it is to be read again" in out
    row = '  - torch: "2.16.0"\n    torchvision: "0.30.0"\n    torchaudio: "2.11.0"\n'
    row += '    python: ["3.11", "3.12", "3.13", "3.13t"]\n    torchaudio_python: ["3.11", "3.12", "3.13"]\n'
    assert tree.text == TEXT.replace('  - torch: "2.14.1"', f'{row}    sources: [pages]\n  - torch: "2.14.1"')
    assert parse_torch_table(tree.text, file="x").releases[0].torchvision == "0.30.0"


def test_a_new_release_without_its_torchvision_is_no_row(tree: Tree) -> None:
    tree.index.toys += wheels("torch", "2.16.0", (LINUX, WINDOWS, MAC))
    status, out, _ = tree.refresh("--write", "--source", "pages")
    assert (status, tree.text) == (1, TEXT)
    assert "which torchvision belongs to torch 2.16.0 is not known" in out


def test_a_source_that_is_none_of_the_tables_is_refused(tree: Tree) -> None:
    status, out, err = tree.refresh("--write", "--source", "hearsay")
    assert (status, out) == (2, "")
    assert "'hearsay' is none of the table's sources" in err


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_everything_but_the_value_is_kept_byte_for_byte(tree: Tree, ending: str, mark: str) -> None:
    older = TEXT.replace('verified_torch: "2.14.1"', "verified_torch: '2.14.0'")
    tree.path.write_bytes((mark + older).replace("\n", ending).encode())
    tree.index.toys += released("2.16.0", "0.30.0", tags=())
    tree.refresh("--write", "--source", "pages")
    written = tree.path.read_bytes()
    lines = written.decode().split(ending)
    added = [line for line in lines if "2.16.0" in line or "0.30.0" in line]
    assert len(added) == 2
    assert written.startswith(mark.encode())
    at = lines.index('  - torch: "2.16.0"')
    del lines[at : at + 6]
    assert ending.join(lines) == (mark + older).replace("\n", ending).replace("'2.14.0'", "'2.14.1'")


# --- it cannot be looked at -------------------------------------------------------------------------


def test_an_index_that_is_not_there_is_told_in_words(tree: Tree) -> None:
    status, out, err = tree.refresh("--write", "--torch-index", "http://user:secret@127.0.0.1:9/whl")
    assert (status, out, tree.text) == (5, "", TEXT)
    assert "http://127.0.0.1:9/whl/torch/ was not reached" in err
    assert "secret" not in err


@pytest.mark.parametrize(
    ("part", "code", "status", "words"),
    [
        ("/cu130/torch/", 401, 6, "wants to know who asks (401)"),
        ("/cu130/torch/", 403, 6, "is refused (403)"),
        ("/pypi/torchaudio", 503, 5, "answers 503"),
        ("/simple", 404, 5, "is no index of torch"),
        ("/c", 404, 5, "is no index of torch"),  # the default one is
        ("/simple", 429, 5, "asks for patience"),
    ],
)
def test_an_index_in_trouble_is_told_in_words_and_nothing_is_written(
    tree: Tree, part: str, code: int, status: int, words: str
) -> None:
    tree.without("torch-2.14.0+cpu")  # what would be written otherwise
    tree.index.refused = (part, code)
    found, out, err = tree.refresh("--write")
    assert (found, out, tree.text) == (status, "", TEXT)
    assert words in err


def test_a_file_that_is_no_table_is_refused_with_its_lines(tree: Tree) -> None:
    tree.path.write_text("schema_version: 1\n", encoding="utf-8")
    status, _, err = tree.refresh("--write")
    assert status == 2
    assert "torch.yaml:1: sets: is missing" in err


# --- pages ------------------------------------------------------------------------------------------


def test_yanked_files_prereleases_and_what_is_no_wheel_are_passed_over() -> None:
    names = ("torch-2.14.1.tar.gz", "torch-2.15.0rc1-cp312-cp312-win_amd64.whl", "torch-x.whl", "torch-2.14.1-bad.whl")
    links = "".join(f'<a href="{each}">{each}</a>' for each in names)
    kept = '<a href="../torch-2.14.1%2Bcpu-cp312-cp312-win_amd64.whl#sha256=00" data-core-metadata="true">x</a>'
    yanked = '<a data-yanked="broken" href="torch-2.14.0-cp312-cp312-win_amd64.whl">x</a>'
    found = parse_html_page(links + yanked + kept, "https://example.org/whl/torch/")
    assert [(each.url, each.local) for each in found] == [
        ("https://example.org/whl/torch-2.14.1%2Bcpu-cp312-cp312-win_amd64.whl", "cpu")
    ]
    files = [{"filename": each, "url": each} for each in (*names, "torch-2.14.1-cp312-cp312-win_amd64.whl")]
    assert len(parse_json_page({"files": [*files, {**files[-1], "yanked": "broken"}]}, "https://example.org/")) == 1


@pytest.mark.parametrize(
    ("name", "platforms", "pythons"),
    [
        ("torch-2.7.0+cu128-cp312-cp312-manylinux_2_28_aarch64.whl", {"linux_aarch64"}, {"3.12"}),
        ("torch-2.6.0+cu124-cp39-cp39-linux_x86_64.whl", {"linux_x86_64"}, {"3.9"}),
        ("torch-2.9.0-cp310-none-macosx_11_0_arm64.whl", {"macosx_arm64"}, {"3.10"}),
        ("torch-2.9.0-cp313-cp313t-win_amd64.whl", {"win_amd64"}, {"3.13t"}),
        ("torchaudio-2.12.0-cp310-abi3-win_amd64.whl", {"win_amd64"}, {"3.10", "3.12", "3.13"}),
        ("torch-2.9.0-cp312-cp312-win_arm64.whl", set(), {"3.12"}),
        ("torch-2.9.0-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", {"linux_x86_64"}, {"3.12"}),
    ],
)
def test_a_file_name_says_which_systems_and_pythons_a_wheel_is_for(
    name: str, platforms: set[str], pythons: set[str]
) -> None:
    wheel = wheel_of(name, "")
    assert isinstance(wheel, Wheel)
    assert wheel.platforms == platforms
    assert {each for each in ("3.9", "3.10", "3.12", "3.13", "3.13t") if wheel.serves(each)} == pythons


def test_a_build_with_an_index_of_its_own_is_read_there_unless_a_mirror_is_named() -> None:
    table = shipped_table()
    amd, cuda = table.build("rocm10.0.0"), table.build("cu130")
    assert amd is not None
    assert cuda is not None
    assert refresh_torch.address_of(amd, table, table.index_base) == "https://stable.repo.amd.com/rocm/whl-next"
    assert (
        refresh_torch.address_of(amd, table, "https://mirror.example/whl/") == "https://mirror.example/whl/rocm10.0.0"
    )
    assert refresh_torch.address_of(cuda, table, table.index_base) == "https://download.pytorch.org/whl/cu130"
