"""What this machine and this installation are, for `bertxfer info`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..ops import build_info, explain
from .precision import bf16_is_faster

__all__ = ["environment"]


def environment(package_version: str) -> dict[str, Any]:
    """What `bertxfer info` prints: `versions`, `devices`, `build`, and `ops` (implementation chosen, and why).

    Args:
        package_version: of bertxfer_fast.
    """
    versions = {"bertxfer_fast": package_version, "python": platform.python_version()}
    for package in ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    pays = "faster" if bf16_is_faster() else "slower"
    devices = {
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads, bf16 {pays} than float32 (timed)"
    }
    for i in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(i)
        devices[f"cuda:{i}"] = f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
    return {"versions": versions, "devices": devices, "build": build_info(), "ops": explain()}
