"""A fleet: what each machine has, how it differs from the others or from a lock, and what bringing it in line costs.

Pure: documents in, one value out.  Every host is compared with a reference: the lock of its set where one is given,
else what more hosts of its kind have than anything else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from provisioner.core.models import Manifest
from provisioner.core.units import count, human_bytes, human_duration
from provisioner.report.fleet_documents import Document, FileFact, FleetError, UnusableFile

FleetState = Literal["failed", "differs", "missing", "stale", "unchecked", "in-line"]
DifferenceKind = Literal["manifest", "file", "comfyui", "torch", "package", "other"]

STATES: Mapping[FleetState, str] = {
    "failed": "failed",
    "differs": "different",
    "missing": "without a document",
    "stale": "too old",
    "unchecked": "not checked",
    "in-line": "in line",
}
"""Every state in words, worst first."""

_FILE_WORDS = {
    "missing": "missing",
    "size-mismatch": "wrong size",
    "hash-mismatch": "wrong bytes",
    "unreadable": "unreadable",
}
_A_DAY_S = 86_400
_COMFYUI_STEPS = frozenset({"get-comfyui", "update-comfyui"})
_TORCH_STEPS = frozenset({"make-environment", "repair-environment", "install-packages"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetDifference:
    """One thing of a host that is not as it should be."""

    what: DifferenceKind
    name: str  # path of a file, name of a package; empty for the others
    here: str  # a version, a status, a SHA-256
    expected: str  # empty where `here` says it all, or where nothing has a majority
    because: str  # a clause: whose expectation that is; empty where it is that of the host's own document


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetHost:
    """One machine of a fleet; a text is empty where no document says it."""

    host: str
    state: FleetState
    file: str  # the document that its files were judged by
    command: str  # of its newest run
    ended_at: str  # of its newest run: UTC, ISO 8601
    gpus: tuple[str, ...]
    driver: str
    manifest: str
    set: str
    comfyui: str
    comfyui_commit: str
    torch: str
    files: int
    files_correct: int
    files_read: int  # of the correct ones, those of which every byte was read
    checked_at: str  # when the files were looked at
    differences: tuple[FleetDifference, ...]
    errors: tuple[FleetError, ...]
    steps: int  # to bring it in line
    bytes_to_fetch: int  # of those steps whose bytes are known
    has_unknown_bytes: bool  # a step fetches more, of an amount that no document says


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Many machines, those that need attention first."""

    reference: Literal["lock", "majority"]
    stale_after_s: int
    documents: int  # that were read; of each host the newest counts
    hosts: tuple[FleetHost, ...]
    unusable: tuple[UnusableFile, ...]
    steps: int
    bytes_to_fetch: int
    hosts_with_unknown_bytes: int

    @property
    def is_in_line(self) -> bool:
        """Whether every host is as it should be, and every file was a document."""
        return not self.unusable and all(each.state == "in-line" for each in self.hosts)


def fleet_of(
    read: Iterable[Document | UnusableFile],
    *,
    locks: Sequence[Manifest] = (),
    expected_hosts: Sequence[str] = (),
    now_s: int,
    stale_after_s: int,
) -> Fleet:
    """Return the fleet that some documents are about.

    Parameters
    ----------
    read : iterable of Document or UnusableFile
        In any order.
    locks : sequence of Manifest
        What the hosts should have, one for each set; empty: what most of them have.
    expected_hosts : sequence of str
        Names that should be among the hosts; one without a document is missing.
    now_s, stale_after_s : int
        The time, in seconds since 1970, and the age in seconds from which on a document no longer counts.
    """
    by_host: dict[str, list[Document]] = defaultdict(list)
    unusable: list[UnusableFile] = []
    for each in read:
        if isinstance(each, Document):
            by_host[each.host].append(each)
        else:
            unusable.append(each)
    pairs = [_newest(documents, now_s) for documents in by_host.values()]
    votes = _Votes(looked for _, looked in pairs)
    judge = _Judge(votes, locks, now_s, stale_after_s)
    hosts = [judge.host(newest, looked) for newest, looked in pairs]
    hosts += [_missing(name) for name in dict.fromkeys(expected_hosts) if name not in by_host]
    order = list(STATES)
    hosts.sort(key=lambda each: (order.index(each.state), each.host))
    return Fleet(
        reference="lock" if locks else "majority",
        stale_after_s=stale_after_s,
        documents=sum(map(len, by_host.values())),
        hosts=tuple(hosts),
        unusable=tuple(sorted(unusable, key=lambda each: each.file)),
        steps=sum(each.steps for each in hosts),
        bytes_to_fetch=sum(each.bytes_to_fetch for each in hosts),
        hosts_with_unknown_bytes=sum(each.has_unknown_bytes for each in hosts),
    )


