"""What is made of a text's hidden states: which layers, how a vector comes of many tokens, and of many layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops import pool_features
from ..ops.pool_features import MODES
from ..ops.pool_features.eager import EPSILON

__all__ = ["COMBINE", "View", "resolve_layers", "view_of"]

#: Choice -> what becomes of several layers.
COMBINE = {"average": "one vector as wide as a layer", "concat": "the layers' vectors side by side"}


@dataclass(frozen=True)
class View:
    """Layers and how they are pooled.

    Attributes:
        layers: hidden states, counted from 0.
        pooling: mode of `ops.pool_features`.
        combine: of `COMBINE`.
        weights: one number per layer, or None.
        normalize: whether the vector's L2 norm is made 1.
    """

    layers: tuple[int, ...]
    pooling: str
    combine: str = "average"
    weights: tuple[float, ...] | None = None
    normalize: bool = False

    def dim(self, hidden_size: int) -> int:
        """Width of a vector."""
        return hidden_size * (len(self.layers) if self.combine == "concat" else 1)

    def pool(self, hidden: Mapping[int, Tensor], cu_seqlens: Tensor) -> Tensor:
        """``[N, dim]`` of hidden states ``[T, D]`` by layer."""
        layers = [hidden[layer] for layer in self.layers]
        if self.combine == "average":
            return pool_features(
                layers,
                cu_seqlens,
                mode=self.pooling,
                layer_weights=self.weights,
                normalize=self.normalize,
            )
        weights = self.weights or (1.0,) * len(layers)
        parts = [
            pool_features(layer, cu_seqlens, mode=self.pooling, layer_weights=[weight])
            for layer, weight in zip(layers, weights, strict=True)
        ]
        vectors = torch.cat(parts, 1)
        return torch.nn.functional.normalize(vectors, eps=EPSILON) if self.normalize else vectors


def view_of(
    num_layers: int,
    layers: int | Sequence[int],
    pooling: str,
    combine: str,
    weights: Sequence[float] | None,
    normalize: bool,
) -> View:
    """A view of a model with so many layers.

    Raises:
        ValueError: a layer the model does not have, an unknown choice, a wrong number of weights.
    """
    resolved = resolve_layers(layers, num_layers)
    for name, value, known in (("pooling", pooling, MODES), ("combine", combine, tuple(COMBINE))):
        if value not in known:
            raise ValueError(f"{name}: got {value!r}, want one of {', '.join(known)}")
    if weights is not None and len(weights) != len(resolved):
        raise ValueError(f"layer_weights: got {len(weights)}, want {len(resolved)} numbers")
    chosen = None if weights is None else tuple(float(weight) for weight in weights)
    return View(resolved, pooling, combine, chosen, bool(normalize))


def resolve_layers(layers: Any, num_layers: int) -> tuple[int, ...]:
    """Layers as hidden indices 0..num_layers, in the order given (weights follow it).

    Raises:
        TypeError: something else than whole numbers.
        ValueError: none, one twice, or one that the model does not have.
    """
    # An array has __index__, too, whatever its shape.
    one = hasattr(layers, "__index__") and not getattr(layers, "ndim", 0)
    given = [layers] if one else list(layers)
    if not given:
        raise ValueError("layers: got none, want at least one layer")
    resolved = []
    for layer in given:
        if isinstance(layer, bool) or not hasattr(layer, "__index__"):
            raise TypeError(f"layers: got {layer!r}, want whole numbers")
        index = layer + num_layers + 1 if layer < 0 else layer
        if not 0 <= index <= num_layers:
            raise ValueError(f"layers: got {layer}, want hidden states 0..{num_layers} (or -1, -2, ...)")
        resolved.append(int(index))
    if len(set(resolved)) != len(resolved):
        raise ValueError(f"layers: got {given}, want each layer once")
    return tuple(resolved)
