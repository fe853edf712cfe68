"""How a public function runs a loss operator: in eager mode without the price of a registered autograd formula.

Every operator's formula is registered with torch.library, which torch.compile, opcheck and callers of ``torch.ops``
need. Running through that registration costs tens of microseconds a call, most of what a small loss takes. So outside
of tracing the same formula runs in a plain :class:`torch.autograd.Function` around the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backend as _backend
from . import library as _library

DOUBLE_BACKWARD = (
    "bertxfer_fast computes gradients in its forward pass, so they cannot be differentiated again (double backward). "
    "Write the loss in plain PyTorch where second derivatives are needed."
)

_below_autograd = torch._C._AutoDispatchBelowAutograd
_transformed = torch._C._are_functorch_transforms_active
#: No operator has a gradient for anything after its first four inputs. The others travel as one: each costs time.
_DIFFERENTIABLE = 4
_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None), int, float, str, bool))


def constant(x: Tensor) -> Tensor:
    """``x`` as what gets no gradient."""
    return x.detach() if x.requires_grad else x


def gpu_size(device_type: str, first: Tensor | list[Tensor]) -> int | None:
    """The size by which a backend is chosen on a GPU (:mod:`._choices`); elsewhere there is no such choice."""
    if device_type != "cuda":
        return None
    return first.numel() if isinstance(first, Tensor) else sum(x.numel() for x in first)


def run_loss(name: str, device_type: str, *args: Any) -> Tensor:
    """The first output of operator ``name`` on the backend in force; its last argument is ``need_grad``."""
    op = _library.overload(name, _backend.pick(name, device_type, gpu_size(device_type, args[0])))
    if torch.compiler.is_compiling() or _transformed() or not _PLAIN.issuperset(map(type, args)):
        return op(*args)[0]
    if args[-1]:
        return _Formula.apply(*args[:_DIFFERENTIABLE], args[_DIFFERENTIABLE:], op, _library.FORMULAS[name])
    with _below_autograd():
        return op(*args)[0]


def run_constant(name: str, device_type: str, *args: Any) -> Any:
    """All outputs of operator ``name`` on the backend in force, where nobody wants a gradient."""
    op = _library.overload(name, _backend.pick(name, device_type, gpu_size(device_type, args[0])))
    if torch.compiler.is_compiling() or _transformed():
        return op(*args)
    with _below_autograd():
        return op(*args)


class _Formula(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *first, rest, op, (setup_context, backward) = inputs
        args = *first, *rest
        with _below_autograd():
            output = op(*args)
        ctx.formula = backward
        setup_context(ctx, args, output)
        return output[0]

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: better no graph than one that silently lacks a term
            raise RuntimeError(DOUBLE_BACKWARD)
        return (*ctx.formula(ctx, grad_loss)[:_DIFFERENTIABLE], None, None, None)
