"""What hidden_mse and hidden_cosine share: both compare ``student @ weight.T + bias`` with ``teacher``, row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..scale_grad import scale_grads
from .autograd import constant, run_loss
from .checks import REDUCTIONS, check_choice, check_same_device, check_same_dtype, check_tensor


def projected_loss(
    name: str, student: Tensor, teacher: Tensor, weight: Tensor | None, bias: Tensor | None, reduction: str
) -> Tensor:
    """Checks the arguments, puts them into the autocast dtype where there is one, and runs operator ``name``."""
    check_tensor("student", student, 2, "[T, Ds]")
    check_tensor("teacher", teacher, 2, "[T, Dt]")
    if teacher.shape[0] != student.shape[0]:
        raise ValueError(f"teacher: got {teacher.shape[0]} tokens, want {student.shape[0]} as student")
    check_choice("reduction", reduction, REDUCTIONS)
    if weight is None:
        if bias is not None:
            raise ValueError("bias: got a tensor without weight, want both or weight alone")
        if teacher.shape[1] != student.shape[1]:
            raise ValueError(
                f"weight: got None with widths {student.shape[1]} and {teacher.shape[1]}, "
                f"want a weight of shape ({teacher.shape[1]}, {student.shape[1]})"
            )
    else:
        check_tensor("weight", weight, 2, "[Dt, Ds]")
        wanted = (teacher.shape[1], student.shape[1])
        if tuple(weight.shape) != wanted:
            raise ValueError(f"weight: got shape {tuple(weight.shape)}, want {wanted}")
        if bias is not None:
            check_tensor("bias", bias, 1, "[Dt]")
            if bias.shape[0] != wanted[0]:
                raise ValueError(f"bias: got {bias.shape[0]} entries, want {wanted[0]}")
        device_type = student.device.type
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            student, weight = student.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        check_same_dtype("student", student, weight=weight)
        if bias is not None:
            check_same_dtype("student", student, bias=bias)
    check_same_device("student", student, teacher=teacher, weight=weight, bias=bias)
    need_grad = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (student, weight, bias)
    )
    return run_loss(name, student.device.type, student, constant(teacher), weight, bias, reduction, need_grad)


def fake_projected(
    student: Tensor, weight: Tensor | None, bias: Tensor | None, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs of a loss through a linear layer: loss, three gradients (empty when not needed), factor."""

    def gradient(x: Tensor | None, dtype: torch.dtype) -> Tensor:
        return student.new_empty(x.shape if need_grad and x is not None else (0,), dtype=dtype)

    scalar = student.new_empty((), dtype=torch.float32)
    return (
        scalar,
        gradient(student, student.dtype),
        gradient(weight, torch.float32),
        gradient(bias, torch.float32),
        torch.empty_like(scalar),
    )


def fake(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return fake_projected(student, weight, bias, need_grad)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *gradients, factor = output
    ctx.set_materialize_grads(False)
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(*gradients, factor)


def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 6
    *gradients, factor = ctx.saved_tensors
    need_student, _, need_weight, need_bias, *_ = ctx.needs_input_grad
    needed = need_student, need_weight, need_bias
    grad_student, *others = scale_grads(gradients, needed, factor, grad_loss, ctx.dtype)
    return grad_student, None, *others, None, None
