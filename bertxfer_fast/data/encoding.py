"""Text in, token features out: checking, labelling and tokenising, with no network and no padding.

    rows = load("train.tsv")                        # or a Dataset, or a list of dicts
    label2id = label_map(rows, "label")             # {"negative": 0, "positive": 1}
    features = encode(rows, tokenizer, label="label", label2id=label2id)

Whatever is wrong with the input (a file, a column, a row, a label) is found before the first text is
tokenised, and named.
"""

from __future__ import annotations

import itertools
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, List
from transformers import PreTrainedTokenizerBase

from .. import tasks
from .labels import at_first_tokens, label_encoder
from .tables import Source, check_columns, column_values, element_feature, is_empty, load, scratch

__all__ = ["NO_LIMIT", "encode"]

logger = logging.getLogger(__name__)

NO_LIMIT = 1_000_000  # tokenizers that know no longest input state a number far beyond this


def encode(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text: str = "text",
    text_pair: str | None = None,
    label: str | None = None,
    task: str | tasks.Task = "sequence-classification",
    label2id: Mapping[str, int] | None = None,
    max_length: int | None = None,
    skip_missing: bool = False,
) -> Dataset:
    """Token features of every row, unpadded, ready for `packing.PackingCollator`.

    Args:
        source: as for `load`.
        tokenizer: of transformers.
        text, text_pair: columns of text, or of lists of words; a pair goes into one sequence as the tokenizer joins it.
        label: column of labels; None leaves them out.
        task: says what the labels are: a name or number looked up in `label2id` -> an int (sequence-classification);
            a list of them -> a 0/1 float for every class (multi-label-classification); a list of them, one a word of
            `text` -> an int for every token, that of the word at its first token and -100 elsewhere
            (token-classification); a number -> a float (regression).
        label2id: `label_map` of the training set, or the teacher's. If none of its names is a number, numbers in the
            data are taken for ids.
        max_length: longest sequence in tokens, specials included; longer ones are truncated. Default: the tokenizer's
            model_max_length.
        skip_missing: leave out rows with missing text or label, with a warning; False makes them an error.

    Returns:
        A Dataset with ``input_ids``, ``token_type_ids`` if the tokenizer gives them, and ``labels`` if asked for.

    Raises:
        TypeError: no transformers tokenizer, or a column that holds something else than text.
        ValueError: a missing column (and the nearest present one), or the rows (counted from 1) with missing text,
            a missing label, or a label that cannot be used.
    """
    rows, task = load(source), tasks.get(task)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer: got {type(tokenizer).__name__}, want a transformers tokenizer")
    longest = _checked_max_length(tokenizer, max_length, pair=text_pair is not None)
    texts = [text] if text_pair is None else [text, text_pair]
    columns = texts if label is None else [*texts, label]
    check_columns(rows, columns)
    words = _are_words(rows, texts)
    per_token = label is not None and task.head == "token"
    if per_token and (not words or text_pair is not None or not tokenizer.is_fast):
        raise ValueError(
            f"text: got {text!r} of {rows.features[text]}, text_pair {text_pair!r} and a {type(tokenizer).__name__}; "
            "labels for every token want a column of lists of words, no text_pair and a fast tokenizer"
        )
    to_label = None if label is None else label_encoder(task, label2id, rows.features[label])
    rows = _complete_rows(rows.select_columns(columns), skip_missing)
    if label is not None and to_label is not None:
        _check_labels(rows, label, to_label, text if per_token else None)

    def features_of(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        tokens = tokenizer(
            *(batch[column] for column in texts),
            is_split_into_words=words,
            truncation=True,
            max_length=longest,
            padding=False,
            return_attention_mask=False,
        )
        features = {key: tokens[key] for key in ("input_ids", "token_type_ids") if key in tokens}
        if label is not None and to_label is not None:
            labels = [to_label(value) for value in batch[label]]
            if per_token:
                labels = [at_first_tokens(ids, tokens.word_ids(i)) for i, ids in enumerate(labels)]
            features["labels"] = labels
        return features

    return rows.map(
        features_of,
        batched=True,
        remove_columns=columns,
        cache_file_name=os.path.join(scratch(), f"{uuid.uuid4().hex}.arrow"),
        load_from_cache_file=False,
        new_fingerprint=uuid.uuid4().hex,  # or `datasets` pickles the tokenizer to make one
        desc="tokenising",
    )


def _checked_max_length(tokenizer: PreTrainedTokenizerBase, max_length: int | None, pair: bool) -> int:
    limit = tokenizer.model_max_length
    if max_length is None:
        if limit > NO_LIMIT:
            raise ValueError("max_length: got None, want a number: the tokenizer states no model_max_length")
        return int(limit)
    if max_length > limit:
        raise ValueError(
            f"max_length: got {max_length}, want at most the tokenizer's model_max_length, {limit}"
        )
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length <= special:
        raise ValueError(
            f"max_length: got {max_length}, want more than the {special} special tokens: no room is left for text"
        )
    return max_length


def _are_words(rows: Dataset, columns: Sequence[str]) -> bool:
    """Whether the text columns hold lists of words; an error if they hold neither that nor text."""
    kinds = set()
    for column in columns:
        feature = rows.features[column]
        if getattr(element_feature(feature), "dtype", None) not in ("string", "large_string"):
            raise TypeError(f"column {column!r}: got {feature}, want text or lists of words")
        kinds.add(isinstance(feature, List))
    if len(kinds) > 1:
        raise TypeError(
            f"columns {' and '.join(map(repr, columns))}: got text in one, lists of words in the other, want the same "
            "in both"
        )
    return kinds.pop()


def _complete_rows(rows: Dataset, skip: bool) -> Dataset:
    """`rows` if they are complete; else without the incomplete ones, or an error."""
    empty = {
        column: [i for i, value in enumerate(column_values(rows, column)) if is_empty(value)]
        for column in rows.column_names
    }
    found = "; ".join(f"no {column!r} in {_row_numbers(bad)}" for column, bad in empty.items() if bad)
    if not found:
        return rows
    if not skip:
        raise ValueError(f"{found}: complete them, or pass skip_missing=True")
    drop = set().union(*empty.values())
    if len(drop) == len(rows):
        raise ValueError(f"{found}: no row is left")
    logger.warning("%s: left out", found)
    return rows.select([i for i in range(len(rows)) if i not in drop])


def _check_labels(rows: Dataset, label: str, to_label: Callable[[Any], Any], words: str | None) -> None:
    """Encode every label for trial; `words` is the column that must be as long, where there is a label a word."""
    bad, why = [], ""
    beside = column_values(rows, words) if words else itertools.repeat(None)
    for i, (value, row) in enumerate(zip(column_values(rows, label), beside, strict=False)):
        try:
            encoded = to_label(value)
            if row is not None and len(encoded) != len(row):
                raise ValueError(f"{len(encoded)} labels for {len(row)} words")
        except (ValueError, TypeError) as error:
            why = why or str(error)
            bad.append(i)
    if bad:
        raise ValueError(f"column {label!r}, {_row_numbers(bad)}: {why}")


def _row_numbers(indices: Sequence[int], most: int = 5) -> str:
    """Row numbers as a reader counts them, from 1 after any header."""
    shown = ", ".join(str(i + 1) for i in indices[:most])
    more = f" and {len(indices) - most} more" if len(indices) > most else ""
    return f"row{'s' if len(indices) > 1 else ''} {shown}{more}"
