"""What the benchmarks of hidden_mse and hidden_cosine share: both see hidden states through a projection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bertxfer_fast import ops

from .harness import (
    Call,
    Problem,
    backends,
    compiled,
    full_or_quick,
    in_float32_too,
    in_float64,
    nbytes,
    with_gradients,
)
from .inputs import gpu_copy, in_float32, random

TOKENS, STUDENT, TEACHER = full_or_quick((4096, 312, 768), (64, 12, 16), (32768, 312, 768))


def projected_problem(op: str, plain: Callable[..., Tensor], dtype: torch.dtype) -> Problem:
    """``ops.<op>(student, teacher, weight, bias)`` against ``plain`` of the same arguments."""
    student, teacher = random(TOKENS, STUDENT, dtype=dtype, grad=True), random(TOKENS, TEACHER, dtype=dtype)
    weight, bias = random(TEACHER, STUDENT, dtype=dtype, grad=True), random(TEACHER, dtype=dtype, grad=True)
    arguments, wrt = (student, teacher, weight, bias), (student, weight, bias)
    function, fast = getattr(ops, op), compiled(plain)

    def wide() -> Call:
        values = [in_float32(x) for x in arguments]
        return with_gradients(lambda: function(*values), (values[0], *values[2:]))

    x, w, r = student.detach(), weight.detach(), random(TOKENS, TEACHER, dtype=dtype)
    implementations = {
        **backends(with_gradients(lambda: function(*arguments), wrt), op),
        "plain": with_gradients(lambda: plain(*arguments), wrt),
        "compile": fast and with_gradients(lambda: fast(*arguments), wrt),
        "floor: three products": lambda: (x @ w.T, r @ w, r.T @ x),
        **gpu_copy(nbytes(arguments) + nbytes(wrt), dtype),
        **in_float32_too(wide, dtype),
    }
    return Problem(
        op=op,
        implementations=implementations,
        shape=f"{TOKENS}x{STUDENT}->{TEACHER}",
        dtype=dtype,
        operator=op,
        size=student.numel(),
        gradient_bytes=nbytes(wrt),
        truth=lambda: in_float64(plain, (student, teacher, weight, bias)),
    )
