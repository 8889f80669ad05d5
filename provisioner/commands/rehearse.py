"""``klein-setup rehearse``: the whole job with small files against an embedded hub, every claim checked.

The code that runs is the one that runs for the real files; only the size of the model is make-believe.  Nothing
outside a scratch folder is read or written: no account, no GPU, no network but this machine's own loopback.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from provisioner.commands import rehearse_image
from provisioner.commands.install import RunUi, run_install
from provisioner.commands.look import InstallOptions, plan_run
from provisioner.commands.rehearse_image import EnvironmentChoice, SmallModel
from provisioner.commands.run import Options, Run, open_run
from provisioner.commands.session import Session, Settings
from provisioner.commands.verify_files import run_verify
from provisioner.core.errors import EXIT_OK, RehearsalError
from provisioner.core.events import Events
from provisioner.core.models import (
    BLOCK_SIZE,
    STATE_FOLDER,
)
from provisioner.core.units import human_bytes, human_duration
from provisioner.manifest.parse import parse_manifest
from provisioner.rehearsal.faults import CutAfter, WrongBytes
from provisioner.rehearsal.hub import RehearsalHub
from provisioner.rehearsal.tiny_models import TinyFile, small_comfyui_files
from provisioner.rehearsal.tiny_pipeline import small_diffusers_repository
from provisioner.report.outcome import RehearsalCheck, RehearsalResult, Report
from provisioner.smoke_test.results import SmokeTest

_TREE_REPOSITORY = "rehearsal/small-klein"
_MIRROR_REPOSITORY = "rehearsal/small-klein-mirror"
_PIPELINE_REPOSITORY = "rehearsal/small-klein-diffusers"
_REVISION = "5e0a" * 10
_TOKEN = "hf_" + "Rehearsal0nly" * 2
_ENCODER_BYTES = 40_000_000  # three blocks: enough for a cut, a continuation and a damaged block in the middle


@dataclass
class _Claims:
    """What the rehearsal says is so, each looked at with other eyes than the program's own."""

    say: Callable[[str], None]
    held: list[RehearsalCheck] = field(default_factory=list)

    def check(self, claim: str, holds: bool, seen: str) -> None:
        """Write a claim down, or raise RehearsalError if it does not hold."""
        if not holds:
            raise RehearsalError(
                f"The rehearsal found a claim that does not hold: {claim}. Seen: {seen}.",
                hint="This is a defect of klein-setup or of this machine; please report it with this line.",
                claim=claim,
                seen=seen,
            )
        self.held.append(RehearsalCheck(claim=claim, seen=seen))
        self.say(f"  ok  {claim}: {seen}")


@dataclass
class _Stage:
    """The scratch world of one rehearsal."""

    folder: Path
    hub: RehearsalHub
    manifest: Path
    files: tuple[TinyFile, ...]
    pipeline: dict[str, bytes]
    session: Session
    claims: _Claims
    say: Callable[[str], None]

    @property
    def tree(self) -> Path:
        """The ComfyUI tree."""
        return self.folder / "ComfyUI"

    @property
    def cache(self) -> Path:
        """The HF cache."""
        return self.folder / "hf-cache"

    def act(self, title: str) -> None:
        """Say what begins."""
        self.say("")
        self.say(title)

    def options(self, **more: Path | str | bool) -> Options:
        """Return a wish for this rehearsal's manifest."""
        return replace(Options(manifest=str(self.manifest), assume_yes=True), **more)  # type: ignore[arg-type]

    def run(self, session: Session | None = None, **more: Path | str | bool) -> Run:
        """Open a job as the command line would."""
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
) -> Report:
    """Play the whole job and return its report; exit status 0 only if every claim was checked and held.

    Parameters
    ----------
    events : callable
        Told what the engine tells.
    say : callable
        Told one line for a person.
    cancelled : threading.Event
        Set to stop.
    keep : bool
        Leave the scratch folder in place.
    has_image : bool
        Draw with the small pipeline in the end, for which torch is fetched unless `environment` has it.
    environment : Path, optional
        An environment with diffusers to draw in, or its Python; else one is made in the scratch folder.
    torch_index : str, optional
        Base address of the wheel index the environment's torch comes from.

    Raises
    ------
    RehearsalError
        A claim does not hold.
    SmokeTestError
        No picture came.
    KleinError
        The environment could not be made.
    """
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="klein-setup-rehearsal-"))
    claims = _Claims(say)
    try:
        with _stage(folder, claims, events, say, cancelled) as stage:
            report = _play(stage)
            choice = EnvironmentChoice(given=environment, torch_index=torch_index)
            smoke = _act_picture(stage, choice) if has_image else None
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    say("")
    say(f"Every one of {len(claims.held)} claims was checked and held, in {human_duration(time.monotonic() - began)}.")
    if keep:
        say(f"The scratch folder was kept: {folder}")
        if smoke is not None:
            say(f"The picture: {smoke.image_path}")
    say("The real thing: klein-setup plan, then klein-setup install --comfyui DIR")
    if smoke is not None and not keep:
        smoke = replace(smoke, image_path=None, log_path=None)
    return replace(
        report,
        command="rehearse",
        status="ok",
        exit_status=EXIT_OK,
        plan=None,
        outcomes=(),
        manifest_argument=None,
        rehearsal=RehearsalResult(checks=tuple(claims.held), scratch_folder=folder if keep else None),
        smoke_test=smoke,
    )


