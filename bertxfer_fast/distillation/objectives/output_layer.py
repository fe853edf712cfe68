"""What objectives share that read a masked-LM head's output layer in place of its logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...models.activations import LayerActivations
from ...models.spec import EncoderSpec

__all__ = ["labelled_rows", "logits_of_rows", "with_output_layer"]


def with_output_layer(name: str, role: str, spec: EncoderSpec) -> None:
    """Raise ValueError unless what a model's output layer reads can be had."""
    if not spec.output_layer:
        raise ValueError(
            f"{name}: got {spec.name} as {role}, want a masked-LM model, whose head ends in one linear map of tokens"
        )


def labelled_rows(labels: Tensor, tokens: int) -> Tensor:
    """Indices of the tokens whose label is not -100.

    Raises:
        ValueError: not one label for each of ``tokens``.
    """
    if labels.numel() != tokens:
        raise ValueError(f"labels: got {tuple(labels.shape)}, want one for each of {tokens} tokens")
    return (labels.reshape(-1) != -100).nonzero().flatten()


def logits_of_rows(student: LayerActivations, rows: Tensor) -> Tensor:
    """``[len(rows), V]`` logits of a few tokens, out of what the output layer reads."""
    assert student.hidden is not None and student.weight is not None
    return F.linear(student.hidden[rows], student.weight, student.bias)
