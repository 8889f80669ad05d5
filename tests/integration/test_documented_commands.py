"""Every command that README.md and docs/ show is run once, on loopback and with small files, and succeeds.

What would make an environment, start ComfyUI or fetch it runs only as far as its files, and what can do nothing without
those is in `ELSEWHERE` with the test that runs it; the real parser has read it then (tests/unit).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.cli.arguments import build_parser
from provisioner.manifest.shipped import is_shipped
from tests.support.builders import recording_of
from tests.support.documented import PAGES, ROOT, Typed, commands
from tests.support.sandbox import Sandbox
from tests.support.setup_fixture import KLEIN, rtx_4070
from tests.support.signing import make_pair
from tests.support.stand_ins import write_stand_ins

SETS = ("fp8", "fp8-lean", "fp8-midi")
# What a command says, the test that runs it, and how it does.
UPDATE = "test_one_shot.py::test_an_update_of_somebodys_tree_can_be_undone"
PEERS = "test_peers.py::test_a_second_host_takes_all_from_the_first_and_nothing_from_the_hub"
ELSEWHERE = {
    "seed": (PEERS, "seeder.take("),
    "--peer": (PEERS, "seeder.take("),
    r"oci://\S+": (
        "test_bundle_registry.py::test_everything_comes_out_of_a_registry",
        'run("bundle", "create", reference',
    ),
    "smoke-test": (
        "test_smoke_test_command.py::test_a_server_of_our_own_is_started_draws_and_is_stopped",
        'run("smoke-test"',
    ),
    "start": (
        "test_start_command.py::test_the_last_target_is_started_without_naming_it_and_ends_with_status_0",
        "begin(sandbox",
    ),
    "rehearse(?! --no-image)": (
        "test_drawing.py::test_the_rehearsal_ends_with_an_image_and_keeps_it_where_it_says",
        "rehearsal(",
    ),
    "diagnose": (
        "test_diagnose_command.py::test_the_custom_node_that_ends_the_server_is_named_with_the_way_to_live_without_it",
        'run("diagnose"',
    ),
    r"manifest from-workflow \S+": (
        "test_from_workflow.py::test_a_template_comes_from_the_index",
        '"from-workflow", "image_small"',
    ),
    "--manifest image_z_image_turbo.yaml": (
        "test_from_workflow.py::test_a_workflow_becomes_a_manifest_that_installs",
        'sandbox.install("--only", "files", "--manifest", "my-flow.yaml"',
    ),
    r"--custom-node \S+": (
        "test_workflow_packs.py::test_install_verify_and_uninstall",
        '("--custom-node", "git-pack"',
    ),
    "snapshot (show|restore|export)": (
        "test_snapshot_command.py::test_everything_that_changed_is_brought_back_and_the_rest_is_said",
        "restore(setup, name)",
    ),
    "--schedule": (
        "test_scrub_command.py::test_a_schedule_is_shown_written_after_a_yes_and_removed",
        '"--schedule", "daily"',
    ),
    "--update-comfyui": (UPDATE, '"--update-comfyui"'),
    r"--comfyui-version \S+": (
        "test_comfyui_version.py::test_the_release_that_was_named_is_installed_recorded_and_held_to",
        '"--comfyui-version", "v0.34.0"',
    ),
    "--undo-update": (UPDATE, '"--undo-update"'),
    "--only environment": (UPDATE, '"--only", "environment"'),
}
OTHER_PROGRAMS = {"openssl", "git", "python3", "curl", "curl.exe", "sh", "powershell"}
OTHER_PROGRAMS |= {"ansible-galaxy", "ansible-playbook", "docker", "kubectl"}  # test_ansible.py, test_deployment.py


def is_run_elsewhere(typed: Typed) -> bool:
    return any(re.search(rf"(^| ){each}( |$)", " ".join(typed.arguments or ())) for each in ELSEWHERE)


def shown() -> Iterator[tuple[Path, list[Typed]]]:
    """Yield each page with what is typed here, up to the last command that no page before it shows."""
    seen = set()
    for page in PAGES:
        typed = [each for each in commands(page) if each.arguments is not None and not is_run_elsewhere(each)]
        known = [(each.arguments, tuple(each.environ.items()), each.output) for each in typed]
        new = [number for number, each in enumerate(known) if each not in seen]
        seen.update(known)
        if new:
            yield page, typed[: new[-1] + 1]


class Reader:
    """Somebody who types what a page shows, in a sandbox.

    Parameters
    ----------
    sandbox : Sandbox
        Where its files and its hub are.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        sandbox.publish(*KLEIN)
        names = [each.artifact()["id"] for each in KLEIN]
        sets = [{"id": each, "title": each, "target": "comfyui", "artifacts": names} for each in SETS]
        sandbox.write_manifest(sets=sets, default_set=SETS[0])
        make_pair(sandbox.folder)
        machine = self.record(sandbox.folder / "machine.json")
        sandbox.environ["KLEIN_SETUP_MACHINE"] = str(machine)
        self.drive = sandbox.folder / "drive"
        assert sandbox.install("--only", "files").returncode == 0

    @staticmethod
    def record(path: Path) -> Path:
        """Write a machine with a GPU, as ``detect --json`` shows one."""
        path.write_text(recording_of(rtx_4070()), encoding="utf-8")
        return path

    def meant(self, word: str) -> str:
        """Return what a word stands for here."""
        if word == "DIR" or word.startswith(("~/", "C:\\")):
            return str(self.sandbox.tree)
        if word in {"DRIVE", "SHARE"}:
            return str(self.drive)
        if word.startswith("DRIVE/"):
            return str(self.sandbox.folder / word.lower())
        return self.sandbox.hub.endpoint if word == "https://hub.example.org" else word

    def type(self, typed: Typed) -> None:
        """Run one command; what it needs of earlier days or other computers is made first."""
        given = [self.meant(word) for word in typed.arguments or ()]
        named = [at for at in range(1, len(given)) if given[at - 1] == "--manifest" and is_shipped(given[at])]
        files = write_stand_ins(self.sandbox.folder, self.sandbox.hub, *(given[at] for at in named))
        for at in named:
            given[at] = str(files[given[at]])
        if named and "--comfyui" not in given:  # a tree of its own: other bytes under the same names
            given += ["--comfyui", str(self.sandbox.folder / "other-models")]
        if not given or given[0].startswith("-"):
            given.insert(0, "install")
        options = vars(build_parser().parse_args(given))
        if options.get("only", "") is None:
            given += ["--only", "files"]  # the rest needs wheels, git and a GPU
        if "yes" in options and not options["no_input"]:
            given.append("--yes")
        if given[:2] in (["bundle", "create"], ["bundle", "add"]):
            hub = self.sandbox.hub.endpoint
            given += ["--manifest", str(self.sandbox.manifest), "--endpoint", hub, "--send-token", "--no-comfyui"]
        if str(self.drive) in given and not self.drive.exists():
            shutil.move(self.sandbox.tree, self.drive)  # the other computer has none of it
        for name, value in typed.environ.items():
            if name == "KLEIN_SETUP_MACHINE":
                self.record(self.sandbox.folder / value)
        for file in options.get("for_machine") or ():
            self.record(self.sandbox.folder / file)
        if options["command"] == "fleet":
            self.write_document(self.sandbox.folder / options["folder"] / "lab-1.json")
        ended = self.sandbox.run(*given, env=typed.environ)
        assert ended.returncode == 0, (typed.line, ended.said[-2000:])
        if typed.output is not None:
            document = json.loads(ended.stdout)
            assert document["status"] == "ok", typed.line
            (self.sandbox.folder / typed.output).write_text(ended.stdout, encoding="utf-8")

    def write_document(self, path: Path) -> None:
        """Write what ``--json`` printed on another computer."""
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            document = self.sandbox.run("verify", "--quick", "--json").json
            path.write_text(json.dumps({**document, "host": path.stem}), encoding="utf-8")


