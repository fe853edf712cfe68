"""The first token's states of intermediate layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...models.activations import LayerActivations
from .base import Layers, WeightLike, register
from .pooled import pooled_of, unit
from .projected import ProjectedObjective

__all__ = ["PatientStates"]


@register
class PatientStates(ProjectedObjective):
    """MSE of the L2-normalised [CLS] states of mapped layers (Sun et al., "Patient Knowledge Distillation", 2019).

    A mean over sequences, coordinates and layers, as in the paper's code.

    Args:
        projection: as in `HiddenStates`; by default a learned map where widths differ, before the norm.
        layers, weight, schedule, name: see `Objective`. ``"skip"``, the default, is the paper's PKD-Skip: every k-th
            layer, without the embeddings and the last one, which the logits stand for.
    """

    default_name = "patient_states"
    pooling = "cls"

    def __init__(
        self,
        layers: Layers = "skip",
        *,
        projection: str = "auto",
        weight: WeightLike = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(projection=projection, layers=layers, weight=weight, schedule=schedule, name=name)

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        s, t = pooled_of(student, self.pooling), pooled_of(teacher, self.pooling)
        linear = self.projection_of(student, teacher)
        if linear is not None:
            s = linear(s)
        return F.mse_loss(unit(s.float()), unit(t.float())) / len(self.pairs)
