"""Timing that holds on a shared machine: all implementations on the same tensors, taking turns in one process.

A benchmark hands `compare` a dict of callables. Each round calls every one of them once, in an order that changes from
round to round, so that whatever else the machine does, and whatever one call leaves behind in caches and allocator for
the next, falls on all alike. Medians over the rounds are compared, and ratios are what is reported.
`bertxfer bench` runs all this; `python -m pytest benchmarks --benchmark-json out.json` is the bare form.

The environment sets how long it takes:

- ``BERTXFER_BENCH_SECONDS``: of timing per benchmark, after the warm-up (default 6);
- ``BERTXFER_BENCH_QUICK=1``: tiny shapes and few rounds, to see that everything runs; the numbers mean nothing;
- ``BERTXFER_BENCH_SKIP_COMPILE=1``: without torch.compile.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._dynamo.utils import counters

import bertxfer_fast

from . import memory

Call = Callable[[], object]
T = TypeVar("T")

QUICK = bool(os.environ.get("BERTXFER_BENCH_QUICK"))
SKIP_COMPILE = bool(os.environ.get("BERTXFER_BENCH_SKIP_COMPILE"))
SECONDS = float(os.environ.get("BERTXFER_BENCH_SECONDS", 0.1 if QUICK else 6.0))
WARMUP = 2  # the first compiles, the second finds caches and threads as later calls will
MIN_ROUNDS, MAX_ROUNDS = (3 if QUICK else 7), 50
_SHARE_OF_MEMORY = 0.8  # of what is available, that an implementation may be expected to need


def full_or_quick(full: T, quick: T) -> T:
    """Shapes to measure, or those to try the benchmark with."""
    return quick if QUICK else full


def compare(
    benchmark: Any,
    implementations: Mapping[str, Call | None],
    *,
    op: str,
    shape: str,
    case: str = "",
    length: int | None = None,
    dtype: torch.dtype = torch.float32,
    valid: float = 1.0,
    ours: str = "cpp",
    gradient_bytes: int | None = None,
    needs: Mapping[str, int] | None = None,
    calls: int = 1,
    max_rounds: int = MAX_ROUNDS,
    with_memory: bool = True,
) -> dict[str, Any]:
    """Times every implementation, measures its memory, and leaves the record in ``benchmark.extra_info``.

    Args:
        benchmark: pytest-benchmark's fixture; its own statistics are of a single call of ``ours`` and not used.
        implementations: name -> a call without arguments, or None to leave it out. ``"plain"`` is eager code as people
            write it, ``"compile"`` torch.compile of that, ``"cpp"`` and ``"eager"`` our backends, and a name that
            starts with ``"floor: "`` is work that no implementation can do without.
        op, case, shape, dtype: together they name the record; ``case`` tells records of one shape apart.
        length: of the sequences, for plots; None where there is none.
        valid: share of the tokens of the padded batch that are real.
        ours: the implementation that all are compared with.
        gradient_bytes: size of the gradients that every implementation returns.
        needs: name -> bytes it is expected to need at its peak; left out, and said so, where there is less.
        calls: so many calls are timed as one, for calls of microseconds.
        max_rounds: at most so many rounds.
        with_memory: whether to measure memory.

    Returns:
        The record: ``op``, ``case``, ``shape``, ``length``, ``dtype`` (without ``torch.``), ``valid``, ``ours``,
        ``threads``, ``rounds``, ``gradient_mb`` and ``memory_note`` (why there is no memory) or None, ``left_out``
        (name -> why), and ``implementations``: name -> ``ms`` (median), ``quartiles`` ([lower, upper], ms), ``ratio``
        (ms over ours: above 1, ours is faster), ``memory_mb`` (peak beyond what was there before, results included),
        ``memory_ratio`` (over ours) and ``memory_per_gradient`` (memory over the gradients' size, 1 at best). 1 MB is
        10**6 bytes. Benchmarks of ragged batches add ``gain`` (time at full length over packed) and ``ideal_gain``.
    """
    present, left_out = _that_fit(implementations, needs or {})
    for call in present.values():
        for _ in range(WARMUP):
            call()
    if "compile" in present and not counters["stats"]["unique_graphs"]:
        raise RuntimeError("'compile' was never compiled: nothing went through torch.compile in the warm-up")
    seconds = take_turns(present, calls=calls, max_rounds=max_rounds)
    note = memory.unavailable() if with_memory else "not measured"
    peaks = {name: None if note else memory.peak_extra_bytes(call) for name, call in present.items()}
    record = {
        "op": op,
        "case": case,
        "shape": shape,
        "length": length,
        "dtype": str(dtype).removeprefix("torch."),
        "valid": valid,
        "ours": ours,
        "threads": torch.get_num_threads(),
        "rounds": len(seconds[ours]),
        "gradient_mb": _mb(gradient_bytes),
        "memory_note": note,
        "left_out": left_out,
        "implementations": {
            name: {
                "ms": statistics.median(taken) * 1e3,
                "quartiles": [x * 1e3 for x in statistics.quantiles(taken, n=4)[::2]],
                "ratio": statistics.median(taken) / statistics.median(seconds[ours]),
                "memory_mb": _mb(peaks[name]),
                "memory_ratio": _over(peaks[name], peaks[ours]),
                "memory_per_gradient": _over(peaks[name], gradient_bytes),
            }
            for name, taken in seconds.items()
        },
    }
    benchmark.extra_info.update(record)
    _tell(record)
    benchmark.pedantic(present[ours], rounds=1, iterations=1)
    return record


def take_turns(
    implementations: Mapping[str, Call],
    *,
    seconds: float = SECONDS,
    calls: int = 1,
    min_rounds: int = MIN_ROUNDS,
    max_rounds: int = MAX_ROUNDS,
) -> dict[str, list[float]]:
    """Seconds of each call of each implementation, one per round, for about ``seconds`` in all.

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
                call = implementations[name]
                begin = time.perf_counter()
                for _ in range(calls):
                    call()
                taken[name].append((time.perf_counter() - begin) / calls)
            rounds += 1
    finally:
        gc.enable()
    return taken


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
    implementations: Mapping[str, Call | None], needs: Mapping[str, int]
) -> tuple[dict[str, Call], dict[str, str]]:
    available = memory.available_bytes()
    left_out = {
        name: f"needs about {needed / 1e9:.0f} GB, {available / 1e9:.0f} GB are available"
        for name, needed in needs.items()
        if implementations.get(name) is not None and available is not None
        if needed > _SHARE_OF_MEMORY * available
    }
    present = {
        name: call for name, call in implementations.items() if call is not None and name not in left_out
    }
    return present, left_out


