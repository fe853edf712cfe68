"""Tiny random models and packed batches that the tests share. Seeded: the same arguments give the same model."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

VOCAB = 50
LENGTHS = (7, 3, 1, 11)


def tiny_bert(
    layers: int = 2,
    hidden: int = 16,
    heads: int = 4,
    *,
    intermediate: int = 24,
    head: str = "Model",
    num_labels: int = 3,
    dropout: float = 0.0,
    vocab: int = VOCAB,
    max_positions: int = 64,
    seed: int = 0,
    family: str = "Bert",
    **config: Any,
) -> PreTrainedModel:
    """A ``<family><head>`` such as BertModel, RobertaForSequenceClassification or DistilBertForMaskedLM, in eval mode.

    Weights are larger than transformers would make them, so that attention is far from uniform and every
    part of the model matters to the output.
    """
    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "max_position_embeddings": max_positions,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "num_labels": num_labels,
        **config,
    }
    if family == "DistilBert":
        for old, new in (
            ("intermediate_size", "hidden_dim"),
            ("hidden_dropout_prob", "dropout"),
            ("attention_probs_dropout_prob", "attention_dropout"),
        ):
            settings[new] = settings.pop(old)
        settings["seq_classif_dropout"] = dropout
    configuration = getattr(transformers, f"{family}Config")(**settings)
    model = getattr(transformers, f"{family}{head}")(configuration)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" in name.lower() and name.endswith("weight"):
                continue
            parameter.normal_(std=0.2)
    model.config.problem_type = config.get("problem_type")
    return model.eval()


def tiny_pair(
    head: str = "ForSequenceClassification", **student: Any
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Teacher (4 layers, 16 wide, 4 heads) and a student half as deep and narrower (2 layers, 12 wide, 4 heads)."""
    teacher = tiny_bert(4, 16, 4, head=head, seed=1)
    return teacher, tiny_bert(**{"layers": 2, "hidden": 12, "heads": 4, "head": head, "seed": 2, **student})


def padded_batch(
    lengths: tuple[int, ...] = LENGTHS, *, vocab: int = VOCAB, token_types: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and ``token_type_ids``, right-padded ``[B, L]``; no padding token inside."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(5, vocab, (len(lengths), width), generator=generator)
    mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    types = torch.randint(0, 2, ids.shape, generator=generator)
    # Padding holds random tokens: whatever looks at them shows.
    batch = {"input_ids": ids, "attention_mask": mask.long()}
    return {**batch, "token_type_ids": types} if token_types else batch


def pack_padded(batch: dict[str, Tensor]) -> dict[str, Any]:
    """The packed batch of a padded one, as the collator makes it."""
    mask = batch["attention_mask"].bool()
    lengths = mask.sum(1)
    packed: dict[str, Any] = {
        name: batch[name][mask][None] for name in ("input_ids", "token_type_ids") if name in batch
    }
    packed["position_ids"] = torch.cat([torch.arange(int(n)) for n in lengths])[None]
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    packed["cu_seq_lens_q"] = packed["cu_seq_lens_k"] = cu_seqlens
    packed["max_length_q"] = packed["max_length_k"] = int(lengths.max())
    return packed


def packed_batch(
    lengths: tuple[int, ...] = LENGTHS, *, labels: str | None = None, **kwargs: Any
) -> dict[str, Any]:
    """A packed batch; ``labels`` is None, ``"class"`` (``[N]``), ``"float"`` (``[N]``) or ``"token"`` (``[1, T]``)."""
    batch = pack_padded(padded_batch(lengths, **kwargs))
    tokens = sum(lengths)
    if labels == "class":
        batch["labels"] = torch.arange(len(lengths)) % 3
    elif labels == "float":
        batch["labels"] = torch.linspace(-1, 1, len(lengths))
    elif labels == "token":
        batch["labels"] = torch.where(torch.arange(tokens) % 3 == 0, -100, torch.arange(tokens) % 3)[None]
    return batch
