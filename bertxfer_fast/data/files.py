"""Local files as people have them -> memory-mapped tables: csv, tsv, json, jsonl, parquet, txt.

A file is looked at before it is parsed (what its bytes are, how its lines end), then read a chunk at a time into an
Arrow file of this process's own directory. No type is guessed where the file states none: fields of a csv or tsv and
strings of a JSON file stay text, whatever they look like.
"""

from __future__ import annotations

import atexit
import codecs
import collections
import contextlib
import csv
import functools
import itertools
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ..errors import did_you_mean

__all__ = ["CHUNK", "columns_of", "one_type_a_column", "own_table", "read_file", "scratch"]

_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
CHUNK = 10_000  # rows looked at together

_NO_NAMES = "its first line has no names, want the header there"

#: First bytes -> what such a file is. UTF-32's mark begins with UTF-16's and comes first.
_FORMATS = {
    b"\x1f\x8b": "a gzip archive, want it unpacked",
    b"PK\x03\x04": "a zip archive or a spreadsheet, want it unpacked or exported",
    b"BZh": "a bzip2 archive, want it unpacked",
    b"\xfd7zXZ\x00": "an xz archive, want it unpacked",
    b"\x28\xb5\x2f\xfd": "a zstandard archive, want it unpacked",
    b"7z\xbc\xaf": "a 7z archive, want it unpacked",
    b"PAR1": "a parquet file, want a name that ends in .parquet",
    b"ARROW1": "an Arrow file, want parquet, or datasets.Dataset.from_file",
    codecs.BOM_UTF32_LE: "UTF-32, want UTF-8",
    codecs.BOM_UTF32_BE: "UTF-32, want UTF-8",
    codecs.BOM_UTF16_LE: "UTF-16, want UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16, want UTF-8",
}


def read_file(path: Path) -> Dataset:
    """The rows of a local file, by its ending; see `tables.load`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: one that cannot be read; the message names the file, and the line where there is one.
    """
    if not path.is_file():
        hint = did_you_mean(path.name, os.listdir(path.parent) if path.parent.is_dir() else (), listing=False)
        raise FileNotFoundError(f"no file {str(path)!r} (data is read from local files only){hint}")
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"source: got {str(path)!r}, want a name that ends in one of {', '.join(_SUFFIXES)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{str(path)!r} is an empty file")
    _check_format(path, suffix)
    try:
        if suffix == ".parquet":
            return _from_parquet(path)
        line_end = _line_end(path)
        if suffix in (".csv", ".tsv"):
            return _from_table(path, line_end)
        if suffix == ".txt":
            return _from_text(path, line_end)
        return _from_json(path)
    except Exception as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error


