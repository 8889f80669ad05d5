"""Wheels into a bundle and an environment out of it: real pip and venv, small wheels, every index out of reach."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from provisioner.core.errors import (
    HashMismatchError,
    KleinError,
    NotTheFileError,
    OfflineError,
    UnsupportedMachineError,
)
from provisioner.environment.bundled_wheels import BundledWheel, CollectedWheels
from provisioner.environment.environments import Environments
from provisioner.environment.kept_packages import KeptPackages
from provisioner.environment.locked_list import parse_locked_list
from provisioner.environment.state import drift
from provisioner.machine.process import run_process
from provisioner.torch.builds import TorchBuild, TorchSet
from tests.support.quick_venv import QuickEnvironments
from tests.support.setup_fixture import PROBE
from tests.support.wheels import Source, Toy, ToyIndex, content_of, own_pip, serving, torch_set, wheel_cache

ROOT = Path(__file__).resolve().parents[2]
SET = TorchSet(torch="2.14.1", torchvision="0.29.1", torchaudio="2.11.0")
TORCH = torch_set("cu130")
AV = Toy(name="av", version="14.1")
HELPER = Toy(name="helper", version="1.0", requires=("av>=14",), padding=10_000)
BUILT = Source(name="built", version="2.0")
NOWHERE = "http://127.0.0.1:9/simple"  # discard: nobody listens there
NEWER_PIP = Toy(name="pip", version="99.0")
TOYS = [*TORCH, AV, HELPER, BUILT, own_pip()]


def environments(
    home: Path, index_url: str, *, kind: type[Environments] = QuickEnvironments, more: Mapping[str, str] | None = None
) -> Environments:
    home.mkdir(parents=True, exist_ok=True)
    script = home / "toy_probe.py"
    script.write_text(PROBE, encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "PYTHON"))}
    environ |= {"PIP_INDEX_URL": index_url, "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    return kind(
        run=run_process,
        cache=wheel_cache(home / "cache"),
        environ=environ | dict(more or {}),
        home=home,
        packages=KeptPackages(lambda: home / "state"),
        probe_script=script,
    )


def build(index_url: str) -> TorchBuild:
    return TorchBuild(torch_backend="cu130", index_url=index_url, local_tag="cu130", sets=(SET,))


@dataclass(frozen=True)
class Made:
    """The wheels of a bundle."""

    home: Path
    wheels: tuple[BundledWheel, ...]
    left_out: tuple[tuple[str, str], ...]

    def blob(self, sha256: str) -> Path:
        return self.home / "blobs" / sha256

    def without(self, *names: str) -> tuple[BundledWheel, ...]:
        return tuple(each for each in self.wheels if each.name not in names)


def kept(collected: CollectedWheels, folder: Path) -> tuple[BundledWheel, ...]:
    folder.mkdir()
    for wheel, path in collected.files:
        shutil.copyfile(path, folder / wheel.sha256)
    return tuple(wheel for wheel, _ in collected.files)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("made")
    with serving(TOYS) as shop:
        collected = environments(home, shop.url).fetch(build(shop.url), ["helper", "built"])
        return Made(home, kept(collected, home / "blobs"), collected.left_out)


@pytest.fixture
def shop() -> Iterator[ToyIndex]:
    with serving(TOYS) as shop:
        yield shop


def offline(
    made: Made,
    home: Path,
    wheels: tuple[BundledWheel, ...] | None = None,
    *,
    kind: type[Environments] = QuickEnvironments,
    more: Mapping[str, str] | None = None,
) -> Environments:
    """The environments of another computer, which has the bundle and no network."""
    proxies = {"HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "PIP_PROXY": NOWHERE}
    envs = environments(home, NOWHERE, kind=kind, more=proxies | dict(more or {}))
    return envs.from_bundle(made.wheels if wheels is None else wheels, made.blob)


def sha256(toy: Toy) -> str:
    return hashlib.sha256(content_of(toy)).hexdigest()


def changes(envs: Environments, where: Path) -> dict[str, str]:
    compared = envs.compare(where, envs.observe(where), reads_files=True)
    assert compared is not None
    return {each.package: each.what for each in compared[1]}


# --- collecting --------------------------------------------------------------------------------


def test_every_wheel_is_collected_with_its_index_and_what_was_built_is_named(made: Made) -> None:
    pip = own_pip()
    assert {(each.file_name, each.sha256, each.index) for each in made.wheels} == {
        *((toy.file_name, sha256(toy), "torch") for toy in TORCH),
        *((toy.file_name, sha256(toy), "packages") for toy in (AV, HELPER, pip)),
    }
    assert [name for name, _ in made.left_out] == ["built 2.0"]
    assert "only a source archive" in made.left_out[0][1]
    for wheel in made.wheels:
        assert hashlib.sha256(made.blob(wheel.sha256).read_bytes()).hexdigest() == wheel.sha256


def test_the_same_wheels_are_fetched_without_making_an_environment(made: Made, tmp_path: Path) -> None:
    newer = [Toy(name="torch", version="2.99.0"), Toy(name="sympy", version="9.0"), Toy(name="av", version="14.0")]
    greedy = Toy(name="greedy", version="1.0", requires=("torch>=2.0", "sympy", "helper"))
    newer.append(replace(greedy, version="2.0", requires=("torch>=2.99",)))
    with serving(TORCH) as torch_index, serving([*newer, AV, HELPER, BUILT, greedy, own_pip()]) as packages:
        envs = environments(tmp_path, packages.url)
        collected = envs.fetch(build(torch_index.url), ["greedy", "built", "torch"])
    named = {(wheel.file_name, wheel.sha256, wheel.index) for wheel, _ in collected.files}
    assert named == {
        *((each.file_name, each.sha256, each.index) for each in made.wheels),
        (greedy.file_name, sha256(greedy), "packages"),
    }
    assert [name for name, _ in collected.left_out] == ["built 2.0"]
    for wheel, path in collected.files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "toy_probe.py"}
    assert not list((tmp_path / "cache").rglob("pyvenv.cfg"))


def test_an_index_without_pip_is_named(made: Made, tmp_path: Path) -> None:
    with serving([toy for toy in TOYS if toy.name != "pip"]) as shop:
        collected = environments(tmp_path, shop.url).fetch(build(shop.url), ["helper", "built"])
    assert [name for name, _ in collected.left_out] == ["built 2.0", "pip, and with it klein-setup itself,"]
    assert {wheel.name for wheel, _ in collected.files} == {each.name for each in made.without("pip")}


def test_what_klein_setup_needs_comes_with_the_digests_of_its_own_list(tmp_path: Path) -> None:
    wanted = Toy(name="needed", version="1.0", requires=("helper",))
    line = f"needed==1.0 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{sha256(wanted)}\n"
    own = parse_locked_list(f"{line}winonly==2.0 ; sys_platform == 'none' \\\n    --hash=sha256:{'1' * 64}\n")
    with serving([*TOYS, wanted]) as shop:
        collected = environments(tmp_path, shop.url).fetch(build(shop.url), [], own=own)
        assert [wheel.file_name for wheel, _ in collected.own] == [own_pip().file_name, wanted.file_name]
        for wheel, path in collected.own:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256
        shop.toys = [*TOYS, replace(wanted, padding=5)]
        with pytest.raises(HashMismatchError, match=r"own list of packages does not name"):
            environments(tmp_path / "other", shop.url).fetch(build(shop.url), [], own=own)


# --- out of a bundle ---------------------------------------------------------------------------


def test_an_environment_is_made_out_of_a_bundle_with_the_pip_of_the_bundle(made: Made, tmp_path: Path) -> None:
    envs, where = offline(made, tmp_path, kind=Environments), tmp_path / ".venv"
    receipt = envs.create(build(NOWHERE), where)
    envs.install(where, ["helper", "torch"])
    seen = envs.observe(where)
    assert receipt.set == SET
    assert drift(seen.receipt, seen, None) == ()
    assert changes(envs, where) == {}
    pip = seen.distribution("pip")
    assert pip is not None
    assert pip.version == own_pip().version
    assert envs.packages is not None
    packages = envs.packages.read(where)
    assert packages is not None
    assert {(each.name, each.sha256) for each in packages.packages} == {
        (each.name, each.sha256) for each in made.without("pip")
    }


_ALONE = """
import sys
from pathlib import Path
from tests.integration.test_bundled_wheels import NOWHERE, Made, build, environments
from provisioner.environment.bundled_wheels import BundledWheel
home, blobs, *files = sys.argv[1:]
wheels = [BundledWheel(file_name=name, sha256=sha256, index="torch") for name, sha256 in (f.split("=") for f in files)]
envs = environments(Path(home), NOWHERE).from_bundle(wheels, lambda sha256: Path(blobs, sha256))
where = Path(home, ".venv")
envs.create(build("https://index.example/cu130"), where, installer="auto")
envs.install(where, ["helper"], installer="auto")
print(sorted(each.name for each in envs.observe(where).distributions))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces are Linux")
def test_a_computer_without_any_network_interface_is_enough(made: Made, tmp_path: Path) -> None:
    apart = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], check=False).returncode != 0:
        pytest.skip("this machine makes no namespaces")
    files = [f"{each.file_name}={each.sha256}" for each in made.wheels]
    command = [*apart, sys.executable, "-c", _ALONE, str(tmp_path), str(made.home / "blobs"), *files]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "'helper'" in done.stdout


