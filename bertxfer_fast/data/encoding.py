"""Text in, token features out: loading, checking, labelling and tokenising, with no network and no padding.

    rows = load("train.tsv")                        # or a Dataset, or a list of dicts
    label2id = label_map(rows, "label")             # {"negative": 0, "positive": 1}
    features = encode(rows, tokenizer, label="label", label2id=label2id)

Whatever is wrong with the input (a file, a column, a row, a label) is found before the first text is
tokenised, and named.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, List
from transformers import PreTrainedTokenizerBase

from ..errors import did_you_mean
from .tables import Source, check_columns, column_values, load, scratch

__all__ = ["encode", "label_map", "load", "load_label_map", "save_label_map", "sequence_lengths"]

LabelKind: TypeAlias = Literal["class", "multi", "token", "float"]

logger = logging.getLogger(__name__)

_IGNORED = -100  # label of a token that has none
NO_LIMIT = 1_000_000  # tokenizers that know no longest input state a number far beyond this


# Labels


def label_map(source: Source, label: str) -> dict[str, int]:
    """Names of the classes in column `label` -> ids 0, 1, ...: stable, whatever the order of the rows.

    Whole numbers are sorted as numbers, anything else as text; a `datasets.ClassLabel` column keeps its own
    order. A column of lists (several classes a row, or one a word) gives the map of all of them. Rows without a
    label count for nothing here. Raises ValueError for a missing column, fractions, or no labels at all.
    """
    rows = load(source)
    check_columns(rows, [label])
    if isinstance(feature := _inner(rows.features[label]), ClassLabel):
        return {name: i for i, name in enumerate(feature.names)}
    names: set[str] = set()
    for value in column_values(rows, label):
        names.update(
            _label_name(v) for v in (value if isinstance(value, list) else [value]) if not _is_missing(v)
        )
    if not names:
        raise ValueError(f"column {label!r} has no labels")
    numeric = all(name.removeprefix("-").isdecimal() for name in names)
    return {name: i for i, name in enumerate(sorted(names, key=int if numeric else str))}


def save_label_map(label2id: Mapping[str, int], path: str | os.PathLike[str]) -> None:
    """Write `label2id` as a JSON object, for `load_label_map`."""
    text = json.dumps(_checked_label2id(label2id), indent=2, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def load_label_map(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read what `save_label_map` wrote; ValueError if it is not a map of names to 0 .. C-1."""
    return _checked_label2id(json.loads(Path(path).read_text(encoding="utf-8")))


def _checked_label2id(label2id: Any) -> dict[str, int]:
    if not isinstance(label2id, Mapping) or not label2id:
        raise ValueError(f"label2id must map label names to ids, got {label2id!r}")
    if sorted(map(str, label2id.values())) != sorted(map(str, range(len(label2id)))):
        raise ValueError(
            f"label2id must give the ids 0 .. {len(label2id) - 1} once each, got {dict(label2id)}"
        )
    return {str(name): int(i) for name, i in label2id.items()}


def _label_name(value: Any) -> str:
    """How a label is called, whether it came as text, as a number, or as a number that went through a float."""
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"{value} is no class label: for a regression target use label_kind='float'")
        value = int(value)
    return str(value)


def _labeller(kind: LabelKind, label2id: Mapping[str, int] | None, feature: Any) -> Callable[[Any], Any]:
    """A function from a value of the label column to its encoding, which raises ValueError if it has none."""
    if kind == "float":
        return _finite
    if kind not in ("class", "multi", "token"):
        raise ValueError(f"label_kind must be 'class', 'multi', 'token' or 'float', got {kind!r}")
    if label2id is None:
        raise ValueError(
            f"label_kind={kind!r} needs label2id: label_map(train, label) makes it, for every split"
        )
    known = _checked_label2id(label2id)
    count = len(known)
    if isinstance(feature := _inner(feature), ClassLabel):
        # Such a column holds places in its own list of names, which may be in another order than label2id.
        known = {str(i): known[name] for i, name in enumerate(feature.names) if name in known}
    elif not any(name.isdecimal() for name in known):
        known |= {str(i): i for i in range(count)}

    def class_id(value: Any) -> int:
        name = _label_name(value)
        if name not in known:
            raise ValueError(f"{name!r} is not in label2id{did_you_mean(name, label2id)}")
        return known[name]

    def class_ids(value: Any) -> list[int]:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is no list of labels")
        return [class_id(v) for v in value]

    def multi_hot(value: Any) -> list[float]:
        hot = class_ids(value)
        return [float(i in hot) for i in range(count)]

    return {"class": class_id, "multi": multi_hot, "token": class_ids}[kind]


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


# Tokenising


