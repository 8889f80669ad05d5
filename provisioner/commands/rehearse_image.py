"""The rehearsal's last step: an environment with the CPU build of torch, and an image by the small pipeline in it.

The environment is made like any other.  No Hub, no GPU and no account is needed, but torch has to be fetched from a
wheel index unless an environment is named.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from provisioner.comfyui.users_flags import UsersFlags
from provisioner.commands.choose_environment import (
    PYTHONS,
    EnvironmentOptions,
    apply_environment,
    environment_folder,
    look_at_environment,
)
from provisioner.commands.comfyui_image import python_of
from provisioner.commands.diffusers_image import hear_diffusers
from provisioner.commands.image_options import SmokeTestOptions
from provisioner.commands.inspect_comfyui import ComfyUIInstall, inspect_comfyui
from provisioner.commands.run import Run
from provisioner.commands.session import Session
from provisioner.commands.smoke_test import generate_image
from provisioner.core.errors import AccessError, InsufficientSpaceError, NetworkError, UsageError
from provisioner.core.models import Download
from provisioner.core.units import count, human_bytes, human_duration
from provisioner.disk.root import Root
from provisioner.environment.app_packages import requirement_lines
from provisioner.machine.process import run_checked, run_process
from provisioner.plan.steps import MakeEnvironment
from provisioner.smoke_test.diffusers_answers import DiffusersRun
from provisioner.smoke_test.diffusers_run import generate_with_diffusers
from provisioner.smoke_test.image import judge, read_image
from provisioner.smoke_test.results import ImageOptions, SmokeTest
from provisioner.torch.choose import TorchOptions

OPTIONS = ImageOptions(seed=4, width=64, height=64)  # 4 steps

Check = Callable[[str, bool, str], None]
"""Takes the name of a check, whether it passed, and what was seen; raises RehearsalError if it failed."""

# What pip said on 2026-11-23 for Linux on x86-64 and Python 3.11: the CPU build of torch 2.13.0 is a wheel of 192 MB,
# everything together 271 MB; unpacked it is 1.3 GB.  The default index has a CUDA build for that system instead, whose
# wheel is one of 527 MB and needs NVIDIA's libraries beside it (nvidia-cublas alone has 423 MB).
_FETCHED_BYTES = 271_000_000
_UNPACKED_BYTES = 1_300_000_000
_DEFAULT_TORCH = "torch==2.13.0"
_VENV_TIMEOUT_S = 600.0
_TIMEOUT_S = 900.0  # the first import from a slow disk takes minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentChoice:
    """Which environment the pipeline runs in."""

    given: Path | None = None  # an environment's folder or its Python; None: one is made
    torch_index: str | None = None  # base address of the wheel index, "https://download.pytorch.org/whl"


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallModel:
    """The pipeline's repository in an HF cache."""

    cache: Path
    repo_id: str
    revision: str


def python_for(
    session: Session, choice: EnvironmentChoice, folder: Path, say: Callable[[str], None], check: Check
) -> Path:
    """Return the Python to run the pipeline with: the given one, or that of an environment made in `folder`.

    Raises
    ------
    UsageError
        There is no Python in the given folder.
    InsufficientSpaceError
        There is not enough disk space for an environment.
    KleinError
        As `apply_environment`.
    """
    if choice.given is not None:
        return _given_python(session, choice.given.expanduser())
    free = shutil.disk_usage(folder).free
    if free < 2 * _UNPACKED_BYTES:
        raise InsufficientSpaceError(
            f"The environment for the test image needs about {human_bytes(2 * _UNPACKED_BYTES)} while it is made;"
            f" {folder} has {human_bytes(free)}.",
            hint="Set TMPDIR to a larger disk, name an environment with --environment DIR, or pass --no-image.",
            path=str(folder),
        )
    where = folder / "environment"
    _make(session, where, choice, say)
    _check_environment(check, session, where)
    return _given_python(session, where)


def _given_python(session: Session, given: Path) -> Path:
    if given.is_file():
        return given.absolute()
    seen = session.environments.observe(given)
    if seen.python is None:
        why = seen.broken or "there is no environment."
        raise UsageError(
            f"{given} cannot generate an image: {why}",
            hint="Name another with --environment, or leave the option out.",
        )
    return seen.python.path


def _make(session: Session, where: Path, choice: EnvironmentChoice, say: Callable[[str], None]) -> None:
    """Make the environment with torch, from the wheel index of the CPU build, or else from pip's default index."""
    torch = TorchOptions(tag="cpu", index_base=choice.torch_index)
    options = EnvironmentOptions(where=where, accepts_cpu=True, torch=torch)
    _, chosen, _, versions = look_at_environment(session, where, "diffusers", options)
    step = MakeEnvironment(
        where=where,
        choice=chosen,
        app="diffusers",
        reason="the rehearsal makes its own",
        download=Download(fetched_bytes=_FETCHED_BYTES, disk_bytes=_UNPACKED_BYTES),
        python_versions=versions,
    )
    say(
        f"torch's CPU build and diffusers: about {human_bytes(_FETCHED_BYTES)} to fetch, {human_bytes(_UNPACKED_BYTES)}"
    )
    say("unpacked (measured on Linux, x86-64, 2026-11-23).")
    lines = requirement_lines("diffusers")
    try:
        with session.stages.stage("making", "the environment", "made"):
            apply_environment(session, step)
    except (NetworkError, AccessError) as error:
        if choice.torch_index is not None:
            raise
        say(str(error))
        say(f"Using {_DEFAULT_TORCH} from pip's default index instead.  On Linux that may be a CUDA build: its wheel")
        say("has 527 MB, and NVIDIA's libraries come with it, several times as much; press Ctrl-C if that is too much.")
        _make_plain(session, where)
        lines = (_DEFAULT_TORCH, *lines)
    with session.stages.stage("installing", "packages", "installed") as came_of_it:
        came_of_it(count(session.environments.install(where, lines, progress=session.stages.teller), "package"))


