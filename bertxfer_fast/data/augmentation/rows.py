"""Rows in, the same rows and changed copies of them out, a window at a time."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..empty_rows import check_choice
from ..encoding import are_words, check_words, complete_rows, is_empty_text
from ..tables import Source, check_columns, column_values, load
from .base import Draft, Method, Proposals, Tools, whole
from .texts import Text, render, texts_of

__all__ = ["Augmentation"]

_WINDOW = 256  # rows whose candidates are found together


class Augmentation:
    """The rows of a data set with copies in which words are changed, one after the other: ``for row in augmentation``.

    Copies carry all other columns along. A row's copies depend on the seed and the row's texts alone. No copy repeats
    the row or another copy of it, so that a row of few words may have fewer.

    Args:
        source: as for `data.load`.
        tokenizer: a fast one of transformers; it says what a word is.
        methods: applied to a copy one after the other, see `get`.
        text, text_pair: columns of text, or of lists of words; both of a pair are changed.
        word_labels: column that has a label for each word of `text`, where that holds lists of words: it is cut where
            the words are.
        proposals: a source of words, for methods that need one: ``WordModel.load(folder, tokenizer)``.
        copies: of every row; by default as many as the authors of the first method made.
        originals: whether the rows themselves come as well, each before its copies.
        seed: with a row's texts it decides what becomes of them.
        empty_rows: what becomes of a row without text: ``"error"``, ``"skip"`` (left out), ``"keep"`` (no copies).
        tokens_per_batch: tokens of a packed batch of a masked LM; memory grows with it, results do not depend on it.
        max_length: tokens that the model behind `proposals` can take.

    Attributes:
        rows: the rows that are read, a `datasets.Dataset`; the columns of what comes out are the same.

    Raises:
        TypeError: no fast tokenizer, or a column without text.
        ValueError: a missing column, no method, methods that lack something, missing text.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerBase,
        methods: Sequence[Method],
        *,
        text: str = "text",
        text_pair: str | None = None,
        word_labels: str | None = None,
        proposals: Proposals | None = None,
        copies: int | None = None,
        originals: bool = True,
        seed: int = 42,
        empty_rows: str = "error",
        tokens_per_batch: int = 8192,
        max_length: int | None = None,
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
            raise TypeError(
                f"tokenizer: got {type(tokenizer).__name__}, want a fast transformers tokenizer: others do not say "
                "where words are"
            )
        if not methods:
            raise ValueError("methods: got none, want at least one")
        check_choice(empty_rows)
        if empty_rows == "zeros":
            raise ValueError("empty_rows: got 'zeros', want error, skip or keep")
        self.copies = methods[0].copies if copies is None else whole("copies", copies)
        whole("tokens_per_batch", tokens_per_batch)
        if seed < 0:
            raise ValueError(f"seed: got {seed}, want 0 or more")
        # Copies: a method that serves two data sets would have the tools of the second for both.
        methods = [copy.copy(method) for method in methods]
        for method in methods:
            method.bind(Tools(tokenizer, proposals, tokens_per_batch, max_length))
        self.tokenizer, self.methods, self.originals, self.seed = tokenizer, methods, originals, seed
        self.texts = [text] if text_pair is None else [text, text_pair]
        rows = load(source)
        check_columns(rows, [*self.texts, *([] if word_labels is None else [word_labels])])
        words = are_words(rows, self.texts)
        if words:
            check_words(tokenizer)
        if word_labels is not None and (not words or text_pair is not None):
            raise ValueError(
                f"word_labels: got {word_labels!r} beside {rows.features[text]}, want one column of lists of words"
            )
        self.word_labels = word_labels
        self.rows: Dataset = complete_rows(rows, self.texts, None, empty_rows)
        if word_labels is not None:
            _check_labels(self.rows, text, word_labels)

    @property
    def told(self) -> list[str]:
        """Where the methods' words come from."""
        return [f"{method.default_name}: {method.told}" for method in self.methods if method.told]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.rows), _WINDOW):
            columns = self.rows[start : start + _WINDOW]
            count = len(next(iter(columns.values())))
            rows = [{name: values[i] for name, values in columns.items()} for i in range(count)]
            yield from self._window(rows)

    def _window(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        sources = [row[name] for row in rows for name in self.texts if not is_empty_text(row[name])]
        texts = texts_of(sources, self.tokenizer)
        prepared = list(zip(*(method.prepare(texts) for method in self.methods), strict=True))
        following = iter(zip(texts, prepared, strict=True))
        for row in rows:
            if self.originals:
                yield dict(row)
            own = {name: next(following) for name in self.texts if not is_empty_text(row[name])}
            if len(own) == len(self.texts):
                yield from self._copies(row, own)

    def _copies(
        self, row: dict[str, Any], own: dict[str, tuple[Text, tuple[Any, ...]]]
    ) -> Iterator[dict[str, Any]]:
        draw = np.random.default_rng(_seed_of(self.seed, [row[name] for name in self.texts]))
        seen = {_key([row[name] for name in self.texts])}
        for _ in range(self.copies):
            changed = dict(row)
            for name, (text, prepared) in own.items():
                draft = Draft(text, 0, list(text.words))
                for method, candidates in zip(self.methods, prepared, strict=True):
                    method.change(draft, candidates, draw)
                changed[name] = render(text, draft.first, draft.words)
                if self.word_labels is not None:
                    labels = row[self.word_labels]
                    changed[self.word_labels] = labels[draft.first : draft.first + len(draft.words)]
            key = _key([changed[name] for name in self.texts])
            if key not in seen:
                seen.add(key)
                yield changed


def _check_labels(rows: Dataset, text: str, labels: str) -> None:
    pairs = zip(column_values(rows, text), column_values(rows, labels), strict=True)
    for i, (words, found) in enumerate(pairs):
        if not isinstance(found, list) or len(found) != len(words or ()):
            shown = f"{len(found)} labels" if isinstance(found, list) else repr(found)
            raise ValueError(f"column {labels!r}, row {i + 1}: {shown} for {len(words or ())} words")


def _key(texts: Sequence[str | list[str]]) -> tuple[Any, ...]:
    return tuple(text if isinstance(text, str) else tuple(text) for text in texts)


def _seed_of(seed: int, texts: Sequence[Any]) -> int:
    """A number that seed and texts decide, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr((seed, *texts)).encode()).digest()[:16], "little")
