"""Kernels load rows of several heads at a time (csrc/common/cpu/head_groups.h, csrc/varlen_attention/group_plan.h): a
head does not notice its neighbours.

A single head is a group of its own, and for losses never copied, so what it gives alone is what it has to give among
others, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import ops

from .cases import Pack, attention_pair, dtypes

HEADS = 12
#: Sequences on both sides of every limit: of tiles, of rows summed in float32, of what is copied at all.
PACK = Pack(
    [5, 300, 0, 17, 128, 90, 47, 64, 1, 33, 700, 129], used=[5, 299, 0, 0, 128, 71, 47, 64, 1, 32, 700, 100]
)

LOSSES: dict[str, Callable[..., Tensor]] = {
    **{
        f"attention_score_mse-{method}": lambda method=method, **x: ops.attention_score_mse(
            **x, method=method
        )
        for method in ("auto", "gram", "tiled")
    },
    **{
        f"attention_map_loss-{kind}": lambda kind=kind, **x: ops.attention_map_loss(**x, kind=kind)
        for kind in ("kl", "mse")
    },
}


def run(loss: Callable[..., Tensor], inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, ...]:
    leaves = {name: x.detach().requires_grad_("student" in name) for name, x in inputs.items()}
    value = loss(**leaves, **PACK.packing, reduction="sum", **options)
    return value.detach(), *torch.autograd.grad(value, [x for x in leaves.values() if x.requires_grad])


@dtypes
@pytest.mark.parametrize("dims", [(26, 64), (8, 16), (5, 3), (64, 33)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_a_head_gives_the_same_alone(name: str, dims: tuple[int, int], dtype: torch.dtype) -> None:
    inputs = attention_pair(dtype, PACK, heads=HEADS, student=dims[0], teacher=dims[1])
    loss, *gradients = run(LOSSES[name], inputs)
    total = 0.0
    for head in range(HEADS):
        alone, *parts = run(LOSSES[name], {key: x[:, head : head + 1] for key, x in inputs.items()})
        total += alone.item()
        for whole, part in zip(gradients, parts, strict=True):
            assert torch.equal(whole[:, head : head + 1], part), f"head {head}"
    torch.testing.assert_close(loss.item(), total, rtol=1e-6, atol=0.0)


@dtypes
def test_a_relation_head_gives_the_same_alone(dtype: torch.dtype) -> None:
    inputs = attention_pair(dtype, PACK, heads=HEADS, student=8, teacher=16)
    student, teacher = inputs["q_student"].flatten(1), inputs["q_teacher"].flatten(1)
    _, gradient = run(ops.relation_kl, {"x_student": student, "x_teacher": teacher}, heads=HEADS)
    for head in range(HEADS):
        mine = {"x_student": student[:, 8 * head :][:, :8], "x_teacher": teacher[:, 16 * head :][:, :16]}
        _, alone = run(ops.relation_kl, mine, heads=1)
        assert torch.equal(gradient[:, 8 * head :][:, :8], alone), f"head {head}"


@dtypes
@pytest.mark.parametrize("heads, dim", [(12, 64), (7, 26), (5, 100)])
def test_an_attention_head_gives_the_same_alone(heads: int, dim: int, dtype: torch.dtype) -> None:
    def run(inputs: list[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = ops.varlen_attention(*leaves, PACK.cu_seqlens, max_seqlen=max(PACK.lengths))
        return out.detach(), *torch.autograd.grad(out, leaves, upstream)

    inputs = [torch.randn(PACK.tokens, heads, dim, dtype=dtype) for _ in range(4)]
    together = run(inputs[:3], inputs[3])
    for head in range(heads):
        mine = [x[:, head : head + 1] for x in inputs]
        for whole, part in zip(together, run(mine[:3], mine[3]), strict=True):
            assert torch.equal(whole[:, head : head + 1], part), f"head {head}"


def test_rows_that_lie_apart_are_copied_from_where_they_are() -> None:
    """Students and teachers as slices of fused projections, heads a stride of their own apart."""
    inputs = attention_pair(torch.float32, PACK, heads=HEADS)
    apart = {
        name: torch.stack([torch.full_like(x, torch.nan), x, torch.full_like(x, torch.nan)], dim=2)[:, :, 1]
        for name, x in inputs.items()
    }
    for name, loss in LOSSES.items():
        for got, want in zip(run(loss, apart), run(loss, inputs), strict=True):
            assert torch.equal(got, want), name
