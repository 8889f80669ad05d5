"""What an environment's state means: its receipt, what was observed in it, how the two differ, what its probe says.

Pure: it is told what is on the disk and never looks; it decides, and repairs nothing.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from packaging.utils import canonicalize_name

from provisioner.core.json_reader import FieldError, Fields, as_dict, parse_object
from provisioner.core.models import Finding, Gpu, Machine, Remedy
from provisioner.core.units import listing
from provisioner.machine.readings import parse_driver_version
from provisioner.torch.builds import TorchBuild, TorchSet

FAMILY = ("torch", "torchvision", "torchaudio")
"""The packages that belong together; distributions and modules have these names."""

RECEIPT_SCHEMA = 1

# What torch brings along and would stop working with if another release took its place.
_HELD_WITH_TORCH = re.compile(r"(nvidia|cuda|amd-torch|amd-torchvision)-|((pytorch-)?triton|rocm)(-|$)")

# NVIDIA, "CUDA Compatibility", table of minor-version compatibility: the driver branch from which everything of a CUDA
# major runs; Windows as uv 0.13.9 has it (NVIDIA prints no Windows figure for 13.x).  Read 2026-11.
_DRIVER_FLOORS = {
    11: ("450.80.02", "452.39"),
    12: ("525.60.13", "528.33"),
    13: ("580", "580"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonFacts:
    """What an interpreter said of itself."""

    path: Path  # what was started
    version: str  # "3.11.7"
    prefix: Path
    base_prefix: Path  # another than ``prefix`` in a virtual environment
    bits: int = 64
    is_free_threaded: bool = False
    can_make_environments: bool = True  # venv and ensurepip are there
    implementation: str = "cpython"

    @property
    def release(self) -> str:
        """Major and minor version as wheels distinguish them, "3.11"; "3.14t": the free-threaded build."""
        major, minor = python_number(self.version)
        return f"{major}.{minor}{'t' if self.is_free_threaded else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """One installed distribution, as its dist-info names it."""

    name: str  # normalized, "torch"
    version: str  # METADATA's, "2.14.1+cu130"
    location: Path  # the folder of packages it lies in
    built_version: str | None = None  # of the family: what ``<name>/version.py`` says
    cuda: str | None = None  # torch only, what it was built for: "13.0"
    info: Path | None = field(default=None, compare=False)  # its dist-info folder

    @property
    def tag(self) -> str | None:
        """The local part, "cu130".

        Wheels of the default index have it in ``version.py`` only; the metadata of those of 2.15.0 says "2.15.0".
        """
        return local_tag(self.version) or local_tag(self.built_version or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondTorch:
    """Another torch that this environment's Python could import."""

    path: Path  # the package's folder, or the dist-info that is one too many
    why: str  # how it comes to be reachable
    is_first: bool = False  # it hides the environment's own


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeDevice:
    """One device as the probe met it."""

    index: int
    kind: str  # "cuda", "rocm", "xpu", "mps"
    name: str
    uuid: str | None = None  # lower case, without "GPU-"
    capability: tuple[int, int] | None = None
    architecture: str | None = None  # AMD, "gfx1100"
    checks: tuple[str, ...] = ()  # what it computed rightly: "float32", "float8_e4m3fn"; none: it is not used
    memory_free_bytes: int | None = None
    memory_total_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer:
    """What the probe said."""

    ok: bool
    failures: tuple[tuple[str, str], ...] = ()  # (code, sentence)
    packages: tuple[tuple[str, str], ...] = ()  # ("torch", "2.14.1+cu130")
    cuda: str | None = None  # what torch was built for, "13.0"
    hip: str | None = None
    cudnn: int | None = None  # 91002 for 9.10.2
    arch_list: tuple[str, ...] = ()
    devices: tuple[ProbeDevice, ...] = ()
    python: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentReceipt:
    """What we made, from what, and what it proved to be: a claim, kept in the environment itself."""

    build_id: str  # one per building; tells this environment from the one before it
    made_at: str  # ISO 8601, UTC
    installer: str  # "pip" or "uv"
    python_version: str
    python_home: str  # prefix of the Python the environment was made from
    torch_backend: str
    index_url: str | None
    local_tag: str | None
    set: TorchSet
    versions: tuple[tuple[str, str], ...]  # of the family, as installed
    constraints: tuple[str, ...]  # the lines that hold it
    driver_version: str | None = None  # at the time
    gpus: tuple[str, ...] = ()  # UUIDs at the time, lower case
    probe: ProbeAnswer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What lies in an environment's folder; nothing was imported to learn it."""

    where: Path
    is_there: bool
    python: PythonFacts | None = None
    broken: str | None = None  # why its Python cannot be used
    distributions: tuple[Distribution, ...] = ()
    second_torches: tuple[SecondTorch, ...] = ()
    leftovers: tuple[Path, ...] = ()  # what an interrupted uninstall left behind ("~orch")
    constraints: tuple[str, ...] | None = None  # the lines of the file, None: no file
    receipt: EnvironmentReceipt | None = None
    interrupted: str | None = None  # what an interrupted building left, in a sentence

    def distribution(self, name: str) -> Distribution | None:
        """Return the installed distribution of that name, or None."""
        return next((each for each in self.distributions if each.name == name), None)


