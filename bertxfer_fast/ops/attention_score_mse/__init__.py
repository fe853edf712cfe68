"""Mean squared error of pre-softmax attention scores (TinyBERT); work and memory linear in the sequence length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dispatch import attention_pair, loss
from .._dispatch.autograd import run
from .._dispatch.checks import REDUCTIONS, check_attention_pair, check_choice, check_packing, check_scale
from .._dispatch.library import register
from .._dispatch.registry import OpInfo
from . import eager

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
        TypeError, ValueError: ``argument: got X, want Y``, before any work starts.

    Example:
        >>> import torch
        >>> from bertxfer_fast import ops
        >>> q, k = (torch.randn(7, 12, 26, requires_grad=True) for _ in range(2))
        >>> q_teacher, k_teacher = (torch.randn(7, 12, 64) for _ in range(2))
        >>> cu_seqlens = torch.tensor([0, 3, 7], dtype=torch.int32)  # sequences of 3 and 4 tokens
        >>> loss = ops.attention_score_mse(q, k, q_teacher, k_teacher, cu_seqlens)
        >>> loss.backward()
        >>> loss.shape, q.grad.shape
        (torch.Size([]), torch.Size([7, 12, 26]))

    References:
        Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020, here restricted to valid
        tokens.
    """
    check_attention_pair(q_student, k_student, q_teacher, k_teacher, cu_seqlens)
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("method", method, METHODS)
    max_seqlen = check_packing(q_student.shape[0], cu_seqlens, max_seqlen, seqused)
    return run(
        "attention_score_mse",
        q_student.device.type,
        q_student,
        k_student,
        q_teacher,
        k_teacher,
        cu_seqlens,
        seqused,
        max_seqlen,
        check_scale("scale_student", scale_student, q_student.shape[2]),
        check_scale("scale_teacher", scale_teacher, q_teacher.shape[2]),
        reduction,
        method,
    )


def _example(dtype: torch.dtype = torch.float32, **sizes: Any) -> dict[str, Any]:
    shared = attention_pair.example(dtype, **sizes)
    return {**shared, "reduction": "mean", "method": "auto", "need_grad": True}


register(
    OpInfo(
        name="attention_score_mse",
        module=__name__,
        schema=f"({attention_pair.ARGUMENTS}, str reduction, str method, bool need_grad)"
        f" -> {attention_pair.RESULTS}",
        function=attention_score_mse,
        eager=eager.attention_score_mse,
        fake=attention_pair.fake,
        example=_example,
        sizes={
            **{
                f"{student}/{teacher}": {
                    "student": student,
                    "teacher": teacher,
                    "heads": 12,
                    "lengths": (512,),
                }
                for student, teacher in attention_pair.HEAD_DIMS
            },
            "64/64 split": {"student": 64, "teacher": 64, "heads": 1, "lengths": (2048,)},
        },
        differentiable=attention_pair.DIFFERENTIABLE,
        setup_context=loss.setup_context,
        backward=loss.backward,
        compiled=("cpp", "cuda"),
        triton="triton",
    )
)
