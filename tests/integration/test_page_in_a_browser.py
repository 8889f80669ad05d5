"""The pages in headless Chromium: no violation of axe-core, nothing wider than the screen, a policy that holds.

Without a Chromium on PATH these tests are skipped; ``scripts/run_tests.py`` installs one where it can.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from provisioner.report.html.fleet_page import render_fleet_page
from provisioner.report.html.page import render_page
from tests.support.fleets import a_fleet
from tests.support.report_documents import damaged, document, measured, plan_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on PATH")

MADE_AT = "2026-11-24T09:10:00Z"
DOCUMENTS: Mapping[str, Mapping[str, object]] = {
    "measured": measured(),
    "damaged": damaged(),
    "planned": document("plan", "planned", plan=plan_of(statuses=("missing", "missing"))),
    "failed": {
        "command": "install",
        "status": "failed",
        "errors": [{"code": "x", "message": "m" * 300, "hint": "h", "context": {"tail": ["line " * 60]}}],
    },
    "empty": {},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of this system, started once."""
    from playwright.sync_api import sync_playwright

    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=not is_root)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every page as a file."""
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (64, 64), (180, 90, 40)).save(data, "PNG")
    where = tmp_path_factory.mktemp("pages")
    for name, doc in DOCUMENTS.items():
        text = render_page(doc, image=data.getvalue(), made_at=MADE_AT)
        (where / f"{name}.html").write_text(text, encoding="utf-8")
    (where / "fleet.html").write_text(
        render_fleet_page(a_fleet(), made_at=MADE_AT, manifests=("lab.yaml",)), encoding="utf-8"
    )
    return where


def opened(browser: Browser, path: Path, *, width: int = 1280, dark: bool = False) -> tuple[Page, list[str]]:
    """Return a page in a context of its own, and what its console says from now on."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    return page, said


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", [*DOCUMENTS, "fleet"])
def test_axe_finds_no_violation_and_nothing_is_wider_than_the_screen(
    browser: Browser, folder: Path, name: str, dark: bool
) -> None:
    page, said = opened(browser, folder / f"{name}.html", dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    for width in (1280, 800, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(SCROLLING) == []
        if width != 800:
            assert violations(page) == []
    assert said == []
    page.context.close()


SCROLLING = """[...document.querySelectorAll('main *')].filter(each => each.scrollWidth > each.clientWidth + 1
    && ['auto', 'scroll'].includes(getComputedStyle(each).overflowX)).map(each => each.outerHTML)"""


def violations(page: Page) -> list[tuple[str, list[str]]]:
    """Return the rules of axe-core that the page breaks, and where."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response
    assert len(found["passes"]) > 5
    return [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]


def test_axe_would_notice(browser: Browser, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    text = (folder / "measured.html").read_text(encoding="utf-8")
    path.write_text(text.replace(' lang="en"', "").replace(" alt=", " title="), encoding="utf-8")
    page, _ = opened(browser, path)
    assert {"html-has-lang"} <= {rule for rule, _ in violations(page)}
    page.context.close()


def test_the_button_copies_what_stands_beside_it(browser: Browser, folder: Path) -> None:
    page, said = opened(browser, folder / "measured.html")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.locator("section.next button.copy").first
    button.click()
    page.wait_for_function("document.querySelector('section.next button.copy').textContent === 'Copied'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("klein-setup verify --set fp8 --comfyui ")
    assert said == []
    page.context.close()


def test_where_the_clipboard_is_refused_the_old_way_copies(browser: Browser, folder: Path) -> None:
    page, said = opened(browser, folder / "measured.html")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')) }")
    page.locator("section.next button.copy").first.click()
    page.wait_for_function("document.querySelector('section.next button.copy').textContent === 'Copied'")
    assert page.evaluate("getSelection().toString()").startswith("klein-setup verify ")
    assert said == []
    page.context.close()


def test_the_policy_stops_a_script_and_a_style_that_are_not_ours(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    text = (folder / "measured.html").read_text(encoding="utf-8")
    path = tmp_path / "injected.html"
    path.write_text(
        text.replace("<main>", "<main><p id='p' style='color:red'>x</p><script>window.evil = 1</script>", 1),
        encoding="utf-8",
    )
    page, said = opened(browser, path)
    assert page.evaluate("window.evil") is None
    assert page.evaluate("getComputedStyle(document.getElementById('p')).color") != "rgb(255, 0, 0)"
    assert len([each for each in said if "Content Security Policy" in each]) >= 2
    page.context.close()


def test_without_script_there_is_no_button_and_everything_else(browser: Browser, folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "damaged.html").as_uri())
    assert page.locator("button.copy").count() > 0
    assert not any(button.is_visible() for button in page.locator("button.copy").all())
    assert page.get_by_text("klein-setup repair").first.is_visible()
    context.close()
