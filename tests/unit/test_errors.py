"""Every error has a code of its own and the exit status of its kind; docs/ says so too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from provisioner.core import errors
from provisioner.core.errors import KleinError
from scripts.check_readme import EXIT_STATUSES, complaints_about_exit_table

# One status per kind of failure: part of the interface.  A class below one of these keeps its status.
STATUS_OF_KIND = {
    errors.UsageError: 2,
    errors.ManifestError: 2,
    errors.UnsupportedMachineError: 3,
    errors.StorageError: 4,
    errors.NetworkError: 5,
    errors.AccessError: 6,
    errors.IntegrityError: 7,
    errors.CommandError: 8,
    errors.SmokeTestError: 9,
    errors.LockHeldError: 10,
}


def descendants(base: type[KleinError]) -> Iterator[type[KleinError]]:
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
        yield from descendants(child)


EVERY_ERROR: list[type[KleinError]] = sorted(set(descendants(KleinError)), key=lambda error: error.__name__)


def test_the_walk_finds_every_class_of_the_module() -> None:
    named = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, KleinError)}
    assert set(EVERY_ERROR) == named - {KleinError}


def test_codes_are_unique() -> None:
    counted = Counter([KleinError.code, *(error.code for error in EVERY_ERROR)])
    assert [code for code, times in counted.items() if times > 1] == []


@pytest.mark.parametrize("error", EVERY_ERROR)
def test_a_code_is_kebab_case(error: type[KleinError]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", error.code)


@pytest.mark.parametrize("error", EVERY_ERROR)
def test_the_exit_status_is_that_of_its_kind(error: type[KleinError]) -> None:
    kinds = [kind for kind in STATUS_OF_KIND if issubclass(error, kind)]
    assert [STATUS_OF_KIND[kind] for kind in kinds] == [error.exit_status]


@pytest.mark.parametrize("error", EVERY_ERROR)
def test_every_error_says_when_it_is_raised(error: type[KleinError]) -> None:
    assert (error.__doc__ or "").strip()


@pytest.mark.parametrize("error", EVERY_ERROR)
def test_message_hint_and_facts_stay_apart(error: type[KleinError]) -> None:
    raised = error("it broke", hint="mend it", path="a/b")
    assert str(raised) == "it broke"
    assert raised.hint == "mend it"
    assert raised.context["path"] == "a/b"


def test_a_manifest_error_keeps_every_issue_for_the_document() -> None:
    raised = errors.ManifestError("2 issues", issues=("one", "two"))
    assert raised.issues == ("one", "two")
    assert raised.context["issues"] == ["one", "two"]


def test_statuses_that_are_no_error_are_not_taken_by_one() -> None:
    reserved = {errors.EXIT_OK, errors.EXIT_FINDINGS, errors.EXIT_DEFECT, errors.EXIT_INTERRUPTED}
    assert not {error.exit_status for error in EVERY_ERROR} & (reserved | {errors.EXIT_TERMINATED})


def test_the_exit_table_of_the_readme_is_complete() -> None:
    assert complaints_about_exit_table(EXIT_STATUSES.read_text(encoding="utf-8")) == []


ROWS = ["| exit | code | when |", "|---|---|---|"]


def test_a_readme_without_the_table_is_refused() -> None:
    assert complaints_about_exit_table("# klein-setup\n") != []


def test_a_missing_status_a_wrong_code_and_a_stale_row_are_named() -> None:
    table = "\n".join([*ROWS, "| 0 | | fine |", "| 2 | `usage`, `made-up` | wrong |", "| 99 | | never |", ""])
    found = "\n".join(complaints_about_exit_table(table))
    assert "exit status 3 is missing" in found
    assert "`made-up`" in found
    assert "`manifest-invalid`" in found
    assert "exit status 99" in found
