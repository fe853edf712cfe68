"""KL divergence of self-relations (MiniLMv2): heads re-split, so that widths and head counts may differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._dispatch import loss
from .._dispatch.autograd import run
from .._dispatch.checks import (
    REDUCTIONS,
    check_choice,
    check_packing,
    check_same_device,
    check_scale,
    check_tensor,
)
from .._dispatch.examples import LENGTHS, normal, packing
from .._dispatch.library import register
from .._dispatch.registry import OpInfo
from . import eager


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

    The eager expression that is avoided, for one sequence of length L and one relation head, ``x`` being that head's
    ``[L, D / heads]`` slice::

        s = (scale_student * x_student @ x_student.T).log_softmax(-1)   # [L, L]
        t = (scale_teacher * x_teacher @ x_teacher.T).log_softmax(-1)   # [L, L]
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
        float32 scalar. Same inputs, same bits, whatever the number of threads.

    Raises:
        TypeError, ValueError: ``argument: got X, want Y``, before any work starts.

    Example:
        >>> import torch
        >>> from bertxfer_fast import ops
        >>> x, x_teacher = torch.randn(7, 384, requires_grad=True), torch.randn(7, 768)
        >>> cu_seqlens = torch.tensor([0, 3, 7], dtype=torch.int32)  # sequences of 3 and 4 tokens
        >>> loss = ops.relation_kl(x, x_teacher, cu_seqlens, heads=48)
        >>> loss.backward()
        >>> loss.shape, x.grad.shape
        (torch.Size([]), torch.Size([7, 384]))

    References:
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
    return run(
        "relation_kl",
        x_student.device.type,
        x_student,
        x_teacher,
        cu_seqlens,
        seqused,
        max_seqlen,
        heads,
        check_scale("scale_student", scale_student, x_student.shape[1] // heads),
        check_scale("scale_teacher", scale_teacher, x_teacher.shape[1] // heads),
        reduction,
    )


def _fake(x_student: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return loss.fake_loss(x_student, [(x_student, loss.stored_dtype(x_student.dtype))], need_grad=args[-1])


def _example(
    dtype: torch.dtype = torch.float32,
    *,
    student: int = 12,
    teacher: int = 8,
    heads: int = 2,
    lengths: Sequence[int] = LENGTHS,
) -> dict[str, Any]:
    make, tokens = normal(dtype), sum(lengths)
    return {
        "x_student": make(tokens, student),
        "x_teacher": make(tokens, teacher),
        "cu_seqlens": packing(lengths),
        "seqused": None,
        "max_seqlen": max(lengths),
        "heads": heads,
        "scale_student": (student // heads) ** -0.5,
        "scale_teacher": (teacher // heads) ** -0.5,
        "reduction": "mean",
        "need_grad": True,
    }


register(
    OpInfo(
        name="relation_kl",
        module=__name__,
        schema=(
            "(Tensor x_student, Tensor x_teacher, Tensor cu_seqlens, Tensor? seqused, SymInt max_seqlen, int heads, "
            "float scale_student, float scale_teacher, str reduction, bool need_grad) "
            "-> (Tensor loss, Tensor grad_student, Tensor grad_scale)"
        ),
        function=relation_kl,
        eager=eager.relation_kl,
        fake=_fake,
        example=_example,
        sizes={
            "8/16": {"student": 384, "teacher": 768, "heads": 48, "lengths": (512,)},
            "32/64": {"student": 384, "teacher": 768, "heads": 12, "lengths": (512,)},
        },
        differentiable=("x_student",),
        setup_context=loss.setup_context,
        backward=loss.backward,
        compiled=("cpp", "cuda"),
        triton="triton",
    )
)
