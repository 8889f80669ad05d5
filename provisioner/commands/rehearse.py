"""``klein-setup rehearse``: the whole installation with small files from an embedded hub, every result checked.

The code is the same as for the real files; only the models are small.  Nothing outside a scratch folder is read, and
nothing but the image kept outside of it: no account, no GPU, and no network except this machine's loopback.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from provisioner.commands import rehearse_image
from provisioner.commands.from_workflow import FromWorkflowOptions, run_from_workflow
from provisioner.commands.install import RunUi, run_install
from provisioner.commands.look import InstallOptions, plan_run
from provisioner.commands.rehearse_image import EnvironmentChoice, SmallModel
from provisioner.commands.run import Options, Run, load_manifest, open_run
from provisioner.commands.session import Session, Settings
from provisioner.commands.verify_files import run_verify
from provisioner.core.errors import EXIT_OK, RehearsalError, StorageError
from provisioner.core.events import Events
from provisioner.core.models import BLOCK_SIZE, STATE_FOLDER
from provisioner.core.units import human_bytes, human_duration
from provisioner.disk.root import Root, flip_bit, scratch_folder, write_output
from provisioner.manifest.parse import parse_manifest
from provisioner.rehearsal.faults import CutAfter, WrongBytes
from provisioner.rehearsal.hub import RehearsalHub
from provisioner.rehearsal.other_model import other_model
from provisioner.rehearsal.tiny_models import TinyFile, small_comfyui_files
from provisioner.rehearsal.tiny_pipeline import small_diffusers_repository
from provisioner.report.outcome import DEFAULT_MANIFEST, RehearsalCheck, RehearsalResult, Report
from provisioner.smoke_test.results import SmokeTest

_TREE_REPOSITORY = "rehearsal/small-klein"
_MIRROR_REPOSITORY = "rehearsal/small-klein-mirror"
_PIPELINE_REPOSITORY = "rehearsal/small-klein-diffusers"
_REVISION = "5e0a" * 10
_TOKEN = "hf_" + "Rehearsal0nly" * 2
_ENCODER_BYTES = 40_000_000  # three blocks: enough for a cut, a continuation and a damaged block in the middle


@dataclass
class _Checks:
    """The checks that passed; each compares what the program did with what can be seen without its code."""

    say: Callable[[str], None]
    passed: list[RehearsalCheck] = field(default_factory=list)

    def check(self, name: str, ok: bool, seen: str) -> None:
        """Note and print a check that passed; raise RehearsalError if it failed."""
        if not ok:
            raise RehearsalError(
                f"A check of the rehearsal failed: {name}. Seen: {seen}.",
                hint="This is a bug in klein-setup or a problem of this machine; please report it with this line.",
                claim=name,
                seen=seen,
            )
        self.passed.append(RehearsalCheck(claim=name, seen=seen))
        self.say(f"  ok  {name}: {seen}")


@dataclass
class _Sandbox:
    """The scratch folder of one rehearsal, its hub and its small models."""

    folder: Path
    hub: RehearsalHub
    manifest: Path
    files: tuple[TinyFile, ...]
    pipeline: dict[str, bytes]
    session: Session
    checks: _Checks
    say: Callable[[str], None]
    comfyui: Path | None = None  # the user's, which generates an image of the other model

    @property
    def tree(self) -> Path:
        """The ComfyUI tree."""
        return self.folder / "ComfyUI"

    @property
    def other_tree(self) -> Path:
        """The ComfyUI tree of the other model."""
        return self.folder / "OtherComfyUI"

    @property
    def cache(self) -> Path:
        """The HF cache."""
        return self.folder / "hf-cache"

    def step(self, title: str) -> None:
        """Print the title of the step that begins."""
        self.say("")
        self.say(title)

    def options(self, **more: Path | str | bool) -> Options:
        """Return options with this rehearsal's manifest."""
        return replace(Options(manifest=str(self.manifest), assume_yes=True), **more)  # type: ignore[arg-type]

    def run(self, session: Session | None = None, **more: Path | str | bool) -> Run:
        """Open a run as the command line would."""
        return open_run(session or self.session, self.options(**more))


