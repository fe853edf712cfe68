"""Triton kernels of attention_map_loss and relation_kl: no map leaves the registers.

Operations at 64/512/12/32/64 (B/L/H/ds/dt), kl in half precision: four exponentials and 576 flops for each of 201 M
pairs, 116 GFLOP; an H100 makes 132 x 16 exponentials a clock. Bytes, bf16: q and k of both sides 151 MB, gradients
50 MB, statistics 6 MB. Floor on an H100: 220 us for the exponentials (1.75 GHz), 147 for the products at 790 TFLOP/s,
67 for the bytes at 3.0 TB/s. mse and float32 sweep the rows twice: six exponentials, 330 us.

Two kernels, as in FlashAttention's backward pass. The first takes some rows of both maps, for the loss and grad_q;
`cols_kernel` takes some columns over all rows, for grad_k, and its first program adds up the loss. A relation of x with
itself has symmetric scores, so that one sweep of `cols_kernel` gives the gradient through both places of x.

`rows_kernel` (triton_rows.py) sweeps the keys once for both softmaxes' statistics and once for the loss and grad_q:
its second sweep sums terms none of which is negative, which float32 needs where maps almost agree. `kl_rows_kernel`
(triton_kl_rows.py) gives half precision both in one sweep.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch.loss import stored_dtype
from .._triton.launching import Choice, capability, configuration, dot_precision, kernel, launch
from .._triton.packing import (
    Packing,
    block_dim,
    contiguous_rows,
    find_tile,
    load_rows,
    rows_of,
    tile_slots,
)
from .._triton.reductions import mean_scale, scalars, store_loss, total_kernel
from .triton_kl_rows import kl_rows_kernel
from .triton_rows import LIFT, log_weights, rows_kernel, store_gradient, unmasked_length

LOG2_E = 1.4426950408889634

# Made by compiling for sm_80, sm_90 and sm_100 until nothing spilled (docs/kernel_resources.md); not yet timed.
# Tiles inside a sequence need no mask; where registers are short, all are MASKED in one loop.
# ((compute capability, bytes of an element, wider padded head dim), ...)
TABLE: list[Choice] = [
    ((89, 2, 64), {"BLOCK_M": 64, "BLOCK_N": 32, "MASKED": False, "num_warps": 4, "num_stages": 2}),
    ((999, 2, 64), {"BLOCK_M": 64, "BLOCK_N": 64, "MASKED": False, "num_warps": 4, "num_stages": 2}),
    (
        (89, 2, 128),
        {"BLOCK_M": 64, "BLOCK_N": 32, "MASKED": True, "num_warps": 8, "num_stages": 2, "maxnreg": 255},
    ),
    (
        (999, 2, 128),
        {"BLOCK_M": 64, "BLOCK_N": 32, "MASKED": False, "num_warps": 8, "num_stages": 2, "maxnreg": 255},
    ),
    ((999, 2, 256), {"BLOCK_M": 32, "BLOCK_N": 16, "MASKED": True, "num_warps": 8, "num_stages": 1}),
    (
        (999, 4, 64),
        {"BLOCK_M": 32, "BLOCK_N": 32, "MASKED": True, "num_warps": 8, "num_stages": 1, "maxnreg": 255},
    ),
    ((999, 4, 128), {"BLOCK_M": 16, "BLOCK_N": 16, "MASKED": True, "num_warps": 8, "num_stages": 1}),
    (
        (999, 4, 256),
        {"BLOCK_M": 16, "BLOCK_N": 16, "MASKED": True, "num_warps": 8, "num_stages": 1, "maxnreg": 255},
    ),
]


@triton.jit
def _load_statistics(stats_ptr, plane, rows, length, EXACT: tl.constexpr, WHOLE: tl.constexpr):
    """Of student and teacher, what `log_weights` takes off; beyond the sequence infinity, so that weights are 0."""
    inside = rows < length
    if WHOLE:
        max_s, max_t = tl.load(stats_ptr + rows), tl.load(stats_ptr + plane + rows)
    else:
        max_s = tl.load(stats_ptr + rows, mask=inside, other=float("inf"))
        max_t = tl.load(stats_ptr + plane + rows, mask=inside, other=float("inf"))
    sum_s, sum_t = max_s, max_t
    if EXACT:
        sum_s = tl.load(stats_ptr + 2 * plane + rows, mask=inside, other=0.0)
        sum_t = tl.load(stats_ptr + 3 * plane + rows, mask=inside, other=0.0)
    return max_s, sum_s, max_t, sum_t


@triton.jit
def _add_rows(
    grad,
    q_s,
    q_t,
    ks,
    kt,
    head,
    start,
    row,
    length,
    scale_s,
    scale_t,
    stats_ptr,
    plane,
    own_max_s,
    own_sum_s,
    own_max_t,
    own_sum_t,
    MSE: tl.constexpr,
    EXACT: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """What a tile of rows adds to grad_k."""
    rows = row + tl.arange(0, BLOCK_N)
    qs = load_rows(q_s, head, start, rows, length, DIM_S, BLOCK_S, WHOLE)
    qt = load_rows(q_t, head, start, rows, length, DIM_T, BLOCK_T, WHOLE)
    max_s, sum_s, max_t, sum_t = _load_statistics(stats_ptr, plane, rows, length, EXACT, WHOLE)
    student = scale_s * tl.dot(ks, tl.trans(qs), input_precision=PRECISION)
    teacher = scale_t * tl.dot(kt, tl.trans(qt), input_precision=PRECISION)
    p = tl.exp2(log_weights(student, max_s[None, :], sum_s[None, :], EXACT))
    direction = p - tl.exp2(log_weights(teacher, max_t[None, :], sum_t[None, :], EXACT))
    if MSE:
        planes: tl.constexpr = 4 if EXACT else 2
        inner = tl.load(stats_ptr + planes * plane + rows, mask=rows < length, other=0.0)
        direction = p * (direction - inner[None, :])
    if SYMMETRIC:
        mirrored = tl.exp2(log_weights(student, own_max_s[:, None], own_sum_s[:, None], EXACT))
        mirrored -= tl.exp2(log_weights(teacher, own_max_t[:, None], own_sum_t[:, None], EXACT))
        if not WHOLE:
            mirrored = tl.where((rows < length)[None, :], mirrored, 0.0)
        direction += mirrored
    return tl.dot((direction * LIFT).to(qs.dtype), qs, grad, input_precision=PRECISION)


@kernel
def cols_kernel(
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
    stats_ptr,  # [planes, H, T]
    grad_k,  # Rows of [T, H, DIM_S]
    losses_ptr,  # [count]
    count,
    loss_ptr,  # scalar
    factor_ptr,  # scalar
    MSE: tl.constexpr,
    EXACT: tl.constexpr,
    MEAN: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    DIM_S: tl.constexpr,
    DIM_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``BLOCK_M`` columns of both maps, over all rows: grad_k; SYMMETRIC adds what grad_q is, as k = q.

    The sums of the loss were made by the kernel before: the first program adds them up.
    """
    packing = Packing(cu_seqlens_ptr, seqused_ptr, tokens, sequences)
    program = tl.program_id(0)
    if program == 0:
        loss_scale = mean_scale(packing, heads, MEAN, MSE)
        store_loss(losses_ptr, count, loss_scale, 1.0, loss_ptr, factor_ptr)
    head = (program % heads).to(tl.int64)
    n, start, length, col = find_tile(packing, program // heads, BLOCK_M)
    cols = col + tl.arange(0, BLOCK_M)
    grad = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
    if col < length:
        ks = load_rows(k_s, head, start, cols, length, DIM_S, BLOCK_S)
        kt = load_rows(k_t, head, start, cols, length, DIM_T, BLOCK_T)
        stats_ptr += head * tokens + start
        plane = tl.full((), 1, tl.int64) * tokens * heads
        own_max_s, own_sum_s, own_max_t, own_sum_t = 0.0, 0.0, 0.0, 0.0
        if SYMMETRIC:
            own_max_s, own_sum_s, own_max_t, own_sum_t = _load_statistics(
                stats_ptr, plane, cols, length, EXACT, False
            )
        whole = unmasked_length(length, BLOCK_N, MASKED)
        for row in range(0, whole, BLOCK_N):
            grad = _add_rows(
                grad, q_s, q_t, ks, kt, head, start, row, length, scale_s, scale_t, stats_ptr, plane,
                own_max_s, own_sum_s, own_max_t, own_sum_t,
                MSE, EXACT, SYMMETRIC, DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_N, PRECISION, not MASKED,
            )  # fmt: skip
        if not MASKED and whole < length:
            grad = _add_rows(
                grad, q_s, q_t, ks, kt, head, start, whole, length, scale_s, scale_t, stats_ptr, plane,
                own_max_s, own_sum_s, own_max_t, own_sum_t,
                MSE, EXACT, SYMMETRIC, DIM_S, DIM_T, BLOCK_S, BLOCK_T, BLOCK_N, PRECISION, False,
            )  # fmt: skip
    store_gradient(
        grad_k, packing, heads, n, head, start, cols, length, grad, grad_factor / LIFT,
        MEAN, MSE, DIM_S, BLOCK_S,
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
    *,
    symmetric: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss and missing factor of the maps of ``inputs``, q and k of student and teacher, ``[T, H, D]``.

    ``grads`` gets the gradients: none, those of q and k, or with ``symmetric`` the one of both together.
    """
    tokens, heads, dim_s = inputs[0].shape
    dim_t = inputs[2].shape[2]
    sequences = cu_seqlens.shape[0] - 1
    device = cu_seqlens.device
    mse = kind == "mse"
    inputs = [contiguous_rows(x) for x in inputs]
    if inputs[0].dtype != inputs[2].dtype:  # both exact in float32
        inputs = [x.float() for x in inputs]
    exact = inputs[0].dtype == torch.float32
    block_s, block_t = block_dim(dim_s), block_dim(dim_t)
    meta = configuration(TABLE, capability(device), inputs[0].element_size(), max(block_s, block_t))
    programs = tile_slots(tokens, sequences, meta["BLOCK_M"]) * heads
    packing = cu_seqlens, seqused, tokens, sequences, heads
    problem = (
        *(rows_of(x) for x in inputs),
        *packing,
        scale_student * LOG2_E,
        scale_teacher * LOG2_E,
        scale_student * (2.0 if mse else 1.0),
    )
    mean = reduction == "mean"
    dims = {"DIM_S": dim_s, "DIM_T": dim_t, "BLOCK_S": block_s, "BLOCK_T": block_t}
    sizes: dict[str, Any] = {"MEAN": mean, **dims, **meta}
    kinds: dict[str, Any] = {"MSE": mse, "EXACT": exact, "PRECISION": dot_precision(*inputs)}
    losses = torch.empty(programs, dtype=torch.float32, device=device)
    planes = (4 if exact else 2) + mse
    stats = torch.empty((planes, heads, tokens), dtype=torch.float32, device=device) if grads else None
    grad_q = None if symmetric or not grads else rows_of(grads[0])
    of_rows = *problem, losses, stats, grad_q
    if exact or mse:
        launch(rows_kernel, programs, *of_rows, **kinds, **sizes)
    else:
        launch(kl_rows_kernel, programs, *of_rows, **sizes)
    loss, factor = scalars(device)
    total = losses, programs, loss, factor
    if grads and programs:
        grad_k = rows_of(grads[-1].view(tokens, heads, dim_s))
        launch(cols_kernel, programs, *problem, stats, grad_k, *total, SYMMETRIC=symmetric, **kinds, **sizes)
    else:
        launch(total_kernel, 1, *packing, *total, MEAN=mean, PAIRS=mse, num_warps=8)
    return loss, factor


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
        torch.empty(x.shape if need_grad else 0, dtype=stored_dtype(x.dtype), device=x.device)
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
    )
    return loss, grad_q, grad_k, factor
