"""Words hidden behind the mask token (Tang et al., 2019)."""

from __future__ import annotations

import numpy as np

from .base import Draft, Method, Tools, register, share

__all__ = ["Masking"]


@register
class Masking(Method):
    """Every word becomes the mask token with probability `p` (Tang et al., 2019, who take 0.1).

    Args:
        p: probability of a mask.

    Raises:
        ValueError: a number out of range.
    """

    default_name = "masking"
    copies = 20

    def __init__(self, *, p: float = 0.1) -> None:
        self.p = share("p", p)

    def bind(self, tools: Tools) -> None:
        super().bind(tools)
        if tools.tokenizer.mask_token is None:
            raise ValueError(
                f"tokenizer: got a {type(tools.tokenizer).__name__} without a mask token, want one that has it"
            )

    def change(self, draft: Draft, prepared: None, draw: np.random.Generator) -> None:
        for i, chance in enumerate(draw.random(len(draft.words))):
            if chance < self.p:
                draft.words[i] = self.tools.tokenizer.mask_token
