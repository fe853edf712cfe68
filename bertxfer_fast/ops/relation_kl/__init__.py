"""KL divergence of self-relations (MiniLMv2): heads re-split, so that widths and head counts may differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dispatch import library as _library
from .._dispatch.autograd import constant, run_loss
from .._dispatch.checks import (
    REDUCTIONS,
    check_choice,
    check_packing,
    check_same_device,
    check_scale,
    check_tensor,
)
from ..scale_grad import scale_grads
from .eager import relation_kl as _eager


def relation_kl(
    x_student: Tensor,
    x_teacher: Tensor,
    cu_seqlens: Tensor,
    *,
    heads: int,
    max_seqlen: int | None = None,
    seqused: Tensor | None = None,
    scale_student: float | None = None,
    scale_teacher: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """KL(teacher || student) of the relations of queries (or keys, or values) with themselves.

    For one sequence of length L and one relation head, ``x`` being that head's ``[L, D / heads]`` slice, the avoided
    eager expression is::

        s = (scale_student * x_student @ x_student.T).log_softmax(-1)   # [L, L]
        t = (scale_teacher * x_teacher @ x_teacher.T).log_softmax(-1)
        loss = (t.exp() * (t - s)).sum(-1).mean()

    MiniLMv2's loss is the sum of three calls: queries, keys and values.

    Args:
        x_student: ``[T, Ds]`` packed tokens, heads concatenated; float32, bfloat16 or float16. Gets a gradient.
        x_teacher: ``[T, Dt]``; its dtype may differ. No gradient.
        cu_seqlens: int32 ``[N + 1]``, where each sequence starts; first 0, last T.
        heads: number of relation heads; must divide Ds and Dt (48 for base, 64 for large teachers in the paper).
        max_seqlen: an upper bound of the sequence lengths. Left out it is computed (on CUDA one host sync).
        seqused: int32 ``[N]``, how many tokens of each sequence count; the rest get zero gradient.
        scale_student, scale_teacher: default ``1 / sqrt(D / heads)`` of each side.
        reduction: ``"mean"`` over the ``heads * sum(len)`` valid rows (0 if there is none) or ``"sum"``.

    Returns:
        float32 scalar.

    Raises:
        ValueError, TypeError: naming the argument, what it got and what it wants.

    Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation", 2021.
    """
    check_tensor("x_student", x_student, 2, "[T, Ds]")
    check_tensor("x_teacher", x_teacher, 2, "[T, Dt]")
    if x_teacher.shape[0] != x_student.shape[0]:
        raise ValueError(
            f"x_teacher: got {x_teacher.shape[0]} tokens, want {x_student.shape[0]} as x_student"
        )
    if isinstance(heads, bool) or not isinstance(heads, int):
        raise TypeError(f"heads: got {type(heads).__name__}, want an int")
    for name, x in (("x_student", x_student), ("x_teacher", x_teacher)):
        if heads < 1 or x.shape[1] % heads or not 1 <= x.shape[1] // heads <= 256:
            raise ValueError(
                f"heads: got {heads}, want a divisor of the width of {name}, {x.shape[1]}, into 1 to 256"
            )
    check_choice("reduction", reduction, REDUCTIONS)
    max_seqlen = check_packing(x_student.shape[0], cu_seqlens, max_seqlen, seqused)
    check_same_device("x_student", x_student, x_teacher=x_teacher, cu_seqlens=cu_seqlens, seqused=seqused)
    need_grad = torch.is_grad_enabled() and x_student.requires_grad
    return run_loss(
        "relation_kl",
        x_student.device.type,
        x_student,
        constant(x_teacher),
        cu_seqlens,
        seqused,
        max_seqlen,
        heads,
        check_scale("scale_student", scale_student, x_student.shape[1] // heads),
        check_scale("scale_teacher", scale_teacher, x_teacher.shape[1] // heads),
        reduction,
        need_grad,
    )


def _fake(x_student: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    scalar = x_student.new_empty((), dtype=torch.float32)
    return scalar, x_student.new_empty(x_student.shape if args[-1] else (0,)), torch.empty_like(scalar)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, grad_student, factor = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_student, factor)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 9
    if grad_loss is None:
        return None, *nothing
    grad_student, factor = ctx.saved_tensors
    return *scale_grads([grad_student], [True], factor, grad_loss), *nothing


_library.register(
    "relation_kl",
    eager=_eager,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    compiled=("cpp", "cuda"),
    triton=f"{__name__}.triton",
)
