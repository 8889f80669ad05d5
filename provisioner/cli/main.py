"""The command line: reads the arguments, wires a run together, owns the exit status.

``klein-setup --help`` must answer at once, so everything but argparse is imported when a command runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from provisioner import __version__
from provisioner.cli.arguments import COMMANDS, absolute_paths, build_parser
from provisioner.core.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_TERMINATED, KleinError, UsageError

if TYPE_CHECKING:
    from types import FrameType
    from typing import TypeAlias

    from provisioner.bundle.image_layout import Part
    from provisioner.commands.choose_environment import EnvironmentOptions
    from provisioner.commands.image_options import SmokeTestOptions
    from provisioner.commands.install import RunUi
    from provisioner.commands.look import InstallOptions
    from provisioner.commands.run import Options, Run
    from provisioner.commands.session import Session
    from provisioner.core.models import Config, Machine, Registry
    from provisioner.core.program import Program
    from provisioner.files.peers import Peers
    from provisioner.report.outcome import Report
    from provisioner.signing.ec_keys import PrivateKey
    from provisioner.torch.choose import TorchOptions
    from provisioner.ui.console import Mode, Ui

    _Handler: TypeAlias = "Callable[[int, FrameType | None], object] | int | None"


class Terminated(KeyboardInterrupt):
    """SIGTERM: the run ends as after Ctrl-C, with another status."""

    exit_status = EXIT_TERMINATED


# --- the commands --------------------------------------------------------------------------------------


def _options(arguments: argparse.Namespace) -> Options:
    from provisioner.commands.run import Options

    named = _named_manifests(arguments)
    if len(named) > 1 and arguments.run not in _FOR_SEVERAL:
        raise UsageError(
            f"`{arguments.run}` is about one manifest.", hint=f"Several are for {', '.join(sorted(_FOR_SEVERAL))}."
        )
    return Options(
        manifest=named[0] if named else Options().manifest,
        more_manifests=named[1:],
        is_manifest_named=bool(named),
        verify_with=_public_key(arguments),
        set_id=arguments.set_id,
        comfyui=arguments.comfyui,
        hf_cache=arguments.hf_cache,
        extra_model_paths=tuple(arguments.extra_model_paths),
        assume_yes=getattr(arguments, "yes", False),
        accepted_licences=frozenset(getattr(arguments, "accept_licence", ())),
    )


_FOR_SEVERAL = frozenset({"install", "plan", "verify", "repair", "uninstall"})


def _named_manifests(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the manifests that are named: a list on the command line, one text in the user's own defaults."""
    given = arguments.manifest
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def _public_key(arguments: argparse.Namespace) -> Path | None:
    """Return the key that locks have to be signed with: the option's, the settings', or the environment's."""
    named = os.environ.get("KLEIN_SETUP_VERIFY_WITH")
    return arguments.verify_with or (Path(named) if named else None)


def _required_key(arguments: argparse.Namespace) -> Path:
    key = _public_key(arguments)
    if key is None:
        raise UsageError("No key was named to verify with.", hint="Name the public key with --verify-with KEY.")
    return key


def _session(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event, machine: Path | None = None) -> Session:
    from provisioner.commands.session import Session, Settings
    from provisioner.machine.detection import MACHINE_VARIABLE

    settings = Settings(
        endpoint=getattr(arguments, "endpoint", None),
        registry=_registry(arguments),
        bundle=getattr(arguments, "bundle", None),
        sends_token=getattr(arguments, "send_token", False),
        is_offline=getattr(arguments, "offline", False),
        package_index=getattr(arguments, "package_index", None),
        allows_loopback=getattr(arguments, "allow_loopback", False),
        max_connections=getattr(arguments, "connections", 8),
        limit_bytes_s=getattr(arguments, "limit_rate", None),
        stall_timeout_s=getattr(arguments, "stall_timeout", 20.0),
        peers=_peers(arguments),
        look_in=tuple(folder.expanduser() for folder in getattr(arguments, "look_in", ())),
        follow_links=getattr(arguments, "follow_links", False),
        pass_env=tuple(getattr(arguments, "pass_env", ())),
        wait_for_lock=not getattr(arguments, "no_wait", False),
        program=ui.program,
    )
    session = Session(
        settings=settings,
        environ=os.environ if machine is None else {**os.environ, MACHINE_VARIABLE: str(machine.expanduser())},
        events=ui.listener,
        cancelled=cancelled,
        secrets=ui.secrets,
        keep_secret=ui.keep_secret,
    )
    if hasattr(arguments, "endpoint"):
        _ = session.endpoint  # a wrong one is named before anything is looked at
    return session


