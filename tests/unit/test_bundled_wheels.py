"""Which wheels of a bundle suit a Python, what they lack of an application's packages, and which names are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioner.core.errors import NotTheFileError
from provisioner.environment.bundled_wheels import BundledWheel, complaint_about_wheels, lacking, why_left_out
from provisioner.environment.package_list import ListedPackage
from provisioner.environment.state import PythonFacts

LINUX = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "linux_x86_64")


def wheel(file_name: str) -> BundledWheel:
    return BundledWheel(file_name=file_name, sha256="a" * 64, index="packages")


def python(version: str, *, is_free_threaded: bool = False) -> PythonFacts:
    prefix = Path("/usr")
    return PythonFacts(
        path=Path("/usr/bin/python3"),
        version=version,
        prefix=prefix,
        base_prefix=prefix,
        is_free_threaded=is_free_threaded,
    )


CP312 = "torch-2.14.1+cu130-cp312-cp312-manylinux_2_28_x86_64.whl"
CP314T = "torch-2.14.1+cu130-cp314-cp314t-manylinux_2_28_x86_64.whl"
AUDIO = "torchaudio-2.11.0-py3-none-any.whl"


@pytest.mark.parametrize(
    "file_name",
    [
        "torch.whl",
        "torch-2.14.1.tar.gz",
        "../av-1-py3-none-any.whl",
        "av-1-py3-none-any/../../x.whl",
        "av-1-py3-none-any\\x.whl",
        "av-1-py3-none-\n.whl",
        "-1-py3-none-any.whl",
        "",
    ],
)
def test_a_name_that_is_no_plain_name_of_a_wheel_is_refused(file_name: str) -> None:
    with pytest.raises(NotTheFileError, match="this is no wheel"):
        wheel(file_name)


@pytest.mark.parametrize("sha256", ["", "A" * 64, "a" * 63, "../" + "a" * 61, "a" * 64 + "\n"])
def test_a_digest_of_another_form_is_refused(sha256: str) -> None:
    with pytest.raises(NotTheFileError):
        BundledWheel(file_name=AUDIO, sha256=sha256, index="torch")


def test_a_wheel_says_what_it_is() -> None:
    one = wheel("Typing_Extensions-4.15.0-py3-none-any.whl")
    assert (one.name, one.version, {str(tag) for tag in one.tags}) == (
        "typing-extensions",
        "4.15.0",
        {"py3-none-any"},
    )


@pytest.mark.parametrize(
    ("names", "facts", "platforms"),
    [
        ([CP312, AUDIO], python("3.12.3"), LINUX),
        ([CP312, "torch-2.14.1+cu130-cp311-cp311-manylinux_2_28_x86_64.whl"], python("3.11.7"), LINUX),
        ([CP314T], python("3.14.0", is_free_threaded=True), LINUX),
        ([CP312, "pywin32-311-cp312-cp312-win_amd64.whl"], python("3.12.3"), LINUX),
        (["torch-2.14.1-cp310-abi3-win_amd64.whl"], python("3.13.1"), ("win_amd64",)),
    ],
)
def test_wheels_for_this_python_are_taken(names: list[str], facts: PythonFacts, platforms: tuple[str, ...]) -> None:
    assert complaint_about_wheels([wheel(each) for each in names], facts, platforms) is None


@pytest.mark.parametrize(
    ("names", "facts", "platforms", "said"),
    [
        ([CP312], python("3.11.7"), LINUX, "/usr/bin/python3 is cp311 on manylinux_2_28_x86_64."),
        ([CP312], python("3.11.7"), LINUX, "The bundle has torch 2.14.1+cu130 for cp312 on manylinux_2_28_x86_64; "),
        ([CP312], python("3.12.3"), ("win_amd64",), "/usr/bin/python3 is cp312 on win_amd64."),
        ([CP312], python("3.12.3"), ("manylinux_2_17_x86_64", "linux_x86_64"), "is cp312 on manylinux_2_17_x86_64."),
        ([CP314T], python("3.14.0"), LINUX, "for cp314t on manylinux_2_28_x86_64; /usr/bin/python3 is cp314 on"),
        ([CP312, CP314T], python("3.11.7"), LINUX, "for cp312 on manylinux_2_28_x86_64 and 1 other; "),
        ([AUDIO, CP312], python("3.11.7"), LINUX, "The bundle has torch 2.14.1"),
        (["av-1-py3-none-any.whl"], python("3.11.7"), LINUX, "The bundle has no torch."),
    ],
)
def test_wheels_for_another_python_or_system_are_named(
    names: list[str], facts: PythonFacts, platforms: tuple[str, ...], said: str
) -> None:
    complaint = complaint_about_wheels([wheel(each) for each in names], facts, platforms) or ""
    assert said in complaint.replace("\\", "/")


def test_what_no_wheel_meets_is_named() -> None:
    wheels = [wheel(each) for each in ("av-14.1-py3-none-any.whl", "av-16.0-py3-none-any.whl", AUDIO)]
    lines = [
        "av>=15",
        "torchaudio",
        "tqdm",
        "av>=17",
        "pywin32; python_version < '3'",
        "av @ https://x.example/av-14.1-py3-none-any.whl",
        "git+https://x.example/av",
        "-c here.txt",
    ]
    missing = ("tqdm", "av>=17", "av @ https://x.example/av-14.1-py3-none-any.whl", "git+https://x.example/av")
    assert lacking(lines, wheels, python_version="3.12.3") == missing


@pytest.mark.parametrize(
    ("file_name", "sha256", "url", "why"),
    [
        ("av-14.1-py3-none-any.whl", "a" * 64, None, None),
        ("rocm-10.0.0-py3-none-any.whl", None, None, "built on this computer"),
        ("av-14.1.tar.gz", "a" * 64, None, "only a source archive"),
        ("av-14.1-py3-none-any.whl", "a" * 64, "https://x.example/av-14.1-py3-none-any.whl", "names an address"),
        ("av 14.1-py3-none-any.whl", "a" * 64, None, "no standard name of a wheel"),
    ],
)
def test_what_cannot_go_into_a_bundle_says_why(
    file_name: str, sha256: str | None, url: str | None, why: str | None
) -> None:
    package = ListedPackage(
        name="av", version="14.1", origin="application", file_name=file_name, sha256=sha256, url=url
    )
    said = why_left_out(package)
    assert said is None if why is None else why in (said or "")
