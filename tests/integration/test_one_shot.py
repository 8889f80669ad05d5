"""From an empty machine to an image in one run; a killed run continues; what was there before is unchanged.

The command is the real one (`tests.support.setup_fixture` says what the driver replaces).  ComfyUI is a stand-in that
answers as 0.33.0 was recorded, pip really installs the small test wheels, repository and files are real and small.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from provisioner.smoke_test.image import read_image
from tests.support.sandbox import Completed
from tests.support.setup_fixture import (
    KLEIN,
    PROGRAM,
    SetupFixture,
    existing_tree,
    git,
    inventory,
    states,
    write_tree,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals, and links to a Python")


def versions(setup: SetupFixture, *names: str) -> list[str]:
    """Return what the environment's own Python says it has."""
    code = f"for name in {names!r}: print(__import__(name).__version__)"
    python = setup.environment / "bin" / "python"
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.split()


def assert_is_complete(setup: SetupFixture) -> None:
    """Assert that every part is in its place, and nothing of the way there."""
    setup.sandbox.assert_in_place()
    assert versions(setup, "torch", "torchvision", "torchaudio", "einops") == [
        "2.15.0+cu130",
        "0.29.2+cu130",
        "2.11.0+cu130",
        "0.8.1",
    ]
    assert {name: (setup.tree / name).read_text(encoding="utf-8") for name in PROGRAM} == PROGRAM
    assert [path.name for path in setup.sandbox.folder.iterdir() if "klein-setup" in path.name] == []
    assert (setup.tree / "models" / ".klein-setup" / "proven.json").is_file()
    assert servers_in(setup.tree) == []


def servers_in(tree: Path) -> list[psutil.Process]:
    """Return the processes that run the tree's main.py."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(tree / "main.py") in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


# --- the whole life ----------------------------------------------------------------------------


def test_one_run_makes_everything_a_second_one_nothing_and_uninstall_leaves_what_was_there(
    setup: SetupFixture, tmp_path: Path
) -> None:
    image = tmp_path / "fox.png"
    done = setup.run("install", "--yes", "--image", image, "--size", "256x256")
    assert done.returncode == 0, done.said
    assert_in_order(
        done.stderr,
        "fetching ComfyUI 0.33.0",
        "fetched   ComfyUI 0.33.0 into ",
        "making the environment",
        "made      the environment: torch 2.",
        "installing packages",
        "installed 1 package ",
        "starting ComfyUI",
        "started   ComfyUI from ",
        "decoded   the image",
        "checked   the image",
    )
    assert_in_order(done.stderr, "fetched   ComfyUI 0.33.0 into ", "[3/3] verified", "denoising the image")
    assert_in_order(
        done.stdout,
        "ComfyUI 0.33.0 (",
        "torch 2.",
        str(image),
        "files are correct",
    )
    assert_is_complete(setup)
    assert read_image(image.read_bytes()).width == 256
    assert git(setup.tree, "rev-parse", "HEAD") == setup.upstream.release["commit"]
    assert git(setup.tree, "status", "--porcelain") == ""

    second = nothing_is_done_again(setup, image)
    assert second.json["status"] == "ok"
    assert second.json["details"]["environment"]["action"] == "none"
    assert second.json["details"]["smoke_test"]["is_proven"] is True

    mine = {"models/loras/mine.safetensors": "my own", "output/fox.png": "my image", "custom_nodes/mine.py": "pass"}
    write_tree(setup.tree, mine)
    before = inventory(setup.tree)
    dry = setup.run("uninstall", "--dry-run")
    assert (dry.returncode, inventory(setup.tree)) == (0, before)
    gone = setup.run("uninstall", "--yes")
    assert gone.returncode == 0, gone.said
    left = {name: data for name, data in inventory(setup.tree).items() if data is not None}
    assert left == {name: text.encode() for name, text in mine.items()}


def assert_in_order(text: str, *words: str) -> None:
    """Assert that a text says these words in this order."""
    at = -1
    for each in words:
        found = text.find(each, at + 1)
        assert found > at, f"{each!r} is not said, or too early, in:\n{text}"
        at = found


def nothing_is_done_again(setup: SetupFixture, image: Path) -> Completed:
    """Run again without ComfyUI's repository; assert that only the test image is new."""
    state, verified = states(setup.tree), (setup.tree / "models" / ".klein-setup" / "proven.json").read_text()
    asked = len(setup.sandbox.hub.requests), len(setup.index.requests)
    moved = setup.upstream.path.rename(setup.upstream.path.with_name("moved"))
    first = image.read_bytes()
    try:
        done = setup.run("install", "--yes", "--image", image, "--size", "256x256", "--json")
    finally:
        moved.rename(setup.upstream.path)
    assert done.returncode == 0, done.said
    assert (len(setup.sandbox.hub.requests), len(setup.index.requests)) == asked
    assert (setup.tree / "models" / ".klein-setup" / "proven.json").read_text() == verified
    assert states(setup.tree) == state
    assert image.read_bytes() != first
    return done


