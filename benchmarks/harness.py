"""Timing that holds on a shared machine: all implementations on the same tensors, taking turns in one process.

A benchmark hands `compare` a dict of callables. Each round calls every one of them once, in an order that changes from
round to round, so that whatever else the machine does, and whatever one call leaves behind in caches and allocator for
the next, falls on all alike. Medians over the rounds are compared, and ratios are what is reported.
`bertxfer bench` runs all this; `python -m pytest benchmarks --benchmark-json out.json` is the bare form. On a GPU,
which `make gpu` measures, the shapes, the clock and the memory are the GPU's (:mod:`.device`); the rest is the same.

The environment sets how long it takes:

- ``BERTXFER_BENCH_SECONDS``: of timing per benchmark, after the warm-up (default 6, on a GPU 2);
- ``BERTXFER_BENCH_QUICK=1``: tiny shapes and few rounds, to see that everything runs; the numbers mean nothing;
- ``BERTXFER_BENCH_SKIP_COMPILE=1``: without torch.compile.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import bertxfer_fast

from . import device, memory

Call = Callable[[], object]
T = TypeVar("T")

QUICK = bool(os.environ.get("BERTXFER_BENCH_QUICK"))
SKIP_COMPILE = bool(os.environ.get("BERTXFER_BENCH_SKIP_COMPILE"))
SECONDS = float(os.environ.get("BERTXFER_BENCH_SECONDS", 0.1 if QUICK else 2.0 if device.ON_GPU else 6.0))
WARMUP = 2  # the first compiles, the second finds caches and threads as later calls will
MIN_ROUNDS, MAX_ROUNDS = (3 if QUICK else 7), (100 if device.ON_GPU else 50)
_SHARE_OF_MEMORY = 0.8  # of what is available, that an implementation may be expected to need
_DISAGREEMENT = 0.05  # between two backends of ours, norm of the difference over the norm: more is an error
_NOT_A_NUMBER = 1e9  # stands for such a difference: JSON has no word for it


def full_or_quick(full: T, quick: T, gpu: T | None = None) -> T:
    """Shapes to measure (on a GPU others, where there are such), or those to try the benchmark with."""
    if QUICK:
        return quick
    return gpu if device.ON_GPU and gpu is not None else full


def compare(
    benchmark: Any,
    implementations: Mapping[str, Call | str | None],
    *,
    op: str,
    shape: str,
    case: str = "",
    length: int | None = None,
    dtype: torch.dtype = torch.float32,
    valid: float = 1.0,
    ours: Sequence[str] = device.OURS,
    operator: str | None = None,
    size: int | None = None,
    gradient_bytes: int | None = None,
    needs: Mapping[str, int] | None = None,
    calls: int = 1,
    max_rounds: int = MAX_ROUNDS,
    with_memory: bool = True,
) -> dict[str, Any]:
    """Times every implementation, measures its memory, and leaves the record in ``benchmark.extra_info``.

    Args:
        benchmark: pytest-benchmark's fixture; its own statistics are of a single call of ``ours`` and not used.
        implementations: name -> a call without arguments, or the words that say why there is none, or None to leave it
            out. ``"plain"`` is eager code as people write it, ``"compile"`` torch.compile of that, ``"cpp"``,
            ``"eager"``, ``"triton"`` and ``"cuda"`` our backends; a name that starts with ``"floor: "`` is work that
            no implementation can do without, one with ``"peer: "`` other people's kernel.
        op, case, shape, dtype: together they name the record; ``case`` tells records of one shape apart.
        length: of the sequences, for plots; None where there is none.
        valid: share of the tokens of the padded batch that are real.
        ours: the implementations that users get; all are compared with the fastest of them.
        operator: whose backends are chosen by the record (see `ops._choices`), for a call of this ``size``.
        gradient_bytes: size of the gradients that every implementation returns.
        needs: name -> bytes it is expected to need at its peak; left out, and said so, where there is less.
        calls: so many calls are timed as one, for calls of microseconds.
        max_rounds: at most so many rounds.
        with_memory: whether to measure memory.

    Returns:
        The record: ``op``, ``case``, ``shape``, ``length``, ``dtype`` (without ``torch.``), ``valid``, ``ours`` (the
        fastest of them), ``operator``, ``size``, ``threads``, ``rounds``, ``gradient_mb`` and ``memory_note`` (why
        there is no memory) or None, ``left_out`` (name -> why), and ``implementations``: name -> ``ms`` (median),
        ``quartiles`` ([lower, upper], ms), ``ratio`` (ms over ours: above 1, ours is faster), ``memory_mb`` (peak
        beyond what was there before, results included), ``memory_ratio`` (over ours) and ``memory_per_gradient``
        (memory over the gradients' size, 1 at best). 1 MB is 10**6 bytes. On a GPU ``ms`` is the device's time,
        ``host_ms`` what the host needs to issue the call, and ``difference`` how far our backends' results lie apart.
        Benchmarks of ragged batches add ``gain`` (time at full length over packed) and ``ideal_gain``.

    Raises:
        RuntimeError: torch.compile compiled nothing; on a GPU also, after all is recorded, where one of our backends
            fails or they do not agree. What else fails on a GPU is left out, and said so.
    """
    begin = time.perf_counter()
    present, left_out = _that_fit(implementations, needs or {})
    names = op, case, shape, str(dtype)
    broken = _warm_up(present, names)
    left_out.update(broken)
    if not any(name in present for name in ours):
        raise RuntimeError("; ".join(f"{name} {why}" for name, why in left_out.items() if name in ours))
    if "compile" in present and not counters["stats"]["unique_graphs"]:
        raise RuntimeError("'compile' was never compiled: nothing went through torch.compile in the warm-up")
    clock = device.Events() if device.TENSORS == "cuda" else None
    host = {name: clock.host_seconds(call) for name, call in present.items()} if clock else {}
    seconds = take_turns(present, calls=calls, max_rounds=max_rounds, clock=clock.seconds if clock else None)
    best = min((name for name in ours if name in present), key=lambda name: statistics.median(seconds[name]))
    difference = _difference([present[name] for name in ours if name in present]) if device.ON_GPU else None
    note = memory.unavailable() if with_memory else "not measured"
    peaks = {name: None if note else memory.peak_extra_bytes(call) for name, call in present.items()}
    record = {
        "op": op,
        "case": case,
        "shape": shape,
        "length": length,
        "dtype": str(dtype).removeprefix("torch."),
        "valid": valid,
        "ours": best,
        "operator": operator,
        "size": size,
        "threads": torch.get_num_threads(),
        "rounds": len(seconds[best]),
        "gradient_mb": _mb(gradient_bytes),
        "memory_note": note,
        "left_out": left_out,
        **({"difference": difference} if device.ON_GPU else {}),
        "implementations": {
            name: {
                "ms": statistics.median(taken) * 1e3,
                "quartiles": [x * 1e3 for x in statistics.quantiles(taken, n=4)[::2]],
                "ratio": statistics.median(taken) / statistics.median(seconds[best]),
                "memory_mb": _mb(peaks[name]),
                "memory_ratio": _over(peaks[name], peaks[best]),
                "memory_per_gradient": _over(peaks[name], gradient_bytes),
                **({"host_ms": host[name] * 1e3} if name in host else {}),
            }
            for name, taken in seconds.items()
        },
    }
    benchmark.extra_info.update(record)
    _tell(record, time.perf_counter() - begin)
    benchmark.pedantic(present[best], rounds=1, iterations=1)
    failed = {name: why for name, why in broken.items() if name.split()[0] in ours}
    if failed:
        raise RuntimeError("; ".join(f"{name} {why}" for name, why in failed.items()))
    if difference is not None and not difference <= _DISAGREEMENT:
        raise RuntimeError(f"our backends' results lie {difference:.2g} of their norm apart")
    return record


def _warm_up(present: dict[str, Call], names: Sequence[str]) -> dict[str, str]:
    """Calls each implementation so often that the next call is like later ones.

    On a GPU what fails leaves ``present`` and is returned with the reason; where the GPU does not answer any more, the
    process ends.
    """
    broken = {}
    for name, call in list(present.items()):
        if device.ON_GPU:
            device.leave({"running": name, "of": names})
        try:
            for _ in range(WARMUP):
                call()
                if device.TENSORS == "cuda":
                    torch.cuda.synchronize()
        except Exception as error:
            if not device.ON_GPU:
                raise
            broken[name] = device.why_failed(error)
        if name in broken:  # out here the error, and with it what it held, is gone
            del present[name]
            print(f"\n{' '.join(filter(None, names))}: {name} {broken[name]}", flush=True)
            if not device.usable():
                pytest.exit(f"the GPU does not answer after {name}: {broken[name]}", returncode=17)
            gc.collect()
            if device.TENSORS == "cuda":
                torch.cuda.empty_cache()
    if device.ON_GPU:
        device.leave({"running": ""})
    return broken


def _difference(calls: Sequence[Call]) -> float | None:
    """How far the results of the second lie from those of the first; None where there are no two."""
    if len(calls) < 2:
        return None
    first, second = (x if isinstance(x, tuple | list) else (x,) for x in (call() for call in calls[:2]))
    apart = [
        float((b.double() - a.double()).norm() / a.double().norm().clamp_min(1e-300))
        for a, b in zip(first, second, strict=True)
    ]
    return max(x if math.isfinite(x) else _NOT_A_NUMBER for x in apart)


def take_turns(
    implementations: Mapping[str, Call],
    *,
    seconds: float = SECONDS,
    calls: int = 1,
    min_rounds: int = MIN_ROUNDS,
    max_rounds: int = MAX_ROUNDS,
    clock: Callable[[Call, int], float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call of each implementation, one per round, for about ``seconds`` in all.

    ``clock`` makes so many calls and says how long one took; without it the host's clock does.

    Freeing the results is part of a call: whoever makes large tensors also has to give them back.
    """
    names = list(implementations)
    taken: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        start, rounds = time.perf_counter(), 0
        while rounds < min_rounds or (rounds < max_rounds and time.perf_counter() - start < seconds):
            for name in turn_order(names, rounds):
                taken[name].append((clock or _host_seconds)(implementations[name], calls))
            rounds += 1
    finally:
        gc.enable()
    return taken


def _host_seconds(call: Call, calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


def turn_order(names: list[str], turn: int) -> list[str]:
    """The order of one round: over ``2 * len(names)`` rounds each name follows each other name equally often.

    A mere rotation would let the same name always come after the most memory-hungry one. This is Williams' design:
    0, 1, n-1, 2, n-2, ... shifted by one every round, and every other cycle backwards.
    """
    n = len(names)
    cycle, shift = divmod(turn, n)
    zigzag = [(i + 1) // 2 if i % 2 else (n - i // 2) % n for i in range(n)]
    order = [names[(i + shift) % n] for i in zigzag]
    return order[::-1] if cycle % 2 else order


def _that_fit(
    implementations: Mapping[str, Call | str | None], needs: Mapping[str, int]
) -> tuple[dict[str, Call], dict[str, str]]:
    available = memory.available_bytes()
    left_out = {name: why for name, why in implementations.items() if isinstance(why, str)}
    left_out |= {
        name: f"needs about {needed / 1e9:.0f} GB, {available / 1e9:.0f} GB are available"
        for name, needed in needs.items()
        if callable(implementations.get(name)) and available is not None
        if needed > _SHARE_OF_MEMORY * available
    }
    present = {
        name: call for name, call in implementations.items() if callable(call) and name not in left_out
    }
    return present, left_out


def _mb(size: int | None) -> float | None:
    return None if size is None else size / 1e6


def _over(size: int | None, other: int | None) -> float | None:
    return None if size is None or not other else size / other


def _tell(record: dict[str, Any], seconds: float) -> None:
    facts = " ".join(str(record[key]) for key in ("op", "case", "shape", "dtype") if record[key])
    shown = ", ".join(
        f"{name} {result['ms']:.3g} ms ({result['ratio']:.2f} x)"
        for name, result in record["implementations"].items()
    )
    reasons = {why: name for name, why in reversed(record["left_out"].items())}  # each once
    left_out = "".join(f"; {name} {why}" for why, name in reversed(reasons.items()))
    print(f"\n{facts}: {shown}{left_out} [{seconds:.1f} s]", flush=True)


# ---- implementations ----------------------------------------------------------------------------------------


def on_backend(name: str, function: Call) -> Call:
    """``function`` with one backend forced for its operators."""

    def call() -> object:
        with bertxfer_fast.use_backend(name):
            return function()

    return call


def backends(function: Call, operator: str, *, eager: bool = True, suffix: str = "") -> dict[str, Call | str]:
    """``function`` on our backends for the device; on a GPU, one that cannot run there is the reason.

    ``eager=False`` leaves out our readable reference, which takes absurdly long at some shapes; ``suffix`` is put
    behind the names.
    """
    found: dict[str, Call | str] = {}
    for name in device.BACKENDS:
        if name != "eager" or eager:
            why = device.why_not(operator, name)
            found[f"{name} {suffix}".strip()] = on_backend(name, function) if why is None else why
    return found


def in_float32_too(make: Callable[[], Call], dtype: torch.dtype) -> dict[str, Call]:
    """On the CPU, beside bfloat16, our kernels on the same values in float32; ``make`` builds that call."""
    if device.ON_GPU or dtype != torch.bfloat16:
        return {}
    return {"cpp float32": on_backend("cpp", make())}


def with_gradients(loss: Callable[[], Tensor], inputs: Iterable[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward to ``inputs``; the call returns their gradients."""
    inputs = tuple(inputs)
    return lambda: torch.autograd.grad(loss(), inputs)


def compiled(function: Callable[..., Any], *, fullgraph: bool = True) -> Callable[..., Any] | None:
    """torch.compile of ``function``, or None where the run goes without."""
    return None if SKIP_COMPILE else torch.compile(function, fullgraph=fullgraph)


def nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)
