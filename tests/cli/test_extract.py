"""`bertxfer extract`: a row of features a row of the file, cut where Python cuts, or one line that says why not."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from bertxfer_fast import cli
from bertxfer_fast.features.extractor import FeatureExtractor

from ..folders import change, distill, make_place, tiny_tokenizer
from ..tiny import tiny_bert


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    tiny_bert(2, 16, 4).save_pretrained(tmp_path / "encoder")
    tiny_tokenizer(tmp_path / "encoder")
    return tmp_path / "encoder"


def extract(encoder: Path, name: str, *words: str) -> int:
    output = encoder.parent / "f.npy"
    return cli.main(
        ["extract", str(encoder), "--input", str(encoder.parent / name), "--output", str(output), *words]
    )


def features(encoder: Path) -> np.ndarray:
    return np.load(encoder.parent / "f.npy")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id,text\n1,good film\n2,\n3,bad\n"),
        ("a.jsonl", '{"text": "good film"}\n{"text": " "}\n{"text": "bad"}\n'),
        ("a.txt", "good film\n\nbad\n"),
    ],
)
def test_empty_rows_are_as_in_python(
    encoder: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    (encoder.parent / name).write_text(content)
    assert extract(encoder, name) == 2
    error = capsys.readouterr().err
    assert "empty_rows: got no 'text' in row 2, want complete rows, or one of skip, zeros, keep" in error
    assert not (encoder.parent / "f.npy").exists()
    python = FeatureExtractor(encoder, device="cpu")
    for choice in ("skip", "zeros", "keep"):
        assert extract(encoder, name, "--empty-rows", choice) == 0
        expected = python.extract(["good film", "", "bad"], empty_rows=choice)
        np.testing.assert_allclose(features(encoder), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("words", "longest"), [((), 16), (("--max-length", "8"), 8)])
def test_it_cuts_where_the_tokenizer_says(encoder: Path, words: tuple[str, ...], longest: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(encoder)
    (encoder.parent / "a.txt").write_text("good film\n" + "good bad " * 20 + "\n")
    assert extract(encoder, "a.txt", *words) == 0
    python = FeatureExtractor(encoder, device="cpu", max_length=longest)
    expected = python.extract(["good film", "good bad " * 20]).numpy()
    np.testing.assert_allclose(features(encoder), expected, rtol=1e-4, atol=1e-5)


def latin(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(json.dumps({"text": "café"}, ensure_ascii=False).encode("latin-1"))


def broken(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "a"}\n{"text":\n')


def zipped(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(gzip.compress(b'{"text": "a"}'))


def unknown_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
    tokenizer.add_tokens(["<gene>"])
    tokenizer.save_pretrained(folder / "encoder")
    (folder / "a.jsonl").write_text('{"text": "good"}\n{"text": "good <gene>"}\n')


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (latin, (), "a.jsonl' cannot be read: line 1: got byte 0xe9, want UTF-8"),
        (broken, (), "a.jsonl' cannot be read: line 2: got no JSON object"),
        (zipped, (), "a.jsonl', a gzip archive, want it unpacked"),
        (unknown_token, (), "features[1]: got 50 (the token '<gene>') in input_ids, want ids 0..49"),
        (unknown_token, ("--max-length", "2"), "max_length: got 2, want more than the 2 special tokens"),
        (unknown_token, ("--max-length", "65"), "max_length: got 65, want at most the 64 positions"),
    ],
)
def test_what_is_wrong_is_one_line(
    encoder: Path,
    capfd: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    words: tuple[str, ...],
    message: str,
) -> None:
    spoil(encoder.parent)
    capfd.readouterr()
    assert extract(encoder, "a.jsonl", *words) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("bertxfer: error: ")
    assert not (encoder.parent / "f.npy").exists()


def test_a_directory_is_no_output(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (encoder.parent / "f.npy").mkdir()
    assert extract(encoder, "a.txt") == 2
    assert "want a file: this is a directory" in capsys.readouterr().err


def test_distill_has_the_same_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = make_place(tmp_path)
    with (place / "train.tsv").open("a") as file:
        file.write("\tpos\n")
    change(place, training__max_steps=1)
    assert distill(place) == 2
    assert "no 'sentence' in row 25" in capsys.readouterr().err
    change(place, data__empty_rows="skip")
    assert distill(place) == 0
