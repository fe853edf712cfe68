"""From whatever batch a trainer hands over to the packed one that models read; nothing of it is dropped unsaid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.packing import cu_seqlens_of, pack

__all__ = ["packed_batch"]

_PER_TOKEN = ("input_ids", "token_type_ids", "position_ids")
_KNOWN = {*_PER_TOKEN, "labels", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}


def packed_batch(
    batch: Mapping[str, Any], *, inputs: frozenset[str], open_ended: bool, head: str | None
) -> dict[str, Any]:
    """The packed batch of an ordinary one; a packed one as it is.

    An ordinary batch has ``input_ids [B, L]`` and may have an ``attention_mask`` of that shape. One row of several
    sequences, as transformers' flattening collator makes it, is told by ``position_ids`` that restart at 0.

    Args:
        batch: what the trainer gave; a None in it counts as left out.
        inputs: names of further inputs that one of the models takes, with one value (or row) per token.
        open_ended: one of the models is of the user's making and gets whatever else there is, too.
        head: of the student, see `EncoderSpec`. Of ``"token"``, labels of the shape of ``input_ids`` belong to the
            tokens; of ``"span"``, labels ``[B, 2]`` are places in the rows of ``input_ids``, padding included.

    Raises:
        ValueError: shapes that do not fit, positions that start elsewhere, an input that no model takes, a span that
            begins or ends where there is no token.
    """
    batch = {name: value for name, value in batch.items() if value is not None}
    mask = batch.pop("attention_mask", None)
    for name in batch.keys() - _KNOWN - inputs:
        if not open_ended:
            takes = f", want {', '.join(sorted(inputs))} or none" if inputs else ""
            raise ValueError(f"{name}: got an input that the models' forward does not take{takes}")
    if "cu_seq_lens_q" in batch:
        if mask is not None and not bool((mask != 0).all()):
            raise ValueError("attention_mask: got padding in a packed batch, want packed tokens alone")
        return batch
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor):
        return batch
    if ids.ndim != 2:
        raise ValueError(
            f"input_ids: got {tuple(ids.shape)}, want [B, L], or packed [1, T] with cu_seq_lens_q"
        )
    mask = torch.ones_like(ids) if mask is None else mask
    tokens, cu_seqlens, longest = pack(ids, mask)
    packed: dict[str, Any] = {"input_ids": tokens.unsqueeze(0)}
    for name, value in batch.items():
        per_token = isinstance(value, Tensor) and value.shape[:2] == ids.shape
        if name in ("input_ids", "labels"):
            continue
        if per_token:
            packed[name] = pack(value, mask)[0].unsqueeze(0)
        elif name in inputs or name in _PER_TOKEN:
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{name}: got {shown}, want one value per token, {tuple(ids.shape)} as input_ids"
            )
        else:
            packed[name] = value
    if "position_ids" in packed:
        if ids.shape[0] == 1:
            cu_seqlens, longest = _restarts(packed["position_ids"][0])
        _check_positions(packed["position_ids"][0], cu_seqlens)
    labels = batch.get("labels")
    if labels is not None:
        of_tokens = head == "token" and labels.shape == ids.shape
        if head == "span" and labels.shape == (len(ids), 2):
            labels = _without_padding(labels, mask)
        packed["labels"] = pack(labels, mask)[0].unsqueeze(0) if of_tokens else labels
    return {**packed, "cu_seq_lens_q": cu_seqlens, "max_length_q": longest}


def _without_padding(labels: Tensor, mask: Tensor) -> Tensor:
    """Places in padded rows, ``[B, 2]``, counted in their sequences; negative ones as they are."""
    keep = F.pad(mask != 0, (0, 1))  # behind its row there is no token
    places = labels.long().clamp(0, mask.shape[1])
    bad = labels[(labels >= 0) & ~keep.gather(1, places)]
    if len(bad):
        raise ValueError(f"labels: got {int(bad[0])}, want a token of its sequence (or -100)")
    return torch.where(labels < 0, labels, (keep.cumsum(1) - 1).gather(1, places))


def _restarts(positions: Tensor) -> tuple[Tensor, int]:
    """Boundaries of the sequences in one row, and the longest: each begins where the positions are 0."""
    starts = (positions == 0).nonzero().flatten()
    if not len(starts):
        raise ValueError("position_ids: got none that is 0, want each sequence to count from 0")
    lengths = torch.cat([starts, starts.new_tensor([len(positions)])]).diff()
    if int(starts[0]) != 0:
        raise ValueError(f"position_ids: got {int(positions[0])} first, want each sequence to count from 0")
    return cu_seqlens_of(lengths), int(lengths.max())


def _check_positions(positions: Tensor, cu_seqlens: Tensor) -> None:
    bounds = cu_seqlens.long()
    starts = bounds[:-1].repeat_interleave(bounds.diff(), output_size=len(positions))
    if not torch.equal(positions, torch.arange(len(positions), device=positions.device) - starts):
        raise ValueError("position_ids: got others than 0, 1, 2, ... in each sequence, want those, or none")
