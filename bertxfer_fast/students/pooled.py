"""Students that read the mean of a text's embeddings: no token sees another one, so a text is one sum over a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.activations import PackedOutput, Tap
from .network import Network, NetworkConfig

__all__ = ["Pooled", "PooledConfig"]


class PooledConfig(NetworkConfig):
    """Sizes of a student over pooled embeddings.

    Attributes:
        embedding_size: width of the embeddings; by default the teacher's.
    """


class Pooled(Network):
    """Base of students over pooled embeddings. Hidden 0 are the embeddings ``[T, embedding_size]``.

    Special tokens have no part in the mean, unless a text has nothing else. With a head for tokens every token is read
    by itself.
    """

    config_class = PooledConfig
    special_ids: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.embedding_size)
        self.register_buffer("special_ids", torch.tensor(list(config.special_ids), dtype=torch.int64))
        self.layers, width = self.make_layers(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = self.make_head(width)
        self.post_init()

    def make_layers(self, config: Any) -> tuple[nn.Module, int]:
        """What stands between the pooled embeddings and the head, and the width it gives."""
        return nn.Identity(), config.embedding_size

    @classmethod
    def embedding_size(cls, config: Any, teacher: int) -> int:
        return teacher

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def set_input_embeddings(self, value: Any) -> None:
        self.table = value

    def run(self, batch: Mapping[str, Any], tap: Tap | None = None) -> PackedOutput:
        listener, ids = self.listen(batch, tap)
        cu_seqlens = listener.cu_seqlens
        if listener.done:
            return PackedOutput()
        of_tokens = self.config.head != "sequence"
        hidden = self.table(ids) if of_tokens or listener.wants("hidden", 0) else None
        if listener.wants("hidden", 0):
            assert hidden is not None
            listener.hand("hidden", 0, hidden=hidden)
        if self.classifier is None or listener.done:
            return PackedOutput(hidden)
        read = hidden if of_tokens else self.pool(ids, cu_seqlens)
        logits = self.classifier(self.layers(self.dropout(read)))
        if listener.wants("logits"):
            listener.hand("logits", 0, logits=logits)
        return PackedOutput(hidden, logits)

    def pool(self, ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The mean of the vectors of each text's own tokens, ``[N, embedding_size]``; no row of the table is copied."""
        bounds = cu_seqlens.long()
        lengths = bounds.diff()
        counted = ids[:, None].ne(self.special_ids).all(1).long()
        totals = F.pad(counted.cumsum(0), (1, 0))
        own, whole = (
            count.repeat_interleave(lengths, output_size=len(ids))
            for count in (totals[bounds[1:]] - totals[bounds[:-1]], lengths)
        )
        shares = torch.where(own > 0, counted / own.clamp(min=1), 1 / whole).to(self.table.weight.dtype)
        return F.embedding_bag(ids, self.table.weight, bounds[:-1], mode="sum", per_sample_weights=shares)
