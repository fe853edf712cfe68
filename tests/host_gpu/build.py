"""Compiles the libraries of a GPU of the host into ``build/host_gpu``, and our CUDA kernels for the emulator there."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ..cuda_emulator import build as emulator
from ..cuda_emulator.build import build_kernels

HERE = Path(__file__).resolve().parent
BUILD = emulator.ROOT / "build" / "host_gpu"
_DIST = "host_gpu-1.dist-info"
_METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: host_gpu\nVersion: 1\n",
    "entry_points.txt": "[torch.backends]\nhost_gpu = host_gpu_hook:load\n",
}


def reason_not_to() -> str | None:
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    return emulator.reason_to_skip()


def ninja(build: Path) -> str:
    torch_flags = " ".join(build_kernels.torch_flags())
    about = r"-DBERTXFER_NVCC_VERSION=\"none\" -DBERTXFER_CUDA_ARCHITECTURES=\"host\""
    device = f"-isystem {emulator.headers()} -I{emulator.HERE} {emulator.contraction()} -U_FORTIFY_SOURCE -Wno-psabi"
    linked = build_kernels.torch_library_flags()
    headers = Path(torch.__file__).parent / "include"
    aten = f"-DUSE_CUDA -isystem {headers} -isystem {headers}/torch/csrc/api/include"  # all of it, not the stable ABI
    lines = [
        "ninja_required_version = 1.5",
        f"cxx = {build_kernels.compiler()}",
        "cflags = -std=c++17 -O2 -fPIC -fvisibility=hidden",
        f"cuda = -isystem {emulator.headers()}",
        *build_kernels.rule(
            "kernel",
            f"$cxx -MMD -MF $out.d $cflags -DBERTXFER_EMULATED {device} -include emulator.h -x c++ -c $in -o $out",
        ),
        *build_kernels.rule(
            "tensor_side", f"$cxx -MMD -MF $out.d $cflags -DUSE_CUDA {torch_flags} {about} -c $in -o $out"
        ),
        "rule link",
        f"  command = $cxx -shared $in -o $out {linked}",
        "rule library",
        "  depfile = $out.d",
        "  command = $cxx -MMD -MF $out.d -std=c++17 -O1 -fPIC -shared $flags $in -o $out $libraries",
    ]
    objects = []
    sources = [*emulator.ROOT.glob("csrc/**/*_cuda.cu"), *emulator.ROOT.glob("csrc/**/*_cuda*.cpp")]
    for source in [*sorted(sources), *sorted(emulator.HERE.glob("*.cpp"))]:
        ours = source.suffix == ".cpp" and source.parent != emulator.HERE
        objects.append(build / f"{source.parent.name}.{source.name}.o")
        lines.append(f"build {objects[-1]}: {'tensor_side' if ours else 'kernel'} {source}")
    lines.append(f"build {build / '_C_cuda.abi3.so'}: link {' '.join(map(str, objects))}")
    for name, flags, libraries in (
        ("runtime.so", "$cuda", "-ldl"),
        ("libcuda.so.1", "$cuda -Wl,-soname,libcuda.so.1", "-ldl"),
        ("operators.so", f"{aten} $cuda", f"{linked} -lc10 -lc10_cuda"),
    ):
        source = HERE / {"libcuda.so.1": "driver.cpp"}.get(name, f"{Path(name).stem}.cpp")
        lines += [
            f"build {build / name}: library {source}",
            f"  flags = {flags}",
            f"  libraries = {libraries}",
        ]
    return "\n".join(lines) + "\n"


def build() -> Path:
    """The folder with all of it, compiled again as far as sources have changed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    build_kernels.run_ninja(BUILD / "build.ninja", ninja(BUILD))
    shutil.copyfile(BUILD / "libcuda.so.1", BUILD / "libcuda.so")  # Triton links against it
    shutil.copyfile(HERE / "hook.py", BUILD / "host_gpu_hook.py")
    (BUILD / _DIST).mkdir(exist_ok=True)
    for name, text in _METADATA.items():
        (BUILD / _DIST / name).write_text(text, encoding="utf-8")
    return BUILD
