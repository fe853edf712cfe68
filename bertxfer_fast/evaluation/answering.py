"""Answers as text: the best span over all windows of a context, and SQuAD's exact match and F1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..data.collators import collate_inputs
from ..data.encoding import checked_max_length
from ..data.loaders import packed_batches
from ..data.spans import context_tokens, windows_of
from ..models.loans import device_of, inference
from ..models.stream import as_encoder
from .metrics import best_spans

__all__ = ["answers", "squad_scores"]

_LONGEST = 384  # tokens of a window, as BERT answered SQuAD


def answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    max_length: int | None = None,
    stride: int | None = None,
    longest: int = 30,
    may_lack: bool = False,
    tokens_per_batch: int = 8192,
) -> list[str]:
    """What a model answers, as it stands in the context.

    Args:
        model: a transformers encoder with a head for question answering.
        tokenizer: its fast tokenizer.
        questions, contexts: as many of each; lists, columns of a table or a data set.
        max_length, stride: of the windows, see `data.encode`; by default 384 tokens or what model and tokenizer take,
            if that is less, and a third of it.
        longest: tokens of an answer at most.
        may_lack: a question may have no answer (SQuAD 2): ``""`` where the first token, which stands for that, is
            likelier than every span, in each window.
        tokens_per_batch: tokens in a packed batch.

    Raises:
        ValueError: a model for something else, columns of different lengths, a question that leaves no room.
    """
    encoder = as_encoder(model)
    if encoder.spec.head != "span":
        raise ValueError(f"model: got {encoder.spec.name}, want one with a head for question answering")
    if len(questions) != len(contexts):
        raise ValueError(f"contexts: got {len(contexts)}, want one for each of {len(questions)} questions")
    questions, contexts = list(questions), list(contexts)
    if not questions:
        return []
    limit = checked_max_length(tokenizer, max_length, pair=True, positions=encoder.spec.max_positions)
    if max_length is None:
        max_length = _LONGEST if limit is None else min(limit, _LONGEST)
    stride = max_length // 3 if stride is None else stride
    tokens = windows_of(tokenizer, questions, contexts, max_length=max_length, stride=stride)
    names = [name for name in ("input_ids", "token_type_ids") if name in tokens]
    windows = [{name: tokens[name][i] for name in names} for i in range(len(tokens["input_ids"]))]
    best = [(-float("inf"), "")] * len(questions)
    lacking = [float("inf")] * len(questions)
    with inference(model):
        for indices, batch in packed_batches(windows, tokens_per_batch, device_of(model), collate_inputs):
            output = encoder.run(batch).logits
            assert output is not None
            logits, bounds = output.float().cpu(), batch["cu_seq_lens_q"].cpu()
            inside = torch.zeros(len(logits), dtype=torch.bool)
            starts = bounds[:-1].tolist()
            for i, start in zip(indices, starts, strict=True):
                inside[start + torch.tensor(context_tokens(tokens, i), dtype=torch.int64)] = True
            spans = best_spans(logits.masked_fill(~inside[:, None], -torch.inf), bounds, longest)
            for i, start, (first, last) in zip(indices, starts, spans.tolist(), strict=True):
                row = tokens["overflow_to_sample_mapping"][i]
                score = float(logits[start + first, 0] + logits[start + last, 1])
                lacking[row] = min(lacking[row], float(logits[start].sum()))
                if inside[start + first] and score > best[row][0]:
                    offsets = tokens["offset_mapping"][i]
                    best[row] = score, contexts[row][offsets[first][0] : offsets[last][1]]
    return [
        "" if may_lack and none > score else text for (score, text), none in zip(best, lacking, strict=True)
    ]


def squad_scores(predicted: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 of answers as SQuAD's scorer counts them (Rajpurkar et al., 2016), shares from 0 to 1.

    Case, punctuation and articles do not count; F1 is that of the words in both; of several right answers the best one
    counts, and of none ``""`` is right.

    Args:
        predicted: an answer a question.
        right: the right answers of each.

    Raises:
        TypeError: one answer, or SQuAD's mapping, in the place of a list of answers.
        ValueError: other numbers of them, or none.
    """
    if len(predicted) != len(right) or not predicted:
        raise ValueError(
            f"right: got answers to {len(right)} questions, want {len(predicted)}, and at least one"
        )
    for i, known in enumerate(right):
        if isinstance(known, str | Mapping):  # its characters, or its keys, would be taken for answers
            raise TypeError(f"right[{i}]: got {type(known).__name__}, want a list of the right answers")
    pairs = [(guess, list(known) or [""]) for guess, known in zip(predicted, right, strict=True)]
    exact = sum(max(_words(guess) == _words(one) for one in known) for guess, known in pairs)
    overlap = sum(max(_f1(_words(guess), _words(one)) for one in known) for guess, known in pairs)
    return {"exact_match": exact / len(pairs), "f1": overlap / len(pairs)}


def _words(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _f1(guess: list[str], right: list[str]) -> float:
    if not guess or not right:
        return float(guess == right)
    shared = sum((Counter(guess) & Counter(right)).values())
    return 2 * shared / (len(guess) + len(right))
