"""Pages to link to: at the pinned commit, without queries, and only addresses of the web."""

from __future__ import annotations

import pytest

from provisioner.core.models import HubFile, Source, UrlFile
from provisioner.report.web_addresses import commit_page, is_web_address, source_page, template_page
from tests.support.builders import artifact


@pytest.mark.parametrize(
    ("sources", "page"),
    [
        ((), None),
        (
            (HubFile(repo_id="org/n", revision="c0de", filename="vae/ü.bin"), UrlFile(url="https://h.example")),
            "https://huggingface.co/org/n/blob/c0de/vae/%C3%BC.bin",
        ),
        ((UrlFile(url="https://h.example/a?X-Sig=1#b"),), "https://h.example/a"),
    ],
)
def test_the_page_of_a_file_is_that_of_its_first_source(sources: tuple[Source, ...], page: str | None) -> None:
    assert source_page(artifact(sources=sources)) == page


@pytest.mark.parametrize("commit", ["", "main", "C0DE" * 10, "c0de" * 9, "../" * 14])
def test_what_is_no_commit_has_no_page(commit: str) -> None:
    assert commit_page(commit) == ""


def test_a_template_cannot_leave_its_folder() -> None:
    assert template_page("../a b.json").endswith("/templates/..%2Fa%20b.json")


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("http://127.0.0.1:8188/", True),
        ("HTTPS://A.example", True),
        ("https://", False),
        ("https://[x", False),
        ("\tjavascript:alert(1)", False),
        ("", False),
    ],
)
def test_only_addresses_of_the_web_are_linked(text: str, is_one: bool) -> None:
    assert is_web_address(text) is is_one
