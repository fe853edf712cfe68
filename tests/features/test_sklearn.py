"""A FeatureExtractor among scikit-learn's own: pipelines, clones, searches, and what is run how often."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

from bertxfer_fast.features import FeatureCache, FeatureExtractor, forget_models
from bertxfer_fast.features import loaded as loading
from bertxfer_fast.models.hf.encoder import PackedModel

from ..folders import sentences, tiny_tokenizer
from ..tiny import tiny_bert

TEXTS, LABELS = zip(*sentences(24, 0), strict=True)
GRID = {
    "featureextractor__layers": [-1, (-2, -1), (0,)],
    "featureextractor__pooling": ["cls", "mean"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    tiny_bert(3, 16, 4).save_pretrained(folder)
    tiny_tokenizer(folder)
    return folder


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often a model is loaded, and how many texts an encoder is given."""
    found = {"loads": 0, "texts": 0}
    load, run = loading.load, PackedModel.run

    def counted_load(*args: Any, **options: Any) -> Any:
        found["loads"] += 1
        return load(*args, **options)

    def counted_run(self: Any, batch: Any, tap: Any = None) -> Any:
        found["texts"] += len(batch["cu_seq_lens_q"]) - 1
        return run(self, batch, tap)

    forget_models()
    monkeypatch.setattr(loading, "load", counted_load)
    monkeypatch.setattr(PackedModel, "run", counted_run)
    yield found
    forget_models()


def test_a_pipeline_classifies_texts_as_its_parts_do(folder: Path) -> None:
    settings = {"hidden_layer_sizes": (8,), "max_iter": 30, "random_state": 0}
    pipeline = make_pipeline(FeatureExtractor(folder, device="cpu"), MLPClassifier(**settings))
    with pytest.warns(Warning, match="converged|iterations"):
        predicted = pipeline.fit(TEXTS, LABELS).predict(TEXTS)
        rows = FeatureExtractor(folder, device="cpu").extract(TEXTS).numpy()
        expected = MLPClassifier(**settings).fit(rows, LABELS).predict(rows)
    assert predicted.tolist() == expected.tolist() and len(set(predicted)) > 1
    again = pickle.loads(pickle.dumps(pipeline))
    assert again.predict(TEXTS).tolist() == predicted.tolist()
    assert len(pickle.dumps(pipeline[0])) < 2000  # the directory, not what is in it
    check_is_fitted(pipeline)
    assert "FeatureExtractor(model=" in repr(pipeline) and "device='cpu'" in repr(pipeline)


def test_the_constructor_stores_what_it_is_given(folder: Path) -> None:
    layers, weights = [-1, 0], [0.3, 0.7]
    extractor = FeatureExtractor(folder, layers=layers, layer_weights=weights, max_length=9)
    twin = clone(extractor)
    assert twin is not extractor and twin.get_params() == extractor.get_params()
    for one in (extractor, twin):
        assert one.layers is layers and one.layer_weights is weights and one.max_length == 9
    assert extractor.set_params(pooling="max") is extractor and extractor.get_params()["pooling"] == "max"
    with pytest.raises(ValueError, match="set_params: got 'poolin', want one of model, tokenizer"):
        extractor.set_params(poolin="max")
    model = tiny_bert(1, 16, 4)
    assert clone(FeatureExtractor(model)).model is model  # a frozen model is not copied


@pytest.mark.parametrize(
    "check",
    [
        "check_no_attributes_set_in_init",
        "check_get_params_invariance",
        "check_set_params",
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_valid_tag_types",
        "check_estimator_tags_renamed",
    ],
)
def test_scikit_learns_own_checks(folder: Path, check: str) -> None:
    getattr(estimator_checks, check)("FeatureExtractor", FeatureExtractor(folder))


def test_arguments_that_change_count_from_the_next_call(folder: Path) -> None:
    extractor = FeatureExtractor(folder, device="cpu")
    last = extractor.transform(TEXTS[:3])
    first = extractor.set_params(layers=0, pooling="cls").transform(TEXTS[:3])
    assert not np.allclose(first, last)
    assert np.array_equal(first, FeatureExtractor(folder, layers=(0,), pooling="cls").transform(TEXTS[:3]))
    with pytest.raises(ValueError, match="pooling: got 'median', want one of"):
        extractor.set_params(pooling="median").fit(TEXTS)


