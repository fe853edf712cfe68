"""Labels: names of classes and their ids, and what a column of labels becomes for each task."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel

from ..errors import did_you_mean
from ..tasks import Task
from .spans import answer_of, characters_of
from .tables import Source, check_columns, column_values, element_feature, is_empty, load

__all__ = ["IGNORED", "label_encoder", "label_map", "load_label_map", "save_label_map"]

IGNORED = -100  # label of a token that has none


def label_map(source: Source, label: str) -> dict[str, int]:
    """Names of the classes in a column -> ids 0, 1, ...: stable, whatever the order of the rows.

    Whole numbers are sorted as numbers, anything else as text; a `datasets.ClassLabel` column keeps its own
    order. A column of lists (several classes a row, or one a word) gives the map of all of them. Rows without a
    label count for nothing here.

    Args:
        source: as for `load`.
        label: the column.

    Raises:
        ValueError: a missing column, fractions, or no labels at all.
    """
    rows = load(source)
    check_columns(rows, [label])
    if isinstance(feature := element_feature(rows.features[label]), ClassLabel):
        return {name: i for i, name in enumerate(feature.names)}
    names: set[str] = set()
    for value in column_values(rows, label):
        names.update(
            _label_name(v) for v in (value if isinstance(value, list) else [value]) if not is_empty(v)
        )
    if not names:
        raise ValueError(f"column {label!r} has no labels")
    numeric = all(name.removeprefix("-").isdecimal() for name in names)
    # 1 and 01 are two names of one number, and a set has another order in every process.
    ordered = sorted(names, key=lambda name: (int(name) if numeric else 0, name))
    return {name: i for i, name in enumerate(ordered)}


def save_label_map(label2id: Mapping[str, int], path: str | os.PathLike[str]) -> None:
    """Write `label2id` as a JSON object, for `load_label_map`."""
    text = json.dumps(_checked_label2id(label2id), indent=2, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def load_label_map(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read what `save_label_map` wrote.

    Raises:
        ValueError: the file is not a map of names to 0 .. C-1.
    """
    return _checked_label2id(json.loads(Path(path).read_text(encoding="utf-8")))


def label_encoder(task: Task, label2id: Mapping[str, int] | None, feature: Any) -> Callable[..., Any]:
    """A function from a value of the label column to its encoding, which raises ValueError for one that has none.

    Of an answer it also takes the context, and gives the characters of the answer in it.

    Args:
        task: says what a label is, and whether a text has one or each of its words.
        label2id: needed where labels are classes.
        feature: the column's feature in its `datasets.Dataset`.

    Raises:
        ValueError: a task without a column of labels, or a `label2id` that is missing or no map.
    """
    if not task.label_column:
        raise ValueError(
            f"label: got a column for task {task.name!r}, want none: its labels do not come from one"
        )
    if task.labels in ("float", "similarity"):
        return _finite
    if task.labels == "span":
        return lambda value, context: characters_of(answer_of(value), context)
    if label2id is None:
        raise ValueError(
            f"label2id: got None, want a map for task {task.name!r}: label_map(train, label) makes it, for every split"
        )
    known = _checked_label2id(label2id)
    count = len(known)
    filled_in = all(name == f"LABEL_{i}" for name, i in known.items())
    if not any(name.isdecimal() for name in known):
        known |= {str(i): i for i in range(count)}
    called: dict[str, str] = {}
    if isinstance(feature := element_feature(feature), ClassLabel):
        # Such a column holds indices into its own list of names, which may be in another order than label2id. A model
        # without names was trained on the indices themselves.
        called = {str(i): name for i, name in enumerate(feature.names)}
        if filled_in and len(called) == count and not known.keys() & called.values():
            known = {name: i for i, name in enumerate(feature.names)}

    def class_id(value: Any) -> int:
        name = _label_name(value)
        name = called.get(name, name)
        if name not in known:
            raise ValueError(f"{name!r} is not in label2id{did_you_mean(name, label2id)}")
        return known[name]

    def class_ids(value: Any) -> list[int]:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is no list of labels")
        return [class_id(v) for v in value]

    def multi_hot(value: Any) -> list[float]:
        hot = class_ids(value)
        if len(set(hot)) < len(hot) and not any(isinstance(v, str) for v in value):
            raise ValueError(
                f"{value!r} has a class twice, want those that hold, not a 0 or 1 for every class"
            )
        return [float(i in hot) for i in range(count)]

    if task.labels == "multi-hot":
        return multi_hot
    return class_ids if task.head == "token" else class_id


def at_first_tokens(labels: Sequence[int], words: Sequence[int | None]) -> list[int]:
    """A label for every token, given the label of every word and the word of every token."""
    before = [None, *words[:-1]]
    return [
        IGNORED if word is None or word == last else labels[word]
        for word, last in zip(words, before, strict=True)
    ]


def _checked_label2id(label2id: Any) -> dict[str, int]:
    if not isinstance(label2id, Mapping) or not label2id:
        raise ValueError(f"label2id: got {label2id!r}, want a map of label names to ids")
    if sorted(map(str, label2id.values())) != sorted(map(str, range(len(label2id)))):
        raise ValueError(f"label2id: got {dict(label2id)}, want the ids 0 .. {len(label2id) - 1} once each")
    return {str(name): int(i) for name, i in label2id.items()}


def _label_name(value: Any) -> str:
    """How a label is called, whether it came as text, as a number, or as a number that went through a float."""
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"{value} is no class label: a number to predict is task='regression'")
        value = int(value)
    return str(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number
