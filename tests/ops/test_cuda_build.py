"""The CUDA kernels compile for every architecture, fit into registers, and link against a torch without CUDA."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda_emulator.build import ROOT, build_kernels

BUILD = ROOT / "build" / "cuda_test"
SOURCES = sorted(path.stem for path in ROOT.glob("csrc/**/*_cuda.cu"))
#: Local memory: a stack frame, or registers that did not suffice. Source -> why it may.
MAY_SPILL: dict[str, str] = {}


@pytest.fixture(scope="module")
def library() -> Path:
    """The extension, in a folder of its own; only what has changed is compiled again."""
    nvcc = build_kernels.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    BUILD.mkdir(parents=True, exist_ok=True)
    target = BUILD / "_C_cuda.abi3.so"
    text = build_kernels.cuda_ninja(BUILD, target, nvcc)
    build_kernels.run_ninja(BUILD / "build.ninja", text, "-j", "2")
    return target


def report(source: str) -> dict[tuple[str, str], str]:
    """What the assembler said of each kernel: (its name, architecture) -> its line on local memory."""
    (log,) = BUILD.glob(f"*.{source}.cuda.o.log")
    found = re.findall(
        r"Compiling entry function '(\w+)' for '(sm_\w+)'.*?(\d+ bytes stack frame[^\n]*)",
        log.read_text(),
        re.S,
    )
    return {(kernel, architecture): line for kernel, architecture, line in found}


@pytest.mark.parametrize("source", SOURCES)
def test_kernels_need_no_local_memory(library: Path, source: str) -> None:
    kernels = report(source)
    wanted = set(build_kernels.architectures(build_kernels.find_nvcc()))
    assert {name.removeprefix("sm_") for _, name in kernels} == wanted
    fitting = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    spilled = {kernel: line for kernel, line in kernels.items() if line != fitting}
    assert not spilled or source in MAY_SPILL, spilled


def test_library_needs_only_torchs_stable_functions(library: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    system = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)")
    needed = {
        line.split()[-1]
        for line in listed.splitlines()
        if line.split()[-2] == "U" and not system.search(line)
    }
    assert {name for name in needed if not name.startswith(("aoti_", "torch_", "Py"))} == set()
    assert "aoti_torch_get_current_cuda_stream" in needed
