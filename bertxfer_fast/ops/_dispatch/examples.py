"""Building blocks of the examples in each :class:`OpInfo`: tensors with the same values in every process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

#: A few tokens, an empty sequence, one token.
LENGTHS = (5, 0, 7, 1)


def normal(dtype: torch.dtype) -> Callable[..., Tensor]:
    """``make(*shape)``, tensors of normal numbers; the same sequence of calls gives the same numbers."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).to(dtype)


def packing(lengths: Sequence[int]) -> Tensor:
    """``cu_seqlens``, int32 ``[N + 1]``."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
