"""The list of what was installed in an environment: real pip, real environments, small wheels from loopback."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from provisioner.core.errors import EntryNotFoundError, HashMismatchError, IntegrityError
from provisioner.core.ports import ProcessResult
from provisioner.disk.root import Root
from provisioner.environment.environments import Environments
from provisioner.environment.kept_packages import KeptPackages
from provisioner.environment.swap import CONSTRAINTS, PACKAGES
from provisioner.machine.process import run_process
from provisioner.torch.builds import TorchBuild, TorchSet
from tests.support.quick_venv import QuickEnvironments
from tests.support.setup_fixture import PROBE
from tests.support.wheels import Faults, Source, Toy, ToyIndex, content_of, serving, torch_set, wheel_cache

SET = TorchSet(torch="2.14.1", torchvision="0.29.1", torchaudio="2.11.0")
TORCH = torch_set("cu130")
AV, OLD_AV = Toy(name="av", version="14.1"), Toy(name="av", version="14.0")
HELPER = Toy(name="helper", version="1.0", requires=("av>=14",), padding=10_000)
EXTRA = Toy(name="extra", version="3.0")

BUILT = Source(name="built", version="2.0")


def sha256(toy: Toy) -> str:
    return hashlib.sha256(content_of(toy)).hexdigest()


@pytest.fixture(scope="module")
def shop() -> Iterator[ToyIndex]:
    with serving([*TORCH, AV, OLD_AV, HELPER, EXTRA, BUILT]) as shop:
        yield shop


@pytest.fixture(autouse=True)
def _as_it_was(shop: ToyIndex) -> Iterator[None]:
    toys = list(shop.toys)
    yield
    shop.toys, shop.faults = toys, Faults()


def environments(shop: ToyIndex, tmp: Path, *, packages: KeptPackages | None = None) -> QuickEnvironments:
    script = tmp / "toy_probe.py"
    script.write_text(PROBE, encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "PYTHON"))}
    with_password = shop.url.replace("//", "//me:verysecret@")
    environ |= {"PIP_INDEX_URL": with_password, "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    return QuickEnvironments(
        run=run_process,
        cache=wheel_cache(tmp / "cache"),
        environ=environ | {"PIP_NO_CACHE_DIR": "1"},
        home=tmp,
        packages=packages or KeptPackages(lambda: tmp / "state"),
        probe_script=script,
    )


def build(shop: ToyIndex, digests: tuple[tuple[str, str], ...] = ()) -> TorchBuild:
    return TorchBuild(torch_backend="cu130", index_url=shop.url, local_tag="cu130", sets=(SET,), digests=digests)


@pytest.fixture(scope="module")
def made(shop: ToyIndex, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KeptPackages]:
    """An environment made once, with its application's packages."""
    home = tmp_path_factory.mktemp("made")
    kept = KeptPackages(lambda: home / "state")
    envs = environments(shop, home, packages=kept)
    envs.create(build(shop), home / ".venv")
    envs.install(home / ".venv", ["helper", "built"])
    return home / ".venv", kept


class Own:
    """A copy of it that a test may change, with a copy of its list."""

    def __init__(self, made: tuple[Path, KeptPackages], shop: ToyIndex, folder: Path) -> None:
        self.where, self.shop = folder / ".venv", shop
        shutil.copytree(made[0], self.where, symlinks=True)
        Root(self.where).write_text(self.where / "pip.conf", f"[global]\nconstraint = {self.where / CONSTRAINTS}\n")
        self.envs: Environments = environments(shop, folder)
        packages = made[1].read(made[0])
        assert packages is not None
        assert self.envs.packages is not None
        self.envs.packages.keep(self.where, packages)
        self.site = next(self.where.glob("lib/python*/site-packages"))

    def changes(self, *, reads_files: bool = True) -> dict[str, tuple[str, str | None]]:
        found = self.envs.compare(self.where, self.envs.observe(self.where), reads_files=reads_files)
        assert found is not None
        return {each.package: (each.what, each.found) for each in found[1]}

    def pip(self, *words: str) -> None:
        command = [str(self.where / "bin" / "python"), "-m", "pip", *words, "-q"]
        subprocess.run(command, env={**os.environ, "PIP_INDEX_URL": self.shop.url}, check=True)

    def files(self, name: str) -> dict[str, bytes]:
        paths = [path for path in (self.site / name).rglob("*") if path.suffix == ".py"]
        return {path.name: path.read_bytes() for path in paths}


