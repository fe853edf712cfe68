"""Triton kernels of attention_score_mse: Gram matrices for long sequences, tiles for short and nearly equal ones.

Bytes at 64/512/12/32/64 (B/L/H/ds/dt), bf16: q and k of both sides 151 MB, gradients 50 MB; the Gram route reads the
inputs twice and writes and reads 19 MB of matrices. Operations: 11 GFLOP for the Gram matrices, 10 for the gradients
(twice 5, see `_times_gram`). Floor on an H100 at 3.0 TB/s: 67 us. Last measured: not yet measured.

The route is chosen on the device, for each sequence and head: Gram matrices where the sequence is longer than
``tiled_up_to``, unless the loss is below 1 % of the scores' squares: there the difference of the two sums loses its
digits, and tiles compute it again from differences of scores (csrc/attention_score_mse/attention_score_mse.h).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import (
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
    multiprocessors,
    normaliser,
    sequence_of,
    store_rows,
    tile_slots,
    total,
    whole_length,
)

#: Widest head of either side whose Gram matrices stay in registers; wider ones take tiles.
WIDEST_GRAM = 64
#: Where a sequence fits two tiles, tiles read each input as often as the Gram route does and compute less.
TILED_UP_TO = 128
#: A loss below this share of the scores' squares has lost too many digits.
GUARD = tl.constexpr(0.01)
#: Tokens of one program of the Gram kernel, where there are too few heads to fill the device.
SPLIT = 1024

# Made by compiling for sm_80 and sm_90 until nothing spilled (docs/kernel_resources.md); not yet timed.
# ((compute capability, bytes of an element, wider padded head dim), ...)
GRAM_TABLE: list[Row] = [
    ((89, 2, 64), {"BLOCK_L": 16, "num_warps": 8, "num_stages": 3}),
    ((999, 2, 64), {"BLOCK_L": 64, "num_warps": 8, "num_stages": 2}),
    ((999, 4, 64), {"BLOCK_L": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
]
GRAD_TABLE: list[Row] = [
    ((999, 2, 64), {"BLOCK_L": 32, "num_warps": 4, "num_stages": 1}),
    ((999, 4, 64), {"BLOCK_L": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
]
TILE_TABLE: list[Row] = [
    ((999, 2, 64), {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 128), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 256), {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 64), {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 128), {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 256), {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1}),
]


@triton.jit
def _takes_tiles(sums, pair, length, tiled_up_to):
    """Whether the loss of this sequence and head comes from tiles; `sums` are its <S, S>, <S, T> and <T, T>."""
    tiled = length <= tiled_up_to
    if not tiled:
        student = tl.load(sums + 3 * pair)
        teacher = tl.load(sums + 3 * pair + 2)
        loss = student - 2.0 * tl.load(sums + 3 * pair + 1) + teacher
        tiled = loss < (student + teacher) * GUARD
    return tiled


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
    sums,
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
    """The three inner products of the scores, the loss, and what the gradients need of the matrices, per token."""
    student = scale_s * scale_s * tl.sum(q_ss * k_ss)
    cross = scale_s * scale_t * tl.sum(q_ts * k_ts)
    teacher = scale_t * scale_t * tl.sum(q_tt * k_tt)
    tl.store(sums + 3 * pair, student)
    tl.store(sums + 3 * pair + 1, cross)
    tl.store(sums + 3 * pair + 2, teacher)
    loss = student - 2.0 * cross + teacher
    tl.store(losses + pair, tl.where(loss < (student + teacher) * GUARD, 0.0, loss))
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
    sums,
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
                grams, sums, losses, pair, scale_s, scale_t, length,
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
    sums,
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
            grams, sums, losses, pair, scale_s, scale_t, length,
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
    tiled_up_to,
    grams,
    sums,
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
        if not _takes_tiles(sums, pair, length, tiled_up_to):
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


@triton.jit
def _tile(
    x_s,
    y_s,
    x_t,
    y_t,
    x_s_stride,
    y_s_stride,
    x_t_stride,
    y_t_stride,
    start,
    length,
    row,
    scale_s,
    scale_t,
    NEED_GRAD: tl.constexpr,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows of D = scale_s x_s y_s^T - scale_t x_t y_t^T: the sum of its squares, and D y_s."""
    rows = row + tl.arange(0, BLOCK_M)
    s = load_rows(x_s, x_s_stride, start, rows, length, DIM_S, BLOCK_S)
    t = load_rows(x_t, x_t_stride, start, rows, length, DIM_T, BLOCK_T)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    grad = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
    for col in range(0, length, BLOCK_N):
        cols = col + tl.arange(0, BLOCK_N)
        ys = load_rows(y_s, y_s_stride, start, cols, length, DIM_S, BLOCK_S)
        yt = load_rows(y_t, y_t_stride, start, cols, length, DIM_T, BLOCK_T)
        # Rows and columns beyond the sequence are zeros in both, and so is their difference.
        difference = scale_s * tl.dot(s, tl.trans(ys), input_precision=PRECISION)
        difference -= scale_t * tl.dot(t, tl.trans(yt), input_precision=PRECISION)
        squares += tl.sum(difference * difference, 1)
        if NEED_GRAD:
            grad = tl.dot(difference.to(ys.dtype), ys, grad, input_precision=PRECISION)
    return tl.sum(squares), grad


