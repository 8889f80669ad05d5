"""The picture: drawn by ComfyUI or by diffusers with what is installed, measured, judged and kept."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.comfyui.server.failures import findings_in_log, nodes_missing_error
from provisioner.comfyui.server.launch import Launch
from provisioner.commands.comfyui_part import Program, check_program
from provisioner.commands.files_part import Job
from provisioner.core.errors import (
    EXIT_OK,
    GenerationError,
    ModelNotListedError,
    NotWritableError,
    SmokeTestError,
    UsageError,
)
from provisioner.core.models import ComfyTarget, Finding, Gpu, HubCacheTarget, HubFile, Machine, Report
from provisioner.core.records import dataclass, replace
from provisioner.files.layout import destination_for
from provisioner.report.smoke_test_json import SMOKE_KEY, smoke_entry
from provisioner.smoke_test.graph import (
    ENCODE,
    PHASES,
    STEP_NODE,
    Graph,
    build_graph,
    names_for,
    official_workflow_name,
    pick_listed,
    wish_for,
)
from provisioner.smoke_test.image import judge, read_picture, seed_in
from provisioner.smoke_test.measurement import describe
from provisioner.smoke_test.results import ModelNames, PictureWish, SmokeTest, Timings

if TYPE_CHECKING:
    from provisioner.comfyui.server.api import ServerFacts
    from provisioner.comfyui.server.client import ComfyClient, Drawn, DrawProgress
    from provisioner.comfyui.server.server_process import ServerProcess
    from provisioner.environment.state import Observation
    from provisioner.smoke_test.vram import VramSampler

_FIRST_ANSWER_S = 300.0  # custom nodes are imported first, and some compile something


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeWish:
    """What the command line asks for of the picture."""

    prompt: str | None = None
    seed: int | None = None  # None: a fresh one
    width: int = 1024  # pixels
    height: int = 1024
    has_tiled_decode: bool = False
    reserve_vram_gib: float | None = None
    picture: Path | None = None  # where to keep it
    server: str | None = None  # one that runs already
    timeout_s: float = 900.0


def picture_wish(job: Job, wish: SmokeWish) -> PictureWish:
    """Return the picture to ask for; raises UsageError for a size the model cannot have."""
    return wish_for(
        job.wanted,
        seed=secrets.randbits(63) if wish.seed is None else wish.seed,
        prompt=wish.prompt,
        width=wish.width,
        height=wish.height,
        has_tiled_decode=wish.has_tiled_decode,
    )


def graph_of(job: Job, wish: SmokeWish) -> Graph:
    """Return the graph in API form, with the names the files have under ComfyUI's folders; raises UsageError."""
    return build_graph(names_for(job.wanted), picture_wish(job, wish))


def run_smoke_test(
    job: Job,
    wish: SmokeWish,
    *,
    program: Program | None,
    environment: Path,
    show: Callable[[SmokeTest], None],
    report: Report | None = None,
) -> Report:
    """Draw one picture and return the report with everything known of it.

    Parameters
    ----------
    job : Job
        The set and where its files are.
    wish : SmokeWish
        What to draw.
    program : Program or None
        ComfyUI, where the target is a tree.
    environment : Path
        The virtual environment of ours, if there is one.
    show : callable
        Shown the picture's figures.
    report : Report, optional
        What the run came to so far.

    Raises
    ------
    SmokeTestError
        No picture.
    UsageError
        There is nothing to draw with.
    NotWritableError
        The picture cannot be kept where it was asked for.
    """
    machine = job.machine or job.bench.detect_machine()
    asked = picture_wish(job, wish)
    _check_place(wish)
    if isinstance(job.target, HubCacheTarget):
        smoke = _with_diffusers(job, wish, asked, machine, job.target.cache, environment)
    else:
        smoke = _with_comfyui(job, wish, asked, machine, program, environment)
    python = None if program is None else program.checkout.python
    notes = (*smoke.notes, *describe(smoke, job.wanted.envelope, machine), *_workflow_note(python))
    smoke = replace(smoke, notes=notes)
    show(smoke)
    base = report or job.report("smoke-test", "ok", EXIT_OK)
    problems = [each for each in smoke.findings if each.severity == "problem"]
    errors = tuple(SmokeTestError(each.message, hint=each.hint) for each in problems[:1])
    status = "failed" if errors else base.status
    return replace(
        base,
        machine=machine,
        status=status,
        exit_status=errors[0].exit_status if errors else base.exit_status,
        errors=(*base.errors, *errors),
        findings=(*base.findings, *(each for each in smoke.findings if each.severity != "problem")),
        extra=(*base.extra, (SMOKE_KEY, smoke_entry(smoke))),
    )


