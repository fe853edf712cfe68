"""The Gram route on Triton, linear in the length: matrices and loss, then gradients. See triton_.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton.kernels import find_tile, load_rows, sequence_of, store_rows

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
    grams,
    routes,
    losses,
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
    tl.store(routes + pair, tl.where(inexact, TILES, GRAM))
    tl.store(losses + pair, tl.where(inexact, 0.0, loss))
    if NEED_GRAD:
        place = grams + pair.to(tl.int64) * (2 * (BLOCK_S + BLOCK_T) * BLOCK_S)
        share = 1.0 / length
        _store_gram(place, q_ss * share, BLOCK_S, BLOCK_S)
        _store_gram(place + BLOCK_S * BLOCK_S, q_ts * share, BLOCK_T, BLOCK_S)
        place += (BLOCK_S + BLOCK_T) * BLOCK_S
        _store_gram(place, k_ss * share, BLOCK_S, BLOCK_S)
        _store_gram(place + BLOCK_S * BLOCK_S, k_ts * share, BLOCK_T, BLOCK_S)


@triton.jit
def _gram(
    x_s,
    x_s_stride,
    x_t,
    x_t_stride,
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
        s = load_rows(x_s, x_s_stride, start, rows, stop, DIM_S, BLOCK_S)
        t = load_rows(x_t, x_t_stride, start, rows, stop, DIM_T, BLOCK_T)
        ss = tl.dot(tl.trans(s), s, ss, input_precision=PRECISION)
        ts = tl.dot(tl.trans(t), s, ts, input_precision=PRECISION)
        tt = tl.dot(tl.trans(t), t, tt, input_precision=PRECISION)
    return ss, ts, tt


@triton.jit
def gram_kernel(
    q_s,
    k_s,
    q_t,
    k_t,
    q_s_stride: tl.constexpr,
    q_s_head: tl.constexpr,
    k_s_stride: tl.constexpr,
    k_s_head: tl.constexpr,
    q_t_stride: tl.constexpr,
    q_t_head: tl.constexpr,
    k_t_stride: tl.constexpr,
    k_t_head: tl.constexpr,
    cu_seqlens,
    seqused,
    tokens,
    heads,
    scale_s,
    scale_t,
    tiled_up_to,
    split,
    splits,
    grams,
    routes,
    losses,
    parts,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_L: tl.constexpr,
    SPLITS: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One sequence and head (or ``split`` tokens of it): six Gram matrices in one pass over q and k of both sides."""
    program = tl.program_id(0)
    pair, part = program // splits, program % splits
    head = pair % heads
    start, length = sequence_of(cu_seqlens, seqused, tokens, pair // heads)
    if length <= tiled_up_to:
        if part == 0:
            tl.store(routes + pair, TILES)
            tl.store(losses + pair, 0.0)
    else:
        q_s += head.to(tl.int64) * q_s_head
        k_s += head.to(tl.int64) * k_s_head
        q_t += head.to(tl.int64) * q_t_head
        k_t += head.to(tl.int64) * k_t_head
        stop = length
        if SPLITS:
            stop = tl.minimum(length, (part + 1) * split)
        row = part * split
        q_ss, q_ts, q_tt = _gram(
            q_s, q_s_stride, q_t, q_t_stride, start, row, stop, DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_L, PRECISION
        )  # fmt: skip
        k_ss, k_ts, k_tt = _gram(
            k_s, k_s_stride, k_t, k_t_stride, start, row, stop, DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_L, PRECISION
        )  # fmt: skip
        if SPLITS:
            half: tl.constexpr = BLOCK_S * BLOCK_S + BLOCK_T * BLOCK_S + BLOCK_T * BLOCK_T
            parts += program.to(tl.int64) * (2 * half)
            _store_gram(parts, q_ss, BLOCK_S, BLOCK_S)
            _store_gram(parts + BLOCK_S * BLOCK_S, q_ts, BLOCK_T, BLOCK_S)
            _store_gram(parts + (BLOCK_S + BLOCK_T) * BLOCK_S, q_tt, BLOCK_T, BLOCK_T)
            _store_gram(parts + half, k_ss, BLOCK_S, BLOCK_S)
            _store_gram(parts + half + BLOCK_S * BLOCK_S, k_ts, BLOCK_T, BLOCK_S)
            _store_gram(parts + half + (BLOCK_S + BLOCK_T) * BLOCK_S, k_tt, BLOCK_T, BLOCK_T)
        else:
            _finish(
                grams, routes, losses, pair, scale_s, scale_t, length,
                q_ss, q_ts, q_tt, k_ss, k_ts, k_tt, NEED_GRAD, BLOCK_S, BLOCK_T,
            )  # fmt: skip


@triton.jit
def merge_kernel(
    cu_seqlens,
    seqused,
    tokens,
    heads,
    scale_s,
    scale_t,
    tiled_up_to,
    splits,
    grams,
    routes,
    losses,
    parts,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    NEED_GRAD: tl.constexpr,
):
    """Adds up the parts of one sequence and head, in their order."""
    pair = tl.program_id(0)
    _, length = sequence_of(cu_seqlens, seqused, tokens, pair // heads)
    if length > tiled_up_to:
        half: tl.constexpr = BLOCK_S * BLOCK_S + BLOCK_T * BLOCK_S + BLOCK_T * BLOCK_T
        q_ss = tl.zeros((BLOCK_S, BLOCK_S), tl.float32)
        q_ts = tl.zeros((BLOCK_T, BLOCK_S), tl.float32)
        q_tt = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
        k_ss = tl.zeros((BLOCK_S, BLOCK_S), tl.float32)
        k_ts = tl.zeros((BLOCK_T, BLOCK_S), tl.float32)
        k_tt = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
        for part in range(splits):
            place = parts + (pair * splits + part).to(tl.int64) * (2 * half)
            q_ss += _load_gram(place, BLOCK_S, BLOCK_S)
            q_ts += _load_gram(place + BLOCK_S * BLOCK_S, BLOCK_T, BLOCK_S)
            q_tt += _load_gram(place + (BLOCK_S + BLOCK_T) * BLOCK_S, BLOCK_T, BLOCK_T)
            k_ss += _load_gram(place + half, BLOCK_S, BLOCK_S)
            k_ts += _load_gram(place + half + BLOCK_S * BLOCK_S, BLOCK_T, BLOCK_S)
            k_tt += _load_gram(place + half + (BLOCK_S + BLOCK_T) * BLOCK_S, BLOCK_T, BLOCK_T)
        _finish(
            grams, routes, losses, pair, scale_s, scale_t, length,
            q_ss, q_ts, q_tt, k_ss, k_ts, k_tt, NEED_GRAD, BLOCK_S, BLOCK_T,
        )  # fmt: skip


@triton.jit
def _times_gram(x, place, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr):
    """``x @ gram``. A gradient is the small difference of two of these: half precision takes it in two parts."""
    gram = _load_gram(place, ROWS, COLS)
    if x.dtype == tl.float32:
        return tl.dot(x, gram, input_precision=PRECISION)
    high = gram.to(x.dtype)
    low = (gram - high.to(tl.float32)).to(x.dtype)
    return tl.dot(x, low, tl.dot(x, high))


@triton.jit
def gram_grad_kernel(
    q_s,
    k_s,
    q_t,
    k_t,
    q_s_stride: tl.constexpr,
    q_s_head: tl.constexpr,
    k_s_stride: tl.constexpr,
    k_s_head: tl.constexpr,
    q_t_stride: tl.constexpr,
    q_t_head: tl.constexpr,
    k_t_stride: tl.constexpr,
    k_t_head: tl.constexpr,
    cu_seqlens,
    seqused,
    tokens,
    sequences,
    heads,
    scale_s,
    scale_t,
    grams,
    routes,
    numbers,
    grad_q,
    grad_k,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_L: tl.constexpr,
    MANY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``BLOCK_L`` rows of both gradients: ``dQs = 2 A (B^T B)[:, :ds]``, ``dKs = 2 B (A^T A)[:, :ds]``."""
    program = tl.program_id(0)
    head = program % heads
    n, start, length, row = find_tile(cu_seqlens, seqused, tokens, sequences, program // heads, BLOCK_L, MANY)
    pair = n * heads + head
    # Rows that do not count are the tiles' business. (Triton evaluates both sides of an `and`.)
    if row < length:  # noqa: SIM102
        if tl.load(routes + pair) == GRAM:
            rows = row + tl.arange(0, BLOCK_L)
            wide = head.to(tl.int64)
            place = grams + pair.to(tl.int64) * (2 * (BLOCK_S + BLOCK_T) * BLOCK_S)
            size = 2.0 * scale_s * length * tl.load(numbers + 1)
            s = load_rows(k_s + wide * k_s_head, k_s_stride, start, rows, length, DIM_S, BLOCK_S)
            t = load_rows(k_t + wide * k_t_head, k_t_stride, start, rows, length, DIM_T, BLOCK_T)
            grad = scale_s * _times_gram(s, place, BLOCK_S, BLOCK_S, PRECISION)
            grad -= scale_t * _times_gram(t, place + BLOCK_S * BLOCK_S, BLOCK_T, BLOCK_S, PRECISION)
            store_rows(grad_k + wide * DIM_S, heads * DIM_S, start, rows, length, size * grad, DIM_S, BLOCK_S)
            place += (BLOCK_S + BLOCK_T) * BLOCK_S
            s = load_rows(q_s + wide * q_s_head, q_s_stride, start, rows, length, DIM_S, BLOCK_S)
            t = load_rows(q_t + wide * q_t_head, q_t_stride, start, rows, length, DIM_T, BLOCK_T)
            grad = scale_s * _times_gram(s, place, BLOCK_S, BLOCK_S, PRECISION)
            grad -= scale_t * _times_gram(t, place + BLOCK_S * BLOCK_S, BLOCK_T, BLOCK_S, PRECISION)
            store_rows(grad_q + wide * DIM_S, heads * DIM_S, start, rows, length, size * grad, DIM_S, BLOCK_S)
