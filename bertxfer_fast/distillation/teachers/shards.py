"""Shards: rows of one column with their keys, in memory or in a file that is mapped, not read.

A file is written whole or not at all, and what it holds is compared with digests in its header before it is first used.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .columns import Column, part_names
from .fingerprints import DIGEST_BYTES

__all__ = ["SHARD_SUFFIX", "Shard", "join", "open_shard", "write_shard"]

SHARD_SUFFIX = ".safetensors"
_FORMAT = "bertxfer-teacher-shard-1"


class Shard:
    """Rows of one column.

    Args:
        column: what they are.
        keys: ``[n]``, of every row of text.
        lengths: int64 ``[n]``, tokens of every row of text; numbers there are for each of them, or one a row.
        parts: as `encode` makes them, with a row a token or a row of text.
        file: where they are mapped from, None for rows in memory.
        digests: by name of a part, what its bytes were when they were written; compared at its first use.
    """

    def __init__(
        self,
        column: Column,
        keys: NDArray[np.bytes_],
        lengths: NDArray[np.int64],
        parts: Mapping[str, Tensor],
        *,
        file: Path | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        self.column, self.keys, self.lengths, self.file = column, keys, lengths, file
        self._parts = dict(parts)
        self._unchecked = dict(digests or {})
        self._starts = np.concatenate([[0], lengths.cumsum()])

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def bytes(self) -> int:
        """Of the numbers, without keys."""
        return sum(part.numel() * part.element_size() for part in self._parts.values())

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return int(self._starts[-1])

    def part(self, name: str) -> Tensor:
        """One of its tensors, compared with its digest when it is asked for first.

        Raises:
            ValueError: it is damaged; the message names the file.
        """
        tensor = self._parts[name]
        expected = self._unchecked.get(name)
        if expected is not None:
            if _digest(tensor) != expected:
                raise _damaged(self.file, f"its {name} are not what was written")
            del self._unchecked[name]
        return tensor

    def verify(self) -> None:
        """Read everything, and compare it with what was written.

        Raises:
            ValueError: it is damaged.
        """
        for name in self._parts:
            self.part(name)

    def rows_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in its tensors the numbers of these rows of text are, one after the other."""
        if not self.column.per_token:
            return rows
        starts, lengths = self._starts[rows], self.lengths[rows]
        before = np.concatenate([[0], lengths.cumsum()[:-1]])
        return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def join(shards: Sequence[Shard]) -> Shard:
    """Shards of one column as one."""
    column = shards[0].column
    parts = {name: torch.cat([shard.part(name) for shard in shards]) for name in part_names(column)}
    keys, lengths = (
        np.concatenate([getattr(shard, what) for shard in shards]) for what in ("keys", "lengths")
    )
    return Shard(column, keys, lengths, parts)


def write_shard(folder: Path, shard: Shard, owner: str) -> Path:
    """Write a shard into a folder under a name that nobody else uses. A kill leaves all of it or nothing that is read.

    Args:
        folder: where to.
        shard: what.
        owner: the digest of what the folder is of; `open_shard` compares it.
    """
    path = folder / f"{shard.column.name}-{uuid.uuid4().hex}{SHARD_SUFFIX}"
    keys = torch.from_numpy(np.frombuffer(shard.keys.tobytes(), np.uint8).reshape(-1, DIGEST_BYTES).copy())
    tensors = {
        "keys": keys,
        "lengths": torch.from_numpy(shard.lengths.astype(np.int32)),
        **{name: shard.part(name) for name in part_names(shard.column)},
    }
    header = {
        "format": _FORMAT,
        "owner": owner,
        "column": shard.column.to_json(),
        "digests": json.dumps({name: _digest(tensor) for name, tensor in tensors.items()}),
    }
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, header)
    with part.open("rb+") as stream:  # a name must not outlive a crash that its bytes do not
        os.fsync(stream.fileno())
    part.replace(path)
    return path


def open_shard(path: Path, owner: str) -> Shard:
    """Map a shard that `write_shard` wrote. Keys and lengths are read; the rest when it is used.

    Raises:
        ValueError: it is torn or damaged, something else, or of another store.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise _damaged(path, f"it is no shard of the format {_FORMAT}")
            if header["owner"] != owner:
                raise ValueError(
                    f"{path}: got a shard of another store, want none beside this one's: delete it"
                )
            column, digests = Column.from_json(header["column"]), json.loads(header["digests"])
            tensors = {name: file.get_tensor(name) for name in ["keys", "lengths", *part_names(column)]}
    except FileNotFoundError:
        raise
    except (SafetensorError, KeyError, TypeError, OSError) as error:
        raise _damaged(path, str(error)) from error
    for name in ("keys", "lengths"):
        if _digest(tensors[name]) != digests.get(name):
            raise _damaged(path, f"its {name} are not what was written")
    keys = np.frombuffer(tensors.pop("keys").numpy().tobytes(), f"S{DIGEST_BYTES}")
    lengths = tensors.pop("lengths").numpy().astype(np.int64)
    rows = int(lengths.sum()) if column.per_token else len(keys)
    if any(len(tensor) != rows for tensor in tensors.values()):
        raise _damaged(path, f"it has not {rows} rows of each tensor")
    return Shard(column, keys, lengths, tensors, file=path, digests=digests)


def _digest(tensor: Tensor) -> str:
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=DIGEST_BYTES)
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _damaged(path: Path | None, why: str) -> ValueError:
    return ValueError(
        f"{path}: got a damaged shard ({why}), want it whole: delete it, and its rows are made anew"
    )
