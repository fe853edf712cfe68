"""What setup.py compiles and how: the text of the two ninja files, for the CPU's kernels and for the GPU's.

Each ``csrc/<op>/<op>_cpu.cpp`` is compiled once per instruction set, to be picked at run time; the rest once. Kernels
see no torch header; the tensor side (``*_op.cpp``, ``*_cuda_op.cpp``) uses torch's stable ABI (torch >= 2.10) and
Python's limited API (>= 3.10), so one binary serves all of them. No library of CUDA is linked but the static runtime,
so that everything compiles against a torch that has no CUDA.

    python build_kernels.py    both, in place: for a machine where nothing is to be installed (make gpu)
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
#: The package's own, read without importing it (which needs torch); pyproject.toml takes it from there, too.
VERSION = re.findall(
    r'^__version__ = "(.+)"', (ROOT / "bertxfer_fast" / "__init__.py").read_text("utf-8"), re.M
)[0]
#: Compute capabilities compiled for; the last one also as PTX, for whatever comes after it.
ARCHITECTURES = "80;90;100"

X86 = platform.machine().lower() in ("x86_64", "amd64")
#: Instruction set -> its compiler flags. "baseline" is what every processor of the architecture runs.
ISAS = {"baseline": []}
if X86:
    ISAS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISAS["avx512"] = [
        *ISAS["avx2"],
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mprefer-vector-width=512",
    ]
    ISAS["avx512_bf16"] = [*ISAS["avx512"], "-mavx512bf16"]
    ISAS["amx"] = [*ISAS["avx512_bf16"], "-mamx-tile", "-mamx-bf16"]

COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
# Kernels: fused multiply-adds and `#pragma omp simd`, but no reassociation that would hide a NaN. GCC's psabi
# note speaks of passing vectors by value across libraries, which no kernel does, and what it finds uninitialised
# is in its own headers of intrinsics.
KERNEL = ["-ffp-contract=fast", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
KERNEL += ["-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
NVCC = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"]


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def torch_flags() -> list[str]:
    """Headers and definitions of a tensor side."""
    import torch
    from torch.utils import cpp_extension

    includes = [f"-isystem {path}" for path in cpp_extension.include_paths()]
    return [
        *includes,
        f"-isystem {sysconfig.get_paths()['include']}",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        f'-DBERTXFER_VERSION=\\"{VERSION}\\"',
        f'-DBERTXFER_TORCH_VERSION=\\"{torch.__version__}\\"',
    ]


def torch_has_cuda() -> bool:
    try:
        import torch
    except ImportError:  # which the build says in a sentence of its own
        return False
    return torch.version.cuda is not None


def torch_library_flags() -> str:
    """Also libraries that no symbol is needed of here: in a torch with CUDA, libtorch brings what this one lacks."""
    import torch

    return f"-L{Path(torch.__file__).parent / 'lib'} -Wl,--no-as-needed -ltorch_cpu -ltorch"


def rule(name: str, command: str) -> list[str]:
    return [f"rule {name}", f"  command = {command}", "  depfile = $out.d", "  deps = gcc"]


def cpu_ninja(build: Path, target: Path) -> str:
    """One object per (source, instruction set), one link."""
    extra = os.environ.get("BERTXFER_CXXFLAGS", "")
    define = "-DBERTXFER_X86" if X86 else ""
    lines = [
        "ninja_required_version = 1.5",
        f"cxx = {compiler()}",
        f"cflags = {' '.join(COMMON)} {extra}",
        f"torch = {' '.join(torch_flags())} {define}",
        f"kernel = {' '.join(KERNEL)} {define}",
        *rule("tensor_side", "$cxx -MMD -MF $out.d $cflags $torch -c $in -o $out"),
        *rule("kernel", "$cxx -MMD -MF $out.d $cflags $kernel $isa -c $in -o $out"),
        "rule link",
        f"  command = $cxx -shared $in -o $out {torch_library_flags()} {extra}",
    ]
    objects = []
    for source in sorted(ROOT.glob("csrc/**/*.cpp")):
        if source.name.endswith("_cpu.cpp"):
            for isa, flags in ISAS.items():
                objects.append(build / f"{source.stem}.{isa}.o")
                lines.append(f"build {objects[-1]}: kernel {source}")
                lines.append(f"  isa = -DBERTXFER_ISA={isa} {' '.join(flags)}")
        elif not source.name.endswith(("_cuda_op.cpp", "_cuda.cpp")):
            objects.append(build / f"{source.parent.name}.{source.stem}.o")
            lines.append(f"build {objects[-1]}: tensor_side {source}")
    lines.append(f"build {target}: link {' '.join(map(str, objects))}")
    return "\n".join(lines) + "\n"


def find_nvcc() -> str | None:
    """CUDA's compiler, of ``CUDA_HOME`` or on the PATH; None too where ``BERTXFER_CUDA=0`` says not to look."""
    if os.environ.get("BERTXFER_CUDA") == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    return (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")


def cuda_home(nvcc: str) -> Path:
    """Where ``nvcc`` has its headers and libraries; it may be a script that calls the real one."""
    told = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, check=True
    )
    return Path(re.findall(r"#\$ TOP=(.*)", told.stderr)[0].strip()).resolve()


