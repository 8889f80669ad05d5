"""The test image by ComfyUI: a server of ours or one that runs, the graph, what is measured and judged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.comfyui.server.failures import findings_in_log, nodes_missing_error
from provisioner.comfyui.server.known_failures import known_failures
from provisioner.comfyui.server.launch import Launch, parse_address
from provisioner.commands.combination import start_options
from provisioner.commands.comfyui_flags import named_options, note_on_unused, started_with
from provisioner.commands.image_cards import card_for, environ_of, uses_now, with_card
from provisioner.commands.image_options import (
    CHECK_STAGE,
    PHASE_STAGES,
    SmokeTestOptions,
    advice_on_memory,
    image_path,
    keep_output,
    log_path_of,
)
from provisioner.commands.inspect_comfyui import ComfyUIInstall, check_comfyui
from provisioner.commands.run import Run, named_path
from provisioner.core.errors import (
    GenerationError,
    MemoryExhaustedError,
    ModelNotListedError,
    SmokeTestError,
    UsageError,
)
from provisioner.core.models import Finding, Machine, Recipe
from provisioner.disk.root import scratch_folder
from provisioner.files.layout import destination_for
from provisioner.smoke_test.cards import is_for_cpu
from provisioner.smoke_test.graph import PHASES, Graph, Phase, build_graph, names_for, pick_listed, recipe_of
from provisioner.smoke_test.image import judge, read_image, seed_in
from provisioner.smoke_test.image_verdict import likeness_of
from provisioner.smoke_test.later_images import (
    failed_later,
    growth,
    images_wanted,
    judged_later,
    later_seed,
    patience_s,
)
from provisioner.smoke_test.media import Asked
from provisioner.smoke_test.results import (
    Card,
    CardUse,
    ImageFacts,
    ImageOptions,
    ImageRun,
    MediaFacts,
    ModelNames,
    SmokeTest,
    Timings,
    Verdict,
)

if TYPE_CHECKING:
    from provisioner.comfyui.server.api import ServerFacts
    from provisioner.comfyui.server.client import ComfyClient, Generated, GenerationProgress
    from provisioner.comfyui.server.server_process import ServerProcess
    from provisioner.commands.made_media import Keep
    from provisioner.commands.stages import Stages
    from provisioner.core.ports import Cancelled
    from provisioner.environment.state import Observation
    from provisioner.smoke_test.vram import VramSampler


_FIRST_ANSWER_S = 300.0  # custom nodes are imported first, and some compile something


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyServer:
    """A ComfyUI of ours that answers; `end` ends it and deletes its folders."""

    process: ServerProcess
    python: Path  # that it was started with
    sampler: VramSampler  # measures the GPU from before its start on; paused
    card: Card | None  # that it was given
    uses_before: tuple[CardUse, ...]  # NVML's answers for every card before its start
    end: contextlib.ExitStack


def start_for_image(
    run: Run,
    options: SmokeTestOptions,
    *,
    comfyui: ComfyUIInstall | None,
    environment: Path,
    cancelled: Cancelled | None = None,
) -> ReadyServer:
    """Start ComfyUI and return it once it answers; it needs no model file for that.

    Parameters
    ----------
    run, options, comfyui, environment
        As for `generate_image`.
    cancelled : callable, optional
        True means: it is not needed any more; by default whether the run was cancelled.

    Raises
    ------
    SmokeTestError
        It ended at its start or never answered, or something is wrong with it.
    UsageError
        There is no ComfyUI, or no Python for it.
    KeyboardInterrupt
        Cancelled; nothing is left running.
    """
    from provisioner.comfyui.server.server_process import start_server
    from provisioner.smoke_test.vram import VramSampler

    comfyui, python, seen = program_and_python(run, comfyui, environment)
    for finding in check_comfyui(comfyui):
        if finding.severity == "problem":
            raise SmokeTestError(finding.message, hint=finding.hint)
    reserve = options.reserve_vram_gib
    reserved = () if reserve is None else ("--reserve-vram", f"{reserve:g}")
    machine = run.session.machine
    card = card_for(run, options, seen.receipt)
    uses_before = uses_now(run, card)
    given = (*server_options(run, machine, seen, is_card_named=options.gpu is not None), *reserved)
    given += options.flags.words if options.flags else start_options(run, comfyui, environment, given)
    no_bytecode = {"PYTHONDONTWRITEBYTECODE": "1"} if options.writes_no_bytecode else {}
    with contextlib.ExitStack() as stack:
        sampler = stack.enter_context(VramSampler(uuid=card.uuid if card else None))
        folder = stack.enter_context(scratch_folder("klein-setup-"))
        launch = Launch(
            python=python,
            tree=comfyui.folder,
            output=folder / "output",
            user=folder / "user",
            temp=folder,
            extra=given,
        )
        with (
            named_options(options.flags, comfyui),
            advice_on_memory(run, options, machine, sampler),
            run.session.stages.stage("starting", "ComfyUI", "started") as came_of_it,
        ):
            process = stack.enter_context(
                start_server(
                    launch,
                    log_path=log_path_of("comfyui"),
                    cancelled=cancelled or run.session.cancelled.is_set,
                    timeout_s=min(_FIRST_ANSWER_S, options.start_timeout_s or options.timeout_s),
                    environ={**environ_of(run, seen.receipt, card), **no_bytecode},
                    pass_env=(*run.session.settings.pass_env, *no_bytecode),
                )
            )
            came_of_it(f"ComfyUI from {comfyui.folder}")
        sampler.watch(process.pid)
        sampler.pause()
        return ReadyServer(
            process=process, python=python, sampler=sampler, card=card, uses_before=uses_before, end=stack.pop_all()
        )


def generate_with_comfyui(
    run: Run,
    options: SmokeTestOptions,
    asked: ImageOptions,
    machine: Machine,
    comfyui: ComfyUIInstall | None,
    environment: Path,
    ready: ReadyServer | None,
) -> SmokeTest:
    """Generate the test image with a running server, one that is ready, or one started for it."""
    from provisioner.smoke_test.vram import VramSampler

    if options.server is not None:
        card = card_for(run, options, None)
        is_here = parse_address(options.server).is_loopback
        with (
            VramSampler(uuid=card.uuid if card else None) as sampler,
            advice_on_memory(run, options, machine if is_here else None, sampler),
        ):
            python = None if comfyui is None else python_of(run, comfyui, environment)[0]
            return _generate_at(run, options, asked, options.server, None, sampler, python)
    if ready is None:
        ready = start_for_image(run, options, comfyui=comfyui, environment=environment)
    with ready.end, advice_on_memory(run, options, machine, ready.sampler):
        process = ready.process
        ready.sampler.resume()
        smoke = _generate_at(run, options, asked, process.address.url, process, ready.sampler, ready.python)
        if process.facts is None:
            return smoke
        found = _judge_device(process.facts, ready.card)
        smoke = replace(smoke, findings=(*smoke.findings, *found))
        if found or not process.facts.devices or process.facts.devices[0].kind == "cpu":
            return smoke
        after = uses_now(run, ready.card, [process.pid])
        size = process.facts.devices[0].total_bytes
        return with_card(run, smoke, ready.card, total_bytes=size, before=ready.uses_before, after=after)


def _generate_at(
    run: Run,
    options: SmokeTestOptions,
    asked: ImageOptions,
    url: str,
    process: ServerProcess | None,
    sampler: VramSampler,
    python: Path | None,
) -> SmokeTest:
    from provisioner.comfyui.server.client import ComfyClient

    with ComfyClient(url, cancelled=run.session.cancelled.is_set, process=process) as client:
        return _generate(run, options, asked, client, process, sampler, python)


def program_and_python(
    run: Run, comfyui: ComfyUIInstall | None, environment: Path
) -> tuple[ComfyUIInstall, Path, Observation]:
    """Return ComfyUI and the Python it is started with: the environment we made, else the tree's own."""
    if comfyui is None or comfyui.checkout.tree is None:
        raise UsageError(
            f"There is no ComfyUI in {named_path(run.target)} to generate an image with.",
            hint="Start yours and name it with --server URL, or name ComfyUI's own folder with --comfyui DIR.",
        )
    python, seen = python_of(run, comfyui, environment)
    if python is not None:
        return comfyui, python, seen
    raise UsageError(
        f"No Python was found for {comfyui.folder}.",
        hint="Make an environment with `klein-setup install --only environment`, or name a server with --server URL.",
    )


