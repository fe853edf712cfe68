"""Hidden states, through a learned projection where widths differ."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ...models.activations import LayerActivations
from ..registry import check_choice
from .base import Layers, WeightLike, register
from .projected import ProjectedObjective

__all__ = ["HiddenStates"]


@register
class HiddenStates(ProjectedObjective):
    """MSE of hidden states, embeddings included, through a learned linear map (Jiao et al., "TinyBERT", 2020).

    Args:
        projection: ``"shared"`` (one ``nn.Linear(student width, teacher width)`` with bias for all pairs, as in
            TinyBERT), ``"per_layer"`` (one for each pair), ``"none"`` (equal widths) or ``"auto"`` (``"none"`` where
            widths are equal, ``"shared"`` where not). It is created when the objective is bound, trained with the
            student, and dropped with the objective.
        padding: ``"valid"`` divides by the real tokens, ``"reference"`` by all of the padded batch (``B * L * D``), see
            `AttentionScores`; rows of padding add nothing here.
        layers, weight, schedule, name: see `Objective`.
    """

    default_name = "hidden_states"

    def __init__(
        self,
        layers: Layers = "uniform",
        *,
        projection: str = "shared",
        padding: str = "valid",
        weight: WeightLike = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(projection=projection, layers=layers, weight=weight, schedule=schedule, name=name)
        self.padding = check_choice("padding", padding, ("valid", "reference"))

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        assert student.hidden is not None and teacher.hidden is not None
        loss = ops.hidden_mse(
            student.hidden,
            teacher.hidden,
            *self.weight_and_bias(student, teacher),
            reduction="mean" if self.padding == "valid" else "sum",
        )
        if self.padding == "reference":
            rows = (len(student.cu_seqlens) - 1) * student.max_seqlen
            loss = loss / (rows * teacher.hidden.shape[1])
        return loss
