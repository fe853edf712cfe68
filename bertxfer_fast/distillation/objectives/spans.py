"""Heads that look for the first and the last token of a span: two softmaxes over the tokens of every sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.packing import positions_of, unpack
from ...models.activations import LayerActivations

__all__ = ["span_log_softmax", "span_loss", "span_rows"]

_NOWHERE = -1e4  # its exponential is 0 in float32, and unlike -inf it has no NaN in products with 0


def span_rows(activations: LayerActivations) -> Tensor:
    """``[T, 2]`` logits of a pack as float32 ``[2N, L]``: for every sequence a row of first and a row of last tokens.

    Behind the end of a sequence stands a logit of no weight.
    """
    assert activations.logits is not None
    logits = unpack(
        activations.logits.float(), activations.cu_seqlens, activations.max_seqlen, value=_NOWHERE
    )
    return logits.transpose(1, 2).reshape(-1, logits.shape[1])


def span_log_softmax(activations: LayerActivations) -> Tensor:
    """``[T, 2]`` logits of a pack as float32 log-probabilities, each column's over the tokens of every sequence."""
    assert activations.logits is not None
    lengths = activations.cu_seqlens.long().diff()
    rows = span_rows(activations).log_softmax(-1).view(len(lengths), 2, -1)
    sequence = torch.repeat_interleave(lengths, output_size=len(activations.logits))
    return rows[sequence, :, positions_of(activations.cu_seqlens, sequence)]


def span_loss(student: LayerActivations, labels: Tensor) -> Tensor:
    """Cross-entropy of first and last tokens ``[N, 2]``, the mean of both, as transformers has it; negative ones do not
    count.

    Raises:
        ValueError: labels of another shape, or behind the end of their sequence.
    """
    rows = span_rows(student)
    if labels.numel() != len(rows):
        raise ValueError(
            f"labels: got {tuple(labels.shape)}, want the first and the last token of {len(rows) // 2}"
        )
    wanted = labels.reshape(-1).long()
    if wanted.device.type == "cpu":  # elsewhere looking costs a host sync
        lengths = student.cu_seqlens.diff().repeat_interleave(2).cpu()
        bad = wanted[wanted >= lengths]
        if len(bad):
            raise ValueError(f"labels: got {int(bad[0])}, want a token of its sequence (or -100)")
    wanted = torch.where(wanted < 0, -100, wanted)
    total = F.cross_entropy(rows, wanted, reduction="sum", ignore_index=-100)
    return total / (wanted >= 0).sum().clamp(min=1)
