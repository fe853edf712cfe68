"""hidden_mse through a projection, against plain eager and compiled code and the bare products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .harness import Problem, compare
from .inputs import main_dtypes
from .projected import projected_problem


def plain(student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.mse_loss(F.linear(student, weight, bias), teacher)


def problem(dtype: torch.dtype) -> Problem:
    return projected_problem("hidden_mse", plain, dtype)


@main_dtypes
def test_hidden_mse(benchmark: Any, dtype: torch.dtype) -> None:
    compare(benchmark, problem(dtype))
