"""Same inputs, same bits, whatever the number of threads: on shapes that kernels really share out among them.

The contracts in cases.py ask the same of every option, on tensors that are often too small to be worth a thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch.registry import OPS

from .cases import Pack, attention_pair, dtypes, threads
from .reference import evaluate, uneven
from .test_hidden_mse import hidden_states
from .test_linear_logits_kl import STUDENT as LINEAR_STUDENT
from .test_linear_logits_kl import states as linear_states
from .test_pool_features import MODES

#: Ragged, so that threads finish at different times and in a different order each time.
PACK = Pack([1, 300, 0, 17, 128, 90, 250, 64, 5, 33, 180, 129, 77, 256, 2, 48])
WIDTH = 312
PACKED = {"cu_seqlens": PACK.cu_seqlens}
PARALLEL_H = Path(__file__).resolve().parents[2] / "csrc" / "common" / "cpu" / "parallel.h"


def pair(dtype: torch.dtype) -> dict[str, Tensor]:
    return attention_pair(dtype, PACK, heads=12)


def states(dtype: torch.dtype) -> dict[str, Tensor]:
    return hidden_states(dtype, PACK.tokens, "plain", student=WIDTH)


def relations(dtype: torch.dtype) -> dict[str, Tensor]:
    return {f"x_{name}": t for name, t in states(dtype).items()}


def attention(dtype: torch.dtype) -> dict[str, Tensor]:
    q, k, _, _ = pair(dtype).values()
    return {"q": q, "k": k, "v": k.flip(0)}


def pooled(mode: str) -> Callable[..., Tensor]:
    def run(student: Tensor, teacher: Tensor, layer_weights: Tensor) -> Tensor:
        return ops.pool_features(
            [student, teacher], **PACKED, mode=mode, layer_weights=layer_weights, normalize=True
        )

    return run


def layers(dtype: torch.dtype) -> dict[str, Tensor]:
    return states(dtype) | {"layer_weights": torch.tensor([0.7, -0.45])}


PAIR = ("q_student", "k_student")
#: name -> function, its inputs, those with a gradient
PROBLEMS: dict[str, tuple[Callable[..., Tensor], Callable[[torch.dtype], dict[str, Tensor]], Any]] = {
    **{
        f"attention_score_mse-{method}": (
            lambda method=method, **x: ops.attention_score_mse(**x, **PACKED, method=method),
            pair,
            PAIR,
        )
        for method in ("auto", "gram", "tiled")
    },
    **{
        f"attention_map_loss-{kind}": (
            lambda kind=kind, **x: ops.attention_map_loss(**x, **PACKED, kind=kind),
            pair,
            PAIR,
        )
        for kind in ("kl", "mse")
    },
    "relation_kl": (lambda **x: ops.relation_kl(**x, **PACKED, heads=12), relations, ("x_student",)),
    "hidden_mse": (ops.hidden_mse, states, ("student",)),
    "hidden_cosine": (ops.hidden_cosine, states, ("student",)),
    "varlen_attention": (lambda **x: ops.varlen_attention(**x, **PACKED), attention, ("q", "k", "v")),
    "logits_kl": (ops.logits_kl, states, ("student",)),
    **{
        f"pool_features-{mode}": (pooled(mode), layers, ("student", "teacher", "layer_weights"))
        for mode in MODES
    },
}
#: Those whose sums over tokens are a library's, which adds them up differently for each number of threads.
PROJECTED: dict[str, tuple[Callable[..., Tensor], Callable[[torch.dtype], dict[str, Tensor]], Any]] = {
    **{
        name: (
            getattr(ops, name),
            lambda dtype: hidden_states(dtype, PACK.tokens, "weight and bias", student=128, teacher=WIDTH),
            ("student", "weight", "bias"),
        )
        for name in ("hidden_mse", "hidden_cosine")
    },
    "linear_logits_kl": (
        ops.linear_logits_kl,
        lambda dtype: linear_states(dtype, PACK.tokens, classes=501),
        LINEAR_STUDENT,
    ),
}
cpp_only = pytest.mark.parametrize("backend", ["cpp"], indirect=True)


def test_shapes_are_worth_several_threads() -> None:
    """Scaling a gradient is the least work that is shared out: four operations a number."""
    found = re.search(r"kSerialWork = ([\d.e]+);", PARALLEL_H.read_text(encoding="utf-8"))
    assert found is not None
    assert 4 * PACK.tokens * min(WIDTH, 12 * 26) > 2 * float(found[1])


def test_every_operator_has_a_problem() -> None:
    named = {name.partition("-")[0] for name in (*PROBLEMS, *PROJECTED)}
    assert named == {name for name, info in OPS.items() if info.function is not None}


@cpp_only
@dtypes
@pytest.mark.parametrize("name", PROBLEMS)
def test_threads_change_no_bit(backend: str, dtype: torch.dtype, name: str) -> None:
    function, inputs, wrt = PROBLEMS[name]
    tensors = inputs(dtype)
    outcomes = []
    for count in (1, 2, 4, 4, 2, 1):
        with threads(count):
            outcomes.append((count, evaluate(function, tensors, wrt, upstream=upstream)))
    for count, outcome in outcomes[1:]:
        outcomes[0][1].assert_same_bits(outcome, f"between 1 and {count} threads")


@cpp_only
@dtypes
@pytest.mark.parametrize("name", PROJECTED)
def test_library_products_repeat_on_as_many_threads(backend: str, dtype: torch.dtype, name: str) -> None:
    function, inputs, wrt = PROJECTED[name]
    tensors = inputs(dtype)
    for count in (1, 2, 4):
        with threads(count):
            first, *others = [evaluate(function, tensors, wrt) for _ in range(3)]
        for other in others:
            first.assert_same_bits(other, f"between calls on {count} threads")


def upstream(out: Tensor) -> Tensor:
    return torch.ones_like(out) if out.dim() == 0 else uneven(out)
