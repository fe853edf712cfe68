"""attention_score_mse against the plain expression, eager and compiled, and the bare products of either method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    gpu_copy,
    heads_first,
    in_float32,
    main_dtypes,
    map_products,
)

OPERATOR = "attention_score_mse"


def plain(qs: Tensor, ks: Tensor, qt: Tensor, kt: Tensor) -> Tensor:
    """As people write it: ``[B, H, L, D]`` in, whole scores."""
    student = qs @ ks.transpose(-1, -2) * qs.shape[-1] ** -0.5
    teacher = qt @ kt.transpose(-1, -2) * qt.shape[-1] ** -0.5
    return torch.nn.functional.mse_loss(student, teacher)


def ours(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], method: str = "auto") -> Callable[[], Any]:
    """Forward and backward on a batch without padding."""
    sequences, length = student[0].shape[:2]
    packed = [x.flatten(0, 1) for x in (*student, *teacher)]
    cu_seqlens = even_packing(sequences, length)
    return with_gradients(
        lambda: ops.attention_score_mse(*packed, cu_seqlens, max_seqlen=length, method=method), student
    )


def floor(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> dict[str, Callable[[], Any]]:
    """The products of the method that does fewer operations at this shape."""
    qs, ks, qt, kt = (heads_first(x) for x in (*student, *teacher))
    length, ds, both = qs.shape[1], qs.shape[2], qs.shape[2] + qt.shape[2]
    if 2 * both * both + 2 * both * ds >= length * (both + 2 * ds):
        return {"floor: products of scores": map_products([(qs, ks), (qt, kt)], [qs, ks])}
    a, b = torch.cat([qs, qt], dim=-1), torch.cat([ks, kt], dim=-1)  # [B * H, L, ds + dt]

    def gram() -> tuple[Tensor, ...]:
        aa, bb = a.mT @ a, b.mT @ b
        return a @ bb[:, :, :ds], b @ aa[:, :, :ds]

    return {"floor: products of Gram": gram}


def problem(shape: tuple[int, ...], dtype: torch.dtype) -> Problem:
    student, teacher = attention_inputs(shape, dtype)
    padded = [x.transpose(1, 2) for x in (*student, *teacher)]
    fast = compiled(plain)
    implementations = {
        **backends(ours(student, teacher), OPERATOR),
        **backends(ours(student, teacher, "gram"), OPERATOR, eager=False, suffix="gram"),
        **backends(ours(student, teacher, "tiled"), OPERATOR, eager=False, suffix="tiled"),
        "plain": with_gradients(lambda: plain(*padded), student),
        "compile": fast and with_gradients(lambda: fast(*padded), student),
        **floor(student, teacher),
        **gpu_copy(2 * nbytes(student) + nbytes(teacher), dtype),
        **in_float32_too(lambda: ours(*(tuple(map(in_float32, x)) for x in (student, teacher))), dtype),
    }
    return Problem(
        op=OPERATOR,
        implementations=implementations,
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


@both_dtypes
@attention_shapes
def test_attention_score_mse(benchmark: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare(benchmark, problem(shape, dtype))


def ragged_problem(shape: tuple[int, ...], dtype: torch.dtype) -> Problem:
    """What packing brings: the work is linear in the tokens, so ideally 1 / (share of real tokens)."""
    student, teacher = attention_inputs(shape, dtype)
    batch = Ragged.draw(*shape[:2])
    packed = [batch.pack(x) for x in (*student, *teacher)]
    cu_seqlens, longest = batch.cu_seqlens, batch.max_seqlen

    def loss() -> Tensor:
        return ops.attention_score_mse(*packed, cu_seqlens, max_seqlen=longest)

    implementations = {
        **backends(with_gradients(loss, packed[:2]), OPERATOR, eager=False),
        **backends(ours(student, teacher), OPERATOR, eager=False, suffix="full length"),
    }
    return Problem(
        op=OPERATOR,
        implementations=implementations,
        case="ragged",
        shape="x".join(map(str, shape)),
        length=shape[1],
        dtype=dtype,
        valid=batch.tokens,
        operator=OPERATOR,
        size=packed[0].numel(),
        gradient_bytes=nbytes(packed[:2]),
        ideal_gain=1 / batch.tokens,
    )


@main_dtypes
@attention_shapes
def test_attention_score_mse_ragged(benchmark: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare(benchmark, ragged_problem(shape, dtype))
