"""What a student and a teacher with other tokens have to compare, token by token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..models.activations import Alignment, LayerActivations
from ..ops import pool_features
from .objectives import Objective

__all__ = ["in_common"]


def in_common(
    objective: Objective, student: LayerActivations, *teacher: LayerActivations
) -> tuple[LayerActivations, ...]:
    """The activations that an objective is called with.

    Where both read the same tokens, or the objective pools each model's own, they are these. Else they are rows of the
    student's tokens for which the teacher has any: the student's own, and the mean of the teacher's. Tokens without a
    counterpart are in neither, so that they have no part in the loss.

    Raises:
        ValueError: no token has a counterpart.
    """
    alignment = teacher[0].alignment if teacher else None
    if alignment is None or getattr(objective, "pooling", None) is not None:
        return (student, *teacher)
    rows = alignment.rows
    if not len(rows):
        raise ValueError(
            f"{objective.name}: got a batch in which no token of the student has one of the teacher's, want some"
        )
    bounds = torch.searchsorted(rows, student.cu_seqlens.long()).int()
    both: dict[str, Any] = {"cu_seqlens": bounds, "max_seqlen": student.max_seqlen}
    mine: dict[str, Any] = {name: _chosen(getattr(student, name), rows) for name in ("hidden", "logits")}
    theirs: dict[str, Any] = {
        name: _means(getattr(teacher[0], name), alignment) for name in ("hidden", "logits")
    }
    return replace(student, **both, **mine), replace(teacher[0], **both, **theirs, alignment=None)


def _chosen(values: Tensor | None, rows: Tensor) -> Tensor | None:
    # As many rows as tokens are all of them.
    return values if values is None or len(values) == len(rows) else values.index_select(0, rows)


def _means(values: Tensor | None, alignment: Alignment) -> Tensor | None:
    if values is None:
        return None
    return pool_features(values.index_select(0, alignment.tokens), alignment.bounds)
