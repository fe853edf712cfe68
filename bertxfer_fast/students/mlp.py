"""Layers of units over pooled embeddings (Iyyer et al., "Deep Unordered Composition", 2015)."""

from __future__ import annotations

from typing import Any

from torch import nn

from .network import register
from .pooled import Pooled, PooledConfig

__all__ = ["MLP"]


class MLPConfig(PooledConfig):
    """Sizes of an `MLP`.

    Attributes:
        hidden_size: units of each layer.
        num_hidden_layers: layers between the pooled embeddings and the head.
    """

    hidden_size: int = 512
    num_hidden_layers: int = 1


@register
class MLP(Pooled):
    """The mean of a text's embeddings, layers with ReLU, and a head. See `MLPConfig` for its options."""

    config_class = MLPConfig
    kind = "mlp"

    def make_layers(self, config: Any) -> tuple[nn.Module, int]:
        if config.hidden_size < 1 or config.num_hidden_layers < 1:
            raise ValueError(
                f"hidden_size, num_hidden_layers: got {config.hidden_size}, {config.num_hidden_layers}, want 1 or more"
            )
        layers: list[nn.Module] = []
        width = config.embedding_size
        for _ in range(config.num_hidden_layers):
            layers += [nn.Linear(width, config.hidden_size), nn.ReLU(), nn.Dropout(config.dropout)]
            width = config.hidden_size
        return nn.Sequential(*layers), width
