"""The CUDA kernels compile for every architecture, fit into registers, and link against a torch without CUDA."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cuda_emulator.build import ROOT, build_kernels

SOURCES = sorted(path.stem for path in ROOT.glob("csrc/**/*_cuda.cu"))
#: Local memory: a stack frame, or registers that did not suffice. Source -> why it may.
MAY_SPILL: dict[str, str] = {}


@dataclass(frozen=True)
class Built:
    """The extension, compiled into a folder of its own for some architectures."""

    folder: Path
    library: Path
    architectures: list[str]


@pytest.fixture(
    scope="module", params=["90", pytest.param(build_kernels.ARCHITECTURES, marks=pytest.mark.slow)]
)
def built(request: pytest.FixtureRequest) -> Iterator[Built]:
    """For one architecture, and among the slow tests for all; only what has changed is compiled again."""
    nvcc = build_kernels.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    folder = ROOT / "build" / "cuda_test" / request.param.replace(";", "-")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "_C_cuda.abi3.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERTXFER_CUDA_ARCHS", request.param)
        text = build_kernels.cuda_ninja(folder, library, nvcc)
        build_kernels.run_ninja(folder / "build.ninja", text, "-j", "2")
        yield Built(folder, library, build_kernels.architectures(nvcc))


def report(folder: Path, source: str) -> dict[tuple[str, str], str]:
    """What the assembler said of each kernel: (its name, architecture) -> its line on local memory."""
    (log,) = folder.glob(f"*.{source}.cuda.o.log")
    found = re.findall(
        r"Compiling entry function '(\w+)' for '(sm_\w+)'.*?(\d+ bytes stack frame[^\n]*)",
        log.read_text(),
        re.S,
    )
    return {(kernel, architecture): line for kernel, architecture, line in found}


@pytest.mark.parametrize("source", SOURCES)
def test_kernels_need_no_local_memory(built: Built, source: str) -> None:
    kernels = report(built.folder, source)
    assert {name.removeprefix("sm_") for _, name in kernels} == set(built.architectures)
    fitting = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    spilled = {kernel: line for kernel, line in kernels.items() if line != fitting}
    assert not spilled or source in MAY_SPILL, spilled


def test_library_needs_only_torchs_stable_functions(built: Built) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(built.library)], capture_output=True, text=True, check=True
    ).stdout
    # Of a torch that was built with a newer compiler the linker takes some of C++'s library, and names no version.
    system = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)| _Z(N|NK)?S[a-z]")
    needed = {
        line.split()[-1]
        for line in listed.splitlines()
        if line.split()[-2] == "U" and not system.search(line)
    }
    assert {name for name in needed if not name.startswith(("aoti_", "torch_", "Py"))} == set()
    assert "aoti_torch_get_current_cuda_stream" in needed
