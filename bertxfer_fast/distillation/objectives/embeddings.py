"""Sentence vectors against the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.activations import LayerActivations
from ...models.spec import EncoderSpec
from ..registry import check_choice
from .base import Layers, WeightLike, register
from .pooled import PooledObjective, full_precision, unit

__all__ = ["Embeddings"]


@register
class Embeddings(PooledObjective):
    """Distance of pooled vectors (Kim et al., "EmbedDistill", 2023; LEAF, arXiv 2509.12539).

    Args:
        distance: ``"mse"`` (mean over all numbers), ``"l2"`` (Euclidean, mean over rows) or ``"cosine"``
            (``1 - cos``, mean over rows).
        pooling: of both models: ``"mean"``, ``"cls"``, ``"max"`` or ``"mean_sqrt"``.
        normalize: compare unit vectors; before a learned map, and after the projection onto axes anew.
        projection: what bridges the widths. ``"learned"``: ``nn.Linear(student width, teacher width)`` on the student's
            vector, trained and kept with the objective; ``"pca_init"``: the same, starting from the teacher's principal
            axes; ``"pca"``: the teacher's vectors turned onto their principal axes, largest first, and cut to the
            student's width: nothing is learned, the student's vector itself is the reduced one, inner products stay as
            far as the width allows (equal widths: exactly), and a prefix keeps the most of them; ``"none"``: equal
            widths; ``"auto"``: ``"none"`` where they are equal, ``"learned"`` where not. Axes are those of the second
            moments about zero, found when the objective is shown the teacher's vectors, see `Objective.preview`.
        sizes: Matryoshka (Kusupati et al., 2022): the value is the sum over prefixes of the vectors of these sizes,
            each normalised anew. Not with a learned map, behind which a prefix of the student's vector means nothing.
        layers, weight, schedule, name: see `Objective`; the last hidden state by default.
    """

    default_name = "embeddings"
    axes: Tensor

    def __init__(
        self,
        *,
        distance: str = "mse",
        pooling: str = "mean",
        normalize: bool = True,
        projection: str = "auto",
        sizes: Sequence[int] = (),
        layers: Layers = "last",
        weight: WeightLike = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(
            pooling=pooling, normalize=normalize, layers=layers, weight=weight, schedule=schedule, name=name
        )
        self.distance = check_choice("distance", distance, ("mse", "l2", "cosine"))
        self.projection = check_choice(
            "projection", projection, ("auto", "learned", "pca_init", "pca", "none")
        )
        if isinstance(sizes, str) or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"sizes: got {sizes!r}, want a list of whole numbers of 1 or more")
        if sizes and projection in ("learned", "pca_init"):
            raise ValueError(f"sizes: got {list(sizes)} with projection={projection!r}, want 'pca' or 'none'")
        self.sizes = tuple(sizes)
        self.linear: nn.Linear | None = None
        self._moments: Tensor | None = None

    def bind(self, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
        super().bind(student, teacher)
        assert teacher is not None
        if len(self.pairs) > 1:
            raise ValueError(f"{self.name}: layers: got {list(self.pairs)}, want one pair")
        narrow, wide = student.hidden_size, teacher.hidden_size
        equal = narrow == wide
        projection = ("none" if equal else "learned") if self.projection == "auto" else self.projection
        if projection == "none" and not equal:
            raise ValueError(
                f"{self.name}: got widths {narrow} of the student and {wide} of the teacher, want equal widths with "
                "projection='none', or projection='learned' or 'pca'"
            )
        if projection.startswith("pca") and narrow > wide:
            raise ValueError(
                f"{self.name}: got widths {narrow} of the student and {wide} of the teacher, want a student no "
                f"wider than the teacher with projection={projection!r}"
            )
        if self.sizes and (projection == "learned" or max(self.sizes) > narrow):
            raise ValueError(
                f"{self.name}: sizes: got {list(self.sizes)} of vectors of {narrow}, want at most that, with "
                "projection='pca' or equal widths"
            )
        if projection in ("learned", "pca_init"):
            have = None if self.linear is None else (self.linear.in_features, self.linear.out_features)
            if have not in (None, (narrow, wide)):
                raise ValueError(f"{self.name}: got a projection {have} from earlier, want {(narrow, wide)}")
            if have is None:
                self.linear = nn.Linear(narrow, wide)
                self.needs_preview = projection == "pca_init"
        elif projection == "pca":
            axes = getattr(self, "axes", None)
            if axes is not None and tuple(axes.shape) != (narrow, wide):
                raise ValueError(
                    f"{self.name}: got axes {tuple(axes.shape)} from earlier, want {(narrow, wide)}"
                )
            if axes is None:
                self.register_buffer("axes", torch.zeros(narrow, wide))
                self.needs_preview = True

    def preview(self, teacher: LayerActivations) -> None:
        vectors = self.pooled(teacher).double()
        moments = vectors.T @ vectors
        self._moments = moments if self._moments is None else self._moments + moments

    def end_preview(self) -> None:
        if self._moments is None:
            raise ValueError(f"{self.name}: got no vectors of the teacher to find their axes, want some")
        # Ascending eigenvalues; a sign that does not depend on the library makes runs comparable.
        axes = torch.linalg.eigh(self._moments.cpu()).eigenvectors.flip(1).T  # [D, D], a row an axis
        axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        with torch.no_grad():
            if self.linear is not None:
                self.linear.weight.copy_(axes[: self.linear.in_features].T)
                self.linear.bias.zero_()
            else:
                self.axes.copy_(axes[: len(self.axes)])
        self._moments, self.needs_preview = None, False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}axes" in state_dict or f"{prefix}linear.weight" in state_dict:
            self.needs_preview = False

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        if self.needs_preview:
            raise ValueError(
                f"{self.name}: got no look at the teacher's vectors yet, want one before the first batch: "
                "Distiller.preview(batches), which DistillationTrainer.train calls"
            )
        s, t = self.pooled(student), self.pooled(teacher)
        if self.linear is not None:
            s = self.linear(s.to(self.linear.weight.dtype)).float()
        elif hasattr(self, "axes"):
            with full_precision(t):
                t = t @ self.axes.T.float()
            t = unit(t) if self.normalize else t  # a part of a unit vector is shorter, and no student's is
        return torch.stack([self._distance(s[:, :size], t[:, :size]) for size in self._prefixes(s)]).sum()

    def _prefixes(self, vectors: Tensor) -> tuple[int, ...]:
        return self.sizes or (vectors.shape[1],)

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.sizes and self.normalize:
            student, teacher = unit(student), unit(teacher)
        if self.distance == "mse":
            return F.mse_loss(student, teacher)
        if self.distance == "l2":
            return torch.linalg.vector_norm(student - teacher, dim=-1).mean()
        return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
