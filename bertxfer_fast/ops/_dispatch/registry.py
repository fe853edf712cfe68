"""One record per operator, from which every list that names all operators is derived.

An operator's own ``__init__.py`` makes its :class:`OpInfo` and hands it to :func:`.library.register`. Nobody keeps a
list by hand: :func:`discover` imports whatever folders it finds.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from .choices import launcher_module

NAMESPACE = "bertxfer_fast"


@dataclass(frozen=True, kw_only=True, eq=False)
class OpInfo:
    """What there is to know of an operator.

    Attributes:
        name: of the operator, as in ``torch.ops.bertxfer_fast.<name>``.
        module: ``__name__`` of the operator's room, a package.
        schema: arguments and results in the schema language of torch, without the name.
        eager: the readable reference, a function of all arguments of the schema.
        fake: results without values, from the same arguments.
        example: arguments by name, in the order of the schema, as ``example(dtype, **sizes)`` on the CPU. The sizes it
            takes by default are small and have an empty sequence where there are sequences.
        sizes: label -> keyword arguments of ``example``: one entry for each configuration that a Triton launcher
            compiles differently, which are the rows of the resource table.
        differentiable: names of the arguments that get a gradient.
        setup_context: as ``torch.library.register_autograd`` takes it.
        backward: ``backward(ctx, grad, needed)``, from the gradient of the first result: one gradient for each name in
            ``differentiable``, in that order; ``needed`` says in the same order which of them are wanted.
        function: the public function; None for an operator that only others call.
        compiled: the backends that compiled code brings, of ``"cpp"`` and ``"cuda"``.
        triton: file in the room with the Triton launcher, a function of the operator's name; None without.
    """

    name: str
    module: str
    schema: str
    eager: Callable[..., Any]
    fake: Callable[..., Any]
    example: Callable[..., dict[str, Any]]
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    differentiable: tuple[str, ...] = ()
    setup_context: Callable[..., None] | None = None
    backward: Callable[..., Any] | None = None
    function: Callable[..., torch.Tensor] | None = None
    compiled: tuple[str, ...] = ()
    triton: str | None = None

    def __post_init__(self) -> None:
        types = self.arguments
        for name in self.differentiable:
            if name not in types:
                raise ValueError(
                    f"{self.name}: differentiable: got {name!r}, want names of {', '.join(types)}"
                )
            if "Tensor" not in types[name]:
                raise ValueError(f"{self.name}: differentiable: got {name!r}, a {types[name]}, want a tensor")
        if bool(self.differentiable) != (self.backward is not None and self.setup_context is not None):
            raise ValueError(
                f"{self.name}: differentiable: got {self.differentiable}, want names together with "
                "setup_context and backward, or none of the three"
            )

    @functools.cached_property
    def arguments(self) -> dict[str, str]:
        """Name -> type of every argument, in the order of the schema."""
        parsed = torch._C.parse_schema(f"{NAMESPACE}::{self.name}{self.schema}")
        return {argument.name: str(argument.type) for argument in parsed.arguments}

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that somebody has written this operator for."""
        return (*self.compiled, *(("triton",) if self.triton else ()), "eager")

    @property
    def room(self) -> str:
        """The operator's stem: its folder here and in ``csrc/``, ``tests/ops/test_<room>.py``."""
        return self.module.rpartition(".")[2]

    @property
    def benchmark(self) -> str | None:
        """What ``bertxfer bench`` calls it (``benchmarks/bench_<room>.py``), None without one."""
        return None if self.function is None else self.room

    @property
    def summary(self) -> str:
        """One sentence for tables: the first of the room's docstring."""
        doc = inspect.getdoc(sys.modules[self.module]) or ""
        return " ".join(doc.split("\n\n")[0].split()).rstrip(".")

    def launcher(self) -> Callable[..., Any]:
        """The Triton launcher, imported now."""
        return getattr(launcher_module(f"{self.module}.{self.triton}"), self.name)


_ops: dict[str, OpInfo] = {}

#: Name of every registered operator -> what there is to know of it.
OPS: Mapping[str, OpInfo] = MappingProxyType(_ops)


def add(info: OpInfo) -> None:
    if info.name in _ops:
        raise ValueError(f"{info.name}: got a second operator of this name, want one")
    _ops[info.name] = info


def discover(package: str, path: Iterable[str]) -> None:
    """Imports every room of operators: each folder of ``package`` whose name has no leading underscore."""
    for module in pkgutil.iter_modules(path):
        if module.ispkg and not module.name.startswith("_"):
            importlib.import_module(f"{package}.{module.name}")


def public() -> dict[str, Callable[..., torch.Tensor]]:
    """The public functions by name, sorted."""
    functions = [info.function for info in _ops.values() if info.function is not None]
    return {function.__name__: function for function in sorted(functions, key=lambda f: f.__name__)}


def benchmarks() -> tuple[str, ...]:
    """The rooms that have a benchmark, sorted."""
    return tuple(sorted({info.benchmark for info in _ops.values() if info.benchmark is not None}))