@pytest.fixture
def own(made: tuple[Path, KeptPackages], shop: ToyIndex, tmp_path: Path) -> Own:
    return Own(made, shop, tmp_path)


def test_what_is_installed_is_listed_with_the_digest_of_its_file(made: tuple[Path, KeptPackages]) -> None:
    where, kept = made
    packages = kept.read(where)
    assert packages is not None
    digests = {each.name: each.sha256 for each in packages.packages}
    assert digests == {toy.name: sha256(toy) for toy in (*TORCH, AV, HELPER, BUILT)}
    assert all(each.record_sha256 for each in packages.packages)
    assert {each.name for each in packages.packages if each.origin == "application"} == {"av", "helper", "built"}
    inside = (where / PACKAGES).read_text(encoding="utf-8")
    assert f"av==14.1 --hash=sha256:{sha256(AV)}\n" in inside
    assert "secret" not in inside + kept.path(where).read_text(encoding="utf-8")
    if os.name == "posix":
        assert kept.path(where).stat().st_mode & 0o077 == 0


def test_the_list_is_one_that_pip_takes(own: Own, tmp_path: Path) -> None:
    target = ["--target", str(tmp_path / "again"), "--no-deps", "--require-hashes", "-r", str(own.where / PACKAGES)]
    own.pip("install", "--isolated", "--index-url", own.shop.url, *target)
    assert (tmp_path / "again" / "helper" / "padding.bin").read_bytes() == (
        own.site / "helper" / "padding.bin"
    ).read_bytes()


def test_what_nobody_touched_does_not_differ_and_what_is_added_is_nobodys_business(own: Own) -> None:
    assert own.changes() == {}
    own.pip("install", "extra")
    (own.site / "av" / "more.py").write_text("", encoding="utf-8")
    assert own.changes() == {}


@pytest.mark.parametrize("damage", ["file", "size", "link", "record", "replaced", "missing", "built"])
def test_a_package_that_changed_is_named_and_the_same_file_is_installed_again(own: Own, damage: str) -> None:
    path, before = own.site / "av" / "__init__.py", own.files("av")
    name = "built" if damage == "built" else "av"
    expected: tuple[str, str | None] = ("damaged", "14.1")
    if damage == "file":
        path.write_bytes(path.read_bytes()[:-1] + b"#")
    elif damage == "size":
        path.write_bytes(b"")
    elif damage == "link":
        path.unlink()
        path.symlink_to("/dev/zero")
    elif damage == "record":
        own.pip("install", "--force-reinstall", "--no-deps", "av==14.1")
        record = next(own.site.glob("av-*.dist-info")) / "RECORD"
        record.write_text(record.read_text() + "../../../../outside,sha256=x,1\n", encoding="utf-8")
    elif damage == "replaced":
        own.pip("install", "av==14.0")
        expected = ("replaced", "14.0")
    elif damage == "missing":
        own.pip("uninstall", "-y", "av")
        expected = ("missing", None)
    else:
        (own.site / "built" / "__init__.py").write_text("x = 1", encoding="utf-8")
        expected = ("damaged", "2.0")
    assert own.changes() == {name: expected}
    assert own.changes(reads_files=False) == ({name: expected} if damage in {"record", "replaced", "missing"} else {})
    own.envs.restore(own.where, [name])
    assert own.changes() == {}
    assert own.files("av") == before


def test_only_a_record_that_was_compared_is_followed(own: Own) -> None:
    """A second one of the same package is not the one that has the listed digest."""
    shutil.copytree(own.site / "av-14.1.dist-info", own.site / "av-14.1.more.dist-info")
    (own.site / "av-14.1.more.dist-info" / "RECORD").write_text("av/__init__.py,sha256=x,1\n", encoding="utf-8")
    assert own.changes() == {}


def test_a_newer_release_is_not_taken_for_what_was_installed(own: Own) -> None:
    own.shop.toys = [*own.shop.toys, Toy(name="av", version="15.0")]
    own.pip("uninstall", "-y", "av")
    own.envs.restore(own.where, ["av"])
    assert own.changes() == {}


