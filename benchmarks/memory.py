"""Peak memory of one call, read from the kernel: what the process held at most, less what it held before.

Linux keeps a high-water mark of resident memory (VmHWM), and writing "5" to /proc/self/clear_refs lowers it to what
is resident now. Freed memory that the allocator still holds would hide what a call needs, so it goes back first. On a
GPU torch's own allocator keeps the mark (:mod:`.device`).
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path

from . import device

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def peak_extra_bytes(call: Callable[[], object]) -> int | None:
    """Bytes that ``call`` needs at its peak, its results included; None where that cannot be read.

    Memory that is allocated but never touched does not count, nor does what the process keeps from earlier calls in
    caches of its own: call it once before.
    """
    if unavailable() is not None:
        return None
    gc.collect()
    if device.TENSORS == "cuda":
        return device.peak_extra_bytes(call)
    ctypes.CDLL(None).malloc_trim(0)
    before = _kilobytes("VmRSS")
    _CLEAR.write_text("5")
    kept = call()
    peak = _kilobytes("VmHWM")
    del kept
    return max(peak - before, 0) * 1024


@cache
def unavailable() -> str | None:
    """Why peak memory cannot be read here, or None if it can."""
    if device.TENSORS == "cuda":
        return None
    try:
        _CLEAR.write_text("5")
        ctypes.CDLL(None).malloc_trim(0)
    except OSError as error:
        return f"{_CLEAR} cannot be written: {error.strerror}"
    except AttributeError:
        return "this C library has no malloc_trim"
    return None


def available_bytes() -> int | None:
    """What the machine (or the GPU) can still give before it swaps or kills; None where it does not say."""
    if device.TENSORS == "cuda":
        return device.available_bytes()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _kilobytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])