@triton.jit
def tiled_kernel(
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
    tiled_up_to,
    sums,
    numbers,
    losses,
    grad_q,
    grad_k,
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
    """``BLOCK_M`` rows of D and of grad_q, or, in the second half of the grid, of D^T and of grad_k."""
    program = tl.program_id(0)
    head = program % heads
    slot = program // heads
    transposed = False
    if NEED_GRAD:
        transposed = slot % 2 == 1
        slot = slot // 2
    n, start, length, row = find_tile(cu_seqlens, seqused, tokens, sequences, slot, BLOCK_M, MANY)
    pair = n * heads + head
    head = head.to(tl.int64)
    q_s += head * q_s_head
    k_s += head * k_s_head
    q_t += head * q_t_head
    k_t += head * k_t_head
    loss = 0.0
    grad = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
    works = row < length
    if works:
        works = _takes_tiles(sums, pair, length, tiled_up_to)
    if works:
        if transposed:
            loss, grad = _tile(
                k_s, q_s, k_t, q_t, k_s_stride, q_s_stride, k_t_stride, q_t_stride, start, length, row, scale_s,
                scale_t, NEED_GRAD, DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_M, BLOCK_N, PRECISION,
            )  # fmt: skip
        else:
            loss, grad = _tile(
                q_s, k_s, q_t, k_t, q_s_stride, k_s_stride, q_t_stride, k_t_stride, start, length, row, scale_s,
                scale_t, NEED_GRAD, DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_M, BLOCK_N, PRECISION,
            )  # fmt: skip
    if not transposed:
        tl.store(losses + slot * heads + program % heads, loss)
    if NEED_GRAD:
        whole = whole_length(cu_seqlens, tokens, n)
        rows = row + tl.arange(0, BLOCK_M)
        # Tokens that do not count get zeros here, on either route.
        first = tl.where(works, 0, length)
        grad *= 2.0 * scale_s * tl.load(numbers + 1)
        d = tl.arange(0, BLOCK_S)
        offsets = (start + rows).to(tl.int64)[:, None] * (heads * DIM_S) + head * DIM_S + d[None, :]
        mask = ((rows >= first) & (rows < whole))[:, None] & (d < DIM_S)[None, :]
        if transposed:
            tl.store(grad_k + offsets, grad.to(grad_k.dtype.element_ty), mask=mask)
        else:
            tl.store(grad_q + offsets, grad.to(grad_q.dtype.element_ty), mask=mask)


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
    tokens, heads, dim_s = q_student.shape
    dim_t = q_teacher.shape[2]
    sequences = cu_seqlens.shape[0] - 1
    device = q_student.device
    grad_q, grad_k = (
        torch.empty(x.shape if need_grad else 0, dtype=x.dtype, device=device) for x in (q_student, k_student)
    )
    numbers, factor = normaliser(
        cu_seqlens,
        seqused,
        tokens,
        heads,
        q_student.dtype,
        mean=reduction == "mean",
        pairs=True,
        stored=1.0 / max(max_seqlen, 1),
    )
    inputs = [contiguous_rows(x) for x in (q_student, k_student, q_teacher, k_teacher)]
    if q_student.dtype != q_teacher.dtype:  # both exact in float32
        inputs = [x.float() for x in inputs]
    strides = [stride for x in inputs for stride in x.stride()[:2]]
    block_s, block_t = block_dim(dim_s), block_dim(dim_t)
    sizes = capability(device), inputs[0].element_size(), max(block_s, block_t)
    dims = {"DIM_S": dim_s, "DIM_T": dim_t, "BLOCK_S": block_s, "BLOCK_T": block_t}
    precision = dot_precision(*inputs)
    pairs = sequences * heads

    tiled_up_to = {"tiled": max_seqlen, "gram": 0, "auto": TILED_UP_TO}[method]
    if max(block_s, block_t) > WIDEST_GRAM:
        tiled_up_to = max_seqlen
    gram = max_seqlen > tiled_up_to
    tile = configuration(TILE_TABLE, *sizes)
    slots = tile_slots(tokens, sequences, tile["BLOCK_M"])
    losses = torch.empty((pairs if gram else 0) + slots * heads, dtype=torch.float32, device=device)
    sums = torch.empty(3 * pairs if gram else 0, dtype=torch.float32, device=device)
    if gram:
        grams = torch.empty(
            (pairs, 2, block_s + block_t, block_s) if need_grad else (0,), dtype=torch.float32, device=device
        )
        splits = -(-max_seqlen // SPLIT) if pairs < 2 * multiprocessors(device) else 1
        halves = 2 * (block_s * block_s + block_t * block_s + block_t * block_t)
        parts = torch.empty(
            (pairs, splits, halves) if splits > 1 else (0,), dtype=torch.float32, device=device
        )
        launch(
            gram_kernel,
            pairs * splits,
            *inputs,
            *strides,
            cu_seqlens,
            seqused,
            tokens,
            heads,
            scale_student,
            scale_teacher,
            tiled_up_to,
            SPLIT,
            splits,
            grams,
            sums,
            losses,
            parts,
            **dims,
            SPLITS=splits > 1,
            NEED_GRAD=need_grad,
            PRECISION=precision,
            **configuration(GRAM_TABLE, *sizes),
        )
        if splits > 1:
            launch(
                merge_kernel,
                pairs,
                cu_seqlens,
                seqused,
                tokens,
                heads,
                scale_student,
                scale_teacher,
                tiled_up_to,
                splits,
                grams,
                sums,
                losses,
                parts,
                BLOCK_S=block_s,
                BLOCK_T=block_t,
                NEED_GRAD=need_grad,
                num_warps=8,
            )
        if need_grad:
            grad = configuration(GRAD_TABLE, *sizes)
            launch(
                gram_grad_kernel,
                tile_slots(tokens, sequences, grad["BLOCK_L"]) * heads,
                *inputs,
                *strides,
                cu_seqlens,
                seqused,
                tokens,
                sequences,
                heads,
                scale_student,
                scale_teacher,
                tiled_up_to,
                grams,
                sums,
                numbers,
                grad_q,
                grad_k,
                **dims,
                MANY=many(sequences),
                PRECISION=precision,
                **grad,
            )
    launch(
        tiled_kernel,
        slots * heads * (2 if need_grad else 1),
        *inputs,
        *strides,
        cu_seqlens,
        seqused,
        tokens,
        sequences,
        heads,
        scale_student,
        scale_teacher,
        tiled_up_to,
        sums,
        numbers,
        losses[pairs if gram else 0 :],
        grad_q,
        grad_k,
        NEED_GRAD=need_grad,
        **dims,
        MANY=many(sequences),
        PRECISION=precision,
        **tile,
    )
    return total(losses, numbers), grad_q, grad_k, factor
