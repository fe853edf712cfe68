"""Tokens of two tokenizers that stand for the same characters, compared with a search through single characters."""

from __future__ import annotations

import functools
import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertxfer_fast.data import encode_both
from bertxfer_fast.data.alignment import overlaps, places_of
from bertxfer_fast.packing import PackingCollator

from ..folders import WORDS, byte_tokenizer, tiny_tokenizer

LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrs")]
NAMES = ("words", "letters", "bytes", "untrimmed")
# Accents that one tokenizer strips, characters of several bytes, runs of spaces, what WordPiece does not know.
TEXTS = st.lists(
    st.sampled_from([*WORDS[:12], "a", "Goodly", "é", "naïve", "😀x", "  ", ",", "\t"]), max_size=7
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("tokenizers")
    return {
        "words": tiny_tokenizer(folder / "words"),
        "letters": tiny_tokenizer(folder / "letters", words=LETTERS[: len(WORDS)]),
        "bytes": byte_tokenizer(folder / "bytes"),
        "untrimmed": byte_tokenizer(folder / "untrimmed", trim_offsets=False),
    }


def characters(tokens: Any, words: bool) -> list[set[Any]]:
    """What each token stands for: characters of the texts, or a part of the special tokens of one place."""
    found: list[set[Any]] = []
    region, together = 0, []
    for i, (first, last) in enumerate(tokens["offset_mapping"][0]):
        text = tokens.sequence_ids(0)[i]
        if text is None:
            together.append(i)
            found.append({("special", region)})
            continue
        region = text + 1
        word = tokens.word_ids(0)[i] if words else None
        found.append({(text, word, character) for character in range(first, last)})
    for place in range(region + 1):
        here = [i for i in together if found[i] == {("special", place)}]
        for number, i in enumerate(here):
            found[i] = {(f"special {place}", Fraction(number, len(here)), Fraction(number + 1, len(here)))}
    return found


def meet(one: set[Any], other: set[Any]) -> bool:
    """Whether two tokens have a character in common, or as special tokens of one place a part of it."""
    for place, start, end in one:
        for other_place, other_start, other_end in other:
            if isinstance(start, Fraction) and isinstance(other_start, Fraction):
                if place == other_place and start < other_end and other_start < end:
                    return True
            elif (place, start, end) == (other_place, other_start, other_end):
                return True
    return False


def check(tokenizers: Any, texts: tuple[Any, ...], *sides: tuple[str, int]) -> None:
    """`sides` are the student's tokenizer and longest sequence, and the teacher's."""
    words = isinstance(texts[0], list)
    tokens = [
        tokenizers[name](
            *([text] for text in texts),
            is_split_into_words=words,
            truncation=True,
            max_length=longest,
            return_offsets_mapping=True,
        )
        for name, longest in sides
    ]
    mine, theirs = (characters(each, words) for each in tokens)
    spans = overlaps(*(places_of(each, 0, texts) for each in tokens))
    assert len(spans) == len(tokens[0]["input_ids"][0])
    for token, (first, last) in zip(mine, spans.tolist(), strict=True):
        wanted = {i for i, other in enumerate(theirs) if meet(token, other)}
        assert {i for i in range(first, last) if theirs[i]} == wanted
        assert wanted or first == last


SIDES = st.tuples(st.sampled_from(NAMES), st.integers(5, 40))


@settings(max_examples=150, deadline=None)
@given(texts=st.tuples(TEXTS, TEXTS), pair=st.booleans(), student=SIDES, teacher=SIDES)
def test_spans_are_those_of_a_search_through_characters(
    tokenizers: Any, texts: Any, pair: bool, student: Any, teacher: Any
) -> None:
    joined = " ".join(texts[0]), "".join(texts[1])
    check(tokenizers, joined if pair else joined[:1], student, teacher)


@settings(max_examples=50, deadline=None)
@given(texts=st.tuples(TEXTS, TEXTS), pair=st.booleans(), student=SIDES, teacher=SIDES)
def test_words_of_lists_are_told_apart(
    tokenizers: Any, texts: Any, pair: bool, student: Any, teacher: Any
) -> None:
    """Offsets of lists of words begin anew with every word."""
    check(tokenizers, texts if pair else texts[:1], student, teacher)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8),
)
def test_overlaps_of_any_rising_places(student: Any, teacher: Any) -> None:
    def places(steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
        ends = np.cumsum([sum(step) for step in steps], dtype=int)
        return [(int(end) - step[1], int(end)) for end, step in zip(ends, steps, strict=True)]

    mine, theirs = places(student), places(teacher)
    for (start, end), (first, last) in zip(mine, overlaps(mine, theirs).tolist(), strict=True):
        wanted = [i for i, other in enumerate(theirs) if set(range(start, end)) & set(range(*other))]
        assert [i for i in range(first, last) if theirs[i][0] < theirs[i][1]] == wanted


def test_known_rows(tokenizers: Any) -> None:
    """[CLS] film ##s [SEP] and [CLS] f ##i ##l ##m ##s [SEP]."""
    [row] = encode_both([{"text": "films"}], tokenizers["letters"], tokenizers["words"], align=True)
    assert row["teacher_spans"] == [[0, 1], [1, 2], [1, 2], [1, 2], [1, 2], [2, 3], [3, 4]]
    [row] = encode_both([{"text": "films"}], tokenizers["words"], tokenizers["letters"], align=True)
    assert row["teacher_spans"] == [[0, 1], [1, 5], [5, 6], [6, 7]]
    assert "offsets" not in row and "teacher_offsets" not in row


def test_rows_of_pairs_and_of_words(tokenizers: Any) -> None:
    """Between two texts stands one special token of BERT's, or two of RoBERTa's."""
    both = functools.partial(encode_both, align=True)
    pair = {"text": "films", "pair": "bad"}
    [row] = both([pair], tokenizers["words"], tokenizers["letters"], text_pair="pair")
    assert row["teacher_spans"] == [[0, 1], [1, 5], [5, 6], [6, 7], [7, 10], [10, 11]]
    [row] = both([{"text": "a", "pair": "a"}], tokenizers["words"], tokenizers["bytes"], text_pair="pair")
    assert row["teacher_spans"] == [[0, 1], [1, 2], [2, 4], [4, 5], [5, 6]]
    [row] = both([{"text": "a", "pair": "a"}], tokenizers["bytes"], tokenizers["words"], text_pair="pair")
    assert row["teacher_spans"] == [[0, 1], [1, 2], [2, 3], [2, 3], [3, 4], [4, 5]]
    rows = both([{"text": ["a", "films"]}, {"text": ["good"]}], tokenizers["words"], tokenizers["letters"])
    assert list(rows["teacher_spans"]) == [
        [[0, 1], [1, 2], [2, 6], [6, 7], [7, 8]],
        [[0, 1], [1, 5], [5, 6]],
    ]
    apart = both([pair], tokenizers["words"], tokenizers["letters"], text_pair="pair", task="embedding")
    assert list(apart["teacher_spans"]) == [
        [[0, 1], [1, 5], [5, 6], [6, 7]],
        [[0, 1], [1, 4], [4, 5]],
    ]


def test_rows_without_text_have_no_spans(tokenizers: Any) -> None:
    rows = [{"text": "bad"}, {"text": ""}]
    both = encode_both(rows, tokenizers["words"], tokenizers["letters"], align=True, empty_rows="zeros")
    assert list(both["teacher_spans"]) == [[[0, 1], [1, 4], [4, 5]], []]


def test_the_collator_moves_spans_into_the_pack(tokenizers: Any) -> None:
    rows = [{"text": "slowly moving"}, {"text": "good"}, {"text": "a  bad film"}]
    both = encode_both(rows, tokenizers["bytes"], tokenizers["words"], align=True, teacher_max_length=4)
    rows = [both[i] for i in range(len(both))]
    batch = PackingCollator()(rows)
    starts = batch["teacher_cu_seq_lens_q"].tolist()
    spans = [
        (a + start, b + start)
        for row, start in zip(rows, starts, strict=False)
        for a, b in row["teacher_spans"]
    ]
    assert any(a == b for a, b in spans)
    assert batch["alignment_rows"].tolist() == [i for i, (a, b) in enumerate(spans) if a < b]
    bounds, tokens = batch["alignment_bounds"].tolist(), batch["alignment_tokens"].tolist()
    held = [tokens[a:b] for a, b in itertools.pairwise(bounds)]
    assert held == [list(range(a, b)) for a, b in spans if a < b]


def test_spans_that_do_not_fit_are_refused(tokenizers: Any) -> None:
    [row] = encode_both([{"text": "good"}], tokenizers["words"], tokenizers["words"], align=True)
    for spans in ([[0, 1], [1, 2], [2, 4]], [[0, 1], [2, 1], [2, 3]], [[-1, 1], [1, 2], [2, 3]]):
        with pytest.raises(
            ValueError, match=r"features\[0\]: got \[.*\] in teacher_spans, want the first and one"
        ):
            PackingCollator()([{**row, "teacher_spans": spans}])
    with pytest.raises(
        ValueError, match=r"got teacher_spans of shape \[2, 2\], want one for each of 3 input_ids"
    ):
        PackingCollator()([{**row, "teacher_spans": row["teacher_spans"][:2]}])
