"""Softmax attention over packed sequences with dropout, the map never whole in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._dispatch.autograd import overload_for, refuse_transforms, run
from .._dispatch.checks import check_packing, check_same_device, check_same_dtype, check_scale, check_tensor
from .._dispatch.examples import LENGTHS, normal, packing
from .._dispatch.library import register
from .._dispatch.registry import OpInfo
from . import eager


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

    The eager expression that is avoided, for one sequence of length L and one head::

        p = torch.softmax(scale * q @ k.T, -1)               # [L, L]
        out = torch.nn.functional.dropout(p, dropout_p) @ v

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
        TypeError, ValueError: ``argument: got X, want Y``, before any work starts.

    Example:
        >>> import torch
        >>> from bertxfer_fast import ops
        >>> qkv = torch.randn(7, 3, 12, 64, requires_grad=True)  # of one fused projection
        >>> cu_seqlens = torch.tensor([0, 3, 7], dtype=torch.int32)  # sequences of 3 and 4 tokens
        >>> out = ops.varlen_attention(*qkv.unbind(1), cu_seqlens)
        >>> out.sum().backward()
        >>> out.shape, qkv.grad.shape
        (torch.Size([7, 12, 64]), torch.Size([7, 3, 12, 64]))

    References:
        Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022.
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
    if dropout_p > 0 and torch._C._are_functorch_transforms_active():
        refuse_transforms("varlen_attention", (q, k, v))  # before torch refuses to draw the seed
    seed = torch.randint(2**62, (1,), device=q.device) if dropout_p > 0 else None
    scale = check_scale("scale", scale, q.shape[2])
    return run("varlen_attention", q.device.type, q, k, v, cu_seqlens, max_seqlen, scale, dropout_p, seed)


def _fake(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def _fake_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, cu_seqlens, ctx.max_seqlen, ctx.scale, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens, seed)


def _backward(ctx: Any, grad: Tensor, needed: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, out, lse, cu_seqlens, seed = ctx.saved_tensors
    operator = overload_for("varlen_attention_backward", grad.device.type, grad)
    return operator(grad, q, k, v, out, lse, cu_seqlens, ctx.max_seqlen, ctx.scale, ctx.dropout_p, seed)


def _example(
    dtype: torch.dtype = torch.float32,
    *,
    dim: int = 6,
    heads: int = 2,
    dropout_p: float = 0.0,
    lengths: Sequence[int] = LENGTHS,
) -> dict[str, Any]:
    make, tokens = normal(dtype), sum(lengths)
    return {
        **{name: make(tokens, heads, dim) for name in ("q", "k", "v")},
        "cu_seqlens": packing(lengths),
        "max_seqlen": max(lengths),
        "scale": dim**-0.5,
        "dropout_p": dropout_p,
        "seed": torch.zeros(1, dtype=torch.int64) if dropout_p else None,
    }


def _example_backward(dtype: torch.dtype = torch.float32, **sizes: Any) -> dict[str, Any]:
    forward = _example(dtype, **sizes)
    out, lse = eager.varlen_attention(**forward)
    q, k, v = (forward.pop(name) for name in ("q", "k", "v"))
    return {"grad": out.flip(0), "q": q, "k": k, "v": v, "out": out, "lse": lse, **forward}


_SIZES: dict[str, dict[str, Any]] = {
    **{str(dim): {"dim": dim, "heads": 12, "lengths": (512,)} for dim in (26, 32, 64, 128, 256)},
    "64 dropout": {"dim": 64, "heads": 12, "lengths": (512,), "dropout_p": 0.1},
}

register(
    OpInfo(
        name="varlen_attention",
        module=__name__,
        schema=(
            "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, SymInt max_seqlen, float scale, float dropout_p, "
            "Tensor? seed) -> (Tensor out, Tensor lse)"
        ),
        function=varlen_attention,
        eager=eager.varlen_attention,
        fake=_fake,
        example=_example,
        sizes=_SIZES,
        differentiable=("q", "k", "v"),
        setup_context=_setup_context,
        backward=_backward,
        compiled=("cpp",),
        triton="triton",
    )
)
register(
    OpInfo(
        name="varlen_attention_backward",
        module=__name__,
        schema=(
            "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu_seqlens, "
            "SymInt max_seqlen, float scale, float dropout_p, Tensor? seed) "
            "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v)"
        ),
        eager=eager.varlen_attention_backward,
        fake=_fake_backward,
        example=_example_backward,
        sizes=_SIZES,
        compiled=("cpp",),
        triton="triton",
    )
)
