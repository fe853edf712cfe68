"""Triton kernels of varlen_attention, forward and backward: no map leaves the registers.

At 64/512/12/64 (B/L/H/D) a map has 201 M entries. Forward: one exponential and 256 flops for each, 52 GFLOP; q, k, v
and out 201 MB in bf16. Floor on an H100: 67 us for the bytes at 3.0 TB/s, 65 for the products at 790 TFLOP/s, 54 for
the exponentials (132 x 16 a clock, 1.75 GHz). Backward, which makes every tile of the map twice: two exponentials and
896 flops for each entry, 180 GFLOP; five inputs and three gradients 403 MB. Floor: 228 us for the products, 134 for
the bytes, 109 for the exponentials. Dropout adds a dozen integer instructions for each entry and time that its tile
is made. Last measured: not yet measured.

`forward_kernel` takes some rows: an online softmax over the keys. Backward (Dao et al., "FlashAttention", 2022) makes
tiles again from the log-sum-exps: `rows_kernel` for grad_q, and on its way each row's out . grad, then `cols_kernel`
for grad_k and grad_v. Each gradient has one writer: no atomics, the same bits every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

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
    store_rows,
    tile_slots,
)
from .triton_dropout import kept_entries, row_words

# Made by compiling for sm_80, sm_90 and sm_100 until nothing spilled (docs/kernel_resources.md); not yet timed.
# ((compute capability, bytes of an element, padded head dim, whether there is dropout), ...)
FORWARD: list[Row] = [
    ((999, 2, 64, 1), {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3}),
    ((89, 2, 128, 1), {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2}),
    ((999, 2, 128, 1), {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2}),
    ((999, 2, 256, 1), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2}),
    ((999, 4, 64, 1), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 256, 1), {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
]
BACKWARD: list[Row] = [
    ((89, 2, 64, 1), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 64, 0), {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 64, 1), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 128, 1), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2}),
    ((999, 2, 256, 1), {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 128, 1), {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 256, 1), {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
]


@triton.jit
def _of_head(x, head, stride, ALIGN: tl.constexpr):
    """Where a head of ``x`` starts. Its stride is a number at run time, which may grow with the number of tokens."""
    return x + tl.multiple_of(head * stride, ALIGN)


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    q_stride: tl.constexpr,
    k_stride: tl.constexpr,
    v_stride: tl.constexpr,
    q_head,
    k_head,
    v_head,
    cu_seqlens,
    tokens,
    sequences,
    heads,
    scale,
    dropout_p,
    seed,
    out,
    lse,
    ALIGN: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MANY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``BLOCK_M`` rows of out and of the log-sum-exps."""
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    _, start, length, row = find_tile(cu_seqlens, None, tokens, sequences, program // heads, BLOCK_M, MANY)
    rows = row + tl.arange(0, BLOCK_M)
    if row < length:
        k = _of_head(k, head, k_head, ALIGN)
        v = _of_head(v, head, v_head, ALIGN)
        queries = load_rows(_of_head(q, head, q_head, ALIGN), q_stride, start, rows, length, DIM, BLOCK_DIM)
        if seed is not None:
            low, high = row_words(seed, start + rows, head, heads)
        highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        mixed = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
        for col in range(0, length, BLOCK_N):
            cols = col + tl.arange(0, BLOCK_N)
            keys = load_rows(k, k_stride, start, cols, length, DIM, BLOCK_DIM)
            values = load_rows(v, v_stride, start, cols, length, DIM, BLOCK_DIM)
            scores = scale * tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            scores = tl.where((cols < length)[None, :], scores, float("-inf"))
            new = tl.maximum(highest, tl.max(scores, 1))
            shrink = tl.exp(highest - new)
            p = tl.exp(scores - new[:, None])
            total = total * shrink + tl.sum(p, 1)
            highest = new
            if seed is not None:
                p = tl.where(kept_entries(low[:, None], high[:, None], cols[None, :], dropout_p), p, 0.0)
            mixed = mixed * shrink[:, None]
            mixed = tl.dot(p.to(values.dtype), values, mixed, input_precision=PRECISION)
        tl.store(lse + head * tokens + start + rows, highest + tl.log(total), mask=rows < length)
        if seed is not None:
            total *= 1.0 - dropout_p
        store_rows(out + head * DIM, heads * DIM, start, rows, length, mixed / total[:, None], DIM, BLOCK_DIM)


@triton.jit
def rows_kernel(
    q,
    k,
    v,
    grad,
    q_stride: tl.constexpr,
    k_stride: tl.constexpr,
    v_stride: tl.constexpr,
    grad_stride: tl.constexpr,
    q_head,
    k_head,
    v_head,
    grad_head,
    cu_seqlens,
    tokens,
    sequences,
    heads,
    scale,
    dropout_p,
    seed,
    lse,
    delta,
    out,
    grad_q,
    ALIGN: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MANY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``BLOCK_M`` rows of grad_q, and delta, each row's ``out . grad``: what the softmax's Jacobian takes off."""
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    _, start, length, row = find_tile(cu_seqlens, None, tokens, sequences, program // heads, BLOCK_M, MANY)
    rows = row + tl.arange(0, BLOCK_M)
    if row < length:
        k = _of_head(k, head, k_head, ALIGN)
        v = _of_head(v, head, v_head, ALIGN)
        grad = _of_head(grad, head, grad_head, ALIGN)
        place = head * tokens + start + rows
        upstream = load_rows(grad, grad_stride, start, rows, length, DIM, BLOCK_DIM)
        given = load_rows(out + head * DIM, heads * DIM, start, rows, length, DIM, BLOCK_DIM)
        inner = tl.sum(given.to(tl.float32) * upstream.to(tl.float32), 1)
        tl.store(delta + place, inner, mask=rows < length)
        queries = load_rows(_of_head(q, head, q_head, ALIGN), q_stride, start, rows, length, DIM, BLOCK_DIM)
        level = tl.load(lse + place, mask=rows < length, other=float("inf"))
        if seed is not None:
            low, high = row_words(seed, start + rows, head, heads)
            keep = 1.0 / (1.0 - dropout_p)
        result = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
        for col in range(0, length, BLOCK_N):
            cols = col + tl.arange(0, BLOCK_N)
            keys = load_rows(k, k_stride, start, cols, length, DIM, BLOCK_DIM)
            values = load_rows(v, v_stride, start, cols, length, DIM, BLOCK_DIM)
            if queries.dtype == tl.float32:
                # The tiles of this turn are written. Without this line the compiler waits for them between reading
                # the queries and the keys, and whole rows of queries wait in registers.
                tl.debug_barrier()
            scores = scale * tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            # Beyond the sequence scores are 0, which a low level would lift to infinity.
            p = tl.where((cols < length)[None, :], tl.exp(scores - level[:, None]), 0.0)
            moved = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
            if seed is not None:
                kept = kept_entries(low[:, None], high[:, None], cols[None, :], dropout_p)
                moved = tl.where(kept, moved * keep, 0.0)
            moved = p * (moved - inner[:, None])
            result = tl.dot(moved.to(keys.dtype), keys, result, input_precision=PRECISION)
        store_rows(grad_q + head * DIM, heads * DIM, start, rows, length, result * scale, DIM, BLOCK_DIM)


@triton.jit
def cols_kernel(
    q,
    k,
    v,
    grad,
    q_stride: tl.constexpr,
    k_stride: tl.constexpr,
    v_stride: tl.constexpr,
    grad_stride: tl.constexpr,
    q_head,
    k_head,
    v_head,
    grad_head,
    cu_seqlens,
    tokens,
    sequences,
    heads,
    scale,
    dropout_p,
    seed,
    lse,
    delta,
    grad_k,
    grad_v,
    ALIGN: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MANY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``BLOCK_M`` columns of the map over all rows, transposed: grad_k and grad_v."""
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    _, start, length, col = find_tile(cu_seqlens, None, tokens, sequences, program // heads, BLOCK_M, MANY)
    cols = col + tl.arange(0, BLOCK_M)
    if col < length:
        q = _of_head(q, head, q_head, ALIGN)
        grad = _of_head(grad, head, grad_head, ALIGN)
        lse += head * tokens + start
        delta += head * tokens + start
        keys = load_rows(_of_head(k, head, k_head, ALIGN), k_stride, start, cols, length, DIM, BLOCK_DIM)
        values = load_rows(_of_head(v, head, v_head, ALIGN), v_stride, start, cols, length, DIM, BLOCK_DIM)
        keep = 1.0 if seed is None else 1.0 / (1.0 - dropout_p)
        of_keys = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
        of_values = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
        for row in range(0, length, BLOCK_N):
            rows = row + tl.arange(0, BLOCK_N)
            queries = load_rows(q, q_stride, start, rows, length, DIM, BLOCK_DIM)
            upstream = load_rows(grad, grad_stride, start, rows, length, DIM, BLOCK_DIM)
            # Rows beyond the sequence: a level of infinity makes their entries of the map 0.
            level = tl.load(lse + rows, mask=rows < length, other=float("inf"))
            inner = tl.load(delta + rows, mask=rows < length, other=0.0)
            scores = scale * tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
            p = tl.exp(scores - level[None, :])
            moved = tl.dot(values, tl.trans(upstream), input_precision=PRECISION)
            given = p
            if seed is not None:
                low, high = row_words(seed, start + rows, head, heads)
                kept = kept_entries(low[None, :], high[None, :], cols[:, None], dropout_p)
                given = tl.where(kept, p, 0.0)
                moved = tl.where(kept, moved * keep, 0.0)
            of_values = tl.dot(given.to(upstream.dtype), upstream, of_values, input_precision=PRECISION)
            moved = p * (moved - inner[None, :])
            of_keys = tl.dot(moved.to(queries.dtype), queries, of_keys, input_precision=PRECISION)
        store_rows(grad_k + head * DIM, heads * DIM, start, cols, length, of_keys * scale, DIM, BLOCK_DIM)
        store_rows(grad_v + head * DIM, heads * DIM, start, cols, length, of_values * keep, DIM, BLOCK_DIM)


def _starter(
    inputs: list[Tensor], cu_seqlens: Tensor, scale: float, dropout_p: float, seed: Tensor | None
) -> Callable[..., None]:
    """What starts a kernel, given its table and its own arguments: those that all kernels share come first."""
    inputs = [contiguous_rows(x) for x in inputs]
    tokens, heads, dim = inputs[0].shape
    sequences = cu_seqlens.shape[0] - 1
    seed = seed if dropout_p > 0 else None
    head_strides = [x.stride(1) for x in inputs]
    shared = (
        *inputs,
        *(x.stride(0) for x in inputs),
        *head_strides,
        *(cu_seqlens, tokens, sequences, heads, scale, dropout_p, seed),
    )
    constants: dict[str, Any] = {
        "ALIGN": math.gcd(16, *head_strides),
        "DIM": dim,
        "BLOCK_DIM": block_dim(dim),
        "MANY": many(sequences),
        "PRECISION": dot_precision(*inputs),
    }
    sizes = capability(cu_seqlens.device), inputs[0].element_size(), block_dim(dim), int(seed is not None)

    def start(kernel: Any, table: list[Row], *own: Tensor) -> None:
        meta = configuration(table, *sizes)
        programs = tile_slots(tokens, sequences, meta["BLOCK_M"]) * heads
        launch(kernel, programs, *shared, *own, **constants, **meta)

    return start


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
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device)
    start = _starter([q, k, v], cu_seqlens, scale, dropout_p, seed)
    start(forward_kernel, FORWARD, out, lse)
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
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    start = _starter([q, k, v, grad.to(q.dtype)], cu_seqlens, scale, dropout_p, seed)
    lse = lse.contiguous()
    start(rows_kernel, BACKWARD, lse, delta, out.contiguous(), grad_q)
    start(cols_kernel, BACKWARD, lse, delta, grad_k, grad_v)
    return grad_q, grad_k, grad_v
