"""MiniLM (Wang et al., 2020): the last layer's attention and value relations."""

from __future__ import annotations

from ..objectives import AttentionMaps, Layers, Logits, Objective, Relations, WeightLike
from ..objectives.temperature import TemperatureLike
from .base import Recipe, Stage, register

__all__ = ["minilm", "prediction_stage"]


@register
def minilm(
    *,
    layers: Layers = "last",
    attention_weight: WeightLike = 1.0,
    value_weight: WeightLike = 1.0,
    prediction: bool = False,
    temperature: TemperatureLike = 1.0,
) -> Recipe:
    """MiniLM (Wang et al., 2020): KL of the last layer's attention maps and of its value relations.

    It needs no labels and no map of layers or widths, but equal head counts.

    Args:
        layers: of the attention, see `Objective`.
        attention_weight, value_weight: a number or a schedule.
        prediction: whether a second stage teaches the head, if the teacher has one, by its logits; without it the
            student's head stays as it was.
        temperature: of that stage, see `Logits`.
    """

    def relations() -> list[Objective]:
        return [
            AttentionMaps(layers, kind="kl", weight=attention_weight),
            Relations("v", layers=layers, weight=value_weight, name="value_relation"),
        ]

    training = {
        "per_device_train_batch_size": 32,
        "learning_rate": 5e-4,
        "num_train_epochs": 10,
        "warmup_steps": 0.01,
    }
    stages = [Stage("relations", relations, training)]
    return Recipe("minilm", [*stages, *([prediction_stage(temperature)] if prediction else [])])


def prediction_stage(temperature: TemperatureLike) -> Stage:
    """A stage for the head behind stages that do not look at it, as TinyBERT's second."""

    def build() -> list[Objective]:
        return [Logits(temperature)]

    training = {
        "per_device_train_batch_size": 32,
        "learning_rate": 5e-5,
        "num_train_epochs": 3,
        "warmup_steps": 0.1,
    }
    return Stage("prediction", build, training, masking=0.15)
