"""Which implementation runs where: one table, one override, one explanation.

The choice is made in Python, per call, by device: CPU takes the first usable of ``cpp`` and ``eager``. The
environment variable ``BERTXFER_BACKEND`` and :func:`use_backend` override it for the whole process.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import _library

#: Order of preference per device type.
PREFERENCE: dict[str, tuple[str, ...]] = {"cpu": ("cpp", "eager"), "cuda": ("eager",)}

#: What each backend needs, in the words an error message uses.
_NEEDS = {
    "cpp": "CPU tensors and the compiled extension",
    "eager": "nothing",
}

_forced: str | None = None
_warned = False


def _check_name(name: str, source: str) -> str:
    known = ("auto", *_library.BACKENDS)
    if name not in known:
        raise ValueError(f"{source}: unknown backend {name!r}, want one of {', '.join(known)}")
    return name


def unavailable(op: str, backend: str, device_type: str) -> str | None:
    """Why ``backend`` cannot run ``op`` on ``device_type``, or None if it can."""
    if backend not in _library.IMPLEMENTATIONS[op]:
        return f"{op} has no {backend} implementation"
    if backend == "cpp":
        if device_type != "cpu":
            return f"cpp needs {_NEEDS['cpp']}, not {device_type} tensors"
        return _library.extension_error or _library.MISSING_KERNELS.get(op)
    return None


def pick(op: str, device_type: str) -> str:
    """The backend that a call of ``op`` on ``device_type`` takes.

    Raises:
        RuntimeError: a backend asked for by name cannot run here; the message says why.
    """
    if _forced is not None:
        reason = unavailable(op, _forced, device_type)
        if reason is None or _falls_back(op, _forced):
            return _forced if reason is None else "eager"
        raise RuntimeError(f"backend {_forced!r} was asked for, but {reason}")
    for backend in PREFERENCE.get(device_type, ("eager",)):
        if unavailable(op, backend, device_type) is None:
            if backend == "eager" and device_type == "cpu" and _library.extension is None:
                _warn_once()
            return backend
    return "eager"


def _falls_back(op: str, backend: str) -> bool:
    # An operator that nobody has compiled yet stays usable while a compiled backend is forced for the others.
    return backend not in _library.IMPLEMENTATIONS[op]


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"bertxfer_fast runs its slower eager operators: {_library.extension_error}. "
            "Reinstall with a C++17 compiler at hand for the compiled ones.",
            RuntimeWarning,
            stacklevel=4,
        )


@contextmanager
def _restore(previous: str | None) -> Iterator[None]:
    global _forced
    try:
        yield
    finally:
        _forced = previous


def use_backend(name: str) -> Any:
    """Forces one backend for every operator, process-wide.

    Takes effect at once; used as a context manager it is undone at the end of the block.

    Args:
        name: ``"auto"``, ``"eager"`` or ``"cpp"``. An operator that has no such implementation at all keeps
            running eagerly.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend is not usable in this process; the message says why.
    """
    global _forced
    _check_name(name, "use_backend(name)")
    if name == "cpp" and _library.extension is None:
        raise RuntimeError(f"backend 'cpp' was asked for, but {_library.extension_error}")
    previous = _forced
    _forced = None if name == "auto" else name
    return _restore(previous)


def explain() -> dict[str, dict[str, dict[str, Any]]]:
    """Which implementation each operator would use on each device type, and why not the others.

    Returns ``{op: {device_type: {"implementation": name, "reasons": {other: why not}}}}``.
    """
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for op in sorted(_library.IMPLEMENTATIONS):
        table[op] = {}
        for device_type, order in PREFERENCE.items():
            reasons = {}
            for backend in _library.BACKENDS:
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


_apply_environment()
