"""Packed batches of a data set: every row once, and as many batches for every process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset

from bertxfer_fast.data.batches import WholeRounds, inference, packed_batches
from bertxfer_fast.data.packing import PackingCollator, TokenBudgetBatchSampler

from ..tiny import tiny_bert

ROWS = [{"input_ids": list(range(5, 5 + n))} for n in (3, 9, 1, 4)]


@pytest.mark.parametrize("dataset", [ROWS, Dataset.from_list(ROWS)])
@pytest.mark.parametrize("order", [None, [3, 1, 0]])
def test_every_row_is_there_once_in_order(dataset: Any, order: list[int] | None) -> None:
    found = list(packed_batches(dataset, 7, torch.device("cpu"), PackingCollator(), order))
    assert [i for indices, _ in found for i in indices] == (order or [0, 1, 2, 3])
    for indices, batch in found:
        assert batch["input_ids"][0].tolist() == [token for i in indices for token in ROWS[i]["input_ids"]]
        assert batch["input_ids"].shape[1] <= 9  # the longest is over the budget and still fits


def test_no_rows_are_no_batches() -> None:
    assert list(packed_batches(ROWS, 7, torch.device("cpu"), PackingCollator(), [])) == []
    assert list(packed_batches([], 7, torch.device("cpu"), PackingCollator())) == []


def test_inference_leaves_the_model_as_it_was() -> None:
    model = tiny_bert().train()
    model.encoder.eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), inference(model, bf16=True):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        raise KeyError
    assert [module.training for module in model.modules()] == before and torch.is_grad_enabled()
    with torch.autocast("cpu", torch.bfloat16), inference(model):
        assert torch.is_autocast_enabled("cpu")  # someone else's autocast is theirs


def test_whole_rounds_gives_every_process_as_many_packs() -> None:
    sampler = TokenBudgetBatchSampler([5] * 19, 20, seed=3)
    assert len(sampler) == 5
    rounds = WholeRounds(sampler, 4)
    for epoch in (0, 1):
        rounds.set_epoch(epoch)
        batches = list(rounds)
        assert len(batches) == len(rounds) == 8
        assert sorted(i for batch in batches for i in batch) == list(range(19))
        assert all(batches)
    with pytest.raises(ValueError, match="fewer sequences than processes"):
        list(WholeRounds(TokenBudgetBatchSampler([5, 5], 20), 4))