def _peers(arguments: argparse.Namespace) -> Peers | None:
    """Return whom to take files from; raises UsageError where that could not work."""
    hosts = tuple(getattr(arguments, "peer", ()))
    if not hosts:
        if hasattr(arguments, "peer") and (arguments.torrent or arguments.listen):
            raise UsageError(
                "--torrent and --listen were given without --peer.", hint="Name one with --peer HOST:PORT."
            )
        return None
    if arguments.torrent is None:
        raise UsageError(
            "--peer was given without --torrent.", hint="Name the file that `klein-setup seed --torrent FILE` wrote."
        )
    if arguments.offline or arguments.from_bundle is not None:
        raise UsageError("--peer does not go with --offline or --from.", hint="Leave one of them out.")
    from provisioner.commands.seed import check_peers
    from provisioner.files.peers import Peers

    peers = Peers(torrent=arguments.torrent.expanduser(), hosts=hosts, listen=arguments.listen)
    check_peers(peers)
    return peers


def _registry(arguments: argparse.Namespace) -> Registry | None:
    from provisioner.core.models import Registry

    if getattr(arguments, "bundle", None) is not None:
        found: Registry = arguments.bundle.registry
        return found
    repository, is_only = getattr(arguments, "registry", None), getattr(arguments, "registry_only", False)
    if repository is None and is_only:
        raise UsageError("--registry-only was given without --registry.", hint="Name it with --registry ADDRESS.")
    return None if repository is None else Registry(repository=repository, is_only=is_only)


