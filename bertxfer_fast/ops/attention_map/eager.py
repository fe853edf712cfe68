"""Readable reference and fallback: both maps of every sequence, whole."""

from __future__ import annotations

import torch
from torch import Tensor

from .._dispatch.checks import sequence_spans
from .._dispatch.loss import stored_dtype


def attention_map_loss(
    q_student: Tensor,
    k_student: Tensor,
    q_teacher: Tensor,
    k_teacher: Tensor,
    cu_seqlens: Tensor,
    seqused: Tensor | None,
    max_seqlen: int,
    scale_student: float,
    scale_teacher: float,
    kind: str,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    heads = q_student.shape[1]
    total = q_student.new_zeros((), dtype=torch.float64)
    terms = 0
    # The gradient of a map's MSE is small.
    stored_scale = 1.0 if kind == "kl" else 64.0
    grad_q, grad_k = (
        x.new_zeros(x.shape if need_grad else 0, dtype=stored_dtype(x.dtype)) for x in (q_student, k_student)
    )
    for start, stop in sequence_spans(cu_seqlens, seqused):
        # [T, H, D] -> [H, L, D]
        qs, ks, qt, kt = (
            x[start:stop].transpose(0, 1).float() for x in (q_student, k_student, q_teacher, k_teacher)
        )
        log_student = torch.log_softmax(scale_student * (qs @ ks.mT), dim=-1)  # [H, L, L]
        log_teacher = torch.log_softmax(scale_teacher * (qt @ kt.mT), dim=-1)
        student, teacher = log_student.exp(), log_teacher.exp()
        if kind == "kl":
            total += (teacher * (log_teacher - log_student)).sum(dtype=torch.float64)
            terms += heads * (stop - start)
            direction = student - teacher
        else:
            difference = student - teacher
            total += difference.square().sum(dtype=torch.float64)
            terms += heads * (stop - start) ** 2
            inner = (difference * student).sum(-1, keepdim=True)
            direction = 2.0 * student * (difference - inner)
        if need_grad:
            direction = (scale_student * stored_scale) * direction
            grad_q[start:stop] = (direction @ ks).transpose(0, 1).to(grad_q.dtype)
            grad_k[start:stop] = (direction.mT @ qs).transpose(0, 1).to(grad_k.dtype)
    normaliser = (1.0 / terms if terms else 0.0) if reduction == "mean" else 1.0
    loss = (total * normaliser).float()
    return loss, grad_q, grad_k, torch.full_like(loss, normaliser / stored_scale)
