"""The files for people who join: every path they name exists, and what they say twice is the same in both places."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from provisioner.cli.arguments import COMMANDS, build_parser
from provisioner.comfyui.server.known_failures import known_failures
from provisioner.core.errors import ERRORS_URL, UsageError
from provisioner.ui.console import ISSUES_URL, issues_url
from provisioner.ui.problems import defect_blocks
from provisioner.ui.text import laid_out
from scripts.check_readme import every_error
from scripts.make_reference import pages as made_pages
from scripts.make_reference import told
from tests.support import documented
from tests.support.documented import parse_line
from tests.unit.test_architecture import FLOORS, MODULES, room_of

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "manifests" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
    *FORMS,
    WORKFLOW,
]
TOP = "provisioner|tests|scripts|manifests|docs|\\.github|\\.ci"
PATH = re.compile(rf"(?<![\w./~-])(?:{TOP})/(?:[\w-]|\.(?=\w)|/)*")  # ends before `<name>`, which stands for a name
FILE = re.compile(r"`([\w-]+\.(?:md|toml|lock|py))`")
FILE_NAMES = {path.name for pattern in ("*", "provisioner/**/*", "scripts/*") for path in ROOT.glob(pattern)}
FILE_NAMES |= {"klein-setup.toml", "klein-setup.py"}  # the user's own, and a bundle's
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
COMMAND = re.compile(rf"(?:`klein-setup|scripts/klein_setup\.py) ((?:{'|'.join(COMMANDS)})\b[^`#\n]*)")
NAME_IN_FILE = re.compile(r"`(provisioner/[\w/]+\.py)` \(`(\w+)`\)")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def drawn_floors(text: str) -> list[set[str]]:
    """Return the rooms between each two lines of the drawing."""
    drawing = text.partition("```text\n")[2].partition("```")[0]
    floors: list[set[str]] = []
    for line in drawing.splitlines():
        if line.startswith("+"):
            floors.append(set())
        else:
            floors[-1].add(line.split("|")[1].strip())
    return [floor for floor in floors if floor]


def missing_paths(text: str) -> Iterator[str]:
    """Yield each path that a text names and the repository does not have; a bare file name may be of any folder."""
    yield from (name for name in PATH.findall(text) if not (ROOT / name).exists())
    yield from (name for name in FILE.findall(text) if name not in FILE_NAMES)


@each_page
def test_every_path_that_is_named_exists(page: Path) -> None:
    assert list(missing_paths(page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("see `provisioner/gone.py`.", ["provisioner/gone.py"]),
        ("run scripts/gone.py, or `tests/unit/`.", ["scripts/gone.py"]),
        ("a file `manifests/<id>.yaml` in `manifests/`", []),
        ("`GONE.md` and `CHANGELOG.md`", ["GONE.md"]),
        ("https://example.org/docs/x and ComfyUI/tests/y", []),
    ],
)
def test_a_path_that_is_gone_is_found(text: str, missing: list[str]) -> None:
    assert list(missing_paths(text)) == missing


@each_page
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@each_page
def test_a_name_that_is_said_to_be_in_a_file_is_in_it(page: Path) -> None:
    named = NAME_IN_FILE.findall(page.read_text(encoding="utf-8"))
    gone = [
        (path, name) for path, name in named if not re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert gone == []


@each_page
def test_every_command_that_is_shown_can_be_typed(page: Path) -> None:
    for line in COMMAND.findall(page.read_text(encoding="utf-8")):
        if not re.search(r"[A-Z]{2}|\.\.\.", line):  # `--look-in DIR` stands for a command and is none
            build_parser().parse_args(shlex.split(line))  # raises UsageError


# --- the blocks and options of README.md and docs/ ----------------------------------------------------------


OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]+)")
OF_OTHER_PROGRAMS = {
    "--check",
    "--forks",
    "--lowvram",
    "--base-directory",
    "--require-hashes",
    "--models-directory",
    "--extra-model-paths-config",
    *(re.findall(OPTION, flag.name)[0] for flag in known_failures().flags),  # as they are found in prose
}
FOR_MAINTAINERS = ("docs/decisions/", "docs/release.md", "docs/architecture.md")

each_shown = pytest.mark.parametrize("page", documented.PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return every option of a parser and of its commands."""
    found: set[str] = set()
    for action in parser._actions:
        found.update(each for each in action.option_strings if each.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            found.update(*(options_of(each) for each in action.choices.values()))
    return found


@each_shown
def test_every_block_says_what_it_is(page: Path) -> None:
    names = [name for name, _ in documented.blocks(page.read_text(encoding="utf-8"))]
    for_readers = not page.relative_to(ROOT).as_posix().startswith(FOR_MAINTAINERS)
    assert [name for name in names if for_readers and name not in documented.NAMES] == []


@each_shown
def test_the_program_takes_every_command_of_a_block(page: Path) -> None:
    for typed in documented.commands(page):
        if typed.arguments is not None:
            meant = [{"N": "1", "URL": "http://127.0.0.1:8188"}.get(word, word) for word in typed.arguments]
            build_parser().parse_args(meant if meant and not meant[0].startswith("-") else ["install", *meant])


@each_shown
def test_the_program_has_every_option_that_is_named(page: Path) -> None:
    if page.relative_to(ROOT).as_posix().startswith(FOR_MAINTAINERS):
        return
    prose = re.sub(
        r"^```(?:json|text|toml|python|help).*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    prose = re.sub(r"scripts/(?!klein_setup)\S+.*", "", prose)  # scripts have options of their own
    assert set(OPTION.findall(prose)) - options_of(build_parser()) - OF_OTHER_PROGRAMS == set()


@pytest.mark.parametrize(
    "line",
    ["klein-setup verify --gone", "uvx klein-setup gone", "A=1 klein-setup plan --size 3", "pipx run klein-setup gone"],
)
def test_a_command_that_is_none_is_found(line: str) -> None:
    (typed,) = parse_line(line)
    assert typed.arguments is not None
    with pytest.raises(UsageError):
        build_parser().parse_args(typed.arguments)


@pytest.mark.parametrize("path", made_pages(), ids=lambda path: path.name)
def test_a_page_that_is_made_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == made_pages()[path], "run `python3 scripts/make_reference.py --write`"


def test_the_address_of_an_error_is_that_of_its_section() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (source,) = re.findall(r'^Source = "(.+)"$', project, re.M)
    page = ROOT / ERRORS_URL.removeprefix(f"{source}/blob/main/")
    anchors = re.findall(r"^### (.+)$", page.read_text(encoding="utf-8"), re.M)
    assert sorted(anchors) == sorted(error.code for error in every_error())


def test_every_error_says_what_to_do() -> None:
    assert [error.code for error in every_error() if not told(error)[1]] == []


def test_contributing_says_where_things_are() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Where is it?")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| the ")]
    assert len(rows) == 8
    assert [row for row in rows if not PATH.search(row)] == []


