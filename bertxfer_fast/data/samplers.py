"""Which sequences share a pack: batches of a bounded number of tokens, and equally many for every process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["EvenBatchSampler", "TokenBudgetBatchSampler"]

Lengths = Sequence[int] | NDArray[np.int64] | Tensor


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """Batches of sequence indices with at most `max_tokens` tokens each, for ``DataLoader(batch_sampler=...)``.

    The *layout*, that is which lengths share a pack, is drawn once from the seed. An epoch deals the sequences
    anew to the places of their length and shuffles the packs. So every epoch has the same number of packs:
    `len()` is exact, and a trainer that plans its steps from the first epoch's length (transformers.Trainer)
    neither loses the surplus of a later one nor runs dry.

    Args:
        lengths: ``[N]`` integers, the tokens of every sequence.
        max_tokens: budget of a pack; a longer sequence is an error at construction, never cut.
        shuffle: False keeps the given order (evaluation): packs are then runs of neighbours.
        seed: with the epoch it decides everything: the same pair gives the same packs, on every process (see
            `set_epoch`).
        max_sequences: also close a pack after so many sequences.
        drop_last: leave out the last pack filled if neither limit closed it.
        bucket: shuffled sequences are sorted by length inside buckets of so many (default: 64 packs' worth; 1 = no
            sorting). Packing itself needs no equal lengths; sorting only serves attention kernels, whose cost a pack
            is the sum of squared lengths, and makes packs even.
        group: so many neighbours stay together, in their order, and are dealt and counted as one.

    Raises:
        TypeError: lengths that are not integers.
        ValueError: no lengths, one that is negative or over the budget, groups that do not come out even or do not fit,
            or a setting out of range.
    """

    # accelerate's BatchSamplerShard reads this; None means that batches differ in size.
    batch_size = None

    def __init__(
        self,
        lengths: Lengths,
        max_tokens: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        max_sequences: int | None = None,
        drop_last: bool = False,
        bucket: int | None = None,
        group: int = 1,
    ) -> None:
        self.lengths = _checked_budget(lengths, max_tokens)
        for name, value in (("max_sequences", max_sequences), ("bucket", bucket), ("group", group)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, want 1 or more")
        if seed < 0:
            raise ValueError(f"seed: got {seed}, want 0 or more")
        self.max_tokens = max_tokens
        self.max_sequences = max_sequences
        self.group = group
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        self._sizes = _sizes_of_groups(self.lengths, group, max_tokens, max_sequences)
        most = None if max_sequences is None else max_sequences // group
        if bucket is None:
            per_pack = max_tokens / max(float(self._sizes.mean()), 1.0)
            bucket = round(64 * min(per_pack, most or per_pack))
        order = np.arange(len(self._sizes))
        if shuffle:
            drawn = np.random.default_rng(seed).permutation(order)
            # Longest first within a bucket, so that the pack left over at the end holds common lengths.
            order = drawn[np.lexsort((-self._sizes[drawn], order // bucket))]
        self._order = order
        self._bounds = _fill(self._sizes[order], max_tokens, most, drop_last)

    def __len__(self) -> int:
        """Packs an epoch; the same for every epoch."""
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[list[int]]:
        dealt, bounds, turns = self._dealt(), self._bounds, np.arange(len(self))
        within = np.arange(self.group)
        if self.shuffle:
            turns = np.random.default_rng([self.seed, self.epoch, 1]).permutation(turns)
        for turn in turns:
            groups = dealt[bounds[turn] : bounds[turn + 1], None]
            yield (groups * self.group + within).ravel().tolist()

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle of the next iteration."""
        if epoch < 0:
            raise ValueError(f"epoch: got {epoch}, want 0 or more")
        self.epoch = epoch

    @property
    def sampler(self) -> TokenBudgetBatchSampler:
        """Itself: accelerate's DataLoaderShard hands `set_epoch` through a wrapping batch sampler
        (BatchSamplerShard, SkipBatchSampler) only to the `.sampler` of the one inside."""
        return self

    def _dealt(self) -> NDArray[np.int64]:
        """The layout with this epoch's sequences (groups) in its places, each in a place of its own length."""
        if not self.shuffle:
            return self._order
        drawn = np.random.default_rng([self.seed, self.epoch, 0]).permutation(len(self._order))
        dealt = np.empty_like(self._order)
        places = np.argsort(self._sizes[self._order], kind="stable")
        dealt[places] = drawn[np.argsort(self._sizes[drawn], kind="stable")]
        return dealt


