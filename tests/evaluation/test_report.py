"""Tables by class against scikit-learn, attention against transformers, and a page that carries what was measured."""

from __future__ import annotations

import copy
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from sklearn import metrics

from bertxfer_fast import tasks
from bertxfer_fast.evaluation.assessment import Assessment, Resampling, assess, difference
from bertxfer_fast.evaluation.attention import attention_figure, compare_attention, last_attention
from bertxfer_fast.evaluation.classes import class_table, confusion_matrix
from bertxfer_fast.evaluation.intervals import Estimate
from bertxfer_fast.evaluation.predictions import Predictions, prediction_rows
from bertxfer_fast.evaluation.report import html_report
from bertxfer_fast.evaluation.results import compared, dump, measured, read_results

from ..folders import tiny_tokenizer
from ..tiny import tiny_bert

NAMES = ("neg", "neutral", "pos")


def of(
    task: str, outputs: Any, labels: Any, lengths: Any = None, names: tuple[str, ...] = NAMES
) -> Predictions:
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    ones = np.ones(len(labels), np.int64)
    return Predictions(
        tasks.get(task), outputs, labels, ones if lengths is None else np.array(lengths), names
    )


def random_classes(count: int = 60, classes: int = 3) -> Predictions:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes - 1, count)  # the last class is never right
    outputs = draw.normal(size=(count, classes)) + np.eye(classes)[labels]
    labels[3] = -100
    return of("sequence-classification", outputs, labels)


def test_classes_as_scikit_learn_counts_them() -> None:
    predictions = random_classes()
    counted = predictions.labels >= 0
    right, said = predictions.labels[counted], predictions.outputs.argmax(-1)[counted]
    found = confusion_matrix(predictions)
    assert found is not None and found["classes"] == list(NAMES)
    assert found["counts"] == metrics.confusion_matrix(right, said, labels=[0, 1, 2]).tolist()
    expected = metrics.precision_recall_fscore_support(right, said, labels=[0, 1, 2], zero_division=np.nan)
    for row, name, precision, recall, f1, support in zip(
        class_table(predictions), NAMES, *expected, strict=True
    ):
        assert (row["class"], row["support"]) == (name, support)
        for mine, theirs in zip(
            (row["precision"], row["recall"], row["f1"]), (precision, recall, f1), strict=True
        ):
            assert mine == (None if np.isnan(theirs) else pytest.approx(theirs))
    assert class_table(predictions)[2]["recall"] is None  # never right


def test_classes_of_other_tasks() -> None:
    labels = np.array([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]])
    outputs = np.array([[2.0, -1, -1], [-1, 1, 1], [1, 1, -2]])
    multi = of("multi-label-classification", outputs, labels)
    expected = metrics.precision_recall_fscore_support(labels, outputs > 0)
    assert [row["f1"] for row in class_table(multi)] == pytest.approx(expected[2])
    assert confusion_matrix(multi) is None
    token = of("token-classification", [1, 2, 0, 1], [1, 1, -100, 0], [3, 1])
    assert confusion_matrix(token) == {"classes": list(NAMES), "counts": [[0, 1, 0], [0, 1, 1], [0, 0, 0]]}
    for nothing in (
        of("regression", [[0.5]], [1.0], names=()),
        of("masked-lm", [5, 6], [5, -100], [2], names=()),
        of("sequence-classification", np.zeros((1, 101)), [100], names=()),
    ):
        assert class_table(nothing) == [] and confusion_matrix(nothing) is None


