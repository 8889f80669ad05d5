"""`manifest from-workflow`: the real command, the real Hub client, and a loopback Hub that holds a workflow's files."""

from __future__ import annotations

import functools
import http.server
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner.core.models import STATE_FOLDER, HubFile, ManifestWorkflow
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_manifest_text
from provisioner.rehearsal.content import Content
from provisioner.rehearsal.faults import CutAfter, Status, WrongBytes
from tests.support.sandbox import TOKEN, Completed, Sandbox, sha256_of, tensors
from tests.support.stand_ins import bytes_of, sets_of, write_stand_ins
from tests.support.workflows import node, png, workflow

HUB = "https://huggingface.co"
COMMIT = "1b" * 20
MODEL, ENCODER, LORA = tensors(3000), tensors(4000, 1), tensors(2500, 2)


def link(repo: str, name: str, folder: str) -> tuple[str, str, str]:
    return name, f"{HUB}/{repo}/resolve/main/split_files/{folder}/{name}", folder


def small(*more: dict[str, Any], lora_repo: str = "org/loras") -> bytes:
    """Return a workflow with a model and an encoder, and a LoRA that is bypassed."""
    return workflow(
        node(1, "UNETLoader", "m.safetensors", outputs=["MODEL"], models=[link("org/model", "m.safetensors", "unet")]),
        node(2, "CLIPLoader", "sub/e.safetensors", outputs=["CLIP"]),
        node(7, "MarkdownNote", f"{HUB}/org/model/blob/main/enc/e.safetensors"),
        node(
            3,
            "LoraLoaderModelOnly",
            "l.safetensors",
            mode=4,
            inputs=[("model", "MODEL", 1, False)],
            outputs=["MODEL"],
            models=[link(lora_repo, "l.safetensors", "loras")],
        ),
        node(4, "SaveImage", inputs=[("model", "MODEL", 2, False), ("clip", "CLIP", 3, False)]),
        *more,
        links=[(1, 1, 0, 3, 0, "MODEL"), (2, 3, 0, 4, 0, "MODEL"), (3, 2, 0, 4, 1, "CLIP")],
    )


def publish(sandbox: Sandbox, **more: Any) -> None:  # noqa: ANN401 - whatever a repository may have
    files = {"split_files/unet/m.safetensors": MODEL, "enc/e.safetensors": ENCODER, "con/dev.safetensors": LORA}
    sandbox.hub.add_repository("org/model", COMMIT, files, licence="apache-2.0", **more)
    sandbox.hub.add_repository("org/loras", "2c" * 20, {"split_files/loras/l.safetensors": LORA}, licence="other")


def made(sandbox: Sandbox, data: bytes, *options: str, name: str = "my flow.json") -> Completed:
    sandbox.plant(sandbox.folder / name, data)
    words = ("--endpoint", sandbox.hub.endpoint, "--send-token", *options)
    return sandbox.run("manifest", "from-workflow", sandbox.folder / name, *words)


def written(sandbox: Sandbox, name: str = "my-flow.yaml") -> Any:  # noqa: ANN401 - read without a narrowing of every source
    return parse_manifest((sandbox.folder / name).read_text(encoding="utf-8"), file=name)


def test_a_workflow_becomes_a_manifest_that_installs(sandbox: Sandbox) -> None:
    publish(sandbox)
    done = made(sandbox, small())
    assert done.returncode == 0, done.said
    assert "Pinned are all 3 files" in done.said
    assert "not read as the workflow stands: node 3 is bypassed" in done.said
    manifest = written(sandbox)
    assert [each.id for each in manifest.sets] == ["workflow", "everything"]
    assert [each.id for each in manifest.sets[0].artifacts] == ["m", "e"]
    model, encoder, lora = manifest.artifacts
    assert (model.folder, model.sha256, model.size) == ("diffusion_models", sha256_of(MODEL), len(MODEL))
    assert model.sources[0].revision == COMMIT
    assert model.fingerprint.tensors == 1
    assert model.provenance.read_from == "the Hub"
    assert (encoder.folder, encoder.name) == ("text_encoders/sub", "e.safetensors")
    assert lora.licence == "other"
    assert not manifest.licence.is_commercial_use_allowed
    own = ManifestWorkflow(name="my flow.json", sha256=sha256_of(small()))
    assert [each.workflow for each in manifest.sets] == [own, own]
    assert sandbox.run("manifest", "check", "my-flow.yaml").returncode == 0
    done = sandbox.install("--only", "files", "--manifest", "my-flow.yaml", "--accept-licence", manifest.licence.id)
    assert done.returncode == 0, done.said
    assert sha256_of(sandbox.tree / "models" / "text_encoders" / "sub" / "e.safetensors") == encoder.sha256


