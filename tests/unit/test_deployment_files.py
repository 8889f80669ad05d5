"""The files that others deploy with: our own parser reads every command in them, and they keep their own rules.

Ansible, Kubernetes, Slurm, GitHub and Packer are not started here; tests/integration starts what can be started.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from provisioner import __version__
from provisioner.cli.arguments import build_parser
from provisioner.core.errors import KleinError, LockHeldError, NetworkError, SmokeTestError, UsageError
from provisioner.plan.steps import Step
from scripts.check_readme import every_error
from tests.support.pods import FILES, KUBERNETES, commands, containers, specs

SCRIPTS = KUBERNETES.parent
ROLE = SCRIPTS / "ansible" / "roles" / "klein_setup"
ACTION = yaml.safe_load((SCRIPTS / "github-action" / "action.yml").read_text(encoding="utf-8"))
PACKER = (SCRIPTS / "packer" / "klein-setup.pkr.hcl").read_text(encoding="utf-8")
HOME, TEMPORARY = "/home/klein", "/tmp"  # noqa: S108 # in a container

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def parse(words: list[str]) -> None:
    """Let the real parser read a command; it raises what a person would be told."""
    build_parser().parse_args(words)


def read(name: str) -> dict[str, Any]:
    """Return a file of the role."""
    return dict(yaml.safe_load((ROLE / name).read_text(encoding="utf-8")))


# --- Ansible ----------------------------------------------------------------------------------------------


def options_of(name: str, variables: dict[str, Any]) -> set[str]:
    """Return every option in a variable of the role, and in those it is made of."""
    text = str(variables[name])
    inner = [options_of(each, variables) for each in re.findall(r"klein_setup__\w+", text)]
    return set(re.findall(r"'(--[\w-]+)'", text)).union(*inner)


@pytest.mark.parametrize("command", ["plan", "install", "repair", "verify"])
def test_the_role_gives_a_command_only_options_that_it_has(command: str) -> None:
    page = (SCRIPTS.parent / "docs" / "commands.md").read_text(encoding="utf-8")
    help_of = dict(re.findall(r"^```help (\w[\w -]*)\n(.*?)^```", page, re.M | re.S))
    options = options_of(f"klein_setup__{command}", read("vars/main.yml"))
    assert "--comfyui" in options
    assert options <= set(re.findall(r"--[\w-]+", help_of[command]))


def test_every_variable_of_the_role_is_specified_with_its_default() -> None:
    entries = read("meta/argument_specs.yml")["argument_specs"]
    specified = {name: each.get("default") for entry in entries.values() for name, each in entry["options"].items()}
    assert specified == read("defaults/main.yml")
    assert set(entries) == {path.stem for path in (ROLE / "tasks").iterdir()} - {"run", "bring"}


def test_the_version_and_the_steps_that_change_nothing_are_those_of_the_program() -> None:
    galaxy = yaml.safe_load((SCRIPTS / "ansible" / "galaxy.yml").read_text(encoding="utf-8"))
    assert galaxy["version"] == __version__
    kinds = {each.__dataclass_fields__["kind"].default for each in get_args(Step)}
    assert set(read("vars/main.yml")["klein_setup__idle_steps"]) <= kinds


# --- Kubernetes -------------------------------------------------------------------------------------------


@each_file
def test_every_command_in_a_pod_can_be_typed(path: Path) -> None:
    found = [each for spec in specs(path) for container in containers(spec) for each in commands(container)]
    assert found
    for each in found:
        parse(each)


@each_file
def test_a_pod_of_ours_has_no_rights_and_writes_only_where_it_mounts(path: Path) -> None:
    for spec in specs(path):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        volumes = {each["name"]: each for each in spec["volumes"]}
        for container in containers(spec):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"]["drop"] == ["ALL"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            mounted = {each["mountPath"]: volumes[each["name"]] for each in container["volumeMounts"]}
            for words in commands(container):
                assert {path for path, volume in mounted.items() if "emptyDir" in volume} == {HOME, TEMPORARY}
                folder = words[words.index("--comfyui") + 1]
                (mount,) = (each for each in container["volumeMounts"] if each["mountPath"] == folder)
                assert words[0] == "verify" or not mount.get("readOnly", False)


@pytest.mark.parametrize("name", ["job.yaml", "cronjob.yaml"])
def test_a_job_tries_again_only_what_may_pass(name: str) -> None:
    text = (KUBERNETES / name).read_text(encoding="utf-8")
    policies = re.findall(r"values: (\[[\d, ]+\])", text)
    assert len(policies) == 1
    may_pass: set[type[KleinError]] = {NetworkError, LockHeldError, SmokeTestError}
    final = {each.exit_status for each in every_error() if not issubclass(each, tuple(may_pass))}
    final -= {each.exit_status for each in may_pass}
    assert UsageError.exit_status in final
    commands_failed = 8  # pip or git: not run here, and a try costs little
    assert set(yaml.safe_load(policies[0])) == {1, *final} - {commands_failed, 70}


def test_the_image_is_made_of_files_that_are_there_for_a_user_without_rights() -> None:
    text = (KUBERNETES / "Dockerfile").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M)
    assert all((SCRIPTS.parent / name).exists() for each in copied for name in each.split())
    assert all(re.fullmatch(r"python:\d\.\d+-slim-\w+", each) for each in re.findall(r"^FROM (\S+)", text, re.M))
    assert re.findall(r"^USER (.*)$", text, re.M) == ["10001:10001"]
    assert 'ENTRYPOINT ["klein-setup"]' in text


# --- GitHub, Packer ---------------------------------------------------------------------------------------


def test_every_command_of_the_packer_snippet_can_be_typed() -> None:
    found = re.findall(r'"/opt/klein-setup/bin/klein-setup ([^">]*)', PACKER)
    assert [each.split()[0] for each in found] == ["install", "verify"]
    for each in found:
        parse(shlex.split(each))


def test_what_is_pinned_is_this_version_and_inputs_of_the_action_are_no_code() -> None:
    steps = ACTION["runs"]["steps"]
    assert [each for each in steps if "uses" in each] == []
    assert all("${{" not in each["run"] for each in steps)
    assert ACTION["inputs"]["version"]["default"] == __version__
    assert f'default = "{__version__}"' in PACKER
    images = {container["image"] for path in FILES for spec in specs(path) for container in containers(spec)}
    assert images == {f"registry.example.org/klein-setup:{__version__}"}
