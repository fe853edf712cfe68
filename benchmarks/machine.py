"""What the numbers were made on: enough to make them again, nothing that names the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import bertxfer_fast

from . import device

#: Instruction sets that decide how fast these kernels or the library's products run, as /proc/cpuinfo spells them.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve", "bf16")

#: glibc settings that decide whether large tensors' pages are cleared anew in every call.
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")


def facts() -> dict[str, Any]:
    """Processor, instruction sets, threads, versions, compiler and allocator settings; or those of the GPU."""
    if device.ON_GPU:
        return gpu_facts()
    cpu = _cpuinfo()
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    build = bertxfer_fast.build_info()
    return {
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        "features": [name for name in FEATURES if name in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": build.get("instruction_set"),
        "compiler": build.get("compiler"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "allocator": {name: os.environ[name] for name in ALLOCATOR if name in os.environ},
    }


def gpu_facts(cuda: Any = torch.cuda) -> dict[str, Any]:
    """The GPU, what drives it, and what compiled for it. The host is of no account: times are the GPU's."""
    facts = {
        "gpu": "none (dry run)",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "nvcc": bertxfer_fast.build_info()["cuda"].get("nvcc"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.TENSORS != "cuda":
        return facts
    properties = cuda.get_device_properties(0)
    return {
        **facts,
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9),
        "cache_mb": round(properties.L2_cache_size / 1e6),
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    """The first processor's facts, empty where there is no /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