# --- of one host, what counts --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """What is known of a host: each thing from the newest document that says it."""

    files_from: Document | None  # the document that looked at the files
    host: str
    gpus: tuple[str, ...]
    driver: str
    comfyui: str
    comfyui_commit: str
    has_local_changes: bool | None
    torch: str
    torch_backend: str


def _newest(documents: list[Document], now_s: int) -> tuple[Document, _Looked]:
    """Return the newest run of a host, and what is known of it.

    A clock that is ahead must not make a document the newest for ever: a date of the future counts as none.
    """
    documents.sort(key=lambda each: (_age(each, now_s) is not None, each.at_s or 0, each.file), reverse=True)
    runs = [each for each in documents if each.command != "detect"] or documents
    with_machine = next((each for each in documents if each.gpus or each.driver), documents[0])
    with_comfyui = next((each for each in documents if each.comfyui or each.comfyui_commit), documents[0])
    with_torch = next((each for each in documents if each.torch), documents[0])
    looked = _Looked(
        files_from=next((each for each in runs if each.files), None),
        host=documents[0].host,
        gpus=with_machine.gpus,
        driver=with_machine.driver,
        comfyui=with_comfyui.comfyui,
        comfyui_commit=with_comfyui.comfyui_commit,
        has_local_changes=with_comfyui.has_local_changes,
        torch=with_torch.torch,
        torch_backend=with_torch.torch_backend,
    )
    return runs[0], looked


def _age(document: Document, now_s: int) -> int | None:
    """Return how old a document is, in seconds; None where its date is missing or more than a day ahead."""
    if document.at_s is None or document.at_s > now_s + _A_DAY_S:
        return None
    return max(0, now_s - document.at_s)


# --- the reference -------------------------------------------------------------------------------

_Key = tuple[str, ...]
_Wanted = Mapping[str, "tuple[str, int] | None"]
"""SHA-256 and size by path; None where no content has a majority."""

NO_MAJORITY = "no value has a majority"


def _aspects(looked: _Looked) -> Iterator[tuple[_Key, DifferenceKind, str]]:
    """Return what a host is compared in with the others, each under the name of those it is compared with.

    Sets with hosts of the same GPUs, torch likewise: another GPU may need another set and another build.  Files with
    hosts of the same set.  ComfyUI with all.
    """
    gpus = " + ".join(looked.gpus)
    document = looked.files_from
    if document is not None and document.manifest:
        yield ("manifest", gpus), "manifest", f"{document.manifest}, set {document.set}"
    if looked.comfyui:
        yield ("comfyui",), "comfyui", looked.comfyui
        if looked.comfyui_commit:
            yield ("commit", looked.comfyui), "comfyui", f"commit {looked.comfyui_commit}"
    if looked.torch:
        yield ("torch", gpus), "torch", looked.torch


