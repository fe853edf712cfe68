"""Ragged batches run the kernels that the first one compiled: Triton compiles again where an argument's *kind* changes.

An integer that becomes 1 or a multiple of 16, a pointer into a slice, a constant that follows the batch: each would
stop training for seconds, in the middle of a run. The launchers run on CPU tensors in a process whose kernels are not
interpreted, and nothing is compiled: what is counted are the keys under which Triton would look for a kernel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

BATCHES = 50
#: Kernels of which a training may need two. The others need one.
TWO = {
    "attention_score_mse gram_kernel": "whole sequences, or parts of them where there are few",
    "attention_score_mse tiled_kernel": "beside Gram matrices, or where all sequences are short",
    "hidden_mse projected_kernel": "large tiles, or small ones of few tokens",
    "pool_features pool_kernel": "whole sequences, or parts of them where there are few",
    "pool_features mix_kernel": "eight of nine layers, then the last",
    "pool_features_backward spread_kernel": "eight of nine layers, then the last",
}


def batches() -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Lengths, ``cu_seqlens`` and ``seqused``; the tensors are slices, of which every other one is not aligned."""
    rng = Random(0)
    for number in range(BATCHES):
        sequences = (1, 16, 17, 300)[number] if number < 4 else rng.randint(2, 60)
        longest = rng.choice((32, 120, 300))
        lengths = [rng.randint(0, longest) for _ in range(sequences)]
        if number == 4:
            lengths = [1500, 30]
        if number % 10 == 0:  # a multiple of 16 in all
            lengths[-1] += -sum(lengths) % 16
        shift = number % 2
        starts = torch.tensor([0] * shift + [0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        used = torch.tensor([0] * shift + lengths, dtype=torch.int32)
        yield lengths, starts[shift:], used[shift:]


def calls(lengths: list[int], starts: Tensor, used: Tensor) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """A call of every operator's launcher with one batch, as one training makes it again and again."""
    tokens, heads, dim, width = sum(lengths), 2, 16, 32
    longest = max(lengths)

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    qkv = empty(tokens, 3, heads, dim).unbind(1)
    hidden, weight, bias = empty(tokens, width), empty(width, width), empty(width)
    maps = *qkv[:2], *qkv[:2], starts, used, longest, 0.1, 0.1
    yield "attention_score_mse", (*maps, "mean", "auto", True)
    yield "attention_map_loss", (*maps, "kl", "mean", True)
    yield "relation_kl", (hidden, hidden, starts, used, longest, heads, 0.1, 0.1, "mean", True)
    yield "hidden_mse", (hidden, hidden, weight, bias, "mean", True)
    yield "hidden_cosine", (hidden, hidden, weight, bias, "mean", True)
    yield "logits_kl", (hidden, hidden, 2.0, "batchmean", True)
    yield "linear_logits_kl", (hidden, weight, bias, hidden, weight, bias, 2.0, "batchmean", True)
    layers, mixture = [hidden] * 9, torch.ones(9)
    yield "pool_features", (layers, starts, used, mixture, "mean", False)
    pooled = (
        empty(len(lengths), width),
        empty(len(lengths), width, dtype=torch.int32),
        torch.ones(len(lengths)),
    )
    gradient = empty(len(lengths), width)
    yield (
        "pool_features_backward",
        (gradient, layers, starts, used, mixture, "mean", False, *pooled, True),
    )
    packing = starts, longest, 0.1, 0.1, torch.zeros(1, dtype=torch.int64)
    yield "varlen_attention", (*qkv, *packing)
    lse = empty(heads, tokens, dtype=torch.float32)
    # What a model keeps heads first has a stride that grows with the tokens.
    upstream = empty(heads, tokens, dim).transpose(0, 1)
    yield "varlen_attention_backward", (upstream, *qkv, empty(tokens, heads, dim), lse, *packing)
    yield "scale_grad", (hidden, torch.ones(()), torch.float32)
    yield "scale_grad_", ([hidden, empty(width, width, dtype=torch.float32)], torch.ones(()), torch.ones(()))


def count_keys() -> dict[str, int]:
    """How many kernels Triton would compile over all batches, by operator and kernel."""
    from bertxfer_fast.ops.attention_score_mse import triton as score
    from bertxfer_fast.ops.pool_features import triton as pool

    from .resources import Variant, launches

    for module in (score, pool):
        module.multiprocessors = lambda device: 132
    keys: dict[str, set[str]] = defaultdict(set)
    for batch in batches():
        for op, arguments in calls(*batch):
            for launch in launches(Variant(op, "", lambda dtype, a=arguments: a), torch.bfloat16, 90):
                keys[f"{op} {launch.kernel}"].add(launch.key)
    return {name: len(found) for name, found in keys.items()}


@pytest.fixture(scope="module")
def counts() -> dict[str, int]:
    pytest.importorskip("triton", reason="no Triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    shown = subprocess.run(
        [sys.executable, "-m", "tests.ops.test_triton_recompiles"],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)


def test_ragged_batches_compile_nothing_new(counts: dict[str, int]) -> None:
    assert {name: count for name, count in counts.items() if count > 1 + (name in TWO)} == {}


def test_every_operator_is_counted(counts: dict[str, int]) -> None:
    from bertxfer_fast.ops._dispatch.registry import OPS

    assert {name.split()[0] for name in counts} == {name for name, info in OPS.items() if info.triton}
    assert {name for name, count in counts.items() if count == 2} == set(TWO)


if __name__ == "__main__":
    print(json.dumps(count_keys()))
