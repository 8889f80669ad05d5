"""A models folder of a thousand files is identified in seconds, without reading their tensors."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from provisioner.identify.identification import how_much_to_read, identify
from tests.support.model_headers import header_bytes_of, published

FILES = 1000
# Of processor time: what others do on the machine at the same time is not counted.  Measuring coverage is.
LONGEST_S = 5.0 if sys.gettrace() is None else 30.0


@pytest.mark.skipif(sys.platform == "win32", reason="NTFS reserves what `truncate` asks for; this asks for 6 TB")
def test_a_thousand_files_of_true_size_are_known_in_seconds(tmp_path: Path) -> None:
    kinds = [(name, *header_bytes_of(tensors, metadata)) for name, tensors, metadata in published()]
    paths = []
    for number in range(FILES):
        name, first, size = kinds[number % len(kinds)]
        path = tmp_path / f"{number}-{name}.safetensors"
        with path.open("wb") as stream:
            stream.write(first)
            stream.truncate(size)  # sparse: gigabytes that take no room
        paths.append(path)
    began = time.process_time()
    found = [identify_file(path) for path in paths]
    took = time.process_time() - began
    assert all(found)
    assert took < LONGEST_S, f"{FILES} files took {took:.2f} s"


def identify_file(path: Path) -> bool:
    with path.open("rb") as stream:
        first = stream.read(8)
        first += stream.read(how_much_to_read(first) - 8)
        return identify(first, path.stat().st_size, name=path.name).is_complete
