"""One text in the tokens of two tokenizers, for a student that has another one than its teacher."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from .alignment import overlaps
from .collators import SPANS, TEACHER
from .encoding import encode
from .files import own_table
from .tables import Source

__all__ = ["encode_both", "side_by_side"]


def encode_both(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    teacher_max_length: int | None = None,
    align: bool = False,
    **arguments: Any,
) -> Dataset:
    """Token features of every row for a student, and beside them those for a teacher with another tokenizer.

    Args:
        source: as for `encode`.
        tokenizer: the student's.
        teacher_tokenizer: the teacher's.
        max_length: of the student's sequences.
        teacher_max_length: of the teacher's.
        align: also say which of the teacher's tokens stand where each of the student's does, so that objectives can
            match what there is of every token: those that have characters in common; of special tokens those in front
            of, between or behind the texts. Both tokenizers have to be fast ones.
        **arguments: the others of `encode`. Labels go with the student's tokens.

    Returns:
        What `encode` returns for the student, beside it the teacher's ``teacher_input_ids`` and, where its tokenizer
        gives them, ``teacher_token_type_ids``; with ``align`` also ``teacher_spans [n, 2]``: for every token of the
        student the first of the teacher's and the one behind the last, equal where there is none (a text that was cut
        earlier for the teacher, a space that only one tokenizer has tokens for).

    Raises:
        TypeError, ValueError: as `encode`; windows (``stride``), of which each tokenizer would make its own.
    """
    if arguments.get("stride") is not None:
        raise ValueError(
            f"stride: got {arguments['stride']}, want None: two tokenizers cut a text at different places"
        )
    mine, theirs = (
        encode(source, own, max_length=longest, offsets=align, **arguments)
        for own, longest in ((tokenizer, max_length), (teacher_tokenizer, teacher_max_length))
    )
    return side_by_side(mine, theirs)


def side_by_side(mine: Dataset, theirs: Dataset) -> Dataset:
    """What `encode` made of the same rows with a student's and a teacher's tokenizer, as `encode_both` returns it;
    aligned where both have ``offsets``."""
    theirs = theirs.select_columns([name for name in theirs.column_names if name != "labels"])
    theirs = theirs.rename_columns({name: f"{TEACHER}{name}" for name in theirs.column_names})
    both = concatenate_datasets([mine, theirs], axis=1)
    offsets = ["offsets", f"{TEACHER}offsets"]
    if not set(offsets) <= set(both.column_names):
        return both

    def spans_of(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pairs = zip(*(batch[name] for name in offsets), strict=True)
        return {SPANS: [overlaps(own, other).tolist() for own, other in pairs]}

    return both.map(
        spans_of,
        batched=True,
        remove_columns=offsets,
        desc="aligning",
        **own_table(),
    )
