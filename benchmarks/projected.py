"""What the benchmarks of hidden_mse and hidden_cosine share: both see hidden states through a projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bertxfer_fast import ops

from .harness import backends, compare, compiled, full_or_quick, nbytes, on_backend, with_gradients
from .inputs import in_float32, random

TOKENS, STUDENT, TEACHER = full_or_quick((4096, 312, 768), (64, 12, 16))


def compare_projected(benchmark: Any, op: str, plain: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """``ops.<op>(student, teacher, weight, bias)`` against ``plain`` of the same arguments."""
    student, teacher = random(TOKENS, STUDENT, dtype=dtype, grad=True), random(TOKENS, TEACHER, dtype=dtype)
    weight, bias = random(TEACHER, STUDENT, dtype=dtype, grad=True), random(TEACHER, dtype=dtype, grad=True)
    arguments, wrt = (student, teacher, weight, bias), (student, weight, bias)
    function, fast = getattr(ops, op), compiled(plain)
    x, w, r = student.detach(), weight.detach(), random(TOKENS, TEACHER, dtype=dtype)
    implementations = {
        **backends(with_gradients(lambda: function(*arguments), wrt)),
        "plain": with_gradients(lambda: plain(*arguments), wrt),
        "compile": fast and with_gradients(lambda: fast(*arguments), wrt),
        "floor: three products": lambda: (x @ w.T, r @ w, r.T @ x),
    }
    if dtype == torch.bfloat16:
        wide = [in_float32(x) for x in arguments]
        implementations["cpp float32"] = on_backend(
            "cpp", with_gradients(lambda: function(*wide), (wide[0], *wide[2:]))
        )
    compare(
        benchmark,
        implementations,
        op=op,
        shape=f"{TOKENS}x{STUDENT}->{TEACHER}",
        dtype=dtype,
        gradient_bytes=nbytes(wrt),
    )
