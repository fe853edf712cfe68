"""attention_map_loss: KL and MSE of softmaxed maps at every shape and layout, and where the softmax is sharp."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings

from bertxfer_fast import ops

from . import reference
from .cases import (
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
from .reference import assert_as_accurate_as_pytorch, kl_floor, relative_error

kinds = pytest.mark.parametrize("kind", ["kl", "mse"])


class TestContract(AttentionPairContract):
    operator = "attention_map_loss"
    function = staticmethod(ops.attention_map_loss)
    plain = staticmethod(reference.attention_map_loss)

    @pytest.fixture(params=["kl", "mse"])
    def variant(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"kind": request.param}

    @pytest.fixture(
        params=[
            *AttentionPairContract.wrong_arguments(),
            wrong("kind unknown", "kind", {"kind": "js"}),
            wrong("kind None", "kind", {"kind": None}),
        ]
    )
    def bad_argument(self, request: pytest.FixtureRequest) -> Any:
        return request.param


def check_accuracy(case: Case, dtype: torch.dtype, options: dict[str, Any]) -> None:
    packing = case.pack.packing
    rows = sum(case.pack.used or case.pack.lengths) * case.shapes["q_student"][1]
    floors = kl_floor(rows, options.get("reduction", "mean")) if options["kind"] == "kl" else None
    assert_as_accurate_as_pytorch(
        lambda **x: ops.attention_map_loss(**x, **packing, **options),
        lambda **x: reference.attention_map_loss(**x, **packing, **options),
        case.tensors(dtype),
        ("q_student", "k_student"),
        floors=floors,
    )


@kinds
@dtypes
@given(case=cases(PAIR_SHAPES), options=pair_options)
def test_is_as_accurate_as_plain_pytorch(
    backend: str, dtype: torch.dtype, kind: str, case: Case, options: dict[str, Any]
) -> None:
    check_accuracy(case, dtype, {"kind": kind, **options})


@pytest.mark.slow
@kinds
@dtypes
@settings(max_examples=200)
@given(case=cases(PAIR_SHAPES, packs=packs(max_tokens=1500, max_pairs=400_000)), options=pair_options)
def test_is_as_accurate_as_plain_pytorch_on_many_shapes(
    backend: str, dtype: torch.dtype, kind: str, case: Case, options: dict[str, Any]
) -> None:
    check_accuracy(case, dtype, {"kind": kind, **options})


@kinds
@dtypes
def test_tinybert_heads_on_a_full_batch(backend: str, dtype: torch.dtype, kind: str) -> None:
    pack = Pack([12, 128, 0, 300, 257, 1, 64, 33])
    shapes = {name: (pack.tokens, 12, 26 if "student" in name else 64) for name in PAIR}
    check_accuracy(Case(pack, shapes, dict.fromkeys(PAIR, "fused"), seed=1), dtype, {"kind": kind})


@kinds
@dtypes
@pytest.mark.parametrize("dims", [(256, 256), (1, 256), (256, 3)], ids=str)
def test_the_widest_heads(backend: str, dtype: torch.dtype, kind: str, dims: tuple[int, int]) -> None:
    pack = Pack([12, 0, 140, 1])
    shapes = {name: (pack.tokens, 2, dims["teacher" in name]) for name in PAIR}
    check_accuracy(Case(pack, shapes, dict.fromkeys(PAIR, "fused"), seed=1), dtype, {"kind": kind})


@kinds
def test_sharp_maps_stay_finite(backend: str, kind: str) -> None:
    """Scores in the thousands, where exp overflows unless the maximum is taken off first."""
    pack = Pack([40, 7])
    tensors = {name: 40 * t for name, t in attention_pair(torch.float32, pack).items()}
    assert_as_accurate_as_pytorch(
        lambda **x: ops.attention_map_loss(**x, **pack.packing, kind=kind),
        lambda **x: reference.attention_map_loss(**x, **pack.packing, kind=kind),
        tensors,
        ("q_student", "k_student"),
    )


@kinds
@dtypes
@pytest.mark.parametrize("above", [(14, 0), (0, 20), (20, 14), (60, 60), (400, 150)], ids=str)
def test_a_late_key_far_above_the_others(
    backend: str, dtype: torch.dtype, kind: str, above: tuple[int, int]
) -> None:
    """Weights may start from a score that is not the highest, unless that would lose digits or overflow."""
    pack = Pack([100, 3])
    tensors = attention_pair(dtype, pack)
    for side, score in zip(("student", "teacher"), above, strict=True):
        queries, keys = tensors[f"q_{side}"], tensors[f"k_{side}"]
        queries[..., 0] = 4.0
        keys[70, :, 0] += score * queries.shape[-1] ** 0.5 / 4.0  # with the default scale: so many nats
    assert_as_accurate_as_pytorch(
        lambda **x: ops.attention_map_loss(**x, **pack.packing, kind=kind),
        lambda **x: reference.attention_map_loss(**x, **pack.packing, kind=kind),
        tensors,
        ("q_student", "k_student"),
        floors=kl_floor(pack.tokens * 3, "mean") if kind == "kl" else None,
    )


@kinds
def test_a_shift_of_all_scores_of_a_row_changes_nothing(backend: str, kind: str) -> None:
    """softmax(s + c) = softmax(s): adding one vector to all keys of the student moves neither loss nor gradient."""
    pack = Pack([33, 12])
    tensors = attention_pair(torch.float32, pack)
    shifted = {**tensors, "k_student": tensors["k_student"] + torch.randn(1, 3, 26)}

    def loss(**x: torch.Tensor) -> torch.Tensor:
        return ops.attention_map_loss(**x, **pack.packing, kind=kind)

    plain, moved = (reference.evaluate(loss, x, ("q_student", "k_student")) for x in (tensors, shifted))
    for (name, a), (_, b) in zip(plain.items(), moved.items(), strict=True):
        if name != "gradient of k_student":  # the queries' gradient sums to zero over shifted keys
            assert relative_error(b, a.double()) <= 1e-4, name


@kinds
@dtypes
def test_equal_maps_give_a_loss_of_nothing(backend: str, dtype: torch.dtype, kind: str) -> None:
    """A KL may round below zero by a few float32 roundings, no more; its gradient vanishes."""
    pack = Pack([50, 1, 9])
    tensors = attention_pair(dtype, pack, student=64)
    tensors |= {
        name.replace("teacher", "student"): t.clone() for name, t in tensors.items() if "teacher" in name
    }
    outcome = reference.evaluate(
        lambda **x: ops.attention_map_loss(**x, **pack.packing, kind=kind),
        tensors,
        ("q_student", "k_student"),
    )
    for name, value in outcome.items():
        assert reference.largest(value) <= 1e-6, name


@kinds
@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 0]], ids=str)
def test_no_valid_pair_is_a_loss_of_zero(backend: str, kind: str, sizes: list[int]) -> None:
    pack = Pack(sizes)
    outcome = reference.evaluate(
        lambda **x: ops.attention_map_loss(**x, **pack.packing, kind=kind),
        attention_pair(torch.float32, pack),
        ("q_student", "k_student"),
    )
    assert outcome.out.item() == 0.0


@kinds
def test_right_padded_batch_is_a_pack_with_seqused(backend: str, kind: str) -> None:
    used, length = [7, 0, 40, 13], 40
    padded, packed = Pack([length] * len(used), used), Pack(used)
    tensors = attention_pair(torch.float32, padded)
    kept = {name: t[~padded.unused] for name, t in tensors.items()}
    loss = ops.attention_map_loss(**tensors, **padded.packing, kind=kind)
    assert relative_error(loss, ops.attention_map_loss(**kept, **packed.packing, kind=kind).double()) <= 1e-6
