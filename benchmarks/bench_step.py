"""A whole TinyBERT-4 training step on a ragged batch: both models, losses, backward, optimizer.

Student: 4 layers, 312 wide; teacher: 12 layers, 768 wide; random weights. Ours is `Distiller` with the recipe's
intermediate stage on packed tokens. The plain version is a competent one: the batch padded, no pooler, the teacher
under no_grad, scores and hidden states handed out by both models, the same losses over real tokens in plain torch.
The case "hidden" matches hidden states alone, which lets the plain version use torch's fast attention.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertModel

from bertxfer_fast import Distiller, use_backend
from bertxfer_fast.distillation import recipes
from bertxfer_fast.distillation.objectives import HiddenStates, Objective

from . import device
from .harness import SKIP_COMPILE, Call, Problem, backends, compare, full_or_quick
from .inputs import DTYPES
from .models import (
    SCORES,
    STUDENT,
    TEACHER,
    bert,
    compile_layers,
    packed,
    padded,
    ragged_texts,
    register_scores,
    with_attention,
)

#: 512: as many positions as BERT has. On a GPU a batch that fills it.
BATCHES = full_or_quick([(16, 128), (4, 512)], [(2, 32)], [(128, 128), (64, 512)])
EVERY = TEACHER[0] // STUDENT[0]
#: "hidden" is there for what attention takes, of which short sequences have little: of those bfloat16 alone.
CASES = [
    (*batch, dtype, case)
    for batch in BATCHES
    for dtype in DTYPES
    for case in ("tinybert", "hidden")
    if case == "tinybert" or dtype != torch.float32 or batch == BATCHES[-1]
]


class Plain(nn.Module):
    """The padded student, its projection, and the loss against the padded teacher (which is not a submodule)."""

    def __init__(self, teacher: BertModel, student: BertModel, *, scores: bool) -> None:
        super().__init__()
        self.scores, self.student = scores, student
        self.projection = nn.Linear(STUDENT[1], TEACHER[1])
        self.teacher = [teacher.eval()]
        self.squares: Squares = squares

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        wanted = {"output_hidden_states": True, "output_attentions": self.scores}
        with torch.no_grad():
            teacher = self.teacher[0](**batch, **wanted)
        student = self.student(**batch, **wanted)
        tokens = batch["attention_mask"].to(student.hidden_states[0].dtype)
        loss = hidden_loss(
            student.hidden_states, teacher.hidden_states, tokens, self.projection, self.squares
        )
        if self.scores:
            loss = loss + scores_loss(student.attentions, teacher.attentions, tokens, self.squares)
        return loss


Squares = Callable[[Tensor, Tensor, Tensor], Tensor]


def squares(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Sum of the squared differences that count."""
    return ((a - b).square() * mask).sum()


def hidden_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], tokens: Tensor, linear: nn.Linear, squares: Squares
) -> Tensor:
    """MSE of projected hidden states, mean over real tokens, summed over the layers. ``tokens``: ``[B, L]``, 0 or 1."""
    count = tokens.float().sum() * linear.out_features
    mask = tokens[:, :, None]
    return sum(squares(linear(x), teacher[i * EVERY], mask) for i, x in enumerate(student)) / count


def scores_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], tokens: Tensor, squares: Squares
) -> Tensor:
    """MSE of attention scores, mean over pairs of real tokens, summed over the layers."""
    pairs = tokens[:, None, :, None] * tokens[:, None, None, :]
    count = tokens.float().sum(1).square().sum() * student[0].shape[1]
    return sum(squares(x, teacher[(i + 1) * EVERY - 1], pairs) for i, x in enumerate(student)) / count


def step(module: nn.Module, loss: Callable[[], Tensor]) -> Call:
    """Loss, backward, optimizer; leaves no gradient behind."""
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6)

    def call() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def check_same_loss(
    distiller: Distiller, plain: Plain, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]
) -> None:
    """Fails unless both compute the same: without dropout, with one projection."""
    for module in (distiller, plain):
        module.eval()
    linear = next(p for o in distiller.objectives if isinstance(o, HiddenStates) for p in o.projections)
    linear.load_state_dict(plain.projection.state_dict())
    tolerance = 1e-3 if plain.projection.weight.dtype == torch.float32 else 0.05
    try:
        torch.testing.assert_close(ours(), theirs().float(), rtol=tolerance, atol=0)
    finally:
        for module in (distiller, plain):
            module.train()  # as they are timed


def objectives(case: str) -> list[Objective]:
    return [HiddenStates()] if case == "hidden" else recipes.get("tinybert").stages[0].build_objectives()


def problem(sequences: int, length: int, dtype: torch.dtype, case: str) -> Problem:
    register_scores()
    teacher, student = (bert(size, length).to(dtype) for size in (TEACHER, STUDENT))
    texts = ragged_texts(sequences, length)
    batch, rows = packed(texts), padded(texts, length)
    distiller = Distiller(with_attention(teacher, "sdpa"), copy.deepcopy(student), objectives(case))
    distiller.to(device.TENSORS)
    attention = SCORES if case == "tinybert" else "sdpa"

    def plainly() -> Plain:
        theirs = with_attention(teacher, attention), copy.deepcopy(student)
        module = Plain(*theirs, scores=case == "tinybert").to(device.TENSORS, dtype)
        module.student.set_attn_implementation(attention)
        return module

    plain = plainly()

    def check(backend: str) -> None:
        with use_backend(backend):
            check_same_loss(distiller, plain, lambda: distiller(**batch).loss, lambda: plain(rows))

    implementations = {
        **backends(step(distiller, lambda: distiller(**batch).loss), "hidden_mse", eager=False),
        "plain": step(plain, lambda: plain(rows)),
        "compile": None if SKIP_COMPILE else compiled_step(plainly(), rows),
    }
    return Problem(
        op="step",
        implementations=implementations,
        case=case,
        shape=f"{sequences}x{length}",
        length=length,
        dtype=dtype,
        valid=float(rows["attention_mask"].float().mean()),
        check=check,
    )


def compiled_step(module: Plain, rows: dict[str, Tensor]) -> Call:
    """A layer of each model and the losses of a layer through torch.compile."""
    for model in (module.student, *module.teacher):
        compile_layers(model)
    module.squares = torch.compile(squares)
    return step(module, lambda: module(rows))


@pytest.mark.parametrize("sequences, length, dtype, case", CASES)
def test_step(benchmark: Any, sequences: int, length: int, dtype: torch.dtype, case: str) -> None:
    """Calls of seconds: three rounds say as much as seven, and all cases are done in six minutes."""
    compare(benchmark, problem(sequences, length, dtype, case), warmup=1, min_rounds=3)
