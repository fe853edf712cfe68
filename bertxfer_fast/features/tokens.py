"""Rows for tokens or words: which hidden states belong to which, and how they are brought together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.collators import INPUTS
from ..data.encoding import check_words
from ..data.packing import cu_seqlens_of
from .inputs import check_text
from .views import View

__all__ = ["Spans", "rows_of", "token_rows"]

WORDS = {"first": "cls", "mean": "mean"}


@dataclass(frozen=True)
class Spans:
    """Which tokens of a text make which rows.

    Attributes:
        tokens: tokens that have a part in a row, in order, ``[n]``.
        lengths: how many of them each row has, ``[rows]``.
        pooling: how the tokens of a row become one, a mode of `ops.pool_features`.
    """

    tokens: Tensor
    lengths: Tensor
    pooling: str

    @property
    def rows(self) -> int:
        return len(self.lengths)


def rows_of(
    view: View, spans: Sequence[Spans], hidden: Mapping[int, Tensor], starts: Sequence[int]
) -> list[Tensor]:
    """float32 ``[rows, D]`` on the CPU for each text of a pack.

    Args:
        view: which layers, and how they are combined.
        spans: of the texts.
        hidden: hidden states ``[T, D]`` by layer.
        starts: where each text begins in the pack.
    """
    device = hidden[view.layers[0]].device
    picked = torch.cat([span.tokens + start for span, start in zip(spans, starts, strict=True)]).to(device)
    cu_seqlens = cu_seqlens_of(torch.cat([span.lengths for span in spans])).to(device)
    of_rows = View(view.layers, spans[0].pooling, view.combine, view.weights)
    rows = of_rows.pool({layer: hidden[layer].index_select(0, picked) for layer in view.layers}, cu_seqlens)
    return list(rows.float().cpu().split([span.rows for span in spans]))


def token_rows(
    tokenizer: Any,
    texts: Iterable[str | Sequence[str]],
    max_length: int | None,
    words: str | None,
    special_tokens: bool,
) -> tuple[list[dict[str, Any]], list[Spans]]:
    """Token features of texts, and what makes their rows; the arguments are those of `token_features`.

    Raises:
        TypeError, ValueError: see there.
    """
    if words is not None and words not in WORDS:
        raise ValueError(f"words: got {words!r}, want one of {', '.join(WORDS)}, or None")
    if words is not None and not tokenizer.is_fast:
        raise ValueError(f"words: got {words!r} with a {type(tokenizer).__name__}, want a fast tokenizer")
    if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
        raise TypeError(f"texts: got {type(texts).__name__}, want a list of strings or of lists of words")
    features, spans, checked = [], [], False
    for i, text in enumerate(texts):
        listed = isinstance(text, (list, tuple))
        if listed and not checked:
            check_words(tokenizer)
            checked = True
        for j, part in enumerate(text if listed else [text]):
            check_text(f"texts[{i}][{j}]" if listed else f"texts[{i}]", part)
        encoded = tokenizer(
            list(text) if listed else text,
            is_split_into_words=listed,
            truncation=max_length is not None,
            max_length=max_length,
            return_special_tokens_mask=True,
        )
        features.append({name: encoded[name] for name in INPUTS if name in encoded})
        if words is None:
            special = torch.tensor(encoded["special_tokens_mask"], dtype=torch.bool)
            kept = torch.arange(len(special)) if special_tokens else (~special).nonzero().flatten()
            spans.append(Spans(kept, torch.ones(len(kept), dtype=torch.int64), "cls"))
            continue
        of_token = [-1 if word is None else word for word in encoded.word_ids()]
        owner = torch.tensor(of_token, dtype=torch.int64)
        count = len(text) if listed else max(of_token, default=-1) + 1
        inside = (owner >= 0).nonzero().flatten()
        spans.append(Spans(inside, torch.bincount(owner[inside], minlength=count), WORDS[words]))
    return features, spans
