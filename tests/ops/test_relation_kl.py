"""relation_kl: MiniLMv2's relations at every shape and layout, for heads that need not be the model's."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertxfer_fast import ops

from . import reference
from .cases import (
    WRONG_CU_SEQLENS,
    WRONG_MAX_SEQLEN,
    WRONG_SEQUSED,
    Case,
    LossContract,
    MaxSeqlenContract,
    Pack,
    cases,
    dtypes,
    packs,
    pair_options,
    wrong,
    wrong_tensor,
)
from .reference import assert_as_accurate_as_pytorch, evaluate, kl_floor, largest, relative_error

HEADS = 4
SHAPES = {"x_student": "Ts", "x_teacher": "Tt"}
relation_heads = st.sampled_from((1, 2, 3, 4, 6))
#: What all of `relation_heads` divide.
shared = {letter: st.integers(1, 12).map(lambda n: 12 * n) for letter in "st"}


def states(
    dtype: torch.dtype, pack: Pack, *, student: int = 24, teacher: int = 40, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    widths = {"x_student": student, "x_teacher": teacher}
    return {
        name: torch.randn(pack.tokens, width, generator=generator).to(dtype) for name, width in widths.items()
    }


class TestContract(LossContract, MaxSeqlenContract):
    operator = "relation_kl"
    function = staticmethod(partial(ops.relation_kl, heads=HEADS))
    plain = staticmethod(partial(reference.relation_kl, heads=HEADS))
    student = ("x_student",)
    teacher = ("x_teacher",)

    def inputs(self, dtype: torch.dtype, pack: Pack) -> dict[str, Tensor]:
        return states(dtype, pack)

    @pytest.fixture(params=[1, HEADS], ids=["1 head", "4 heads"])
    def variant(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"heads": request.param}

    @pytest.fixture(
        params=[
            *wrong_tensor("x_student", 2),
            *wrong_tensor("x_teacher", 2, pair="x_student"),
            wrong("x_teacher with fewer tokens", "x_teacher", {"x_teacher": lambda t: t[:-1]}),
            wrong("heads that divide neither width", "heads", {"heads": 7}),
            wrong("heads that divide the teacher's width only", "heads", {"heads": 5}),
            wrong("heads that divide the student's width only", "heads", {"heads": 3}),
            wrong("no head", "heads", {"heads": 0}),
            wrong("heads negative", "heads", {"heads": -4}),
            wrong("heads a float", "heads", {"heads": 4.0}),
            wrong("heads a bool", "heads", {"heads": True}),
            wrong("heads None", "heads", {"heads": None}),
            wrong("no head dim", "heads", dict.fromkeys(SHAPES, lambda t: t[:, :0])),
            wrong(
                "head dim 257", "heads", dict.fromkeys(SHAPES, lambda t: t.repeat(1, 50)[:, : 257 * HEADS])
            ),
            wrong("reduction unknown", "reduction", {"reduction": "batchmean"}),
            wrong("reduction None", "reduction", {"reduction": None}),
            wrong("scale_student a string", "scale_student", {"scale_student": "big"}),
            wrong("scale_teacher a tensor of many", "scale_teacher", {"scale_teacher": torch.ones(2)}),
            *WRONG_CU_SEQLENS,
            *WRONG_MAX_SEQLEN,
            *WRONG_SEQUSED,
        ]
    )
    def bad_argument(self, request: pytest.FixtureRequest) -> Any:
        return request.param


def check_accuracy(case: Case, dtype: torch.dtype, options: dict[str, Any]) -> None:
    rows = sum(case.pack.used or case.pack.lengths) * options["heads"]
    packing = case.pack.packing
    assert_as_accurate_as_pytorch(
        lambda **x: ops.relation_kl(**x, **packing, **options),
        lambda **x: reference.relation_kl(**x, **packing, **options),
        case.tensors(dtype),
        ("x_student",),
        floors=kl_floor(rows, options.get("reduction", "mean")),
    )


@dtypes
@given(case=cases(SHAPES, **shared), options=pair_options, heads=relation_heads)
def test_is_as_accurate_as_plain_pytorch(
    backend: str, dtype: torch.dtype, case: Case, options: dict[str, Any], heads: int
) -> None:
    check_accuracy(case, dtype, {"heads": heads, **options})


@pytest.mark.slow
@dtypes
@settings(max_examples=200)
@given(
    case=cases(SHAPES, packs=packs(max_tokens=1500, max_pairs=400_000), **shared),
    options=pair_options,
    heads=relation_heads,
)
def test_is_as_accurate_as_plain_pytorch_on_many_shapes(
    backend: str, dtype: torch.dtype, case: Case, options: dict[str, Any], heads: int
) -> None:
    check_accuracy(case, dtype, {"heads": heads, **options})


@dtypes
@pytest.mark.parametrize("heads", [12, 48])
def test_widths_of_real_models(backend: str, dtype: torch.dtype, heads: int) -> None:
    """MiniLM beside BERT-base, with the model's heads and with the paper's 48."""
    pack = Pack([12, 128, 0, 1, 64])
    shapes = {"x_student": (pack.tokens, 384), "x_teacher": (pack.tokens, 768)}
    check_accuracy(Case(pack, shapes, dict.fromkeys(shapes, "fused"), seed=1), dtype, {"heads": heads})


def test_is_the_map_loss_of_x_with_itself(backend: str) -> None:
    pack = Pack([5, 0, 115, 1])
    tensors = states(torch.float32, pack)
    student, teacher = (t.unflatten(1, (HEADS, -1)) for t in tensors.values())
    same = ops.attention_map_loss(student, student, teacher, teacher, pack.cu_seqlens)
    torch.testing.assert_close(ops.relation_kl(**tensors, cu_seqlens=pack.cu_seqlens, heads=HEADS), same)


@dtypes
def test_equal_relations_give_a_loss_of_nothing(backend: str, dtype: torch.dtype) -> None:
    pack = Pack([50, 1, 9])
    tensors = states(dtype, pack, teacher=24)
    tensors["x_student"] = tensors["x_teacher"].clone()
    outcome = evaluate(lambda **x: ops.relation_kl(**x, **pack.packing, heads=HEADS), tensors, ("x_student",))
    for name, value in outcome.items():
        assert largest(value) <= 1e-6, name


@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_valid_pair_is_a_loss_of_zero(backend: str, sizes: list[int], reduction: str) -> None:
    pack = Pack(sizes)
    outcome = evaluate(
        lambda **x: ops.relation_kl(**x, cu_seqlens=pack.cu_seqlens, heads=HEADS, reduction=reduction),
        states(torch.float32, pack),
        ("x_student",),
    )
    assert outcome.out.item() == 0.0


def test_tokens_that_do_not_count_get_no_gradient(backend: str) -> None:
    for pack in (Pack([5, 0, 115, 1], [4, 0, 100, 1]), Pack([4, 6], [0, 0])):
        grad = evaluate(
            lambda pack=pack, **x: ops.relation_kl(**x, **pack.packing, heads=HEADS),
            states(torch.float32, pack),
            ("x_student",),
        ).grads["x_student"]
        assert not grad[pack.unused].any()
        assert bool(grad.any()) == (sum(pack.used or []) > 0)


def test_right_padded_batch_is_a_pack_with_seqused(backend: str) -> None:
    used, length = [7, 0, 40, 13], 40
    padded, packed = Pack([length] * len(used), used), Pack(used)
    tensors = states(torch.float32, padded)
    kept = {name: t[~padded.unused] for name, t in tensors.items()}
    loss = ops.relation_kl(**tensors, **padded.packing, heads=HEADS)
    assert relative_error(loss, ops.relation_kl(**kept, **packed.packing, heads=HEADS).double()) <= 1e-6
