"""relation_kl, 48 heads over widths 384 and 768, against the plain expression, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import ops

from .harness import (
    Problem,
    backends,
    compare,
    compiled,
    full_or_quick,
    in_float32_too,
    in_float64,
    with_gradients,
)
from .inputs import (
    BATCHES,
    Ragged,
    even_packing,
    heads_first,
    in_float32,
    main_dtypes,
    map_products,
    random,
)

HEADS = full_or_quick(48, 4)
STUDENT, TEACHER = full_or_quick((384, 768), (32, 64))

# On a GPU the shorter batch alone: at L = 2048 the maps of 48 heads do not fit there for anybody else.
batches = pytest.mark.parametrize("sequences, length", full_or_quick(BATCHES, BATCHES, BATCHES[:1]))


def plain(student: Tensor, teacher: Tensor) -> Tensor:
    """As people write it: ``[B, L, D]`` in, whole relations."""

    def relation(x: Tensor) -> Tensor:
        split = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return (split @ split.transpose(-1, -2) * split.shape[-1] ** -0.5).log_softmax(-1)

    rows = student.shape[0] * student.shape[1] * HEADS
    divergence = torch.nn.functional.kl_div(
        relation(student), relation(teacher), reduction="sum", log_target=True
    )
    return divergence / rows


def ours(student: Tensor, teacher: Tensor) -> Callable[[], Any]:
    """Forward and backward on a batch without padding."""
    packed = student.flatten(0, 1), teacher.flatten(0, 1)
    cu_seqlens, length = even_packing(*student.shape[:2]), student.shape[1]
    return with_gradients(
        lambda: ops.relation_kl(*packed, cu_seqlens, heads=HEADS, max_seqlen=length), [student]
    )


def problem(sequences: int, length: int, dtype: torch.dtype) -> Problem:
    student = random(sequences, length, STUDENT, dtype=dtype, grad=True)
    teacher = random(sequences, length, TEACHER, dtype=dtype)
    fast = compiled(plain)
    s, t = (heads_first(x.unflatten(-1, (HEADS, -1))) for x in (student, teacher))
    maps = sequences * HEADS * length**2 * student.element_size()
    implementations = {
        **backends(ours(student, teacher), "relation_kl"),
        "plain": with_gradients(lambda: plain(student, teacher), [student]),
        "compile": fast and with_gradients(lambda: fast(student, teacher), [student]),
        # q is k here: both gradients are one product with the symmetrised map.
        "floor: three products": map_products([(s, s), (t, t)], [s]),
        **in_float32_too(lambda: ours(in_float32(student), in_float32(teacher)), dtype),
    }
    return Problem(
        op="relation_kl",
        implementations=implementations,
        shape=f"{sequences}x{length}x{STUDENT}/{TEACHER}, {HEADS} heads",
        length=length,
        dtype=dtype,
        operator="relation_kl",
        size=student.numel(),
        gradient_bytes=student.nbytes,
        needs={"plain": 6 * maps, "compile": 6 * maps},
        truth=lambda: in_float64(plain, (student, teacher), parts=sequences),
    )


@main_dtypes
@batches
def test_relation_kl(benchmark: Any, sequences: int, length: int, dtype: torch.dtype) -> None:
    compare(benchmark, problem(sequences, length, dtype))


def ragged_problem(sequences: int, length: int, dtype: torch.dtype) -> Problem:
    """What packing brings: the work goes with the pairs, so ideally 1 / (share of real pairs)."""
    student = random(sequences, length, STUDENT, dtype=dtype, grad=True)
    teacher = random(sequences, length, TEACHER, dtype=dtype)
    batch = Ragged.draw(sequences, length)
    packed = batch.pack(student), batch.pack(teacher)
    cu_seqlens, longest = batch.cu_seqlens, batch.max_seqlen

    def loss() -> Tensor:
        return ops.relation_kl(*packed, cu_seqlens, heads=HEADS, max_seqlen=longest)

    implementations = {
        **backends(with_gradients(loss, packed[:1]), "relation_kl", eager=False),
        **backends(ours(student, teacher), "relation_kl", eager=False, suffix="full length"),
    }
    return Problem(
        op="relation_kl",
        implementations=implementations,
        case="ragged",
        shape=f"{sequences}x{length}x{STUDENT}/{TEACHER}, {HEADS} heads",
        length=length,
        dtype=dtype,
        valid=batch.tokens,
        operator="relation_kl",
        size=packed[0].numel(),
        gradient_bytes=packed[0].nbytes,
        ideal_gain=1 / batch.pairs,
    )


@main_dtypes
@batches
def test_relation_kl_ragged(benchmark: Any, sequences: int, length: int, dtype: torch.dtype) -> None:
    compare(benchmark, ragged_problem(sequences, length, dtype))
