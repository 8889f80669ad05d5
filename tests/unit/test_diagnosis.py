"""Which layer is blamed, in how many starts, and in which words: against failures that are known."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from provisioner.smoke_test.culprits import tries_for_one
from provisioner.smoke_test.diagnosis import (
    CPU,
    MEMORY_STREAMING,
    VAE_IN_32_BITS,
    Diagnosing,
    Diagnosis,
    Guilty,
    Setup,
    Situation,
    Trouble,
    Try,
    conclusion,
    sentence,
)

NODES = tuple(f"n{each:02}" for each in range(16))
OPTIONS = (("--fast", "a"), ("--use-sage-attention",), ("--x",))
KNOWN = frozenset({MEMORY_STREAMING, VAE_IN_32_BITS, CPU, "--disable-pinned-memory"})
BROKEN = Trouble(code="server-died", message="It ended.")


def diagnosed(
    situation: Situation,
    fails: Callable[[Setup], bool],
    *,
    trouble: Trouble = BROKEN,
    is_slow_on_cpu: bool = False,
    most: int = 1000,
) -> Diagnosis:
    """Return the diagnosis of a ComfyUI that fails as told; after `most` tries it is interrupted."""
    diagnosing = Diagnosing(situation, options_from="run.bat")
    steps = diagnosing.steps()
    asked: Try | None = next(steps)
    while asked is not None and len(diagnosing.diagnosis.tries) < most:
        is_unclear = is_slow_on_cpu and asked.setup.is_small
        failed = trouble if is_unclear or fails(asked.setup) else None
        try:
            asked = steps.send(Try(what=asked.what, setup=asked.setup, trouble=failed, is_unclear=is_unclear))
        except StopIteration:
            asked = None
    return diagnosing.diagnosis


def nodes_on(setup: Setup, situation: Situation) -> set[str]:
    return set(situation.nodes if setup.nodes is None else setup.nodes)


def tried(diagnosis: Diagnosis) -> list[str]:
    return [each.what for each in diagnosis.tries]


def test_an_image_that_comes_needs_one_start_and_nobody_is_guilty() -> None:
    found = diagnosed(Situation(options=OPTIONS, nodes=NODES), lambda setup: False)
    assert (tried(found), found.guilty, found.is_over, found.is_healthy) == (["as you start it"], (), True, True)
    assert found.tries[0].setup == Setup(options=OPTIONS, nodes=None)
    assert conclusion(found) == (
        "The test image comes as you start ComfyUI, with 16 custom nodes: there is nothing to find."
    )
    assert found.cure is None
    bare = diagnosed(Situation(), lambda setup: False)
    assert conclusion(bare) == "The test image comes as you start ComfyUI: there is nothing to find."


@pytest.mark.parametrize("culprit", NODES)
def test_the_guilty_one_of_16_custom_nodes_is_named_after_6_starts_and_confirmed_with_2(culprit: str) -> None:
    situation = Situation(nodes=NODES, known=KNOWN)
    found = diagnosed(situation, lambda setup: culprit in nodes_on(setup, situation))
    assert [each.layer for each in found.guilty] == ["custom-nodes"]
    assert found.guilty[0].groups == ((culprit,),)
    assert len(found.tries) <= 2 + tries_for_one(16) == 8
    early = diagnosed(situation, lambda setup: culprit in nodes_on(setup, situation), most=6)
    assert early.guilty[0].groups == ((culprit,),) or early.guilty[0].suspects == (culprit,)
    said = sentence(found.guilty[0])
    assert said.startswith(f"The custom node {culprit} is at fault: with this one alone")
    assert said.endswith(f"Without {culprit} it comes.")
    assert found.cure == Setup(nodes=tuple(each for each in NODES if each != culprit))


def test_the_custom_nodes_that_the_users_options_list_are_the_ones_that_count() -> None:
    situation = Situation(nodes=("a", "b"), are_nodes_listed=True)
    found = diagnosed(situation, lambda setup: "b" in nodes_on(setup, situation))
    assert found.tries[0].setup.nodes == ("a", "b")
    assert found.guilty[0].groups == (("b",),)
    dark = diagnosed(Situation(are_nodes_listed=True, options=(("--x",),)), lambda setup: bool(setup.options))
    assert [each.setup.nodes for each in dark.tries] == [(), ()]  # all were off before, and stay off


@pytest.mark.parametrize("culprit", OPTIONS)
def test_the_guilty_option_is_named_and_the_others_stay(culprit: tuple[str, ...]) -> None:
    found = diagnosed(Situation(options=OPTIONS, nodes=NODES), lambda setup: culprit in setup.options)
    assert [each.layer for each in found.guilty] == ["options"]
    assert found.guilty[0].groups == ((" ".join(culprit),),)
    assert found.cure == Setup(options=tuple(each for each in OPTIONS if each != culprit), nodes=None)
    assert sentence(found.guilty[0]).startswith(f"The option {' '.join(culprit)} is at fault")
    assert len(found.tries) <= 2 + tries_for_one(3)


def test_a_single_option_needs_no_search() -> None:
    found = diagnosed(Situation(options=(("--x",),)), lambda setup: bool(setup.options))
    assert tried(found) == ["as you start it", "without your options"]
    assert found.guilty[0].groups == (("--x",),)


def test_options_and_custom_nodes_that_are_guilty_each_by_itself_are_both_named() -> None:
    situation = Situation(options=OPTIONS, nodes=NODES)

    def fails(setup: Setup) -> bool:
        return "n07" in nodes_on(setup, situation) or ("--x",) in setup.options

    found = diagnosed(situation, fails)
    assert [(each.layer, each.groups) for each in found.guilty] == [
        ("custom-nodes", (("n07",),)),
        ("options", (("--x",),)),
    ]
    assert tried(found)[:4] == ["as you start it", "without your options", "without custom nodes", "without both"]
    assert tried(found)[-1] == "with what is left of both"
    assert found.cure == Setup(options=OPTIONS[:2], nodes=tuple(each for each in NODES if each != "n07"))
    assert not fails(found.cure)


def test_an_option_that_fails_only_with_a_custom_node_is_enough_to_leave_out() -> None:
    situation = Situation(options=OPTIONS, nodes=NODES)
    found = diagnosed(situation, lambda setup: "n07" in nodes_on(setup, situation) and ("--x",) in setup.options)
    assert found.guilty[0].groups == (("--x",),)


def test_two_custom_nodes_that_fail_only_together_are_named_together() -> None:
    situation = Situation(nodes=NODES)
    found = diagnosed(situation, lambda setup: {"n03", "n12"} <= nodes_on(setup, situation))
    assert [set(each) for each in found.guilty[0].groups] == [{"n03", "n12"}]
    said = sentence(found.guilty[0])
    assert "n12 and n03 are at fault together: with all of them" in said
    assert found.cure is not None
    assert "n12" not in (found.cure.nodes or ())
    assert "with the custom nodes n03 and n12 alone" in tried(found)
    assert "with 8 of 16 custom nodes" in tried(found)


@pytest.mark.parametrize(
    ("word", "name"),
    [(MEMORY_STREAMING, "ComfyUI's memory streaming (dynamic VRAM)"), (VAE_IN_32_BITS, "The VAE in fewer than 32")],
)
def test_what_a_switch_turns_off_is_blamed_in_the_bare_comfyui(word: str, name: str) -> None:
    situation = Situation(options=OPTIONS, nodes=NODES, known=KNOWN)
    found = diagnosed(situation, lambda setup: word not in setup.extra)
    assert found.guilty[0].layer == "start-option"
    assert sentence(found.guilty[0]) == (f"{sentence(found.guilty[0])}")
    assert sentence(found.guilty[0]).startswith(name)
    assert tried(found)[-1] == f"as you start it, with {word}"  # nothing else has to go
    assert found.cure == Setup(options=OPTIONS, extra=(word,))
    also = diagnosed(situation, lambda setup: word not in setup.extra or setup.nodes is None)
    assert also.cure == Setup(nodes=(), extra=(word,))


def test_only_switches_that_this_comfyui_has_are_tried() -> None:
    found = diagnosed(Situation(known=frozenset({VAE_IN_32_BITS})), lambda setup: True)
    assert tried(found) == ["as you start it", "with the VAE in 32 bits", "on the CPU, 256 x 256"]
    unknown = diagnosed(Situation(), lambda setup: True)  # it could not be read which it has
    assert len(tried(unknown)) == 4


def test_what_the_failure_itself_suggests_is_tried_first() -> None:
    trouble = Trouble(code="x", message="", flags=("--disable-pinned-memory", "--reserve-vram", CPU, "--disable-not"))
    found = diagnosed(
        Situation(known=KNOWN), lambda setup: "--disable-pinned-memory" not in setup.extra, trouble=trouble
    )
    assert tried(found) == ["as you start it", "with --disable-pinned-memory"]
    assert sentence(found.guilty[0]) == (
        "What --disable-pinned-memory switches off is at fault: with --disable-pinned-memory the test image comes."
    )


def test_an_image_that_comes_on_the_cpu_blames_the_gpu() -> None:
    found = diagnosed(Situation(known=KNOWN), lambda setup: CPU not in setup.extra)
    assert found.guilty[0].layer == "gpu"
    assert found.tries[-1].setup == Setup(extra=(CPU,), is_small=True)
    assert sentence(found.guilty[0]).startswith("The GPU, its driver or the torch build for it is at fault: on the CPU")


def test_a_cpu_that_is_too_slow_says_nothing() -> None:
    found = diagnosed(Situation(known=KNOWN), lambda setup: True, is_slow_on_cpu=True)
    assert (found.guilty, found.is_over) == ((), True)


def test_on_a_cpu_no_switch_of_the_gpu_is_tried() -> None:
    found = diagnosed(Situation(nodes=("a",), known=KNOWN, is_on_cpu=True), lambda setup: True)
    assert tried(found) == ["as you start it", "without custom nodes"]
    assert conclusion(found) == (
        "It fails without custom nodes as well: the model files, ComfyUI itself or its packages are at fault."
    )
    alone = diagnosed(Situation(is_on_cpu=True), lambda setup: True)
    assert conclusion(alone).startswith("There is nothing that could be left out: ")


def test_what_is_known_when_it_is_interrupted_stands_there() -> None:
    situation = Situation(nodes=NODES)

    def fails(setup: Setup) -> bool:
        return "n05" in nodes_on(setup, situation)

    assert conclusion(diagnosed(situation, fails, most=0)) == "Nothing was tried."
    first = diagnosed(situation, fails, most=1)
    assert (first.is_over, first.guilty) == (False, ())
    assert conclusion(first) == "1 start of ComfyUI did not show yet what is guilty."
    later = diagnosed(situation, fails, most=4)
    assert later.guilty[0].suspects == ("n04", "n05", "n06", "n07")
    assert later.cure == Setup(nodes=())  # so the image came
    said = sentence(later.guilty[0])
    assert said == (
        "The custom node that is at fault is among n04, n05, n06 and n07; the search ended before it was found."
    )


def test_the_words_for_a_search_that_ended_early() -> None:
    found = Guilty(layer="custom-nodes", name="custom nodes", groups=(("a",),), suspects=("b", "c"), cure=Setup())
    assert sentence(found).endswith(
        "Another custom node that is at fault is among b and c; the search ended before it was found."
    )
    untried = Guilty(layer="custom-nodes", name="x", groups=(("a",),), is_confirmed=False, cure=Setup())
    assert sentence(untried).endswith("Whether it comes without that was not tried.")


def test_random_culprits_are_always_out_of_the_cure() -> None:
    chance = random.Random(2)
    for _ in range(200):
        nodes = tuple(f"n{each:02}" for each in range(chance.randint(0, 64)))
        options = tuple((f"--o{each}",) for each in range(chance.randint(0, 4)))
        parts = [*nodes, *(each[0] for each in options)]
        if not parts:
            continue
        groups = [set(chance.sample(parts, min(len(parts), chance.randint(1, 2)))) for _ in range(2)]
        situation = Situation(options=options, nodes=nodes, is_on_cpu=True)

        def fails(setup: Setup, situation: Situation = situation, groups: list[set[str]] = groups) -> bool:
            there = nodes_on(setup, situation) | {each[0] for each in setup.options}
            return any(group <= there for group in groups)

        found = diagnosed(situation, fails)
        assert found.is_over
        assert found.guilty
        assert found.cure is not None
        assert not fails(found.cure)
