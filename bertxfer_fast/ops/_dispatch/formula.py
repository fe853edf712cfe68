"""An operator's derivative in the form that autograd calls, built from what its :class:`OpInfo` declares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .registry import OpInfo

DOUBLE_BACKWARD = (
    "bertxfer_fast's operators can be differentiated once, not twice (double backward): their gradients come from "
    "kernels that have no derivative. Write the expression in plain PyTorch where second derivatives are needed."
)

_is_batched = (torch._C._functorch.is_functorch_wrapped_tensor, torch._C._functorch.is_legacy_batchedtensor)


def refuse_double_backward(*_: Any) -> Any:
    """The derivative of what is only ever called in a backward pass."""
    raise RuntimeError(DOUBLE_BACKWARD)


class Formula:
    """Where an operator's differentiable inputs stand, and their gradients.

    Attributes:
        positions: of the differentiable arguments in the schema.
        leading: how many arguments there are up to the last differentiable one; autograd need not see the others.
        constants: positions of the tensors that get no gradient.
        leading_constants: those of them that autograd sees.
        has_lists: whether a leading argument is a list of tensors, which autograd has to see one by one.
        takes_need_grad: whether the last argument says that gradients are wanted.
        save: ``setup_context`` of the record.
    """

    def __init__(self, info: OpInfo) -> None:
        assert info.setup_context is not None and info.backward is not None
        names, types = list(info.arguments), list(info.arguments.values())
        tensors = [i for i, kind in enumerate(types) if kind in ("Tensor", "Optional[Tensor]")]
        self.name = info.name
        self.differentiable = info.differentiable
        self.positions = tuple(names.index(name) for name in info.differentiable)
        self.leading = 1 + max(self.positions)
        self.constants = tuple(i for i in tensors if i not in self.positions)
        self.leading_constants = tuple(i for i in self.constants if i < self.leading)
        self.has_lists = any(kind.startswith("List") for kind in types[: self.leading])
        self.takes_need_grad = names[-1] == "need_grad"
        self.save = info.setup_context
        self._arguments = len(names)
        self._backward = info.backward

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """As ``torch.library.register_autograd`` takes it."""
        ctx.set_materialize_grads(False)  # no zeros for the outputs that nobody differentiates
        self.save(ctx, inputs, output)

    def backward(self, ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        """As ``torch.library.register_autograd`` takes it; ``grad`` belongs to the first result."""
        return tuple(self.gradients(ctx, grad, ctx.needs_input_grad, self._arguments))

    def gradients(self, ctx: Any, grad: Tensor | None, needs: Sequence[Any], length: int) -> list[Any]:
        """``length`` entries, one for each argument from the first on: a gradient, a list of them, or None.

        ``needs`` says of each argument whether its gradient is wanted, of a list in a list.
        """
        result: list[Any] = [None] * length
        if self.has_lists:
            for i in self.positions:
                if isinstance(needs[i], list):
                    result[i] = [None] * len(needs[i])
        if grad is None:
            return result
        if any(batched(grad) for batched in _is_batched):
            raise TypeError(
                f"{self.name}: got a batch of upstream gradients (is_grads_batched=True, vectorize=True), want one"
            )
        gradients = self._backward(ctx, grad, [needs[i] for i in self.positions])
        if len(gradients) != len(self.positions):
            raise RuntimeError(
                f"{self.name}: backward: got {len(gradients)} gradients, "
                f"want {len(self.positions)}: {', '.join(self.differentiable)}"
            )
        for i, gradient in zip(self.positions, gradients):  # noqa: B905
            result[i] = gradient
        return result

    def need_grad(self, args: tuple[Any, ...]) -> bool:
        """Whether any differentiable argument asks for a gradient."""
        if not torch.is_grad_enabled():
            return False
        for i in self.positions:
            x = args[i]
            if type(x) is list:
                if any(y.requires_grad for y in x):
                    return True
            elif x is not None and x.requires_grad:
                return True
        return False


def detached(args: tuple[Any, ...], positions: tuple[int, ...]) -> tuple[Any, ...]:
    """``args`` with the tensors at ``positions`` cut off from autograd."""
    for i in positions:
        x = args[i]
        if x is not None and x.requires_grad:
            args = (*args[:i], x.detach(), *args[i + 1 :])
    return args


#: What differentiates an operator, filled by :func:`bertxfer_fast.ops._dispatch.library.register`.
FORMULAS: dict[str, Formula] = {}
