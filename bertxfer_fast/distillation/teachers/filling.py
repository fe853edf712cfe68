"""Asking a teacher about a whole data set, so that a store has everything before anybody trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from ...data.collators import Features, collate_inputs
from ...data.loaders import packed_batches
from ...models.loans import device_of
from .store import Store
from .stored import StoredTeacher
from .wants import Want, distinct

__all__ = ["fill"]


def fill(
    store: Store,
    teacher: Any,
    data: Mapping[str, Features],
    wants: Iterable[Want],
    *,
    tokens_per_batch: int = 8192,
    device: torch.device | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> int:
    """Let a store have what is wanted of every row of some data sets; rows that it has are not asked again.

    So a run that was killed goes on with what is missing.

    Args:
        store: where to.
        teacher: whom to ask, as of `StoredTeacher`.
        data: token features by split.
        wants: what of the teacher is to be kept, see `Store.append`.
        tokens_per_batch: tokens in a packed batch.
        device: where the teacher runs; by default where it is.
        progress: called after each batch with the split, the rows done and the rows there were to do.

    Returns:
        How many rows were asked.

    Raises:
        ValueError: what is wanted cannot be kept, or the teacher says something that is not finite.
    """
    wants = distinct(wants)
    source = StoredTeacher(store, teacher).select(wants)
    collate = partial(collate_inputs, inputs=source.inputs)
    asked = 0
    for split, features in data.items():
        names = [name for want in wants if (name := store.column_for(want)) is not None]
        rows = np.arange(len(features)) if len(names) < len(wants) else store.missing(features, names)
        done = 0
        where = device if device is not None else _device(source)
        for indices, batch in packed_batches(features, tokens_per_batch, where, collate, order=rows):
            source.stream(batch, lambda _: None)
            done += len(indices)
            asked += len(indices)
            if progress is not None:
                progress(split, done, len(rows))
    store.flush()
    return asked


def _device(source: StoredTeacher) -> torch.device:
    return torch.device("cpu") if source.model is None else device_of(source.model)
