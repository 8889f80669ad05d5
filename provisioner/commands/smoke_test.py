"""The picture: drawn by ComfyUI or by diffusers with what is installed, measured, judged and kept."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.comfyui.server.failures import findings_in_log, nodes_missing_error
from provisioner.comfyui.server.launch import Launch, parse_address
from provisioner.commands.inspect_comfyui import ComfyUIInstall, check_comfyui
from provisioner.commands.run import Run
from provisioner.core.errors import (
    EXIT_OK,
    GenerationError,
    MemoryExhaustedError,
    ModelNotListedError,
    NotWritableError,
    SmokeTestError,
    UsageError,
)
from provisioner.core.models import (
    ComfyTarget,
    Finding,
    Gpu,
    HubCacheTarget,
    HubFile,
    Machine,
)
from provisioner.files.layout import destination_for
from provisioner.report.outcome import Report
from provisioner.smoke_test.graph import (
    ENCODE,
    PHASES,
    STEP_NODE,
    Graph,
    build_graph,
    names_for,
    official_workflow_name,
    options_for,
    pick_listed,
)
from provisioner.smoke_test.image import judge, read_image, seed_in
from provisioner.smoke_test.measurement import describe, memory_advice
from provisioner.smoke_test.results import ImageOptions, ModelNames, SmokeTest, Timings

if TYPE_CHECKING:
    from provisioner.comfyui.server.api import ServerFacts
    from provisioner.comfyui.server.client import ComfyClient, Generated, GenerationProgress
    from provisioner.comfyui.server.server_process import ServerProcess
    from provisioner.environment.state import Observation
    from provisioner.smoke_test.vram import VramSampler

_FIRST_ANSWER_S = 300.0  # custom nodes are imported first, and some compile something


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeTestOptions:
    """What the command line asks for of the picture."""

    prompt: str | None = None
    seed: int | None = None  # None: a fresh one
    width: int = 1024  # pixels
    height: int = 1024
    has_tiled_decode: bool = False
    reserve_vram_gib: float | None = None
    image: Path | None = None  # where to keep it
    server: str | None = None  # one that runs already
    timeout_s: float = 900.0


def image_options(run: Run, options: SmokeTestOptions) -> ImageOptions:
    """Return the picture to ask for; raises UsageError for a size the model cannot have."""
    return options_for(
        run.wanted,
        seed=secrets.randbits(63) if options.seed is None else options.seed,
        prompt=options.prompt,
        width=options.width,
        height=options.height,
        has_tiled_decode=options.has_tiled_decode,
    )


def graph_of(run: Run, options: SmokeTestOptions) -> Graph:
    """Return the graph in API form, with the names the files have under ComfyUI's folders; raises UsageError."""
    return build_graph(names_for(run.wanted), image_options(run, options))


def run_smoke_test(
    run: Run,
    options: SmokeTestOptions,
    *,
    comfyui: ComfyUIInstall | None,
    environment: Path,
    show: Callable[[SmokeTest], None],
) -> Report:
    """Generate the test image with what is installed; return the report of it.  Raises as `generate_image`."""
    smoke = generate_image(run, options, comfyui=comfyui, environment=environment, show=show)
    return with_smoke_test(run.report("smoke-test", "ok", EXIT_OK), smoke)


def with_smoke_test(report: Report, smoke: SmokeTest) -> Report:
    """Return a report with the test image in it; a problem of the image makes it fail."""
    problems = [each for each in smoke.findings if each.severity == "problem"]
    errors = tuple(SmokeTestError(each.message, hint=each.hint) for each in problems[:1])
    return replace(
        report,
        status="failed" if errors else report.status,
        exit_status=errors[0].exit_status if errors else report.exit_status,
        errors=(*report.errors, *errors),
        findings=(*report.findings, *(each for each in smoke.findings if each.severity != "problem")),
        smoke_test=smoke,
    )


