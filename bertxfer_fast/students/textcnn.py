"""Convolutions over tokens (Kim, "Convolutional Neural Networks for Sentence Classification", 2014).

A window of k tokens around each token. With a token's row x_t [E] and the kernel's slices W_o [E, F],

    y_t = relu(b + sum over o of x_{t+o} W_o),     o from -(k-1)//2 to k//2, where t+o is in the same sequence

so one product [T, E] x [E, k F] of the pack and k sums of shifted rows are the convolution, without a gathered copy of
every window (k times the pack) and without padding: a row that would cross a border is zeroed before it is shifted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.activations import PackedOutput, Tap
from ..ops import pool_features
from .network import Embeddings, Network, NetworkConfig, register

__all__ = ["PackedConvolution", "TextCNN"]


class TextCNNConfig(NetworkConfig):
    """Sizes of a `TextCNN`.

    Attributes:
        kernel_sizes: tokens in a window, one convolution for each.
        filters: width of each convolution.
        embedding_size: width of the embeddings; by default that of all convolutions together.
    """

    kernel_sizes: list[int] = (3, 4, 5)  # type: ignore[assignment]
    filters: int = 100


class PackedConvolution(nn.Module):
    """Convolutions of several widths over the sequences of a pack, side by side.

    Args:
        width: of the rows.
        filters: of each convolution.
        kernel_sizes: tokens in a window.
    """

    def __init__(self, width: int, filters: int, kernel_sizes: Sequence[int]) -> None:
        super().__init__()
        self.filters = filters
        self.windows = [range(-((size - 1) // 2), size // 2 + 1) for size in kernel_sizes]
        self.weight = nn.Parameter(torch.empty(width, sum(kernel_sizes), filters))  # all slices, side by side
        self.bias = nn.Parameter(torch.empty(len(kernel_sizes), filters))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As nn.Conv1d: uniform within ``1 / sqrt(width * size)``."""
        sizes = [len(window) for window in self.windows]
        for size, weight, bias in zip(sizes, self.weight.split(sizes, 1), self.bias, strict=True):
            bound = (len(self.weight) * size) ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """``[T, width]`` -> ``[T, filters * convolutions]``, before any activation."""
        tokens, offsets = x.shape[0], [offset for window in self.windows for offset in window]
        products = (x @ self.weight.flatten(1)).view(tokens, len(offsets), self.filters)
        # Token t of [start, end) adds to the window around t - offset, if that is in the sequence.
        bounds = cu_seqlens.long()
        row = torch.arange(len(bounds) - 1, device=x.device).repeat_interleave(
            bounds.diff(), output_size=tokens
        )
        centres = torch.arange(tokens, device=x.device)[:, None] - torch.tensor(offsets, device=x.device)
        outside = (centres < bounds[row][:, None]) | (centres >= bounds[row + 1][:, None])
        products = products.masked_fill(outside[..., None], 0)
        left, right = max(0, -min(offsets)), max(0, max(offsets))
        shifted = F.pad(products, (0, 0, 0, 0, left, right)).unbind(1)
        columns = iter(shifted)
        sums = [
            reduce(torch.add, (next(columns)[left + o : left + o + tokens] for o in window))
            for window in self.windows
        ]
        return torch.cat(sums, 1) + self.bias.flatten()


@register
class TextCNN(Network):
    """Embeddings, convolutions of several widths side by side, the maximum over a sequence, and a head.

    Hidden 1 are the convolutions' values ``[T, filters * len(kernel_sizes)]`` after the activation. See
    `TextCNNConfig`.
    """

    config_class = TextCNNConfig
    kind = "textcnn"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.filters < 1:
            raise ValueError(f"filters: got {config.filters}, want 1 or more")
        if not config.kernel_sizes or min(config.kernel_sizes) < 1:
            raise ValueError(f"kernel_sizes: got {list(config.kernel_sizes)}, want widths of 1 or more")
        self.embeddings = Embeddings(config, self.hidden_width)
        self.convolution = PackedConvolution(self.hidden_width, config.filters, config.kernel_sizes)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = self.make_head(self.hidden_width)
        self.post_init()

    @classmethod
    def embedding_size(cls, config: Any, teacher: int) -> int:
        return config.filters * len(config.kernel_sizes)

    @property
    def num_layers(self) -> int:
        return 1

    @property
    def hidden_width(self) -> int:
        return self.config.filters * len(self.config.kernel_sizes)

    def run(self, batch: Mapping[str, Any], tap: Tap | None = None) -> PackedOutput:
        listener, ids = self.listen(batch, tap)
        cu_seqlens = listener.cu_seqlens
        if listener.done:
            return PackedOutput()
        rows = self.embeddings(ids)
        if listener.wants("hidden", 0):
            listener.hand("hidden", 0, hidden=rows)
        if listener.done:
            return PackedOutput()
        hidden = self.convolution(rows, cu_seqlens).relu()
        if listener.wants("hidden", 1):
            listener.hand("hidden", 1, hidden=hidden)
        if self.classifier is None or listener.done:
            return PackedOutput(hidden)
        of_tokens = self.config.head != "sequence"
        read = hidden if of_tokens else pool_features(hidden, cu_seqlens, mode="max")
        logits = self.classifier(self.dropout(read))
        if listener.wants("logits"):
            listener.hand("logits", 0, logits=logits)
        return PackedOutput(hidden, logits)
