"""Rows of both maps in one sweep over the keys, for half precision: KL, the log-sum-exps and grad_q. See triton.py.

With ``w_s = exp2(s - max_s)`` and ``w_t`` alike (s and t in base 2), a sweep sums ``w_s``, ``w_t``, ``w_s k``,
``w_t k`` and ``w_t (t - s)``. Then

    KL = ln 2 (sum w_t (t - s) / sum w_t + lse_s - lse_t)        dQ = sum w_s k / sum w_s - sum w_t k / sum w_t

The loss is off by a float32 rounding of the log-sum-exps, far below what rounded scores of half precision cost.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton.launching import kernel
from .._triton.packing import Packing, find_tile, load_rows
from .triton_rows import LN_2, scaled_scores, store_gradient, store_statistics, unmasked_length, weights_of


@triton.jit
def _sweep(
    qs,
    qt,
    k_s,
    k_t,
    head,
    start,
    col,
    length,
    scale_s,
    scale_t,
    max_s,
    sum_s,
    max_t,
    sum_t,
    cross,
    keys_s,
    keys_t,
    NEED_GRAD: tl.constexpr,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr,
):
    cols = col + tl.arange(0, BLOCK_N)
    ks = load_rows(k_s, head, start, cols, length, DIM_S, BLOCK_S, WHOLE)
    kt = load_rows(k_t, head, start, cols, length, DIM_T, BLOCK_T, WHOLE)
    student = scaled_scores(qs, ks, scale_s, cols, length, "ieee", WHOLE)
    teacher = scaled_scores(qt, kt, scale_t, cols, length, "ieee", WHOLE)
    distance = teacher - student
    if not WHOLE:
        distance = tl.where((cols < length)[None, :], distance, 0.0)
    max_s, sum_s, shrink_s, weights_s = weights_of(student, max_s, sum_s)
    max_t, sum_t, shrink_t, weights_t = weights_of(teacher, max_t, sum_t)
    cross = cross * shrink_t + tl.sum(weights_t * distance, 1)
    if NEED_GRAD:
        keys_s = tl.dot(weights_s.to(ks.dtype), ks, keys_s * shrink_s[:, None])
        keys_t = tl.dot(weights_t.to(ks.dtype), ks, keys_t * shrink_t[:, None])
    return max_s, sum_s, max_t, sum_t, cross, keys_s, keys_t


@kernel
def kl_rows_kernel(
    q_s,  # Rows of [T, H, DIM_S]
    k_s,  # Rows of [T, H, DIM_S]
    q_t,  # Rows of [T, H, DIM_T]
    k_t,  # Rows of [T, H, DIM_T]
    cu_seqlens_ptr,  # int32 [N + 1]
    seqused_ptr,  # int32 [N], or None
    tokens,
    sequences,
    heads,
    scale_s,
    scale_t,
    grad_factor,
    losses_ptr,  # [programs]
    stats_ptr,  # [2, H, T] log-sum-exps of student and teacher, or None: nobody wants them
    grad_q,  # Rows of [T, H, DIM_S], or None
    MEAN: tl.constexpr,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):
    """``BLOCK_M`` rows of both maps: their loss, log-sum-exps and grad_q."""
    packing = Packing(cu_seqlens_ptr, seqused_ptr, tokens, sequences)
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    n, start, length, row = find_tile(packing, program // heads, BLOCK_M)
    rows = row + tl.arange(0, BLOCK_M)
    grad = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
    loss = tl.zeros((BLOCK_M,), tl.float32)
    NEED_GRAD: tl.constexpr = grad_q is not None
    if row < length:
        qs = load_rows(q_s, head, start, rows, length, DIM_S, BLOCK_S)
        qt = load_rows(q_t, head, start, rows, length, DIM_T, BLOCK_T)
        max_s = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        max_t = max_s
        sum_s = tl.zeros((BLOCK_M,), tl.float32)
        sum_t = sum_s
        cross = sum_s
        keys_s = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
        keys_t = keys_s
        whole = unmasked_length(length, BLOCK_N, MASKED)
        for col in range(0, whole, BLOCK_N):
            max_s, sum_s, max_t, sum_t, cross, keys_s, keys_t = _sweep(
                qs, qt, k_s, k_t, head, start, col, length, scale_s, scale_t, max_s, sum_s, max_t, sum_t, cross,
                keys_s, keys_t, NEED_GRAD, DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_N, not MASKED,
            )  # fmt: skip
        if not MASKED and whole < length:
            max_s, sum_s, max_t, sum_t, cross, keys_s, keys_t = _sweep(
                qs, qt, k_s, k_t, head, start, whole, length, scale_s, scale_t, max_s, sum_s, max_t, sum_t, cross,
                keys_s, keys_t, NEED_GRAD, DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_N, False,
            )  # fmt: skip
        lse_s = max_s + tl.log2(sum_s)
        lse_t = max_t + tl.log2(sum_t)
        loss = LN_2 * (cross / sum_t + lse_s - lse_t)
        grad = keys_s / sum_s[:, None] - keys_t / sum_t[:, None]
        if stats_ptr is not None:
            store_statistics(
                stats_ptr, head, heads, packing, start, rows, length, lse_s, lse_s, lse_t, lse_t, False
            )
    tl.store(losses_ptr + program, tl.sum(tl.where(rows < length, loss, 0.0)))
    if NEED_GRAD:
        store_gradient(
            grad_q, packing, heads, n, head, start, rows, length, grad, grad_factor,
            MEAN, False, DIM_S, BLOCK_S,
        )  # fmt: skip