def generate_image(
    run: Run,
    options: SmokeTestOptions,
    *,
    comfyui: ComfyUIInstall | None,
    environment: Path,
    show: Callable[[SmokeTest], None],
) -> SmokeTest:
    """Generate the test image and measure it; what is wrong with it is among its findings.

    Parameters
    ----------
    run : Run
        The set and where its files are.
    options : SmokeTestOptions
        What to generate.
    comfyui : ComfyUIInstall or None
        ComfyUI, where the target is a tree.
    environment : Path
        The virtual environment of ours, if there is one.
    show : callable
        Shown the image's figures.

    Raises
    ------
    SmokeTestError
        No image.
    UsageError
        There is nothing to generate it with.
    NotWritableError
        The image cannot be kept where it was asked for.
    """
    machine = run.session.machine
    asked = image_options(run, options)
    _check_place(options)
    if isinstance(run.target, HubCacheTarget):
        smoke = _with_diffusers(run, options, asked, machine, run.target.cache, environment)
    else:
        smoke = _with_comfyui(run, options, asked, machine, comfyui, environment)
    python = None if comfyui is None else comfyui.checkout.python
    notes = (*smoke.notes, *describe(smoke, run.wanted.envelope, machine), *_workflow_note(python))
    smoke = replace(smoke, notes=notes)
    show(smoke)
    return smoke


# --- ComfyUI ---------------------------------------------------------------------------------------


def _with_comfyui(
    run: Run,
    options: SmokeTestOptions,
    asked: ImageOptions,
    machine: Machine,
    comfyui: ComfyUIInstall | None,
    environment: Path,
) -> SmokeTest:
    from provisioner.comfyui.server.client import ComfyClient
    from provisioner.smoke_test.vram import VramSampler

    card = _first_card(machine, run.session.environ)
    is_here = options.server is None or parse_address(options.server).is_loopback
    with (
        VramSampler(uuid=card.uuid if card else None) as sampler,
        _advice_on_memory(run, options, machine if is_here else None, sampler),
        _server(run, options, comfyui, environment, machine) as (
            url,
            process,
        ),
    ):
        if process is not None:
            sampler.watch(process.pid)
        with ComfyClient(url, cancelled=run.session.cancelled.is_set, process=process) as client:
            smoke = _generate(run, options, asked, client, process, sampler)
            if process is None or process.facts is None:
                return smoke
            return replace(smoke, findings=(*smoke.findings, *_judge_device(process.facts, card)))


