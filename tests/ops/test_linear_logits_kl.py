"""linear_logits_kl: logits_kl of two output layers, whose logits are never whole in memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertxfer_fast import ops

from . import reference
from .cases import DTYPES, Case, LossContract, Pack, cases, dtypes, packs, wrong, wrong_tensor
from .reference import EPS32, assert_as_accurate_as_pytorch, evaluate, kl_floor, relative_error
from .test_logits_kl import classes, options

SHAPES = {"student": "Ts", "weight_student": "Vs", "teacher": "Tt", "weight_teacher": "Vt"}
BIASES = {"bias_student": "V", "bias_teacher": "V"}
STUDENT = ("student", "weight_student", "bias_student")
TEACHER = ("teacher", "weight_teacher", "bias_teacher")


def states(
    dtype: torch.dtype, tokens: int, *, classes: int = 37, student: int = 26, teacher: int = 40
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"T": tokens, "V": classes, "s": student, "t": teacher}
    return {
        name: (
            torch.randn([sizes[x] for x in letters], generator=generator) * (0.2 if "weight" in name else 1.0)
        ).to(dtype)
        for name, letters in {**SHAPES, **BIASES}.items()
    }


class TestContract(LossContract):
    operator = "linear_logits_kl"
    function = staticmethod(ops.linear_logits_kl)
    plain = staticmethod(reference.linear_logits_kl)
    student = STUDENT
    teacher = TEACHER
    autocast_error = 5e-2  # the logits are taken in bfloat16, as torch.nn.functional.linear would
    uses_library_products = True

    def inputs(self, dtype: torch.dtype, pack: Pack) -> dict[str, Tensor]:
        return states(dtype, pack.tokens)

    def packing(self, pack: Pack) -> dict[str, Any]:
        return {}

    @pytest.fixture(params=[1.0, 2.0], ids=["T1", "T2"])
    def variant(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"temperature": request.param}

    @pytest.fixture(
        params=[
            *wrong_tensor("student", 2),
            *wrong_tensor("weight_student", 2, pair="student"),
            *wrong_tensor("teacher", 2, pair="student"),
            *wrong_tensor("weight_teacher", 2, pair="student"),
            # None is a meaning of its own for these two
            *wrong_tensor("bias_student", 1, pair="student")[1:],
            *wrong_tensor("bias_teacher", 1, pair="student")[1:],
            wrong("teacher with fewer tokens", "teacher", {"teacher": lambda t: t[:-1]}),
            wrong("weight_student transposed", "weight_student", {"weight_student": lambda t: t.T}),
            wrong("weight_student too narrow", "weight_student", {"weight_student": lambda t: t[:, 1:]}),
            wrong("weight_teacher too narrow", "weight_teacher", {"weight_teacher": lambda t: t[:, 1:]}),
            wrong("weight_teacher of fewer classes", "weight_teacher", {"weight_teacher": lambda t: t[1:]}),
            wrong("bias_student too short", "bias_student", {"bias_student": lambda t: t[1:]}),
            wrong("bias_teacher too short", "bias_teacher", {"bias_teacher": lambda t: t[1:]}),
            wrong(
                "weight_student of another dtype", "weight_student", {"weight_student": lambda t: t.half()}
            ),
            wrong(
                "weight_teacher of another dtype", "weight_teacher", {"weight_teacher": lambda t: t.half()}
            ),
            wrong("bias_student of another dtype", "bias_student", {"bias_student": lambda t: t.half()}),
            wrong("bias_teacher of another dtype", "bias_teacher", {"bias_teacher": lambda t: t.bfloat16()}),
            wrong(
                "no class",
                "weight_student",
                dict.fromkeys(
                    ("weight_student", "weight_teacher", "bias_student", "bias_teacher"), lambda t: t[:0]
                ),
            ),
            wrong("temperature zero", "temperature", {"temperature": 0.0}),
            wrong("temperature nan", "temperature", {"temperature": math.nan}),
            wrong("temperature a string", "temperature", {"temperature": "hot"}),
            wrong("reduction mean", "reduction", {"reduction": "mean"}),
            wrong("reduction None", "reduction", {"reduction": None}),
        ]
    )
    def bad_argument(self, request: pytest.FixtureRequest) -> Any:
        return request.param


def logits_rounding(tensors: dict[str, Tensor], given: dict[str, Any]) -> float:
    """How far the loss moves when half-precision logits are rounded, as torch.nn.functional.linear rounds them.

    Plain PyTorch's are, too, but on few rows they may cancel. A sum of roundings is within 3.5 standard deviations.
    Of a student next to its teacher they are most of the loss, and no longer a matter of slopes.
    """
    dtype = tensors["student"].dtype
    eps = torch.finfo(dtype).eps
    if eps == EPS32:
        return 0.0
    wide = {name: t.double() for name, t in tensors.items()}
    products = {side: wide[side] @ wide[f"weight_{side}"].T for side in ("student", "teacher")}

    def loss(**x: Tensor) -> Tensor:
        biased = {side: t + wide.get(f"bias_{side}", 0.0) for side, t in x.items()}
        return reference.logits_kl(**biased, **given)

    slopes = evaluate(loss, products, ("student", "teacher")).grads
    moved = loss(**{side: t.to(dtype).double() for side, t in products.items()}) - loss(**products)
    return (
        abs(moved.item())
        + eps * torch.cat([slopes[side] * products[side] for side in products]).norm().item()
    )


def check_accuracy(tensors: dict[str, Tensor], given: dict[str, Any]) -> None:
    floors = kl_floor(len(tensors["student"]), **{"reduction": "batchmean", **given})
    floors["result"] += logits_rounding(tensors, given)
    assert_as_accurate_as_pytorch(
        lambda **x: ops.linear_logits_kl(**x, **given),
        lambda **x: reference.linear_logits_kl(**x, **given),
        tensors,
        tuple(name for name in STUDENT if name in tensors),
        floors=floors,
    )


@dtypes
@given(
    case=cases({**SHAPES, **BIASES}, packs=packs(partly_used=False), V=classes),
    options=options,
    left_out=st.sampled_from(((), ("bias_student",), ("bias_teacher",), tuple(BIASES))),
)
def test_is_as_accurate_as_plain_pytorch(
    backend: str, dtype: torch.dtype, case: Case, options: dict[str, Any], left_out: tuple[str, ...]
) -> None:
    tensors = case.tensors(dtype)
    check_accuracy({name: t for name, t in tensors.items() if name not in left_out}, options)


@pytest.mark.slow
@dtypes
@settings(max_examples=200)
@given(
    case=cases({**SHAPES, **BIASES}, packs=packs(partly_used=False), V=st.integers(1, 3000)), options=options
)
def test_is_as_accurate_as_plain_pytorch_on_many_shapes(
    backend: str, dtype: torch.dtype, case: Case, options: dict[str, Any]
) -> None:
    check_accuracy(case.tensors(dtype), options)


@dtypes
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_few_hundred_classes(backend: str, dtype: torch.dtype, temperature: float) -> None:
    check_accuracy(states(dtype, 70, classes=501), {"temperature": temperature})


def test_more_tokens_than_one_chunk(backend: str) -> None:
    """30 522 classes leave 274 tokens a chunk: 300 are two, and gradients add up over them."""
    tensors = states(torch.float32, 300, classes=30522)
    got = evaluate(ops.linear_logits_kl, tensors, STUDENT)
    truth = evaluate(reference.linear_logits_kl, tensors, STUDENT, dtype=torch.float64)
    for (name, mine), (_, exact) in zip(got.items(), truth.items(), strict=True):
        assert relative_error(mine, exact) < (1e-5 if name == "result" else 1e-4), name


def test_is_logits_kl_of_the_layers(backend: str) -> None:
    x = states(torch.float32, 40)
    logits = torch.nn.functional.linear(x["student"], x["weight_student"], x["bias_student"])
    target = torch.nn.functional.linear(x["teacher"], x["weight_teacher"], x["bias_teacher"])
    torch.testing.assert_close(
        ops.linear_logits_kl(**x, temperature=2.0), ops.logits_kl(logits, target, temperature=2.0)
    )


@pytest.mark.parametrize("reduction", ["batchmean", "sum"])
def test_no_token_is_a_loss_of_zero(backend: str, reduction: str) -> None:
    outcome = evaluate(
        lambda **x: ops.linear_logits_kl(**x, reduction=reduction), states(torch.float32, 0), STUDENT
    )
    for name, value in outcome.items():
        assert not value.any(), name


def test_student_and_teacher_may_differ_in_dtype(backend: str) -> None:
    for student in DTYPES:
        for teacher in DTYPES:
            tensors = states(student, 40)
            tensors |= {name: tensors[name].to(teacher) for name in TEACHER}
            exact = reference.linear_logits_kl(**{name: t.double() for name, t in tensors.items()})
            allowed = (
                2e-6 if student == teacher == torch.float32 else 1e-2
            )  # logits are rounded to each dtype
            assert relative_error(ops.linear_logits_kl(**tensors), exact) <= allowed, (student, teacher)
