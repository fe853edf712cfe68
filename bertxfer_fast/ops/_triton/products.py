"""The library's matrix products beside the Triton kernels, with float32 sums."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .packing import contiguous_rows

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, summed and returned in float32 whatever the operands' dtype."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    if a.is_cuda and a.numel() and b.numel():
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())  # the CPU, where kernels are interpreted, has no such product


@functools.cache
def _adds_to_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this PyTorch adds a product of ``dtype`` to a float32 sum; older ones want the sum in ``dtype``, too."""
    total = torch.zeros((16, 16), dtype=torch.float32, device=device)
    part = torch.zeros((16, 16), dtype=dtype, device=device)
    try:
        torch.addmm(total, part, part, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return True


def add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """Adds ``a @ b`` to the float32 ``total`` in place, without a copy of either; the first one fills it."""
    beta = float(not first)
    if a.dtype == torch.float32:
        total.addmm_(a, b, beta=beta)
    elif _adds_to_float32(a.device, a.dtype):
        torch.addmm(total, a, b, beta=beta, out_dtype=torch.float32, out=total)
    elif first:
        total.copy_(wide_product(a, b))
    else:
        total += wide_product(a, b)


def operand(x: Tensor) -> Tensor:
    """``x`` as the library's products take it: as it is, but dense on the CPU, where kernels are interpreted.

    There oneDNN's bfloat16 products read past the rows of a strided matrix, and what they find may be NaN.
    """
    return x if x.is_cuda else x.contiguous()


def dense_inputs(student: Tensor, teacher: Tensor, weight: Tensor | None, bias: Tensor | None) -> Inputs:
    """The same tensors, of which those that are strided along a row are copied."""
    return (
        contiguous_rows(student),
        contiguous_rows(teacher),
        None if weight is None else contiguous_rows(weight),
        None if bias is None else bias.contiguous(),
    )


def linear_gradients(
    student: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    direction: Tensor,
    bias_partials: Tensor,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a linear layer's student, weight and bias, from ``direction``, the gradient of its output.

    ``bias_partials`` are the column sums of ``direction``, one row for each block of tokens.
    """
    nothing = torch.empty(0, dtype=torch.float32, device=student.device)
    if not need_grad:
        return torch.empty(0, dtype=student.dtype, device=student.device), nothing, nothing.clone()
    return (
        direction if weight is None else torch.mm(direction, operand(weight)),
        nothing if weight is None else wide_product(direction.T, student),
        nothing.clone() if bias is None else bias_partials.sum(0),
    )