@contextlib.contextmanager
def _server(
    run: Run, options: SmokeTestOptions, comfyui: ComfyUIInstall | None, environment: Path, machine: Machine
) -> Iterator[tuple[str, ServerProcess | None]]:
    """Yield the address of a server, and its process where it is one of ours, which is stopped in the end."""
    if options.server is not None:
        yield options.server, None
        return
    from provisioner.comfyui.server.server_process import start_server

    comfyui, python, seen = _program_and_python(run, comfyui, environment)
    for finding in check_comfyui(comfyui):
        if finding.severity == "problem":
            raise SmokeTestError(finding.message, hint=finding.hint)
    with tempfile.TemporaryDirectory(prefix="klein-setup-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        launch = Launch(
            python=python,
            tree=comfyui.folder,
            output=folder / "output",
            user=folder / "user",
            temp=folder,
            extra=_server_options(run, options, machine, seen),
        )
        run.session.say_progress(f"Starting ComfyUI from {comfyui.folder}.")
        with start_server(
            launch,
            log_path=_log_path("comfyui"),
            cancelled=run.session.cancelled.is_set,
            timeout_s=min(_FIRST_ANSWER_S, options.timeout_s),
            environ=run.session.environ,
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


def _program_and_python(
    run: Run, comfyui: ComfyUIInstall | None, environment: Path
) -> tuple[ComfyUIInstall, Path, Observation]:
    """Return ComfyUI and the Python it is started with: the environment we made, else the tree's own."""
    if comfyui is None or comfyui.checkout.tree is None:
        raise UsageError(
            f"There is no ComfyUI in {_shown_target(run)} to generate an image with.",
            hint="Start yours and name it with --server URL, or name ComfyUI's own folder with --comfyui DIR.",
        )
    seen = run.session.environments.observe(environment)
    if seen.receipt is not None and seen.python is not None:
        return comfyui, seen.python.path, seen
    if comfyui.checkout.python is not None:
        return comfyui, comfyui.checkout.python, seen
    raise UsageError(
        f"No Python was found for {comfyui.folder}.",
        hint="Make an environment with `klein-setup install --only environment`, or name a server with --server URL.",
    )


def _shown_target(run: Run) -> str:
    return str(run.target.given if isinstance(run.target, ComfyTarget) else run.target.cache)


def _server_options(run: Run, options: SmokeTestOptions, machine: Machine, seen: Observation) -> tuple[str, ...]:
    words: list[str] = []
    backend = seen.receipt.torch_backend if seen.receipt is not None else None
    if backend in {"cpu", "default"} or (backend is None and not machine.gpus):
        words.append("--cpu")
    if options.reserve_vram_gib is not None:
        words += ["--reserve-vram", f"{options.reserve_vram_gib:g}"]
    for config in run.options.extra_model_paths:
        words += ["--extra-model-paths-config", str(config.expanduser().absolute())]
    return tuple(words)


def _generate(
    run: Run,
    options: SmokeTestOptions,
    asked: ImageOptions,
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
        _check_files_are_there(run)
        _check_folders(run, client.folder_paths())
    names = pick_listed(names_for(run.wanted), listed, ignore_case=_ignores_case(facts))
    graph = build_graph(names, asked)
    if process is None:  # a loader that is cached does not notice that its file was replaced
        run.session.say_progress("Telling the server to unload, so that it reads the files that are there now.")
        client.free()
    generated = client.generate(graph, timeout_s=options.timeout_s, on_progress=_teller(run))
    if generated.was_cached:
        raise GenerationError(
            "ComfyUI generated nothing: it returned an earlier image of the same graph from its cache.",
            hint="Leave --seed out, so that a fresh one is taken.",
            cause="cached",
        )
    image = read_image(generated.image)
    return SmokeTest(
        backend="comfyui",
        options=asked,
        names=names,
        timings=_timings(generated, process),
        image=image,
        image_path=_keep(generated.image, options, asked),
        vram=sampler.reading,
        device=_device(facts),
        versions=_versions(facts),
        log_path=None if process is None else process.log_path,
        findings=(*judge(image, asked, generated_seed=seed_in(generated.image)), *_findings_in_log(process)),
    )


def _judge_device(facts: ServerFacts, card: Gpu | None) -> tuple[Finding, ...]:
    """Say that a server of ours drew on the processor although there is a card and it was not told to."""
    if card is None or "--cpu" in facts.argv or not facts.devices or facts.devices[0].kind != "cpu":
        return ()
    return (
        Finding(
            code="picture-other-device",
            severity="problem",
            remedy="install-environment",
            message=f"The image was generated on the CPU, but this machine has the GPU {card.name}.",
            hint="`klein-setup install --only environment` installs the torch build for it and tests it.",
        ),
    )


def _classes(asked: ImageOptions) -> tuple[str, ...]:
    nothing = ModelNames(diffusion_model="", text_encoder="", vae="")
    return tuple(str(node["class_type"]) for node in build_graph(nothing, asked).values())


def _findings_in_log(process: ServerProcess | None) -> tuple[Finding, ...]:
    return () if process is None else findings_in_log(process.output(), log_path=process.log_path)


def check_server(run: Run, url: str) -> tuple[Finding, ...]:
    """Say whether a running server reads the proven files: its folders are what counts, not what a YAML says."""
    from provisioner.comfyui.server.client import ComfyClient

    with ComfyClient(url, cancelled=run.session.cancelled.is_set) as client:
        try:
            if client.address.is_loopback:
                _check_folders(run, client.folder_paths())
            pick_listed(names_for(run.wanted), client.listed_models())
        except ModelNotListedError as error:
            return (
                Finding(
                    code="server-reads-elsewhere",
                    severity="problem",
                    message=str(error),
                    remedy="by-hand",
                    hint=error.hint,
                ),
            )
    return ()


def _check_files_are_there(run: Run) -> None:
    """Raise where a file of the set is not in its place."""
    missing = [each.path for each in (destination_for(one, run.target) for one in run.wanted.artifacts)]
    missing = [path for path in missing if not path.is_file()]
    if missing:
        raise ModelNotListedError(
            f"{missing[0]} is missing, so no image can be generated.",
            hint="Run `klein-setup repair`, which says what is missing and puts it there.",
            missing=[str(path) for path in missing],
        )


def _check_folders(run: Run, folders: Mapping[str, tuple[str, ...]]) -> None:
    """Raise where the server would read another file than the one that was proven."""
    if not folders:  # an older server does not say
        return
    for artifact in run.wanted.artifacts:
        if artifact.folder is None:
            continue
        kind = artifact.folder.partition("/")[0]
        place = destination_for(artifact, run.target).path
        below = Path(*Path(artifact.folder).parts[1:], artifact.name)
        read = [Path(each) for each in folders.get(kind, ())]
        first = next((each / below for each in read if (each / below).exists()), None)
        if first is None or not _is_same(first, place):
            reads = f"its folders for {kind} are {', '.join(map(str, read)) or 'none'}"
            other = f"it reads {first} under that name"
            raise ModelNotListedError(
                f"The server does not read the verified file {place}: {reads if first is None else other}.",
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


def _teller(run: Run) -> Callable[[GenerationProgress], None]:
    """Return what turns the server's words into lines, each said once."""
    words = {"load": "Reading the models.", "encode": "Encoding the prompt.", "decode": "Decoding the image."}
    said: set[str] = set()

    def tell(progress: GenerationProgress) -> None:
        line = words.get(PHASES.get(progress.node_id or "", ""))
        if progress.node_id == STEP_NODE and progress.value is not None and progress.maximum:
            line = f"Step {progress.value:.0f} of {progress.maximum:.0f}."
        if line is not None and line not in said:
            said.add(line)
            run.session.say_progress(line)

    return tell


def _timings(generated: Generated, process: ServerProcess | None) -> Timings:
    """Return the seconds of each part, of the nodes that belong to it; None where the connection was lost."""
    from provisioner.comfyui.server.messages import step_seconds

    spent: dict[str, float] = {}
    for node in generated.nodes:
        phase = PHASES.get(node.node_id, "other")
        spent[phase] = spent.get(phase, 0.0) + node.seconds
    return Timings(
        start_s=None if process is None else process.start_s,
        load_s=spent.get("load"),
        encode_s=spent.get(PHASES[ENCODE]),
        steps_s=step_seconds(STEP_NODE, generated.nodes, generated.steps),
        decode_s=spent.get("decode"),
        total_s=generated.total_s,
    )


def _device(facts: ServerFacts) -> str | None:
    return facts.devices[0].name if facts.devices else None


def _versions(facts: ServerFacts) -> tuple[tuple[str, str], ...]:
    pairs = (("comfyui", facts.comfyui_version), ("torch", facts.torch_version), ("python", facts.python_version))
    return tuple((name, version) for name, version in pairs if version)


# --- diffusers -------------------------------------------------------------------------------------


def _with_diffusers(
    run: Run, options: SmokeTestOptions, asked: ImageOptions, machine: Machine, cache: Path, environment: Path
) -> SmokeTest:
    from provisioner.machine.process import run_process
    from provisioner.smoke_test.diffusers_run import generate_with_diffusers
    from provisioner.smoke_test.vram import VramSampler

    if options.server is not None:
        raise UsageError("--server names a ComfyUI, and the set is for diffusers.", hint="Leave one of them out.")
    seen = run.session.environments.observe(environment)
    if seen.python is None:
        raise UsageError(
            f"There is no environment in {environment} to generate an image with.",
            hint="Make it with `klein-setup install --only environment`, or name one with --environment DIR.",
        )
    repo_id, revision = _pipeline_of(run)
    card = _first_card(machine, run.session.environ)
    output = options.image or _image_path(asked)
    backend = seen.receipt.torch_backend if seen.receipt is not None else None
    with (
        VramSampler(uuid=card.uuid if card else None) as sampler,
        _advice_on_memory(run, options, machine, sampler),
    ):

        def hear(event: object) -> None:
            pid = getattr(event, "pid", None)
            if pid is not None:
                sampler.watch(pid)
            sentence = getattr(event, "sentence", lambda: None)()
            if sentence:
                run.session.say_progress(sentence)

        done = generate_with_diffusers(
            seen.python.path,
            run=run_process,
            cache=cache,
            repo_id=repo_id,
            revision=revision,
            options=asked,
            output=output,
            log_path=_log_path("diffusers"),
            timeout_s=options.timeout_s,
            device="cpu" if backend in {"cpu", "default"} else "auto",
            environ=run.session.environ,
            cancelled=run.session.cancelled.is_set,
            on_event=hear,
        )
    image = read_image(done.image)
    return done.smoke_test(asked, image=image, vram=sampler.reading, findings=judge(image, asked))


def _pipeline_of(run: Run) -> tuple[str, str]:
    """Return the repository and the commit of the pipeline's index."""
    for artifact in run.wanted.artifacts:
        source = artifact.sources[0]
        if artifact.name == "model_index.json" and isinstance(source, HubFile):
            return source.repo_id, source.revision
    raise UsageError(f"The set {run.wanted.id} holds no pipeline.", hint="Choose a set for diffusers.")


# --- both ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _advice_on_memory(
    run: Run, options: SmokeTestOptions, machine: Machine | None, sampler: VramSampler
) -> Iterator[None]:
    """Give a lack of memory the advice for this card; `machine` is None for a server on another one."""
    try:
        yield
    except MemoryExhaustedError as error:
        error.hint = memory_advice(
            error,
            machine,
            run.wanted,
            None if machine is None else sampler.reading,
            sets=run.manifest.sets,
            is_tiled=options.has_tiled_decode,
            reserved_gib=options.reserve_vram_gib,
        )
        raise


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


def _image_path(asked: ImageOptions) -> Path:
    from provisioner.disk.locations import data_folder

    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return data_folder() / "pictures" / f"klein-{stamp}-{asked.seed}.png"


def _check_place(options: SmokeTestOptions) -> None:
    """Raise before anything is drawn where the picture could not be kept: drawing takes minutes on some machines."""
    if options.image is None:
        return
    path = options.image.expanduser().absolute()
    folder = next((each for each in path.parents if os.path.lexists(each)), path.parent)
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "it is a folder" if path.is_dir() else f"{folder} is no folder that can be written to"
        raise _not_kept(path, reason)


def _keep(image: bytes, options: SmokeTestOptions, asked: ImageOptions) -> Path:
    """Write the picture; raises NotWritableError where that is not possible."""
    path = (options.image or _image_path(asked)).expanduser().absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    except OSError as error:
        raise _not_kept(path, error.strerror or str(error)) from error
    return path


def _not_kept(path: Path, reason: str) -> NotWritableError:
    return NotWritableError(
        f"The image cannot be saved as {path}: {reason}.",
        hint="Name another file with --image FILE.",
        path=str(path),
    )
