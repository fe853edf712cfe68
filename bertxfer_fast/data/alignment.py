"""Which tokens of one tokenizer stand where a token of another one stands.

Every token covers places of its row: the characters of the texts, one after the other, and in front of each text and
behind the last one a few places that the special tokens there share. The text alone says how many characters there are,
so tokens of two tokenizers stand for the same where their places overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transformers import BatchEncoding

__all__ = ["overlaps", "places_of"]

_SPECIAL = 60  # places where special tokens stand together; as many of them as divide it share it evenly


def places_of(tokens: BatchEncoding, row: int, texts: Sequence[Any]) -> NDArray[np.int64]:
    """The first place of every token of a row and the one behind its last, ``[n, 2]``.

    A token of no character (a space that the tokenizer trims away) has no place.

    Args:
        tokens: of a fast tokenizer, with ``offset_mapping``.
        row: which of them.
        texts: the row's texts, or lists of words.
    """
    places = np.array(tokens["offset_mapping"][row], np.int64).reshape(-1, 2)
    text_of = np.array([-1 if text is None else text for text in tokens.sequence_ids(row)], np.int64)
    before = np.maximum.accumulate(text_of) + 1  # texts that began before a token, its own included
    start = 0
    for number, text in enumerate([*texts, ""]):
        special = np.flatnonzero((text_of < 0) & (before == number))
        bounds = start + np.arange(len(special) + 1) * _SPECIAL // max(1, len(special))
        places[special] = np.stack([bounds[:-1], bounds[1:]], axis=1)
        start += _SPECIAL
        own = np.flatnonzero(text_of == number)
        if isinstance(text, str):
            places[own] += start
            start += len(text)
        else:  # offsets count from the beginning of the word
            words = np.array(tokens.word_ids(row), object)[own].astype(np.int64)
            starts = np.cumsum([start, *map(len, text)])
            places[own] += starts[words, None]
            start = int(starts[-1])
    return places


def overlaps(student: ArrayLike, teacher: ArrayLike) -> NDArray[np.int64]:
    """The teacher's tokens that share a place with each of the student's: ``[n, 2]``, the first and one past the last.

    Where there is none, both are 0.

    Args:
        student: places of the student's tokens, see `places_of`.
        teacher: of the teacher's, in the same row. Both rise.
    """
    mine, theirs = (np.asarray(places, np.int64).reshape(-1, 2) for places in (student, teacher))
    solid = np.flatnonzero(theirs[:, 1] > theirs[:, 0])
    first = np.searchsorted(theirs[solid, 1], mine[:, 0], side="right")
    last = np.searchsorted(theirs[solid, 0], mine[:, 1], side="left")
    there = (first < last) & (mine[:, 1] > mine[:, 0])
    spans = np.zeros_like(mine)
    spans[there, 0] = solid[first[there]]
    spans[there, 1] = solid[last[there] - 1] + 1
    return spans
