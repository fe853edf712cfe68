"""Features in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["OUTPUT_SUFFIXES", "save_features"]

OUTPUT_SUFFIXES = (".npy", ".safetensors", ".csv")


def save_features(features: Tensor, path: str | Path) -> Path:
    """Write `[N, D]` features by the ending of `path`: `.npy`, `.safetensors` (tensor `features`) or `.csv`.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix == ".npy":
        np.save(path, features.numpy())
    elif path.suffix == ".safetensors":
        save_file({"features": features.contiguous()}, path)
    elif path.suffix == ".csv":
        header = ",".join(f"f{i}" for i in range(features.shape[1]))
        # 9 significant digits give every float32 back exactly.
        np.savetxt(path, features.numpy(), delimiter=",", fmt="%.9g", header=header, comments="")
    else:
        raise ValueError(f"output: got {path.name!r}, want a name ending in {', '.join(OUTPUT_SUFFIXES)}")
    return path
