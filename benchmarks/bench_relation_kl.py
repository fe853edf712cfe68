"""relation_kl, 48 heads over widths 384 and 768, against the plain expression, eager and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import ops

from .harness import compare, even_packing, on_backend, random, with_gradients

HEADS, STUDENT, TEACHER = 48, 384, 768


def plain(student: Tensor, teacher: Tensor) -> Tensor:
    """As people write it: ``[B, L, D]`` in, whole relations."""

    def relation(x: Tensor) -> Tensor:
        split = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return (split @ split.transpose(-1, -2) * split.shape[-1] ** -0.5).log_softmax(-1)

    rows = student.shape[0] * student.shape[1] * HEADS
    return (
        torch.nn.functional.kl_div(relation(student), relation(teacher), reduction="sum", log_target=True)
        / rows
    )


@pytest.mark.parametrize("sequences, length", [(32, 128), (8, 512), (2, 2048)])
def test_relation_kl(benchmark: Any, sequences: int, length: int) -> None:
    student, teacher = random(sequences, length, STUDENT, grad=True), random(sequences, length, TEACHER)
    cu_seqlens = even_packing(sequences, length)
    compiled = torch.compile(plain)

    def loss() -> Tensor:
        packed = student.flatten(0, 1), teacher.flatten(0, 1)
        return ops.relation_kl(*packed, cu_seqlens, heads=HEADS, max_seqlen=length)

    implementations = {
        "cpp": on_backend("cpp", with_gradients(loss, [student])),
        "eager": with_gradients(lambda: plain(student, teacher), [student]),
        "compile": with_gradients(lambda: compiled(student, teacher), [student]),
    }
    compare(benchmark, implementations, shape=str((sequences, length, STUDENT, TEACHER)))
