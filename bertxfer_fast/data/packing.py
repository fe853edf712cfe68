"""Sequences laid end to end: padded <-> packed tensors.

A *pack* is N sequences in one row of T tokens, with no padding between them; `cu_seqlens` (int32 `[N+1]`,
starting at 0, ending at T) says where each begins. This is flash-attention's varlen layout, and the batches
follow transformers' padding-free convention, so any model that understands that reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["cu_seqlens_of", "pack", "positions_of", "unpack"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_MAX_TOKENS = torch.iinfo(torch.int32).max


def cu_seqlens_of(lengths: Tensor | Sequence[int]) -> Tensor:
    """Boundaries of sequences of the given lengths.

    Args:
        lengths: ``[N]`` integers >= 0.

    Returns:
        int32 ``[N+1]`` on the device of `lengths`.

    Raises:
        TypeError: `lengths` is not integer.
        ValueError: it is not 1-d, holds a negative number, or adds up to more than int32 can hold.
    """
    if not isinstance(lengths, Tensor):
        lengths = torch.tensor(lengths, dtype=None if len(lengths) else torch.int64)
    if lengths.dtype not in _INTEGERS:
        raise TypeError(f"lengths: got {lengths.dtype}, want integers")
    if lengths.ndim != 1:
        raise ValueError(f"lengths: got shape {list(lengths.shape)}, want [N]")
    bounds = torch.nn.functional.pad(lengths.to(torch.int64).cumsum(0), (1, 0))
    if lengths.numel():
        shortest, total = torch.stack([lengths.min().to(torch.int64), bounds[-1]]).tolist()
        if shortest < 0:
            raise ValueError(f"lengths: got {shortest}, want numbers >= 0")
        if total > _MAX_TOKENS:
            raise ValueError(f"lengths: got {total} tokens, want at most {_MAX_TOKENS} (int32 cu_seqlens)")
    return bounds.to(torch.int32)


def pack(padded: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """Keep the tokens that `attention_mask` marks; differentiable in `padded`.

    Costs one host sync on CUDA, because T depends on the mask.

    Args:
        padded: ``[B, L, ...]``, any dtype.
        attention_mask: ``[B, L]``, bool or integer, nonzero = token. Padding may be anywhere (left, right, holes), and
            a row may have no token at all.

    Returns:
        packed ``[T, ...]``, cu_seqlens int32 ``[B+1]``, and max_seqlen (the longest row, a python int).

    Raises:
        TypeError: the mask is neither bool nor integer.
        ValueError: its shape or device does not fit `padded`.
    """
    if attention_mask.dtype != torch.bool and attention_mask.dtype not in _INTEGERS:
        raise TypeError(
            f"attention_mask: got {attention_mask.dtype}, want bool or integer (nonzero = token); an additive mask "
            "of 0 and -inf is not one"
        )
    if attention_mask.ndim != 2 or padded.shape[:2] != attention_mask.shape:
        raise ValueError(
            f"attention_mask: got {list(attention_mask.shape)}, want [B, L], the first two dimensions of padded "
            f"{list(padded.shape)}"
        )
    if attention_mask.device != padded.device:
        raise ValueError(
            f"attention_mask: got device {attention_mask.device}, want padded's, {padded.device}"
        )
    keep = attention_mask != 0
    lengths = keep.sum(1)
    tokens = keep.flatten().nonzero().squeeze(1)
    max_seqlen = int(lengths.max()) if lengths.numel() else 0
    return padded.flatten(0, 1).index_select(0, tokens), cu_seqlens_of(lengths), max_seqlen


def unpack(packed: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None, *, value: float = 0) -> Tensor:
    """Right-pad every sequence; differentiable in `packed`.

    Costs one host sync on CUDA: a boundary that is wrong by one would move tokens into the neighbour's row,
    so boundaries are always checked.

    Args:
        packed: ``[T, ...]``, any dtype.
        cu_seqlens: int32 or int64 ``[N+1]``, from 0 to T, never descending, on packed's device.
        max_seqlen: at least the longest sequence, which is also the default.
        value: what padding holds.

    Returns:
        ``[N, max_seqlen, ...]``.

    Raises:
        TypeError: cu_seqlens is not int32 or int64.
        ValueError: cu_seqlens does not describe `packed`, or a sequence is longer than `max_seqlen`.
    """
    lengths, longest = _checked_lengths(cu_seqlens, packed)
    if max_seqlen is None:
        max_seqlen = longest
    elif max_seqlen < longest:
        raise ValueError(f"max_seqlen: got {max_seqlen}, want at least the longest sequence, {longest}")
    tokens, rows = packed.shape[0], lengths.shape[0]
    row = torch.repeat_interleave(lengths, output_size=tokens)
    slot = row * max_seqlen + positions_of(cu_seqlens, row)
    padded = packed.new_full((rows * max_seqlen, *packed.shape[1:]), value)
    return padded.index_copy(0, slot, packed).view(rows, max_seqlen, *packed.shape[1:])


def positions_of(cu_seqlens: Tensor, row: Tensor) -> Tensor:
    """The position of every token in its own sequence, int64 ``[T]``; `row` ``[T]`` says which sequence that is."""
    return torch.arange(row.shape[0], device=row.device) - cu_seqlens.to(torch.int64)[row]


def _checked_lengths(cu_seqlens: Tensor, packed: Tensor) -> tuple[Tensor, int]:
    """int64 ``[N]`` lengths behind `cu_seqlens` and the longest, after checking that it describes `packed`."""
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens: got {cu_seqlens.dtype}, want int32 or int64")
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() == 0:
        raise ValueError(f"cu_seqlens: got shape {list(cu_seqlens.shape)}, want [N+1]")
    if packed.ndim == 0:
        raise ValueError("packed: got a scalar, want [T, ...]")
    if cu_seqlens.device != packed.device:
        raise ValueError(f"cu_seqlens: got device {cu_seqlens.device}, want packed's, {packed.device}")
    lengths = cu_seqlens.to(torch.int64).diff()
    # One small transfer instead of four: each of these numbers would wait for the device.
    limits = (
        lengths.aminmax() if lengths.numel() else torch.zeros(2, dtype=torch.int64, device=lengths.device)
    )
    first, last, shortest, longest = torch.stack([cu_seqlens[0], cu_seqlens[-1], *limits]).tolist()
    if first != 0 or last != packed.shape[0]:
        raise ValueError(f"cu_seqlens: got {first} to {last}, want 0 to T = {packed.shape[0]}")
    if shortest < 0:
        raise ValueError(f"cu_seqlens: got a step of {shortest}, want numbers that never descend")
    return lengths, longest
