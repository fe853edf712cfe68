"""The teacher's logits alone, or beside labels (Hinton et al., 2015)."""

from __future__ import annotations

from ..objectives import Labels, Logits, Objective, WeightLike
from ..objectives.temperature import TemperatureLike
from .base import Recipe, Stage, register

__all__ = ["logits"]


@register
def logits(
    *,
    kind: str = "kl",
    temperature: TemperatureLike = 2.0,
    weight: WeightLike = 1.0,
    labels_weight: WeightLike = 0.0,
    masking: float = 0.15,
) -> Recipe:
    """Soft labels (Hinton et al., 2015; Tang et al., 2019): for students of any kind, as it looks at no layer.

    Args:
        kind: ``"kl"``, ``"soft_ce"``, ``"sigmoid"`` or ``"mse"``, see `Logits`. Multi-label heads are matched label by
            label, numbers (regression) by MSE.
        temperature: a number, or a schedule such as ``"flsw"`` or ``{"kind": "linear", "value": 8, "end": 1}``.
        weight: of the soft labels, a number or a schedule.
        labels_weight: of the data's own labels; 0, the default, needs none.
        masking: share of the tokens that are masked where the task is a masked LM.
    """

    def build() -> list[Objective]:
        return [Logits(temperature, kind=kind, weight=weight), Labels(weight=labels_weight)]

    training = {
        "per_device_train_batch_size": 32,
        "learning_rate": 5e-5,
        "num_train_epochs": 3,
        "warmup_steps": 0.1,
    }
    return Recipe("logits", [Stage("prediction", build, training, masking)])