# --- killed, without git -----------------------------------------------------------------------

MOMENTS: dict[str, Callable[[SetupFixture], bool]] = {
    "unpacking the archive": lambda setup: any(setup.sandbox.folder.glob(".ComfyUI.klein-setup-new*")),
    "ComfyUI is there": lambda setup: (setup.tree / "main.py").is_file(),
    "the first file is there": lambda setup: setup.sandbox.path().is_file(),
    "a wheel was asked for": lambda setup: bool(setup.index.fetched()),
    "the environment is there": lambda setup: setup.environment.is_dir(),
    "the server runs": lambda setup: bool(servers_in(setup.tree)),
}


def without_git(setup: SetupFixture) -> dict[str, str]:
    """Return a PATH with a Python and nothing else."""
    folder = setup.sandbox.folder / "bin"
    if not folder.exists():
        folder.mkdir()
        (folder / "python3").symlink_to(Path(sys.executable).resolve())
    return {"PATH": str(folder)}


def test_killed_at_any_moment_and_run_again_it_ends_complete_without_git_too(setup: SetupFixture) -> None:
    """Each run is killed at the next moment; what the runs before it finished is not done again."""
    archive, environ = setup.upstream.archive, without_git(setup)
    arguments = ("install", "--yes", "--size", "256x256")
    setup.index.requests.clear()
    for what, is_so in MOMENTS.items():
        process = setup.start(*arguments, source=archive, env=environ)
        deadline = time.monotonic() + 60
        while not is_so(setup) and process.poll() is None:
            assert time.monotonic() < deadline, f"waited in vain until {what}"
            time.sleep(0.002)
        process.kill()
        said, _ = process.communicate()
        assert process.returncode in (-9, 0), f"{what}: {said}"
        for orphan in servers_in(setup.tree):  # SIGKILL leaves nobody to end it
            orphan.kill()
            orphan.wait(5)

    done = setup.run(*arguments, "--json", source=archive, env=environ)
    assert done.returncode == 0, done.said
    assert_is_complete(setup)
    receipt = json.loads((setup.tree / ".klein-setup" / "comfyui.json").read_text(encoding="utf-8"))
    assert (receipt["way"], receipt["tree"]) == ("archive", setup.upstream.release["tree"])

    gone = setup.run("uninstall", "--yes", "--json", env=environ)
    assert gone.returncode == 0, gone.said
    left = [path for path in setup.tree.rglob("*") if path.is_file()]
    kept = {finding["path"] for finding in gone.json["findings"]}
    assert {str(path) for path in left} <= kept & {str(setup.sandbox.path(each)) for each in KLEIN}, gone.said


# --- a tree of somebody's ----------------------------------------------------------------------


@pytest.fixture
def somebodys(setup: SetupFixture) -> Path:
    """A checkout with a Python of its own, a local change, a custom node, output, and other models."""
    tree = setup.tree
    git(setup.upstream.path, "clone", "-q", str(setup.upstream.path), str(tree))
    changed = {"comfy/sd.py": "def load(): return 'mine'\n", "custom_nodes/mine/__init__.py": "pass\n"}
    more = {"output/fox.png": "my image", "models/loras/mine.safetensors": "my own"}
    return existing_tree(tree, **changed, **more)


