"""How large and how fast a model is."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.collators import Features, collate_inputs
from ..data.loaders import packed_batches
from ..models.encoder import reads
from ..models.loans import device_of, inference
from ..models.spec import EncoderSpec
from ..models.stream import as_encoder

__all__ = ["parameter_count", "size_mb", "student_facts", "throughput"]


def throughput(
    model: PreTrainedModel,
    dataset: Features,
    *,
    tokens_per_batch: int = 8192,
    bf16: bool = False,
    repeats: int = 5,
    warmup: int = 1,
) -> float:
    """Sentences per second of packed inference: the median of `repeats` timed passes over `dataset`.

    Packing is not timed (every batch is made and moved before the clock starts), `warmup` passes are not counted,
    and on CUDA each pass ends with a synchronisation.

    Raises:
        ValueError: an empty data set, or `repeats` below 1.
    """
    if not len(dataset):
        raise ValueError("dataset: got no rows, want at least one")
    if repeats < 1:
        raise ValueError(f"repeats: got {repeats}, want 1 or more")
    encoder, device = as_encoder(model), device_of(model)
    collate = partial(collate_inputs, **reads(encoder))
    batches = [batch for _, batch in packed_batches(dataset, tokens_per_batch, device, collate)]
    seconds = []
    with inference(model, bf16):
        for turn in range(warmup + repeats):
            start = time.perf_counter()
            for batch in batches:
                encoder.run(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= warmup:
                seconds.append(time.perf_counter() - start)
    return len(dataset) / statistics.median(seconds)


def parameter_count(model: torch.nn.Module, *, embeddings: bool = True) -> int:
    """Number of parameters; tied ones count once.

    Args:
        model: any module.
        embeddings: False: without embedding tables, of tokens, positions and token types alike.
    """
    tables = (
        part for part in model.modules() if isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag)
    )
    left_out = set() if embeddings else {id(part.weight) for part in tables}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in left_out)


def size_mb(model: torch.nn.Module) -> float:
    """Megabytes (1e6 bytes) of the parameters in their present dtype; tied ones count once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6


def student_facts(student: Any) -> dict[str, Any]:
    """A student's sizes, for its model card: of a transformers model or any other `Encoder` that is a module."""
    spec = EncoderSpec.of(student)
    facts = {
        "kind": spec.name,
        "layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "attention_heads": spec.num_heads,
        "parameters": parameter_count(student),
        "parameters_without_embeddings": parameter_count(student, embeddings=False),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}
