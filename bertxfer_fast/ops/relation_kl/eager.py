"""Readable reference and fallback: attention maps of x with itself."""

from __future__ import annotations

from torch import Tensor

from .._dispatch.loss import stored_dtype
from ..attention_map.eager import attention_map_loss


def relation_kl(
    x_student: Tensor,
    x_teacher: Tensor,
    cu_seqlens: Tensor,
    seqused: Tensor | None,
    max_seqlen: int,
    heads: int,
    scale_student: float,
    scale_teacher: float,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # In float32, because the gradients through both places of x are added before they are rounded.
    student, teacher = (x.unflatten(1, (heads, -1)).float() for x in (x_student, x_teacher))
    loss, grad_q, grad_k, grad_scale = attention_map_loss(
        student,
        student,
        teacher,
        teacher,
        cu_seqlens,
        seqused,
        max_seqlen,
        scale_student,
        scale_teacher,
        "kl",
        reduction,
        need_grad,
    )
    grad = (grad_q + grad_k).flatten(1) if need_grad else grad_q
    return loss, grad.to(stored_dtype(x_student.dtype)), grad_scale
