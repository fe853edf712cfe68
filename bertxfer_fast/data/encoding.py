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
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, LargeList, List
from transformers import PreTrainedTokenizerBase

from .. import tasks
from .alignment import places_of
from .empty_rows import check_choice, describe, refusal, row_numbers
from .files import own_table
from .labels import at_first_tokens, label_encoder
from .spans import question_windows
from .tables import Source, check_columns, column_values, element_feature, is_empty, load

__all__ = ["NO_LIMIT", "checked_max_length", "encode", "incomplete_rows"]

logger = logging.getLogger(__name__)

NO_LIMIT = 1_000_000  # tokenizers that know no longest input state a number far beyond this


def encode(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text: str = "text",
    text_pair: str | None = None,
    label: str | None = None,
    task: str | tasks.Task | None = None,
    label2id: Mapping[str, int] | None = None,
    max_length: int | None = None,
    stride: int | None = None,
    empty_rows: str = "error",
    offsets: bool = False,
    label_kind: str | None = None,
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
            (token-classification); a number -> a float (regression). An answer, as its text or as SQuAD has it
            (``{"text": [...], "answer_start": [...]}``) -> its first and last token in a question (`text`) and its
            context (`text_pair`), (0, 0) where there is none (question-answering). How alike the texts of a pair are ->
            a float for both, which stay sequences of their own, one after the other (embedding). None: as of
            sequence-classification.
        label2id: `label_map` of the training set, or the teacher's. If none of its names is a number, numbers in the
            data are taken for ids. The names of a `datasets.ClassLabel` column are looked up in it; if its own
            are those that transformers fills in (``LABEL_0``), as many, the column's numbers are ids.
        max_length: longest sequence in tokens, specials included; longer ones are truncated. Default: the tokenizer's
            model_max_length.
        stride: of question-answering: a context that is too long becomes several sequences, which share so many tokens;
            by default it is cut.
        empty_rows: what becomes of a row without text: ``"error"``; ``"skip"`` leaves it out; ``"zeros"`` makes it a
            sequence of no tokens, for which `FeatureExtractor` gives zeros; ``"keep"`` encodes the empty text. A
            warning says which rows. A row without a label is left out by ``"skip"``, and an error otherwise.
        offsets: also say what every token stands for, ``offsets [n, 2]``, see `alignment.places_of`: so tokens of two
            tokenizers are compared. Needs a fast tokenizer.
        label_kind: the older name of `task`: ``"class"``, ``"multi"``, ``"token"`` or ``"float"``. Deprecated.

    Returns:
        A Dataset with ``input_ids``, ``token_type_ids`` if the tokenizer gives them, and ``labels`` and ``offsets`` if
        asked for.

    Raises:
        TypeError: no transformers tokenizer, or a column that holds something else than text.
        ValueError: a missing column (and the nearest present one), or the rows (counted from 1) with missing text,
            a missing label, or a label that cannot be used.
    """
    if label_kind is not None:
        task = _task_of_kind(label_kind)
    learned_from = label is not None or task is not None  # nothing learns from the zeros of an empty row
    rows, task = load(source), tasks.get("sequence-classification" if task is None else task)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer: got {type(tokenizer).__name__}, want a transformers tokenizer")
    check_choice(empty_rows)
    if empty_rows == "zeros" and label is not None:
        raise ValueError(
            "empty_rows: got 'zeros' beside a label, want error, skip or keep: nothing learns from zeros"
        )
    apart, spans = task.labels == "similarity", task.labels == "span"
    longest = checked_max_length(tokenizer, max_length, pair=text_pair is not None and not apart)
    if longest is None:
        raise ValueError("max_length: got None, want a number: the tokenizer states no model_max_length")
    texts = [text] if text_pair is None else [text, text_pair]
    columns = texts if label is None else [*texts, label]
    check_columns(rows, columns)
    words = are_words(rows, texts)
    if words:
        check_words(tokenizer)
    per_token = label is not None and task.head == "token"
    if per_token and (not words or text_pair is not None or not tokenizer.is_fast):
        raise ValueError(
            f"text: got {text!r} of {rows.features[text]}, text_pair {text_pair!r} and a {type(tokenizer).__name__}; "
            "labels for every token want a column of lists of words, no text_pair and a fast tokenizer"
        )
    if spans and (words or text_pair is None or not tokenizer.is_fast):
        raise ValueError(
            f"text_pair: got {text_pair!r} and a {type(tokenizer).__name__}, want columns of questions and contexts "
            f"and a fast tokenizer for task {task.name!r}"
        )
    if apart and label is not None and text_pair is None:
        raise ValueError(
            f"label: got {label!r} without text_pair, want a pair whose texts are more or less alike"
        )
    if stride is not None and (not spans or stride < 0):
        raise ValueError(
            f"stride: got {stride} for task {task.name!r}, want 0 or more, for question-answering"
        )
    if offsets and (spans or not tokenizer.is_fast):
        raise ValueError(
            f"offsets: got a {type(tokenizer).__name__} and task {task.name!r}, want a fast tokenizer, which says "
            "where its tokens stand, and another task than question-answering"
        )
    to_label = None if label is None else label_encoder(task, label2id, rows.features[label])
    rows = complete_rows(rows.select_columns(columns), texts, label, empty_rows, zeros=not learned_from)
    if label is not None and to_label is not None:
        _check_labels(rows, label, to_label, text if per_token else text_pair if spans else None)

    def spans_of(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        questions, contexts = ([value or "" for value in batch[column]] for column in texts)
        answers = None
        if label is not None and to_label is not None:
            answers = [to_label(v, context) for v, context in zip(batch[label], contexts, strict=True)]
        return question_windows(tokenizer, questions, contexts, answers, max_length=longest, stride=stride)

    def features_of(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        empty = [
            any(map(is_empty_text, row)) for row in zip(*(batch[column] for column in texts), strict=True)
        ]
        nothing: Any = [] if words else ""
        columns = [[nothing if value is None else value for value in batch[column]] for column in texts]
        if apart:  # first text, second text, first text, ...
            columns = [[value for row in zip(*columns, strict=True) for value in row]]
            empty = [gone for gone in empty for _ in texts]
        tokens = tokenizer(
            *columns,
            is_split_into_words=words,
            truncation=True,
            max_length=longest,
            padding=False,
            return_attention_mask=False,
            return_offsets_mapping=offsets,
        )
        features = {key: tokens[key] for key in ("input_ids", "token_type_ids") if key in tokens}
        if offsets:
            texts_of_rows = enumerate(zip(*columns, strict=True))
            features["offsets"] = [places_of(tokens, i, row).tolist() for i, row in texts_of_rows]
        if empty_rows == "zeros":
            features = {
                key: [[] if gone else ids for ids, gone in zip(column, empty, strict=True)]
                for key, column in features.items()
            }
        if label is not None and to_label is not None:
            labels = [to_label(value) for value in batch[label]]
            if per_token:
                labels = [at_first_tokens(ids, tokens.word_ids(i)) for i, ids in enumerate(labels)]
            features["labels"] = [value for value in labels for _ in texts] if apart else labels
        return features

    return rows.map(
        spans_of if spans else features_of,
        batched=True,
        remove_columns=columns,
        desc="tokenising",
        **own_table(),
    )


def _task_of_kind(label_kind: str) -> tasks.Task:
    """The task that was called so before there were tasks."""
    kinds = {
        "class": tasks.SEQUENCE_CLASSIFICATION,
        "multi": tasks.MULTI_LABEL_CLASSIFICATION,
        "token": tasks.TOKEN_CLASSIFICATION,
        "float": tasks.REGRESSION,
    }
    if label_kind not in kinds:
        raise ValueError(f"label_kind: got {label_kind!r}, want task= with one of {', '.join(tasks.names())}")
    found = kinds[label_kind]
    warnings.warn(
        f"label_kind={label_kind!r} is now called task={found.name!r}", DeprecationWarning, stacklevel=3
    )
    return found


def checked_max_length(
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int | None,
    *,
    pair: bool = False,
    positions: int | None = None,
) -> int | None:
    """The longest sequence: `max_length`, or else what the tokenizer and a model of so many positions take.

    Returns:
        None where neither they nor `max_length` state a limit.

    Raises:
        TypeError: no whole number.
        ValueError: more than they take, or so little that special tokens leave no room for text.
    """
    limits = [] if positions is None else [(positions, f"the {positions} positions of the model")]
    if tokenizer is not None and tokenizer.model_max_length <= NO_LIMIT:
        stated = int(tokenizer.model_max_length)
        limits.append((stated, f"the tokenizer's model_max_length, {stated}"))
    if max_length is None and not limits:
        return None
    longest = min(limit for limit, _ in limits) if max_length is None else max_length
    if isinstance(longest, bool) or not isinstance(longest, int):
        raise TypeError(f"max_length: got {type(longest).__name__}, want a whole number")
    for limit, name in limits:
        if longest > limit:
            raise ValueError(f"max_length: got {longest}, want at most {name}")
    special = 0 if tokenizer is None else tokenizer.num_special_tokens_to_add(pair=pair)
    if longest <= special:
        raise ValueError(
            f"max_length: got {longest}, want more than the {special} special tokens: no room is left for text"
        )
    return longest


def check_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError for a tokenizer that reads a word of a list otherwise than inside a sentence.

    Byte-level tokenizers (RoBERTa's) hold the space before a word to be part of it, and have to be told to add it.
    """
    sentences = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a a", " a a")]
    try:
        words = tokenizer(["a", "a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    except AssertionError:  # how RobertaTokenizerFast and its kin refuse
        words = None
    if words not in sentences:
        raise ValueError(
            f"tokenizer: got a {type(tokenizer).__name__} that adds no space before a word, want one made with "
            "add_prefix_space=True (also in tokenizer_config.json): the texts are lists of words"
        )


def are_words(rows: Dataset, columns: Sequence[str]) -> bool:
    """Whether the text columns hold lists of words; an error if they hold neither that nor text."""
    kinds = set()
    for column in columns:
        feature = rows.features[column]
        if getattr(element_feature(feature), "dtype", None) not in ("string", "large_string", "string_view"):
            raise TypeError(f"column {column!r}: got {feature}, want text or lists of words")
        kinds.add(isinstance(feature, (List, LargeList)))
    if len(kinds) > 1:
        raise TypeError(
            f"columns {' and '.join(map(repr, columns))}: got text in one, lists of words in the other, want the same "
            "in both"
        )
    return kinds.pop()


def complete_rows(
    rows: Dataset, texts: Sequence[str], label: str | None, choice: str, *, zeros: bool = False
) -> Dataset:
    """`rows`, less those that `choice` leaves out; an error where it refuses one, which names `zeros` if it may."""
    incomplete = incomplete_rows(rows, texts, label)
    found = describe(incomplete)
    if not found:
        return rows
    unlabelled = [] if label is None else incomplete[label]
    if choice == "error" or (choice != "skip" and unlabelled):
        if unlabelled:
            raise refusal(found, "skip")
        raise refusal(found) if zeros else refusal(found, "skip", "keep")
    gone = set().union(*incomplete.values())
    if len(gone) == len(rows) and choice != "keep":
        raise ValueError(f"{found}: no row is left")
    logger.warning(
        "%s: %s", found, {"skip": "left out", "zeros": "zeros", "keep": "encoded as empty text"}[choice]
    )
    return rows.select([i for i in range(len(rows)) if i not in gone]) if choice == "skip" else rows


def incomplete_rows(rows: Dataset, texts: Sequence[str], label: str | None) -> dict[str, list[int]]:
    """The rows, from 0, without text in each of the columns, and without a label."""
    found = {
        column: [i for i, value in enumerate(column_values(rows, column)) if is_empty_text(value)]
        for column in texts
    }
    if label is not None:
        found[label] = [i for i, value in enumerate(column_values(rows, label)) if is_empty(value)]
    return found


def is_empty_text(value: Any) -> bool:
    """Whether there is no text: none at all, blank text, or a list of words that has a gap or holds only blank ones."""
    return is_empty(value) or (isinstance(value, list) and all(map(is_empty, value)))


def _check_labels(rows: Dataset, label: str, to_label: Callable[..., Any], words: str | None) -> None:
    """Encode every label for trial; `words` is the column that must be as long, or hold the answer."""
    bad, why = [], ""
    beside = column_values(rows, words) if words else itertools.repeat(None)
    for i, (value, row) in enumerate(zip(column_values(rows, label), beside, strict=False)):
        try:
            encoded = to_label(value) if not isinstance(row, str) else to_label(value, row)
            if isinstance(row, list) and len(encoded) != len(row):
                raise ValueError(f"{len(encoded)} labels for {len(row)} words")
        except (ValueError, TypeError) as error:
            why = why or str(error)
            bad.append(i)
    if bad:
        raise ValueError(f"column {label!r}, {row_numbers(bad)}: {why}")
