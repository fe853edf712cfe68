"""Features equal what transformers computes one text at a time, whatever the batching; and the evaluation functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertTokenizerFast, PreTrainedModel

from bertxfer_fast import evaluate
from bertxfer_fast.encoder import PackedModel
from bertxfer_fast.features import FeatureExtractor, has_tokenizer, load_tokenizer, save_features

from .tiny import VOCAB, tiny_bert

_WORDS = """good bad fine poor great awful film movie plot actor scene story music the a is was not very and but
it of in to this that with one two red blue green fast slow up down left right states ##s ##ly ##ing , ."""
WORDS = _WORDS.split()
TEXTS = [
    "good film",
    "the plot was not very good",
    "",
    "bad",
    "a great story with music and one slow scene .",
]


def tiny_tokenizer(folder: Path, *, lowercase: bool = True, words: list[str] | None = None) -> Any:
    """A WordPiece tokenizer of 50 tokens, as many as the tiny models know."""
    folder.mkdir(parents=True, exist_ok=True)
    words = WORDS if words is None else words
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    assert len(vocab) == len(set(vocab)) == VOCAB
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    tokenizer = BertTokenizerFast(
        vocab={word: i for i, word in enumerate(vocab)}, do_lower_case=lowercase, model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_bert(3, 16, 4)


def reference(model: Any, tokenizer: Any, text: str, layers: list[int], mode: str) -> torch.Tensor:
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    x = torch.stack([hidden[layer][0] for layer in layers]).mean(0)
    pooled = {"mean": x.mean(0), "cls": x[0], "max": x.amax(0), "mean_sqrt": x.sum(0) / len(x) ** 0.5}
    return pooled[mode]


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "mean_sqrt"])
@pytest.mark.parametrize("layers", [[-1], [0, 2], [-1, 1]])
def test_features_equal_transformers(
    tmp_path: Path, model: PreTrainedModel, mode: str, layers: list[int]
) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    extractor = FeatureExtractor(model, tokenizer, layers=layers, mode=mode, tokens_per_batch=12)
    model.set_attn_implementation("bertxfer")
    got = extractor.extract(TEXTS)
    expected = torch.stack([reference(model, tokenizer, text, layers, mode) for text in TEXTS])
    assert got.dtype == torch.float32 and got.shape == (5, 16)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_weights_normalisation_and_pairs(tmp_path: Path, model: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    extractor = FeatureExtractor(model, tokenizer, layers=(1, -1), layer_weights=(0.25, 0.75), normalize=True)
    got = extractor.extract(["good film"], ["bad plot"])
    inputs = tokenizer("good film", "bad plot", return_tensors="pt")
    assert inputs["token_type_ids"].any()
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    expected = (0.25 * hidden[1] + 0.75 * hidden[3])[0].mean(0)
    torch.testing.assert_close(got[0], expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_only_the_layers_needed_run(tmp_path: Path, model: PreTrainedModel) -> None:
    ran: list[int] = []
    for i, layer in enumerate(model.encoder.layer):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    FeatureExtractor(model, tiny_tokenizer(tmp_path), layers=(1,)).extract(["good film"])
    assert ran == [0]


def test_a_model_in_training_stays_in_training(tmp_path: Path) -> None:
    model = tiny_bert(2, 16, 4, dropout=0.5).train()
    extractor = FeatureExtractor(model, tiny_tokenizer(tmp_path))
    assert torch.equal(extractor.extract(TEXTS), extractor.extract(TEXTS))
    assert model.training


def test_from_a_directory_and_no_texts(tmp_path: Path, model: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    model.save_pretrained(tmp_path)
    extractor = FeatureExtractor(tmp_path, device="cpu")
    expected = FeatureExtractor(model, tokenizer).extract(TEXTS)
    torch.testing.assert_close(extractor.extract(TEXTS), expected)
    assert extractor.extract([]).shape == (0, 16)
    assert torch.equal(
        extractor.extract_ids([{"input_ids": []}, {"input_ids": [2, 5, 3]}])[0], torch.zeros(16)
    )


def test_long_texts_are_cut(tmp_path: Path, model: PreTrainedModel) -> None:
    extractor = FeatureExtractor(model, tiny_tokenizer(tmp_path))
    assert extractor.max_length == 64
    long = " ".join(["good"] * 500)
    assert torch.equal(extractor.extract([long]), extractor.extract([" ".join(["good"] * 62)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (4,)}, r"layers: the model has hidden states 0\.\.3, got 4"),
        ({"layers": (-5,)}, "got -5"),
        ({"layers": (3, -1)}, "names a layer twice"),
        ({"layers": ()}, "at least one layer"),
        ({"mode": "median"}, "mode: wants one of mean"),
        ({"layer_weights": (1, 2)}, "layer_weights: wants 1 numbers, got 2"),
        ({"max_length": 65}, "has 64 positions, got 65"),
        ({"tokens_per_batch": 0}, "tokens_per_batch: wants 1 or more"),
    ],
)
def test_bad_settings(tmp_path: Path, model: PreTrainedModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureExtractor(model, tiny_tokenizer(tmp_path), **settings)


def test_bad_input(tmp_path: Path, model: PreTrainedModel) -> None:
    with pytest.raises(TypeError, match="texts"):
        FeatureExtractor(model, tiny_tokenizer(tmp_path / "t")).extract("one string")
    with pytest.raises(ValueError, match="tokenizer"):
        FeatureExtractor(model).extract(["good"])
    with pytest.raises(ValueError, match="pairs: wants 1 texts, got 2"):
        FeatureExtractor(model, tiny_tokenizer(tmp_path / "t")).extract(["good"], ["a", "b"])
    with pytest.raises(ValueError, match="no such directory"):
        FeatureExtractor(tmp_path / "nowhere")
    model.save_pretrained(tmp_path / "bare")
    assert not has_tokenizer(tmp_path / "bare")
    with pytest.raises(ValueError, match="there is no tokenizer"):
        load_tokenizer(tmp_path / "bare")


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".csv"])
def test_files_give_the_features_back(tmp_path: Path, suffix: str) -> None:
    features = torch.randn(4, 3)
    path = save_features(features, tmp_path / f"x{suffix}")
    back = {
        ".npy": lambda: torch.from_numpy(np.load(path)),
        ".safetensors": lambda: load_file(path)["features"],
        ".csv": lambda: torch.tensor(np.loadtxt(path, delimiter=",", skiprows=1), dtype=torch.float32),
    }[suffix]()
    assert torch.equal(back, features)
    with pytest.raises(ValueError, match=r"\.txt|\.npy"):
        save_features(features, tmp_path / "x.txt")


# ---- evaluate.py --------------------------------------------------------------------------------------------


def rows(count: int = 9) -> list[dict[str, Any]]:
    return [{"input_ids": [2, *range(5, 6 + i % 5), 3], "labels": i % 3} for i in range(count)]


def test_evaluate_equals_padded_inference() -> None:
    model = tiny_bert(2, 16, 4, head="ForSequenceClassification", dropout=0.5).train()
    got = evaluate.evaluate(model, rows(), tokens_per_batch=10)
    assert model.training
    model.eval()
    with torch.no_grad():
        right = [int(model(torch.tensor([r["input_ids"]])).logits.argmax()) == r["labels"] for r in rows()]
    assert got == {"accuracy": pytest.approx(sum(right) / len(right))}
    with pytest.raises(ValueError, match="no labels"):
        evaluate.evaluate(model, [{"input_ids": [2, 3]}])
    with pytest.raises(ValueError, match="no head"):
        evaluate.evaluate(tiny_bert(2, 16, 4), rows())
    with pytest.raises(ValueError, match="empty"):
        evaluate.evaluate(model, [])


def test_summary_counts_tied_weights_once() -> None:
    model = tiny_bert(2, 16, 4, head="ForMaskedLM")
    unique = {p.data_ptr(): p.numel() for p in model.parameters()}
    assert evaluate.parameter_count(model) == sum(unique.values())
    assert evaluate.size_mb(model) == pytest.approx(4 * sum(unique.values()) / 1e6)
    row = evaluate.summary(tiny_bert(2, 16, 4, head="ForSequenceClassification"), rows(), repeats=1)
    assert set(row) == {"accuracy", "parameters", "MB", "sentences/s"} and row["sentences/s"] > 0
    assert set(evaluate.summary(model, None)) == {"parameters", "MB"}
    with pytest.raises(ValueError, match="repeats"):
        evaluate.throughput(model, rows(), repeats=0)


@pytest.mark.parametrize(
    ("kind", "logits", "labels", "expected"),
    [
        ("classification", [[1, 2], [3, 1], [0, 5]], [1, 0, -100], {"accuracy": 1.0}),
        ("classification", [[1, 2], [3, 1]], [0, 0], {"accuracy": 0.5}),
        ("multi-label", [[1, -1], [1, 1]], [[1.0, 0.0], [0.0, 1.0]], {"accuracy": 0.75}),
        ("token", [1, 2, 0], [[1, -100, 1]], {"token_accuracy": 0.5}),
        ("regression", [[1.0], [2.0], [4.0]], [1.0, 2.0, 3.0], {"mse": 1 / 3, "pearson": 0.98198}),
        ("regression", [[1.0], [1.0]], [1.0, 2.0], {"mse": 0.5}),
        ("regression", [[1.0], [9.0]], [1.0, float("nan")], {"mse": 0.0}),
    ],
)
def test_metrics(kind: str, logits: Any, labels: Any, expected: dict[str, float]) -> None:
    assert evaluate.metrics_of(np.array(logits), np.array(labels), kind) == pytest.approx(expected, rel=1e-4)


def test_metrics_of_bad_input() -> None:
    with pytest.raises(ValueError, match="kind"):
        evaluate.metrics_of(np.zeros((1, 2)), np.zeros(1), "rank")
    with pytest.raises(ValueError, match="2 of them for 1"):
        evaluate.metrics_of(np.zeros((1, 2)), np.zeros(2), "classification")
    with pytest.raises(ValueError, match="none to measure"):
        evaluate.metrics_of(np.zeros((1, 2)), np.array([-100]), "classification")


def test_metric_kind() -> None:
    def kind(**settings: Any) -> str | None:
        return evaluate.metric_kind(PackedModel(tiny_bert(1, 16, 4, **settings)).facts)

    assert kind() is None
    assert kind(head="ForTokenClassification") == "token"
    assert kind(head="ForSequenceClassification") == "classification"
    assert kind(head="ForSequenceClassification", num_labels=1) == "regression"
    multi = {"problem_type": "multi_label_classification"}
    assert kind(head="ForSequenceClassification", **multi) == "multi-label"
