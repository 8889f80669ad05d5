"""What a test image is asked to be, where it is kept, and what its stages are called: shared by both backends."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.comfyui.users_flags import UsersFlags
from provisioner.commands.run import Run
from provisioner.core.errors import NotWritableError, SmokeTestError, StorageError
from provisioner.core.models import Machine
from provisioner.disk.os_errors import reason_of
from provisioner.disk.root import Root, free_name, write_output
from provisioner.smoke_test.graph import Graph, build_graph, names_for, options_for, recipe_of
from provisioner.smoke_test.measurement import failure_advice
from provisioner.smoke_test.results import ImageOptions

if TYPE_CHECKING:
    from provisioner.smoke_test.vram import VramSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeTestOptions:
    """What the command line asks for of the test image."""

    prompt: str | None = None
    seed: int | None = None  # None: a fresh one
    width: int = 1024  # pixels
    height: int = 1024
    has_tiled_decode: bool = False
    reserve_vram_gib: float | None = None
    image: Path | None = None  # where to keep it
    workflow: str | None = None  # a file, or the id of a template, instead of the graph for the set
    is_sized: bool = False  # width and height were asked for
    steps: int | None = None  # of denoising; None: as many as the set or the workflow says
    images: int | None = None  # one after the other, by one server; None: two on a GPU, one on a CPU
    gpu: str | None = None  # the card, as `cards.choose_cards` takes it
    server: str | None = None  # one that runs already
    flags: UsersFlags | None = None  # of the user's own ComfyUI, for the one that is started; None: none
    unused_flags: UsersFlags | None = None  # those that were found and not asked for
    timeout_s: float = 900.0
    start_timeout_s: float | None = None  # until ComfyUI answers; None: `timeout_s`
    writes_no_bytecode: bool = False  # Python then leaves the tree as it is

    @property
    def given(self) -> frozenset[str]:
        """What of the image was asked for, and not left to the set or the workflow: "prompt", "size", "steps"."""
        named = {"prompt": self.prompt is not None, "size": self.is_sized, "steps": self.steps is not None}
        return frozenset(name for name, is_given in named.items() if is_given)


def image_options(run: Run, options: SmokeTestOptions) -> ImageOptions:
    """Return the image to generate; raises UsageError for a number that ComfyUI would reject."""
    return options_for(
        run.wanted,
        seed=secrets.randbits(63) if options.seed is None else options.seed,
        prompt=options.prompt,
        width=options.width,
        height=options.height,
        steps=options.steps,
        has_tiled_decode=options.has_tiled_decode,
    )


def graph_of(run: Run, options: SmokeTestOptions) -> Graph:
    """Return the graph in API form, with the names the files have under ComfyUI's folders; raises UsageError."""
    if options.workflow is not None or run.wanted.workflow is not None:
        from provisioner.commands.workflow_image import graph_of_workflow

        return graph_of_workflow(run, options.workflow, options.server, image_options(run, options), options.given)
    return build_graph(recipe_of(run.wanted), names_for(run.wanted), image_options(run, options))


PHASE_STAGES: Mapping[str, tuple[str, str, str]] = {
    "load": ("loading", "the models", "loaded"),
    "encode": ("encoding", "the prompt", "encoded"),
    "sample": ("denoising", "the image", "denoised"),
    "decode": ("decoding", "the image", "decoded"),
    "save": ("saving", "the image", "saved"),
}
"""What a phase is called while it goes on, and when it is done."""


CHECK_STAGE = ("checking", "the image", "checked")


@contextlib.contextmanager
def advice_on_memory(
    run: Run, options: SmokeTestOptions, machine: Machine | None, sampler: VramSampler
) -> Iterator[None]:
    """Give an error the numbers of this machine and card; `machine` is None for a server on another one."""
    try:
        yield
    except SmokeTestError as error:
        error.hint = failure_advice(
            error,
            machine,
            run.wanted,
            None if machine is None else sampler.reading,
            sets=run.manifest.sets,
            is_tiled=options.has_tiled_decode,
            reserved_gib=options.reserve_vram_gib,
        )
        raise


def log_path_of(what: str) -> Path:
    """Return a new file for the output of ComfyUI or diffusers, named by the time."""
    from provisioner.disk.locations import state_folder

    return free_name(state_folder() / "logs" / time.strftime(f"{what}-%Y%m%dT%H%M%SZ.txt", time.gmtime()))


def image_path(asked: ImageOptions) -> Path:
    """Return where an image is kept that nobody named a file for."""
    from provisioner.disk.locations import data_folder

    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return data_folder() / "pictures" / f"klein-{stamp}-{asked.seed}.png"


def check_place(options: SmokeTestOptions) -> None:
    """Raise before anything is generated where the image could not be kept: it takes minutes on some machines."""
    if options.image is None:
        return
    path = options.image.expanduser().absolute()
    folder = next((each for each in path.parents if os.path.lexists(each)), path.parent)
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "it is a folder" if path.is_dir() else f"{folder} is no folder that can be written to"
        raise _not_kept(path, reason)


def keep_output(data: bytes, path: Path) -> Path:
    """Write what was made, and return its path; raises NotWritableError where that is not possible."""
    try:
        Root(path.parent).make_folder()
        write_output(path, data)
    except StorageError as error:
        raise _not_kept(path, reason_of(error)) from error
    return path


def _not_kept(path: Path, reason: str) -> NotWritableError:
    return NotWritableError(
        f"The image cannot be saved as {path}: {reason}.", hint="Name another file with --image FILE.", path=str(path)
    )
