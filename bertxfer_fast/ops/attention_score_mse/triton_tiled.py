"""The tiled route on Triton: differences of scores, tile by tile. See triton_.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton.kernels import find_tile, load_rows, whole_length
from .triton_gram import TILES


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
    routes,
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
    if routes is not None:
        works = works & (tl.load(routes + pair) == TILES)
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
