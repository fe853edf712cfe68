"""Timing that holds on a shared machine: all implementations on the same tensors, taking turns in one process.

A benchmark describes a `Problem` and hands it to `compare`. Each round calls every implementation once, in an order
that changes from round to round, so that whatever else the machine does, and whatever one call leaves behind in caches
and allocator for the next, falls on all alike. Medians over the rounds are compared, and ratios are what is reported.
`bertxfer bench` runs all this; `python -m pytest benchmarks --benchmark-json out.json` is the bare form. On a GPU,
which `make gpu` measures (:mod:`.gpu`), the problems are the same on larger shapes, and the rest is its own.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._dynamo.utils import counters

import bertxfer_fast

from . import device, memory
from .results import Measured, Record

Call = Callable[[], object]
T = TypeVar("T")

QUICK = bool(os.environ.get("BERTXFER_BENCH_QUICK"))
SKIP_COMPILE = bool(os.environ.get("BERTXFER_BENCH_SKIP_COMPILE"))
SECONDS = float(os.environ.get("BERTXFER_BENCH_SECONDS", 0.1 if QUICK else 6.0))
WARMUP = 2  # the first compiles, the second finds caches and threads as later calls will
MIN_ROUNDS, MAX_ROUNDS = (3 if QUICK else 7), 50
_SHARE_OF_MEMORY = 0.8  # of what is available, that an implementation may be expected to need


def full_or_quick(full: T, quick: T, gpu: T | None = None) -> T:
    """Shapes to measure (on a GPU others, where there are such), or those to try the benchmark with."""
    if QUICK:
        return quick
    return gpu if device.ON_GPU and gpu is not None else full


@dataclass(frozen=True)
class Problem:
    """One case of a benchmark, and everyone who solves it.

    ``op``, ``case``, ``shape`` and ``dtype`` together name it; ``case`` tells problems of one shape apart.
    """

    op: str
    shape: str
    #: Name -> a call without arguments, or the words that say why there is none, or None to leave it out. "plain" is
    #: eager code as people write it, "compile" torch.compile of that, "cpp", "eager", "triton" and "cuda" our
    #: backends; a name that starts with "floor: " is work that no implementation can do without, one with "peer: "
    #: other people's kernel.
    implementations: Mapping[str, Call | str | None]
    case: str = ""
    length: int | None = None  # of the sequences, for plots
    dtype: torch.dtype = torch.float32
    valid: float = 1.0  # share of the tokens of the padded batch that are real
    operator: str | None = None  # whose backends are chosen by the record, for a call of this size
    size: int | None = None
    gradient_bytes: int | None = None  # of the gradients that every implementation returns
    #: Name -> bytes it is expected to need at its peak; left out, and said so, where there is less.
    needs: Mapping[str, int] = field(default_factory=dict)
    ideal_gain: float | None = None  # of a ragged batch over the implementation "... full length"
    #: What the implementations of ours return, in float64.
    truth: Callable[[], tuple[Tensor, ...]] | None = None
    #: Where there is no such truth: fails unless a backend of ours does the same as the plain code.
    check: Callable[[str], None] | None = None

    @property
    def names(self) -> tuple[str, str, str, str]:
        """`results.Record.key`."""
        return self.op, self.case, self.shape, str(self.dtype).removeprefix("torch.")

    def record(
        self,
        taken: Mapping[str, Sequence[float]],
        peaks: Mapping[str, int | None],
        ours: Sequence[str],
        **more: Any,
    ) -> Record:
        """What was measured: the seconds of every round, and peak bytes where they are known.

        ``ours`` are the implementations that users get; all are compared with the fastest of them.
        """
        median = {name: statistics.median(rounds) for name, rounds in taken.items()}
        best = min((name for name in ours if name in median), key=lambda name: median[name])
        op, case, shape, dtype = self.names
        whole = median.get(f"{best} full length")
        return Record(
            op=op,
            case=case,
            shape=shape,
            dtype=dtype,
            ours=best,
            length=self.length,
            valid=self.valid,
            operator=self.operator,
            size=self.size,
            rounds=len(taken[best]),
            gradient_mb=_mb(self.gradient_bytes),
            ideal_gain=self.ideal_gain,
            gain=whole / median[best] if whole is not None and self.ideal_gain is not None else None,
            implementations={
                name: Measured(
                    ms=median[name] * 1e3,
                    quartiles=tuple(x * 1e3 for x in statistics.quantiles(rounds, n=4)[::2]),
                    ratio=median[name] / median[best],
                    memory_mb=_mb(peaks.get(name)),
                    memory_ratio=_over(peaks.get(name), peaks.get(best)),
                    memory_per_gradient=_over(peaks.get(name), self.gradient_bytes),
                )
                for name, rounds in taken.items()
            },
            **more,
        )


def compare(
    benchmark: Any,
    problem: Problem,
    *,
    ours: Sequence[str] = device.OURS,
    calls: int = 1,
    warmup: int = WARMUP,
    min_rounds: int = MIN_ROUNDS,
    max_rounds: int = MAX_ROUNDS,
    with_memory: bool = True,
) -> Record:
    """Times every implementation, measures its memory, and leaves the record in ``benchmark.extra_info``.

    Args:
        benchmark: pytest-benchmark's fixture; its own statistics are of a single call of ``ours`` and not used.
        problem: what is compared.
        ours: the implementations that users get; all are compared with the fastest of them.
        calls: so many calls are timed as one, for calls of microseconds.
        warmup: so many calls of each come first and do not count.
        min_rounds, max_rounds: at least and at most so many rounds, whatever the time.
        with_memory: whether to measure memory.

    Raises:
        AssertionError: ours is not what the plain code computes.
        RuntimeError: torch.compile compiled nothing.
    """
    begin = time.perf_counter()
    if problem.check is not None:
        problem.check(ours[0])
    present, left_out = those_that_fit(problem.implementations, problem.needs)
    for call in present.values():
        for _ in range(warmup):
            call()
    if "compile" in present and not counters["stats"]["unique_graphs"]:
        raise RuntimeError("'compile' was never compiled: nothing went through torch.compile in the warm-up")
    taken = take_turns(present, calls=calls, min_rounds=min_rounds, max_rounds=max_rounds)
    note = memory.unavailable() if with_memory else "not measured"
    record = problem.record(
        taken,
        {} if note else {name: memory.peak_extra_bytes(call) for name, call in present.items()},
        ours,
        threads=torch.get_num_threads(),
        memory_note=note,
        left_out=left_out,
        seconds=time.perf_counter() - begin,
    )
    benchmark.extra_info.update(record.to_json())
    benchmark.pedantic(present[record.ours], rounds=1, iterations=1)
    return record


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


def those_that_fit(
    implementations: Mapping[str, Call | str | None], needs: Mapping[str, int]
) -> tuple[dict[str, Call], dict[str, str]]:
    """The implementations that can be called and have the memory for it, and why the others do not."""
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
    """Forward and backward to ``inputs``; the call returns the loss and their gradients."""
    inputs = tuple(inputs)

    def call() -> tuple[Tensor, ...]:
        out = loss()
        return out, *torch.autograd.grad(out, inputs)

    return call


def in_float64(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    upstream: Tensor | None = None,
    *,
    parts: int = 1,
) -> tuple[Tensor, ...]:
    """``function`` of copies in float64, and the gradients of those inputs that ask for one.

    With ``parts`` the inputs are cut along their first dimension: the function is a mean over them, or, with an
    ``upstream`` gradient, has an output for each; so maps in float64 need not all be there at once.
    """
    outs, found = [], []
    for i in range(parts):
        pieces = [x.detach().tensor_split(parts)[i].double().requires_grad_(x.requires_grad) for x in inputs]
        wrt = [x for x in pieces if x.requires_grad]
        out = function(*pieces)
        grad = None if upstream is None else upstream.tensor_split(parts)[i].to(out)
        found.append(torch.autograd.grad(out, wrt, grad) if wrt else ())
        outs.append(out.detach())
    grads = [torch.cat(pieces) for pieces in zip(*found, strict=True)]
    if upstream is not None:
        return torch.cat(outs), *grads
    return torch.stack(outs).mean(0), *(x / parts for x in grads)


def compiled(function: Callable[..., Any], *, fullgraph: bool = True) -> Callable[..., Any] | None:
    """torch.compile of ``function``, or None where the run goes without."""
    return None if SKIP_COMPILE else torch.compile(function, fullgraph=fullgraph)


def nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)