def refused(made: Made, home: Path, wheels: tuple[BundledWheel, ...], error: type[KleinError], said: str) -> KleinError:
    """Try to make an environment; return the error it ends with, nothing being in its place."""
    with pytest.raises(error, match=said) as caught:
        offline(made, home, wheels).create(build(NOWHERE), home / ".venv")
    assert {path.name for path in home.iterdir()} <= {"cache", "toy_probe.py", "blobs"}
    return caught.value


def test_one_flipped_byte_is_refused_and_stays_out_of_the_cache(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.home / "blobs", tmp_path / "blobs")
    blob = tmp_path / "blobs" / sha256(TORCH[1])
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    here = replace(made, home=tmp_path)
    error = refused(here, tmp_path, made.wheels, HashMismatchError, r"torchvision-0\.29\.1.*in the bundle is damaged")
    assert error.context["path"] == str(blob)
    assert sha256(TORCH[1]) not in wheel_cache(tmp_path / "cache").held()


@pytest.mark.parametrize("is_link", [False, True])
def test_a_blob_that_is_listed_and_missing_is_named(made: Made, tmp_path: Path, is_link: bool) -> None:
    shutil.copytree(made.home / "blobs", tmp_path / "blobs")
    blob = tmp_path / "blobs" / sha256(AV)
    blob.unlink()
    if is_link:
        blob.symlink_to(made.blob(sha256(AV)))
    here = replace(made, home=tmp_path)
    refused(here, tmp_path, made.wheels, NotTheFileError, r"lists av-14\.1-py3-none-any\.whl and does not have it")
    assert wheel_cache(tmp_path / "cache").held() == {}


