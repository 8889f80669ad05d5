"""Which layer makes the test image fail: what is tried in which order, and what follows from it.

The same graph runs again with one layer less at a time: without the user's options, without custom nodes, without both;
then, on the bare ComfyUI, without its memory streaming, with the VAE in 32 bits, on the CPU.  Among options and custom
nodes the guilty ones are then searched by halving (`culprits`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from provisioner.core.units import count, listing
from provisioner.smoke_test.culprits import CulpritSearch

Layer = Literal["options", "custom-nodes", "start-option", "gpu"]
"""What can be at fault: options of the user's, custom nodes, something that an option of ComfyUI switches off, the GPU
with its driver and torch build."""

Option = tuple[str, ...]
"""One option of ComfyUI with its values."""

MEMORY_STREAMING, VAE_IN_32_BITS, CPU = "--disable-dynamic-vram", "--fp32-vae", "--cpu"
_SWITCHES = {
    MEMORY_STREAMING: "without ComfyUI's memory streaming (dynamic VRAM)",
    VAE_IN_32_BITS: "with the VAE in 32 bits",
}
_BLAMED = {
    MEMORY_STREAMING: "ComfyUI's memory streaming (dynamic VRAM)",
    VAE_IN_32_BITS: "the VAE in fewer than 32 bits",
}
_MOST_NAMED = 3  # custom nodes of one try
_MOST_SUGGESTED = 2  # options that the first failure's own explanation names


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a try made no good image."""

    code: str  # the cause of an error, or the code of a finding
    message: str
    flags: tuple[str, ...] = ()  # options of ComfyUI that its explanation names
    is_late: bool = False  # the first image was good, and a later one was not


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How ComfyUI is started for one try."""

    options: tuple[Option, ...] = ()  # of the user's
    nodes: tuple[str, ...] | None = None  # the custom nodes that are on; None: as the user has them
    extra: Option = ()  # of ours
    is_small: bool = False  # the smallest image, because it takes long


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One start of ComfyUI, and what came of it."""

    what: str  # "without custom nodes"
    setup: Setup
    trouble: Trouble | None = None  # None: the image came
    is_unclear: bool = False  # it took too long to say
    seconds: float = 0.0  # of the whole try, its start included
    log_path: str | None = None
    was_known: bool = False  # from a diagnosis that was interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class Guilty:
    """A layer that is at fault, and how the image comes without it."""

    layer: Layer
    name: str  # of the layer, as the subject of a sentence
    groups: tuple[tuple[str, ...], ...] = ()  # options or nodes that fail together, the decisive one first
    suspects: tuple[str, ...] = ()  # where the search ended early: one of these is guilty
    is_confirmed: bool = True  # with everything else and without these, the image came
    cure: Setup  # with which the image came


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """How the user starts ComfyUI, and what it can be told."""

    options: tuple[Option, ...] = ()
    nodes: tuple[str, ...] = ()  # the custom nodes that are on
    are_nodes_listed: bool = False  # the user's own options list them
    known: frozenset[str] = frozenset()  # the options that this ComfyUI has; empty: not known
    is_on_cpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What is known of a failure; of one that was interrupted, so far."""

    tries: tuple[Try, ...] = ()
    guilty: tuple[Guilty, ...] = ()
    is_over: bool = False
    options: tuple[Option, ...] = ()
    options_from: str | None = None
    nodes: tuple[str, ...] = ()

    @property
    def first(self) -> Try | None:
        """The try under the user's own conditions."""
        return self.tries[0] if self.tries else None

    @property
    def cure(self) -> Setup | None:
        """How ComfyUI is started so that the image comes, with as much as possible left in; None: nothing is known."""
        if len(self.guilty) > 1 and self.tries[-1].trouble is None:
            return self.tries[-1].setup  # what is left of options and nodes together
        return self.guilty[0].cure if self.guilty else None

    @property
    def is_healthy(self) -> bool:
        """Whether the image came under the user's own conditions."""
        return self.first is not None and self.first.trouble is None


Steps = Generator[Try, Try, None]
"""Yields a try that was not made yet; is sent the same with what came of it."""


