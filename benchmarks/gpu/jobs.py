"""What workers do: each function here is a job, which yields facts. Imported in a worker alone: it needs torch."""

from __future__ import annotations

import gc
import importlib
import math
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bertxfer_fast.ops._dispatch.choices import replace_row

from .. import device, harness, machine

Fact = dict[str, Any]

#: Norm of the error over the norm of the truth, by dtype. Where a result is farther off than this, it may be twice as
#: far off as plain PyTorch at the same dtype.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 2e-3}
ROUNDS, SECONDS = (5, 100), 0.5  # fewest and most rounds of a timing, and about how long it takes


def device_facts() -> Iterator[Fact]:
    yield {"kind": "device", "machine": machine.facts()}


def ceilings() -> Iterator[Fact]:
    """What the device can do at best: bytes copied, read and written counted, and a product of matrices."""
    yield {"kind": "ceiling", "name": "copy", "gb_per_s": _copied(1 << (10 if device.DRY else 28))}
    yield {"kind": "ceiling", "name": "bf16 product", "tflops": _multiplied(64 if device.DRY else 8192)}


def _copied(n: int) -> float:
    source, target = (torch.randn(n, device=device.TENSORS) for _ in range(2))
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source)) / 1e9


def _multiplied(n: int) -> float:
    a, b = (torch.randn(n, n, device=device.TENSORS, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / _seconds(lambda: a @ b) / 1e12


def _seconds(call: harness.Call) -> float:
    for _ in range(3):
        call()
    return statistics.median(_rounds(call))


_events: list[device.Events] = []


def _rounds(call: harness.Call) -> list[float]:
    fewest, most = ROUNDS
    if device.TENSORS != "cuda":
        return harness.take_turns({"": call}, seconds=0.1, min_rounds=3, max_rounds=3)[""]
    if not _events:
        _events.append(device.Events())
    _events[0].host_seconds(call)
    clock = _events[0].seconds
    return harness.take_turns({"": call}, seconds=SECONDS, min_rounds=fewest, max_rounds=most, clock=clock)[
        ""
    ]


# ---- problems -----------------------------------------------------------------------------------------------

_built: dict[str, harness.Problem] = {}
_truths: dict[str, tuple[Tensor, ...]] = {}
#: Bytes that are free before a baseline is compiled beside what is measured, since calling it takes memory; and how
#: often it looks, how many seconds apart.
_ROOM, _TRIES, _WAIT = 40e9, 120, 0.5


def _problem(spec: Fact) -> harness.Problem:
    """The last problem is kept: it is checked, and then timed."""
    key = repr(spec)
    if key not in _built:
        _forget()
        torch.compiler.reset()  # code that was compiled for another shape would be compiled for any shape now
        torch.manual_seed(0)
        dtype = getattr(torch, spec["dtype"])
        # JSON has neither tuples nor dtypes, for which null stands.
        arguments = [
            tuple(x) if isinstance(x, list) else dtype if x is None else x for x in spec["arguments"]
        ]
        module = importlib.import_module(f"benchmarks.{spec['module']}")
        _built[key] = getattr(module, spec["builder"])(*arguments)
    return _built[key]


def _forget() -> None:
    """Gives all memory back."""
    _built.clear(), _truths.clear()
    for events in _events:
        events.ahead.clear()  # with the calls go their tensors
    if device.TENSORS == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _call(problem: harness.Problem, name: str) -> harness.Call:
    found = problem.implementations.get(name, "is not part of this problem")
    if not callable(found):
        raise RuntimeError(f"{name} {found}")
    return found


def _about(problem: harness.Problem, spec: Fact) -> Fact:
    return {
        "problem": problem.names,
        "length": problem.length,
        "valid": problem.valid,
        "operator": problem.operator,
        "size": problem.size,
        "gradient_bytes": problem.gradient_bytes,
        "ideal_gain": problem.ideal_gain,
        "target_us": spec["target_us"],
        "build": os.environ.get("BERTXFER_BENCH_CUDA"),
    }


# ---- right --------------------------------------------------------------------------------------------------


def check(spec: Fact, backend: str) -> Iterator[Fact]:
    """Against float64, on memory that was NaN, twice with the same bits."""
    problem = _problem(spec)
    call = _call(problem, backend)
    build = os.environ.get("BERTXFER_BENCH_CUDA")
    about = {"kind": "check", "problem": problem.names, "backend": backend, "build": build}
    if problem.check is not None:
        problem.check(backend)
        yield {**about, "ok": True}
        return
    if problem.truth is None:  # ragged: the same kernels on another packing, which the contract tests check
        again = [_results(call) for _ in range(2)]
        same = all(torch.equal(a, b) and bool(a.isfinite().all()) for a, b in zip(*again, strict=True))
        yield {**about, "ok": same}
        if not same:
            raise AssertionError("the same inputs gave other bits, or results are not finite")
        return
    with _poisoned():
        first, again = _results(call), _results(call)
    same = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    errors, allowed = _errors(first, _truth(problem)), [TOLERANCE[problem.names[3]]] * len(first)
    if not all(a <= b for a, b in zip(errors, allowed, strict=True)) and callable(
        problem.implementations["plain"]
    ):
        plain = _errors(_results(problem.implementations["plain"]), _truth(problem))
        allowed = [max(a, 2 * b) for a, b in zip(allowed, plain, strict=True)]
    right = all(a <= b for a, b in zip(errors, allowed, strict=True))
    yield {**about, "ok": right and same, "errors": errors, "allowed": allowed, "same_bits": same}
    if not right:
        raise AssertionError(f"errors are {_digits(errors)}, allowed are {_digits(allowed)}")
    if not same:
        raise AssertionError("the same inputs gave other bits")


def _results(call: harness.Call) -> tuple[Tensor, ...]:
    return _tensors(call())


def _tensors(found: Any) -> tuple[Tensor, ...]:
    return tuple(x.detach() for x in found) if isinstance(found, tuple | list) else (found.detach(),)


def _truth(problem: harness.Problem) -> tuple[Tensor, ...]:
    if not _truths:
        assert problem.truth is not None
        _truths["only"] = problem.truth()
    return _truths["only"]


def _errors(got: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> list[float]:
    """Of each result the error's norm over the truth's; a batch may be ``[B, L, ...]`` where the truth is packed."""
    found = [
        float((a.double().reshape(b.shape) - b).norm() / b.norm().clamp_min(1e-300))
        for a, b in zip(got, truth, strict=True)
    ]
    return [x if math.isfinite(x) else 1e9 for x in found]  # JSON has no word for a NaN


def _digits(errors: list[float]) -> str:
    return ", ".join(f"{x:.2g}" for x in errors)


@contextmanager
def _poisoned() -> Iterator[None]:
    """What torch.empty hands out is NaN: an element that no kernel writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# ---- fast ---------------------------------------------------------------------------------------------------


def measure(spec: Fact, names: list[str]) -> Iterator[Fact]:
    """Device time and memory of implementations, one after the other.

    A name that ends in a colon stands for all that begin so. What cannot run is a fact, too.
    """
    problem = _problem(spec)
    for name in problem.implementations:
        if name in names or any(x.endswith(":") and name.startswith(x) for x in names):
            yield {**_about(problem, spec), **_timed(problem, name)}


def _timed(problem: harness.Problem, name: str) -> Fact:
    fact = {"implementation": name}
    present, left_out = harness.those_that_fit({name: problem.implementations[name]}, problem.needs)
    if name not in present:
        return {**fact, "kind": "left out", "why": left_out.get(name, "was asked to be left out")}
    call = present[name]
    try:
        for _ in range(harness.WARMUP):
            call()
        return {**fact, "kind": "time", **_times(call)}
    except Exception as error:
        why = device.why_failed(error)
        if not device.usable():
            raise
    return {**fact, "kind": "left out", "why": why}


def _times(call: harness.Call) -> Fact:
    rounds = _rounds(call)
    return {
        "ms": statistics.median(rounds) * 1e3,
        "quartiles": [x * 1e3 for x in statistics.quantiles(rounds, n=4)[::2]],
        "rounds": len(rounds),
        "host_ms": _events[0].ahead[call] * 1e3 if _events else None,
        "memory_mb": device.peak_extra_bytes(call) / 1e6 if device.TENSORS == "cuda" else None,
    }


# ---- in the background --------------------------------------------------------------------------------------


def compile_triton(spec: Fact, row: Fact | None = None) -> Iterator[Fact]:
    """Triton's kernels of a problem into its cache on disk; none is launched, so that the GPU stays quiet."""
    try:
        with _row(row), _compiled_only():
            _call(_problem(spec), "triton")()
    finally:
        _forget()
    yield {"kind": "compiling", "triton": spec}


@contextmanager
def _compiled_only() -> Iterator[None]:
    """Launches of Triton kernels compile as they would and stop there."""
    from triton.runtime.jit import JITFunction

    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return original(self, *args, grid=grid, warmup=True, **options)

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = original


def compile_baseline(spec: Fact) -> Iterator[Fact]:
    """torch.compile of the plain code, into inductor's cache on disk: that takes calling it."""
    for _ in range(_TRIES):
        if device.available_bytes() >= _ROOM:
            break
        time.sleep(_WAIT)
    try:
        _call(_problem(spec), "compile")()
    finally:
        _forget()
    yield {"kind": "compiling", "baseline": spec}


# ---- configurations -----------------------------------------------------------------------------------------


@contextmanager
def _row(row: Fact | None) -> Iterator[None]:
    """One row of a kernel's table replaced, while the block runs."""
    if row is None:
        yield
        return
    table = getattr(importlib.import_module(row["module"]), row["table"])
    bounds = tuple(row["bounds"])
    former = replace_row(table, bounds, row["meta"])
    try:
        yield
    finally:
        replace_row(table, bounds, former)


def sweep(spec: Fact, row: Fact, standing: bool) -> Iterator[Fact]:
    """One configuration of one kernel: checked, and only then timed."""
    problem = _problem(spec)
    with _row(row):
        yield from check(spec, "triton")
        yield {
            "kind": "sweep",
            **_about(problem, spec),
            **row,
            "standing": standing,
            **_times(_call(problem, "triton")),
        }
