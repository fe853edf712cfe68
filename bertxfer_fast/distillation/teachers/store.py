"""A store: a folder with what a teacher said of rows of text, so that it has to be asked once.

    DIR/store.json                     whose it is: fingerprints of teacher, tokenizer and code, and the teacher's facts
    DIR/<column>-<name>.safetensors    a shard: keys of rows, and one column of numbers for them

Rows are known by what the teacher reads of them, so the order of a data set, its batches and its splits do not matter,
and a text that changes is another row. A store is of one teacher: nobody else's folder is read or written.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...data.collators import Features
from .about import STORE_FILE, About, read_about, write_about
from .columns import Column, encode
from .fingerprints import code_fingerprint, dataset_keys
from .rows import Rows
from .shards import SHARD_SUFFIX, Shard, join, open_shard, write_shard
from .wants import Want

__all__ = ["Shelf", "Store", "check_empty"]

logger = logging.getLogger(__name__)

SHARD_BYTES = 64 << 20


class Shelf:
    """Columns of numbers of one teacher, wherever they come from.

    Args:
        about: whose they are.
        columns: by name.
        where: what messages call it.
    """

    def __init__(self, about: About, columns: Mapping[str, Rows], where: str) -> None:
        self.about, self.where = about, where
        self.columns: dict[str, Rows] = dict(columns)

    def column_for(self, want: Want) -> str | None:
        """The name of the column that serves somebody who looks there; None where there is none.

        Who pools every token's states is served by these, too.
        """
        (place, index), pooling = want
        if place == "logits":
            return next(
                (name for name in sorted(self.columns) if self.columns[name].column.place == place), None
            )
        wanted = [f"{place}.{index}.{pooling}"] if pooling else []
        return next((name for name in [*wanted, f"{place}.{index}"] if name in self.columns), None)

    def missing(self, features: Features, names: Sequence[str]) -> NDArray[np.int64]:
        """Indices of the rows of a data set that one of these columns has nothing of."""
        keys = dataset_keys(features, self.about.inputs)
        lacking = np.zeros(len(keys), bool)
        for name in names:
            lacking |= self.columns[name].find(keys)[:, 0] < 0 if name in self.columns else True
        return np.flatnonzero(lacking)

    def new_column(self, want: Want) -> Column:
        """The column that would keep what somebody looks at.

        Raises:
            ValueError: settings that do not fit, or something that is not kept.
        """
        raise ValueError(f"{self.where}: got {want[0][0]} to keep, want a store to keep it in")

    def append(
        self, want: Want, keys: NDArray[np.bytes_], lengths: NDArray[np.int64], values: Tensor
    ) -> None:
        """Keep what a teacher said.

        Raises:
            ValueError: nothing can be kept here.
        """
        raise ValueError(f"{self.where}: got rows to keep, want a store to keep them in")

    def flush(self) -> None:
        """Put down what has not been put down yet."""

    def discard(self) -> None:
        """Forget what has not been put down yet."""

    def verify(self) -> None:
        """Read all of it and compare it with what was written.

        Raises:
            ValueError: something is damaged.
        """
        for rows in self.columns.values():
            for shard in rows.shards:
                shard.verify()


class Store(Shelf):
    """A folder on disk, see the module. `open` reads one, `at` makes it where it is not there.

    What is appended is found at once and written when there is enough for a shard, at `flush`, when the store is
    forgotten, and at the end of the program. Several processes may append to one folder: each writes shards of its own.

    Args:
        path: the folder.
        about: whose it is.
        dtype: of columns that are new: one of `columns.DTYPES`; None: as the store has it, else float32.
        top_k: of a token head's logits, how many are kept; None: as the store has it, else all.
        shard_bytes: numbers in a shard, about.

    Raises:
        ValueError: the folder is another teacher's, or holds something else; it has another dtype or top_k; shards that
            are damaged.
    """

    def __init__(
        self,
        path: str | Path,
        about: About,
        *,
        dtype: str | None = None,
        top_k: int | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        super().__init__(about, {}, str(path))
        self.path, self.dtype, self.top_k, self.shard_bytes = Path(path), dtype, top_k, shard_bytes
        self._owner = f"{about.teacher} {about.tokenizer} {about.code}"
        found: dict[str, list[Shard]] = {}
        for file in sorted(self.path.glob(f"*{SHARD_SUFFIX}")):
            try:
                shard = open_shard(file, self._owner)
            except FileNotFoundError:  # another process has just put it into a larger one
                continue
            found.setdefault(shard.column.name, []).append(shard)
        for name, shards in found.items():
            first = shards[0].column
            for shard in shards:
                self._same_column(first, shard.column)
            self._same_settings(first)
            self.columns[name] = Rows(first, shards)
        self._writer = _Writer(self.path, about, self._owner, self.columns, shard_bytes)
        weakref.finalize(self, self._writer.flush_last)

    @staticmethod
    def open(path: str | Path, **settings: Any) -> Store:
        """The store in a folder, whosever it is.

        Raises:
            ValueError: there is none, it was made by another version of the code, or it is damaged.
        """
        about = read_about(Path(path))
        difference = dataclasses.replace(about, code=code_fingerprint()).difference(about)
        if difference:
            raise _refusal(Path(path), difference)
        return Store(path, about, **settings)

    @staticmethod
    def at(path: str | Path, about: About, *, create: bool = True, **settings: Any) -> Store:
        """The store of this teacher in a folder; a new one where there is none.

        Args:
            path: the folder.
            about: whose it is to be.
            create: False: a new one is not written before its first `flush`.
            **settings: see `Store`.

        Raises:
            ValueError: the folder is another teacher's, or holds something else; the message says what differs.
        """
        folder = Path(path)
        if (folder / STORE_FILE).is_file():
            there = read_about(folder)
            difference = about.difference(there)
            if difference:
                raise _refusal(folder, difference)
            return Store(folder, there, **settings)
        check_empty(folder)
        if create:
            write_about(folder, about)
        return Store(folder, about, **settings)

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[Any, ...]]:
        """A copy, also in another process, reads the folder again."""
        self.flush()
        return _reopened, (self.path, self.about, self.dtype, self.top_k, self.shard_bytes)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of numbers for a token of text, over all columns; 0 of an empty store."""
        return sum(
            sum(shard.bytes for shard in rows.shards) / max(1, sum(shard.tokens for shard in rows.shards))
            for rows in self.columns.values()
        )

    def new_column(self, want: Want) -> Column:
        """As of any `Shelf`; of the settings that this one was given."""
        return Column.for_want(want, self.about.spec, dtype=self.dtype or "float32", top_k=self.top_k)

    def append(
        self, want: Want, keys: NDArray[np.bytes_], lengths: NDArray[np.int64], values: Tensor
    ) -> None:
        """Keep the numbers of rows of text in the column for ``want``, which is made if it is not there.

        Args:
            want: where in the teacher they are from.
            keys: ``[N]``, see `row_keys`.
            lengths: int64 ``[N]``, tokens of each row.
            values: ``[R, width]``, a row a sequence or a token, finite. A column that is there hands them out in its
                own precision: autocast may have been on when it was made and not now, or the other way round.

        Raises:
            ValueError: another width than that of the store, or numbers that cannot be kept.
        """
        name = self.column_for(want)
        if name is None:
            precision = str(values.dtype).removeprefix("torch.")
            column = dataclasses.replace(self.new_column(want), precision=precision)
            self.columns[column.name] = Rows(column)
        else:
            column = self.columns[name].column
        if values.shape[1] != column.width:
            raise ValueError(f"teacher: got {column.name} of width {values.shape[1]}, want {column.width}")
        rows = self.columns[column.name]
        shard = Shard(column, keys, lengths, encode(column, values))
        rows.add_small(shard)
        if self._writer.noted(column.name, shard.bytes) >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what has not been written yet."""
        self._writer.flush()

    def discard(self) -> None:
        """Forget what has not been written yet."""
        self._writer.discard()

    def _same_settings(self, column: Column) -> None:
        of_tokens = column.place == "logits" and column.per_token
        for name in ("dtype", *(["top_k"] if of_tokens else [])):
            mine, there = getattr(self, name), getattr(column, name)
            if mine is not None and mine != there:
                there = "all logits of a token" if there is None else there
                raise ValueError(f"{name}: got {mine}, want {there} as {self.path} has it, or another store")

    def _same_column(self, there: Column, other: Column) -> None:
        for fact in ("dtype", "precision", "width"):
            mine, others = getattr(there, fact), getattr(other, fact)
            if mine != others:
                raise ValueError(
                    f"store: got {there.name} with {fact} {others}, want {mine} as {self.path} has: delete it, or "
                    "choose another"
                )


def check_empty(folder: Path) -> None:
    """Raise ValueError where a store cannot be made because something else is there."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"store: got {folder}, want a folder: it is a file")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"store: got {folder}, want an empty folder or a store: something else is in it")


