"""Similarities of the texts of a pack with each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.activations import LayerActivations
from ..registry import check_choice
from .base import Layers, WeightLike, register
from .pooled import PooledObjective, full_precision
from .temperature import TemperatureLike, as_temperature

__all__ = ["Scores"]


@register
class Scores(PooledObjective):
    """The teacher's scores of text pairs: inner products of pooled vectors within a pack. Widths may differ.

    Without ``group`` every text is scored against every other of its pack. With it, a pack holds groups of so many
    neighbours: a query, the text that answers it, and others that do not. `DistillationTrainer` shuffles the groups of
    a data set and keeps each whole; other loops have to.

    Args:
        kind: ``"kl"``: KL(teacher || student) of the softmax of a text's scores, times temperature squared, mean over
            texts (queries); ``"margin_mse"``: MSE of the margins score(q, d+) - score(q, d-) (Hofstätter et al.,
            2020), mean over all of them; without groups, over every ordered pair of the others as d+ and d-.
        temperature: of ``"kl"``: a positive number, or ``{"kind": "linear", "value": 1, "end": 0.05}`` over the
            training. Cosines are small numbers; 0.05 is usual.
        group: texts of a group, 3 or more; None: no groups.
        pooling: of both models: ``"mean"``, ``"cls"``, ``"max"`` or ``"mean_sqrt"``.
        normalize: score by cosines.
        layers, weight, schedule, name: see `Objective`; the last hidden state by default.
    """

    default_name = "scores"

    def __init__(
        self,
        kind: str = "kl",
        *,
        temperature: TemperatureLike = 0.05,
        group: int | None = None,
        pooling: str = "mean",
        normalize: bool = True,
        layers: Layers = "last",
        weight: WeightLike = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(
            pooling=pooling, normalize=normalize, layers=layers, weight=weight, schedule=schedule, name=name
        )
        self.kind = check_choice("kind", kind, ("kl", "margin_mse"))
        self.temperature = as_temperature(temperature)
        if self.temperature.per_row:
            raise ValueError(f"temperature: got {temperature!r}, want a number or 'linear'")
        if group is not None and (isinstance(group, bool) or not isinstance(group, int) or group < 3):
            raise ValueError(f"group: got {group!r}, want 3 or more (query, answer, others), or None")
        self.group = group

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        s, t = (self._scores(self.pooled(seen)) for seen in (student, teacher))
        if s.shape[1] < 2:  # a pack of one or two texts has nothing to rank
            return s.sum() * 0
        if self.kind == "kl":
            tau = self.temperature.at(self.progress)
            s, t = ((x / tau).log_softmax(-1) for x in (s, t))
            return F.kl_div(s, t, log_target=True, reduction="batchmean") * tau**2
        if self.group is not None:
            return F.mse_loss(s[:, :1] - s[:, 1:], t[:, :1] - t[:, 1:])
        # With d = s - t, the mean of (d_j - d_k)^2 over ordered pairs is twice the variance of d.
        return 2 * (s - t).var(-1, correction=1).mean()

    def _scores(self, vectors: Tensor) -> Tensor:
        """``[queries, documents]``: a text's scores against those it is compared with."""
        if self.group is not None:
            if len(vectors) % self.group:
                raise ValueError(
                    f"{self.name}: got a pack of {len(vectors)} texts, want a multiple of group={self.group}"
                )
            groups = vectors.view(-1, self.group, vectors.shape[1])
            with full_precision(vectors):
                return torch.einsum("qd,qnd->qn", groups[:, 0], groups[:, 1:])
        with full_precision(vectors):
            scores = vectors @ vectors.T
        count = len(vectors)
        others = ~torch.eye(count, dtype=torch.bool, device=vectors.device)
        return scores[others].view(count, count - 1)
