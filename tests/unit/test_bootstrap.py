"""What the way in decides before it starts anything; the locked lists; the scripts that an old Python must read."""

from __future__ import annotations

import ast
import errno
import os
import re
import sys
from pathlib import Path

import pytest

from provisioner.environment.pip_settings import installer_environment, parse_pip_settings
from scripts import bootstrap, check_lock, private_environment
from scripts.private_environment import Wanted

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "uv.lock").read_text(encoding="utf-8")
LISTS = {kind: (ROOT / "scripts" / "locked" / f"{kind}.txt").read_text(encoding="utf-8") for kind in check_lock.GROUPS}


# --- which environment fits --------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    locked = tmp_path / "scripts" / "locked"
    locked.mkdir(parents=True)
    (locked / "run.txt").write_text("rich==15.0.0\n", encoding="utf-8")
    return tmp_path


def test_the_same_list_and_python_have_the_same_environment(checkout: Path) -> None:
    folder = bootstrap.environment_folder("run", str(checkout))
    assert folder == bootstrap.environment_folder("run", str(checkout))
    assert Path(folder).parent == checkout / ".klein-setup-env"


def test_a_changed_list_has_another_environment(checkout: Path) -> None:
    before = bootstrap.environment_folder("run", str(checkout))
    (checkout / "scripts" / "locked" / "run.txt").write_text("rich==15.0.1\n", encoding="utf-8")
    assert bootstrap.environment_folder("run", str(checkout)) != before


def test_another_python_has_another_environment(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bootstrap.environment_folder("run", str(checkout))
    monkeypatch.setattr(sys, "base_prefix", str(checkout / "another"))
    assert bootstrap.environment_folder("run", str(checkout)) != before


def finished(folder: Path) -> Path:
    python = folder / bootstrap.PYTHON
    python.parent.mkdir(parents=True)
    python.touch()
    (folder / bootstrap.COMPLETE).touch()
    return folder


def test_an_environment_counts_when_it_is_whole(tmp_path: Path) -> None:
    assert bootstrap.is_ready(str(finished(tmp_path / "env")))


@pytest.mark.parametrize("lost", [bootstrap.COMPLETE, bootstrap.PYTHON])
def test_an_environment_without_its_mark_or_its_python_does_not_count(tmp_path: Path, lost: str) -> None:
    folder = finished(tmp_path / "env")
    (folder / lost).unlink()
    assert not bootstrap.is_ready(str(folder))


def test_the_command_is_isolated_from_the_working_directory_and_pythonpath() -> None:
    assert bootstrap.command("/env/python", ["-m", "provisioner", "plan"])[:2] == ["/env/python", "-I"]


# --- what pip is told --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "kept"),
    [
        ("global.index-url='https://a.example/simple'", {"index-url": "https://a.example/simple"}),
        (
            "global.extra-index-url='\\nhttps://a.example\\nhttps://b.example'",
            {"extra-index-url": "https://a.example https://b.example"},
        ),
        (":env:.cert='/etc/own.pem'\nglobal.cert='/etc/other.pem'", {"cert": "/etc/own.pem"}),
        ("install.proxy='http://p:1'\nglobal.proxy='http://q:1'", {"proxy": "http://p:1"}),
        ("install.user='true'\n:env:.target='/x'\n:env:.no-deps='1'\nglobal.prefix='/y'", {}),
        ("install.require-virtualenv='1'\nglobal.no-binary=':all:'\nglobal.require-hashes='0'", {}),
        ("WARNING: something\n\nnot a setting", {}),
        ("""global.trusted-host="it's.example\"""", {"trusted-host": "it's.example"}),
    ],
)
def test_of_pips_settings_only_the_way_to_an_index_is_kept(printed: str, kept: dict[str, str]) -> None:
    assert parse_pip_settings(printed, with_indexes=True) == kept


def test_pip_settings_that_would_send_packages_elsewhere_are_dropped() -> None:
    given = {
        "HTTPS_PROXY": "http://proxy:3128",
        "PATH": "/bin",
        "PIP_NO_DEPS": "1",
        "PIP_PREFIX": "/elsewhere",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_TARGET": "/elsewhere",
        "PIP_USER": "1",
        "PYTHONHOME": "/elsewhere",
        "PYTHONPATH": "/elsewhere",
        "SSL_CERT_FILE": "/etc/own.pem",
    }
    got = installer_environment(given, {"index-url": "https://a.example/simple"}, no_file=os.devnull)
    assert got == {
        "HTTPS_PROXY": "http://proxy:3128",
        "PATH": "/bin",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_INDEX_URL": "https://a.example/simple",
        "PIP_NO_INPUT": "1",
        "PYTHONUTF8": "1",
        "SSL_CERT_FILE": "/etc/own.pem",
        "UV_NO_CONFIG": "1",
    }


