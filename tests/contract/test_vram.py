"""The sampler of GPU memory over an NVML that answers, fails or fails only once, with the binding's own errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from provisioner.smoke_test.results import CardUse, VramReading
from provisioner.smoke_test.vram import VramSampler, parents_of, uses_of

GIB = 1024**3
UUID = "GPU-00000000-0000-0000-0000-000000000001"
TOTAL = 12 * GIB
RESERVED = GIB // 4
NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
UNKNOWN = pynvml.NVML_ERROR_UNKNOWN
QUESTIONS = (
    "nvmlInit",
    "nvmlShutdown",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
)


def process(pid: int, used: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


class Nvml:
    """A card of 12 GiB whose use goes through `used`, a step at every look, and stays at the last.

    `refused` maps a question to the code it is refused with; the memory question can be refused at one look alone.
    """

    NVMLError = pynvml.NVMLError
    nvmlMemory_v2 = pynvml.nvmlMemory_v2

    def __init__(self, used: Sequence[int] = (GIB,), *, refused: dict[str, int] | None = None) -> None:
        self.used = list(used)
        self.refused = refused or {}
        self.failing_looks: set[int] = set()
        self.looks = 0
        self.compute: list[SimpleNamespace] = []
        self.graphics: list[SimpleNamespace] = []
        self.open_count = 0
        self.asked: list[str] = []
        self.seen = threading.Condition()

    def _ask(self, question: str) -> None:
        self.asked.append(question)
        if question in self.refused:
            raise pynvml.NVMLError(self.refused[question])

    def nvmlInit(self) -> None:
        self._ask("nvmlInit")
        self.open_count += 1

    def nvmlShutdown(self) -> None:
        self.open_count -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._ask("nvmlDeviceGetHandleByUUID")
        if uuid != UUID:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index != 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return "handle"

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        self._ask("nvmlDeviceGetName")
        return b"NVIDIA GeForce RTX 4070"

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        self._ask("nvmlDeviceGetUUID")
        return UUID

    def nvmlDeviceGetMemoryInfo(self, handle: str, version: int | None = None) -> SimpleNamespace:
        self._ask("memory v2" if version else "memory v1")
        look, self.looks = self.looks, self.looks + 1
        with self.seen:
            self.seen.notify_all()
        if look in self.failing_looks:
            raise pynvml.NVMLError(UNKNOWN)
        used = self.used[min(max(0, look - 1), len(self.used) - 1)]  # the first question is for the size of the card
        reserved = 0 if version else RESERVED
        return SimpleNamespace(total=TOTAL, used=used + reserved, free=TOTAL - used - RESERVED)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        self._ask("nvmlDeviceGetComputeRunningProcesses")
        return self.compute

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        self._ask("nvmlDeviceGetGraphicsRunningProcesses")
        return self.graphics

    def wait_for(self, looks: int) -> None:
        """Wait until the card was looked at so often."""
        with self.seen:
            assert self.seen.wait_for(lambda: self.looks >= looks, timeout=20)


def no_parents(pid: int) -> tuple[int, ...]:
    return ()


def sampled(nvml: Nvml, looks: int = 6, **options: object) -> VramSampler:
    """Return a sampler that looked so often, and has ended."""
    given: dict[str, Any] = {"uuid": UUID, "interval_s": 0.001, "parents": no_parents, **options}
    with VramSampler(library=nvml, **given) as sampler:
        if sampler.reason is None:
            nvml.wait_for(looks)
    return sampler


def reading_of(nvml: Nvml, looks: int = 6, **options: object) -> VramReading:
    reading = sampled(nvml, looks, **options).reading
    assert reading is not None
    return reading


def test_every_question_exists_in_the_real_binding() -> None:
    assert [name for name in QUESTIONS if not callable(getattr(pynvml, name, None))] == []
    assert "usedGpuMemory" in [name for name, *_ in pynvml.c_nvmlProcessInfo_v2_t._fields_]


def test_the_peak_is_kept_beside_the_memory_at_the_start() -> None:
    nvml = Nvml([2 * GIB, 3 * GIB, 9 * GIB, 4 * GIB])
    reading = reading_of(nvml, looks=8)
    assert reading.gpu_name == "NVIDIA GeForce RTX 4070"
    assert reading.gpu_uuid == UUID
    assert reading.total_bytes == TOTAL
    assert reading.used_at_start_bytes == 2 * GIB
    assert reading.free_at_start_bytes == TOTAL - 2 * GIB - RESERVED
    assert reading.peak_used_bytes == 9 * GIB
    assert reading.peak_process_bytes is None
    assert reading.samples >= 7
    assert nvml.open_count == 0


def test_the_memory_over_time_is_kept_in_few_points_with_when_each_part_began() -> None:
    nvml = Nvml([2 * GIB, 3 * GIB, 9 * GIB, *[4 * GIB] * 2000])
    with VramSampler(UUID, library=nvml, interval_s=0.0001, parents=no_parents) as sampler:
        nvml.wait_for(300)
        sampler.begin("load")
        sampler.begin("load")
        nvml.wait_for(1200)
        sampler.begin("sample")
    reading = sampler.reading
    assert reading is not None
    assert reading.samples >= 1000
    assert 100 < len(reading.curve) <= 240
    assert reading.curve[0][1] == 2 * GIB
    assert max(used for _, used in reading.curve) == reading.peak_used_bytes == 9 * GIB
    times = [at_s for at_s, _ in reading.curve]
    assert times == sorted(times)
    assert [name for name, _ in reading.phases] == ["start", "load", "sample"]
    began = [at_s for _, at_s in reading.phases]
    assert 0 <= began[0] < began[1] < began[2] <= times[-1] + 1


def test_a_server_that_goes_back_and_forth_keeps_few_parts() -> None:
    sampler = VramSampler(library=Nvml([GIB]))
    with sampler:
        for number in range(1000):
            sampler.begin(("load", "encode")[number % 2])
    assert sampler.reading is not None
    assert len(sampler.reading.phases) == 50


def test_the_first_look_is_taken_before_anything_can_start() -> None:
    nvml = Nvml([GIB])
    with VramSampler(UUID, library=nvml, interval_s=60) as sampler:
        assert sampler.reading is not None
        assert sampler.reading.samples == 1
    assert sampler.reading.samples == 2  # and one at the end, however long the interval is


def test_while_it_is_paused_nothing_is_measured_and_no_time_passes() -> None:
    nvml, began = Nvml(), time.monotonic()
    with VramSampler(UUID, library=nvml, interval_s=0.001, parents=no_parents) as sampler:
        nvml.wait_for(3)
        sampler.pause()
        time.sleep(0.05)  # a look that was under way
        looks = nvml.looks
        time.sleep(0.5)
        assert nvml.looks == looks
        sampler.resume()
        sampler.begin("load")
        nvml.wait_for(looks + 3)
        sampler.resume()  # of one that goes on: nothing
    reading = sampler.reading
    assert reading is not None
    assert reading.phases[-1][0] == "load"
    assert reading.phases[-1][1] <= reading.curve[-1][0] < time.monotonic() - began - 0.5


def test_leaving_does_not_wait_for_the_interval() -> None:
    before = time.monotonic()
    with VramSampler(UUID, library=Nvml(), interval_s=60):
        pass
    assert time.monotonic() - before < 5


def test_an_error_inside_comes_out_and_nvml_is_closed() -> None:
    nvml = Nvml()
    with pytest.raises(KeyError), VramSampler(UUID, library=nvml) as sampler:
        raise KeyError
    assert nvml.open_count == 0
    assert sampler.reading is not None


def test_without_a_uuid_the_index_counts() -> None:
    assert reading_of(Nvml(), uuid=None, index=0).gpu_uuid == UUID


def test_the_first_question_serves_where_the_second_is_unknown() -> None:
    nvml = Nvml([GIB, 5 * GIB], refused={"memory v2": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
    reading = reading_of(nvml)
    assert reading.peak_used_bytes == 5 * GIB + RESERVED  # which counts what the driver keeps
    assert nvml.asked.count("memory v2") == 1


def test_looks_that_fail_are_left_out_and_the_question_stays_the_same() -> None:
    nvml = Nvml([GIB, GIB, 7 * GIB])
    nvml.failing_looks = {2, 4}
    reading = reading_of(nvml, looks=8)
    assert reading.peak_used_bytes == 7 * GIB
    assert "memory v1" not in nvml.asked


# --- whose memory it is -----------------------------------------------------------------------------


def test_the_image_process_and_its_children_are_measured_separately() -> None:
    nvml = Nvml([8 * GIB])
    nvml.compute = [process(100, 2 * GIB), process(101, 3 * GIB), process(7, GIB)]
    nvml.graphics = [process(100, 2 * GIB), process(8, GIB)]  # 100 computes and renders
    asked: list[int] = []

    def parents(pid: int) -> tuple[int, ...]:
        asked.append(pid)
        return {101: (100, 1), 7: (1,), 8: (1,)}[pid]

    assert reading_of(nvml, pids=[100], parents=parents).peak_process_bytes == 5 * GIB
    assert sorted(asked) == [7, 8, 101]  # each once, however often it was looked at


def test_a_process_that_is_named_later_counts_from_then_on() -> None:
    nvml = Nvml([8 * GIB])
    nvml.compute = [process(100, 2 * GIB)]
    with VramSampler(UUID, library=nvml, interval_s=0.001, parents=no_parents, pids=[5]) as sampler:
        nvml.wait_for(4)
        assert sampler.reading is not None
        assert sampler.reading.peak_process_bytes is None
        sampler.watch(100)
        nvml.wait_for(nvml.looks + 3)
    assert sampler.reading is not None
    assert sampler.reading.peak_process_bytes == 2 * GIB


def test_a_driver_that_names_processes_without_bytes_leaves_it_open() -> None:
    nvml = Nvml([8 * GIB])
    nvml.compute = [process(100, None)]  # Windows with WDDM
    reading = reading_of(nvml, pids=[100])
    assert reading.peak_process_bytes is None
    assert reading.peak_used_bytes == 8 * GIB


def test_process_ids_of_another_namespace_leave_it_open() -> None:
    nvml = Nvml([8 * GIB])
    nvml.compute = [process(40_000, 2 * GIB)]
    assert reading_of(nvml, pids=[100]).peak_process_bytes is None


def test_lists_that_are_not_supported_are_asked_for_once() -> None:
    names = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
    nvml = Nvml([GIB], refused=dict.fromkeys(names, NOT_SUPPORTED))
    assert reading_of(nvml, pids=[100]).peak_process_bytes is None
    assert [nvml.asked.count(name) for name in names] == [1, 1]


def test_a_list_that_fails_for_a_moment_is_asked_for_again() -> None:
    nvml = Nvml([GIB], refused={"nvmlDeviceGetComputeRunningProcesses": pynvml.NVML_ERROR_INSUFFICIENT_SIZE})
    nvml.compute = [process(100, GIB)]
    with VramSampler(UUID, library=nvml, interval_s=0.001, parents=no_parents, pids=[100]) as sampler:
        nvml.wait_for(4)
        nvml.refused.clear()
        nvml.wait_for(nvml.looks + 3)
    assert sampler.reading is not None
    assert sampler.reading.peak_process_bytes == GIB


def test_a_process_that_is_gone_has_no_parents() -> None:
    assert parents_of(2**31 - 2) == ()


# --- no reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lambda: Nvml(refused={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}), {}, "NVML cannot be used: "),
        (lambda: Nvml(refused={"nvmlInit": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}), {}, "Driver Not Loaded"),
        (Nvml, {"uuid": "GPU-other"}, "NVML does not report the memory of GPU-other: Not Found"),
        (Nvml, {"uuid": None, "index": 3}, "NVML does not report the memory of GPU 3: Invalid Argument"),
        (
            lambda: Nvml(refused={"memory v2": NOT_SUPPORTED, "memory v1": NOT_SUPPORTED}),
            {},
            f"NVML does not report the memory of {UUID}: Not Supported",
        ),
    ],
    ids=["no library", "no driver", "no such UUID", "no such index", "no memory"],
)
def test_where_nothing_can_be_measured_the_reason_is_given(
    make: Callable[[], Nvml], options: dict[str, Any], said: str
) -> None:
    nvml = make()
    sampler = sampled(nvml, **options)
    assert sampler.reading is None
    assert said in (sampler.reason or "")
    assert nvml.open_count == 0


def test_a_name_and_a_uuid_that_are_refused_cost_no_reading() -> None:
    nvml = Nvml(refused={"nvmlDeviceGetName": UNKNOWN, "nvmlDeviceGetUUID": NOT_SUPPORTED})
    reading = reading_of(nvml, uuid=None)
    assert (reading.gpu_name, reading.gpu_uuid) == ("GPU", None)


def test_before_it_began_there_is_nothing() -> None:
    sampler = VramSampler(library=Nvml())
    assert sampler.reading is None
    assert sampler.reason == "nothing was measured yet"


def test_this_machine_with_or_without_a_driver_gives_a_reading_or_a_reason() -> None:
    with VramSampler(index=0) as sampler:
        pass
    assert (sampler.reading is None) == (sampler.reason is not None)


# --- which card a process uses -----------------------------------------------------------------


def test_a_card_is_ours_where_a_process_of_ours_or_of_its_children_is_listed() -> None:
    nvml = Nvml([3 * GIB])
    nvml.compute = [process(40, None), process(7, GIB)]  # Windows lists processes without their memory
    asked: dict[str, Any] = {"library": nvml, "parents": lambda pid: (4,) if pid == 40 else ()}
    assert uses_of([UUID, "GPU-gone"], [4], **asked) == (CardUse(uuid=UUID, used_bytes=3 * GIB, is_ours=True),)
    assert [each.is_ours for each in uses_of([UUID], [5], **asked)] == [False]
    assert [each.is_ours for each in uses_of([UUID], **asked)] == [False]
    assert nvml.open_count == 0


def test_without_nvml_nothing_is_known_of_any_card() -> None:
    assert uses_of([UUID], [4], library=Nvml(refused={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})) == ()
    refused = {"memory v1": UNKNOWN, "memory v2": UNKNOWN}
    assert uses_of([UUID], [4], library=Nvml(refused=refused)) == ()
