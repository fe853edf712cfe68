"""MiniLMv2 (Wang et al., 2021): relations of queries, keys and values with re-split heads."""

from __future__ import annotations

from ..objectives import Objective, Relations, WeightLike
from ..objectives.temperature import TemperatureLike
from .base import Recipe, Stage, register
from .minilm import prediction_stage

__all__ = ["minilmv2"]


@register
def minilmv2(
    *,
    heads: int = 48,
    teacher_layer: int | str = "last",
    weight: WeightLike = 1.0,
    prediction: bool = False,
    temperature: TemperatureLike = 1.0,
) -> Recipe:
    """MiniLMv2 (Wang et al., 2021): KL of query-query, key-key and value-value relations; no labels, no map of layers.

    Heads are joined and split anew, so that widths and head counts may differ.

    Args:
        heads: relation heads, a divisor of both widths: 48 for base teachers in the paper, 64 for large ones.
        teacher_layer: attention layer of the teacher, from 0, that the student's last one learns from: ``"last"`` for
            base teachers in the paper, 20 (the 21st) for large ones.
        weight: a number or a schedule.
        prediction, temperature: as of `minilm`.
    """
    if isinstance(teacher_layer, bool) or not (isinstance(teacher_layer, int) or teacher_layer == "last"):
        raise ValueError(f"teacher_layer: got {teacher_layer!r}, want a layer from 0, or 'last'")

    def relations() -> list[Objective]:
        return [Relations("qkv", heads=heads, layers=[("last", teacher_layer)], weight=weight)]

    training = {
        "per_device_train_batch_size": 32,
        "learning_rate": 6e-4,
        "num_train_epochs": 10,
        "warmup_steps": 0.01,
    }
    stages = [Stage("relations", relations, training)]
    return Recipe("minilmv2", [*stages, *([prediction_stage(temperature)] if prediction else [])])
