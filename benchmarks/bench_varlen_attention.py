"""varlen_attention against torch's scaled_dot_product_attention, forward and backward, on even and ragged batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bertxfer_fast import ops

from . import device
from .harness import Problem, backends, compare, compiled, in_float64, nbytes, on_backend
from .inputs import (
    Ragged,
    attention_shapes,
    both_dtypes,
    even_packing,
    heads_first,
    in_float32,
    map_products,
    random,
)
from .peers import flash_attention

OPERATOR = "varlen_attention"

Inputs = tuple[Tensor, ...]


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """On ``[B, H, L, D]``; its result is ``[B, L, H, D]``, as the packed one is."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def ours(qkv: Inputs, cu_seqlens: Tensor, longest: int) -> Callable[[], Tensor]:
    """On ``[T, H, D]``."""
    return lambda: ops.varlen_attention(*qkv, cu_seqlens, max_seqlen=longest)


def backward_too(output: Callable[[], Tensor], wrt: Inputs, grad: Tensor) -> Callable[[], Any]:
    def call() -> tuple[Tensor, ...]:
        out = output()
        return out, *torch.autograd.grad(out, wrt, grad)

    return call


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Inputs, Tensor, str]:
    """q, k, v and a gradient, ``[B, L, H, D]``, and the shape's name; D is the teacher's head width."""
    size = (*shape[:3], shape[4])
    q, k, v = (random(*size, dtype=dtype, grad=True) for _ in range(3))
    return (q, k, v), random(*size, dtype=dtype), "x".join(map(str, size))


def problem(shape: tuple[int, ...], dtype: torch.dtype) -> Problem:
    qkv, grad, name = inputs(shape, dtype)
    cu_seqlens, length = even_packing(*shape[:2]), shape[1]
    packed, packed_grad = tuple(x.flatten(0, 1) for x in qkv), grad.flatten(0, 1)
    padded = [x.transpose(1, 2) for x in qkv]
    fast = compiled(plain)
    q, k, v, g = (heads_first(x) for x in (*qkv, grad))
    implementations = {
        **backends(backward_too(ours(packed, cu_seqlens, length), qkv, packed_grad), OPERATOR),
        "plain": backward_too(lambda: plain(*padded), qkv, grad),
        "compile": fast and backward_too(lambda: fast(*padded), qkv, grad),
        # Scores, output; scores again, gradient of the map, and the gradients of v, q and k.
        "floor: seven products": map_products([(q, k), (q, k), (g, v)], [v, g, k, q]),
        **flash_attention(packed, packed_grad, cu_seqlens, length),
    }
    if dtype == torch.bfloat16 and not device.ON_GPU:
        wide = tuple(in_float32(x) for x in packed)
        implementations["cpp float32"] = on_backend(
            "cpp", backward_too(ours(wide, cu_seqlens, length), wide, packed_grad.float())
        )
    return Problem(
        op=OPERATOR,
        implementations=implementations,
        shape=name,
        length=length,
        dtype=dtype,
        gradient_bytes=nbytes(qkv),
        truth=lambda: in_float64(
            lambda *x: plain(*(y.transpose(1, 2) for y in x)).flatten(0, 1),
            qkv,
            packed_grad,
            parts=shape[0],
        ),
    )


@both_dtypes
@attention_shapes
def test_varlen_attention(benchmark: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare(benchmark, problem(shape, dtype))


def ragged_problem(shape: tuple[int, ...], dtype: torch.dtype) -> Problem:
    """Packed, against full length and against torch on the padded batch with its mask."""
    qkv, grad, name = inputs(shape, dtype)
    batch, even = Ragged.draw(*shape[:2]), even_packing(*shape[:2])
    packed, packed_grad = tuple(batch.pack(x) for x in qkv), batch.pack(grad)
    whole, whole_grad = tuple(x.flatten(0, 1) for x in qkv), grad.flatten(0, 1)
    padded = [x.transpose(1, 2) for x in qkv]
    mask = batch.mask[:, None, None, :]
    fast = compiled(plain)
    implementations = {
        **backends(
            backward_too(ours(packed, batch.cu_seqlens, batch.max_seqlen), packed, packed_grad),
            OPERATOR,
            eager=False,
        ),
        **backends(
            backward_too(ours(whole, even, shape[1]), qkv, whole_grad),
            OPERATOR,
            eager=False,
            suffix="full length",
        ),
        "plain": backward_too(lambda: plain(*padded, mask), qkv, grad),
        "compile": fast and backward_too(lambda: fast(*padded, mask), qkv, grad),
    }
    return Problem(
        op=OPERATOR,
        implementations=implementations,
        case="ragged",
        shape=name,
        length=shape[1],
        dtype=dtype,
        valid=batch.tokens,
        gradient_bytes=nbytes(packed),
        ideal_gain=1 / batch.pairs,
    )


@both_dtypes
@attention_shapes
def test_varlen_attention_ragged(benchmark: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare(benchmark, ragged_problem(shape, dtype))
