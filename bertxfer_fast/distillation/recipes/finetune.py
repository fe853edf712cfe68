"""No distillation: the labels of the data."""

from __future__ import annotations

from ..objectives import Labels, Objective
from .base import Recipe, Stage, register

__all__ = ["finetune"]


@register
def finetune(*, masking: float = 0.15) -> Recipe:
    """Labels alone, no teacher: a teacher out of a pre-trained encoder, or the undistilled twin of a student.

    Args:
        masking: share of the tokens that are masked where the task is a masked LM, whose labels they are.
    """

    def build() -> list[Objective]:
        return [Labels()]

    training = {
        "per_device_train_batch_size": 32,
        "learning_rate": 5e-5,
        "num_train_epochs": 3,
        "warmup_steps": 0.1,
    }
    return Recipe("finetune", [Stage("finetuning", build, training, masking)])
