"""Who may have a file, what a person is told who may not, and where the token goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provisioner.commands.install import RunUi, run_install
from provisioner.commands.look import InstallOptions
from provisioner.commands.run import Options, open_run
from provisioner.commands.session import Session, Settings
from provisioner.rehearsal.faults import CutAfter, Status, WrongBytes
from provisioner.rehearsal.hub import INVALID_TOKEN
from tests.support.sandbox import MIB, REPOSITORY, REVISION, TOKEN, Sandbox, Wanted, tensors

STRANGER = "hf_" + "Stranger" + "Xy9" * 8  # shaped like a token; no account of this hub has it
NOBODY = {"HF_TOKEN": None}


# --- rejected prompts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_private", "env", "code", "says"),
    [
        (True, NOBODY, "unauthorized", "private or gated, does not exist, or the token"),
        (
            True,
            {"HF_TOKEN": STRANGER},
            "unauthorized",
            "make a read token of that account at https://huggingface.co/settings/tokens and set HF_TOKEN",
        ),
    ],
    ids=["without a token", "with a token the Hub does not know"],
)
def test_says_what_is_missing_for_a_private_repository(
    sandbox: Sandbox, is_private: bool, env: dict[str, str | None], code: str, says: str
) -> None:
    sandbox.publish(tensors(MIB), is_private=is_private)
    done = sandbox.install("--json", env=env)
    assert (done.returncode, done.codes) == (6, [code])
    assert says in done.said
    assert REPOSITORY in done.json["errors"][0]["message"]
    assert sandbox.gets() == []
    assert STRANGER not in done.said
    sandbox.assert_nothing_placed()


def test_an_account_with_access_gets_a_private_repository(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB), is_private=True, tokens=[TOKEN])
    assert sandbox.install().returncode == 0
    sandbox.assert_in_place()


@pytest.mark.parametrize(
    "env", [NOBODY, {"HF_TOKEN": TOKEN}], ids=["anonymous: 401", "an account that has not accepted: 403"]
)
def test_a_gated_repository_names_the_page_where_its_licence_is_accepted(
    sandbox: Sandbox, env: dict[str, str | None]
) -> None:
    sandbox.publish(Wanted(data=tensors(MIB), is_gated=True), is_gated=True, tokens=())
    done = sandbox.install("--json", env=env)
    assert (done.returncode, done.codes) == (6, ["gated"])
    error = done.json["errors"][0]
    assert "licence has to be accepted" in error["message"]
    assert f"https://huggingface.co/{REPOSITORY}" in error["hint"]
    assert sandbox.gets() == []
    sandbox.assert_nothing_placed()


def test_an_account_that_has_accepted_gets_a_gated_repository(sandbox: Sandbox) -> None:
    sandbox.publish(Wanted(data=tensors(MIB), is_gated=True), is_gated=True, tokens=[TOKEN])
    assert sandbox.install().returncode == 0
    sandbox.assert_in_place()


def test_a_repository_that_does_not_exist_is_named(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    entry = sandbox.files[0].artifact()
    entry["sources"] = [{"repo_id": "org/other", "revision": REVISION, "filename": "x.safetensors"}]
    sandbox.write_manifest(artifacts=[entry])
    done = sandbox.install("--json")
    assert done.returncode == 6
    assert done.codes[0] in {"repository-not-found", "unauthorized"}
    assert "org/other" in done.json["errors"][0]["message"]


def test_a_commit_that_does_not_exist_is_named(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    entry = sandbox.files[0].artifact()
    entry["sources"] = [{"repo_id": REPOSITORY, "revision": "b" * 40, "filename": sandbox.files[0].filename}]
    sandbox.write_manifest(artifacts=[entry])
    done = sandbox.install("--json")
    assert (done.returncode, done.codes) == (6, ["revision-not-found"])
    assert "b" * 40 in done.json["errors"][0]["message"]


def test_a_file_that_does_not_exist_is_named(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    entry = sandbox.files[0].artifact()
    entry["sources"] = [{"repo_id": REPOSITORY, "revision": REVISION, "filename": "gone.safetensors"}]
    sandbox.write_manifest(artifacts=[entry])
    done = sandbox.install("--json")
    assert (done.returncode, done.codes) == (6, ["entry-not-found"])
    assert "gone.safetensors" in done.json["errors"][0]["message"]


def test_a_refused_file_does_not_keep_the_others_from_arriving(sandbox: Sandbox) -> None:
    first, second = sandbox.publish(
        Wanted(data=tensors(MIB, 1), name="a.safetensors"), Wanted(data=tensors(MIB, 2), name="b.safetensors")
    )
    sandbox.hub.fault(Status(403, (("X-Error-Code", "GatedRepo"),)), on="head", filename=f"*/{first.name}")
    done = sandbox.install("--json")
    assert (done.returncode, done.codes) == (6, ["gated"])
    sandbox.assert_in_place(second)


# --- which token -----------------------------------------------------------------------------------


def test_goes_on_without_a_token_that_the_hub_does_not_accept(sandbox: Sandbox) -> None:
    sandbox.publish(
        Wanted(data=tensors(MIB, 1), name="a.safetensors"), Wanted(data=tensors(MIB, 2), name="b.safetensors")
    )
    done = sandbox.install("--verbose", env={"HF_TOKEN": STRANGER})
    assert done.returncode == 0, done.stderr
    assert "did not accept the token that is set; going on without it" in done.said
    assert [each.authorization for each in sandbox.heads()] == [f"Bearer {STRANGER}", None, None]
    assert STRANGER not in done.said
    sandbox.assert_in_place()


def test_finds_the_token_where_other_programs_keep_it(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB), is_private=True)
    sandbox.plant_token(sandbox.home / "hf" / "token")
    sandbox.plant_token(sandbox.home / "elsewhere" / "token")
    places: dict[str, dict[str, str | None]] = {
        "HF_TOKEN": {"HF_TOKEN": TOKEN, "HF_HOME": str(sandbox.home / "none")},
        "HF_API_TOKEN": {"HF_TOKEN": None, "HF_API_TOKEN": TOKEN, "HF_HOME": str(sandbox.home / "none")},
        "HF_HOME/token": {"HF_TOKEN": None},
        "HF_TOKEN_PATH": {"HF_TOKEN": None, "HF_TOKEN_PATH": str(sandbox.home / "elsewhere" / "token")},
    }
    for number, (place, env) in enumerate(places.items()):
        done = sandbox.install("--comfyui", sandbox.folder / f"tree-{number}", env=env)
        assert done.returncode == 0, f"{place}: {done.stderr}"
    assert {each.authorization for each in sandbox.heads()} == {f"Bearer {TOKEN}"}
    refused = sandbox.install(
        "--comfyui", sandbox.folder / "tree-x", env={"HF_TOKEN": None, "HF_HOME": str(sandbox.folder)}
    )
    assert refused.returncode == 6


def test_a_variable_counts_before_the_file(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    sandbox.plant_token(sandbox.home / "hf" / "token", STRANGER)
    assert sandbox.install().returncode == 0
    assert {each.authorization for each in sandbox.heads()} == {f"Bearer {TOKEN}"}


def test_no_token_is_sent_where_none_is_set(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    assert sandbox.install(env=NOBODY).returncode == 0
    assert {each.authorization for each in sandbox.hub.requests} == {None}


@pytest.mark.parametrize("way", ["--endpoint", "HF_ENDPOINT", "--yes", "--no-input"])
def test_a_token_goes_to_no_other_origin_than_the_hubs_by_itself(sandbox: Sandbox, way: str) -> None:
    sandbox.publish(tensors(MIB))
    options = ["--no-endpoint"] if way == "HF_ENDPOINT" else ["--endpoint", sandbox.hub.endpoint]
    options += [way] if way in {"--yes", "--no-input"} else []
    done = sandbox.install(*options, env={"HF_ENDPOINT": sandbox.hub.endpoint})
    assert done.returncode == 0
    assert {each.authorization for each in sandbox.hub.requests} == {None}
    assert "token of HF_TOKEN is not sent to" in done.said
    assert "--send-token" in done.said


def test_a_token_goes_to_another_origin_that_was_agreed_to(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    done = sandbox.install("--endpoint", sandbox.hub.endpoint, "--send-token")
    assert done.returncode == 0
    assert {each.authorization for each in sandbox.heads()} == {f"Bearer {TOKEN}"}
    assert "is not sent" not in done.said


@pytest.mark.parametrize(("answer", "sent"), [(True, f"Bearer {TOKEN}"), (False, None)])
def test_whoever_can_be_asked_decides_about_the_token(sandbox: Sandbox, *, answer: bool, sent: str | None) -> None:
    asked: list[str] = []

    def ask(question: str) -> bool:
        asked.append(question)
        return answer

    sandbox.publish(tensors(MIB))
    session = Session(settings=Settings(remembers=False, endpoint=sandbox.hub.endpoint), environ=sandbox.environ)
    run = open_run(session, Options(manifest=str(sandbox.manifest), comfyui=sandbox.tree))
    options = InstallOptions(parts=frozenset({"files"}))
    ui = RunUi(show_plan=lambda _: None, ask=ask, show_smoke=lambda _: None)
    assert run_install(run, options, ui).exit_status == 0
    assert len(asked) == 1
    assert "token of HF_TOKEN" in asked[0]
    assert {each.authorization for each in sandbox.heads()} == {sent}


def test_a_netrc_of_the_user_is_not_read(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    netrc = sandbox.home / ".netrc"
    netrc.write_text("machine 127.0.0.1 login person password secret-of-a-person\n", encoding="utf-8")
    netrc.chmod(0o600)
    assert sandbox.install(env=NOBODY).returncode == 0
    assert {each.authorization for each in sandbox.hub.requests} == {None}


# --- what is never shown -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "output", [("--verbose",), ("--json",), ("--json=events", "--verbose")], ids=lambda each: " ".join(each)
)
def test_token_never_appears(sandbox: Sandbox, output: tuple[str, ...]) -> None:
    """`Sandbox.check` looks for it, and for signatures, after each of these runs."""
    odd = "token-without-the-usual-shape"
    sandbox.publish(tensors(MIB), tokens=[TOKEN, odd])
    sandbox.hub.fault(CutAfter(0.5))
    sandbox.hub.fault(Status(403))
    sandbox.hub.fault(Status(503), on="head")
    good = sandbox.install(*output)
    assert good.returncode == 0, good.stderr
    shown = {each.authorization for each in sandbox.heads()}
    assert shown == {f"Bearer {TOKEN}"}
    sandbox.hub.fault(WrongBytes(), times=None)
    runs = [
        sandbox.install(*output, "--comfyui", sandbox.folder / "other", env={"HF_TOKEN": odd}),
        sandbox.install(*output, f"--token={TOKEN}"),
        sandbox.install(*output, "--manifest", f"{TOKEN}.yaml"),
    ]
    assert [each.returncode for each in runs] == [7, 2, 2]
    assert odd not in runs[0].stdout + runs[0].stderr
    for path in (*sandbox.tree.rglob("*.json*"), *sandbox.home.rglob("*")):
        assert not path.is_file() or odd.encode() not in path.read_bytes()


def test_the_receipt_names_the_source_without_its_signature(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(MIB))
    assert sandbox.install().returncode == 0
    source = sandbox.receipt()[f"vae/{wanted.name}"]["source"]
    host = sandbox.hub.endpoint.removeprefix("http://")
    assert source == f"{host}/{REPOSITORY}@{REVISION[:12]}/{wanted.filename}"


def test_the_hub_in_these_tests_refuses_an_invalid_token_as_the_real_one_does(sandbox: Sandbox) -> None:
    import urllib.error
    import urllib.request

    sandbox.publish(tensors(MIB))
    address = f"{sandbox.hub.endpoint}/{REPOSITORY}/resolve/{REVISION}/{sandbox.files[0].filename}"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {STRANGER}"}, method="GET")
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=5)
    with refusal.value as answer:
        assert answer.code == 401
        assert INVALID_TOKEN in json.loads(answer.read())["error"]


def test_a_token_file_that_cannot_be_read_is_no_token(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    path: Path = sandbox.home / "hf" / "token"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe\x00not utf-8")
    assert sandbox.install(env=NOBODY).returncode == 0
    assert {each.authorization for each in sandbox.hub.requests} == {None}
