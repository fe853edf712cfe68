"""Readable reference and fallback: whole logits, in the dtype a linear layer would give them, but not in float16."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from .._dispatch.loss import stored_dtype
from ..logits_kl.eager import logits_kl


def linear_logits_kl(
    student: Tensor,
    weight_student: Tensor,
    bias_student: Tensor | None,
    teacher: Tensor,
    weight_teacher: Tensor,
    bias_teacher: Tensor | None,
    temperature: float,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    logits = _logits(student, weight_student, bias_student).float()
    target = _logits(teacher, weight_teacher, bias_teacher)
    loss, direction, grad_scale = logits_kl(logits, target, temperature, reduction, need_grad)
    empty = student.new_empty(0, dtype=torch.float32)
    if not need_grad:
        return loss, student.new_empty(0, dtype=stored_dtype(student.dtype)), empty, empty.clone(), grad_scale
    return (
        loss,
        (direction @ weight_student.float()).to(stored_dtype(student.dtype)),
        direction.T @ student.float(),
        empty if bias_student is None else direction.sum(0),
        grad_scale,
    )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """float16's are made in float32, because they may be beyond 65504 where their divergence is not."""
    if hidden.dtype == torch.float16:
        hidden, weight, bias = hidden.float(), weight.float(), None if bias is None else bias.float()
    return linear(hidden, weight, bias)
