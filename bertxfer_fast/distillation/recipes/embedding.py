"""Sentence vectors: the teacher's, its scores, or both."""

from __future__ import annotations

from collections.abc import Sequence

from ..objectives import Embeddings, Objective, Scores, WeightLike
from ..objectives.temperature import TemperatureLike
from .base import Recipe, Stage, register

__all__ = ["embedding"]


@register
def embedding(
    *,
    distance: str = "mse",
    pooling: str = "mean",
    normalize: bool = True,
    projection: str = "auto",
    sizes: Sequence[int] = (),
    vectors_weight: WeightLike = 1.0,
    scores: str = "kl",
    scores_weight: WeightLike = 0.0,
    temperature: TemperatureLike = 0.05,
) -> Recipe:
    """A small sentence encoder out of a large one (EmbedDistill, 2023; LEAF, 2025): its vectors, on plain text.

    Args:
        distance, pooling, normalize, projection, sizes: of the vectors, see `Embeddings`. ``projection="pca"`` makes
            the student's vectors those of the teacher in fewer dimensions, ``sizes`` any prefix of them usable.
        vectors_weight: a number or a schedule.
        scores, temperature: how the similarities of the texts of a pack are matched, see `Scores`.
        scores_weight: of that, a number or a schedule; 0, the default, leaves it out.
    """

    def build() -> list[Objective]:
        return [
            Embeddings(
                distance=distance,
                pooling=pooling,
                normalize=normalize,
                projection=projection,
                sizes=sizes,
                weight=vectors_weight,
            ),
            Scores(
                scores, temperature=temperature, pooling=pooling, normalize=normalize, weight=scores_weight
            ),
        ]

    training = {
        "per_device_train_batch_size": 64,
        "learning_rate": 1e-4,
        "num_train_epochs": 3,
        "warmup_steps": 0.1,
    }
    return Recipe("embedding", [Stage("embedding", build, training)])
