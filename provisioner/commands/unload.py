"""Telling a ComfyUI that runs to let go of models whose files were just replaced."""

from __future__ import annotations

from pathlib import Path

from provisioner.commands.run import Run
from provisioner.core.errors import SmokeTestError
from provisioner.core.models import ComfyTarget
from provisioner.report.outcome import Report

DEFAULT_SERVER = "http://127.0.0.1:8188"
"""Where ComfyUI listens unless it is told otherwise (``comfy/cli_args.py``)."""


def unload_running_server(run: Run, report: Report, url: str | None) -> None:
    """Tell the server that reads these files to unload them, if a file was replaced and such a server runs.

    A loader that is cached does not notice that its file was replaced: the next image would come from the old bytes
    (ComfyUI 0.33.0, seen 2026-11-23).  Without `url` the usual address is tried, and a server there is only spoken to
    if it reads this tree.  That nobody answers is no error.
    """
    replaced = any(each.status == "done" and getattr(each.step, "replaces", None) for each in report.outcomes)
    if not replaced or not isinstance(run.target, ComfyTarget):
        return
    from provisioner.comfyui.server.client import ComfyClient

    address = url or DEFAULT_SERVER
    try:
        with ComfyClient(address, cancelled=run.session.cancelled.is_set) as client:
            folders = {Path(path) for paths in client.folder_paths().values() for path in paths}
            ours = {path for each in run.target.folders for path in each.read}
            if url is None and not folders & ours:
                return
            client.free()
    except SmokeTestError as error:
        if url is not None:
            run.session.notice(f"The server could not be told to unload: {error} Restart it yourself.")
        return
    run.session.notice(f"ComfyUI at {address} was told to unload its models, so that it reads the new files.")