class _Votes:
    """What the hosts have, counted."""

    def __init__(self, hosts: Iterable[_Looked]) -> None:
        self.aspects: dict[_Key, Counter[str]] = defaultdict(Counter)
        self.contents: dict[_Key, Counter[tuple[str, int]]] = defaultdict(Counter)  # SHA-256 and size
        self.paths: dict[_Key, Counter[str]] = defaultdict(Counter)
        self.of_set: Counter[_Key] = Counter()
        for looked in hosts:
            for key, _, value in _aspects(looked):
                self.aspects[key][value] += 1
            document = looked.files_from
            if document is None:
                continue
            group = (document.manifest, document.set)
            self.of_set[group] += 1
            for each in document.files:
                self.paths[group][each.path] += 1
                if each.status == "ok":
                    key = (*group, each.path)
                    self.contents[key][each.sha256, each.size] += 1

    def winner(self, key: _Key) -> tuple[str, str] | None:
        """Return what most have and a clause about it; None where all have the same."""
        found = self.aspects[key]
        if len(found) < 2:
            return None
        (first, most), (_, next_most) = found.most_common(2)
        if most == next_most:
            return "", NO_MAJORITY
        return first, f"as on {most} of {found.total()} hosts"

    def wanted(self, group: _Key) -> _Wanted:
        """Return what most hosts of a set have under each path that most of them have."""
        found: dict[str, tuple[str, int] | None] = {}
        for path, holders in self.paths[group].items():
            key = (*group, path)
            contents = self.contents[key].most_common(2)
            if contents and holders * 2 > self.of_set[group]:
                is_tie = len(contents) == 2 and contents[0][1] == contents[1][1]
                found[path] = None if is_tie else contents[0][0]
        return found


class _Judge:
    """Compares hosts with the reference."""

    def __init__(self, votes: _Votes, locks: Sequence[Manifest], now_s: int, stale_after_s: int) -> None:
        self._votes = votes
        self._locks = locks
        self._now_s = now_s
        self._stale_after_s = stale_after_s
        self._of_set: dict[_Key, _Wanted] = {}

    def host(self, newest: Document, looked: _Looked) -> FleetHost:
        """Return one host with its differences and what they cost."""
        document = looked.files_from
        files = document.files if document is not None else ()
        wanted = self._wanted_of_lock(looked) if self._locks else self._wanted_of_most(document)
        differences = (
            *(self._against_lock(looked) if self._locks else self._against_most(looked)),
            *_file_differences(files, wanted, "as locked" if self._locks else "as on most hosts"),
            *_own_differences(document, newest),
        )
        steps, to_fetch, has_unknown = _cost(document, wanted, differences)
        right = [each for each in files if each.status == "ok"]
        return FleetHost(
            host=looked.host,
            state=self._state(newest, document, differences),
            file=(document or newest).file,
            command=newest.command,
            ended_at=newest.ended_at,
            gpus=looked.gpus,
            driver=looked.driver,
            manifest=(document or newest).manifest,
            set=(document or newest).set,
            comfyui=looked.comfyui,
            comfyui_commit=looked.comfyui_commit,
            torch=looked.torch,
            files=len(files),
            files_correct=len(right),
            files_read=sum(each.is_read for each in right),
            checked_at=document.ended_at if document is not None else "",
            differences=differences,
            errors=newest.errors if newest.status in {"failed", "interrupted"} else (),
            steps=steps,
            bytes_to_fetch=to_fetch,
            has_unknown_bytes=has_unknown,
        )

    def _state(
        self, newest: Document, document: Document | None, differences: tuple[FleetDifference, ...]
    ) -> FleetState:
        if newest.status in {"failed", "interrupted"}:
            return "failed"
        if differences:
            return "differs"
        if document is None:
            return "unchecked"
        age = _age(document, self._now_s)
        return "stale" if age is None or age >= self._stale_after_s else "in-line"

    # --- against what most have ---

    def _against_most(self, looked: _Looked) -> Iterator[FleetDifference]:
        for key, what, value in _aspects(looked):
            winner = self._votes.winner(key)
            if winner is not None and winner[0] != value:
                yield FleetDifference(what=what, name="", here=value, expected=winner[0], because=winner[1])

    def _wanted_of_most(self, document: Document | None) -> _Wanted:
        """Return what most hosts with this set have under each path that most of them have."""
        if document is None:
            return {}
        group = (document.manifest, document.set)
        if group not in self._of_set:
            self._of_set[group] = self._votes.wanted(group)
        return self._of_set[group]

    # --- against a lock ---

    def _lock_of(self, looked: _Looked) -> Manifest | None:
        document = looked.files_from
        if document is None:
            return None
        same = [each for each in self._locks if each.id == document.manifest]
        of_set = [each for each in same if each.set_named(document.set) is not None]
        return next(iter(of_set or same), None)

    def _against_lock(self, looked: _Looked) -> Iterator[FleetDifference]:
        document, lock = looked.files_from, self._lock_of(looked)
        if document is None:
            return
        if lock is None or lock.set_named(document.set) is None:
            ids = ", ".join(f"{each.id}, set {each.default_set}" for each in self._locks)
            yield FleetDifference(
                what="manifest",
                name="",
                here=f"{document.manifest}, set {document.set}",
                expected=ids,
                because="as locked",
            )
        if lock is None or lock.lock is None:
            return
        pairs: tuple[tuple[DifferenceKind, str, str | None], ...] = (
            ("comfyui", looked.comfyui_commit and f"commit {looked.comfyui_commit}",
             lock.lock.comfyui_commit and f"commit {lock.lock.comfyui_commit}"),
            ("comfyui", looked.comfyui if not looked.comfyui_commit else "", lock.lock.comfyui_version),
            ("torch", looked.torch.partition("+")[0], lock.lock.torch),
            ("torch", looked.torch_backend and f"build {looked.torch_backend}",
             lock.lock.torch_backend and f"build {lock.lock.torch_backend}"),
        )  # fmt: skip
        for what, here, locked in pairs:
            if here and locked and here != locked:
                yield FleetDifference(what=what, name="", here=here, expected=locked, because="as locked")

    def _wanted_of_lock(self, looked: _Looked) -> _Wanted:
        """Return SHA-256 and size of each file of the lock, by the path that the host has it at."""
        document, lock = looked.files_from, self._lock_of(looked)
        if document is None or lock is None:
            return {}
        chosen = lock.set_named(document.set) or lock.set_named(lock.default_set)
        paths = {each.artifact: each.path for each in document.files}
        return {
            paths.get(each.id, f"{each.folder}/{each.name}" if each.folder else each.name): (each.sha256, each.size)
            for each in (chosen.artifacts if chosen is not None else ())
        }


