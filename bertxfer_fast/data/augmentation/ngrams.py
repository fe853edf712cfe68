"""A few neighbouring words in place of the whole text (Tang et al., 2019)."""

from __future__ import annotations

import numpy as np

from .base import Draft, Method, register, share, whole

__all__ = ["NGrams"]


@register
class NGrams(Method):
    """With probability `p` a text becomes n of its words in a row, n from 1 to `longest`, all equally likely.

    In Tang et al. (2019) it follows masking and replacement, with 0.25 and 5.

    Args:
        p: probability that a copy is cut.
        longest: words that are left at most.

    Raises:
        ValueError: a number out of range.
    """

    default_name = "ngrams"
    copies = 20
    cuts = True

    def __init__(self, *, p: float = 0.25, longest: int = 5) -> None:
        self.p, self.longest = share("p", p), whole("longest", longest)

    def change(self, draft: Draft, prepared: None, draw: np.random.Generator) -> None:
        chance, of_length, of_start = draw.random(3)
        if chance >= self.p or not draft.words:
            return
        count = min(1 + int(of_length * self.longest), len(draft.words))
        start = int(of_start * (len(draft.words) - count + 1))
        draft.first += start
        draft.words[:] = draft.words[start : start + count]
