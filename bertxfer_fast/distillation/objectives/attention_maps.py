"""Attention maps, behind the softmax."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ...models.activations import LayerActivations
from ...models.spec import EncoderSpec
from ..registry import check_choice
from .base import Layers, Objective, WeightLike, queries_and_keys, register, same_heads

__all__ = ["AttentionMaps"]


@register
class AttentionMaps(Objective):
    """Divergence of the softmaxed attention maps, mean over heads and valid rows (``"mse"``: valid pairs).

    Wang et al., "MiniLM", 2020 (``"kl"``, last layer); TextBrewer, 2020 (``"mse"``). Equal head counts.

    Args:
        kind: ``"kl"`` (teacher || student) or ``"mse"``.
        layers, weight, schedule, name: see `Objective`; the last layer by default.
    """

    place = "attention"
    reads = ("q", "k")
    default_name = "attention_maps"

    def __init__(
        self,
        layers: Layers = "last",
        *,
        kind: str = "kl",
        weight: WeightLike = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(layers=layers, weight=weight, schedule=schedule, name=name)
        self.kind = check_choice("kind", kind, ("kl", "mse"))

    def bind(self, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
        super().bind(student, teacher)
        same_heads(self.name, student, teacher)

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        return ops.attention_map_loss(
            *queries_and_keys(student),
            *queries_and_keys(teacher),
            student.cu_seqlens,
            kind=self.kind,
            max_seqlen=student.max_seqlen,
            scale_student=student.scale,
            scale_teacher=teacher.scale,
        )
