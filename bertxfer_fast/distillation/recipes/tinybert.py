"""TinyBERT (Jiao et al., 2020): intermediate layers, then predictions."""

from __future__ import annotations

from ..objectives import AttentionScores, HiddenStates, Layers, Logits, Objective, WeightLike
from ..objectives.temperature import TemperatureLike
from .base import Recipe, Stage, register

__all__ = ["tinybert"]


@register
def tinybert(
    *,
    layers: Layers = "uniform",
    padding: str = "valid",
    projection: str = "shared",
    attention_weight: WeightLike = 1.0,
    hidden_weight: WeightLike = 1.0,
    temperature: TemperatureLike = 1.0,
) -> Recipe:
    """Task distillation of TinyBERT (Jiao et al., 2020): intermediate layers first, then predictions.

    For a student that starts general, see `tinybert_general`.

    Args:
        layers: map for attention and hidden states; explicit pairs count attention layers from 0 and hidden
            states from the embeddings, so they fit one of the two only: ``"uniform"`` is what the paper does.
        padding: ``"valid"`` or ``"reference"``, see `AttentionScores`.
        projection: of the hidden states, see `HiddenStates`.
        attention_weight, hidden_weight: a number or a schedule.
        temperature: of the prediction stage, see `Logits`.
    """

    def intermediate() -> list[Objective]:
        return [
            AttentionScores(layers, padding=padding, weight=attention_weight),
            HiddenStates(layers, projection=projection, padding=padding, weight=hidden_weight),
        ]

    def prediction() -> list[Objective]:
        return [Logits(temperature, kind="soft_ce")]

    training = {"per_device_train_batch_size": 32}
    return Recipe(
        "tinybert",
        [
            Stage("intermediate", intermediate, {**training, "learning_rate": 5e-5, "num_train_epochs": 10}),
            # A warm-up below 1 is a share of all steps.
            Stage(
                "prediction",
                prediction,
                {**training, "learning_rate": 3e-5, "num_train_epochs": 3, "warmup_steps": 0.1},
            ),
        ],
    )
