"""Readable reference and fallback."""

from __future__ import annotations

import torch
from torch import Tensor

from .._dispatch.loss import stored_dtype


def hidden_mse(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tokens, width = teacher.shape
    projected = student.float() if weight is None else student.float() @ weight.float().T  # [T, Dt]
    if bias is not None:
        projected = projected + bias.float()
    residual = projected - teacher.float()
    normaliser = 1.0 if reduction == "sum" else 1.0 / max(tokens * width, 1)
    loss = (residual.square().sum(dtype=torch.float64) * normaliser).float()

    grad_scale = torch.full_like(loss, 2.0 * normaliser)
    empty = student.new_empty(0, dtype=torch.float32)
    if not need_grad:
        return loss, student.new_empty(0, dtype=stored_dtype(student.dtype)), empty, empty.clone(), grad_scale
    grad_student = residual if weight is None else residual @ weight.float()
    return (
        loss,
        grad_student.to(stored_dtype(student.dtype)),
        empty if weight is None else residual.T @ student.float(),
        empty.clone() if bias is None else residual.sum(0),
        grad_scale,
    )
