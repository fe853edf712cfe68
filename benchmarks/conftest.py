from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import bertxfer_fast

from . import machine

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", _CORES)))


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """In place of pytest-benchmark's own, which has the host's name."""
    return machine.facts()


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Numbers of a build without kernels say nothing; neither do those of code compiled for another shape."""
    info = bertxfer_fast.build_info()
    if not info["compiled"]:
        pytest.fail(f"nothing to measure: {info['reason']}")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