# --- versions and constraints ------------------------------------------------------------------


def local_tag(version: str) -> str | None:
    """Return the local part of a version.

    >>> local_tag("2.14.1+cu130"), local_tag("2.14.1")
    ('cu130', None)
    """
    return version.partition("+")[2] or None


def public_version(version: str) -> str:
    """Return a version without its local part.

    >>> public_version("2.14.1+cu130")
    '2.14.1'
    """
    return version.partition("+")[0]


def wanted_versions(releases: TorchSet) -> tuple[tuple[str, str], ...]:
    """Return the set as (name, version) pairs; torchaudio only where the set has one."""
    pairs = (("torch", releases.torch), ("torchvision", releases.torchvision), ("torchaudio", releases.torchaudio))
    return tuple((name, version) for name, version in pairs if version is not None)


def pinned(name: str, version: str, tag: str | None, extras: Sequence[str] = ()) -> str:
    """Return the requirement that only this build of a release fulfils; torchaudio has no extras.

    Without the local part, pip takes ``torch==2.14.1`` to mean any 2.14.1, that of the default index included.

    >>> pinned("torch", "2.14.1", "cu130"), pinned("torch", "2.14.1", None)
    ('torch==2.14.1+cu130', 'torch==2.14.1')
    >>> pinned("torch", "2.13.0", "rocm10.0.0", ["device-gfx1100"])
    'torch[device-gfx1100]==2.13.0+rocm10.0.0'
    """
    with_extras = f"{name}[{','.join(extras)}]" if extras and name != "torchaudio" else name
    return f"{with_extras}=={version}" if tag is None else f"{with_extras}=={version}+{tag}"


def constraints_text(releases: TorchSet, tag: str | None, others: Iterable[tuple[str, str]] = ()) -> str:
    """Return the constraints file that holds a set.

    Parameters
    ----------
    releases : TorchSet
        The set, versions without local part.
    tag : str or None
        The local part of all three.
    others : iterable of (name, version)
        Everything else that was installed with it.  Of these, what torch cannot do without in exactly this release is
        held too (Triton, NVIDIA's libraries): pip moves them without asking torch.

    Returns
    -------
    str
        One requirement a line, the three first.

    Examples
    --------
    >>> print(
    ...     constraints_text(
    ...         TorchSet(torch="2.14.1", torchvision="0.29.1", torchaudio=None), "cu130", [("sympy", "1.14")]
    ...     )
    ... )
    torch==2.14.1+cu130
    torchvision==0.29.1+cu130
    <BLANKLINE>
    """
    lines = [pinned(name, version, tag) for name, version in wanted_versions(releases)]
    lines += sorted(f"{name}=={version}" for name, version in others if is_held_with_torch(name))
    return "".join(f"{line}\n" for line in lines)


def is_held_with_torch(name: str) -> bool:
    """Whether another release of that distribution would break torch.

    >>> [
    ...     is_held_with_torch(name)
    ...     for name in (
    ...         "nvidia-cudnn-cu13",
    ...         "pytorch-triton-rocm",
    ...         "amd-torch-device-gfx1100",
    ...         "rocm",
    ...         "numpy",
    ...         "cudatext",
    ...     )
    ... ]
    [True, True, True, True, False, False]
    """
    return _HELD_WITH_TORCH.match(canonicalize_name(name)) is not None


