"""relation_kl against MiniLMv2's definition in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from bertxfer_fast import ops

from .cases import dtypes
from .reference import assert_as_accurate_as_pytorch, relative_error

HEADS = 4
OFFSETS = [0, 5, 5, 120, 121]


def packing() -> Tensor:
    return torch.tensor(OFFSETS, dtype=torch.int32)


def states(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    widths = {"x_student": 24, "x_teacher": 40}
    return {
        name: torch.randn(OFFSETS[-1], width, generator=generator).to(dtype) for name, width in widths.items()
    }


def plain(x_student: Tensor, x_teacher: Tensor, used: list[int] | None = None) -> Tensor:
    """Mean over heads and valid rows of KL(teacher || student) of softmax(x x^T / sqrt(d)) (Wang et al. 2021)."""

    def log_relation(x: Tensor) -> Tensor:
        split = x.unflatten(1, (HEADS, -1)).transpose(0, 1)
        return (split @ split.mT * split.shape[-1] ** -0.5).log_softmax(-1)

    rows = []
    for n, (start, stop) in enumerate(pairwise(OFFSETS)):
        stop = stop if used is None else start + used[n]
        student, teacher = log_relation(x_student[start:stop]), log_relation(x_teacher[start:stop])
        rows.append((teacher.exp() * (teacher - student)).sum(-1).flatten())
    return torch.cat(rows).mean()


def loss(**tensors: Tensor) -> Tensor:
    return ops.relation_kl(**tensors, cu_seqlens=packing(), heads=HEADS)


@dtypes
def test_is_as_accurate_as_plain_pytorch(backend: str, dtype: torch.dtype) -> None:
    assert_as_accurate_as_pytorch(loss, plain, states(dtype), ("x_student",))


def test_tokens_that_do_not_count(backend: str) -> None:
    tensors, used = states(), [4, 0, 100, 1]
    tensors["x_student"].requires_grad_()
    value = ops.relation_kl(
        **tensors, cu_seqlens=packing(), heads=HEADS, seqused=torch.tensor(used, dtype=torch.int32)
    )
    assert (
        relative_error(value.detach(), plain(*(t.detach().double() for t in tensors.values()), used)) < 1e-6
    )
    value.backward()
    grad = tensors["x_student"].grad
    assert grad is not None and not grad[105:120].any() and grad[:4].any()


def test_is_the_map_loss_of_x_with_itself(backend: str) -> None:
    student, teacher = (t.unflatten(1, (HEADS, -1)) for t in states().values())
    same = ops.attention_map_loss(student, student, teacher, teacher, packing())
    torch.testing.assert_close(loss(**states()), same)


def test_opcheck(backend: str) -> None:
    tensors = states()
    tensors["x_student"].requires_grad_()
    op = getattr(torch.ops.bertxfer_fast.relation_kl, backend)
    opcheck(op, (*tensors.values(), packing(), None, 115, HEADS, 0.4, 0.3, "mean", True))


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"heads": 5}, "heads"),
        ({"heads": 0}, "heads"),
        ({"x_teacher": torch.zeros(3, 40)}, "x_teacher"),
        ({"reduction": "batchmean"}, "reduction"),
        ({"cu_seqlens": torch.tensor([0, 7], dtype=torch.int32)}, "cu_seqlens"),
    ],
)
def test_bad_arguments_are_named(backend: str, changed: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ops.relation_kl(**{**states(), "cu_seqlens": packing(), "heads": HEADS, **changed})  # type: ignore[arg-type]