class _Writer:
    """Puts rows that are only in memory into shards. It outlives its store, to write what is left.

    A shard that it wrote itself and that is small yet is written anew with what comes next, so that many flushes do not
    leave many files; where a kill leaves both, their rows are the same.
    """

    def __init__(
        self, folder: Path, about: About, owner: str, columns: dict[str, Rows], shard_bytes: int
    ) -> None:
        self.folder, self.about, self.owner = folder, about, owner
        self.columns, self.small = columns, shard_bytes // 4
        self._written = {name: len(rows.shards) for name, rows in columns.items()}
        self._pending: dict[str, int] = {}
        self._mine: set[Path] = set()
        self._process = os.getpid()

    def noted(self, name: str, size: int) -> int:
        """Count bytes that are to be written; returns how many there are by now."""
        self._pending[name] = self._pending.get(name, 0) + size
        return self._pending[name]

    def flush(self) -> None:
        self._pending.clear()
        self._claim()
        for name, rows in self.columns.items():
            shards, written = rows.shards, self._written.get(name, 0)
            if written == len(shards):
                continue
            last = shards[written - 1] if written else None
            grows = last is not None and last.file in self._mine and last.bytes < self.small
            start = written - 1 if grows else written
            path = write_shard(self.folder, join(shards[start:]), self.owner)
            rows.replace([*shards[:start], open_shard(path, self.owner)])
            self._written[name] = start + 1
            self._mine.add(path)
            if grows and last is not None and last.file is not None:
                last.file.unlink(missing_ok=True)

    def _claim(self) -> None:
        """Say whose the folder is, before its first shard; somebody else may have done so since it was looked at."""
        if self._mine:
            return
        if not (self.folder / STORE_FILE).is_file():
            write_about(self.folder, self.about)
        elif difference := self.about.difference(read_about(self.folder)):
            raise _refusal(self.folder, difference)

    def discard(self) -> None:
        self._pending.clear()
        for name, rows in list(self.columns.items()):
            rows.replace(rows.shards[: self._written.get(name, 0)])
            if not len(rows):
                del self.columns[name]

    def flush_last(self) -> None:
        """When the store is forgotten: unless the folder is gone, or this is a forked process with a copy of it."""
        if os.getpid() != self._process or not self.folder.is_dir():
            return
        try:
            self.flush()
        except ValueError as error:  # nobody is left to catch it
            logger.warning("%s; what was still to be written there is lost", error)


def _reopened(path: Path, about: About, dtype: str | None, top_k: int | None, shard_bytes: int) -> Store:
    return Store(path, about, dtype=dtype, top_k=top_k, shard_bytes=shard_bytes)


def _refusal(folder: Path, difference: str) -> ValueError:
    return ValueError(f"store: got {folder} made with {difference}: delete it, or choose another")
