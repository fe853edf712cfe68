"""varlen_attention against torch's scaled_dot_product_attention, forward and backward, on even and ragged batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bertxfer_fast import ops

from .harness import backends, compare, compiled, nbytes, on_backend
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

Inputs = tuple[Tensor, ...]


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def ours(qkv: Inputs, cu_seqlens: Tensor, longest: int) -> Callable[[], Tensor]:
    """On ``[T, H, D]``."""
    return lambda: ops.varlen_attention(*qkv, cu_seqlens, max_seqlen=longest)


def backward_too(output: Callable[[], Tensor], wrt: Inputs, grad: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(output(), wrt, grad)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Inputs, Tensor, str]:
    """q, k, v and a gradient, ``[B, L, H, D]``, and the shape's name; D is the teacher's head width."""
    size = (*shape[:3], shape[4])
    q, k, v = (random(*size, dtype=dtype, grad=True) for _ in range(3))
    return (q, k, v), random(*size, dtype=dtype), "x".join(map(str, size))


@both_dtypes
@attention_shapes
def test_varlen_attention(benchmark: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    qkv, grad, name = inputs(shape, dtype)
    cu_seqlens, length = even_packing(*shape[:2]), shape[1]
    packed, packed_grad = tuple(x.flatten(0, 1) for x in qkv), grad.flatten(0, 1)
    padded, padded_grad = [x.transpose(1, 2) for x in qkv], grad.transpose(1, 2)
    fast = compiled(plain)
    q, k, v, g = (heads_first(x) for x in (*qkv, grad))
    implementations = {
        **backends(backward_too(ours(packed, cu_seqlens, length), qkv, packed_grad), "varlen_attention"),
        "plain": backward_too(lambda: plain(*padded), qkv, padded_grad),
        "compile": fast and backward_too(lambda: fast(*padded), qkv, padded_grad),
        # Scores, output; scores again, gradient of the map, and the gradients of v, q and k.
        "floor: seven products": map_products([(q, k), (q, k), (g, v)], [v, g, k, q]),
    }
    if dtype == torch.bfloat16:
        wide = tuple(in_float32(x) for x in packed)
        implementations["cpp float32"] = on_backend(
            "cpp", backward_too(ours(wide, cu_seqlens, length), wide, packed_grad.float())
        )
    compare(
        benchmark,
        implementations,
        op="varlen_attention",
        shape=name,
        length=length,
        dtype=dtype,
        gradient_bytes=nbytes(qkv),
    )


@both_dtypes
@attention_shapes
def test_varlen_attention_ragged(benchmark: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Packed, against full length and against torch on the padded batch with its mask."""
    qkv, grad, name = inputs(shape, dtype)
    batch, even = Ragged.draw(*shape[:2]), even_packing(*shape[:2])
    packed, packed_grad = tuple(batch.pack(x) for x in qkv), batch.pack(grad)
    whole, whole_grad = tuple(x.flatten(0, 1) for x in qkv), grad.flatten(0, 1)
    padded, padded_grad = [x.transpose(1, 2) for x in qkv], grad.transpose(1, 2)
    mask = batch.mask[:, None, None, :]
    fast = compiled(plain)
    implementations = {
        "cpp": on_backend(
            "cpp", backward_too(ours(packed, batch.cu_seqlens, batch.max_seqlen), packed, packed_grad)
        ),
        "cpp full length": on_backend("cpp", backward_too(ours(whole, even, shape[1]), qkv, whole_grad)),
        "plain": backward_too(lambda: plain(*padded, mask), qkv, padded_grad),
        "compile": fast and backward_too(lambda: fast(*padded, mask), qkv, padded_grad),
    }
    record = compare(
        benchmark,
        implementations,
        op="varlen_attention",
        case="ragged",
        shape=name,
        length=shape[1],
        dtype=dtype,
        valid=batch.tokens,
        gradient_bytes=nbytes(packed),
    )
    gain = record["implementations"]["cpp full length"]["ratio"]
    benchmark.extra_info.update(gain=gain, ideal_gain=1 / batch.pairs)
