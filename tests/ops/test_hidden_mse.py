"""hidden_mse: with and without projection, gradients to student, weight and bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertxfer_fast import ops

from . import reference
from .cases import DTYPES, Case, LossContract, Pack, cases, dtypes, packs, wrong, wrong_tensor
from .reference import assert_as_accurate_as_pytorch, relative_error

#: Inputs of each way to call the op, as letters of their dimensions.
CALLS = {
    "plain": {"student": "Ts", "teacher": "Ts"},
    "weight": {"student": "Ts", "teacher": "Tt", "weight": "ts"},
    "weight and bias": {"student": "Ts", "teacher": "Tt", "weight": "ts", "bias": "t"},
}
calls = pytest.mark.parametrize("call", CALLS)


def drawn(call: str, **options: Any) -> Any:
    return cases(CALLS[call], packs=packs(partly_used=False, **options))


def hidden_states(
    dtype: torch.dtype, tokens: int, call: str, *, student: int = 52, teacher: int = 96, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"T": tokens, "s": student, "t": teacher}
    built = {}
    for name, letters in CALLS[call].items():
        values = torch.randn([sizes[letter] for letter in letters], generator=generator)
        built[name] = (values * student**-0.5 if name == "weight" else values).to(dtype)
    return built


def exact_projection(tensors: dict[str, Tensor]) -> Tensor:
    student = tensors["student"].double()
    out = student @ tensors["weight"].double().T if "weight" in tensors else student
    return out + tensors["bias"].double() if "bias" in tensors else out


WRONG_STATES = [
    *wrong_tensor("student", 2),
    *wrong_tensor("teacher", 2, pair="student"),
    wrong("teacher with fewer tokens", "teacher", {"teacher": lambda t: t[:-1]}),
    wrong("widths differ without weight", "weight|teacher", {"teacher": lambda t: t[:, :-1]}),
    wrong("bias without weight", "bias", {"bias": torch.zeros(52)}),
    wrong("reduction unknown", "reduction", {"reduction": "none"}),
    wrong("reduction batchmean", "reduction", {"reduction": "batchmean"}),
    wrong("reduction None", "reduction", {"reduction": None}),
]
WRONG_PROJECTION = [
    # None is a meaning of its own for these two
    *wrong_tensor("weight", 2, pair="student")[1:],
    *wrong_tensor("bias", 1, pair="student")[1:],
    wrong("weight transposed", "weight", {"weight": lambda t: t.T}),
    wrong("weight too narrow", "weight", {"weight": lambda t: t[:, 1:]}),
    wrong("bias too short", "bias", {"bias": lambda t: t[1:]}),
    wrong("weight of another dtype", "weight", {"weight": lambda t: t.bfloat16()}),
    wrong("bias of another dtype", "bias", {"bias": lambda t: t.half()}),
    wrong("teacher with more tokens", "teacher", {"teacher": lambda t: torch.cat([t, t])}),
]


class HiddenContract(LossContract):
    operator = "hidden_mse"
    function = staticmethod(ops.hidden_mse)
    plain = staticmethod(reference.hidden_mse)
    teacher = ("teacher",)
    call_kind: str

    @pytest.fixture(params=["mean", "sum"])
    def variant(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"reduction": request.param}

    def inputs(self, dtype: torch.dtype, pack: Pack) -> dict[str, Tensor]:
        return hidden_states(dtype, pack.tokens, self.call_kind)

    def packing(self, pack: Pack) -> dict[str, Any]:
        return {}


class TestContractPlain(HiddenContract):
    call_kind = "plain"
    student = ("student",)

    @pytest.fixture(params=WRONG_STATES)
    def bad_argument(self, request: pytest.FixtureRequest) -> Any:
        return request.param


class TestContractProjected(HiddenContract):
    call_kind = "weight and bias"
    autocast_error = 2e-2  # the projection is taken in bfloat16, as torch.nn.functional.linear would
    uses_library_products = True  # for the gradient of the weight
    student = ("student", "weight", "bias")

    @pytest.fixture(params=WRONG_PROJECTION)
    def bad_argument(self, request: pytest.FixtureRequest) -> Any:
        return request.param


def check_accuracy(tensors: dict[str, Tensor], reduction: str) -> None:
    exact = reference.hidden_mse(**{name: t.double() for name, t in tensors.items()}, reduction=reduction)
    rounding = 0.5 * torch.finfo(tensors["student"].dtype).eps if "weight" in tensors else 0.0
    assert_as_accurate_as_pytorch(
        lambda **x: ops.hidden_mse(**x, reduction=reduction),
        lambda **x: reference.hidden_mse(**x, reduction=reduction),
        tensors,
        tuple(name for name in tensors if name != "teacher"),
        # A product of half-precision matrices is rounded to their dtype, as torch.nn.functional.linear's.
        floors={"result": rounding * exact.item()},
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


# Half precision without a projection has nothing to round before the difference; with one, see check_accuracy.
exact_calls = pytest.mark.parametrize(
    ("call", "dtype"),
    [*((call, torch.float32) for call in CALLS), *(("plain", dtype) for dtype in DTYPES[1:])],
)


@exact_calls
def test_loss_is_accumulated_in_float32(backend: str, dtype: torch.dtype, call: str) -> None:
    tensors = hidden_states(dtype, 700, call)
    exact = reference.hidden_mse(**{name: t.double() for name, t in tensors.items()})
    assert relative_error(ops.hidden_mse(**tensors), exact) <= 2e-6


@exact_calls
def test_tiny_losses_keep_their_digits(backend: str, dtype: torch.dtype, call: str) -> None:
    """Student close to the teacher by 1 down to 1e-4: no shortcut through ||a||^2 - 2ab + ||b||^2."""
    for exponent in range(9):
        tensors = hidden_states(dtype, 60, call)
        projected = exact_projection(tensors)
        noise = 10 ** (-exponent / 2) * torch.randn(
            projected.shape, generator=torch.Generator().manual_seed(3)
        )
        tensors["teacher"] = (projected + noise).to(dtype)
        exact = reference.hidden_mse(**{name: t.double() for name, t in tensors.items()})
        assert relative_error(ops.hidden_mse(**tensors), exact) <= 1e-3, exponent


@calls
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_token_is_a_loss_of_zero(backend: str, call: str, reduction: str) -> None:
    tensors = hidden_states(torch.float32, 0, call)
    outcome = reference.evaluate(
        lambda **x: ops.hidden_mse(**x, reduction=reduction),
        tensors,
        tuple(n for n in tensors if n != "teacher"),
    )
    for name, value in outcome.items():
        assert not value.any(), name


def test_student_and_teacher_may_differ_in_dtype(backend: str) -> None:
    for student in DTYPES:
        for teacher in DTYPES:
            tensors = hidden_states(student, 40, "weight and bias")
            tensors["teacher"] = tensors["teacher"].to(teacher)
            exact = reference.hidden_mse(**{name: t.double() for name, t in tensors.items()})
            allowed = (
                2e-6 if student == torch.float32 else 1e-3
            )  # the product is rounded to the student's dtype
            assert relative_error(ops.hidden_mse(**tensors), exact) <= allowed, (student, teacher)


def test_autocast_takes_half_precision_states_and_float32_projection(backend: str) -> None:
    """What a trainer hands over under autocast: activations of a linear layer, parameters in float32."""
    tensors = hidden_states(torch.float32, 80, "weight and bias")
    tensors["student"] = tensors["student"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        outcome = reference.evaluate(ops.hidden_mse, tensors, ("student", "weight", "bias"))
    exact = reference.evaluate(
        reference.hidden_mse, tensors, ("student", "weight", "bias"), dtype=torch.float64
    )
    for (name, got), (_, truth) in zip(outcome.items(), exact.items(), strict=True):
        assert relative_error(got, truth) <= 2e-2, name
    assert [g.dtype for g in outcome.grads.values()] == [torch.bfloat16, torch.float32, torch.float32]
