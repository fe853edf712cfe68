"""Packed batches of a data set, for running a model over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from .collators import Features
from .samplers import TokenBudgetBatchSampler

__all__ = ["end_to_end", "packed_batches", "sequence_lengths"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def sequence_lengths(features: Dataset | Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """Tokens of every sequence, int64 ``[N]``, as `TokenBudgetBatchSampler` wants them."""
    if isinstance(features, Dataset):
        table = features.select_columns("input_ids").with_format("arrow")[:]
        return pc.list_value_length(table["input_ids"]).to_numpy().astype(np.int64)
    return np.array([len(feature["input_ids"]) for feature in features], dtype=np.int64)


def end_to_end(
    features: Dataset | Sequence[Mapping[str, Any]], key: str, start: int, stop: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """`key` of the rows from `start` to `stop`, ``[T]``, and how much of it is each row's, int64 ``[N]``.

    A row without `key` has nothing of it.
    """
    stop = min(stop, len(features))
    if isinstance(features, Dataset):
        if key not in features.column_names:
            return np.zeros(0, np.int64), np.zeros(stop - start, np.int64)
        column = features.select_columns([key]).with_format("arrow")[start:stop][key].combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        return column.flatten().to_numpy(zero_copy_only=False), lengths.astype(np.int64)
    rows = [np.asarray(features[i].get(key, ())) for i in range(start, stop)]
    values = [row for row in rows if row.size]
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.concatenate(values) if values else np.zeros(0, np.int64), lengths


def packed_batches(
    dataset: Features,
    tokens_per_batch: int,
    device: torch.device,
    collate: Callable[[Features], dict[str, Any]],
    order: Sequence[int] | NDArray[np.int64] | None = None,
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """(indices, packed batch on `device`) over a data set.

    For a GPU the next batch is made, and sent, in another thread while this one is in use.

    Args:
        dataset: token features.
        tokens_per_batch: tokens of a batch at most, or as many as the longest sequence where that is more.
        device: where the batches go.
        collate: makes a batch of features.
        order: the rows to take, in order; by default all of them.
    """
    lengths = sequence_lengths(dataset)
    rows = np.arange(len(lengths)) if order is None else np.asarray(order)
    if not len(rows):
        return
    budget = max(tokens_per_batch, int(lengths.max()))
    # A datasets.Dataset reads a list of rows much faster than one after the other.
    read_rows = getattr(dataset, "__getitems__", None)

    def made(picked: list[int]) -> tuple[list[int], dict[str, Any]]:
        indices = rows[picked].tolist()
        batch = collate(read_rows(indices) if read_rows is not None else [dataset[i] for i in indices])
        return indices, _sent(batch, device)

    picks = iter(TokenBudgetBatchSampler(lengths[rows], budget, shuffle=False))
    yield from _one_ahead(made, picks) if device.type == "cuda" else map(made, picks)


def _sent(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch on a device; nobody waits for a GPU to take it."""

    def sent(value: Tensor) -> Tensor:
        if device.type == "cuda" and value.device.type == "cpu":
            return value.pin_memory().to(device, non_blocking=True)
        return value.to(device)

    return {key: sent(value) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _one_ahead(make: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """``make`` of every item in order, each made while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[_Out] | None = None
        for item in items:
            following = pool.submit(make, item)
            if ahead is not None:
                yield ahead.result()
            ahead = following
        if ahead is not None:
            yield ahead.result()
