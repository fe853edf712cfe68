"""One column of many rows, found by their keys and gathered into batches."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .columns import Column, decode, part_names
from .fingerprints import DIGEST_BYTES
from .shards import Shard

__all__ = ["Rows"]

Where = NDArray[np.int64]  # [N, 2]: shard and row in it; -1 for a row that is not there


class Rows:
    """All rows of one column: shards, and an index over their keys.

    A key that comes twice is read from where it came first.

    Args:
        column: what the rows are.
        shards: the first of them.
    """

    def __init__(self, column: Column, shards: Iterable[Shard] = ()) -> None:
        self.column = column
        self._shards: list[Shard] = []
        self._known = np.empty(0, f"S{DIGEST_BYTES}")  # sorted
        self._where: Where = np.empty((0, 2), np.int64)
        self._new: dict[bytes, tuple[int, int]] = {}  # of rows that are not in the sorted index yet
        self.add(shards)

    def __len__(self) -> int:
        return len(self._known) + len(self._new)

    @property
    def shards(self) -> list[Shard]:
        """All of them, in the order in which they came."""
        return list(self._shards)

    def add(self, shards: Iterable[Shard]) -> None:
        """Take shards in, and sort the index."""
        first = len(self._shards)
        self._shards += shards
        fresh = self._shards[first:]
        if not fresh:
            return
        keys = [self._known, *(shard.keys for shard in fresh)]
        where = [self._where]
        for number, shard in enumerate(fresh, first):
            where.append(np.stack([np.full(len(shard), number), np.arange(len(shard))], axis=1))
        self._known, firsts = np.unique(np.concatenate(keys), return_index=True)
        self._where = np.concatenate(where)[firsts]

    def add_small(self, shard: Shard) -> None:
        """Take the rows of one batch in, without sorting."""
        number = len(self._shards)
        self._shards.append(shard)
        for row, key in enumerate(shard.keys.tolist()):
            self._new.setdefault(key, (number, row))

    def replace(self, shards: Iterable[Shard]) -> None:
        """Forget everything and take these in."""
        self._shards, self._new = [], {}
        self._known, self._where = self._known[:0], self._where[:0]
        self.add(shards)

    def find(self, keys: NDArray[np.bytes_]) -> Where:
        """Where the rows with these keys are."""
        found = np.full((len(keys), 2), -1, np.int64)
        if len(self._known):
            places = np.searchsorted(self._known, keys).clip(max=len(self._known) - 1)
            there = self._known[places] == keys
            found[there] = self._where[places[there]]
        if self._new:
            for i in np.flatnonzero(found[:, 0] < 0).tolist():
                found[i] = self._new.get(bytes(keys[i]), (-1, -1))
        return found

    def gather(self, where: Where, device: torch.device) -> Tensor:
        """The numbers of rows, one after the other, ``[R, width]`` on ``device``: one copy of each of their parts.

        Args:
            where: from `find`, without a -1.
            device: where they go; they are made numbers again there.
        """
        numbers, rows = where[:, 0], where[:, 1]
        used = np.unique(numbers)
        if len(used) == 1:
            shard = self._shards[used[0]]
            index = torch.from_numpy(shard.rows_of(rows))
            parts = {name: shard.part(name).index_select(0, index) for name in part_names(self.column)}
        else:
            parts = self._from_many(numbers, rows, used)
        return decode(self.column, {name: part.to(device, non_blocking=True) for name, part in parts.items()})

    def _from_many(self, numbers: Where, rows: Where, used: Where) -> dict[str, Tensor]:
        lengths = np.ones(len(rows), np.int64)
        if self.column.per_token:
            for number in used:
                mine = numbers == number
                lengths[mine] = self._shards[number].lengths[rows[mine]]
        starts = np.concatenate([[0], lengths.cumsum()])
        parts: dict[str, Tensor] = {}
        for number in used:
            shard, mine = self._shards[number], np.flatnonzero(numbers == number)
            source = torch.from_numpy(shard.rows_of(rows[mine]))
            counts = lengths[mine]
            before = np.concatenate([[0], counts.cumsum()[:-1]])
            target = torch.from_numpy(np.arange(counts.sum()) + np.repeat(starts[mine] - before, counts))
            for name in part_names(self.column):
                part = shard.part(name)
                if name not in parts:
                    parts[name] = part.new_empty((int(starts[-1]), *part.shape[1:]))
                parts[name][target] = part.index_select(0, source)
        return parts
