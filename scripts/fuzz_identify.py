"""Hands a million damaged and hostile beginnings of files to `provisioner.identify`, and times a folder of true ones.

    python3 scripts/fuzz_identify.py [--inputs 1000000] [--seed 1] [--write]

Nothing may raise; every answer has a sentence; a file is called complete only where its size is the one its header
asks for.  The inputs come from one seeded source: mutations of the headers of published files, of GGUF, of what servers
send, and plain random bytes.  It stops by itself.  With --write the result goes to scripts/results/fuzz_identify.md,
which is kept in the repository.
"""

from __future__ import annotations

import argparse
import gc
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from provisioner.cli.entry import GC_THRESHOLD  # noqa: E402
from provisioner.identify.identification import (  # noqa: E402 - through the line above
    how_much_to_read,
    identify,
    pairing_problems,
)
from provisioner.rehearsal.tiny_models import load_table, safetensors_header  # noqa: E402

RESULT = ROOT / "scripts" / "results" / "fuzz_identify.md"
TABLES = ("flux-2-klein-4b-fp8", "qwen_3_4b", "flux2-vae")
FILES = 1000
WHOLE_HEADERS = 400  # one in so many inputs is a published header at its full length, the rest are excerpts
NUMBERS = (b"-1", b"0", b"-0", b"1e400", b"NaN", b"1.5", b"18446744073709551615", b"18446744073709551616", b"9" * 400)
TOKENS = (
    *NUMBERS,
    *(b'"', b"\\", b"\\ud800", b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"[" * 300, b'{"a":' * 300),
    *(b'"dtype":"U8",', b'"__metadata__":{},', b'"shape":[0],', b"\0", b"\xff", b"\xed\xa0\x80", b"<html>"),
)
NAMES = ("", "", "", "x.safetensors", "x-00002-of-00003.safetensors", "x.part", "x.crdownload", "-partial-1", "\ud800")


@dataclass
class Tally:
    """What came of the inputs."""

    inputs: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    raised: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: str = ""


def main() -> int:
    """Run until the number is reached; return 0 only if nothing raised and no promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    gc.set_threshold(GC_THRESHOLD)  # as the program sets it
    files_s, files_cpu_s = time_a_folder()
    began, began_cpu = time.monotonic(), time.process_time()
    tally = run(arguments.inputs, random.Random(arguments.seed))  # noqa: S311 - reproducible inputs
    text = summary(tally, arguments.seed, time.monotonic() - began, time.process_time() - began_cpu)
    text += (
        f"\n{FILES} sparse files with the headers and sizes of {', '.join(TABLES)} were opened, "
        f"read and named in {files_s:.2f} s ({files_cpu_s:.2f} s of processor time), the best of three times.\n"
    )
    print(text)
    if arguments.write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(text, encoding="utf-8")
    return 1 if tally.raised or tally.broken else 0


# --- a folder of true files --------------------------------------------------------------------------


def time_a_folder() -> tuple[float, float]:
    """Return the seconds it takes to name `FILES` files of true size, by the clock and by the processor."""
    tables = [load_table(name) for name in TABLES]
    heads = [(safetensors_header(table.tensors, table.metadata), table.size) for table in tables]
    with tempfile.TemporaryDirectory(prefix="klein-identify-") as folder:
        paths = []
        for number in range(FILES):
            head, size = heads[number % len(heads)]
            path = Path(folder) / f"{number}.safetensors"
            with path.open("wb") as stream:
                stream.write(head)
                stream.truncate(size)
            paths.append(path)
        return min(time_once(paths) for _ in range(3))  # others use the machine, too


def time_once(paths: list[Path]) -> tuple[float, float]:
    """Name every file once."""
    began, began_cpu = time.perf_counter(), time.process_time()
    for path in paths:
        with path.open("rb") as stream:
            first = stream.read(8)
            first += stream.read(how_much_to_read(first) - 8)
            if not identify(first, path.stat().st_size, name=path.name).is_complete:
                raise AssertionError(f"{path} is a true file")
    return time.perf_counter() - began, time.process_time() - began_cpu


# --- inputs ------------------------------------------------------------------------------------------


def run(count: int, source: random.Random) -> Tally:
    """Make `count` inputs and look at every answer."""
    wholes, excerpts, others = beginnings(source)
    tally = Tally()
    for number in range(count):
        if number % WHOLE_HEADERS == 0:
            data = mutated(source.choice(wholes), source)
        elif number % 8 == 0:
            data = source.randbytes(source.randrange(200))
        else:
            data = mutated(source.choice(excerpts if source.random() < 0.7 else others), source)
        judge(data, size_for(data, source), source.choice(NAMES), tally)
    return tally


def beginnings(source: random.Random) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Return headers at full length, excerpts of them, and the beginnings of everything else."""
    wholes, excerpts = [], []
    for name in TABLES:
        table = load_table(name)
        wholes.append(safetensors_header(table.tensors, table.metadata))
        metadata = {key: value[:200] for key, value in table.metadata.items()}
        excerpts += [safetensors_header(source.sample(table.tensors, 5), metadata) for _ in range(20)]
        excerpts.append(safetensors_header(table.tensors[:3], metadata))
    gguf = b"GGUF" + struct.pack("<IQQ", 3, 2, 2)
    for key, value in ((b"general.architecture", b"flux"), (b"general.name", b"x" * 40)):
        gguf += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(value)) + value
    for tensor in (b"img_in.weight", b"double_stream_modulation_img.lin.weight"):
        gguf += struct.pack("<Q", len(tensor)) + tensor + struct.pack("<IQQIQ", 2, 3072, 18432, 12, 0)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 4070624520\n"
    others = [
        *(gguf, pointer, b"<!DOCTYPE html><html><body>", b'{"error":"Repository not found"}', b"Entry not found"),
        *(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", b"PK\x03\x04" + b"archive/data.pkl" * 3),
        *(b"\x08\x07\x12\x07pytorch\x1a\x05", b"\x80\x02}q\x00", b"\x89PNG\r\n\x1a\n", bytes(64)),
        b'{"weight_map": {"a": "x-00001-of-00002.safetensors"}}',
    ]
    return wholes, excerpts, others


def mutated(data: bytes, source: random.Random) -> bytes:
    """Return `data` with some damage; more often than not its length field is made to fit again."""
    damaged = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 4, 9))):
        place = source.randrange(len(damaged) + 1)
        way = source.randrange(5)
        if way == 0 and damaged:
            damaged[place % len(damaged)] = source.randrange(256)
        elif way == 1:
            damaged[place:place] = source.choice(TOKENS)
        elif way == 2:
            del damaged[place : place + source.choice((1, 1, 3, 20))]
        elif way == 3:
            other = source.randrange(len(damaged) + 1)
            damaged[place:place] = damaged[other : other + source.randrange(60)]
        else:
            damaged[place : place + 4] = source.randbytes(4)
    if data[8:9] == b"{" and source.random() < 0.7 and len(damaged) > 8:
        damaged[:8] = struct.pack("<Q", len(damaged) - 8)
    return bytes(damaged)


