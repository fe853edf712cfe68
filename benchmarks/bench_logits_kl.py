"""logits_kl at BERT's vocabulary against plain eager and compiled code, and a copy of the bytes it must move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bertxfer_fast import ops

from .harness import backends, compare, compiled, full_or_quick, on_backend, with_gradients
from .inputs import both_dtypes, in_float32, random

TOKENS, CLASSES = full_or_quick((1024, 30522), (16, 300))


def plain(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)


@both_dtypes
def test_logits_kl(benchmark: Any, dtype: torch.dtype) -> None:
    student = random(TOKENS, CLASSES, dtype=dtype, grad=True)
    teacher = random(TOKENS, CLASSES, dtype=dtype)
    fast = compiled(plain)
    # Both logits are read and the gradient is written; a copy reads as much as it writes.
    source = random(3 * TOKENS * CLASSES // 2, dtype=dtype)
    target = torch.empty_like(source)
    implementations = {
        **backends(with_gradients(lambda: ops.logits_kl(student, teacher), [student])),
        "plain": with_gradients(lambda: plain(student, teacher), [student]),
        "compile": fast and with_gradients(lambda: fast(student, teacher), [student]),
        "floor: copy": lambda: target.copy_(source),
    }
    if dtype == torch.bfloat16:
        wide, wide_teacher = in_float32(student), in_float32(teacher)
        implementations["cpp float32"] = on_backend(
            "cpp", with_gradients(lambda: ops.logits_kl(wide, wide_teacher), [wide])
        )
    compare(
        benchmark,
        implementations,
        op="logits_kl",
        shape=f"{TOKENS}x{CLASSES}",
        dtype=dtype,
        gradient_bytes=student.nbytes,
    )
