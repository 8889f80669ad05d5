"""Releases of ComfyUI that are known to fail: each row on a machine it is about, and on others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.comfyui.known_bad import known_bad
from provisioner.comfyui.release_models import KnownBad
from provisioner.comfyui.releases import parse_comfy_table
from provisioner.core.errors import ManifestError
from provisioner.core.models import Gpu, Machine, OperatingSystem
from provisioner.manifest.shipped import read_table_text

TEXT, FILE = read_table_text("comfyui")
TABLE = parse_comfy_table(TEXT, file=FILE)
TREE = Path("/c")


def machine_of(row: KnownBad) -> Machine:
    """Return a machine that a row is about."""
    gpu = Gpu(
        vendor=row.vendor or "nvidia",
        name="x",
        index=0,
        compute_capability=divmod(row.min_sm or 89, 10),
        architecture=next(iter(row.architectures), "gfx906"),
    )
    gpus = tuple(replace(gpu, index=at) for at in range(row.min_gpus or 1))
    return Machine(os=row.os or "linux", os_release="1", is_wsl=row.is_wsl, architecture="x86_64", libc=None,
                   python_version="3.12.3", gpus=gpus, memory_total_bytes=16 * 2**30)  # fmt: skip


def symptoms(version: str | None, machine: Machine) -> str:
    """Return what is said of a release on a machine."""
    return " ".join(each.message for each in known_bad(version, machine, TABLE, tree=TREE))


@pytest.mark.parametrize("row", TABLE.known_bad, ids=lambda row: row.id)
def test_a_row_warns_on_its_machines_and_its_releases_only(row: KnownBad) -> None:
    machine = machine_of(row)
    assert row.symptom in symptoms(row.since, machine)
    assert row.symptom not in symptoms("0.3.1", machine)
    assert row.before is None or row.symptom not in symptoms(row.before, machine)
    assert row.symptom not in symptoms(row.since, replace(machine, gpus=()))
    other: OperatingSystem = "linux" if row.os == "windows" else "windows"
    assert row.os is None or row.symptom not in symptoms(row.since, replace(machine, os=other))
    assert not row.is_wsl or row.symptom not in symptoms(row.since, replace(machine, is_wsl=False))
    assert row.min_gpus is None or row.symptom not in symptoms(row.since, replace(machine, gpus=machine.gpus[:1]))
    roomy = replace(machine, memory_total_bytes=64 * 2**30)
    assert row.max_memory_gb is None or row.symptom not in symptoms(row.since, roomy)
    old = replace(machine.gpus[0], compute_capability=(7, 5), architecture="gfx900")
    assert not (row.min_sm or row.architectures) or row.symptom not in symptoms(
        row.since, replace(machine, gpus=(old,))
    )


def test_the_warning_names_the_thread_and_what_works() -> None:
    row = next(each for each in TABLE.known_bad if each.id == "memory-0.34.3")
    (found,) = known_bad("0.34.3", machine_of(row), TABLE, tree=TREE)
    assert (found.code, found.severity, found.path) == ("comfyui-known-bad", "warning", TREE)
    assert "Comfy-Org/ComfyUI#16138" in found.message
    assert found.hint == "Known to work: 0.34.2."


@pytest.mark.parametrize("version", [None, "unknown", "0.33.0"])
def test_nothing_is_said_of_the_pinned_release_on_linux_or_of_an_unknown_one(version: str | None) -> None:
    assert symptoms(version, machine_of(next(each for each in TABLE.known_bad if each.id == "memory-0.34.3"))) == ""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('before: "0.30.2"', 'before: "0.29.0"', "not newer than 'since'"),
        ("id: file-reader", "id: read-file-slice", "twice"),
        ("vendor: nvidia", "vendor: nvidea", "vendor"),
        ("threads: [Comfy-Org/ComfyUI#12943]", "threads: ['#12943']", "a thread like"),
    ],
)
def test_a_row_with_a_mistake_is_refused(old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(ManifestError) as caught:
        parse_comfy_table(TEXT.replace(old, new, 1), file=FILE)
    assert any(said in each for each in caught.value.issues)
