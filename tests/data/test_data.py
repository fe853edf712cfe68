"""Data: what is in a file is what reaches the model, and what is wrong with a file is said before any work."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets.table import InMemoryTable
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, RobertaTokenizerFast

from bertxfer_fast import data

VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "film", "play", "##ing", "not"]
ROWS = [{"text": "good film", "label": "pos"}, {"text": "bad playing", "label": "neg"}]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Any attempt to reach a network fails the test."""

    def refuse(*_, **__):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(model_max_length=8)


def make_tokenizer(**options) -> PreTrainedTokenizerFast:
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    core = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    core.enable_padding(length=32)  # as some published tokenizer.json files have it
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=core, **{"model_input_names": inputs, **names, **options})


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


# Loading


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'text,label\n"good, film",pos\nbad,neg\n'),
        ("a.CSV", 'text,label\r\n"good, film",pos\r\nbad,neg\r\n'),
        ("a.tsv", "\ufefftext\tlabel\ngood, film\tpos\nbad\tneg\n"),
        ("a.jsonl", '{"text": "good, film", "label": "pos"}\n{"text": "bad", "label": "neg"}\n'),
        ("a.json", '[{"text": "good, film", "label": "pos"}, {"text": "bad", "label": "neg"}]'),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, text):
    expected = {"text": ["good, film", "bad"], "label": ["pos", "neg"]}
    assert data.load(write(tmp_path / name, text))[:] == expected


def test_parquet(tmp_path):
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    assert data.load(str(tmp_path / "a.parquet"))[:] == Dataset.from_list(ROWS)[:]


def test_tables_are_text_so_nothing_is_guessed(tmp_path):
    text = 'text\tlabel\n"open quote\t1\nNA\t0\n007\t01\n'
    rows = data.load(write(tmp_path / "a.tsv", text))
    assert rows[:] == {"text": ['"open quote', "NA", "007"], "label": ["1", "0", "01"]}


def test_a_path_is_a_path_and_no_pattern(tmp_path):
    write(tmp_path / "a1.csv", "text\nwrong\n")
    assert data.load(write(tmp_path / "a[1].csv", "text\nright\n"))["text"][:] == ["right"]
    assert data.load(write(tmp_path / "a*.csv", "text\nstar\n"))["text"][:] == ["star"]


def test_a_file_that_changed_is_read_anew(tmp_path):
    path = write(tmp_path / "a.csv", "text\nfirst\n")
    data.load(path)
    then = path.stat()
    write(path, "text\nother\n")
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))  # as a copy that keeps times does
    assert data.load(path)["text"][:] == ["other"]


def test_datasets_and_dicts_are_taken_too():
    assert data.label_map(Dataset.from_list([{"y": 1}, {"y": 0}]).with_format("torch"), "y") == {
        "0": 0,
        "1": 1,
    }
    assert data.load([{"text": "a"}, {"text": "b", "label": 1}])[:] == {
        "text": ["a", "b"],
        "label": [None, 1],
    }


def test_a_missing_file_names_its_neighbour_and_is_no_hub_name(tmp_path):
    write(tmp_path / "train.tsv", "text\na\n")
    with pytest.raises(FileNotFoundError, match=r"local files only.*did you mean 'train\.tsv'"):
        data.load(tmp_path / "trian.tsv")
    with pytest.raises(FileNotFoundError, match="no file 'imdb'"):
        data.load("imdb")


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.csv", "", "empty file"),
        ("a.csv", "text,label\n", "header and no rows"),
        ("a.jsonl", "[]", r"a\.jsonl"),
        ("a.xlsx", "x", r"want a name that ends in one of \.csv, \.tsv"),
        ("a.tsv", "text\na\tb\n", "Expected 1 fields in line 2, saw 2"),
        ("a.tsv", "text\tlabel\na\tb\na\tb\tc\n", "Expected 2 fields in line 3, saw 3"),
        ("a.csv", 'text,label\na,b\n"open,c\n', "EOF inside string"),
        ("a.jsonl", '{"text": "a"}\n{"text":\n', "cannot be read: line 2: got no JSON object"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, name, text, named):
    with pytest.raises(ValueError, match=named):
        data.load(write(tmp_path / name, text))