def python_of(run: Run, comfyui: ComfyUIInstall, environment: Path) -> tuple[Path | None, Observation]:
    """Return the Python that ComfyUI is started with, and what is in our environment: that one, else the tree's own."""
    seen = run.session.environments.observe(environment)
    if seen.receipt is not None and seen.python is not None:
        return seen.python.path, seen
    return comfyui.checkout.python, seen


def server_options(run: Run, machine: Machine, seen: Observation, *, is_card_named: bool = False) -> tuple[str, ...]:
    """Return what ComfyUI is told about this machine: whether there is a GPU, and which other YAML files it reads."""
    words: list[str] = []
    backend = seen.receipt.torch_backend if seen.receipt is not None else None
    if not is_card_named and is_for_cpu(backend, machine):
        words.append("--cpu")
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
    python: Path | None,
) -> SmokeTest:
    facts = client.system_stats()
    drawing = _drawing(run, options, asked, client, facts)
    asked = drawing.options
    if process is None:  # a loader that is cached does not notice that its file was replaced
        run.session.stages.begin("emptying", "the server's memory", "emptied")
        client.free()
    on_progress = _teller(run.session.stages, sampler.begin, drawing.phases)
    generated = client.generate(drawing.graph(asked), timeout_s=options.timeout_s, on_progress=on_progress)
    if generated.was_cached:
        raise GenerationError(
            "ComfyUI generated nothing: it returned an earlier image of the same graph from its cache.",
            hint="Leave --seed out, so that a fresh one is taken.",
            cause="cached",
        )
    path = (options.image or image_path(asked)).expanduser().absolute()
    judging = _Judging(run, drawing, client, python)
    made = judging.judge(generated, asked, _beside(path))
    smoke = SmokeTest(
        backend="comfyui",
        options=made.with_own_size(asked) if drawing.has_own_size else asked,
        names=drawing.names,
        timings=_timings(generated, process, drawing.phases),
        image=made.image,
        image_path=None if generated.image is None else keep_output(generated.image, path),
        media=made.media,
        vram=sampler.reading,
        device=_device(facts),
        versions=_versions(facts),
        started_with=started_with(options, facts.argv, None if process is not None else client.address.url),
        log_path=None if process is None else process.log_path,
        notes=(*drawing.notes, *(note_on_unused(options) if process is not None else ())),
        findings=made.findings,
    )
    sampler.pause()  # the curve is that of the first image
    number = images_wanted(options.images, facts.devices[0].kind if facts.devices else None)
    smoke = _with_later_images(run, options, smoke, judging, number, process, sampler, generated.total_s)
    return replace(smoke, findings=(*smoke.findings, *_findings_in_log(process)))


