"""attention_map_loss, KL and MSE, against the plain expression, eager and compiled, and the bare products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import ops

from .harness import Problem, backends, compare, compiled, in_float32_too, in_float64, nbytes, with_gradients
from .inputs import (
    Ragged,
    attention_inputs,
    attention_shapes,
    both_dtypes,
    even_packing,
    heads_first,
    in_float32,
    main_dtypes,
    map_products,
)
from .peers import linear_ard

OPERATOR = "attention_map_loss"

kinds = pytest.mark.parametrize("kind", ["kl", "mse"])


def plain_kl(qs: Tensor, ks: Tensor, qt: Tensor, kt: Tensor) -> Tensor:
    """As people write it: ``[B, H, L, D]`` in, whole maps."""
    student = (qs @ ks.transpose(-1, -2) * qs.shape[-1] ** -0.5).log_softmax(-1)
    teacher = (qt @ kt.transpose(-1, -2) * qt.shape[-1] ** -0.5).log_softmax(-1)
    rows = student.shape[0] * student.shape[1] * student.shape[2]
    return torch.nn.functional.kl_div(student, teacher, reduction="sum", log_target=True) / rows


def plain_mse(qs: Tensor, ks: Tensor, qt: Tensor, kt: Tensor) -> Tensor:
    student = (qs @ ks.transpose(-1, -2) * qs.shape[-1] ** -0.5).softmax(-1)
    teacher = (qt @ kt.transpose(-1, -2) * qt.shape[-1] ** -0.5).softmax(-1)
    return torch.nn.functional.mse_loss(student, teacher)


def ours(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], kind: str) -> Callable[[], Any]:
    """Forward and backward on a batch without padding."""
    sequences, length = student[0].shape[:2]
    packed = [x.flatten(0, 1) for x in (*student, *teacher)]
    cu_seqlens = even_packing(sequences, length)
    return with_gradients(
        lambda: ops.attention_map_loss(*packed, cu_seqlens, max_seqlen=length, kind=kind), student
    )


def problem(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> Problem:
    student, teacher = attention_inputs(shape, dtype)
    padded = [x.transpose(1, 2) for x in (*student, *teacher)]
    plain = {"kl": plain_kl, "mse": plain_mse}[kind]
    fast = compiled(plain)
    qs, ks, qt, kt = (heads_first(x) for x in (*student, *teacher))
    implementations = {
        **backends(ours(student, teacher, kind), OPERATOR),
        "plain": with_gradients(lambda: plain(*padded), student),
        "compile": fast and with_gradients(lambda: fast(*padded), student),
        "floor: four products": map_products([(qs, ks), (qt, kt)], [qs, ks]),
        **(linear_ard(*student, *teacher) if kind == "kl" else {}),
        **in_float32_too(lambda: ours(*(tuple(map(in_float32, x)) for x in (student, teacher)), kind), dtype),
    }
    return Problem(
        op="attention_map",
        implementations=implementations,
        case=kind,
        shape="x".join(map(str, shape)),
        length=shape[1],
        dtype=dtype,
        operator=OPERATOR,
        size=student[0].numel(),
        gradient_bytes=nbytes(student),
        truth=lambda: in_float64(
            lambda *x: plain(*(y.transpose(1, 2) for y in x)), (*student, *teacher), parts=shape[0]
        ),
    )


@kinds
@both_dtypes
@attention_shapes
def test_attention_map(benchmark: Any, shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    compare(benchmark, problem(shape, dtype, kind))


def ragged_problem(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> Problem:
    """What packing brings: the work goes with the pairs, so ideally 1 / (share of real pairs)."""
    student, teacher = attention_inputs(shape, dtype)
    batch = Ragged.draw(*shape[:2])
    packed = [batch.pack(x) for x in (*student, *teacher)]
    cu_seqlens, longest = batch.cu_seqlens, batch.max_seqlen

    def loss() -> Tensor:
        return ops.attention_map_loss(*packed, cu_seqlens, max_seqlen=longest, kind=kind)

    implementations = {
        **backends(with_gradients(loss, packed[:2]), OPERATOR, eager=False),
        **backends(ours(student, teacher, kind), OPERATOR, eager=False, suffix="full length"),
    }
    return Problem(
        op="attention_map",
        implementations=implementations,
        case=f"{kind} ragged",
        shape="x".join(map(str, shape)),
        length=shape[1],
        dtype=dtype,
        valid=batch.tokens,
        operator=OPERATOR,
        size=packed[0].numel(),
        gradient_bytes=nbytes(packed[:2]),
        ideal_gain=1 / batch.pairs,
    )


@kinds
@main_dtypes
@attention_shapes
def test_attention_map_ragged(benchmark: Any, shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    compare(benchmark, ragged_problem(shape, dtype, kind))
