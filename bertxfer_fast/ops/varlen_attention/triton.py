"""Triton kernels of varlen_attention, forward and backward: no map leaves the registers.

At 64/512/12/64 (B/L/H/D) a map has 201 M entries. Forward: one exponential and 256 flops for each, 52 GFLOP; q, k, v
and out 201 MB in bf16. Floor on an H100: 67 us for the bytes at 3.0 TB/s, 65 for the products at 790 TFLOP/s, 54 for
the exponentials (132 x 16 a clock, 1.75 GHz). Backward, which makes every tile of the map twice: two exponentials and
896 flops for each entry, 180 GFLOP; five inputs and three gradients 403 MB. Floor: 228 us for the products, 134 for
the bytes, 109 for the exponentials. Dropout adds a dozen integer instructions for each entry and time that its tile
is made.

`forward_kernel` takes some rows: an online softmax over the keys. Backward (Dao et al., "FlashAttention", 2022) makes
tiles again from the log-sum-exps: `rows_kernel` for grad_q, and on its way each row's out . grad, then `cols_kernel`
for grad_k and grad_v. Each gradient has one writer: no atomics, the same bits every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .._triton.launching import Choice, capability, configuration, dot_precision, kernel, launch
from .._triton.packing import (
    Packing,
    Rows,
    block_dim,
    contiguous_rows,
    find_tile,
    load_rows,
    rows_of,
    store_rows,
    tile_slots,
)
from .._triton.ranges import dot_in_range
from .triton_dropout import kept_entries, row_words

# Made by compiling for sm_80, sm_90 and sm_100 until nothing spilled (docs/kernel_resources.md); not yet timed.
# ((compute capability, bytes of an element, padded head dim, whether there is dropout), ...)
FORWARD: list[Choice] = [
    ((999, 2, 64, 1), {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3}),
    ((89, 2, 128, 1), {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2}),
    ((999, 2, 128, 1), {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2}),
    ((999, 2, 256, 1), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2}),
    ((999, 4, 64, 1), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 256, 1), {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
]
BACKWARD: list[Choice] = [
    ((89, 2, 64, 1), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 64, 0), {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 64, 1), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 128, 1), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2}),
    ((999, 2, 256, 1), {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 128, 1), {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 256, 1), {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
]


@kernel
def forward_kernel(
    q,  # Rows of [T, H, DIM]
    k,  # Rows of [T, H, DIM]
    v,  # Rows of [T, H, DIM]
    cu_seqlens_ptr,  # int32 [N + 1]
    tokens,
    sequences,
    heads,
    scale,
    dropout_p,
    seed_ptr,  # int64 [1], or None: no dropout
    out,  # Rows of [T, H, DIM]
    lse_ptr,  # [H, T]
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``BLOCK_M`` rows of out and of the log-sum-exps."""
    packing = Packing(cu_seqlens_ptr, None, tokens, sequences)
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    _, start, length, row = find_tile(packing, program // heads, BLOCK_M)
    rows = row + tl.arange(0, BLOCK_M)
    if row < length:
        queries = load_rows(q, head, start, rows, length, DIM, BLOCK_DIM)
        if seed_ptr is not None:
            low, high = row_words(seed_ptr, start + rows, head, heads)
        row_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        row_sum = tl.zeros((BLOCK_M,), tl.float32)
        weighted = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
        for col in range(0, length, BLOCK_N):
            cols = col + tl.arange(0, BLOCK_N)
            keys = load_rows(k, head, start, cols, length, DIM, BLOCK_DIM)
            values = load_rows(v, head, start, cols, length, DIM, BLOCK_DIM)
            scores = scale * tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            scores = tl.where((cols < length)[None, :], scores, float("-inf"))
            new_max = tl.maximum(row_max, tl.max(scores, 1))
            shrink = tl.exp(row_max - new_max)
            p = tl.exp(scores - new_max[:, None])
            row_sum = row_sum * shrink + tl.sum(p, 1)
            row_max = new_max
            if seed_ptr is not None:
                p = tl.where(kept_entries(low[:, None], high[:, None], cols[None, :], dropout_p), p, 0.0)
            weighted = weighted * shrink[:, None]
            weighted = tl.dot(p.to(values.dtype), values, weighted, input_precision=PRECISION)
        tl.store(lse_ptr + head * tokens + start + rows, row_max + tl.log(row_sum), mask=rows < length)
        if seed_ptr is not None:
            row_sum *= 1.0 - dropout_p
        store_rows(out, head, start, rows, length, weighted / row_sum[:, None], DIM, BLOCK_DIM)


@kernel
def rows_kernel(
    q,  # Rows of [T, H, DIM]
    k,  # Rows of [T, H, DIM]
    v,  # Rows of [T, H, DIM]
    grad,  # Rows of [T, H, DIM]
    cu_seqlens_ptr,  # int32 [N + 1]
    tokens,
    sequences,
    heads,
    scale,
    dropout_p,
    seed_ptr,  # int64 [1], or None: no dropout
    lse_ptr,  # [H, T]
    delta_ptr,  # [H, T]
    out,  # Rows of [T, H, DIM]
    grad_q,  # Rows of [T, H, DIM]
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``BLOCK_M`` rows of grad_q, and delta, each row's ``out . grad``: what the softmax's Jacobian takes off."""
    packing = Packing(cu_seqlens_ptr, None, tokens, sequences)
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    _, start, length, row = find_tile(packing, program // heads, BLOCK_M)
    rows = row + tl.arange(0, BLOCK_M)
    if row < length:
        place = head * tokens + start + rows
        upstream = load_rows(grad, head, start, rows, length, DIM, BLOCK_DIM)
        given = load_rows(out, head, start, rows, length, DIM, BLOCK_DIM)
        row_delta = tl.sum(given.to(tl.float32) * upstream.to(tl.float32), 1)
        tl.store(delta_ptr + place, row_delta, mask=rows < length)
        queries = load_rows(q, head, start, rows, length, DIM, BLOCK_DIM)
        row_lse = tl.load(lse_ptr + place, mask=rows < length, other=float("inf"))
        if seed_ptr is not None:
            low, high = row_words(seed_ptr, start + rows, head, heads)
            keep = 1.0 / (1.0 - dropout_p)
        result = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
        for col in range(0, length, BLOCK_N):
            cols = col + tl.arange(0, BLOCK_N)
            keys = load_rows(k, head, start, cols, length, DIM, BLOCK_DIM)
            values = load_rows(v, head, start, cols, length, DIM, BLOCK_DIM)
            if queries.dtype == tl.float32:
                # The tiles of this turn are written. Without this line the compiler waits for them between reading
                # the queries and the keys, and whole rows of queries wait in registers.
                tl.debug_barrier()
            scores = scale * tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            # Beyond the sequence scores are 0, which a low log-sum-exp would lift to infinity.
            p = tl.where((cols < length)[None, :], tl.exp(scores - row_lse[:, None]), 0.0)
            grad_p = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
            if seed_ptr is not None:
                kept = kept_entries(low[:, None], high[:, None], cols[None, :], dropout_p)
                grad_p = tl.where(kept, grad_p * keep, 0.0)
            grad_scores = p * (grad_p - row_delta[:, None])
            result = dot_in_range(grad_scores, keys, result, PRECISION)
        store_rows(grad_q, head, start, rows, length, result * scale, DIM, BLOCK_DIM)


@kernel
def cols_kernel(
    q,  # Rows of [T, H, DIM]
    k,  # Rows of [T, H, DIM]
    v,  # Rows of [T, H, DIM]
    grad,  # Rows of [T, H, DIM]
    cu_seqlens_ptr,  # int32 [N + 1]
    tokens,
    sequences,
    heads,
    scale,
    dropout_p,
    seed_ptr,  # int64 [1], or None: no dropout
    lse_ptr,  # [H, T]
    delta_ptr,  # [H, T]
    grad_k,  # Rows of [T, H, DIM]
    grad_v,  # Rows of [T, H, DIM]
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``BLOCK_M`` columns of the map over all rows, transposed: grad_k and grad_v."""
    packing = Packing(cu_seqlens_ptr, None, tokens, sequences)
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    _, start, length, col = find_tile(packing, program // heads, BLOCK_M)
    cols = col + tl.arange(0, BLOCK_M)
    if col < length:
        lse_ptr += head * tokens + start
        delta_ptr += head * tokens + start
        keys = load_rows(k, head, start, cols, length, DIM, BLOCK_DIM)
        values = load_rows(v, head, start, cols, length, DIM, BLOCK_DIM)
        keep = 1.0 if seed_ptr is None else 1.0 / (1.0 - dropout_p)
        of_keys = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
        of_values = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
        for row in range(0, length, BLOCK_N):
            rows = row + tl.arange(0, BLOCK_N)
            queries = load_rows(q, head, start, rows, length, DIM, BLOCK_DIM)
            upstream = load_rows(grad, head, start, rows, length, DIM, BLOCK_DIM)
            # Rows beyond the sequence: a log-sum-exp of infinity makes their entries of the map 0.
            row_lse = tl.load(lse_ptr + rows, mask=rows < length, other=float("inf"))
            row_delta = tl.load(delta_ptr + rows, mask=rows < length, other=0.0)
            scores = scale * tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
            p = tl.exp(scores - row_lse[None, :])
            grad_p = tl.dot(values, tl.trans(upstream), input_precision=PRECISION)
            given = p
            if seed_ptr is not None:
                low, high = row_words(seed_ptr, start + rows, head, heads)
                kept = kept_entries(low[None, :], high[None, :], cols[:, None], dropout_p)
                given = tl.where(kept, p, 0.0)
                grad_p = tl.where(kept, grad_p * keep, 0.0)
            of_values = tl.dot(given.to(upstream.dtype), upstream, of_values, input_precision=PRECISION)
            grad_scores = p * (grad_p - row_delta[None, :])
            of_keys = dot_in_range(grad_scores, queries, of_keys, PRECISION)
        store_rows(grad_k, head, start, cols, length, of_keys * scale, DIM, BLOCK_DIM)
        store_rows(grad_v, head, start, cols, length, of_values * keep, DIM, BLOCK_DIM)


def _starter(
    inputs: list[Tensor], cu_seqlens: Tensor, scale: float, dropout_p: float, seed: Tensor | None
) -> Callable[..., None]:
    """What starts a kernel, given its table and its own arguments: those that all kernels share come first."""
    inputs = [contiguous_rows(x) for x in inputs]
    tokens, heads, dim = inputs[0].shape
    sequences = cu_seqlens.shape[0] - 1
    seed = seed if dropout_p > 0 else None
    shared = *map(rows_of, inputs), cu_seqlens, tokens, sequences, heads, scale, dropout_p, seed
    constants: dict[str, Any] = {
        "DIM": dim,
        "BLOCK_DIM": block_dim(dim),
        "PRECISION": dot_precision(*inputs),
    }
    sizes = capability(cu_seqlens.device), inputs[0].element_size(), block_dim(dim), int(seed is not None)

    def start(kernel: Any, table: list[Choice], *own: Tensor | Rows) -> None:
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
    start(forward_kernel, FORWARD, rows_of(out), lse)
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
    start(rows_kernel, BACKWARD, lse, delta, rows_of(out.contiguous()), rows_of(grad_q))
    start(cols_kernel, BACKWARD, lse, delta, rows_of(grad_k), rows_of(grad_v))
    return grad_q, grad_k, grad_v
