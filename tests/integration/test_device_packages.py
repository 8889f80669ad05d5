"""A torch set whose GPU code is in packages of its own, from an index without SHA-256: as AMD's is, with real pip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from provisioner.core.errors import EntryNotFoundError, HashMismatchError, IntegrityError
from provisioner.environment.kept_packages import KeptPackages
from provisioner.environment.state import EnvironmentReceipt, visible_devices
from provisioner.environment.swap import CONSTRAINTS
from provisioner.machine.process import run_process
from provisioner.torch.builds import TorchBuild, TorchSet
from tests.support.quick_venv import QuickEnvironments
from tests.support.wheels import Faults, Source, Toy, ToyIndex, serving, wheel_cache

TAG = "rocm10.0.0"
SET = TorchSet(torch="2.13.0", torchvision="0.28.0", torchaudio="2.11.0.2")
EXTRAS = ("device-gfx1100", "device-gfx1201")
AMD = [
    Toy(
        name="torch",
        version=f"2.13.0+{TAG}",
        extras=EXTRAS,
        requires=(
            "rocm[libraries]==10.0.0",
            *(f'amd-torch-{each}==2.13.0+{TAG}; extra == "{each}"' for each in EXTRAS),
        ),
        has_script=True,
    ),
    Toy(
        name="torchvision",
        version=f"0.28.0+{TAG}",
        extras=EXTRAS,
        requires=("torch==2.13.0", *(f'amd-torchvision-{each}==0.28.0+{TAG}; extra == "{each}"' for each in EXTRAS)),
    ),
    Toy(name="torchaudio", version=f"2.11.0.2+{TAG}"),
    *(Toy(name=f"amd_torch_{each.replace('-', '_')}", version=f"2.13.0+{TAG}") for each in EXTRAS),
    *(Toy(name=f"amd_torchvision_{each.replace('-', '_')}", version=f"0.28.0+{TAG}") for each in EXTRAS),
    Source(
        name="rocm",
        version="10.0.0",
        extras=("libraries",),
        requires=("rocm-bootstrap==0.1.0", 'rocm-sdk-libraries==10.0.0; extra == "libraries"'),
    ),
    Toy(name="rocm_bootstrap", version="0.1.0"),
    Toy(name="rocm_sdk_libraries", version="10.0.0"),
]
STRANGER = Toy(name="rocm_bootstrap", version="9.0")  # what another index has under that name

PROBE = """
import json, os, sys, torch, torchvision, torchaudio
asked = json.loads(sys.argv[2])["expect"]
found = ["gfx1036", "gfx1100"]
devices = [{"index": at, "kind": "rocm", "name": each, "architecture": each,
            "checks": ["float32"] if each in asked["architectures"] else []} for at, each in enumerate(found)]
modules = (torch, torchvision, torchaudio)
print(json.dumps({"ok": True, "failures": [], "devices": devices, "python": sys.version.split()[0],
    "packages": {each.__name__: each.__version__ for each in modules}, "torch": {"arch_list": []}}))
