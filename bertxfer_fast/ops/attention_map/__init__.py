"""KL divergence or MSE of softmaxed attention maps (MiniLM, TextBrewer), without an L x L map."""

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

KINDS = ("kl", "mse")


def attention_map_loss(
    q_student: Tensor,
    k_student: Tensor,
    q_teacher: Tensor,
    k_teacher: Tensor,
    cu_seqlens: Tensor,
    *,
    kind: str = "kl",
    max_seqlen: int | None = None,
    seqused: Tensor | None = None,
    scale_student: float | None = None,
    scale_teacher: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Divergence of the attention maps ``softmax(scale * q @ k.T)`` of student and teacher over valid tokens.

    The eager expression that is avoided, for one sequence of length L and one head::

        s = (scale_student * q_student @ k_student.T).log_softmax(-1)     # [L, L]
        p = (scale_teacher * q_teacher @ k_teacher.T).log_softmax(-1)     # [L, L]
        loss = (p.exp() * (p - s)).sum(-1).mean()                         # kind="kl", KL(teacher || student) per row
        loss = (s.exp() - p.exp()).square().mean()                        # kind="mse"

    With values in place of both q and k this is MiniLM's value relation.

    Args:
        q_student, k_student: ``[T, H, Ds]`` packed tokens, float32, bfloat16 or float16; any strides. Get gradients.
        q_teacher, k_teacher: ``[T, H, Dt]``, same T and H; their dtype may differ from the student's. No gradient.
        cu_seqlens: int32 ``[N + 1]``, where each sequence starts; first 0, last T.
        kind: ``"kl"`` or ``"mse"``.
        max_seqlen: an upper bound of the sequence lengths. Left out it is computed (on CUDA one host sync).
        seqused: int32 ``[N]``, how many tokens of each sequence count; the rest get zero gradient.
        scale_student, scale_teacher: default ``1 / sqrt(head_dim)`` of each side.
        reduction: ``"mean"`` over the ``H * sum(len)`` valid rows (``"kl"``) or the ``H * sum(len**2)`` valid pairs
            (``"mse"``), 0 if there is none; or ``"sum"``.

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
        >>> loss = ops.attention_map_loss(q, k, q_teacher, k_teacher, cu_seqlens, kind="kl")
        >>> loss.backward()
        >>> loss.shape, q.grad.shape
        (torch.Size([]), torch.Size([7, 12, 26]))

    References:
        Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression", 2020 (KL).
        Yang et al., "TextBrewer: An Open-Source Knowledge Distillation Toolkit", 2020 (MSE).
    """
    check_attention_pair(q_student, k_student, q_teacher, k_teacher, cu_seqlens)
    check_choice("kind", kind, KINDS)
    check_choice("reduction", reduction, REDUCTIONS)
    max_seqlen = check_packing(q_student.shape[0], cu_seqlens, max_seqlen, seqused)
    return run(
        "attention_map_loss",
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
        kind,
        reduction,
    )


def _example(dtype: torch.dtype = torch.float32, *, kind: str = "kl", **sizes: Any) -> dict[str, Any]:
    shared = attention_pair.example(dtype, **sizes)
    return {**shared, "kind": kind, "reduction": "mean", "need_grad": True}


register(
    OpInfo(
        name="attention_map_loss",
        module=__name__,
        schema=f"({attention_pair.ARGUMENTS}, str kind, str reduction, bool need_grad) -> {attention_pair.RESULTS}",
        function=attention_map_loss,
        eager=eager.attention_map_loss,
        fake=attention_pair.fake,
        example=_example,
        sizes={
            f"{student}/{teacher} {kind}": {
                "student": student,
                "teacher": teacher,
                "heads": 12,
                "lengths": (512,),
                "kind": kind,
            }
            for student, teacher in attention_pair.HEAD_DIMS
            for kind in KINDS
        },
        differentiable=attention_pair.DIFFERENTIABLE,
        setup_context=loss.setup_context,
        backward=loss.backward,
        compiled=("cpp", "cuda"),
        triton="triton",
    )
)
