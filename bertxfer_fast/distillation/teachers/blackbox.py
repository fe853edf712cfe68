"""A teacher of which there are only numbers: a row for every text of a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...data.collators import Features
from ...data.loaders import sequence_lengths
from ...models.spec import EncoderSpec
from ..registry import check_choice
from .about import About
from .columns import Column
from .fingerprints import code_fingerprint, dataset_keys
from .rows import Rows
from .shards import Shard
from .store import Shelf
from .wants import Want

__all__ = ["BLACK_BOX_SUFFIXES", "BlackBox", "read_rows"]

logger = logging.getLogger(__name__)

BLACK_BOX_SUFFIXES = (".npy", ".safetensors")
_CHUNK = 1 << 16  # rows that are looked at together


class BlackBox(Shelf):
    """Logits or sentence vectors of texts, by somebody who is not here. `StoredTeacher` makes a teacher of it.

    Rows of text with the same tokens are one row to whoever learns: where the numbers for them differ, it learns their
    mean.

    Args:
        rows: by split, the numbers: ``[rows of the split, width]``, a tensor, or a file that `read_rows` reads.
        data: by split, the token features that the rows are for, in the same order; None: `bind` gets them later.
        kind: ``"logits"`` of a sequence head, or ``"vectors"``: one vector a text, for objectives that compare those.
        labels: names of the classes in the order of the logits, where they are known.
        problem_type: of logits, see `EncoderSpec`.

    Raises:
        ValueError: another number of rows than a split has, widths that differ, numbers that are not finite, or labels
            or a problem type of vectors.
        TypeError: rows that are not floating point numbers.
    """

    def __init__(
        self,
        rows: Mapping[str, str | Path | Tensor],
        data: Mapping[str, Features] | None = None,
        *,
        kind: str = "logits",
        labels: Sequence[str] = (),
        problem_type: str | None = None,
    ) -> None:
        check_choice("kind", kind, ("logits", "vectors"))
        if not rows:
            raise ValueError("rows: got none, want those of a split")
        self._numbers = {
            _called(split, value): (split, _checked(split, value)) for split, value in rows.items()
        }
        widths = {split: value.shape[1] for split, value in self._numbers.values()}
        width = next(iter(widths.values()))
        if len(set(widths.values())) > 1:
            raise ValueError(f"rows: got widths {widths}, want the same in all splits")
        if kind == "vectors" and (labels or problem_type is not None):
            given = ("labels", list(labels)) if labels else ("problem_type", problem_type)
            raise ValueError(f"{given[0]}: got {given[1]!r} of vectors, want them for kind='logits' alone")
        if labels and len(labels) != width:
            raise ValueError(f"labels: got {len(labels)} names, want {width}, one a column of the rows")
        names = [Path(value).name for value in rows.values() if not isinstance(value, Tensor)]
        head: dict[str, Any] = {}
        if kind == "logits":
            head = {
                "head": "sequence",
                "num_labels": width,
                "labels": tuple(labels),
                "problem_type": problem_type,
            }
        spec = EncoderSpec(name=names[0] if names else "BlackBox", num_layers=0, hidden_size=width, **head)
        place, pooling = ("logits", None) if kind == "logits" else ("hidden", "any")
        column = Column(place, pooling=pooling, width=width)
        about = About("black box", code_fingerprint(), spec)
        super().__init__(about, {column.name: Rows(column)}, ", ".join(names) or "the rows given")
        if data is not None:
            self.bind(data)

    def bind(self, data: Mapping[str, Features]) -> None:
        """Say whose the rows are: token features by split, a row each, in the same order.

        Raises:
            ValueError: another number of rows than a split has, or rows for a split that there is not.
        """
        [rows] = self.columns.values()
        shards = []
        for where, (split, numbers) in self._numbers.items():
            if split not in data:
                raise ValueError(f"{where}: got rows for {split!r}, want those of {', '.join(data)}")
            features = data[split]
            if len(numbers) != len(features):
                raise ValueError(
                    f"{where}: got {len(numbers)} rows, want {len(features)}, one for every row of {split}"
                )
            keys, lengths = dataset_keys(features), sequence_lengths(features)
            shards.append(Shard(rows.column, keys, lengths, {"values": numbers}))
        rows.replace([*_means(rows.column, shards), *shards])

    def column_for(self, want: Want) -> str | None:
        """As of any `Shelf`; vectors serve every pooling, and nobody who looks at tokens."""
        [(name, rows)] = self.columns.items()
        (place, _), pooling = want
        return name if place == rows.column.place and (place == "logits" or pooling) else None


def read_rows(path: str | Path) -> Tensor:
    """The numbers in a file, ``[N, D]``, mapped, not read: a .npy, or a .safetensors that holds one tensor.

    Raises:
        ValueError: no such file, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"rows: got {path}, want a file: there is none")
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise ValueError(f"it holds the tensors {names}, want one")
            return file.get_tensor(names[0])
    except (ValueError, TypeError, OSError, EOFError, SafetensorError) as error:
        raise ValueError(f"rows: {path} cannot be read: {error}") from error


def _called(split: str, value: str | Path | Tensor) -> str:
    return f"rows of {split}" if isinstance(value, Tensor) else str(value)


def _checked(split: str, value: str | Path | Tensor) -> Tensor:
    where = _called(split, value)
    rows = value if isinstance(value, Tensor) else read_rows(value)
    if not rows.is_floating_point():
        raise TypeError(f"{where}: got dtype {rows.dtype}, want floating point numbers")
    if rows.ndim != 2:
        raise ValueError(f"{where}: got shape {tuple(rows.shape)}, want (rows, width)")
    for start in range(0, len(rows), _CHUNK):
        bad = (~torch.isfinite(rows[start : start + _CHUNK])).any(1).nonzero()
        if len(bad):
            raise ValueError(
                f"{where}: got numbers that are not finite in row {start + int(bad[0]) + 1}, want finite ones"
            )
    return rows


def _means(column: Column, shards: Sequence[Shard]) -> list[Shard]:
    """The mean of what is said of rows with the same tokens, where it differs."""
    keys = np.concatenate([shard.keys for shard in shards])
    lengths = np.concatenate([shard.lengths for shard in shards])
    owner = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
    inside = np.concatenate([np.arange(len(shard)) for shard in shards])
    order = np.argsort(keys, kind="stable")
    bounds = np.flatnonzero(np.append(True, keys[order][1:] != keys[order][:-1]))
    found: list[tuple[int, Tensor]] = []
    for group in np.split(order, bounds[1:]):
        if len(group) < 2:
            continue
        numbers = torch.stack([shards[owner[i]].part("values")[int(inside[i])].float() for i in group])
        if bool((numbers != numbers[0]).any()):
            found.append((int(group[0]), numbers.mean(0)))
    if not found:
        return []
    logger.warning("%d texts come more than once with other numbers: their mean is learned", len(found))
    rows: NDArray[np.int64] = np.array([i for i, _ in found])
    values = torch.stack([mean for _, mean in found])
    return [Shard(column, keys[rows], lengths[rows], {"values": values})]