def test_the_drawing_of_the_rooms_is_the_table_of_floors() -> None:
    floors = [set(floor) - {"__main__"} for floor in FLOORS]
    assert drawn_floors(ARCHITECTURE.read_text(encoding="utf-8")) == floors


def test_every_room_is_named_in_the_architecture() -> None:
    named = set().union(*drawn_floors(ARCHITECTURE.read_text(encoding="utf-8")))
    assert {room_of(module) for module in MODULES} - {"provisioner", "__main__"} - named == set()


def test_every_decision_is_listed_and_has_its_four_parts() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(folder.glob("[0-9]*.md"))
    listed = LINK.findall((folder / "README.md").read_text(encoding="utf-8"))
    assert listed == [page.name for page in pages]
    for number, page in enumerate(pages, start=1):
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {number:03}: ")
        assert re.findall(r"^## (.+)$", text, re.M) == ["Context", "Decision", "Alternatives", "Consequences"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_an_issue_form_is_one_and_warns_of_tokens(form: Path) -> None:
    text = form.read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    assert {"name", "description", "body"} <= set(document)
    fields = [element for element in document["body"] if element["type"] != "markdown"]
    assert len({element["id"] for element in fields}) == len(fields)
    assert all(element["attributes"]["label"] for element in fields)
    assert "token" in text


def test_the_hosted_workflow_runs_what_the_other_one_runs_on_every_python() -> None:
    job = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["test"]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"^python3 (scripts/\S+)", script, re.M)
    assert [step["run"] for step in job["steps"] if "run" in step] == [f"python {command}" for command in commands]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert job["strategy"]["matrix"]["python"] == re.findall(r"Python :: (3\.\d+)", project)


def test_the_hook_for_the_readme_runs_when_what_it_compares_changes() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    pattern = next(hook["files"] for hook in hooks if hook["id"] == "readme")
    for name in ("README.md", "provisioner/cli/arguments.py", "provisioner/cli/main.py", "provisioner/core/errors.py"):
        assert (ROOT / name).is_file()
        assert re.search(pattern, name), name


def test_the_source_archive_holds_what_contributors_need() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    included = re.findall(r'"/([^"]+)"', project.partition("[tool.hatch.build.targets.sdist]")[2].partition("\n[")[0])
    assert {"docs", "tests", "CONTRIBUTING.md", ".github"} <= set(included)
    assert [name for name in included if not (ROOT / name).exists()] == []


# --- where to report -----------------------------------------------------------------------------


def test_a_checkout_and_the_package_name_one_place_for_issues() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^Issues = "(.+)"$', project, re.M) == [ISSUES_URL]


def test_the_installed_package_says_where_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "klein_setup-9.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.4", "Name: klein-setup", "Version: 9", "Project-URL: Source, https://example.org/s"]
    (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert issues_url() == ISSUES_URL
    with (folder / "METADATA").open("a", encoding="utf-8") as file:
        file.write("Project-URL: Issues, https://example.org/issues\n")
    assert issues_url() == "https://example.org/issues"


def test_a_defect_says_where_to_send_its_log() -> None:
    for log_path, said in (("/logs/x.txt", "Send the log /logs/x.txt to"), (None, "Report it to")):
        blocks = defect_blocks(ValueError("x"), log_path=log_path, issues_url=ISSUES_URL)
        text = "".join(part.text for line in laid_out(blocks, width=None) for part in line)
        assert f"{said} {ISSUES_URL}, and say what you did." in text
