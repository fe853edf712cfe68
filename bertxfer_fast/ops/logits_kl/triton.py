"""Triton kernels of logits_kl: a program for each row, which stays in registers or, if long, is read twice.

Bytes at 4096 x 30522, bf16: student and teacher 250 MB each, gradient 250 MB. A second pass over a row should find it
in the second-level cache: two rows of each side a multiprocessor are 32 MB. Operations: four exponentials per class
and row. Floor on an H100 at 3.0 TB/s: 250 us.

Loss: with ``d = log R - log P`` of teacher R and student P, ``KL = sum R (d + e^-d - 1)``, since both sum to one. No
term is negative, so a tiny divergence keeps its digits, and an error in either log-sum-exp cancels to first order.
"""

from __future__ import annotations

import operator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.launching import Choice, configuration, kernel, launch
from .._triton.packing import contiguous_rows
from .._triton.reductions import scaled_total, stored_scale
from .eager import STORED

# Made by compiling for sm_80, sm_90 and sm_100 until nothing spilled; not yet timed.
# ((bytes of an element, classes), ...): rows that stay in registers,
WHOLE_ROWS: list[Choice] = [
    ((4, 256), {"BLOCK": 256, "num_warps": 1}),
    ((4, 1024), {"BLOCK": 1024, "num_warps": 4}),
    ((4, 4096), {"BLOCK": 4096, "num_warps": 8}),
    ((4, 8192), {"BLOCK": 8192, "num_warps": 16}),
    ((2, 16384), {"BLOCK": 16384, "num_warps": 16}),
]
# and those read block by block. Two (in float32 one) of them are under way on a multiprocessor: more would push each
# other out of the second-level cache.
BLOCKS: list[Choice] = [
    ((2, 1 << 62), {"BLOCK": 4096, "num_warps": 8}),
    ((4, 1 << 62), {"BLOCK": 8192, "num_warps": 16}),
]


