"""hidden_mse and hidden_cosine through a projection, against plain eager and compiled code and the bare products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bertxfer_fast import ops

from .harness import compare, on_backend, random, with_gradients

TOKENS, STUDENT, TEACHER = 4096, 312, 768


def plain_mse(student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.mse_loss(F.linear(student, weight, bias), teacher)


def plain_cosine(student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(F.linear(student, weight, bias), teacher)).mean()


@pytest.mark.parametrize("loss", ["hidden_mse", "hidden_cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_projected(benchmark: Any, loss: str, dtype: torch.dtype) -> None:
    student, teacher = random(TOKENS, STUDENT, dtype=dtype, grad=True), random(TOKENS, TEACHER, dtype=dtype)
    weight, bias = random(TEACHER, STUDENT, dtype=dtype, grad=True), random(TEACHER, dtype=dtype, grad=True)
    function, plain = getattr(ops, loss), {"hidden_mse": plain_mse, "hidden_cosine": plain_cosine}[loss]
    compiled = torch.compile(plain)
    wrt = (student, weight, bias)
    x, w, r = student.detach(), weight.detach(), random(TOKENS, TEACHER, dtype=dtype)
    implementations = {
        "cpp": on_backend("cpp", with_gradients(lambda: function(student, teacher, weight, bias), wrt)),
        "eager": with_gradients(lambda: plain(student, teacher, weight, bias), wrt),
        "compile": with_gradients(lambda: compiled(student, teacher, weight, bias), wrt),
        "three bare products": lambda: (x @ w.T, r @ w, r.T @ x),
    }
    compare(benchmark, implementations, loss=loss, shape=str((TOKENS, STUDENT, TEACHER)), dtype=str(dtype))
