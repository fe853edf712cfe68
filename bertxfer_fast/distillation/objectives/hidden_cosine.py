"""Directions of hidden states."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ...models.activations import LayerActivations
from .base import Layers, WeightLike, register
from .projected import ProjectedObjective

__all__ = ["HiddenCosine"]


@register
class HiddenCosine(ProjectedObjective):
    """``1 - cos`` of hidden states, mean over tokens; DistilBERT's third loss (Sanh et al., 2019), on the last one.

    Args:
        projection: as in `HiddenStates`; by default a learned map where widths differ, and none where not.
        layers, weight, schedule, name: see `Objective`; the last hidden state by default.
    """

    default_name = "hidden_cosine"

    def __init__(
        self,
        layers: Layers = "last",
        *,
        projection: str = "auto",
        weight: WeightLike = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(projection=projection, layers=layers, weight=weight, schedule=schedule, name=name)

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        assert student.hidden is not None and teacher.hidden is not None
        return ops.hidden_cosine(student.hidden, teacher.hidden, *self.weight_and_bias(student, teacher))