@triton.jit
def _load(x_ptr, bias_ptr, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """A block of logits in float32, with -inf beyond the last; whole blocks are loaded without a mask, as vectors."""
    cols = first + tl.arange(0, BLOCK)
    if MASKED:
        values = tl.load(x_ptr + cols, mask=cols < WIDTH, other=float("-inf")).to(tl.float32)
        if bias_ptr is not None:
            values += tl.load(bias_ptr + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
    else:
        values = tl.load(x_ptr + cols).to(tl.float32)
        if bias_ptr is not None:
            values += tl.load(bias_ptr + cols).to(tl.float32)
    return values


@triton.jit
def _add_exponentials(values, row_max, sums, inverse_temperature):
    """The row_max so far and, for every lane, the sum of exponentials less it."""
    raised = tl.maximum(row_max, tl.max(values))
    shift = tl.where(raised == float("-inf"), 0.0, raised)
    sums *= tl.exp((row_max - shift) * inverse_temperature)
    return raised, sums + tl.exp((values - shift) * inverse_temperature)


@triton.jit
def _log_sum(
    x_ptr,
    bias_ptr,
    inverse_temperature,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The row_max of a row, and the log of the sum of exponentials less it."""
    row_max = float("-inf")
    sums = tl.zeros((BLOCK,), tl.float32)
    whole: tl.constexpr = WIDTH // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        values = _load(x_ptr, bias_ptr, first, WIDTH, BLOCK, False)
        row_max, sums = _add_exponentials(values, row_max, sums, inverse_temperature)
    if whole < WIDTH:
        values = _load(x_ptr, bias_ptr, whole, WIDTH, BLOCK, True)
        row_max, sums = _add_exponentials(values, row_max, sums, inverse_temperature)
    return row_max, tl.log(tl.sum(sums))


@triton.jit
def _differentiate(
    s,
    t,
    grad_ptr,
    first,
    max_s,
    max_t,
    log_s,
    log_t,
    inverse_temperature,
    grad_scale,
    NEED_GRAD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The terms of the loss of a block of logits; writes its gradient."""
    s = (s - max_s) * inverse_temperature - log_s
    t = (t - max_t) * inverse_temperature - log_t
    p, r = tl.exp(s), tl.exp(t)
    d = t - s
    near = d * d * (0.5 + d * (-1.0 / 6 + d * (1.0 / 24 + d * (-1.0 / 120 + d * (1.0 / 720)))))
    terms = tl.where(tl.abs(d) < 0.25, r * near, r * d + (p - r))
    terms = tl.where(r == 0.0, p, terms)  # a class the teacher rules out, where d is infinite or not a number
    cols = first + tl.arange(0, BLOCK)
    if MASKED:
        terms = tl.where(cols < WIDTH, terms, 0.0)
    if NEED_GRAD:
        values = ((p - r) * grad_scale).to(grad_ptr.dtype.element_ty)
        if MASKED:
            tl.store(grad_ptr + cols, values, mask=cols < WIDTH)
        else:
            tl.store(grad_ptr + cols, values)
    return terms


@triton.jit
def _row_max_and_log_sum(values, inverse_temperature):
    """Of a whole row in registers."""
    row_max, sums = _add_exponentials(
        values, float("-inf"), tl.zeros(values.shape, tl.float32), inverse_temperature
    )
    return row_max, tl.log(tl.sum(sums))


@kernel
def whole_row_kernel(
    student_ptr,  # [rows, WIDTH]
    teacher_ptr,  # [rows, WIDTH]
    bias_student_ptr,  # [WIDTH], or None
    bias_teacher_ptr,  # [WIDTH], or None
    grad_ptr,  # [rows, WIDTH]
    losses_ptr,  # [rows]
    inverse_temperature,
    grad_scale,
    WIDTH: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    TEACHER_STRIDE: tl.constexpr,
    GRAD_STRIDE: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of at most BLOCK classes, read once and kept in registers. ``grad`` may be ``student``."""
    row = tl.program_id(0).to(tl.int64)
    MASKED: tl.constexpr = WIDTH < BLOCK
    s = _load(student_ptr + row * STUDENT_STRIDE, bias_student_ptr, 0, WIDTH, BLOCK, MASKED)
    t = _load(teacher_ptr + row * TEACHER_STRIDE, bias_teacher_ptr, 0, WIDTH, BLOCK, MASKED)
    max_s, log_s = _row_max_and_log_sum(s, inverse_temperature)
    max_t, log_t = _row_max_and_log_sum(t, inverse_temperature)
    terms = _differentiate(
        s, t, grad_ptr + row * GRAD_STRIDE, 0, max_s, max_t, log_s, log_t,
        inverse_temperature, grad_scale, NEED_GRAD, WIDTH, BLOCK, MASKED,
    )  # fmt: skip
    tl.store(losses_ptr + row, tl.sum(terms))


@kernel
def kl_kernel(
    student_ptr,  # [rows, WIDTH]
    teacher_ptr,  # [rows, WIDTH]
    bias_student_ptr,  # [WIDTH], or None
    bias_teacher_ptr,  # [WIDTH], or None
    grad_ptr,  # [rows, WIDTH]
    losses_ptr,  # [rows]
    inverse_temperature,
    grad_scale,
    WIDTH: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    TEACHER_STRIDE: tl.constexpr,
    GRAD_STRIDE: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row, block by block, read twice. ``grad`` may be ``student``: a block is written after its last reading."""
    row = tl.program_id(0).to(tl.int64)
    student_ptr += row * STUDENT_STRIDE
    teacher_ptr += row * TEACHER_STRIDE
    grad_ptr += row * GRAD_STRIDE
    max_s, log_s = _log_sum(student_ptr, bias_student_ptr, inverse_temperature, WIDTH, BLOCK)
    max_t, log_t = _log_sum(teacher_ptr, bias_teacher_ptr, inverse_temperature, WIDTH, BLOCK)
    terms = tl.zeros((BLOCK,), tl.float32)
    whole: tl.constexpr = WIDTH // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        s = _load(student_ptr, bias_student_ptr, first, WIDTH, BLOCK, False)
        t = _load(teacher_ptr, bias_teacher_ptr, first, WIDTH, BLOCK, False)
        terms += _differentiate(
            s, t, grad_ptr, first, max_s, max_t, log_s, log_t,
            inverse_temperature, grad_scale, NEED_GRAD, WIDTH, BLOCK, False,
        )  # fmt: skip
    if whole < WIDTH:
        s = _load(student_ptr, bias_student_ptr, whole, WIDTH, BLOCK, True)
        t = _load(teacher_ptr, bias_teacher_ptr, whole, WIDTH, BLOCK, True)
        terms += _differentiate(
            s, t, grad_ptr, whole, max_s, max_t, log_s, log_t,
            inverse_temperature, grad_scale, NEED_GRAD, WIDTH, BLOCK, True,
        )  # fmt: skip
    tl.store(losses_ptr + row, tl.sum(terms))


def launch_rows(
    student: Tensor,
    teacher: Tensor,
    bias_student: Tensor | None,
    bias_teacher: Tensor | None,
    grad: Tensor,
    losses: Tensor,
    temperature: float,
    grad_scale: float,
    need_grad: bool,
) -> None:
    """Every row's divergence into ``losses``; ``grad_scale * (P - R)`` into ``grad``, which may be ``student``."""
    rows, classes = student.shape
    sizes = student.element_size(), classes
    whole = any(all(map(operator.le, sizes, bounds)) for bounds, _ in WHOLE_ROWS)
    launch(
        whole_row_kernel if whole else kl_kernel,
        rows,
        student,
        teacher,
        bias_student,
        bias_teacher,
        grad,
        losses,
        1.0 / temperature,
        grad_scale,
        WIDTH=classes,
        STUDENT_STRIDE=student.stride(0),
        TEACHER_STRIDE=teacher.stride(0),
        GRAD_STRIDE=grad.stride(0) if need_grad else 0,
        NEED_GRAD=need_grad,
        **configuration(WHOLE_ROWS if whole else BLOCKS, *sizes),
    )


def logits_kl(
    student: Tensor, teacher: Tensor, temperature: float, reduction: str, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows = student.shape[0]
    loss_scale = 1.0 if reduction == "sum" else 1.0 / max(rows, 1)
    grad_scale, missing_factor = stored_scale(student.dtype, temperature * loss_scale, STORED)
    losses = torch.empty(rows, dtype=torch.float32, device=student.device)
    grad = torch.empty(student.shape if need_grad else (0,), dtype=student.dtype, device=student.device)
    student, teacher = contiguous_rows(student), contiguous_rows(teacher)
    launch_rows(student, teacher, None, None, grad, losses, temperature, grad_scale, need_grad)
    loss, factor = scaled_total(losses, temperature**2 * loss_scale, missing_factor)
    return loss, grad, factor
