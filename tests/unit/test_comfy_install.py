"""What is done with ComfyUI itself, and how git's errors are explained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.comfyui.checkout_models import (
    CheckoutReceipt,
    ComfyCheckout,
    ComfyPython,
    RollbackPoint,
)
from provisioner.comfyui.install_plan import (
    archive_address,
    changed_error,
    explain_git_failure,
    is_archive,
    judge_checkout,
    lacks_commit,
    local_path,
    parse_project_version,
    parse_requirements,
    parse_version_file,
    plan_checkout,
    requirements_to_install,
    too_old_for_models,
)
from provisioner.comfyui.release_models import ComfyRelease, ComfyTable, VersionBound
from provisioner.core.errors import (
    AccessError,
    CertificateError,
    CommandError,
    InsufficientSpaceError,
    KleinError,
    NotTheFileError,
    NotWritableError,
    StalledError,
    UnreachableError,
)
from provisioner.core.models import Download, Remedy

PINNED = ComfyRelease(version="0.33.0", commit="a" * 40, tree="b" * 40)
TABLE = ComfyTable(
    schema_version=1,
    repository="https://github.com/Comfy-Org/ComfyUI",
    pinned=PINNED,
    releases=(PINNED,),
    download=Download(fetched_bytes=1, disk_bytes=2),
    minimum=VersionBound(version="0.9.2", because="Klein came with it"),
    advised=VersionBound(version="0.10.0", because="small cards run out of memory before it"),
    nodes=(),
    sources=(),
)
TREE = Path("/comfy")
PYTHON = ComfyPython(path=TREE / ".venv/bin/python", origin=".venv", is_there=True)
GOOD = ComfyCheckout(
    given=TREE,
    kind="git",
    tree=TREE,
    version="0.33.0",
    commit=PINNED.commit,
    has_git=True,
    local_changes=(),
    pythons=(PYTHON,),
)
OLD = replace(GOOD, version="0.12.0", commit="c" * 40, branch="master")
OURS = CheckoutReceipt(
    version="0.33.0",
    commit=PINNED.commit,
    tree="b" * 40,
    source="https://github.com/Comfy-Org/ComfyUI",
    way="git",
    made_at="2026-11-23T06:16:12Z",
    entries=(),
    files=(),
)
HALFWAY = RollbackPoint(
    commit="c" * 40, branch="master", version="0.12.0", target=PINNED.commit, started_at="2026-11-23"
)


@pytest.mark.parametrize(
    ("checkout", "codes"),
    [
        (GOOD, []),
        (replace(GOOD, version="v0.10.0"), []),
        (replace(GOOD, version="0.9.1"), [("comfyui-too-old", "problem")]),
        (replace(GOOD, version="0.9.2"), [("comfyui-older-than-advised", "warning")]),
        (replace(GOOD, version="0.3.64-12-gabcdef0"), [("comfyui-too-old", "problem")]),
        (replace(GOOD, version=None), [("comfyui-version-unknown", "warning")]),
        (replace(GOOD, version="nightly"), [("comfyui-version-unknown", "warning")]),
        (replace(GOOD, local_changes=("nodes.py",)), []),
        (replace(GOOD, pythons=()), [("comfyui-python-not-found", "warning")]),
        (replace(GOOD, pythons=(replace(PYTHON, is_there=False),)), [("comfyui-python-broken", "warning")]),
        (replace(GOOD, pythons=(replace(PYTHON, is_there=False), PYTHON)), []),
        (replace(GOOD, rollback_point=HALFWAY), [("comfyui-update-interrupted", "problem")]),
        (replace(GOOD, rollback_point=replace(HALFWAY, is_finished=True)), []),
        (ComfyCheckout(given=TREE, kind="other"), [("comfyui-not-a-tree", "problem")]),
        (ComfyCheckout(given=TREE, kind="empty"), []),
        (ComfyCheckout(given=TREE, kind="models"), []),
        (ComfyCheckout(given=TREE, kind="base"), [("comfyui-python-not-found", "warning")]),
    ],
)
def test_a_tree_is_judged_by_what_klein_needs(checkout: ComfyCheckout, codes: list[tuple[str, str]]) -> None:
    assert [(each.code, each.severity) for each in judge_checkout(checkout, TABLE)] == codes


def test_a_tree_that_is_too_old_is_reported_with_both_versions_and_the_reason() -> None:
    (found,) = judge_checkout(replace(GOOD, version="0.8.1"), TABLE)
    assert found.message == f"{TREE} is ComfyUI 0.8.1; 0.9.2 or newer is needed: Klein came with it."


@pytest.mark.parametrize(
    ("changes", "hint", "remedy"),
    [
        ({"kind": "portable", "has_git": True}, "update_comfyui_stable.bat", "by-hand"),
        ({"kind": "source", "has_git": False}, "new folder", "by-hand"),
        ({}, "--update-comfyui", "update-comfyui"),
    ],
)
def test_how_to_update_depends_on_the_kind(changes: dict[str, object], hint: str, remedy: Remedy) -> None:
    (found,) = judge_checkout(replace(GOOD, version="0.1.0", **changes), TABLE)  # type: ignore[arg-type]
    assert hint in (found.hint or "")
    assert found.remedy == remedy


@pytest.mark.parametrize(
    ("version", "needed", "is_said"),
    [
        ("0.33.0", "0.23.0", False),
        ("0.33.0", None, False),
        (None, "0.23.0", False),
        ("0.12.0", "0.23.0", True),
        ("0.33.0", "0.37.2", True),
    ],
)
def test_a_comfyui_that_does_not_load_the_files_is_said(version: str | None, needed: str | None, is_said: bool) -> None:
    found = too_old_for_models(replace(GOOD, version=version), needed)
    assert [(each.code, each.severity, each.remedy) for each in found] == [
        ("comfyui-older-than-models", "problem", "update-comfyui")
    ] * is_said
    assert not found or found[0].message == (
        f"These models need ComfyUI {needed} or newer; {TREE}, {version}, does not load them."
    )


def test_an_interrupted_update_is_run_again() -> None:
    assert [each.remedy for each in judge_checkout(replace(GOOD, rollback_point=HALFWAY), TABLE)] == ["update-comfyui"]


@pytest.mark.parametrize(
    ("checkout", "wants_update", "action", "reason"),
    [
        (None, False, "clone", "no ComfyUI yet"),
        (ComfyCheckout(given=TREE, kind="empty"), True, "clone", "no ComfyUI yet"),
        (ComfyCheckout(given=TREE, kind="other"), False, "refuse", "is not ComfyUI"),
        (ComfyCheckout(given=TREE, kind="models"), True, "none", "only a models folder"),
        (ComfyCheckout(given=TREE, kind="base"), True, "none", "in another folder"),
        (ComfyCheckout(given=TREE, kind="models", receipt=OURS), False, "clone", "klein-setup put there, is gone"),
        (OLD, False, "none", "would update it"),
        (replace(OLD, local_changes=("nodes.py",)), False, "none", "would update it"),
        (OLD, True, "update", "from 0.12.0 to 0.33.0"),
        (replace(OLD, version=None), True, "update", "an unknown version"),
        (replace(OLD, kind="portable"), True, "update", "0.33.0"),
        (GOOD, True, "none", "0.33.0 already"),
        (replace(OLD, version="0.33.0"), True, "update", "from 0.33.0"),
        (replace(OLD, version="0.34.1"), True, "none", "newer than 0.33.0"),
        (replace(OLD, local_changes=("nodes.py", "x.py")), True, "refuse", "2 files of ComfyUI itself were changed"),
        (replace(OLD, local_changes=None), True, "refuse", "not known whether"),
        (replace(OLD, has_git=False, kind="source"), True, "refuse", "not a git checkout"),
        (replace(OLD, has_git=False, kind="source", commit=None), True, "refuse", "not a git checkout"),
        (replace(GOOD, has_git=False, kind="source", commit=None), True, "none", "says that it is 0.33.0"),
        (replace(OLD, rollback_point=HALFWAY, local_changes=("nodes.py",)), True, "update", "0.33.0"),
        (replace(GOOD, rollback_point=HALFWAY, local_changes=("nodes.py",)), True, "update", "0.33.0"),
    ],
)
def test_a_tree_is_only_moved_when_asked_and_never_over_changes(
    checkout: ComfyCheckout | None, wants_update: bool, action: str, reason: str
) -> None:
    plan = plan_checkout(checkout, TABLE, wants_update=wants_update)
    assert plan.action == action
    assert reason in plan.reason
    assert (plan.hint is not None) == (action == "refuse")


def test_a_tree_goes_back_only_where_that_very_release_was_asked_for() -> None:
    newer = replace(OLD, version="0.34.1")
    plan = plan_checkout(newer, TABLE, wants_update=True, may_go_back=True)
    assert (plan.action, plan.reason) == ("update", "from 0.34.1 to 0.33.0")
    changed = replace(newer, local_changes=("nodes.py",))
    assert plan_checkout(changed, TABLE, wants_update=True, may_go_back=True).action == "refuse"


@pytest.mark.parametrize(("paths", "known"), [(None, None), ((), False), (("nodes.py",), True)])
def test_without_git_it_is_not_known_whether_files_were_changed(
    paths: tuple[str, ...] | None, known: bool | None
) -> None:
    assert replace(GOOD, local_changes=paths).has_local_changes is known


def test_an_update_that_was_refused_names_the_changed_files_and_how_to_keep_them() -> None:
    error = changed_error("/comfy", [f"{number}.py" for number in range(9)])
    assert (
        str(error)
        == "/comfy was not updated: 9 files of ComfyUI itself were changed: 0.py, 1.py, 2.py, 3.py, 4.py and 4 more."
    )
    assert "git stash" in str(error.hint)
    assert error.context["files"] == [f"{number}.py" for number in range(9)]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('__version__ = "0.33.0"\n', "0.33.0"),
        ("# made\n__version__: str = '1.2'", "1.2"),
        ('import os\nx = "__version__ = 3"', None),
        ("__version__ = os.popen('x')", None),
        ("", None),
    ],
)
def test_the_version_file_is_read_and_not_run(text: str, version: str | None) -> None:
    assert parse_version_file(text) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('[project]\nname = "ComfyUI"\nversion = "0.3.10"\n', "0.3.10"),
        ('[tool.comfy]\nversion = "9"\n', None),
        ('version = "9"\n[project]\nname = "x"\n[other]\nversion = "8"\n', None),
    ],
)
def test_the_projects_version_is_its_own(text: str, version: str | None) -> None:
    assert parse_project_version(text) == version


def test_requirements_lose_comments_and_nothing_else() -> None:
    text = "\ufefftorch\r\n# all\r\nav>=14  # video\nx @ https://h.example/x#sha256=1\n\npydantic \\\n    ~=2.0\n"
    assert parse_requirements(text) == ("torch", "av>=14", "x @ https://h.example/x#sha256=1", "pydantic ~=2.0")


def test_what_the_torch_set_lacks_and_other_indexes_are_left_out() -> None:
    lines = [
        "torch>=2.4",
        "TorchAudio ; sys_platform != 'x'",
        "torchsde",
        "--extra-index-url https://x.example",
        "-e .",
    ]
    family = ("torch", "torchvision", "torchaudio")
    wanted, left_out = requirements_to_install(lines, family=family, present=("torch", "torchvision"))
    assert wanted == ("torch>=2.4", "torchsde")
    assert left_out == (lines[1], lines[3], lines[4])


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("https://github.com/Comfy-Org/ComfyUI", f"https://github.com/Comfy-Org/ComfyUI/archive/{'a' * 40}.zip"),
        ("https://git.example/x/ComfyUI.git/", f"https://git.example/x/ComfyUI/archive/{'a' * 40}.zip"),
        ("https://mirror.example/comfy.tar.gz", "https://mirror.example/comfy.tar.gz"),
        ("/srv/comfy.zip", "/srv/comfy.zip"),
        ("/srv/comfy.git", None),
        ("git@github.com:Comfy-Org/ComfyUI.git", None),
    ],
)
def test_the_address_of_an_archive_follows_from_the_source(source: str, address: str | None) -> None:
    assert archive_address(source, PINNED) == address
    assert is_archive(source) == source.endswith((".zip", ".tar.gz"))


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("file:///C:/comfy", "C:/comfy"),
        ("C:\\comfy", "C:\\comfy"),
        ("git@github.com:x/y", None),
        ("ssh://h.example/x", None),
        ("relative/comfy", "relative/comfy"),
    ],
)
def test_a_source_on_this_computer_is_a_path(source: str, path: str | None) -> None:
    assert local_path(source) == path


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("fatal: unable to access 'https://x.example/': Could not resolve host: x.example", UnreachableError),
        ("fatal: unable to access 'https://x.example/': Failed to connect to x.example port 443", UnreachableError),
        (
            "fatal: unable to access 'x': SSL certificate problem: self-signed certificate",
            CertificateError,
        ),
        ("fatal: unable to access 'https://x.example/': The requested URL returned error: 503", UnreachableError),
        ("error: RPC failed; curl 56 Recv failure: Connection reset by peer", UnreachableError),
        ("fatal: unable to access 'https://x.example/': Operation too slow. Less than 1000 bytes/sec", StalledError),
        ("fatal: '/nowhere' does not appear to be a git repository", UnreachableError),
        ("fatal: repository 'https://x.example/a/b/' not found", UnreachableError),
        ("fatal: could not read Username for 'https://github.com': terminal prompts disabled", AccessError),
        ("fatal: unable to access 'https://x.example/': The requested URL returned error: 403", AccessError),
        ("git@github.com: Permission denied (publickey).", AccessError),
        ("fatal: remote error: upload-pack: not our ref 1111", NotTheFileError),
        ("fatal: couldn't find remote ref refs/tags/v0.33.0", NotTheFileError),
        ("fatal: pack is corrupted (SHA1 mismatch)", NotTheFileError),
        ("fatal: write error: No space left on device", InsufficientSpaceError),
        ("error: file write error: Disk quota exceeded", InsufficientSpaceError),
        ("fatal: could not create leading directories of 'x': Permission denied", NotWritableError),
        ("error: unable to create file nodes.py: Read-only file system", NotWritableError),
        ("error: Your local changes to the following files would be overwritten by checkout", CommandError),
    ],
)
def test_gits_messages_become_helpful_errors(line: str, kind: type[KleinError]) -> None:
    error = explain_git_failure(
        ["remote: hello", line], doing="fetch ComfyUI 0.33.0", source="https://u:secret1@x.example/r?t=1", path="/comfy"
    )
    assert type(error) is kind
    assert "fetch ComfyUI 0.33.0" in str(error)
    assert error.hint
    assert "secret1" not in f"{error} {error.context}"


def test_only_a_missing_commit_is_asked_for_in_another_way() -> None:
    assert lacks_commit(["fatal: Server does not allow request for unadvertised object 1111"])
    assert lacks_commit(["fatal: dumb http transport does not support shallow capabilities"])
    assert not lacks_commit(["fatal: unable to access 'https://x.example/': Could not resolve host"])
