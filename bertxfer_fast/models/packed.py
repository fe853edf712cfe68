"""The packed batch that every `Encoder` reads, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .spec import EncoderSpec

__all__ = ["check_ids", "packed_tokens"]


def packed_tokens(batch: Mapping[str, Any], spec: EncoderSpec) -> tuple[Tensor, Tensor, int]:
    """The tokens of a packed batch and where its sequences begin.

    Args:
        batch: as in `Encoder.run`.
        spec: of the model that is to read it.

    Returns:
        ``input_ids [1, T]``, ``cu_seqlens`` int32 ``[N + 1]`` and the longest length.

    Raises:
        ValueError: tensors that are missing or of other shapes, boundaries that do not describe the tokens, more tokens
            than the model has positions, ids that are not in its vocabulary.
    """
    for name in ("input_ids", "cu_seq_lens_q"):
        if not isinstance(batch.get(name), Tensor):
            raise ValueError(f"batch: got {sorted(batch)}, want a tensor {name!r}")
    ids, cu_seqlens = batch["input_ids"], batch["cu_seq_lens_q"]
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise ValueError(f"input_ids: got {tuple(ids.shape)}, want packed tokens [1, T]")
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32 or len(cu_seqlens) < 2:
        raise ValueError(
            f"cu_seq_lens_q: got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}, want int32 [N + 1] with N >= 1"
        )
    max_seqlen = batch.get("max_length_q")
    max_seqlen = int(cu_seqlens.diff().max() if max_seqlen is None else max_seqlen)
    if cu_seqlens.device.type == "cpu":  # elsewhere looking costs a host sync
        _check_lengths(cu_seqlens, ids.shape[1], max_seqlen)
    limit = spec.max_positions
    if limit is not None and max_seqlen > limit:
        raise ValueError(
            f"max_length_q: got {max_seqlen} tokens, want at most the {limit} positions of {spec.name}"
        )
    check_ids("input_ids", ids, spec.vocab_size, f"the vocabulary of {spec.name}")
    return ids, cu_seqlens, max_seqlen


def check_ids(name: str, ids: Tensor, count: int | None, table: str) -> None:
    """Raise ValueError for an id outside of a table with ``count`` rows."""
    if count is None or ids.device.type != "cpu":  # elsewhere looking costs a host sync
        return
    lowest, highest = (int(x) for x in ids.aminmax())
    if lowest < 0 or highest >= count:
        raise ValueError(f"{name}: got {lowest if lowest < 0 else highest}, want ids 0..{count - 1}, {table}")


def _check_lengths(cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> None:
    lengths = cu_seqlens.diff()
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != tokens or (lengths <= 0).any():
        raise ValueError(
            f"cu_seq_lens_q: got {cu_seqlens.tolist()}, want it to rise from 0 to T = {tokens} (no sequence is empty)"
        )
    if lengths.max() > max_seqlen:
        raise ValueError(f"max_length_q: got {max_seqlen}, want at least the longest, {int(lengths.max())}")
