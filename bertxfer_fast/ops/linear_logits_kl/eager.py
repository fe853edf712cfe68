"""Readable reference and fallback: whole logits, in the dtype a linear layer would give them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

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
    logits = linear(student, weight_student, bias_student).float()
    target = linear(teacher, weight_teacher, bias_teacher)
    loss, direction, grad_scale = logits_kl(logits, target, temperature, reduction, need_grad)
    empty = student.new_empty(0, dtype=torch.float32)
    if not need_grad:
        return loss, student.new_empty(0), empty, empty.clone(), grad_scale
    return (
        loss,
        (direction @ weight_student.float()).to(student.dtype),
        direction.T @ student.float(),
        empty if bias_student is None else direction.sum(0),
        grad_scale,
    )
