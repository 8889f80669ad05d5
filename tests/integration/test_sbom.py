"""The list of what the program is made of says what the lock says; uv writes it without a network."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from scripts import check_lock, make_sbom

LISTED = check_lock.parse_requirements((make_sbom.ROOT / "scripts/locked/run.txt").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return make_sbom.named(make_sbom.exported(), make_sbom.version_of())


def test_it_names_the_program_and_every_locked_package_with_its_hashes(document: dict[str, Any]) -> None:
    assert make_sbom.complaints(document, LISTED) == []
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    assert document["metadata"]["component"]["purl"] == f"pkg:pypi/klein-setup@{make_sbom.version_of()}"
    assert {"requests", "huggingface-hub", "rich"} <= {each["name"] for each in document["components"]}
    assert {"pytest", "pip-audit", "uv"}.isdisjoint(each["name"] for each in document["components"])


def test_each_difference_is_named(document: dict[str, Any]) -> None:
    wrong = copy.deepcopy(document)
    gone = wrong["components"].pop(0)
    other = next(each for each in wrong["components"] if each["name"] == "requests")
    other["externalReferences"][0]["hashes"][0]["content"] = "00" * 32
    wrong["components"].append({"name": "surplus", "version": "1.0"})
    del wrong["metadata"]["component"]["version"]
    assert make_sbom.complaints(wrong, LISTED) == [
        "klein-setup has no version",
        f"{gone['name']} {gone['version']} is missing",
        "surplus 1.0 is needed by nothing",
        f"requests {other['version']} has other hashes",
    ]