# --- differences ---------------------------------------------------------------------------------


def _file_differences(files: Sequence[FileFact], wanted: _Wanted, because: str) -> Iterator[FleetDifference]:
    """Return the files that are wrong by their own document, or not those of the reference."""
    for each in files:
        content = wanted.get(each.path, ("", 0))
        if each.status != "ok":
            here = _FILE_WORDS.get(each.status, each.status or "unknown")
            yield FleetDifference(what="file", name=each.path, here=here, expected="", because="")
        elif content is None:
            yield _other_content(each, "", NO_MAJORITY)
        elif content[0] not in {"", each.sha256}:
            yield _other_content(each, f"SHA-256 {content[0]}", because)
    there = {each.path for each in files}
    for path, content in wanted.items():
        if path not in there and content is not None:
            expected = f"SHA-256 {content[0]}"
            yield FleetDifference(what="file", name=path, here="not there", expected=expected, because=because)


def _other_content(file: FileFact, expected: str, because: str) -> FleetDifference:
    return FleetDifference(
        what="file", name=file.path, here=f"SHA-256 {file.sha256}", expected=expected, because=because
    )


def _own_differences(document: Document | None, newest: Document) -> Iterator[FleetDifference]:
    """Return what a host's own documents complain of beside its files."""
    seen = (newest,) if document is None or document is newest else (document, newest)
    for name, what, locked in dict.fromkeys(each for one in seen for each in one.packages):
        because = "as installed" if locked else ""
        yield FleetDifference(what="package", name=name, here=what, expected=locked, because=because)
    for problem in dict.fromkeys(each for one in seen for each in one.problems):
        yield FleetDifference(what="other", name="", here=problem, expected="", because="")
    if newest.status == "planned" and newest.steps:
        here = f"a plan of {count(len(newest.steps), 'step')} was not applied"
        yield FleetDifference(what="other", name="", here=here, expected="", because="")


