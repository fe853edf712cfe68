from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import bertxfer_fast

from . import machine

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", _CORES)))


def _tell(**event: Any) -> None:
    """A line for the process that started this one, if one did: `benchmarks.run` shows and saves it at once."""
    path = os.environ.get("BERTXFER_BENCH_EVENTS")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """In place of pytest-benchmark's own, which has the host's name."""
    return machine.facts()


def pytest_collection_finish(session: pytest.Session) -> None:
    _tell(machine=machine.facts(), cases=len(session.items))


@pytest.fixture(autouse=True)
def fresh(benchmark: Any) -> Iterator[None]:
    """Numbers of a build without kernels say nothing; neither do those of code compiled for another shape."""
    info = bertxfer_fast.build_info()
    if not info["compiled"]:
        pytest.fail(f"nothing to measure: {info['reason']}")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    yield
    if "implementations" in benchmark.extra_info:
        _tell(record=dict(benchmark.extra_info))
