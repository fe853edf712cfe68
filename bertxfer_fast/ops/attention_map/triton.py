"""Triton kernels of attention_map_loss and relation_kl: no map leaves the registers.

Operations at 64/512/12/32/64 (B/L/H/ds/dt), kl: six exponentials and 704 flops for each of 201 M pairs, 142 GFLOP; an
H100 makes 132 x 16 exponentials a clock. Bytes, bf16: q and k of both sides 151 MB, gradients 50 MB, statistics 6 MB.
Floor on an H100: 330 us for the exponentials (1.75 GHz), 180 for the products at 790 TFLOP/s, 67 for the bytes at
3.0 TB/s. Last measured: not yet measured.

Two kernels, as in FlashAttention's backward pass. `rows_kernel` takes some rows of both maps: an online softmax over
the keys, then a second sweep with both log-sum-exps known, for the loss and grad_q. `cols_kernel` takes some columns
over all rows, for grad_k. A relation of x with itself has symmetric scores, so that one sweep of `cols_kernel` gives
the gradient through both places of x. The second sweep sums terms none of which is negative, see `_divergence`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.kernels import (
    Row,
    block_dim,
    capability,
    configuration,
    contiguous_rows,
    dot_precision,
    find_tile,
    launch,
    load_rows,
    many,
    normaliser,
    tile_slots,
    total,
    whole_length,
)

LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)
#: Entries of maps are small: times this they are normal numbers of float16, where they multiply keys and queries.
LIFT = tl.constexpr(256.0)

# Made by compiling for sm_80, sm_90 and sm_100 until nothing spilled (docs/kernel_resources.md); not yet timed.
# ((compute capability, bytes of an element, wider padded head dim), ...)
TABLE: list[Row] = [
    ((89, 2, 64), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 64), {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 128), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2, "maxnreg": 255}),
    ((999, 2, 256), {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1}),
    ((999, 4, 64), {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 128), {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1}),
    ((999, 4, 256), {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
]


@triton.jit
def _divergence(student, teacher, p, r, valid):
    """Terms of KL(teacher || student) from log2-probabilities and probabilities, p the student's and r the teacher's.

    ``r d + p - r`` with ``d = log r - log p``. The last two add up to nothing in a row, and with them no term is
    negative, so that maps which almost agree keep their digits: there a series takes over, ``r (d + exp(-d) - 1)``.
    """
    d = tl.where(valid, teacher - student, 0.0) * LN_2
    series = 0.5 * d * d * (1.0 + d * (-1.0 / 3.0 + d * (1.0 / 12.0 + d * (-1.0 / 60.0 + d * (1.0 / 360.0)))))
    return tl.where(tl.abs(d) < 0.25, r * series, r * d + (p - r))


@triton.jit
def _scores(x, y, scale, valid, PRECISION: tl.constexpr):
    return tl.where(valid, scale * tl.dot(x, tl.trans(y), input_precision=PRECISION), float("-inf"))


@triton.jit
def _online(scores, highest, total):
    """One more tile of scores for the running maximum and the sum of exponentials below it."""
    new = tl.maximum(highest, tl.max(scores, 1))
    return new, total * tl.exp2(highest - new) + tl.sum(tl.exp2(scores - new[:, None]), 1)


@triton.jit
def _statistics(
    q,
    q_stride,
    k,
    k_stride,
    start,
    rows,
    length,
    scale,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The highest score of each row, and log2 of the sum of exponentials below it."""
    highest = tl.full(rows.shape, float("-inf"), tl.float32)
    total = tl.zeros(rows.shape, tl.float32)
    queries = load_rows(q, q_stride, start, rows, length, DIM, BLOCK_DIM)
    for col in range(0, length, BLOCK_N):
        cols = col + tl.arange(0, BLOCK_N)
        keys = load_rows(k, k_stride, start, cols, length, DIM, BLOCK_DIM)
        scores = _scores(queries, keys, scale, (cols < length)[None, :], PRECISION)
        highest, total = _online(scores, highest, total)
    return highest, tl.log2(total)


