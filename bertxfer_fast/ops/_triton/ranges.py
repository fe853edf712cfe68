"""Products of float32 tiles with half-precision ones on their tensor cores. float16's operands end at 65504."""

from __future__ import annotations

import triton
import triton.language as tl

#: In place of 0, which nothing can be divided by.
TINY = tl.constexpr(1e-30)


@triton.jit
def dot_in_range(x, y, total, PRECISION: tl.constexpr):
    """``total + x @ y`` with float32 ``x`` rounded to the dtype of ``y``. float16 takes rows of 1 at most."""
    if y.dtype == tl.float16:
        largest = tl.maximum(tl.max(tl.abs(x), 1), TINY)
        return total + largest[:, None] * tl.dot((x * (1.0 / largest)[:, None]).to(tl.float16), y)
    return tl.dot(x.to(y.dtype), y, total, input_precision=PRECISION)
