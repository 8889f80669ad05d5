"""What changed since the last full check, in sentences, and what to check again because of it.

Snapshots in, changes out.  Nothing is read from the machine here, and nothing is judged: whether a driver is too old
for a build of torch is a finding of `environment`; here it only says that the driver changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from provisioner.core.json_reader import FieldError, Fields, parse_object
from provisioner.core.units import count, human_bytes, listing
from provisioner.report.json_value import JsonValue

SNAPSHOT_VERSION = 1

LookedAt = Literal["machine", "environment", "comfyui", "files"]
EVERY_PART: tuple[LookedAt, ...] = ("machine", "environment", "comfyui", "files")
ChangeKind = Literal["changed", "appeared", "gone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenGpu:
    """What identifies a GPU."""

    name: str
    uuid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenFile:
    """A model file that was verified, or the file in its place."""

    label: str  # "vae/flux2-vae.safetensors"
    size: int | None  # bytes; None: no file
    sha256: str | None  # None: not read, or not as a whole
    is_damaged: bool = False  # its blocks showed that it is not what was verified


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedState:
    """A machine, its ComfyUI and its files at one moment.

    None means that there is none; parts that are not in `looked_at` were not read, and are not compared.
    """

    taken_at: str  # ISO 8601, UTC: "2026-11-23T10:00:00Z"
    klein_setup: str  # version of klein-setup
    looked_at: tuple[LookedAt, ...] = EVERY_PART
    driver_version: str | None = None
    cuda_driver_version: tuple[int, int] | None = None
    gpus: tuple[SeenGpu, ...] = ()
    os_release: str | None = None
    python_version: str | None = None  # of the environment
    torch: str | None = None  # "2.14.1+cu130"
    torchvision: str | None = None
    torchaudio: str | None = None
    comfyui_version: str | None = None
    comfyui_commit: str | None = None
    comfyui_has_local_changes: bool | None = None
    custom_nodes: tuple[str, ...] = ()
    wanted: str | None = None  # which files were asked for: "flux2-klein-4b/fp8"
    files: tuple[SeenFile, ...] = ()
    extra_model_paths_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that changed."""

    what: str  # kebab-case: "driver", "torch", "comfyui", "file"
    kind: ChangeKind
    before: str | None
    now: str | None
    matters: bool  # it can break the setup
    sentence: str  # for a person
    about: str | None = None  # which of several of its kind: a file's label


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangesSince:
    """What moved since the last verified state, and what was looked at because of it."""

    changes: tuple[Change, ...]  # from `compare`
    since: str | None = None  # when that state was taken, ISO 8601; None: there is none to compare with
    checked: tuple[str, ...] = ()  # what was looked at because of them, as clauses
    mend: str | None = None  # the command that fixes what no longer holds


# --- keeping a state ------------------------------------------------------------------------


def checked_state_document(state: CheckedState) -> dict[str, JsonValue]:
    """Return a state as JSON values; `parse_checked_state` reads it."""
    cuda = state.cuda_driver_version
    return {
        "schema_version": SNAPSHOT_VERSION,
        **{name: getattr(state, name) for name in ("taken_at", "klein_setup", *_TEXTS)},
        "looked_at": list(state.looked_at),
        "cuda_driver_version": None if cuda is None else list(cuda),
        "comfyui_has_local_changes": state.comfyui_has_local_changes,
        "gpus": [{"name": gpu.name, "uuid": gpu.uuid} for gpu in state.gpus],
        "custom_nodes": list(state.custom_nodes),
        "files": [{"label": file.label, "size": file.size, "sha256": file.sha256} for file in state.files],
    }


def parse_checked_state(text: str) -> tuple[CheckedState | None, str | None]:
    """Return the state a text holds, or None and the reason, a clause: ``it is not JSON``.

    Keys that a newer version added are ignored; a key of the wrong type makes the whole state unusable, because
    a part of one would report changes that never happened.
    """
    document = parse_object(text)
    if document is None:
        return None, "it is not a JSON object"
    version = document.get("schema_version")
    if version != SNAPSHOT_VERSION or isinstance(version, bool):
        return None, f"its schema_version is {str(version)[:40]!r}, and {SNAPSHOT_VERSION} is expected"
    try:
        return _state(Fields(document)), None
    except FieldError as error:
        return None, f"its key {error}"


