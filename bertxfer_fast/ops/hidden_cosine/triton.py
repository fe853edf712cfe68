"""Triton kernel of hidden_cosine: the loss and the direction of a block of rows, between the library's products.

Bytes at 32768 tokens, 312 -> 768 (T, Ds -> Dt), bf16: student 20 MB read twice, projection 101 MB written and read
(float32: rounding it would cost more digits than all the rest), teacher 50 MB, direction 50 MB written and read twice,
gradient of the student 20 MB. Operations: 47 GFLOP in three products, about 10 per element in the kernel. Floor on an
H100 at 3.0 TB/s: 154 us. Without a weight, 768 wide: 151 MB, 50 us.

A row has to be whole before its direction is known, so the projection cannot stay in registers as in hidden_mse. Its
memory, ``6 T Dt`` bytes with the direction, is there only while the operator runs. csrc/hidden_cosine/hidden_cosine.h
has the math. Row strides are constants of the kernel, as in hidden_mse.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch.loss import stored_dtype
from .._triton.launching import Choice, configuration, kernel, launch
from .._triton.products import dense_inputs, linear_gradients, wide_product
from .._triton.reductions import scaled_total

EPSILON = tl.constexpr(1e-8)

# Made by compiling for sm_80, sm_90 and sm_100 until nothing spilled; not yet timed. Rows that do not fit a block are
# read block by block, three times.
# ((width,), ...)
TABLE: list[Choice] = [
    ((128,), {"BLOCK_M": 16, "BLOCK_D": 128, "num_warps": 4}),
    ((256,), {"BLOCK_M": 8, "BLOCK_D": 256, "num_warps": 4}),
    ((512,), {"BLOCK_M": 8, "BLOCK_D": 512, "num_warps": 8}),
    ((1 << 62,), {"BLOCK_M": 8, "BLOCK_D": 1024, "num_warps": 16, "maxnreg": 128}),
]


@triton.jit
def _load_pair(
    student_ptr,
    teacher_ptr,
    bias_ptr,
    rows,
    inside,
    first,
    WIDTH: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    TEACHER_STRIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A block of the projection and of the teacher in float32, and which of it counts."""
    cols = first + tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (cols < WIDTH)[None, :]
    s = tl.load(student_ptr + rows[:, None] * STUDENT_STRIDE + cols[None, :], mask=mask, other=0.0).to(
        tl.float32
    )
    t = tl.load(teacher_ptr + rows[:, None] * TEACHER_STRIDE + cols[None, :], mask=mask, other=0.0).to(
        tl.float32
    )
    if bias_ptr is not None:
        s += tl.load(bias_ptr + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)[None, :]
    return s, t, mask, cols


@triton.jit
def _inverse(squares):
    """One over the length, which is at least EPSILON, and whether it was less. A NaN stays one."""
    norm = tl.sqrt_rn(squares)
    short = norm < EPSILON
    return tl.div_rn(1.0, tl.where(short, EPSILON, norm)), short


@triton.jit
def _distances(s, t, inverse_s, inverse_t):
    """Of each row, ``|v - u|^2`` and ``<u, v>``."""
    u = s * inverse_s[:, None]
    v = t * inverse_t[:, None]
    return tl.sum((v - u) * (v - u), 1), tl.sum(u * v, 1)


@triton.jit
def _store_direction(
    s,
    t,
    mask,
    cols,
    rows,
    row_block,
    inverse_s,
    inverse_t,
    losses,
    grad_scale,
    direction_ptr,
    bias_partials_ptr,
    WIDTH: tl.constexpr,
):
    u = s * inverse_s[:, None]
    slope = (t * inverse_t[:, None] - u) + losses[:, None] * u
    slope *= (-grad_scale * inverse_s)[:, None]
    tl.store(
        direction_ptr + rows[:, None] * WIDTH + cols[None, :],
        slope.to(direction_ptr.dtype.element_ty),
        mask=mask,
    )
    if bias_partials_ptr is not None:
        sums = tl.sum(tl.where(mask, slope, 0.0), 0)
        tl.store(bias_partials_ptr + row_block.to(tl.int64) * WIDTH + cols, sums, mask=cols < WIDTH)


