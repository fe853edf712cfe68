"""Rows of both maps in two sweeps over the keys: loss, statistics of the softmaxes and grad_q. See triton.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton.launching import kernel
from .._triton.packing import Packing, find_tile, load_rows, store_rows, whole_length
from .._triton.reductions import mean_scale

LN_2 = tl.constexpr(0.6931471805599453)
#: Entries of maps are small: times this they are normal numbers of float16, where they multiply keys and queries.
LIFT = tl.constexpr(256.0)


@triton.jit
def unmasked_length(length, BLOCK_N: tl.constexpr, MASKED: tl.constexpr):
    """Where the loop over tiles ends: after the last whole one, or where all are MASKED after the last."""
    return length if MASKED else length // BLOCK_N * BLOCK_N


@triton.jit
def scaled_scores(x, y, scale, cols, length, PRECISION: tl.constexpr, WHOLE: tl.constexpr):
    """``scale x y^T``, and -inf in the columns beyond the sequence; with WHOLE there is none."""
    scores = scale * tl.dot(x, tl.trans(y), input_precision=PRECISION)
    if not WHOLE:
        scores = tl.where((cols < length)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def weights_of(scores, row_max, row_sum):
    """The running maximum of each row and the sum of exponentials below it with one more tile of scores.

    Beside both: what older sums are multiplied by, and the tile's exponentials.
    """
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    shrink = tl.exp2(row_max - new_max)
    weights = tl.exp2(scores - new_max[:, None])
    return new_max, row_sum * shrink + tl.sum(weights, 1), shrink, weights


@triton.jit
def _count_tile(
    queries,
    k,
    head,
    start,
    col,
    length,
    scale,
    row_max,
    row_sum,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,
):
    cols = col + tl.arange(0, BLOCK_N)
    keys = load_rows(k, head, start, cols, length, DIM, BLOCK_DIM, WHOLE)
    scores = scaled_scores(queries, keys, scale, cols, length, PRECISION, WHOLE)
    row_max, row_sum, _, _ = weights_of(scores, row_max, row_sum)
    return row_max, row_sum


@triton.jit
def _statistics(
    q,
    k,
    head,
    start,
    rows,
    length,
    scale,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The highest score of each row, and log2 of the sum of exponentials below it."""
    row_max = tl.full(rows.shape, float("-inf"), tl.float32)
    row_sum = tl.zeros(rows.shape, tl.float32)
    queries = load_rows(q, head, start, rows, length, DIM, BLOCK_DIM)
    whole = unmasked_length(length, BLOCK_N, MASKED)
    for col in range(0, whole, BLOCK_N):
        row_max, row_sum = _count_tile(
            queries, k, head, start, col, length, scale, row_max, row_sum,
            DIM, BLOCK_DIM, BLOCK_N, PRECISION, not MASKED,
        )  # fmt: skip
    if not MASKED and whole < length:
        row_max, row_sum = _count_tile(
            queries, k, head, start, whole, length, scale, row_max, row_sum, DIM, BLOCK_DIM, BLOCK_N, PRECISION, False
        )  # fmt: skip
    return row_max, tl.log2(row_sum)


@triton.jit
def log_weights(scores, row_max, log_sum, EXACT: tl.constexpr):
    """log2 of a map's entries. In half precision `row_max` is already the sum of both statistics.

    Subtract one after the other where it is EXACT: their sum would be rounded, by more than two close maps differ.
    """
    if EXACT:
        return scores - row_max - log_sum
    return scores - row_max


@triton.jit
def _divergence(student, teacher, p, r, cols, length, EXACT: tl.constexpr, WHOLE: tl.constexpr):
    """Terms of KL(teacher || student) from log2-probabilities and probabilities, p the student's and r the teacher's.

    ``r d + p - r`` with ``d = log r - log p``. The last two add up to nothing in a row, and with them no term is
    negative. Maps that almost agree keep their digits in float32 by a series: ``r (d + exp(-d) - 1)``.
    """
    d = (teacher - student) * LN_2
    if not WHOLE:
        d = tl.where((cols < length)[None, :], d, 0.0)
    terms = r * d + (p - r)
    if EXACT:
        series = (
            0.5 * d * d * (1.0 + d * (-1.0 / 3.0 + d * (1.0 / 12.0 + d * (-1.0 / 60.0 + d * (1.0 / 360.0)))))
        )
        terms = tl.where(tl.abs(d) < 0.25, r * series, terms)
    return terms