_TEXTS = (
    "driver_version",
    "os_release",
    "python_version",
    "torch",
    "torchvision",
    "torchaudio",
    "comfyui_version",
    "comfyui_commit",
    "wanted",
    "extra_model_paths_sha256",
)


def _state(fields: Fields) -> CheckedState:
    texts = {name: fields.optional_text(name) for name in _TEXTS}
    seen = fields.texts("looked_at")
    return CheckedState(
        taken_at=fields.text("taken_at"),
        klein_setup=fields.text("klein_setup"),
        looked_at=tuple(part for part in EVERY_PART if part in seen),
        cuda_driver_version=fields.optional_pair("cuda_driver_version"),
        gpus=tuple(SeenGpu(name=row.text("name"), uuid=row.optional_text("uuid")) for row in fields.objects("gpus")),
        comfyui_has_local_changes=fields.optional_flag("comfyui_has_local_changes"),
        custom_nodes=fields.texts("custom_nodes"),
        files=tuple(
            SeenFile(label=row.text("label"), size=row.optional_count("size"), sha256=row.optional_text("sha256"))
            for row in fields.objects("files")
        ),
        **texts,
    )


# --- comparing ---------------------------------------------------------------------------------


def compare(before: CheckedState | None, now: CheckedState) -> tuple[Change, ...]:
    """Return what changed, what can break the setup first.

    Parameters
    ----------
    before : CheckedState or None
        The state at the last full check; None where there is none, which is no change.
    now : CheckedState
        The state now.

    Returns
    -------
    tuple of Change
        Only of the parts that both have read; empty if nothing changed.
    """
    if before is None:
        return ()
    both = [part for part in EVERY_PART if part in before.looked_at and part in now.looked_at]
    compared: dict[LookedAt, Callable[[CheckedState, CheckedState], Iterable[Change]]] = {
        "machine": _machine_changes,
        "environment": _environment_changes,
        "comfyui": _comfyui_changes,
        "files": _file_changes,
    }
    found = [change for part in both for change in compared[part](before, now)]
    found += _moved("klein-setup", "klein-setup", before.klein_setup, now.klein_setup, matters=False)
    return tuple(sorted(found, key=lambda change: not change.matters))


def _moved(what: str, name: str, before: str | None, now: str | None, *, matters: bool = True) -> list[Change]:
    """Return the change of one value, or nothing if it is the same."""
    if before == now:
        return []
    kind: ChangeKind = "appeared" if before is None else "gone" if now is None else "changed"
    sentence = {
        "changed": f"{name} changed from {before} to {now}.",
        "appeared": f"{name} is new ({now}); there was none.",
        "gone": f"{name} ({before}) is gone or does not respond.",
    }[kind]
    capital = sentence[0].upper() + sentence[1:] if name.startswith("the ") else sentence
    return [Change(what=what, kind=kind, before=before, now=now, matters=matters, sentence=capital)]


def _machine_changes(before: CheckedState, now: CheckedState) -> list[Change]:
    driver = _moved("driver", "the NVIDIA driver", before.driver_version, now.driver_version)
    found = list(driver)
    if not driver:  # a new driver brings its CUDA with it: one sentence is enough
        cuda = [_cuda_words(each.cuda_driver_version) for each in (before, now)]
        found += _moved("cuda-driver", "the CUDA version of the driver", cuda[0], cuda[1])
    found += _gpu_changes(before.gpus, now.gpus)
    # A new kernel alone breaks nothing; a driver that was not built for it shows as a driver that is gone.
    return found + _moved("system", "the system", before.os_release, now.os_release, matters=False)


def _cuda_words(version: tuple[int, int] | None) -> str | None:
    return None if version is None else f"{version[0]}.{version[1]}"


