"""Recipes: TinyBERT's two stages as published, and errors that name the nearest known word."""

from __future__ import annotations

import dataclasses

import pytest

from bertxfer_fast.distillation import recipes
from bertxfer_fast.distillation.objectives import AttentionScores, HiddenStates, Logits, Temperature


def test_tinybert_is_the_papers_two_stages():
    recipe = recipes.get("tinybert")
    assert recipes.names() == ["tinybert"] and recipe.name == "tinybert"
    first, second = recipe.stages
    assert (first.name, second.name) == ("intermediate", "prediction")
    assert first.training == {
        "per_device_train_batch_size": 32,
        "learning_rate": 5e-5,
        "num_train_epochs": 10,
    }
    assert second.training == {
        "per_device_train_batch_size": 32,
        "learning_rate": 3e-5,
        "num_train_epochs": 3,
        "warmup_steps": 0.1,
    }
    scores, hidden = first.build_objectives()
    assert isinstance(scores, AttentionScores) and isinstance(hidden, HiddenStates)
    assert (scores.padding, hidden.projection, scores.weight, hidden.weight) == ("valid", "shared", 1.0, 1.0)
    (logits,) = second.build_objectives()
    assert isinstance(logits, Logits) and (logits.temperature, logits.kind) == (Temperature(1.0), "soft_ce")


def test_options_reach_the_objectives_and_stages_are_built_anew():
    recipe = recipes.get("tinybert", padding="reference", hidden_weight="linear_decay", temperature=2.0)
    first, second = recipe.stages
    scores, hidden = first.build_objectives()
    assert scores.padding == hidden.padding == "reference" and hidden.schedule == "linear_decay"
    assert second.build_objectives()[0].temperature == Temperature(2.0)
    assert first.build_objectives()[0] is not scores
    assert recipes.options("tinybert")["projection"] == "shared"


def test_the_training_defaults_are_fields_of_the_arguments():
    transformers = pytest.importorskip("transformers")
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    for name in recipes.names():
        for stage in recipes.get(name).stages:
            assert set(stage.training) <= known


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tinybrt", {}, "recipe: got 'tinybrt', want a known one; did you mean 'tinybert'"),
        ("xyz", {}, "recipe: got 'xyz', want a known one; known: tinybert"),
        (
            "tinybert",
            {"paddings": "valid"},
            "recipe tinybert: got option 'paddings', want a known one; did you mean 'padding'",
        ),
        ("tinybert", {"qqq": 1}, "got option 'qqq', want a known one; known: attention_weight"),
        ("tinybert", {"padding": "refrence"}, "did you mean 'reference'"),
        ("tinybert", {"temperature": -1.0}, "temperature: got -1.0, want a positive number"),
    ],
)
def test_unknown_words(name, options, message):
    with pytest.raises(ValueError, match=message):
        recipes.get(name, **options)
