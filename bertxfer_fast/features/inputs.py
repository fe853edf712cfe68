"""What an extractor is given: texts in windows, token features, both checked before the encoder sees them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..data.empty_rows import refusal, row_numbers
from ..data.loaders import end_to_end
from ..data.tables import is_empty
from ..models.spec import EncoderSpec

__all__ = [
    "check_features",
    "check_ids",
    "check_lengths",
    "check_text",
    "check_unpadded",
    "text_windows",
]

Features: TypeAlias = Any  # a datasets.Dataset, or a sequence of mappings

_CHUNK = 10_000  # features looked at together

Rows: TypeAlias = list[tuple[str, ...]]  # a text each, or a text and its second text


def text_windows(
    texts: Iterable[str], pairs: Iterable[str] | None, size: int, empty_rows: str
) -> Iterator[tuple[Rows, list[bool]]]:
    """``size`` texts (with ``pairs``, texts and their second texts) at a time, and which of them hold none.

    What has a length is checked whole before the first window; an iterator can only be checked as it goes.

    Raises:
        TypeError: something that holds no texts, or something else than text in it.
        ValueError: pairs of another length; half of a surrogate pair; empty rows where `empty_rows` refuses them.
    """
    columns = {"texts": texts} if pairs is None else {"texts": texts, "pairs": pairs}
    for name, column in columns.items():
        _check_container(name, column, sized=pairs is not None)
    if pairs is not None and len(pairs) != len(texts):  # type: ignore[arg-type]
        raise ValueError(f"pairs: got {len(pairs)}, want {len(texts)} texts")  # type: ignore[arg-type]
    if isinstance(texts, Sized):
        for _ in _checked_windows(columns, size, empty_rows):
            pass
    return _checked_windows(columns, size, empty_rows)


def _check_container(name: str, column: Any, *, sized: bool) -> None:
    # Each of these can be iterated, over characters, keys, names of columns or in no order.
    wrong = isinstance(column, (str, bytes, Mapping, set, frozenset)) or hasattr(column, "columns")
    if wrong or not isinstance(column, Iterable) or getattr(column, "ndim", 1) != 1:
        raise TypeError(f"{name}: got {type(column).__name__}, want a list or another iterable of strings")
    if sized and not isinstance(column, Sized):
        raise TypeError(
            f"{name}: got {type(column).__name__}, want a list: pairs are counted before work starts"
        )


def _checked_windows(
    columns: Mapping[str, Iterable[Any]], size: int, empty_rows: str
) -> Iterator[tuple[Rows, list[bool]]]:
    rows = zip(*columns.values(), strict=True)
    for start in itertools.count(0, size):
        window = list(itertools.islice(rows, size))
        if not window:
            return
        empty = [any(map(_is_missing, row)) for row in window]
        if empty_rows == "error" and any(empty):
            raise refusal(f"no text in {row_numbers([start + i for i, gone in enumerate(empty) if gone])}")
        for i, row in enumerate(window):
            for name, text in zip(columns, row, strict=True):
                check_text(f"{name}[{start + i}]", text, may_miss=empty_rows in ("skip", "zeros"))
        yield [tuple(text if isinstance(text, str) else "" for text in row) for row in window], empty


def _is_missing(value: Any) -> bool:
    return is_empty(value) or type(value).__name__ == "NAType"  # pandas' own missing value


def check_text(place: str, text: Any, *, may_miss: bool = False) -> None:
    """Raise TypeError or ValueError unless this is text that UTF-8 can hold."""
    if not isinstance(text, str):
        if may_miss and _is_missing(text):
            return
        raise TypeError(f"{place}: got {type(text).__name__}, want text")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{place}: got {text[error.start]!a}, half of a surrogate pair, want text that UTF-8 can hold"
            ) from None


def check_features(features: Any) -> None:
    """Raise TypeError unless these are token features, one mapping a text."""
    if (columns := getattr(features, "column_names", None)) is not None:  # a Dataset
        if "input_ids" not in columns:
            raise TypeError(f"features: got the columns {columns}, want input_ids")
        return
    if isinstance(features, (str, bytes, Mapping)) or not isinstance(features, Sized):
        raise TypeError(
            f"features: got {type(features).__name__}, want a list of dicts with input_ids, one a text, or a Dataset"
        )
    for i, feature in enumerate(features[j] for j in range(len(features))):  # type: ignore[index]
        if not isinstance(feature, Mapping) or "input_ids" not in feature:
            raise TypeError(f"features[{i}]: got {type(feature).__name__}, want a dict with input_ids")


def check_unpadded(features: Features, tokenizer: Any) -> None:
    """Raise ValueError for padding, which would be pooled as text: masked, or the tokenizer's at an end."""
    if found := _find(features, "attention_mask", lambda mask, _: mask == 0):
        raise ValueError(
            f"features[{found[0]}]: got padding (zeros in attention_mask), want none: tokenise with padding=False"
        )
    pad = getattr(tokenizer, "pad_token_id", None)
    others = ("cls", "sep", "bos", "eos", "unk", "mask")
    if pad is None or pad in (getattr(tokenizer, f"{name}_token_id", None) for name in others):
        return

    def padded(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        ends = lengths.cumsum()[lengths > 1]
        at_end = np.zeros(len(ids), dtype=bool)
        at_end[ends - 1] = at_end[ends - lengths[lengths > 1]] = True
        return at_end & (ids == pad)

    if found := _find(features, "input_ids", padded):
        raise ValueError(
            f"features[{found[0]}]: got the padding token ({pad}) at an end of input_ids, want none: tokenise with "
            "padding=False"
        )


def check_ids(
    features: Features,
    spec: EncoderSpec,
    tokenizer: Any,
    name: str = "features",
    numbers: Sequence[int] | None = None,
) -> None:
    """Raise ValueError for what the encoder has no embedding for; `numbers` are the rows' in messages about `name`."""
    for key, count, table in (
        ("input_ids", spec.vocab_size, "vocabulary"),
        ("token_type_ids", spec.type_vocab_size, "token types"),
    ):
        if count is None:
            continue
        found = _find(features, key, _outside(count))
        if found:
            row, value = found
            known = key == "input_ids" and tokenizer is not None and value >= 0
            token = f" (the token {tokenizer.convert_ids_to_tokens(value)!r})" if known else ""
            number = row if numbers is None else numbers[row]
            raise ValueError(
                f"{name}[{number}]: got {value}{token} in {key}, want ids 0..{count - 1} of {spec.name}'s {table}"
            )


def check_lengths(lengths: NDArray[np.int64], spec: EncoderSpec) -> None:
    """Raise ValueError for a sequence longer than the encoder has positions."""
    limit = spec.max_positions
    if limit is not None and len(lengths) and lengths.max() > limit:
        row = int(lengths.argmax())
        raise ValueError(
            f"features[{row}]: got {lengths[row]} input_ids, want at most the {limit} positions of {spec.name}"
        )


def _outside(count: int) -> Callable[..., NDArray[np.bool_]]:
    return lambda ids, _: (ids < 0) | (ids >= count)


def _find(
    features: Features, key: str, bad: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
) -> tuple[int, int] | None:
    """The first row with a bad number in `key`, and the number.

    Args:
        bad: is given the numbers of many rows end to end, ``[T]``, and the rows' lengths ``[N]``; says which are bad.
    """
    for start in range(0, len(features), _CHUNK):
        values, lengths = end_to_end(features, key, start, start + _CHUNK)
        if len(values) and values.dtype.kind not in "iub":
            raise TypeError(f"features: got {values.dtype} in {key}, want whole numbers")
        wrong = np.flatnonzero(bad(values, lengths))
        if len(wrong):
            row = start + int(np.searchsorted(lengths.cumsum(), wrong[0], side="right"))
            return row, int(values[wrong[0]])
    return None
