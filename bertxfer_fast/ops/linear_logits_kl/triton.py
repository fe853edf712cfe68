"""linear_logits_kl on a GPU: the library's products, and logits_kl's Triton kernel between them, by chunks of tokens.

Memory beside the results: the logits of one chunk, at most 32 MB of both sides together, of which the student's become
the gradient in place. (A PyTorch that cannot add half-precision products to a float32 sum also needs a copy of the
weight's gradient, 38 MB at 312 x 30522.) 1024 tokens of 30522 classes would take 375 MB for two matrices of logits and
a gradient in float32, and PyTorch's own expression about three times as much. 32 MB is what stays in the second-level
cache (40 MB on an A100, 50 on an H100) from the product that writes it to the ones that read it: 256 tokens of 30522
classes in bf16. float16's logits, which may be beyond 65504, are float32, and their gradient lies beside them.

Operations at 4096 tokens, 312 and 768 wide (Ds, Dt), 30522 classes: 426 GFLOP in four products. Bytes, bf16: both
weights and the weight's gradient (read and written) once a chunk, 142 MB for each of 16. Floor on an H100 at 3.0 TB/s
and 790 TFLOP/s: 0.76 ms by bytes, 0.54 ms by operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._dispatch.loss import stored_dtype
from .._triton.packing import contiguous_rows
from .._triton.products import add_product, operand, product_into
from .._triton.reductions import scaled_total, stored_scale
from ..logits_kl.eager import STORED
from ..logits_kl.triton import launch_rows

#: Bytes of the logits of one chunk, both sides together.
CHUNK = 32 << 20
#: A chunk is a multiple of this, except the last: products take rows in tiles of 64 or more.
ROWS = 64
#: Rows of logits start where this divides their number of elements: fast products and vector loads need it.
ALIGNED = 64


def _buffer(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[rows, classes]`` whose rows are aligned."""
    padded = -(-classes // ALIGNED) * ALIGNED
    return torch.empty((rows, padded), dtype=dtype, device=device)[:, :classes]


def linear_logits_kl(
    student: Tensor,
    weight_student: Tensor,
    bias_student: Tensor | None,
    teacher: Tensor,
    weight_teacher: Tensor,
    bias_teacher: Tensor | None,
    temperature: float,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tokens, classes = student.shape[0], weight_student.shape[0]
    device = student.device
    loss_scale = 1.0 if reduction == "sum" else 1.0 / max(tokens, 1)
    grad_scale, missing_factor = stored_scale(student.dtype, temperature * loss_scale, STORED)
    student, weight_student, teacher, weight_teacher = (
        operand(contiguous_rows(x)) for x in (student, weight_student, teacher, weight_teacher)
    )
    bias_student, bias_teacher = (None if x is None else x.contiguous() for x in (bias_student, bias_teacher))
    need_bias = need_grad and bias_student is not None
    losses = torch.empty(tokens, dtype=torch.float32, device=device)
    logits_dtypes = stored_dtype(student.dtype), stored_dtype(teacher.dtype)
    grad_student = torch.empty(student.shape if need_grad else (0,), dtype=logits_dtypes[0], device=device)
    make = torch.empty if tokens else torch.zeros
    grad_weight = make(weight_student.shape if need_grad else (0,), dtype=torch.float32, device=device)
    grad_bias = torch.zeros((classes,) if need_bias else (0,), dtype=torch.float32, device=device)

    row = classes * sum(dtype.itemsize for dtype in logits_dtypes)
    chunk = min(max(ROWS, CHUNK // row // ROWS * ROWS), max(tokens, 1))
    logits_student, logits_teacher = (_buffer(chunk, classes, dtype, device) for dtype in logits_dtypes)
    # The gradient takes the place of the logits it is made of, where it is of their dtype.
    in_place = logits_dtypes[0] == student.dtype
    directions = logits_student if in_place else _buffer(chunk, classes, student.dtype, device)
    for start in range(0, tokens, chunk):
        part = slice(start, min(start + chunk, tokens))
        rows = part.stop - start
        logits, target, direction = logits_student[:rows], logits_teacher[:rows], directions[:rows]
        product_into(logits, student[part], weight_student.T)
        product_into(target, teacher[part], weight_teacher.T)
        launch_rows(
            logits,
            target,
            bias_student,
            bias_teacher,
            direction,
            losses[part],
            temperature,
            grad_scale,
            need_grad,
        )
        if not need_grad:
            continue
        product_into(grad_student[part], operand(direction), weight_student)
        add_product(grad_weight, direction.T, student[part], first=start == 0)
        if need_bias:
            grad_bias += direction.sum(0, dtype=torch.float32)
    loss, factor = scaled_total(losses, temperature**2 * loss_scale, missing_factor)
    return loss, grad_student, grad_weight, grad_bias, factor
