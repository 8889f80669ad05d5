"""The user's own options for ComfyUI: typed, found in a launcher's records, or read from a server that runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from provisioner.comfyui.recorded_flags import of_running_server, recorded_flags
from provisioner.comfyui.server.failures import rejected_options_error
from provisioner.comfyui.users_flags import UsersFlags, found_flags, known_options, shown_words, typed_flags
from provisioner.commands.image_options import SmokeTestOptions
from provisioner.commands.inspect_comfyui import ComfyUIInstall
from provisioner.commands.run import Run
from provisioner.commands.unload import DEFAULT_SERVER
from provisioner.core.errors import ServerNotUsableError, SmokeTestError, UsageError
from provisioner.core.models import ComfyTarget
from provisioner.smoke_test.results import StartedWith

AUTO = "auto"
"""As ``--comfyui-args``: those that were found."""


def with_flags(
    run: Run, options: SmokeTestOptions, comfyui: ComfyUIInstall | None, asked: str | None
) -> SmokeTestOptions:
    """Return the options of a test image with the user's own options for ComfyUI in them.

    Parameters
    ----------
    run, options, comfyui
        As for `generate_image`.
    asked : str or None
        What was given as ``--comfyui-args``: options, "auto", or the address of a server that runs.  None: the image is
        made without them, and says that there are some.

    Raises
    ------
    UsageError
        There is no ComfyUI to start with them, or they are not options that can be given.
    SmokeTestError
        No server answers at the address.
    """
    if options.server is not None or comfyui is None or comfyui.checkout.tree is None:
        if asked is None:
            return options
        raise UsageError(
            "--comfyui-args is for a ComfyUI that is started for the test image, and here none is.",
            hint="Leave --comfyui-args out; a server that runs already has its options.",
        )
    if asked is None:
        return replace(options, unused_flags=_recorded(run, comfyui))
    return replace(options, flags=find_flags(run, comfyui, asked))


def find_flags(run: Run, comfyui: ComfyUIInstall, asked: str) -> UsersFlags | None:
    """Return the options that were asked for; None where none were found.  Raises as `with_flags`."""
    if asked == AUTO:
        found = _of_usual_server(run) or _recorded(run, comfyui)
    elif asked.startswith(("http://", "https://")):
        found = _of_server(run, asked)
    else:
        found = typed_flags(asked, is_windows=sys.platform == "win32")
    for secret in found.secrets if found is not None else ():
        run.session.keep_secret(secret)
    return found


def _of_server(run: Run, url: str, *, has_to_be_ours: bool = False) -> UsersFlags | None:
    from provisioner.comfyui.server.client import ComfyClient

    with ComfyClient(url, cancelled=run.session.cancelled.is_set) as client:
        if has_to_be_ours and isinstance(run.target, ComfyTarget):
            folders = {Path(path) for paths in client.folder_paths().values() for path in paths}
            if not folders & {path for each in run.target.folders for path in each.read}:
                return None
        return of_running_server(client.system_stats().argv, client.address.url)


def _of_usual_server(run: Run) -> UsersFlags | None:
    """Return the options of the ComfyUI at the usual address, if it reads these model folders."""
    from provisioner.comfyui.server.launch import parse_address
    from provisioner.comfyui.server.server_process import accepts

    if not accepts(parse_address(DEFAULT_SERVER)):
        return None
    with contextlib.suppress(SmokeTestError):  # another program listens there
        return _of_server(run, DEFAULT_SERVER, has_to_be_ours=True)
    return None


def _recorded(run: Run, comfyui: ComfyUIInstall) -> UsersFlags | None:
    from provisioner.comfyui.installed_programs import batch_files_of, read_record
    from provisioner.machine.readings import operating_system_named

    tree = comfyui.folder
    batch_files = batch_files_of(tree.parent) if comfyui.checkout.kind == "portable" else ()
    system = operating_system_named(sys.platform)
    return recorded_flags(read_record, tree, Path.home(), run.session.environ, system, batch_files)


def options_known_by(comfyui: ComfyUIInstall) -> frozenset[str]:
    """Return the options that this ComfyUI has; nothing where its source does not say."""
    try:
        text = (comfyui.folder / "comfy" / "cli_args.py").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    return known_options(text)


@contextlib.contextmanager
def named_options(flags: UsersFlags | None, comfyui: ComfyUIInstall) -> Iterator[None]:
    """Say of a ComfyUI that rejects its command line which option it was, and which release it is."""
    try:
        yield
    except ServerNotUsableError as error:
        if flags is None or error.context.get("cause") != "unknown-option":
            raise
        lines = error.context.get("last_lines")
        raise rejected_options_error(
            lines if isinstance(lines, list) else [],
            version=comfyui.checkout.version,
            origin=flags.origin,
            known=options_known_by(comfyui),
            log_path=str(error.context.get("log_path", "")),
        ) from error


def started_with(options: SmokeTestOptions, argv: Sequence[str], url: str | None) -> StartedWith:
    """Return with which options a server ran, as it reports them itself; `url` is that of one that was not started."""
    given = options.flags or UsersFlags()
    shown = tuple(shown_words(option) for option in found_flags(argv[1:], "").options)
    origin = f"the ComfyUI that runs at {url}" if url is not None else given.origin if given.words else None
    return StartedWith(words=shown, origin=origin, left_out=given.left_out)


def note_on_unused(options: SmokeTestOptions) -> tuple[str, ...]:
    """Return a sentence about options of the user's that this image was made without."""
    unused = options.unused_flags
    if unused is None or not unused.words:
        return ()
    return (
        f"Here ComfyUI is started with {unused.shown} (from {unused.origin}); this image was made without. "
        f"`klein-setup smoke-test --comfyui-args auto` makes one with them.",
    )
