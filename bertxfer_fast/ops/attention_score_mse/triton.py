"""attention_score_mse on Triton: Gram matrices (triton_gram.py) for long sequences, else tiles (triton_tiled.py).

Bytes at 64/512/12/32/64 (B/L/H/ds/dt), bf16: q and k of both sides 151 MB, gradients 50 MB; the Gram route reads the
inputs twice and writes and reads 19 MB of matrices. Operations: 11 GFLOP for the Gram matrices, 10 for the gradients
(twice 5, see `_times_gram` in triton_gram.py). Floor on an H100 at 3.0 TB/s: 67 us. Last measured: not yet measured.

The route is chosen on the device, for each sequence and head: Gram matrices where the sequence is longer than
``tiled_up_to``, unless the loss is below 1 % of the scores' squares: there the difference of the two sums loses its
digits, and tiles compute it again from differences of scores (csrc/attention_score_mse/attention_score_mse.h).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._triton.kernels import (
    Row,
    block_dim,
    capability,
    configuration,
    contiguous_rows,
    dot_precision,
    launch,
    many,
    multiprocessors,
    normaliser,
    tile_slots,
    total,
)
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
    routes = torch.empty(pairs, dtype=torch.int32, device=device) if gram else None
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
            routes,
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
                routes,
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
                grams,
                routes,
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
        routes,
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
