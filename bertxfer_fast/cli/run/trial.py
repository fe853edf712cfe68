"""One batch of the data through every stage, before anything is written: what cannot run is found now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...data import sequence_lengths
from ...data.collators import Features
from ...distillation.distiller import Distiller
from ...errors import InputError, one_line, user_input
from ...models.loans import eval_mode

__all__ = ["try_stage"]


def try_stage(
    stage: str,
    distiller: Distiller,
    collate: Callable[[Features], dict[str, Any]],
    splits: dict[str, Features],
) -> None:
    """Run the longest sequence of every split, and the first of them, through teacher, student and objectives.

    Raises:
        InputError: they do not run, or what they give is not finite.
    """
    features = [rows[int(sequence_lengths(rows).argmax())] for rows in splits.values()]
    features.append(next(iter(splits.values()))[0])
    where = f"stage {stage}, tried with {len(features)} sequences of the data"
    with user_input(where):
        batch = collate(features)
        try:
            with eval_mode(distiller), torch.no_grad():
                distiller.preview([batch])
                parts = distiller(**batch).parts or {}
        except (ArithmeticError, LookupError, RuntimeError) as error:  # whatever a model raises
            raise InputError(f"{where}: {one_line(error)}") from error
    for name, value in parts.items():
        if not torch.isfinite(value):
            raise InputError(
                f"{where}: {name}: got {value.item()}, want a finite loss: are all weights of the teacher finite?"
            )