def _beside(path: Path) -> Keep:
    """Return what writes files beside a path: with its name, and another end."""
    return lambda data, end: keep_output(data, path.with_name(f"{path.stem}{end}"))


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What came of one prompt, judged."""

    image: ImageFacts | None
    media: tuple[MediaFacts, ...]
    findings: tuple[Finding, ...]

    def with_own_size(self, asked: ImageOptions) -> ImageOptions:
        """Return what was asked for with the size of the image, else of the first video."""
        seen = (self.image, *(each.video for each in self.media))
        sizes = [(each.width, each.height) for each in seen if each is not None]
        return replace(asked, width=sizes[0][0], height=sizes[0][1]) if sizes else asked

    @property
    def verdict(self) -> Verdict | None:
        """What the image looks like, or the frame of the first video; None where there is neither."""
        seen = (self.image, *(each.frame for each in self.media))
        return next((likeness_of(each.figures).verdict for each in seen if each is not None), None)


@dataclass(frozen=True)
class _Judging:
    """Reads and judges whatever a prompt made."""

    run: Run
    drawing: _Drawing
    client: ComfyClient
    python: Path | None  # of ComfyUI; None: not known

    def judge(self, generated: Generated, asked: ImageOptions, keep: Keep) -> _Made:
        """Return what was made; `keep` writes videos and sounds, which are read from there."""
        self.run.session.stages.begin(*CHECK_STAGE)
        image = None if generated.image is None else read_image(generated.image)
        found = () if image is None else self.drawing.judge(image, generated.image or b"", asked)
        if not generated.media:
            return _Made(image=image, media=(), findings=found)
        from provisioner.commands.made_media import MediaJudge

        size = None if self.drawing.has_own_size else (asked.width, asked.height)
        media, wrong = MediaJudge(
            python=self.python,
            cancelled=self.run.session.cancelled.is_set,
            asked=Asked(size=size, frames=self.drawing.frames),
            is_stand_in=self.run.manifest.is_stand_in,
        ).judge(generated.media, self.client.fetch, keep, first=1 if image is None else 2)
        return _Made(image=image, media=media, findings=(*found, *wrong))


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """How the images of a run are made, and how they are judged."""

    graph: Callable[[ImageOptions], Graph]
    judge: Callable[[ImageFacts, bytes, ImageOptions], tuple[Finding, ...]]
    options: ImageOptions
    phases: Mapping[str, Phase] = field(default_factory=lambda: PHASES)
    names: ModelNames | None = None
    notes: tuple[str, ...] = ()
    has_own_size: bool = False  # a workflow says how large the image is, and not the one who asks for it
    frames: int | None = None  # of a video, as a workflow says


def _drawing(
    run: Run, options: SmokeTestOptions, asked: ImageOptions, client: ComfyClient, facts: ServerFacts
) -> _Drawing:
    """Return how the images are made: by the workflow that was named, else the set's own, else its recipe."""
    if options.workflow is not None or run.wanted.workflow is not None:
        from provisioner.commands.workflow_image import open_workflow_image

        if options.workflow is None:
            _check_set(run, client)
        found = open_workflow_image(run, options.workflow, client, asked, options.given)
        return _Drawing(
            graph=found.graph,
            judge=found.judge,
            options=found.options,
            phases=found.phases,
            notes=(found.note,),
            has_own_size="size" not in found.changed,
            frames=found.frames,
        )
    recipe = recipe_of(run.wanted)
    listed = client.listed_models(_classes(recipe, asked))
    if listed.missing_nodes or recipe.clip_type not in listed.clip_types:
        missing = listed.missing_nodes or (f"the type {recipe.clip_type} of CLIPLoader",)
        raise nodes_missing_error(missing, version=facts.comfyui_version, since=run.wanted.min_comfyui)
    _check_set(run, client)
    names = pick_listed(names_for(run.wanted), listed, ignore_case=_ignores_case(facts))
    is_stand_in = run.manifest.is_stand_in
    return _Drawing(
        graph=lambda asked: build_graph(recipe, names, asked),
        judge=lambda image, data, asked: judge(image, asked, generated_seed=seed_in(data), is_stand_in=is_stand_in),
        options=asked,
        names=names,
    )


