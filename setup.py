"""Builds bertxfer_fast._C, and bertxfer_fast._C_cuda for a torch with CUDA. Everything static is in pyproject.toml.

What is compiled and how is in ``build_kernels.py``. Environment:

- ``BERTXFER_REQUIRE_EXT=1`` turns a failed compilation into an error (otherwise the package installs without its
  kernels and says so when used); ``BERTXFER_REQUIRE_CUDA=1`` does that for the CUDA side, a missing nvcc included.
- ``CXX`` names the compiler; ``BERTXFER_CXXFLAGS`` is appended to every command of the CPU side.
- ``CUDA_HOME`` tells where nvcc is, if not on the PATH. Where nvcc is found and torch has CUDA the CUDA side
  is built, with ``BERTXFER_CUDA=1`` also for a torch without, with 0 never. ``BERTXFER_CUDA_ARCHS`` names the compute
  capabilities, by default ``"80;90;100"``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent))  # a build frontend need not have it there
import build_kernels

NO_TORCH = (
    "bertxfer_fast compiles against the torch it will run with, and torch is not installed here. Type:\n"
    "    pip install torch 'setuptools>=77' ninja\n"
    "    pip install --no-build-isolation ."
)


def check_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise SystemExit(NO_TORCH) from None


class BuildExtension(build_ext):
    def build_extension(self, ext: Extension) -> None:
        check_torch()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        cuda = ext.name.endswith("_cuda")
        try:
            if cuda:
                self.compile_cuda(build, target)
            else:
                build_kernels.run_ninja(build / "build.ninja", build_kernels.cpu_ninja(build, target))
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("BERTXFER_REQUIRE_CUDA" if cuda else "BERTXFER_REQUIRE_EXT") == "1":
                raise
            what, needs = ("CUDA", "nvcc") if cuda else ("compiled", "a C++17 compiler")
            print(
                f"WARNING: bertxfer_fast installs without its {what} kernels ({error}). It works, slower. "
                f"Install {needs} and reinstall to get them.",
                file=sys.stderr,
            )

    def compile_cuda(self, build: Path, target: Path) -> None:
        nvcc = build_kernels.find_nvcc()
        if nvcc is None:
            raise OSError("no nvcc: it is neither in CUDA_HOME nor on the PATH")
        build_kernels.run_ninja(build / "build_cuda.ninja", build_kernels.cuda_ninja(build, target, nvcc))

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".abi3.so"

    def copy_extensions_to_source(self) -> None:  # an editable or in-place build
        built = [
            e for e in self.extensions if (Path(self.build_lib) / self.get_ext_filename(e.name)).exists()
        ]
        self.extensions = built
        super().copy_extensions_to_source()

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]


def wants_cuda() -> bool:
    if os.environ.get("BERTXFER_REQUIRE_CUDA") == "1":
        return True
    asked = os.environ.get("BERTXFER_CUDA") == "1"  # a binary to be carried elsewhere: it does not load here
    return build_kernels.find_nvcc() is not None and (asked or build_kernels.torch_has_cuda())


def extensions() -> list[Extension]:
    names = ["bertxfer_fast._C", *(["bertxfer_fast._C_cuda"] if wants_cuda() else [])]
    return [Extension(name, sources=[], py_limited_api=True, optional=False) for name in names]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