def _cost(document: Document | None, wanted: _Wanted, differences: Sequence[FleetDifference]) -> tuple[int, int, bool]:
    """Return steps, bytes, and whether there are more bytes, that bring a host in line.

    A step of the host's own plan counts with its bytes, which are those of the wrong blocks where blocks are known.
    A file that the plan does not bring to the reference is fetched whole.
    """
    if document is None:
        return 0, 0, False
    expected = {each.path: each.expected_sha256 for each in document.files}
    others = {
        path: content[1] for path, content in wanted.items() if content is not None and expected.get(path) != content[0]
    }
    own = [step for step in document.steps if step.path not in others]
    kinds = {step.kind for step in own}
    differs_in = {each.what for each in differences}
    unknown = (
        "comfyui" in differs_in and kinds.isdisjoint(_COMFYUI_STEPS),
        not differs_in.isdisjoint({"torch", "package"}) and kinds.isdisjoint(_TORCH_STEPS),
        "manifest" in differs_in and not others,
    )
    steps = len(own) + len(others) + sum(unknown)
    return steps, sum(step.bytes_to_fetch for step in own) + sum(others.values()), any(unknown)


def _missing(name: str) -> FleetHost:
    return FleetHost(
        host=name,
        state="missing",
        file="",
        command="",
        ended_at="",
        gpus=(),
        driver="",
        manifest="",
        set="",
        comfyui="",
        comfyui_commit="",
        torch="",
        files=0,
        files_correct=0,
        files_read=0,
        checked_at="",
        differences=(),
        errors=(),
        steps=0,
        bytes_to_fetch=0,
        has_unknown_bytes=False,
    )


# --- words ---------------------------------------------------------------------------------------


def headline(fleet: Fleet) -> str:
    """Return the whole in one line: "3 hosts: 1 different, 2 in line"."""
    states = Counter(each.state for each in fleet.hosts)
    parts = [f"{states[state]} {words}" for state, words in STATES.items() if states[state]]
    return f"{count(len(fleet.hosts), 'host')}: {', '.join(parts)}"


def difference_words(difference: FleetDifference) -> str:
    """Return one difference as a sentence without its full stop.

    >>> given = {"here": "2.13.0", "expected": "2.14.1", "because": "as locked"}
    >>> difference_words(FleetDifference(what="torch", name="", **given))
    'torch is 2.13.0; expected is 2.14.1, as locked'
    """
    names: Mapping[DifferenceKind, str] = {
        "manifest": "the manifest is ",
        "comfyui": "ComfyUI is ",
        "torch": "torch is ",
    }
    begin = f"{difference.name}: " if difference.name else names.get(difference.what, "")
    if not difference.expected:
        return f"{begin}{difference.here}{'; ' if difference.because else ''}{difference.because}"
    return f"{begin}{difference.here}; expected is {difference.expected}, {difference.because}"


def files_words(host: FleetHost) -> str:
    """Return how many files are right, and how far that was checked."""
    if not host.files:
        return ""
    if host.files_read == host.files_correct:
        return f"{host.files_correct} of {host.files}"
    return f"{host.files_correct} of {host.files}, {host.files_read or 'not'} read"


def gpu_words(host: FleetHost) -> str:
    """Return the names of the GPUs, each once, with their number."""
    names = Counter(each.removeprefix("NVIDIA ").removeprefix("GeForce ") for each in host.gpus if each)
    return ", ".join(name if number == 1 else f"{number} x {name}" for name, number in names.items())


def cost_words(host: FleetHost) -> str:
    """Return what a host has to fetch to be in line; empty where there is nothing to do."""
    if not host.steps:
        return ""
    if not host.has_unknown_bytes:
        return human_bytes(host.bytes_to_fetch)
    return f"{human_bytes(host.bytes_to_fetch)} and more" if host.bytes_to_fetch else "not known"


def whole_cost_words(fleet: Fleet) -> str:
    """Return what bringing all in line costs, in a sentence or two."""
    hosts = sum(each.steps > 0 for each in fleet.hosts)
    if not hosts:
        return "No host has anything to fetch."
    unknown = fleet.hosts_with_unknown_bytes
    fetched = f", {human_bytes(fleet.bytes_to_fetch)} to fetch" if fleet.bytes_to_fetch or not unknown else ""
    said = f"To bring all in line: {count(fleet.steps, 'step')} on {count(hosts, 'host')}{fetched}."
    more = f" No document says how many bytes ComfyUI and Python packages are on {count(unknown, 'host')}."
    return said + (more if unknown else "")


def stale_words(fleet: Fleet) -> str:
    """Return from when on a document is too old."""
    return f"A document older than {human_duration(fleet.stale_after_s)} does not count as proof."