def _install(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.install import run_install
    from provisioner.commands.run import open_run

    with _from_bundle(arguments, ui, cancelled):
        session = _session(arguments, ui, cancelled)
        run = open_run(session, _options(arguments))
        _check_locked(arguments, run)
        return run_install(run, _install_options(arguments, run), _run_ui(ui))


def _repair(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.install import run_install
    from provisioner.commands.run import open_run
    from provisioner.commands.unload import unload_running_server

    with _from_bundle(arguments, ui, cancelled):
        session = _session(arguments, ui, cancelled)
        if _is_scrub(arguments):
            return _scrub(arguments, ui, session)
        run = open_run(session, _options(arguments))
        if arguments.undo_update:
            from provisioner.commands.undo_update import run_undo_update

            return run_undo_update(run, ask=ui.ask, say=ui.say)
        report = run_install(run, _install_options(arguments, run), _run_ui(ui), "repair")
        unload_running_server(run, report, arguments.server)
        return report


def _is_scrub(arguments: argparse.Namespace) -> bool:
    """Whether files are to be read for some time only, or a schedule is about that; raises UsageError."""
    if arguments.scrub_s is None and arguments.schedule != "off":
        if arguments.metrics is not None or arguments.schedule is not None:
            raise UsageError(
                "--metrics and --schedule are for reading a little at a time.", hint="Say for how long with --for 5m."
            )
        return False
    for option in ("quick", "all", "attest"):
        if getattr(arguments, option, None):
            raise UsageError(f"--for and --{option} read different things.", hint="Leave one of them out.")
    if getattr(arguments, "only", None) not in {None, "files"}:
        raise UsageError("--for reads model files.", hint="Leave --only out.")
    return True


def _scrub(arguments: argparse.Namespace, ui: Ui, session: Session) -> Report:
    """Run ``verify`` or ``repair`` with ``--for`` or ``--schedule``."""
    from dataclasses import replace

    from provisioner.commands.run import open_run
    from provisioner.commands.scrub import Metrics, run_scrub

    is_repair = arguments.run == "repair"

    def opened() -> Run:
        return open_run(session, _options(arguments), with_machine=is_repair, must_exist=True)

    if arguments.schedule is not None:
        from provisioner.commands.schedule import ScheduleOptions, run_schedule

        words = ["--for", f"{arguments.scrub_s}s", *(["--only", "files", "--yes"] if is_repair else [])]
        words += [] if arguments.metrics is None else ["--metrics", str(arguments.metrics.expanduser().absolute())]
        every = None if arguments.schedule == "off" else arguments.schedule
        schedule = ScheduleOptions(command=arguments.run, every=every, words=tuple(words))
        return run_schedule(opened(), schedule, ask=ui.ask, say=ui.say)
    with Metrics(arguments.metrics).written() as metrics:
        run = metrics.about = opened()
        _check_locked(arguments, run)
        report = metrics.report = run_scrub(run, arguments.scrub_s, say=ui.say, damaged_first=is_repair)
        if is_repair and report.scrub is not None and report.scrub.wrong:
            from provisioner.commands.install import run_install

            done = run_install(run, _install_options(arguments, run), _run_ui(ui), "repair", depth="claims")
            left = report.scrub.wrong if done.exit_status else 0
            report = metrics.report = replace(done, scrub=replace(report.scrub, wrong=left))
        return replace(report, command=arguments.run)


def _plan(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.install import run_plan
    from provisioner.commands.run import open_run

    with _from_bundle(arguments, ui, cancelled):
        run = open_run(_session(arguments, ui, cancelled, next(iter(arguments.for_machine), None)), _options(arguments))
        show_hosts = ui.show_hosts if arguments.hosts else None
        return run_plan(run, _install_options(arguments, run), ui.show_plan, show_hosts)


@contextlib.contextmanager
def _from_bundle(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Iterator[None]:
    """Take what ``--from`` names from there alone; raises UsageError for options that name another place."""
    if arguments.from_bundle is None:
        yield
        return
    for option in ("registry", "registry_only", "endpoint", "comfyui_source", "comfyui_version", "offline"):
        if getattr(arguments, option, None):
            raise UsageError(f"--from and --{option.replace('_', '-')} name two places.", hint="Leave one of them out.")
    named = arguments.from_bundle
    if isinstance(named, Path):
        from provisioner.commands.open_bundle import opened

        opening = opened(named)
    else:
        from provisioner.commands.bundle_registry import opened_remote

        opening = opened_remote(_session(arguments, ui, cancelled), named)
    with opening as bundle:
        arguments.bundle = bundle
        yield


def _bundle_make(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from dataclasses import replace

    from provisioner.commands.bundle import BundleOptions, run_bundle_create
    from provisioner.commands.bundle_registry import begin_from_remote, folder_of, push_bundle
    from provisioner.commands.choose_environment import EnvironmentOptions
    from provisioner.commands.run import Options

    named = _named_manifests(arguments)
    if len(named) > 1:
        raise UsageError("A bundle is filled for one manifest at a time.", hint="`bundle add` adds another one.")
    options = Options(
        manifest=named[0] if named else Options().manifest,
        verify_with=_public_key(arguments),
        set_id=arguments.set_id,
        assume_yes=arguments.yes,
        accepted_licences=frozenset(arguments.accept_licence),
    )
    pushed = None if isinstance(arguments.folder, Path) else arguments.folder
    folder = arguments.folder if pushed is None else folder_of(pushed)
    if pushed is not None:
        begin_from_remote(_session(arguments, ui, cancelled), pushed, folder, must_exist=arguments.run == "bundle add")
    bundle = BundleOptions(
        folder=folder,
        comfyui_source=arguments.comfyui_source,
        comfyui_version=arguments.comfyui_version,
        has_comfyui=not arguments.no_comfyui,
        has_wheels=not arguments.no_wheels,
        environment=EnvironmentOptions(
            python=arguments.python, accepts_cpu=arguments.cpu, torch=_torch_options(arguments)
        ),
        adds=arguments.run == "bundle add",
        key=arguments.sign,
        lock_version=arguments.lock_version,
        expires=arguments.expires,
    )

    def make(machine: Path | None, bundle: BundleOptions, before: tuple[Part, ...]) -> tuple[Report, tuple[Part, ...]]:
        session = _session(arguments, ui, cancelled, machine)
        return run_bundle_create(session, options, bundle, _run_ui(ui), ui.say, ui.ask_password, before)

    machines: list[Path | None] = arguments.for_machine or [None]
    report, made = make(machines[0], bundle, ())
    for machine in machines[1:]:
        if not report.exit_status:
            report, made = make(machine, replace(bundle, adds=True), made)
    if pushed is not None and not report.exit_status:
        push_bundle(_session(arguments, ui, cancelled), folder, pushed, ui.say)
    return report


def _bundle_verify(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.bundle import run_bundle_verify

    session = _session(arguments, ui, cancelled)
    if isinstance(arguments.folder, Path):
        return run_bundle_verify(session, arguments.folder, ui.say)
    from provisioner.commands.bundle_registry import run_verify_remote

    return run_verify_remote(session, arguments.folder, ui.say)


def _seed(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.run import open_run
    from provisioner.commands.seed import run_seed

    run = open_run(_session(arguments, ui, cancelled), _options(arguments), with_machine=False, must_exist=True)
    torrent = None if arguments.torrent is None else arguments.torrent.expanduser()
    return run_seed(run, arguments.listen, torrent, ui.say, seconds=arguments.seed_s)


def _smoke_test(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.choose_environment import environment_folder
    from provisioner.commands.comfyui_flags import with_flags
    from provisioner.commands.image_options import graph_of
    from provisioner.commands.inspect_comfyui import inspect_comfyui
    from provisioner.commands.run import open_run
    from provisioner.commands.smoke_test import run_smoke_test

    run = open_run(_session(arguments, ui, cancelled), _options(arguments))
    options = _smoke_test_options(arguments)
    if arguments.graph:
        ui.write_document(graph_of(run, options))
        return run.report("smoke-test", "planned", 0)
    comfyui = inspect_comfyui(run)
    return run_smoke_test(
        run,
        with_flags(run, options, comfyui, arguments.comfyui_args),
        comfyui=comfyui,
        environment=environment_folder(run, arguments.environment),
        show=ui.show_smoke,
    )


def _diagnose(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.choose_environment import environment_folder
    from provisioner.commands.diagnose import DiagnoseOptions, run_diagnose
    from provisioner.commands.inspect_comfyui import inspect_comfyui
    from provisioner.commands.run import open_run

    if arguments.gpu == "all":
        raise UsageError("diagnose uses one GPU.", hint="Name it: --gpu 0, or the one whose test image failed.")
    run = open_run(_session(arguments, ui, cancelled), _options(arguments))
    return run_diagnose(
        run,
        DiagnoseOptions(
            smoke=_smoke_test_options(arguments), comfyui_args=arguments.comfyui_args, is_fresh=arguments.fresh
        ),
        comfyui=inspect_comfyui(run),
        environment=environment_folder(run, arguments.environment),
        show=ui.show_diagnosis,
    )


def _start(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.choose_environment import environment_folder
    from provisioner.commands.run import open_run, with_last_manifest
    from provisioner.commands.start import StartOptions, run_start

    chosen = with_last_manifest(_options(arguments))
    run = open_run(_session(arguments, ui, cancelled), chosen, with_machine=False)
    options = StartOptions(
        environment=environment_folder(run, arguments.environment),
        port=arguments.port,
        opens_browser=not arguments.no_browser,
        arguments=arguments.passed,
    )
    return run_start(run, options, ask=ui.ask, say=ui.say)


def _run_ui(ui: Ui) -> RunUi:
    from provisioner.commands.install import RunUi

    return RunUi(
        ask=ui.ask,
        show_plan=ui.show_plan,
        show_smoke=ui.show_smoke,
        ask_to_apply=ui.ask_to_apply if ui.is_attended else None,
    )


def _install_options(arguments: argparse.Namespace, run: Run) -> InstallOptions:
    from provisioner.commands.image_options import SmokeTestOptions
    from provisioner.commands.inspect_comfyui import ComfyUIOptions
    from provisioner.commands.look import InstallOptions
    from provisioner.commands.parts import parse_parts

    bundle = run.session.settings.bundle
    source = arguments.comfyui_source if bundle is None else bundle.comfyui_source
    return InstallOptions(
        parts=parse_parts(arguments.only, run.wanted),
        comfyui=ComfyUIOptions(
            source=source,
            wants_update=arguments.update_comfyui,
            version=arguments.comfyui_version,
            bundled=None if bundle is None else bundle.comfyui_release,
        ),
        environment=_environment_options(arguments),
        smoke=_smoke_test_options(arguments)
        if hasattr(arguments, "prompt")
        else SmokeTestOptions(server=arguments.server),
        are_parts_named=arguments.only is not None,
        custom_nodes=frozenset(arguments.custom_node),
    )


def _smoke_test_options(arguments: argparse.Namespace) -> SmokeTestOptions:
    from provisioner.commands.image_options import SmokeTestOptions

    width, height = arguments.size or (1024, 1024)
    return SmokeTestOptions(
        prompt=arguments.prompt,
        seed=arguments.seed,
        width=width,
        height=height,
        has_tiled_decode=arguments.tiled_decode,
        reserve_vram_gib=arguments.reserve_vram,
        image=arguments.image,
        images=arguments.images,
        gpu=getattr(arguments, "gpu", None),  # of smoke-test and diagnose
        server=getattr(arguments, "server", None),
        workflow=getattr(arguments, "workflow", None),
        is_sized=arguments.size is not None,
        steps=arguments.steps,
        timeout_s=arguments.smoke_timeout,
    )


def _verify(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.run import open_run
    from provisioner.commands.verify_files import do_beside, run_verify

    session = _session(arguments, ui, cancelled)
    if _is_scrub(arguments):
        return _scrub(arguments, ui, session)
    key = _key_to_attest_with(arguments, ui)
    run = open_run(session, _options(arguments), with_machine=False, must_exist=True)
    _check_locked(arguments, run)
    if arguments.quick:  # a tenth of a second is its whole budget
        return run_verify(run, is_quick=True)

    def look_at_the_rest() -> Machine:
        from provisioner.commands import verify  # noqa: F401 - importing it takes as long as hashing a GB on 16 cores

        return session.machine

    files, _ = do_beside(lambda: run_verify(run, is_quick=False), look_at_the_rest)
    from provisioner.commands.verify import VerifyOptions, run_full_verify

    options = VerifyOptions(
        check_all=arguments.all,
        environment=arguments.environment,
        wants_image=not arguments.no_smoke,
        smoke=_smoke_test_options(arguments),
    )
    report = run_full_verify(run, files, options, show_changes=ui.show_changes, show_smoke=ui.show_smoke)
    if arguments.attest is not None:
        from provisioner.commands.attest import AttestOptions, attest

        asked = AttestOptions(output=arguments.attest, key=key, environment=arguments.environment)
        attest(run, report, asked, say=ui.say)
    return report


def _key_to_attest_with(arguments: argparse.Namespace, ui: Ui) -> PrivateKey | None:
    """Return the key of ``verify --attest --sign``, which is wanted before the files are read; raises UsageError."""
    if arguments.attest is not None and arguments.quick:
        raise UsageError("--quick reads no file, so that nothing could be attested.", hint="Leave --quick out.")
    if arguments.sign is None:
        return None
    if arguments.attest is None:
        raise UsageError("There is nothing to sign.", hint="Name the file of the statement with --attest FILE.")
    from provisioner.commands.signed_locks import read_signing_key

    return read_signing_key(arguments.sign, os.environ, ui.ask_password)


def _attestation(arguments: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner.commands.attest import run_attestation

    return run_attestation(tuple(arguments.files), _required_key(arguments), say=ui.say)


def _check_locked(arguments: argparse.Namespace, run: Run) -> None:
    if getattr(arguments, "locked", False):
        from provisioner.commands.lock import check_locked

        check_locked(run, arguments.environment)


def _report(arguments: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner.commands.report import run_report

    return run_report(arguments.output, opens=arguments.open, say=ui.say, program=ui.program)


def _fleet_report(arguments: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner.commands.fleet import FleetOptions, run_fleet_report

    options = FleetOptions(
        folder=arguments.folder,
        manifests=tuple(arguments.manifest),
        expected=arguments.expect,
        stale_after_s=arguments.stale,
        by_file=arguments.by_file,
        output=arguments.output,
        opens=arguments.open,
    )
    return run_fleet_report(options, show=ui.show_fleet, say=ui.say, program=ui.program, secrets=ui.secrets)


def _doctor(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.doctor import DoctorOptions, run_doctor

    session = _session(arguments, ui, cancelled)
    asked = DoctorOptions(
        environment=arguments.environment, output=arguments.output, config_error=arguments.config_error
    )
    return run_doctor(
        session, _options(arguments), asked, known_secrets=ui.secrets, document_of=ui.document_of, say=ui.say
    )


def _detect(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from dataclasses import replace

    from provisioner.commands.detect import run_detect
    from provisioner.core.models import Config
    from provisioner.disk.locations import config_file

    session, options = _session(arguments, ui, cancelled), _torch_options(arguments)
    folders = tuple(arguments.folders) or (Path.cwd(),)
    report = run_detect(session, folders, options, arguments.app, ui.show_machine)
    config = arguments.config or Config(file=config_file(), settings={})
    ui.show_config(config)
    return replace(report, config=config)


def _torch_options(arguments: argparse.Namespace) -> TorchOptions:
    from provisioner.torch.choose import TorchOptions

    return TorchOptions(
        tag=arguments.torch,
        python_version=getattr(arguments, "torch_python", None),
        index_base=arguments.torch_index,
        force=arguments.force,
    )


def _environment_options(arguments: argparse.Namespace) -> EnvironmentOptions:
    from provisioner.commands.choose_environment import EnvironmentOptions

    return EnvironmentOptions(
        where=arguments.environment,
        python=getattr(arguments, "python", None),
        installer="uv" if getattr(arguments, "uv", False) else "pip" if getattr(arguments, "no_uv", False) else "auto",
        accepts_cpu=arguments.cpu,
        torch=_torch_options(arguments),
    )


def _uninstall(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.run import open_run
    from provisioner.commands.uninstall import UninstallOptions, parse_parts, run_uninstall

    options = UninstallOptions(
        parts=parse_parts(arguments.only), environment=arguments.environment, is_dry_run=arguments.dry_run
    )
    run = open_run(_session(arguments, ui, cancelled), _options(arguments), with_machine=False, must_exist=True)
    return run_uninstall(run, options, ask=ui.ask, say=ui.say)


def _rehearse(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.rehearse import rehearse
    from provisioner.disk.locations import data_folder

    return rehearse(
        events=ui.listener,
        say=ui.say,
        cancelled=cancelled,
        keep=arguments.keep,
        has_image=not arguments.no_image,
        environment=arguments.environment,
        torch_index=arguments.torch_index,
        image_folder=data_folder() / "pictures",
        comfyui=arguments.comfyui,
    )


def _completion(arguments: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner.cli.completion import read_completion
    from provisioner.report.outcome import Report

    ui.write_text(read_completion(arguments.shell))
    return Report(command="completion", status="ok", exit_status=0)


def _manifest_list(_: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner.commands.manifest import about_manifests, shipped

    manifests = shipped()
    ui.show_manifests(manifests)
    return about_manifests("manifest list", manifests)


def _manifest_show(arguments: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner.commands.manifest import about_manifests, named_manifest

    manifest = named_manifest(arguments.manifest, _public_key(arguments))
    ui.show_manifest(manifest, has_files=arguments.files, argument=arguments.manifest)
    return about_manifests("manifest show", (manifest,))


def _manifest_check(arguments: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner.commands.manifest import about_manifests, check_manifests

    good, bad = check_manifests(tuple(arguments.manifests), _public_key(arguments))
    for manifest in good:
        ui.say(f"{manifest.id}: no complaint ({len(manifest.artifacts)} artifacts, {len(manifest.sets)} sets)")
    return about_manifests("manifest check", good, bad)


def _manifest_from_workflow(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.from_workflow import FromWorkflowOptions, run_from_workflow
    from provisioner.commands.pin_packs import PackOptions

    options = FromWorkflowOptions(
        workflow=arguments.workflow,
        output=arguments.output,
        comfyui=arguments.comfyui,
        digests=dict(arguments.digest),
        civitai=arguments.civitai,
        server=arguments.server,
        packs=PackOptions(
            registry=arguments.node_registry, github=arguments.github, versions=dict(arguments.node_version)
        ),
    )
    return run_from_workflow(_session(arguments, ui, cancelled), options, say=ui.say)


def _manifest_lock(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.lock import LockOptions, run_lock
    from provisioner.commands.run import open_run

    run = open_run(_session(arguments, ui, cancelled), _options(arguments), with_machine=False, must_exist=True)
    options = LockOptions(
        output=arguments.output,
        environment=arguments.environment,
        key=arguments.sign,
        version=arguments.lock_version,
        expires=arguments.expires,
    )
    return run_lock(run, options, say=ui.say, ask_password=ui.ask_password)


def _manifest_accept(arguments: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner.commands.signed_locks import run_accept

    return run_accept(arguments.manifest, _required_key(arguments), say=ui.say)


def _backups_list(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.backups import run_backups_list

    report = run_backups_list(_backups_command(arguments, ui, cancelled))
    ui.show_backups(report.backups or ())
    return report


def _backups_restore(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.backups import run_backups_restore

    return run_backups_restore(_backups_command(arguments, ui, cancelled), arguments.entry, say=ui.say)


def _backups_clear(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.backups import run_backups_clear

    return run_backups_clear(_backups_command(arguments, ui, cancelled), arguments.entries, ask=ui.ask, say=ui.say)


def _backups_command(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Run:
    from provisioner.commands.run import open_run

    return open_run(_session(arguments, ui, cancelled), _options(arguments), with_machine=False, must_exist=True)


def _snapshot_list(_: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner.commands.snapshot import run_snapshot_list

    report = run_snapshot_list()
    ui.show_snapshots(report.snapshots or ())
    return report


def _snapshot_show(arguments: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner.commands.snapshot import run_snapshot_show

    report = run_snapshot_show(arguments.name)
    if report.snapshot is not None:
        ui.show_snapshot(report.snapshot, report.snapshot_image)
    return report


def _snapshot_export(arguments: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner.commands.snapshot import run_snapshot_export

    return run_snapshot_export(arguments.name, arguments.output, say=ui.say)


def _snapshot_restore(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.commands.restore import RestoreOptions, run_restore

    if arguments.comfyui is not None and arguments.hf_cache is not None:
        raise UsageError("--comfyui and --hf-cache name two targets.", hint="Give one of them.")
    arguments.server = None
    options = RestoreOptions(
        name=arguments.name,
        folder=arguments.comfyui or arguments.hf_cache,
        verify_with=_public_key(arguments),
        assume_yes=arguments.yes,
        accepted_licences=frozenset(arguments.accept_licence),
        comfyui_source=arguments.comfyui_source,
        torch_index=arguments.torch_index,
        smoke=_smoke_test_options(arguments),
    )
    return run_restore(_session(arguments, ui, cancelled), options, _run_ui(ui), say=ui.say)


_RUNS: dict[str, Callable[[argparse.Namespace, Ui, threading.Event], Report]] = {
    "install": _install,
    "plan": _plan,
    "detect": _detect,
    "verify": _verify,
    "repair": _repair,
    "smoke-test": _smoke_test,
    "diagnose": _diagnose,
    "start": _start,
    "rehearse": _rehearse,
    "report": _report,
    "fleet report": _fleet_report,
    "doctor": _doctor,
    "uninstall": _uninstall,
    "completion": _completion,
    "snapshot list": _snapshot_list,
    "snapshot show": _snapshot_show,
    "snapshot export": _snapshot_export,
    "snapshot restore": _snapshot_restore,
    "manifest list": _manifest_list,
    "manifest show": _manifest_show,
    "manifest check": _manifest_check,
    "manifest lock": _manifest_lock,
    "manifest from-workflow": _manifest_from_workflow,
    "bundle create": _bundle_make,
    "bundle add": _bundle_make,
    "bundle verify": _bundle_verify,
    "manifest accept": _manifest_accept,
    "attestation": _attestation,
    "seed": _seed,
    "aside list": _backups_list,
    "aside restore": _backups_restore,
    "aside clear": _backups_clear,
}

# --- the run -------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None, argv0: str | None = None) -> int:
    """Run one command; return its exit status (README, "Exit statuses")."""
    try:
        return _main(argv, argv0)
    except KeyboardInterrupt as error:  # before the command began, or after it
        return _status_of(error)


def _main(argv: Sequence[str] | None, argv0: str | None) -> int:
    given, passed = _split(list(sys.argv[1:] if argv is None else argv))
    try:
        completed = _completed(given)
        parser = build_parser(completed[0])
        config = _config(parser, completed)
        arguments = parser.parse_args(completed)
        arguments.config, arguments.config_error = config
        arguments.given = [*absolute_paths(completed[1:]), *(("--", *passed) if passed else ())]
        arguments.passed = _passed(arguments, passed)
    except UsageError as error:
        return _show_error_before_start(given, error, argv0)
    secrets = _secrets([*given, *passed])
    cancelled = threading.Event()
    signalled = threading.Event()
    previous = _listen_to_signals(cancelled, signalled)
    from provisioner.ui.console import Ui

    try:
        with Ui(
            *_streams(),
            mode=_mode(given),
            quiet=arguments.quiet,
            verbose=arguments.verbose,
            color=False if arguments.no_color else None,
            interactive=not getattr(arguments, "no_input", False),
            program=_program(argv0),
            secrets=secrets,
        ) as ui:
            return _status_with_output(_run(arguments, ui, cancelled), ui)
    finally:
        if not signalled.is_set():  # otherwise a second signal on the way out would end in a trace
            for number, handler in previous:
                signal.signal(number, handler)


def _config(
    parser: argparse.ArgumentParser, completed: Sequence[str]
) -> tuple[Config, None] | tuple[None, UsageError | None]:
    """Make the settings of the user's file the defaults of the options, and return them, or why doctor goes without.

    Raises
    ------
    UsageError
        The file is wrong, and the command is another one.
    """
    if completed[0] == "completion" or not {"-h", "--help", "-V", "--version"}.isdisjoint(completed):
        return None, None
    from provisioner.disk.locations import config_file

    path = config_file()
    if not os.path.lexists(path):
        return None, None
    from provisioner.cli.config_file import read_config, use_as_defaults

    try:
        config = read_config(path)
        use_as_defaults(parser, config, completed)
    except UsageError as error:
        if completed[0] != "doctor":
            raise
        return None, error
    return config, None


def _secrets(given: Sequence[str]) -> tuple[str, ...]:
    """Return what must never be shown: the Hub's tokens, registries' logins, passwords in variables and arguments."""
    from provisioner.core.redact import passwords_in
    from provisioner.disk.locations import docker_config_file
    from provisioner.files.hub_cache import find_tokens

    of_registries: tuple[str, ...] = ()
    if os.access(docker_config_file(os.environ), os.R_OK):
        from provisioner.oci.docker_config import passwords_of
        from provisioner.oci.logins import read_config

        of_registries = passwords_of(read_config(os.environ))
    return (
        *(each.value for each in find_tokens(os.environ)),
        *of_registries,
        os.environ.get("KLEIN_SETUP_KEY_PASSWORD", ""),
        *passwords_in([*os.environ.values(), *given]),
    )


def _program(argv0: str | None) -> Program:
    """Return how this program was started; as klein-setup where it was not started as a process of its own."""
    if argv0 is None:
        from provisioner.core.program import KLEIN_SETUP

        return KLEIN_SETUP
    from provisioner.cli.started_as import started_as

    return started_as(argv0)


def _status_with_output(status: int, ui: Ui) -> int:
    """Return the exit status; an error, and a line about it, where what was to be printed got lost."""
    if ui.lost_output is None:
        return status
    from provisioner.core.errors import StorageError

    error = StorageError(
        f"The output could not be written: {ui.lost_output.strerror or ui.lost_output}.",
        hint="Free space there, or write it somewhere else; then run the same command again.",
    )
    ui.show_error(error)
    return status if status > EXIT_FINDINGS else error.exit_status


def _streams() -> tuple[TextIO, TextIO]:
    """Return where to write; a service manager or a desktop may start us with the standard streams closed."""
    nowhere = Path(os.devnull)
    return sys.stdout or nowhere.open("w", encoding="utf-8"), sys.stderr or nowhere.open("w", encoding="utf-8")


def _run(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> int:
    from dataclasses import replace

    from provisioner.report.outcome import report_for_error

    try:
        report = _RUNS[arguments.run](arguments, ui, cancelled)
    except KleinError as error:
        report = report_for_error(arguments.run, error)
    except KeyboardInterrupt as error:
        report = _interrupted(arguments.run, error)
    except Exception as error:  # a defect of ours gets a log, not a trace on the screen
        ui.show_defect(error, _keep_log(error, ui.secrets))
        report = report_for_error(arguments.run, error)
    if report.status in {"planned", "interrupted"} or (arguments.run == "smoke-test" and report.status == "failed"):
        report = replace(report, given_arguments=tuple(arguments.given))
    ui.show_report(report)
    if _is_worth_keeping(arguments, report):
        _keep_report(report, ui)
    return report.exit_status


def _is_worth_keeping(arguments: argparse.Namespace, report: Report) -> bool:
    """Whether a run did or read something; one that found nothing to do writes nothing at all."""
    from provisioner.report.outcome import KEPT_COMMANDS

    if arguments.run not in KEPT_COMMANDS or getattr(arguments, "quick", False):
        return False
    did_nothing = report.command == "install" and report.status == "ok" and not report.outcomes
    return not did_nothing or report.smoke_test is not None


def _keep_report(report: Report, ui: Ui) -> None:
    """Keep the document of a run, so that ``klein-setup report`` can show it."""
    from provisioner.disk.last_run import write_last_report
    from provisioner.disk.locations import state_folder

    write_last_report(state_folder(), ui.document_of(report))


def _interrupted(command: str, error: KeyboardInterrupt) -> Report:
    from provisioner.report.outcome import Report

    return Report(command=command, status="interrupted", exit_status=_status_of(error))


def _status_of(error: KeyboardInterrupt) -> int:
    return EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED


def _keep_log(error: Exception, secrets: Sequence[str]) -> Path | None:
    import traceback

    from provisioner.core.redact import redact
    from provisioner.disk.last_run import write_defect_log
    from provisioner.disk.locations import state_folder

    lines = [f"klein-setup {__version__}", f"Python {sys.version}", f"{sys.platform}", ""]
    text = "\n".join(lines) + "".join(traceback.format_exception(error))
    return write_defect_log(state_folder(), redact(text, secrets))


def _split(given: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments that are ours, and those of ``start`` that go to ComfyUI: all behind the first ``--``."""
    if given[:1] != ["start"] or "--" not in given:
        return given, []
    end = given.index("--")
    return given[:end], given[end + 1 :]


def _passed(arguments: argparse.Namespace, passed: list[str]) -> tuple[str, ...]:
    stray = getattr(arguments, "comfyui_arguments", ())
    if stray:
        raise UsageError(
            f"{stray[0]} is no option of start.",
            hint="Write -- before what goes to ComfyUI, as in `klein-setup start -- --lowvram`; a folder is named with "
            "--comfyui DIR.",
        )
    return tuple(passed)


def _completed(given: list[str]) -> list[str]:
    """Return the arguments with what may be left out: the command, and what kind of ``--json``.

    The options for ComfyUI are joined with theirs: argparse takes a lone ``--fast`` for an option of ours.
    """
    spelled: list[str] = []
    for argument in given:
        if spelled[-1:] == ["--comfyui-args"]:
            spelled[-1] += f"={argument}"
        else:
            spelled.append("--json=document" if argument == "--json" else argument)
    if not spelled or (spelled[0].startswith("-") and spelled[0] not in {"-h", "--help", "-V", "--version"}):
        return ["install", *spelled]
    return spelled


def _mode(given: Sequence[str]) -> Mode:
    if "--json=events" in given:
        return "events"
    return "json" if any(argument == "--json" or argument.startswith("--json=") for argument in given) else "human"


def _show_error_before_start(given: Sequence[str], error: UsageError, argv0: str | None) -> int:
    from provisioner.report.outcome import report_for_error
    from provisioner.ui.console import Ui

    with Ui(*_streams(), mode=_mode(given), secrets=_secrets(given), program=_program(argv0)) as ui:
        report = report_for_error(_command_of(given), error)
        ui.show_report(report)
    return report.exit_status


def _command_of(given: Sequence[str]) -> str:
    return given[0] if given and given[0] in COMMANDS else "install"


def _leave_at_once(status: int) -> NoReturn:
    """End the process for somebody who asked twice; what is on disk is as good as after a kill, that is, good."""
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # the bars hide the cursor
    os._exit(status)


def _listen_to_signals(cancelled: threading.Event, signalled: threading.Event) -> list[tuple[int, _Handler]]:
    """Let Ctrl-C and SIGTERM end the run in order, and a second one at once; return what was listening before.

    Only a signal counts as the first: a run that fails sets `cancelled`, too, to stop its other threads.
    """
    if threading.current_thread() is not threading.main_thread():
        return []

    def stop(number: int, _frame: FrameType | None) -> None:
        if signalled.is_set():
            _leave_at_once(EXIT_TERMINATED if number == signal.SIGTERM else EXIT_INTERRUPTED)
        signalled.set()
        cancelled.set()
        raise (Terminated if number == signal.SIGTERM else KeyboardInterrupt)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform == "win32":
        numbers.append(signal.SIGBREAK)
    return [(number, signal.signal(number, stop)) for number in numbers]
