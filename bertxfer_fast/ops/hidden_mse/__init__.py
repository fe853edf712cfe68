"""Mean squared error of hidden states through a learned projection, the projected tensor never whole in memory."""

from __future__ import annotations

from torch import Tensor

from .._dispatch.library import register
from .._dispatch.projected import projected_loss, record
from . import eager


def hidden_mse(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    reduction: str = "mean",
) -> Tensor:
    """MSE of ``student @ weight.T + bias`` against ``teacher``.

    The eager expression that is avoided::

        torch.nn.functional.mse_loss(torch.nn.functional.linear(student, weight, bias), teacher)

    Under autocast ``student``, ``weight`` and ``bias`` are taken in the autocast dtype where there is a weight,
    as ``torch.nn.functional.linear`` would take them.

    Args:
        student: ``[T, Ds]``, float32, bfloat16 or float16. Gets a gradient.
        teacher: ``[T, Dt]``; its dtype may differ. No gradient.
        weight: ``[Dt, Ds]`` in the dtype of ``student``, or None (then Ds must equal Dt). Gets a gradient.
        bias: ``[Dt]``, same dtype, or None; needs ``weight``. Gets a gradient.
        reduction: ``"mean"`` over the ``T * Dt`` elements (0 if there is none) or ``"sum"``.

    Returns:
        float32 scalar.

    Raises:
        TypeError, ValueError: ``argument: got X, want Y``, before any work starts.

    Example:
        >>> import torch
        >>> from bertxfer_fast import ops
        >>> student, teacher = torch.randn(7, 312, requires_grad=True), torch.randn(7, 768)
        >>> projection = torch.nn.Linear(312, 768)
        >>> loss = ops.hidden_mse(student, teacher, projection.weight, projection.bias)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape, projection.weight.grad.shape
        (torch.Size([]), torch.Size([7, 312]), torch.Size([768, 312]))

    References:
        Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020 (hidden states, embeddings).
    """
    return projected_loss("hidden_mse", student, teacher, weight, bias, reduction)


register(
    record(
        hidden_mse,
        eager.hidden_mse,
        sizes={
            "312/768": {"student": 312, "teacher": 768, "tokens": 5760},
            "312/768 few tokens": {"student": 312, "teacher": 768, "tokens": 64},
            "768 no weight": {"student": 768, "teacher": 768, "tokens": 64, "weight": False},
        },
        compiled=("cpp", "cuda"),
    )
)