# --- ComfyUI ---------------------------------------------------------------------------------------


def _with_comfyui(
    job: Job, wish: SmokeWish, asked: PictureWish, machine: Machine, program: Program | None, environment: Path
) -> SmokeTest:
    from provisioner.comfyui.server.client import ComfyClient
    from provisioner.smoke_test.vram import VramSampler

    card = _first_card(machine, job.bench.environ)
    with (
        VramSampler(uuid=card.uuid if card else None) as sampler,
        _server(job, wish, program, environment, machine) as (
            url,
            process,
        ),
    ):
        if process is not None:
            sampler.watch(process.pid)
        with ComfyClient(url, cancelled=job.bench.cancelled.is_set, process=process) as client:
            smoke = _draw(job, wish, asked, client, process, sampler)
            if process is None or process.facts is None:
                return smoke
            return replace(smoke, findings=(*smoke.findings, *_judge_device(process.facts, card)))


@contextlib.contextmanager
def _server(
    job: Job, wish: SmokeWish, program: Program | None, environment: Path, machine: Machine
) -> Iterator[tuple[str, ServerProcess | None]]:
    """Yield the address of a server, and its process where it is one of ours, which is stopped in the end."""
    if wish.server is not None:
        yield wish.server, None
        return
    from provisioner.comfyui.server.server_process import start_server

    program, python, seen = _program_and_python(job, program, environment)
    for finding in check_program(program):
        if finding.severity == "problem":
            raise SmokeTestError(finding.message, hint=finding.hint)
    with tempfile.TemporaryDirectory(prefix="klein-setup-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        launch = Launch(
            python=python,
            tree=program.folder,
            output=folder / "output",
            user=folder / "user",
            temp=folder,
            extra=_server_options(job, wish, machine, seen),
        )
        job.bench.say_progress(f"Starting ComfyUI from {program.folder}.")
        with start_server(
            launch,
            log_path=_log_path("comfyui"),
            cancelled=job.bench.cancelled.is_set,
            timeout_s=min(_FIRST_ANSWER_S, wish.timeout_s),
            environ=job.bench.environ,
        ) as process:
            yield process.address.url, process


def official_workflow(python: Path) -> str | None:
    """Return the file name of ComfyUI's own Klein workflow, where its templates package is beside that Python.

    The packages keep them in several folders (comfyui-workflow-templates 0.11: ``_json``, ``_core``, ...).
    """
    home = python.parent.parent if python.parent.name in {"bin", "Scripts"} else python.parent
    places = [*home.glob("lib/python3*/site-packages"), home / "Lib" / "site-packages"]
    found = [each.name for place in places for each in place.glob("comfyui_workflow_templates*/templates/*.json")]
    return official_workflow_name(found)


def _workflow_note(python: Path | None) -> tuple[str, ...]:
    name = None if python is None else official_workflow(python)
    return () if name is None else (f"ComfyUI's own workflow for it is {name}, among its templates.",)


def _program_and_python(job: Job, program: Program | None, environment: Path) -> tuple[Program, Path, Observation]:
    """Return ComfyUI and the Python it is started with: the environment we made, else the tree's own."""
    if program is None or program.checkout.tree is None:
        raise UsageError(
            f"There is no ComfyUI in {_shown_target(job)} to draw with.",
            hint="Start yours and name it with --server URL, or name ComfyUI's own folder with --comfyui DIR.",
        )
    seen = job.bench.environments.observe(environment)
    if seen.receipt is not None and seen.python is not None:
        return program, seen.python.path, seen
    if program.checkout.python is not None:
        return program, program.checkout.python, seen
    raise UsageError(
        f"No Python was found for {program.folder}.",
        hint="Make an environment with `klein-setup install --only environment`, or name a server with --server URL.",
    )