def test_a_grid_loads_the_model_once(folder: Path, counts: dict[str, int]) -> None:
    pipeline = make_pipeline(FeatureExtractor(str(folder), device="cpu"), LogisticRegression(max_iter=500))
    search = GridSearchCV(pipeline, GRID, cv=2, refit=False).fit(TEXTS, LABELS)
    assert counts["loads"] == 1
    assert counts["texts"] == 6 * 2 * len(TEXTS)  # each candidate and fold reads all texts anew
    # The numbers are those of features made beforehand.
    for layers, pooling, score in zip(
        search.cv_results_["param_featureextractor__layers"],
        search.cv_results_["param_featureextractor__pooling"],
        search.cv_results_["mean_test_score"],
        strict=True,
    ):
        rows = FeatureExtractor(folder, layers=layers, pooling=pooling, device="cpu").transform(TEXTS)
        expected = cross_val_score(LogisticRegression(max_iter=500), rows, LABELS, cv=2).mean()
        assert score == pytest.approx(expected, abs=0.05)


def test_with_a_cache_a_grid_runs_every_text_once(folder: Path, counts: dict[str, int]) -> None:
    cache = FeatureCache(layers=GRID["featureextractor__layers"], pooling=GRID["featureextractor__pooling"])
    extractor = FeatureExtractor(folder, device="cpu", cache=cache)
    search = GridSearchCV(make_pipeline(extractor, LogisticRegression(max_iter=500)), GRID, cv=3)
    search.fit(TEXTS, LABELS)
    different = len(set(TEXTS))
    assert counts == {"loads": 1, "texts": different} and cache.misses == different
    assert cache.megabytes == pytest.approx(different * 6 * 16 * 4 / 1e6)
    for layers in GRID["featureextractor__layers"]:
        for pooling in GRID["featureextractor__pooling"]:
            settings: dict[str, Any] = {"layers": layers, "pooling": pooling, "device": "cpu"}
            kept = FeatureExtractor(folder, cache=cache, **settings).transform(TEXTS)
            fresh = FeatureExtractor(folder, **settings).transform(TEXTS)
            np.testing.assert_allclose(kept, fresh, rtol=1e-4, atol=1e-5)


def test_a_cache_knows_texts_pairs_models_and_arguments_apart(tmp_path: Path) -> None:
    tokenizer, cache = tiny_tokenizer(tmp_path), FeatureCache()
    model, other = tiny_bert(2, 16, 4), tiny_bert(2, 16, 4, seed=5)
    texts, pairs = ["good film", "bad", "good film"], ["a", "b", "c"]

    def check(**settings: Any) -> None:
        given = {"model": model, "tokenizer": tokenizer, **settings}
        expected = FeatureExtractor(**given).extract(texts, pairs)
        torch.testing.assert_close(FeatureExtractor(**given, cache=cache).extract(texts, pairs), expected)

    for settings in (
        {},
        {"model": other},
        {"max_length": 4},
        {"normalize": True},
        {"layers": (0, 2), "combine": "concat"},
        {"layers": (0, 2), "layer_weights": (0.2, 0.8)},
        {"layers": (0, 2), "pooling": "max"},
    ):
        check(**settings)
    # The same characters, cut in two at another place.
    cuts = ["good film", "good"], [" bad", " film bad"]
    plain = {"model": model, "tokenizer": tokenizer}
    torch.testing.assert_close(
        FeatureExtractor(**plain, cache=cache).extract(*cuts), FeatureExtractor(**plain).extract(*cuts)
    )
    hits = cache.hits
    check()
    assert cache.hits == hits + 3
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(2)
    check()  # changed weights are another model
    assert cache.hits == hits + 3


def test_a_full_cache_computes_what_it_cannot_keep(folder: Path, counts: dict[str, int]) -> None:
    cache = FeatureCache(max_mb=3 * 16 * 4 / 1e6)
    extractor = FeatureExtractor(folder, device="cpu", cache=cache)
    texts = ["good", "bad", "fine", "poor", "good"]
    expected = FeatureExtractor(folder, device="cpu").transform(texts)
    for _ in range(2):
        np.testing.assert_allclose(extractor.transform(texts), expected, rtol=1e-4, atol=1e-5)
    assert counts["texts"] == 5 + 4 + 1
    assert pickle.loads(pickle.dumps(cache)).megabytes == 0


def test_another_model_in_the_directory_is_loaded(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path)
    rows = []
    for seed in (0, 1):
        tiny_bert(1, 16, 4, seed=seed).save_pretrained(tmp_path)
        rows.append(FeatureExtractor(tmp_path).transform(["good"]))
    assert not np.allclose(*rows)


def test_names_of_features(folder: Path) -> None:
    extractor = FeatureExtractor(folder, layers=(-2, -1), pooling="cls")
    names = extractor.get_feature_names_out()
    assert len(names) == 16 and names[15] == "cls_layers2+3_15"
    names = extractor.set_params(combine="concat").get_feature_names_out()
    assert len(names) == 32 == extractor.transform(["good"]).shape[1]
    assert (names[15], names[16]) == ("cls_layer2_15", "cls_layer3_0")
    pipeline = make_pipeline(FeatureExtractor(folder), LogisticRegression()).fit(TEXTS, LABELS)
    assert pipeline[:-1].get_feature_names_out()[0] == "mean_layer3_0"


