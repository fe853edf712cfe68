"""Rows of several tasks, and batches of which each is of one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from .loaders import sequence_lengths
from .samplers import TokenBudgetBatchSampler

__all__ = ["MixedBatchSampler", "MixedCollator", "MixedRows", "batches_of_tasks"]


class MixedRows:
    """Several data sets one after the other; a row has a further key ``task``, the name of its data set.

    Args:
        datasets: token features by task.
    """

    def __init__(self, datasets: Mapping[str, Any]) -> None:
        self.datasets = dict(datasets)
        sizes = [len(dataset) for dataset in self.datasets.values()]
        self._ends = np.cumsum(sizes)
        self.starts = dict(zip(self.datasets, [0, *self._ends[:-1].tolist()], strict=True))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        names = list(self.datasets)
        size = len(self)
        if not all(0 <= index < size for index in indices):
            raise IndexError(f"rows: got {list(indices)}, want 0..{size - 1}")
        which = np.searchsorted(self._ends, indices, side="right")
        rows: list[dict[str, Any]] = []
        for index, i in zip(indices, which.tolist(), strict=True):
            name = names[i]
            rows.append({**self.datasets[name][int(index) - self.starts[name]], "task": name})
        return rows

    def lengths_of(self, name: str) -> NDArray[np.int64]:
        """Tokens of every row of one task."""
        return sequence_lengths(self.datasets[name])


class MixedCollator:
    """Collates a batch of one task as that task's collator does, and adds ``task``, its name.

    Args:
        collators: by task.

    Raises:
        ValueError: when called, for rows of several tasks.
    """

    def __init__(self, collators: Mapping[str, Callable[[Any], dict[str, Any]]]) -> None:
        self.collators = dict(collators)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = {feature["task"] for feature in features}
        if len(names) != 1:
            raise ValueError(f"features: got rows of {sorted(names)}, want those of one task in a batch")
        [name] = names
        return {**self.collators[name](features), "task": name}


def batches_of_tasks(packs: Sequence[int], temperature: float) -> list[int]:
    """How many batches of each task an epoch has: as many as there are packs, shared by ``size ** (1 / temperature)``.

    Args:
        packs: how many packs each task has.
        temperature: 1: in proportion to size, so that an epoch sees every row once; larger: more even; infinite: equal
            (Raffel et al., 2020, section 3.5.2).

    Returns:
        By the largest remainder; no task goes without.
    """
    total = sum(packs)
    shares = np.asarray(packs, np.float64) ** (1 / temperature)
    exact = total * shares / shares.sum()
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    for i in np.argsort(-(exact - np.floor(exact)), kind="stable")[: max(total - int(counts.sum()), 0)]:
        counts[i] += 1
    return counts.tolist()


class MixedBatchSampler(Sampler[list[int]]):
    """Batches of several tasks in an order that seed and epoch decide, for ``DataLoader(batch_sampler=...)``.

    A task that has more batches in an epoch than packs begins anew, in another order; one that has fewer gets other
    packs in each epoch.

    Args:
        samplers: by task, over its own rows.
        starts: where each task's rows begin among those of all.
        temperature: see `batches_of_tasks`.
        seed: with the epoch it decides everything.

    Raises:
        ValueError: a temperature that is not above 0, or a task without a batch.
    """

    batch_size = None  # accelerate: batches differ in size

    def __init__(
        self,
        samplers: Mapping[str, TokenBudgetBatchSampler],
        starts: Mapping[str, int],
        *,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not temperature > 0 or math.isnan(temperature):
            raise ValueError(
                f"temperature: got {temperature}, want a number above 0 (1: in proportion to size)"
            )
        for name, sampler in samplers.items():
            if not len(sampler):
                raise ValueError(
                    f"samplers: got no batch of task {name!r}, want at least one: its rows do not fill one, and "
                    "drop_last leaves out what is not full"
                )
        self.samplers, self.starts, self.seed = dict(samplers), dict(starts), seed
        self.drop_last, self.epoch = False, 0
        counts = batches_of_tasks([len(sampler) for sampler in self.samplers.values()], temperature)
        self.counts = dict(zip(self.samplers, counts, strict=True))

    def __len__(self) -> int:
        """Batches an epoch; the same for every epoch."""
        return sum(self.counts.values())

    def __iter__(self) -> Iterator[list[int]]:
        order = np.repeat(np.arange(len(self.counts)), list(self.counts.values()))
        order = np.random.default_rng([self.seed, self.epoch, 2]).permutation(order)
        streams = [self._batches(name) for name in self.samplers]
        for task in order.tolist():
            yield next(streams[task])

    def _batches(self, name: str) -> Iterator[list[int]]:
        """The packs of a task, pass after pass, by their rows among those of all."""
        passes = math.ceil(self.counts[name] / len(self.samplers[name]))
        for turn in range(passes):
            self.samplers[name].set_epoch(self.epoch * passes + turn)
            for batch in list(self.samplers[name]):
                yield [index + self.starts[name] for index in batch]

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle of the next iteration."""
        self.epoch = epoch

    @property
    def sampler(self) -> MixedBatchSampler:
        """Itself, as of `TokenBudgetBatchSampler`."""
        return self
