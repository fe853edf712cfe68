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


def product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``a @ b`` into ``out``, of the operands' dtype or float32."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda and a.numel() and b.numel():
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


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

    ``direction`` is in the dtype that gradients are stored in (`stored_dtype`), and so is the student's gradient.
    ``bias_partials`` are the column sums of ``direction``, one row for each block of tokens.
    """
    nothing = torch.empty(0, dtype=torch.float32, device=student.device)
    if not need_grad:
        return torch.empty(0, dtype=direction.dtype, device=student.device), nothing, nothing.clone()
    grad_bias = nothing.clone() if bias is None else bias_partials.sum(0)
    if weight is None:
        return direction, nothing, grad_bias
    if student.dtype == torch.float16:
        return *_float16_gradients(student, weight, direction), grad_bias
    return torch.mm(direction, operand(weight)), wide_product(direction.T, student), grad_bias


def _float16_gradients(student: Tensor, weight: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Those of student and weight on float16's tensor cores, from a direction in float32.

    No one scale brings all rows of a direction into float16: hidden_cosine divides each by its length. So each row is
    divided by its largest entry, which is multiplied back into its row of the student's gradient; in the sum over rows
    that is the weight's, it goes into the student's row.
    """
    largest = _largest(direction, dim=1)  # [T, 1]
    unit = (direction / largest).half()
    rows = student * largest  # [T, Ds], float32
    most = _largest(rows)
    grad_student = wide_product(unit, weight).mul_(largest)
    return grad_student, wide_product(unit.T, (rows / most).half()).mul_(most)


def _largest(x: Tensor, dim: int | None = None) -> Tensor:
    """The largest magnitude in ``x`` or along a dimension; of zeros, and of nothing, a small number to divide by."""
    tiny = torch.finfo(torch.float32).tiny
    if not x.numel():
        return x.new_full((x.shape[0], 1) if dim == 1 else (), tiny)
    return torch.linalg.vector_norm(x, torch.inf, dim=dim, keepdim=dim is not None).clamp_min(tiny)