def rehearse(
    *,
    events: Events,
    say: Callable[[str], None],
    cancelled: threading.Event,
    keep: bool = False,
    has_image: bool = False,
    environment: Path | None = None,
    torch_index: str | None = None,
    image_folder: Path | None = None,
    comfyui: Path | None = None,
) -> Report:
    """Run every step and return the report; exit status 0 only if every check passed.

    Parameters
    ----------
    events : callable
        Receives the events of the engine.
    say : callable
        Prints one line.
    cancelled : threading.Event
        Set to stop.
    keep : bool
        Do not delete the scratch folder at the end.
    has_image : bool
        Generate an image with the small pipeline as the last step; torch is fetched unless `environment` has it.
    environment : Path, optional
        An environment with diffusers, or its Python; by default one is made in the scratch folder.
    torch_index : str, optional
        Base address of the wheel index the environment's torch comes from.
    image_folder : Path, optional
        Where the image is kept when the scratch folder is deleted; None: it is deleted, too.
    comfyui : Path, optional
        A ComfyUI with its requirements, which generates an image of the other model; nothing in it is changed.

    Raises
    ------
    RehearsalError
        A check failed.
    UsageError
        There is no ComfyUI in `comfyui`, or no Python in `environment`.
    SmokeTestError
        No image was generated.
    KleinError
        The environment could not be made.
    """
    began = time.monotonic()
    checks = _Checks(say)
    with (
        scratch_folder("klein-setup-rehearsal-", is_kept=keep) as folder,
        _prepared(folder, checks, events, say, cancelled) as sandbox,
    ):
        if comfyui is not None and has_image:
            rehearse_image.program_in(sandbox.run(comfyui=comfyui))
            sandbox.comfyui = comfyui
        report, other = _run_steps(sandbox)
        choice = EnvironmentChoice(given=environment, torch_index=torch_index)
        smoke = _step_image(sandbox, choice) if has_image else None
        if sandbox.comfyui is not None:
            _step_other_image(sandbox, other, sandbox.comfyui)
        if smoke is not None and not keep:
            smoke = replace(smoke, image_path=_kept_image(smoke, image_folder), log_path=None)
    say("")
    done = len(checks.passed)
    say(f"{done} of {done} checks passed in {human_duration(time.monotonic() - began)}.")
    if keep:
        say(f"The scratch folder was kept: {folder}")
    if smoke is not None:
        where = smoke.image_path or "deleted with the scratch folder; --keep keeps both"
        say(f"The image, made by small stand-ins, so it shows noise: {where}")
    say("To install the real models: `klein-setup plan`, then `klein-setup install`.")
    return replace(
        report,
        command="rehearse",
        status="ok",
        exit_status=EXIT_OK,
        plan=None,
        outcomes=(),
        manifest_argument=None,
        rehearsal=RehearsalResult(checks=tuple(checks.passed), scratch_folder=folder if keep else None),
        smoke_test=smoke,
    )


def _kept_image(smoke: SmokeTest, folder: Path | None) -> Path | None:
    """Copy the image into `folder` and return its new path; None where that is not possible."""
    if smoke.image_path is None or folder is None:
        return None
    path = folder / "klein-rehearsal.png"
    try:
        Root(folder).make_folder()
        write_output(path, smoke.image_path.read_bytes())
    except StorageError:  # the rehearsal was a success all the same
        return None
    return path


def _run_steps(sandbox: _Sandbox) -> tuple[Report, Path]:
    """Run the steps in order; return the report of the installation, and the manifest of the other model."""
    _step_plan(sandbox)
    report = _step_install(sandbox)
    _step_nothing_to_do(sandbox)
    _step_damage(sandbox)
    _step_repair(sandbox)
    _step_share(sandbox)
    _step_cache(sandbox)
    return report, _step_other_model(sandbox)


