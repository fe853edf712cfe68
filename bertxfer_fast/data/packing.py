"""Sequences laid end to end: padded <-> packed tensors, and packed batches of a bounded number of tokens.

A *pack* is N sequences in one row of T tokens, with no padding between them; `cu_seqlens` (int32 `[N+1]`,
starting at 0, ending at T) says where each begins. This is flash-attention's varlen layout, and the batches
follow transformers' padding-free convention, so any model that understands that reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["PackingCollator", "TokenBudgetBatchSampler", "cu_seqlens_of", "pack", "unpack"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_MAX_TOKENS = torch.iinfo(torch.int32).max


def cu_seqlens_of(lengths: Tensor | Sequence[int]) -> Tensor:
    """Boundaries of sequences of the given `lengths`, `[N]` integers >= 0 -> int32 `[N+1]` on the same device.

    Raises TypeError when `lengths` is not integer, ValueError when it is not 1-d, holds a negative number, or
    adds up to more than int32 can hold.
    """
    if not isinstance(lengths, Tensor):
        lengths = torch.tensor(lengths, dtype=None if len(lengths) else torch.int64)
    if lengths.dtype not in _INTEGERS:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.ndim != 1:
        raise ValueError(f"lengths must be [N], got shape {list(lengths.shape)}")
    bounds = torch.nn.functional.pad(lengths.to(torch.int64).cumsum(0), (1, 0))
    if lengths.numel():
        shortest, total = torch.stack([lengths.min().to(torch.int64), bounds[-1]]).tolist()
        if shortest < 0:
            raise ValueError(f"lengths must be >= 0, got {shortest}")
        if total > _MAX_TOKENS:
            raise ValueError(f"lengths add up to {total} tokens, more than int32 cu_seqlens can address")
    return bounds.to(torch.int32)


def pack(padded: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """Keep the tokens that `attention_mask` marks: `[B, L, ...]` -> `[T, ...]`, differentiable in `padded`.

    padded          [B, L, ...], any dtype
    attention_mask  [B, L], bool or integer, nonzero = token; padding may be anywhere (left, right, holes),
                    and a row may have no token at all
    returns         packed [T, ...], cu_seqlens int32 [B+1], max_seqlen (the longest row, a python int)

    Costs one host sync on CUDA, because T depends on the mask.
    """
    if attention_mask.dtype != torch.bool and attention_mask.dtype not in _INTEGERS:
        raise TypeError(
            f"attention_mask must be bool or integer (nonzero = token), got {attention_mask.dtype}; "
            "an additive mask of 0 and -inf is not one"
        )
    if attention_mask.ndim != 2 or padded.shape[:2] != attention_mask.shape:
        raise ValueError(
            f"attention_mask must be [B, L] as the first two dimensions of padded, got "
            f"{list(attention_mask.shape)} for padded {list(padded.shape)}"
        )
    if attention_mask.device != padded.device:
        raise ValueError(f"attention_mask is on {attention_mask.device}, padded on {padded.device}")
    keep = attention_mask != 0
    lengths = keep.sum(1)
    tokens = keep.flatten().nonzero().squeeze(1)
    max_seqlen = int(lengths.max()) if lengths.numel() else 0
    return padded.flatten(0, 1).index_select(0, tokens), cu_seqlens_of(lengths), max_seqlen


def unpack(packed: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None, *, value: float = 0) -> Tensor:
    """Right-pad every sequence with `value`: `[T, ...]` -> `[N, max_seqlen, ...]`, differentiable in `packed`.

    packed      [T, ...], any dtype
    cu_seqlens  int32 or int64 [N+1], from 0 to T, never descending, on packed's device
    max_seqlen  at least the longest sequence, which is also the default

    Costs one host sync on CUDA: a boundary that is wrong by one would move tokens into the neighbour's row,
    so boundaries are always checked.
    """
    lengths, longest = _checked_lengths(cu_seqlens, packed)
    if max_seqlen is None:
        max_seqlen = longest
    elif max_seqlen < longest:
        raise ValueError(f"max_seqlen must be at least the longest sequence, {longest}, got {max_seqlen}")
    tokens, rows = packed.shape[0], lengths.shape[0]
    row = torch.repeat_interleave(lengths, output_size=tokens)
    slot = row * max_seqlen + _positions(cu_seqlens, row)
    padded = packed.new_full((rows * max_seqlen, *packed.shape[1:]), value)
    return padded.index_copy(0, slot, packed).view(rows, max_seqlen, *packed.shape[1:])


def _checked_lengths(cu_seqlens: Tensor, packed: Tensor) -> tuple[Tensor, int]:
    """int64 [N] lengths behind `cu_seqlens` and the longest, after checking that it describes `packed`."""
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() == 0:
        raise ValueError(f"cu_seqlens must be [N+1], got shape {list(cu_seqlens.shape)}")
    if packed.ndim == 0:
        raise ValueError("packed must be [T, ...], got a scalar")
    if cu_seqlens.device != packed.device:
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}, packed on {packed.device}")
    lengths = cu_seqlens.to(torch.int64).diff()
    # One small transfer instead of four: each of these numbers would wait for the device.
    limits = (
        lengths.aminmax() if lengths.numel() else torch.zeros(2, dtype=torch.int64, device=lengths.device)
    )
    first, last, shortest, longest = torch.stack([cu_seqlens[0], cu_seqlens[-1], *limits]).tolist()
    if first != 0 or last != packed.shape[0]:
        raise ValueError(f"cu_seqlens must run from 0 to T = {packed.shape[0]}, got {first} to {last}")
    if shortest < 0:
        raise ValueError(f"cu_seqlens must not descend, got a step of {shortest}")
    return lengths, longest


def _positions(cu_seqlens: Tensor, row: Tensor) -> Tensor:
    """int64 [T]: the place of every token in its own sequence, `row` [T] saying which sequence that is."""
    return torch.arange(row.shape[0], device=row.device) - cu_seqlens.to(torch.int64)[row]


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """Batches of sequence indices with at most `max_tokens` tokens each, for DataLoader(batch_sampler=...).

    lengths        [N] integers: tokens of every sequence
    max_tokens     budget of a pack; a longer sequence is an error at construction, never cut
    shuffle        False keeps the given order (evaluation): packs are then runs of neighbours
    seed, epoch    decide everything: the same pair gives the same packs, on every process (see `set_epoch`)
    max_sequences  also close a pack after so many sequences
    drop_last      leave out the last pack filled if neither limit closed it
    bucket         shuffled sequences are sorted by length inside buckets of so many (default: 64 packs' worth;
                   1 = no sorting). Packing itself needs no equal lengths; sorting only serves attention kernels,
                   whose cost a pack is the sum of squared lengths, and makes packs even.

    The *layout*, that is which lengths share a pack, is drawn once from the seed. An epoch deals the sequences
    anew to the places of their length and shuffles the packs. So every epoch has the same number of packs:
    `len()` is exact, and a trainer that plans its steps from the first epoch's length (transformers.Trainer)
    neither loses the surplus of a later one nor runs dry.
    """

    # accelerate's BatchSamplerShard reads this; None means that batches differ in size.
    batch_size = None

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray | Tensor,
        max_tokens: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        max_sequences: int | None = None,
        drop_last: bool = False,
        bucket: int | None = None,
    ) -> None:
        self.lengths = _checked_budget(lengths, max_tokens)
        for name, number in (("max_sequences", max_sequences), ("bucket", bucket)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be >= 1, got {number}")
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}")
        self.max_tokens = max_tokens
        self.max_sequences = max_sequences
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        if bucket is None:
            per_pack = max_tokens / max(float(self.lengths.mean()), 1.0)
            bucket = round(64 * min(per_pack, max_sequences or per_pack))
        order = np.arange(len(self.lengths))
        if shuffle:
            drawn = np.random.default_rng(seed).permutation(order)
            # Longest first within a bucket, so that the pack left over at the end holds common lengths.
            order = drawn[np.lexsort((-self.lengths[drawn], order // bucket))]
        self._order = order
        self._bounds = _fill(self.lengths[order], max_tokens, max_sequences, drop_last)

    def __len__(self) -> int:
        """Packs an epoch; the same for every epoch."""
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[list[int]]:
        dealt, bounds, turns = self._dealt(), self._bounds, np.arange(len(self))
        if self.shuffle:
            turns = np.random.default_rng([self.seed, self.epoch, 1]).permutation(turns)
        for turn in turns:
            yield dealt[bounds[turn] : bounds[turn + 1]].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle of the next iteration."""
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        self.epoch = epoch

    @property
    def sampler(self) -> TokenBudgetBatchSampler:
        """Itself: accelerate's DataLoaderShard hands `set_epoch` through a wrapping batch sampler
        (BatchSamplerShard, SkipBatchSampler) only to the `.sampler` of the one inside."""
        return self

    def _dealt(self) -> np.ndarray:
        """The layout with this epoch's sequences in its places, each in a place of its own length."""
        if not self.shuffle:
            return self._order
        drawn = np.random.default_rng([self.seed, self.epoch, 0]).permutation(len(self._order))
        dealt = np.empty_like(self._order)
        places = np.argsort(self.lengths[self._order], kind="stable")
        dealt[places] = drawn[np.argsort(self.lengths[drawn], kind="stable")]
        return dealt


