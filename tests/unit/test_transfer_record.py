"""How fast files came is noted with bounded memory, and every byte is counted once."""

from __future__ import annotations

from provisioner.core.events import FileProgress, Notice, Phase, StepFinished
from provisioner.core.models import FetchFile, Outcome
from provisioner.report.transfer_record import MOST_POINTS, FileTimes, TransferRecorder
from tests.support.builders import artifact, comfy_file

VAE = artifact(id="vae")
LABEL = "vae/vae.safetensors"
STEP = FetchFile(artifact=VAE, destination=comfy_file(VAE), reason="missing")


def at(phase: Phase, received: int, label: str = LABEL) -> FileProgress:
    return FileProgress(label=label, phase=phase, size=10**9, bytes_received=received)


def finished() -> StepFinished:
    return StepFinished(step=STEP, outcome=Outcome(step=STEP, status="done", detail=""), number=1, total=1)


def test_the_time_of_a_file_is_divided_among_its_phases() -> None:
    recorder = TransferRecorder()
    for event, now_s in (
        (at("fetching", 0), 100.0),
        (at("fetching", 400), 101.0),
        (at("waiting", 400), 102.5),
        (at("fetching", 1000), 104.5),
        (at("proving", 1000), 105.0),
        (Notice(message="not about a file"), 105.1),
        (finished(), 105.25),
        (finished(), 200.0),
    ):
        recorder.hear(event, now_s)
    record = recorder.record
    assert record is not None
    assert record.files == (FileTimes(path=LABEL, seconds=(("fetching", 3.0), ("waiting", 2.0), ("proving", 0.25))),)
    assert record.interval_s == 0.25
    assert record.received_bytes == (400, *[0] * 13, 600)  # the first byte came at 101.0


def test_nothing_that_was_heard_is_no_record() -> None:
    recorder = TransferRecorder()
    recorder.hear(Notice(message="a word"), 1.0)
    assert recorder.record is None


def test_a_long_run_keeps_every_byte_in_few_points() -> None:
    recorder = TransferRecorder()
    for second in range(10_000):
        recorder.hear(at("fetching", (second + 1) * 1000), float(second))
    record = recorder.record
    assert record is not None
    assert MOST_POINTS // 2 <= len(record.received_bytes) <= MOST_POINTS
    assert sum(record.received_bytes) == 10_000_000
    assert record.interval_s == 64.0
    assert set(record.received_bytes[:-1]) == {64_000}


def test_a_source_that_begins_anew_is_counted_anew() -> None:
    recorder = TransferRecorder()
    for received, now_s in ((500, 0.0), (100, 0.1), (300, 0.2)):
        recorder.hear(at("fetching", received), now_s)
    record = recorder.record
    assert record is not None
    assert record.received_bytes == (800,)


def test_the_number_of_files_is_bounded_too() -> None:
    recorder = TransferRecorder()
    for number in range(1000):
        for now_s in (number, number + 0.5):
            recorder.hear(at("hashing", 0, f"loras/{number}"), now_s)
    record = recorder.record
    assert record is not None
    assert len(record.files) == 200
    assert record.received_bytes == ()
