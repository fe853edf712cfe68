"""The compiled extension, loaded once, and the registration of operators with torch.

An operator has one overload per backend (``bertxfer_fast::hidden_mse.eager``, ``.cpp``, ...). All overloads share
one schema, one fake and one autograd formula; :mod:`.backend` decides which one a call takes.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from .formula import FORMULAS, Formula, refuse_double_backward
from .registry import NAMESPACE, OpInfo, add

#: Backends that an operator may have an overload for, in no order of preference.
BACKENDS = ("eager", "cpp", "triton", "cuda")

_library = torch.library.Library(NAMESPACE, "DEF")

#: Kernels that a stale extension lacks, (operator, backend), with the sentence that says so.
MISSING_KERNELS: dict[tuple[str, str], str] = {}


def _load_extension() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module("bertxfer_fast._C"), None
    except ImportError as error:  # not built, or built for a torch that this one cannot stand in for
        return None, f"the compiled extension bertxfer_fast._C did not load: {error}"


def _load_cuda_extension() -> tuple[ModuleType | None, str | None]:
    if torch.version.cuda is None:  # such a torch lacks the symbols that it needs
        return None, "this torch was built without CUDA"
    try:
        return importlib.import_module("bertxfer_fast._C_cuda"), None
    except ImportError as error:
        return None, f"the compiled extension bertxfer_fast._C_cuda did not load: {error}"


#: The compiled extension, or None; and then the sentence that says why.
extension, extension_error = _load_extension()

#: The same for the CUDA kernels in C++. Loading them starts no CUDA.
cuda_extension, cuda_extension_error = _load_cuda_extension()


def load_cuda_emulator() -> bool:
    """Whether the CUDA kernels run on CPU tensors: in the emulator of the tests, which the environment names."""
    path = os.environ.get("BERTXFER_CUDA_EMULATOR")
    if path:
        _load_library(path)
    return bool(path)


@functools.cache
def _load_library(path: str) -> None:
    torch.ops.load_library(path)


def register(info: OpInfo) -> None:
    """Registers an operator: all its overloads share one schema, one fake and one autograd formula.

    Kernels of compiled code register themselves when it loads. A Triton launcher is imported by the first call.

    Raises:
        ValueError: the record contradicts itself or its schema, or another operator has its name.
        RuntimeError: (from a backward pass) its ``backward`` does not return one gradient for each declared input.
    """
    name = info.name
    add(info)
    for backend in BACKENDS:
        _library.define(f"{name}.{backend}{info.schema}", tags=(torch.Tag.pt2_compliant_tag,))
    if info.triton:
        launcher = _without_autocast(_on_its_device(info))
        for key in ("CUDA", "CPU"):  # on the CPU in Triton's interpreter
            _library.impl(f"{name}.triton", launcher, key)
    for compiler, module, key in (("cpp", extension, "CPU"), ("cuda", cuda_extension, "CUDA")):
        if compiler in info.compiled and module is not None and not has_kernel(name, compiler, key):
            MISSING_KERNELS[name, compiler] = f"the compiled extension is older than {name}: rebuild it"
    _library.impl(f"{name}.eager", _without_autocast(info.eager), "CompositeExplicitAutograd")
    setup_context, backward = None, refuse_double_backward
    if info.differentiable:
        formula = FORMULAS[name] = Formula(info)
        setup_context, backward = formula.setup_context, formula.backward
    for backend in BACKENDS:
        qualified = f"{NAMESPACE}::{name}.{backend}"
        torch.library.register_fake(qualified, info.fake, lib=_library)
        if not overload(name, backend)._schema.is_mutable:
            torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator computes in the dtypes it is given: autocast ends at its door, as it does for compiled code."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        first = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]
        with torch.autocast(first.device.type, enabled=False):
            return function(*args)

    return run


def _on_its_device(info: OpInfo) -> Callable[..., Any]:
    """The operator's Triton launcher, run with the device of its first tensor current, as Triton launches there."""

    def run(*args: Any) -> Any:
        launcher = info.launcher()
        first = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]
        if first.device.type != "cuda":
            return launcher(*args)
        with torch.cuda.device(first.device):
            return launcher(*args)

    return run


def has_kernel(name: str, backend: str, key: str) -> bool:
    """Whether compiled code has registered its kernel of an operator, for a dispatch key such as ``"CPU"``."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}.{backend}", key))


def overload(name: str, backend: str) -> Any:
    """The callable operator overload, e.g. ``torch.ops.bertxfer_fast.hidden_mse.cpp``."""
    return getattr(getattr(torch.ops.bertxfer_fast, name), backend)


def build_info() -> dict[str, Any]:
    """What was compiled, and what of it this machine uses.

    Returns a dict with ``compiled`` (bool), ``reason`` (why not, or None) and, where the extension is loaded,
    ``version``, ``compiler``, ``torch`` (version it was built against), ``instruction_sets`` (compiled in) and
    ``instruction_set`` (the one picked at run time; the environment variable ``BERTXFER_ISA`` lowers it). ``cuda`` is
    the same for the CUDA kernels in C++: ``compiled``, ``reason`` and, where they are loaded, ``version``, ``nvcc``,
    ``torch`` and ``architectures`` (compute capabilities compiled for).
    """
    info: dict[str, Any] = {"compiled": extension is not None, "reason": extension_error}
    if extension is not None:
        info.update(extension.build_info())
    info["cuda"] = {"compiled": cuda_extension is not None, "reason": cuda_extension_error}
    if cuda_extension is not None:
        info["cuda"].update(cuda_extension.build_info())
    return info
