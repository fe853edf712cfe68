"""Files as people have them: what is in one is what is read, or it is refused by name before anything is parsed."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from bertxfer_fast import data
from bertxfer_fast.data import files

TABLE = "text,label\ngood film,pos\nbad,neg\n"
READ = {"text": ["good film", "bad"], "label": ["pos", "neg"]}


@pytest.fixture(autouse=True, params=[10_000, 1])
def chunk(request, monkeypatch):
    """What is read does not depend on where a chunk ends."""
    monkeypatch.setattr(files, "CHUNK", request.param)


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Headers


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_index_that_pandas_writes_is_left_out(tmp_path, name):
    pd.DataFrame(READ).to_csv(tmp_path / name, sep="\t" if name == "a.tsv" else ",")
    assert data.load(tmp_path / name)[:] == READ


@pytest.mark.parametrize(
    "content",
    [
        ",text,,label\n0,good film,x,pos\n1,bad,y,neg\n",
        "text,label,\ngood film,pos,\nbad,neg,\n",
        'text,label," "\ngood film,pos,x\nbad,neg,y\n',
        "\ufefftext,label\r\n\r\ngood film,pos\r\nbad,neg\r\n\r\n",
    ],
)
def test_columns_without_a_name_are_left_out(tmp_path, content):
    assert data.load(write(tmp_path / "a.csv", content))[:] == READ


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label,text\ngood,pos,x\n", "header has the column 'text' twice, want each name once"),
        ("id,text,id,id\n1,good,1,1\n", "header has the column 'id' twice"),
        (",\ngood,pos\n", "its first line has no names"),
        ("\ntext\ngood\n", "its first line has no names"),
        ("text,label\ngood,pos\ntext,label\nbad,neg\n", "row 2 repeats the header"),
        ("text,label\n0,good,pos\n", "Expected 2 fields in line 2, saw 3"),
    ],
)
def test_headers_that_mislead_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"a\.csv' cannot be read: .*{message}"):
        data.load(write(tmp_path / "a.csv", content))


def test_a_parquet_file_that_repeats_a_name(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="the column 'text' twice"):
        data.load(tmp_path / "a.parquet")


# Lines


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\ngood\rfilm,pos\nbad,neg\n"),
        ("a.csv", 'text,label\r\n"good\rfilm",pos\r\nbad,neg\r\n'),
        ("a.csv", "text,label\r\ngood\rfilm,pos\r\nbad,neg\r\n"),
        ("a.tsv", "text\tlabel\ngood\rfilm\tpos\nbad\tneg\r\n"),
        ("a.tsv", "label\ttext\npos\tgood\rfilm\nneg\tbad"),
        ("a.jsonl", '{"text": "good\\rfilm", "label": "pos"}\r\n{"text": "bad", "label": "neg"}\n'),
    ],
)
def test_a_lone_carriage_return_belongs_to_the_text(tmp_path, name, content):
    rows = data.load(write(tmp_path / name, content))
    assert rows["text"][:] == ["good\rfilm", "bad"] and rows["label"][:] == ["pos", "neg"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "end"])
def test_lines_of_every_system(tmp_path, end, last):
    last = end if last else ""
    assert data.load(write(tmp_path / "a.csv", TABLE.rstrip().replace("\n", end) + last))[:] == READ
    lines = ["good", "", "a\u2028b\x0bc\x85d", "  ", "bad"]
    assert data.load(write(tmp_path / "a.txt", "\ufeff" + end.join(lines) + last))["text"][:] == lines


def test_carriage_returns_across_blocks(tmp_path):
    """The file is looked at a MiB at a time, and pandas reads it in blocks of its own."""
    for before in ((1 << 20) - 7, (1 << 18) - 7):
        text = f"text\r\n{'x' * before}\r\nlone\rone\r\nlast\r\n"
        assert data.load(write(tmp_path / "a.csv", text))["text"][:] == ["x" * before, "lone\rone", "last"]


def test_blank_lines_keep_their_rows(tmp_path):
    assert data.load(write(tmp_path / "a.txt", "good\n\nbad\n\n"))["text"][:] == ["good", "", "bad", ""]
    assert data.load(write(tmp_path / "a.csv", "text\ngood\n\nbad\n"))["text"][:] == ["good", None, "bad"]
    assert data.load(write(tmp_path / "a.tsv", "text\n\ngood\n"))["text"][:] == [None, "good"]


# Bytes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", TABLE.encode("utf-16"), "UTF-16, want UTF-8"),
        ("a.txt", b"\xfe\xff" + TABLE.encode("utf-16-be"), "UTF-16, want UTF-8"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-32"), "UTF-32, want UTF-8"),
        ("a.tsv", TABLE.encode("utf-16-le"), "line 1: got a zero byte, want UTF-8 text: is it UTF-16"),
        ("a.tsv", "text\ncafé\n".encode("latin-1"), "line 2: got byte 0xe9, want UTF-8: is it Latin-1"),
        ("a.jsonl", '{"text": "café"}\n'.encode("latin-1"), "line 1: got byte 0xe9"),
        ("a.csv", "text\nok\n“quoted”\n".encode("cp1252"), "line 3: got byte 0x93"),
        ("a.txt", "a\nb\n\u00e9".encode()[:-1], "line 3: got byte 0xc3"),
        ("a.csv", gzip.compress(TABLE.encode()), "a gzip archive, want it unpacked"),
        ("a.tsv", bz2.compress(TABLE.encode()), "a bzip2 archive"),
        ("a.jsonl", lzma.compress(TABLE.encode()), "an xz archive"),
        ("a.parquet", gzip.compress(TABLE.encode()), "a gzip archive"),
        ("a.csv", b"PK\x03\x04rest", "a zip archive or a spreadsheet"),
        ("a.csv.gz", gzip.compress(TABLE.encode()), "want a name that ends in one of"),
        ("a.parquet", TABLE, "which does not begin as parquet files do"),
        ("a.csv", b"PAR1....PAR1", "a parquet file, want a name that ends in .parquet"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.json", '[{"text": "a"}, 3]', "item 2: got int, want an object"),
        ("a.jsonl", '{"text": "a"}\n\n["b"]\n', "line 3: got list, want an object"),
        ("a.jsonl", '{"text": "a\\ud800"}\n', "half of a surrogate pair"),
        ("a.json", "[]", "cannot be read: it has no objects"),
        ("a.jsonl", "\n\n", "cannot be read: it has no objects"),
        ("a.jsonl", '{"y": 1}\n{"y": "one"}\n', "a column of mixed types, want one type a column"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_message(tmp_path, caplog, capfd, name, content, message):
    path = write(tmp_path / name, content)
    with caplog.at_level(logging.DEBUG), pytest.raises(ValueError, match=message) as caught:
        data.load(path)
    assert name in str(caught.value)
    assert not caplog.records and capfd.readouterr() == ("", "")


# Types


@pytest.mark.parametrize(
    "values",
    [
        ["2020-01-02", "2021-12-31"],
        ["2020-01-02T03:04:05", "2020-01-02 03:04:05"],
        ["2020-01-02T03:04:05Z", "1999-01-02T03:04:05Z"],
        ["12:30", "23:59"],
        ["1.5", "007"],
        ["true", "NaN"],
    ],
)
def test_text_of_json_files_stays_text(tmp_path, values):
    objects = [f'{{"text": "{value}"}}' for value in values]
    assert data.load(write(tmp_path / "a.jsonl", "\n".join(objects)))["text"][:] == values
    assert data.load(write(tmp_path / "a.json", f"[{', '.join(objects)}]"))["text"][:] == values


def test_objects_may_leave_keys_out(tmp_path):
    lines = '{"text": "a"}\n{"label": 1, "text": null}\n{"tags": []}\n{"tags": ["x"], "label": 0.5}\n'
    assert data.load(write(tmp_path / "a.jsonl", lines))[:] == {
        "text": ["a", None, None, None],
        "label": [None, 1.0, None, 0.5],
        "tags": [None, None, [], ["x"]],
    }


TEXTS = ["good film", "bad", None]
WORDS = [["good", "film"], [], None]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(TEXTS, pa.string_view()), TEXTS),
        (pa.array(TEXTS, pa.large_string()), TEXTS),
        (pa.array(TEXTS).dictionary_encode(), TEXTS),
        (pa.array(pd.Categorical(TEXTS)), TEXTS),
        (pa.array(WORDS, pa.large_list(pa.string_view())), WORDS),
        (pa.array(WORDS, pa.list_(pa.large_string())), WORDS),
        (pa.array(WORDS, pa.list_view(pa.string())), WORDS),
        (pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2)), [["a", "b"], ["c", "d"]]),
    ],
)
def test_strings_and_lists_of_any_kind(tmp_path, column, expected):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert data.load(tmp_path / "a.parquet")["text"][:] == expected


def test_the_names_of_a_class_label_survive(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["z", "a"])})
    Dataset.from_dict({"text": ["x"], "label": [0]}, features=features).to_parquet(tmp_path / "a.parquet")
    assert data.label_map(tmp_path / "a.parquet", "label") == {"z": 0, "a": 1}
