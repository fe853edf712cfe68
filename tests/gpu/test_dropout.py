"""varlen_attention's dropout on a GPU: the mask is the CPU kernel's, and a captured graph draws a new one each time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import bertxfer_fast
from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch import backend as _backend
from bertxfer_fast.ops._dispatch import library as _library

from ..ops.test_triton_attention import LONG, results


@pytest.fixture(autouse=True)
def triton() -> None:
    reason = _backend.unavailable("varlen_attention", "triton", "cuda")
    if reason:
        pytest.skip(reason)


@pytest.mark.skipif(_library.extension is None, reason="no compiled extension")
@pytest.mark.parametrize("seed", [0, 12345, 2**62 - 1])
@pytest.mark.parametrize("dropout_p", [0.1, 0.9])
def test_dropout_is_that_of_the_cpu_kernel(dropout_p: float, seed: int) -> None:
    ours, theirs = (
        results(backend, LONG, 64, dropout_p, seed, device)
        for backend, device in (("triton", "cuda"), ("cpp", "cpu"))
    )
    for a, b in zip(ours, theirs, strict=True):
        assert (a.cpu().double() - b).norm() <= 1e-4 * b.double().norm()


def test_a_cuda_graph_draws_a_new_mask_for_each_replay() -> None:
    q, k, v = (torch.randn(LONG.tokens, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    cu_seqlens, longest = LONG.cu_seqlens.cuda(), max(LONG.lengths)

    def attend() -> Tensor:
        with bertxfer_fast.use_backend("triton"):
            return ops.varlen_attention(q, k, v, cu_seqlens, max_seqlen=longest, dropout_p=0.5)

    attend()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend()
    masks = []
    for _ in range(2):
        graph.replay()
        masks.append(out.clone())
    assert not torch.equal(*masks)