class EvenBatchSampler(Sampler[list[int]]):
    """Makes the number of batches a multiple of `processes`, by halving the packs with most sequences.

    Every process then gets equally many, so none waits for a gradient exchange that never comes. Groups stay whole.

    Args:
        sampler: gives the packs.
        processes: how many share them.

    Raises:
        ValueError: when iterated, if there are fewer sequences (groups) than processes.
    """

    batch_size = None  # accelerate: batches differ in size

    def __init__(self, sampler: TokenBudgetBatchSampler, processes: int) -> None:
        self.batch_sampler, self.processes = sampler, processes
        self.drop_last = False

    def __len__(self) -> int:
        return math.ceil(len(self.batch_sampler) / self.processes) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        batches, group = list(self.batch_sampler), self.batch_sampler.group
        while len(batches) < len(self):
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            batch = batches[largest]
            half = len(batch) // group // 2 * group
            if not half:
                count, what = (
                    len(self.batch_sampler.lengths) // group,
                    "sequences" if group == 1 else "groups",
                )
                raise ValueError(
                    f"dataset: got {count} {what}, want at least one for each of {self.processes} processes"
                )
            batches[largest : largest + 1] = [batch[:half], batch[half:]]
        yield from batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle of the next iteration."""
        self.batch_sampler.set_epoch(epoch)

    @property
    def sampler(self) -> EvenBatchSampler:
        """Itself, so that accelerate's wrappers hand `set_epoch` through (see TokenBudgetBatchSampler)."""
        return self


def _checked_budget(lengths: Lengths, max_tokens: int) -> NDArray[np.int64]:
    """`lengths` as int64 ``[N]``, every one of which fits the budget."""
    array = np.asarray(lengths)
    if array.ndim != 1:
        raise ValueError(f"lengths: got shape {list(array.shape)}, want [N]")
    if array.size == 0:
        raise ValueError("lengths: got none, want at least one")
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths: got {array.dtype}, want integers")
    array = array.astype(np.int64)
    if array.min() < 0:
        raise ValueError(f"lengths: got {array.min()} at index {array.argmin()}, want numbers >= 0")
    if array.max() > max_tokens:
        raise ValueError(
            f"lengths: got {array.max()} tokens at index {array.argmax()}, want at most max_tokens, {max_tokens}: "
            "raise max_tokens or truncate the text"
        )
    return array


def _sizes_of_groups(
    lengths: NDArray[np.int64], group: int, max_tokens: int, max_sequences: int | None
) -> NDArray[np.int64]:
    """Tokens of every group of neighbours; of groups of one, the lengths."""
    if len(lengths) % group:
        raise ValueError(f"lengths: got {len(lengths)} of them, want a multiple of group={group}")
    if max_sequences is not None and max_sequences < group:
        raise ValueError(
            f"max_sequences: got {max_sequences}, want at least group={group}: a pack holds whole groups"
        )
    sizes = lengths.reshape(-1, group).sum(1)
    if sizes.max() > max_tokens:
        raise ValueError(
            f"lengths: got {sizes.max()} tokens in group {sizes.argmax()}, want at most max_tokens, {max_tokens}: "
            "raise max_tokens or truncate the text"
        )
    return sizes


def _fill(
    lengths: NDArray[np.int64], max_tokens: int, max_sequences: int | None, drop_last: bool
) -> NDArray[np.int64]:
    """Boundaries of the packs when sequences are taken in order and a pack takes all it can."""
    total = np.concatenate([[0], np.cumsum(lengths)])
    most = max_sequences or len(lengths)
    bounds = [0]
    while bounds[-1] < len(lengths):
        start = bounds[-1]
        fitting = int(np.searchsorted(total, total[start] + max_tokens, side="right")) - 1
        bounds.append(min(fitting, start + most))
    start, end = bounds[-2:]
    if drop_last and end - start != max_sequences and total[end] - total[start] != max_tokens:
        bounds.pop()
    return np.array(bounds)