def test_an_image_is_a_workflow_too_and_the_document_lists_the_manifest(sandbox: Sandbox) -> None:
    publish(sandbox)
    done = made(sandbox, png(workflow=small()), "--json", "--output", "out.yaml", name="picture.png")
    assert done.returncode == 0, done.said
    assert done.json["status"] == "ok"
    assert written(sandbox, "out.yaml").id == "picture"
    assert written(sandbox, "out.yaml").sets[0].workflow.name == "picture.png"


def test_what_is_there_is_not_overwritten_unless_it_is_named(sandbox: Sandbox) -> None:
    publish(sandbox)
    sandbox.plant(sandbox.folder / "my-flow.yaml", b"mine")
    done = made(sandbox, small())
    assert done.returncode == 2
    assert "my-flow.yaml is there already" in done.said
    assert made(sandbox, small(), "--output", "my-flow.yaml").returncode == 0


def test_several_links_to_the_same_bytes_are_several_sources(sandbox: Sandbox) -> None:
    publish(sandbox)
    sandbox.hub.add_repository("else/where", "3d" * 20, {"split_files/unet/m.safetensors": MODEL})
    more = node(9, "UNETLoader", "m.safetensors", models=[link("else/where", "m.safetensors", "unet")])
    assert made(sandbox, small(more)).returncode == 0
    model = written(sandbox).artifacts[0]
    assert [each.repo_id for each in model.sources] == ["org/model", "else/where"]
    assert model.provenance.agreeing == 2


def test_one_name_for_different_bytes_is_an_error_that_names_both(sandbox: Sandbox) -> None:
    publish(sandbox)
    sandbox.hub.add_repository("else/where", "3d" * 20, {"split_files/unet/m.safetensors": ENCODER})
    more = node(9, "UNETLoader", "m.safetensors", models=[link("else/where", "m.safetensors", "unet")])
    done = made(sandbox, small(more))
    assert done.returncode == 7
    for said in ("org/model/split_files", "else/where/split_files", sha256_of(MODEL), sha256_of(ENCODER)):
        assert said in done.said
    assert not (sandbox.folder / "my-flow.yaml").exists()
    assert made(sandbox, small(more), "--digest", f"m.safetensors={sha256_of(ENCODER)}").returncode == 0
    assert written(sandbox).artifacts[0].sources[0].repo_id == "else/where"


def test_what_cannot_be_pinned_is_listed_with_its_reason(sandbox: Sandbox) -> None:
    publish(sandbox)
    names = {
        "gone.safetensors": (f"{HUB}/org/gone/resolve/main/gone.safetensors", "the Hub does not show org/gone"),
        "lost.safetensors": (f"{HUB}/org/model/resolve/main/lost.safetensors", "org/model has no file lost"),
        "page.safetensors": (f"{HUB}/org/model", "is an address of the Hub, but not that of a file"),
        "http.safetensors": ("http://example.com/http.safetensors", "is http, which others"),
        "plain.safetensors": ("https://example.com/plain.safetensors", "states no SHA-256"),
        "dev.safetensors": (f"{HUB}/org/model/resolve/main/con/dev.safetensors", "a manifest does not take it: "),
        "style.pt": (f"{HUB}/org/model/resolve/main/style.pt", "is a pickle, which can run code"),
        "../up.safetensors": (f"{HUB}/org/model/resolve/main/up.safetensors", "climbs out with '..'"),
    }
    nodes = [
        node(number, "LoraLoader", name, models=[(name, url, "loras")])
        for number, (name, (url, _)) in enumerate(names.items(), start=20)
    ]
    done = made(sandbox, small(*nodes, node(40, "Mine", "mine.safetensors")), "--json")
    assert done.returncode == 1, done.said
    messages = [each["message"] for each in done.json["findings"]]
    for name, (_, reason) in names.items():
        assert any(name in each and reason in each for each in messages), (name, messages)
    assert any("the node Mine 40 is not known" in each for each in messages)
    assert len(written(sandbox).artifacts) == 3


