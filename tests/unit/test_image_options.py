"""What every test image is asked with, and where what comes of it is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provisioner.commands import image_options

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_second_start_within_one_second_does_not_write_over_the_log_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioner.disk.locations.state_folder", lambda: tmp_path)
    monkeypatch.setattr("time.gmtime", lambda: (2026, 11, 27, 8, 0, 0, 4, 331, 0))
    first = image_options.log_path_of("comfyui")
    first.parent.mkdir()
    first.write_text("of the first", encoding="utf-8")

    assert image_options.log_path_of("comfyui") != first
    assert image_options.log_path_of("diffusers").name == "diffusers-20261127T080000Z.txt"
