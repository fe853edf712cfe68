"""linear_logits_kl at BERT's vocabulary against whole logits, eager and compiled, and the four bare products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bertxfer_fast import ops

from . import device
from .harness import Problem, backends, compare, compiled, full_or_quick, in_float64, nbytes, with_gradients
from .inputs import random
from .peers import liger

#: Tokens, classes, student's and teacher's width.
SIZES = full_or_quick((1024, 30522, 312, 768), (16, 300, 12, 16), (4096, 30522, 312, 768))
DTYPE = torch.bfloat16 if device.ON_GPU else torch.float32


def plain(student: Tensor, weight_student: Tensor, teacher: Tensor, weight_teacher: Tensor) -> Tensor:
    return F.kl_div(
        F.linear(student, weight_student).log_softmax(-1),
        F.linear(teacher, weight_teacher).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )


def problem(case: str = "", sizes: tuple[int, int, int, int] = SIZES) -> Problem:
    """Memory matters as much as time: the record has it in multiples of the gradients that all return.

    Whole logits take gigabytes to and from the system between two turns, which slows whoever comes next; so the
    products are compared a second time without anybody else.
    """
    tokens, classes, width, teacher_width = sizes
    student, weight_student = (random(n, width, dtype=DTYPE, grad=True) for n in (tokens, classes))
    teacher, weight_teacher = (random(n, teacher_width, dtype=DTYPE) for n in (tokens, classes))
    arguments = (student, weight_student, teacher, weight_teacher)
    wrt = (student, weight_student)
    fast = None if case else compiled(plain)
    x, w, g = student.detach(), weight_student.detach(), random(tokens, classes, dtype=DTYPE)
    implementations = {
        **backends(with_gradients(lambda: ops.linear_logits_kl(*arguments), wrt), "linear_logits_kl"),
        "plain": with_gradients(lambda: plain(*arguments), wrt),
        "compile": fast and with_gradients(lambda: fast(*arguments), wrt),
        "floor: four products": lambda: (x @ w.T, teacher @ weight_teacher.T, g @ w, g.T @ x),
        **liger(*arguments),
    }
    if case:
        implementations = {name: implementations[name] for name in ("cpp", "floor: four products")}
    return Problem(
        op="linear_logits_kl",
        implementations=implementations,
        case=case,
        shape=f"{tokens}x{width}/{teacher_width}->{classes}",
        dtype=DTYPE,
        operator="linear_logits_kl",
        size=student.numel(),
        gradient_bytes=nbytes(wrt),
        truth=lambda: in_float64(plain, arguments),
    )


@pytest.mark.parametrize("case", [""] if device.ON_GPU else ["", "products alone"])
def test_linear_logits_kl(benchmark: Any, case: str) -> None:
    compare(benchmark, problem(case))