def nvcc_version(nvcc: str) -> str:
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", told)
    return found.group(1) if found else "unknown"


def architectures(nvcc: str) -> list[str]:
    """Compute capabilities to compile for: those asked for, or of ours those that ``nvcc`` knows."""
    asked = os.environ.get("BERTXFER_CUDA_ARCHS")
    if asked:
        return [part.strip() for part in asked.split(";") if part.strip()]
    known = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout.split()
    return [name for name in ARCHITECTURES.split(";") if f"compute_{name}" in known]


def cuda_ninja(build: Path, target: Path, nvcc: str) -> str:
    """One object per CUDA source, for all architectures, one per tensor side, one link."""
    names = architectures(nvcc)
    targets = [f"-gencode arch=compute_{name},code=sm_{name}" for name in names]
    targets.append(f"-gencode arch=compute_{names[-1]},code=compute_{names[-1]}")
    host = f"-ccbin {compiler()}" if "CXX" in os.environ else ""
    about = [
        f'-DBERTXFER_NVCC_VERSION=\\"{nvcc_version(nvcc)}\\"',
        f'-DBERTXFER_CUDA_ARCHITECTURES=\\"{",".join(names)}\\"',
    ]
    home = cuda_home(nvcc)
    libraries = " ".join(f"-L{path}" for path in (home / "lib64", home / "lib", *home.glob("targets/*/lib")))
    lines = [
        "ninja_required_version = 1.5",
        f"cxx = {compiler()}",
        f"nvcc = {nvcc} {host} {' '.join(NVCC)} {' '.join(targets)}",
        f"cflags = {' '.join(COMMON)} -DUSE_CUDA {' '.join(torch_flags())} {' '.join(about)}",
        # What each kernel takes of a multiprocessor stays beside its object: tests read it.
        *rule(
            "kernel",
            "$nvcc -Xptxas=-v -MMD -MF $out.d -c $in -o $out > $out.log 2>&1 || (cat $out.log; false)",
        ),
        *rule("tensor_side", "$cxx -MMD -MF $out.d $cflags -c $in -o $out"),
        "rule link",
        f"  command = $cxx -shared $in -o $out {libraries} -lcudart_static -ldl -lrt -lpthread {torch_library_flags()}",
    ]
    objects = []
    for source in sorted(ROOT.glob("csrc/**/*_cuda.cu")) + sorted(ROOT.glob("csrc/**/*_cuda*.cpp")):
        objects.append(build / f"{source.parent.name}.{source.stem}.cuda.o")
        lines.append(f"build {objects[-1]}: {'kernel' if source.suffix == '.cu' else 'tensor_side'} {source}")
    lines.append(f"build {target}: link {' '.join(map(str, objects))}")
    return "\n".join(lines) + "\n"


def run_ninja(script: Path, text: str, *options: str) -> None:
    if shutil.which(compiler()) is None:
        raise OSError(f"no C++ compiler: {compiler()!r} is not on the PATH")
    script.write_text(text)
    subprocess.run([sys.executable, "-m", "ninja", "-f", str(script), *options], check=True)


def build_in_place() -> None:
    """Both libraries, into the package of this checkout."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("no nvcc: it is neither in CUDA_HOME nor on the PATH")
    build = ROOT / "build" / "in_place"
    build.mkdir(parents=True, exist_ok=True)
    package = ROOT / "bertxfer_fast"
    run_ninja(build / "build.ninja", cpu_ninja(build, package / "_C.abi3.so"))
    run_ninja(build / "build_cuda.ninja", cuda_ninja(build, package / "_C_cuda.abi3.so", nvcc))


if __name__ == "__main__":
    build_in_place()