def _gpu_changes(before: Sequence[SeenGpu], now: Sequence[SeenGpu]) -> list[Change]:
    """Return new and removed GPUs; one without a UUID is compared by its name."""
    left, came = list(before), []
    for gpu in now:
        same = next((each for each in left if _is_same_gpu(each, gpu)), None)
        if same is None:
            came.append(gpu)
        else:
            left.remove(same)
    gone = [_change("gpu", "gone", f"The GPU {each.name} is gone.", before=each.name) for each in left]
    return gone + [_change("gpu", "appeared", f"New GPU: {each.name}.", now=each.name) for each in came]


def _is_same_gpu(one: SeenGpu, other: SeenGpu) -> bool:
    if one.uuid is not None and other.uuid is not None:
        return one.uuid.lower() == other.uuid.lower()
    return one.name == other.name


def _change(
    what: str,
    kind: ChangeKind,
    sentence: str,
    *,
    before: str | None = None,
    now: str | None = None,
    matters: bool = True,
    about: str | None = None,
) -> Change:
    return Change(what=what, kind=kind, before=before, now=now, matters=matters, sentence=sentence, about=about)


def _environment_changes(before: CheckedState, now: CheckedState) -> list[Change]:
    found = _moved("python", "the environment's Python", before.python_version, now.python_version)
    for name in ("torch", "torchvision", "torchaudio"):
        found += _moved(name, name, getattr(before, name), getattr(now, name))
    return found


def _comfyui_changes(before: CheckedState, now: CheckedState) -> list[Change]:
    found = _moved("comfyui", "ComfyUI", before.comfyui_version, now.comfyui_version)
    if not found:  # the version says it better than its commit
        commits = [each.comfyui_commit and each.comfyui_commit[:9] for each in (before, now)]
        found += _moved("comfyui-commit", "ComfyUI's commit", commits[0], commits[1])
    found += _local_changes(before.comfyui_has_local_changes, now.comfyui_has_local_changes)
    found += _node_changes(before.custom_nodes, now.custom_nodes)
    return found + _extra_paths_change(before.extra_model_paths_sha256, now.extra_model_paths_sha256)


def _local_changes(before: bool | None, now: bool | None) -> list[Change]:
    if before is None or now is None or before == now:
        return []
    if now:
        return [_change("comfyui-edits", "appeared", "ComfyUI's own files were edited.", now="edited")]
    sentence = "ComfyUI's own files match the release again; they had been edited."
    return [_change("comfyui-edits", "gone", sentence, before="edited")]


def _node_changes(before: Sequence[str], now: Sequence[str]) -> list[Change]:
    """Return new and removed custom nodes, each kind in one sentence."""
    came = sorted(set(now) - set(before))
    gone = sorted(set(before) - set(now))
    found = []
    if came:
        found.append(_change("custom-nodes", "appeared", f"New custom nodes: {_few(came)}.", now=", ".join(came)))
    if gone:
        found.append(_change("custom-nodes", "gone", f"Removed custom nodes: {_few(gone)}.", before=", ".join(gone)))
    return found


def _few(names: Sequence[str], most: int = 5) -> str:
    """Return at most `most` names as a list in a sentence, the rest as a number."""
    if len(names) <= most + 1:
        return listing(names)
    return listing([*names[:most], f"{len(names) - most} more"])


def _extra_paths_change(before: str | None, now: str | None) -> list[Change]:
    if before == now:
        return []
    kind: ChangeKind = "appeared" if before is None else "gone" if now is None else "changed"
    verb = {"changed": "was changed", "appeared": "is new", "gone": "is gone"}[kind]
    sentence = f"extra_model_paths.yaml {verb}: ComfyUI may read its models from other folders."
    cut = [each and each[:12] for each in (before, now)]
    return [_change("extra-model-paths", kind, sentence, before=cut[0], now=cut[1])]


def _file_changes(before: CheckedState, now: CheckedState) -> list[Change]:
    if before.wanted != now.wanted:
        return _moved("set", "the chosen set", before.wanted, now.wanted, matters=False)
    old = {file.label: file for file in before.files}
    new = {file.label: file for file in now.files}
    found = []
    for label in dict.fromkeys((*old, *new)):
        found += _file_change(label, old.get(label), new.get(label))
    return found


