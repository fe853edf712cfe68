"""Cosine distance of (projected) hidden states, the projected tensor never whole in memory."""

from __future__ import annotations

from torch import Tensor

from .._dispatch import library as _library
from .._dispatch.projected import backward, fake, projected_loss, setup_context
from .eager import hidden_cosine as _eager


def hidden_cosine(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    reduction: str = "mean",
) -> Tensor:
    """``1 - cos`` of ``student @ weight.T + bias`` and ``teacher``, token by token.

    The eager expression that is avoided::

        projected = torch.nn.functional.linear(student, weight, bias)
        loss = (1 - torch.nn.functional.cosine_similarity(projected, teacher)).mean()

    Args:
        student: ``[T, Ds]``, float32, bfloat16 or float16. Gets a gradient.
        teacher: ``[T, Dt]``; its dtype may differ. No gradient.
        weight: ``[Dt, Ds]`` in the dtype of ``student``, or None (then Ds must equal Dt). Gets a gradient.
        bias: ``[Dt]``, same dtype, or None; needs ``weight``. Gets a gradient.
        reduction: ``"mean"`` over the T tokens (0 if there is none) or ``"sum"``.

    Under autocast ``student``, ``weight`` and ``bias`` are taken in the autocast dtype where there is a weight,
    as ``torch.nn.functional.linear`` would take them.

    Returns:
        float32 scalar.

    Raises:
        ValueError, TypeError: naming the argument, what it got and what it wants.

    Norms are at least 1e-8. Sanh et al., "DistilBERT, a distilled version of BERT", 2019.
    """
    return projected_loss("hidden_cosine", student, teacher, weight, bias, reduction)


_library.register(
    "hidden_cosine",
    eager=_eager,
    fake=fake,
    setup_context=setup_context,
    backward=backward,
    triton=f"{__name__}.triton",
)
