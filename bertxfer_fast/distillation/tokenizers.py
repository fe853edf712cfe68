"""Whether two tokenizers give the same ids."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

__all__ = ["check_tokenizers"]

# Text whose tokens differ when two tokenizers fold case, accents or spaces of Latin text differently.
_PROBE = "Ünïted  States: it's 3.14% re-read, naïvely!"
_TOKENS = 256  # of the vocabulary that are tried
_ACUTE = "\N{COMBINING ACUTE ACCENT}"


def check_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless two tokenizers give the same ids: same vocabulary, same ids for probe texts.

    Most probe texts are made of the vocabulary's own tokens, so that they are in its languages: to another alphabet a
    text in English is all unknown tokens, whatever the tokenizers do.
    """
    vocabularies = teacher.get_vocab(), student.get_vocab()
    if vocabularies[0] != vocabularies[1]:
        differing = min(token for token, _ in vocabularies[0].items() ^ vocabularies[1].items())
        ids = [vocabulary.get(differing) for vocabulary in vocabularies]
        raise ValueError(
            f"student_tokenizer: got {len(vocabularies[1])} tokens, want the teacher's vocabulary "
            f"({len(vocabularies[0])} tokens); {differing!r} is {ids[0]} for the teacher and {ids[1]} for the student"
        )
    for text in [_PROBE, *_probes(teacher)]:
        cut = [list(tokenizer(text, truncation=False)["input_ids"]) for tokenizer in (teacher, student)]
        if cut[0] != cut[1]:
            raise ValueError(
                f"student_tokenizer: got {cut[1]} for {text!r}, want the teacher's {cut[0]}: the same vocabulary, but "
                "it cuts text differently (case, accents, spaces, merges or special tokens)"
            )


def _probes(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Short texts out of tokens spread over the vocabulary, as they are, in other cases, with accents, and joined."""
    special = set(tokenizer.all_special_tokens)
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in by_id if token not in special]
    chosen = tokens[:: max(1, len(tokens) // _TOKENS)]
    words = [tokenizer.convert_tokens_to_string([token]).strip() for token in chosen]
    for word in words:
        accented = "".join(c + _ACUTE if c.isalpha() else c for c in word)
        decomposed = unicodedata.normalize("NFD", word)
        yield f"{word} {word.upper()}  {word.capitalize()} {accented} {decomposed} {word}{word}, {word}{word[::-1]}."
    for start in range(0, len(words), 8):
        yield "".join(words[start : start + 8])