def test_predictions_in_words() -> None:
    [row] = prediction_rows(of("sequence-classification", [[0.0, np.log(2), 0.0]], [2]))
    assert row == {"row": 1, "label": "pos", "predicted": "neutral", "probability": pytest.approx(0.5)}
    [row] = prediction_rows(of("multi-label-classification", [[1, -1, 1]], [[1.0, 1, 0]]))
    assert row == {"row": 1, "label": ["neg", "neutral"], "predicted": ["neg", "pos"]}
    rows = prediction_rows(of("token-classification", [0, 2, 1], [-100, 1, 1], [2, 1]))
    assert rows[0] == {"row": 1, "label": ["neutral"], "predicted": ["pos"]} and rows[1]["row"] == 2
    [row] = prediction_rows(of("question-answering", [[1, 3]], [[2, 3]]))
    assert row == {"row": 1, "label first": 2, "label last": 3, "predicted first": 1, "predicted last": 3}
    [row] = prediction_rows(of("embedding", [[3.0, 4.0], [4.0, 3.0]], [0.5, 0.5], [2]))
    assert row == {"row": 1, "label": 0.5, "predicted": pytest.approx(24 / 25)}
    [row] = prediction_rows(of("regression", [[0.5]], [1.0]), [7])
    assert row == {"row": 7, "label": 1.0, "predicted": 0.5}
    [row] = prediction_rows(of("regression", [[0.5]], [1.0]))
    assert row == {"row": 1, "label": 1.0, "predicted": 0.5}


def test_attention_is_that_of_transformers(tmp_path: Path) -> None:
    tokenizer, teacher, student = tiny_tokenizer(tmp_path), tiny_bert(3, 16, 4), tiny_bert(2, 8, 2, seed=4)
    rows = [
        {"input_ids": ids}
        for ids in ([2, 5, 3], [2, 5, 6, 7, 8, 3], [2, *[6] * 30, 3], [2, 9, 8, 7, 6, 5, 3])
    ]
    maps = {}
    for model in (teacher, student):
        model.set_attn_implementation("eager")
        with torch.no_grad():
            output = model(torch.tensor([rows[1]["input_ids"]]), output_attentions=True)
        maps[model] = output.attentions[-1][0].mean(0).numpy()
        np.testing.assert_allclose(last_attention(model, rows[1]), maps[model], rtol=1e-4, atol=1e-5)
    pairs = compare_attention(teacher, student, rows, tokenizer, 5)
    assert [len(pair.tokens) for pair in pairs] == [6, 7]  # neither the very short text nor the very long one
    kl = (maps[teacher] * np.log(maps[teacher] / maps[student])).sum(-1).mean()
    assert pairs[0].divergence == pytest.approx(kl, rel=1e-4) and pairs[0].tokens[0] == "[CLS]"
    assert matplotlib.image.imread(io.BytesIO(attention_figure(pairs))).std() > 0.01
    with pytest.raises(ValueError, match="pairs: got none"):
        attention_figure([])


# ---- results and the page -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    rows = [{"input_ids": [2, *range(5, 6 + i % 5), 3], "labels": i % 3} for i in range(12)]
    models = {
        name: tiny_bert(layers, 16, 4, head="ForSequenceClassification", seed=layers)
        for name, layers in (("teacher", 3), ("student", 2), ("twin", 1))
    }
    resampling = Resampling(50, 3, 0.9)
    found = [assess(name, model, rows, repeats=1, resampling=resampling) for name, model in models.items()]
    facts = {"recipe": "tiny <b>", "teacher": "big", "command": "bertxfer distill a&b.yaml", "seed": 3}
    settings = [{"key": "seed", "value": 3, "default": 42}]
    stages = [{"stage": "one", "steps": 5, "seconds": 1.5}, {"stage": "two", "steps": 6, "seconds": 2.0}]
    return measured(found, resampling, on="dev.tsv", stages=stages, settings=settings, **facts)


def test_results_say_what_was_measured(results: dict[str, Any], tmp_path: Path) -> None:
    _, student, twin = results["models"]
    assert [model["model"] for model in results["models"]] == ["teacher", "student", "twin"]
    assert {"value", "low", "high"} == student["metrics"]["accuracy"].keys()
    assert sum(map(sum, student["confusion"]["counts"])) == 12 and student["parameters"] > twin["parameters"]
    gain = student["metrics"]["accuracy"]["value"] - twin["metrics"]["accuracy"]["value"]
    [over_teacher, over_twin] = results["differences"]
    assert over_twin["minus"] == "twin" and over_twin["metrics"]["accuracy"]["value"] == pytest.approx(gain)
    assert over_teacher["minus"] == "teacher"
    (tmp_path / "results.json").write_text(dump(results))
    assert read_results(tmp_path) == results == read_results(tmp_path / "results.json")