def complaints_about_tags(resolved: Mapping[str, str], releases: TorchSet, tag: str | None) -> tuple[str, ...]:
    """Say what is wrong with the versions that an index offers for a set; empty where everything is as promised.

    Parameters
    ----------
    resolved : mapping
        Version by name, out of the wheels' own metadata.
    releases : TorchSet
        What was asked for.
    tag : str or None
        The local part it was promised with; None: not checked, only that the three agree.
    """
    found: list[str] = []
    for name, version in wanted_versions(releases):
        observed = resolved.get(name)
        if observed is None:
            found.append(f"{name} {version} is not among what the index offers.")
        elif public_version(observed) != version:
            found.append(f"{name} is {observed} by its metadata, where {version} was asked for.")
        elif tag is not None and local_tag(observed) != tag:
            says = local_tag(observed) or "no tag"
            found.append(f"{name} {observed} was promised for {tag}, and its metadata says {says}.")
    tags = {local_tag(resolved[name]) for name, _ in wanted_versions(releases) if name in resolved}
    if not found and len(tags) > 1:
        named = listing([f"{name} {resolved[name]}" for name, _ in wanted_versions(releases)])
        found.append(f"The three are of different builds: {named}.")
    return tuple(found)


# --- which Python ------------------------------------------------------------------------------


def python_number(version: str) -> tuple[int, int]:
    """Return (3, 11) for "3.11.7"."""
    major, _, rest = version.partition(".")
    minor = re.match(r"\d+", rest)
    return int(major), int(minor[0]) if minor else 0


def complaint_about_python(python: PythonFacts, versions: Sequence[str]) -> str | None:
    """Say why an environment for torch cannot be made with this Python, or return None.

    Parameters
    ----------
    python : PythonFacts
        What it said of itself.
    versions : sequence of str
        The minor versions the build has wheels for, ``("3.10", "3.11")``; empty: any.
    """
    if python.implementation != "cpython":
        return f"{python.path} is {python.implementation}; torch has wheels for CPython only."
    if python.bits != 64:
        return f"{python.path} is a {python.bits}-bit Python; torch has wheels for 64 bits only."
    if python.is_free_threaded:
        if versions and python.release not in versions:
            return f"{python.path} is the free-threaded build of Python; it is used only where --python names it."
    elif versions and python_number(python.version) not in {python_number(each) for each in versions}:
        return f"{python.path} is Python {python.version}; this torch has wheels for {listing(list(versions))}."
    if not python.can_make_environments:
        return f"{python.path} comes without venv or ensurepip, so it cannot make an environment."
    return None


# --- the receipt -------------------------------------------------------------------------------


def receipt_text(receipt: EnvironmentReceipt) -> str:
    """Return a receipt as the JSON that is kept in the environment."""
    return json.dumps({"schema_version": RECEIPT_SCHEMA, **asdict(receipt)}, indent=1) + "\n"


def parse_receipt(text: str) -> EnvironmentReceipt | None:
    """Return the receipt a file holds; None where it is none of ours, of a later schema, or damaged."""
    try:
        fields = Fields(parse_object(text) or {})
        fields.exactly("schema_version", RECEIPT_SCHEMA)
        releases = fields.inner("set")
        return EnvironmentReceipt(
            build_id=fields.text("build_id"),
            made_at=fields.text("made_at"),
            installer=fields.text("installer"),
            python_version=fields.text("python_version"),
            python_home=fields.text("python_home"),
            torch_backend=fields.text("torch_backend"),
            index_url=fields.optional_text("index_url"),
            local_tag=fields.optional_text("local_tag"),
            set=TorchSet(**{name: releases.optional_text(name) for name in TorchSet.__slots__}),  # type: ignore[arg-type]
            versions=fields.pairs("versions"),
            constraints=fields.texts("constraints"),
            driver_version=fields.optional_text("driver_version"),
            gpus=fields.texts("gpus"),
            probe=None if fields.values.get("probe") is None else _kept_probe(fields.inner("probe")),
        )
    except FieldError:
        return None


def _kept_probe(fields: Fields) -> ProbeAnswer:
    return ProbeAnswer(
        ok=fields.flag("ok"),
        failures=fields.pairs("failures"),
        packages=fields.pairs("packages"),
        cuda=fields.optional_text("cuda"),
        hip=fields.optional_text("hip"),
        cudnn=fields.optional_count("cudnn"),
        arch_list=fields.texts("arch_list"),
        devices=tuple(_device(each) for each in fields.objects("devices")),
        python=fields.optional_text("python"),
        seconds=fields.optional_seconds("seconds") or 0.0,
    )