def _shown_target(job: Job) -> str:
    return str(job.target.given if isinstance(job.target, ComfyTarget) else job.target.cache)


def _server_options(job: Job, wish: SmokeWish, machine: Machine, seen: Observation) -> tuple[str, ...]:
    options: list[str] = []
    backend = seen.receipt.torch_backend if seen.receipt is not None else None
    if backend in {"cpu", "default"} or (backend is None and not machine.gpus):
        options.append("--cpu")
    if wish.reserve_vram_gib is not None:
        options += ["--reserve-vram", f"{wish.reserve_vram_gib:g}"]
    for config in job.wish.extra_model_paths:
        options += ["--extra-model-paths-config", str(config.expanduser().absolute())]
    return tuple(options)


def _draw(
    job: Job,
    wish: SmokeWish,
    asked: PictureWish,
    client: ComfyClient,
    process: ServerProcess | None,
    sampler: VramSampler,
) -> SmokeTest:
    facts = client.system_stats()
    listed = client.listed_models(_classes(asked))
    if listed.missing_nodes or "flux2" not in listed.clip_types:
        missing = listed.missing_nodes or ("the type flux2 of CLIPLoader",)
        raise nodes_missing_error(missing, version=facts.comfyui_version)
    if client.address.is_loopback:
        _check_files_are_there(job)
        _check_folders(job, client.folder_paths())
    names = pick_listed(names_for(job.wanted), listed, ignore_case=_ignores_case(facts))
    graph = build_graph(names, asked)
    if process is None:  # a loader that is cached does not notice that its file was replaced
        job.bench.say_progress("Telling the server to unload, so that it reads the files that are there now.")
        client.free()
    drawn = client.draw(graph, timeout_s=wish.timeout_s, on_progress=_teller(job))
    if drawn.was_cached:
        raise GenerationError(
            "ComfyUI drew nothing: it answered with an earlier picture of the same graph from its cache.",
            hint="Leave --seed out, so that a fresh one is taken.",
            cause="cached",
        )
    picture = read_picture(drawn.picture)
    return SmokeTest(
        backend="comfyui",
        wish=asked,
        names=names,
        timings=_timings(drawn, process),
        picture=picture,
        picture_path=_keep(drawn.picture, wish, asked),
        vram=sampler.reading,
        device=_device(facts),
        versions=_versions(facts),
        log_path=None if process is None else process.log_path,
        findings=(*judge(picture, asked, drawn_seed=seed_in(drawn.picture)), *_findings_in_log(process)),
    )


def _judge_device(facts: ServerFacts, card: Gpu | None) -> tuple[Finding, ...]:
    """Say that a server of ours drew on the processor although there is a card and it was not told to."""
    if card is None or "--cpu" in facts.argv or not facts.devices or facts.devices[0].kind != "cpu":
        return ()
    return (
        Finding(
            code="picture-other-device",
            severity="problem",
            message=f"The picture was drawn on the processor, and this machine has the card {card.name}.",
            hint="`klein-setup install --only environment` chooses the torch build for it and proves it.",
        ),
    )


def _classes(asked: PictureWish) -> tuple[str, ...]:
    nothing = ModelNames(diffusion_model="", text_encoder="", vae="")
    return tuple(str(node["class_type"]) for node in build_graph(nothing, asked).values())


def _findings_in_log(process: ServerProcess | None) -> tuple[Finding, ...]:
    return () if process is None else findings_in_log(process.output(), log_path=process.log_path)