def test_what_reads_the_settings_of_pip_needs_nothing_that_is_not_installed_yet() -> None:
    tree = ast.parse(Path(bootstrap.ROOT, "provisioner", "environment", "pip_settings.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("output", "status"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", 7),
        ("WARNING: Retrying ... NewConnectionError('Failed to establish a new connection')", 5),
        ("Temporary failure in name resolution", 5),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", 4),
        ("ERROR: Could not find a version that satisfies the requirement x==1 (from versions: none)", 8),
        ("", 8),
    ],
)
def test_a_failure_of_pip_has_the_status_of_its_cause(output: str, status: int) -> None:
    error = private_environment.explain_pip_failure(output)
    assert error.status == status
    assert error.hint


def test_a_password_in_an_index_address_is_not_shown() -> None:
    output = "Looking in indexes: https://me:s3cret@mirror.example/simple\nERROR: nothing"
    assert "s3cret" not in str(private_environment.explain_pip_failure(output))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_refusal_of_the_disk_has_status_4(number: int) -> None:
    error = private_environment.explain_os_error(OSError(number, os.strerror(number)), Path("checkout"))
    assert error.status == 4


# --- giving the finished environment its place -------------------------------------------------


def wanted_in(home: Path) -> Wanted:
    return Wanted(home / "env", home / "run.txt", home, Path(bootstrap.PYTHON), bootstrap.COMPLETE)


def test_a_finished_environment_takes_the_place_of_a_broken_one(tmp_path: Path) -> None:
    wanted = wanted_in(tmp_path)
    (wanted.folder / "half").mkdir(parents=True)
    private_environment.settle(finished(tmp_path / "building-1"), wanted)
    assert wanted.is_ready()
    assert not (wanted.folder / "half").exists()


def test_the_second_of_two_finished_environments_leaves_the_first(tmp_path: Path) -> None:
    wanted = wanted_in(tmp_path)
    (finished(wanted.folder) / "first").touch()
    private_environment.settle(finished(tmp_path / "building-1"), wanted)
    assert (wanted.folder / "first").exists()


def test_leavings_and_superseded_environments_go_and_those_of_another_python_stay(tmp_path: Path) -> None:
    wanted = wanted_in(tmp_path)
    finished(wanted.folder)
    (tmp_path / "building-9").mkdir()
    for name, prefix in (("older", sys.base_prefix), ("of-another-python", "/opt/another")):
        (finished(tmp_path / name) / bootstrap.COMPLETE).write_text(prefix + "\n", encoding="utf-8")
    (tmp_path / "lock").touch()
    private_environment.sweep(wanted)
    assert {path.name for path in tmp_path.iterdir()} == {"env", "of-another-python", "lock"}


# --- the locked lists --------------------------------------------------------------------------


def test_lock_lists_and_pyproject_agree() -> None:
    assert check_lock.complaints(ROOT) == []


@pytest.mark.parametrize("kind", sorted(LISTS))
def test_every_locked_package_has_a_hash_and_no_address(kind: str) -> None:
    listed = check_lock.parse_requirements(LISTS[kind])
    assert {"requests", "rich", "huggingface-hub"} <= {pinned.name for pinned in listed}
    assert all(listed.values())
    assert "://" not in LISTS[kind]


def test_only_the_tests_have_the_tools_of_the_tests() -> None:
    names = {kind: {pinned.name for pinned in check_lock.parse_requirements(text)} for kind, text in LISTS.items()}
    assert {"pytest", "mypy", "ruff", "hypothesis"} <= names["tests"] - names["run"]
    assert names["run"] <= names["tests"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rich==15.0.0", "rich==14.9.9", "rich 14.9.9 is not in uv.lock"),
        ("requests==", "requestz==", "requestz"),
    ],
)
def test_a_list_that_was_edited_by_hand_is_noticed(old: str, new: str, said: str) -> None:
    assert old in LISTS["run"]
    listed = check_lock.parse_requirements(LISTS["run"].replace(old, new, 1))
    assert said in "\n".join(check_lock.complaints_about_list("run", check_lock.parse_lock(LOCK), listed))