def test_frames_where_scikit_learn_is_asked_for_them(folder: Path) -> None:
    series = pd.Series(TEXTS[:3], index=[7, 8, 9])
    plain = FeatureExtractor(folder, device="cpu")
    rows = plain.transform(series)
    assert isinstance(rows, np.ndarray)
    asked = FeatureExtractor(folder, device="cpu").set_output(transform="pandas").set_output()
    for extractor in (asked, clone(asked), copy.deepcopy(asked), pickle.loads(pickle.dumps(asked))):
        frame = extractor.transform(series)
        assert list(frame.columns) == list(plain.get_feature_names_out()) and list(frame.index) == [7, 8, 9]
        np.testing.assert_array_equal(frame.to_numpy(), rows)
    assert isinstance(asked.fit_transform(list(TEXTS[:3])), pd.DataFrame)
    assert isinstance(asked.set_output(transform="default").transform(series), np.ndarray)
    pipeline = make_pipeline(FeatureExtractor(folder), StandardScaler(), LogisticRegression())
    pipeline.set_output(transform="pandas").fit(TEXTS, LABELS)
    assert pipeline[-1].feature_names_in_[0] == "mean_layer3_0"
    columns = make_column_transformer((FeatureExtractor(folder), "one"), ("passthrough", ["n"]))
    frame = pd.DataFrame({"one": TEXTS[:4], "n": range(4)})
    named = columns.set_output(transform="pandas").fit_transform(frame)
    assert list(named.columns[[0, -1]]) == ["featureextractor__mean_layer3_0", "passthrough__n"]
    with config_context(transform_output="pandas"):
        assert isinstance(plain.transform(series), pd.DataFrame)
    with pytest.raises(ValueError, match="set_output: got 'xarray', want default, pandas or polars"):
        plain.set_output(transform="xarray")


def test_columns_of_a_table(folder: Path) -> None:
    frame = pd.DataFrame({"one": TEXTS[:4], "two": TEXTS[4:8], "n": range(4)})
    extractor = FeatureExtractor(folder, device="cpu")
    texts, pairs = list(TEXTS[:4]), list(TEXTS[4:8])
    for given, expected in (
        ("one", extractor.extract(texts)),
        (["one"], extractor.extract(texts)),
        (["one", "two"], extractor.extract(texts, pairs)),
    ):
        columns = make_column_transformer((extractor, given), ("passthrough", ["n"]))
        rows = columns.fit_transform(frame)
        np.testing.assert_allclose(rows[:, :-1], expected.numpy(), rtol=1e-4, atol=1e-5)
        assert rows[:, -1].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="X: got 3 columns, want one of texts, or two of pairs"):
        extractor.transform(np.array([["a", "b", "c"]]))
    with pytest.raises(ValueError, match="empty_rows: got 'skip', want error, zeros or keep"):
        FeatureExtractor(folder, empty_rows="skip").transform(["good"])
    assert not FeatureExtractor(folder, empty_rows="zeros").transform([None, "good"])[0].any()


def test_scikit_learn_is_not_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("bertxfer_fast.features")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)  # importing it fails
    features = importlib.import_module("bertxfer_fast.features")
    assert features.FeatureExtractor is not FeatureExtractor
    assert features.FeatureExtractor(folder).fit().transform(["good", "bad"]).shape == (2, 16)


def test_its_attributes_are_what_runs_and_its_parameters_what_was_given(folder: Path) -> None:
    extractor = FeatureExtractor(folder, device="cpu")
    assert extractor.model.config.hidden_size == 16 and extractor.tokenizer.model_max_length > 0
    assert extractor.get_params()["model"] is folder and extractor.get_params()["tokenizer"] is None
    other = tiny_bert(2, 12, 4)
    assert extractor.set_params(model=other).model is other


def test_a_deep_copy_has_a_model_of_its_own(folder: Path) -> None:
    forget_models()
    extractor = FeatureExtractor(folder, device="cpu")
    before = extractor.extract(TEXTS)
    copied = copy.deepcopy(extractor)
    with torch.no_grad():
        copied.model.embeddings.word_embeddings.weight.add_(1)
    assert not torch.equal(copied.extract(TEXTS), before)
    assert torch.equal(extractor.extract(TEXTS), before)


def test_pooling_is_known_by_its_older_name(folder: Path) -> None:
    with pytest.warns(DeprecationWarning, match="mode='max' is now called pooling='max'"):
        extractor = FeatureExtractor(folder, mode="max")
    assert clone(extractor).pooling == "max" and "mode" not in extractor.get_params()