def _checked_budget(lengths: Sequence[int] | np.ndarray | Tensor, max_tokens: int) -> np.ndarray:
    """`lengths` as int64 [N], every one of which fits the budget."""
    array = np.asarray(lengths)
    if array.ndim != 1:
        raise ValueError(f"lengths must be [N], got shape {list(array.shape)}")
    if array.size == 0:
        raise ValueError("lengths is empty: there is nothing to sample")
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, got {array.dtype}")
    array = array.astype(np.int64)
    if array.min() < 0:
        raise ValueError(f"lengths must be >= 0, got {array.min()} at index {array.argmin()}")
    if array.max() > max_tokens:
        raise ValueError(
            f"lengths[{array.argmax()}] is {array.max()} tokens and max_tokens is {max_tokens}: "
            "raise max_tokens or truncate the text"
        )
    return array


def _fill(lengths: np.ndarray, max_tokens: int, max_sequences: int | None, drop_last: bool) -> np.ndarray:
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


@dataclass
class PackingCollator:
    """Features of N sequences -> one packed batch, for DataLoader(collate_fn=...).

    A feature has `input_ids` (a list, array or tensor of n integers), and may have `token_type_ids` (n) and
    `labels` (or `label`); other keys are left out. Sequences keep the order of the features. The batch:

    input_ids, position_ids [, token_type_ids]   int64 [1, T]; positions restart at 0 for every sequence
    cu_seq_lens_q, cu_seq_lens_k                 int32 [N+1]
    max_length_q, max_length_k                   python ints
    labels    integers (class ids) -> int64 [N]; floats (regression) -> float32 [N]; a vector each
              (multi-label) -> float32 [N, C]; with `token_labels`, one integer a token -> int64 [1, T]

    `label_dtype` overrides the dtype of the labels (say, torch.float32 for whole-number regression targets).

    Raises ValueError for no features, an empty or a padded sequence, keys that only some features have, and
    token labels or type ids of another length than the tokens.
    """

    label_dtype: torch.dtype | None = None
    token_labels: bool = False

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if not features:
            raise ValueError("features is empty: there is nothing to pack")
        for i, feature in enumerate(features):
            if not np.all(np.asarray(feature.get("attention_mask", 1)) != 0):
                raise ValueError(
                    f"features[{i}] is padded (zeros in attention_mask): tokenise with padding=False"
                )
        ids = _column(features, "input_ids", torch.int64)
        lengths = torch.tensor([len(x) for x in ids])
        if not bool(lengths.all()):
            # A head that reads the first token of every sequence would read its neighbour's.
            raise ValueError(f"features[{int(lengths.argmin())}] has no input_ids: drop empty sequences")
        cu_seqlens = cu_seqlens_of(lengths)
        position_ids = _positions(cu_seqlens, torch.repeat_interleave(lengths))
        longest = int(lengths.max())
        batch = {
            "input_ids": torch.cat(ids)[None],
            "position_ids": position_ids[None],
            "cu_seq_lens_q": cu_seqlens,
            "cu_seq_lens_k": cu_seqlens,
            "max_length_q": longest,
            "max_length_k": longest,
        }
        if _present(features, "token_type_ids"):
            batch["token_type_ids"] = _per_token(features, "token_type_ids", lengths, torch.int64)
        for key in ("labels", "label"):
            if _present(features, key):
                batch["labels"] = self._labels(features, key, lengths)
                break
        return batch

    def _labels(self, features: Sequence[Mapping[str, Any]], key: str, lengths: Tensor) -> Tensor:
        if self.token_labels:
            return _per_token(features, key, lengths, self.label_dtype or torch.int64)
        values = _column(features, key)
        if len({v.shape for v in values}) > 1 or values[0].ndim > 1:
            raise ValueError(
                f"{key} must be one number or one vector of the same length a feature, got shapes "
                f"{sorted({tuple(v.shape) for v in values})}; labels for every token need token_labels=True"
            )
        labels = torch.stack(values)
        whole = labels.ndim == 1 and not labels.is_floating_point()
        return labels.to(self.label_dtype or (torch.int64 if whole else torch.float32))


def _present(features: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether the features have `key`; an error when only some do."""
    missing = [i for i, feature in enumerate(features) if feature.get(key) is None]
    if missing and len(missing) < len(features):
        raise ValueError(f"features[{missing[0]}] has no {key}, other features of the batch do")
    return not missing


def _column(
    features: Sequence[Mapping[str, Any]], key: str, dtype: torch.dtype | None = None
) -> list[Tensor]:
    if not _present(features, key):
        raise ValueError(f"features have no {key}, got the keys {sorted(features[0])}")
    return [torch.as_tensor(feature[key], dtype=dtype) for feature in features]


def _per_token(
    features: Sequence[Mapping[str, Any]], key: str, lengths: Tensor, dtype: torch.dtype
) -> Tensor:
    """`key` of all features as [1, T], after checking that it has one value a token."""
    values = _column(features, key, dtype)
    for i, (value, length) in enumerate(zip(values, lengths.tolist(), strict=True)):
        if value.shape != (length,):
            raise ValueError(f"features[{i}] has {length} input_ids but {key} of shape {list(value.shape)}")
    return torch.cat(values)[None]