def _make_plain(session: Session, where: Path) -> None:
    """Make an environment without a torch set: for one that pip chooses from its default index."""
    python = session.environments.find_python(PYTHONS).path
    run_checked([python, "-I", "-m", "venv", where], timeout_s=_VENV_TIMEOUT_S)


def _check_environment(check: Check, session: Session, where: Path) -> None:
    """Check that the torch of the new environment computes correctly."""
    answer = session.environments.probe(where, backend="cpu", packages=("torch",))
    check(
        "the environment's torch gives correct results on the CPU",
        answer.ok,
        " ".join(sentence for _, sentence in answer.failures) or f"torch {dict(answer.packages)['torch']}",
    )


def generate(
    session: Session, python: Path, model: SmallModel, folder: Path, say: Callable[[str], None]
) -> tuple[DiffusersRun, SmokeTest]:
    """Generate the small image on the CPU; return the run, and the smoke test with its image judged.

    Raises
    ------
    SmokeTestError
        No image was generated.
    """
    run_ = generate_with_diffusers(
        python,
        run=run_process,
        cache=model.cache,
        repo_id=model.repo_id,
        revision=model.revision,
        options=OPTIONS,
        output=folder / "image.png",
        log_path=folder / "drawing.log",
        timeout_s=_TIMEOUT_S,
        device="cpu",
        environ=session.environ,
        cancelled=session.cancelled.is_set,
        on_event=partial(hear_diffusers, session.stages),
    )
    session.stages.end()
    facts = read_image(run_.image)
    say(f"Generated in {human_duration(run_.seconds)}, libraries and models included.")
    smoke = run_.smoke_test(OPTIONS, image=facts, findings=judge(facts, OPTIONS, is_stand_in=True))
    return run_, replace(smoke, is_stand_in=True)


def check_image(check: Check, run_: DiffusersRun, smoke: SmokeTest, requests: int) -> None:
    """Check the image and the run; `requests` is how many requests the hub received meanwhile."""
    facts, done = smoke.image, run_.done
    if facts is None:
        check("there is an image", False, "none")
        return
    check(
        "the image can be read and has the requested size",
        (facts.width, facts.height) == (OPTIONS.width, OPTIONS.height),
        f"{facts.width} x {facts.height} {facts.mode}, {human_bytes(facts.size)}",
    )
    wrong = [each.message for each in smoke.findings if each.severity == "problem"]
    check(
        "it is not black and not a single colour",
        not wrong and facts.minimum < facts.maximum,
        " ".join(wrong) or f"values from {facts.minimum} to {facts.maximum}, standard deviation {facts.deviation:.1f}",
    )
    steps = len(done.timings.steps_s)
    check("it took 4 steps", steps == OPTIONS.steps, f"{steps} steps in {human_duration(sum(done.timings.steps_s))}")
    check(
        "it was generated offline",
        done.is_offline and not done.refused_connections and requests == 0,
        f"{requests} requests to the hub, {len(done.refused_connections)} attempts to reach the network",
    )
    versions = dict(done.versions)
    check(
        "the device and the packages are the requested ones",
        done.device.place == "cpu" and {"torch", "diffusers", "transformers", "accelerate"} <= set(versions),
        f"{done.device.label}; " + ", ".join(f"{name} {version}" for name, version in done.versions),
    )


# --- the other model --------------------------------------------------------------------------------


def program_in(run: Run) -> ComfyUIInstall:
    """Return the ComfyUI in the folder of a run; raises UsageError where there is none, or no Python for it."""
    comfyui = inspect_comfyui(run)
    is_there = comfyui is not None and comfyui.checkout.tree is not None
    if comfyui is not None and is_there and python_of(run, comfyui, environment_folder(run, None))[0] is not None:
        return comfyui
    raise UsageError(
        f"In {run.options.comfyui} there is no {'environment for ComfyUI' if is_there else 'ComfyUI'}, so the second"
        " model would get no image.",
        hint="Name the folder of a ComfyUI that starts, or leave --comfyui out.",
    )


def generate_by_comfyui(run: Run, program: Run, tree: Path) -> SmokeTest:
    """Generate the image of the other model, whose files are in `tree`, by the ComfyUI of another folder.

    That ComfyUI reads models and custom nodes from `tree` alone, and writes into folders of ours.

    Raises
    ------
    UsageError
        As `program_in`.
    SmokeTestError
        No image was generated.
    """
    Root(tree / "custom_nodes").make_folder()  # ComfyUI ends at its start where it is missing
    flags = UsersFlags(words=("--base-directory", str(tree), "--cpu"), origin="the rehearsal")
    options = SmokeTestOptions(
        flags=flags, image=tree / "image.png", images=1, timeout_s=_TIMEOUT_S, writes_no_bytecode=True
    )
    where = environment_folder(program, None)
    return generate_image(run, options, comfyui=program_in(program), environment=where, show=lambda _: None)


def check_other_image(check: Check, smoke: SmokeTest) -> None:
    """Check what ComfyUI generated: as large as the workflow says, and an image that can be judged."""
    facts = smoke.image
    size = "no image" if facts is None else f"{facts.width} x {facts.height}"
    check("the image has the size that the workflow says", size == "256 x 256", size)
    wrong = [each.message for each in smoke.findings if each.severity == "problem"]
    check("nothing is wrong with it", not wrong, " ".join(wrong) or f"ComfyUI {dict(smoke.versions).get('comfyui')}")
