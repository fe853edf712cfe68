"""Soft-label KL divergence of logits (Hinton et al.)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dispatch import library as _library
from .._dispatch.autograd import constant, run_loss
from .._dispatch.checks import check_choice, check_same_device, check_temperature, check_tensor
from ..scale_grad import scale_grads
from .eager import logits_kl as _eager

LOGIT_REDUCTIONS = ("batchmean", "sum")


def logits_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, reduction: str = "batchmean"
) -> Tensor:
    """``temperature**2 * KL(softmax(teacher / temperature) || softmax(student / temperature))``, summed over classes.

    The factor ``temperature**2`` keeps the gradient's size when the temperature changes, as in the field's trainers.

    Args:
        student: ``[T, V]`` logits, float32, bfloat16 or float16. Gets a gradient.
        teacher: ``[T, V]`` logits; its dtype may differ. No gradient.
        temperature: positive.
        reduction: ``"batchmean"``, the mean over the T rows (0 if there is none), or ``"sum"``.

    Returns:
        float32 scalar.

    Raises:
        ValueError, TypeError: naming the argument, what it got and what it wants.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """
    check_tensor("student", student, 2, "[T, V]")
    check_tensor("teacher", teacher, 2, "[T, V]")
    if teacher.shape != student.shape:
        raise ValueError(f"teacher: got shape {tuple(teacher.shape)}, want {tuple(student.shape)} as student")
    if student.shape[1] < 1:
        raise ValueError(f"student: got shape {tuple(student.shape)}, want at least one class")
    temperature = check_temperature(temperature)
    check_choice("reduction", reduction, LOGIT_REDUCTIONS)
    check_same_device("student", student, teacher=teacher)
    need_grad = torch.is_grad_enabled() and student.requires_grad
    return run_loss(
        "logits_kl", student.device.type, student, constant(teacher), temperature, reduction, need_grad
    )


def _fake(
    student: Tensor, teacher: Tensor, temperature: float, reduction: str, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    scalar = student.new_empty((), dtype=torch.float32)
    return scalar, student.new_empty(student.shape if need_grad else (0,)), torch.empty_like(scalar)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, grad_student, factor = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_student, factor)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 5
    grad_student, factor = ctx.saved_tensors
    return *scale_grads([grad_student], [True], factor, grad_loss), None, None, None, None


_library.register(
    "logits_kl",
    eager=_eager,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    triton=f"{__name__}.triton",
)
