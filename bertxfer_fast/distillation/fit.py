"""Whether two models are a teacher and a student, two and of the same tokens, and what one learns has names."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from typing import Any

from torch import nn

from ..models.encoder import ActivationSource, Encoder, module_of
from ..models.spec import padded_alike
from .objectives import Objective

__all__ = ["check_models", "check_objectives", "teacher_or_start"]


def teacher_or_start(teacher: Any, student: Any) -> Any:
    """The teacher; for ``"self"`` a copy of the student as it is now."""
    if not isinstance(teacher, str) or teacher not in ("self", "start"):
        return teacher
    if teacher == "start":
        warnings.warn("teacher='start' is now called teacher='self'", DeprecationWarning, stacklevel=3)
    return copy.deepcopy(student)


def check_models(
    teacher: Encoder | ActivationSource | None, student: Encoder, *, tokenizers_compared: bool
) -> None:
    """Check that a student can learn of a teacher, whatever it is that it learns.

    Args:
        teacher: the teacher.
        student: the student, none of whose parameters is held.
        tokenizers_compared: the vocabularies are known to be one, so the sizes of the tables tell nothing.

    Raises:
        ValueError: no teacher, one that the training would change, or another vocabulary.
    """
    if teacher is None:
        raise ValueError("teacher: got None, want a model: an objective needs it")
    taught_by, module = module_of(teacher), module_of(student)
    if taught_by is module:
        raise ValueError("teacher: got the student itself, want another model (copy.deepcopy gives one)")
    assert module is not None
    shared = _shared(module, taught_by)
    if shared:
        raise ValueError(
            f"teacher: got {len(shared)} parameters that are the student's too ({shared[0]}, ...), want its own "
            "(copy.deepcopy gives them): training the student would change the teacher"
        )
    sizes = [spec.vocab_size for spec in (teacher.spec, student.spec) if spec.vocab_size is not None]
    if len(sizes) == 2 and not tokenizers_compared and not padded_alike(*sizes):
        raise ValueError(
            f"student: got vocab_size {sizes[1]} and {sizes[0]} of the teacher, want the teacher's vocabulary, or one "
            "that differs by padding alone: both read the same tokens"
        )


def _shared(student: nn.Module, teacher: nn.Module | None) -> list[str]:
    """Names of the student's parameters, frozen ones aside, whose memory the teacher reads too."""
    if teacher is None:
        return []
    memory = {p.data_ptr() for p in teacher.parameters()} - {0}
    ids = {id(p) for p in teacher.parameters()}
    trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    return [name for name, p in trained if id(p) in ids or p.data_ptr() in memory]


def check_objectives(objectives: list[Objective]) -> None:
    """Raise unless there are objectives, one of them counts, and each has a name of its own."""
    for objective in objectives:
        if not isinstance(objective, Objective):
            raise TypeError(f"objectives: got {type(objective).__name__}, want Objective instances")
    if not any(objective.weight > 0 for objective in objectives):
        raise ValueError(
            f"objectives: got {[objective.name for objective in objectives]}, want at least one with a weight above 0"
        )
    repeated = [name for name, count in Counter(o.name for o in objectives).items() if count > 1]
    if repeated:
        raise ValueError(f"objectives: got {repeated[0]!r} more than once, want names of their own (name=)")
