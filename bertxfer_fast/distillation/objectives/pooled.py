"""What objectives share that compare one vector a text."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.activations import LayerActivations
from ...ops import pool_features
from ..registry import check_choice
from .base import Layers, Objective, WeightLike

__all__ = ["POOLINGS", "PooledObjective", "full_precision", "pooled_of", "unit"]

POOLINGS = ("mean", "cls", "max", "mean_sqrt")


class PooledObjective(Objective):
    """Base of objectives that compare sentence vectors: a hidden state, pooled.

    Args:
        pooling: of both models, a mode of `ops.pool_features`.
        normalize: whether vectors are divided by their L2 norm before anything else.
        layers, weight, schedule, name: see `Objective`.
    """

    place = "hidden"

    def __init__(
        self,
        *,
        pooling: str,
        normalize: bool,
        layers: Layers | None = None,
        weight: WeightLike = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(layers=layers, weight=weight, schedule=schedule, name=name)
        self.pooling = check_choice("pooling", pooling, POOLINGS)
        self.normalize = bool(normalize)

    def pooled(self, activations: LayerActivations) -> Tensor:
        """``[N, D]`` float32, one row a text, normalised if asked for."""
        vectors = pooled_of(activations, self.pooling).float()
        return unit(vectors) if self.normalize else vectors


def full_precision(like: Tensor) -> AbstractContextManager[None]:
    """Inside, no autocast: cosines rounded to bfloat16 and divided by a temperature of 0.05 are off by 0.1."""
    return torch.autocast(like.device.type, enabled=False)


def pooled_of(activations: LayerActivations, mode: str) -> Tensor:
    """``[N, D]``: hidden states pooled, or the vectors of a teacher that has nothing else."""
    if activations.pooled is not None:
        return activations.pooled[mode]
    assert activations.hidden is not None
    return pool_features(activations.hidden, activations.cu_seqlens, mode=mode)


def unit(vectors: Tensor) -> Tensor:
    """Rows divided by their L2 norm, which is at least 1e-12."""
    return F.normalize(vectors, dim=-1)
