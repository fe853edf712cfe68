"""attention_map_loss against the plain expression, eager and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import ops

from .harness import ATTENTION_SHAPES, compare, even_packing, on_backend, random, with_gradients


def plain_kl(qs: Tensor, ks: Tensor, qt: Tensor, kt: Tensor) -> Tensor:
    """As people write it: ``[B, H, L, D]`` in, whole maps."""
    student = (qs @ ks.transpose(-1, -2) * qs.shape[-1] ** -0.5).log_softmax(-1)
    teacher = (qt @ kt.transpose(-1, -2) * qt.shape[-1] ** -0.5).log_softmax(-1)
    rows = student.shape[0] * student.shape[1] * student.shape[2]
    return torch.nn.functional.kl_div(student, teacher, reduction="sum", log_target=True) / rows


def plain_mse(qs: Tensor, ks: Tensor, qt: Tensor, kt: Tensor) -> Tensor:
    student = (qs @ ks.transpose(-1, -2) * qs.shape[-1] ** -0.5).softmax(-1)
    teacher = (qt @ kt.transpose(-1, -2) * qt.shape[-1] ** -0.5).softmax(-1)
    return torch.nn.functional.mse_loss(student, teacher)


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ATTENTION_SHAPES, ids=str)
def test_attention_map_loss(benchmark: Any, shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    sequences, length, heads, ds, dt = shape
    student = [random(sequences, length, heads, ds, dtype=dtype, grad=True) for _ in range(2)]
    teacher = [random(sequences, length, heads, dt, dtype=dtype) for _ in range(2)]
    cu_seqlens = even_packing(sequences, length)
    packed = [x.flatten(0, 1) for x in (*student, *teacher)]
    padded = [x.transpose(1, 2) for x in (*student, *teacher)]
    plain = {"kl": plain_kl, "mse": plain_mse}[kind]
    compiled = torch.compile(plain)

    def loss() -> Tensor:
        return ops.attention_map_loss(*packed, cu_seqlens, max_seqlen=length, kind=kind)

    implementations = {
        "cpp": on_backend("cpp", with_gradients(loss, student)),
        "eager": with_gradients(lambda: plain(*padded), student),
        "compile": with_gradients(lambda: compiled(*padded), student),
    }
    compare(benchmark, implementations, shape=str(shape), dtype=str(dtype), kind=kind)
