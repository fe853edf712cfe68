"""A student's head beside its teacher's: the same classes under the same names, in the same order."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from ..models.spec import EncoderSpec

__all__ = ["follow_labels"]

_PLACEHOLDER = re.compile(r"LABEL_\d+")


def follow_labels(student: nn.Module, facts: EncoderSpec, teacher: EncoderSpec) -> None:
    """Let a student's classes stand where the teacher's stand, under the teacher's names.

    A student that has the same names in another order (upper and lower case count as the same) gets the rows of its
    head moved with their names: it says of every text what it said before. One without names of its own takes
    the teacher's, and one without a ``problem_type`` the teacher's as well. Heads of other widths are left alone, and
    so are names where the teacher has none.

    Args:
        student: a transformers model; another network is checked, not changed.
        facts: the student's facts.
        teacher: the teacher's facts.

    Raises:
        ValueError: the student's classes are others than the teacher's, or their rows cannot be moved.
    """
    config = getattr(student, "config", None) if isinstance(student, PreTrainedModel) else None
    if (facts.head, facts.num_labels) != (teacher.head, teacher.num_labels) or facts.head is None:
        return
    if config is not None and config.problem_type is None:
        config.problem_type = teacher.problem_type
    if not _named(teacher.labels):
        return
    if _named(facts.labels) and facts.labels != teacher.labels:
        order = _order(facts.labels, teacher.labels)
        if order != list(range(len(order))):
            if config is None:
                raise ValueError(
                    f"student: got labels {list(facts.labels)}, want them in the teacher's order, "
                    f"{list(teacher.labels)}"
                )
            _move_rows(student, order)
    if config is not None:
        config.id2label = dict(enumerate(teacher.labels))
        config.label2id = {name: i for i, name in enumerate(teacher.labels)}


def _named(labels: Sequence[str]) -> bool:
    """Whether these are names that somebody gave, not those that transformers fills in."""
    return bool(labels) and not all(_PLACEHOLDER.fullmatch(str(label)) for label in labels)


def _order(student: Sequence[str], teacher: Sequence[str]) -> list[int]:
    """Where in the student's labels each of the teacher's stands."""
    where = {str(label).casefold(): i for i, label in enumerate(student)}
    order = [where.get(str(label).casefold(), -1) for label in teacher]
    if sorted(order) != list(range(len(student))):
        raise ValueError(f"student: got labels {list(student)}, want the teacher's, {list(teacher)}")
    return order


def _move_rows(model: PreTrainedModel, order: list[int]) -> None:
    """Put row ``order[i]`` of the head's last linear map at ``i``."""
    inside = set(model.base_model.modules())
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