@triton.jit
def _differ(
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
    loss,
    inner,
    grad,
    weighted,
    MSE: tl.constexpr,
    EXACT: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """One tile of the second sweep, added to the loss, the rows' inner products and the two sums of keys."""
    cols = col + tl.arange(0, BLOCK_N)
    ks = load_rows(k_s, head, start, cols, length, DIM_S, BLOCK_S, WHOLE)
    kt = load_rows(k_t, head, start, cols, length, DIM_T, BLOCK_T, WHOLE)
    student = log_weights(
        scaled_scores(qs, ks, scale_s, cols, length, PRECISION, WHOLE), max_s[:, None], sum_s[:, None], EXACT
    )
    teacher = log_weights(
        scaled_scores(qt, kt, scale_t, cols, length, PRECISION, WHOLE), max_t[:, None], sum_t[:, None], EXACT
    )
    p = tl.exp2(student)
    r = tl.exp2(teacher)
    difference = p - r
    if MSE:
        loss += tl.sum(difference * difference, 1)
        moved = p * difference
        inner += tl.sum(moved, 1)
        if NEED_GRAD:  # direction p (p - r - inner): what `inner` multiplies is summed beside it
            grad = tl.dot((moved * LIFT).to(ks.dtype), ks, grad, input_precision=PRECISION)
            weighted = tl.dot((p * LIFT).to(ks.dtype), ks, weighted, input_precision=PRECISION)
    else:
        loss += tl.sum(_divergence(student, teacher, p, r, cols, length, EXACT, WHOLE), 1)
        if NEED_GRAD:
            grad = tl.dot((difference * LIFT).to(ks.dtype), ks, grad, input_precision=PRECISION)
    return loss, inner, grad, weighted


@triton.jit
def store_statistics(
    stats_ptr, head, heads, packing, start, rows, length, max_s, sum_s, max_t, sum_t, EXACT: tl.constexpr
):
    """Planes of ``[H, T]``: of student and teacher, and EXACT the logarithms of the sums after them."""
    place = stats_ptr + head * packing.tokens + start + rows
    plane = tl.full((), 1, tl.int64) * packing.tokens * heads
    tl.store(place, max_s, mask=rows < length)
    tl.store(place + plane, max_t, mask=rows < length)
    if EXACT:
        tl.store(place + 2 * plane, sum_s, mask=rows < length)
        tl.store(place + 3 * plane, sum_t, mask=rows < length)


@triton.jit
def store_gradient(
    x, packing, heads, n, head, start, rows, length, grad, scale,
    MEAN: tl.constexpr, PAIRS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of a gradient times ``scale`` and the loss's scale; zeros for the tokens that do not count."""
    scale *= mean_scale(packing, heads, MEAN, PAIRS)
    grad = tl.where((rows < length)[:, None], scale * grad, 0.0)
    store_rows(x, head, start, rows, whole_length(packing, n), grad, DIM, BLOCK)


@kernel
def rows_kernel(
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
    stats_ptr,  # [planes, H, T], or None: nobody wants them
    grad_q,  # Rows of [T, H, DIM_S], or None
    MSE: tl.constexpr,
    EXACT: tl.constexpr,
    MEAN: tl.constexpr,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``BLOCK_M`` rows of both maps: their loss, statistics and grad_q.

    The statistics of a row are, for student and teacher, its highest score and log2 of the sum of exponentials below
    it, or in half precision the sum of both, and for MSE ``sum_j p_j (p_j - r_j)``.
    """
    packing = Packing(cu_seqlens_ptr, seqused_ptr, tokens, sequences)
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    n, start, length, row = find_tile(packing, program // heads, BLOCK_M)
    rows = row + tl.arange(0, BLOCK_M)
    grad = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
    loss = tl.zeros((BLOCK_M,), tl.float32)
    NEED_GRAD: tl.constexpr = grad_q is not None
    if row < length:
        max_s, sum_s = _statistics(
            q_s, k_s, head, start, rows, length, scale_s, DIM_S, BLOCK_S, BLOCK_N, PRECISION, MASKED
        )
        max_t, sum_t = _statistics(
            q_t, k_t, head, start, rows, length, scale_t, DIM_T, BLOCK_T, BLOCK_N, PRECISION, MASKED
        )
        if not EXACT:
            max_s += sum_s
            max_t += sum_t
        qs = load_rows(q_s, head, start, rows, length, DIM_S, BLOCK_S)
        qt = load_rows(q_t, head, start, rows, length, DIM_T, BLOCK_T)
        inner = tl.zeros((BLOCK_M,), tl.float32)
        weighted = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
        whole = unmasked_length(length, BLOCK_N, MASKED)
        for col in range(0, whole, BLOCK_N):
            loss, inner, grad, weighted = _differ(
                qs, qt, k_s, k_t, head, start, col, length, scale_s, scale_t, max_s, sum_s, max_t, sum_t,
                loss, inner, grad, weighted,
                MSE, EXACT, NEED_GRAD, DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_N, PRECISION, not MASKED,
            )  # fmt: skip
        if not MASKED and whole < length:
            loss, inner, grad, weighted = _differ(
                qs, qt, k_s, k_t, head, start, whole, length, scale_s, scale_t, max_s, sum_s, max_t, sum_t,
                loss, inner, grad, weighted,
                MSE, EXACT, NEED_GRAD, DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_N, PRECISION, False,
            )  # fmt: skip
        if MSE:
            grad -= inner[:, None] * weighted
        if stats_ptr is not None:
            store_statistics(
                stats_ptr, head, heads, packing, start, rows, length, max_s, sum_s, max_t, sum_t, EXACT
            )
            if MSE:
                planes: tl.constexpr = 4 if EXACT else 2
                place = stats_ptr + (planes * heads + head) * tokens + start + rows
                tl.store(place, inner, mask=rows < length)
    tl.store(losses_ptr + program, tl.sum(tl.where(rows < length, loss, 0.0)))
    if NEED_GRAD:
        store_gradient(
            grad_q, packing, heads, n, head, start, rows, length, grad, grad_factor / LIFT,
            MEAN, MSE, DIM_S, BLOCK_S,
        )  # fmt: skip
