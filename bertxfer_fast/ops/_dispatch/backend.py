"""Which implementation runs where: one table, one override, one explanation.

The choice is made in Python, per call, by device: CPU takes the first usable of ``cpp`` and ``eager``, CUDA what was
measured to be faster (:mod:`.choices`) or else the first usable of ``triton``, ``cuda`` and ``eager``. The environment
variable ``BERTXFER_BACKEND`` and :func:`use_backend` override it for the whole process.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import library
from .choices import FASTER_ON_CUDA, faster_on_cuda
from .registry import OPS

#: Order of preference per device type.
PREFERENCE: dict[str, tuple[str, ...]] = {"cpu": ("cpp", "eager"), "cuda": ("triton", "cuda", "eager")}

#: What each backend needs, in the words an error message uses.
_NEEDS = {
    "cpp": "CPU tensors and the compiled extension",
    "triton": "CUDA tensors on a GPU of compute capability 8.0 or newer, and the package triton",
    "cuda": "CUDA tensors on a GPU of compute capability 8.0 or newer, and the compiled extension _C_cuda",
}

#: Asked once, here: torch.compile cannot look for a package, and sees through the cache of `_no_triton`.
_has_triton = importlib.util.find_spec("triton") is not None

_forced: str | None = None
_warned = False
#: What `pick` has found, until another backend is forced: (op, device type, the faster one as measured) -> backend.
_picked: dict[tuple[str, str, str | None], str] = {}


def _check_name(name: str, source: str) -> str:
    known = ("auto", *library.BACKENDS)
    if name not in known:
        raise ValueError(f"{source}: got {name!r}, want one of {', '.join(known)}")
    return name


def unavailable(op: str, backend: str, device_type: str) -> str | None:
    """Why ``backend`` cannot run ``op`` on ``device_type``, or None if it can."""
    if backend not in OPS[op].backends:
        return f"{op} has no {backend} implementation"
    if backend == "cpp":
        if device_type != "cpu":
            return f"cpp needs {_NEEDS['cpp']}, not {device_type} tensors"
        return library.extension_error or library.MISSING_KERNELS.get((op, "cpp"))
    if backend == "triton":
        return _no_triton(device_type)
    if backend == "cuda":
        return _no_cuda(op, device_type)
    return None


@functools.cache
def _no_triton(device_type: str) -> str | None:
    """Why Triton kernels cannot run on ``device_type``, or None. Asked for CUDA, it looks at the GPU."""
    if not _has_triton:
        return "the package triton is not installed"
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None  # slow, for tests of the kernels without a GPU
    if device_type != "cuda":
        return f"triton needs {_NEEDS['triton']}, not {device_type} tensors"
    return _no_gpu("triton")


def _no_cuda(op: str, device_type: str) -> str | None:
    """Why the CUDA kernel in C++ cannot run on ``device_type``, or None. Asked for CUDA, it looks at the GPU."""
    if device_type == "cpu" and library.load_cuda_emulator():  # slow, for tests without a GPU
        return None if library.has_kernel(op, "cuda", "CPU") else f"the emulator was built without {op}"
    if device_type != "cuda":
        return f"cuda needs {_NEEDS['cuda']}, not {device_type} tensors"
    return library.cuda_extension_error or library.MISSING_KERNELS.get((op, "cuda")) or _no_gpu("cuda")


@functools.cache
def _no_gpu(backend: str) -> str | None:
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    capability = torch.cuda.get_device_capability()
    return None if capability >= (8, 0) else f"{backend} needs {_NEEDS[backend]}, not {capability}"


def pick(op: str, device_type: str, size: int | None = None) -> str:
    """The backend that a call of ``op`` on ``device_type`` takes, of a size in the unit that `choices` counts in.

    Raises:
        RuntimeError: a backend asked for by name cannot run here; the message says why.
    """
    faster = faster_on_cuda(op, size) if FASTER_ON_CUDA and device_type == "cuda" else None
    if torch.compiler.is_compiling():  # the table of earlier choices would become a guard of the trace
        return _choose(op, device_type, faster)
    key = op, device_type, faster
    chosen = _picked.get(key)
    if chosen is None:
        chosen = _picked[key] = _choose(op, device_type, faster)
    return chosen


def _choose(op: str, device_type: str, faster: str | None) -> str:
    if _forced is not None:
        reason = unavailable(op, _forced, device_type)
        if reason is None or _falls_back(op, _forced):
            return _forced if reason is None else "eager"
        raise RuntimeError(f"backend {_forced!r} was asked for, but {reason}")
    order = PREFERENCE.get(device_type, ("eager",))
    for backend in order if faster is None else (faster, *order):
        if unavailable(op, backend, device_type) is None:
            if backend == "eager" and device_type == "cpu" and library.extension is None:
                _warn_once()
            return backend
    return "eager"


def _falls_back(op: str, backend: str) -> bool:
    # An operator without such code stays usable while the backend is forced for the others.
    return backend not in OPS[op].backends


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"bertxfer_fast runs its slower eager operators: {library.extension_error}. "
            "Reinstall with a C++17 compiler at hand for the compiled ones.",
            RuntimeWarning,
            stacklevel=5,
        )


@contextmanager
def _restore(previous: str | None) -> Iterator[None]:
    try:
        yield
    finally:
        _force(previous)


def _force(name: str | None) -> None:
    global _forced
    _forced = name
    _picked.clear()


def use_backend(name: str) -> Any:
    """Forces one backend for every operator, process-wide.

    Takes effect at once; used as a context manager it is undone at the end of the block.

    Args:
        name: ``"auto"``, ``"eager"``, ``"cpp"``, ``"triton"`` or ``"cuda"``. An operator that has no such code
            at all keeps running eagerly.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend is not usable in this process; the message says why.
    """
    _check_name(name, "use_backend(name)")
    if name == "cpp" and library.extension is None:
        raise RuntimeError(f"backend 'cpp' was asked for, but {library.extension_error}")
    if name == "cuda" and library.cuda_extension is None and not library.load_cuda_emulator():
        raise RuntimeError(f"backend 'cuda' was asked for, but {library.cuda_extension_error}")
    previous = _forced
    _force(None if name == "auto" else name)
    return _restore(previous)


def explain() -> dict[str, dict[str, dict[str, Any]]]:
    """Which implementation each operator would use on each device type, and why not the others.

    Returns ``{op: {device_type: {"implementation": name, "reasons": {other: why not}}}}``.
    """
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for op in sorted(OPS):
        table[op] = {}
        for device_type, order in PREFERENCE.items():
            if _forced is not None and _forced not in order:
                order = (_forced, *order)
            reasons = {}
            for backend in library.BACKENDS:
                reason = unavailable(op, backend, device_type)
                if reason is None and _forced not in (None, backend):
                    reason = f"backend {_forced!r} is forced"
                elif reason is None and backend not in order:
                    reason = f"not used on {device_type}"
                if reason is not None:
                    reasons[backend] = reason
            usable = [b for b in order if b not in reasons]
            table[op][device_type] = {"implementation": usable[0] if usable else "eager", "reasons": reasons}
            chosen = table[op][device_type]["implementation"]
            for backend in order:
                if backend != chosen and backend not in reasons:
                    reasons[backend] = f"{chosen} comes first"
            reasons.pop(chosen, None)
    return table


def _apply_environment() -> None:
    global _forced
    name = os.environ.get("BERTXFER_BACKEND", "auto")
    _check_name(name, "environment variable BERTXFER_BACKEND")
    _forced = None if name == "auto" else name
    isa, known = os.environ.get("BERTXFER_ISA"), library.build_info().get("instruction_sets", "").split(",")
    if isa is not None and library.extension is not None and isa not in known:
        raise ValueError(f"environment variable BERTXFER_ISA: got {isa!r}, want one of {', '.join(known)}")


_apply_environment()
