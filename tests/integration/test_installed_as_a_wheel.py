"""The wheel, started by uvx and by pipx as a person does, is the same program as the checkout.

Builds the wheel and installs what it needs from the package index, as the README's first lines do.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from provisioner.commands.bundle_program import own_wheel
from tests.support.sandbox import Sandbox, tensors

ROOT = Path(__file__).resolve().parents[2]
UV, UVX = (str(Path(sys.executable).with_name(name)) for name in ("uv", "uvx"))
STARTS = {
    "uvx": [UVX, "--from", "{wheel}", "klein-setup"],
    "pipx run": [UVX, "pipx", "run", "--spec", "{wheel}", "klein-setup"],
}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="uv is no part of the environment of the tests there")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [UV, "build", "--quiet", "--wheel", "--out-dir", str(folder), "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=200, check=False)
    if "Failed to fetch" in done.stderr or "error sending request" in done.stderr:
        pytest.skip("the package index does not answer, and the wheel cannot be built without it")
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_has_the_manifests_the_schemas_and_what_shells_complete(wheel: Path) -> None:
    import zipfile

    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"provisioner/_manifests/{each.name}" for each in (ROOT / "manifests").iterdir()}
    shipped |= {f"provisioner/_schema/{each.name}" for each in (ROOT / "docs" / "schema").iterdir()}
    shipped |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "provisioner").rglob("*.py")}
    assert shipped - names == set()
    assert any(name.endswith("share/man/man1/klein-setup.1") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]
    packed = set(zipfile.ZipFile(io.BytesIO(own_wheel())).namelist())  # what goes into a bundle is the same
    assert {name for name in packed if name.startswith("provisioner/")} == {
        name for name in names if name.startswith("provisioner/")
    }


@pytest.mark.parametrize("start", list(STARTS))
def test_it_does_what_the_checkout_does_and_names_itself_as_it_was_started(
    wheel: Path, sandbox: Sandbox, tmp_path: Path, start: str
) -> None:
    sandbox.publish(tensors(300_000))
    kept = {name: value for name, value in os.environ.items() if name.startswith(("UV_", "PIP_", "SSL_"))}
    environ = sandbox.environ | kept | {"PIPX_HOME": str(tmp_path / "pipx"), "UV_PYTHON": sys.executable}
    environ.pop("PYTHONPATH")
    cache = subprocess.run([UV, "cache", "dir"], capture_output=True, encoding="utf-8", check=True).stdout.strip()
    environ |= {"PIPX_DEFAULT_PYTHON": sys.executable, "UV_CACHE_DIR": cache}
    environ |= {"PIPX_DEFAULT_BACKEND": "uv", "PATH": f"{Path(UV).parent}{os.pathsep}{environ['PATH']}"}  # 40 s less
    words = [each.format(wheel=wheel) for each in STARTS[start]]

    def run(program: list[str], *arguments: str) -> str:
        done = subprocess.run(
            [*program, *arguments],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    checkout = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'klein-setup'\n"
        "from provisioner.cli.entry import run; run()",
    ]
    for arguments in (["--version"], ["manifest", "list"], ["manifest", "show", "--files"], ["completion", "fish"]):
        assert run(words, *arguments) == run(checkout, *arguments)
    named = ["--manifest", str(sandbox.manifest), "--comfyui", str(sandbox.tree), "--endpoint", sandbox.hub.endpoint]
    said = run(words, "install", "--only", "files", "--yes", *named)
    assert f"{start} klein-setup" in said
    sandbox.assert_in_place()
