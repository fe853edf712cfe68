"""Triton kernel of logits_kl: one program per row, which is read twice.

Bytes at 4096 x 30522, bf16: student and teacher 250 MB each, gradient 250 MB. The second pass over a row should find
it in the second-level cache: two rows of each side a multiprocessor are 32 MB. Operations: four exponentials per class
and row. Floor on an H100 at 3.0 TB/s: 250 us. Last measured: not yet measured.

Loss: with ``d = log R - log P`` of teacher R and student P, ``KL = sum R (d + e^-d - 1)``, since both sum to one. No
term is negative, so a tiny divergence keeps its digits, and an error in either log-sum-exp cancels to first order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.kernels import Row, configuration, contiguous_rows, launch, scaled_total, stored_size

#: What float16 gradients are multiplied by. They are differences of probabilities: at most 1, and with a vocabulary
#: of classes mostly far below what float16 holds.
STORED = 16384.0

# Made by compiling for sm_80, sm_90 and sm_100 until nothing spilled; not yet timed. Of rows with many classes two (in
# float32 one) are under way on a multiprocessor: more would push each other out of the second-level cache.
# ((bytes of an element, classes), ...)
TABLE: list[Row] = [
    ((4, 256), {"BLOCK": 256, "num_warps": 1}),
    ((4, 1024), {"BLOCK": 1024, "num_warps": 4}),
    ((4, 4096), {"BLOCK": 2048, "num_warps": 8}),
    ((2, 1 << 62), {"BLOCK": 4096, "num_warps": 8}),
    ((4, 1 << 62), {"BLOCK": 8192, "num_warps": 16}),
]


@triton.jit
def _load(x, bias, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """A block of logits in float32, with -inf beyond the last; whole blocks are loaded without a mask, as vectors."""
    cols = first + tl.arange(0, BLOCK)
    if MASKED:
        values = tl.load(x + cols, mask=cols < WIDTH, other=float("-inf")).to(tl.float32)
        if bias is not None:
            values += tl.load(bias + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
    else:
        values = tl.load(x + cols).to(tl.float32)
        if bias is not None:
            values += tl.load(bias + cols).to(tl.float32)
    return values


@triton.jit
def _add_exponentials(values, highest, sums, inverse_temperature):
    """The highest so far and, for every lane, the sum of exponentials less it."""
    raised = tl.maximum(highest, tl.max(values))
    shift = tl.where(raised == float("-inf"), 0.0, raised)
    sums *= tl.exp((highest - shift) * inverse_temperature)
    return raised, sums + tl.exp((values - shift) * inverse_temperature)


@triton.jit
def _log_sum(
    x,
    bias,
    inverse_temperature,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The highest of a row, and the log of the sum of exponentials less it."""
    highest = float("-inf")
    sums = tl.zeros((BLOCK,), tl.float32)
    whole: tl.constexpr = WIDTH // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        values = _load(x, bias, first, WIDTH, BLOCK, False)
        highest, sums = _add_exponentials(values, highest, sums, inverse_temperature)
    if whole < WIDTH:
        values = _load(x, bias, whole, WIDTH, BLOCK, True)
        highest, sums = _add_exponentials(values, highest, sums, inverse_temperature)
    return highest, tl.log(tl.sum(sums))


