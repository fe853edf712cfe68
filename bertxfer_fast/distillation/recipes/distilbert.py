"""DistilBERT (Sanh et al., 2019): soft labels, labels and the direction of the last hidden state at once."""

from __future__ import annotations

from ..objectives import HiddenCosine, Labels, LinearLogits, Logits, Objective, WeightLike
from ..objectives.temperature import TemperatureLike
from ..registry import check_choice
from .base import Recipe, Stage, register

__all__ = ["distilbert"]


@register
def distilbert(
    *,
    logits: str = "vocabulary",
    temperature: TemperatureLike = 2.0,
    tokens: str = "all",
    vocab_size: int | None = None,
    soft_weight: WeightLike = 5.0,
    labels_weight: WeightLike = 2.0,
    cosine_weight: WeightLike = 1.0,
    masking: float = 0.15,
) -> Recipe:
    """DistilBERT (Sanh et al., 2019): soft labels, masked tokens and the last hidden state's direction in one stage.

    KL with temperature 2, masked-LM cross-entropy and cosine, weighted 5, 2 and 1, on plain text with 15 % of the
    tokens masked.

    Args:
        logits: ``"vocabulary"``: of masked-LM teachers, whose logits are never whole in memory (`LinearLogits`);
            ``"whole"``: of any head (`Logits`), for the same three losses on a task of its own labels.
        temperature: see `Logits`.
        tokens, vocab_size: of ``"vocabulary"``, see `LinearLogits`.
        soft_weight, labels_weight, cosine_weight: a number or a schedule; 0 leaves one out.
        masking: share of the tokens that are masked where the task is a masked LM.
    """
    check_choice("logits", logits, ("vocabulary", "whole"))

    def build() -> list[Objective]:
        soft: Objective
        if logits == "vocabulary":
            soft = LinearLogits(
                temperature, tokens=tokens, vocab_size=vocab_size, weight=soft_weight, name="logits"
            )
        else:
            soft = Logits(temperature, weight=soft_weight)
        return [soft, Labels(weight=labels_weight), HiddenCosine(weight=cosine_weight)]

    training = {
        "per_device_train_batch_size": 32,
        "learning_rate": 5e-4,
        "num_train_epochs": 3,
        "warmup_steps": 0.05,
    }
    return Recipe("distilbert", [Stage("distillation", build, training, masking)])
