"""Soft-label KL divergence straight from hidden states, ``[T, V]`` logits never whole in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dispatch import library as _library
from .._dispatch.autograd import constant, run_loss
from .._dispatch.checks import (
    check_choice,
    check_same_device,
    check_same_dtype,
    check_temperature,
    check_tensor,
)
from .._dispatch.projected import fake_projected, setup_context
from ..logits_kl import LOGIT_REDUCTIONS
from ..scale_grad import scale_grads
from .eager import linear_logits_kl as _eager


def linear_logits_kl(
    student: Tensor,
    weight_student: Tensor,
    teacher: Tensor,
    weight_teacher: Tensor,
    *,
    bias_student: Tensor | None = None,
    bias_teacher: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "batchmean",
) -> Tensor:
    """`logits_kl` of ``student @ weight_student.T + bias_student`` and the teacher's, a few hundred tokens at a time.

    For distillation through a masked-language-model head, whose logits would be larger than everything else in memory.

    Args:
        student: ``[T, Ds]`` what the student's output layer reads; float32, bfloat16 or float16. Gets a gradient.
        weight_student: ``[V, Ds]`` in the dtype of ``student``. Gets a gradient.
        teacher, weight_teacher: ``[T, Dt]`` and ``[V, Dt]``, of one dtype. No gradient.
        bias_student: ``[V]`` in the dtype of ``student``, or None. Gets a gradient.
        bias_teacher: ``[V]`` in the dtype of ``teacher``, or None.
        temperature: positive; the loss is multiplied by its square.
        reduction: ``"batchmean"``, the mean over the T rows (0 if there is none), or ``"sum"``.

    Under autocast all of them are taken in the autocast dtype, as ``torch.nn.functional.linear`` would take them.

    Returns:
        float32 scalar.

    Raises:
        ValueError, TypeError: naming the argument, what it got and what it wants.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """
    check_tensor("student", student, 2, "[T, Ds]")
    check_tensor("weight_student", weight_student, 2, "[V, Ds]")
    check_tensor("teacher", teacher, 2, "[T, Dt]")
    check_tensor("weight_teacher", weight_teacher, 2, "[V, Dt]")
    for name, bias in (("bias_student", bias_student), ("bias_teacher", bias_teacher)):
        if bias is not None:
            check_tensor(name, bias, 1, "[V]")
    classes = weight_student.shape[0]
    for name, x, wanted in (
        ("weight_student", weight_student, (classes, student.shape[1])),
        ("teacher", teacher, (student.shape[0], teacher.shape[1])),
        ("weight_teacher", weight_teacher, (classes, teacher.shape[1])),
        ("bias_student", bias_student, (classes,)),
        ("bias_teacher", bias_teacher, (classes,)),
    ):
        if x is not None and tuple(x.shape) != wanted:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, want {wanted}")
    if classes < 1:
        raise ValueError("weight_student: got no rows, want at least one class")
    temperature = check_temperature(temperature)
    check_choice("reduction", reduction, LOGIT_REDUCTIONS)
    check_same_device(
        "student", student, weight_student=weight_student, teacher=teacher, weight_teacher=weight_teacher
    )
    check_same_device("student", student, bias_student=bias_student, bias_teacher=bias_teacher)
    device_type = student.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        student, weight_student, teacher, weight_teacher = (
            x.to(dtype) for x in (student, weight_student, teacher, weight_teacher)
        )
        bias_student, bias_teacher = (
            None if x is None else x.to(dtype) for x in (bias_student, bias_teacher)
        )
    check_same_dtype("student", student, weight_student=weight_student)
    check_same_dtype("teacher", teacher, weight_teacher=weight_teacher)
    if bias_student is not None:
        check_same_dtype("student", student, bias_student=bias_student)
    if bias_teacher is not None:
        check_same_dtype("teacher", teacher, bias_teacher=bias_teacher)
    need_grad = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (student, weight_student, bias_student)
    )
    return run_loss(
        "linear_logits_kl",
        device_type,
        student,
        weight_student,
        bias_student,
        constant(teacher),
        constant(weight_teacher),
        None if bias_teacher is None else constant(bias_teacher),
        temperature,
        reduction,
        need_grad,
    )


def _fake(student: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    return fake_projected(student, weight, bias, need_grad=args[-1])


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 9
    *gradients, factor = ctx.saved_tensors
    scaled = scale_grads(gradients, ctx.needs_input_grad[:3], factor, grad_loss, ctx.dtype)
    return (*scaled, None, None, None, None, None, None)


_library.register(
    "linear_logits_kl",
    eager=_eager,
    fake=_fake,
    setup_context=setup_context,
    backward=_backward,
    triton=f"{__name__}.triton",
)