def encode(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text: str = "text",
    text_pair: str | None = None,
    label: str | None = None,
    label_kind: LabelKind = "class",
    label2id: Mapping[str, int] | None = None,
    max_length: int | None = None,
    skip_missing: bool = False,
) -> Dataset:
    """Token features of every row, unpadded, ready for `packing.PackingCollator`.

    source          as for `load`
    text, text_pair columns of text, or of lists of words; a pair goes into one sequence as the tokenizer joins it
    label           column of labels; None leaves them out
    label_kind      "class": a name or number looked up in `label2id` -> an int. "multi": a list of them -> a
                    0/1 float for every class. "token": a list of them, one a word of `text` -> an int for every
                    token, that of the word at its first token and -100 elsewhere. "float": a number (regression).
    label2id        `label_map` of the training set, or the teacher's. If none of its names is a number, numbers
                    in the data are taken for ids.
    max_length      longest sequence in tokens, specials included; longer ones are truncated. Default: the
                    tokenizer's model_max_length.
    skip_missing    leave out rows with missing text or label, with a warning; False makes them an error

    Returns a Dataset with `input_ids`, `token_type_ids` if the tokenizer gives them, and `labels` if asked for.

    Raises ValueError naming the missing column and the nearest present one, or the rows (counted from 1) with
    missing text, a missing label, or a label that cannot be used.
    """
    rows = load(source)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer must be a transformers tokenizer, got {type(tokenizer).__name__}")
    longest = _checked_max_length(tokenizer, max_length, pair=text_pair is not None)
    texts = [text] if text_pair is None else [text, text_pair]
    columns = texts if label is None else [*texts, label]
    check_columns(rows, columns)
    words = _are_words(rows, texts)
    per_token = label is not None and label_kind == "token"
    if per_token and (not words or text_pair is not None or not tokenizer.is_fast):
        raise ValueError(
            f"labels for every token need a column of lists of words, no text_pair and a fast tokenizer, got "
            f"{text}: {rows.features[text]}, text_pair={text_pair!r} and {type(tokenizer).__name__}"
        )
    to_label = None if label is None else _labeller(label_kind, label2id, rows.features[label])
    rows = _without_missing(rows.select_columns(columns), skip_missing)
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
                labels = [_at_first_tokens(ids, tokens.word_ids(i)) for i, ids in enumerate(labels)]
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


def _at_first_tokens(labels: Sequence[int], words: Sequence[int | None]) -> list[int]:
    """A label for every token, given the label of every word and the word of every token."""
    before = [None, *words[:-1]]
    return [
        _IGNORED if word is None or word == last else labels[word]
        for word, last in zip(words, before, strict=True)
    ]


def sequence_lengths(features: Dataset | Sequence[Mapping[str, Any]]) -> np.ndarray:
    """int64 [N]: tokens of every sequence, as `packing.TokenBudgetBatchSampler` wants them."""
    if isinstance(features, Dataset):
        table = features.select_columns("input_ids").with_format("arrow")[:]
        return pc.list_value_length(table["input_ids"]).to_numpy().astype(np.int64)
    return np.array([len(feature["input_ids"]) for feature in features], dtype=np.int64)


# Checks


def _checked_max_length(tokenizer: PreTrainedTokenizerBase, max_length: int | None, pair: bool) -> int:
    limit = tokenizer.model_max_length
    if max_length is None:
        if limit > NO_LIMIT:
            raise ValueError("max_length must be given, because the tokenizer states no model_max_length")
        return int(limit)
    if max_length > limit:
        raise ValueError(f"max_length={max_length} is beyond the tokenizer's model_max_length={limit}")
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length <= special:
        raise ValueError(f"max_length={max_length} leaves no room for text beside {special} special tokens")
    return max_length


def _are_words(rows: Dataset, columns: Sequence[str]) -> bool:
    """Whether the text columns hold lists of words; an error if they hold neither that nor text."""
    kinds = set()
    for column in columns:
        feature = rows.features[column]
        if getattr(_inner(feature), "dtype", None) not in ("string", "large_string"):
            raise TypeError(f"column {column!r} must hold text or lists of words, got {feature}")
        kinds.add(isinstance(feature, List))
    if len(kinds) > 1:
        raise TypeError(
            f"columns {' and '.join(map(repr, columns))} must both hold text, or both lists of words"
        )
    return kinds.pop()


def _without_missing(rows: Dataset, skip: bool) -> Dataset:
    """`rows` if they are complete; else without the incomplete ones, or an error."""
    missing = {
        column: [i for i, value in enumerate(column_values(rows, column)) if _is_missing(value)]
        for column in rows.column_names
    }
    found = "; ".join(f"no {column!r} in {_numbered(bad)}" for column, bad in missing.items() if bad)
    if not found:
        return rows
    if not skip:
        raise ValueError(f"{found}: complete them, or pass skip_missing=True")
    drop = set().union(*missing.values())
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
        raise ValueError(f"column {label!r}, {_numbered(bad)}: {why}")


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list):
        return None in value
    return value is None or (isinstance(value, float) and math.isnan(value))


def _inner(feature: Any) -> Any:
    return feature.feature if isinstance(feature, List) else feature


def _numbered(indices: Sequence[int], most: int = 5) -> str:
    """Row numbers as a reader counts them, from 1 after any header."""
    numbers = ", ".join(str(i + 1) for i in indices[:most])
    more = f" and {len(indices) - most} more" if len(indices) > most else ""
    return f"row{'s' if len(indices) > 1 else ''} {numbers}{more}"
