"""attention_score_mse: exact at every shape, layout and method, and for losses far below the scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings

from bertxfer_fast import ops

from . import reference
from .cases import (
    DTYPES,
    PAIR,
    PAIR_SHAPES,
    AttentionPairContract,
    Case,
    Pack,
    attention_pair,
    cases,
    dtypes,
    packs,
    pair_options,
    wrong,
)
from .reference import assert_as_accurate_as_pytorch, evaluate, largest, relative_error

METHODS = ("gram", "tiled", "auto")
methods = pytest.mark.parametrize("method", METHODS)


class TestContract(AttentionPairContract):
    operator = "attention_score_mse"
    function = staticmethod(ops.attention_score_mse)
    plain = staticmethod(reference.attention_score_mse)
    irrelevant = ("method",)

    @pytest.fixture(params=METHODS)
    def variant(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"method": request.param}

    @pytest.fixture(
        params=[
            *AttentionPairContract.wrong_arguments(),
            wrong("method unknown", "method", {"method": "quick"}),
            wrong("method None", "method", {"method": None}),
        ]
    )
    def bad_argument(self, request: pytest.FixtureRequest) -> Any:
        return request.param


def check_accuracy(case: Case, dtype: torch.dtype, method: str, options: dict[str, Any]) -> None:
    packing = case.pack.packing
    assert_as_accurate_as_pytorch(
        lambda **x: ops.attention_score_mse(**x, **packing, **options, method=method),
        lambda **x: reference.attention_score_mse(**x, **packing, **options),
        case.tensors(dtype),
        ("q_student", "k_student"),
    )


@methods
@dtypes
@given(case=cases(PAIR_SHAPES), options=pair_options)
def test_is_as_accurate_as_plain_pytorch(
    backend: str, dtype: torch.dtype, method: str, case: Case, options: dict[str, Any]
) -> None:
    check_accuracy(case, dtype, method, options)


@pytest.mark.slow
@methods
@dtypes
@settings(max_examples=200)
@given(case=cases(PAIR_SHAPES, packs=packs(max_tokens=1500, max_pairs=400_000)), options=pair_options)
def test_is_as_accurate_as_plain_pytorch_on_many_shapes(
    backend: str, dtype: torch.dtype, method: str, case: Case, options: dict[str, Any]
) -> None:
    check_accuracy(case, dtype, method, options)


@methods
@dtypes
def test_tinybert_heads_on_a_full_batch(backend: str, dtype: torch.dtype, method: str) -> None:
    """12 heads, 26 against 64 dims, sequences on both sides of where "auto" changes its method."""
    pack = Pack([12, 128, 0, 300, 257, 1, 64, 33])
    shapes = {name: (pack.tokens, 12, 26 if "student" in name else 64) for name in PAIR}
    check_accuracy(Case(pack, shapes, dict.fromkeys(PAIR, "fused"), seed=1), dtype, method, {})


@methods
@dtypes
@pytest.mark.parametrize("dims", [(256, 256), (1, 256), (256, 3)], ids=str)
def test_the_widest_heads(backend: str, dtype: torch.dtype, method: str, dims: tuple[int, int]) -> None:
    pack = Pack([12, 0, 140, 1])
    shapes = {name: (pack.tokens, 2, dims["teacher" in name]) for name in PAIR}
    check_accuracy(Case(pack, shapes, dict.fromkeys(PAIR, "fused"), seed=1), dtype, method, {})


@methods
@dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_is_accumulated_in_float32(
    backend: str, dtype: torch.dtype, method: str, reduction: str
) -> None:
    """Half-precision inputs are exact numbers; only the gradients may be rounded to their dtype."""
    pack = Pack([40, 128, 300])
    tensors = attention_pair(dtype, pack)
    loss = ops.attention_score_mse(**tensors, **pack.packing, method=method, reduction=reduction)
    exact = reference.attention_score_mse(
        **{name: t.double() for name, t in tensors.items()}, **pack.packing, reduction=reduction
    )
    assert relative_error(loss, exact) <= 2e-6


@methods
@dtypes
@pytest.mark.parametrize("exponent", range(0, 9))
@pytest.mark.parametrize("length", [9, 40, 300])
def test_tiny_losses_keep_their_digits(
    backend: str, dtype: torch.dtype, method: str, exponent: int, length: int
) -> None:
    """||S - T||^2 / ||S||^2 = 10^-exponent. Cancellation in float32 Gram sums is off by percents at 1e-6.

    Gradients are as small as S - T itself, so they lose half as many digits, in plain PyTorch too.
    """
    generator = torch.Generator().manual_seed(exponent)
    pack = Pack([length, 5])
    teacher = {k: torch.randn(pack.tokens, 2, 32, generator=generator) for k in ("q_teacher", "k_teacher")}
    amplitude = 10 ** (-exponent / 2) / 2**0.5
    student = {
        name.replace("teacher", "student"): t + amplitude * torch.randn(t.shape, generator=generator)
        for name, t in teacher.items()
    }
    tensors = {name: t.to(dtype) for name, t in {**student, **teacher}.items()}
    exact = evaluate(
        lambda **x: reference.attention_score_mse(**x, **pack.packing), tensors, PAIR[:2], dtype=torch.float64
    )
    scale = 1.0 / (largest(exact.grads["q_student"]) or 1.0)  # into float16's range
    got = evaluate(
        lambda **x: ops.attention_score_mse(**x, **pack.packing, method=method),
        tensors,
        PAIR[:2],
        upstream=lambda loss: scale * torch.ones_like(loss),
    )
    assert relative_error(got.out, exact.out) <= 1e-3
    for name, grad in got.grads.items():
        allowed = 4 * torch.finfo(dtype).eps + 4e-6 / amplitude
        assert relative_error(grad, scale * exact.grads[name]) <= allowed, f"gradient of {name}"


@methods
@dtypes
@pytest.mark.parametrize("length", [1, 9, 300])
def test_equal_inputs_give_a_loss_of_nothing(
    backend: str, dtype: torch.dtype, method: str, length: int
) -> None:
    """Rounding may leave a trace of ||S||^2, never one below zero: sqrt or log of the loss must not be NaN."""
    for seed in range(20):
        pack = Pack([length, 3])
        tensors = attention_pair(dtype, pack, student=64, seed=seed)
        tensors |= {"q_student": tensors["q_teacher"].clone(), "k_student": tensors["k_teacher"].clone()}
        loss = ops.attention_score_mse(**tensors, cu_seqlens=pack.cu_seqlens, method=method).item()
        assert 0.0 <= loss <= 1e-10  # the mean of the squared scores is about 1


@dtypes
def test_methods_agree(backend: str, dtype: torch.dtype) -> None:
    pack = Pack([300, 31, 0, 8])
    outcomes = [
        evaluate(
            lambda m=method, **x: ops.attention_score_mse(**x, **pack.packing, method=m),
            attention_pair(dtype, pack),
            ("q_student", "k_student"),
        )
        for method in METHODS
    ]
    for other in outcomes[1:]:
        for (name, a), (_, b) in zip(outcomes[0].items(), other.items(), strict=True):
            assert relative_error(a, b.double()) <= 4 * torch.finfo(a.dtype).eps + 5e-6, name


@methods
def test_right_padded_batch_is_a_pack_with_seqused(backend: str, method: str) -> None:
    """The [B, L, H, D] view of DESIGN section 4 gives the loss of the same tokens packed."""
    used, length = [7, 0, 40, 13], 40
    padded = Pack([length] * len(used), used)
    tensors = attention_pair(torch.float32, padded)
    packed = Pack(used)
    kept = {name: t[~padded.unused] for name, t in tensors.items()}
    loss = ops.attention_score_mse(**tensors, **padded.packing, method=method)
    assert (
        relative_error(loss, ops.attention_score_mse(**kept, **packed.packing, method=method).double()) < 1e-6
    )


@methods
@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_valid_pair_is_a_loss_of_zero(backend: str, method: str, sizes: list[int], reduction: str) -> None:
    pack = Pack(sizes)
    outcome = evaluate(
        lambda **x: ops.attention_score_mse(
            **x, cu_seqlens=pack.cu_seqlens, method=method, reduction=reduction
        ),
        attention_pair(torch.float32, pack),
        ("q_student", "k_student"),
    )
    assert outcome.out.item() == 0.0


def test_nothing_used_gives_zero_gradients(backend: str) -> None:
    pack = Pack([4, 6], [0, 0])
    outcome = evaluate(
        lambda **x: ops.attention_score_mse(**x, **pack.packing),
        attention_pair(torch.float32, pack),
        ("q_student", "k_student"),
    )
    for name, value in outcome.items():
        assert not value.any(), name


def test_student_and_teacher_may_differ_in_dtype(backend: str) -> None:
    pack = Pack([20, 33])
    for student in DTYPES:
        for teacher in DTYPES:
            tensors = attention_pair(student, pack)
            tensors |= {name: t.to(teacher) for name, t in tensors.items() if "teacher" in name}
            exact = reference.attention_score_mse(
                **{name: t.double() for name, t in tensors.items()}, cu_seqlens=pack.cu_seqlens
            )
            loss = ops.attention_score_mse(**tensors, cu_seqlens=pack.cu_seqlens)
            assert relative_error(loss, exact) <= 2e-6, (student, teacher)


@pytest.mark.parametrize("method", ["gram", "tiled"])
@pytest.mark.parametrize("length", [100, 300, 1500])
def test_gradients_of_tiny_losses(backend: str, method: str, length: int) -> None:
    """Where the loss is 1e-4 of the scores' square, the Gram path computes everything again; gradients must follow."""
    generator = torch.Generator().manual_seed(length)
    teacher = [torch.randn(length, 2, 26, generator=generator) for _ in range(2)]
    student = [(t + 1e-2 * torch.randn(t.shape, generator=generator)).requires_grad_() for t in teacher]
    cu_seqlens = torch.tensor([0, length], dtype=torch.int32)
    loss = ops.attention_score_mse(*student, *teacher, cu_seqlens, method=method)
    exact = [t.detach().double().requires_grad_() for t in student]
    truth = reference.attention_score_mse(*exact, *(t.double() for t in teacher), cu_seqlens)
    for grad, wanted in zip(
        torch.autograd.grad(loss, student), torch.autograd.grad(truth, exact), strict=True
    ):
        assert relative_error(grad, wanted) < 1e-3
