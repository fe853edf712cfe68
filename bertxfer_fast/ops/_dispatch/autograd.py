"""How a public function runs its operator: in eager mode without the price of a registered autograd formula.

Every operator's formula is registered with torch.library, which torch.compile, opcheck and callers of ``torch.ops``
need. Running through that registration costs tens of microseconds a call, most of what a small loss takes. So outside
of tracing the same formula runs in a plain :class:`torch.autograd.Function` around the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import backend, library
from .formula import DOUBLE_BACKWARD, FORMULAS, detached
from .registry import OPS

_below_autograd = torch._C._AutoDispatchBelowAutograd
_transformed = torch._C._are_functorch_transforms_active
_functorch = torch._C._functorch
_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None), int, float, str, bool))


def gpu_size(device_type: str, first: Tensor | list[Tensor]) -> int | None:
    """The size by which a backend is chosen on a GPU (:mod:`.choices`); elsewhere there is no such choice."""
    if device_type != "cuda":
        return None
    return first.numel() if isinstance(first, Tensor) else sum(x.numel() for x in first)


def overload_for(name: str, device_type: str, first: Tensor | list[Tensor]) -> Any:
    """The overload of operator ``name`` on the backend in force, for a call whose first argument is ``first``."""
    return library.overload(name, backend.pick(name, device_type, gpu_size(device_type, first)))


def run(name: str, device_type: str, *args: Any) -> Tensor:
    """The first result of operator ``name`` on the backend in force.

    ``args`` are the arguments of the schema without ``need_grad``. Those that the operator does not declare to be
    differentiable get no gradient, whether they require one or not.
    """
    if _transformed() or forward_ad._current_level >= 0:
        refuse_transforms(name, args)
    formula = FORMULAS[name]
    size = gpu_size(device_type, args[0]) if device_type == "cuda" else None
    op = library.overload(name, backend.pick(name, device_type, size))
    need_grad = formula.need_grad(args)
    if formula.takes_need_grad:
        args = (*args, need_grad)
    flat = _flat(args) if formula.has_lists else args
    if torch.compiler.is_compiling() or _transformed() or not _PLAIN.issuperset(map(type, flat)):
        return op(*detached(args, formula.constants))[0]
    if not need_grad:
        with _below_autograd():
            return op(*args)[0]
    leading = formula.leading
    if formula.leading_constants:
        args = detached(args, formula.leading_constants)
    if not formula.has_lists:
        return _Fast.apply(*args[:leading], args[leading:], op, formula)
    lengths = [len(x) if isinstance(x, list) else None for x in args[:leading]]
    return _FastLists.apply(*_flat(args[:leading]), lengths, args[leading:], op, formula)


def refuse_transforms(name: str, args: Any) -> None:
    """Refuses what would give no derivative, or zeros for one: torch.func's transforms and forward-mode AD.

    ``args`` are the first arguments of operator ``name``. torch.vmap of what asks for no gradient is left alone: torch
    runs the operator once for each entry, unless it takes lists.

    Raises:
        TypeError: a tensor is differentiated by torch.func or forward-mode AD, or is one of a batch that needs a
            gradient; while torch.compile traces, any transform is active.
    """
    compiling, has_lists = torch.compiler.is_compiling(), FORMULAS[name].has_lists
    for argument, value in zip(OPS[name].arguments, args, strict=False):
        for x in value if isinstance(value, list) else (value,):
            if isinstance(x, Tensor) and (compiling or _is_transformed(x, has_lists)):
                raise TypeError(
                    f"{argument}: got a tensor under torch.func (grad, vjp, jvp, vmap) or forward-mode AD, "
                    "want one of plain autograd: loss.backward() or torch.autograd.grad"
                )


def _is_transformed(x: Tensor, or_batched: bool) -> bool:
    """Whether anything but plain autograd follows ``x``, or plain autograd follows it through a torch.vmap."""
    wrapped = False
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_gradtrackingtensor(x):
            return True
        wrapped, x = True, _functorch.get_unwrapped(x)
    if wrapped and (or_batched or (x.requires_grad and torch.is_grad_enabled())):
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


class _Fast(torch.autograd.Function):
    """An operator and its formula. Arguments behind the last differentiable one travel as one: each costs time."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *first, rest, op, formula = inputs
        args = (*first, *rest)
        with _below_autograd():
            output = op(*args)
        ctx.set_materialize_grads(False)
        ctx.formula = formula
        formula.save(ctx, args, output)
        return output[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: better no graph than one that silently lacks a term
            raise RuntimeError(DOUBLE_BACKWARD)
        formula = ctx.formula
        return tuple(formula.gradients(ctx, grad, ctx.needs_input_grad, formula.leading + 3))


class _FastLists(torch.autograd.Function):
    """The same where some of the first arguments are lists of tensors: autograd sees their tensors one by one."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *first, lengths, rest, op, formula = inputs
        ctx.lengths = lengths
        return _Fast.forward(ctx, *_nested(first, lengths), rest, op, formula)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(DOUBLE_BACKWARD)
        formula, needs = ctx.formula, _nested(ctx.needs_input_grad, ctx.lengths)
        return (*_flat(formula.gradients(ctx, grad, needs, formula.leading)), None, None, None, None)


def _flat(args: Any) -> list[Any]:
    """``args`` with the tensors of lists in place of the lists."""
    return [x for arg in args for x in (arg if isinstance(arg, list) else (arg,))]


def _nested(flat: Any, lengths: list[int | None]) -> list[Any]:
    """The opposite of `_flat`: ``lengths`` has the length of each list, None for what is none."""
    rest = iter(flat)
    return [next(rest) if n is None else [next(rest) for _ in range(n)] for n in lengths]