def size_for(data: bytes, source: random.Random) -> int:
    """Return a size of the file: mostly one that its header may be content with."""
    return source.choice((len(data), len(data), len(data) + source.randrange(100), 4_070_624_520, 2**63, 0, -1))


# --- judging -----------------------------------------------------------------------------------------


def judge(data: bytes, size: int, name: str, tally: Tally) -> None:
    """Identify one input, and keep what is wrong with the answer."""
    began = time.process_time()
    try:
        found = identify(data, size, name=name, tail=data[-100:])
        pairing_problems(found, found, found, steps=4, guidance=2.0)
    except Exception as error:  # whatever it is: this is what the run is for
        tally.raised.append(f"{type(error).__name__} for {data[:200]!r}, {size} bytes, {name!r}")
        return
    took = time.process_time() - began
    tally.inputs += 1
    tally.kinds[found.kind] += 1
    if took > tally.slowest_s and (took := again(data, size, name)) > tally.slowest_s:
        tally.slowest_s, tally.slowest = took, f"{len(data):,} bytes, taken for {found.kind}"
    is_told = bool(found.sentence) and not found.sentence.endswith(".") and len(found.sentence) < 600
    is_true = not found.is_complete or (found.header is not None and found.header.file_size == size)
    if not (is_told and is_true):
        tally.broken.append(f"{found.sentence!r} for {data[:200]!r}, {size} bytes")


def again(data: bytes, size: int, name: str) -> float:
    """Return the seconds an input takes when nothing comes between: the best of three."""
    times = []
    for _ in range(3):
        began = time.process_time()
        identify(data, size, name=name, tail=data[-100:])
        times.append(time.process_time() - began)
    return min(times)


def summary(tally: Tally, seed: int, took_s: float, cpu_s: float) -> str:
    """Return the result as Markdown."""
    rows = "\n".join(f"| {kind} | {count:,} |" for kind, count in sorted(tally.kinds.items()))
    trouble = "".join(f"- {each}\n" for each in (*tally.raised, *tally.broken)[:20])
    return f"""# `scripts/fuzz_identify.py`

Python {sys.version.split()[0]}, {sys.platform}, seed {seed}.

{tally.inputs:,} inputs in {took_s:,.0f} s ({cpu_s:,.0f} s of processor time), one process.
Exceptions: {len(tally.raised)}. Promises broken: {len(tally.broken)}.
Slowest input: {tally.slowest_s * 1000:.1f} ms ({tally.slowest}).
{trouble}
| taken for | inputs |
|---|---:|
{rows}
"""


if __name__ == "__main__":
    raise SystemExit(main())