def test_an_index_without_that_very_file_is_said_so_with_a_way_out(own: Own) -> None:
    own.pip("uninstall", "-y", "av")
    list_file = str(own.envs.packages.path(own.where)) if own.envs.packages else ""
    own.shop.toys = [toy for toy in own.shop.toys if toy is not AV]
    with pytest.raises(EntryNotFoundError, match=r"av-14\.1") as gone:
        own.envs.restore(own.where, ["av"])
    own.shop.toys = [*own.shop.toys, replace(AV, padding=5)]  # other bytes under the same name
    with pytest.raises(HashMismatchError, match=sha256(AV)) as other:
        own.envs.restore(own.where, ["av"])
    for error in (gone.value, other.value):
        assert error.hint is not None
        assert "PIP_INDEX_URL" in error.hint
        assert list_file in error.hint
    assert own.changes() == {"av": ("missing", None)}


def test_a_damaged_dependency_of_torch_is_put_back_without_fetching_torch(own: Own) -> None:
    own.shop.toys = [*own.shop.toys, Toy(name="sympy", version="9.0")]
    (own.site / "sympy" / "version.py").write_text("", encoding="utf-8")
    own.shop.requests.clear()
    own.envs.repair(build(own.shop), own.where)
    assert own.shop.fetched() == ["sympy-1.14.0-py3-none-any.whl"]
    assert own.changes() == {}


def test_a_torch_of_other_bytes_is_not_put_back(own: Own) -> None:
    (own.site / "torch" / "version.py").write_text("", encoding="utf-8")
    others = [replace(toy, padding=7) if toy.name == "torch" else toy for toy in own.shop.toys]
    own.shop.toys = others
    with pytest.raises(HashMismatchError, match="another SHA-256 than the list of"):
        own.envs.repair(build(own.shop), own.where)
    own.shop.toys = [toy for toy in others if toy.name != "sympy"]
    with pytest.raises(EntryNotFoundError, match="installed here before") as caught:
        own.envs.repair(build(own.shop), own.where)
    assert "--torch-index" in str(caught.value.hint)


def test_what_the_environment_itself_says_is_not_read(own: Own) -> None:
    (own.where / PACKAGES).write_text("av==14.0 --hash=sha256:" + "0" * 64 + "\n", encoding="utf-8")
    assert own.changes() == {}
    stranger = replace(own.envs, packages=KeptPackages(lambda: own.where.parent / "other state"))
    assert stranger.compare(own.where, own.envs.observe(own.where), reads_files=True) is None


def test_an_environment_that_goes_takes_its_list_along(own: Own) -> None:
    assert own.envs.packages is not None
    own.envs.remove(own.where)
    assert not own.envs.packages.path(own.where).exists()


def test_a_failed_exchange_keeps_the_list_of_the_environment_that_was_there(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_self: Environments, where: Path) -> None:
        raise EntryNotFoundError(f"{where} does not work in its place")

    monkeypatch.setattr(Environments, "_check_in_place", fails)
    with pytest.raises(EntryNotFoundError):
        own.envs.create(build(own.shop), own.where)
    assert own.changes() == {}


def test_a_known_digest_of_a_torch_wheel_is_enforced(shop: ToyIndex, tmp_path: Path) -> None:
    envs = environments(shop, tmp_path)
    torch = TORCH[0]
    shop.requests.clear()
    with pytest.raises(HashMismatchError, match="Nothing was installed"):
        envs.create(build(shop, ((torch.file_name, "0" * 64),)), tmp_path / ".venv")
    assert shop.fetched() == []
    shop.faults = Faults(without_hashes=True)  # then only what arrives can be compared
    others = tuple((toy.file_name, sha256(toy)) for toy in TORCH[1:])
    with pytest.raises(HashMismatchError, match=f"expected {'0' * 64}"):
        envs.create(build(shop, ((torch.file_name, "0" * 64), *others)), tmp_path / ".venv")
    assert not (tmp_path / ".venv").exists()