def test_sources_that_cannot_be_used_say_why():
    with pytest.raises(TypeError, match=r"dict of splits \['train'\], want one"):
        data.load(DatasetDict(train=Dataset.from_list(ROWS)))
    with pytest.raises(TypeError, match="source: got int, want a path"):
        data.load(3)
    with pytest.raises(ValueError, match="source has no rows"):
        data.load([])
    with pytest.raises(ValueError, match=r"source: got '\\ud83d', half of a surrogate pair"):
        data.load([{"text": "a"}, {"text": "b\ud83d"}])
    with pytest.raises(ValueError, match="mixed types"):
        data.load([{"text": "a"}, {"text": 3}])


def test_nothing_is_left_behind(tmp_path, tokenizer, monkeypatch):
    """Neither in the user's cache of `datasets`, nor beside the file, nor in the temporary folder at the end."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write(tmp_path / "a.csv", "text\ngood\n")
    data.encode(path, tokenizer)
    assert list(tmp_path.iterdir()) == [path]
    code = f"from bertxfer_fast.data import files, load; load({str(path)!r}); print(files.scratch())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not Path(shown.split()[-1]).exists()


# Labels


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["pos", "neg", "pos"], {"neg": 0, "pos": 1}),
        (["10", "9", "1"], {"1": 0, "9": 1, "10": 2}),
        ([3, 1, 2, None], {"1": 0, "2": 1, "3": 2}),
        ([1.0, 0.0], {"0": 0, "1": 1}),
        ([True, False], {"False": 0, "True": 1}),
        ([["b", "a"], [], ["c"]], {"a": 0, "b": 1, "c": 2}),
        (["1", "0001", "01", "00001", "001"], {"00001": 0, "0001": 1, "001": 2, "01": 3, "1": 4}),
    ],
)
def test_label_map_is_stable_whatever_the_order_of_rows(values, expected):
    for order in (values, values[::-1]):
        made = data.label_map([{"y": value} for value in order], "y")
        assert list(made.items()) == list(expected.items())


def test_label_map_keeps_the_order_of_a_class_label():
    for feature, value in ((ClassLabel(names=["z", "a"]), 0), (List(ClassLabel(names=["z", "a"])), [0])):
        rows = Dataset.from_dict({"y": [value]}, features=Features({"y": feature}))
        assert data.label_map(rows, "y") == {"z": 0, "a": 1}


def test_label_map_refuses_what_is_no_class():
    with pytest.raises(ValueError, match="task='regression'"):
        data.label_map([{"y": 0.5}], "y")
    with pytest.raises(ValueError, match="column 'y' has no labels"):
        data.label_map([{"y": None}], "y")


def test_label_map_survives_a_file(tmp_path):
    made = {"négatif": 0, "positif": 1}
    data.save_label_map(made, tmp_path / "labels.json")
    assert data.load_label_map(tmp_path / "labels.json") == made
    write(tmp_path / "labels.json", json.dumps({"a": 0, "b": 2}))
    with pytest.raises(ValueError, match=r"ids 0 \.\. 1 once each"):
        data.load_label_map(tmp_path / "labels.json")


# Tokenising


def test_features_are_unpadded_and_truncated(tokenizer):
    texts = [{"text": "good"}, {"text": "not " * 20}]
    features = data.encode(texts, tokenizer)
    assert features.column_names == ["input_ids", "token_type_ids"]
    assert features["input_ids"][:] == [[1, 4, 2], [1, *[9] * 6, 2]]
    assert features["token_type_ids"][:] == [[0] * 3, [0] * 8]
    assert data.encode(texts, tokenizer, max_length=4)["input_ids"][1] == [1, 9, 9, 2]


def test_token_type_ids_only_if_the_tokenizer_gives_them():
    plain = make_tokenizer(model_input_names=["input_ids", "attention_mask"])
    assert data.encode(ROWS, plain, max_length=9).column_names == ["input_ids"]


def test_pairs_become_one_sequence(tokenizer):
    features = data.encode([{"a": "good", "b": "bad film"}], tokenizer, text="a", text_pair="b")
    assert features[0] == {"input_ids": [1, 4, 2, 5, 6, 2], "token_type_ids": [0, 0, 0, 1, 1, 1]}


@pytest.mark.parametrize("column", ["label", "labels", "input_ids"])
def test_labels_become_ids_and_other_columns_go(tokenizer, column):
    rows = [{"text": row["text"], column: row["label"], "note": "x"} for row in ROWS]
    features = data.encode(rows, tokenizer, label=column, label2id={"pos": 0, "neg": 1})
    assert set(features.column_names) == {"input_ids", "token_type_ids", "labels"}
    assert features["labels"][:] == [0, 1]


@pytest.mark.parametrize(
    ("task", "values", "label2id", "expected"),
    [
        ("sequence-classification", ["1", "0"], {"LABEL_0": 0, "LABEL_1": 1}, [1, 0]),
        ("sequence-classification", [1, 0], {"LABEL_0": 0, "LABEL_1": 1}, [1, 0]),
        ("sequence-classification", [5, 1], {"1": 0, "5": 1}, [1, 0]),
        (
            "multi-label-classification",
            [["b"], [], ["a", "b"]],
            {"a": 0, "b": 1},
            [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]],
        ),
        ("regression", ["0.5", "-2"], None, [0.5, -2.0]),
        ("regression", [1, 2], None, [1.0, 2.0]),
    ],
)
def test_labels_of_every_task(tokenizer, task, values, label2id, expected):
    rows = [{"text": "good", "y": value} for value in values]
    features = data.encode(rows, tokenizer, label="y", task=task, label2id=label2id)
    assert features["labels"][:] == expected
    assert all(type(a) is type(b) for a, b in zip(features["labels"], expected, strict=True))


def test_the_older_name_of_a_task(tokenizer):
    rows = [{"text": "good film", "y": 1.5}]
    with pytest.warns(DeprecationWarning, match="label_kind='float' is now called task='regression'"):
        assert data.encode(rows, tokenizer, label="y", label_kind="float")["labels"][:] == [1.5]
    with pytest.raises(ValueError, match="label_kind: got 'regression', want task= with one of sequence-"):
        data.encode(rows, tokenizer, label="y", label_kind="regression")


def test_a_class_label_is_looked_up_by_its_name_not_its_place(tokenizer):
    feature = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = Dataset.from_dict({"text": ["good", "bad"], "label": [1, 0]}, features=feature)
    features = data.encode(rows, tokenizer, label="label", label2id={"pos": 0, "neg": 1})
    assert features["labels"][:] == [0, 1]
    with pytest.raises(
        ValueError, match=r"rows 1, 2: 'pos' is not in label2id; known: LABEL_0, LABEL_1, LABEL_2"
    ):
        data.encode(rows, tokenizer, label="label", label2id={f"LABEL_{i}": i for i in range(3)})


@pytest.mark.parametrize(
    ("names", "label2id", "expected"),
    [
        (["neg", "pos"], {"LABEL_0": 0, "LABEL_1": 1}, [1, 0]),
        (["LABEL_1", "LABEL_0"], {"LABEL_0": 0, "LABEL_1": 1}, [0, 1]),
        (["1", "0"], {"LABEL_0": 0, "LABEL_1": 1}, [0, 1]),
        (["1", "0"], {"neg": 0, "pos": 1}, [0, 1]),
        (["a", "b"], {"neg": 0, "pos": 1}, "'b' is not in label2id; known: neg, pos"),
        (["a", "b"], {"LABEL_0": 1, "LABEL_1": 0}, "'b' is not in label2id"),
    ],
)
def test_the_places_of_a_class_label_are_ids_where_the_map_has_no_names(tokenizer, names, label2id, expected):
    feature = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    rows = Dataset.from_dict({"text": ["good", "bad"], "label": [1, 0]}, features=feature)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            data.encode(rows, tokenizer, label="label", label2id=label2id)
        return
    assert data.encode(rows, tokenizer, label="label", label2id=label2id)["labels"][:] == expected


def test_a_word_label_goes_to_the_first_token_of_its_word(tokenizer):
    rows = [
        {"words": ["not", "playing", "film"], "tags": ["O", "B", "O"]},
        {"words": ["good"], "tags": ["B"]},
    ]
    features = data.encode(
        rows,
        tokenizer,
        text="words",
        label="tags",
        task="token-classification",
        label2id=data.label_map(rows, "tags"),
    )
    assert features["input_ids"][:] == [[1, 9, 7, 8, 6, 2], [1, 4, 2]]
    assert features["labels"][:] == [[-100, 1, 0, -100, 1, -100], [-100, 0, -100]]


def test_word_labels_that_are_cut_off_or_do_not_fit(tokenizer):
    rows = [{"text": ["good"] * 9, "y": ["O"] * 9}, {"text": ["good"], "y": ["O", "O"]}]
    how = {"label": "y", "task": "token-classification", "label2id": {"O": 0}}
    assert data.encode(rows[:1], tokenizer, **how)["labels"][0] == [-100, *[0] * 6, -100]
    with pytest.raises(ValueError, match="row 2: 2 labels for 1 words"):
        data.encode(rows, tokenizer, **how)
    with pytest.raises(ValueError, match="want a column of lists of words"):
        data.encode(ROWS, tokenizer, label="label", task="token-classification", label2id={"O": 0})


class Untouchable(PreTrainedTokenizerFast):
    """Fails when it is asked to do any work."""

    def __call__(self, *_, **__):
        raise AssertionError("tokenised before the input was checked")


@pytest.mark.parametrize(
    ("rows", "options", "named"),
    [
        (ROWS, {"text": "txt"}, r"no column 'txt'; did you mean 'text'"),
        (ROWS, {"label": "Labels", "label2id": {"a": 0}}, "no column 'Labels'; did you mean 'label'"),
        (ROWS, {"text_pair": "text2"}, "no column 'text2'; did you mean 'text'"),
        (ROWS, {"label": "label"}, "label2id: got None, want a map"),
        (ROWS, {"label": "label", "task": "clas"}, "task: got 'clas', want one of sequence"),
        (
            ROWS,
            {"label": "label", "label2id": {"pos": 0, "ne": 1}},
            "row 2: 'neg' is not .* did you mean 'ne'",
        ),
        (ROWS, {"label": "label", "label2id": {"pos": 1}}, r"ids 0 \.\. 0 once each"),
        (ROWS, {"label": "label", "task": "regression"}, "rows 1, 2: could not convert"),
        ([{"text": "a", "y": "inf"}], {"label": "y", "task": "regression"}, "'inf' is not finite"),
        (
            ROWS,
            {"label": "label", "task": "multi-label-classification", "label2id": {"pos": 0}},
            "'pos' is no list of labels",
        ),
        (
            [{"text": "a", "y": [0, 1, 1]}],
            {"label": "y", "task": "multi-label-classification", "label2id": {"a": 0, "b": 1, "c": 2}},
            r"row 1: \[0, 1, 1\] has a class twice, want those that hold, not a 0 or 1 for every class",
        ),
        (
            [{"text": "a", "y": "7"}],
            {"label": "y", "label2id": {"1": 0, "2": 1}},
            "row 1: '7' is not in label2id",
        ),
        (
            [{"text": "a", "y": "2"}],
            {"label": "y", "label2id": {"a": 0, "b": 1}},
            "row 1: '2' is not in label2id",
        ),
        (
            [{"text": " ", "y": "a"}, {"text": "b", "y": None}, {"text": None, "y": "a"}],
            {"label": "y", "label2id": {"a": 0}},
            "no 'text' in rows 1, 3; no 'y' in row 2",
        ),
        ([{"text": ""}] * 9 + [{"text": "a"}], {}, "rows 1, 2, 3, 4, 5 and 4 more"),
        ([{"text": ""}], {"empty_rows": "skip"}, "no row is left"),
        ([{"text": ""}], {"empty_rows": "zeros"}, "no row is left"),
        (ROWS, {"empty_rows": "drop"}, "empty_rows: got 'drop', want one of error, skip, zeros, keep"),
        (
            ROWS,
            {"empty_rows": "zeros", "label": "label", "label2id": {"pos": 0, "neg": 1}},
            "empty_rows: got 'zeros' beside a label",
        ),
        (
            [{"text": "", "y": "a"}, {"text": "b", "y": None}],
            {"label": "y", "label2id": {"a": 0}, "empty_rows": "keep"},
            "got no 'text' in row 1; no 'y' in row 2, want complete rows, or skip$",
        ),
        (ROWS, {"max_length": 9}, "max_length: got 9, want at most the tokenizer's model_max_length, 8"),
        (ROWS, {"max_length": 2}, "max_length: got 2, want more than the 2 special tokens"),
    ],
)
def test_bad_input_is_named_before_any_work(tokenizer, rows, options, named):
    careful = Untouchable(tokenizer_object=tokenizer.backend_tokenizer, model_max_length=8)
    with pytest.raises(ValueError, match=named):
        data.encode(rows, careful, **options)


def test_a_column_that_is_no_text_and_a_tokenizer_that_is_none(tokenizer):
    with pytest.raises(TypeError, match=r"column 'text': got .*, want text or lists of words"):
        data.encode([{"text": 3}], tokenizer)
    with pytest.raises(TypeError, match="tokenizer: got str, want a transformers tokenizer"):
        data.encode(ROWS, "bert-base-uncased")
    with pytest.raises(ValueError, match="max_length: got None, want a number"):
        data.encode(ROWS, make_tokenizer())


def test_skipped_rows_are_reported(tokenizer, caplog):
    rows = [*ROWS, {"text": "film", "label": None}]
    with caplog.at_level(logging.WARNING):
        features = data.encode(
            rows, tokenizer, label="label", label2id={"pos": 0, "neg": 1}, empty_rows="skip"
        )
    assert features["labels"][:] == [0, 1]
    assert "no 'label' in row 3: left out" in caplog.text


@pytest.mark.parametrize(
    ("choice", "said", "ids"),
    [
        ("skip", "left out", [[1, 4, 2], [1, 5, 2]]),
        ("zeros", "zeros", [[1, 4, 2], [], [], [1, 5, 2]]),
        ("keep", "encoded as empty text", [[1, 4, 2], [1, 2], [1, 2], [1, 5, 2]]),
    ],
)
@pytest.mark.parametrize("as_words", [False, True])
def test_empty_rows_by_choice(tokenizer, caplog, choice, said, ids, as_words):
    texts = [["good"], ["", " "], [], ["bad"]] if as_words else ["good", " ", None, "bad"]
    with caplog.at_level(logging.WARNING):
        features = data.encode([{"text": text} for text in texts], tokenizer, empty_rows=choice)
    assert features["input_ids"][:] == ids
    assert f"no 'text' in rows 2, 3: {said}" in caplog.text


def test_a_pair_is_empty_where_one_of_it_is(tokenizer):
    rows = [{"a": "good", "b": None}, {"a": "bad", "b": "film"}]
    with pytest.raises(
        ValueError, match=r"empty_rows: got no 'b' in row 1, want complete rows, or one of skip, zeros"
    ):
        data.encode(rows, tokenizer, text="a", text_pair="b")
    with pytest.raises(
        ValueError, match=r"want complete rows, or one of skip, keep$"
    ):  # no task learns from zeros
        data.encode(rows, tokenizer, text="a", text_pair="b", task="none")
    features = data.encode(rows, tokenizer, text="a", text_pair="b", empty_rows="zeros")
    assert features["token_type_ids"][:] == [[], [0, 0, 0, 1, 1]]


def byte_level(kind, prefix):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet, "Ġg"])}
    if kind == "roberta":
        return RobertaTokenizerFast(vocab=ids, merges=[("Ġ", "g")], add_prefix_space=prefix)
    if kind == "bytes":
        core = Tokenizer(BPE(ids, [("Ġ", "g")]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    else:
        core = Tokenizer(Unigram([("<unk>", 0.0), ("▁", -3.0), ("a", -2.0), ("▁a", -1.0)], unk_id=0))
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if prefix else "never")
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize("kind", ["roberta", "bytes", "metaspace"])
def test_words_want_a_tokenizer_that_puts_a_space_before_them(kind):
    rows = [{"text": ["a", "ga"]}]
    with pytest.raises(ValueError, match=r"tokenizer: got .* want one made with add_prefix_space=True"):
        data.encode(rows, byte_level(kind, False), max_length=8)
    tokenizer = byte_level(kind, True)
    assert data.encode(rows, tokenizer, max_length=8)["input_ids"][0] == tokenizer(" a ga")["input_ids"]
    assert data.encode([{"text": "a ga"}], byte_level(kind, False), max_length=8)["input_ids"][0]


@pytest.mark.parametrize("column_type", [pa.string_view(), pa.large_string(), pa.string()])
def test_a_dataset_with_strings_and_lists_of_any_kind(tokenizer, column_type):
    words = [["good", "film"], ["bad"]]
    table = pa.table(
        {"text": pa.array(words, pa.large_list(column_type)), "y": pa.array(["p", "n"], column_type)}
    )
    features = data.encode(Dataset(InMemoryTable(table)), tokenizer, label="y", label2id={"n": 0, "p": 1})
    assert features["input_ids"][:] == [[1, 4, 6, 2], [1, 5, 2]]
    assert features["labels"][:] == [1, 0]


def test_sequence_lengths(tokenizer):
    features = data.encode([{"text": "not " * n} for n in (3, 1, 2)], tokenizer)
    assert data.sequence_lengths(features).tolist() == [5, 3, 4]
    assert data.sequence_lengths(features.select([2, 0])).tolist() == [4, 5]
    assert data.sequence_lengths([{"input_ids": [1, 2]}]).tolist() == [2]
