"""TinyBERT's augmentation (Jiao et al., 2020): words that the model would put in their place, or words like them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..collators import PackingCollator
from .base import Draft, Method, Proposals, Tools, register, share, whole
from .texts import Text
from .words import Alternatives, read_alternatives, read_words

__all__ = ["TinyBERT"]

_SOURCES = ("auto", "masked-lm", "embeddings")


@register
class TinyBERT(Method):
    """Every word is replaced with probability `p` by one of its candidates, all equally likely.

    A word of one piece has the likeliest words of a masked LM that reads the text with this word masked; any other, and
    one behind the longest sequence that the model takes, the words nearest to it in the embedding table by cosine
    (where the paper has GloVe's table), its own vector being the mean of its pieces'. Only whole words of the
    vocabulary are candidates. Words that the tokenizer does not know have none outside of a masked LM; punctuation,
    numbers and parts of contractions have none at all.

    Args:
        p: probability of a replacement.
        candidates: how many a word has.
        source: ``"masked-lm"``, ``"embeddings"`` (every word has its nearest), or ``"auto"``: the masked LM where the
            model has one.
        words: a file, or a mapping, of words and their alternatives: those of a word that the masked LM is not asked
            for come from there, if it is in it.
        keep: a file with a word on a line, or the words: these stay, whatever their case. The authors' program keeps
            stop words.

    Raises:
        FileNotFoundError, ValueError: no such file, a number out of range, an unknown source.
    """

    default_name = "tinybert"
    copies = 30
    needs_proposals = True

    def __init__(
        self,
        *,
        p: float = 0.4,
        candidates: int = 15,
        source: str = "auto",
        words: str | os.PathLike[str] | Mapping[str, Sequence[str]] | None = None,
        keep: str | os.PathLike[str] | Sequence[str] = (),
    ) -> None:
        self.p, self.candidates = share("p", p), whole("candidates", candidates)
        if source not in _SOURCES:
            raise ValueError(f"source: got {source!r}, want one of {', '.join(_SOURCES)}")
        self.source = source
        self.alternatives = Alternatives({}) if words is None else read_alternatives(words)
        self.keep = read_words(keep)
        self._nearest: dict[tuple[int, ...], tuple[str, ...]] = {}
        self._texts: dict[int, str] = {}

    def bind(self, tools: Tools) -> None:
        super().bind(tools)
        assert tools.proposals is not None
        # What was remembered is of the model and the tokens that it had before.
        self._nearest, self._texts = {}, {}
        if self.source == "masked-lm" and not tools.proposals.has_masked_lm:
            raise ValueError(
                "source: got 'masked-lm', want 'embeddings': the model has no trained masked-LM head"
            )
        self.by_context = tools.proposals.has_masked_lm and self.source != "embeddings"
        if self.by_context and tools.tokenizer.mask_token_id is None:
            raise ValueError(
                f"tokenizer: got a {type(tools.tokenizer).__name__} without a mask token, want one that has it, "
                "or source='embeddings'"
            )

    @property
    def told(self) -> str:
        if self.by_context:
            return "candidates of the masked LM for words of one piece, nearest embeddings for the others"
        return "candidates are the nearest embeddings" + (
            "" if self.source == "embeddings" else ": the model has no masked-LM head"
        )

    def prepare(self, texts: Sequence[Text]) -> list[dict[int, tuple[str, ...]]]:
        """For every text, word -> candidates, in the order of their ids."""
        found: list[dict[int, tuple[str, ...]]] = [{} for _ in texts]
        asked: list[tuple[int, int]] = []
        others: list[tuple[int, int]] = []
        for t, text in enumerate(texts):
            room = len(text.cut(self.tools.max_length)) - text.tail
            for i in range(len(text.words)):
                if not text.is_word(i) or text.words[i].lower() in self.keep:
                    continue
                if self.by_context and len(text.pieces[i]) == 1 and text.places[i] < room:
                    asked.append((t, i))
                elif listed := self.alternatives.of(text.words[i]):
                    found[t][i] = listed
                elif self._known(text.pieces[i]):
                    others.append((t, i))
        self._look_up({tuple(texts[t].pieces[i]) for t, i in others} - self._nearest.keys())
        for t, i in others:
            found[t][i] = self._nearest[tuple(texts[t].pieces[i])]
        for (t, i), ids in zip(asked, self._ask(texts, asked), strict=True):
            found[t][i] = ids
        return found

    def change(self, draft: Draft, prepared: dict[int, tuple[str, ...]], draw: np.random.Generator) -> None:
        # Two draws a word whether it has candidates or not, so that one word's do not move another's.
        chances, choices = draw.random((2, len(draft.words)))
        for i in range(len(draft.words)):
            candidates = prepared.get(draft.first + i, ())
            if candidates and chances[i] < self.p:
                draft.words[i] = candidates[int(choices[i] * len(candidates))]

    def _known(self, pieces: Sequence[int]) -> bool:
        return bool(pieces) and self.tools.tokenizer.unk_token_id not in pieces

    def _look_up(self, words: set[tuple[int, ...]]) -> None:
        """Remember the nearest words of words that are not remembered."""
        if words:
            ordered = sorted(words)
            for word, ids in zip(ordered, self._proposals.nearest(ordered, self.candidates), strict=True):
                self._nearest[word] = self._as_words(ids.tolist())

    def _ask(self, texts: Sequence[Text], asked: Sequence[tuple[int, int]]) -> Iterator[tuple[str, ...]]:
        """Candidates of words by what the masked LM makes of their place, in packs of masked copies."""
        pack: list[dict[str, Any]] = []
        places: list[int] = []
        tokens = 0
        for t, i in asked:
            text = texts[t]
            ids = list(text.cut(self.tools.max_length))
            ids[text.places[i]] = self.tools.tokenizer.mask_token_id
            if pack and tokens + len(ids) > self.tools.tokens_per_batch:
                yield from self._ask_pack(pack, places)
                pack, places, tokens = [], [], 0
            pack.append({"input_ids": ids})
            places.append(tokens + text.places[i])
            tokens += len(ids)
        if pack:
            yield from self._ask_pack(pack, places)

    def _ask_pack(self, pack: list[dict[str, Any]], places: list[int]) -> Iterator[tuple[str, ...]]:
        best = self._proposals.masked(PackingCollator()(pack), torch.tensor(places), self.candidates)
        for ids in best.tolist():
            yield self._as_words(ids)

    def _as_words(self, ids: Sequence[int]) -> tuple[str, ...]:
        # By id, not by rank: which of two near ones comes first may differ with the rounding of a batch.
        for i in ids:
            if i not in self._texts:
                self._texts[i] = self.tools.tokenizer.decode([i]).strip()
        return tuple(self._texts[i] for i in sorted(ids))

    @property
    def _proposals(self) -> Proposals:
        assert self.tools.proposals is not None
        return self.tools.proposals