def test_existing_tree_gets_the_files_and_keeps_everything_else(setup: SetupFixture, somebodys: Path) -> None:
    status = git(somebodys, "status", "--porcelain", "--ignored")
    before, state = inventory(somebodys), states(somebodys, "models")
    asked = len(setup.index.requests)

    plan = setup.run("plan")
    assert plan.returncode == 0, plan.said
    assert inventory(somebodys) == before
    done = setup.run("install", "--yes", "--json", "--size", "256x256")
    assert done.returncode == 0, done.said
    assert done.json["details"]["smoke_test"]["is_proven"] is True
    assert "environment" not in done.json["details"]
    setup.sandbox.assert_in_place()
    kept = {path: each for path, each in inventory(somebodys).items() if path in before}
    assert kept == before
    new = {path.split("/")[0] for path in inventory(somebodys).keys() - before.keys()}
    assert new == {"models"}
    assert states(somebodys, "models") == state
    assert git(somebodys, "status", "--porcelain", "--ignored") == status
    assert len(setup.index.requests) == asked

    gone = setup.run("uninstall", "--yes")
    assert gone.returncode == 0, gone.said
    assert inventory(somebodys) == before


def test_existing_tree_with_changes_is_not_updated_over_them(setup: SetupFixture, somebodys: Path) -> None:
    (somebodys / "comfyui_version.py").write_text('__version__ = "0.10.0"\n', encoding="utf-8")
    git(
        somebodys,
        *["-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-q", "-m", "older", "comfyui_version.py"],
    )
    before = inventory(somebodys)
    done = setup.run("install", "--yes", "--update-comfyui", "--json")
    assert (done.returncode, done.codes) == (2, ["usage"])
    assert "comfy/sd.py" in done.json["errors"][0]["message"]
    assert inventory(somebodys) == before


def test_an_update_of_somebodys_tree_can_be_undone(setup: SetupFixture, somebodys: Path) -> None:
    git(somebodys, "checkout", "-q", "--", "comfy/sd.py")
    (somebodys / "comfyui_version.py").write_text('__version__ = "0.10.0"\n', encoding="utf-8")
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    git(somebodys, *author, "commit", "-q", "-m", "older", "comfyui_version.py")
    head, before = git(somebodys, "rev-parse", "HEAD"), inventory(somebodys)

    none = setup.run("repair", "--undo-update", "--yes", "--json")
    assert (none.returncode, none.codes) == (2, ["usage"])
    assert "There is no update of" in none.json["errors"][0]["message"]
    done = setup.run("install", "--yes", "--update-comfyui", "--only", "environment", "--json")
    assert done.returncode == 0, done.said
    assert git(somebodys, "rev-parse", "HEAD") == setup.upstream.release["commit"] != head

    asked = setup.run("repair", "--undo-update", "--json")
    assert (asked.returncode, asked.codes) == (2, ["answer-needed"])
    assert git(somebodys, "rev-parse", "HEAD") != head
    undone = setup.run("repair", "--undo-update", "--yes", "--json")
    assert undone.returncode == 0, undone.said
    told = undone.json["details"]["undo_update"]
    assert (told["path"], told["version"], told["commit"]) == (str(somebodys), "0.10.0", head.strip())
    assert git(somebodys, "rev-parse", "HEAD") == head
    kept = {path for path in before if path.partition("/")[0] not in {".git", ".venv"}}
    now = inventory(somebodys)
    assert {path: now.get(path) for path in kept} == {path: before[path] for path in kept}
    again = setup.run("repair", "--undo-update", "--yes")
    assert again.returncode == 2


def test_offline_comfyui_is_named_and_nobody_is_asked(setup: SetupFixture) -> None:
    asked = len(setup.index.requests)
    source = "https://git.example/ComfyUI"
    done = setup.run("install", "--yes", "--offline", "--only", "environment", "--json", source=source)
    assert (done.returncode, done.codes) == (5, ["offline"])
    assert len(setup.index.requests) == asked
    assert not (setup.tree / "main.py").exists()
    fetched = setup.run("install", "--yes", "--offline", "--only", "environment", "--json")  # a repository on this disk
    assert (fetched.returncode, fetched.codes) == (5, ["offline"])
    assert "torch==" in fetched.json["errors"][0]["message"]
    assert (setup.tree / "main.py").exists()
    assert len(setup.index.requests) == asked