def _device(fields: Fields) -> ProbeDevice:
    return ProbeDevice(
        index=fields.count("index"),
        kind=fields.text("kind"),
        name=fields.text("name"),
        uuid=fields.optional_text("uuid"),
        capability=fields.optional_pair("capability"),
        architecture=fields.optional_text("architecture"),
        checks=fields.optional_texts("checks"),
        memory_free_bytes=fields.optional_count("memory_free_bytes"),
        memory_total_bytes=fields.optional_count("memory_total_bytes"),
    )


# --- the probe ---------------------------------------------------------------------------------


def device_of(backend: str) -> str:
    """Return the kind of device a build is for, in the probe's words.

    >>> [device_of(each) for each in ("cu130", "rocm7.2", "xpu", "cpu", "default")]
    ['cuda', 'rocm', 'xpu', 'cpu', 'mps']
    """
    if backend == "default":
        return "mps"  # the default index is taken on macOS only
    if backend.startswith("cu"):
        return "cuda"
    return "rocm" if backend.startswith("rocm") else backend


def visible_devices(receipt: EnvironmentReceipt | None) -> dict[str, str]:
    """Return the variable that hides the AMD GPUs that an environment has no code for; empty where there is none.

    Without it ComfyUI takes the first, which is the one in the processor where there is one (ROCm/TheRock#5543).
    """
    devices = receipt.probe.devices if receipt is not None and receipt.probe is not None else ()
    ours = [device for device in devices if device.kind == "rocm"]
    used = [str(device.index) for device in ours if device.checks]
    return {"HIP_VISIBLE_DEVICES": ",".join(used)} if 0 < len(used) < len(ours) else {}


def parse_probe(stdout: str) -> ProbeAnswer | None:
    """Return what the probe answered; None where its output holds no such line."""
    lines = [line for line in stdout.splitlines() if line.strip()]
    try:
        fields = Fields((parse_object(lines[-1]) if lines else None) or {})
        torch = fields.inner("torch") if as_dict(fields.values.get("torch")) else Fields({})
        packages = fields.inner("packages") if "packages" in fields.values else Fields({})
        return ProbeAnswer(
            ok=fields.values.get("ok") is True,
            failures=tuple((each.text("code"), each.text("sentence")) for each in fields.objects("failures")),
            packages=tuple((name, packages.text(name)) for name in packages.values),
            cuda=torch.optional_text("cuda"),
            hip=torch.optional_text("hip"),
            cudnn=torch.optional_count("cudnn"),
            arch_list=torch.optional_texts("arch_list"),
            devices=tuple(_device(each) for each in fields.optional_objects("devices")),
            python=fields.optional_text("python"),
            seconds=fields.optional_seconds("seconds") or 0.0,
        )
    except FieldError:
        return None


def judge_probe(answer: ProbeAnswer, build: TorchBuild, machine: Machine | None) -> tuple[Finding, ...]:
    """Say what a probe's answer means for a build on a machine; no problem among the findings means: proven.

    Parameters
    ----------
    answer : ProbeAnswer
        What the probe said.
    build : TorchBuild
        What was installed.
    machine : Machine or None
        What was detected from outside, through NVML; None: the GPUs are not compared.
    """
    found = [
        _problem(
            f"probe-{code}",
            sentence,
            _PROBE_HINTS.get(code),
            remedy="by-hand" if code in _PROBE_BY_HAND else "install-environment",
        )
        for code, sentence in answer.failures
    ]
    if not answer.ok and not found:
        found.append(_problem("probe-failed", "The probe failed and did not say why."))
    found += _disagreeing_packages(answer, build)
    if machine is not None:
        found += _strange_devices(answer, machine)
    found += _cudnn_too_new(answer)
    return tuple(found)


_PROBE_HINTS = {
    "torch-import": "Put the torch set back with `klein-setup repair`.",
    "torchvision-import": "Put the torch set back with `klein-setup repair`.",
    "torchaudio-import": "Put the torch set back with `klein-setup repair`.",
    "torchvision-broken": "Put the torch set back with `klein-setup repair`.",
    "no-gpu-build": "Put the torch set back with `klein-setup repair`.",
    "no-kernel": "Install the build that has code for this GPU: `klein-setup install --torch auto`.",
    "no-device": "Install or update the graphics driver, and look whether CUDA_VISIBLE_DEVICES hides the GPU.",
    "wrong-numbers": "Take overclocking back and test the card's memory; if it stays, update the driver.",
}
_PROBE_BY_HAND = frozenset({"no-device", "wrong-numbers"})
"""What another environment would not change."""