def _mb(size: int | None) -> float | None:
    return None if size is None else size / 1e6


def _over(size: int | None, other: int | None) -> float | None:
    return None if size is None or not other else size / other


def _tell(record: dict[str, Any]) -> None:
    facts = " ".join(str(record[key]) for key in ("op", "case", "shape", "dtype") if record[key])
    shown = ", ".join(
        f"{name} {result['ms']:.3g} ms ({result['ratio']:.2f} x)"
        for name, result in record["implementations"].items()
    )
    print(f"\n{facts}: {shown}")


# ---- implementations ----------------------------------------------------------------------------------------


def on_backend(name: str, function: Call) -> Call:
    """``function`` with one backend forced for its operators."""

    def call() -> object:
        with bertxfer_fast.use_backend(name):
            return function()

    return call


def backends(function: Call, *, eager: bool = True) -> dict[str, Call]:
    """``function`` on our kernels and, unless it would take absurdly long, on our readable reference."""
    names = ("cpp", "eager") if eager else ("cpp",)
    return {name: on_backend(name, function) for name in names}


def with_gradients(loss: Callable[[], Tensor], inputs: Iterable[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward to ``inputs``; the call returns their gradients."""
    inputs = tuple(inputs)
    return lambda: torch.autograd.grad(loss(), inputs)


def compiled(function: Callable[..., Any], *, fullgraph: bool = True) -> Callable[..., Any] | None:
    """torch.compile of ``function``, or None where the run goes without."""
    return None if SKIP_COMPILE else torch.compile(function, fullgraph=fullgraph)


def nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)