def test_a_gated_repository_is_pinned_and_a_private_one_named(sandbox: Sandbox) -> None:
    publish(sandbox, is_gated=True)
    lora = {"split_files/loras/l.safetensors": LORA}
    sandbox.hub.add_repository("org/secret", "3d" * 20, lora, is_private=True)
    done = made(sandbox, small(lora_repo="org/secret"))
    assert done.returncode == 1
    assert "the Hub does not show org/secret: it is private, has gone, or never was" in done.said
    assert "The header of m.safetensors was not read: org/model is gated" in done.said
    model = written(sandbox).artifacts[0]
    assert model.is_gated
    assert model.fingerprint is None


def test_a_repository_that_was_renamed_has_its_new_name(sandbox: Sandbox) -> None:
    publish(sandbox)
    sandbox.hub.rename("org/model", "Org/Model-2")
    done = made(sandbox, small())
    assert done.returncode == 0, done.said
    assert "org/model is called Org/Model-2 now" in done.said
    assert written(sandbox).artifacts[0].sources[0].repo_id == "Org/Model-2"


def test_what_the_hub_keeps_in_git_itself_is_fetched_and_hashed(sandbox: Sandbox) -> None:
    publish(sandbox, lfs=lambda name, _: name.startswith("split"))
    assert made(sandbox, small()).returncode == 0
    encoder = written(sandbox).artifacts[1]
    assert (encoder.sha256, encoder.is_lfs) == (sha256_of(ENCODER), False)
    assert encoder.git_oid is not None


def test_the_licence_is_named_with_the_git_id_of_its_text(sandbox: Sandbox) -> None:
    files = {
        "split_files/unet/m.safetensors": MODEL,
        "enc/e.safetensors": ENCODER,
        "LICENSE.md": b"Do what you like.\n",
    }
    sandbox.hub.add_repository("org/model", COMMIT, files, licence="mit")
    sandbox.hub.add_repository("org/loras", "2c" * 20, {"split_files/loras/l.safetensors": LORA}, licence="mit")
    assert made(sandbox, small()).returncode == 0
    licence = written(sandbox).licence
    assert licence.url == f"{HUB}/org/model/blob/{COMMIT}/LICENSE.md"
    assert licence.git_oid == Content.of(files["LICENSE.md"]).git_oid()
    sandbox.hub.fault(WrongBytes(), filename="LICENSE.md")
    done = made(sandbox, small(), "--output", "other.yaml")
    assert done.returncode == 0
    assert "The licence of org/model was not read: the Hub sent other bytes for LICENSE.md" in done.said
    assert written(sandbox, "other.yaml").licence.git_oid is None


def test_a_hub_that_fails_at_first_is_asked_again(sandbox: Sandbox) -> None:
    publish(sandbox, lfs=lambda name, _: name.startswith("split"))
    sandbox.hub.fault(Status(429, (("Retry-After", "1"),)), on="api")
    sandbox.hub.fault(CutAfter(0), on="api")
    sandbox.hub.fault(Status(503), on="api")
    sandbox.hub.fault(Status(500), on="hub", filename="enc/e.safetensors")
    done = made(sandbox, small())
    assert done.returncode == 0, done.said
    assert sandbox.hub.faults_waiting == 0
    assert "Pinned are all 3 files" in done.said


def test_a_hub_that_fails_ends_the_command(sandbox: Sandbox) -> None:
    publish(sandbox)
    sandbox.hub.fault(Status(503, (("Retry-After", "900"),)), on="api", times=None)  # longer than anybody waits
    done = made(sandbox, small())
    assert done.returncode == 5
    assert "the Hub answers 503 for org/model" in done.said


def test_without_a_network_only_what_is_shipped_is_known(sandbox: Sandbox) -> None:
    vae = link("Comfy-Org/flux2-dev", "flux2-vae.safetensors", "vae")
    other = link("black-forest-labs/flux-3-image-klein-comfy", "flux2-vae.safetensors", "vae")
    theirs = workflow(node(1, "VAELoader", vae[0], models=[vae]), node(2, "VAEDecode"))
    done = made(sandbox, theirs, "--offline")
    assert done.returncode == 0, done.said
    assert "Known by its name and link from a manifest of klein-setup" in done.said
    strangers = workflow(node(1, "VAELoader", vae[0], models=[other]))
    done = made(sandbox, strangers, "--offline", "--output", "x.yaml")
    assert done.returncode == 1  # another file of that name: the link says so
    assert "No manifest was written" in done.said
    assert not (sandbox.folder / "x.yaml").exists()
    assert sandbox.hub.requests == ()


