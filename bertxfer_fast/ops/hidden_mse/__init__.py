"""Mean squared error of (projected) hidden states, the projected tensor never whole in memory."""

from __future__ import annotations

from torch import Tensor

from .._dispatch import library as _library
from .._dispatch.projected import backward, fake, projected_loss, setup_context
from .eager import hidden_mse as _eager


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

    Args:
        student: ``[T, Ds]``, float32, bfloat16 or float16. Gets a gradient.
        teacher: ``[T, Dt]``; its dtype may differ. No gradient.
        weight: ``[Dt, Ds]`` in the dtype of ``student``, or None (then Ds must equal Dt). Gets a gradient.
        bias: ``[Dt]``, same dtype, or None; needs ``weight``. Gets a gradient.
        reduction: ``"mean"`` over the ``T * Dt`` elements (0 if there is none) or ``"sum"``.

    Under autocast ``student``, ``weight`` and ``bias`` are taken in the autocast dtype where there is a weight,
    as ``torch.nn.functional.linear`` would take them.

    Returns:
        float32 scalar.

    Raises:
        ValueError, TypeError: naming the argument, what it got and what it wants.

    The loss is that of Jiao et al., "TinyBERT", 2020 (hidden states and embeddings).
    """
    return projected_loss("hidden_mse", student, teacher, weight, bias, reduction)


_library.register(
    "hidden_mse",
    eager=_eager,
    fake=fake,
    setup_context=setup_context,
    backward=backward,
    compiled=("cpp", "cuda"),
    triton=f"{__name__}.triton",
)
