"""logits_kl: soft labels at every temperature, for logits of any size, and classes the teacher rules out."""

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
from .cases import DTYPES, EDGES, Case, LossContract, Pack, cases, dtypes, packs, wrong, wrong_tensor
from .reference import assert_as_accurate_as_pytorch, kl_floor, relative_error

SHAPES = {"student": "TV", "teacher": "TV"}
classes = st.one_of(st.sampled_from((*EDGES, 1000)), st.integers(1, 300))
options = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from((0.5, 1.0, 2.0, 10.0)),
        "reduction": st.sampled_from(("batchmean", "sum")),
    }
)


def logits(dtype: torch.dtype, rows: int, classes: int = 37) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: (2 * torch.randn(rows, classes, generator=generator)).to(dtype) for name in SHAPES}


class TestContract(LossContract):
    operator = "logits_kl"
    function = staticmethod(ops.logits_kl)
    plain = staticmethod(reference.logits_kl)
    student = ("student",)
    teacher = ("teacher",)

    def inputs(self, dtype: torch.dtype, pack: Pack) -> dict[str, Tensor]:
        return logits(dtype, pack.tokens)

    def packing(self, pack: Pack) -> dict[str, Any]:
        return {}

    @pytest.fixture(params=[1.0, 2.0], ids=["T1", "T2"])
    def variant(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"temperature": request.param}

    @pytest.fixture(
        params=[
            *wrong_tensor("student", 2),
            *wrong_tensor("teacher", 2, pair="student"),
            wrong("teacher with fewer rows", "teacher", {"teacher": lambda t: t[:-1]}),
            wrong("teacher with one row", "teacher", {"teacher": lambda t: t[:1]}),
            wrong("teacher with fewer classes", "teacher", {"teacher": lambda t: t[:, :-1]}),
            wrong("no class", "student", dict.fromkeys(("student", "teacher"), lambda t: t[:, :0])),
            wrong("temperature zero", "temperature", {"temperature": 0.0}),
            wrong("temperature negative", "temperature", {"temperature": -1.0}),
            wrong("temperature nan", "temperature", {"temperature": math.nan}),
            wrong("temperature inf", "temperature", {"temperature": math.inf}),
            wrong("temperature a string", "temperature", {"temperature": "hot"}),
            wrong("temperature a tensor of many", "temperature", {"temperature": torch.ones(2)}),
            wrong("reduction unknown", "reduction", {"reduction": "none"}),
            wrong("reduction None", "reduction", {"reduction": None}),
        ]
    )
    def bad_argument(self, request: pytest.FixtureRequest) -> Any:
        return request.param


def check_accuracy(tensors: dict[str, Tensor], options: dict[str, Any]) -> None:
    assert_as_accurate_as_pytorch(
        lambda **x: ops.logits_kl(**x, **options),
        lambda **x: reference.logits_kl(**x, **options),
        tensors,
        ("student",),
        floors=kl_floor(len(tensors["student"]), **{"reduction": "batchmean", **options}),
    )


@dtypes
@given(case=cases(SHAPES, packs=packs(partly_used=False), V=classes), options=options)
def test_is_as_accurate_as_plain_pytorch(
    backend: str, dtype: torch.dtype, case: Case, options: dict[str, Any]
) -> None:
    check_accuracy(case.tensors(dtype), options)


@pytest.mark.slow
@dtypes
@settings(max_examples=200)
@given(case=cases(SHAPES, packs=packs(partly_used=False), V=st.integers(1, 3000)), options=options)
def test_is_as_accurate_as_plain_pytorch_on_many_shapes(
    backend: str, dtype: torch.dtype, case: Case, options: dict[str, Any]
) -> None:
    check_accuracy(case.tensors(dtype), options)


@dtypes
def test_a_whole_vocabulary(backend: str, dtype: torch.dtype) -> None:
    check_accuracy(logits(dtype, 9, classes=30522), {"temperature": 2.0})


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=["float32", "bfloat16"])
def test_huge_logits_stay_finite(backend: str, dtype: torch.dtype) -> None:
    """Logits in the thousands: exp overflows unless the maximum is taken off first."""
    tensors = {name: 2000 * t for name, t in logits(dtype, 20).items()}
    check_accuracy(tensors, {"temperature": 1.0})


