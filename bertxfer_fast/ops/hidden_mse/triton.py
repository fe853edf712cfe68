"""Triton kernels of hidden_mse: a product whose epilogue is the loss, and the plain difference of two tensors.

Bytes at 32768 tokens, 312 -> 768 (T, Ds -> Dt), bf16: student 20 MB, teacher 50 MB, direction 50 MB written and read
twice by the products, gradient of the student 20 MB written and the student read again 20 MB. Operations: 47 GFLOP in
three products. Floor on an H100 at 3.0 TB/s: 87 us; at 790 TFLOP/s the products alone take 60 us. Without a weight,
768 wide: 151 MB, 50 us.

The projection lives in registers: its tile becomes the residual, the residual's squares and the direction
(csrc/hidden_mse/hidden_mse.h has the math). The direction is the one ``[T, Dt]`` tensor, in the dtype that
gradients are stored in; the gradients are the library's products of it. Sums of the bias gradient are taken before it
is rounded.

Row strides are constants of the kernels: models have few of them, and Triton knows of an argument only whether 16
divides it, which is not so for a width of 312, and would load such rows number by number.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch.loss import stored_dtype
from .._triton.launching import Choice, configuration, dot_precision, kernel, launch
from .._triton.products import dense_inputs, linear_gradients
from .._triton.reductions import scaled_total

# Made by compiling for sm_80, sm_90 and sm_100 until nothing spilled; not yet timed. The second bound is the number of
# tiles of 128 x 128: where it is small, smaller tiles keep more multiprocessors busy. Three programs of four warps fit
# a multiprocessor: one computes while another writes its direction. Of 128 x 128 tiles only one does, as with 128
# registers, which would be enough for two, they spill.
# ((bytes of an element, tiles), ...)
TABLE: list[Choice] = [
    ((2, 264), {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}),
    ((2, 1 << 62), {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}),
    (
        (4, 1 << 62),
        {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2, "maxnreg": 255},
    ),
]
#: Elements of a tile of the kernel without a weight, and its widest row.
TILE, WIDEST = 4096, 128


@triton.jit
def _finish(residual, place, mask, grad_scale, direction_ptr, losses_ptr, NEED_GRAD: tl.constexpr):
    """The loss of a tile, and its direction; returns the direction before it is rounded."""
    residual = tl.where(mask, residual, 0.0)
    tl.store(losses_ptr + tl.program_id(0), tl.sum(residual * residual))
    slope = residual * grad_scale
    if NEED_GRAD:
        tl.store(direction_ptr + place, slope.to(direction_ptr.dtype.element_ty), mask=mask)
    return slope


@kernel
def projected_kernel(
    student_ptr,  # [T, DS]
    weight_ptr,  # [DT, DS]
    bias_ptr,  # [DT], or None
    teacher_ptr,  # [T, DT]
    direction_ptr,  # [T, DT]
    bias_partials_ptr,  # [tiles of rows, DT]
    losses_ptr,  # [programs]
    tokens,
    grad_scale,
    DS: tl.constexpr,
    DT: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    TEACHER_STRIDE: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of ``student @ weight.T + bias - teacher``. Programs that follow each other share the student's rows."""
    across: tl.constexpr = (DT + BLOCK_N - 1) // BLOCK_N
    row_tile = tl.program_id(0) // across
    first_row = row_tile * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    cols = (tl.program_id(0) % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside, within = rows < tokens - first_row, cols < DT
    k = tl.arange(0, BLOCK_K)
    # Places inside a tile fit 32 bits, which saves registers; only the tile's own needs 64.
    tile_row = first_row.to(tl.int64)
    student_ptr += tile_row * STUDENT_STRIDE + (rows[:, None] * STUDENT_STRIDE + k[None, :])
    weight_ptr += cols.to(tl.int64)[None, :] * WEIGHT_STRIDE + k[:, None]
    tile = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, DS, BLOCK_K):
        s = tl.load(student_ptr + first, mask=inside[:, None] & (first + k < DS)[None, :], other=0.0)
        w = tl.load(weight_ptr + first, mask=within[None, :] & (first + k < DS)[:, None], other=0.0)
        tile = tl.dot(s, w, tile, input_precision=PRECISION)
    if bias_ptr is not None:
        tile += tl.load(bias_ptr + cols, mask=within, other=0.0).to(tl.float32)[None, :]
    mask = inside[:, None] & within[None, :]
    teacher_ptr += tile_row * TEACHER_STRIDE
    wanted = tl.load(teacher_ptr + (rows[:, None] * TEACHER_STRIDE + cols[None, :]), mask=mask, other=0.0)
    tile -= wanted.to(tl.float32)
    place = rows[:, None] * DT + cols[None, :]
    slope = _finish(tile, place, mask, grad_scale, direction_ptr + tile_row * DT, losses_ptr, NEED_GRAD)
    if NEED_GRAD and bias_ptr is not None:
        tl.store(bias_partials_ptr + row_tile.to(tl.int64) * DT + cols, tl.sum(slope, 0), mask=within)


