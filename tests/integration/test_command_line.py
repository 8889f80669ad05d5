"""The command as a person or a program calls it: documents, events, questions, options, terminals that are none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner.rehearsal.faults import CutAfter, Status, WrongBytes
from tests.support.sandbox import MIB, ROOT, TOKEN, Completed, Sandbox, Wanted, tensors
from tests.support.wine import skip_without

SIZE = 2 * MIB
LARGE = 37 * MIB


# --- documents ---------------------------------------------------------------------------------------


def unknown_option(sandbox: Sandbox) -> Completed:
    return sandbox.install("--json", "--no-such-option")


def bad_value(sandbox: Sandbox) -> Completed:
    return sandbox.install("--connections", "many", "--json")


def bad_manifest(sandbox: Sandbox) -> Completed:
    sandbox.write_manifest(schema_version=99)
    return sandbox.install("--json")


def missing_manifest(sandbox: Sandbox) -> Completed:
    return sandbox.install("--json", "--manifest", "there/is/none.yaml")


def no_network(sandbox: Sandbox) -> Completed:
    sandbox.hub.fault(Status(429, (("Retry-After", "9999"),)), on="head", times=None)
    return sandbox.install("--json")


def no_access(sandbox: Sandbox) -> Completed:
    sandbox.hub.fault(Status(403, (("X-Error-Code", "GatedRepo"),)), on="head", times=None)
    return sandbox.install("--json")


def wrong_bytes(sandbox: Sandbox) -> Completed:
    sandbox.hub.fault(WrongBytes(), times=None)
    return sandbox.install("--json")


def a_question(sandbox: Sandbox) -> Completed:
    return sandbox.install("--json", "--no-target")


def findings(sandbox: Sandbox) -> Completed:
    sandbox.tree.mkdir(parents=True)
    return sandbox.run("verify", "--json")


def no_folder(sandbox: Sandbox) -> Completed:
    return sandbox.run("verify", "--json")


@pytest.mark.parametrize(
    ("go_wrong", "status"),
    [
        (findings, 1),
        (no_folder, 2),
        (unknown_option, 2),
        (bad_value, 2),
        (bad_manifest, 2),
        (missing_manifest, 2),
        (a_question, 2),
        (no_network, 5),
        (no_access, 6),
        (wrong_bytes, 7),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_json_is_one_document_when_it_fails(
    sandbox: Sandbox, go_wrong: Callable[[Sandbox], Completed], status: int
) -> None:
    sandbox.publish(tensors(SIZE))
    done = go_wrong(sandbox)
    document = done.json  # raises if stdout holds anything else
    assert (done.returncode, document["exit_status"]) == (status, status)
    assert document["command"] in {"install", "verify"}
    assert len(document["errors"]) == (0 if status == 1 else 1)
    for error in document["errors"]:
        assert set(error) == {"code", "message", "hint", "exit_status", "context"}
        assert error["exit_status"] == status
        assert error["hint"]


def test_json_is_the_same_document_when_it_succeeds(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    done = sandbox.install("--json")
    assert (done.json["status"], done.json["exit_status"], done.json["errors"]) == ("ok", 0, [])
    assert done.json["totals"]["size"] == SIZE
    (step,) = done.json["steps"]
    assert step["outcome"]["bytes_fetched"] == SIZE
    (check,) = done.json["checks"]
    assert (check["status"], check["observed_sha256"]) == ("ok", wanted.sha256)


def test_json_says_the_same_of_every_command(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    for arguments in (["plan"], ["install"], ["verify"], ["verify", "--quick"], ["repair"], ["detect"]):
        done = sandbox.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        assert done.json["command"] == arguments[0]
        assert done.json["started_at"] <= done.json["ended_at"]
        assert 0 < done.json["seconds"] < done.seconds
        assert bool(done.json["machine"]) == (arguments in (["verify"], ["detect"])), arguments


def test_events_are_lines_and_the_document_is_the_last(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(LARGE))
    sandbox.hub.fault(CutAfter(0.5))
    sandbox.hub.rate_bytes_s_per_connection = 30 * MIB
    done = sandbox.install("--json=events")
    assert done.returncode == 0, done.stderr
    *events, report = done.lines
    assert all("event" in each for each in (*events, report))
    assert report["event"] == "report"
    times = [each["time"] for each in (*events, report)]
    assert times == sorted(times)
    assert {each["host"] for each in events} == {report["host"]}
    kinds = [each["event"] for each in events]
    assert kinds.count("step-started") == kinds.count("step-finished") == 1
    moved = [each for each in events if each["event"] == "file-progress"]
    assert {each["label"] for each in moved} == {f"vae/{wanted.name}"}
    assert {each["size"] for each in moved} == {LARGE}
    on_disk = [each["bytes_on_disk"] for each in moved if each["phase"] == "fetching"]
    assert on_disk == sorted(on_disk)
    assert done.stderr == ""


def test_events_of_a_failure_end_with_its_document(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    sandbox.hub.fault(WrongBytes(), times=None)
    done = sandbox.install("--json=events")
    assert done.returncode == 7
    assert done.lines[-1]["errors"][0]["code"] == "hash-mismatch"


# --- questions ---------------------------------------------------------------------------------------


def test_a_folder_nobody_named_is_an_error_without_a_terminal(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    done = sandbox.install("--no-target")
    assert done.returncode == 2
    assert "this is no terminal" in done.said
    assert "--yes" in done.said
    assert sandbox.hub.requests == ()
    assert [path for path in sandbox.home.rglob("*.safetensors*")] == []


def test_a_new_folder_is_made_where_the_plan_says_when_yes_was_given(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    done = sandbox.install("--no-target", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    models = Path(done.json["target"]["path"])
    assert sandbox.home in models.parents
    assert (models / "vae" / wanted.name).stat().st_size == SIZE


def test_the_tree_of_the_last_run_is_the_default_of_the_next(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    assert sandbox.install().returncode == 0
    asked = len(sandbox.hub.requests)
    done = sandbox.install("--no-target", "--json")
    assert done.returncode == 0, done.stderr
    assert done.json["target"]["path"] == str(sandbox.tree / "models")
    assert len(sandbox.hub.requests) == asked


def test_a_licence_that_forbids_commercial_use_has_to_be_accepted(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    sandbox.write_manifest(
        licence={
            "id": "no-trade",
            "name": "Non-Commercial",
            "url": "https://example.org/licence",
            "is_commercial_use_allowed": False,
            "notice": "Only for research.",
        }
    )
    done = sandbox.install("--json")
    assert (done.returncode, done.codes) == (2, ["answer-needed"])
    assert "Only for research." in done.json["errors"][0]["message"]
    for words in (("--yes",), ("--yes", "--accept-licence", "no-trad")):
        done = sandbox.install("--json", *words)
        assert (done.returncode, done.codes) == (2, ["answer-needed"])
        assert done.json["errors"][0]["hint"] == (
            "Read it at https://example.org/licence; if you accept it, add --accept-licence no-trade. "
            "Else use another manifest."
        )
    assert "--yes does not, and --accept-licence no-trad names another one." in done.json["errors"][0]["message"]
    assert sandbox.hub.requests == ()
    assert sandbox.install("--accept-licence", "no-trade").returncode == 0
    sandbox.assert_in_place()


# --- options -----------------------------------------------------------------------------------------


def test_offline_lists_what_is_missing_and_asks_nothing(sandbox: Sandbox) -> None:
    first, second = sandbox.publish(
        Wanted(data=tensors(SIZE, 1), name="a.safetensors"), Wanted(data=tensors(SIZE, 2), name="b.safetensors")
    )
    for arguments, env in ((["--offline"], {}), ([], {"HF_HUB_OFFLINE": "1"})):
        done = sandbox.install("--json", *arguments, env=env)
        assert (done.returncode, done.codes) == (5, ["offline"])
        assert first.name in done.json["errors"][0]["message"]
        assert second.name in done.json["errors"][0]["message"]
    assert sandbox.hub.requests == ()
    assert sandbox.install().returncode == 0
    assert sandbox.install("--offline").returncode == 0  # nothing is missing any more


def test_limit_rate_holds(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(LARGE))
    done = sandbox.install("--limit-rate", "16MiB", "--json=events")
    assert done.returncode == 0, done.stderr
    fetching = [each["bytes_received"] for each in done.lines if each["event"] == "file-progress"]
    assert max(fetching) == LARGE
    asked = [each.at for each in sandbox.gets()]
    sandbox.hub.wait_until_idle()
    seconds = done.lines[-1]["steps"][0]["outcome"]["seconds"]
    assert 0.9 * LARGE / (16 * MIB) < seconds < 8 * LARGE / (16 * MIB)
    assert len(asked) == 3


def test_a_very_low_limit_holds_too(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(64 * 1024))
    done = sandbox.install("--limit-rate", "32k", "--json")
    assert done.returncode == 0, done.stderr
    assert 1.6 < done.json["steps"][0]["outcome"]["seconds"] < 20


@pytest.mark.parametrize(("given", "most"), [("1", 1), ("2", 2)])
def test_holds_no_more_connections_than_allowed(sandbox: Sandbox, given: str, most: int) -> None:
    sandbox.publish(tensors(LARGE))
    sandbox.hub.rate_bytes_s_per_connection = 30 * MIB
    done = sandbox.install("--connections", given, "--json=events")
    assert done.returncode == 0, done.stderr
    held = [each["connections"] for each in done.lines if each["event"] == "file-progress"]
    assert max(held) == most


def test_grows_connections_while_they_pay(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(6 * 16 * MIB))
    sandbox.hub.rate_bytes_s_per_connection = 10 * MIB
    done = sandbox.install("--json=events")
    assert done.returncode == 0, done.stderr
    held = [each["connections"] for each in done.lines if each["event"] == "file-progress"]
    assert max(held) > 2
    sandbox.assert_in_place()


WRONG: dict[str, tuple[list[str], str]] = {
    "an option that does not exist": (["install", "--frobnicate"], "--frobnicate"),
    "an abbreviated option": (["install", "--off"], "--off"),
    "a command that does not exist": (["unpack"], "unpack"),
    "a set that does not exist": (["install", "--set", "fp3"], "fp3"),
    "a manifest that does not exist": (["install", "--manifest", "flux2-klein-4c"], "Did you mean flux2-klein-4b?"),
    "a part that does not exist": (["install", "--only", "everything"], "everything"),
    "a rate that is none": (["install", "--limit-rate", "fast"], "fast"),
    "no connections at all": (["install", "--connections", "0"], "1 to 32"),
    "an endpoint that is no address": (["install", "--endpoint", "ftp://host"], "ftp://host"),
    "an endpoint with a password": (
        ["plan", "--endpoint", "https://me:secret9@host"],
        "a user name or a password",
    ),
    "an index that is not encrypted": (
        ["install", "--torch-index", "http://me:secret9@mirror.example/whl"],
        "https://",
    ),
    "an index with a password": (["plan", "--torch-index", "https://me:secret9@mirror.example/whl"], "netrc"),
    "two targets": (["install", "--comfyui", "a", "--hf-cache", "b"], "two targets"),
    "a set for another kind of target": (["install", "--hf-cache", "b", "--set", "tree"], "tree"),
    "a time that is none": (["install", "--stall-timeout", "-1"], "-1"),
    "a kind of JSON that does not exist": (["install", "--json=xml"], "xml"),
    "a folder that is no ComfyUI tree": (["install", "--comfyui", str(ROOT / "scripts")], "is not a ComfyUI tree"),
    "a file where a tree is meant": (["install", "--comfyui", str(ROOT / "pyproject.toml")], "is not a folder"),
}


@pytest.fixture(scope="module")
def complained(make_sandbox: Callable[[], Sandbox]) -> tuple[Sandbox, dict[str, Completed]]:
    """Run what makes no sense."""
    sandbox = make_sandbox()
    sandbox.publish(tensors(SIZE))
    return sandbox, dict(zip(WRONG, sandbox.run_each([arguments for arguments, _ in WRONG.values()]), strict=True))


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_sense_is_named_with_a_way_out(
    name: str, complained: tuple[Sandbox, dict[str, Completed]]
) -> None:
    if name == "a file where a tree is meant":
        skip_without("no folder")
    says = WRONG[name][1]
    sandbox, ended = complained
    done = ended[name]
    assert done.returncode == 2, done.stderr
    assert says in done.said
    assert "error:" in done.stderr
    assert "hint:" in done.stderr
    assert "Plan " not in done.said
    assert "secret9" not in done.said
    assert sandbox.hub.requests == ()


def test_install_is_what_happens_without_a_command(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    done = sandbox.run("--manifest", sandbox.manifest, "--comfyui", sandbox.tree, "--endpoint", sandbox.hub.endpoint)
    assert done.returncode == 0, done.stderr
    sandbox.assert_in_place()


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_needs_nothing(sandbox: Sandbox, option: str) -> None:
    done = sandbox.run(option)
    assert (done.returncode, done.stderr) == (0, "")
    assert "klein-setup" in done.stdout


# --- places where the output goes --------------------------------------------------------------------

POOR: dict[str, dict[str, str]] = {
    "LANG=C": {"LANG": "C"},
    "a locale that is really ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "PYTHONIOENCODING=ascii": {"PYTHONIOENCODING": "ascii"},
    "PYTHONIOENCODING=cp1252": {"PYTHONIOENCODING": "cp1252"},
    "a terminal of three columns": {"COLUMNS": "3"},
}


@pytest.mark.parametrize("env", POOR.values(), ids=POOR.keys())
def test_a_poor_encoding_stops_nothing(sandbox: Sandbox, env: dict[str, str]) -> None:
    sandbox.publish(tensors(SIZE))
    sandbox.tree = sandbox.folder / "Mod\u00e8les \u6a21\u578b" / "ComfyUI"
    sandbox.hub.fault(CutAfter(0.5))
    done = sandbox.install("--verbose", env=env)
    assert done.returncode == 0, done.stderr
    sandbox.assert_in_place()
    document = sandbox.install("--json", env=env).json
    # Where the locale is ASCII, Python spells what it cannot name in half characters; the bytes are the same.
    assert os.fsencode(document["target"]["path"]) == os.fsencode(sandbox.tree / "models")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise there")
@pytest.mark.parametrize("closed", ["stdout", "stderr", "both"])
def test_output_to_a_closed_pipe_leaves_no_trace_and_stops_no_download(sandbox: Sandbox, closed: str) -> None:
    sandbox.publish(tensors(SIZE))
    reader, writer = os.pipe()
    os.close(reader)
    other = sandbox.folder / "other.txt"
    command: list[str | Path] = [sys.executable, "-m", "provisioner", "install", "--verbose"]
    command += ["--manifest", sandbox.manifest, "--comfyui", sandbox.tree, "--endpoint", sandbox.hub.endpoint]
    with other.open("wb") as stream:
        kept = stream.fileno()
        targets = {"stdout": (writer, kept), "stderr": (kept, writer), "both": (writer, writer)}[closed]
        done = subprocess.run(
            command,
            env=sandbox.environ,
            cwd=sandbox.folder,
            stdin=subprocess.DEVNULL,
            stdout=targets[0],
            stderr=targets[1],
            timeout=60,
            check=False,
        )
    os.close(writer)
    said = other.read_text(encoding="utf-8")
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
    assert "Exception ignored" not in said
    assert TOKEN not in said
    assert done.returncode == 0, said
    sandbox.assert_in_place()


@pytest.mark.skipif(sys.platform == "win32", reason="file descriptors are a POSIX matter")
def test_a_program_without_streams_does_its_work(sandbox: Sandbox) -> None:
    """As a service manager or a desktop starts it: standard streams closed altogether."""
    sandbox.publish(tensors(SIZE))
    command = [sys.executable, "-m", "provisioner", "install", "--manifest", str(sandbox.manifest)]
    command += ["--comfyui", str(sandbox.tree), "--endpoint", sandbox.hub.endpoint]
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
    done = subprocess.run(shell, env=sandbox.environ, cwd=sandbox.folder, timeout=60, check=False)
    assert done.returncode == 0
    sandbox.assert_in_place()


def test_colours_stay_away_from_files(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    done = sandbox.install("--verbose")
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


def test_quiet_says_only_the_result_and_errors(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    done = sandbox.install("--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) <= 3
    failed = sandbox.install("--quiet", "--set", "none")
    assert failed.returncode == 2
    assert "error:" in failed.stderr


# --- hostile manifests -------------------------------------------------------------------------------


def entry_with(sandbox: Sandbox, **changes: object) -> None:
    sandbox.write_manifest(artifacts=[sandbox.files[0].artifact() | changes])


HOSTILE: dict[str, tuple[Callable[[Sandbox], object], str]] = {
    "a gigabyte of nothing": (lambda sandbox: os.truncate(sandbox.manifest, 1024 * MIB), "is longer than"),
    "a key given twice": (
        lambda sandbox: sandbox.manifest.write_text('{"schema_version": 1, "id": "a", "id": "b"}', encoding="utf-8"),
        "id",
    ),
    "a folder that climbs": (lambda sandbox: entry_with(sandbox, folder="../../etc"), "folder"),
    "a name that climbs": (lambda sandbox: entry_with(sandbox, name="../passwd.safetensors"), "name"),
    "an absolute name": (lambda sandbox: entry_with(sandbox, name="/etc/passwd"), "name"),
    "a name Windows reserves": (lambda sandbox: entry_with(sandbox, name="NUL.safetensors"), "name"),
    "a stream of another file": (lambda sandbox: entry_with(sandbox, name="a.safetensors:b"), "name"),
    "a branch as revision": (
        lambda sandbox: entry_with(sandbox, sources=[{"repo_id": "a/b", "revision": "main", "filename": "c"}]),
        "revision",
    ),
    "a repository that climbs": (
        lambda sandbox: entry_with(sandbox, sources=[{"repo_id": "../b", "revision": "0" * 40, "filename": "c"}]),
        "repo_id",
    ),
    "a source without encryption": (
        lambda sandbox: entry_with(sandbox, sources=[{"url": "http://example.org/x.safetensors"}]),
        "https",
    ),
    "a size below zero": (lambda sandbox: entry_with(sandbox, size=-1), "size"),
    "a digest that is none": (lambda sandbox: entry_with(sandbox, sha256="abc"), "sha256"),
    "a billion laughs": (
        lambda sandbox: sandbox.manifest.write_text(
            "a: &a [x, x]\n"
            + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
            encoding="utf-8",
        ),
        "small.yaml",
    ),
    "a call to Python": (
        lambda sandbox: sandbox.manifest.write_text("id: !!python/object/apply:os.system ['touch owned']\n", "utf-8"),
        "small.yaml",
    ),
    "brackets a thousand deep": (
        lambda sandbox: sandbox.manifest.write_text("[" * 5000, encoding="utf-8"),
        "small.yaml",
    ),
    "bytes that are no text": (lambda sandbox: sandbox.manifest.write_bytes(b"\xff\xfe\x00\x01"), "UTF-8"),
    "nothing at all": (lambda sandbox: sandbox.manifest.write_bytes(b""), "small.yaml"),
}


@pytest.fixture(scope="module")
def suspected(make_sandbox: Callable[[], Sandbox]) -> tuple[Sandbox, dict[str, Completed]]:
    """Run with hostile manifests."""
    sandbox = make_sandbox()
    sandbox.publish(tensors(SIZE))
    given = []
    for number, (write, _) in enumerate(HOSTILE.values()):
        write(sandbox)
        folder = sandbox.folder / str(number)
        folder.mkdir()
        given.append(sandbox.manifest.replace(folder / sandbox.manifest.name))
        sandbox.write_manifest()
    runs = sandbox.run_each([("install", "--json", "--manifest", path) for path in given])
    return sandbox, dict(zip(HOSTILE, runs, strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused_with_its_reason(
    name: str, suspected: tuple[Sandbox, dict[str, Completed]]
) -> None:
    says = HOSTILE[name][1]
    sandbox, ended = suspected
    done = ended[name]
    assert (done.returncode, done.codes) == (2, ["manifest-invalid"]), done.stderr
    assert says in json.dumps(done.json["errors"])
    assert done.seconds < 40  # 2 s where nothing else runs; what multiplies itself would take for ever
    assert sandbox.hub.requests == ()
    assert not (sandbox.folder / "owned").exists()
    assert not sandbox.tree.exists()


def test_a_quick_look_brings_in_nothing_heavy(sandbox: Sandbox) -> None:
    sandbox.publish(bytes(3_000_000))
    assert sandbox.install().returncode == 0
    done = sandbox.run("verify", "--quick", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "provisioner.files.observe" in imported
    heavy = {"requests", "huggingface_hub", "rich", "logging", "packaging", "psutil", "filelock"}
    assert not imported & heavy, sorted(imported)


# --- the user's own defaults ---------------------------------------------------------------------------


def write_config(sandbox: Sandbox, text: str) -> Path:
    """Write the user's klein-setup.toml where this system has it; return its path."""
    folder = {"linux": "config", "darwin": "Library/Application Support", "win32": "local"}[sys.platform]
    file = sandbox.home / folder / "klein-setup" / "klein-setup.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_the_users_file_sets_defaults_and_detect_shows_them(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    empty = sandbox.run("detect", "--json").json["details"]["config"]
    other = sandbox.folder / "Other"
    file = write_config(sandbox, f"comfyui = '{other.as_posix()}'\nconnections = 3\n")
    assert empty == {"file": str(file), "settings": {}}
    shown = sandbox.run("detect", "--json").json["details"]["config"]
    assert shown == {"file": str(file), "settings": {"comfyui": other.as_posix(), "connections": 3}}
    assert f"comfyui {other.as_posix()} connections 3" in sandbox.run("detect").said
    done = sandbox.install("--no-target", "--json")
    assert (done.returncode, done.json["target"]["path"]) == (0, str(other / "models"))
    assert sandbox.install("--json").json["target"]["path"] == str(sandbox.tree / "models")  # the command line wins


def test_a_users_file_that_is_wrong_stops_every_command_but_those_that_help(sandbox: Sandbox) -> None:
    file = write_config(sandbox, "\nconections = 3\n")
    done = sandbox.run("detect", "--json")
    assert (done.returncode, done.codes) == (2, ["usage"])
    error = done.json["errors"][0]
    assert error["message"].startswith(f"{file}:2: conections is not a setting. Did you mean connections?")
    assert error["context"] == {"file": str(file), "line": 2, "key": "conections"}
    assert sandbox.run("detect", "--help").returncode == 0
    assert sandbox.run("completion", "bash").returncode == 0
    looked = sandbox.run("doctor", "--json")  # it is for what does not work
    assert looked.returncode == 0
    left_out = {each["name"]: each["reason"] for each in looked.json["details"]["bundle"]["left_out"]}
    assert left_out["klein-setup.toml"].startswith(("~/", "~\\"))  # without the user's name
    assert f"{file.name}:2: conections is not a setting." in left_out["klein-setup.toml"]