@pytest.mark.parametrize("also_student", [False, True])
def test_a_class_ruled_out_by_the_teacher_adds_nothing(backend: str, also_student: bool) -> None:
    """A teacher's logit of -inf is probability 0, and 0 * log 0 is 0; a masked class is not a poisoned loss."""
    tensors = logits(torch.float32, 6, classes=5)
    smaller = {name: t[:, :4].contiguous() for name, t in tensors.items()}
    tensors["teacher"][:, 4] = -math.inf
    if also_student:
        tensors["student"][:, 4] = -math.inf
        wanted = reference.evaluate(reference.logits_kl, smaller, ("student",), dtype=torch.float64)
        wanted.grads["student"] = torch.nn.functional.pad(wanted.grads["student"], (0, 1))
    else:
        tensors["teacher"][:, 4] = -1e4  # the same in float64, without 0 * inf
        wanted = reference.evaluate(reference.logits_kl, tensors, ("student",), dtype=torch.float64)
        tensors["teacher"][:, 4] = -math.inf
    got = reference.evaluate(ops.logits_kl, tensors, ("student",))
    for (name, mine), (_, truth) in zip(got.items(), wanted.items(), strict=True):
        assert relative_error(mine, truth) <= 1e-6, name


@pytest.mark.parametrize("teacher_logit", [0.0, -40.0, -80.0])
def test_a_class_ruled_out_by_the_student_alone_is_infinitely_wrong(
    backend: str, teacher_logit: float
) -> None:
    """However improbable the teacher finds it."""
    tensors = logits(torch.float32, 6)
    tensors["student"][2, 3] = -math.inf
    tensors["teacher"][2, 3] = teacher_logit
    assert ops.logits_kl(**tensors).item() == math.inf


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_row_without_any_possible_class_is_nan(backend: str, side: str) -> None:
    """softmax of nothing but -inf is 0/0, as in torch; a silent number would hide a broken mask."""
    tensors = logits(torch.float32, 6)
    tensors[side][4] = -math.inf
    assert math.isnan(reference.logits_kl(**tensors).item())
    assert not math.isfinite(ops.logits_kl(**tensors).item())


@dtypes
def test_equal_logits_give_a_loss_of_nothing(backend: str, dtype: torch.dtype) -> None:
    teacher = logits(dtype, 50)["teacher"]
    outcome = reference.evaluate(
        ops.logits_kl, {"student": teacher.clone(), "teacher": teacher}, ("student",)
    )
    for name, value in outcome.items():
        assert reference.largest(value) <= 1e-6, name


@pytest.mark.parametrize("temperature", [0.5, 2.0, 10.0])
def test_temperature_multiplies_by_its_square(backend: str, temperature: float) -> None:
    """Hinton et al.: KL(t / T, s / T) * T^2, so that gradients keep their size when T changes."""
    tensors = logits(torch.float32, 12)
    cooled = {name: t / temperature for name, t in tensors.items()}
    loss = ops.logits_kl(**tensors, temperature=temperature)
    assert relative_error(loss, ops.logits_kl(**cooled).double() * temperature**2) <= 1e-5


@pytest.mark.parametrize("reduction", ["batchmean", "sum"])
def test_no_row_is_a_loss_of_zero(backend: str, reduction: str) -> None:
    outcome = reference.evaluate(
        lambda **x: ops.logits_kl(**x, reduction=reduction), logits(torch.float32, 0), ("student",)
    )
    assert outcome.out.item() == 0.0


@pytest.mark.parametrize("backend", ["eager", "cpp"], indirect=True)
@pytest.mark.parametrize("vanishing", [-40.0, -70.0, -100.0])
def test_what_the_student_gives_counts_where_the_teacher_has_vanished(backend: str, vanishing: float) -> None:
    """KL of (1, 0) from (1 - p, p) is -log(1 - p), however far below float32 the 0 is."""
    student, teacher = torch.tensor([[0.0, -9.0]]), torch.tensor([[0.0, vanishing]])
    loss = ops.logits_kl(student, teacher)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-9.0)), rel=1e-3)
