"""Packed batches of a data set: every row once, and as many batches for every process."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader

from bertxfer_fast.data.loaders import _one_ahead, packed_batches
from bertxfer_fast.data.samplers import EvenBatchSampler
from bertxfer_fast.models.loans import inference
from bertxfer_fast.packing import PackingCollator, TokenBudgetBatchSampler

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


def test_the_next_one_is_made_while_one_is_in_use() -> None:
    made, running = [], threading.Event()

    def make(item: int) -> int:
        if item == 3:
            raise KeyError(item)
        made.append(item)
        if item == 1:
            running.set()
        return 10 * item

    ahead = _one_ahead(make, range(5))
    assert next(ahead) == 0 and running.wait(10)  # nobody has asked for it yet
    assert next(ahead) == 10
    assert next(ahead) == 20
    with pytest.raises(KeyError):
        next(ahead)
    assert sorted(made)[:3] == [0, 1, 2]
    assert list(_one_ahead(make, [])) == [] and list(_one_ahead(make, [2])) == [20]
    left = _one_ahead(make, itertools.count(4))
    next(left)
    left.close()  # who stops early leaves no thread behind
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_no_rows_are_no_batches() -> None:
    assert list(packed_batches(ROWS, 7, torch.device("cpu"), PackingCollator(), [])) == []
    assert list(packed_batches([], 7, torch.device("cpu"), PackingCollator())) == []


def test_inference_leaves_the_model_as_it_was() -> None:
    model = tiny_bert().train()
    frozen = model.encoder.layer[0].eval()  # as whoever keeps dropout out of some layers leaves it
    with pytest.raises(KeyError), inference(model, bf16=True):
        assert not model.training and not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        raise KeyError
    assert model.training and torch.is_grad_enabled()
    assert model.encoder.layer[1].training and not any(module.training for module in frozen.modules())
    with torch.autocast("cpu", torch.bfloat16), inference(model):
        assert torch.is_autocast_enabled("cpu")  # someone else's autocast is theirs


def test_epochs_differ_and_every_process_turns_to_the_same_one() -> None:
    """As accelerate drives them: it hands an epoch's number through its own wrappers."""
    rows = [{"input_ids": [i] * (2 + i % 5), "labels": i} for i in range(5, 45)]

    def epochs(index: int, first: int = 0) -> list[list[list[int]]]:
        sampler = EvenBatchSampler(TokenBudgetBatchSampler([len(r["input_ids"]) for r in rows], 20), 2)
        plain = DataLoader(rows, batch_sampler=sampler, collate_fn=PackingCollator())
        shard = prepare_data_loader(plain, num_processes=2, process_index=index, put_on_device=False)
        shard.set_epoch(first)
        return [[batch["labels"].tolist() for batch in shard] for _ in range(2)]

    mine, others = epochs(0), epochs(1)
    for epoch in (0, 1):
        assert len(mine[epoch]) == len(others[epoch])
        dealt = [i for share in (mine, others) for pack in share[epoch] for i in pack]
        assert sorted(dealt) == list(range(5, 45))
    assert {frozenset(pack) for pack in mine[0]} != {frozenset(pack) for pack in mine[1]}
    assert epochs(0, 1)[0] == mine[1]


def test_every_process_gets_as_many_packs() -> None:
    sampler = TokenBudgetBatchSampler([5] * 19, 20, seed=3)
    assert len(sampler) == 5
    rounds = EvenBatchSampler(sampler, 4)
    for epoch in (0, 1):
        rounds.set_epoch(epoch)
        batches = list(rounds)
        assert len(batches) == len(rounds) == 8
        assert sorted(i for batch in batches for i in batch) == list(range(19))
        assert all(batches)
    threes = list(EvenBatchSampler(TokenBudgetBatchSampler([5] * 18, 45, seed=3, group=3), 4))
    assert [len(batch) for batch in sorted(threes, key=len)] == [3, 3, 6, 6]
    assert all(batch[i] + 2 == batch[i + 2] for batch in threes for i in range(0, len(batch), 3))
    with pytest.raises(ValueError, match="got 2 sequences, want at least one for each of 4 processes"):
        list(EvenBatchSampler(TokenBudgetBatchSampler([5, 5], 20), 4))