"""


@pytest.fixture(scope="module")
def index() -> Iterator[ToyIndex]:
    with serving(AMD) as index:
        yield index


@pytest.fixture
def shop(index: ToyIndex) -> Iterator[ToyIndex]:
    """The index, with what it offers as AMD offers it."""
    index.toys, index.faults = list(AMD), Faults(without_hashes=True, without_metadata=True)
    yield index
    index.toys, index.faults = list(AMD), Faults(without_hashes=True, without_metadata=True)


def build(shop: ToyIndex, *targets: str) -> TorchBuild:
    return TorchBuild(
        torch_backend=TAG,
        index_url=shop.url,
        local_tag=TAG,
        sets=(SET,),
        targets=targets or ("gfx1100",),
        device_extras=tuple(f"device-{each}" for each in targets or ("gfx1100",)),
        source_packages=("rocm",),
        is_alone=True,
        names_digests=False,
    )


def environments(tmp: Path, other_index: str | None = None, *, is_offline: bool = False) -> QuickEnvironments:
    script = tmp / "toy_probe.py"
    script.write_text(PROBE, encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "PYTHON"))}
    environ |= {"PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    environ |= {"PIP_INDEX_URL": other_index} if other_index else {}
    return QuickEnvironments(
        run=run_process,
        cache=wheel_cache(tmp / "cache"),
        environ=environ,
        home=tmp,
        packages=KeptPackages(lambda: tmp / "state"),
        probe_script=script,
        is_offline=is_offline,
    )


@dataclass(frozen=True)
class Made:
    """An environment that was made once."""

    home: Path
    receipt: EnvironmentReceipt
    said: list[str]
    fetched: list[str]

    @property
    def where(self) -> Path:
        return self.home / ".venv"


@pytest.fixture(scope="module")
def made(index: ToyIndex, tmp_path_factory: pytest.TempPathFactory) -> Made:
    index.toys, index.faults = list(AMD), Faults(without_hashes=True, without_metadata=True)
    home, said = tmp_path_factory.mktemp("made"), list[str]()
    receipt = environments(home).create(build(index), home / ".venv", progress=lambda line: said.append(str(line)))
    return Made(home, receipt, said, index.fetched())


def installed(where: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in where.glob("lib/python*/site-packages/*.dist-info")}


def test_the_packages_of_the_card_are_installed_and_those_of_others_are_not(made: Made) -> None:
    names = installed(made.where)
    assert {"amd_torch_device_gfx1100", "amd_torchvision_device_gfx1100", "rocm", "rocm_sdk_libraries"} <= names
    assert not {"amd_torch_device_gfx1201", "amd_torchvision_device_gfx1201"} & names
    assert f"amd_torch_device_gfx1100-2.13.0+{TAG}-py3-none-any.whl" in made.fetched
    assert f"amd_torch_device_gfx1201-2.13.0+{TAG}-py3-none-any.whl" not in made.fetched
    assert dict(made.receipt.versions)["torchaudio"] == "2.11.0.2+rocm10.0.0"
    assert any("publishes no SHA-256" in line for line in made.said)


def test_a_card_that_is_added_gets_its_packages_beside_those_of_the_first(shop: ToyIndex, tmp_path: Path) -> None:
    envs, where = environments(tmp_path), tmp_path / ".venv"
    envs.create(build(shop), where)
    envs.repair(build(shop, "gfx1100", "gfx1201"), where)
    both = {f"{name}_device_{gfx}" for name in ("amd_torch", "amd_torchvision") for gfx in ("gfx1100", "gfx1201")}
    assert both <= installed(where)


def test_what_arrived_is_listed_by_its_sha256_and_everything_is_held(made: Made) -> None:
    packages = KeptPackages(lambda: made.home / "state").read(made.where)
    assert packages is not None
    by_name = {each.name: each.sha256 for each in packages.packages}
    assert by_name.pop("rocm") is None  # built here: made again it has another digest
    assert all(by_name.values())
    held = (made.where / CONSTRAINTS).read_text(encoding="utf-8").split()
    assert {"rocm==10.0.0", "rocm-bootstrap==0.1.0", f"amd-torch-device-gfx1100==2.13.0+{TAG}"} <= set(held)
    assert all("[" not in line for line in held)  # pip takes no extras in constraints


def test_a_file_that_is_published_anew_is_refused_afterwards(shop: ToyIndex, made: Made) -> None:
    envs = environments(made.home)
    shop.toys = [replace(each, padding=100) if each.name == "amd_torch_device_gfx1100" else each for each in shop.toys]
    with pytest.raises(HashMismatchError, match="amd_torch_device_gfx1100"):
        envs.repair(build(shop), made.where)
    shop.toys = list(AMD)
    envs.repair(build(shop), made.where)


def test_the_index_is_never_used_together_with_another(shop: ToyIndex, tmp_path: Path) -> None:
    shop.toys = [each for each in AMD if each.name != "rocm_bootstrap"]
    with serving([STRANGER, replace(STRANGER, version="0.1.0")]) as other:
        with pytest.raises(EntryNotFoundError, match="rocm-bootstrap"):
            environments(tmp_path, other.url).create(build(shop), tmp_path / ".venv")
        assert other.requests == []
    assert not (tmp_path / ".venv").exists()


def test_the_cache_makes_the_next_environment_without_a_network(shop: ToyIndex, made: Made) -> None:
    shop.requests.clear()
    environments(made.home, is_offline=True).create(build(shop), made.home / "other")
    assert shop.requests == []
    assert "amd_torch_device_gfx1100" in installed(made.home / "other")


def test_an_index_without_sha256_is_refused_where_the_table_does_not_say_so(shop: ToyIndex, tmp_path: Path) -> None:
    strict = replace(build(shop), names_digests=True, source_packages=())
    shop.toys = [each for each in AMD if each.name != "rocm"] + [Toy(name="rocm", version="10.0.0")]
    shop.faults = Faults(without_hashes=True)
    with pytest.raises(IntegrityError, match="names no SHA-256"):
        environments(tmp_path).create(strict, tmp_path / ".venv")


def test_only_the_card_has_to_compute_and_comfyui_is_shown_no_other(made: Made) -> None:
    """The receipt says which device computed; the variable that hides the others is made of it."""
    assert made.receipt.probe is not None
    assert [(each.architecture, each.checks) for each in made.receipt.probe.devices] == [
        ("gfx1036", ()),
        ("gfx1100", ("float32",)),
    ]
    assert visible_devices(made.receipt) == {"HIP_VISIBLE_DEVICES": "1"}
