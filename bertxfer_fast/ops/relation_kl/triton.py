"""relation_kl on Triton: attention_map's kernels with q = k = x, re-split into heads.

Operations at 64/512, 48 heads, 384/768 wide: six exponentials and 160 flops (heads of 8 and 16, both padded to 16) for
each of 805 M pairs in half precision. Floor on an H100: 1.3 ms for the exponentials.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._dispatch.loss import stored_dtype
from .._triton.packing import contiguous_rows
from ..attention_map.triton import run


def relation_kl(
    x_student: Tensor,
    x_teacher: Tensor,
    cu_seqlens: Tensor,
    seqused: Tensor | None,
    max_seqlen: int,
    heads: int,
    scale_student: float,
    scale_teacher: float,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = (contiguous_rows(x).unflatten(1, (heads, -1)) for x in (x_student, x_teacher))
    grad = torch.empty(
        x_student.shape if need_grad else 0, dtype=stored_dtype(x_student.dtype), device=x_student.device
    )
    loss, factor = run(
        [student, student, teacher, teacher],
        cu_seqlens,
        seqused,
        scale_student,
        scale_teacher,
        "kl",
        reduction,
        [grad] if need_grad else [],
        symmetric=True,
    )
    return loss, grad, factor