@triton.jit
def _differentiate(
    student,
    teacher,
    bias_student,
    bias_teacher,
    grad,
    first,
    highest_s,
    highest_t,
    log_s,
    log_t,
    inverse_temperature,
    scale,
    NEED_GRAD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):
    """A block's terms of the loss; writes its gradient."""
    s = (_load(student, bias_student, first, WIDTH, BLOCK, MASKED) - highest_s) * inverse_temperature - log_s
    t = (_load(teacher, bias_teacher, first, WIDTH, BLOCK, MASKED) - highest_t) * inverse_temperature - log_t
    p, r = tl.exp(s), tl.exp(t)
    d = t - s
    near = d * d * (0.5 + d * (-1.0 / 6 + d * (1.0 / 24 + d * (-1.0 / 120 + d * (1.0 / 720)))))
    terms = tl.where(tl.abs(d) < 0.25, r * near, r * d + (p - r))
    terms = tl.where(r == 0.0, p, terms)  # a class the teacher rules out, where d is infinite or not a number
    cols = first + tl.arange(0, BLOCK)
    if MASKED:
        terms = tl.where(cols < WIDTH, terms, 0.0)
    if NEED_GRAD:
        values = ((p - r) * scale).to(grad.dtype.element_ty)
        if MASKED:
            tl.store(grad + cols, values, mask=cols < WIDTH)
        else:
            tl.store(grad + cols, values)
    return terms


@triton.jit
def kl_kernel(
    student,
    teacher,
    bias_student,
    bias_teacher,
    grad,
    losses,
    inverse_temperature,
    scale,
    WIDTH: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    TEACHER_STRIDE: tl.constexpr,
    GRAD_STRIDE: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row. ``grad`` may be ``student``: a block is written after it was read for the last time."""
    row = tl.program_id(0).to(tl.int64)
    student += row * STUDENT_STRIDE
    teacher += row * TEACHER_STRIDE
    grad += row * GRAD_STRIDE
    highest_s, log_s = _log_sum(student, bias_student, inverse_temperature, WIDTH, BLOCK)
    highest_t, log_t = _log_sum(teacher, bias_teacher, inverse_temperature, WIDTH, BLOCK)
    terms = tl.zeros((BLOCK,), tl.float32)
    whole: tl.constexpr = WIDTH // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        terms += _differentiate(
            student, teacher, bias_student, bias_teacher, grad, first, highest_s, highest_t, log_s, log_t,
            inverse_temperature, scale, NEED_GRAD, WIDTH, BLOCK, False,
        )  # fmt: skip
    if whole < WIDTH:
        terms += _differentiate(
            student, teacher, bias_student, bias_teacher, grad, whole, highest_s, highest_t, log_s, log_t,
            inverse_temperature, scale, NEED_GRAD, WIDTH, BLOCK, True,
        )  # fmt: skip
    tl.store(losses + row, tl.sum(terms))


def launch_rows(
    student: Tensor,
    teacher: Tensor,
    bias_student: Tensor | None,
    bias_teacher: Tensor | None,
    grad: Tensor,
    losses: Tensor,
    temperature: float,
    scale: float,
    need_grad: bool,
) -> None:
    """Every row's divergence into ``losses``; ``scale * (P - R)`` into ``grad``, which may be ``student``."""
    rows, classes = student.shape
    launch(
        kl_kernel,
        rows,
        student,
        teacher,
        bias_student,
        bias_teacher,
        grad,
        losses,
        1.0 / temperature,
        scale,
        WIDTH=classes,
        STUDENT_STRIDE=student.stride(0),
        TEACHER_STRIDE=teacher.stride(0),
        GRAD_STRIDE=grad.stride(0) if need_grad else 0,
        NEED_GRAD=need_grad,
        **configuration(TABLE, student.element_size(), classes),
    )


def logits_kl(
    student: Tensor, teacher: Tensor, temperature: float, reduction: str, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows = student.shape[0]
    normaliser = 1.0 if reduction == "sum" else 1.0 / max(rows, 1)
    scale, missing = stored_size(student.dtype, temperature * normaliser, STORED)
    losses = torch.empty(rows, dtype=torch.float32, device=student.device)
    grad = torch.empty(student.shape if need_grad else (0,), dtype=student.dtype, device=student.device)
    student, teacher = contiguous_rows(student), contiguous_rows(teacher)
    launch_rows(student, teacher, None, None, grad, losses, temperature, scale, need_grad)
    loss, factor = scaled_total(losses, temperature**2 * normaliser, missing)
    return loss, grad, factor
