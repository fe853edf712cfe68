"""attention_score_mse on Triton: Gram matrices (triton_gram.py) for long sequences, else tiles (triton_tiled.py).

Bytes at 64/512/12/32/64 (B/L/H/ds/dt), bf16: q and k of both sides 151 MB, gradients 50 MB; the Gram route reads the
inputs twice and writes and reads 19 MB of matrices. Operations: 11 GFLOP for the Gram matrices, 10 for the gradients
(twice 5, see `_times_gram` in triton_gram.py). Floor on an H100 at 3.0 TB/s: 67 us.

The route is chosen on the device, for each sequence and head: Gram matrices where the sequence is longer than
``tiled_up_to``, unless the loss is below 1 % of the scores' squares: there the difference of the two sums loses its
digits, and tiles compute it again from differences of scores (csrc/attention_score_mse/attention_score_mse.h).
The kernel that makes a pair's loss stores its route; the tiles follow, and then the gradients from Gram matrices, whose
first program adds up the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dispatch.loss import stored_dtype
from .._triton.launching import (
    Choice,
    capability,
    configuration,
    dot_precision,
    launch,
    multiprocessors,
)
from .._triton.packing import block_dim, contiguous_rows, rows_of, tile_slots
from .._triton.reductions import scalars, total_kernel
from .triton_gram import gram_grad_kernel, gram_kernel, merge_kernel
from .triton_tiled import tiled_kernel

#: Widest head of either side whose Gram matrices stay in registers; wider ones take tiles.
WIDEST_GRAM = 64
#: Where a sequence fits two tiles, tiles read each input as often as the Gram route does and compute less.
TILED_UP_TO = 128
#: Tokens of one program of the Gram kernel, where there are too few heads to fill the device.
SPLIT = 1024

# Made by compiling for sm_80, sm_90 and sm_100 until nothing spilled (docs/kernel_resources.md); not yet timed.
# ((compute capability, bytes of an element, wider padded head dim), ...)
GRAM_TABLE: list[Choice] = [
    ((89, 2, 64), {"BLOCK_L": 16, "num_warps": 8, "num_stages": 3}),
    ((999, 2, 64), {"BLOCK_L": 64, "num_warps": 8, "num_stages": 2}),
    ((999, 4, 64), {"BLOCK_L": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
]
GRAD_TABLE: list[Choice] = [
    ((89, 2, 64), {"BLOCK_L": 32, "num_warps": 4, "num_stages": 1}),
    ((999, 2, 64), {"BLOCK_L": 128, "num_warps": 8, "num_stages": 1}),
    ((999, 4, 64), {"BLOCK_L": 32, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
]
TILE_TABLE: list[Choice] = [
    ((89, 2, 64), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 64), {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 128), {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 256), {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 64), {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 128), {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1, "maxnreg": 255}),
    ((999, 4, 256), {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1}),
]


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
    pairs = sequences * heads
    device = q_student.device
    grads = [
        torch.empty(x.shape if need_grad else 0, dtype=stored_dtype(x.dtype), device=device)
        for x in (q_student, k_student)
    ]
    inputs = [contiguous_rows(x) for x in (q_student, k_student, q_teacher, k_teacher)]
    if q_student.dtype != q_teacher.dtype:  # both exact in float32
        inputs = [x.float() for x in inputs]
    block_s, block_t = block_dim(dim_s), block_dim(dim_t)
    sizes = capability(device), inputs[0].element_size(), max(block_s, block_t)
    packing = cu_seqlens, seqused, tokens, sequences, heads
    scales = scale_student, scale_teacher
    problem = *(rows_of(x) for x in inputs), *packing, *scales
    blocks = {"BLOCK_S": block_s, "BLOCK_T": block_t}
    shape: dict[str, Any] = {"DIM_S": dim_s, "DIM_T": dim_t, **blocks, "PRECISION": dot_precision(*inputs)}
    mean = reduction == "mean"

    tiled_up_to = {"tiled": max_seqlen, "gram": 0, "auto": TILED_UP_TO}[method]
    if max(block_s, block_t) > WIDEST_GRAM:
        tiled_up_to = max_seqlen
    gram = max_seqlen > tiled_up_to
    tile = configuration(TILE_TABLE, *sizes)
    shares = max(1, -(-tiled_up_to // tile["BLOCK_M"]))
    first_loss = pairs if gram else 0
    losses = torch.empty(first_loss + pairs * shares, dtype=torch.float32, device=device)
    routes = torch.empty(pairs, dtype=torch.int32, device=device) if gram else None
    grams = None
    if gram:
        splits = -(-max_seqlen // SPLIT) if pairs < 2 * multiprocessors(device) else 1
        halves = 2 * (block_s * block_s + block_t * block_s + block_t * block_t)
        options: dict[str, Any] = {"dtype": torch.float32, "device": device}
        parts = torch.empty((pairs, splits, halves), **options) if splits > 1 else None
        if need_grad:
            grams = torch.empty((pairs, 2, block_s + block_t, block_s), **options)
        results = grams, routes, losses, parts
        launch(
            gram_kernel,
            pairs * splits,
            *problem,
            tiled_up_to,
            splits,
            *results,
            **shape,
            SPLIT=SPLIT,
            SPLITS=splits > 1,
            NEED_GRAD=need_grad,
            **configuration(GRAM_TABLE, *sizes),
        )
        if splits > 1:
            launch(
                merge_kernel,
                pairs,
                *packing,
                *scales,
                tiled_up_to,
                splits,
                *results,
                **blocks,
                NEED_GRAD=need_grad,
                num_warps=8,
            )
    grad_rows = [rows_of(x) for x in grads] if need_grad else [None, None]
    launch(
        tiled_kernel,
        pairs * shares * (2 if need_grad else 1),
        *problem,
        shares,
        routes,
        losses,
        first_loss,
        *grad_rows,
        MEAN=mean,
        NEED_GRAD=need_grad,
        **shape,
        **tile,
    )
    loss, factor = scalars(device)
    total = losses, losses.numel(), loss, factor
    if grams is not None and pairs:
        grad = configuration(GRAD_TABLE, *sizes)
        launch(
            gram_grad_kernel,
            tile_slots(tokens, sequences, grad["BLOCK_L"]) * heads,
            *problem,
            grams,
            routes,
            *grad_rows,
            *total,
            MEAN=mean,
            **shape,
            **grad,
        )
    else:
        launch(total_kernel, 1, *packing, *total, MEAN=mean, PAIRS=True, num_warps=8)
    return loss, grads[0], grads[1], factor
