"""Puts the parts together: from the options of one run to a store, a fetcher, an observer and an engine.

Imports the heavy libraries only on the way to something that needs them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.core.events import Event, Events, Notice, ignore
from provisioner.core.models import (
    Artifact,
    ComfyTarget,
    Destination,
    HubCacheTarget,
    LocalCopy,
    Machine,
    Manifest,
    Registry,
    Target,
    Variant,
)
from provisioner.core.program import KLEIN_SETUP, Program
from provisioner.disk.patience import listen
from provisioner.report.transfer_record import TransferRecorder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from provisioner.comfyui.checkout.checkouts import Checkouts
    from provisioner.comfyui.checkout.pack_installs import PackInstalls
    from provisioner.commands.links import FolderLinks
    from provisioner.commands.open_bundle import OpenBundle
    from provisioner.commands.stages import Stages
    from provisioner.core.ports import Cancelled, FileDigest, Finder
    from provisioner.disk.root import Root
    from provisioner.environment.environments import Environments
    from provisioner.files.download.limiter import RateLimiter
    from provisioner.files.download.transfer import Connections, RangeFetcher
    from provisioner.files.download.wheel_cache import WheelCache
    from provisioner.files.download.whole_file import WholeFiles
    from provisioner.files.engine import Engine
    from provisioner.files.hub_cache import Token
    from provisioner.files.observe import Observer
    from provisioner.files.peers import Peers
    from provisioner.files.store.file_store import FileStore
    from provisioner.network.http_session import Credentials
    from provisioner.oci.registry import OciRegistries


_FILES_AT_ONCE = 4
"""Most files at a time, on a machine with that many cores: one digest keeps one core busy."""

_HELPER_S = 60.0
"""Seconds that a credential helper may take: some ask a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options that shape a run, whatever its command."""

    endpoint: str | None = None
    registry: Registry | None = None
    bundle: OpenBundle | None = None  # ``--from``: models, ComfyUI and wheels come out of it
    sends_token: bool = False  # to another origin than the Hub's, too
    is_offline: bool = False
    package_index: str | None = None  # of everything but torch, instead of pip's own
    allows_loopback: bool = False  # in the addresses of a manifest
    max_connections: int = 8
    limit_bytes_s: int | None = None
    stall_timeout_s: float = 20.0
    look_in: tuple[Path, ...] = ()
    peers: Peers | None = None
    follow_links: bool = False
    wait_for_lock: bool = True
    remembers: bool = True  # the target becomes the default of the next run
    pass_env: tuple[str, ...] = ()  # names of variables that every program we start gets
    program: Program = KLEIN_SETUP  # in the commands that are shown
    probe_script: Path | None = None  # what tests an environment, instead of ours


@dataclass
class Session:
    """Everything one run works with.

    Parameters
    ----------
    settings : Settings
        The run's options.
    environ : Mapping
        The environment variables that count.
    events : callable
        Told everything that happens.
    cancelled : threading.Event
        Set by a signal; long work asks for it.
    secrets : tuple of str
        Values that stand in no log.
    keep_secret : callable
        Told what else must be shown nowhere, as soon as it is known.
    """

    settings: Settings
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    events: Events = ignore
    cancelled: threading.Event = field(default_factory=threading.Event)
    secrets: tuple[str, ...] = ()
    keep_secret: Callable[[str], None] = lambda secret: None

    def __post_init__(self) -> None:
        """Take the option, which a question may change, and note how fast files come."""
        self.sends_token = self.settings.sends_token
        self.transfers = TransferRecorder()
        listener, lock = self.events, threading.Lock()

        def hear(event: Event) -> None:
            with lock:
                self.transfers.hear(event, time.monotonic())
            listener(event)

        self.events = hear
        listen(lambda message: hear(Notice(message=message, severity="warning")), self.cancelled.is_set)

    def notice(self, message: str) -> None:
        """Say one line that a person may want to read."""
        self.events(Notice(message=message))

    def hold_bundle_to(self, manifest: Manifest, *, is_signed: bool) -> None:
        """Take of the bundle only those programs that the lock lists; before anything was looked at."""
        if self.settings.bundle is None:
            return
        held = self.settings.bundle.held_to(manifest)
        if is_signed and held.lock is None:
            said = "The signed lock lists model files alone: it does not cover the bundle's ComfyUI and wheels."
            self.events(Notice(message=said, severity="warning"))
        self.take_from(held)

    def take_from(self, bundle: OpenBundle) -> None:
        """Take everything from that bundle from now on."""
        self.settings = replace(self.settings, bundle=bundle)
        self.__dict__.pop("environments", None)  # which may have been made with what it was before

    # --- settings that come from several places ----------------------------------------------------

    @cached_property
    def endpoint(self) -> str:
        """The Hub's address; raises UsageError."""
        from provisioner.files.hub_cache import endpoint

        return endpoint(self.settings.endpoint, self.environ)

    @cached_property
    def is_offline(self) -> bool:
        """Whether the network is off."""
        from provisioner.files.hub_cache import is_offline

        return is_offline(self.settings.is_offline, self.environ)

    @cached_property
    def token(self) -> Token | None:
        """The Hub's token, from where its own client takes it."""
        from provisioner.files.hub_cache import find_token

        return find_token(self.environ)

    @property
    def is_other_origin(self) -> bool:
        """Whether the endpoint is not the Hub's own: it sees no token that a person did not agree to."""
        from provisioner.files.hub_cache import DEFAULT_ENDPOINT
        from provisioner.network.http_session import origin

        return origin(self.endpoint) != origin(DEFAULT_ENDPOINT)

    # --- parts ---------------------------------------------------------------------------------------

    def root(self, folder: Path) -> Root:
        """Return what changes anything below a folder; through a link that leads out of it only if that was agreed."""
        return self.links.root(folder)

    @cached_property
    def links(self) -> FolderLinks:
        """Which links of the target are followed."""
        from provisioner.commands.links import FolderLinks

        return FolderLinks(follows_all=self.settings.follow_links, remembers=self.settings.remembers)

    @cached_property
    def store(self) -> FileStore:
        """The files."""
        from provisioner.disk.locations import file_system_of, state_folder
        from provisioner.files.store.bound_blocks import BoundBlocks
        from provisioner.files.store.file_store import FileStore

        return FileStore(
            file_system_of=file_system_of,
            roots=self.root,
            cancelled=self.cancelled.is_set,
            wait=self.settings.wait_for_lock,
            notice=self.notice,
            bound=BoundBlocks(lambda: state_folder() / "blocks"),
        )

    @cached_property
    def limiter(self) -> RateLimiter:
        """What ``--limit-rate`` leaves for everything this run fetches."""
        from provisioner.files.download.limiter import RateLimiter

        return RateLimiter(self.settings.limit_bytes_s)

    @cached_property
    def fetcher(self) -> RangeFetcher:
        """The network."""
        from provisioner.network.http_session import Credentials

        token = self.token if self.sends_token or not self.is_other_origin else None
        return self._fetcher_of(Credentials(token.value if token else None, self.endpoint), self.cancelled.is_set)

    @cached_property
    def registries(self) -> OciRegistries:
        """The OCI registries, with the logins that Docker's client has saved."""
        from provisioner.disk.programs import find_on_path
        from provisioner.machine.child_environment import child_environment
        from provisioner.machine.process import run_process
        from provisioner.oci.logins import DockerLogins
        from provisioner.oci.registry import OciRegistries

        def ask(helper: str, registry: str) -> str | None:
            program = find_on_path(helper, self.environ, cwd=Path.cwd(), is_windows=os.name == "nt")
            if program is None:
                self.notice(f"Docker's configuration names {helper}, which is not on PATH.")
                return None
            done = run_process(
                [program, "get"],
                timeout_s=_HELPER_S,
                env=child_environment(self.environ, self.settings.pass_env),
                input_bytes=registry.encode(),
                cancelled=self.cancelled.is_set,
            )
            return done.stdout if done.returncode == 0 else None

        return OciRegistries(
            logins=DockerLogins(self.environ, ask),
            read_timeout_s=min(10.0, self.settings.stall_timeout_s),
            cancelled=self.cancelled.is_set,
            notice=self.notice,
            keep_secret=self.keep_secret,
        )

    @cached_property
    def connections(self) -> Connections:
        """What ``--connections`` leaves for everything this run fetches in pieces."""
        from provisioner.files.download.transfer import Connections

        return Connections(self.settings.max_connections)

    def _fetcher_of(self, credentials: Credentials, cancelled: Cancelled) -> RangeFetcher:
        from provisioner.files.download.transfer import RangeFetcher

        return RangeFetcher(
            credentials=credentials,
            registries=self.registries,
            connections=self.connections,
            limiter=self.limiter,
            stall_timeout_s=self.settings.stall_timeout_s,
            cancelled=cancelled,
            notice=self.notice,
        )

    @cached_property
    def wheel_cache(self) -> WheelCache:
        """What brings wheels, for every environment of this user."""
        from provisioner.disk.locations import own_cache_folder
        from provisioner.files.download.wheel_cache import WheelCache

        return WheelCache(
            folder=lambda: own_cache_folder() / "wheels",
            fetcher=self._fetcher_of,
            events=self.events,
            cancelled=self.cancelled.is_set,
            is_offline=self.is_offline,
            notice=lambda line: self.events(Notice(message=line, severity="progress")),  # of a thread of its own
        )

    @cached_property
    def whole_files(self) -> WholeFiles:
        """What brings ComfyUI's archive."""
        from provisioner.files.download.whole_file import WholeFiles

        return WholeFiles(limiter=self.limiter, is_offline=self.is_offline, cancelled=self.cancelled.is_set)

    def finders(self, target: Target) -> Sequence[Finder]:
        """Where else the same bytes may be: the folders the user named, the HF cache, the tree's other folders."""
        from provisioner.files.local_copies import FilesInFolders

        finders: list[Finder] = []
        if self.settings.look_in:
            finders.append(FilesInFolders(self.settings.look_in, "--look-in"))
        if self.settings.peers is not None:
            finders.append(_Later(lambda: FilesInFolders((peers_folder(),), "peers"), anew=True))
        if isinstance(target, HubCacheTarget):
            finders.append(_Later(lambda: self._cached_files(target.cache)))
        finders.append(_Later(self._cached_files))
        if isinstance(target, ComfyTarget) and not target.is_new:
            roots = {path for folder in target.folders for path in folder.read} | {target.models}
            finders.append(_Later(lambda: FilesInFolders(_outermost(roots), "another models folder")))
        return finders

    def _cached_files(self, cache: Path | None = None) -> Finder:
        from provisioner.files.hub_cache import CachedFiles, cache_folder

        return CachedFiles(cache or cache_folder(self.environ))

    def observer(self, target: Target) -> Observer:
        """Return what looks at a target."""
        from provisioner.files.observe import Observer
        from provisioner.files.store.receipts import is_unchanged

        return Observer(store=self.store, finders=self.finders(target), events=self.events, is_unchanged=is_unchanged)

    def engine(self, observer: Observer) -> Engine:
        """Return what applies plans; it asks the observer for proofs that were taken a moment ago."""
        from provisioner.files.engine import Engine
        from provisioner.files.store.hash_pool import usable_cores

        def hash_again(destination: Destination, label: str) -> FileDigest:
            stamp = self.store.stamp(destination.path)
            if stamp is None:
                return self.store.hash_file(destination.path, progress=lambda _count: None)
            return observer.digest_of(destination.path, stamp, label)

        return Engine(
            store=self.store,
            fetcher=self.fetcher,
            events=self.events,
            hash_again=hash_again,
            at_once=max(2, min(_FILES_AT_ONCE, usable_cores())),
            registry=self.settings.registry,
        )

    @cached_property
    def environments(self) -> Environments:
        """The virtual environments of this computer."""
        from provisioner.disk.locations import state_folder
        from provisioner.environment.environments import PROBE, Environments
        from provisioner.environment.kept_packages import KeptPackages

        made = Environments(
            run=self.stages.run,
            cache=self.wheel_cache,
            environ=self.environ,
            pass_env=self.settings.pass_env,
            is_offline=self.is_offline,
            package_index=self.settings.package_index,
            packages=KeptPackages(lambda: state_folder() / "environments"),
            waits_for_lock=self.settings.wait_for_lock,
            cancelled=self.cancelled.is_set,
            probe_script=self.settings.probe_script or PROBE,
        )
        bundle = self.settings.bundle
        if bundle is None or not bundle.wheels:
            return made
        return made.from_bundle(bundle.wheels, bundle.blob, bring=bundle.bring, notice=self.notice)

    @cached_property
    def checkouts(self) -> Checkouts:
        """The ComfyUI trees of this computer."""
        from provisioner.comfyui.checkout.checkouts import Checkouts
        from provisioner.comfyui.install_plan import split_login

        def read(url: str, most: int) -> bytes:
            from provisioner.core.route import Route
            from provisioner.files.download.small_file import fetch_bytes
            from provisioner.network.http_session import Credentials

            address, login = split_login(url)
            credentials = Credentials(None, address, None if login is None else Route(user=login))
            timeout_s = self.settings.stall_timeout_s
            return fetch_bytes(
                address, most=most, credentials=credentials, accept="application/json", timeout_s=timeout_s
            )

        return Checkouts(
            read=read,
            answer_timeout_s=3 * self.settings.stall_timeout_s,
            run=self.stages.run,
            environ=self.environ,
            pass_env=self.settings.pass_env,
            download=self.whole_files.fetch,
            is_offline=self.is_offline,
            cancelled=self.cancelled.is_set,
            waits_for_lock=self.settings.wait_for_lock,
        )

    @cached_property
    def packs(self) -> PackInstalls:
        """The packs of custom nodes in the ComfyUI trees of this computer."""
        from provisioner.comfyui.checkout.pack_installs import PackInstalls
        from provisioner.comfyui.checkout.pack_receipts import PackReceipts
        from provisioner.disk.locations import state_folder

        return PackInstalls(checkouts=self.checkouts, receipts=PackReceipts(lambda: state_folder() / "custom-nodes"))

    @cached_property
    def stages(self) -> Stages:
        """The work whose bytes nobody counts, and the log of what installers print."""
        from provisioner.commands.stages import Stages
        from provisioner.disk.locations import state_folder
        from provisioner.disk.run_log import RunLog
        from provisioner.machine.process import run_process

        log = RunLog(lambda: state_folder() / "logs", self.secrets)
        return Stages(self.events, run=run_process, log=log, cancelled=self.cancelled.is_set)

    @cached_property
    def machine(self) -> Machine:
        """This machine, looked at once."""
        return self.detect_machine()

    @property
    def known_machine(self) -> Machine | None:
        """This machine if this run looked at it, else None."""
        return self.__dict__.get("machine")

    def detect_machine(self, paths: Sequence[Path] = ()) -> Machine:
        """Return this machine, or the recorded one that ``KLEIN_SETUP_MACHINE`` names."""
        from provisioner.disk.locations import file_system_of
        from provisioner.machine.detection import detect_machine
        from provisioner.machine.graphics import read_graphics
        from provisioner.machine.host import LocalHost
        from provisioner.machine.nvml import read_nvml
        from provisioner.machine.process import run_process

        found = detect_machine(
            nvml=read_nvml,
            run=run_process,
            host=LocalHost(file_system_of=file_system_of, environ=self.environ),
            graphics=lambda reading: read_graphics(reading, run=run_process),
            environ=self.environ,
            paths=paths,
        )
        if not any(gpu.vendor in ("amd", "intel") for gpu in found.gpus):
            return found
        from provisioner.torch.card_table import with_known_cards
        from provisioner.torch.choose import shipped_table

        table = shipped_table()
        return with_known_cards(found, table.amd_gpus, table.intel_gpus)


def peers_folder() -> Path:
    """Return where files that peers send lie until they are verified."""
    from provisioner.disk.locations import own_cache_folder

    return own_cache_folder() / "peers"


class _Later:
    """A finder that is made when it is first asked: reading an HF cache imports the Hub's client.

    Or each time anew, where files come while the run goes on.
    """

    def __init__(self, make: Callable[[], Finder], *, anew: bool = False) -> None:
        self._make, self._anew = make, anew
        self._finder: Finder | None = None

    def find(self, artifact: Artifact, contents: Sequence[Variant]) -> tuple[LocalCopy, ...]:
        """Ask the finder."""
        if self._finder is None or self._anew:
            self._finder = self._make()
        return self._finder.find(artifact, contents)


def _outermost(folders: set[Path]) -> tuple[Path, ...]:
    """Return the folders that lie in no other of them."""
    return tuple(sorted(folder for folder in folders if folders.isdisjoint(folder.parents)))
