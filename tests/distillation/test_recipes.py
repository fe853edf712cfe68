"""Recipes: TinyBERT's two stages as published, and errors that name the nearest known word."""

from __future__ import annotations

import dataclasses

import pytest

from bertxfer_fast.distillation import recipes
from bertxfer_fast.distillation.objectives import AttentionScores, HiddenStates, Logits, Temperature
from bertxfer_fast.models import EncoderSpec


def test_tinybert_is_the_papers_two_stages():
    recipe = recipes.get("tinybert")
    assert recipe.name == "tinybert" and recipe.needs_teacher
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


def objectives_of(name: str, **options: object) -> list[list[tuple[str, float]]]:
    return [
        [(type(o).__name__, o.weight) for o in stage.build_objectives() if o.weight]
        for stage in recipes.get(name, **options).stages
    ]


def test_the_others_are_what_their_papers_say():
    assert objectives_of("tinybert_general") == [[("AttentionScores", 1), ("HiddenStates", 1)]]
    assert objectives_of("minilm") == [[("AttentionMaps", 1), ("Relations", 1)]]
    assert objectives_of("minilm", prediction=True)[1] == [("Logits", 1)]
    assert objectives_of("minilmv2", prediction=True) == [[("Relations", 1)], [("Logits", 1)]]
    assert objectives_of("distilbert") == [[("LinearLogits", 5), ("Labels", 2), ("HiddenCosine", 1)]]
    assert objectives_of("distilbert", logits="whole")[0][0] == ("Logits", 5)
    assert objectives_of("pkd", alpha=0.25) == [[("Labels", 0.75), ("Logits", 0.25), ("PatientStates", 100)]]
    assert objectives_of("embedding") == [[("Embeddings", 1)]]
    assert objectives_of("embedding", scores_weight=0.5) == [[("Embeddings", 1), ("Scores", 0.5)]]
    assert objectives_of("logits") == [[("Logits", 1)]]
    assert objectives_of("logits", labels_weight=0.5) == [[("Logits", 1), ("Labels", 0.5)]]
    assert objectives_of("finetune") == [[("Labels", 1)]]
    needless = [name for name in recipes.names() if not recipes.get(name).needs_teacher]
    assert needless == ["finetune"]
    (stage,) = recipes.get("distilbert").stages
    assert stage.masking == 0.15 and stage.build_objectives()[0].temperature == Temperature(2.0)
    (large,) = recipes.get("minilmv2", heads=64, teacher_layer=20).stages
    (relations,) = large.build_objectives()
    facts = [EncoderSpec("Model", n, 1024, 16, 64) for n in (12, 24)]
    relations.bind(*facts)
    assert relations.pairs == ((11, 20),) and (relations.of, relations.heads) == ("qkv", 64)


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        # By objective what counts: MiniLM is KL on maps and on values, MiniLMv2 has 48 heads for base teachers.
        ("minilm", {}, [{"kind": "kl", "layers": "last"}, {"of": "v", "heads": None, "layers": "last"}]),
        ("minilm", {"layers": "uniform"}, [{"layers": "uniform"}, {"layers": "uniform"}]),
        ("minilm", {"prediction": True, "temperature": 3.0}, [{}, {}, {"temperature": Temperature(3.0)}]),
        ("minilmv2", {}, [{"of": "qkv", "heads": 48}]),
        ("distilbert", {"tokens": "labelled"}, [{"tokens": "labelled"}, {}, {"layers": "last"}]),
        ("distilbert", {"temperature": 3.0}, [{"temperature": Temperature(3.0)}, {}, {}]),
        (
            "distilbert",
            {"logits": "whole", "temperature": 3.0},
            [{"temperature": Temperature(3.0), "kind": "kl"}, {}, {}],
        ),
        ("pkd", {}, [{}, {"temperature": Temperature(5.0), "kind": "kl"}, {"layers": "skip"}]),
        (
            "pkd",
            {"layers": "uniform", "projection": "none"},
            [{}, {}, {"layers": "uniform", "projection": "none"}],
        ),
        (
            "embedding",
            {
                "pooling": "cls",
                "temperature": 0.1,
                "scores": "margin_mse",
                "distance": "l2",
                "normalize": False,
            },
            [
                {"pooling": "cls", "distance": "l2", "normalize": False},
                {
                    "pooling": "cls",
                    "temperature": Temperature(0.1),
                    "kind": "margin_mse",
                    "normalize": False,
                },
            ],
        ),
        ("embedding", {"projection": "pca", "sizes": [4]}, [{"projection": "pca", "sizes": (4,)}, {}]),
        (
            "tinybert_general",
            {"layers": "last", "padding": "reference", "projection": "none"},
            [
                {"layers": "last", "padding": "reference"},
                {"layers": "last", "padding": "reference", "projection": "none"},
            ],
        ),
        (
            "logits",
            {"kind": "mse", "temperature": 3.0},
            [{"kind": "mse", "temperature": Temperature(3.0)}, {}],
        ),
    ],
)
def test_options_are_those_of_the_objectives(name, options, wanted):
    found = [o for stage in recipes.get(name, **options).stages for o in stage.build_objectives()]
    told = [{key: getattr(o, key) for key in facts} for o, facts in zip(found, wanted, strict=True)]
    assert told == wanted


def test_what_counts_nothing_needs_no_teacher():
    assert not recipes.get("logits", weight=0.0, labels_weight=1.0).needs_teacher
    assert recipes.get("logits", labels_weight=1.0).needs_teacher


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
        ("xyz", {}, "recipe: got 'xyz', want a known one; known: distilbert, embedding, finetune"),
        ("pkd", {"alpha": 2}, "alpha: got 2, want 0 to 1"),
        ("distilbert", {"masking": 1.5}, "masking: got 1.5, want a share of the tokens"),
        ("distilbert", {"logits": "some"}, "logits: got 'some', want one of 'vocabulary', 'whole'"),
        (
            "minilmv2",
            {"teacher_layer": "first"},
            "teacher_layer: got 'first', want a layer from 0, or 'last'",
        ),
        ("logits", {"temperature": {"kind": "flsw", "value": -1}}, "temperature: got -1, want a positive"),
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
