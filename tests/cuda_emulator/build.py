"""Compiles the CUDA kernels for the emulator: the unchanged .cu files, with g++, into one library.

    python -m tests.cuda_emulator.build                  build it and print where it is
    python -m tests.cuda_emulator.build pool_features    with the kernels of some operators alone

Loaded into a process (``BERTXFER_CUDA_EMULATOR=path``), ``use_backend("cuda")`` runs them on CPU tensors.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "cuda_emulator"

_spec = importlib.util.spec_from_file_location("build_kernels", ROOT / "build_kernels.py")
build_kernels: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build_kernels)


def headers() -> Path | None:
    """The toolkit's headers, beside its nvcc."""
    nvcc = build_kernels.find_nvcc()
    if nvcc is None:
        return None
    home = build_kernels.cuda_home(nvcc)
    found = [
        path
        for path in (home / "include", *home.glob("targets/*/include"))
        if (path / "cuda_fp16.h").exists()
    ]
    return found[0] if found else None


def reason_to_skip() -> str | None:
    if shutil.which(build_kernels.compiler()) is None:
        return "no C++ compiler"
    return "no nvcc, whose headers the emulator needs" if headers() is None else None


def contraction() -> str:
    """Like nvcc, let the compiler fuse products and sums: what is computed twice then need not agree."""
    cpus = Path("/proc/cpuinfo")
    fused = build_kernels.X86 and cpus.exists() and " fma " in cpus.read_text()
    return "-ffp-contract=fast" + (" -mfma" if fused else "")


def ninja(build: Path, target: Path, sources: list[Path], flags: str) -> str:
    cflags = "-std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -Wall -Wno-unknown-pragmas -DBERTXFER_EMULATED"
    include = f"-isystem {headers()} -I{HERE}"
    lines = [
        "ninja_required_version = 1.5",
        f"cxx = {build_kernels.compiler()}",
        f"cflags = {cflags} {flags}",
        f"device = {include} {contraction()} -U_FORTIFY_SOURCE -Wno-psabi -Wno-unused-variable -Wno-class-memaccess",
        f"torch = {' '.join(build_kernels.torch_flags())}",
        *build_kernels.rule(
            "kernel", "$cxx -MMD -MF $out.d $cflags $device -include emulator.h -x c++ -c $in -o $out"
        ),
        *build_kernels.rule("tensor_side", "$cxx -MMD -MF $out.d $cflags $torch -c $in -o $out"),
        "rule link",
        f"  command = $cxx -shared $in -o $out {build_kernels.torch_library_flags()} {flags}",
    ]
    objects = []
    for source in [*sources, *sorted(HERE.glob("*.cpp"))]:
        tensor_side = source.name.endswith("_op.cpp")
        objects.append(build / f"{source.parent.name}.{source.name}.o")
        lines.append(f"build {objects[-1]}: {'tensor_side' if tensor_side else 'kernel'} {source}")
    lines.append(f"build {target}: link {' '.join(map(str, objects))}")
    return "\n".join(lines) + "\n"


def build(*ops: str) -> Path:
    """The library, compiled again as far as sources have changed; with the kernels of all operators, or of some."""
    folders = [ROOT / "csrc" / name for name in ("common", *ops)] if ops else [ROOT / "csrc"]
    sources = [
        source
        for pattern in ("**/*_cuda.cu", "**/*_cuda_op.cpp")
        for folder in folders
        for source in sorted(folder.glob(pattern))
    ]
    return compile_library(BUILD.joinpath("-".join(ops) or "all"), sources)


def compile_library(folder: Path, sources: list[Path]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "libbertxfer_cuda_emulated.so"
    flags = os.environ.get("BERTXFER_CXXFLAGS", "")
    build_kernels.run_ninja(folder / "build.ninja", ninja(folder, target, sources, flags))
    return target


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
