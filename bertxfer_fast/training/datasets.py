"""The data sets of a training: checked before work starts, and cut into packs as the arguments say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.loaders import packed_batches
from ..data.samplers import TokenBudgetBatchSampler
from .arguments import DistillationArguments

PREVIEWED = 4096


def check_dataset(name: str, dataset: Any) -> None:
    """Fail at construction, not in the first batch.

    Raises:
        TypeError: no data set with a length and items.
        ValueError: it is empty, or its features have no input_ids.
    """
    if dataset is None:
        return
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"{name}: got {type(dataset).__name__}, want a data set with a length and items")
    if not len(dataset):
        raise ValueError(f"{name}: got no rows, want at least one")
    if "input_ids" not in dataset[0]:
        raise ValueError(f"{name}: got features with {sorted(dataset[0])}, want input_ids")


def named_datasets(eval_dataset: Any) -> list[tuple[str, Any]]:
    """The evaluation data sets, each under the name that messages call it by."""
    if isinstance(eval_dataset, Mapping):
        return [(f"eval_dataset[{name!r}]", dataset) for name, dataset in eval_dataset.items()]
    return [] if eval_dataset is None else [("eval_dataset", eval_dataset)]


def train_sampler(
    args: DistillationArguments, lengths: NDArray[np.int64], batch_size: int, group: int = 1
) -> TokenBudgetBatchSampler:
    """Packs of the training set: of a token budget, or of `batch_size` sequences where there is none.

    Args:
        args: say how.
        lengths: tokens of each sequence.
        batch_size: sequences in a pack, at most.
        group: so many neighbours stay together.

    Raises:
        ValueError: a sequence, or a group of them, is longer than the budget; groups that do not come out even.
    """
    tokens = args.tokens_per_batch
    _check_groups("train", lengths, group, batch_size if tokens is None else None)
    longest = _longest(lengths, group)
    if tokens is not None and longest > tokens:
        what = "training sequence" if group == 1 else f"group of {group} training sequences"
        raise ValueError(
            f"tokens_per_batch: got {tokens}, want at least the longest {what}, {longest} tokens"
        )
    return TokenBudgetBatchSampler(
        lengths,
        tokens if tokens is not None else int(lengths.sum()),
        shuffle=args.train_sampling_strategy != "sequential",
        seed=args.data_seed if args.data_seed is not None else args.seed,
        max_sequences=batch_size if tokens is None else None,
        drop_last=args.dataloader_drop_last,
        # Lengths mixed at random unless asked otherwise: packs then hold about equally many sequences.
        bucket=None if args.train_sampling_strategy == "group_by_length" else 1,
        group=group,
    )


def preview_batches(
    dataset: Any, collate: Callable[[Any], dict[str, Any]], tokens: int | None, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Packed batches of at most `PREVIEWED` sequences spread over a training set, for `Distiller.preview`."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(PREVIEWED, len(dataset))).astype(np.int64))
    for _, batch in packed_batches(dataset, tokens or 8192, device, collate, rows):
        yield batch


def eval_sampler(
    args: DistillationArguments, lengths: NDArray[np.int64], group: int = 1
) -> TokenBudgetBatchSampler:
    """Packs of an evaluation set in its own order; a sequence (group) over the budget is a pack of its own."""
    tokens = args.eval_tokens_per_batch or args.tokens_per_batch
    most = args.eval_batch_size if tokens is None else None
    _check_groups("eval", lengths, group, most)
    return TokenBudgetBatchSampler(
        lengths,
        max(tokens, _longest(lengths, group)) if tokens is not None else int(lengths.sum()),
        shuffle=False,
        max_sequences=most,
        group=group,
    )


def _check_groups(split: str, lengths: NDArray[np.int64], group: int, most: int | None) -> None:
    """Raise ValueError unless the rows are whole groups, and `most` sequences hold one."""
    why = f"{group}: an objective compares groups of so many"
    if len(lengths) % group:
        raise ValueError(f"{split}_dataset: got {len(lengths)} rows, want a multiple of {why}")
    if most is not None and most < group:
        raise ValueError(f"per_device_{split}_batch_size: got {most}, want at least {why}")


def _longest(lengths: NDArray[np.int64], group: int) -> int:
    """Tokens of the longest group of neighbours."""
    return int(lengths.reshape(-1, group).sum(1).max())
