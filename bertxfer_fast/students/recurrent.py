"""Recurrent students on packed tokens: one time step after the other, of all sequences that are still running.

The pack is read in the order of torch's ``PackedSequence``: sequences by falling length, the tokens of one step side by
side. It is an index ``[T]`` on the token ids, so that no row of floats moves before the first layer, and nothing is
padded at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..models.activations import PackedOutput, Tap
from ..ops import pool_features
from .network import Embeddings, Network, NetworkConfig

__all__ = ["Recurrent", "RecurrentConfig", "TimeMajor"]

_POOLINGS = ("max", "mean", "last")


class RecurrentConfig(NetworkConfig):
    """Sizes of a recurrent student.

    Attributes:
        hidden_size: width of the hidden states, both directions together.
        num_hidden_layers: layers.
        pooling: what the head of a sequence reads: ``"max"`` or ``"mean"`` over its tokens, or ``"last"``, the state in
            which each direction ends (Tang et al., 2019).
    """

    hidden_size: int = 300
    num_hidden_layers: int = 1
    pooling: str = "max"


class TimeMajor:
    """A pack in the order of ``PackedSequence``.

    Args:
        cu_seqlens: int32 ``[N + 1]``.
        max_seqlen: the longest length.

    Attributes:
        tokens: int64 ``[T]``, which token of the pack stands where.
        places: int64 ``[T]``, where each token of the pack stands.
        rank: int64 ``[N]``, where each sequence stands.
        batch_sizes: int64 ``[max_seqlen]`` on the CPU, how many sequences have a token at each step.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int) -> None:
        bounds = cu_seqlens.long()
        lengths = bounds.diff()
        self.order = torch.argsort(lengths, descending=True, stable=True)
        self.rank = torch.empty_like(self.order)
        self.rank[self.order] = torch.arange(len(lengths), device=lengths.device)
        # How many sequences are longer than t: all, less those that have ended.
        ended = torch.bincount(lengths, minlength=max_seqlen + 1).cumsum(0)[:max_seqlen]
        running = len(lengths) - ended
        first = running.cumsum(0) - running
        row = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        step = torch.arange(len(row), device=row.device) - bounds[row]
        self.places = first[step] + self.rank[row]
        self.tokens = torch.empty_like(self.places)
        self.tokens[self.places] = torch.arange(len(row), device=row.device)
        self.batch_sizes = running[running > 0].cpu()


class Recurrent(Network):
    """Base of recurrent students. Hidden 0 are the embeddings, i the states of layer i ``[T, hidden_size]``.

    Attributes:
        cell: ``nn.LSTM`` or ``nn.GRU``.
    """

    config_class = RecurrentConfig
    cell: type[nn.LSTM] | type[nn.GRU]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        both = self.bidirectional
        if config.hidden_size < 1 or (both and config.hidden_size % 2):
            raise ValueError(
                f"hidden_size: got {config.hidden_size}, want "
                + ("an even number: half of it is each direction's" if both else "1 or more")
            )
        if config.num_hidden_layers < 1:
            raise ValueError(f"num_hidden_layers: got {config.num_hidden_layers}, want 1 or more")
        if config.pooling not in _POOLINGS:
            raise ValueError(f"pooling: got {config.pooling!r}, want one of {', '.join(_POOLINGS)}")
        width = config.hidden_size
        self.embeddings = Embeddings(config, width)
        # One module a layer: each layer's states can be listened to.
        self.layers = nn.ModuleList(
            self.cell(width, width // 2 if both else width, bidirectional=both)
            for _ in range(config.num_hidden_layers)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = self.make_head(width)
        self.post_init()

    @property
    def bidirectional(self) -> bool:
        return True

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def hidden_width(self) -> int:
        return self.config.hidden_size

    def run(self, batch: Mapping[str, Any], tap: Tap | None = None) -> PackedOutput:
        listener, ids = self.listen(batch, tap)
        cu_seqlens = listener.cu_seqlens
        if listener.done:
            return PackedOutput()
        order = TimeMajor(cu_seqlens, listener.max_seqlen)
        states, last = self.embeddings(ids[order.tokens]), None
        if listener.wants("hidden", 0):
            listener.hand("hidden", 0, hidden=states[order.places])
        for index, layer in enumerate(self.layers, start=1):
            if listener.done:
                return PackedOutput()
            read = states if index == 1 else self.dropout(states)
            (states, *_), last = layer(PackedSequence(read, order.batch_sizes))
            if listener.wants("hidden", index):
                listener.hand("hidden", index, hidden=states[order.places])
        if listener.done:
            return PackedOutput()
        hidden = states[order.places]
        if self.classifier is None:
            return PackedOutput(hidden)
        of_tokens = self.config.head != "sequence"
        rows = hidden if of_tokens else self._pool(hidden, last, order, cu_seqlens)
        logits = self.classifier(self.dropout(rows))
        if listener.wants("logits"):
            listener.hand("logits", 0, logits=logits)
        return PackedOutput(hidden, logits)

    def _pool(self, hidden: Tensor, last: Any, order: TimeMajor, cu_seqlens: Tensor) -> Tensor:
        """``[N, hidden_size]``."""
        if self.config.pooling != "last":
            return pool_features(hidden, cu_seqlens, mode=self.config.pooling)
        ends = last[0] if isinstance(last, tuple) else last  # of an LSTM with its cell states
        return ends.transpose(0, 1).flatten(1)[order.rank]
