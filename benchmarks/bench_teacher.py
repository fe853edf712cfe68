"""A teacher's forward pass on a ragged batch, its last hidden state handed over, against transformers' padded one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bertxfer_fast import TeacherStream

from .bench_step import BATCHES
from .harness import SKIP_COMPILE, Call, Problem, backends, compare, on_backend
from .inputs import both_dtypes, random
from .models import TEACHER, bert, compile_layers, packed, padded, ragged_texts, with_attention


def problem(sequences: int, length: int, dtype: torch.dtype) -> Problem:
    model = bert(TEACHER, length).to(dtype).eval()
    texts = ragged_texts(sequences, length)
    batch, rows = packed(texts), padded(texts, length)
    stream = TeacherStream(with_attention(model, "sdpa"), hidden=[TEACHER[0]])
    plain = with_attention(model, "sdpa")

    def ours() -> Tensor:
        kept: list[Any] = []
        stream.stream(batch, kept.append)
        return kept[0].hidden

    @torch.no_grad()
    def theirs() -> Tensor:
        return plain(**rows).last_hidden_state

    def check(backend: str) -> None:
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        got, wanted = on_backend(backend, ours)(), theirs()[rows["attention_mask"].bool()]
        error = (got.double() - wanted.double()).norm() / wanted.double().norm()
        assert error <= tolerance, f"hidden states are off by {error:.2g} of their norm"

    return Problem(
        op="teacher",
        implementations={
            **backends(ours, "varlen_attention", eager=False),
            "plain": theirs,
            "compile": None if SKIP_COMPILE else compiled_forward(with_attention(model, "sdpa"), rows),
            "floor: products of linear layers": linear_products(
                model, sum(len(x["input_ids"]) for x in texts)
            ),
        },
        shape=f"{sequences}x{length}",
        length=length,
        dtype=dtype,
        valid=float(rows["attention_mask"].float().mean()),
        check=check,
    )


def linear_products(model: nn.Module, tokens: int) -> Call:
    """Those of the encoder's layers on real tokens alone; what attention itself multiplies is not in it."""
    weights = [x.weight.detach() for x in model.encoder.modules() if isinstance(x, nn.Linear)]
    inputs = {n: random(tokens, n, dtype=weights[0].dtype) for n in {w.shape[1] for w in weights}}
    return lambda: [inputs[w.shape[1]] @ w.T for w in weights]


def compiled_forward(model: Any, rows: dict[str, Tensor]) -> Call:
    compile_layers(model)

    @torch.no_grad()
    def call() -> Tensor:
        return model(**rows).last_hidden_state

    return call


@both_dtypes
@pytest.mark.parametrize("sequences, length", BATCHES)
def test_teacher(benchmark: Any, sequences: int, length: int, dtype: torch.dtype) -> None:
    compare(benchmark, problem(sequences, length, dtype), warmup=1, min_rounds=3)
