"""Answers: from characters to tokens, windows of a long context, and labels that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from bertxfer_fast import data
from bertxfer_fast.data import spans

from ..folders import tiny_tokenizer

QUESTION = "was it good"
CONTEXT = "The film, in two states, was slowly fine and the end was great."


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return tiny_tokenizer(tmp_path / "tokenizer")


def encode(tokenizer: Any, *answers: Any, **settings: Any) -> Any:
    rows = [{"q": QUESTION, "c": CONTEXT, "a": answer} for answer in answers]
    settings = {"text": "q", "text_pair": "c", "label": "a", "task": "question-answering", **settings}
    return data.encode(rows, tokenizer, **settings)


def words(tokenizer: Any, row: Any) -> str:
    start, end = row["labels"]
    return tokenizer.decode(row["input_ids"][start : end + 1])


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("two states", "two states"),
        ("slowly", "slowly"),  # two pieces
        ("great.", "great."),
        ("great", "great"),  # neighbours that touch it are not in it
        (".", "."),
        ({"text": ["was"], "answer_start": [CONTEXT.index("was", 40)]}, "was"),
        ({"text": "in", "answer_start": 10}, "in"),
        ({"text": ["two", "in"], "answer_start": [13, 10]}, "two"),  # the first answer counts
        ({"text": [], "answer_start": []}, "[CLS]"),
    ],
)
def test_the_labels_are_the_answers_tokens(tokenizer: Any, answer: Any, found: str) -> None:
    [row] = encode(tokenizer, answer)
    assert words(tokenizer, row) == found
    plain = tokenizer(QUESTION, CONTEXT)
    assert (row["input_ids"], row["token_type_ids"]) == (plain["input_ids"], plain["token_type_ids"])
    # It is the place that was meant, not another one with the same words.
    start = row["labels"][0]
    if isinstance(answer, dict) and answer["text"] == ["was"]:
        assert plain.token_to_chars(start).start == answer["answer_start"][0]


def test_blanks_around_an_answer_are_no_part_of_it(tokenizer: Any) -> None:
    rows = [
        {"q": QUESTION, "c": "fast slow ", "a": {"text": ["slow "], "answer_start": [5]}},
        {"q": QUESTION, "c": " fast slow", "a": {"text": [" fast"], "answer_start": [0]}},
    ]
    found = data.encode(rows, tokenizer, text="q", text_pair="c", label="a", task="question-answering")
    assert [words(tokenizer, row) for row in found] == ["slow", "fast"]


def test_a_long_context_comes_in_windows(tokenizer: Any) -> None:
    room = 4
    features = encode(tokenizer, "slowly", max_length=6 + room, stride=2)
    context = tokenizer(CONTEXT, add_special_tokens=False)["input_ids"]
    windows = [row["input_ids"][5:-1] for row in features]
    assert windows[0] == context[:room] and windows[1] == context[room - 2 : 2 * room - 2]
    assert windows[-1][-1] == context[-1] and all(len(row["input_ids"]) <= 10 for row in features)
    held = [row for row in features if row["labels"] != [0, 0]]
    assert held and all(words(tokenizer, row) == "slowly" for row in held)
    pieces = tokenizer("slowly", add_special_tokens=False)["input_ids"]
    whole = [any(w[i : i + len(pieces)] == pieces for i in range(len(w))) for w in windows]
    assert len(held) == sum(whole)
    # Without a stride the context is cut, and so is the answer.
    [cut] = encode(tokenizer, "slowly", max_length=10)
    assert cut["labels"] == [0, 0] and cut["input_ids"][5:-1] == context[:room]


def test_tokenizers_that_lose_windows_are_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As 0.23.1 and 0.23.2 do: a text's last windows, and the answers in them, would be gone without a word."""
    import tokenizers

    lossy = MagicMock()
    lossy.return_value.encode.return_value.overflowing = [[0] * 4]
    monkeypatch.setattr(tokenizers, "Tokenizer", lossy)
    spans._check_windows.cache_clear()
    with pytest.raises(RuntimeError, match=r"stride: tokenizers .* loses the last windows .* want 0\.23\.3"):
        encode(tokenizer, "slowly", max_length=10, stride=2)
    assert len(encode(tokenizer, "slowly", max_length=10)) == 1
    monkeypatch.undo()
    assert len(encode(tokenizer, "slowly", max_length=10, stride=2)) > 1


@pytest.mark.parametrize(
    ("answers", "settings", "said"),
    [
        (["nowhere"], {}, "column 'a', row 1: 'nowhere' is not in the context"),
        (["two states", "was"], {}, "row 2: the context has 'was' more than once, want answer_start"),
        ([{"text": ["two"], "answer_start": [5]}], {}, "'two' is not in the context at 5"),
        ([{"text": ["two"], "start": [13]}], {}, "is no answer, want its text, or a mapping"),
        (["two states"], {"text_pair": None, "text": "c"}, "text_pair: got None"),
        (
            ["two states"],
            {"max_length": 8, "stride": 4},
            "max_length: got 8, want more: a question of 3 tokens",
        ),
        (["two states"], {"stride": -1}, "stride: got -1"),
        (
            ["two states"],
            {"stride": 2, "task": "sequence-classification"},
            "stride: got 2 for task 'sequence-",
        ),
    ],
)
def test_answers_that_are_none(tokenizer: Any, answers: Any, settings: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encode(tokenizer, *answers, **settings)


def test_texts_of_a_pair_stay_apart_for_embeddings(tokenizer: Any) -> None:
    rows = [{"a": "good film", "b": "bad", "y": 0.5}, {"a": "slow", "b": "fast plot", "y": 4}]
    features = data.encode(rows, tokenizer, text="a", text_pair="b", label="y", task="embedding")
    plain = [tokenizer(text)["input_ids"] for text in ("good film", "bad", "slow", "fast plot")]
    assert features["input_ids"][:] == plain and features["labels"][:] == [0.5, 0.5, 4.0, 4.0]
    alone = data.encode(rows, tokenizer, text="a", task="embedding")
    assert alone["input_ids"][:] == plain[::2] and "labels" not in alone.column_names
    with pytest.raises(ValueError, match="label: got 'y' without text_pair"):
        data.encode(rows, tokenizer, text="a", label="y", task="embedding")


def test_a_pair_that_is_too_long_is_cut_as_transformers_cuts_it(tokenizer: Any) -> None:
    rows = [
        {"a": "good film and good plot", "b": "bad actor"},
        {"a": "bad", "b": "the story was very slow and bad"},
    ]
    features = data.encode(rows, tokenizer, text="a", text_pair="b", max_length=8)
    for row, found in zip(rows, features, strict=True):
        plain = tokenizer(row["a"], row["b"], truncation=True, max_length=8)
        assert found["input_ids"] == plain["input_ids"] and len(found["input_ids"]) == 8
        assert found["token_type_ids"] == plain["token_type_ids"] and set(found["token_type_ids"]) == {0, 1}
