"""One text in the tokens of two tokenizers, for a student that has another one than its teacher."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from .collators import TEACHER
from .encoding import encode
from .tables import Source

__all__ = ["encode_both"]


def encode_both(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    teacher_max_length: int | None = None,
    **arguments: Any,
) -> Dataset:
    """Token features of every row for a student, and beside them those for a teacher with another tokenizer.

    Args:
        source: as for `encode`.
        tokenizer: the student's.
        teacher_tokenizer: the teacher's.
        max_length: of the student's sequences.
        teacher_max_length: of the teacher's.
        **arguments: the others of `encode`. Labels go with the student's tokens.

    Returns:
        What `encode` returns for the student, beside it the teacher's ``teacher_input_ids`` and, where its tokenizer
        gives them, ``teacher_token_type_ids``.

    Raises:
        TypeError, ValueError: as `encode`; windows (``stride``), of which each tokenizer would make its own.
    """
    if arguments.get("stride") is not None:
        raise ValueError(
            f"stride: got {arguments['stride']}, want None: two tokenizers cut a text at different places"
        )
    rows = encode(source, tokenizer, max_length=max_length, **arguments)
    theirs = encode(source, teacher_tokenizer, max_length=teacher_max_length, **arguments)
    theirs = theirs.select_columns([name for name in theirs.column_names if name != "labels"])
    theirs = theirs.rename_columns({name: f"{TEACHER}{name}" for name in theirs.column_names})
    return concatenate_datasets([rows, theirs], axis=1)
