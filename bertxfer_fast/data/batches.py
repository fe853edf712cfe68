"""Packed batches of a data set, for running a model over them and for training in several processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from .encoding import sequence_lengths
from .packing import TokenBudgetBatchSampler

Features = Sequence[Mapping[str, Any]]


def packed_batches(
    dataset: Features,
    tokens_per_batch: int,
    device: torch.device,
    collate: Callable[[Features], dict[str, Any]],
    order: Sequence[int] | NDArray[np.int64] | None = None,
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """(indices, packed batch on `device`) over a data set: all of it as it stands, or the rows of `order`.

    A batch has at most `tokens_per_batch` tokens, or as many as the longest sequence where that is more.
    """
    lengths = sequence_lengths(dataset)
    rows = np.arange(len(lengths)) if order is None else np.asarray(order)
    if not len(rows):
        return
    budget = max(tokens_per_batch, int(lengths.max()))
    for picked in TokenBudgetBatchSampler(lengths[rows], budget, shuffle=False):
        indices = rows[picked].tolist()
        # A datasets.Dataset reads many rows at once much faster than one by one.
        many = getattr(dataset, "__getitems__", None)
        batch = collate(many(indices) if many is not None else [dataset[i] for i in indices])
        yield (
            indices,
            {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()},
        )


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model's parameters are."""
    return next(model.parameters()).device


@contextmanager
def inference(model: torch.nn.Module, bf16: bool = False) -> Iterator[None]:
    """Eval mode without gradients (and in bf16 autocast if asked), then every submodule in its mode as before."""
    training = [module for module in model.modules() if module.training]
    autocast = torch.autocast(device_of(model).type, torch.bfloat16) if bf16 else nullcontext()
    model.eval()
    try:
        with torch.no_grad(), autocast:
            yield
    finally:
        for module in training:
            module.training = True


class WholeRounds(Sampler[list[int]]):
    """Makes the number of batches a multiple of `processes`, by halving the packs with most sequences.

    Every process then gets equally many, so none waits for a gradient exchange that never comes.
    """

    batch_size = None  # accelerate: batches differ in size

    def __init__(self, sampler: TokenBudgetBatchSampler, processes: int) -> None:
        self.batch_sampler, self.processes = sampler, processes
        self.drop_last = False

    def __len__(self) -> int:
        return math.ceil(len(self.batch_sampler) / self.processes) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(self.batch_sampler)
        while len(batches) < len(self):
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            batch = batches[largest]
            if len(batch) < 2:
                raise ValueError(f"the data set has fewer sequences than processes ({self.processes})")
            batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        yield from batches

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)

    @property
    def sampler(self) -> WholeRounds:
        """Itself, so that accelerate's wrappers hand `set_epoch` through (see TokenBudgetBatchSampler)."""
        return self
