"""hidden_cosine against torch's cosine similarity in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from bertxfer_fast import ops

from .cases import dtypes
from .reference import assert_as_accurate_as_pytorch, relative_error

TOKENS, STUDENT, TEACHER = 301, 52, 96


def states(dtype: torch.dtype = torch.float32, *, projected: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"student": (TOKENS, STUDENT), "teacher": (TOKENS, TEACHER if projected else STUDENT)}
    if projected:
        shapes |= {"weight": (TEACHER, STUDENT), "bias": (TEACHER,)}
    return {
        name: (torch.randn(shape, generator=generator) * (0.2 if name == "weight" else 1.0)).to(dtype)
        for name, shape in shapes.items()
    }


def plain(
    student: Tensor, teacher: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    projected = student if weight is None else torch.nn.functional.linear(student, weight, bias)
    return (1 - torch.nn.functional.cosine_similarity(projected, teacher)).mean()


@dtypes
@pytest.mark.parametrize("projected", [False, True], ids=["plain", "projected"])
def test_is_as_accurate_as_plain_pytorch(backend: str, dtype: torch.dtype, projected: bool) -> None:
    tensors = states(dtype, projected=projected)
    wrt = tuple(name for name in tensors if name != "teacher")
    assert_as_accurate_as_pytorch(ops.hidden_cosine, plain, tensors, wrt)


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3, 1e-4])
def test_tiny_losses_keep_their_digits(backend: str, distance: float) -> None:
    student = states(projected=False)["student"]
    teacher = student + distance * torch.randn(student.shape, generator=torch.Generator().manual_seed(1))
    exact = plain(student.double(), teacher.double())
    assert relative_error(ops.hidden_cosine(student, teacher), exact) < 1e-5 + 1e-7 / distance


def test_a_row_without_length_counts_one(backend: str) -> None:
    teacher = torch.ones(2, 3)
    student = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]], requires_grad=True)
    value = ops.hidden_cosine(student, teacher, reduction="sum")
    assert value.item() == pytest.approx(1.0)
    (grad,) = torch.autograd.grad(value, student)
    assert grad.isfinite().all()


def test_opcheck(backend: str) -> None:
    tensors = {name: t.requires_grad_(name != "teacher") for name, t in states().items()}
    opcheck(getattr(torch.ops.bertxfer_fast.hidden_cosine, backend), (*tensors.values(), "mean", True))
