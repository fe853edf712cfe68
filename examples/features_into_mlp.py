"""[CLS] features of a frozen encoder into scikit-learn's MLP.

    python examples/features_into_mlp.py

Nothing of the encoder is trained: each text becomes one vector, and any classifier can learn from vectors. Which
layer to take, and how to pool it, is a choice that the dev split makes here. `FeatureExtractor` is a transformer in
scikit-learn's sense, so that a pipeline with it goes from texts to labels, and can be searched, cloned and pickled
like any other.

Prints a line for each layer and pooling with its accuracy on the dev split, then the best one's on the test split.
"""

from __future__ import annotations

import common
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bertxfer_fast import FeatureExtractor, data
from bertxfer_fast.features import FeatureCache


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv)
    # Plain lists of texts and labels: that is all a pipeline wants.
    texts, labels = {}, {}
    for split in ("train", "dev", "test"):
        rows = data.load(args.data / f"{split}.tsv")
        texts[split], labels[split] = list(rows["text"]), list(rows["label"])

    # With a cache that knows the whole grid the encoder reads each text once, whatever is asked of it later.
    grid = {"layers": [(-1,), (-2,)], "pooling": ["cls", "mean"]}
    encoder = FeatureExtractor(args.data / "teacher", max_length=64, cache=FeatureCache(**grid))

    found = []
    for layers in grid["layers"]:
        for pooling in grid["pooling"]:
            features = encoder.set_params(layers=layers, pooling=pooling)
            classifier = MLPClassifier((64,), early_stopping=True, random_state=1)
            pipeline = make_pipeline(features, StandardScaler(), classifier)
            pipeline.fit(texts["train"], labels["train"])
            dev, test = (pipeline.score(texts[split], labels[split]) for split in ("dev", "test"))
            print(f"layer {layers[0]} {pooling} dev {dev:.3f}")
            found.append((dev, test, f"layer {layers[0]} {pooling}"))

    # The dev split has chosen; only now the test split is looked at.
    _, test, name = max(found)
    print(f"best: {name} test {test:.3f}")


if __name__ == "__main__":
    main()
