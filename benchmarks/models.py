"""BERT models with random weights and ragged batches, for the benchmarks of whole steps and of features."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, BertConfig, BertModel
from transformers.masking_utils import eager_mask

from bertxfer_fast.packing import PackingCollator

from . import device
from .harness import full_or_quick
from .inputs import ragged_lengths

VOCABULARY = full_or_quick(30522, 300)
TEACHER = full_or_quick((12, 768, 12, 3072), (4, 16, 2, 32))  # layers, width, heads, intermediate
STUDENT = full_or_quick((4, 312, 12, 1200), (2, 12, 2, 24))  # TinyBERT-4

#: An attention whose "weights" are the scores before the softmax, as TinyBERT's own fork of BERT returns them.
SCORES = "scores"


def bert(size: tuple[int, int, int, int], length: int) -> BertModel:
    layers, width, heads, intermediate = size
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=length,
    )
    return BertModel(config, add_pooling_layer=False).to(device.TENSORS)


def with_attention(model: BertModel, attention: str) -> BertModel:
    """A copy of the model with the same weights in the same memory and another attention."""
    other = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    other.set_attn_implementation(attention)
    return other


def compile_layers(model: BertModel) -> None:
    """torch.compile of one layer, which all layers share: the advice of PyTorch for models of equal layers.

    The whole model as one graph runs no faster, and takes a minute to compile where this takes seconds.
    """
    for layer in model.encoder.layer:
        layer.forward = torch.compile(layer.forward)


def register_scores() -> None:
    AttentionInterface.register(SCORES, _attention_with_scores)
    AttentionMaskInterface.register(SCORES, eager_mask)


def _attention_with_scores(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """transformers' eager attention, ``[B, H, L, D]`` in, that hands out the scores in place of their softmax."""
    scores = q @ k.transpose(2, 3) * scaling
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ v).transpose(1, 2).contiguous(), scores


def ragged_texts(sequences: int, length: int) -> list[dict[str, list[int]]]:
    """Token ids of random texts, lengths drawn evenly from ``length / 4`` to ``length``."""
    return [
        {"input_ids": torch.randint(5, VOCABULARY, (n,)).tolist()}
        for n in ragged_lengths(sequences, length).tolist()
    ]


def padded(texts: list[dict[str, list[int]]], length: int | None = None) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, padded to the longest text, or to ``length``."""
    width = length or max(len(text["input_ids"]) for text in texts)
    ids = torch.zeros(len(texts), width, dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text["input_ids"])] = torch.tensor(text["input_ids"])
    lengths = torch.tensor([len(text["input_ids"]) for text in texts])
    return on_device({"input_ids": ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long()})


def packed(texts: list[dict[str, list[int]]]) -> dict[str, Any]:
    return on_device(PackingCollator()(texts))


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: x.to(device.TENSORS) if isinstance(x, Tensor) else x for name, x in batch.items()}
