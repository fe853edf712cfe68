"""Readable reference and fallback: both scores of every sequence, whole, and their difference."""

from __future__ import annotations

import torch
from torch import Tensor

from .._dispatch.checks import sequence_spans
from .._dispatch.loss import stored_dtype


def attention_score_mse(
    q_student: Tensor,
    k_student: Tensor,
    q_teacher: Tensor,
    k_teacher: Tensor,
    cu_seqlens: Tensor,
    seqused: Tensor | None,
    max_seqlen: int,
    scale_student: float,
    scale_teacher: float,
    reduction: str,
    method: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    heads = q_student.shape[1]
    total = q_student.new_zeros((), dtype=torch.float64)
    pairs = 0
    # The gradient grows with the number of keys.
    stored_scale = 1.0 / max(max_seqlen, 1)
    grad_q, grad_k = (
        x.new_zeros(x.shape if need_grad else 0, dtype=stored_dtype(x.dtype)) for x in (q_student, k_student)
    )
    for start, stop in sequence_spans(cu_seqlens, seqused):
        # [T, H, D] -> [H, L, D]
        qs, ks, qt, kt = (
            x[start:stop].transpose(0, 1).float() for x in (q_student, k_student, q_teacher, k_teacher)
        )
        difference = scale_student * (qs @ ks.mT) - scale_teacher * (qt @ kt.mT)  # [H, L, L]
        total += difference.square().sum(dtype=torch.float64)
        pairs += heads * (stop - start) ** 2
        if need_grad:
            direction = (2.0 * scale_student * stored_scale) * difference
            grad_q[start:stop] = (direction @ ks).transpose(0, 1).to(grad_q.dtype)
            grad_k[start:stop] = (direction.mT @ qs).transpose(0, 1).to(grad_k.dtype)
    normaliser = (1.0 / pairs if pairs else 0.0) if reduction == "mean" else 1.0
    loss = (total * normaliser).float()
    return loss, grad_q, grad_k, torch.full_like(loss, normaliser / stored_scale)
