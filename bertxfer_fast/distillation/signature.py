"""A forward that names what it takes, also where only the models know that: Trainer reads the signature."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["names_inputs"]


class names_inputs:
    """A method ``forward(..., **rest)`` whose signature, on an object, also has the object's ``inputs`` as parameters.

    Trainer drops the columns of a data set that the signature does not name (``remove_unused_columns``), and says so
    to nobody. A decorator.

    Args:
        forward: the method.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        functools.update_wrapper(self, forward)  # type: ignore[arg-type]
        self._forward = forward

    def __get__(self, module: Any, owner: type | None = None) -> Callable[..., Any]:
        bound = self._forward if module is None else self._forward.__get__(module, owner)
        inputs = () if module is None else module.inputs
        if not inputs:
            return bound
        named: Any = functools.partial(self._forward, module)
        signature = inspect.signature(bound)
        *first, rest = signature.parameters.values()
        further = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in sorted(inputs)]
        named.__signature__ = signature.replace(parameters=[*first, *further, rest])
        return named
