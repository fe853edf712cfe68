"""A text as words that can be replaced, with what stands between them kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Text", "render", "texts_of"]

_APOSTROPHES = ("'", "\N{RIGHT SINGLE QUOTATION MARK}")


@dataclass(frozen=True)
class Text:
    """A text, or a list of words, as its tokenizer takes it apart.

    Attributes:
        source: the text, or the list of words.
        words: the words; of a text, what the tokenizer splits it into before it looks up pieces.
        spans: characters from and to of every word in a text; empty of a list.
        pieces: token ids of every word; of a word that the tokenizer makes nothing of, none.
        ids: token ids of the whole, with special tokens.
        places: where in ``ids`` the first piece of every word is; -1 of a word without one.
        tail: special tokens at the end of ``ids``.
    """

    source: str | list[str]
    words: list[str]
    spans: list[tuple[int, int]]
    pieces: list[list[int]]
    ids: list[int]
    places: list[int]
    tail: int

    def is_word(self, i: int) -> bool:
        """Whether word ``i`` can be replaced by another word: punctuation, numbers and parts of contractions cannot."""
        return any(c.isalpha() for c in self.words[i]) and not self._is_contracted(i)

    def _is_contracted(self, i: int) -> bool:
        """Whether an apostrophe joins it to a neighbour: of ``don't`` neither ``don`` nor ``t`` is a word."""
        if isinstance(self.source, list):
            return any(c in self.words[i] for c in _APOSTROPHES)
        start, end = self.spans[i]
        # Beside it, or its own: byte-level tokenizers split ``don't`` into ``don`` and ``'t``.
        return any(
            self.source[at] in _APOSTROPHES
            and self.source[at - 1 : at].isalpha()
            and self.source[at + 1 : at + 2].isalpha()
            for at in (start - 1, start, end - 1, end)
            if 0 < at < len(self.source)
        )

    def cut(self, max_length: int | None) -> list[int]:
        """``ids`` cut to so many, with the special tokens at the end."""
        if max_length is None or len(self.ids) <= max_length:
            return self.ids
        return self.ids[: max_length - self.tail] + self.ids[len(self.ids) - self.tail :]


def texts_of(sources: Sequence[str | list[str]], tokenizer: Any) -> list[Text]:
    """Every text, or list of words, taken apart.

    Args:
        sources: all texts, or all lists of words.
        tokenizer: a fast one of transformers.
    """
    if not sources:
        return []
    split = not isinstance(sources[0], str)
    encoded = tokenizer(
        list(sources),
        is_split_into_words=split,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,  # longer than the model takes: it is cut later, if it is read at all
    )
    return [
        _text(source, encoded["input_ids"][i], encoded.word_ids(i), encoded["offset_mapping"][i])
        for i, source in enumerate(sources)
    ]


def _text(
    source: str | list[str],
    ids: list[int],
    word_of: list[int | None],
    offsets: list[tuple[int, int]],
) -> Text:
    tail = next((n for n, word in enumerate(reversed(word_of)) if word is not None), 0)
    tokens: dict[int, list[int]] = {}
    for place, word in enumerate(word_of):
        if word is not None:
            tokens.setdefault(word, []).append(place)
    if isinstance(source, list):
        words, spans, of_words = list(source), [], [tokens.get(i, []) for i in range(len(source))]
    else:
        found = [(places, _span(source, [offsets[p] for p in places])) for places in tokens.values()]
        found = [(places, span) for places, span in found if span[0] < span[1]]
        of_words, spans = [places for places, _ in found], [span for _, span in found]
        words = [source[start:end] for start, end in spans]
    pieces = [[ids[place] for place in places] for places in of_words]
    return Text(source, words, spans, pieces, list(ids), [p[0] if p else -1 for p in of_words], tail)


def _span(text: str, offsets: list[tuple[int, int]]) -> tuple[int, int]:
    """The characters of a word; byte-level tokenizers may count the space before it in."""
    start, end = min(a for a, _ in offsets), max(b for _, b in offsets)
    while start < end and text[start].isspace():
        start += 1
    return start, end


def render(text: Text, first: int, words: Sequence[str]) -> str | list[str]:
    """The words ``first``, ``first + 1``, ... of a text with others in their places, as a text or a list again.

    What stands between words stays; of a text that is taken whole, also what stands before and behind them.
    """
    if isinstance(text.source, list):
        return list(words)
    if not words:
        return text.source
    last = first + len(words) - 1
    begin = 0 if first == 0 else text.spans[first][0]
    end = len(text.source) if last == len(text.spans) - 1 else text.spans[last][1]
    parts, at = [], begin
    for word, (start, stop) in zip(words, text.spans[first : last + 1], strict=True):
        parts += [text.source[at:start], word]
        at = stop
    return "".join([*parts, text.source[at:end]])
