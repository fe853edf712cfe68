"""Readable reference and fallback, a loop over sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from .._dispatch.checks import sequence_spans

EPSILON = 1e-12


def pool_features(
    hidden: list[Tensor],
    cu_seqlens: Tensor,
    seqused: Tensor | None,
    layer_weights: Tensor,
    mode: str,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    spans = sequence_spans(cu_seqlens, seqused)
    shape = (len(spans), hidden[0].shape[1])
    pooled = hidden[0].new_zeros(shape, dtype=torch.float32)
    argmax = hidden[0].new_zeros(shape if mode == "max" else (0,), dtype=torch.int32)
    for n, (start, stop) in enumerate(spans):
        if stop == start:
            continue
        mixed = sum(w * h[start:stop].float() for w, h in zip(layer_weights, hidden, strict=True))  # [L, D]
        if mode == "cls":
            pooled[n] = mixed[0]
        elif mode == "max":
            pooled[n], where = mixed.max(0)
            argmax[n] = where.int() + start
        else:
            pooled[n] = mixed.sum(0) * _scale(mode, stop - start)
    norm = hidden[0].new_empty(0, dtype=torch.float32)
    if normalize:
        norm = pooled.norm(dim=1).clamp_min(EPSILON)
        pooled = pooled / norm[:, None]
    return pooled.to(hidden[0].dtype), argmax, norm


def pool_features_backward(
    grad: Tensor,
    hidden: list[Tensor],
    cu_seqlens: Tensor,
    seqused: Tensor | None,
    layer_weights: Tensor,
    mode: str,
    normalize: bool,
    pooled: Tensor,
    argmax: Tensor,
    norm: Tensor,
    need_weights: bool,
) -> tuple[list[Tensor], Tensor]:
    grad_x = grad.float()
    if normalize:
        unit = pooled.float()
        grad_x = (grad_x - unit * (grad_x * unit).sum(1, keepdim=True)) / norm[:, None]
    # With respect to the weighted sum of the layers.
    grad_mixed = hidden[0].new_zeros(hidden[0].shape, dtype=torch.float32)
    grad_weights = layer_weights.new_zeros(layer_weights.shape)
    for n, (start, stop) in enumerate(sequence_spans(cu_seqlens, seqused)):
        if stop == start:
            continue
        if mode == "cls":
            grad_mixed[start] = grad_x[n]
        elif mode == "max":
            grad_mixed.scatter_(0, argmax[n : n + 1].long(), grad_x[n : n + 1])
        else:
            grad_mixed[start:stop] = grad_x[n] * _scale(mode, stop - start)
        if need_weights:
            grad_weights += torch.stack(
                [(grad_mixed[start:stop] * h[start:stop].float()).sum() for h in hidden]
            )
    grad_hidden = [(w * grad_mixed).to(h.dtype) for w, h in zip(layer_weights, hidden, strict=True)]
    return grad_hidden, grad_weights


def _scale(mode: str, length: int) -> float:
    return 1.0 / length if mode == "mean" else length**-0.5