def test_a_package_of_the_torch_set_that_the_bundle_lacks_is_named(made: Made, tmp_path: Path) -> None:
    error = refused(made, tmp_path, made.without("sympy"), OfflineError, "The bundle has no wheel of sympy")
    assert error.context["missing"] == ["sympy"]


def test_a_package_of_the_application_that_the_bundle_lacks_is_named_before_a_change(
    made: Made, tmp_path: Path
) -> None:
    envs, where = offline(made, tmp_path, made.without("av")), tmp_path / ".venv"
    envs.create(build(NOWHERE), where)
    before = envs.observe(where)
    for lines, said in (
        (["helper"], "no wheel of av>=14"),
        (["helper", "extra>=1"], r"no wheel of extra>=1 "),
        (["helper @ http://127.0.0.1:9/helper-1.0-py3-none-any.whl"], "no wheel of helper @ "),
    ):
        with pytest.raises(OfflineError, match=said):
            envs.install(where, lines)
    assert envs.observe(where) == before


def test_wheels_for_another_python_are_refused(made: Made, tmp_path: Path) -> None:
    other = tuple(
        replace(each, file_name=each.file_name.replace("py3-none-any", "cp399-cp399-linux_x86_64"))
        if each.name == "torch"
        else each
        for each in made.wheels
    )
    said = rf"has torch 2\.14\.1\+cu130 for cp399 on linux_x86_64; .* is cp3{sys.version_info.minor} on "
    refused(made, tmp_path, other, UnsupportedMachineError, said)
    with pytest.raises(UnsupportedMachineError, match=said):
        offline(made, tmp_path, other).find_python(given=Path(sys.executable))


def test_nothing_but_the_bundle_is_looked_at(made: Made, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    newer = Toy(name="sympy", version="9.0")
    (mine / newer.file_name).write_bytes(newer.content())
    cached = wheel_cache(tmp_path / "cache")
    with cached.arriving() as arriving:
        other = Toy(name="sympy", version="8.0")
        (arriving / other.file_name).write_bytes(other.content())
        cached.adopt(arriving / other.file_name, None)
    envs = offline(made, tmp_path, more={"PIP_FIND_LINKS": str(mine)})
    envs.create(build(NOWHERE), tmp_path / ".venv")
    sympy = envs.observe(tmp_path / ".venv").distribution("sympy")
    assert sympy is not None
    assert sympy.version == "1.14.0"


def test_damage_is_repaired_out_of_the_bundle(made: Made, tmp_path: Path) -> None:
    envs, where = offline(made, tmp_path), tmp_path / ".venv"
    envs.create(build(NOWHERE), where)
    envs.install(where, ["helper"])
    site = next(where.glob("lib/python*/site-packages")) if os.name == "posix" else where / "Lib" / "site-packages"
    for name in ("helper", "torch"):
        (site / name / "__init__.py").write_text("broken\n", encoding="utf-8")
    shutil.rmtree(tmp_path / "cache")
    again = offline(made, tmp_path)
    assert changes(again, where) == {"helper": "damaged", "torch": "damaged"}
    again.repair(build(NOWHERE), where)
    assert changes(again, where) == {"helper": "damaged"}
    again.restore(where, ["helper"])
    assert changes(again, where) == {}


def test_what_the_cache_has_is_not_copied_again(made: Made, tmp_path: Path) -> None:
    offline(made, tmp_path).create(build(NOWHERE), tmp_path / ".venv")
    nothing = replace(made, home=tmp_path / "no bundle")
    offline(nothing, tmp_path).create(build(NOWHERE), tmp_path / "other")
    assert (tmp_path / "other" / "pyvenv.cfg").is_file()
