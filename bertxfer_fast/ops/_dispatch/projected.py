"""What hidden_mse and hidden_cosine share: both compare ``student @ weight.T + bias`` with ``teacher``, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .autograd import run
from .checks import REDUCTIONS, check_choice, check_same_device, check_same_dtype, check_tensor
from .examples import normal
from .loss import backward, fake_loss, setup_context, stored_dtype
from .registry import OpInfo


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
    return run(name, student.device.type, student, teacher, weight, bias, reduction)


def fake(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, ...]:
    return fake_loss(student, gradients(student, weight, bias), need_grad)


def gradients(
    student: Tensor, weight: Tensor | None, bias: Tensor | None
) -> list[tuple[Tensor | None, torch.dtype]]:
    """What gets a gradient, and the dtype it is stored in: sums over all tokens stay float32 until they are scaled."""
    return [(student, stored_dtype(student.dtype)), (weight, torch.float32), (bias, torch.float32)]


def example(
    dtype: torch.dtype = torch.float32,
    *,
    tokens: int = 5,
    student: int = 6,
    teacher: int = 4,
    weight: bool = True,
) -> dict[str, Any]:
    make = normal(dtype)
    return {
        "student": make(tokens, student),
        "teacher": make(tokens, teacher),
        "weight": make(teacher, student) if weight else None,
        "bias": make(teacher) if weight else None,
        "reduction": "mean",
        "need_grad": True,
    }


def record(
    function: Callable[..., Tensor],
    eager: Callable[..., Any],
    *,
    sizes: dict[str, dict[str, Any]],
    compiled: tuple[str, ...],
) -> OpInfo:
    """The record of an operator that differs from the others of this kind in what ``eager`` computes."""
    return OpInfo(
        name=function.__name__,
        module=function.__module__,
        schema=(
            "(Tensor student, Tensor teacher, Tensor? weight, Tensor? bias, str reduction, bool need_grad) "
            "-> (Tensor loss, Tensor grad_student, Tensor grad_weight, Tensor grad_bias, Tensor grad_scale)"
        ),
        function=function,
        eager=eager,
        fake=fake,
        example=example,
        sizes=sizes,
        differentiable=("student", "weight", "bias"),
        setup_context=setup_context,
        backward=backward,
        compiled=compiled,
        triton="triton",
    )
