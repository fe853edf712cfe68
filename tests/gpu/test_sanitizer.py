"""compute-sanitizer over all kernels in CUDA C++: memory errors, races in shared memory, uninitialised reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bertxfer_fast.ops._dispatch import library as _library

ROOT = Path(__file__).parents[2]

RUN = """
import torch, bertxfer_fast
from bertxfer_fast.ops._dispatch.registry import OPS
from tests.gpu.calls import CALLS, outcome
with bertxfer_fast.use_backend("cuda"):
    for name, call in CALLS.items():
        if "cuda" in OPS[call.operator].backends:
            for dtype in (torch.float32, torch.bfloat16):
                outcome(name, call.inputs(dtype))
torch.cuda.synchronize()
print("all ran")
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    if _library.cuda_extension is None:
        pytest.skip(_library.cuda_extension_error)
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("no compute-sanitizer")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "7", "--kernel-regex", "kns=bertxfer"]
    done = subprocess.run(
        [*command, sys.executable, "-c", RUN],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        },  # so that each tensor has bounds of its own
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "all ran" in done.stdout
