"""A bidirectional LSTM (Tang et al., "Distilling Task-Specific Knowledge from BERT", 2019)."""

from __future__ import annotations

from torch import nn

from .network import register
from .recurrent import Recurrent, RecurrentConfig

__all__ = ["BiLSTM"]


class BiLSTMConfig(RecurrentConfig):
    """Sizes of a `BiLSTM`."""


@register
class BiLSTM(Recurrent):
    """Embeddings, LSTM layers that read both ways, and a head. See `RecurrentConfig` for its options."""

    config_class = BiLSTMConfig
    kind = "bilstm"
    cell = nn.LSTM
