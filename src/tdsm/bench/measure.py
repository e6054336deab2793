"""Time, peak memory, and the floors: what no way of doing the same work can undercut on this machine."""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tdsm.base.device import room
from tdsm.decomposition.kernels import cpu

SAMPLE_SECONDS = 0.002
BUFFER_BYTES = 2**28


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Run some work to its end and return how long it took."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = work()
    wait()
    seconds = time.perf_counter() - start
    del result
    return seconds


def peak_memory(work: Callable[[], Any], device: torch.device) -> tuple[float, int | None]:
    """Run some work; return its seconds and the bytes it held at most, above what was held before.

    On a GPU as its allocator counts them; on a CPU the resident memory of the process, sampled; None where it
    cannot be read.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        return seconds_of(work, device), torch.cuda.max_memory_allocated(device) - allocated
    _trim()
    before, samples, done = resident_bytes(), [0], threading.Event()
    if before is None:
        return seconds_of(work, device), None

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            samples.append(resident_bytes() or 0)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        seconds = seconds_of(work, device)
    finally:
        done.set()
        sampler.join()
    return seconds, max(0, max(*samples, resident_bytes() or 0) - before)


def resident_bytes() -> int | None:
    """Return the memory this process holds, None where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


def free_bytes(device: torch.device) -> float:
    """Return the memory that can still be had; infinite where the system does not say."""
    if device.type == "cuda":
        return float(room(device))
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    return kilobytes[0] * 1024.0 if kilobytes else float("inf")


def bandwidth(device: torch.device) -> float:
    """Measure how many bytes a second can be written: the median of seven fills of 256 MiB."""
    buffer = torch.empty(BUFFER_BYTES, dtype=torch.uint8, device=device)
    buffer.fill_(1)
    return BUFFER_BYTES / median(seconds_of(lambda: buffer.fill_(1), device) for _ in range(7))


def gated_floor(count: int, device: torch.device) -> Callable[[], Any]:
    """Return work that sums `count` bare gated units; needs the compiled kernel of the device."""
    if device.type == "cuda":
        from tdsm.decomposition.kernels import gpu

        return lambda: gpu.bare(count, device)
    return lambda: cpu.bare(count)


def load_average() -> float | None:
    """Return the processes that wanted to run in the last minute, on average; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _trim() -> None:
    """Give freed memory back to the system, so that using it again is seen; Linux with glibc alone can be told to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
