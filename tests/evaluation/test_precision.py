"""bf16 where it is faster: decided by timing, not by what the processor lists."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from bertxfer_fast.evaluation.precision import bf16_is_faster


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Asked as in a new process, and no answer of a test is kept."""
    bf16_is_faster.cache_clear()
    yield
    bf16_is_faster.cache_clear()


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16], ids=str)
def test_the_faster_one(monkeypatch: pytest.MonkeyPatch, slow: torch.dtype) -> None:
    def product(a: torch.Tensor, b: torch.Tensor) -> None:
        time.sleep(0.02 if a.dtype == slow else 0)

    monkeypatch.setattr(torch.nn.functional, "linear", product)
    assert bf16_is_faster() == (slow == torch.float32)


def test_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []

    def product(a: torch.Tensor, b: torch.Tensor) -> None:
        calls.append(a.dtype)

    monkeypatch.setattr(torch.nn.functional, "linear", product)
    bf16_is_faster()
    timed = len(calls)
    bf16_is_faster()
    assert timed == len(calls) > 0 and calls.count(torch.float32) == calls.count(torch.bfloat16)
