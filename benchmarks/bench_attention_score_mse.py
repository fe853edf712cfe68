"""attention_score_mse against the plain expression, eager and compiled, and bare products of its Gram matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import ops

from .harness import ATTENTION_SHAPES, compare, even_packing, on_backend, random, with_gradients


def plain(qs: Tensor, ks: Tensor, qt: Tensor, kt: Tensor) -> Tensor:
    """As people write it: ``[B, H, L, D]`` in, whole scores."""
    student = qs @ ks.transpose(-1, -2) * qs.shape[-1] ** -0.5
    teacher = qt @ kt.transpose(-1, -2) * qt.shape[-1] ** -0.5
    return torch.nn.functional.mse_loss(student, teacher)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ATTENTION_SHAPES, ids=str)
def test_attention_score_mse(benchmark: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    sequences, length, heads, ds, dt = shape
    student = [random(sequences, length, heads, ds, dtype=dtype, grad=True) for _ in range(2)]
    teacher = [random(sequences, length, heads, dt, dtype=dtype) for _ in range(2)]
    cu_seqlens = even_packing(sequences, length)
    packed = [x.flatten(0, 1) for x in (*student, *teacher)]
    padded = [x.transpose(1, 2) for x in (*student, *teacher)]
    compiled = torch.compile(plain)

    def ours(method: str) -> Any:
        loss = lambda: ops.attention_score_mse(*packed, cu_seqlens, max_seqlen=length, method=method)  # noqa: E731
        return on_backend("cpp", with_gradients(loss, student))

    stacked = torch.cat([padded[0], padded[2]], dim=-1).detach().float().contiguous()  # [B, H, L, ds + dt]
    implementations = {
        "cpp": ours("auto"),
        "cpp gram": ours("gram"),
        "cpp tiled": ours("tiled"),
        "eager": with_gradients(lambda: plain(*padded), student),
        "compile": with_gradients(lambda: compiled(*padded), student),
        "two float32 Gram products": lambda: [stacked.mT @ stacked for _ in range(2)],
    }
    compare(benchmark, implementations, shape=str(shape), dtype=str(dtype))