def check_server(job: Job, url: str) -> tuple[Finding, ...]:
    """Say whether a running server reads the proven files: its folders are what counts, not what a YAML says."""
    from provisioner.comfyui.server.client import ComfyClient

    with ComfyClient(url, cancelled=job.bench.cancelled.is_set) as client:
        try:
            if client.address.is_loopback:
                _check_folders(job, client.folder_paths())
            pick_listed(names_for(job.wanted), client.listed_models())
        except ModelNotListedError as error:
            return (Finding(code="server-reads-elsewhere", severity="problem", message=str(error), hint=error.hint),)
    return ()


def _check_files_are_there(job: Job) -> None:
    """Raise where a file of the set is not in its place."""
    missing = [each.path for each in (destination_for(one, job.target) for one in job.wanted.artifacts)]
    missing = [path for path in missing if not path.is_file()]
    if missing:
        raise ModelNotListedError(
            f"{missing[0]} is not there, so there is nothing to draw with.",
            hint="Run `klein-setup repair`, which says what is missing and puts it there.",
            missing=[str(path) for path in missing],
        )


def _check_folders(job: Job, folders: Mapping[str, tuple[str, ...]]) -> None:
    """Raise where the server would read another file than the one that was proven."""
    if not folders:  # an older server does not say
        return
    for artifact in job.wanted.artifacts:
        if artifact.folder is None:
            continue
        kind = artifact.folder.partition("/")[0]
        place = destination_for(artifact, job.target).path
        below = Path(*Path(artifact.folder).parts[1:], artifact.name)
        read = [Path(each) for each in folders.get(kind, ())]
        first = next((each / below for each in read if (each / below).exists()), None)
        if first is None or not _is_same(first, place):
            reads = f"its folders for {kind} are {', '.join(map(str, read)) or 'none'}"
            other = f"it reads {first} under that name"
            raise ModelNotListedError(
                f"The server does not read the proven file {place}: {reads if first is None else other}.",
                hint="Start it with the same folders (extra_model_paths.yaml, --base-directory), or name its own tree "
                "with --comfyui DIR.",
                missing=[f"{kind}/{below.as_posix()}"],
            )


def _is_same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False


def _ignores_case(facts: ServerFacts) -> bool:
    return (facts.os or "").lower() in {"nt", "win32", "windows", "darwin"}


def _teller(job: Job) -> Callable[[DrawProgress], None]:
    """Return what turns the server's words into lines, each said once."""
    words = {"load": "Reading the models.", "encode": "Encoding the prompt.", "decode": "Decoding the picture."}
    said: set[str] = set()

    def tell(progress: DrawProgress) -> None:
        line = words.get(PHASES.get(progress.node_id or "", ""))
        if progress.node_id == STEP_NODE and progress.value is not None and progress.maximum:
            line = f"Step {progress.value:.0f} of {progress.maximum:.0f}."
        if line is not None and line not in said:
            said.add(line)
            job.bench.say_progress(line)

    return tell


def _timings(drawn: Drawn, process: ServerProcess | None) -> Timings:
    """Return the seconds of each part, of the nodes that belong to it; None where the connection was lost."""
    from provisioner.comfyui.server.messages import step_seconds

    spent: dict[str, float] = {}
    for node in drawn.nodes:
        phase = PHASES.get(node.node_id, "other")
        spent[phase] = spent.get(phase, 0.0) + node.seconds
    return Timings(
        start_s=None if process is None else process.start_s,
        load_s=spent.get("load"),
        encode_s=spent.get(PHASES[ENCODE]),
        steps_s=step_seconds(STEP_NODE, drawn.nodes, drawn.steps),
        decode_s=spent.get("decode"),
        total_s=drawn.total_s,
    )


def _device(facts: ServerFacts) -> str | None:
    return facts.devices[0].name if facts.devices else None


def _versions(facts: ServerFacts) -> tuple[tuple[str, str], ...]:
    pairs = (("comfyui", facts.comfyui_version), ("torch", facts.torch_version), ("python", facts.python_version))
    return tuple((name, version) for name, version in pairs if version)


# --- diffusers -------------------------------------------------------------------------------------


