"""Answers over windows are those of trying every span with the plain model; scores are SQuAD's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset

from bertxfer_fast.evaluation import answers, squad_scores

from ..folders import tiny_tokenizer
from ..tiny import tiny_bert

QUESTIONS = ["was it good", "bad"]
CONTEXTS = [
    "The film, in two states, was slowly fine and the end was great. A very good plot it is not.",
    "fast",
]


def plain_answer(model: Any, tokenizer: Any, question: str, context: str, longest: int) -> tuple[str, bool]:
    """The best span of all windows by trying each, and whether no answer is likelier in every window."""
    tokens = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=16,
        stride=4,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found, none = (-1e9, ""), 1e9
    for i, ids in enumerate(tokens["input_ids"]):
        with torch.no_grad():
            out = model(torch.tensor([ids]), token_type_ids=torch.tensor([tokens["token_type_ids"][i]]))
        start, end = out.start_logits[0], out.end_logits[0]
        none = min(none, float(start[0] + end[0]))
        inside = [t for t, which in enumerate(tokens.sequence_ids(i)) if which == 1]
        for s in inside:
            for e in inside:
                if s <= e < s + longest and float(start[s] + end[e]) > found[0]:
                    offsets = tokens["offset_mapping"][i]
                    found = float(start[s] + end[e]), context[offsets[s][0] : offsets[e][1]]
    return found[1], none > found[0]


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_answers_are_the_best_spans_of_all_windows(tmp_path: Path, longest: int) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    lacking = []
    for seed in range(6):
        model = tiny_bert(2, 16, 4, head="ForQuestionAnswering", num_labels=2, seed=seed)
        settings = {"max_length": 16, "stride": 4, "longest": longest}
        found = answers(model, tokenizer, QUESTIONS, CONTEXTS, tokens_per_batch=20, **settings)
        sparing = answers(model, tokenizer, QUESTIONS, CONTEXTS, may_lack=True, **settings)
        for question, context, answer, spared in zip(QUESTIONS, CONTEXTS, found, sparing, strict=True):
            wanted, none = plain_answer(model, tokenizer, question, context, longest)
            assert answer == wanted and spared == ("" if none else wanted)
            lacking.append(none)
    assert any(lacking) and not all(lacking)


@pytest.mark.parametrize(
    "column", [list, tuple, pd.Series, lambda texts: Dataset.from_dict({"c": texts})["c"]]
)
def test_windows_are_as_long_as_the_model_takes(tmp_path: Path, column: Any) -> None:
    tokenizer, context = tiny_tokenizer(tmp_path), " ".join(CONTEXTS * 9)
    model = tiny_bert(2, 16, 4, head="ForQuestionAnswering", num_labels=2)
    wanted = answers(model, tokenizer, QUESTIONS, [context, "fast"], max_length=64, stride=21)
    assert answers(model, tokenizer, column(QUESTIONS), column([context, "fast"])) == wanted
    with pytest.raises(ValueError, match="max_length: got 65, want at most the 64 positions of the model"):
        answers(model, tokenizer, QUESTIONS, CONTEXTS, max_length=65)


def test_what_cannot_be_answered(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    with pytest.raises(
        ValueError, match="model: got BertForSequenceClassification, want one with a head for"
    ):
        answers(tiny_bert(head="ForSequenceClassification"), tokenizer, QUESTIONS, CONTEXTS)
    model = tiny_bert(head="ForQuestionAnswering", num_labels=2)
    with pytest.raises(ValueError, match="contexts: got 1, want one for each of 2 questions"):
        answers(model, tokenizer, QUESTIONS, CONTEXTS[:1])
    assert answers(model, tokenizer, [], []) == []


def test_scores_are_squads() -> None:
    assert squad_scores(["The Eiffel Tower!"], [["eiffel tower"]]) == {"exact_match": 1.0, "f1": 1.0}
    # 2 words shared of 3 and 2 (the article does not count): 2 * 2 / 5.
    assert squad_scores(["big eiffel tower"], [["an eiffel tower", "paris"]]) == {
        "exact_match": 0.0,
        "f1": 0.8,
    }
    # Words that come twice count twice; the best of several answers counts.
    found = squad_scores(["red red", "", "x"], [["red", "red red blue"], [], []])
    assert found["exact_match"] == pytest.approx(1 / 3) and found["f1"] == pytest.approx((0.8 + 1 + 0) / 3)
    with pytest.raises(ValueError, match="right: got answers to 1 questions, want 2"):
        squad_scores(["a", "b"], [["a"]])
    for answer, kind in (("a", "str"), ({"text": ["a"], "answer_start": [0]}, "dict")):
        with pytest.raises(TypeError, match=rf"right\[1\]: got {kind}, want a list of the right answers"):
            squad_scores(["a", "a"], [["a"], answer])  # type: ignore[list-item]