def test_an_index_that_names_no_digest_is_an_error_with_a_way_out(own: Own, shop: ToyIndex, tmp_path: Path) -> None:
    shop.faults = Faults(without_hashes=True)
    shop.requests.clear()
    envs = environments(shop, tmp_path)
    with pytest.raises(IntegrityError, match=r"no SHA-256 for torch 2\.14\.1\+cu130 and 4 other files") as of_torch:
        envs.create(build(shop), tmp_path / "new")
    with pytest.raises(IntegrityError, match=r"no SHA-256 for extra 3\.0") as of_a_package:
        envs.install(own.where, ["extra"])
    assert shop.fetched() == []
    assert not (tmp_path / "new").exists()
    assert "verysecret" not in f"{of_torch.value} {of_a_package.value}"
    assert "PIP_FIND_LINKS" in (of_a_package.value.hint or "")

    folder = tmp_path / "fetched by hand"  # the way out
    folder.mkdir()
    for toy in (*TORCH, EXTRA):
        (folder / toy.file_name).write_bytes(content_of(toy))
    by_hand = {**envs.environ, "PIP_FIND_LINKS": folder.as_uri()}
    replace(envs, environ=by_hand, is_offline=True).create(build(shop), tmp_path / "new")
    del by_hand["PIP_INDEX_URL"]
    replace(envs, environ={**by_hand, "PIP_NO_INDEX": "1"}).install(own.where, ["extra"])
    assert envs.packages is not None
    for where, toys in ((tmp_path / "new", TORCH), (own.where, [EXTRA])):
        packages = envs.packages.read(where)
        assert packages is not None
        digests = {each.name: each.sha256 for each in packages.packages}
        assert {toy.name: sha256(toy) for toy in toys}.items() <= digests.items()


@pytest.mark.parametrize("how", ["planted", "damaged", "link"])
def test_a_wrong_file_in_the_cache_is_not_installed(shop: ToyIndex, tmp_path: Path, how: str) -> None:
    sympy = next(toy for toy in TORCH if toy.name == "sympy")
    planted = content_of(Toy(name="sympy", version="1.14.0", built_version="planted"))
    elsewhere = tmp_path / "mine.whl"
    elsewhere.write_bytes(planted)
    place = tmp_path / "cache" / "wheels" / sha256(sympy) / sympy.file_name
    place.parent.mkdir(parents=True)
    if how == "link":
        place.symlink_to(elsewhere)
    else:
        place.write_bytes(planted if how == "planted" else content_of(sympy)[:-1])
    # With a build number it goes before the one of the index.
    (place.parent / "sympy-1.14.0-9-py3-none-any.whl").write_bytes(planted)
    environments(shop, tmp_path).create(build(shop), tmp_path / ".venv")
    (module,) = (tmp_path / ".venv").rglob("site-packages/sympy/version.py")
    assert "planted" not in module.read_text(encoding="utf-8")
    assert elsewhere.read_bytes() == planted
    assert not place.is_symlink()


@pytest.mark.parametrize("installer", ["pip", "uv"])
@pytest.mark.parametrize("is_held", [False, True])
def test_the_same_file_is_installed_again_from_the_cache_or_the_index(
    own: Own, installer: Literal["pip", "uv"], is_held: bool
) -> None:
    if is_held:
        place = own.where.parent / "cache" / "wheels" / sha256(HELPER) / HELPER.file_name
        place.parent.mkdir(parents=True)
        place.write_bytes(content_of(HELPER))
        own.shop.toys = []
    before = own.files("helper")
    (own.site / "helper" / "version.py").write_text("", encoding="utf-8")
    own.shop.requests.clear()
    own.envs.restore(own.where, ["helper"], installer=installer)
    assert own.changes() == {}
    assert own.files("helper") == before
    assert own.shop.fetched() == ([] if is_held else ["helper-1.0-py3-none-any.whl"])
    assert {path.name for path in (own.where / ".klein-setup").iterdir()} == {
        "constraints.txt",
        "environment.json",
        "packages.txt",
    }


def test_a_pip_that_cannot_say_what_it_would_install_installs_without_a_list(own: Own) -> None:
    def run(args: Sequence[str | Path], **how: Any) -> ProcessResult:  # noqa: ANN401 - handed on
        done = run_process(args, **how)
        return replace(done, stdout="pip 22.1 from here") if args[-1] == "--version" else done

    said: list[str] = []
    replace(own.envs, run=run).install(own.where, ["extra"], progress=said.append)
    assert any("nothing is listed" in line for line in said)
    assert "extra" in {each.name for each in own.envs.observe(own.where).distributions}
    assert own.changes() == {}


def test_an_environment_without_a_folder_of_ours_gets_its_packages(own: Own) -> None:
    """As that of a rehearsal is where the wheel index cannot be reached."""
    shutil.rmtree(own.where / ".klein-setup")
    (own.where / "pip.conf").unlink()
    envs = replace(own.envs, packages=KeptPackages(lambda: own.where.parent / "other state"))
    envs.install(own.where, [f"extra=={EXTRA.version}"])
    assert "extra" in {each.name for each in envs.observe(own.where).distributions}
