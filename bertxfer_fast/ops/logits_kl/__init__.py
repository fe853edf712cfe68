"""Soft-label KL divergence of logits (Hinton et al.)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dispatch import loss
from .._dispatch.autograd import run
from .._dispatch.checks import check_choice, check_same_device, check_temperature, check_tensor
from .._dispatch.examples import normal
from .._dispatch.library import register
from .._dispatch.registry import OpInfo
from . import eager

LOGIT_REDUCTIONS = ("batchmean", "sum")


def logits_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, reduction: str = "batchmean"
) -> Tensor:
    """``temperature**2 * KL(softmax(teacher / temperature) || softmax(student / temperature))``, summed over classes.

    The square of the temperature keeps the gradient's size when the temperature changes, as in the field's trainers.

    The eager expression that is avoided::

        s = (student.float() / temperature).log_softmax(-1)
        t = (teacher.float() / temperature).log_softmax(-1)
        loss = temperature**2 * torch.nn.functional.kl_div(s, t, log_target=True, reduction="batchmean")

    Args:
        student: ``[T, V]`` logits, float32, bfloat16 or float16. Gets a gradient.
        teacher: ``[T, V]`` logits; its dtype may differ. No gradient.
        temperature: positive.
        reduction: ``"batchmean"``, the mean over the T rows (0 if there is none), or ``"sum"``.

    Returns:
        float32 scalar. Same inputs, same bits, whatever the number of threads.

    Raises:
        TypeError, ValueError: ``argument: got X, want Y``, before any work starts.

    Example:
        >>> import torch
        >>> from bertxfer_fast import ops
        >>> student, teacher = torch.randn(8, 30522, requires_grad=True), torch.randn(8, 30522)
        >>> loss = ops.logits_kl(student, teacher, temperature=2.0)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([8, 30522]))

    References:
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
    return run("logits_kl", student.device.type, student, teacher, temperature, reduction)


def _fake(student: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return loss.fake_loss(student, [(student, student.dtype)], need_grad=args[-1])


def _example(dtype: torch.dtype = torch.float32, *, tokens: int = 5, classes: int = 11) -> dict[str, Any]:
    make = normal(dtype)
    return {
        "student": make(tokens, classes),
        "teacher": make(tokens, classes),
        "temperature": 2.0,
        "reduction": "batchmean",
        "need_grad": True,
    }


register(
    OpInfo(
        name="logits_kl",
        module=__name__,
        schema=(
            "(Tensor student, Tensor teacher, float temperature, str reduction, bool need_grad) "
            "-> (Tensor loss, Tensor grad_student, Tensor grad_scale)"
        ),
        function=logits_kl,
        eager=eager.logits_kl,
        fake=_fake,
        example=_example,
        sizes={str(classes): {"tokens": 2, "classes": classes} for classes in (2, 1000, 3000, 30522)},
        differentiable=("student",),
        setup_context=loss.setup_context,
        backward=loss.backward,
        compiled=("cpp",),
        triton="triton",
    )
)
