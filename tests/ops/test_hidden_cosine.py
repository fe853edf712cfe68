"""hidden_cosine: with and without projection, gradients to student, weight and bias, and rows without length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertxfer_fast import ops

from . import reference
from .cases import DTYPES, Case, dtypes
from .reference import EPS32, assert_as_accurate_as_pytorch, largest, relative_error
from .test_hidden_mse import (
    CALLS,
    WRONG_PROJECTION,
    WRONG_STATES,
    HiddenContract,
    calls,
    drawn,
    exact_projection,
    hidden_states,
)


class CosineContract(HiddenContract):
    operator = "hidden_cosine"
    function = staticmethod(ops.hidden_cosine)
    plain = staticmethod(reference.hidden_cosine)


class TestContractPlain(CosineContract):
    call_kind = "plain"
    student = ("student",)

    @pytest.fixture(params=WRONG_STATES)
    def bad_argument(self, request: pytest.FixtureRequest) -> Any:
        return request.param


class TestContractProjected(CosineContract):
    call_kind = "weight and bias"
    autocast_error = 2e-2  # the projection is taken in bfloat16, as torch.nn.functional.linear would
    uses_library_products = True  # for the gradient of the weight
    student = ("student", "weight", "bias")

    @pytest.fixture(params=WRONG_PROJECTION)
    def bad_argument(self, request: pytest.FixtureRequest) -> Any:
        return request.param


def unit_rounding(tensors: dict[str, Tensor], reduction: str) -> dict[str, float]:
    """What a gradient may be off: it is the difference of two unit vectors, divided by the student's length.

    Both round to float32. Where they point the same way, always so in one dimension, nothing else is left.
    """
    projected = exact_projection(tensors)
    terms = 2 * EPS32 / projected.norm(dim=1).clamp_min(1e-8)
    if reduction == "mean":
        terms /= max(len(terms), 1)
    steepest = tensors["weight"].double().norm(dim=0).max().item() if "weight" in tensors else 1.0
    return {
        "result": (2 * EPS32) ** 2 * (len(terms) if reduction == "sum" else 1),
        "gradient of student": steepest * largest(terms),
        "gradient of weight": largest(terms @ tensors["student"].double().abs()),
        "gradient of bias": terms.sum().item(),
    }


def check_accuracy(tensors: dict[str, Tensor], reduction: str) -> None:
    assert_as_accurate_as_pytorch(
        lambda **x: ops.hidden_cosine(**x, reduction=reduction),
        lambda **x: reference.hidden_cosine(**x, reduction=reduction),
        tensors,
        tuple(name for name in tensors if name != "teacher"),
        floors=unit_rounding(tensors, reduction),
    )


@dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@given(plain=drawn("plain"), weight=drawn("weight"), bias=drawn("weight and bias"))
def test_is_as_accurate_as_plain_pytorch(
    backend: str, dtype: torch.dtype, reduction: str, plain: Case, weight: Case, bias: Case
) -> None:
    for case in (plain, weight, bias):
        check_accuracy(case.tensors(dtype), reduction)


@pytest.mark.slow
@calls
@dtypes
@settings(max_examples=200)
@given(data=st.data())
def test_is_as_accurate_as_plain_pytorch_on_many_shapes(
    backend: str, dtype: torch.dtype, call: str, data: Any
) -> None:
    check_accuracy(data.draw(drawn(call, max_tokens=3000, max_pairs=2_000_000)).tensors(dtype), "mean")


@calls
@dtypes
@pytest.mark.parametrize("widths", [(312, 768), (384, 384)], ids=str)
def test_widths_of_real_models(backend: str, dtype: torch.dtype, call: str, widths: tuple[int, int]) -> None:
    check_accuracy(hidden_states(dtype, 301, call, student=widths[0], teacher=widths[1]), "mean")


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3, 1e-4])
def test_tiny_losses_keep_their_digits(backend: str, distance: float) -> None:
    """1 - cos formed as it is written is off by 1e-7, more than the whole loss at a distance of 1e-4."""
    student = hidden_states(torch.float32, 301, "plain")["student"]
    teacher = student + distance * torch.randn(student.shape, generator=torch.Generator().manual_seed(1))
    exact = reference.hidden_cosine(student.double(), teacher.double())
    assert relative_error(ops.hidden_cosine(student, teacher), exact) < 1e-5 + 1e-7 / distance


def test_a_row_without_length_counts_one(backend: str) -> None:
    teacher = torch.ones(2, 3)
    student = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]], requires_grad=True)
    value = ops.hidden_cosine(student, teacher, reduction="sum")
    assert value.item() == pytest.approx(1.0)
    (grad,) = torch.autograd.grad(value, student)
    assert grad.isfinite().all()


@calls
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_token_is_a_loss_of_zero(backend: str, call: str, reduction: str) -> None:
    tensors = hidden_states(torch.float32, 0, call)
    outcome = reference.evaluate(
        lambda **x: ops.hidden_cosine(**x, reduction=reduction),
        tensors,
        tuple(name for name in CALLS[call] if name != "teacher"),
    )
    for name, value in outcome.items():
        assert not value.any(), name


def test_student_and_teacher_may_differ_in_dtype(backend: str) -> None:
    for student in DTYPES:
        for teacher in DTYPES:
            tensors = hidden_states(student, 40, "weight and bias")
            tensors["teacher"] = tensors["teacher"].to(teacher)
            exact = reference.hidden_cosine(**{name: t.double() for name, t in tensors.items()})
            # The product is rounded to the student's dtype.
            allowed = 2e-6 if student == torch.float32 else 1e-3
            assert relative_error(ops.hidden_cosine(**tensors), exact) <= allowed, (student, teacher)
