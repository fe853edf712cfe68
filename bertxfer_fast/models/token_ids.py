"""What a token head takes the labelled tokens for, without a vocabulary's logits of all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import LayerActivations, Tap
from .encoder import Encoder

__all__ = ["ids_of_labelled", "likeliest_ids"]

_ROWS = 256  # tokens whose logits are there at once


def likeliest_ids(activations: LayerActivations, labels: Tensor) -> Tensor:
    """The ids with the highest logits, int64 ``[T]``.

    Args:
        activations: of the logits; or of what a masked-LM head's output layer reads, whose logits are then computed of
            the labelled tokens alone, a few hundred at a time. Other tokens have the id 0.
        labels: ``[T]`` or ``[1, T]``, negative where a token has none.
    """
    if activations.logits is not None:
        return activations.logits.flatten(0, -2).argmax(-1)
    hidden, weight = activations.hidden, activations.weight
    assert hidden is not None and weight is not None
    ids = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    for rows in (labels.reshape(-1) >= 0).nonzero().flatten().split(_ROWS):
        ids[rows] = F.linear(hidden[rows], weight, activations.bias).argmax(-1)
    return ids


def ids_of_labelled(encoder: Encoder, batch: Mapping[str, Any]) -> Tensor:
    """`likeliest_ids` of a packed batch with ``labels``; a masked-LM head is left in front of its output layer."""
    if not encoder.spec.output_layer:
        logits = encoder.run(batch).logits
        assert logits is not None
        return logits.flatten(0, -2).argmax(-1)
    found: list[LayerActivations] = []
    encoder.run(batch, Tap(found.append, output_layer=True, stop=True))
    return likeliest_ids(found[0], batch["labels"])
