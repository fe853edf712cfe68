"""The GPU of the host (tests/host_gpu): what it rests on compiles, and with a torch that has CUDA it computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .cuda_emulator import build as emulator
from .host_gpu import build

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("source", "has"),
    [("runtime", "cudaMemcpyAsync"), ("driver", "cuLaunchKernelEx")],
    ids=["runtime", "driver"],
)
def test_the_libraries_compile(tmp_path: Path, source: str, has: str) -> None:
    reason = emulator.reason_to_skip()
    if reason:
        pytest.skip(reason)
    library = tmp_path / "library.so"
    compiler = emulator.build_kernels.compiler()
    flags = ["-std=c++17", "-Wall", "-Werror", "-fPIC", "-shared", "-isystem", str(emulator.headers())]
    command = [compiler, *flags, str(build.HERE / f"{source}.cpp"), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    assert has.encode() in library.read_bytes()


COMPUTES = """
import torch, bertxfer_fast
from bertxfer_fast import ops
assert torch.cuda.is_available()
here = [torch.randn(40, 24, requires_grad=True), torch.randn(40, 24)]
there = [x.detach().cuda().requires_grad_(x.requires_grad) for x in here]
with bertxfer_fast.use_backend("cuda"):
    loss = ops.hidden_mse(*there)
loss.backward()
ops.hidden_mse(*here).backward()
torch.testing.assert_close(there[0].grad.cpu(), here[0].grad)
x = torch.arange(5, device="cuda")
assert x[x > 2].tolist() == [3, 4] and (x * 2).sum().item() == 20
torch.cuda.set_sync_debug_mode("error")
try:
    x.sum().item()
except RuntimeError:
    print("waits")
"""


def test_it_computes_and_tells_who_waits() -> None:
    reason = build.reason_not_to()
    if reason:
        pytest.skip(reason)
    command = [sys.executable, "-m", "tests.host_gpu", sys.executable, "-c", COMPUTES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("waits\n"), done.stdout + done.stderr
