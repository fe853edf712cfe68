"""The tiled route on Triton: differences of scores, tile by tile. See triton.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton.launching import kernel
from .._triton.packing import Packing, load_rows, sequence_of, store_rows, whole_length
from .._triton.ranges import dot_in_range
from .._triton.reductions import mean_scale
from .triton_gram import TILES


@triton.jit
def _tile(
    x_s,
    y_s,
    x_t,
    y_t,
    head,
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
    s = load_rows(x_s, head, start, rows, length, DIM_S, BLOCK_S)
    t = load_rows(x_t, head, start, rows, length, DIM_T, BLOCK_T)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    grad = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
    for col in range(0, length, BLOCK_N):
        cols = col + tl.arange(0, BLOCK_N)
        ys = load_rows(y_s, head, start, cols, length, DIM_S, BLOCK_S)
        yt = load_rows(y_t, head, start, cols, length, DIM_T, BLOCK_T)
        # Rows and columns beyond the sequence are zeros in both, and so is their difference.
        difference = scale_s * tl.dot(s, tl.trans(ys), input_precision=PRECISION)
        difference -= scale_t * tl.dot(t, tl.trans(yt), input_precision=PRECISION)
        squares += tl.sum(difference * difference, 1)
        if NEED_GRAD:
            grad = dot_in_range(difference, ys, grad, PRECISION)
    return tl.sum(squares), grad


@kernel
def tiled_kernel(
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
    shares,
    routes_ptr,  # int32 [N * H], or None: every pair goes by tiles
    losses_ptr,  # [and those of Gram matrices, N * H * shares]
    first_loss,
    grad_q,  # Rows of [T, H, DIM_S], or None
    grad_k,  # Rows of [T, H, DIM_S], or None
    MEAN: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One of ``shares`` shares of a sequence and head: every ``shares``-th tile of D and of grad_q, or in every other
    program of D^T and of grad_k. A tile is ``BLOCK_M`` rows. Tokens that do not count get zeros here, on either route.
    """
    packing = Packing(cu_seqlens_ptr, seqused_ptr, tokens, sequences)
    program = tl.program_id(0)
    transposed = False
    if NEED_GRAD:
        transposed = program % 2 == 1
        program = program // 2
    pair, share = program // shares, program % shares
    head = (pair % heads).to(tl.int64)
    start, length = sequence_of(packing, pair // heads)
    works = True
    if routes_ptr is not None:
        works = tl.load(routes_ptr + pair) == TILES
    loss = 0.0
    if works:
        scale = 2.0 * scale_s
        if NEED_GRAD:
            scale *= mean_scale(packing, heads, MEAN, True)
        for row in tl.range(share * BLOCK_M, length, shares * BLOCK_M, disable_licm=True):
            rows = row + tl.arange(0, BLOCK_M)
            if transposed:
                _, grad = _tile(
                    k_s, q_s, k_t, q_t, head, start, length, row, scale_s, scale_t, NEED_GRAD,
                    DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_M, BLOCK_N, PRECISION,
                )  # fmt: skip
                if NEED_GRAD:
                    store_rows(grad_k, head, start, rows, length, scale * grad, DIM_S, BLOCK_S)
            else:
                squares, grad = _tile(
                    q_s, k_s, q_t, k_t, head, start, length, row, scale_s, scale_t, NEED_GRAD,
                    DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_M, BLOCK_N, PRECISION,
                )  # fmt: skip
                loss += squares
                if NEED_GRAD:
                    store_rows(grad_q, head, start, rows, length, scale * grad, DIM_S, BLOCK_S)
    if not transposed:
        tl.store(losses_ptr + first_loss + program, loss)
    if NEED_GRAD:
        whole = whole_length(packing, pair // heads)
        nothing = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
        for row in range(length + share * BLOCK_M, whole, shares * BLOCK_M):
            rows = row + tl.arange(0, BLOCK_M)
            if transposed:
                store_rows(grad_k, head, start, rows, whole, nothing, DIM_S, BLOCK_S)
            else:
                store_rows(grad_q, head, start, rows, whole, nothing, DIM_S, BLOCK_S)