def _with_later_images(
    run: Run,
    options: SmokeTestOptions,
    smoke: SmokeTest,
    judging: _Judging,
    number: int,
    process: ServerProcess | None,
    sampler: VramSampler,
    first_s: float,
) -> SmokeTest:
    """Generate images with other seeds until there are `number`; the first one that is wrong is the last."""
    from provisioner.smoke_test.vram import resident_bytes

    def measured(seed: int, total_s: float, made: _Made) -> ImageRun:
        return ImageRun(
            seed=seed,
            total_s=total_s,
            vram_bytes=sampler.held_bytes(),
            memory_bytes=None if process is None else resident_bytes(process.pid),
            verdict=made.verdict,
        )

    drawing = judging.drawing
    runs = [measured(smoke.options.seed, first_s, _Made(image=smoke.image, media=smoke.media, findings=()))]
    found: tuple[Finding, ...] = ()
    limit_s = patience_s(first_s, options.timeout_s)
    while len(runs) < number and not any(each.severity == "problem" for each in found):
        asked = replace(drawing.options, seed=later_seed(smoke.options.seed, len(runs) + 1))
        stages = run.session.stages
        stages.begin("generating", f"image {len(runs) + 1} of {number}", "generated")
        try:
            on_progress = _steps(stages, drawing.phases)
            generated = judging.client.generate(drawing.graph(asked), timeout_s=limit_s, on_progress=on_progress)
            with scratch_folder("klein-setup-") as folder:
                made = judging.judge(generated, asked, _beside(folder / "later"))
        except MemoryExhaustedError as error:
            error.args = (f"The first image is {smoke.image_path}; image {len(runs) + 1} failed: {error}",)
            raise
        except SmokeTestError as error:
            found = (*found, failed_later(len(runs) + 1, runs[0], error, limit_s))
            stages.fail(error)
            break
        found = (*found, *judged_later(len(runs) + 1, made.findings))
        runs.append(measured(asked.seed, generated.total_s, made))
    return replace(smoke, runs=tuple(runs), findings=(*smoke.findings, *found, *growth(runs)))


