"""Whether bf16 pays on this machine's CPU."""

from __future__ import annotations

import functools
import statistics
import time

import torch

__all__ = ["bf16_is_faster"]

#: Rows, width in and width out of the product that is timed: a feed-forward layer of a small encoder over one pack.
_SHAPE = (1024, 384, 1536)


@functools.cache
def bf16_is_faster() -> bool:
    """Whether this CPU multiplies matrices faster in bf16 than in float32.

    It is timed, once a process, because having the instructions is not enough: some processors with AVX512-BF16 but
    without AMX take twice as long in bf16.
    """
    rows, inner, columns = _SHAPE
    factors = {
        dtype: (torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in factors}
    with torch.no_grad():
        for _ in range(7):  # in turns, so that what else runs slows both
            for dtype, (a, b) in factors.items():
                started = time.perf_counter()
                torch.nn.functional.linear(a, b)
                seconds[dtype].append(time.perf_counter() - started)
    return statistics.median(seconds[torch.bfloat16]) < statistics.median(seconds[torch.float32])
