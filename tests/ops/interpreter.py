"""Triton's interpreter, in which kernels run on CPU tensors: set up before Triton is imported."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest


def use_interpreter() -> None:
    """From now on kernels are interpreted, unless the environment says otherwise."""
    os.environ.setdefault("TRITON_INTERPRET", "1")


def reason_to_skip() -> str | None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton compiles here (TRITON_INTERPRET is not 1)"
    try:
        import triton.runtime.interpreter
    except ImportError as error:
        return f"no Triton: {error}"
    return _too_old(triton.__version__, np.__version__)


def _too_old(triton: str, numpy: str) -> str | None:
    """Triton's interpreter up to 3.6 takes arrays of one element for numbers, which NumPy no longer does."""
    old, new = (tuple(int(x) for x in version.split(".")[:2]) for version in (triton, numpy))
    if old <= (3, 6) and new >= (2, 4):
        return f"the interpreter of Triton {triton} does not run with NumPy {numpy}, want a newer Triton or NumPy 2.3"
    return None


def mend_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bfloat16 as uint16: its `dot` multiplies those bits, and its rounding cuts them off.

    A GPU multiplies the numbers, and rounds to the nearest.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        bits = x.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *args: Any) -> Any:
        return dot(self, widened(a), widened(b), d, *args)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, target)
        bits = np.ascontiguousarray(source.data).view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties to even
        rounded = np.where(np.isnan(source.data), 0x7FC0, nearest).astype(np.uint16)
        return TensorHandle(rounded.reshape(source.data.shape), tl.bfloat16)

    patch.setattr(InterpreterBuilder, "create_dot", create_dot)
    patch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
    for name in ("create_fp_trunc", "create_fp_ext"):
        patch.setattr(InterpreterBuilder, name, cast_impl)


def add_one_product_after_the_other(patch: pytest.MonkeyPatch) -> None:
    """float32 products summed as a GPU's thread does, in the order of the inner dimension and with fused multiply-add.

    numpy's order depends on the tile. Then two kernels differ in the scores that they make twice, by a rounding.
    """
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, d: Any, *args: Any) -> Any:
        x, y, total = a.data.astype(np.float64), b.data.astype(np.float64), d.data
        for i in range(x.shape[1]):
            total = (total + x[:, i : i + 1] * y[i : i + 1]).astype(np.float32)
        return TensorHandle(total, d.dtype.scalar)

    patch.setattr(InterpreterBuilder, "create_dot", create_dot)
