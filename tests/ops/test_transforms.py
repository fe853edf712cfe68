"""torch.func's transforms and forward-mode AD over every public operator: right, or refused in a sentence.

None of them can follow a kernel. What they would give in silence is zeros, or a loss without its gradient.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch import autograd
from bertxfer_fast.ops._dispatch.registry import OPS

#: Every argument that gets a gradient, of every public operator.
DIFFERENTIABLE = [
    (name, argument)
    for name, info in OPS.items()
    if info.function is not None
    for argument in info.differentiable
]
each = pytest.mark.parametrize(("name", "argument"), DIFFERENTIABLE, ids=map(".".join, DIFFERENTIABLE))
PUBLIC = pytest.mark.parametrize("name", [name for name, info in OPS.items() if info.function is not None])


def in_one(name: str, argument: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The sum of an operator's result as a function of one argument (of a list, of its second tensor), and a value."""
    example = {key: value for key, value in OPS[name].example(torch.float32).items() if key != "need_grad"}
    value = example[argument]

    def function(x: Tensor) -> Tensor:
        return autograd.run(
            name, "cpu", *{**example, argument: [value[0], x] if isinstance(value, list) else x}.values()
        ).sum()

    return function, value[1] if isinstance(value, list) else value


def jvp_by_hand(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return function(forward_ad.make_dual(x, torch.ones_like(x)))


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda f, x: torch.func.grad(f)(x),
    "grad_and_value": lambda f, x: torch.func.grad_and_value(f)(x),
    "vjp": lambda f, x: torch.func.vjp(f, x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(f))(torch.stack([x, x])),
    "grad of vmap": lambda f, x: torch.func.grad(lambda y: torch.func.vmap(f)(y).sum())(torch.stack([x, x])),
    "vmap of what requires grad": lambda f, x: torch.func.vmap(f)(torch.stack([x, x]).requires_grad_()),
    "dual numbers": jvp_by_hand,
    "dual numbers that require grad": lambda f, x: jvp_by_hand(f, x.requires_grad_()),
}


@each
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_derivative_by_other_ways_is_refused(
    backend: str, name: str, argument: str, transform: str
) -> None:
    function, x = in_one(name, argument)
    with pytest.raises(
        TypeError, match=rf"^{argument}: got a tensor under torch\.func .*, want one of plain"
    ):
        TRANSFORMS[transform](function, x)


@PUBLIC
def test_a_batch_of_upstream_gradients_is_refused(backend: str, name: str) -> None:
    function, x = in_one(name, OPS[name].differentiable[0])
    out = function(x.requires_grad_())
    with pytest.raises(TypeError, match=f"^{name}: got a batch of upstream gradients .*, want one"):
        torch.autograd.grad(out, x, torch.ones(3), is_grads_batched=True)


@each
def test_vmap_without_a_gradient_is_a_loop(backend: str, name: str, argument: str) -> None:
    function, x = in_one(name, argument)
    batch = torch.stack([x, 2 * x, -x])
    if name == "pool_features":  # torch has no such loop for operators that take lists
        with pytest.raises(TypeError, match=f"^{argument}: got a tensor under torch"):
            torch.func.vmap(function)(batch)
        return
    torch.testing.assert_close(torch.func.vmap(function)(batch), torch.stack([function(y) for y in batch]))


@each
def test_what_a_transform_does_not_follow_keeps_its_gradient(backend: str, name: str, argument: str) -> None:
    """A loss beside a transformed expression: plain tensors, one of which plain autograd follows."""
    function, x = in_one(name, argument)
    a = torch.tensor([2.0, 5.0])
    (want,) = torch.autograd.grad(function(x.requires_grad_()), x)
    slope = torch.func.grad(lambda b: b.sum() * function(x))(a)
    torch.testing.assert_close(slope, function(x).expand(2))
    (got,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(got, 2 * want)
    with forward_ad.dual_level():
        product = forward_ad.make_dual(a, torch.ones(2)).sum() * function(x)
        torch.testing.assert_close(forward_ad.unpack_dual(product).tangent, 2 * function(x))


def test_a_teacher_under_a_transform_is_refused(backend: str) -> None:
    """Its gradient would be nought, where torch.func.grad was asked for another."""
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    with pytest.raises(TypeError, match=r"^teacher: got a tensor under torch"):
        torch.func.grad(lambda t: ops.hidden_mse(student, t))(teacher)


def test_dropout_is_refused_before_its_seed_is_drawn(backend: str) -> None:
    """torch.vmap refuses to draw numbers, in words that name no argument."""
    cu_seqlens = torch.tensor([0, 3, 7], dtype=torch.int32)
    q = torch.randn(2, 7, 2, 4, requires_grad=True)
    with pytest.raises(TypeError, match=r"^q: got a tensor under torch"):
        torch.func.vmap(lambda x: ops.varlen_attention(x, x, x, cu_seqlens, dropout_p=0.5))(q)


@pytest.mark.parametrize("transform", ["grad", "jvp"])
def test_a_transform_inside_torch_compile_is_refused(backend: str, transform: str) -> None:
    function, x = in_one("hidden_mse", "student")
    torch._dynamo.reset()
    compiled = torch.compile(lambda y: TRANSFORMS[transform](function, y), backend="eager")
    with pytest.raises(Exception, match=re.escape("student: got a tensor under torch.func")):
        compiled(x)
