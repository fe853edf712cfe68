"""Rows of token features and a trained-on-them helper, shared by the tests of teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.models.activations import LayerActivations
from bertxfer_fast.packing import PackingCollator


def features(count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of 2 to 9 tokens, all different."""
    draw = np.random.default_rng(seed)
    return [
        {"input_ids": [5 + i % 40, *draw.integers(5, 50, draw.integers(1, 9)).tolist()], "labels": i % 3}
        for i in range(count)
    ]


def pack(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return PackingCollator()(list(rows))


def streamed(source: Any, batch: dict[str, Any]) -> dict[Any, Tensor]:
    """What a source hands over of a batch, by spot, each once and in one form."""
    seen: dict[Any, Tensor] = {}

    def keep(activations: LayerActivations) -> None:
        told = (activations.logits, activations.hidden, *(activations.pooled or {}).values())
        [value] = [numbers for numbers in told if numbers is not None]
        assert activations.spot not in seen
        seen[activations.spot] = value.clone()

    source.stream(batch, keep)
    return seen


def trained(distiller: Distiller, rows: list[dict[str, Any]], epochs: int = 2, size: int = 8) -> list[float]:
    """Losses of SGD over shuffled batches, the same ones whatever the teacher is."""
    optimizer = torch.optim.SGD(distiller.parameters(), 0.05)
    losses = []
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(rows))
        for start in range(0, len(rows), size):
            loss = distiller(**pack([rows[i] for i in order[start : start + size]])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses
