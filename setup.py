"""Builds bertxfer_fast._C with ninja. Everything static is in pyproject.toml.

Each ``csrc/<op>/<op>_cpu.cpp`` is compiled once per instruction set, to be picked at run time; the rest once. Kernels
see no torch header; the tensor side uses torch's stable ABI (torch >= 2.10) and Python's limited API (>= 3.10), so
one binary serves all of them.

Environment: ``BERTXFER_REQUIRE_EXT=1`` turns a failed compilation into an error (otherwise the package installs without
its kernels and says so when used); ``CXX`` names the compiler; ``BERTXFER_CXXFLAGS`` is appended to every command.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = "0.1.0"
NO_TORCH = (
    "bertxfer_fast compiles against the torch it will run with, and torch is not installed here. Type:\n"
    "    pip install torch 'setuptools>=77' ninja\n"
    "    pip install --no-build-isolation ."
)

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


def torch_or_explain():
    try:
        import torch
    except ImportError:
        raise SystemExit(NO_TORCH) from None
    return torch


def ninja_file(build: Path, target: Path) -> str:
    """The text of build.ninja: one object per (source, instruction set), one link."""
    torch = torch_or_explain()
    from torch.utils import cpp_extension

    compiler = os.environ.get("CXX", "c++")
    extra = os.environ.get("BERTXFER_CXXFLAGS", "")
    libraries = Path(torch.__file__).parent / "lib"
    includes = [f"-isystem {path}" for path in cpp_extension.include_paths()]
    includes.append(f"-isystem {sysconfig.get_paths()['include']}")
    defines = [
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        f'-DBERTXFER_VERSION=\\"{VERSION}\\"',
        f'-DBERTXFER_TORCH_VERSION=\\"{torch.__version__}\\"',
        *(["-DBERTXFER_X86"] if X86 else []),
    ]
    lines = [
        "ninja_required_version = 1.5",
        f"cxx = {compiler}",
        f"cflags = {' '.join(COMMON)} {extra}",
        f"torch = {' '.join(includes)} {' '.join(defines)}",
        f"kernel = {' '.join(KERNEL)} {'-DBERTXFER_X86' if X86 else ''}",
        "rule tensor_side",
        "  command = $cxx -MMD -MF $out.d $cflags $torch -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule kernel",
        "  command = $cxx -MMD -MF $out.d $cflags $kernel $isa -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $cxx -shared $in -o $out -L{libraries} -ltorch_cpu -ltorch {extra}",
    ]
    objects = []
    for source in sorted(ROOT.glob("csrc/**/*.cpp")):
        if source.name.endswith("_cpu.cpp"):
            for isa, flags in ISAS.items():
                objects.append(build / f"{source.stem}.{isa}.o")
                lines.append(f"build {objects[-1]}: kernel {source}")
                lines.append(f"  isa = -DBERTXFER_ISA={isa} {' '.join(flags)}")
        else:
            objects.append(build / f"{source.parent.name}.{source.stem}.o")
            lines.append(f"build {objects[-1]}: tensor_side {source}")
    lines.append(f"build {target}: link {' '.join(map(str, objects))}")
    return "\n".join(lines) + "\n"


class BuildExtension(build_ext):
    def build_extension(self, ext: Extension) -> None:
        torch_or_explain()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.compile(build, target)
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("BERTXFER_REQUIRE_EXT") == "1":
                raise
            print(
                f"WARNING: bertxfer_fast installs without its compiled kernels ({error}). It works, slower. "
                "Install a C++17 compiler and reinstall to get them.",
                file=sys.stderr,
            )

    def compile(self, build: Path, target: Path) -> None:
        compiler = os.environ.get("CXX", "c++")
        if shutil.which(compiler) is None:
            raise OSError(f"no C++ compiler: {compiler!r} is not on the PATH")
        script = build / "build.ninja"
        script.write_text(ninja_file(build, target))
        subprocess.run([sys.executable, "-m", "ninja", "-f", str(script)], check=True)

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".abi3.so"

    def copy_extensions_to_source(self) -> None:  # an editable or in-place build
        if Path(self.get_ext_fullpath_in_build_lib()).exists():
            super().copy_extensions_to_source()

    def get_ext_fullpath_in_build_lib(self) -> str:
        return str(Path(self.build_lib) / self.get_ext_filename("bertxfer_fast._C"))

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]


setup(
    ext_modules=[Extension("bertxfer_fast._C", sources=[], py_limited_api=True, optional=False)],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
