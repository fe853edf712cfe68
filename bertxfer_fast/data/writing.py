"""Rows to a file, one after the other, which is there whole or not at all: csv, tsv, jsonl, parquet."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features

from .tables import column_values

__all__ = ["SUFFIXES", "check_writable", "open_rows"]

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_CHUNK = 10_000  # rows of a parquet row group
_TABLE_ENDS = ("\t", "\n", "\r")

Write = Callable[[Mapping[str, Any]], None]


def check_writable(path: str | os.PathLike[str], rows: Dataset) -> None:
    """Whether rows like these can be written to a file of that name, before there are any.

    Raises:
        ValueError: another ending, no directory, or names or values that a csv, tsv or jsonl cannot hold.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"output: got {path.name!r}, want a name ending in {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise ValueError(f"output: got {str(path)!r}, want a file: this is a directory")
    if not path.resolve().parent.is_dir():
        raise ValueError(
            f"output: got {str(path)!r}, want a file in a directory: no such directory: {path.parent}"
        )
    if path.suffix == ".jsonl":
        for field in rows.features.arrow_schema:
            if _unknown_to_json(field.type):
                raise ValueError(
                    f"output: got {path.name!r} for column {field.name!r} of {field.type}, want .parquet: JSON has no "
                    "such values"
                )
    if path.suffix not in (".csv", ".tsv"):
        return
    for name, feature in rows.features.items():
        if getattr(feature, "dtype", None) in (None, "list", "dict", "struct"):
            raise ValueError(
                f"output: got {path.name!r} for column {name!r} of {feature}, want .jsonl or .parquet: a table has no "
                "place for lists"
            )
    if path.suffix == ".tsv":
        for name in rows.column_names:
            if any(end in name for end in _TABLE_ENDS):
                raise ValueError(
                    f"output: got {path.name!r} for a column named {name!r}, with a tab or a line break, want .csv, "
                    ".jsonl or .parquet: a tsv has no quoting"
                )
            for i, value in enumerate(column_values(rows, name)):
                if isinstance(value, str) and any(end in value for end in _TABLE_ENDS):
                    raise ValueError(
                        f"output: got {path.name!r} for column {name!r}, row {i + 1}, which has a tab or a line break, "
                        "want .csv, .jsonl or .parquet: a tsv has no quoting"
                    )


def _unknown_to_json(kind: pa.DataType) -> bool:
    """Whether a type holds dates, times, decimals or bytes."""
    if pa.types.is_struct(kind):
        return any(_unknown_to_json(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _unknown_to_json(kind.value_type)
    of_bytes = (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    )
    return of_bytes or pa.types.is_temporal(kind) or pa.types.is_decimal(kind)


@contextlib.contextmanager
def open_rows(path: str | os.PathLike[str], features: Features) -> Iterator[Write]:
    """A function that writes a row, for as long as the block lasts.

    At the end of the block the file takes the place of whatever had its name; until then, and after an error, that is
    as it was.

    Args:
        path: a name that ends in one of `SUFFIXES`.
        features: the columns of the rows, as a `datasets.Dataset` has them.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    opened = _parquet if path.suffix == ".parquet" else _text
    try:
        with opened(part, path.suffix, features) as write:
            yield write
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _text(part: Path, suffix: str, features: Features) -> Iterator[Write]:
    names = list(features)
    with part.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".jsonl":

            def write(row: Mapping[str, Any]) -> None:
                file.write(json.dumps({name: row[name] for name in names}, ensure_ascii=False) + "\n")

            yield write
            return
        if suffix == ".tsv":  # csv.writer without quotes refuses a row of one empty field

            def write_line(row: Mapping[str, Any]) -> None:
                values = ("" if row[name] is None else str(row[name]) for name in names)
                file.write("\t".join(values) + "\n")

            file.write("\t".join(names) + "\n")
            yield write_line
            return
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(names)
        yield lambda row: lines.writerow(["" if row[name] is None else row[name] for name in names])


@contextlib.contextmanager
def _parquet(part: Path, suffix: str, features: Features) -> Iterator[Write]:
    schema = features.arrow_schema
    waiting: list[Mapping[str, Any]] = []
    with pq.ParquetWriter(part, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.table({n: [row[n] for row in waiting] for n in schema.names}, schema))
            waiting.clear()

        def write(row: Mapping[str, Any]) -> None:
            waiting.append(row)
            if len(waiting) == _CHUNK:
                flush()

        yield write
        if waiting:
            flush()
