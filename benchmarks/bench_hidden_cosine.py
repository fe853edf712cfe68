"""hidden_cosine through a projection, against plain eager and compiled code and the bare products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .harness import Problem, compare
from .inputs import main_dtypes
from .projected import projected_problem


def plain(student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(F.linear(student, weight, bias), teacher)).mean()


def problem(dtype: torch.dtype) -> Problem:
    return projected_problem("hidden_cosine", plain, dtype)


@main_dtypes
def test_hidden_cosine(benchmark: Any, dtype: torch.dtype) -> None:
    compare(benchmark, problem(dtype))
