from __future__ import annotations

import os

import pytest
import torch

import bertxfer_fast

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))


@pytest.fixture(autouse=True)
def compiled() -> None:
    """Numbers of a build without kernels say nothing."""
    info = bertxfer_fast.build_info()
    if not info["compiled"]:
        pytest.fail(f"nothing to measure: {info['reason']}")
    torch.manual_seed(0)
