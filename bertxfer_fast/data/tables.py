"""Rows of a file, a `datasets.Dataset` or a list of dicts, read with no network and no cache that outlives the process.

Files go to tables in a directory of this process's own in the system's temporary folder (TMPDIR moves it), which
vanish with the process. They are memory-mapped, so a set larger than memory works and data loader workers share
one copy; no run meets the stale table of an earlier one, and none fills a home directory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, LargeList, List

from ..errors import did_you_mean
from .files import CHUNK, columns_of, one_type_a_column, read_file

Source: TypeAlias = str | os.PathLike[str] | Dataset | Sequence[Mapping[str, Any]]


def load(source: Source) -> Dataset:
    """The rows of a file, a `datasets.Dataset` or a list of dicts, as a Dataset with at least one row.

    Only local files are read: a name that is no file is an error, never looked up elsewhere. By its ending a file is

    - .csv, .tsv: a header line, then rows; every column is read as text, an empty field as missing. A tsv has no
      quoting (a quote is a character), a csv has the usual one. A column without a name, as pandas writes its
      index, is left out; a name that comes twice is an error.
    - .json, .jsonl: a list of objects, or an object a line. Text stays text, also where it looks like a date.
    - .parquet: as it is; strings and lists of any kind are read alike.
    - .txt: one column, ``text``, and a row a line, blank ones too.

    Text is UTF-8, and a line ends with ``\\n`` or ``\\r\\n``; a lone ``\\r`` only where no line does.

    Raises:
        FileNotFoundError: no such file.
        TypeError: another kind of source.
        ValueError: an unreadable or empty one.
    """
    if isinstance(source, Dataset):
        rows = source.with_format(None)
    elif isinstance(source, (str, os.PathLike)):
        rows = read_file(Path(source))
    elif isinstance(source, Mapping):
        raise TypeError(f"source: got a dict of splits {sorted(source)}, want one of them")
    elif isinstance(source, (list, tuple)) and all(isinstance(row, Mapping) for row in source):
        try:
            with one_type_a_column():
                rows = Dataset.from_dict(columns_of(source))
        except ValueError as error:
            raise ValueError(f"source: {error}") from error
    else:
        raise TypeError(
            f"source: got {type(source).__name__}, want a path, a datasets.Dataset or a list of dicts"
        )
    if len(rows) == 0:
        raise ValueError(f"{_called(source)} has no rows")
    return rows


def column_values(rows: Dataset, column: str) -> Iterator[Any]:
    """The values of a column, a chunk in memory at a time."""
    for batch in rows.select_columns(column).iter(batch_size=CHUNK):
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
    return feature.feature if isinstance(feature, (List, LargeList)) else feature


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing that can be used: no value, NaN, blank text, or a list with a gap."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list):
        return None in value
    return value is None or (isinstance(value, float) and math.isnan(value))


def _called(source: Source) -> str:
    return repr(str(source)) if isinstance(source, (str, os.PathLike)) else "source"
