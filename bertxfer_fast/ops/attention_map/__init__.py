"""KL divergence or MSE of softmaxed attention maps (MiniLM, TextBrewer)."""

from __future__ import annotations

import torch
from torch import Tensor

from .._dispatch import library as _library
from .._dispatch.autograd import constant, run_loss
from .._dispatch.checks import REDUCTIONS, check_attention_pair, check_choice, check_packing, check_scale
from ..attention_score_mse import attention_backward, fake_attention_loss, setup_attention_context
from .eager import attention_map_loss as _eager

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

    For one sequence of length L and one head, ``p`` the teacher's and ``s`` the student's map, both ``[L, L]``:

    - ``kind="kl"``: ``(p * (p.log() - s.log())).sum(-1)``, KL(teacher || student) per row, mean over
      the ``H * sum(len)`` valid rows;
    - ``kind="mse"``: ``(s - p).square()``, mean over the ``H * sum(len**2)`` valid pairs.

    With values in place of both q and k this is MiniLM's value relation.

    Args:
        q_student, k_student: ``[T, H, Ds]`` packed tokens, float32, bfloat16 or float16. They get gradients.
        q_teacher, k_teacher: ``[T, H, Dt]``, same T and H. No gradient.
        cu_seqlens: int32 ``[N + 1]``, where each sequence starts; first 0, last T.
        kind: ``"kl"`` or ``"mse"``.
        max_seqlen: an upper bound of the sequence lengths. Left out it is computed (on CUDA one host sync).
        seqused: int32 ``[N]``, how many tokens of each sequence count; the rest get zero gradient.
        scale_student, scale_teacher: default ``1 / sqrt(head_dim)`` of each side.
        reduction: ``"mean"`` as above (0 if nothing is valid) or ``"sum"``.

    Returns:
        float32 scalar.

    Raises:
        ValueError, TypeError: naming the argument, what it got and what it wants.

    Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression", 2020 (KL);
    Yang et al., "TextBrewer", 2020 (MSE).
    """
    check_attention_pair(q_student, k_student, q_teacher, k_teacher, cu_seqlens)
    check_choice("kind", kind, KINDS)
    check_choice("reduction", reduction, REDUCTIONS)
    max_seqlen = check_packing(q_student.shape[0], cu_seqlens, max_seqlen, seqused)
    need_grad = torch.is_grad_enabled() and (q_student.requires_grad or k_student.requires_grad)
    return run_loss(
        "attention_map_loss",
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
        kind,
        reduction,
        need_grad,
    )


_library.register(
    "attention_map_loss",
    eager=_eager,
    fake=fake_attention_loss,
    setup_context=setup_attention_context,
    backward=attention_backward,
    compiled=("cpp", "cuda"),
    triton=f"{__name__}.triton",
)
