"""Timing that holds on a shared machine: all implementations on the same tensors, taking turns in one process.

A benchmark hands `compare` a dict of callables. Each round calls every one of them once, so that whatever else the
machine does falls on all alike; medians over the rounds are compared, and ratios are what is reported.
pytest-benchmark keeps the results: `python -m pytest benchmarks --benchmark-json out.json`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

import bertxfer_fast

WARMUP, ROUNDS = 3, 15

#: Sequences, length, heads, student's and teacher's head width: the shapes at which attention losses are compared.
ATTENTION_SHAPES = [(32, 128, 12, 26, 64), (8, 512, 12, 26, 64), (2, 2048, 12, 32, 64)]


def compare(
    benchmark: Any, implementations: dict[str, Callable[[], object]], *, ours: str = "cpp", **facts: Any
) -> None:
    """Times every implementation, leaves medians and ratios in ``benchmark.extra_info`` and prints one line.

    Args:
        benchmark: pytest-benchmark's fixture; its own statistics are those of ``ours``.
        implementations: name -> a call without arguments. Names without meaning to this function.
        facts: shape, dtype, whatever else should stand beside the numbers.
    """
    for call in implementations.values():
        for _ in range(WARMUP):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for _ in range(ROUNDS):
        for name, call in implementations.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: value / medians[ours] for name, value in medians.items() if name != ours}
    benchmark.extra_info.update(
        {
            **facts,
            "milliseconds": {name: value * 1e3 for name, value in medians.items()},
            "times_slower": ratios,
            "threads": torch.get_num_threads(),
            "build": bertxfer_fast.build_info(),
        }
    )
    shown = ", ".join(
        f"{name} {medians[name] * 1e3:.2f} ms ({ratio:.2f} x)" for name, ratio in ratios.items()
    )
    print(f"\n{facts}: {ours} {medians[ours] * 1e3:.2f} ms; {shown}")
    benchmark.pedantic(implementations[ours], rounds=3, iterations=1)


def on_backend(name: str, function: Callable[[], object]) -> Callable[[], object]:
    """``function`` with one backend forced for its operators."""

    def call() -> object:
        with bertxfer_fast.use_backend(name):
            return function()

    return call


def with_gradients(loss: Callable[[], Tensor], inputs: Iterable[Tensor]) -> Callable[[], object]:
    """Forward and backward to ``inputs``."""
    inputs = tuple(inputs)
    return lambda: torch.autograd.grad(loss(), inputs)


def random(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_(grad)


def even_packing(sequences: int, length: int) -> Tensor:
    """cu_seqlens of a batch without padding."""
    return torch.arange(sequences + 1, dtype=torch.int32) * length
