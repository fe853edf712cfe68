"""The model card of a training, with what the trainer knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..evaluation.card import ModelCard, how_to_load
from ..evaluation.speed import student_facts
from .datasets import named_datasets

__all__ = ["filled_card"]


def filled_card(trainer: Any) -> ModelCard:
    """The model card, with the facts that are known here where it leaves them open."""
    card = trainer.model_card
    datasets = [("train_dataset", trainer.train_dataset), *named_datasets(trainer.eval_dataset)]
    sizes = {name.replace("_dataset", ""): len(rows) for name, rows in datasets if rows is not None}
    teacher = trainer.distiller.teacher
    return replace(
        card,
        teacher=card.teacher or getattr(getattr(teacher, "config", None), "name_or_path", "") or "",
        student=card.student or student_facts(trainer.student),
        data=card.data or sizes,
        **how_to_load(trainer.student),
    )