@kernel
def plain_kernel(
    student_ptr,  # [T, DT]
    teacher_ptr,  # [T, DT]
    direction_ptr,  # [T, DT]
    losses_ptr,  # [programs]
    tokens,
    grad_scale,
    DT: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    TEACHER_STRIDE: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A tile of ``student - teacher``."""
    across: tl.constexpr = (DT + BLOCK_N - 1) // BLOCK_N
    rows = (tl.program_id(0) // across) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = (tl.program_id(0) % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (rows < tokens)[:, None] & (cols < DT)[None, :]
    rows = rows.to(tl.int64)
    s = tl.load(student_ptr + rows[:, None] * STUDENT_STRIDE + cols[None, :], mask=mask, other=0.0)
    t = tl.load(teacher_ptr + rows[:, None] * TEACHER_STRIDE + cols[None, :], mask=mask, other=0.0)
    residual = s.to(tl.float32) - t.to(tl.float32)
    place = rows[:, None] * DT + cols[None, :]
    _finish(residual, place, mask, grad_scale, direction_ptr, losses_ptr, NEED_GRAD)


def hidden_mse(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tokens, width = teacher.shape
    loss_scale = 1.0 if reduction == "sum" else 1.0 / max(tokens * width, 1)
    grad_scale = 2.0 * loss_scale
    student, teacher, weight, bias = dense_inputs(student, teacher, weight, bias)
    if weight is None:
        block = min(WIDEST, max(16, triton.next_power_of_2(max(width, 1))))
        meta = {"BLOCK_M": TILE // block, "BLOCK_N": block}
    else:
        meta = configuration(TABLE, student.element_size(), -(-tokens // 128) * -(-width // 128))
    down, across = -(-tokens // meta["BLOCK_M"]), -(-width // meta["BLOCK_N"])
    options: dict[str, Any] = {"dtype": torch.float32, "device": student.device}
    losses = torch.empty(down * across, **options)
    bias_partials = torch.empty((down, width) if need_grad and bias is not None else (0,), **options)
    direction = torch.empty(
        (tokens, width) if need_grad else (0,), dtype=stored_dtype(student.dtype), device=student.device
    )
    constants = {
        "DT": width,
        "STUDENT_STRIDE": student.stride(0),
        "TEACHER_STRIDE": teacher.stride(0),
        "NEED_GRAD": need_grad,
        **meta,
    }
    if weight is None:
        launch(
            plain_kernel, down * across, student, teacher, direction, losses, tokens, grad_scale, **constants
        )
    else:
        launch(
            projected_kernel,
            down * across,
            student,
            weight,
            bias,
            teacher,
            direction,
            bias_partials,
            losses,
            tokens,
            grad_scale,
            DS=student.shape[1],
            WEIGHT_STRIDE=weight.stride(0),
            PRECISION=dot_precision(student),
            **constants,
        )
    loss, factor = scaled_total(losses, loss_scale)
    return loss, *linear_gradients(student, weight, bias, direction, bias_partials, need_grad), factor
