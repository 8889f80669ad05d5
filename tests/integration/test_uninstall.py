"""`klein-setup uninstall` takes away what the receipts say is ours, and only that."""

from __future__ import annotations

from pathlib import Path

from tests.support.sandbox import Sandbox, Wanted, tensors

VAE = Wanted(data=tensors(70_000, 1))
MODEL = Wanted(data=tensors(90_000, 2), name="model.safetensors", folder="diffusion_models")


def inventory(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_tree_is_as_it_was_before_the_installation(sandbox: Sandbox) -> None:
    sandbox.publish(VAE, MODEL)
    other = sandbox.tree / "models" / "loras" / "mine.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"my own")
    before = inventory(sandbox.tree)
    assert sandbox.run("install").returncode == 0
    dry = sandbox.run("uninstall", "--dry-run")
    assert (dry.returncode, "small.safetensors" in dry.said) == (0, True)
    assert "Nothing was removed. 2 steps, 160 kB to remove. To apply it:" in dry.said
    planned = sandbox.run("uninstall", "--dry-run", "--json").json
    assert sandbox.path().is_file()
    assert " -m provisioner uninstall " in planned["next_command"]
    assert "--dry-run" not in planned["next_command"]
    done = sandbox.run("uninstall", "--yes", "--json")
    assert done.returncode == 0
    removed = [(step["kind"], step["path"]) for step in done.json["steps"]]
    assert removed == [(step["kind"], step["path"]) for step in planned["steps"]]
    assert ("remove", str(sandbox.path())) in removed
    assert {step["outcome"]["status"] for step in done.json["steps"]} == {"done"}
    assert inventory(sandbox.tree) == before


def test_what_was_there_before_and_what_changed_since_stays(sandbox: Sandbox) -> None:
    sandbox.publish(VAE, MODEL)
    sandbox.path(VAE).parent.mkdir(parents=True)
    sandbox.path(VAE).write_bytes(VAE.data)  # there before us: adopted
    assert sandbox.run("install").returncode == 0
    changed = b"\x01" + MODEL.data[1:]
    sandbox.plant(sandbox.path(MODEL), changed)
    done = sandbox.run("uninstall", "--yes", "--json")
    assert done.returncode == 0
    assert {finding["code"] for finding in done.json["findings"]} == {"kept-file"}
    assert sandbox.path(VAE).read_bytes() == VAE.data
    assert sandbox.path(MODEL).read_bytes() == changed


def test_nothing_is_removed_without_a_yes(sandbox: Sandbox) -> None:
    sandbox.publish(VAE)
    assert sandbox.run("install").returncode == 0
    before = inventory(sandbox.tree)
    asked = sandbox.run("uninstall", "--json")
    assert asked.codes == ["answer-needed"]
    assert inventory(sandbox.tree) == before


def test_a_second_time_there_is_nothing_to_do(sandbox: Sandbox) -> None:
    sandbox.publish(VAE)
    sandbox.run("install")
    sandbox.run("uninstall", "--yes")
    again = sandbox.run("uninstall", "--yes")
    assert again.returncode == 0
    assert "Nothing here was installed by klein-setup" in again.said


def test_files_that_repair_set_aside_stay_and_are_named(sandbox: Sandbox) -> None:
    sandbox.publish(VAE)
    stranger = tensors(70_000, 9)
    sandbox.plant(sandbox.path(), stranger)
    assert sandbox.run("repair").returncode == 0
    done = sandbox.run("uninstall", "--yes", "--json")
    assert "kept-aside" in {finding["code"] for finding in done.json["findings"]}
    kept = [path for path in sandbox.tree.rglob("*") if path.is_file() and path.read_bytes() == stranger]
    assert len(kept) == 1
