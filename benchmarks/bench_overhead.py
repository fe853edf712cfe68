"""What a call costs beyond its work: tiny losses, forward and backward, against torch's mse_loss of the same size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.nn import functional as F

from bertxfer_fast import ops

from .harness import Problem, compare, full_or_quick, with_gradients
from .inputs import even_packing, random

TOKENS, WIDTH = 64, 16
CALLS, ROUNDS = full_or_quick((50, 400), (5, 3))  # timed as one, and at most so many times


def hidden_mse() -> tuple[Callable[[], Tensor], list[Tensor]]:
    student, teacher = random(TOKENS, WIDTH, grad=True), random(TOKENS, WIDTH)
    return lambda: ops.hidden_mse(student, teacher), [student]


def hidden_cosine() -> tuple[Callable[[], Tensor], list[Tensor]]:
    student, teacher = random(TOKENS, WIDTH, grad=True), random(TOKENS, WIDTH)
    return lambda: ops.hidden_cosine(student, teacher), [student]


def logits_kl() -> tuple[Callable[[], Tensor], list[Tensor]]:
    student, teacher = random(TOKENS, WIDTH, grad=True), random(TOKENS, WIDTH)
    return lambda: ops.logits_kl(student, teacher), [student]


def attention(function: Callable[..., Tensor]) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """One sequence, one head."""
    student = [random(TOKENS, 1, WIDTH, grad=True) for _ in range(2)]
    teacher = [random(TOKENS, 1, WIDTH) for _ in range(2)]
    cu_seqlens = even_packing(1, TOKENS)
    return lambda: function(*student, *teacher, cu_seqlens, max_seqlen=TOKENS), student


def relation_kl() -> tuple[Callable[[], Tensor], list[Tensor]]:
    student, teacher, cu_seqlens = (
        random(TOKENS, WIDTH, grad=True),
        random(TOKENS, WIDTH),
        even_packing(1, TOKENS),
    )
    return lambda: ops.relation_kl(student, teacher, cu_seqlens, heads=1, max_seqlen=TOKENS), [student]


LOSSES = {
    "hidden_mse": hidden_mse,
    "hidden_cosine": hidden_cosine,
    "logits_kl": logits_kl,
    "attention_score_mse": lambda: attention(ops.attention_score_mse),
    "attention_map": lambda: attention(ops.attention_map_loss),
    "relation_kl": relation_kl,
}


@pytest.mark.parametrize("name", LOSSES)
def test_overhead(benchmark: Any, name: str) -> None:
    loss, wrt = LOSSES[name]()
    student, teacher = random(TOKENS, WIDTH, grad=True), random(TOKENS, WIDTH)
    implementations = {
        "cpp": with_gradients(loss, wrt),  # as users call it: forcing a backend would cost time of its own
        "floor: mse_loss": with_gradients(lambda: F.mse_loss(student, teacher), [student]),
    }
    problem = Problem(op="overhead", implementations=implementations, case=name, shape=f"{TOKENS}x{WIDTH}")
    compare(
        benchmark,
        problem,
        calls=CALLS,
        max_rounds=ROUNDS,
        with_memory=False,
    )
