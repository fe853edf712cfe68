"""An extractor's model and arguments, loaded and checked, and what they make of token features."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.collators import INPUTS
from ..data.loaders import sequence_lengths
from ..models.spec import EncoderSpec
from .inputs import Features, Rows, check_ids
from .loaded import Loaded
from .views import View

__all__ = ["Ready", "features_of_rows", "longest_first", "pooled", "tokenizing"]

# A tokenizer sets its truncation for each call and refuses while another thread reads it.
tokenizing = threading.Lock()


@dataclass(frozen=True)
class Ready:
    """An extractor's model and arguments, loaded and checked.

    Attributes:
        source: encoder and tokenizer.
        view: what is made of a text.
        max_length: longer texts are cut to so many tokens; None where nothing limits them.
        tokens_per_batch: tokens in a packed batch.
    """

    source: Loaded
    view: View
    max_length: int | None
    tokens_per_batch: int

    @property
    def model(self) -> Any:
        """The module that runs."""
        return self.source.model

    @property
    def tokenizer(self) -> Any:
        return self.source.tokenizer

    @property
    def spec(self) -> EncoderSpec:
        return self.source.spec

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers as hidden states from 0."""
        return self.view.layers

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.view.dim(self.spec.hidden_size)


def features_of_rows(ready: Ready, views: list[View], rows: Rows, numbers: list[int]) -> list[Tensor]:
    """Features of texts whose row numbers, for messages, are given."""
    if not rows:
        return [torch.zeros(0, view.dim(ready.spec.hidden_size), dtype=torch.float32) for view in views]
    with tokenizing:
        encoded = ready.tokenizer(
            *(list(column) for column in zip(*rows, strict=True)),
            truncation=ready.max_length is not None,
            max_length=ready.max_length,
            padding=False,
            return_attention_mask=False,
        )
    names = [name for name in INPUTS if name in encoded]
    features = [{name: encoded[name][i] for name in names} for i in range(len(rows))]
    check_ids(features, ready.spec, ready.tokenizer, "texts", numbers)
    return pooled(ready, features, views)


def pooled(ready: Ready, features: Features, views: list[View]) -> list[Tensor]:
    """Checked token features as every view has them, float32 ``[N, dim]`` each."""
    return ready.source.pooled(features, views, ready.tokens_per_batch, longest_first(features))


def longest_first(features: Features) -> NDArray[np.int64]:
    """The rows that have tokens, longest first: not for padding (there is none) but so that batches cost alike."""
    lengths = sequence_lengths(features)
    return np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