@pytest.mark.parametrize(
    "typed", [pytest.param(typed, id=page.relative_to(ROOT).as_posix()) for page, typed in shown()]
)
def test_every_command_of_a_page_does_what_it_says(typed: list[Typed], sandbox: Sandbox) -> None:
    reader = Reader(sandbox)
    for each in typed:
        reader.type(each)


def test_what_is_run_elsewhere_is() -> None:
    for test, call in ELSEWHERE.values():
        file, _, name = test.partition("::")
        text = (ROOT / "tests" / "integration" / file).read_text(encoding="utf-8")
        assert call in text.partition(f"def {name}(")[2].partition("\ndef ")[0], test


def test_other_programs_are_few_and_their_scripts_exist() -> None:
    others = [each for page in PAGES for each in commands(page) if each.arguments is None]
    assert {each.words[0] for each in others} <= OTHER_PROGRAMS
    for each in others:
        if each.words[:2] == ("python3", "-c"):
            subprocess.run([sys.executable, *each.words[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        elif each.words[0] == "python3":
            assert (ROOT / each.words[1]).is_file(), each.line
        elif each.words[0] in {"sh", "powershell"}:  # test_install_script.py runs it
            assert (ROOT / "scripts" / each.words[-1]).is_file(), each.line
        elif each.words[0] == "ansible-playbook":
            collection, _, playbook = each.words[1].rpartition(".")
            assert collection == "klein_setup.fleet"
            assert (ROOT / "scripts" / "ansible" / "playbooks" / f"{playbook}.yml").is_file(), each.line
        elif each.words[0] in {"ansible-galaxy", "docker", "kubectl"}:
            (path,) = (word for word in each.words if "scripts/" in word)
            assert (ROOT / path[path.index("scripts/") :]).exists(), each.line
        elif each.words[0].startswith("curl"):
            assert (ROOT / each.words[-1].partition("/klein-setup/main/")[2]).is_file(), each.line


@pytest.mark.skipif(os.name == "nt", reason="the same on every system")
def test_a_page_with_a_command_that_fails_is_found(sandbox: Sandbox) -> None:
    reader = Reader(sandbox)
    reader.sandbox.path().unlink()
    with pytest.raises(AssertionError, match="klein-setup verify"):
        reader.type(Typed(words=("klein-setup", "verify", "--comfyui", "DIR"), line="klein-setup verify --comfyui DIR"))
