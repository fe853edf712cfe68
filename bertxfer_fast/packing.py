"""Packed batches for any trainer, with torch and numpy alone: the public names of `data` for packing."""

from __future__ import annotations

from .data.collators import PackingCollator
from .data.packing import cu_seqlens_of, pack, unpack
from .data.samplers import TokenBudgetBatchSampler

__all__ = ["PackingCollator", "TokenBudgetBatchSampler", "cu_seqlens_of", "pack", "unpack"]
