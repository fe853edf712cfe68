"""linear_logits_kl against whole logits in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from bertxfer_fast import ops

from . import reference
from .cases import dtypes
from .reference import assert_as_accurate_as_pytorch, relative_error

STUDENT, TEACHER = 26, 40
WRT = ("student", "weight_student", "bias_student")


def states(dtype: torch.dtype = torch.float32, *, tokens: int = 70, classes: int = 501) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "student": (tokens, STUDENT),
        "weight_student": (classes, STUDENT),
        "teacher": (tokens, TEACHER),
        "weight_teacher": (classes, TEACHER),
        "bias_student": (classes,),
        "bias_teacher": (classes,),
    }
    return {
        name: (torch.randn(shape, generator=generator) * (0.2 if "weight" in name else 1.0)).to(dtype)
        for name, shape in shapes.items()
    }


def plain(temperature: float = 1.0, **x: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(x["student"], x["weight_student"], x.get("bias_student"))
    target = torch.nn.functional.linear(x["teacher"], x["weight_teacher"], x.get("bias_teacher"))
    return reference.logits_kl(logits, target, temperature=temperature)


@dtypes
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_is_as_accurate_as_plain_pytorch(backend: str, dtype: torch.dtype, temperature: float) -> None:
    assert_as_accurate_as_pytorch(
        lambda **x: ops.linear_logits_kl(**x, temperature=temperature),
        lambda **x: plain(temperature, **x),
        states(dtype),
        WRT,
    )


def test_more_tokens_than_one_chunk(backend: str) -> None:
    """30 522 classes leave 274 tokens a chunk: 300 are two, and gradients add up over them."""
    tensors = states(tokens=300, classes=30522)
    exact = {name: t.double().requires_grad_(name in WRT) for name, t in tensors.items()}
    mine = {name: t.requires_grad_(name in WRT) for name, t in tensors.items()}
    expected, got = plain(**exact), ops.linear_logits_kl(**mine)
    assert relative_error(got.detach(), expected.detach()) < 1e-5
    wanted = torch.autograd.grad(expected, [exact[name] for name in WRT])
    for name, grad, truth in zip(
        WRT, torch.autograd.grad(got, [mine[name] for name in WRT]), wanted, strict=True
    ):
        assert relative_error(grad, truth) < 1e-4, name


def test_opcheck(backend: str) -> None:
    x = {name: t.requires_grad_(name in WRT) for name, t in states(tokens=9, classes=11).items()}
    order = ("student", "weight_student", "bias_student", "teacher", "weight_teacher", "bias_teacher")
    op = getattr(torch.ops.bertxfer_fast.linear_logits_kl, backend)
    opcheck(op, (*(x[name] for name in order), 2.0, "batchmean", True))


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"weight_student": torch.zeros(501, 27)}, "weight_student"),
        ({"weight_teacher": torch.zeros(500, TEACHER)}, "weight_teacher"),
        ({"teacher": torch.zeros(69, TEACHER)}, "teacher"),
        ({"bias_teacher": torch.zeros(3)}, "bias_teacher"),
        ({"temperature": 0.0}, "temperature"),
        ({"reduction": "mean"}, "reduction"),
    ],
)
def test_bad_arguments_are_named(backend: str, changed: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ops.linear_logits_kl(**{**states(), **changed})  # type: ignore[arg-type]
