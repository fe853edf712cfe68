"""Which words a model would put at a place: its masked-LM head's, or the nearest of its embedding table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, PreTrainedModel

from .hf.encoder import PackedModel
from .hf.loading import load_model
from .loans import default_device, device_of, inference

__all__ = ["WordModel"]

_CHUNK = 1024  # words compared with the vocabulary together


class WordModel:
    """Words out of a model's vocabulary, one token each, that can stand in a place of a text.

    A whole word is a token that the tokenizer gives for that word alone and that holds a letter; pieces, punctuation,
    numbers and special tokens are never proposed.

    Args:
        model: a transformers encoder. With a masked-LM head it proposes by context (`masked`), with or without one by
            its embedding table (`nearest`).
        tokenizer: the model's.

    Attributes:
        has_masked_lm: whether `masked` can be called.
        words: int64 ``[W]``, the ids of the whole words, ascending, on the model's device.

    Raises:
        ValueError: no token of the vocabulary is a whole word.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        self.model = model
        self.encoder = PackedModel(model)
        self.has_masked_lm = type(model).__name__.endswith("ForMaskedLM")
        device = device_of(model)
        self.words = torch.tensor(_whole_words(tokenizer, self.encoder.spec.vocab_size), device=device)
        if not len(self.words):
            raise ValueError(
                f"tokenizer: got a {type(tokenizer).__name__} no token of which is a word, want one with words"
            )
        table: Any = model.get_input_embeddings()
        self._table: Tensor = table.weight.detach()
        self._directions = F.normalize(self._table[self.words].float(), dim=-1)

    @staticmethod
    def load(folder: str | Path, tokenizer: Any) -> WordModel:
        """The model in a directory, with its masked-LM head if trained weights of one are there.

        Raises:
            ValueError: it cannot be read, or cannot run packed.
        """
        device = default_device()
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
            model, missing = load_model(folder, "AutoModelForMaskedLM")
            if not [name for name in missing if "position_ids" not in name]:
                return WordModel(model.to(device), tokenizer)
        return WordModel(load_model(folder, "AutoModel")[0].to(device), tokenizer)

    def masked(self, batch: Mapping[str, Any], places: Tensor, count: int) -> Tensor:
        """The likeliest words at masked places of a packed batch; logits are computed there alone.

        Args:
            batch: see `PackedModel.run`.
            places: int64 ``[M]``, tokens of the pack that hold the mask.
            count: how many words each.

        Returns:
            ids ``[M, min(count, W)]``, the likeliest first.
        """
        on_device = {k: v.to(self.words.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        with inference(self.model):
            logits = self.encoder.run({**on_device, "logit_rows": places.to(self.words.device)}).logits
            assert logits is not None
            best = logits.index_select(1, self.words).topk(min(count, len(self.words))).indices
        return self.words[best].cpu()

    def nearest(self, words: Sequence[Sequence[int]], count: int) -> Tensor:
        """The words whose embeddings point most nearly the same way (cosine), the word itself left out.

        Args:
            words: token ids of each of ``n`` words; several pieces count as the mean of theirs.
            count: how many words each.

        Returns:
            ids ``[n, min(count, W - 1)]``, the nearest first.
        """
        count = min(count, len(self.words) - 1)
        found = [torch.zeros(0, count, dtype=torch.int64)]
        for start in range(0, len(words), _CHUNK):
            some = words[start : start + _CHUNK]
            ids = torch.tensor([i for word in some for i in word], device=self.words.device)
            row = torch.repeat_interleave(
                torch.arange(len(some)), torch.tensor([len(word) for word in some])
            ).to(ids.device)
            sums = torch.zeros(len(some), self._table.shape[1], device=ids.device)
            sums.index_add_(0, row, self._table[ids].float())
            likeness = F.normalize(sums, dim=-1) @ self._directions.T
            single = torch.tensor([word[0] if len(word) == 1 else -1 for word in some], device=ids.device)
            likeness.masked_fill_(single[:, None] == self.words, -torch.inf)
            found.append(self.words[likeness.topk(count).indices].cpu())
        return torch.cat(found)


def _whole_words(tokenizer: Any, vocab_size: int | None) -> list[int]:
    """Ids of the tokens that are a word each."""
    special = set(tokenizer.all_special_ids)
    ids = [i for i in sorted(tokenizer.get_vocab().values()) if i not in special]
    texts = [tokenizer.decode([i]).strip() for i in ids]
    kept = [(i, text) for i, text in zip(ids, texts, strict=True) if _is_word(text)]
    if not kept:
        return []
    # With the space before it that a word inside a sentence has, which is part of the token for byte-level tokenizers.
    read = tokenizer([f" {text}" for _, text in kept], add_special_tokens=False)["input_ids"]
    whole = [i for (i, _), back in zip(kept, read, strict=True) if list(back) == [i]]
    return [i for i in whole if vocab_size is None or i < vocab_size]


def _is_word(text: str) -> bool:
    return len(text.split()) == 1 and any(c.isalpha() for c in text)
