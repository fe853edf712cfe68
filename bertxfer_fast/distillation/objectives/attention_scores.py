"""Attention scores before the softmax."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ...models.activations import LayerActivations
from ...models.spec import EncoderSpec
from ..registry import check_choice
from .base import Layers, Objective, WeightLike, queries_and_keys, register, same_heads

__all__ = ["AttentionScores"]


@register
class AttentionScores(Objective):
    """MSE of the attention scores before the softmax (Jiao et al., "TinyBERT", 2020). Equal head counts.

    Args:
        padding: what the mean is over. ``"valid"``: the pairs of real tokens. ``"reference"``: ``B * H * L * L``
            with L the longest length of the batch, as TinyBERT's own code divides, so that losses and
            gradients have its scale. Packed data has no padding, which leaves two differences from that code: its rows
            of padded queries, which it does not exclude, add nothing here, and it sets scores <= -100 to 0. Without
            padding the two choices are equal.
        method: of `ops.attention_score_mse`.
        layers, weight, schedule, name: see `Objective`.
    """

    place = "attention"
    reads = ("q", "k")
    default_name = "attention_scores"

    def __init__(
        self,
        layers: Layers = "uniform",
        *,
        padding: str = "valid",
        method: str = "auto",
        weight: WeightLike = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(layers=layers, weight=weight, schedule=schedule, name=name)
        self.padding = check_choice("padding", padding, ("valid", "reference"))
        self.method = check_choice("method", method, ("auto", "gram", "tiled"))

    def bind(self, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
        super().bind(student, teacher)
        same_heads(self.name, student, teacher)

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        q, k = queries_and_keys(student)
        loss = ops.attention_score_mse(
            q,
            k,
            *queries_and_keys(teacher),
            student.cu_seqlens,
            max_seqlen=student.max_seqlen,
            scale_student=student.scale,
            scale_teacher=teacher.scale,
            reduction="mean" if self.padding == "valid" else "sum",
            method=self.method,
        )
        if self.padding == "reference":
            loss = loss / ((len(student.cu_seqlens) - 1) * q.shape[1] * student.max_seqlen**2)
        return loss
