"""Readable reference and fallback."""

from __future__ import annotations

import torch
from torch import Tensor

from .._dispatch.loss import stored_dtype

EPSILON = 1e-8


def hidden_cosine(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    projected = student.float() if weight is None else student.float() @ weight.float().T  # [T, Dt]
    if bias is not None:
        projected = projected + bias.float()
    target = teacher.float()
    norm = projected.norm(dim=1, keepdim=True)
    norm_target = target.norm(dim=1, keepdim=True)
    inverse = 1.0 / norm.clamp_min(EPSILON)
    unit, unit_target = projected * inverse, target / norm_target.clamp_min(EPSILON)
    # 1 - <u, v> = |u - v|^2 / 2 keeps its digits when u and v agree; a row without length has cosine 0.
    degenerate = (norm < EPSILON) | (norm_target < EPSILON)
    rows = 0.5 * (unit_target - unit).square().sum(1, keepdim=True)
    rows = torch.where(degenerate, 1.0 - (unit * unit_target).sum(1, keepdim=True), rows)  # [T, 1]
    normaliser = 1.0 if reduction == "sum" else 1.0 / max(student.shape[0], 1)
    loss = (rows.sum(dtype=torch.float64) * normaliser).float()
    grad_scale = torch.full_like(loss, normaliser)
    empty = student.new_empty(0, dtype=torch.float32)
    if not need_grad:
        return loss, student.new_empty(0, dtype=stored_dtype(student.dtype)), empty, empty.clone(), grad_scale
    direction = -inverse * ((unit_target - unit) + rows * unit)
    grad_student = direction if weight is None else direction @ weight.float()
    return (
        loss,
        grad_student.to(stored_dtype(student.dtype)),
        empty if weight is None else direction.T @ student.float(),
        empty.clone() if bias is None else direction.sum(0),
        grad_scale,
    )