def _play(stage: _Stage) -> Report:
    """Play the acts in order; return the report of the installation."""
    _act_plan(stage)
    report = _act_install(stage)
    _act_nothing_to_do(stage)
    _act_damage(stage)
    _act_repair(stage)
    _act_share(stage)
    _act_cache(stage)
    return report


# --- the stage -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _stage(
    folder: Path, claims: _Claims, events: Events, say: Callable[[str], None], cancelled: threading.Event
) -> Iterator[_Stage]:
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
        manifest.write_text(text, encoding="utf-8")
        environ = _clean_environment(os.environ, folder)
        session = Session(
            settings=Settings(endpoint=hub.endpoint, remembers=False),
            environ=environ,
            events=events,
            cancelled=cancelled,
        )
        say(f"An embedded hub serves {len(files) + len(pipeline)} small files on {hub.endpoint}.")
        yield _Stage(folder, hub, manifest, files, pipeline, session, claims, say)


def _clean_environment(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment without the user's Hub: another cache, and a made-up token that must stay unseen."""
    kept = {name: value for name, value in environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {**kept, "HF_HUB_CACHE": str(folder / "empty-hf-cache"), "HF_TOKEN": _TOKEN}


def _manifest(files: tuple[TinyFile, ...], pipeline: Mapping[str, bytes]) -> dict[str, object]:
    tree = [_tree_artifact(each) for each in files]
    cache = [_cache_artifact(name, data) for name, data in sorted(pipeline.items())]
    return {
        "schema_version": 1,
        "id": "rehearsal",
        "title": "Small stand-ins with the published names",
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


# --- the acts ----------------------------------------------------------------------------------------


def _act_plan(stage: _Stage) -> None:
    stage.act("Plan: what is needed, before the first byte")
    run = stage.run(comfyui=stage.tree)
    plan = plan_run(run, _FILES, "claims")
    total = sum(len(each.data) for each in stage.files)
    fetched = plan.bytes_to_fetch
    stage.claims.check("the plan counts the true bytes", fetched == total, f"{fetched:,} of {total:,}")
    stage.claims.check(
        "planning asked the network nothing and wrote nothing",
        not stage.hub.requests and not stage.tree.exists(),
        f"{len(stage.hub.requests)} requests",
    )


def _act_install(stage: _Stage) -> Report:
    stage.act("Install: one connection is cut on the way, one file comes with a wrong byte from its first source")
    encoder, vae = _of_role(stage, "text_encoder"), _of_role(stage, "vae")
    stage.hub.fault(CutAfter(0.6), filename=f"*/{encoder.name}")
    stage.hub.fault(WrongBytes(count=1), filename=f"*/{vae.name}")
    report = run_install(stage.run(comfyui=stage.tree), _FILES, _UI)
    _expect(stage, "the installation ends with exit status 0", report, EXIT_OK)
    stage.claims.check("both faults happened", stage.hub.faults_waiting == 0, f"{stage.hub.faults_waiting} left unused")
    _check_tree(stage, stage.tree)
    served = _content_bytes(stage, encoder.name)
    most = len(encoder.data) + BLOCK_SIZE
    stage.claims.check(
        "the cut cost less than one block", served <= most, f"{served:,} bytes served for {len(encoder.data):,}"
    )
    asked = {request.path.split("/resolve/")[0] for request in stage.hub.requests if vae.name in request.path}
    stage.claims.check(
        "the wrong byte was refused and the second source asked",
        any(_MIRROR_REPOSITORY in path for path in asked),
        f"{len(asked)} repositories asked for {vae.name}",
    )
    _check_token(stage)
    return report


def _act_nothing_to_do(stage: _Stage) -> None:
    stage.act("Install again: nothing to do")
    before, requests = _snapshot(stage.tree), len(stage.hub.requests)
    report = run_install(stage.run(comfyui=stage.tree), _FILES, _UI)
    _expect(stage, "the second installation ends with exit status 0", report, EXIT_OK)
    asked = len(stage.hub.requests) - requests
    stage.claims.check("it fetched nothing", asked == 0, f"{asked} requests")
    stage.claims.check("it touched nothing", _snapshot(stage.tree) == before, f"{len(before)} paths unchanged")


def _act_damage(stage: _Stage) -> None:
    stage.act("Damage: one bit of the text encoder is flipped, its time stamp put back")
    encoder = _of_role(stage, "text_encoder")
    path = _path(stage.tree, encoder)
    status = path.stat()
    with path.open("r+b") as stream:
        stream.seek(len(encoder.data) // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = run_verify(stage.run(comfyui=stage.tree), is_quick=False)
    wrong = [check.destination.path.name for check in report.plan.checks if check.status != "ok"] if report.plan else []
    stage.claims.check("verify names the damaged file and no other", wrong == [encoder.name], ", ".join(wrong))
    _expect(stage, "verify ends with exit status 1", report, 1)


def _act_repair(stage: _Stage) -> None:
    stage.act("Repair: the one damaged block is fetched, proven with the rest of the file, and written into it")
    encoder = _of_role(stage, "text_encoder")
    requests, served = len(stage.hub.requests), _content_bytes(stage, encoder.name)
    report = run_install(stage.run(comfyui=stage.tree), _FILES, _UI, "repair")
    _expect(stage, "repair ends with exit status 0", report, EXIT_OK)
    fetched = {
        request.path.rpartition("/")[2]
        for request in stage.hub.requests[requests:]
        if request.listener == "hub" and request.method == "HEAD"
    }
    stage.claims.check("only the damaged file was asked for", fetched == {encoder.name}, ", ".join(sorted(fetched)))
    came = _content_bytes(stage, encoder.name) - served
    stage.claims.check("one block was fetched", 0 < came <= BLOCK_SIZE, f"{came:,} bytes of {len(encoder.data):,}")
    _check_tree(stage, stage.tree)
    aside = [path for path in (stage.tree / "models" / STATE_FOLDER / "aside").rglob("*") if path.is_file()]
    kept = [path for path in aside if path.read_bytes() == _damaged_block(encoder.data)]
    stage.claims.check("the damaged bytes were kept", len(kept) == 1, f"{len(kept)} block set aside")


def _damaged_block(data: bytes) -> bytes:
    """Return the block in the middle of a file as `_act_damage` left it."""
    at = len(data) // 2
    start = at - at % BLOCK_SIZE
    block = bytearray(data[start : start + BLOCK_SIZE])
    block[at - start] ^= 1
    return bytes(block)


def _act_share(stage: _Stage) -> None:
    stage.act("A second tree: the same bytes lie on this machine already")
    session = replace_settings(stage.session, look_in=(stage.tree,))
    second = stage.folder / "SecondComfyUI"
    requests = len(stage.hub.requests)
    report = run_install(stage.run(session, comfyui=second), _FILES, _UI)
    _expect(stage, "the second tree ends with exit status 0", report, EXIT_OK)
    asked = len(stage.hub.requests) - requests
    ways = sorted({outcome.detail.split(" ")[0] for outcome in report.outcomes})
    stage.claims.check("not one request was needed", asked == 0, f"{asked} requests, files {', '.join(ways)}")
    _check_tree(stage, second)


def _act_cache(stage: _Stage) -> None:
    stage.act("An HF cache: a whole pipeline, as the Hub's own client would keep it")
    report = run_install(stage.run(hf_cache=stage.cache), _FILES, _UI)
    _expect(stage, "the cache ends with exit status 0", report, EXIT_OK)
    from huggingface_hub import snapshot_download

    snapshot = Path(
        snapshot_download(
            _PIPELINE_REPOSITORY, revision=_REVISION, cache_dir=stage.cache, local_files_only=True, token=False
        )
    )
    differing = [name for name, data in stage.pipeline.items() if (snapshot / name).read_bytes() != data]
    stage.claims.check(
        "huggingface_hub finds the snapshot with the network off, every byte right",
        not differing,
        f"{len(stage.pipeline)} files, {human_bytes(sum(map(len, stage.pipeline.values())))}",
    )
    _check_token(stage)


def _act_picture(stage: _Stage, choice: EnvironmentChoice) -> SmokeTest:
    stage.act("Picture: the small pipeline draws in 4 steps, 64 x 64, on the CPU")
    python = rehearse_image.python_for(stage.session, choice, stage.folder, stage.say, stage.claims.check)
    stage.hub.wait_until_idle()
    before, requests = _snapshot(stage.cache), len(stage.hub.requests)
    environ = {**stage.session.environ, "HF_ENDPOINT": stage.hub.endpoint}  # whoever asks a Hub asks this one
    model = SmallModel(cache=stage.cache, repo_id=_PIPELINE_REPOSITORY, revision=_REVISION)
    run, smoke = rehearse_image.generate(
        replace(stage.session, environ=environ), python, model, stage.folder, stage.say
    )
    rehearse_image.check(stage.claims.check, run, smoke, len(stage.hub.requests) - requests)
    after = _snapshot(stage.cache)
    stage.claims.check("drawing left the cache as it was", after == before, f"{len(after)} files unchanged")
    return smoke


# --- looking with other eyes -------------------------------------------------------------------------


def _check_tree(stage: _Stage, tree: Path) -> None:
    """Hash every file anew with hashlib alone, and look for leftovers."""
    wrong = [each.name for each in stage.files if _sha256(_path(tree, each).read_bytes()) != _sha256(each.data)]
    stage.claims.check("every file has the SHA-256 the manifest names", not wrong, ", ".join(wrong) or "3 of 3")
    left = [path.name for path in tree.rglob("*.part*")] + [path.name for path in tree.rglob("*.bad")]
    stage.claims.check("no half file is left", not left, ", ".join(left) or "none")


def _check_token(stage: _Stage) -> None:
    shown = [request for request in stage.hub.requests if request.listener == "hub" and request.authorization]
    stage.claims.check(
        "the token went to the hub and to nobody else",
        bool(shown) and not stage.hub.violations,
        f"{len(shown)} requests with it, {len(stage.hub.violations)} violations",
    )


def _expect(stage: _Stage, claim: str, report: Report, status: int) -> None:
    reason = f" ({report.errors[0]})" if report.errors else ""
    stage.claims.check(claim, report.exit_status == status, f"{report.exit_status}{reason}")


def _content_bytes(stage: _Stage, name: str) -> int:
    digest = _sha256(next(each.data for each in stage.files if each.name == name))
    stage.hub.wait_until_idle()
    return sum(request.bytes_sent for request in stage.hub.requests if digest in request.path)


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def _path(tree: Path, file: TinyFile) -> Path:
    return tree / "models" / file.folder / file.name


def _of_role(stage: _Stage, role: str) -> TinyFile:
    return next(each for each in stage.files if each.role == role)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def replace_settings(session: Session, **changes: tuple[Path, ...]) -> Session:
    """Return a workbench like this one with other settings."""
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
_UI = RunUi(ask=_nobody, say=_ignore, show_plan=_ignore, show_smoke=_ignore)