def _judge_device(facts: ServerFacts, card: Card | None) -> tuple[Finding, ...]:
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


def _classes(recipe: Recipe, asked: ImageOptions) -> tuple[str, ...]:
    nothing = ModelNames(diffusion_model="", text_encoder="", vae="")
    return tuple(str(node["class_type"]) for node in build_graph(recipe, nothing, asked).values())


def _findings_in_log(process: ServerProcess | None) -> tuple[Finding, ...]:
    return () if process is None else findings_in_log(process.output(), known_failures(), log_path=process.log_path)


def check_server(run: Run, url: str) -> tuple[Finding, ...]:
    """Return whether a running server reads the verified files: by the folders it reports, not by a YAML file."""
    from provisioner.comfyui.server.client import ComfyClient

    with ComfyClient(url, cancelled=run.session.cancelled.is_set) as client:
        try:
            if client.address.is_loopback:
                _check_folders(run, client.folder_paths())
            if run.wanted.workflow is None:
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


def _check_set(run: Run, client: ComfyClient) -> None:
    """Raise where a server on this computer would not read the verified files."""
    if client.address.is_loopback:
        check_files_are_there(run)
        _check_folders(run, client.folder_paths())


def check_files_are_there(run: Run) -> None:
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
    """Raise where the server would read another file than the one that was verified."""
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


def _teller(
    stages: Stages, begin: Callable[[str], None], phases: Mapping[str, Phase] = PHASES
) -> Callable[[GenerationProgress], None]:
    """Return what turns the server's words into stages, one for each phase in its turn, and notes when each begins."""
    last: list[str] = [""]
    say_step = _steps(stages, phases)

    def tell(progress: GenerationProgress) -> None:
        phase = phases.get(progress.node_id or "")
        if phase is not None:
            begin(phase)
            if phase != last[0]:
                last[0] = phase
                stages.begin(*PHASE_STAGES[phase])
        say_step(progress)

    return tell


def _steps(stages: Stages, phases: Mapping[str, Phase]) -> Callable[[GenerationProgress], None]:
    """Return what tells each denoising step in the stage that is open."""

    def tell(progress: GenerationProgress) -> None:
        if phases.get(progress.node_id or "") == "sample" and progress.value is not None and progress.maximum:
            stages.say(f"step {progress.value:.0f} of {progress.maximum:.0f}")

    return tell


def _timings(generated: Generated, process: ServerProcess | None, phases: Mapping[str, Phase]) -> Timings:
    """Return the seconds of each part, of the nodes that belong to it; None where the connection was lost."""
    from provisioner.comfyui.server.messages import step_seconds

    spent: dict[str, float] = {}
    for node in generated.nodes:
        phase = phases.get(node.node_id, "other")
        spent[phase] = spent.get(phase, 0.0) + node.seconds
    return Timings(
        start_s=None if process is None else process.start_s,
        load_s=spent.get("load"),
        encode_s=spent.get("encode"),
        steps_s=tuple(
            seconds
            for node_id, phase in phases.items()
            if phase == "sample"
            for seconds in step_seconds(node_id, generated.nodes, generated.steps)
        ),
        decode_s=spent.get("decode"),
        total_s=generated.total_s,
    )


def _device(facts: ServerFacts) -> str | None:
    return facts.devices[0].name if facts.devices else None


def _versions(facts: ServerFacts) -> tuple[tuple[str, str], ...]:
    pairs = (("comfyui", facts.comfyui_version), ("torch", facts.torch_version), ("python", facts.python_version))
    return tuple((name, version) for name, version in pairs if version)
