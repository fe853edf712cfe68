"""pool_features in one pass, of four layers, on a GPU also of one and with gradients, against plain code and a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import ops

from . import device
from .harness import Problem, backends, compare, compiled, full_or_quick, in_float32_too, in_float64, nbytes
from .inputs import copy_of, even_packing, in_float32, main_dtypes, random

SEQUENCES, LENGTH, WIDTH = full_or_quick((64, 128, 768), (4, 8, 16), (64, 512, 768))
#: Mode, layers, whether their gradients are computed too.
CASES = (
    [(mode, layers, grad) for grad in (False, True) for mode in ("mean", "max") for layers in (1, 4)]
    if device.ON_GPU
    else [(mode, 4, False) for mode in ("mean", "cls", "max")]
)


def plain_mean(layers: list[Tensor]) -> Tensor:
    return torch.stack(layers).mean(0).unflatten(0, (SEQUENCES, LENGTH)).mean(1)


def plain_cls(layers: list[Tensor]) -> Tensor:
    return torch.stack([x.unflatten(0, (SEQUENCES, LENGTH))[:, 0] for x in layers]).mean(0)


def plain_max(layers: list[Tensor]) -> Tensor:
    return torch.stack(layers).mean(0).unflatten(0, (SEQUENCES, LENGTH)).amax(1)


def call_of(function: Callable[[list[Tensor]], Tensor], layers: list[Tensor], grad: Tensor | None) -> Any:
    """Features alone, or with them the gradients of all layers."""

    def call() -> tuple[Tensor, ...]:
        out = function(layers)
        return (out, *torch.autograd.grad(out, layers, grad)) if grad is not None else (out,)

    return call


def problem(mode: str, count: int, backward: bool, dtype: torch.dtype) -> Problem:
    layers = [random(SEQUENCES * LENGTH, WIDTH, dtype=dtype, grad=backward) for _ in range(count)]
    grad = random(SEQUENCES, WIDTH, dtype=dtype) if backward else None
    cu_seqlens = even_packing(SEQUENCES, LENGTH)
    plain = {"mean": plain_mean, "cls": plain_cls, "max": plain_max}[mode]
    fast = compiled(plain)
    # Gradients are as large as what is read.
    moved = nbytes(layers) * (1 + backward) // (LENGTH if mode == "cls" else 1)

    def pool(x: list[Tensor]) -> Tensor:
        return ops.pool_features(x, cu_seqlens, mode=mode)

    implementations = {
        **backends(call_of(pool, layers, grad), "pool_features"),
        "plain": call_of(plain, layers, grad),
        "compile": fast and call_of(fast, layers, grad),
        "floor: copy": copy_of(moved, dtype),
        **in_float32_too(lambda: call_of(pool, [in_float32(x) for x in layers], None), dtype),
    }
    return Problem(
        op="pool_features",
        implementations=implementations,
        case=mode + " with gradients" * backward,
        shape=f"{SEQUENCES}x{LENGTH}x{WIDTH}, {count} layer{'s' * (count > 1)}",
        dtype=dtype,
        operator="pool_features_backward" if backward else "pool_features",
        size=count * layers[0].numel(),
        gradient_bytes=nbytes(layers) if backward else None,
        truth=lambda: in_float64(lambda *x: plain(list(x)), layers, grad),
    )


@pytest.mark.parametrize("mode, count, backward", CASES)
@main_dtypes
def test_pool_features(benchmark: Any, mode: str, count: int, backward: bool, dtype: torch.dtype) -> None:
    compare(benchmark, problem(mode, count, backward, dtype))