@pytest.mark.parametrize(
    "line",
    [
        "rich==15.0.0",
        "rich==15.0.0 --hash=sha256:12",
        "rich==15.0.0 ; python_version < '3.11' --hash=sha256:12",
        "rich>=15 --hash=sha256:" + "0" * 64,
        "rich @ https://mirror.example/rich.whl --hash=sha256:" + "0" * 64,
        "--index-url https://mirror.example/simple",
        "-r other.txt",
    ],
)
def test_a_line_that_pins_nothing_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="unexpected line"):
        check_lock.parse_requirements(line + "\n")


def test_another_hash_and_a_missing_package_are_noticed() -> None:
    entries = check_lock.parse_lock(LOCK)
    listed = check_lock.parse_requirements(LISTS["run"])
    first, second = sorted(listed)[:2]
    listed[first] = frozenset({"sha256:" + "0" * 64})
    del listed[second]
    found = "\n".join(check_lock.complaints_about_list("run", entries, listed))
    assert f"the hashes of {first.name}" in found
    assert f"{second.name} {second.version} is missing" in found


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('sdist = { url = "https://mirror.example/x.tar.gz", hash = "sha256:0" }', "https://mirror.example"),
        ('source = { registry = "file:///srv/simple" }', "file:///srv/simple"),
        ('source = { path = "/srv/wheels/x.whl" }', "path /srv/wheels/x.whl"),
    ],
)
def test_a_lock_that_names_another_place_is_refused(line: str, said: str) -> None:
    assert said in "\n".join(check_lock.complaints_about_hosts(LOCK + line + "\n"))


def test_a_dependency_that_was_not_locked_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "scripts" / "locked").mkdir(parents=True)
    for kind, text in LISTS.items():
        (tmp_path / "scripts" / "locked" / f"{kind}.txt").write_text(text, encoding="utf-8")
    for name in check_lock.INSTALLERS:
        (tmp_path / "scripts" / name).write_text(installer(name), encoding="utf-8")
    (tmp_path / "uv.lock").write_text(LOCK, encoding="utf-8")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(
        pyproject.replace('    "rich>=', '    "poor>=1",\n    "rich>='), encoding="utf-8"
    )
    assert check_lock.complaints(tmp_path) == ["pyproject.toml and uv.lock differ on poor>=1; run `uv lock`"]


def installer(name: str) -> str:
    return (ROOT / "scripts" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "kinds"), [("install.sh", 4), ("install.ps1", 2)])
def test_the_installers_name_the_wheels_of_uv_that_the_lock_has(name: str, kinds: int) -> None:
    script = installer(name)
    newer = re.sub(r"uv-0\.[0-9.]+(?=-py3)", "uv-9.8.7", LOCK)
    assert script.count("https://files.pythonhosted.org/packages/") == kinds
    assert check_lock.with_wheels_of_uv(name, script, newer).count("/uv-9.8.7-py3-none-") == kinds
    assert check_lock.with_wheels_of_uv(name, re.sub("[0-9a-f]{64}", "0", script), LOCK) == script


# --- what an old Python must be able to read ---------------------------------------------------

TOO_NEW = (ast.JoinedStr, ast.NamedExpr, ast.Match, ast.AsyncFunctionDef)


@pytest.mark.parametrize("name", ["klein_setup.py", "run_tests.py"])
def test_the_scripts_one_types_are_readable_by_any_python_3(name: str) -> None:
    tree = ast.parse((ROOT / "scripts" / name).read_text(encoding="utf-8"))
    assert [type(node).__name__ for node in ast.walk(tree) if isinstance(node, TOO_NEW)] == []
    futures = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert futures == []


def test_the_entry_refuses_before_it_imports_anything_of_ours() -> None:
    tree = ast.parse((ROOT / "scripts" / "klein_setup.py").read_text(encoding="utf-8"))
    before = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {alias.name for node in before for alias in node.names} == {"os", "sys"}


def test_a_changed_extra_is_a_stale_lock() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = re.search(r'^image = \["(.+)"\]$', project, re.M)
    assert wanted is not None
    assert wanted[1] in check_lock.declared(project) & check_lock.answered((ROOT / "uv.lock").read_text("utf-8"))
