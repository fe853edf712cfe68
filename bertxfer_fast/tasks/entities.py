"""Entities in label names of words (BIO, IOB1, IOB2, BIOES, BILOU), and how well they are found.

As CoNLL-2000's and -2003's shared tasks count: an entity is right when its first word, its last word and its type are
(Tjong Kim Sang and De Meulder, 2003), and F1 is over the entities of all sequences.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence

__all__ = ["entities_of", "has_scheme", "span_f1", "span_precision", "span_recall"]

_LABEL = re.compile(r"O|[BIESLU]-.+", re.DOTALL)

Names = Sequence[Sequence[str]]
Entity = tuple[int, int, int, str]


def has_scheme(names: Sequence[str]) -> bool:
    """Whether these are names of classes that mark entities: ``O``, and a position and a type such as ``B-PER``."""
    return len(names) > 1 and all(_LABEL.fullmatch(str(name)) for name in names)


def entities_of(labels: Sequence[str]) -> list[tuple[int, int, str]]:
    """The entities of one sequence: first word, last word, type.

    What is no well-formed scheme counts as CoNLL's scorer counts it: an entity also begins with an ``I`` that follows
    nothing of its type, and ends where nothing of its type follows.

    Args:
        labels: a name for every word.
    """
    found: list[tuple[int, int, str]] = []
    start, before, kind_before = 0, "O", ""
    for i, label in enumerate([*labels, "O"]):
        position, _, kind = label.partition("-")
        position = {"L": "E", "U": "S"}.get(position, position)
        inside = before in ("B", "I") and position in ("I", "E") and kind == kind_before
        if before != "O" and not inside:
            found.append((start, i - 1, kind_before))
        if position != "O" and not inside:
            start = i
        before, kind_before = position, kind
    return found


@functools.lru_cache(maxsize=1 << 16)
def _entities_of(labels: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """The same, remembered: resamples and the three metrics look at the same sequences again and again."""
    return entities_of(labels)


def _counts(predicted: Names, labels: Names) -> tuple[int, int, int]:
    """Entities that are right, predicted, wanted."""

    def all_of(sequences: Names) -> Iterator[Entity]:
        for i, names in enumerate(sequences):
            for start, end, kind in _entities_of(tuple(names)):
                yield i, start, end, kind

    guessed, wanted = set(all_of(predicted)), set(all_of(labels))
    return len(guessed & wanted), len(guessed), len(wanted)


def span_precision(predicted: Names, labels: Names) -> float:
    """Share of the predicted entities that are right; 0 where none is predicted, NaN where there are none at all."""
    right, guessed, wanted = _counts(predicted, labels)
    return right / guessed if guessed else (0.0 if wanted else math.nan)


def span_recall(predicted: Names, labels: Names) -> float:
    """Share of the entities that are predicted; NaN where there are none."""
    right, _, wanted = _counts(predicted, labels)
    return right / wanted if wanted else math.nan


def span_f1(predicted: Names, labels: Names) -> float:
    """Harmonic mean of precision and recall; NaN where there are no entities on either side."""
    right, guessed, wanted = _counts(predicted, labels)
    return 2 * right / (guessed + wanted) if guessed + wanted else math.nan