def _file_change(label: str, before: SeenFile | None, now: SeenFile | None) -> list[Change]:
    was = before if before is not None and before.size is not None else None
    is_now = now if now is not None and now.size is not None else None
    if was is None or is_now is None:
        if was is None and is_now is None:
            return []
        kind: ChangeKind = "appeared" if was is None else "gone"
        sentence = f"{label} {'is new.' if was is None else 'is gone.'}"
        return [_change("file", kind, sentence, before=_file_words(was), now=_file_words(is_now), about=label)]
    is_other = was.sha256 != is_now.sha256 if was.sha256 and is_now.sha256 else was.size != is_now.size
    if not is_other and not is_now.is_damaged:
        return []
    sizes = f", {human_bytes(was.size or 0)} then and {human_bytes(is_now.size or 0)} now"
    sentence = f"{label} has other content{sizes if was.size != is_now.size else ' of the same size'}."
    return [_change("file", "changed", sentence, before=_file_words(was), now=_file_words(is_now), about=label)]


def _file_words(file: SeenFile | None) -> str | None:
    if file is None or file.size is None:
        return None
    return file.sha256[:12] if file.sha256 else f"{file.size} bytes{', damaged' if file.is_damaged else ''}"


# --- what to check again -----------------------------------------------------------------------

_CHECKED_FOR: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"file", "set", "extra-model-paths"}), "every byte of the model files"),
    (frozenset({"comfyui", "comfyui-commit", "comfyui-edits"}), "whether this ComfyUI has the nodes Klein needs"),
    (frozenset({"python", "torch", "torchvision", "torchaudio"}), "whether the torch packages belong together"),
    (
        frozenset({"driver", "cuda-driver", "gpu", "system", "torch"}),
        "whether torch still computes on this GPU with this driver",
    ),
    (frozenset({"custom-nodes", "comfyui", "comfyui-commit", "comfyui-edits"}), "whether it still generates an image"),
)


def checks_for(changes: Iterable[Change]) -> tuple[str, ...]:
    """Return what should be checked again because of these changes, as clauses; empty if nothing changed."""
    changed = {change.what for change in changes}
    return tuple(words for causes, words in _CHECKED_FOR if changed & causes)


def without_files(changes: Iterable[Change], labels: Collection[str]) -> tuple[Change, ...]:
    """Return the changes without those of the files with these labels."""
    return tuple(each for each in changes if each.what != "file" or each.about not in labels)


class ChangeEntry(TypedDict):
    """One thing that changed, as ``--json`` shows it."""

    what: str  # kebab-case: "driver", "torch", "comfyui", "file"
    kind: ChangeKind
    before: str | None
    now: str | None
    matters: bool  # it can break the setup
    sentence: str


class ChangesEntry(TypedDict):
    """What changed since the last full check: ``details.changes``."""

    since: str | None  # when that check was, ISO 8601; null: there is none
    changes: list[ChangeEntry]
    checked: list[str]  # what was looked at because of them
    mend_command: str | None  # what fixes what no longer holds


def changes_entry(changes: ChangesSince) -> ChangesEntry:
    """Return the changes as JSON values, for ``details.changes``."""
    return {
        "since": changes.since,
        "changes": [
            {
                "what": each.what,
                "kind": each.kind,
                "before": each.before,
                "now": each.now,
                "matters": each.matters,
                "sentence": each.sentence,
            }
            for each in changes.changes
        ],
        "checked": list(changes.checked),
        "mend_command": changes.mend,
    }


def summary(changes: Sequence[Change]) -> str:
    """Return in one sentence how much changed.

    >>> summary(())
    'Nothing changed since the last full check.'
    """
    if not changes:
        return "Nothing changed since the last full check."
    number = sum(change.matters for change in changes)
    words = f"{count(len(changes), 'thing')} changed since the last full check"
    if not number:
        return f"{words}; none of it affects what was verified."
    if number == len(changes):
        return f"{words}, and {'it' if number == 1 else 'each'} can break the setup."
    return f"{words}; {number} of them can break the setup."
