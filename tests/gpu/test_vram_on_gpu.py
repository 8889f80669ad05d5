"""The sampler on a real GPU: the peak rises by what a process allocates."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from provisioner.smoke_test.vram import VramSampler

pytestmark = pytest.mark.gpu

ALLOCATED = 2 * 1024**3
CONTEXT = 2 * 1024**3  # at most, beside what is asked for: CUDA's own, and what torch loads

CHILD = f"""
import sys, torch
block = torch.ones({ALLOCATED} // 4, dtype=torch.float32, device="cuda:0")
torch.cuda.synchronize()
print(torch.cuda.get_device_properties(0).uuid, flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="this interpreter has no torch")
def test_the_peak_rises_by_what_a_process_allocates() -> None:
    with VramSampler(index=0) as before:
        assert before.reason is None
    assert before.reading is not None
    with VramSampler(uuid=before.reading.gpu_uuid) as sampler:
        with subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            sampler.watch(child.pid)
            assert child.stdout.readline().strip(), "torch could not allocate"
            child.communicate("\n", timeout=60)
        assert child.returncode == 0
    reading = sampler.reading
    assert reading is not None
    assert reading.samples > 10
    assert reading.used_at_start_bytes + reading.free_at_start_bytes <= reading.total_bytes
    risen = reading.peak_used_bytes - reading.used_at_start_bytes
    assert ALLOCATED <= risen <= ALLOCATED + CONTEXT
    if reading.peak_process_bytes is not None:  # NVML names processes of the host, a container's may be others
        assert ALLOCATED <= reading.peak_process_bytes <= risen + 256 * 1024**2
