"""Whole models on a GPU: a step of every objective, and features, as on the CPU, and no step waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import Distiller, use_backend
from bertxfer_fast.distillation import objectives
from bertxfer_fast.distillation.objectives import Objective
from bertxfer_fast.ops._dispatch import backend as _backend

from ..tiny import packed_batch, tiny_bert

OBJECTIVES = sorted(
    name
    for name, found in vars(objectives).items()
    if isinstance(found, type) and issubclass(found, Objective) and found is not Objective
)


def distiller_of(name: str) -> Distiller:
    head = "ForMaskedLM" if name == "LinearLogits" else "ForSequenceClassification"
    teacher, student = (tiny_bert(layers, 16, 4, head=head, seed=layers) for layers in (4, 2))
    torch.manual_seed(0)
    return Distiller(teacher, student, [getattr(objectives, name)()])


def batch_for(name: str) -> dict[str, Any]:
    batch = dict(packed_batch())
    if name == "Labels":
        batch["labels"] = torch.arange(len(batch["cu_seq_lens_q"]) - 1) % 3
    return batch


def on_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: x.cuda() if isinstance(x, Tensor) else x for key, x in batch.items()}


def step(distiller: Distiller, batch: dict[str, Any]) -> Tensor:
    distiller.zero_grad()
    loss = distiller(**batch).loss
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_is_that_of_the_cpu(backend: str, name: str) -> None:
    here, there = distiller_of(name), distiller_of(name).cuda()
    got = step(there, on_gpu(batch_for(name)))
    with use_backend("eager"):
        wanted = step(here, batch_for(name))
    torch.testing.assert_close(got.cpu(), wanted, rtol=1e-3, atol=1e-5)
    gradients = {key: parameter.grad for key, parameter in there.named_parameters()}
    for key, parameter in here.named_parameters():
        ours, theirs = gradients[key], parameter.grad
        assert (ours is None) == (theirs is None), key
        if ours is not None:
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-2, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_waits_for_nothing(name: str) -> None:
    """With what a GPU takes by itself; eager code, for operators that a forced backend lacks, reads lengths back."""
    reason = _backend.unavailable("varlen_attention", "triton", "cuda")
    if reason:
        pytest.skip(reason)
    distiller, batch = distiller_of(name).cuda(), on_gpu(batch_for(name))
    step(distiller, batch)  # kernels compile, and objectives look at their first batch
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(distiller, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_features_are_those_of_the_cpu(backend: str) -> None:
    pytest.importorskip("datasets", reason="features read data sets, and there is no package datasets")
    from bertxfer_fast.features import FeatureExtractor

    rows = [{"input_ids": [2, *range(5, 5 + n), 3]} for n in (3, 30, 1, 12)]
    found = FeatureExtractor(tiny_bert().cuda(), tokens_per_batch=20).extract_ids(rows)
    with use_backend("eager"):
        wanted = FeatureExtractor(tiny_bert(), tokens_per_batch=20).extract_ids(rows)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
