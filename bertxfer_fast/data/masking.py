"""Packed batches in which tokens are hidden, for masked-language-model training."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .collators import Features, PackingCollator
from .labels import IGNORED

__all__ = ["MaskingCollator"]

# Devlin et al., 2019: of the chosen tokens so many become the mask, so many another token, the rest stays.
_MASKED, _REPLACED = 0.8, 0.1


class MaskingCollator:
    """`PackingCollator` whose batches have some of their tokens hidden, and those tokens as ``labels`` (Devlin et al.).

    Each token but the special ones is chosen with probability ``share``; of the chosen 80 % become the mask token, 10 %
    another token, and 10 % stay. ``labels`` int64 ``[1, T]`` holds the chosen tokens and -100 elsewhere; labels of the
    features stay behind.

    What is chosen depends on ``seed`` and the tokens of the pack, on nothing else: a resumed run, or one with other
    numbers of workers, hides the same tokens, and so does every evaluation. Since every epoch packs the texts anew, a
    text that comes again is masked anew, unless the order is ``"sequential"``.

    Args:
        tokenizer: says which tokens are special, and which one is the mask.
        share: of the tokens, above 0 and below 1.
        seed: 0 or more.
        inputs, limits: as for `PackingCollator`.

    Raises:
        ValueError: a tokenizer without a mask token, or a share or seed out of range; when called, as
        `PackingCollator`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        share: float = 0.15,
        seed: int = 0,
        inputs: Collection[str] = (),
        limits: Mapping[str, int] | None = None,
    ) -> None:
        if tokenizer.mask_token_id is None:
            raise ValueError(
                f"tokenizer: got a {type(tokenizer).__name__} without a mask token, want one that has it"
            )
        if not 0 < share < 1:
            raise ValueError(f"share: got {share}, want more than 0 and less than 1")
        if seed < 0:
            raise ValueError(f"seed: got {seed}, want 0 or more")
        self.share, self.seed = share, seed
        self.mask_id = int(tokenizer.mask_token_id)
        self.special = np.array(sorted(tokenizer.all_special_ids), np.int64)
        words = np.setdiff1d(np.array(sorted(tokenizer.get_vocab().values()), np.int64), self.special)
        # A tokenizer may know tokens that a model's table has no row for; texts without them are none the worse.
        rows = (limits or {}).get("input_ids")
        self.words = words if rows is None else words[words < rows]
        self.pack = PackingCollator(inputs=inputs, limits=limits or {})

    def __call__(self, features: Features) -> dict[str, Any]:
        rows = [{k: v for k, v in row.items() if k not in ("labels", "label")} for row in features]
        batch = self.pack(rows)
        ids = batch["input_ids"][0].numpy()
        draw = np.random.default_rng([self.seed, *_digest(ids)])
        chosen = (draw.random(len(ids)) < self.share) & ~np.isin(ids, self.special)
        fate, others = draw.random(len(ids)), draw.choice(self.words, len(ids))
        hidden = np.where(fate < _MASKED, self.mask_id, np.where(fate < _MASKED + _REPLACED, others, ids))
        batch["input_ids"] = torch.from_numpy(np.where(chosen, hidden, ids))[None]
        batch["labels"] = torch.from_numpy(np.where(chosen, ids, IGNORED))[None]
        return batch


def _digest(ids: np.ndarray) -> list[int]:
    """Four numbers that stand for the tokens of a pack."""
    return np.frombuffer(hashlib.blake2b(ids.tobytes(), digest_size=16).digest(), np.uint32).tolist()