def _with_diffusers(
    job: Job, wish: SmokeWish, asked: PictureWish, machine: Machine, cache: Path, environment: Path
) -> SmokeTest:
    from provisioner.machine.process import run
    from provisioner.smoke_test.diffusers_run import draw_with_diffusers
    from provisioner.smoke_test.vram import VramSampler

    if wish.server is not None:
        raise UsageError("--server names a ComfyUI, and the set is for diffusers.", hint="Leave one of them out.")
    seen = job.bench.environments.observe(environment)
    if seen.python is None:
        raise UsageError(
            f"There is no environment in {environment} to draw with.",
            hint="Make it with `klein-setup install --only environment`, or name one with --environment DIR.",
        )
    repo_id, revision = _pipeline_of(job)
    card = _first_card(machine, job.bench.environ)
    output = wish.picture or _picture_path(asked)
    backend = seen.receipt.torch_backend if seen.receipt is not None else None
    with VramSampler(uuid=card.uuid if card else None) as sampler:

        def hear(event: object) -> None:
            pid = getattr(event, "pid", None)
            if pid is not None:
                sampler.watch(pid)
            sentence = getattr(event, "sentence", lambda: None)()
            if sentence:
                job.bench.say_progress(sentence)

        done = draw_with_diffusers(
            seen.python.path,
            run=run,
            cache=cache,
            repo_id=repo_id,
            revision=revision,
            wish=asked,
            output=output,
            log_path=_log_path("diffusers"),
            timeout_s=wish.timeout_s,
            device="cpu" if backend in {"cpu", "default"} else "auto",
            environ=job.bench.environ,
            cancelled=job.bench.cancelled.is_set,
            on_event=hear,
        )
    picture = read_picture(done.picture)
    return done.smoke_test(asked, picture=picture, vram=sampler.reading, findings=judge(picture, asked))


def _pipeline_of(job: Job) -> tuple[str, str]:
    """Return the repository and the commit of the pipeline's index."""
    for artifact in job.wanted.artifacts:
        source = artifact.sources[0]
        if artifact.name == "model_index.json" and isinstance(source, HubFile):
            return source.repo_id, source.revision
    raise UsageError(f"The set {job.wanted.id} holds no pipeline.", hint="Choose a set for diffusers.")


# --- both ------------------------------------------------------------------------------------------


def _first_card(machine: Machine, environ: Mapping[str, str]) -> Gpu | None:
    """Return the card that CUDA calls the first, as far as that can be told: NVML knows no CUDA_VISIBLE_DEVICES."""
    cards = [each for each in machine.gpus if each.vendor == "nvidia"]
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    for card in cards:
        if visible and (visible == str(card.index) or (card.uuid or "").lower().startswith(visible.lower())):
            return card
    return cards[0] if cards else None


def _log_path(what: str) -> Path:
    from provisioner.disk.locations import state_folder

    return state_folder() / "logs" / time.strftime(f"{what}-%Y%m%dT%H%M%SZ.txt", time.gmtime())


def _picture_path(asked: PictureWish) -> Path:
    from provisioner.disk.locations import data_folder

    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return data_folder() / "pictures" / f"klein-{stamp}-{asked.seed}.png"


def _check_place(wish: SmokeWish) -> None:
    """Raise before anything is drawn where the picture could not be kept: drawing takes minutes on some machines."""
    if wish.picture is None:
        return
    path = wish.picture.expanduser().absolute()
    folder = next((each for each in path.parents if os.path.lexists(each)), path.parent)
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "it is a folder" if path.is_dir() else f"{folder} is no folder that can be written to"
        raise _not_kept(path, reason)


def _keep(picture: bytes, wish: SmokeWish, asked: PictureWish) -> Path:
    """Write the picture; raises NotWritableError where that is not possible."""
    path = (wish.picture or _picture_path(asked)).expanduser().absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    except OSError as error:
        raise _not_kept(path, error.strerror or str(error)) from error
    return path


def _not_kept(path: Path, reason: str) -> NotWritableError:
    return NotWritableError(
        f"The picture cannot be kept as {path}: {reason}.",
        hint="Name another file with --picture FILE.",
        path=str(path),
    )
