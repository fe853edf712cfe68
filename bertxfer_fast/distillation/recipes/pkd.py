"""Patient knowledge distillation (Sun et al., 2019)."""

from __future__ import annotations

from ..objectives import Labels, Layers, Logits, Objective, PatientStates, WeightLike
from ..objectives.temperature import TemperatureLike
from .base import Recipe, Stage, register

__all__ = ["pkd"]


@register
def pkd(
    *,
    layers: Layers = "skip",
    projection: str = "auto",
    alpha: float = 0.5,
    beta: WeightLike = 100.0,
    temperature: TemperatureLike = 5.0,
) -> Recipe:
    """Patient knowledge distillation (Sun et al., 2019): labels, soft labels and [CLS] states of layers between.

    The loss is ``(1 - alpha) * labels + alpha * logits + beta * states``; the paper searches alpha in 0.2, 0.5, 0.7,
    beta in 10, 100, 500, 1000 and temperatures 5, 10, 20.

    Args:
        layers: hidden states that are matched: ``"skip"`` is PKD-Skip, every k-th; explicit pairs for PKD-Last.
        projection: where widths differ, see `PatientStates`.
        alpha: share of the soft labels, 0 to 1; with 1 no labels are needed.
        beta: weight of the states, a number or a schedule.
        temperature: see `Logits`.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: got {alpha}, want 0 to 1")

    def build() -> list[Objective]:
        return [
            Labels(weight=1 - alpha),
            Logits(temperature, weight=alpha),
            PatientStates(layers, projection=projection, weight=beta),
        ]

    training = {"per_device_train_batch_size": 32, "learning_rate": 5e-5, "num_train_epochs": 4}
    return Recipe("pkd", [Stage("distillation", build, training)])
