"""Rows of a file, a `datasets.Dataset` or a list of dicts, read with no network and no cache that outlives the process.

Files are read by `datasets`, but not through its cache: tables go to a directory of this process's own in the
system's temporary folder (TMPDIR moves it) and vanish with the process. They stay memory-mapped, so a set
larger than memory works and data loader workers share one copy; no run meets the stale table of an earlier
one, and none fills a home directory.
"""

from __future__ import annotations

import atexit
import csv
import functools
import glob
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
from datasets import Dataset, Features, List, Value

from ..errors import did_you_mean

Source: TypeAlias = str | os.PathLike[str] | Dataset | Sequence[Mapping[str, Any]]

_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
_CHUNK = 10_000  # rows looked at together


def load(source: Source) -> Dataset:
    """The rows of a file, a `datasets.Dataset` or a list of dicts, as a Dataset with at least one row.

    Only local files are read: a name that is no file is an error, never looked up elsewhere. By its ending a file is

    - .csv, .tsv: a header line, then rows; every column is read as text, an empty field as missing. A tsv has no
      quoting (a quote is a character), a csv has the usual one. UTF-8.
    - .json, .jsonl: a list of objects, or an object a line.
    - .parquet: as it is.
    - .txt: one column, ``text``; blank lines are left out. UTF-8.

    Raises:
        FileNotFoundError: no such file.
        TypeError: another kind of source.
        ValueError: an unreadable or empty one.
    """
    if isinstance(source, Dataset):
        rows = source.with_format(None)
    elif isinstance(source, (str, os.PathLike)):
        rows = _load_file(Path(source))
    elif isinstance(source, Mapping):
        raise TypeError(f"source: got a dict of splits {sorted(source)}, want one of them")
    elif isinstance(source, (list, tuple)) and all(isinstance(row, Mapping) for row in source):
        rows = _from_dicts(source)
    else:
        raise TypeError(
            f"source: got {type(source).__name__}, want a path, a datasets.Dataset or a list of dicts"
        )
    if len(rows) == 0:
        raise ValueError(f"{_called(source)} has no rows")
    return rows


def _load_file(path: Path) -> Dataset:
    if not path.is_file():
        hint = did_you_mean(path.name, os.listdir(path.parent) if path.parent.is_dir() else (), listing=False)
        raise FileNotFoundError(f"no file {str(path)!r} (data is read from local files only){hint}")
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"source: got {str(path)!r}, want a name that ends in one of {', '.join(_SUFFIXES)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{str(path)!r} is an empty file")
    try:
        return _read(path)
    except Exception as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.__cause__ or error}") from error


def _read(path: Path) -> Dataset:
    pattern = glob.escape(str(path))  # which `datasets` takes a path for
    cache = tempfile.mkdtemp(dir=scratch())  # one a read, or an older table of that path would be found
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return Dataset.from_csv(pattern, cache_dir=cache, **_table_options(path))
    if suffix == ".parquet":
        return Dataset.from_parquet(pattern, cache_dir=cache)
    if suffix == ".txt":
        lines = Dataset.from_text(pattern, cache_dir=cache, encoding="utf-8-sig")
        return lines.select([i for i, line in enumerate(column_values(lines, "text")) if line.strip()])
    return Dataset.from_json(pattern, cache_dir=cache)


def _table_options(path: Path) -> dict[str, Any]:
    """How to read a csv or tsv, with all columns as text: guessed types turn 007 into 7 and differ by chunk."""
    plain = path.suffix.lower() == ".tsv"
    options: dict[str, Any] = {
        "sep": "\t" if plain else ",",
        "quoting": csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
        "encoding": "utf-8-sig",  # with or without a byte order mark
        "keep_default_na": False,  # "NA" and "None" are words
        "index_col": False,
    }
    # Reading the first row along finds a header that is too short; pandas would take the first column for an index.
    head = pd.read_csv(path, header=None, nrows=2, dtype=str, **options)
    if len(head) < 2:
        raise ValueError("it has a header and no rows")
    features = Features({name: Value("string") for name in head.iloc[0].tolist()})
    return {**options, "na_values": [""], "features": features}


def _from_dicts(source: Sequence[Mapping[str, Any]]) -> Dataset:
    """Dataset.from_list would drop the keys that the first row lacks."""
    columns = dict.fromkeys(key for row in source for key in row)
    try:
        return Dataset.from_dict({key: [row.get(key) for row in source] for key in columns})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"source: got a column of mixed types, want one type a column: {error}") from error


@functools.cache
def scratch() -> str:
    """This process's directory for tables."""
    directory = tempfile.mkdtemp(prefix="bertxfer-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def column_values(rows: Dataset, column: str) -> Iterator[Any]:
    """The values of a column, a chunk in memory at a time."""
    for batch in rows.select_columns(column).iter(batch_size=_CHUNK):
        yield from batch[column]


def check_columns(rows: Dataset, wanted: Iterable[str]) -> None:
    """Check that the columns are there.

    Raises:
        ValueError: naming the first that is not.
    """
    present = rows.column_names
    for column in wanted:
        if column not in present:
            raise ValueError(f"no column {column!r}{did_you_mean(column, present)}")


def element_feature(feature: Any) -> Any:
    """What a column of lists holds lists of; another column's feature as it is."""
    return feature.feature if isinstance(feature, List) else feature


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing that can be used: no value, NaN, blank text, or a list with a gap."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list):
        return None in value
    return value is None or (isinstance(value, float) and math.isnan(value))


def _called(source: Source) -> str:
    return repr(str(source)) if isinstance(source, (str, os.PathLike)) else "source"
