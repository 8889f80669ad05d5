"""What an address names, which files can be pinned, and the manifest that comes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provisioner.core.errors import NotTheFileError
from provisioner.core.models import (
    Artifact,
    Fingerprint,
    HubFile,
    Lookalike,
    ManifestWorkflow,
    OciFile,
    OciRepository,
    UrlFile,
)
from provisioner.environment.index_page import newest_wheel
from provisioner.manifest.entries import manifest_text
from provisioner.manifest.parse import parse_manifest
from provisioner.workflow.file_address import (
    Address,
    BadAddress,
    CivitaiAddress,
    HubAddress,
    PlainAddress,
    parse_address,
)
from provisioner.workflow.model_files import ModelFile
from provisioner.workflow.pin_files import LicenceText, NotPinned, Offer, Pinned, manifest_of, pin, why_not_asked

A, B = "aa" * 32, "bb" * 32
COMMIT = "1b" * 20
FILE = ModelFile(name="m.safetensors", folder="vae", role="vae", nodes=("VAELoader 1",))
SOURCE = HubFile(repo_id="org/model", revision=COMMIT, filename="vae/m.safetensors")


def offer(sha256: str = A, label: str = "org/model", **more: object) -> Offer:
    return replace(Offer(label=label, source=SOURCE, size=9, sha256=sha256, read_from="the Hub"), **more)  # type: ignore[arg-type]


def pinned(
    file: ModelFile = FILE,
    *offers: Offer,
    refusals: tuple[str, ...] = (),
    given: str | None = None,
    known: tuple[Artifact, ...] = (),
) -> Pinned | NotPinned:
    return pin(file, offers, refusals, given=given, known=known, read_on="2026-11-27")


def artifact_of(result: Pinned | NotPinned) -> Artifact:
    assert isinstance(result, Pinned)
    return result.artifact


def reason_of(result: Pinned | NotPinned) -> str:
    assert isinstance(result, NotPinned)
    return result.reason


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://hf.co/o/r/blob/v1/a.bin", HubAddress(repo_id="o/r", revision="v1", filename="a.bin")),
        ("http://127.0.0.1:7/o/r/raw/main/x/a", HubAddress(repo_id="o/r", revision="main", filename="x/a")),
        ("https://huggingface.co/o/r/tree/main/a", None),
        ("https://huggingface.co/o%20x/r/resolve/main/a", None),
        ("https://huggingface.co/datasets/o/r/resolve/main/a", None),
        ("https://civitai.com/api/v1/model-versions/12", CivitaiAddress(version=12)),
        ("https://civitai.com/models/12", None),
        ("https://example.com/a?b", PlainAddress(url="https://example.com/a?b")),
        ("http://localhost:9/a", None),
        ("https://10.0.0.1/a", None),
        ("https://user@example.com/a", None),
        ("https://[::1/a", None),
        ("https://example.com:99999/a", None),
        ("file:///etc/passwd", None),
        ("https:///a", None),
        ("https://example.com/\x1b[31m", None),
    ],
)
def test_an_address_names_a_file_or_is_refused(url: str, expected: Address | None) -> None:
    found = parse_address(url, endpoint="http://127.0.0.1:7")
    if expected is None:
        assert isinstance(found, BadAddress)
        assert found.complaint.split()[0] in {"is", "has", "holds"}
    else:
        assert found == expected


def test_this_machine_is_an_address_in_tests_only() -> None:
    assert parse_address("http://localhost:9/a", allows_loopback=True) == PlainAddress(url="http://localhost:9/a")
    assert isinstance(parse_address("http://example.com/a", allows_loopback=True), BadAddress)


# --- one file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "given", "said"),
    [
        (FILE, None, None),
        (replace(FILE, complaint="climbs out with '..'"), A, "its name or folder climbs out"),
        (replace(FILE, folder=None), A, "the node VAELoader 1 is not known"),
        (replace(FILE, name="m.PT"), None, "it is a pickle"),
        (replace(FILE, name="m.PT"), A, None),
    ],
)
def test_nobody_is_asked_about_what_cannot_be_taken(file: ModelFile, given: str | None, said: str | None) -> None:
    why = why_not_asked(file, given)
    assert why is None if said is None else said in str(why)


def test_an_offer_becomes_an_artifact() -> None:
    found = artifact_of(pinned(FILE, offer(licence="mit", is_gated=True, git_oid="0" * 40)))
    assert (found.id, found.role, found.folder, found.name) == ("m", "vae", "vae", "m.safetensors")
    assert (found.sha256, found.size, found.sources) == (A, 9, (SOURCE,))
    assert (found.licence, found.is_gated, found.git_oid) == ("mit", True, None)
    assert found.provenance is not None
    assert (found.provenance.read_from, found.provenance.confidence) == ("the Hub", "high")


def test_agreeing_places_are_sources_and_an_open_one_makes_it_free() -> None:
    mirror = HubFile(repo_id="org/mirror", revision=COMMIT, filename="m.safetensors")
    found = artifact_of(pinned(FILE, offer(is_gated=True), offer(label="org/mirror", source=mirror, licence="mit")))
    assert found.sources == (SOURCE, mirror)
    assert (found.is_gated, found.licence) == (False, "mit")
    assert found.provenance is not None
    assert found.provenance.agreeing == 2


def test_disagreeing_places_are_an_error_unless_somebody_says_which() -> None:
    both = (offer(A), offer(B, "org/other", size=10))
    with pytest.raises(NotTheFileError, match=f"org/model has the SHA-256 {A} .9 bytes., org/other has {B} .10 bytes"):
        pinned(FILE, *both)
    assert artifact_of(pinned(FILE, *both, given=B)).sha256 == B
    assert artifact_of(pinned(replace(FILE, sha256=(A,)), *both)).sha256 == A


@pytest.mark.parametrize(
    ("file", "given", "said"), [(FILE, B, "you gave"), (replace(FILE, sha256=(B,)), None, "the workflow states")]
)
def test_other_bytes_than_were_stated_are_not_taken(file: ModelFile, given: str | None, said: str) -> None:
    assert reason_of(pinned(file, offer(), given=given)) == f"{said} the SHA-256 {B}, and org/model has {A}"


def test_a_digest_by_hand_is_of_medium_confidence_and_a_pickle_is_marked() -> None:
    pickle = replace(FILE, name="m.pth", role="upscale_model")
    found = artifact_of(pinned(pickle, offer(is_own_word=False, is_lfs=False, git_oid="0" * 40), given=A))
    assert found.provenance is not None
    assert found.provenance.confidence == "medium"
    assert (found.role, found.git_oid) == ("other", "0" * 40)
    assert str(found.note).startswith("A pickle")


def test_what_nobody_offers_has_the_reasons_of_everybody() -> None:
    assert reason_of(pinned(refusals=("one", "two"))) == "one; two"
    assert reason_of(pinned()) == "the workflow has no link to it"


SHIPPED = Artifact(
    id="their-vae",
    role="vae",
    name="m.safetensors",
    folder="vae",
    size=9,
    sha256=A,
    sources=(UrlFile(url="https://x.example/m"), SOURCE),
    lookalikes=(Lookalike(size=9, sha256=B, what="another"),),
    min_comfyui="0.9.2",
)


def test_a_shipped_manifest_that_knows_the_digest_adds_its_sources() -> None:
    mirror = HubFile(repo_id="org/mirror", revision=COMMIT, filename="m.safetensors")
    found = artifact_of(pinned(FILE, offer(source=mirror), known=(SHIPPED,)))
    assert found.sources == (mirror, *SHIPPED.sources)
    assert (found.lookalikes, found.min_comfyui) == (SHIPPED.lookalikes, "0.9.2")


@pytest.mark.parametrize(
    ("urls", "given", "how"),
    [
        ((), None, "by its name alone"),
        (("https://huggingface.co/Org/renamed/resolve/main/vae/m.safetensors?x",), None, "by its name and link"),
        (("https://huggingface.co/other/model/resolve/main/vae/m.safetensors",), None, None),
        (("https://huggingface.co/org/model/resolve/main/other/m.safetensors",), None, None),
        ((), B, None),
        ((), A, "by its name alone"),
    ],
)
def test_without_an_offer_a_shipped_manifest_may_know_it(
    urls: tuple[str, ...], given: str | None, how: str | None
) -> None:
    result = pinned(replace(FILE, urls=urls), given=given, known=(replace(SHIPPED, folder="loras"), SHIPPED))
    if how is None:
        assert isinstance(result, NotPinned)
    else:
        assert artifact_of(result).sha256 == A
        assert how in str(artifact_of(result).note)


# --- the manifest --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "workflow", [None, ManifestWorkflow(name="image_x"), ManifestWorkflow(name="x.json", sha256=B)]
)
def test_a_manifest_has_what_is_read_and_what_stands_switched_off(workflow: ManifestWorkflow | None) -> None:
    one = Pinned(file=FILE, artifact=artifact_of(pinned(FILE, offer(licence="mit"))))
    off = replace(FILE, name="sub/m.safetensors", folder="loras", why_off="node 3 is bypassed")
    two = Pinned(file=off, artifact=artifact_of(pinned(off, offer(B, licence="Apache-2.0"))))
    prints = {A: Fingerprint(tensors=3)}
    made = manifest_of("My Flow", "Mine", [one, two], prints, min_comfyui="0.41.0", workflow=workflow)
    manifest = parse_manifest(manifest_text(made), file="x.yaml")
    assert replace(manifest, sha256="") == made
    assert [each.id for each in manifest.artifacts] == ["m", "m-2"]
    assert manifest.artifacts[1].folder == "loras/sub"
    assert [[each.id for each in one.artifacts] for one in manifest.sets] == [["m"], ["m", "m-2"]]
    assert manifest.artifacts[0].fingerprint == Fingerprint(tensors=3)
    assert {each.min_comfyui for each in manifest.artifacts} == {"0.41.0"}
    assert manifest.licence.is_commercial_use_allowed
    assert manifest.licence.name == "Apache-2.0, mit"


@pytest.mark.parametrize("licence", ["mit", "other"])
def test_the_text_of_a_licence_is_named_with_its_git_id(licence: str) -> None:
    text = LicenceText(page="https://huggingface.co/org/model/blob/1b/LICENSE.md", git_oid=COMMIT)
    one = Pinned(file=FILE, artifact=artifact_of(pinned(FILE, offer(licence=licence))))
    made = manifest_of("x", "x", [one], {}, texts={"org/model": text, "org/other": replace(text, page="else")})
    assert (made.licence.url, made.licence.git_oid) == (text.page, COMMIT)
    assert text.page in (made.licence.notice or text.page)
    assert replace(parse_manifest(manifest_text(made), file="x.yaml"), sha256="") == made
    assert manifest_of("x", "x", [one], {}).licence.git_oid is None


@pytest.mark.parametrize(
    ("digest", "title"),
    [("0b98" * 16, "no"), ("1" * 64, "0x1f"), ("0" * 62 + "e1", "2026-11-27"), ("1e" + "0" * 62, "y")],
)
def test_what_yaml_takes_for_another_thing_is_written_in_quotes(digest: str, title: str) -> None:
    made = manifest_of("x", title, [Pinned(file=FILE, artifact=artifact_of(pinned(FILE, offer(digest))))], {})
    made = replace(made, title=title)
    assert replace(parse_manifest(manifest_text(made), file="x.yaml"), sha256="") == made


def test_a_workflow_that_reads_nothing_has_one_set() -> None:
    off = replace(FILE, why_off="nothing uses it")
    made = manifest_of("x", "x", [Pinned(file=off, artifact=artifact_of(pinned(off, offer())))], {})
    assert [each.id for each in made.sets] == ["everything"]


@pytest.mark.parametrize(
    ("source", "page"),
    [
        (SOURCE, "https://huggingface.co/org/model"),
        (UrlFile(url="https://x.example/m?v=1"), "https://x.example/m"),
        (OciFile(repository=OciRepository(base="", name="x")), "https://huggingface.co"),
    ],
)
def test_a_licence_that_nobody_stated_has_to_be_accepted(source: HubFile | UrlFile | OciFile, page: str) -> None:
    unknown = Pinned(file=FILE, artifact=artifact_of(pinned(FILE, offer(source=source))))
    licence = manifest_of("x" * 99, "x", [unknown], {}).licence
    assert licence.is_commercial_use_allowed is None  # nobody read it: neither allowed nor forbidden
    assert "has not read" in str(licence.commercial_use_words)
    assert licence.url == page
    assert (licence.name, str(licence.notice).endswith(f"not stated: {page}")) == ("not stated", True)
    assert licence.id == "x" * 50 + "-licences"


# --- the index of packages -----------------------------------------------------------------------


def test_the_newest_released_wheel_of_an_index_is_chosen() -> None:
    names = ["p-1.9.0", "p-1.10.0", "p-2.0rc1", "p-3.0"]
    links = "".join(f'<a href="{each}-py3-none-any.whl#sha256={A}">x</a>' for each in names[:3])
    page = f"{links}<a href=\"p-3.0.tar.gz#sha256={A}\">x</a><A HREF='../p-4-py3-none-any.whl'>x</a>"
    found = newest_wheel(page.encode(), "https://pypi.example/simple/p/")
    assert found is not None
    assert (found.version, found.sha256) == ("1.10.0", A)
    assert found.url == "https://pypi.example/simple/p/p-1.10.0-py3-none-any.whl"


def test_an_index_in_json_is_read_without_what_was_yanked() -> None:
    file = '{"url": "https://f.example/p-%s-py3-none-any.whl", "hashes": {"sha256": "%s"}, "yanked": %s}'
    page = f'{{"files": [{file % ("1.0", A, "false")}, {file % ("2.0", B, "true")}]}}'
    found = newest_wheel(page.encode(), "https://pypi.example/simple/p/")
    assert found is not None
    assert found.version == "1.0"
    assert newest_wheel(b"{}", "https://pypi.example/") is None
