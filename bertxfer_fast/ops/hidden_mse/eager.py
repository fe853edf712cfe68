"""Readable reference and fallback."""

from __future__ import annotations

import torch
from torch import Tensor


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

    stored = 1.0 / max(width, 1)  # keeps the stored gradients inside half precision's range
    factor = torch.full_like(loss, normaliser / stored)
    nothing = student.new_empty(0, dtype=torch.float32)
    if not need_grad:
        return loss, student.new_empty(0), nothing, nothing.clone(), factor
    direction = (2.0 * stored) * residual
    grad_student = direction if weight is None else direction @ weight.float()
    return (
        loss,
        grad_student.to(student.dtype),
        nothing if weight is None else direction.T @ student.float(),
        nothing.clone() if bias is None else direction.sum(0),
        factor,
    )
