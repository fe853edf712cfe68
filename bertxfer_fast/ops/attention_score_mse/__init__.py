"""Mean squared error of pre-softmax attention scores (TinyBERT), without an L x L map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dispatch import library as _library
from .._dispatch.autograd import constant, run_loss
from .._dispatch.checks import REDUCTIONS, check_attention_pair, check_choice, check_packing, check_scale
from ..scale_grad import scale_grads
from .eager import attention_score_mse as _eager

METHODS = ("auto", "gram", "tiled")


def attention_score_mse(
    q_student: Tensor,
    k_student: Tensor,
    q_teacher: Tensor,
    k_teacher: Tensor,
    cu_seqlens: Tensor,
    *,
    max_seqlen: int | None = None,
    seqused: Tensor | None = None,
    scale_student: float | None = None,
    scale_teacher: float | None = None,
    reduction: str = "mean",
    method: str = "auto",
) -> Tensor:
    """MSE of the attention scores ``scale * q @ k.T`` of student and teacher, over all pairs of valid tokens.

    The eager expression that is avoided, for one sequence of length L and one head::

        s = scale_student * q_student @ k_student.T          # [L, L]
        t = scale_teacher * q_teacher @ k_teacher.T          # [L, L]
        loss = (s - t).square().mean()

    ``method="gram"`` needs no score at all: ``s - t = A @ B.T`` with ``A = [scale_student * q_student,
    -scale_teacher * q_teacher]`` and ``B = [k_student, k_teacher]``, so the sum of squares is the inner product of the
    Gram matrices of A and B, linear in L. ``"tiled"`` computes the scores tile by tile, which is less work
    for short sequences. ``"auto"`` takes the cheaper of the two for each sequence. On a GPU heads wider than 64 take
    tiles, whatever ``method`` says.

    Args:
        q_student, k_student: ``[T, H, Ds]`` packed tokens, float32, bfloat16 or float16; any strides. Get gradients.
        q_teacher, k_teacher: ``[T, H, Dt]``, same T and H; their dtype may differ from the student's. No gradient.
        cu_seqlens: int32 ``[N + 1]``, where each sequence starts; first 0, last T.
        max_seqlen: an upper bound of the sequence lengths. Left out it is computed (on CUDA one host sync).
        seqused: int32 ``[N]``, how many tokens of each sequence count; the rest get zero gradient.
        scale_student, scale_teacher: default ``1 / sqrt(head_dim)`` of each side.
        reduction: ``"mean"`` over the ``H * sum(len**2)`` valid pairs (0 if there is none) or ``"sum"``.
        method: ``"auto"``, ``"gram"`` or ``"tiled"``.

    Returns:
        float32 scalar. Same inputs, same bits, whatever the number of threads.

    Raises:
        ValueError, TypeError: naming the argument, what it got and what it wants.

    The loss is that of Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020,
    restricted to valid tokens.
    """
    check_attention_pair(q_student, k_student, q_teacher, k_teacher, cu_seqlens)
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("method", method, METHODS)
    max_seqlen = check_packing(q_student.shape[0], cu_seqlens, max_seqlen, seqused)
    need_grad = torch.is_grad_enabled() and (q_student.requires_grad or k_student.requires_grad)
    return run_loss(
        "attention_score_mse",
        q_student.device.type,
        q_student,
        k_student,
        constant(q_teacher),
        constant(k_teacher),
        cu_seqlens,
        seqused,
        max_seqlen,
        check_scale("scale_student", scale_student, q_student.shape[2]),
        check_scale("scale_teacher", scale_teacher, q_teacher.shape[2]),
        reduction,
        method,
        need_grad,
    )


def fake_attention_loss(q_student: Tensor, k_student: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Outputs of an attention loss: loss, the two gradients (empty when not needed), factor."""
    need_grad = args[-1]
    scalar = q_student.new_empty((), dtype=torch.float32)
    grad_q = q_student.new_empty(q_student.shape if need_grad else (0,))
    grad_k = k_student.new_empty(k_student.shape if need_grad else (0,))
    return scalar, grad_q, grad_k, torch.empty_like(scalar)


def setup_attention_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, grad_q, grad_k, factor = output
    ctx.set_materialize_grads(False)  # no zeros for the outputs nobody differentiates
    ctx.inputs = len(inputs)
    ctx.save_for_backward(grad_q, grad_k, factor)


def attention_backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (ctx.inputs - 2)
    if grad_loss is None:
        return None, None, *nothing
    *gradients, factor = ctx.saved_tensors
    return *scale_grads(gradients, ctx.needs_input_grad[:2], factor, grad_loss), *nothing


_library.register(
    "attention_score_mse",
    eager=_eager,
    fake=fake_attention_loss,
    setup_context=setup_attention_context,
    backward=attention_backward,
    compiled=("cpp", "cuda"),
    triton=f"{__name__}.triton",
)
