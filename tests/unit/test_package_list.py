from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.core.errors import HashMismatchError
from provisioner.environment.installer import Wheel, parse_report
from provisioner.environment.package_list import (
    ListedPackage,
    PackageChange,
    PackageList,
    changed,
    enforced,
    findings_of,
    list_text,
    listed,
    merged,
    parse_list,
    requirements_digest,
    requirements_text,
    why_restored,
)
from provisioner.environment.state import Distribution

SITE = Path("/comfy/.venv/lib/python3.12/site-packages")
WHERE = Path("/comfy/.venv")
LIST = Path("/home/me/.local/state/klein-setup/environments/0.json")
A, B, C = "a" * 64, "b" * 64, "c" * 64
AV = ListedPackage(
    name="av", version="14.1", origin="application", file_name="av-14.1-py3-none-any.whl", sha256=A, record_sha256=B
)
TORCH = replace(AV, name="torch", version="2.14.1+cu130", origin="torch", file_name="torch-2.14.1+cu130.whl")
PACKAGES = PackageList(made_at="2026-11-26T10:00:00+00:00", packages=(AV, TORCH), requirements_sha256=C)


def installed(**versions: str) -> list[Distribution]:
    return [Distribution(name=name, version=version, location=SITE) for name, version in versions.items()]


def whole() -> list[Distribution]:
    return installed(av="14.1", torch="2.14.1+cu130", extra="1.0")


def test_a_list_is_read_as_it_was_written() -> None:
    assert parse_list(list_text(PACKAGES)) == PACKAGES


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "av\n--index-url https://evil.example"),
        ("name", "../av"),
        ("version", "14.1 --hash=sha256:0"),
        ("sha256", "A" * 64),
        ("record_sha256", 5),
        ("origin", "elsewhere"),
        ("file_name", None),
    ],
)
def test_a_list_with_something_else_in_it_is_no_list(name: str, value: object) -> None:
    document = json.loads(list_text(PACKAGES))
    document["packages"][0][name] = value
    assert parse_list(json.dumps(document)) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 2}'])
def test_what_is_no_list_of_ours_is_none(text: str) -> None:
    assert parse_list(text) is None


def test_a_line_means_one_file_where_its_digest_is_known() -> None:
    address = replace(AV, name="b", url="https://x.example/b-1.whl")
    assert requirements_text([AV, replace(AV, sha256=None), address]) == (
        f"av==14.1 --hash=sha256:{A}\nav==14.1\nb @ https://x.example/b-1.whl --hash=sha256:{A}\n"
    )


def test_the_order_of_requirements_makes_no_difference() -> None:
    assert requirements_digest(["av", "b"]) == requirements_digest(["b", "av"]) != requirements_digest(["av"])


def test_what_pip_would_install_is_listed_without_passwords() -> None:
    entry = {
        "metadata": {"name": "Av", "version": "14.1"},
        "is_direct": True,
        "download_info": {
            "url": "https://me:secret@x.example/av-14.1-py3-none-any.whl?token=secret",
            "archive_info": {"hashes": {"sha256": A}},
        },
    }
    direct, plain = parse_report(json.dumps({"install": [entry, {**entry, "is_direct": False}]}))
    first, second = listed([direct, plain], "application")
    assert (first.url, second.url) == ("https://x.example/av-14.1-py3-none-any.whl", None)
    assert (first.name, first.file_name, first.sha256) == ("av", "av-14.1-py3-none-any.whl", A)


def test_what_is_installed_later_takes_the_place_of_what_was_there() -> None:
    newer = replace(AV, version="15.0", record_sha256=None)
    now = merged(PACKAGES, [newer], {"av": C, "torch": C}, made_at="later")
    assert now.packages == (replace(newer, record_sha256=C), TORCH)
    assert (now.made_at, now.requirements_sha256) == ("later", C)
    assert merged(None, [newer], {}, made_at="later").packages == (newer,)


def test_of_a_package_that_changed_nobody_can_say_where_it_came_from() -> None:
    records = {"av": C, "torch": B}
    now = merged(PACKAGES, [], records, made_at="later", requirements_sha256=A, forgets_changed=True)
    assert now.packages == (TORCH,)
    assert now.requirements_sha256 == A
    unread = replace(PACKAGES, packages=(replace(AV, record_sha256=None),))
    assert merged(unread, [], {}, made_at="later", forgets_changed=True).packages == ()


