"""Features in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["OUTPUT_SUFFIXES", "save_features"]

OUTPUT_SUFFIXES = (".npy", ".safetensors", ".csv")


def save_features(features: Tensor | NDArray[Any], path: str | Path) -> Path:
    """Write `[N, D]` features by the ending of `path`: `.npy`, `.safetensors` (tensor `features`) or `.csv`.

    The file takes the place of whatever had its name when it is whole; after an error, that is as it was.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix not in OUTPUT_SUFFIXES:
        raise ValueError(f"output: got {path.name!r}, want a name ending in {', '.join(OUTPUT_SUFFIXES)}")
    part = path.with_name(path.name + ".part")
    try:
        _write(torch.as_tensor(features).detach().cpu(), part, path.suffix)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _write(features: Tensor, part: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        save_file({"features": features.contiguous()}, part)
        return
    with part.open("wb") as file:  # NumPy appends .npy to a path
        if suffix == ".npy":
            np.save(file, features.numpy())
        else:
            header = ",".join(f"f{i}" for i in range(features.shape[1]))
            # 9 significant digits give every float32 back exactly.
            np.savetxt(file, features.numpy(), delimiter=",", fmt="%.9g", header=header, comments="")
