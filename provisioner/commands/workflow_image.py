"""The graph of a test image from any workflow: converted by the server that generates it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.comfyui.server.launch import parse_address
from provisioner.commands.run import Run, options_of
from provisioner.commands.workflow_source import FoundWorkflow, find_workflow
from provisioner.core.errors import NotTheFileError, UsageError, WorkflowError
from provisioner.core.json_reader import as_list
from provisioner.core.models import Finding
from provisioner.manifest.shipped import is_shipped, shipped_folder
from provisioner.smoke_test.graph import Graph, Phase
from provisioner.smoke_test.image import judge, seed_in
from provisioner.smoke_test.results import ImageFacts, ImageOptions
from provisioner.workflow.patch_prompt import Patched, patch_prompt, phases_of, settings_of
from provisioner.workflow.prompt_graph import to_prompt
from provisioner.workflow.read_workflow import read_workflow

if TYPE_CHECKING:
    from provisioner.comfyui.server.client import ComfyClient


@dataclass(frozen=True, kw_only=True)
class WorkflowImage:
    """What a workflow makes, and what of it can be changed."""

    label: str
    make: Callable[[ImageOptions], Patched]
    options: ImageOptions  # as the workflow has them, where it is known
    changed: frozenset[str]  # "prompt", "seed", "size", "steps"
    unchanged: frozenset[str]  # was asked for, and no node is known that takes it
    is_stand_in: bool  # the weights are made up
    phases: Mapping[str, Phase]
    frames: int | None  # of a video, as they stand in it

    @property
    def note(self) -> str:
        """Say which workflow it is, and what of it was another than in the file."""
        changed = ", ".join(sorted(self.changed)) or "nothing"
        left = f"; asked for, but none of its nodes is known to take it: {', '.join(sorted(self.unchanged))}"
        return f"Generated with {self.label}; changed in it: {changed}{left if self.unchanged else ''}."

    def graph(self, asked: ImageOptions) -> Graph:
        """Return the graph of an image."""
        return self.make(asked).prompt

    def judge(self, image: ImageFacts, data: bytes, asked: ImageOptions) -> tuple[Finding, ...]:
        """Return what is wrong with an image; its size and seed count only where they were put into the graph."""
        if "size" not in self.changed:
            asked = replace(asked, width=image.width, height=image.height)
        seed = seed_in(data) if "seed" in self.changed else None
        return judge(image, asked, generated_seed=seed, is_stand_in=self.is_stand_in)


def _own_workflow(run: Run, client: ComfyClient) -> FoundWorkflow:
    """Return the workflow of the set: a template as the server has it, or the file beside the manifest."""
    own = run.wanted.workflow
    if own is None:
        raise UsageError(f"The set {run.wanted.id} names no workflow.", hint="Name one with --workflow FILE.")
    found = workflow_beside(run)
    if found is not None:
        return found
    data = client.template(own.name)
    if data is None:
        return find_workflow(run.session, own.name, run.options.comfyui)
    return FoundWorkflow(data=data, label=f"ComfyUI's template {own.name}", name=own.name, title=own.name)


def workflow_beside(run: Run) -> FoundWorkflow | None:
    """Return the set's workflow, if it is a file beside the manifest.

    Raises
    ------
    UsageError
        It is not there.
    NotTheFileError
        It is another file than the manifest names.
    """
    own = run.wanted.workflow
    if own is None or own.sha256 is None:
        return None
    named = run.options.manifest
    folder = shipped_folder() if is_shipped(named) else Path(named).expanduser().absolute().parent
    found = find_workflow(run.session, str(folder / own.name), run.options.comfyui)
    observed = hashlib.sha256(found.data).hexdigest()
    if observed != own.sha256:
        raise NotTheFileError(
            f"{found.label} is not the workflow that the manifest names.",
            hint="Get it again from where the manifest came from, or name another with --workflow FILE.",
            expected=own.sha256,
            observed=observed,
        )
    return found


def _with_packs(run: Run, error: WorkflowError, named: str | None) -> WorkflowError:
    """Return the error with the command that installs the packs whose nodes the server lacks."""
    packs = [each for each in as_list(error.context.get("packs")) if isinstance(each, str)]
    if not packs:
        return error
    pinned = {each.id: each for each in run.manifest.custom_nodes}
    known = [each for name in packs if (each := name.rpartition("/")[2]) in pinned]
    program = run.session.settings.program
    if len(known) == len(packs):
        words = [word for each in known for word in ("--custom-node", each)]
        command = program.command("install", [*options_of(run, None), *words])
        hint = f"Install them, if you trust their authors, with `{command}`."
    else:
        command = program.command("manifest from-workflow", [named or "FILE"])
        hint = f"`{command}` writes a manifest that pins them, and `install` asks about each; or use ComfyUI-Manager."
    return WorkflowError(str(error), hint=hint, **error.context)


def open_workflow_image(
    run: Run, named: str | None, client: ComfyClient, asked: ImageOptions, given: frozenset[str]
) -> WorkflowImage:
    """Return what generates the image of a workflow at a server.

    Parameters
    ----------
    run : Run
        Whose ComfyUI is looked at for templates.
    named : str or None
        A file, an address, or the id of a template; None for the set's own.
    client : ComfyClient
        The server.
    asked : ImageOptions
        Its seed is put into the graph, and of its text, size and steps what is in `given`.
    given : frozenset of str
        "prompt", "size", "steps".

    Raises
    ------
    UsageError
        There is no such workflow, or the server lacks a node of it.
    ServerNotUsableError
        The server does not answer.
    """
    found = find_workflow(run.session, named, run.options.comfyui) if named else _own_workflow(run, client)
    flat = read_workflow(found.data, name=found.label)
    try:
        prompt = to_prompt(flat, client.node_classes(), name=found.label)
    except WorkflowError as error:
        raise _with_packs(run, error, named) from error

    def make(options: ImageOptions) -> Patched:
        return patch_prompt(
            prompt,
            text=options.prompt if "prompt" in given else None,
            seed=options.seed,
            size=(options.width, options.height) if "size" in given else None,
            steps=options.steps if "steps" in given else None,
        )

    first = make(asked)
    known = settings_of(first.prompt)
    options = replace(
        asked,
        prompt=known.text or asked.prompt,
        steps=known.steps or asked.steps,
        guidance=asked.guidance if known.guidance is None else known.guidance,
    )
    return WorkflowImage(
        label=found.label,
        make=make,
        options=options,
        changed=first.done,
        unchanged=given - first.done,
        is_stand_in=run.manifest.is_stand_in,
        phases=phases_of(first.prompt),
        frames=known.frames,
    )


def graph_of_workflow(
    run: Run, named: str | None, server: str | None, asked: ImageOptions, given: frozenset[str]
) -> Graph:
    """Return the graph of a workflow as a running server takes it; raises as `open_workflow_image`."""
    from provisioner.comfyui.server.client import ComfyClient

    if server is None:
        raise UsageError(
            "The graph of a workflow is made with what a running ComfyUI says of its nodes.",
            hint="Name it with --server URL, or leave --graph out: then one is started.",
        )
    parse_address(server)
    with ComfyClient(server, cancelled=run.session.cancelled.is_set) as client:
        return open_workflow_image(run, named, client, asked, given).graph(asked)
