"""The Gram route on Triton, linear in the length: matrices and loss, then gradients. See triton.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton.launching import kernel
from .._triton.packing import Packing, find_tile, load_rows, sequence_of, store_rows
from .._triton.ranges import TINY
from .._triton.reductions import mean_scale, store_loss

#: A loss below this share of the scores' squares has lost too many digits.
GUARD = tl.constexpr(0.01)
#: The route of a sequence and head.
TILES, GRAM = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def _store_gram(place, gram, ROWS: tl.constexpr, COLS: tl.constexpr):
    i, j = tl.arange(0, ROWS), tl.arange(0, COLS)
    tl.store(place + i[:, None] * COLS + j[None, :], gram)


@triton.jit
def _load_gram(place, ROWS: tl.constexpr, COLS: tl.constexpr):
    i, j = tl.arange(0, ROWS), tl.arange(0, COLS)
    return tl.load(place + i[:, None] * COLS + j[None, :])


@triton.jit
def _finish(
    grams_ptr,
    routes_ptr,
    losses_ptr,
    pair,
    scale_s,
    scale_t,
    length,
    q_ss,
    q_ts,
    q_tt,
    k_ss,
    k_ts,
    k_tt,
    NEED_GRAD: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """The loss from inner products of the scores, its route, and what the gradients need of the matrices, per token.

    The route is decided here and nowhere else: a kernel that decided again from rounded sums could differ, and a
    gradient would be written by both routes or by none.
    """
    student = scale_s * scale_s * tl.sum(q_ss * k_ss)
    cross = scale_s * scale_t * tl.sum(q_ts * k_ts)
    teacher = scale_t * scale_t * tl.sum(q_tt * k_tt)
    loss = student - 2.0 * cross + teacher
    inexact = loss < (student + teacher) * GUARD
    tl.store(routes_ptr + pair, tl.where(inexact, TILES, GRAM))
    tl.store(losses_ptr + pair, tl.where(inexact, 0.0, loss))
    if NEED_GRAD:
        place = grams_ptr + pair.to(tl.int64) * (2 * (BLOCK_S + BLOCK_T) * BLOCK_S)
        per_token = 1.0 / length
        _store_gram(place, q_ss * per_token, BLOCK_S, BLOCK_S)
        _store_gram(place + BLOCK_S * BLOCK_S, q_ts * per_token, BLOCK_T, BLOCK_S)
        place += (BLOCK_S + BLOCK_T) * BLOCK_S
        _store_gram(place, k_ss * per_token, BLOCK_S, BLOCK_S)
        _store_gram(place + BLOCK_S * BLOCK_S, k_ts * per_token, BLOCK_T, BLOCK_S)


@triton.jit
def _gram(
    x_s,
    x_t,
    head,
    start,
    row,
    stop,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_L: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Student with student, teacher with student and teacher with teacher, over the tokens from ``row`` to ``stop``."""
    ss = tl.zeros((BLOCK_S, BLOCK_S), tl.float32)
    ts = tl.zeros((BLOCK_T, BLOCK_S), tl.float32)
    tt = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    for first in range(row, stop, BLOCK_L):
        rows = first + tl.arange(0, BLOCK_L)
        s = load_rows(x_s, head, start, rows, stop, DIM_S, BLOCK_S)
        t = load_rows(x_t, head, start, rows, stop, DIM_T, BLOCK_T)
        ss = tl.dot(tl.trans(s), s, ss, input_precision=PRECISION)
        ts = tl.dot(tl.trans(t), s, ts, input_precision=PRECISION)
        tt = tl.dot(tl.trans(t), t, tt, input_precision=PRECISION)
    return ss, ts, tt