# --- elsewhere -----------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Return the address of a web server, and its folder."""
    folder = tmp_path / "web"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def test_civitai_states_digests(sandbox: Sandbox, web: tuple[str, Path]) -> None:
    address, folder = web
    answer = folder / "api" / "v1" / "model-versions" / "12"
    answer.parent.mkdir(parents=True)
    files = [
        {"name": "config", "sizeKB": 1, "hashes": {}},
        {"name": "s", "primary": True, "sizeKB": 2.5, "hashes": {"SHA256": "AB" * 32}},
    ]
    answer.write_text(json.dumps({"files": files}), encoding="utf-8")
    url = "https://civitai.com/api/download/models/12?type=Model&format=SafeTensor"
    other = "https://civitai.com/models/5?modelVersionId=13"
    nodes = [node(1, "LoraLoader", "s.safetensors", models=[("s.safetensors", url, "loras")]), node(2, "Save")]
    nodes += [node(3, "LoraLoader", "t.safetensors", models=[("t.safetensors", other, "loras")])]
    done = made(sandbox, workflow(*nodes), "--civitai", address)
    assert done.returncode == 1
    assert "Civitai does not show version 13" in done.said
    (only,) = written(sandbox).artifacts
    assert (only.size, only.sha256) == (2560, "ab" * 32)
    assert only.sources[0].url == "https://civitai.com/api/download/models/12"


def test_a_pickle_at_another_address_is_taken_with_a_digest(sandbox: Sandbox, web: tuple[str, Path]) -> None:
    address, folder = web
    (folder / "up.pth").write_bytes(b"x" * 77)
    up = node(1, "UpscaleModelLoader", "up.pth", models=[("up.pth", f"{address}/up.pth", "upscale_models")])
    digest = sha256_of(b"x" * 77)
    done = made(sandbox, workflow(up), "--digest", f"up.pth={digest}", "--allow-loopback")
    assert done.returncode == 0, done.said
    assert "A pickle, which can run code when it is loaded" in done.said
    (only,) = written(sandbox).artifacts
    assert (only.role, only.size, only.sha256, only.provenance.confidence) == ("other", 77, digest, "medium")
    done = made(sandbox, workflow(up), "--digest", f"down.pth={digest}", "--output", "x.yaml")
    assert done.returncode == 2
    assert "--digest names down.pth, which the workflow does not" in done.said


def publish_template(folder: Path, name: str, data: bytes, facts: dict[str, str]) -> None:
    """Publish a package of templates with that one in it, at an index of packages in a folder."""
    wheel_name = "comfyui_workflow_templates_json-0.1.9-py3-none-any.whl"
    project = folder / "comfyui-workflow-templates-json"
    project.mkdir()
    with zipfile.ZipFile(project / wheel_name, "w") as wheel:
        wheel.writestr(f"comfyui_workflow_templates_json/templates/{name}.json", data)
        index = [{"templates": [{"name": name, **facts}]}]
        wheel.writestr("comfyui_workflow_templates_json/templates/index.json", json.dumps(index))
    page = f'<a href="{wheel_name}#sha256={sha256_of(project / wheel_name)}">{wheel_name}</a>'
    (project / "index.html").write_text(page, encoding="utf-8")


def test_a_template_comes_from_the_index(sandbox: Sandbox, web: tuple[str, Path]) -> None:
    address, folder = web
    publish(sandbox)
    publish_template(folder, "image_small", small(), {"title": "Small:\nText", "minComfyUIVersion": "0.41.0"})
    words = ("--endpoint", sandbox.hub.endpoint, "--send-token", "--package-index", address)
    done = sandbox.run("manifest", "from-workflow", "image_small", *words)
    assert done.returncode == 0, done.said
    manifest = written(sandbox, "image_small.yaml")
    assert manifest.title == "Small: Text"
    assert manifest.sets[0].workflow == ManifestWorkflow(name="image_small")
    assert manifest.artifacts[0].min_comfyui == "0.41.0"
    done = sandbox.run("manifest", "from-workflow", "image_smal", *words)
    assert done.returncode == 2
    assert "Did you mean image_small?" in done.said


