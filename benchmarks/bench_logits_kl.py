"""logits_kl at BERT's vocabulary against plain eager and compiled code, and a copy of the bytes it must move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bertxfer_fast import ops

from .harness import (
    Call,
    Problem,
    backends,
    compare,
    compiled,
    full_or_quick,
    in_float32_too,
    in_float64,
    with_gradients,
)
from .inputs import copy_of, in_float32, main_dtypes, random

TOKENS, CLASSES = full_or_quick((1024, 30522), (16, 300), (4096, 30522))


def plain(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)


def problem(dtype: torch.dtype) -> Problem:
    student = random(TOKENS, CLASSES, dtype=dtype, grad=True)
    teacher = random(TOKENS, CLASSES, dtype=dtype)
    fast = compiled(plain)

    def wide() -> Call:
        x, y = in_float32(student), in_float32(teacher)
        return with_gradients(lambda: ops.logits_kl(x, y), [x])

    implementations = {
        **backends(with_gradients(lambda: ops.logits_kl(student, teacher), [student]), "logits_kl"),
        "plain": with_gradients(lambda: plain(student, teacher), [student]),
        "compile": fast and with_gradients(lambda: fast(student, teacher), [student]),
        "floor: copy": copy_of(3 * student.nbytes, dtype),  # both are read and the gradient is written
        **in_float32_too(wide, dtype),
    }
    return Problem(
        op="logits_kl",
        implementations=implementations,
        shape=f"{TOKENS}x{CLASSES}",
        dtype=dtype,
        operator="logits_kl",
        size=student.numel(),
        gradient_bytes=student.nbytes,
        truth=lambda: in_float64(plain, (student, teacher)),
    )


@main_dtypes
def test_logits_kl(benchmark: Any, dtype: torch.dtype) -> None:
    compare(benchmark, problem(dtype))
