"""Which device the benchmarks measure, and how time and memory are read on a GPU.

One set of problems serves both. The environment says which:

- ``BERTXFER_BENCH_DEVICE``: ``cpu`` (default) or ``cuda``;
- ``BERTXFER_BENCH_DRY=1``: the way of CUDA without a GPU, on CPU tensors under the host's clock, to try it out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from bertxfer_fast.ops._dispatch import backend as _backend

Call = Callable[[], object]

#: Our backends, of which those of `OURS` are what users get.
BACKENDS_OF = {"cpu": ("cpp", "eager"), "cuda": ("triton", "cuda")}

KIND = os.environ.get("BERTXFER_BENCH_DEVICE", "cpu")
if KIND not in BACKENDS_OF:
    raise ValueError(f"BERTXFER_BENCH_DEVICE: got {KIND!r}, want cpu or cuda")
ON_GPU = KIND == "cuda"
DRY = bool(os.environ.get("BERTXFER_BENCH_DRY"))
TENSORS = "cpu" if DRY else KIND  # where tensors are made

BACKENDS = BACKENDS_OF[KIND]
OURS = BACKENDS if ON_GPU else BACKENDS[:1]

_FLUSHED = 2.5  # times the second-level cache that is read before each call
_AHEAD, _LONGEST_SLEEP = 1.5, 0.02  # times what issuing a call takes the host; and at most so many seconds
_FASTEST_CLOCK = 2e9  # cycles a second: a slower clock only sleeps longer


def why_not(operator: str, backend: str) -> str | None:
    """Why a backend of ours cannot be measured, or None. On the CPU nobody asks: there it must be able to."""
    reason = _backend.unavailable(operator, backend, TENSORS) if ON_GPU else None
    return None if reason is None else f"cannot run: {reason}"


class Events:
    """Times calls by CUDA events.

    Before each call other data is read until the second-level cache holds nothing else, and nothing that would have to
    be written back while the call runs. Then the GPU is told to wait, a little longer than the host needs to issue
    the call: so the time between the events is the device's, without gaps in which it waits for the host, as in a
    training whose host runs ahead. What the host needs is `host_seconds`.
    """

    def __init__(self, cuda: Any = torch.cuda, where: str = "cuda") -> None:
        self.cuda = cuda
        cache = cuda.get_device_properties(cuda.current_device()).L2_cache_size
        self.other = torch.ones(int(_FLUSHED * cache) // 4, device=where)
        self.sum = torch.empty((), device=where)
        self.start, self.end = (cuda.Event(enable_timing=True) for _ in range(2))
        self.ahead: dict[Call, float] = {}

    def host_seconds(self, call: Call, tries: int = 3) -> float:
        """What the host needs to issue ``call``; call it once before."""
        taken = []
        for _ in range(tries):
            self.cuda.synchronize()
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
        self.cuda.synchronize()
        self.ahead[call] = sorted(taken)[tries // 2]
        return self.ahead[call]

    def seconds(self, call: Call, calls: int = 1) -> float:
        """Device time of one call, of ``calls`` that are timed together."""
        wait = min(_AHEAD * calls * self.ahead.get(call, 0.0) + 50e-6, _LONGEST_SLEEP)
        torch.sum(self.other, dim=0, out=self.sum)
        self.cuda._sleep(int(wait * _FASTEST_CLOCK))
        self.start.record()
        for _ in range(calls):
            call()
        self.end.record()
        self.cuda.synchronize()
        return float(self.start.elapsed_time(self.end)) * 1e-3 / calls


def peak_extra_bytes(call: Call, cuda: Any = torch.cuda) -> int:
    """Bytes of torch's allocator that ``call`` needs at its peak, its results included."""
    cuda.synchronize()
    before = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    kept = call()
    cuda.synchronize()
    peak = cuda.max_memory_allocated()
    del kept
    return int(peak - before)


def available_bytes(cuda: Any = torch.cuda) -> int:
    """What the GPU can still give, torch's own cache counted in."""
    return int(cuda.mem_get_info()[0] + cuda.memory_reserved() - cuda.memory_allocated())


def why_failed(error: BaseException) -> str:
    """One line for the results."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "runs out of memory"
    first = (str(error).strip().splitlines() or [""])[0]
    return f"fails: {type(error).__name__}: {first[:200]}"


def usable(cuda: Any = torch.cuda) -> bool:
    """Whether the GPU still answers: after an illegal access nothing does in this process."""
    if TENSORS != "cuda":
        return True
    try:
        cuda.synchronize()
    except Exception:
        return False
    return True