def test_a_models_folder_alone_gets_files_and_is_told_why_there_is_no_test_image(
    setup: SetupFixture, tmp_path: Path
) -> None:
    setup.tree = tmp_path / "models"
    (setup.tree / "vae").mkdir(parents=True)
    done = setup.run("install", "--yes")
    assert done.returncode == 0, done.said
    assert "no ComfyUI here" in done.said
    assert all((setup.tree / each.folder / each.name).is_file() for each in KLEIN)
    assert [path.name for path in tmp_path.iterdir() if path.name == ".venv"] == []


def test_an_environment_that_is_not_wanted_leaves_out_the_test_image_that_would_need_it(setup: SetupFixture) -> None:
    done = setup.run("install", "--yes", "--torch", "none")
    assert done.returncode == 0, done.said
    setup.sandbox.assert_in_place()
    assert (setup.tree / "main.py").is_file()
    assert not setup.environment.exists()
    assert "No test image is generated" in done.said


# --- the plan is what is done ------------------------------------------------------------------


def remove_files(setup: SetupFixture) -> None:
    for each in KLEIN[1:]:
        (setup.tree / "models" / each.folder / each.name).unlink()


def remove_comfyui(setup: SetupFixture) -> None:
    for name in PROGRAM:
        (setup.tree / name).unlink()
    shutil.rmtree(setup.tree / ".git")


def remove_environment(setup: SetupFixture) -> None:
    shutil.rmtree(setup.environment)


def remove_a_package(setup: SetupFixture) -> None:
    for path in setup.environment.rglob("site-packages/einops*"):
        shutil.rmtree(path)


def change_torch(setup: SetupFixture) -> None:
    (metadata,) = setup.environment.rglob("site-packages/torch-*.dist-info/METADATA")
    metadata.write_text(metadata.read_text(encoding="utf-8").replace("2.15.0+cu130", "2.14.1+cu130"), encoding="utf-8")


def test_a_plan_lists_exactly_what_install_then_does_whatever_is_missing(setup: SetupFixture) -> None:
    def steps_of(document: dict[str, Any]) -> list[tuple[str, str, str]]:
        return [(step["kind"], step["path"], step["reason"]) for step in document["steps"]]

    # Each by itself, and as many at once as there can be: without an environment there is no package in it to remove.
    at_once = [(remove_files, remove_comfyui, each) for each in (remove_environment, remove_a_package)]
    each_alone = [(remove,) for remove in (*at_once[0], remove_a_package, change_torch)]
    seen = set()
    assert setup.run("install", "--yes", "--only", "files,environment").returncode == 0
    for chosen in ((), *each_alone, *at_once):
        parts = ["--only", "files,environment"] if chosen else []  # the image takes its time; once is enough
        for remove in chosen:
            remove(setup)
        names = ", ".join(remove.__name__ for remove in chosen) or "nothing"
        before = inventory(setup.tree)
        planned = setup.run("plan", "--json", *parts)
        assert (planned.returncode, inventory(setup.tree)) == (0, before), names
        done = setup.run("install", "--yes", "--json", *parts, *([] if parts else ["--size", "256x256"]))
        assert done.returncode == 0, (names, done.said)
        assert steps_of(planned.json) == steps_of(done.json), names
        kept = [step["kind"] for step in done.json["steps"] if step["outcome"]["status"] == "skipped"]
        assert all(kind.startswith("keep-") for kind in kept), names
        assert planned.json["totals"]["bytes_to_fetch"] == sum(each["bytes_to_fetch"] for each in planned.json["steps"])
        assert_is_complete(setup)
        seen |= {step["kind"] for step in planned.json["steps"]}
    assert seen == {
        "get-comfyui",
        "keep-comfyui",
        "fetch-file",
        "make-environment",
        "repair-environment",
        "keep-environment",
        "install-packages",
        "start-comfyui",
        "generate-image",
    }
