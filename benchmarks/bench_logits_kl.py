"""linear_logits_kl at BERT's vocabulary against whole logits, eager and compiled, and the four bare products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bertxfer_fast import ops

from .harness import compare, on_backend, random, with_gradients

TOKENS, CLASSES, STUDENT, TEACHER = 1024, 30522, 312, 768


def plain(student: Tensor, weight_student: Tensor, teacher: Tensor, weight_teacher: Tensor) -> Tensor:
    return F.kl_div(
        F.linear(student, weight_student).log_softmax(-1),
        F.linear(teacher, weight_teacher).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )


def test_linear_logits_kl(benchmark: Any) -> None:
    student, weight_student = random(TOKENS, STUDENT, grad=True), random(CLASSES, STUDENT, grad=True)
    teacher, weight_teacher = random(TOKENS, TEACHER), random(CLASSES, TEACHER)
    arguments = (student, weight_student, teacher, weight_teacher)
    wrt = (student, weight_student)
    compiled = torch.compile(plain)
    x, w, g = student.detach(), weight_student.detach(), random(TOKENS, CLASSES)
    implementations = {
        "cpp": on_backend("cpp", with_gradients(lambda: ops.linear_logits_kl(*arguments), wrt)),
        "eager": with_gradients(lambda: plain(*arguments), wrt),
        "compile": with_gradients(lambda: compiled(*arguments), wrt),
        "four bare products": lambda: (x @ w.T, teacher @ weight_teacher.T, g @ w, g.T @ x),
    }
    compare(benchmark, implementations, shape=str((TOKENS, CLASSES, STUDENT, TEACHER)))
