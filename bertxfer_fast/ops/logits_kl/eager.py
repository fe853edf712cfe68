"""Readable reference and fallback."""

from __future__ import annotations

import torch
from torch import Tensor

#: What float16 gradients are multiplied by. They are differences of probabilities: at most 1, and with a vocabulary of
#: classes mostly far below what float16 holds.
STORED = 16384.0


def logits_kl(
    student: Tensor, teacher: Tensor, temperature: float, reduction: str, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    log_student = torch.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = torch.log_softmax(teacher.float() / temperature, dim=-1)
    target = log_teacher.exp()
    normaliser = 1.0 if reduction == "sum" else 1.0 / max(student.shape[0], 1)
    # With xlogy and where, a class that the teacher rules out (probability 0) adds nothing, whatever the student's
    # logit.
    terms = torch.xlogy(target, target) - torch.where(
        target == 0, torch.zeros_like(target), target * log_student
    )
    loss = (terms.sum(dtype=torch.float64) * (temperature**2 * normaliser)).float()
    grad_student = student.new_empty(0)
    stored_scale = STORED if student.dtype == torch.float16 else 1.0
    if need_grad:
        # The gradient is temperature * normaliser times this difference, which is at most 1 in size.
        grad_student = (stored_scale * (log_student.exp() - target)).to(student.dtype)
    grad_scale = torch.full_like(loss, temperature * normaliser / stored_scale)
    return loss, grad_student, grad_scale
