"""Which layers of a deep model stand for the layers of a shallow one."""

from __future__ import annotations

__all__ = ["uniform_layers"]


def uniform_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """The last teacher layer (from 0) of each of ``student_layers`` equal blocks: 12 and 4 give [2, 5, 8, 11].

    This is TinyBERT's map of attention layers (Jiao et al., 2020): a student that starts from these layers starts as
    what it is later compared with.

    Raises:
        ValueError: the blocks cannot be equal.
    """
    block, rest = divmod(teacher_layers, student_layers) if student_layers > 0 else (0, 0)
    if rest or not block:
        raise ValueError(
            f"num_hidden_layers: got {student_layers} of the student and {teacher_layers} of the teacher, want the "
            "teacher's to be a multiple of the student's; or name the layers, layers=[...]"
        )
    return list(range(block - 1, teacher_layers, block))
