"""The test image by diffusers: a program of ours in the environment that was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.image_cards import card_for, environ_of, uses_now, with_card
from provisioner.commands.image_options import (
    CHECK_STAGE,
    PHASE_STAGES,
    SmokeTestOptions,
    advice_on_memory,
    image_path,
    log_path_of,
)
from provisioner.commands.run import Run
from provisioner.core.errors import UsageError
from provisioner.core.models import HubFile, Machine
from provisioner.smoke_test.cards import is_for_cpu
from provisioner.smoke_test.image import judge, read_image
from provisioner.smoke_test.results import ImageOptions, SmokeTest

if TYPE_CHECKING:
    from provisioner.commands.stages import Stages
    from provisioner.smoke_test.diffusers_answers import GenerationEvent


def hear_diffusers(stages: Stages, event: GenerationEvent) -> None:
    """Turn what the image script says into stages."""
    if event.name == "started":
        stages.begin("importing", "torch and diffusers", "imported")
    if event.name == "step":
        stages.say(f"step {event.number} of {event.total}")
    if event.next_phase is not None:
        stages.begin(*PHASE_STAGES[event.next_phase])


def generate_by_diffusers(
    run: Run, options: SmokeTestOptions, asked: ImageOptions, machine: Machine, cache: Path, environment: Path
) -> SmokeTest:
    """Generate the test image with the set's pipeline in the environment that was made; raises as `generate_image`."""
    from provisioner.machine.process import run_process
    from provisioner.smoke_test.diffusers_run import generate_with_diffusers
    from provisioner.smoke_test.vram import VramSampler

    if options.server is not None:
        raise UsageError("--server names a ComfyUI, and the set is for diffusers.", hint="Leave one of them out.")
    if options.images is not None and options.images > 1:
        raise UsageError(
            "--images is for ComfyUI: the program that runs diffusers ends after its image.", hint="Leave it out."
        )
    seen = run.session.environments.observe(environment)
    if seen.python is None:
        raise UsageError(
            f"There is no environment in {environment} to generate an image with.",
            hint="Make it with `klein-setup install --only environment`, or name one with --environment DIR.",
        )
    repo_id, revision = _pipeline_of(run)
    card = card_for(run, options, seen.receipt)
    before, after = uses_now(run, card), uses_now(run, None)
    output = options.image or image_path(asked)
    backend = seen.receipt.torch_backend if seen.receipt is not None else None
    with VramSampler(uuid=card.uuid if card else None) as sampler, advice_on_memory(run, options, machine, sampler):
        pids: list[int] = []

        def hear(event: GenerationEvent) -> None:
            nonlocal after
            if event.pid is not None:
                sampler.watch(event.pid)
                pids.append(event.pid)
            if event.name == "step" and event.number == event.total:  # the process ends with its image
                after = uses_now(run, card, pids)
            if event.next_phase is not None:
                sampler.begin(event.next_phase)
            hear_diffusers(run.session.stages, event)

        done = generate_with_diffusers(
            seen.python.path,
            run=run_process,
            cache=cache,
            repo_id=repo_id,
            revision=revision,
            options=asked,
            output=output,
            log_path=log_path_of("diffusers"),
            timeout_s=options.timeout_s,
            device="cpu" if is_for_cpu(backend, machine) and options.gpu is None else "auto",
            environ=environ_of(run, seen.receipt, card),
            pass_env=run.session.settings.pass_env,
            cancelled=run.session.cancelled.is_set,
            on_event=hear,
        )
    run.session.stages.begin(*CHECK_STAGE)
    image = read_image(done.image)
    findings = judge(image, asked, is_stand_in=run.manifest.is_stand_in)
    smoke = done.smoke_test(asked, image=image, vram=sampler.reading, findings=findings)
    device = done.done.device
    if device.place == "cpu":
        return smoke
    return with_card(run, smoke, card, total_bytes=device.total_bytes, before=before, after=after)


def _pipeline_of(run: Run) -> tuple[str, str]:
    """Return the repository and the commit of the pipeline's index."""
    for artifact in run.wanted.artifacts:
        source = artifact.sources[0]
        if artifact.name == "model_index.json" and isinstance(source, HubFile):
            return source.repo_id, source.revision
    raise UsageError(f"The set {run.wanted.id} holds no pipeline.", hint="Choose a set for diffusers.")