def _disagreeing_packages(answer: ProbeAnswer, build: TorchBuild) -> list[Finding]:
    if build.local_tag is None:
        return []
    wrong = [f"{name} {version}" for name, version in answer.packages if local_tag(version) != build.local_tag]
    if not wrong:
        return []
    message = f"The environment was built for {build.local_tag}, and it imports {listing(wrong)}."
    return [_problem("probe-tag", message, "Put the torch set back with `klein-setup repair`.")]


def _strange_devices(answer: ProbeAnswer, machine: Machine) -> list[Finding]:
    """Compare torch's devices with those NVML named: a container or a variable may show torch another card."""
    known = known_uuids(machine.gpus)
    if not known:
        return []
    return [
        _problem(
            "probe-other-device",
            f"torch computes on {device.name} ({device.uuid}), which NVML does not list on this machine.",
            "Look at CUDA_VISIBLE_DEVICES and at the devices given to the container.",
            remedy="by-hand",
        )
        for device in answer.devices
        if device.kind == "cuda" and device.uuid is not None and bare_uuid(device.uuid) not in known
    ]


def known_uuids(gpus: Iterable[Gpu]) -> frozenset[str]:
    """Return the UUIDs of NVIDIA GPUs and of the MIG devices in them, without their prefixes."""
    found = {uuid for gpu in gpus if gpu.vendor == "nvidia" for uuid in (gpu.uuid, *gpu.mig_devices) if uuid}
    return frozenset(bare_uuid(uuid) for uuid in found)


def bare_uuid(uuid: str) -> str:
    """Return a UUID as torch writes it.

    >>> bare_uuid("GPU-1B2C")
    '1b2c'
    """
    return re.sub(r"^(gpu|mig)-", "", uuid.lower())


def _cudnn_too_new(answer: ProbeAnswer) -> list[Finding]:
    """Say where the build's cuDNN is too new: from 9.11 on it serves nothing below 7.5 (pytorch/pytorch#162574)."""
    if answer.cudnn is None or answer.cudnn < 91100:
        return []
    return [
        _problem(
            "probe-cudnn",
            f"cuDNN {answer.cudnn // 10000}.{answer.cudnn // 100 % 100} does not serve {device.name}.",
            "Install the build for older cards: `klein-setup install --torch cu126`.",
        )
        for device in answer.devices
        if device.kind == "cuda" and device.capability is not None and device.capability < (7, 5)
    ]


# --- drift -------------------------------------------------------------------------------------


def drift(receipt: EnvironmentReceipt | None, observation: Observation, machine: Machine | None) -> tuple[Finding, ...]:
    """Say what changed since an environment was made.

    Parameters
    ----------
    receipt : EnvironmentReceipt or None
        What was made; None for an environment of somebody else's, of which only its own coherence is judged.
    observation : Observation
        What lies there now.
    machine : Machine or None
        What was detected now; None: driver and GPUs are not compared.

    Returns
    -------
    tuple of Finding
        Problems first; empty where nothing changed.
    """
    found = _state_of_the_folder(observation)
    if not found:
        found += _changed_versions(receipt, observation)
        found += _incoherent(observation)
        found += _second_torches(observation)
        found += _leftovers(observation)
        found += _changed_constraints(receipt, observation)
        found += _changed_python(receipt, observation)
    if receipt is not None and machine is not None:
        found += _changed_machine(receipt, machine)
    return tuple(sorted(found, key=lambda finding: finding.severity != "problem"))


_REPAIR = "Run `klein-setup repair`; it puts the torch set back."
_REBUILD = "Run `klein-setup repair`; it builds the environment anew and keeps the old one aside."


def _problem(
    code: str,
    message: str,
    hint: str | None = None,
    path: Path | None = None,
    *,
    remedy: Remedy = "install-environment",  # puts the torch set back or builds the environment anew, as is needed
) -> Finding:
    return Finding(code=code, severity="problem", message=message, remedy=remedy, hint=hint, path=path)


