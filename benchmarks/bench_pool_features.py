"""pool_features of four layers in one pass, against the plain expression and a copy of the same bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import ops

from .harness import backends, compare, compiled, full_or_quick, on_backend
from .inputs import both_dtypes, even_packing, in_float32, random

SEQUENCES, LENGTH, WIDTH, LAYERS = full_or_quick((64, 128, 768, 4), (4, 8, 16, 4))


def plain_mean(layers: list[Tensor]) -> Tensor:
    return torch.stack(layers).mean(0).unflatten(0, (SEQUENCES, LENGTH)).mean(1)


def plain_cls(layers: list[Tensor]) -> Tensor:
    return torch.stack([x.unflatten(0, (SEQUENCES, LENGTH))[:, 0] for x in layers]).mean(0)


def plain_max(layers: list[Tensor]) -> Tensor:
    return torch.stack(layers).mean(0).unflatten(0, (SEQUENCES, LENGTH)).amax(1)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@both_dtypes
def test_pool_features(benchmark: Any, mode: str, dtype: torch.dtype) -> None:
    layers = [random(SEQUENCES * LENGTH, WIDTH, dtype=dtype) for _ in range(LAYERS)]
    cu_seqlens = even_packing(SEQUENCES, LENGTH)
    plain = {"mean": plain_mean, "cls": plain_cls, "max": plain_max}[mode]
    fast = compiled(plain)
    # A copy reads and writes; pooling reads alone, so the same bytes are a copy of half as much.
    read = LAYERS * SEQUENCES * WIDTH * (1 if mode == "cls" else LENGTH)
    source = random(read // 2, dtype=dtype)
    target = torch.empty_like(source)
    implementations = {
        **backends(lambda: ops.pool_features(layers, cu_seqlens, mode=mode)),
        "plain": lambda: plain(layers),
        "compile": fast and (lambda: fast(layers)),
        "floor: copy": lambda: target.copy_(source),
    }
    if dtype == torch.bfloat16:
        wide = [in_float32(x) for x in layers]
        implementations["cpp float32"] = on_backend(
            "cpp", lambda: ops.pool_features(wide, cu_seqlens, mode=mode)
        )
    compare(
        benchmark,
        implementations,
        op="pool_features",
        case=mode,
        shape=f"{SEQUENCES}x{LENGTH}x{WIDTH}, {LAYERS} layers",
        dtype=dtype,
    )
