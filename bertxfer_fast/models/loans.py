"""Changes to an object that hold for the length of a block, also where several threads hold the same object.

The first holder makes the change, the last one undoes it; nothing of it is left on the object, so it can be pickled,
saved and used elsewhere as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

__all__ = ["default_device", "device_of", "eval_mode", "inference", "lent"]

Undo = Callable[[], None]


class _Loan:
    def __init__(self, thing: object, undo: Undo) -> None:
        self.thing = thing  # Keeps its id from being given to another object.
        self.undo = undo
        self.holders = 0


_lock = threading.Lock()
_loans: dict[tuple[int, str], _Loan] = {}


@contextmanager
def lent(thing: object, what: str, change: Callable[[], Undo]) -> Iterator[None]:
    """Inside, ``thing`` is changed.

    Args:
        thing: the object.
        what: names the change; changes of one object with different names are independent.
        change: makes it and returns what undoes it.
    """
    key = id(thing), what
    with _lock:
        loan = _loans.get(key)
        if loan is None:
            loan = _loans[key] = _Loan(thing, change())
        loan.holders += 1
    try:
        yield
    finally:
        with _lock:
            loan.holders -= 1
            if not loan.holders:
                del _loans[key]
                loan.undo()


@contextmanager
def eval_mode(module: nn.Module | None) -> Iterator[None]:
    """Inside, every submodule is in eval mode; afterwards each is in the mode it was in."""
    if module is None:
        yield
        return

    def change() -> Undo:
        training = [part for part in module.modules() if part.training]
        _set_training(training, False)
        return lambda: _set_training(training, True)

    with lent(module, "eval mode", change):
        yield


@contextmanager
def inference(module: nn.Module, bf16: bool = False) -> Iterator[None]:
    """Inside, eval mode without gradients, in bfloat16 autocast if asked; afterwards all is as it was."""
    autocast = torch.autocast(device_of(module).type, torch.bfloat16) if bf16 else nullcontext()
    with eval_mode(module), torch.no_grad(), autocast:
        yield


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are; the CPU where it has none."""
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def default_device() -> torch.device:
    """A GPU that our kernels run on, where torch finds one, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _set_training(modules: list[Any], mode: bool) -> None:
    for module in modules:
        module.training = mode