@kernel
def gram_kernel(
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
    tiled_up_to,
    splits,
    grams_ptr,  # [N * H, 2, BLOCK_S + BLOCK_T, BLOCK_S]
    routes_ptr,  # int32 [N * H]
    losses_ptr,  # [N * H, and those of tiles]
    parts_ptr,  # [N * H, splits, two halves of three matrices]
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_L: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One sequence and head (or ``SPLIT`` tokens of it): six Gram matrices in one pass over q and k of both sides."""
    packing = Packing(cu_seqlens_ptr, seqused_ptr, tokens, sequences)
    program = tl.program_id(0)
    pair, part = program // splits, program % splits
    start, length = sequence_of(packing, pair // heads)
    if length <= tiled_up_to:
        if part == 0:
            tl.store(routes_ptr + pair, TILES)
            tl.store(losses_ptr + pair, 0.0)
    else:
        head = (pair % heads).to(tl.int64)
        stop = length
        if SPLITS:
            stop = tl.minimum(length, (part + 1) * SPLIT)
        row = part * SPLIT
        q_ss, q_ts, q_tt = _gram(
            q_s, q_t, head, start, row, stop, DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_L, PRECISION
        )
        k_ss, k_ts, k_tt = _gram(
            k_s, k_t, head, start, row, stop, DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_L, PRECISION
        )
        if SPLITS:
            half: tl.constexpr = BLOCK_S * BLOCK_S + BLOCK_T * BLOCK_S + BLOCK_T * BLOCK_T
            parts_ptr += program.to(tl.int64) * (2 * half)
            _store_gram(parts_ptr, q_ss, BLOCK_S, BLOCK_S)
            _store_gram(parts_ptr + BLOCK_S * BLOCK_S, q_ts, BLOCK_T, BLOCK_S)
            _store_gram(parts_ptr + (BLOCK_S + BLOCK_T) * BLOCK_S, q_tt, BLOCK_T, BLOCK_T)
            _store_gram(parts_ptr + half, k_ss, BLOCK_S, BLOCK_S)
            _store_gram(parts_ptr + half + BLOCK_S * BLOCK_S, k_ts, BLOCK_T, BLOCK_S)
            _store_gram(parts_ptr + half + (BLOCK_S + BLOCK_T) * BLOCK_S, k_tt, BLOCK_T, BLOCK_T)
        else:
            _finish(
                grams_ptr, routes_ptr, losses_ptr, pair, scale_s, scale_t, length,
                q_ss, q_ts, q_tt, k_ss, k_ts, k_tt, NEED_GRAD, BLOCK_S, BLOCK_T,
            )  # fmt: skip


@kernel
def merge_kernel(
    cu_seqlens_ptr,  # int32 [N + 1]
    seqused_ptr,  # int32 [N], or None
    tokens,
    sequences,
    heads,
    scale_s,
    scale_t,
    tiled_up_to,
    splits,
    grams_ptr,  # [N * H, 2, BLOCK_S + BLOCK_T, BLOCK_S]
    routes_ptr,  # int32 [N * H]
    losses_ptr,  # [N * H, and those of tiles]
    parts_ptr,  # [N * H, splits, two halves of three matrices]
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    NEED_GRAD: tl.constexpr,
):
    """Adds up the parts of one sequence and head, in their order."""
    packing = Packing(cu_seqlens_ptr, seqused_ptr, tokens, sequences)
    pair = tl.program_id(0)
    _, length = sequence_of(packing, pair // heads)
    if length > tiled_up_to:
        half: tl.constexpr = BLOCK_S * BLOCK_S + BLOCK_T * BLOCK_S + BLOCK_T * BLOCK_T
        q_ss = tl.zeros((BLOCK_S, BLOCK_S), tl.float32)
        q_ts = tl.zeros((BLOCK_T, BLOCK_S), tl.float32)
        q_tt = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
        k_ss = tl.zeros((BLOCK_S, BLOCK_S), tl.float32)
        k_ts = tl.zeros((BLOCK_T, BLOCK_S), tl.float32)
        k_tt = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
        for part in range(splits):
            place = parts_ptr + (pair * splits + part).to(tl.int64) * (2 * half)
            q_ss += _load_gram(place, BLOCK_S, BLOCK_S)
            q_ts += _load_gram(place + BLOCK_S * BLOCK_S, BLOCK_T, BLOCK_S)
            q_tt += _load_gram(place + (BLOCK_S + BLOCK_T) * BLOCK_S, BLOCK_T, BLOCK_T)
            k_ss += _load_gram(place + half, BLOCK_S, BLOCK_S)
            k_ts += _load_gram(place + half + BLOCK_S * BLOCK_S, BLOCK_T, BLOCK_S)
            k_tt += _load_gram(place + half + (BLOCK_S + BLOCK_T) * BLOCK_S, BLOCK_T, BLOCK_T)
        _finish(
            grams_ptr, routes_ptr, losses_ptr, pair, scale_s, scale_t, length,
            q_ss, q_ts, q_tt, k_ss, k_ts, k_tt, NEED_GRAD, BLOCK_S, BLOCK_T,
        )  # fmt: skip


@triton.jit
def _times_gram(x, place, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr):
    """``x @ gram``. A gradient is the small difference of two of these: half precision takes it in two parts."""
    gram = _load_gram(place, ROWS, COLS)
    if x.dtype == tl.float32:
        return tl.dot(x, gram, input_precision=PRECISION)
    if x.dtype == tl.float16:  # means of squares pass 65504 where the gradient does not
        largest = tl.maximum(tl.max(tl.abs(gram)), TINY)
        gram *= 1.0 / largest
        high = gram.to(tl.float16)
        low = (gram - high.to(tl.float32)).to(tl.float16)
        return largest * tl.dot(x, low, tl.dot(x, high))
    high = gram.to(x.dtype)
    low = (gram - high.to(tl.float32)).to(x.dtype)
    return tl.dot(x, low, tl.dot(x, high))


@triton.jit
def _gradient(
    y_s,
    y_t,
    place,
    head,
    start,
    rows,
    length,
    scale_s,
    scale_t,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``scale_s y_s (student's Gram matrix) - scale_t y_t (teacher's with student's)``."""
    s = load_rows(y_s, head, start, rows, length, DIM_S, BLOCK_S)
    grad = scale_s * _times_gram(s, place, BLOCK_S, BLOCK_S, PRECISION)
    t = load_rows(y_t, head, start, rows, length, DIM_T, BLOCK_T)
    return grad - scale_t * _times_gram(t, place + BLOCK_S * BLOCK_S, BLOCK_T, BLOCK_S, PRECISION)


@kernel
def gram_grad_kernel(
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
    grams_ptr,  # [N * H, 2, BLOCK_S + BLOCK_T, BLOCK_S]
    routes_ptr,  # int32 [N * H]
    grad_q,  # Rows of [T, H, DIM_S]
    grad_k,  # Rows of [T, H, DIM_S]
    losses_ptr,  # [count]
    count,
    loss_ptr,  # scalar
    factor_ptr,  # scalar
    MEAN: tl.constexpr,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_L: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``BLOCK_L`` rows of both gradients: ``dQs = 2 A (B^T B)[:, :ds]``, ``dKs = 2 B (A^T A)[:, :ds]``.

    The sums of the loss were made by the kernels before: the first program adds them up.
    """
    packing = Packing(cu_seqlens_ptr, seqused_ptr, tokens, sequences)
    program = tl.program_id(0)
    loss_scale = mean_scale(packing, heads, MEAN, True)
    if program == 0:
        store_loss(losses_ptr, count, loss_scale, 1.0, loss_ptr, factor_ptr)
    n, start, length, row = find_tile(packing, program // heads, BLOCK_L)
    pair = n * heads + program % heads
    # Rows that do not count are the tiles' business.
    if (row < length) & (tl.load(routes_ptr + pair) == GRAM):
        rows = row + tl.arange(0, BLOCK_L)
        head = (program % heads).to(tl.int64)
        scale = 2.0 * scale_s * length * loss_scale
        place = grams_ptr + pair.to(tl.int64) * (2 * (BLOCK_S + BLOCK_T) * BLOCK_S)
        grad = _gradient(
            k_s, k_t, place, head, start, rows, length, scale_s, scale_t, DIM_S, DIM_T, BLOCK_S, BLOCK_T, PRECISION
        )  # fmt: skip
        store_rows(grad_k, head, start, rows, length, scale * grad, DIM_S, BLOCK_S)
        place += (BLOCK_S + BLOCK_T) * BLOCK_S
        grad = _gradient(
            q_s, q_t, place, head, start, rows, length, scale_s, scale_t, DIM_S, DIM_T, BLOCK_S, BLOCK_T, PRECISION
        )  # fmt: skip
        store_rows(grad_q, head, start, rows, length, scale * grad, DIM_S, BLOCK_S)