@kernel
def cosine_kernel(
    student_ptr,  # [T, WIDTH]
    teacher_ptr,  # [T, WIDTH]
    bias_ptr,  # [WIDTH], or None
    direction_ptr,  # [T, WIDTH]
    bias_partials_ptr,  # [programs, WIDTH], or None
    losses_ptr,  # [programs]
    tokens,
    grad_scale,
    WIDTH: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    TEACHER_STRIDE: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``BLOCK_M`` rows of the projection (without its bias) and of the teacher."""
    row_block = tl.program_id(0)
    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < tokens
    rows = rows.to(tl.int64)
    WHOLE: tl.constexpr = WIDTH <= BLOCK_D
    if WHOLE:
        s, t, mask, cols = _load_pair(
            student_ptr,
            teacher_ptr,
            bias_ptr,
            rows,
            inside,
            0,
            WIDTH,
            STUDENT_STRIDE,
            TEACHER_STRIDE,
            BLOCK_D,
        )
        inverse_s, short_s = _inverse(tl.sum(s * s, 1))
        inverse_t, short_t = _inverse(tl.sum(t * t, 1))
        square, cosine = _distances(s, t, inverse_s, inverse_t)
    else:
        square_s = tl.zeros((BLOCK_M,), tl.float32)
        square_t = tl.zeros((BLOCK_M,), tl.float32)
        for first in range(0, WIDTH, BLOCK_D):
            s, t, mask, cols = _load_pair(
                student_ptr,
                teacher_ptr,
                bias_ptr,
                rows,
                inside,
                first,
                WIDTH,
                STUDENT_STRIDE,
                TEACHER_STRIDE,
                BLOCK_D,
            )
            square_s += tl.sum(s * s, 1)
            square_t += tl.sum(t * t, 1)
        inverse_s, short_s = _inverse(square_s)
        inverse_t, short_t = _inverse(square_t)
        square = tl.zeros((BLOCK_M,), tl.float32)
        cosine = tl.zeros((BLOCK_M,), tl.float32)
        for first in range(0, WIDTH, BLOCK_D):
            s, t, mask, cols = _load_pair(
                student_ptr,
                teacher_ptr,
                bias_ptr,
                rows,
                inside,
                first,
                WIDTH,
                STUDENT_STRIDE,
                TEACHER_STRIDE,
                BLOCK_D,
            )
            more_square, more_cosine = _distances(s, t, inverse_s, inverse_t)
            square += more_square
            cosine += more_cosine
    # 1 - <u, v> = |u - v|^2 / 2 keeps its digits when u and v agree; a row without length has cosine 0.
    losses = tl.where(short_s | short_t, 1.0 - cosine, 0.5 * square)
    tl.store(losses_ptr + row_block, tl.sum(tl.where(inside, losses, 0.0)))
    if NEED_GRAD:
        if WHOLE:
            _store_direction(
                s,
                t,
                mask,
                cols,
                rows,
                row_block,
                inverse_s,
                inverse_t,
                losses,
                grad_scale,
                direction_ptr,
                bias_partials_ptr,
                WIDTH,
            )
        else:
            for first in range(0, WIDTH, BLOCK_D):
                s, t, mask, cols = _load_pair(
                    student_ptr,
                    teacher_ptr,
                    bias_ptr,
                    rows,
                    inside,
                    first,
                    WIDTH,
                    STUDENT_STRIDE,
                    TEACHER_STRIDE,
                    BLOCK_D,
                )
                _store_direction(
                    s,
                    t,
                    mask,
                    cols,
                    rows,
                    row_block,
                    inverse_s,
                    inverse_t,
                    losses,
                    grad_scale,
                    direction_ptr,
                    bias_partials_ptr,
                    WIDTH,
                )


def hidden_cosine(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tokens, width = teacher.shape
    loss_scale = 1.0 if reduction == "sum" else 1.0 / max(tokens, 1)
    student, teacher, weight, bias = dense_inputs(student, teacher, weight, bias)
    projection = student if weight is None else wide_product(student, weight.T)
    meta = configuration(TABLE, width)
    blocks = -(-tokens // meta["BLOCK_M"])
    options: dict[str, Any] = {"dtype": torch.float32, "device": student.device}
    losses = torch.empty(blocks, **options)
    need_bias = need_grad and bias is not None
    bias_partials = torch.empty((blocks, width) if need_bias else (0,), **options)
    direction = torch.empty(
        (tokens, width) if need_grad else (0,), dtype=stored_dtype(student.dtype), device=student.device
    )
    launch(
        cosine_kernel,
        blocks,
        projection,
        teacher,
        bias,
        direction,
        bias_partials if need_bias else None,
        losses,
        tokens,
        loss_scale,
        WIDTH=width,
        STUDENT_STRIDE=projection.stride(0),
        TEACHER_STRIDE=teacher.stride(0),
        NEED_GRAD=need_grad,
        **meta,
    )
    loss, factor = scaled_total(losses, loss_scale)
    return loss, *linear_gradients(student, weight, bias, direction, bias_partials, need_grad), factor
