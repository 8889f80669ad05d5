"""The test image on each GPU that ``--gpu`` names, one after the other; one that fails does not stop the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from provisioner.commands.choose_environment import environ_for
from provisioner.commands.image_options import SmokeTestOptions, image_options, image_path
from provisioner.commands.run import Run
from provisioner.core.errors import KleinError, SmokeTestError, UsageError
from provisioner.core.models import Finding, Vendor
from provisioner.environment.state import EnvironmentReceipt
from provisioner.report.outcome import Report
from provisioner.smoke_test.cards import (
    ALL,
    card_of_option,
    cards_of,
    choose_cards,
    default_card,
    gpu_option,
    judge_card,
    vendor_for,
)
from provisioner.smoke_test.results import Card, CardResult, CardUse, SmokeTest
from provisioner.smoke_test.vram import uses_of

# --- the card of one image -------------------------------------------------------------------------


def card_for(run: Run, options: SmokeTestOptions, receipt: EnvironmentReceipt | None) -> Card | None:
    """Return the card that an image is generated on; None: there is none of NVIDIA, and nobody named one.

    Raises
    ------
    UsageError
        There is no such card, or one of the user's own options for ComfyUI chooses one, too.
    """
    machine = run.session.machine
    chosen = gpu_option(options.flags.options) if options.flags is not None else None
    if chosen is not None and options.flags is not None:
        name, value = chosen
        if options.gpu is not None:
            raise UsageError(
                f"--gpu {options.gpu}: {options.flags.origin} chooses a GPU too, with {name} {value}.",
                hint=f"Leave --gpu out, or name the options with --comfyui-args, without {name}.",
            )
        return card_of_option(machine, value, run.session.environ)
    if options.gpu is not None:
        return _named_cards(run, options.gpu, receipt)[0]
    return default_card(machine, run.session.environ)


def environ_of(run: Run, receipt: EnvironmentReceipt | None, card: Card | None) -> Mapping[str, str]:
    """Return the variables of the program that generates: with those that leave it the card alone."""
    return {**environ_for(run.session, receipt), **dict(card.variables if card is not None else ())}


def uses_now(run: Run, card: Card | None, pids: Sequence[int] = ()) -> tuple[CardUse, ...]:
    """Return NVML's answers for every card of the machine, where it matters which one is used."""
    if card is None or card.vendor != "nvidia":
        return ()
    return uses_of((each.uuid for each in cards_of(run.session.machine, "nvidia") if each.uuid), pids)


def with_card(
    run: Run,
    smoke: SmokeTest,
    card: Card | None,
    *,
    total_bytes: int | None,
    before: Sequence[CardUse],
    after: Sequence[CardUse],
) -> SmokeTest:
    """Return a smoke test with its card, how it is known to be that one, and the problem where it is not."""
    if card is None:
        return smoke
    others = [each for each in cards_of(run.session.machine, card.vendor) if each.label != card.label]
    evidence, found = judge_card(
        card, others=others, device=smoke.device, total_bytes=total_bytes, before=before, after=after
    )
    if not card.variables:  # left to CUDA: another one is no fault
        found = ()
    return replace(smoke, card=card, card_evidence=evidence, findings=(*smoke.findings, *found))


def _named_cards(run: Run, asked: str, receipt: EnvironmentReceipt | None) -> tuple[Card, ...]:
    machine = run.session.machine
    vendor: Vendor | None = vendor_for(None if receipt is None else receipt.torch_backend, machine)
    return choose_cards(machine, asked, vendor=vendor, environ=environ_for(run.session, receipt))


# --- several ------------------------------------------------------------------------------------


def generate_on_each(
    run: Run,
    options: SmokeTestOptions,
    environment: Path,
    generate: Callable[[SmokeTestOptions], SmokeTest],
) -> tuple[CardResult, ...]:
    """Return what came of each card that ``--gpu`` names; every one is asked for the same image.

    Raises
    ------
    UsageError
        There is no such card, or a running server was named, which has chosen one already.
    """
    asked = options.gpu or ALL
    receipt = run.session.environments.observe(environment).receipt
    if options.server is not None:
        known = ", ".join(each.label for each in _named_cards(run, ALL, receipt))
        raise UsageError(
            f"--gpu {asked}: the server {options.server} runs already, on the GPU that it was started with.",
            hint=f"Leave --server out, and a ComfyUI is started for each GPU. This machine has {known}.",
        )
    cards = _named_cards(run, asked, receipt)
    same = image_options(run, options)
    results = []
    for card in cards:
        of_card = replace(options, gpu=card.uuid or card.label.removeprefix("GPU "), seed=same.seed)
        if len(cards) > 1:
            of_card = replace(of_card, image=_image_of(options.image or image_path(same), card))
            run.session.stages.say(f"{card.label}, {card.name}:")
        try:
            results.append(CardResult(card=card, smoke=generate(of_card)))
        except UsageError:
            raise
        except KleinError as error:
            results.append(CardResult(card=card, error=error))
    return tuple(results)


def with_cards(report: Report, results: Sequence[CardResult]) -> Report:
    """Return a report with a row for each card, which ends as the worst of them.

    Its test image is the first that is wrong, else the first of all.
    """
    images = [each for each in results if each.smoke is not None]
    shown = next((each.smoke for each in images if each.problem is not None), images[0].smoke if images else None)
    errors = tuple(_error_of(each, each.problem) for each in results if each.problem is not None)
    findings = tuple(each for each in shown.findings if each.severity != "problem") if shown is not None else ()
    return replace(
        report,
        cards=tuple(results),
        smoke_test=shown,
        findings=(*report.findings, *findings),
        errors=(*report.errors, *errors),
        status="failed" if errors else report.status,
        exit_status=max((each.exit_status for each in errors), default=report.exit_status),
    )


def _error_of(result: CardResult, problem: KleinError | Finding) -> KleinError:
    """Return what is wrong with a card as an error that names it; the class of an error stays."""
    message = (
        f"{result.card.label}, {result.card.name}: {problem if isinstance(problem, KleinError) else problem.message}"
    )
    if isinstance(problem, KleinError):
        problem.args = (message,)
        return problem
    return SmokeTestError(message, hint=problem.hint)


def _image_of(path: Path, card: Card) -> Path:
    """Return the path of the image of one card, ``fox-gpu1.png`` or ``fox-gpu1-0.png`` beside ``fox.png``."""
    number = "" if card.slice_number is None else f"-{card.slice_number}"
    return path.with_name(f"{path.stem}-gpu{card.index}{number}{path.suffix}")
