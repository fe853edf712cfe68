"""The guard names what is not finite, at the latest one step later; means are weighted and add up over processes."""

from __future__ import annotations

import math

import pytest
import torch

from bertxfer_fast.errors import NonFiniteLossError
from bertxfer_fast.training.monitor import FiniteGuard, RunningMeans


def values(**numbers: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(number) for name, number in numbers.items()}


def test_the_guard_names_the_part_not_the_sum() -> None:
    guard = FiniteGuard(lambda: "checkpoint-2")
    guard.watch(values(a=1.0, b=math.nan, loss=math.nan), 3)
    with pytest.raises(NonFiniteLossError, match=r"^b is nan after 3 .* checkpoint-2$") as caught:
        guard.check()
    assert (caught.value.names, caught.value.step, caught.value.checkpoint) == (("b",), 3, "checkpoint-2")
    guard.check()  # said once


def test_the_sum_is_named_where_no_part_is_to_blame() -> None:
    guard = FiniteGuard(lambda: None)
    guard.watch(values(a=1.0, loss=math.inf), 4)
    with pytest.raises(NonFiniteLossError, match=r"^loss is inf after 4 .* no checkpoint"):
        guard.check()


def test_the_guard_looks_back_when_the_next_step_comes() -> None:
    """On CUDA nobody asks earlier, for looking would stop the device."""
    guard = FiniteGuard(lambda: None)
    guard.watch(values(loss=math.nan), 0)
    guard.watch(values(loss=1.0), 0)  # the same step's next micro-batch
    with pytest.raises(NonFiniteLossError, match="after 0 optimizer steps"):
        guard.watch(values(loss=1.0), 1)
    guard.watch(values(loss=math.nan), 1)
    guard.forget()
    guard.check()


def test_means_are_weighted_and_start_anew() -> None:
    means = RunningMeans()
    assert means.take() == {}
    means.add(values(a=1.0, b=2.0), 3)
    means.add(values(a=5.0, b=2.0), 1)
    assert means.take() == {"a": 2.0, "b": 2.0}
    assert means.take() == {}


def test_means_over_processes_are_weighted_too() -> None:
    other = torch.tensor([10.0, 1.0])  # another process: a sum of 10 with weight 1
    means = RunningMeans()
    means.add(values(a=1.0), 3)
    assert means.take(lambda mine: mine + other) == {"a": 13 / 4}
