"""Words replaced by alternatives out of a list of the user's own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .base import Draft, Method, register, share

__all__ = ["Alternatives", "Words", "read_alternatives", "read_words"]


class Alternatives:
    """Words and what may stand in their place; a word that is not listed as it is written is looked up in lower case.

    Args:
        words: word -> alternatives.
    """

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._words = {word: tuple(others) for word, others in words.items()}

    def of(self, word: str) -> tuple[str, ...]:
        """The alternatives of a word; none where it is not listed."""
        return self._words.get(word) or self._words.get(word.lower(), ())


def read_alternatives(source: str | os.PathLike[str] | Mapping[str, Sequence[str]]) -> Alternatives:
    """Words and their alternatives from a mapping, or from a file.

    A file that ends in .json holds one object, ``{"good": ["fine", "great"]}``; any other has a word and its
    alternatives on a line, separated by tabs.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line without an alternative, a word twice, or nothing at all.
    """
    found: Any
    if isinstance(source, Mapping):
        found, where = dict(source), "words"
    else:
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"words: no such file: {path}")
        text, where = path.read_text(encoding="utf-8-sig"), str(path)
        found = json.loads(text) if path.suffix == ".json" else _lines(text, where)
    if not isinstance(found, dict) or not found:
        raise ValueError(f"words: got nothing in {where}, want words and their alternatives")
    for word, others in found.items():
        listed = isinstance(others, list | tuple) and all(isinstance(x, str) and x.strip() for x in others)
        if not listed or not others:
            raise ValueError(f"words: got {others!r} for {word!r} in {where}, want a list of words")
    return Alternatives(found)


def read_words(source: str | os.PathLike[str] | Sequence[str]) -> frozenset[str]:
    """Words in lower case, given as such or in a file with one on a line.

    Raises:
        FileNotFoundError: no such file.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"keep: no such file: {path}")
        source = path.read_text(encoding="utf-8-sig").splitlines()
    return frozenset(word.strip().lower() for word in source)


def _lines(text: str, where: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            word, *others = (field.strip() for field in line.split("\t"))
            if word in found or not others:
                want = "each word once" if word in found else "a word, a tab and its alternatives"
                raise ValueError(f"words: got {line.strip()!r} on line {number} of {where}, want {want}")
            found[word] = others
    return found


@register
class Words(Method):
    """Every word that is listed and not changed yet is replaced with probability `p` by one of its alternatives.

    Args:
        words: a file, or a mapping, see `read_alternatives`.
        p: probability of a replacement.

    Raises:
        FileNotFoundError, ValueError: see `read_alternatives`; a number out of range.
    """

    default_name = "words"

    def __init__(
        self, *, words: str | os.PathLike[str] | Mapping[str, Sequence[str]] | None = None, p: float = 0.4
    ) -> None:
        if words is None:
            raise ValueError("words: got none, want a file of words and their alternatives")
        self.alternatives, self.p = read_alternatives(words), share("p", p)

    def change(self, draft: Draft, prepared: None, draw: np.random.Generator) -> None:
        chances, choices = draw.random((2, len(draft.words)))
        for i, word in enumerate(draft.words):
            others = () if draft.is_changed(i) else self.alternatives.of(word)
            if others and chances[i] < self.p:
                draft.words[i] = others[int(choices[i] * len(others))]