@triton.jit
def rows_kernel(
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
    grad_scale,
    numbers,
    losses,
    stats,
    grad_q,
    MSE: tl.constexpr,
    STATS: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MANY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``BLOCK_M`` rows of both maps: their loss, statistics and grad_q.

    The statistics of a row are, for student and teacher, its highest score and the log2 of the sum of exponentials
    below it, and for MSE ``sum_j p_j (p_j - r_j)``. Their sum would round away what near maps keep.
    """
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    n, start, length, row = find_tile(cu_seqlens, seqused, tokens, sequences, program // heads, BLOCK_M, MANY)
    rows = row + tl.arange(0, BLOCK_M)
    grad = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
    loss = tl.zeros((BLOCK_M,), tl.float32)
    if row < length:
        q_s += head * q_s_head
        k_s += head * k_s_head
        q_t += head * q_t_head
        k_t += head * k_t_head
        highest_s, sum_s = _statistics(
            q_s, q_s_stride, k_s, k_s_stride, start, rows, length, scale_s, DIM_S, BLOCK_S, BLOCK_N, PRECISION
        )
        highest_t, sum_t = _statistics(
            q_t, q_t_stride, k_t, k_t_stride, start, rows, length, scale_t, DIM_T, BLOCK_T, BLOCK_N, PRECISION
        )
        qs = load_rows(q_s, q_s_stride, start, rows, length, DIM_S, BLOCK_S)
        qt = load_rows(q_t, q_t_stride, start, rows, length, DIM_T, BLOCK_T)
        inner = tl.zeros((BLOCK_M,), tl.float32)
        weighted = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
        for col in range(0, length, BLOCK_N):
            cols = col + tl.arange(0, BLOCK_N)
            valid = (cols < length)[None, :]
            ks = load_rows(k_s, k_s_stride, start, cols, length, DIM_S, BLOCK_S)
            kt = load_rows(k_t, k_t_stride, start, cols, length, DIM_T, BLOCK_T)
            student = _scores(qs, ks, scale_s, valid, PRECISION) - highest_s[:, None] - sum_s[:, None]
            teacher = _scores(qt, kt, scale_t, valid, PRECISION) - highest_t[:, None] - sum_t[:, None]
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
                loss += tl.sum(_divergence(student, teacher, p, r, valid), 1)
                if NEED_GRAD:
                    grad = tl.dot((difference * LIFT).to(ks.dtype), ks, grad, input_precision=PRECISION)
        if MSE:
            grad -= inner[:, None] * weighted
        if STATS:
            place = stats + head * tokens + start + rows
            plane = tl.full((), 1, tl.int64) * tokens * heads
            tl.store(place, highest_s, mask=rows < length)
            tl.store(place + plane, sum_s, mask=rows < length)
            tl.store(place + 2 * plane, highest_t, mask=rows < length)
            tl.store(place + 3 * plane, sum_t, mask=rows < length)
            if MSE:
                tl.store(place + 4 * plane, inner, mask=rows < length)
    tl.store(losses + program, tl.sum(tl.where(rows < length, loss, 0.0)))
    if NEED_GRAD:
        _store_grad(
            grad_q, grad, grad_scale * tl.load(numbers + 1) / LIFT, cu_seqlens, tokens, n, start, length, rows, head,
            heads, DIM_S, BLOCK_S,
        )  # fmt: skip


@triton.jit
def _store_grad(
    place,
    grad,
    size,
    cu_seqlens,
    tokens,
    n,
    start,
    length,
    rows,
    head,
    heads,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of a gradient, and zeros for the tokens that do not count."""
    whole = whole_length(cu_seqlens, tokens, n)
    d = tl.arange(0, BLOCK)
    offsets = (start + rows).to(tl.int64)[:, None] * (heads * DIM) + head * DIM + d[None, :]
    grad = tl.where((rows < length)[:, None], size * grad, 0.0)
    tl.store(
        place + offsets, grad.to(place.dtype.element_ty), mask=(rows < whole)[:, None] & (d < DIM)[None, :]
    )


@triton.jit
def _load_stats(stats, plane, rows, length):
    """Highest score and log2 of the sum of exponentials below it, of both sides; beyond the sequence infinity."""
    inside = rows < length
    return (
        tl.load(stats + rows, mask=inside, other=float("inf")),
        tl.load(stats + plane + rows, mask=inside, other=0.0),
        tl.load(stats + 2 * plane + rows, mask=inside, other=float("inf")),
        tl.load(stats + 3 * plane + rows, mask=inside, other=0.0),
    )


@triton.jit
def cols_kernel(
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
    grad_scale,
    numbers,
    stats,
    grad_k,
    MSE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MANY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``BLOCK_M`` columns of both maps, over all rows: grad_k; SYMMETRIC adds what grad_q is, as k = q."""
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    n, start, length, col = find_tile(cu_seqlens, seqused, tokens, sequences, program // heads, BLOCK_M, MANY)
    cols = col + tl.arange(0, BLOCK_M)
    grad = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
    if col < length:
        q_s += head * q_s_head
        k_s += head * k_s_head
        q_t += head * q_t_head
        k_t += head * k_t_head
        ks = load_rows(k_s, k_s_stride, start, cols, length, DIM_S, BLOCK_S)
        kt = load_rows(k_t, k_t_stride, start, cols, length, DIM_T, BLOCK_T)
        stats += head * tokens + start
        plane = tl.full((), 1, tl.int64) * tokens * heads
        if SYMMETRIC:
            own_s, own_sum_s, own_t, own_sum_t = _load_stats(stats, plane, cols, length)
        for row in range(0, length, BLOCK_N):
            rows = row + tl.arange(0, BLOCK_N)
            qs = load_rows(q_s, q_s_stride, start, rows, length, DIM_S, BLOCK_S)
            qt = load_rows(q_t, q_t_stride, start, rows, length, DIM_T, BLOCK_T)
            highest_s, sum_s, highest_t, sum_t = _load_stats(stats, plane, rows, length)
            student = scale_s * tl.dot(ks, tl.trans(qs), input_precision=PRECISION)
            teacher = scale_t * tl.dot(kt, tl.trans(qt), input_precision=PRECISION)
            p = tl.exp2(student - highest_s[None, :] - sum_s[None, :])
            direction = p - tl.exp2(teacher - highest_t[None, :] - sum_t[None, :])
            if MSE:
                inner = tl.load(stats + 4 * plane + rows, mask=rows < length, other=0.0)[None, :]
                direction = p * (direction - inner)
            if SYMMETRIC:
                valid = (rows < length)[None, :]
                mirrored = tl.exp2(student - own_s[:, None] - own_sum_s[:, None])
                mirrored -= tl.exp2(teacher - own_t[:, None] - own_sum_t[:, None])
                direction += tl.where(valid, mirrored, 0.0)
            grad = tl.dot((direction * LIFT).to(qs.dtype), qs, grad, input_precision=PRECISION)
    _store_grad(
        grad_k, grad, grad_scale * tl.load(numbers + 1) / LIFT, cu_seqlens, tokens, n, start, length, cols, head, heads,
        DIM_S, BLOCK_S,
    )  # fmt: skip


def run(
    inputs: list[Tensor],
    cu_seqlens: Tensor,
    seqused: Tensor | None,
    scale_student: float,
    scale_teacher: float,
    kind: str,
    reduction: str,
    grads: list[Tensor],
    dtype: torch.dtype,
    *,
    symmetric: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss and missing factor of the maps of ``inputs``, q and k of student and teacher, ``[T, H, D]``.

    ``grads`` gets the gradients in ``dtype``: none, those of q and k, or with ``symmetric`` the one of both together.
    """
    tokens, heads, dim_s = inputs[0].shape
    dim_t = inputs[2].shape[2]
    sequences = cu_seqlens.shape[0] - 1
    device = cu_seqlens.device
    mse = kind == "mse"
    numbers, factor = normaliser(
        cu_seqlens,
        seqused,
        tokens,
        heads,
        dtype,
        mean=reduction == "mean",
        pairs=mse,
        stored=64.0 if mse else 1.0,
    )
    inputs = [contiguous_rows(x) for x in inputs]
    if inputs[0].dtype != inputs[2].dtype:  # both exact in float32
        inputs = [x.float() for x in inputs]
    block_s, block_t = block_dim(dim_s), block_dim(dim_t)
    meta = configuration(TABLE, capability(device), inputs[0].element_size(), max(block_s, block_t))
    programs = tile_slots(tokens, sequences, meta["BLOCK_M"]) * heads
    options = {
        "MSE": mse,
        "DIM_S": dim_s,
        "DIM_T": dim_t,
        "BLOCK_S": block_s,
        "BLOCK_T": block_t,
        "MANY": many(sequences),
        "PRECISION": dot_precision(*inputs),
        **meta,
    }
    problem = (
        *inputs,
        *(stride for x in inputs for stride in x.stride()[:2]),
        cu_seqlens,
        seqused,
        tokens,
        sequences,
        heads,
        scale_student * LOG2_E,
        scale_teacher * LOG2_E,
        scale_student * (2.0 if mse else 1.0),
        numbers,
    )
    losses = torch.empty(programs, dtype=torch.float32, device=device)
    stats = torch.empty(
        (5 if mse else 4, heads, tokens) if grads else (0,), dtype=torch.float32, device=device
    )
    launch(
        rows_kernel,
        programs,
        *problem,
        losses,
        stats,
        grads[0] if grads else None,
        STATS=bool(grads),
        NEED_GRAD=bool(grads) and not symmetric,
        **options,
    )
    if grads:
        launch(cols_kernel, programs, *problem, stats, grads[-1], SYMMETRIC=symmetric, **options)
    return total(losses, numbers), factor


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
    grad_q, grad_k = (
        torch.empty(x.shape if need_grad else 0, dtype=x.dtype, device=x.device)
        for x in (q_student, k_student)
    )
    loss, factor = run(
        [q_student, k_student, q_teacher, k_teacher],
        cu_seqlens,
        seqused,
        scale_student,
        scale_teacher,
        kind,
        reduction,
        [grad_q, grad_k] if need_grad else [],
        q_student.dtype,
    )
    return loss, grad_q, grad_k, factor
