"""The public name of `data.packing`: packed batches for any trainer, with torch and numpy alone."""

from __future__ import annotations

from .data.packing import (
    PackingCollator,
    TokenBudgetBatchSampler,
    cu_seqlens_of,
    pack,
    unpack,
)

__all__ = ["PackingCollator", "TokenBudgetBatchSampler", "cu_seqlens_of", "pack", "unpack"]
