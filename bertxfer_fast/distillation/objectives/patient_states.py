"""The first token's states of intermediate layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...models.activations import LayerActivations
from ...ops import pool_features
from .base import Layers, register
from .projected import ProjectedObjective

__all__ = ["PatientStates"]


@register
class PatientStates(ProjectedObjective):
    """MSE of the L2-normalised [CLS] states of mapped layers (Sun et al., "Patient Knowledge Distillation", 2019).

    The value is the sum over layers of a mean over sequences and coordinates; the paper's code divides it by the
    number of layers too.

    Args:
        projection: as in `HiddenStates`; by default a learned map where widths differ, before the norm.
        layers, weight, schedule, name: see `Objective`. ``"skip"``, the default, is the paper's PKD-Skip: every k-th
            layer, without the embeddings and the last one, which the logits stand for.
    """

    default_name = "patient_states"

    def __init__(
        self,
        layers: Layers = "skip",
        *,
        projection: str = "auto",
        weight: float | str = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(projection=projection, layers=layers, weight=weight, schedule=schedule, name=name)

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        assert student.hidden is not None and teacher.hidden is not None
        s, t = (
            pool_features(seen.hidden, student.cu_seqlens, mode="cls")  # type: ignore[arg-type]
            for seen in (student, teacher)
        )
        linear = self.projection_of(student, teacher)
        if linear is not None:
            s = linear(s)
        return F.mse_loss(F.normalize(s.float(), dim=-1), F.normalize(t.float(), dim=-1))
