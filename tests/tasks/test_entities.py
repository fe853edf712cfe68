"""Entities and span F1, counted by hand from the definition."""

from __future__ import annotations

import math

import pytest

from bertxfer_fast.tasks.entities import entities_of, has_scheme, span_f1, span_precision, span_recall


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        # IOB2: every entity begins with B.
        ("O B-PER I-PER O B-LOC", [(1, 2, "PER"), (4, 4, "LOC")]),
        ("B-PER B-PER I-PER", [(0, 0, "PER"), (1, 2, "PER")]),
        # IOB1: B only where two of a type meet.
        ("I-PER I-PER B-PER O I-LOC", [(0, 1, "PER"), (2, 2, "PER"), (4, 4, "LOC")]),
        # Types that change end an entity, whatever the position says.
        ("B-PER I-LOC I-LOC", [(0, 0, "PER"), (1, 2, "LOC")]),
        # BIOES and BILOU.
        ("S-PER B-LOC I-LOC E-LOC S-LOC", [(0, 0, "PER"), (1, 3, "LOC"), (4, 4, "LOC")]),
        ("U-PER B-LOC I-LOC L-LOC U-LOC", [(0, 0, "PER"), (1, 3, "LOC"), (4, 4, "LOC")]),
        ("B-PER E-PER I-PER", [(0, 1, "PER"), (2, 2, "PER")]),
        ("E-PER S-PER", [(0, 0, "PER"), (1, 1, "PER")]),
        # A type may have dashes.
        ("B-geo-loc I-geo-loc", [(0, 1, "geo-loc")]),
        ("O O", []),
        ("", []),
    ],
)
def test_entities(labels: str, wanted: list[tuple[int, int, str]]) -> None:
    assert entities_of(labels.split()) == wanted


def test_an_entity_is_right_when_bounds_and_type_are() -> None:
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"], ["O", "O"]]
    guess = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "I-ORG"], ["B-LOC", "O"]]
    # Of four guesses one is right, of three entities one is found.
    assert span_precision(guess, right) == 1 / 4
    assert span_recall(guess, right) == pytest.approx(1 / 3)
    assert span_f1(guess, right) == pytest.approx(2 / 7)


def test_an_entity_does_not_reach_into_the_next_sequence() -> None:
    right = [["O", "B-PER"], ["I-PER", "O"]]
    assert span_f1([["O", "B-PER"], ["O", "O"]], right) == pytest.approx(2 / 3)
    assert span_f1(right, right) == 1.0


def test_nothing_to_find() -> None:
    empty, some = [["O", "O"]], [["B-PER", "O"]]
    assert math.isnan(span_f1(empty, empty)) and math.isnan(span_precision(empty, empty))
    assert (span_f1(some, empty), span_precision(some, empty)) == (0.0, 0.0)
    assert math.isnan(span_recall(some, empty))
    assert (span_f1(empty, some), span_precision(empty, some), span_recall(empty, some)) == (0.0, 0.0, 0.0)


def test_names_that_mark_entities() -> None:
    assert has_scheme(["O", "B-PER", "I-PER"]) and has_scheme(["O", "S-x", "E-x-y"])
    assert (
        not has_scheme(["NOUN", "VERB"]) and not has_scheme(["LABEL_0", "LABEL_1"]) and not has_scheme(["O"])
    )
