"""TinyBERT's first half (Jiao et al., 2020): a general student, on plain text."""

from __future__ import annotations

from ..objectives import AttentionScores, HiddenStates, Layers, Objective, WeightLike
from .base import Recipe, Stage, register

__all__ = ["tinybert_general"]


@register
def tinybert_general(
    *,
    layers: Layers = "uniform",
    padding: str = "valid",
    projection: str = "shared",
    attention_weight: WeightLike = 1.0,
    hidden_weight: WeightLike = 1.0,
) -> Recipe:
    """General distillation of TinyBERT (Jiao et al., 2020): attention scores and hidden states, on plain text.

    The teacher is a pre-trained encoder that was fine-tuned for nothing; what comes out is the ``student`` that the
    recipe `tinybert` starts from, with a fine-tuned teacher.

    Args:
        layers, padding, projection, attention_weight, hidden_weight: as of `tinybert`.
    """

    def general() -> list[Objective]:
        return [
            AttentionScores(layers, padding=padding, weight=attention_weight),
            HiddenStates(layers, projection=projection, padding=padding, weight=hidden_weight),
        ]

    training = {
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-4,
        "num_train_epochs": 3,
        "warmup_steps": 0.1,
    }
    return Recipe("tinybert_general", [Stage("general", general, training)])
