"""Where an artifact goes, and where ComfyUI would look for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.comfyui.model_paths import (
    ExtraPath,
    folder_roots,
    parse_extra_model_paths,
    write_folder,
    write_root,
)
from provisioner.core.errors import PathOutsideRootError, UsageError
from provisioner.core.models import (
    Artifact,
    ComfyFile,
    ComfyTarget,
    Destination,
    HubBlob,
    HubCacheTarget,
    HubFile,
    Source,
    UrlFile,
)
from provisioner.files.layout import candidates_for, destination_for, repo_folder_name, safe_relative

COMMIT = "5f526678002e43af5551dadb73ce2e8c91b43afe"
BASE = Path("/opt/ComfyUI")
MODELS = BASE / "models"
HUB_FILE = HubFile(
    repo_id="Comfy-Org/flux2-klein-4B", revision=COMMIT, filename="split_files/vae/flux2-vae.safetensors"
)


def artifact(
    *,
    folder: str | None = "diffusion_models",
    name: str = "x.safetensors",
    sources: tuple[Source, ...] = (HUB_FILE,),
    is_lfs: bool = True,
) -> Artifact:
    return Artifact(
        id="x",
        role="diffusion_model",
        name=name,
        folder=folder,
        size=1,
        sha256="0" * 64,
        sources=sources,
        is_lfs=is_lfs,
    )


def target(yaml: str = "", *, base: Path | None = BASE) -> ComfyTarget:
    extras = parse_extra_model_paths(yaml, file=BASE / "extra_model_paths.yaml", home=Path("/home/ada"), environ={})
    return ComfyTarget(given=BASE, models=MODELS, folders=folder_roots(MODELS, extras, base=base))


# --- where it goes -----------------------------------------------------------------------------------

DEFAULT = "mine:\n  base_path: /data/shared\n  is_default: true\n"


@pytest.mark.parametrize(
    ("yaml", "folder", "root", "relative"),
    [
        ("", "diffusion_models", "/opt/ComfyUI/models", "diffusion_models/x.safetensors"),
        ("", "text_encoders", "/opt/ComfyUI/models", "text_encoders/x.safetensors"),
        ("", "unet", "/opt/ComfyUI/models", "diffusion_models/x.safetensors"),
        ("", "clip", "/opt/ComfyUI/models", "text_encoders/x.safetensors"),
        ("", "vae/flux", "/opt/ComfyUI/models", "vae/flux/x.safetensors"),
        ("", "some_node", "/opt/ComfyUI/models", "some_node/x.safetensors"),
        ("a:\n  vae: /other/vae\n", "vae", "/opt/ComfyUI/models", "vae/x.safetensors"),
        (DEFAULT + "  vae: vae\n", "vae", "/data/shared", "vae/x.safetensors"),
        (DEFAULT + "  vae: models/vae\n", "vae", "/data/shared/models", "vae/x.safetensors"),
        (DEFAULT + "  vae: models\n", "vae", "/data/shared", "models/x.safetensors"),
        (DEFAULT + "  vae: .\n", "vae", "/data/shared", "x.safetensors"),
        (DEFAULT + "  vae: /else/where/vae\n", "vae", "/else/where", "vae/x.safetensors"),
        (DEFAULT + "  vae: /vae\n", "vae", "/vae", "x.safetensors"),
        (DEFAULT + "  vae: /opt/ComfyUI/models/vae\n", "vae", "/opt/ComfyUI/models", "vae/x.safetensors"),
        (DEFAULT + "  vae: /opt/ComfyUI/models\n", "vae", "/opt/ComfyUI", "models/x.safetensors"),
        (DEFAULT + "  vae: vae\n", "loras", "/opt/ComfyUI/models", "loras/x.safetensors"),
        # The shipped example: both lines are defaults, and unet ends up in front.  It is not written to.
        (
            DEFAULT + "  diffusion_models: |\n    diffusion_models\n    unet\n",
            "diffusion_models",
            "/data/shared",
            "diffusion_models/x.safetensors",
        ),
        (DEFAULT + "  unet: unet\n", "diffusion_models", "/data/shared", "unet/x.safetensors"),
        (DEFAULT + "  vae: |\n    one\n    two\n", "vae", "/data/shared", "two/x.safetensors"),
    ],
)
def test_goes_to_the_users_default_and_never_to_an_old_name_without_need(
    yaml: str, folder: str, root: str, relative: str
) -> None:
    found = destination_for(artifact(folder=folder), target(yaml))
    assert found == ComfyFile(root=Path(root), relative=PurePosixPath(relative))


def test_a_cache_gets_the_snapshot_path_of_the_first_source_on_the_hub() -> None:
    mirror = UrlFile(url="https://example.org/x")
    found = destination_for(artifact(sources=(mirror, HUB_FILE), is_lfs=False), HubCacheTarget(cache=Path("/hf")))
    assert found == HubBlob(
        root=Path("/hf/models--Comfy-Org--flux2-klein-4B"), revision=COMMIT, filename=HUB_FILE.filename, is_lfs=False
    )


@pytest.mark.parametrize(
    ("is_shipped", "is_lfs", "named"), [(True, False, COMMIT), (True, True, None), (False, False, None)]
)
def test_the_git_id_in_a_shipped_manifest_is_what_the_bytes_must_have(
    is_shipped: bool, is_lfs: bool, named: str | None
) -> None:
    wanted = replace(artifact(sources=(HUB_FILE,), is_lfs=is_lfs), git_oid=COMMIT)
    found = destination_for(wanted, HubCacheTarget(cache=Path("/hf"), is_shipped=is_shipped))
    assert isinstance(found, HubBlob)
    assert found.blob_id == named


@pytest.mark.parametrize(
    ("place", "relative", "part_folder"),
    [
        (
            ComfyFile(root=MODELS, relative=PurePosixPath("vae/x.safetensors")),
            "vae/x.safetensors",
            MODELS / "vae",
        ),
        (
            HubBlob(root=Path("/hf/models--a--b"), revision=COMMIT, filename="vae/x.safetensors", is_lfs=True),
            f"snapshots/{COMMIT}/vae/x.safetensors",
            Path("/hf/models--a--b/blobs"),
        ),
    ],
)
def test_a_download_lies_where_its_last_step_is_a_rename(place: Destination, relative: str, part_folder: Path) -> None:
    assert place.relative == PurePosixPath(relative)
    assert place.path == place.root / relative
    assert place.part_folder == part_folder


def test_an_artifact_without_a_place_in_this_kind_of_target_is_refused() -> None:
    with pytest.raises(UsageError, match="HF cache"):
        destination_for(artifact(folder=None), target())
    with pytest.raises(UsageError, match="no source on the Hub"):
        destination_for(artifact(sources=(UrlFile(url="https://example.org/x"),)), HubCacheTarget(cache=Path("/hf")))


LEAVING = ["../x", "a/../../x", "/etc/x", "..", ".", "", "a//b", "C:\\x", "C:x", "a\\..\\..\\x", "x\0y", "NUL", "x."]


@pytest.mark.parametrize("text", LEAVING)
def test_path_cannot_leave_the_root(text: str) -> None:
    hub = HubCacheTarget(cache=Path("/hf"))
    for place, bad in (
        (target(), artifact(name=text)),
        (target(), artifact(folder=text)),
        (hub, artifact(sources=(HubFile(repo_id="a/b", revision=COMMIT, filename=text),))),
        (hub, artifact(sources=(HubFile(repo_id="a/b", revision=text, filename="x"),))),
    ):
        with pytest.raises(PathOutsideRootError):
            destination_for(bad, place)


def test_a_branch_is_no_revision_in_a_cache() -> None:
    source = HubFile(repo_id="a/b", revision="main", filename="x")
    with pytest.raises(PathOutsideRootError, match="40"):
        destination_for(artifact(sources=(source,)), HubCacheTarget(cache=Path("/hf")))


@given(st.text(alphabet="ab./\\: ~C\0", max_size=12))
def test_what_is_accepted_stays_below_on_every_system(text: str) -> None:
    try:
        path = safe_relative(text)
    except PathOutsideRootError:
        return
    assert ".." not in path.parts
    for root in (PurePosixPath("/r"), PureWindowsPath("C:/r")):
        assert root in (root / str(path)).parents


# --- where ComfyUI looks -----------------------------------------------------------------------------


def test_candidates_are_in_the_order_comfyui_reads() -> None:
    yaml = "mine:\n  base_path: /data\n  is_default: true\n  diffusion_models: models/dm\nmore:\n  unet: /more/unet\n"
    found = candidates_for(artifact(), target(yaml))
    assert [(each.root.as_posix(), str(each.relative)) for each in found] == [
        ("/data/models", "dm/x.safetensors"),
        ("/opt/ComfyUI/models", "unet/x.safetensors"),
        ("/opt/ComfyUI/models", "diffusion_models/x.safetensors"),
        ("/more", "unet/x.safetensors"),
        ("/opt/ComfyUI/output", "diffusion_models/x.safetensors"),
    ]


@pytest.mark.parametrize(
    "yaml",
    [
        "",
        DEFAULT + "  vae: vae\n",
        DEFAULT + "  vae: /vae\n",
        DEFAULT + "  vae: .\n",
        DEFAULT + "  vae: /opt/ComfyUI/models\n",
        DEFAULT + "  vae: /opt/ComfyUI/models/vae\n",
    ],
)
def test_the_destination_is_one_of_the_candidates(yaml: str) -> None:
    where = target(yaml)
    wanted = artifact(folder="vae")
    assert destination_for(wanted, where) in candidates_for(wanted, where)


def test_a_folder_of_a_custom_node_and_a_cache_have_the_obvious_candidates() -> None:
    place = ComfyFile(root=MODELS, relative=PurePosixPath("some_node/x.safetensors"))
    assert candidates_for(artifact(folder="some_node"), target()) == (place,)
    assert candidates_for(artifact(), HubCacheTarget(cache=Path("/hf"))) == ()


def test_custom_nodes_are_no_place_for_models() -> None:
    yaml = "a:\n  is_default: true\n  custom_nodes: /nodes\n"
    assert {each.folder for each in target(yaml).folders}.isdisjoint({"custom_nodes", "datasets"})


# --- roots -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "base", "expected"),
    [
        (r"D:\shared\vae", r"D:\shared", r"D:\shared"),
        (r"D:\shared\Models\vae", r"D:\shared", r"D:\shared\Models"),
        (r"E:\vae", r"D:\shared", r"E:\vae"),
        (r"E:\ai\vae", None, r"E:\ai"),
        (r"\\nas\share\vae", None, r"\\nas\share\vae"),
        (r"c:\COMFY\models\vae", None, r"C:\Comfy\models"),
    ],
)
def test_receipts_live_in_the_root_a_folder_belongs_to(folder: str, base: str | None, expected: str) -> None:
    found = write_root(
        PureWindowsPath(folder),
        models=PureWindowsPath(r"C:\Comfy\models"),
        base=None if base is None else PureWindowsPath(base),
    )
    assert str(found) == expected


def test_an_old_name_in_other_letters_is_an_old_name() -> None:
    extras = [
        ExtraPath(folder="text_encoders", path=PureWindowsPath(path), is_default=True, section="s")
        for path in (r"D:\encoders", r"D:\CLIP")
    ]
    assert write_folder("text_encoders", PureWindowsPath(r"C:\m"), extras) == PureWindowsPath(r"D:\encoders")


@pytest.mark.parametrize(
    ("repo_id", "expected"),
    [("org/name", "models--org--name"), ("gpt2", "models--gpt2"), ("a/B.c_d-1", "models--a--B.c_d-1")],
)
def test_names_a_repositorys_folder_as_the_hub_client_does(repo_id: str, expected: str) -> None:
    assert repo_folder_name(repo_id) == expected


@pytest.mark.parametrize("repo_id", ["", "a/b/c", "../x", "a/..", "a\\b", "/a", "a/", "a--b/c", ".a/b", "a b/c"])
def test_refuses_what_is_no_repository(repo_id: str) -> None:
    with pytest.raises(PathOutsideRootError):
        repo_folder_name(repo_id)


def test_only_a_manifest_that_comes_with_us_puts_code_into_a_cache_and_names_main() -> None:
    wanted = artifact(sources=(replace(HUB_FILE, filename="modeling.py"),))
    with pytest.raises(UsageError, match="runs as code"):
        destination_for(wanted, HubCacheTarget(cache=Path("/hf")))
    found = destination_for(wanted, HubCacheTarget(cache=Path("/hf"), is_shipped=True))
    assert isinstance(found, HubBlob)
    assert found.is_shipped