def _warning(
    code: str, message: str, hint: str | None = None, path: Path | None = None, *, remedy: Remedy = "by-hand"
) -> Finding:
    return Finding(code=code, severity="warning", message=message, remedy=remedy, hint=hint, path=path)


def _state_of_the_folder(observation: Observation) -> list[Finding]:
    where = observation.where
    if observation.interrupted is not None and not observation.is_there:
        return [_problem("environment-interrupted", observation.interrupted, "Run the same command again.", where)]
    if not observation.is_there:
        return [_problem("environment-missing", f"There is no environment at {where}.", "Run `klein-setup install`.")]
    if observation.broken is not None:
        return [_problem("environment-broken", f"{where}: {observation.broken}", _REBUILD, where)]
    return []


def _changed_versions(receipt: EnvironmentReceipt | None, observation: Observation) -> list[Finding]:
    if receipt is None:
        if observation.distribution("torch") is None:
            return [_problem("torch-missing", f"{observation.where} has no torch.", _REPAIR, observation.where)]
        return []
    found = []
    for name, version in receipt.versions:
        now = observation.distribution(name)
        if now is None:
            message = f"{name} {version} was installed and is gone."
            found.append(_problem(f"{name}-missing", message, _REPAIR, observation.where))
        elif now.version != version:
            message = f"{name} {version} was replaced by {now.version}."
            found.append(_problem(f"{name}-replaced", message, _REPAIR, observation.where))
        elif receipt.local_tag is not None and now.tag != receipt.local_tag:
            message = f"{name} {now.version} says it is built for {now.tag or 'nothing in particular'}, not for "
            found.append(_problem(f"{name}-tag", f"{message}{receipt.local_tag}.", _REPAIR, observation.where))
    return found


def _incoherent(observation: Observation) -> list[Finding]:
    """Say where the three are of several CUDA versions: torchaudio then refuses to load, torchvision lacks its ops."""
    torch = observation.distribution("torch")
    if torch is None or torch.tag is None:
        return []
    found = []
    for name in FAMILY[1:]:
        other = observation.distribution(name)
        # A torchaudio without CUDA skips its own check and works: pytorch/audio, torchaudio/_extension.
        if other is None or other.tag in (None, torch.tag) or (name == "torchaudio" and other.tag == "cpu"):
            continue
        message = f"{name} {other.built_version or other.version} does not belong to torch {torch.tag}."
        found.append(_problem(f"{name}-of-another-build", message, _REPAIR, observation.where))
    return found


def _second_torches(observation: Observation) -> list[Finding]:
    found = []
    for second in observation.second_torches:
        message = f"A second torch lies in {second.path} ({second.why})"
        if second.is_first:
            message += ", and it is the one that is imported"
        severity = _problem if second.is_first else _warning
        hint = "Remove it, or start ComfyUI without PYTHONPATH and user packages (PYTHONNOUSERSITE=1)."
        found.append(severity("torch-twice", f"{message}.", hint, second.path, remedy="by-hand"))
    return found


def _leftovers(observation: Observation) -> list[Finding]:
    building = observation.interrupted
    warning = functools.partial(_warning, remedy="install-environment")
    hint = "Run the same command again: it continues with what has arrived."
    unfinished = [] if building is None else [warning("building-interrupted", building, hint, observation.where)]
    return unfinished + [
        warning("uninstall-interrupted", f"{path} is what an interrupted pip left behind.", _REPAIR, path)
        for path in observation.leftovers
    ]


def _changed_constraints(receipt: EnvironmentReceipt | None, observation: Observation) -> list[Finding]:
    if receipt is None or observation.constraints == receipt.constraints:
        return []
    if observation.constraints is None:
        message = "The constraints file that holds the torch set is gone."
    else:
        missing = [line for line in receipt.constraints if line not in observation.constraints]
        message = "The constraints file that holds the torch set was changed"
        message += f": {listing(missing[:3])} missing." if missing else "."
    return [_problem("constraints-changed", message, _REPAIR, observation.where)]


def _changed_python(receipt: EnvironmentReceipt | None, observation: Observation) -> list[Finding]:
    if receipt is None or observation.python is None or observation.python.version == receipt.python_version:
        return []
    message = (
        f"The environment was made with Python {receipt.python_version} and runs {observation.python.version} now."
    )
    if python_number(observation.python.version) != python_number(receipt.python_version):
        return [_problem("python-changed", message, _REBUILD, observation.where)]
    return [_warning("python-changed", message, None, observation.where)]


