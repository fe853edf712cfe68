"""What the Triton launchers of hidden_mse and hidden_cosine share: the gradients of a linear layer from a direction."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import contiguous_rows, operand, wide_product

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def dense_inputs(student: Tensor, teacher: Tensor, weight: Tensor | None, bias: Tensor | None) -> Inputs:
    """The same tensors, of which those that are strided along a row are copied."""
    return (
        contiguous_rows(student),
        contiguous_rows(teacher),
        None if weight is None else contiguous_rows(weight),
        None if bias is None else bias.contiguous(),
    )


def gradients(
    student: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    direction: Tensor,
    columns: Tensor,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of student, weight and bias. ``direction`` is the projection's gradient, ``columns`` its column sums in parts."""
    nothing = torch.empty(0, dtype=torch.float32, device=student.device)
    if not need_grad:
        return torch.empty(0, dtype=student.dtype, device=student.device), nothing, nothing.clone()
    return (
        direction if weight is None else torch.mm(direction, operand(weight)),
        nothing if weight is None else wide_product(direction.T, student),
        nothing.clone() if bias is None else columns.sum(0),
    )