# --- the sandbox -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _prepared(
    folder: Path, checks: _Checks, events: Events, say: Callable[[str], None], cancelled: threading.Event
) -> Iterator[_Sandbox]:
    """Write small models, publish them on an embedded hub, and make a manifest that names them."""
    files = small_comfyui_files(scale_bytes=_ENCODER_BYTES)
    pipeline = small_diffusers_repository()
    with RehearsalHub() as hub:
        published = {f"split_files/{each.folder}/{each.name}": each.data for each in files}
        hub.add_repository(_TREE_REPOSITORY, _REVISION, published, tokens=[_TOKEN])
        hub.add_repository(_MIRROR_REPOSITORY, _REVISION, published, tokens=[_TOKEN])
        hub.add_repository(_PIPELINE_REPOSITORY, _REVISION, pipeline, tokens=[_TOKEN])
        manifest = folder / "rehearsal.yaml"
        text = json.dumps(_manifest(files, pipeline), indent=1)
        parse_manifest(text, file=str(manifest))
        write_output(manifest, text.encode("utf-8"))
        environ = _clean_environment(os.environ, folder)
        session = Session(
            settings=Settings(endpoint=hub.endpoint, sends_token=True, remembers=False),
            environ=environ,
            events=events,
            cancelled=cancelled,
        )
        say(f"An embedded hub serves {len(files) + len(pipeline)} small files on {hub.endpoint}.")
        yield _Sandbox(folder, hub, manifest, files, pipeline, session, checks, say)


