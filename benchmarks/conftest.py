from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import bertxfer_fast

from . import device, machine

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", _CORES)))


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """In place of pytest-benchmark's own, which has the host's name."""
    return machine.facts()


@pytest.fixture(autouse=True)
def fresh(benchmark: Any) -> Iterator[None]:
    """Numbers of a build without kernels say nothing; neither do those of code compiled for another shape.

    On a GPU the record is handed on as soon as it is there: what comes after may crash.
    """
    info = bertxfer_fast.build_info()
    if not (info["compiled"] or device.ON_GPU):
        pytest.fail(f"nothing to measure: {info['reason']}")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    if device.TENSORS == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    yield
    if device.ON_GPU and "implementations" in benchmark.extra_info:
        device.leave(dict(benchmark.extra_info))
