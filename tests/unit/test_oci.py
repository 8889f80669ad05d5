"""References to OCI registries, logins in Docker's configuration, and who is asked for a file first."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.core.errors import OfflineError
from provisioner.core.models import (
    Damage,
    FetchFile,
    FilesPlan,
    HubBlob,
    OciFile,
    OciRepository,
    PatchFile,
    Registry,
    UrlFile,
    Variant,
)
from provisioner.files.offers import offers_of, sources_of
from provisioner.files.planner import check_offline
from provisioner.oci.docker_config import Helper, Login, login_for, parse_answer, passwords_of, saved_login
from provisioner.oci.logins import DockerLogins
from provisioner.oci.reference import parse_reference, parse_repository
from provisioner.report.json_document import document
from provisioner.report.outcome import Report
from provisioner.report.web_addresses import source_page
from provisioner.ui.tables import plan_blocks
from provisioner.ui.text import laid_out
from tests.support.builders import artifact, artifact_set, check, comfy_file, comfy_target, hub_file, manifest, whole

SHA = "ab" * 32
HUB = hub_file()
AT = parse_repository("registry.lab:5000/models")

# --- references ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "base", "name", "tag", "digest"),
    [
        ("oci://registry.lab/klein:v1", "https://registry.lab", "klein", "v1", None),
        (f"oci://registry.lab:5000/a/b-c@sha256:{SHA}", "https://registry.lab:5000", "a/b-c", None, SHA),
        (f"oci://R.lab/a__b.c:V_1.x@sha256:{SHA}", "https://r.lab", "a__b.c", "V_1.x", SHA),
        ("oci://localhost:5000/x:latest", "http://localhost:5000", "x", "latest", None),
        ("oci://127.0.0.1/x:1", "http://127.0.0.1", "x", "1", None),
        ("oci://[::1]:5000/x:1", "http://[::1]:5000", "x", "1", None),
        ("oci://[fd00::1]/x:1", "https://[fd00::1]", "x", "1", None),
        ("oci://docker.io/somebody/x:1", "https://registry-1.docker.io", "somebody/x", "1", None),
    ],
)
def test_a_reference_is_read_whole_and_written_as_it_was(
    text: str, base: str, name: str, tag: str | None, digest: str | None
) -> None:
    found = parse_reference(text)
    assert found == OciFile(repository=OciRepository(base=base, name=name), tag=tag, digest=digest)
    assert parse_reference(str(found)) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("registry.lab/klein:v1", "does not begin with oci://"),
        ("https://registry.lab/klein:v1", "does not begin with oci://"),
        ("oci://registry.lab", "names no repository"),
        ("oci://registry.lab/:v1", "has no valid repository name"),
        ("oci://registry.lab/klein", "names neither a tag nor a digest"),
        ("oci://registry.lab/Klein:v1", "has no valid repository name"),
        ("oci://registry.lab/a//b:v1", "has no valid repository name"),
        ("oci://registry.lab/../b:v1", "has no valid repository name"),
        ("oci://registry.lab/a%2Fb:v1", "has no valid repository name"),
        (f"oci://registry.lab/{'a' * 256}:v1", "has no valid repository name"),
        ("oci://registry.lab/klein:", "has no valid tag"),
        ("oci://registry.lab/klein:-v", "has no valid tag"),
        (f"oci://registry.lab/klein:{'v' * 129}", "has no valid tag"),
        ("oci://registry.lab/klein:a:b", "has no valid tag"),
        ("oci://registry.lab/klein@", "has no digest"),
        ("oci://registry.lab/klein@sha256:12", "has no digest"),
        (f"oci://registry.lab/klein@sha256:{SHA.upper()}", "has no digest"),
        (f"oci://registry.lab/klein@sha512:{SHA}{SHA}", "has no digest"),
        (f"oci://registry.lab/klein@sha256:{SHA}@sha256:{SHA}", "has no digest"),
        ("oci:///klein:v1", "has no valid host"),
        ("oci://registry.lab:port/klein:v1", "has no valid host"),
        ("oci://registry.lab:0/klein:v1", "has no valid host"),
        ("oci://registry.lab:70000/klein:v1", "has no valid host"),
        ("oci://-registry/klein:v1", "has no valid host"),
        ("oci://regi stry/klein:v1", "has a space"),
        ("oci://registry.lab/klein:v1\n", "has a space"),
        ("oci://exämple.lab/klein:v1", "another character that no address has"),
        ("oci://registry.lab/" + "a/" * 600 + "b:v1", "is longer than"),
        ("oci://me:secret@registry.lab/klein:v1", "holds a user name or a password"),
    ],
)
def test_a_reference_that_is_none_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_reference(text)


@pytest.mark.parametrize(
    ("text", "base", "name", "layout"),
    [
        ("registry.lab:5000/models", "https://registry.lab:5000", "models", None),
        ("oci://registry.lab/models/klein", "https://registry.lab", "models/klein", None),
        ("localhost:5000/models", "http://localhost:5000", "models", None),
        ("http://registry.lab:5000/models", "http://registry.lab:5000", "models", "http://registry.lab:5000/models"),
        ("HTTPS://Mirror.lab/Bundle%201/", "https://mirror.lab", "", "https://mirror.lab/Bundle%201"),
        ("http://mirror.lab", "http://mirror.lab", "", "http://mirror.lab"),
    ],
)
def test_where_a_registry_is_named_by_a_repository_or_a_web_address(
    text: str, base: str, name: str, layout: str | None
) -> None:
    assert parse_repository(text) == OciRepository(base=base, name=name, layout=layout, is_named_by_user=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models", "names no repository after the registry"),
        ("ftp://registry.lab/models", "does not begin with oci://"),
        ("registry.lab/models:v1", "names a tag or a digest"),
        (f"registry.lab/models@sha256:{SHA}", "names a tag or a digest"),
        ("registry.lab/Models", "has no valid repository name"),
        ("http://registry.lab/models?x=1", "is no address"),
        ("http:///models", "is no address"),
        ("me:secret@registry.lab/models", "holds a user name or a password"),
        ("https://me:secret@registry.lab/models", "holds a user name or a password"),
    ],
)
def test_an_address_that_is_none_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_repository(text)


def test_random_text_is_read_or_refused_and_nothing_else() -> None:
    dice = random.Random(5)
    letters = "oci:/@sha256:ab.-_%[]:0 \n\x00é"
    for _ in range(3000):
        text = "oci://" * dice.randrange(2) + "".join(dice.choices(letters, k=dice.randrange(40)))
        for parse in (parse_reference, parse_repository):
            with contextlib.suppress(ValueError):
                assert str(parse(text))


# --- logins ------------------------------------------------------------------------------------------


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, None),
        ({"auths": {"registry.lab": {"auth": basic("me", "a:b")}}}, Login("me", "a:b")),
        ({"auths": {"https://registry.lab/v2/": {"auth": basic("me", "pw")}}}, Login("me", "pw")),
        ({"auths": {"registry.lab": {"username": "me", "password": "pw"}}}, Login("me", "pw")),
        ({"auths": {"registry.lab:5000": {"auth": basic("me", "pw")}}}, None),  # another port is another registry
        ({"auths": {"registry.lab.example": {"auth": basic("me", "pw")}}}, None),
        ({"auths": {"registry.lab": {}}}, None),
        ({"auths": {"registry.lab": {"auth": "no base64!"}}}, None),
        ({"auths": {"registry.lab": {"auth": base64.b64encode(b"nobody").decode()}}}, None),
        ({"auths": {"registry.lab": {"auth": base64.b64encode(b"\xff:\xfe").decode()}}}, None),
        ({"auths": {"registry.lab": "text"}}, None),
        ({"auths": ["registry.lab"]}, None),
        ({"credsStore": "pass", "auths": {"registry.lab": {}}}, Helper("docker-credential-pass", "registry.lab")),
        (
            {"credsStore": "pass", "credHelpers": {"registry.lab": "ecr"}},
            Helper("docker-credential-ecr", "registry.lab"),
        ),
        ({"credsStore": "../../bin/sh"}, None),  # a name, and no path
        ({"credsStore": 5}, None),
    ],
)
def test_a_login_is_found_as_dockers_own_client_finds_it(
    config: dict[str, object], found: Login | Helper | None
) -> None:
    assert login_for(config, "registry.lab") == found


def test_docker_hub_is_known_by_its_old_name() -> None:
    config = {"auths": {"https://index.docker.io/v1/": {"auth": basic("me", "pw")}}}
    assert saved_login(config, "registry-1.docker.io") == Login("me", "pw")
    helper = login_for({"credsStore": "x"}, "registry-1.docker.io")
    assert helper == Helper("docker-credential-x", "https://index.docker.io/v1/")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"Username": "me", "Secret": "pw"}', Login("me", "pw")),
        ('{"Username": "<token>", "Secret": "an identity token"}', None),
        ('{"Username": "", "Secret": "pw"}', None),
        ('{"Secret": "pw"}', None),
        ("credentials not found in native keychain", None),
        ("[1]", None),
    ],
)
def test_the_answer_of_a_helper(text: str, found: Login | None) -> None:
    assert parse_answer(text) == found


def test_no_secret_of_a_configuration_is_left_out() -> None:
    auth = basic("me", "long password")
    entries = {
        "a": {"auth": auth},
        "b": {"password": "another password"},
        "c": {"identitytoken": "identity-token"},
        "d": 1,
    }
    assert passwords_of(json.dumps({"auths": entries})) == (auth, "long password", "another password", "identity-token")
    assert passwords_of("no JSON") == ()
    assert "pw" not in repr(Login("me", "pw"))


def test_a_configuration_is_read_from_where_docker_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = json.dumps({"auths": {"registry.lab": {"auth": basic("me", "pw")}}, "credHelpers": {"other.lab": "x"}})
    (tmp_path / "config.json").write_text(saved)
    asked: list[tuple[str, str]] = []

    def ask(helper: str, registry: str) -> str | None:
        asked.append((helper, registry))
        return None

    logins = DockerLogins({"DOCKER_CONFIG": str(tmp_path)}, ask)
    assert logins.path == tmp_path / "config.json"
    assert logins.of("registry.lab") == Login("me", "pw")
    assert logins.of("other.lab") is None
    assert asked == [("docker-credential-x", "other.lab")]
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home" / ".docker").mkdir(parents=True)
    assert DockerLogins({}, ask).of("registry.lab") is None
    (tmp_path / "home" / ".docker" / "config.json").write_text(saved)
    assert DockerLogins({}, ask).of("registry.lab") == Login("me", "pw")


# --- who is asked first -----------------------------------------------------------------------------------


def test_a_registry_is_asked_first_for_every_content_by_its_own_digest() -> None:
    other = Variant(size=9, sha256=SHA, what="as good", sources=(UrlFile(url="https://x.example/y"),))
    wanted = artifact(b"x", sources=(HUB,), accept=(other,))
    step = FetchFile(artifact=wanted, destination=comfy_file(wanted), reason="missing")
    content = replace(wanted, size=9, sha256=SHA, sources=other.sources)
    first, second = OciFile(repository=AT, digest=wanted.sha256), OciFile(repository=AT, digest=SHA)
    assert offers_of(step, None) == [(HUB, wanted), (other.sources[0], content)]
    assert offers_of(step, Registry(repository=AT)) == [
        (first, wanted),
        (HUB, wanted),
        (second, content),
        (other.sources[0], content),
    ]
    assert offers_of(step, Registry(repository=AT, is_only=True)) == [(first, wanted), (second, content)]


def test_a_snapshot_takes_bytes_from_the_hub_or_from_the_registry_that_a_person_named() -> None:
    tagged = OciFile(repository=AT, tag="v1")
    wanted = artifact(b"x", sources=(tagged, HUB, UrlFile(url="https://x.example/y")))
    blob = HubBlob(root=Path("/hf"), revision="a" * 40, filename="x", is_lfs=True, is_shipped=True)
    step = FetchFile(artifact=wanted, destination=blob, reason="missing")
    assert offers_of(step, None) == [(HUB, wanted)]
    assert offers_of(step, Registry(repository=AT)) == [
        (OciFile(repository=AT, digest=wanted.sha256), wanted),
        (HUB, wanted),
    ]


def test_a_repair_asks_the_registry_too() -> None:
    wanted = artifact(b"x", sources=(HUB,))
    damage = Damage(
        size=1,
        sha256=wanted.sha256,
        block_size=1,
        digests=(SHA,),
        trusted_by="receipt",
        observed_size=1,
        bad_blocks=(0,),
    )
    place = comfy_file(wanted)
    step = PatchFile(artifact=wanted, destination=place, reason="blocks differ", damage=damage, way="in-place")
    assert offers_of(step, Registry(repository=AT, is_only=True)) == [
        (OciFile(repository=AT, digest=step.artifact.sha256), step.artifact)
    ]
    assert sources_of(step.artifact, None) == step.artifact.sources


def test_a_plan_shows_what_a_tag_names_now_and_offline_where_a_file_is_published() -> None:
    source = parse_reference(f"oci://registry.example/models:v1@sha256:{SHA}")
    wanted = artifact(b"x", sources=(source,))
    step = FetchFile(artifact=wanted, destination=comfy_file(wanted), reason="missing")
    files = FilesPlan(
        manifest=manifest(artifact_set(wanted)),
        set=artifact_set(wanted),
        target=comfy_target(),
        steps=(step,),
        checks=(check(wanted, "missing"),),
    )
    plan = replace(whole(files), pinned=(source,))
    assert f"{source} is what the tag names now." in "\n".join(
        "".join(each.text for each in line) for line in laid_out(plan_blocks(plan), width=None)
    )
    report = Report(command="plan", status="planned", exit_status=0, plan=plan)
    assert document(report)["details"]["pinned"] == [str(source)]
    assert "pinned" not in document(replace(report, plan=whole(files)))["details"]
    assert source_page(wanted) is None
    with pytest.raises(OfflineError, match=re.escape(str(source))):
        check_offline(files)
