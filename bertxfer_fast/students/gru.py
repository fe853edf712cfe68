"""Gated recurrent units (Cho et al., 2014): three products a step where an LSTM has four."""

from __future__ import annotations

from torch import nn

from .network import register
from .recurrent import Recurrent, RecurrentConfig

__all__ = ["GRU"]


class GRUConfig(RecurrentConfig):
    """Sizes of a `GRU`.

    Attributes:
        bidirectional: whether the layers read both ways.
    """

    bidirectional: bool = True


@register
class GRU(Recurrent):
    """Embeddings, GRU layers and a head. See `RecurrentConfig` for its options; ``bidirectional`` is one more."""

    config_class = GRUConfig
    kind = "gru"
    cell = nn.GRU

    @property
    def bidirectional(self) -> bool:
        return self.config.bidirectional
