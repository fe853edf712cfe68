"""Features into a classifier.

Movie-review snippets. Pooled hidden states of a frozen encoder into scikit-learn's `MLPClassifier`: of the teacher,
and of the encoder as it was before fine-tuning; against TF-IDF into the same classifier. The dev split chooses among
15 layers and poolings (one or two words for TF-IDF) and, for each side, between two settings of the classifier.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bertxfer_fast import FeatureExtractor, data
from bertxfer_fast.features import FeatureCache

from ..row import Claim, Row, Run

#: Each is what `FeatureExtractor(layers=...)` takes; several are put side by side.
LAYERS = [(6,), (5,), (4,), (3,), (3, 4, 5, 6)]
POOLING = ["mean", "cls", "max"]
NGRAMS = [(1, 1), (1, 2)]


@functools.cache
def _cache(model: Path) -> FeatureCache:
    """What was extracted with a model, for all seeds."""
    return FeatureCache(layers=LAYERS, pooling=POOLING)


def measure(run: Run) -> None:
    problem = run.sentiment
    texts = {split: problem.texts(split) for split in ("train", "dev", "test")}
    labels = {split: np.array(data.load(problem.files[split])["label"]) for split in texts}
    common = {"hidden_layer_sizes": (128,), "random_state": run.seed}
    classifiers = {
        "until dev of its own falls": MLPClassifier(alpha=1e-2, early_stopping=True, max_iter=60, **common),
        "10 passes": MLPClassifier(alpha=1.0, learning_rate_init=3e-4, batch_size=128, max_iter=10, **common),
    }

    def best(candidates: dict[str, object]) -> dict[str, object]:
        """Of the candidates that which does best on the dev split, measured on the test split."""
        scores = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for name, pipeline in candidates.items():
                pipeline.fit(texts["train"], labels["train"])
                scores[name] = pipeline.score(texts["dev"], labels["dev"])
        chosen = max(scores, key=scores.__getitem__)
        test = candidates[chosen].score(texts["test"], labels["test"])
        return {"accuracy": test, "dev accuracy": scores[chosen], "chosen": chosen}

    def features(model: Path) -> dict[str, object]:
        encoder = FeatureExtractor(
            model, max_length=problem.max_length, combine="concat", cache=_cache(model)
        )
        grid = {
            f"layers {' '.join(map(str, layers))} {pooling}, {name}": make_pipeline(
                clone(encoder).set_params(layers=layers, pooling=pooling), StandardScaler(), clone(mlp)
            )
            for layers in LAYERS
            for pooling in POOLING
            for name, mlp in classifiers.items()
        }
        return best(grid)

    def tfidf() -> dict[str, object]:
        words = {"sublinear_tf": True, "max_features": 20_000, "dtype": np.float32}
        grid = {
            f"{'-'.join(map(str, n))}-grams, {name}": make_pipeline(
                TfidfVectorizer(ngram_range=n, **words), clone(mlp)
            )
            for n in NGRAMS
            for name, mlp in classifiers.items()
        }
        return best(grid)

    run.measure("teacher's features + MLP", lambda: features(problem.folder))
    run.measure("encoder's features + MLP", lambda: features(problem.encoder))
    run.measure("TF-IDF + MLP", tfidf)


def _over_tfidf(whose: str) -> Claim:
    return Claim(
        f"{whose} features over TF-IDF",
        f"{whose} features + MLP",
        "accuracy",
        "TF-IDF + MLP",
        "gain",
        least=0.02,
        beyond_error=True,
    )


ROW = Row("features", measure, (_over_tfidf("teacher's"), _over_tfidf("encoder's")), minutes=10)