def _clean_environment(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return `environ` without the user's Hub settings: an empty cache, a made-up token for the embedded hub."""
    kept = {name: value for name, value in environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {**kept, "HF_HUB_CACHE": str(folder / "empty-hf-cache"), "HF_TOKEN": _TOKEN}


def _manifest(files: tuple[TinyFile, ...], pipeline: Mapping[str, bytes]) -> dict[str, object]:
    tree = [_tree_artifact(each) for each in files]
    cache = [_cache_artifact(name, data) for name, data in sorted(pipeline.items())]
    return {
        "schema_version": 1,
        "id": "rehearsal",
        "title": "Small stand-ins with the published names",
        "is_stand_in": True,
        "licence": {
            "name": "CC0-1.0",
            "url": "https://creativecommons.org/publicdomain/zero/1.0/",
            "is_commercial_use_allowed": True,
        },
        "default_set": "tree",
        "sets": [
            {
                "id": "tree",
                "title": "Three files for a ComfyUI tree",
                "target": "comfyui",
                "artifacts": [each["id"] for each in tree],
                "recipe": _recipe(),
            },
            {
                "id": "cache",
                "title": "A whole pipeline for an HF cache",
                "target": "hf_cache",
                "artifacts": [each["id"] for each in cache],
            },
        ],
        "artifacts": [*tree, *cache],
    }


def _recipe() -> dict[str, object]:
    """Return how an image is made with the set whose stand-ins these are: the default one."""
    manifest = load_manifest(DEFAULT_MANIFEST)
    default = manifest.set_named(manifest.default_set)
    known = {} if default is None or default.recipe is None else asdict(default.recipe)
    return {key: value for key, value in known.items() if value is not None}


def _tree_artifact(file: TinyFile) -> dict[str, object]:
    filename = f"split_files/{file.folder}/{file.name}"
    return {
        "id": file.role.replace("_", "-"),
        "role": file.role,
        "name": file.name,
        "folder": file.folder,
        "size": len(file.data),
        "sha256": _sha256(file.data),
        "sources": [_source(_TREE_REPOSITORY, filename), _source(_MIRROR_REPOSITORY, filename)],
    }


def _cache_artifact(filename: str, data: bytes) -> dict[str, object]:
    is_tensors = filename.endswith(".safetensors")
    return {
        "id": "cache-" + filename.lower().replace("/", "-").replace("_", "-"),
        "role": "other",
        "name": filename.rpartition("/")[2],
        "size": len(data),
        "sha256": _sha256(data),
        "sources": [_source(_PIPELINE_REPOSITORY, filename)],
        "is_lfs": is_tensors,
    }


def _source(repo_id: str, filename: str) -> dict[str, str]:
    return {"repo_id": repo_id, "revision": _REVISION, "filename": filename}


# --- the steps ---------------------------------------------------------------------------------------


def _step_plan(sandbox: _Sandbox) -> None:
    sandbox.step("Plan: what is needed, before anything is fetched")
    run = sandbox.run(comfyui=sandbox.tree)
    plan = plan_run(run, _FILES, "claims")
    total = sum(len(each.data) for each in sandbox.files)
    fetched = plan.bytes_to_fetch
    sandbox.checks.check("the plan shows the right number of bytes", fetched == total, f"{fetched:,} of {total:,}")
    sandbox.checks.check(
        "planning sent no request and wrote nothing",
        not sandbox.hub.requests and not sandbox.tree.exists(),
        f"{len(sandbox.hub.requests)} requests",
    )


def _step_install(sandbox: _Sandbox) -> Report:
    sandbox.step(
        "Install: one connection breaks during the download, one file arrives with a wrong byte from its first source"
    )
    encoder, vae = _of_role(sandbox, "text_encoder"), _of_role(sandbox, "vae")
    sandbox.hub.fault(CutAfter(0.6), filename=f"*/{encoder.name}")
    sandbox.hub.fault(WrongBytes(count=1), filename=f"*/{vae.name}")
    report = run_install(sandbox.run(comfyui=sandbox.tree), _FILES, _UI)
    _expect(sandbox, "the installation ends with exit status 0", report, EXIT_OK)
    sandbox.checks.check(
        "both faults happened", sandbox.hub.faults_waiting == 0, f"{sandbox.hub.faults_waiting} left unused"
    )
    _check_tree(sandbox, sandbox.tree)
    served = _content_bytes(sandbox, encoder.name)
    most = len(encoder.data) + BLOCK_SIZE
    sandbox.checks.check(
        "the broken connection cost less than one block",
        served <= most,
        f"{served:,} bytes served for {len(encoder.data):,}",
    )
    asked = {request.path.split("/resolve/")[0] for request in sandbox.hub.requests if vae.name in request.path}
    sandbox.checks.check(
        "the wrong byte was found and the second source used",
        any(_MIRROR_REPOSITORY in path for path in asked),
        f"{len(asked)} repositories were asked for {vae.name}",
    )
    _check_token(sandbox)
    return report


def _step_nothing_to_do(sandbox: _Sandbox) -> None:
    sandbox.step("Install again: nothing to do")
    before, requests = _snapshot(sandbox.tree), len(sandbox.hub.requests)
    report = run_install(sandbox.run(comfyui=sandbox.tree), _FILES, _UI)
    _expect(sandbox, "the second installation ends with exit status 0", report, EXIT_OK)
    asked = len(sandbox.hub.requests) - requests
    sandbox.checks.check("it fetched nothing", asked == 0, f"{asked} requests")
    sandbox.checks.check("it changed nothing", _snapshot(sandbox.tree) == before, f"{len(before)} paths unchanged")


def _step_damage(sandbox: _Sandbox) -> None:
    sandbox.step("Damage: one bit of the text encoder is flipped, its modification time is kept")
    encoder = _of_role(sandbox, "text_encoder")
    path = _path(sandbox.tree, encoder)
    flip_bit(path, len(encoder.data) // 2)
    report = run_verify(sandbox.run(comfyui=sandbox.tree), is_quick=False)
    wrong = [check.destination.path.name for check in report.plan.checks if check.status != "ok"] if report.plan else []
    sandbox.checks.check("verify names the damaged file and no other", wrong == [encoder.name], ", ".join(wrong))
    _expect(sandbox, "verify ends with exit status 1", report, 1)


def _step_repair(sandbox: _Sandbox) -> None:
    sandbox.step("Repair: the one damaged block is fetched, verified with the rest of the file, and written into it")
    encoder = _of_role(sandbox, "text_encoder")
    requests, served = len(sandbox.hub.requests), _content_bytes(sandbox, encoder.name)
    report = run_install(sandbox.run(comfyui=sandbox.tree), _FILES, _UI, "repair")
    _expect(sandbox, "repair ends with exit status 0", report, EXIT_OK)
    fetched = {
        request.path.rpartition("/")[2]
        for request in sandbox.hub.requests[requests:]
        if request.listener == "hub" and request.method == "HEAD"
    }
    sandbox.checks.check("only the damaged file was requested", fetched == {encoder.name}, ", ".join(sorted(fetched)))
    came = _content_bytes(sandbox, encoder.name) - served
    sandbox.checks.check("one block was fetched", 0 < came <= BLOCK_SIZE, f"{came:,} bytes of {len(encoder.data):,}")
    _check_tree(sandbox, sandbox.tree)
    backups = [path for path in (sandbox.tree / "models" / STATE_FOLDER / "aside").rglob("*") if path.is_file()]
    kept = [path for path in backups if path.read_bytes() == _damaged_block(encoder.data)]
    sandbox.checks.check("the damaged bytes were kept", len(kept) == 1, f"{len(kept)} block in the backups")


def _damaged_block(data: bytes) -> bytes:
    """Return the block in the middle of a file as `_step_damage` left it."""
    at = len(data) // 2
    start = at - at % BLOCK_SIZE
    block = bytearray(data[start : start + BLOCK_SIZE])
    block[at - start] ^= 1
    return bytes(block)


def _step_share(sandbox: _Sandbox) -> None:
    sandbox.step("A second ComfyUI folder: the same files are already on this machine")
    session = replace_settings(sandbox.session, look_in=(sandbox.tree,))
    second = sandbox.folder / "SecondComfyUI"
    requests = len(sandbox.hub.requests)
    report = run_install(sandbox.run(session, comfyui=second), _FILES, _UI)
    _expect(sandbox, "the installation into the second folder ends with exit status 0", report, EXIT_OK)
    asked = len(sandbox.hub.requests) - requests
    ways = sorted({outcome.detail.split(" ")[0] for outcome in report.outcomes})
    sandbox.checks.check("no request was needed", asked == 0, f"{asked} requests, files {', '.join(ways)}")
    _check_tree(sandbox, second)


def _step_cache(sandbox: _Sandbox) -> None:
    sandbox.step("An HF cache: a whole pipeline, stored as huggingface_hub stores it")
    report = run_install(sandbox.run(hf_cache=sandbox.cache), _FILES, _UI)
    _expect(sandbox, "the installation into the cache ends with exit status 0", report, EXIT_OK)
    from huggingface_hub import snapshot_download

    snapshot = Path(
        snapshot_download(
            _PIPELINE_REPOSITORY, revision=_REVISION, cache_dir=sandbox.cache, local_files_only=True, token=False
        )
    )
    differing = [name for name, data in sandbox.pipeline.items() if (snapshot / name).read_bytes() != data]
    sandbox.checks.check(
        "huggingface_hub finds the snapshot offline, every byte correct",
        not differing,
        f"{len(sandbox.pipeline)} files, {human_bytes(sum(map(len, sandbox.pipeline.values())))}",
    )
    _check_token(sandbox)


def _step_other_model(sandbox: _Sandbox) -> Path:
    sandbox.step("Another model: its names were made up just now, and its manifest is made of a workflow")
    name = f"model{secrets.token_hex(4)}"
    other = other_model(name, is_loadable=sandbox.comfyui is not None)
    sandbox.hub.add_repository(other.repo_id, _REVISION, other.published, tokens=[_TOKEN], licence="mit")
    workflow, manifest = sandbox.folder / f"{name}.json", sandbox.folder / f"{name}.yaml"
    write_output(workflow, other.workflow)
    report = run_from_workflow(
        sandbox.session, FromWorkflowOptions(workflow=str(workflow), output=manifest), say=_ignore
    )
    _expect(sandbox, "its manifest is made with exit status 0", report, EXIT_OK)
    pinned = {
        (each.folder, each.name, each.size, each.sha256, getattr(each.sources[0], "revision", ""))
        for each in load_manifest(str(manifest)).artifacts
    }
    served = {(each.folder, each.name, len(each.data), _sha256(each.data), _REVISION) for each in other.files}
    sandbox.checks.check(
        "every file of the workflow is pinned to a commit, with its size and SHA-256",
        pinned == served,
        ", ".join(sorted(name for _, name, *_ in pinned)),
    )
    tree = sandbox.other_tree

    def run() -> Run:
        return sandbox.run(manifest=str(manifest), comfyui=tree)

    _expect(sandbox, "it is installed with exit status 0", run_install(run(), _FILES, _UI), EXIT_OK)
    _check_tree(sandbox, tree, other.files)
    damaged = other.files[0]
    flip_bit(_path(tree, damaged), len(damaged.data) // 2)
    report = run_verify(run(), is_quick=False)
    wrong = [check.destination.path.name for check in report.plan.checks if check.status != "ok"] if report.plan else []
    sandbox.checks.check("verify names its damaged file and no other", wrong == [damaged.name], ", ".join(wrong))
    _expect(sandbox, "it is repaired with exit status 0", run_install(run(), _FILES, _UI, "repair"), EXIT_OK)
    _check_tree(sandbox, tree, other.files)
    return manifest


def _step_image(sandbox: _Sandbox, choice: EnvironmentChoice) -> SmokeTest:
    sandbox.step("Image: the small pipeline generates one in 4 steps, 64 x 64, on the CPU")
    python = rehearse_image.python_for(sandbox.session, choice, sandbox.folder, sandbox.say, sandbox.checks.check)
    sandbox.hub.wait_until_idle()
    before, requests = _snapshot(sandbox.cache), len(sandbox.hub.requests)
    environ = {**sandbox.session.environ, "HF_ENDPOINT": sandbox.hub.endpoint}  # any request to a Hub goes to this one
    model = SmallModel(cache=sandbox.cache, repo_id=_PIPELINE_REPOSITORY, revision=_REVISION)
    run, smoke = rehearse_image.generate(
        replace(sandbox.session, environ=environ), python, model, sandbox.folder, sandbox.say
    )
    rehearse_image.check_image(sandbox.checks.check, run, smoke, len(sandbox.hub.requests) - requests)
    after = _snapshot(sandbox.cache)
    sandbox.checks.check(
        "generating the image did not change the cache", after == before, f"{len(after)} files unchanged"
    )
    return smoke


def _step_other_image(sandbox: _Sandbox, manifest: Path, comfyui: Path) -> None:
    sandbox.step(f"Image of the other model: ComfyUI of {comfyui} generates what its workflow says, on the CPU")
    run = sandbox.run(manifest=str(manifest), comfyui=sandbox.other_tree)
    run.manifest = replace(run.manifest, is_stand_in=True)
    program = sandbox.run(manifest=str(manifest), comfyui=comfyui)
    smoke = rehearse_image.generate_by_comfyui(run, program, sandbox.other_tree)
    rehearse_image.check_other_image(sandbox.checks.check, smoke)


# --- checks without the program's own code -------------------------------------------------------------------------


def _check_tree(sandbox: _Sandbox, tree: Path, files: tuple[TinyFile, ...] | None = None) -> None:
    """Hash every file again with hashlib alone, and look for leftover files."""
    wrong = [
        each.name for each in files or sandbox.files if _sha256(_path(tree, each).read_bytes()) != _sha256(each.data)
    ]
    sandbox.checks.check("every file has the SHA-256 the manifest names", not wrong, ", ".join(wrong) or "3 of 3")
    left = [path.name for path in tree.rglob("*.part*")] + [path.name for path in tree.rglob("*.bad")]
    sandbox.checks.check("no unfinished file is left", not left, ", ".join(left) or "none")


def _check_token(sandbox: _Sandbox) -> None:
    shown = [request for request in sandbox.hub.requests if request.listener == "hub" and request.authorization]
    sandbox.checks.check(
        "the token was sent to the hub and to nobody else",
        bool(shown) and not sandbox.hub.violations,
        f"{len(shown)} requests with it, {len(sandbox.hub.violations)} violations",
    )


def _expect(sandbox: _Sandbox, name: str, report: Report, status: int) -> None:
    reason = f" ({report.errors[0]})" if report.errors else ""
    sandbox.checks.check(name, report.exit_status == status, f"{report.exit_status}{reason}")


def _content_bytes(sandbox: _Sandbox, name: str) -> int:
    digest = _sha256(next(each.data for each in sandbox.files if each.name == name))
    sandbox.hub.wait_until_idle()
    return sum(request.bytes_sent for request in sandbox.hub.requests if digest in request.path)


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def _path(tree: Path, file: TinyFile) -> Path:
    return tree / "models" / file.folder / file.name


def _of_role(sandbox: _Sandbox, role: str) -> TinyFile:
    return next(each for each in sandbox.files if each.role == role)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def replace_settings(session: Session, **changes: tuple[Path, ...]) -> Session:
    """Return a copy of the session with other settings."""
    return Session(
        settings=replace(session.settings, **changes),  # type: ignore[arg-type]
        environ=session.environ,
        events=session.events,
        cancelled=session.cancelled,
    )


def _nobody(question: str) -> bool:
    raise RehearsalError(f"The rehearsal was asked a question: {question}")


def _ignore(shown: object) -> None:
    """Show nothing: a rehearsal shows its checks."""


_FILES = InstallOptions(parts=frozenset({"files"}))
_UI = RunUi(ask=_nobody, show_plan=_ignore, show_smoke=_ignore)