def test_a_difference_is_of_the_same_draws() -> None:
    """A model that is right once more than another, everywhere else alike: they differ by that or by nothing less."""
    draws = {"accuracy": np.linspace(0.4, 0.9, 101)}
    better = {"accuracy": draws["accuracy"] + 0.01}
    one = Assessment("a", 1, 1.0, metrics=_estimate(0.71), draws=better)
    other = Assessment("b", 1, 1.0, metrics=_estimate(0.7), draws=draws)
    found = difference(one, other)["accuracy"]
    assert (found.value, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))


def _estimate(value: float) -> dict[str, Estimate]:
    return {"accuracy": Estimate(value, value - 0.1, value + 0.1)}


class Page(HTMLParser):
    """Open tags, cells with their values, and whatever might be loaded from elsewhere."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.values: list[float] = []
        self.sources: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        if tag not in self.VOID:
            self.open.append(tag)
        named = dict(attributes)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]
        if named.get("data-value") is not None:
            self.values.append(float(named["data-value"] or "nan"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers(item)]
    if isinstance(value, list):
        return [n for item in value for n in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def test_the_page_carries_every_number_and_needs_nothing_else(
    results: dict[str, Any], tmp_path: Path
) -> None:
    maps = compare_attention(
        tiny_bert(2, 16, 4), tiny_bert(1, 16, 4), [{"input_ids": [2, 5, 6, 7, 3]}], tiny_tokenizer(tmp_path)
    )
    text = html_report(results, curves=b"\x89PNG curves", attention=maps)
    page = Page(text)
    assert page.open == [] and len(page.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in text and "url(" not in text and "@import" not in text
    wanted = [numbers(results[key]) for key in ("models", "differences", "stages", "settings")]
    missing = set(sum(wanted, [maps[0].divergence])) - set(page.values)
    assert not missing
    words = " ".join(page.words)
    for expected in (
        "tiny <b>",
        "bertxfer distill a&b.yaml",
        "on dev.tsv; low and high: 90% interval",
        "LABEL_2",
    ):
        assert expected in words
    assert "It has none." in html_report(results, no_attention="It has none.")
    assert "low and high: 99.5% interval" in html_report({**results, "confidence": 0.995})


def test_runs_as_lines_of_a_table(results: dict[str, Any]) -> None:
    alone = {**results, "models": [{**results["models"][0], "model": "m"}], "differences": [], "stages": []}
    line, other = compared([("a", results), ("b", alone)])
    teacher, student, twin = (model["metrics"]["accuracy"]["value"] for model in results["models"])
    assert line["accuracy"] == student and line["training s"] == 3.5 and line["run"] == "a"
    assert line["accuracy, of the teacher's"] == pytest.approx(student / teacher)
    assert line["accuracy, over the twin"] == pytest.approx(student - twin)
    other_values = copy.deepcopy(results)
    for model, value in zip(other_values["models"], (0.8, 0.6, 0.5), strict=True):
        model["metrics"]["accuracy"]["value"] = value
    [row] = compared([("c", other_values)])
    assert row["accuracy, of the teacher's"] == pytest.approx(0.75)
    assert other["accuracy"] == teacher and other.get("accuracy, over the twin") is None
    assert line["sentences/s"] == results["models"][1]["sentences/s"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "want results of format 1"),
        (json.dumps({"format": 2, "models": [1]}), "want results of format 1"),
    ],
)
def test_bad_results(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"runs: got .*, want a folder with a results\.json"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path)


def test_numbers_that_are_none_are_null() -> None:
    assert json.loads(dump({"a": [float("nan"), 1.5], "b": float("inf")})) == {"a": [None, 1.5], "b": None}
