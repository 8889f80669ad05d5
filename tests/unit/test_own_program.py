"""klein-setup as a wheel, the list of what it needs, and the script that starts it out of a bundle."""

from __future__ import annotations

import ast
import io
import zipfile
from pathlib import Path

import pytest

from provisioner.bundle import start_script
from provisioner.bundle.own_wheel import check_record, wheel_name, wheel_of
from provisioner.bundle.own_wheel import start_script as script_with
from provisioner.core.errors import HashMismatchError, IntegrityError, NotTheFileError
from provisioner.environment.installer import Wheel
from provisioner.environment.locked_list import parse_locked_list
from provisioner.manifest.shipped import locked_list

FILES = {"provisioner/b.py": b"b = 1\n", "provisioner/a.py": b"a = 1\n"}
TEXT = Path(start_script.__file__).read_text(encoding="utf-8")


def test_the_same_files_give_the_same_wheel_whose_record_names_each() -> None:
    data = wheel_of("1.2", FILES)
    assert data == wheel_of("1.2", dict(reversed(FILES.items())))
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        assert wheel.namelist()[:2] == ["provisioner/a.py", "provisioner/b.py"]
        record = wheel.read("klein_setup-1.2.dist-info/RECORD").decode()
        assert (
            "klein-setup = provisioner.cli.entry:run"
            in wheel.read("klein_setup-1.2.dist-info/entry_points.txt").decode()
        )
        everything = {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/RECORD")}
    assert wheel_name("1.2") == "klein_setup-1.2-py3-none-any.whl"
    check_record(record, everything)
    for changed in ({"provisioner/a.py": b"a = 2\n"}, {"provisioner/new.py": b""}):
        with pytest.raises(IntegrityError, match="is not the one that was installed"):
            check_record(record, changed)


def test_the_start_script_lists_the_wheels_of_each_python_with_its_pip_first() -> None:
    wheels = [("linux-cp312", "a.whl", "1"), ("linux-cp312", "pip-26.whl", "2"), ("darwin-cp311", "b.whl", "3")]
    made = script_with(TEXT, wheels).decode()
    (listed,) = (
        node.value
        for node in ast.walk(ast.parse(made))
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "WHEELS" and node.value is not None
    )
    assert ast.literal_eval(listed) == {
        "darwin-cp311": [["b.whl", "3"]],
        "linux-cp312": [["pip-26.whl", "2"], ["a.whl", "1"]],
    }
    assert made.count("\n") > TEXT.count("\n")
    with pytest.raises(AssertionError):
        script_with("another script", wheels)


def test_the_start_script_is_read_by_a_python_that_is_too_old() -> None:
    ast.parse(TEXT, feature_version=(3, 6))
    assert "from __future__" not in TEXT


def test_pip_gets_no_secret_of_the_user() -> None:
    assert not [name for name in start_script.PASSED if name.startswith(("HF_", "PIP_", "KLEIN_", "HTTP"))]


def test_klein_setups_own_list_is_read_whole() -> None:
    text = locked_list().read_text(encoding="utf-8")
    found = parse_locked_list(text)
    assert len(found.requirements) == sum("==" in line.partition(";")[0] for line in text.splitlines())
    assert all(found.digests.values())


@pytest.mark.parametrize(
    "text",
    [
        "six==1.0\n",
        "six>=1.0 --hash=sha256:" + "0" * 64,
        "six==1.0 --hash=md5:" + "0" * 32,
        "--index-url https://index.example/ --hash=sha256:" + "0" * 64,
    ],
)
def test_a_line_that_pins_nothing_is_refused(text: str) -> None:
    with pytest.raises(NotTheFileError, match="a line that is none"):
        parse_locked_list(text)


def test_a_file_that_the_list_does_not_name_is_refused() -> None:
    listed = parse_locked_list(f"# a list\nsix[x]==1.0 ; python_version > '3' --hash=sha256:{'0' * 64}\n")
    wheel = Wheel(name="six", version="1.0", url="https://i.example/six-1.0-py3-none-any.whl", sha256="0" * 64)
    listed.check([wheel])
    for name, version, sha256 in (("six", "1.0", "1" * 64), ("six", "1.1", "0" * 64), ("other", "1.0", "0" * 64)):
        odd = Wheel(name=name, version=version, url=wheel.url, sha256=sha256)
        with pytest.raises(HashMismatchError, match="does not name"):
            listed.check([odd])
