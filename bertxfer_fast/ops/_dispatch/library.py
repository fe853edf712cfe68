"""Every operator's schema in one table, the compiled extension loaded once, and registration in one place.

An operator has one overload per backend (``bertxfer_fast::hidden_mse.eager``, ``.cpp``, ...). All overloads share
one schema, one fake and one autograd formula; :mod:`bertxfer_fast.ops._backend` decides which one a call takes.
Forward operators that return gradients return them *unscaled*, with the float32 ``factor`` that makes
them the gradient of the returned loss: see :mod:`bertxfer_fast.ops.scale_grad`.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from .choices import launcher_module

NAMESPACE = "bertxfer_fast"

#: Backends that an operator may have an overload for, in no order of preference.
BACKENDS = ("eager", "cpp", "triton", "cuda")

#: The schema of every operator, without its name.
SCHEMAS: dict[str, str] = {
    "attention_score_mse": (
        "(Tensor q_student, Tensor k_student, Tensor q_teacher, Tensor k_teacher, Tensor cu_seqlens, "
        "Tensor? seqused, SymInt max_seqlen, float scale_student, float scale_teacher, str reduction, "
        "str method, bool need_grad) -> (Tensor loss, Tensor grad_q, Tensor grad_k, Tensor factor)"
    ),
    "attention_map_loss": (
        "(Tensor q_student, Tensor k_student, Tensor q_teacher, Tensor k_teacher, Tensor cu_seqlens, "
        "Tensor? seqused, SymInt max_seqlen, float scale_student, float scale_teacher, str kind, "
        "str reduction, bool need_grad) -> (Tensor loss, Tensor grad_q, Tensor grad_k, Tensor factor)"
    ),
    "relation_kl": (
        "(Tensor x_student, Tensor x_teacher, Tensor cu_seqlens, Tensor? seqused, SymInt max_seqlen, int heads, "
        "float scale_student, float scale_teacher, str reduction, bool need_grad) "
        "-> (Tensor loss, Tensor grad_student, Tensor factor)"
    ),
    "hidden_mse": (
        "(Tensor student, Tensor teacher, Tensor? weight, Tensor? bias, str reduction, bool need_grad) "
        "-> (Tensor loss, Tensor grad_student, Tensor grad_weight, Tensor grad_bias, Tensor factor)"
    ),
    "hidden_cosine": (
        "(Tensor student, Tensor teacher, Tensor? weight, Tensor? bias, str reduction, bool need_grad) "
        "-> (Tensor loss, Tensor grad_student, Tensor grad_weight, Tensor grad_bias, Tensor factor)"
    ),
    "linear_logits_kl": (
        "(Tensor student, Tensor weight_student, Tensor? bias_student, Tensor teacher, Tensor weight_teacher, "
        "Tensor? bias_teacher, float temperature, str reduction, bool need_grad) "
        "-> (Tensor loss, Tensor grad_student, Tensor grad_weight, Tensor grad_bias, Tensor factor)"
    ),
    "logits_kl": (
        "(Tensor student, Tensor teacher, float temperature, str reduction, bool need_grad) "
        "-> (Tensor loss, Tensor grad_student, Tensor factor)"
    ),
    "pool_features": (
        "(Tensor[] hidden, Tensor cu_seqlens, Tensor? seqused, Tensor layer_weights, str mode, bool normalize) "
        "-> (Tensor pooled, Tensor argmax, Tensor norm)"
    ),
    "pool_features_backward": (
        "(Tensor grad, Tensor[] hidden, Tensor cu_seqlens, Tensor? seqused, Tensor layer_weights, str mode, "
        "bool normalize, Tensor pooled, Tensor argmax, Tensor norm, bool need_weights) "
        "-> (Tensor[] grad_hidden, Tensor grad_weights)"
    ),
    "varlen_attention": (
        "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, SymInt max_seqlen, float scale, float dropout_p, "
        "Tensor? seed) -> (Tensor out, Tensor lse)"
    ),
    "varlen_attention_backward": (
        "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu_seqlens, SymInt max_seqlen, "
        "float scale, float dropout_p, Tensor? seed) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)"
    ),
    "scale_grad": "(Tensor grad, Tensor factor, ScalarType dtype) -> Tensor",
    "scale_grad_": "(Tensor(a!)[] grads, Tensor factor, Tensor upstream) -> ()",
}

_library = torch.library.Library(NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    for _backend in BACKENDS:
        _library.define(f"{_name}.{_backend}{_schema}", tags=(torch.Tag.pt2_compliant_tag,))

#: Operators that exist in more than one implementation, filled by :func:`register`: name -> backends written for it.
IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {}

#: Where an operator's Triton launcher is, a function of its name: name -> module.
TRITON: dict[str, str] = {}

#: What differentiates an operator: name -> (setup_context, backward).
FORMULAS: dict[str, tuple[Callable[..., None], Callable[..., Any]]] = {}

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


def register(
    name: str,
    *,
    eager: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    compiled: tuple[str, ...] = ("cpp",),
    triton: str | None = None,
) -> None:
    """Registers what all overloads of ``name`` share, the eager implementation and the Triton launcher.

    ``compiled`` names the backends that compiled code brings; their kernels register themselves when they load.
    ``triton`` is the module with the launcher, a function of the operator's name; it is imported by the first call.
    """
    IMPLEMENTATIONS[name] = (*compiled, *(("triton",) if triton else ()), "eager")
    if triton:
        TRITON[name] = triton
        launcher = _without_autocast(_on_its_device(triton, name))
        for key in ("CUDA", "CPU"):  # on the CPU in Triton's interpreter
            _library.impl(f"{name}.triton", launcher, key)
    if setup_context is not None and backward is not None:
        FORMULAS[name] = setup_context, backward
    for compiler, module, key in (("cpp", extension, "CPU"), ("cuda", cuda_extension, "CUDA")):
        if compiler in compiled and module is not None and not has_kernel(name, compiler, key):
            MISSING_KERNELS[name, compiler] = f"the compiled extension is older than {name}: rebuild it"
    _library.impl(f"{name}.eager", _without_autocast(eager), "CompositeExplicitAutograd")
    for backend in BACKENDS:
        qualified = f"{NAMESPACE}::{name}.{backend}"
        torch.library.register_fake(qualified, fake, lib=_library)
        if backward is not None:
            torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator computes in the dtypes it is given: autocast ends at its door, as it does for compiled code."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        first = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]
        with torch.autocast(first.device.type, enabled=False):
            return function(*args)

    return run


def _on_its_device(module: str, name: str) -> Callable[..., Any]:
    """Function ``name`` of ``module``, run with the device of its first tensor current, as Triton launches there."""

    def run(*args: Any) -> Any:
        launcher = getattr(launcher_module(module), name)
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