def test_a_known_digest_is_put_in_and_another_one_is_refused() -> None:
    wheel = Wheel(name="av", version="14.1", url="https://me:secret@x.example/av-14.1-py3-none-any.whl", sha256=None)
    for known in ({"av": A}, {wheel.file_name: A}):
        assert enforced([wheel], known, whose="it", way_out="go")[0].sha256 == A
    assert enforced([replace(wheel, sha256=A)], {"av": A}, whose="it", way_out="go")[0].sha256 == A
    assert enforced([wheel], {}, whose="it", way_out="go") == [wheel]
    with pytest.raises(HashMismatchError, match="than the lock names") as caught:
        enforced([replace(wheel, sha256=B)], {"av": A}, whose="the lock", way_out="Go there.")
    assert caught.value.hint == "Go there."
    assert "secret" not in str(caught.value.context)


@pytest.mark.parametrize(
    ("now", "records", "damaged", "expected"),
    [
        (whole(), {"av": B, "torch": B}, {}, []),
        (whole()[1:], {"torch": B}, {}, [("av", "missing", None, ())]),
        (installed(av="14.0", torch="2.14.1+cu130"), {"av": C, "torch": B}, {}, [("av", "replaced", "14.0", ())]),
        (whole(), {"av": C, "torch": B}, {}, [("av", "damaged", "14.1", ("RECORD",))]),
        (whole(), {"torch": B}, {}, [("av", "damaged", "14.1", ("RECORD",))]),
        (whole(), {"av": B, "torch": B}, {"av": ("av/x.py",)}, [("av", "damaged", "14.1", ("av/x.py",))]),
    ],
)
def test_how_an_environment_differs_from_its_list(
    now: list[Distribution],
    records: dict[str, str],
    damaged: dict[str, tuple[str, ...]],
    expected: list[tuple[str, str, str | None, tuple[str, ...]]],
) -> None:
    found = changed(PACKAGES, now, records, damaged)
    assert [(each.package, each.what, each.found, each.files) for each in found] == expected


def test_a_package_without_a_record_is_compared_by_its_version() -> None:
    packages = replace(PACKAGES, packages=(replace(AV, record_sha256=None),))
    assert changed(packages, whole(), {}, {}) == ()


GONE = PackageChange(package="av", what="missing", locked="14.1", found=None, origin="application")
OTHER = replace(GONE, what="replaced", found="14.0")
DAMAGED = replace(GONE, what="damaged", found="14.1", files=("av/x.py", "av/y.py"))


@pytest.mark.parametrize(
    ("change", "is_outdated", "code", "severity", "remedy", "message"),
    [
        (GONE, False, "package-missing", "problem", "install-environment", "av 14.1 was installed and is gone."),
        (OTHER, False, "package-replaced", "warning", "repair", "av 14.1 was replaced by 14.0."),
        (
            replace(OTHER, origin="torch"),
            False,
            "package-replaced",
            "problem",
            "install-environment",
            "av 14.1 was replaced by 14.0.",
        ),
        (OTHER, True, "package-replaced", "warning", "install", "av 14.1 was replaced by 14.0."),
        (
            DAMAGED,
            True,
            "package-damaged",
            "problem",
            "repair",
            "av 14.1 is no longer what was installed: av/x.py and 1 other file changed.",
        ),
        (
            replace(DAMAGED, files=("RECORD",)),
            False,
            "package-damaged",
            "problem",
            "repair",
            "av 14.1 is no longer what was installed: RECORD changed.",
        ),
    ],
)
def test_what_a_person_is_told_of_it(
    change: PackageChange, is_outdated: bool, code: str, severity: str, remedy: str, message: str
) -> None:
    (found,) = findings_of([change], WHERE, list_file=LIST, is_outdated=is_outdated, distributions=whole())
    assert (found.code, found.severity, found.remedy, found.message) == (code, severity, remedy, message)
    assert found.hint is not None
    assert (str(LIST) in found.hint) == (not is_outdated or change.what == "damaged")
    assert found.path == (SITE if change.what == "damaged" else WHERE)


def test_versions_of_the_torch_set_are_told_elsewhere_and_damage_is_not() -> None:
    replaced, damaged = replace(OTHER, package="torch"), replace(DAMAGED, package="torch")
    found = findings_of([replaced, damaged], WHERE, list_file=LIST, is_outdated=False, distributions=[])
    assert [(each.code, each.path) for each in found] == [("package-damaged", WHERE)]


def test_why_packages_are_installed_again() -> None:
    assert why_restored([GONE, replace(OTHER, package="b")]) == "av 14.1 is missing and b 14.1 was replaced"
    many = [replace(DAMAGED, package=name) for name in "abcde"]
    assert why_restored(many) == "a 14.1 was changed, b 14.1 was changed, c 14.1 was changed and 2 more"
