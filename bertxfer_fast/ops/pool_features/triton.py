"""Triton kernels of pool_features: all layers in one pass, whatever the lengths of the sequences.

Bytes at 32768 tokens, 768 wide, bf16: one layer 50 MB, four layers 201 MB; ``cls`` reads a row a sequence. Operations:
two per element, so memory sets the pace. Floor on an H100 at 3.0 TB/s: 17 us a layer.

A program takes the tokens of one sequence in a block of columns. Where that leaves most of the device idle (few long
sequences) it takes `SPLIT` of its tokens, and `finish_kernel` adds up the parts in their order. Row strides are
constants of the kernels, as in hidden_mse.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.launching import kernel, launch, multiprocessors
from .._triton.packing import Packing, contiguous_rows, find_tile, sequence_of, tile_slots

#: Layers that one launch takes; of more, each eight are mixed in float32 first.
TOGETHER = 8
#: Tokens of a program where sequences are few.
SPLIT = 256
EPSILON = tl.constexpr(1e-12)
NO_TOKEN = tl.constexpr(0x7FFFFFFF)

# The tiles of the kernels: rows of sixteen bytes and more for every thread, and few registers. Made by compiling for
# sm_80, sm_90 and sm_100 until nothing spilled; not yet timed.
POOL = {"BLOCK_T": 32, "num_warps": 4}
POOL_PARTS = {**POOL, "maxnreg": 255}
WIDEST, WIDEST_ROW = 128, 1024


@triton.jit
def _mixed(layers, weights_ptr, offsets, mask, LAYERS: tl.constexpr):
    """The weighted sum of all layers in float32."""
    mixed = tl.load(weights_ptr) * tl.load(layers[0] + offsets, mask=mask, other=0.0).to(tl.float32)
    for i in tl.static_range(1, LAYERS):
        mixed += tl.load(weights_ptr + i) * tl.load(layers[i] + offsets, mask=mask, other=0.0).to(tl.float32)
    return mixed


@kernel
def mix_kernel(
    layers,  # LAYERS of [T, WIDTH]
    weights_ptr,  # [LAYERS]
    mixed_ptr,  # [T, WIDTH]
    tokens,
    LAYERS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The weighted sum of some of very many layers."""
    across: tl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D
    rows = (tl.program_id(0) // across) * BLOCK_T + tl.arange(0, BLOCK_T)
    cols = (tl.program_id(0) % across) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (rows < tokens)[:, None] & (cols < WIDTH)[None, :]
    rows = rows.to(tl.int64)
    x = _mixed(layers, weights_ptr, rows[:, None] * STRIDE + cols[None, :], mask, LAYERS)
    tl.store(mixed_ptr + rows[:, None] * WIDTH + cols[None, :], x, mask=mask)


@triton.jit
def scale(length, MODE: tl.constexpr):
    """What the sum over ``length`` tokens is multiplied by."""
    n = tl.maximum(length, 1).to(tl.float32)
    if MODE == "mean":
        return tl.div_rn(1.0, n)
    if MODE == "mean_sqrt":
        return tl.div_rn(1.0, tl.sqrt_rn(n))
    return tl.where(n > 0, 1.0, 0.0)


@triton.jit
def _raised(best, where, x, token):
    """The higher of each pair and its token; the first of equal ones, and a NaN wins and stays."""
    better = (x > best) | ((x != x) & (best == best))
    return tl.where(better, x, best), tl.where(better, token, where)


@kernel
def pool_kernel(
    layers,  # LAYERS of [T, WIDTH]
    weights_ptr,  # [LAYERS]
    cu_seqlens_ptr,  # int32 [N + 1]
    seqused_ptr,  # int32 [N], or None
    tokens,
    sequences,
    pooled_ptr,  # [programs of a block of columns, WIDTH]
    argmax_ptr,  # int32, the same; for MODE "max"
    MODE: tl.constexpr,
    LAYERS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    SPLIT: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A sequence in a block of columns, or with SPLIT that many of its tokens. PARTS are not multiplied by `scale`."""
    packing = Packing(cu_seqlens_ptr, seqused_ptr, tokens, sequences)
    across: tl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D
    slot = tl.program_id(0) // across
    cols = (tl.program_id(0) % across) * BLOCK_D + tl.arange(0, BLOCK_D)
    within = cols < WIDTH
    first = 0
    if SPLIT > 0:
        _, start, length, first = find_tile(packing, slot, SPLIT)
        stop = tl.minimum(length, first + SPLIT)
    else:
        start, length = sequence_of(packing, slot)
        stop = length
    place = slot.to(tl.int64) * WIDTH + cols
    if MODE == "cls":
        offsets = start.to(tl.int64) * STRIDE + cols
        x = _mixed(layers, weights_ptr, offsets, cols < tl.where(length > 0, WIDTH, 0), LAYERS)
        tl.store(
            pooled_ptr + place, tl.where(length > 0, x, 0.0).to(pooled_ptr.dtype.element_ty), mask=within
        )
    elif MODE == "max":
        best = tl.full((BLOCK_T, BLOCK_D), float("-inf"), tl.float32)
        where = tl.full((BLOCK_T, BLOCK_D), NO_TOKEN, tl.int32)
        for row in range(first, stop, BLOCK_T):
            rows = row + tl.arange(0, BLOCK_T)
            mask = (rows < stop)[:, None] & within[None, :]
            offsets = (start + rows).to(tl.int64)[:, None] * STRIDE + cols[None, :]
            x = _mixed(layers, weights_ptr, offsets, mask, LAYERS)
            token = tl.broadcast_to((start + rows)[:, None], (BLOCK_T, BLOCK_D))
            better = mask & ((x > best) | ((x != x) & (best == best)) | (where == NO_TOKEN))
            best = tl.where(better, x, best)
            where = tl.where(better, token, where)
        has_nan = best != best
        column_has_nan = tl.max(has_nan.to(tl.int32), 0) > 0
        highest = tl.max(tl.where(has_nan, float("-inf"), best), 0)
        highest = tl.where(column_has_nan, float("nan"), highest)
        holds = tl.where(column_has_nan[None, :], has_nan, best == highest[None, :])
        token = tl.min(tl.where(holds, where, NO_TOKEN), 0)
        empty = stop <= first
        if not PARTS:
            highest = tl.where(empty, 0.0, highest)
        tl.store(pooled_ptr + place, highest.to(pooled_ptr.dtype.element_ty), mask=within)
        tl.store(argmax_ptr + place, tl.where(empty, 0, token), mask=within)
    else:
        sums = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
        for row in range(first, stop, BLOCK_T):
            rows = row + tl.arange(0, BLOCK_T)
            mask = (rows < stop)[:, None] & within[None, :]
            offsets = (start + rows).to(tl.int64)[:, None] * STRIDE + cols[None, :]
            x = _mixed(layers, weights_ptr, offsets, mask, LAYERS)
            sums += tl.where(mask, x, 0.0)  # a weight that is NaN spoils no sequence without tokens
        total = tl.sum(sums, 0)
        if not PARTS:
            total *= scale(length, MODE)
        tl.store(pooled_ptr + place, total.to(pooled_ptr.dtype.element_ty), mask=within)


@triton.jit
def _merged(
    parts_ptr,
    part_tokens_ptr,
    first_part,
    count,
    length,
    cols,
    within,
    MODE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A sequence's parts in a block of columns, added up in their order."""
    where = tl.zeros((BLOCK_D,), tl.int32)
    place = first_part.to(tl.int64) * WIDTH + cols
    if MODE == "max":
        opens = within & (tl.zeros((BLOCK_D,), tl.int32) < count)
        whole = tl.load(parts_ptr + place, mask=opens, other=0.0)
        where = tl.load(part_tokens_ptr + place, mask=opens, other=0)
        for _ in range(1, count):
            place += WIDTH
            x = tl.load(parts_ptr + place, mask=within, other=0.0)
            token = tl.load(part_tokens_ptr + place, mask=within, other=0)
            whole, where = _raised(whole, where, x, token)
    else:
        whole = tl.zeros((BLOCK_D,), tl.float32)
        for _ in range(0, count):
            whole += tl.load(parts_ptr + place, mask=within, other=0.0)
            place += WIDTH
        whole *= scale(length, MODE)
    return whole, where


@kernel
def finish_kernel(
    parts_ptr,  # [parts of all sequences, WIDTH]
    part_tokens_ptr,  # int32, the same; for MODE "max"
    cu_seqlens_ptr,  # int32 [N + 1]
    seqused_ptr,  # int32 [N], or None
    tokens,
    sequences,
    pooled_ptr,  # [N, WIDTH]
    argmax_ptr,  # int32 [N, WIDTH]
    norms_ptr,  # [N]
    MODE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A sequence: its parts added up, and divided by the length of the whole row."""
    packing = Packing(cu_seqlens_ptr, seqused_ptr, tokens, sequences)
    n = tl.program_id(0)
    start, length = sequence_of(packing, n)
    used = length
    if MODE == "cls":
        used = tl.minimum(length, 1)
    first_part = n
    count = tl.minimum(used, 1)
    if SPLIT > 0:
        first_part = start // SPLIT + n
        count = tl.cdiv(used, SPLIT)
    divisor = 1.0
    if NORMALIZE:
        squares = tl.zeros((BLOCK_D,), tl.float32)
        for base in range(0, WIDTH, BLOCK_D):
            cols = base + tl.arange(0, BLOCK_D)
            whole, where = _merged(
                parts_ptr,
                part_tokens_ptr,
                first_part,
                count,
                length,
                cols,
                cols < WIDTH,
                MODE,
                WIDTH,
                BLOCK_D,
            )
            squares += whole * whole
        norm = tl.sqrt_rn(tl.sum(squares))
        divisor = tl.where(norm < EPSILON, EPSILON, norm)
        tl.store(norms_ptr + n, divisor)
    for base in range(0, WIDTH, BLOCK_D):
        cols = base + tl.arange(0, BLOCK_D)
        within = cols < WIDTH
        whole, where = _merged(
            parts_ptr, part_tokens_ptr, first_part, count, length, cols, within, MODE, WIDTH, BLOCK_D
        )
        if NORMALIZE:
            whole = tl.div_rn(whole, tl.broadcast_to(divisor, (BLOCK_D,)))
        place = n.to(tl.int64) * WIDTH + cols
        tl.store(pooled_ptr + place, whole.to(pooled_ptr.dtype.element_ty), mask=within)
        if MODE == "max":
            tl.store(argmax_ptr + place, where, mask=within)


def alike(hidden: list[Tensor]) -> list[Tensor]:
    """The same layers, contiguous along a row and with one stride between rows."""
    layers = [contiguous_rows(x) for x in hidden]
    return layers if len({x.stride(0) for x in layers}) == 1 else [x.contiguous() for x in layers]


def column_block(width: int, widest: int) -> int:
    return min(widest, max(16, triton.next_power_of_2(max(width, 1))))


def _few(layers: list[Tensor], weights: Tensor) -> tuple[list[Tensor], Tensor]:
    """At most TOGETHER layers and their weights, with the same weighted sum."""
    while len(layers) > TOGETHER:
        tokens, width = layers[0].shape
        block = column_block(width, WIDEST)
        mixed = []
        for i in range(0, len(layers), TOGETHER):
            part = layers[i : i + TOGETHER]
            mixed.append(torch.empty((tokens, width), dtype=torch.float32, device=weights.device))
            launch(
                mix_kernel,
                -(-tokens // POOL["BLOCK_T"]) * -(-width // block),
                tuple(part),
                weights[i:],
                mixed[-1],
                tokens,
                LAYERS=len(part),
                WIDTH=width,
                STRIDE=part[0].stride(0),
                BLOCK_D=block,
                **POOL,
            )
        layers, weights = mixed, torch.ones(len(mixed), dtype=torch.float32, device=weights.device)
    return layers, weights


def pool_features(
    hidden: list[Tensor],
    cu_seqlens: Tensor,
    seqused: Tensor | None,
    layer_weights: Tensor,
    mode: str,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, width = hidden[0].shape
    sequences = cu_seqlens.shape[0] - 1
    device = hidden[0].device
    layers, weights = _few(alike(hidden), layer_weights.contiguous())
    pooled = torch.empty((sequences, width), dtype=hidden[0].dtype, device=device)
    argmax = torch.empty((sequences, width) if mode == "max" else (0,), dtype=torch.int32, device=device)
    norms = torch.empty(sequences if normalize else 0, dtype=torch.float32, device=device)

    block = column_block(width, WIDEST)
    across = -(-width // block)
    split = SPLIT if mode != "cls" and sequences * across < 2 * multiprocessors(device) else 0
    parts = split > 0 or normalize
    slots = tile_slots(tokens, sequences, split) if split else sequences
    result, tokens_found = pooled, argmax
    if parts:
        result = torch.empty((slots, width), dtype=torch.float32, device=device)
        tokens_found = torch.empty(
            (slots, width) if mode == "max" else (0,), dtype=torch.int32, device=device
        )
    launch(
        pool_kernel,
        slots * across,
        tuple(layers),
        weights,
        cu_seqlens,
        seqused,
        tokens,
        sequences,
        result,
        tokens_found,
        MODE=mode,
        LAYERS=len(layers),
        WIDTH=width,
        STRIDE=layers[0].stride(0),
        SPLIT=split,
        PARTS=parts,
        BLOCK_D=block,
        **(POOL_PARTS if split else POOL),
    )
    if parts:
        launch(
            finish_kernel,
            sequences,
            result,
            tokens_found,
            cu_seqlens,
            seqused,
            tokens,
            sequences,
            pooled,
            argmax,
            norms,
            MODE=mode,
            NORMALIZE=normalize,
            WIDTH=width,
            SPLIT=split,
            BLOCK_D=column_block(width, WIDEST_ROW),
        )
    return pooled, argmax, norms
