"""The tokens that were masked."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...models.activations import LayerActivations
from ...models.spec import EncoderSpec
from .base import Objective, register

__all__ = ["MaskedLM", "labelled_rows", "with_output_layer"]


@register
class MaskedLM(Objective):
    """Cross-entropy of the masked tokens, whose logits alone are computed; needs no teacher (Devlin et al., "BERT",
    2019).

    `Labels` gives the same value from the logits of all tokens.

    Args:
        weight, schedule, name: see `Objective`.
    """

    place = "output_layer"
    default_name = "masked_lm"
    needs_teacher = False
    needs_labels = True

    def bind(self, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
        super().bind(student, teacher)
        with_output_layer(self.name, "student", student)

    def forward(self, student: LayerActivations, labels: Tensor) -> Tensor:
        """The mean over tokens with a label in ``labels [1, T]`` that is not -100; 0 where there is none."""
        assert student.hidden is not None and student.weight is not None
        rows = labelled_rows(labels, len(student.hidden))
        logits = F.linear(student.hidden[rows], student.weight, student.bias).float()
        wanted = labels.reshape(-1)[rows]
        return F.cross_entropy(logits, wanted, reduction="sum") / max(len(wanted), 1)


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
