"""A student's head beside its teacher's: the same classes under the same names, in the same order."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..models.spec import EncoderSpec

__all__ = ["follow_labels", "has_names", "label_order"]

logger = logging.getLogger(__name__)

_PLACEHOLDER = re.compile(r"LABEL_\d+")


def follow_labels(student: nn.Module, facts: EncoderSpec, teacher: EncoderSpec) -> None:
    """Let a student's classes stand where the teacher's stand, under the teacher's names.

    A student that has the same names in another order (upper and lower case count as the same) gets the rows of its
    head moved with their names: it says of every text what it said before. One without names of its own takes
    the teacher's, and so does, with a warning, one whose head was for other classes; one without a ``problem_type``
    takes the teacher's as well. Heads of other widths are left alone, and so are names where the teacher has none.

    Args:
        student: a transformers model; another network is checked, not changed.
        facts: the student's facts.
        teacher: the teacher's facts.

    Raises:
        ValueError: the rows cannot be moved, or the names of a network that is no transformers model are others.
    """
    config: Any = student.config if isinstance(student, PreTrainedModel) else None
    if (facts.head, facts.num_labels) != (teacher.head, teacher.num_labels) or facts.head is None:
        return
    if config is not None and config.problem_type is None:
        config.problem_type = teacher.problem_type
    if not has_names(teacher.labels):
        return
    if has_names(facts.labels) and facts.labels != teacher.labels:
        if config is None:
            raise ValueError(
                f"student: got labels {list(facts.labels)}, want the teacher's, {list(teacher.labels)}, in this order"
            )
        order = label_order(facts.labels, teacher.labels)
        if order is None:
            logger.warning(
                "the student's head was for %s; it learns the teacher's %s",
                list(facts.labels),
                list(teacher.labels),
            )
        elif order != sorted(order):
            _move_rows(student, order)
    if config is not None:
        config.id2label = dict(enumerate(teacher.labels))
        config.label2id = {name: i for i, name in enumerate(teacher.labels)}


def has_names(labels: Sequence[str]) -> bool:
    """Whether these are names that somebody gave, not those that transformers fills in."""
    return bool(labels) and not all(_PLACEHOLDER.fullmatch(str(label)) for label in labels)


def label_order(student: Sequence[str], teacher: Sequence[str]) -> list[int] | None:
    """Where in the student's labels each of the teacher's stands; None if they are not the same."""
    where = {str(label).casefold(): i for i, label in enumerate(student)}
    order = [where.get(str(label).casefold(), -1) for label in teacher]
    return order if sorted(order) == list(range(len(student))) else None


def _move_rows(model: nn.Module, order: list[int]) -> None:
    """Put row ``order[i]`` of the head's last linear map at ``i``."""
    base: Any = model.base_model
    inside = set() if base is model else set(base.modules())
    maps = [part for part in model.modules() if part not in inside and isinstance(part, nn.Linear)]
    if not maps or maps[-1].out_features != len(order):
        raise ValueError(
            f"student: got {type(model).__name__} with its labels in another order than the teacher's, want the "
            "teacher's order: its head does not end in one linear map with a row a label"
        )
    with torch.no_grad():
        for rows in (maps[-1].weight, maps[-1].bias):
            if rows is not None:
                rows.copy_(rows[order])
