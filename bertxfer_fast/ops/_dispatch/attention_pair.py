"""What attention_score_mse and attention_map_loss share: both compare ``[T, H, D]`` queries and keys of two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .examples import LENGTHS, normal, packing
from .loss import fake_loss, stored_dtype

ARGUMENTS = "Tensor q_student, Tensor k_student, Tensor q_teacher, Tensor k_teacher, Tensor cu_seqlens, "
ARGUMENTS += "Tensor? seqused, SymInt max_seqlen, float scale_student, float scale_teacher"
RESULTS = "(Tensor loss, Tensor grad_q, Tensor grad_k, Tensor grad_scale)"
DIFFERENTIABLE = ("q_student", "k_student")

#: Head dims of student and teacher that Triton kernels are tabled for: TinyBERT-4's, MiniLM's, BERT's, and the next
#: two powers of two.
HEAD_DIMS = ((26, 64), (32, 64), (64, 64), (128, 128), (256, 256))


def fake(q_student: Tensor, k_student: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dtype = stored_dtype(q_student.dtype)
    return fake_loss(q_student, ((q_student, dtype), (k_student, dtype)), args[-1])


def example(
    dtype: torch.dtype,
    *,
    student: int = 6,
    teacher: int = 4,
    heads: int = 2,
    lengths: Sequence[int] = LENGTHS,
) -> dict[str, Any]:
    """The arguments that both have; ``student`` and ``teacher`` are head dims."""
    make, tokens = normal(dtype), sum(lengths)
    return {
        "q_student": make(tokens, heads, student),
        "k_student": make(tokens, heads, student),
        "q_teacher": make(tokens, heads, teacher),
        "k_teacher": make(tokens, heads, teacher),
        "cu_seqlens": packing(lengths),
        "seqused": None,
        "max_seqlen": max(lengths),
        "scale_student": student**-0.5,
        "scale_teacher": teacher**-0.5,
    }
