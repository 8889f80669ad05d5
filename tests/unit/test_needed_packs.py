"""Which custom nodes a workflow needs, what a manifest takes of them, and what of their requirements is installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provisioner.commands.manifest_packs import agreed_packs
from provisioner.core.errors import ManifestError, UsageError
from provisioner.core.models import CustomNode, GitCommit, Manifest, ManifestWorkflow, NodeArchive
from provisioner.environment.pack_requirements import joined, pack_requirements
from provisioner.files.planner import no_steps
from provisioner.manifest.combine import combined
from provisioner.manifest.entries import manifest_text
from provisioner.manifest.pack_names import complaint_about_pack
from provisioner.manifest.parse import parse_manifest
from provisioner.plan.make_plan import make_plan
from provisioner.plan.order import tasks_of
from provisioner.plan.plan_hosts import Addresses, hosts_of
from provisioner.plan.steps import GenerateImage, InstallNodePack, KeepComfyUI, Plan, StartComfyUI, Step
from provisioner.workflow.needed_packs import (
    NeededPack,
    PackNeeds,
    Wanted,
    archive_in,
    folder_of,
    needed_packs,
    repository_in,
    version_address,
    wanted_version,
)
from provisioner.workflow.read_workflow import read_workflow
from tests.support.builders import comfy_target
from tests.support.workflows import node, subgraph, workflow

COMMIT, OTHER = "1a" * 20, "2b" * 20


# --- what a workflow names -------------------------------------------------------------------------


def of(key: int, kind: str, **properties: str) -> dict[str, Any]:
    mode = 2 if properties.pop("muted", "") else 0
    return node(key, kind, mode=mode, properties=properties)


def needs(
    *nodes: dict[str, Any], info: dict[str, object] | None = None, subgraphs: tuple[object, ...] = ()
) -> PackNeeds:
    return needed_packs(read_workflow(workflow(*nodes, subgraphs=subgraphs), name="w"), info)


def test_packs_are_named_with_every_version_wherever_their_nodes_are() -> None:
    inner = subgraph("5a" * 16, of(1, "In", cnr_id="a", ver="1.0"))
    found = needs(
        of(1, "A", cnr_id="a", ver="1.1", aux_id="owner/a"),
        node(2, "5a" * 16),
        of(3, "A", cnr_id="a", ver="1.1"),
        of(4, "Load", cnr_id="comfy-core", ver="0.33.0"),
        of(5, "B", aux_id="owner/b"),
        of(6, "C", cnr_id="c", muted="yes"),
        of(7, "D", cnr_id="b2", muted="yes"),
        of(8, "D", cnr_id="b2", ver="1.0"),
        subgraphs=(inner,),
    )
    assert found.packs == (
        NeededPack(name="a", repository="owner/a", versions=("1.1", "1.0"), nodes=("A", "In")),
        NeededPack(name="owner/b", repository="owner/b", nodes=("B",)),
        NeededPack(name="b2", versions=("1.0",), nodes=("D",)),
    )
    assert found.unused == ("c",)


def test_nodes_that_name_no_pack_are_unknown_only_where_a_server_lacks_them() -> None:
    nodes = (of(1, "Load"), of(2, "Mine"), of(3, "Off", muted="yes"))
    assert needs(*nodes).unrecorded == ("Load", "Mine")
    asked = needs(*nodes, info={"Load": {}})
    assert (asked.unknown, asked.unrecorded) == (("Mine",), ())


@pytest.mark.parametrize(
    ("name", "versions", "given", "expected"),
    [
        ("a", ("1.0.9", "1.0.10"), None, "1.0.10"),
        ("a", ("1.0",), COMMIT, COMMIT),
        ("owner/b", (COMMIT,), None, COMMIT),
        ("a", (), "v2.0", "v2.0"),
    ],
)
def test_one_version_is_asked_for(name: str, versions: tuple[str, ...], given: str | None, expected: str) -> None:
    wanted = wanted_version(NeededPack(name=name, versions=versions, nodes=("A",)), given)
    assert isinstance(wanted, Wanted)
    assert wanted.version == expected
    assert wanted.kind == ("commit" if expected == COMMIT else "release")


@pytest.mark.parametrize(
    ("name", "versions", "why"),
    [
        ("a", (), "the workflow names no version of it"),
        ("a", (COMMIT, OTHER), "the workflow names 2 versions of it"),
        ("a", tuple(f"{number}-x" for number in range(9)), "and 5 more"),
        ("a", ("nightly",), "'nightly' is no release and no commit"),
        ("a", ("1.0/../../x",), "is no release and no commit"),
        ("owner/b", ("1.0",), "'1.0' is no commit of 40 hex digits"),
        ("../x", ("1.0",), "neither an id of the registry nor owner/repository"),
        ("owner/..", (COMMIT,), "neither"),
        ("/etc/passwd", (COMMIT,), "neither"),
        ("https://me:secret@x.example/y", (COMMIT,), "neither"),
        ("x" * 200, ("1.0",), "neither"),
        ("C:\\x", ("1.0",), "neither"),
    ],
)
def test_what_cannot_be_asked_for_says_why(name: str, versions: tuple[str, ...], why: str) -> None:
    said = wanted_version(NeededPack(name=name, versions=versions, nodes=("A",)), None)
    assert isinstance(said, str)
    assert why in said
    assert "secret" not in said


def test_addresses_and_folders() -> None:
    by_id = Wanted(registry_id="a", repository=None, version="1.0+b", kind="release")
    assert version_address("https://api.example/", by_id) == "https://api.example/nodes/a/versions/1.0%2Bb"
    by_name = Wanted(registry_id=None, repository="owner/B.git", version=COMMIT, kind="commit")
    assert [folder_of(each) for each in (by_id, by_name)] == ["a", "B"]
    assert repository_in({"repository": "https://gitlab.example/a/b"}, "http://x") == "https://gitlab.example/a/b"
    nothing: tuple[object, ...] = ({}, {"repository": 5}, [])
    assert [repository_in(each, "http://x") for each in nothing] == [None] * 3


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"downloadUrl": ""}, "names no archive"),
        ([], "names no archive"),
        ({"downloadUrl": "https://x", "status": "NodeVersionStatusDeleted"}, "has deleted"),
        ({"downloadUrl": "https://x", "version": "2.0"}, "answered about version 2.0"),
    ],
)
def test_what_the_registry_says_is_looked_at(answer: object, why: str) -> None:
    wanted = Wanted(registry_id="a", repository=None, version="1.0", kind="release")
    assert why in str(archive_in(answer, wanted)[1])
    good = {"downloadUrl": "https://x", "version": "1.0", "status": "NodeVersionStatusPending"}
    assert archive_in(good, wanted) == ("https://x", None)


# --- the manifest ----------------------------------------------------------------------------------


def pack(key: str = "some-pack", **changes: object) -> CustomNode:
    source = GitCommit(repository="https://github.com/owner/some-pack", commit=COMMIT)
    made = CustomNode(id=key, source=source, version="1.0", read_from="a test", read_on="2026-11-27", nodes=("Some",))
    return replace(made, **changes)  # type: ignore[arg-type]


ARCHIVE = NodeArchive(url="https://cdn.example/a/node.zip", size=10, sha256="3c" * 32)


def manifest(*packs: CustomNode) -> Manifest:
    shipped = Path(__file__).parents[2] / "manifests" / "flux2-klein-4b.yaml"
    return replace(parse_manifest(shipped.read_text(encoding="utf-8"), file="m"), custom_nodes=packs)


def issues(*packs: CustomNode) -> str:
    with pytest.raises(ManifestError) as error:
        parse_manifest(manifest_text(manifest(*packs)), file="m")
    return "\n".join(error.value.issues)


def test_a_manifest_keeps_its_packs() -> None:
    packs = (pack(), pack("Other", source=ARCHIVE, version=None, nodes=()))
    assert parse_manifest(manifest_text(manifest(*packs)), file="m").custom_nodes == packs
    assert [each.pin for each in packs] == ["commit 1a1a1a1a1a1a", "SHA-256 3c3c3c3c3c3c"]
    assert packs[1].address == ARCHIVE.url


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/b", "a b", "con", "x.disabled", "x" * 101, "comfy-core", ".git", "a."]
)
def test_no_pack_has_a_hostile_name(name: str) -> None:
    assert complaint_about_pack(name) is not None
    assert "custom_nodes[0].id" in issues(pack(name))


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (GitCommit(repository="https://me:secret@x.example/y", commit=COMMIT), "a user name, a password or a token"),
        (GitCommit(repository="http://x.example/y", commit=COMMIT), "is http"),
        (GitCommit(repository="https://192.168.0.1/y", commit=COMMIT), "private network"),
        (GitCommit(repository="file:///etc", commit=COMMIT), "is not such an address"),
        (GitCommit(repository="https://x.example/y", commit="main"), "custom_nodes[0].commit"),
        (replace(ARCHIVE, sha256="ab"), "custom_nodes[0].sha256"),
        (replace(ARCHIVE, size=2**40), "custom_nodes[0].size"),
        (replace(ARCHIVE, url="https://x.example/a?token=b"), "a token, a signature"),
    ],
)
def test_a_pack_needs_an_address_and_a_pin(source: GitCommit | NodeArchive, complaint: str) -> None:
    said = issues(pack(source=source))
    assert complaint in said
    assert "me:" not in said


def test_two_packs_never_share_a_folder() -> None:
    assert "puts 'some-pack' and 'Some-Pack' into one folder" in issues(pack(), pack("Some-Pack"))


def test_manifests_together_need_all_their_packs_and_none_twice() -> None:
    first, second = manifest(pack()), manifest(pack(), pack("other", source=ARCHIVE))
    parts = [(each, each.sets[0]) for each in (first, second)]
    assert [each.id for each in combined(parts).custom_nodes] == ["some-pack", "other"]
    third = manifest(pack(source=ARCHIVE))
    with pytest.raises(UsageError, match=r"custom nodes some-pack of SHA-256 3c.*; a manifest before it, commit 1a"):
        combined([parts[0], (third, third.sets[0])])


# --- the plan --------------------------------------------------------------------------------------

TREE = Path("ComfyUI")


def step(key: str) -> InstallNodePack:
    return InstallNodePack(
        folder=TREE / "custom_nodes" / key, tree=TREE, pack=pack(key), environment=TREE / ".venv", reason="r"
    )


def plan_of(*steps: Step, workflow: ManifestWorkflow | None = None) -> Plan:
    made = manifest()
    return make_plan(no_steps(made, replace(made.sets[0], workflow=workflow), comfy_target()), steps)


def test_only_the_packs_that_somebody_named_are_installed() -> None:
    plan = plan_of(step("a"), step("b"), step("c"))
    asked: list[str] = []

    def ask(question: str) -> bool:
        asked.append(question)
        return "nodes b " in question

    agreed = agreed_packs(plan, frozenset({"a"}), ask)
    assert [each.pack.id for each in agreed.steps if isinstance(each, InstallNodePack)] == ["a", "b"]
    assert ["third-party code" in each and "run as you" in each for each in asked] == [True, True]
    (found,) = agreed.findings
    assert (found.code, found.severity) == ("custom-nodes-not-installed", "warning")
    assert "custom nodes c are not installed: they are third-party code" in found.message
    assert found.hint == "If you trust their author, add --custom-node c; --yes does not agree to it."
    assert agreed_packs(plan, frozenset(), None).steps == ()
    assert agreed_packs(plan, frozenset("abc"), None) is plan


def test_a_workflow_whose_packs_nobody_agreed_to_makes_no_image_unless_it_is_asked_for() -> None:
    image = GenerateImage(app="comfyui", reason="r")
    steps: tuple[Step, ...] = (step("a"), StartComfyUI(folder=TREE, reason="r"), image)
    by_recipe = plan_of(*steps)
    by_workflow = plan_of(*steps, workflow=ManifestWorkflow(name="some_template"))
    assert agreed_packs(by_recipe, frozenset(), None).steps == steps[1:]
    left = agreed_packs(by_workflow, frozenset(), None)
    assert left.steps == ()
    said = "No test image is generated: its workflow needs the custom nodes a, which are not installed."
    assert left.notes == (said,)
    assert agreed_packs(by_workflow, frozenset(), None, keeps_image=True).steps == steps[1:]
    elsewhere = replace(image, server="http://127.0.0.1:8188")
    served = plan_of(step("a"), elsewhere, workflow=ManifestWorkflow(name="some_template"))
    assert agreed_packs(served, frozenset(), None).steps == (elsewhere,)


def test_packs_wait_for_everything_they_have_to_agree_with_and_the_server_for_them() -> None:
    keep = KeepComfyUI(folder=TREE, version="0.33.0", reason="r")
    tasks = {each.name: each for each in tasks_of(plan_of(keep, step("a"), StartComfyUI(folder=TREE, reason="r")))}
    assert tasks["node-packs"].needs == {"comfyui"}
    assert tasks["server"].needs == {"comfyui", "node-packs"}


def test_the_hosts_of_a_plan_name_those_of_its_packs() -> None:
    addresses = Addresses(endpoint="https://huggingface.co", indexes=("https://pypi.org/simple",), has_git=True)
    uses = hosts_of(plan_of(step("a")), addresses, lambda _: None).uses
    assert ("github.com", "custom nodes", "always") in [(each.host, each.what, each.when) for each in uses]
    assert ("pypi.org", "packages of Python", "if-needed") in [(each.host, each.what, each.when) for each in uses]


# --- requirements ----------------------------------------------------------------------------------


def required(*rows: str) -> Any:  # noqa: ANN401 - a value of the module under test
    return pack_requirements(rows, installed={"torch": "2.13.0+cpu"}, python_version="3.12.3")


def test_requirements_that_fit_are_installed_and_the_torch_set_stays() -> None:
    found = required("torch>=2", "torchaudio", "einops>=0.8", "old; python_version < '3'")
    assert (found.lines, found.left_out, found.refusals) == (("torch>=2", "einops>=0.8"), ("torchaudio",), ())
    assert joined({"b": ("x",), "a": ("y", "x")}) == ("y", "x")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("torch==1.0", "it requires torch==1.0, and the environment has torch 2.13.0+cpu, which stays"),
        ("git+https://me:secret@x.example/y", "is an address"),
        ("y @ https://x.example/y.whl", "is an address"),
        ("./local", "is an address"),
        ("--extra-index-url https://x.example", "is an option"),
        ("-r more.txt", "is an option"),
        ("not a requirement!", "is no requirement"),
        ("x\x1b[2J", "holds characters that nobody sees"),
    ],
)
def test_requirements_that_are_refused_say_why(row: str, why: str) -> None:
    (said,) = required(row).refusals
    assert why in said
    assert "secret" not in said
    assert "\x1b" not in said


def test_a_requirements_file_has_a_bound() -> None:
    assert "more than 500 lines" in required(*["x"] * 501).refusals[0]
