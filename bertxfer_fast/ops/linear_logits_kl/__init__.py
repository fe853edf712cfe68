"""Soft-label KL divergence straight from hidden states, the ``[T, V]`` logits never whole in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dispatch import loss, projected
from .._dispatch.autograd import run
from .._dispatch.checks import (
    check_choice,
    check_same_device,
    check_same_dtype,
    check_temperature,
    check_tensor,
)
from .._dispatch.examples import normal
from .._dispatch.library import register
from .._dispatch.registry import OpInfo
from ..logits_kl import LOGIT_REDUCTIONS
from . import eager


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

    The eager expression that is avoided::

        s = torch.nn.functional.linear(student, weight_student, bias_student)    # [T, V]
        t = torch.nn.functional.linear(teacher, weight_teacher, bias_teacher)    # [T, V]
        s, t = ((x.float() / temperature).log_softmax(-1) for x in (s, t))
        loss = temperature**2 * torch.nn.functional.kl_div(s, t, log_target=True, reduction="batchmean")

    Under autocast all tensors are taken in the autocast dtype, as ``torch.nn.functional.linear`` would take them.

    Args:
        student: ``[T, Ds]`` what the student's output layer reads; float32, bfloat16 or float16. Gets a gradient.
        weight_student: ``[V, Ds]`` in the dtype of ``student``. Gets a gradient.
        teacher, weight_teacher: ``[T, Dt]`` and ``[V, Dt]``, of one dtype. No gradient.
        bias_student: ``[V]`` in the dtype of ``student``, or None. Gets a gradient.
        bias_teacher: ``[V]`` in the dtype of ``teacher``, or None. No gradient.
        temperature: positive; the loss is multiplied by its square.
        reduction: ``"batchmean"``, the mean over the T rows (0 if there is none), or ``"sum"``.

    Returns:
        float32 scalar.

    Raises:
        TypeError, ValueError: ``argument: got X, want Y``, before any work starts.

    Example:
        >>> import torch
        >>> from bertxfer_fast import ops
        >>> student, teacher = torch.randn(8, 312, requires_grad=True), torch.randn(8, 768)
        >>> head, teacher_head = torch.nn.Linear(312, 30522), torch.nn.Linear(768, 30522)
        >>> loss = ops.linear_logits_kl(
        ...     student,
        ...     head.weight,
        ...     teacher,
        ...     teacher_head.weight,
        ...     bias_student=head.bias,
        ...     bias_teacher=teacher_head.bias,
        ...     temperature=2.0,
        ... )
        >>> loss.backward()
        >>> loss.shape, student.grad.shape, head.weight.grad.shape, teacher_head.weight.grad
        (torch.Size([]), torch.Size([8, 312]), torch.Size([30522, 312]), None)

    References:
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
    return run(
        "linear_logits_kl",
        device_type,
        student,
        weight_student,
        bias_student,
        teacher,
        weight_teacher,
        bias_teacher,
        temperature,
        reduction,
    )


def _fake(student: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    return loss.fake_loss(student, projected.gradients(student, weight, bias), need_grad=args[-1])


def _example(
    dtype: torch.dtype = torch.float32,
    *,
    tokens: int = 5,
    student: int = 6,
    teacher: int = 4,
    classes: int = 11,
) -> dict[str, Any]:
    make = normal(dtype)
    return {
        "student": make(tokens, student),
        "weight_student": make(classes, student),
        "bias_student": make(classes),
        "teacher": make(tokens, teacher),
        "weight_teacher": make(classes, teacher),
        "bias_teacher": make(classes),
        "temperature": 2.0,
        "reduction": "batchmean",
        "need_grad": True,
    }


register(
    OpInfo(
        name="linear_logits_kl",
        module=__name__,
        schema=(
            "(Tensor student, Tensor weight_student, Tensor? bias_student, Tensor teacher, Tensor weight_teacher, "
            "Tensor? bias_teacher, float temperature, str reduction, bool need_grad) "
            "-> (Tensor loss, Tensor grad_student, Tensor grad_weight, Tensor grad_bias, Tensor grad_scale)"
        ),
        function=linear_logits_kl,
        eager=eager.linear_logits_kl,
        fake=_fake,
        example=_example,
        sizes={"30522": {"tokens": 2, "student": 16, "teacher": 16, "classes": 30522}},
        differentiable=("student", "weight_student", "bias_student"),
        setup_context=loss.setup_context,
        backward=loss.backward,
        compiled=("cpp",),
        triton="triton",
    )
)
