"""Readable reference and fallback: the whole map of one sequence at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .._dispatch.checks import sequence_spans


def _kept(
    shape: tuple[int, ...], dropout_p: float, seed: Tensor | None, start: int, like: Tensor
) -> Tensor | None:
    """The dropout mask of the sequence that starts at token ``start``, already divided by ``1 - p``."""
    if seed is None:
        return None
    generator = torch.Generator(device=like.device).manual_seed((int(seed) + start) % 2**63)
    kept = torch.rand(shape, generator=generator, device=like.device) >= dropout_p
    return kept / (1.0 - dropout_p)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_zeros((q.shape[1], q.shape[0]), dtype=torch.float32)
    for start, stop in sequence_spans(cu_seqlens, None):
        # [T, H, D] -> [H, L, D]
        qs, ks, vs = (x[start:stop].transpose(0, 1).float() for x in (q, k, v))
        scores = scale * (qs @ ks.mT)
        lse[:, start:stop] = torch.logsumexp(scores, dim=-1)
        weights = torch.softmax(scores, dim=-1)
        kept = _kept(tuple(weights.shape), dropout_p, seed, start, weights)
        if kept is not None:
            weights = weights * kept
        out[start:stop] = (weights @ vs).transpose(0, 1).to(out.dtype)
    return out, lse


def varlen_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for start, stop in sequence_spans(cu_seqlens, None):
        qs, ks, vs, gs, os = (x[start:stop].transpose(0, 1).float() for x in (q, k, v, grad, out))
        weights = torch.exp(scale * (qs @ ks.mT) - lse[:, start:stop, None])
        grad_weights = gs @ vs.mT
        kept = _kept(tuple(weights.shape), dropout_p, seed, start, weights)
        dropped = weights
        if kept is not None:
            grad_weights, dropped = grad_weights * kept, weights * kept
        # The softmax's Jacobian needs sum_j w_j dw_j of each row, which equals the row's inner product of out and grad.
        delta = (gs * os).sum(-1, keepdim=True)
        grad_scores = scale * weights * (grad_weights - delta)
        grad_q[start:stop] = (grad_scores @ ks).transpose(0, 1).to(grad_q.dtype)
        grad_k[start:stop] = (grad_scores.mT @ qs).transpose(0, 1).to(grad_k.dtype)
        grad_v[start:stop] = (dropped.mT @ gs).transpose(0, 1).to(grad_v.dtype)
    return grad_q, grad_k, grad_v
