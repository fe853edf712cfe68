"""pool_features of four layers in one pass, against the plain expression and a copy of the same bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bertxfer_fast import ops

from .harness import compare, even_packing, on_backend, random

SEQUENCES, LENGTH, WIDTH, LAYERS = 64, 128, 768, 4


def plain(layers: list[Tensor]) -> Tensor:
    return torch.stack(layers).mean(0).unflatten(0, (SEQUENCES, LENGTH)).mean(1)


def test_pool_features(benchmark: Any) -> None:
    layers = [random(SEQUENCES * LENGTH, WIDTH) for _ in range(LAYERS)]
    cu_seqlens = even_packing(SEQUENCES, LENGTH)
    compiled = torch.compile(plain)
    # A copy reads and writes; pooling reads alone, so the same bytes are a copy of half as much.
    source = torch.cat(layers)[: LAYERS * SEQUENCES * LENGTH // 2].clone()
    target = torch.empty_like(source)
    implementations = {
        "cpp": on_backend("cpp", lambda: ops.pool_features(layers, cu_seqlens)),
        "eager": lambda: plain(layers),
        "compile": lambda: compiled(layers),
        "copy of the same bytes": lambda: target.copy_(source),
    }
    compare(benchmark, implementations, shape=str((SEQUENCES, LENGTH, WIDTH, LAYERS)))