def _changed_machine(receipt: EnvironmentReceipt, machine: Machine) -> list[Finding]:
    cuda = cuda_of(receipt)
    if cuda is None:
        return []
    found = _driver_findings(receipt, machine, cuda)
    gpus = [gpu for gpu in machine.gpus if gpu.vendor == "nvidia"]
    arch_list = receipt.probe.arch_list if receipt.probe is not None else ()
    for gpu in gpus:
        if gpu.compute_capability is None or not arch_list:
            continue
        if not any(serves(arch, gpu.compute_capability, cuda) for arch in arch_list):
            major, minor = gpu.compute_capability
            build = receipt.local_tag or receipt.torch_backend
            message = f"torch for {build} has no code for {gpu.name} (sm_{major}{minor})."
            found.append(_problem("gpu-without-code", message, "Run `klein-setup install --torch auto`."))
    now = sorted(bare_uuid(gpu.uuid) for gpu in gpus if gpu.uuid)
    if receipt.gpus and now and now != sorted(receipt.gpus):
        found.append(_warning("gpu-changed", "This machine has other GPUs than when the environment was made."))
    return found


def _driver_findings(receipt: EnvironmentReceipt, machine: Machine, cuda: tuple[int, int]) -> list[Finding]:
    now = parse_driver_version(machine.driver_version or "")
    if now is None:
        if receipt.driver_version is None:
            return []
        message = f"The NVIDIA driver ({receipt.driver_version} when the environment was made) does not answer."
        return [_problem("driver-missing", message, "Install the NVIDIA driver again.", remedy="by-hand")]
    is_windows = machine.os == "windows" or machine.is_wsl  # in WSL the number is the Windows driver's
    floor = _DRIVER_FLOORS.get(cuda[0])
    needed = floor[is_windows] if floor else None
    if needed is not None and now < (parse_driver_version(needed) or ()):
        message = (
            f"The driver {machine.driver_version} is older than this build of torch needs: "
            f"CUDA {cuda[0]}.{cuda[1]} asks for {needed} or newer."
        )
        hint = f"Update the NVIDIA driver to {needed} or newer."
        return [_problem("driver-too-old", message, hint, remedy="by-hand")]
    if receipt.driver_version not in (None, machine.driver_version):
        message = f"The driver is {machine.driver_version} now; it was {receipt.driver_version}."
        return [_warning("driver-changed", message)]
    return []


def cuda_of(receipt: EnvironmentReceipt) -> tuple[int, int] | None:
    """Return the CUDA version of the build in an environment; None where it is not for CUDA."""
    if receipt.probe is not None and receipt.probe.cuda is not None:
        major, _, minor = receipt.probe.cuda.partition(".")
        if major.isdigit():
            return int(major), int(minor.partition(".")[0] or 0)
    return cuda_of_tag(receipt.local_tag or receipt.torch_backend)


def cuda_of_tag(tag: str) -> tuple[int, int] | None:
    """Return the CUDA version a tag stands for.

    >>> cuda_of_tag("cu130"), cuda_of_tag("cpu")
    ((13, 0), None)
    """
    match = re.fullmatch(r"cu(\d+)(\d)", tag)
    return (int(match[1]), int(match[2])) if match else None


def serves(arch: str, capability: tuple[int, int], cuda: tuple[int, int]) -> bool:
    """Whether code of an architecture's name runs on a device; torch's own rule (``torch/cuda/__init__.py``).

    The probe inside the environment has the same one, since it may import nothing of ours; a test holds them together.

    >>> serves("sm_86", (8, 9), (13, 0)), serves("sm_90", (8, 9), (13, 0)), serves("compute_120", (12, 1), (13, 0))
    (True, False, True)
    """
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
    if match is None:
        return False
    code = (int(match[2]), int(match[3]))
    if match[1] == "compute":
        return code <= capability
    if capability == (11, 0):
        return code in ((11, 0), (10, 1))
    alone = {(5, 3), (6, 2), (7, 2), (10, 1)} | ({(8, 7)} if cuda < (13, 2) else set())
    if match[4] == "a" or capability in alone or code in alone:
        return code == capability
    return code[0] == capability[0] and code <= capability
