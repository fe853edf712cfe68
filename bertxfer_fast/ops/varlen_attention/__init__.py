"""Softmax attention over packed sequences, the map never whole in memory; what the stream's models run on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dispatch import backend as _backend
from .._dispatch import library as _library
from .._dispatch.autograd import run_constant
from .._dispatch.checks import check_packing, check_same_device, check_same_dtype, check_scale, check_tensor
from .eager import varlen_attention as _eager
from .eager import varlen_attention_backward as _eager_backward


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    max_seqlen: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """``dropout(softmax(scale * q @ k.T)) @ v`` for every sequence and head, bidirectional.

    Args:
        q, k, v: ``[T, H, D]`` packed tokens of one dtype: float32, bfloat16 or float16; any strides. Get gradients.
        cu_seqlens: int32 ``[N + 1]``, where each sequence starts; first 0, last T.
        max_seqlen: an upper bound of the sequence lengths. Left out it is computed (on CUDA one host sync).
        scale: default ``1 / sqrt(D)``.
        dropout_p: probability of dropping an entry of the map, drawn from torch's generator of the device.
            The mask is recomputed in the backward pass from the seed, never stored.

    Returns:
        ``[T, H, D]``, contiguous.

    Raises:
        ValueError, TypeError: naming the argument, what it got and what it wants.

    Online softmax over tiles as in Dao et al., "FlashAttention", 2022.
    """
    check_tensor("q", q, 3, "[T, H, D]")
    for name, x in (("k", k), ("v", v)):
        check_tensor(name, x, 3, "[T, H, D]")
        if x.shape != q.shape:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, want {tuple(q.shape)} as q")
    if not 1 <= q.shape[2] <= 256:
        raise ValueError(f"q: got head_dim {q.shape[2]}, want 1 to 256")
    check_same_dtype("q", q, k=k, v=v)
    dropout_p = check_scale("dropout_p", dropout_p, 1)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p: got {dropout_p}, want 0 <= p < 1")
    max_seqlen = check_packing(q.shape[0], cu_seqlens, max_seqlen, None)
    check_same_device("q", q, k=k, v=v, cu_seqlens=cu_seqlens)
    seed = torch.randint(2**62, (1,), device=q.device) if dropout_p > 0 else None
    scale = check_scale("scale", scale, q.shape[2])
    args = (q, k, v, cu_seqlens, max_seqlen, scale, dropout_p, seed)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return _library.overload("varlen_attention", _backend.pick("varlen_attention", q.device.type))(*args)[
            0
        ]
    return run_constant("varlen_attention", q.device.type, *args)[0]


def _fake(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def _fake_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, cu_seqlens, ctx.max_seqlen, ctx.scale, ctx.dropout_p, seed = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, cu_seqlens, seed)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 5
    if grad is None:
        return None, None, None, *nothing
    q, k, v, out, lse, cu_seqlens, seed = ctx.saved_tensors
    backend = _backend.pick("varlen_attention_backward", grad.device.type)
    gradients = _library.overload("varlen_attention_backward", backend)(
        grad, q, k, v, out, lse, cu_seqlens, ctx.max_seqlen, ctx.scale, ctx.dropout_p, seed
    )
    return (*gradients, *nothing)


def _double_backward(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("varlen_attention cannot be differentiated twice (double backward)")


_library.register(
    "varlen_attention",
    eager=_eager,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    triton=f"{__name__}.triton",
)
_library.register(
    "varlen_attention_backward",
    eager=_eager_backward,
    fake=_fake_backward,
    backward=_double_backward,
    triton=f"{__name__}.triton",
)