@functools.cache
def scratch() -> str:
    """This process's directory for tables."""
    directory = tempfile.mkdtemp(prefix="bertxfer-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def own_table() -> dict[str, Any]:
    """Arguments of ``Dataset.map`` for a table that is this process's alone."""
    return {
        "cache_file_name": os.path.join(scratch(), f"{uuid.uuid4().hex}.arrow"),
        "load_from_cache_file": False,
        "new_fingerprint": uuid.uuid4().hex,  # or `datasets` pickles what the function holds to make one
    }


# ---- what the bytes are -------------------------------------------------------------------------------------


def _check_format(path: Path, suffix: str) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    found = next((what for mark, what in _FORMATS.items() if head.startswith(mark)), None)
    if suffix == ".parquet":
        if not head.startswith(b"PAR1"):
            raise ValueError(
                f"source: got {str(path)!r}, {found or 'which does not begin as parquet files do'}"
            )
    elif found:
        raise ValueError(f"source: got {str(path)!r}, {found}")


def _line_end(path: Path) -> str | None:
    r"""What ends a line, where it is not simply ``\n`` or ``\r\n``, after checking that the file is UTF-8 text.

    Returns:
        None: ``\n`` or ``\r\n``; a carriage return is always part of one. ``"\r"``: there is no ``\n`` at all.
        ``"\n"``: carriage returns stand alone as well, and belong to the text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, feeds, returns, pairs, last = 1, 0, 0, 0, b""
    with path.open("rb") as file:
        while True:
            block = file.read(1 << 20)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                line += error.object.count(b"\n", 0, error.start)
                byte = error.object[error.start]
                raise ValueError(f"line {line}: got byte 0x{byte:02x}, want UTF-8: is it Latin-1?") from error
            if (nul := block.find(b"\0")) >= 0:
                line += block.count(b"\n", 0, nul)
                raise ValueError(f"line {line}: got a zero byte, want UTF-8 text: is it UTF-16?")
            if not block:
                break
            line += block.count(b"\n")
            feeds += block.count(b"\n")
            returns += block.count(b"\r")
            pairs += block.count(b"\r\n") + (last == b"\r" and block.startswith(b"\n"))
            last = block[-1:]
    if returns == pairs:
        return None
    return "\n" if feeds else "\r"


class _LineFeeds:
    r"""A text file whose ``\r\n`` are read as ``\n``, and whose other carriage returns stay."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def read(self, size: int = -1) -> str:
        block = self._file.read(size)
        while block.endswith("\r") and (more := self._file.read(1)):
            block += more
        return block.replace("\r\n", "\n")

    def __iter__(self) -> Iterator[str]:
        return (line[:-2] + "\n" if line.endswith("\r\n") else line for line in self._file)


@contextlib.contextmanager
def _opened(path: Path, line_end: str | None) -> Iterator[Any]:
    """The text of a file, ready for a reader of lines."""
    with path.open(encoding="utf-8-sig", newline="\n" if line_end == "\n" else "") as file:
        yield _LineFeeds(file) if line_end == "\n" else file


# ---- formats ------------------------------------------------------------------------------------------------


def _from_table(path: Path, line_end: str | None) -> Dataset:
    """A csv or tsv, all columns as text: guessed types turn 007 into 7 and differ by chunk."""
    plain = path.suffix.lower() == ".tsv"
    options: dict[str, Any] = {
        "sep": "\t" if plain else ",",
        "quoting": csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
        "lineterminator": line_end if line_end == "\n" else None,
        "header": None,
        "dtype": str,
        "keep_default_na": False,  # "NA" and "None" are words
        "na_values": [""],
        "index_col": False,
    }
    # Reading the first row along finds a header that is too short; pandas would take the first column for an index.
    try:
        with _opened(path, line_end) as file:
            head = pd.read_csv(file, nrows=2, skip_blank_lines=False, **options)
    except pd.errors.EmptyDataError as error:
        raise ValueError(_NO_NAMES) from error
    names = ["" if pd.isna(name) else str(name) for name in head.iloc[0]]
    _check_names(names)
    if len(head) < 2:
        raise ValueError("it has a header and no rows")
    # A column without a name cannot be asked for: it is the index that pandas writes, or a separator at every end.
    kept = [i for i, name in enumerate(names) if name.strip()]
    schema = pa.schema([(names[i], pa.string()) for i in kept])

    def tables() -> Iterator[pa.Table]:
        rows = 0
        # In a table of one column a blank line is an empty field; in others it is no row.
        settings = {**options, "skip_blank_lines": len(names) > 1, "skiprows": 1, "chunksize": CHUNK}
        with (
            _opened(path, line_end) as file,
            pd.read_csv(file, names=range(len(names)), **settings) as frames,
        ):
            for frame in frames:
                if len(names) > 1 and len(again := (frame == names).all(axis=1).to_numpy().nonzero()[0]):
                    raise ValueError(
                        f"row {rows + again[0] + 1} repeats the header: want it once, at the top"
                    )
                rows += len(frame)
                columns = [pa.array(frame[i], pa.string(), from_pandas=True) for i in kept]
                yield pa.Table.from_arrays(columns, schema=schema)

    return _stored(schema, tables())


def _check_names(names: Sequence[str]) -> None:
    twice = [name for name, count in collections.Counter(names).items() if name.strip() and count > 1]
    if twice:
        raise ValueError(f"its header has the column {twice[0]!r} twice, want each name once")
    if not any(name.strip() for name in names):
        raise ValueError(_NO_NAMES)


def _from_text(path: Path, line_end: str | None) -> Dataset:
    """One column ``text``, a row a line, blank ones included, so that row i is line i."""
    schema = pa.schema([("text", pa.string())])
    with path.open(encoding="utf-8-sig", newline="\r" if line_end == "\r" else "\n") as file:
        lines = (line.removesuffix("\r") for line in file) if line_end == "\r" else map(_without_end, file)
        tables = (pa.table({"text": chunk}, schema=schema) for chunk in _chunks(lines))
        return _stored(schema, tables)


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _from_json(path: Path) -> Dataset:
    """A list of objects or an object a line. Read twice: the columns' types are those of all rows."""
    with one_type_a_column():
        schemas = [pa.table(columns_of(chunk)).schema for chunk in _chunks(_objects(path))]
        if not schemas:
            raise ValueError("it has no objects")
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    chunks = _chunks(_objects(path))
    return _stored(schema, (pa.table(columns_of(chunk, schema.names), schema=schema) for chunk in chunks))


def columns_of(rows: Sequence[Mapping[str, Any]], names: Iterable[str] | None = None) -> dict[str, list[Any]]:
    """The columns of rows that may each leave keys out; by default all that any row has."""
    if names is None:
        names = dict.fromkeys(itertools.chain.from_iterable(rows))
    return {name: [row.get(name) for row in rows] for name in names}


@contextlib.contextmanager
def one_type_a_column() -> Iterator[None]:
    """Arrow's errors about Python values, in words."""
    try:
        yield
    except UnicodeEncodeError as error:
        broken = ascii(error.object[error.start : error.end])
        raise ValueError(f"got {broken}, half of a surrogate pair, want text that UTF-8 can hold") from error
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ValueError(f"got a column of mixed types, want one type a column: {error}") from error


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        first = next((c for c in iter(lambda: file.read(1), "") if not c.isspace()), "")
        file.seek(0)
        found: Iterable[tuple[int, Any]] = (
            enumerate(json.load(file), 1) if first == "[" else _json_lines(file)
        )
        for number, row in found:
            if not isinstance(row, dict):
                place = "item" if first == "[" else "line"
                raise ValueError(f"{place} {number}: got {type(row).__name__}, want an object")
            yield row


def _json_lines(file: IO[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: got no JSON object: {error.msg}") from error


def _from_parquet(path: Path) -> Dataset:
    with pq.ParquetFile(path) as file:
        found = file.schema_arrow
        _check_names(found.names)
        schema = found
        if b"huggingface" not in (found.metadata or {}):  # else the columns' features are stated there
            schema = pa.schema([pa.field(f.name, _plain(f.type), f.nullable) for f in found])
        batches = (pa.Table.from_batches([batch]) for batch in file.iter_batches(CHUNK))
        return _stored(schema, (_cast(table, schema) for table in batches))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that holds the same values without views, dictionaries or 64-bit offsets of lists."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    ):
        return pa.list_(_plain(kind.value_type))
    return kind


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for column, field in zip(table.columns, schema, strict=True):
        if column.type != field.type and pa.types.is_nested(field.type):
            # pyarrow 26 casts a list_view to a list with too few offsets.
            column = pa.array(column.to_pylist(), field.type)
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=schema)


# ---- storing ------------------------------------------------------------------------------------------------


def _chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(values)
    return iter(lambda: list(itertools.islice(rest, CHUNK)), [])


def _stored(schema: pa.Schema, tables: Iterable[pa.Table]) -> Dataset:
    """The tables in an Arrow file, memory-mapped."""
    path = os.path.join(scratch(), f"{uuid.uuid4().hex}.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for table in tables:
            writer.write_table(table)
    return Dataset.from_file(path)