@dataclass(slots=True)
class Diagnosing:
    """A diagnosis while it goes on; `diagnosis` is what is known so far."""

    situation: Situation
    options_from: str | None = None
    _tries: list[Try] = field(default_factory=list)
    _guilty: list[Guilty] = field(default_factory=list)
    _open: Guilty | None = None  # by the search that goes on
    _search_of: CulpritSearch | None = None
    _is_over: bool = False

    @property
    def diagnosis(self) -> Diagnosis:
        """What is known so far."""
        guilty = list(self._guilty)
        if self._open is not None and self._search_of is not None:
            guilty.append(_found(self._open, self._search_of))
        situation = self.situation
        return Diagnosis(
            tries=tuple(self._tries),
            guilty=tuple(guilty),
            is_over=self._is_over,
            options=situation.options,
            options_from=self.options_from,
            nodes=situation.nodes,
        )

    def steps(self) -> Steps:
        """Yield what to try next, until the guilty layer is known or nothing is left to try."""
        situation = self.situation
        own = Setup(options=situation.options, nodes=situation.nodes if situation.are_nodes_listed else None)
        first = yield from self._try("as you start it", own)
        if first is not None:
            yield from self._layers(own, first)
        self._is_over = True

    def _layers(self, own: Setup, first: Trouble) -> Steps:
        situation = self.situation
        if situation.options:
            setup = replace(own, options=())
            if (yield from self._try("without your options", setup)) is None:
                yield from self._search_options(own, setup)
                return
        if situation.nodes:
            setup = replace(own, nodes=())
            if (yield from self._try("without custom nodes", setup)) is None:
                yield from self._search_nodes(own)
                return
        bare = Setup(nodes=() if situation.nodes else own.nodes)
        has_both = bool(situation.options and situation.nodes)
        if has_both and (yield from self._try("without both", bare)) is None:  # each of them is guilty by itself
            yield from self._search_nodes(replace(own, options=()))
            yield from self._search_options(replace(own, nodes=()), bare)
            yield from self._try("with what is left of both", self._merged_cure())
            return
        if not situation.is_on_cpu:
            yield from self._switches(own, bare, first)

    def _merged_cure(self) -> Setup:
        """Return what is left of custom nodes and of options once the guilty ones of both are gone."""
        nodes, options = (each.cure for each in self._guilty)
        return Setup(options=options.options, nodes=nodes.nodes)

    def _switches(self, own: Setup, bare: Setup, first: Trouble) -> Steps:
        """Switch off one thing after the other in the bare ComfyUI, last the GPU."""
        suggested = [each for each in first.flags if each not in {*_SWITCHES, CPU}]
        switches = [each for each in suggested if each in self.situation.known and _is_switch(each)][:_MOST_SUGGESTED]
        switches += [each for each in _SWITCHES if each in self.situation.known or not self.situation.known]
        for each in switches:
            setup = replace(bare, extra=(each,))
            if (yield from self._try(_SWITCHES.get(each, f"with {each}"), setup)) is None:
                name = _BLAMED.get(each, f"what {each} switches off")
                whole = replace(own, extra=(each,))
                if whole != setup and (yield from self._try(f"as you start it, with {each}", whole)) is None:
                    setup = whole
                self._guilty.append(Guilty(layer="start-option", name=name, groups=((each,),), cure=setup))
                return
        setup = replace(bare, extra=(CPU,), is_small=True)
        yield from self._try("on the CPU, 256 x 256", setup)
        last = self._tries[-1]
        if last.trouble is None and not last.is_unclear:
            self._guilty.append(Guilty(layer="gpu", name="the GPU, its driver or the torch build for it", cure=setup))

    def _search_options(self, failing: Setup, passing: Setup) -> Steps:
        parts = {" ".join(each): each for each in failing.options}

        def setup_of(names: Collection[str]) -> Setup:
            return replace(passing, options=tuple(parts[each] for each in parts if each in names))

        def words_of(names: Sequence[str]) -> str:
            return f"with {listing(list(names))} alone" if len(names) < len(parts) else "with your options"

        yield from self._search("options", "your options", tuple(parts), setup_of, words_of)

    def _search_nodes(self, failing: Setup) -> Steps:
        nodes = self.situation.nodes

        def setup_of(names: Collection[str]) -> Setup:
            return replace(failing, nodes=tuple(each for each in nodes if each in names))

        def words_of(names: Sequence[str]) -> str:
            if len(names) == 1:
                return f"with the custom node {names[0]} alone"
            if len(names) == len(nodes) - 1:
                return f"without the custom node {next(each for each in nodes if each not in names)}"
            if len(names) <= _MOST_NAMED:
                return f"with the custom nodes {listing(list(names))} alone"
            return f"with {len(names)} of {len(nodes)} custom nodes"

        yield from self._search("custom-nodes", "custom nodes", nodes, setup_of, words_of)

    def _search(
        self,
        layer: Layer,
        name: str,
        parts: tuple[str, ...],
        setup_of: Callable[[Collection[str]], Setup],
        words_of: Callable[[Sequence[str]], str],
    ) -> Steps:
        search = self._search_of = CulpritSearch(parts)
        self._open = Guilty(layer=layer, name=name, cure=setup_of(()))
        asking = search.tries()
        asked = next(asking, None)
        while asked is not None:
            fails = (yield from self._try(words_of(asked), setup_of(asked))) is not None
            try:
                asked = asking.send(fails)
            except StopIteration:
                asked = None
        found = _found(self._open, search)
        self._guilty.append(replace(found, cure=setup_of(search.rest)) if search.is_over else found)
        self._open = None

    def _try(self, what: str, setup: Setup) -> Generator[Try, Try, Trouble | None]:
        done = yield Try(what=what, setup=setup)
        self._tries.append(done)
        return done.trouble