TEMPLATE = Path(__file__).resolve().parents[1] / "contract" / "data" / "templates" / "image_z_image_turbo.json"


def files_in(tree: Path) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of every model file by its path."""
    files = [path for path in (tree / "models").rglob("*") if path.is_file() and STATE_FOLDER not in path.parts]
    return {path.relative_to(tree).as_posix(): (path.stat().st_size, sha256_of(path)) for path in files}


def test_the_shipped_manifest_and_the_official_template_lead_to_the_same_files(
    sandbox: Sandbox, web: tuple[str, Path]
) -> None:
    shipped = write_stand_ins(sandbox.folder, sandbox.hub, "z-image-turbo")["z-image-turbo"]
    (default,) = (each for each in sets_of(shipped) if each.id == "bf16")
    main = {
        source.filename: bytes_of(each.sha256)
        for each in parse_manifest(read_manifest_text("z-image-turbo")[0], file="z").sets[0].artifacts
        for source in each.sources
        if isinstance(source, HubFile)
    }
    sandbox.hub.add_repository("Comfy-Org/z_image_turbo", "4e" * 20, main, licence="apache-2.0")
    address, folder = web
    publish_template(folder, "image_z_image_turbo", TEMPLATE.read_bytes(), {})
    words = ("--endpoint", sandbox.hub.endpoint, "--send-token", "--package-index", address)
    made = sandbox.run("manifest", "from-workflow", "image_z_image_turbo", *words)
    assert made.returncode == 0, made.said
    theirs = written(sandbox, "image_z_image_turbo.yaml").sets[0]
    assert theirs.workflow == ManifestWorkflow(name="image_z_image_turbo")
    trees = [sandbox.folder / name for name in ("by-name", "by-template")]
    for tree, manifest in zip(trees, (shipped, Path("image_z_image_turbo.yaml")), strict=True):
        chosen = "bf16" if manifest is shipped else theirs.id
        done = sandbox.install("--only", "files", "--comfyui", tree, "--manifest", manifest, "--set", chosen)
        assert done.returncode == 0, done.said
    by_name, by_template = map(files_in, trees)
    assert by_name == by_template
    assert sorted(by_name) == sorted(f"models/{each.folder}/{each.name}" for each in default.artifacts)


def test_a_workflow_at_an_address(sandbox: Sandbox, web: tuple[str, Path]) -> None:
    address, folder = web
    publish(sandbox)
    (folder / "far.json").write_bytes(small())
    words = ("--endpoint", sandbox.hub.endpoint, "--send-token")
    refused, done, gone = sandbox.run_each(
        [
            ("manifest", "from-workflow", f"{address}/far.json", *words),
            ("manifest", "from-workflow", f"{address}/far.json?token={TOKEN}", *words, "--allow-loopback"),
            ("manifest", "from-workflow", f"{address}/gone.json", *words, "--allow-loopback"),
        ]
    )
    assert refused.returncode == 2
    assert "expected https" in refused.said
    assert done.returncode == 0, done.said
    assert written(sandbox, "far.yaml").id == "far"
    assert written(sandbox, "far.yaml").sets[0].workflow is None
    assert gone.returncode == 6


def test_what_is_no_workflow_is_refused(sandbox: Sandbox) -> None:
    table = {
        "no/such.json": "is not there; expected a workflow",
        ".": "is no file, no address and no id of a template",
        "x y": "is no file, no address and no id of a template",
        "ftp://x/y": "expected https, without a user name",
        "https://me:secret@example.com/a.json": "expected https, without a user name",
        "https://example.com/a.json": "With --offline nothing is read from https://example.com/a.json",
    }
    commands = [("manifest", "from-workflow", named, "--offline") for named in table]
    for done, said in zip(sandbox.run_each(commands), table.values(), strict=True):
        assert done.returncode == (5 if "offline" in said else 2)
        assert said in done.said
        assert "secret" not in done.said


def test_a_workflow_without_models_is_said_to_be_one(sandbox: Sandbox) -> None:
    done = made(sandbox, workflow(node(1, "LoadImage", "a.png")))
    assert done.returncode == 2
    assert "names no model file" in done.said