def _found(guilty: Guilty, search: CulpritSearch) -> Guilty:
    return replace(guilty, groups=tuple(search.groups), suspects=search.suspects, is_confirmed=search.is_over)


def _is_switch(option: str) -> bool:
    """Whether an option needs no value, as those that switch something off or on."""
    return option.startswith(("--disable-", "--cpu-", "--cache-none", "--fast-disk", "--force-", "--fp32-"))


# --- in sentences ----------------------------------------------------------------------------------


def sentence(guilty: Guilty) -> str:
    """Return who is at fault and how that was seen, as a sentence or two."""
    name = f"{guilty.name[:1].upper()}{guilty.name[1:]}"
    if guilty.layer == "start-option":
        return f"{name} is at fault: with {guilty.groups[0][0]} the test image comes."
    if guilty.layer == "gpu":
        return f"{name} is at fault: on the CPU the test image comes."
    noun = "option" if guilty.layer == "options" else "custom node"
    said = [_group_words(each, noun) for each in guilty.groups]
    if guilty.suspects:
        which = f"Another {noun} that is" if guilty.groups else f"The {noun} that is"
        said.append(
            f"{which} at fault is among {listing(list(guilty.suspects))}; the search ended before it was found."
        )
    elif guilty.is_confirmed:
        said.append(f"Without {listing([each[0] for each in guilty.groups])} it comes.")
    else:
        said.append("Whether it comes without that was not tried.")
    return " ".join(said)


def _group_words(group: tuple[str, ...], noun: str) -> str:
    if len(group) == 1:
        return f"The {noun} {group[0]} is at fault: with this one alone the test image fails."
    names = listing(list(group))
    return f"The {noun}s {names} are at fault together: with all of them the test image fails, with fewer it comes."


def conclusion(diagnosis: Diagnosis) -> str:
    """Return what the tries came to, where no layer is guilty."""
    if diagnosis.is_healthy:
        number = len(diagnosis.nodes)
        with_nodes = f", with {count(number, 'custom node')}" if number else ""
        return f"The test image comes as you start ComfyUI{with_nodes}: there is nothing to find."
    if not diagnosis.tries:
        return "Nothing was tried."
    if not diagnosis.is_over:
        return f"{count(len(diagnosis.tries), 'start')} of ComfyUI did not show yet what is guilty."
    tried = listing([each.what for each in diagnosis.tries[1:]])
    also = f"It fails {tried} as well" if tried else "There is nothing that could be left out"
    return f"{also}: the model files, ComfyUI itself or its packages are at fault."
