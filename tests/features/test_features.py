"""Features equal what transformers computes one text at a time, whatever the batching."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from bertxfer_fast.features.extractor import FeatureExtractor, save_features

from ..folders import tiny_tokenizer
from ..tiny import tiny_bert

TEXTS = [
    "good film",
    "the plot was not very good",
    "",
    "bad",
    "a great story with music and one slow scene .",
]


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


@pytest.mark.parametrize("layers", [(3, 1), (-1, 0, 2), (2, -3)])
def test_weights_follow_the_layers_in_the_order_given(
    tmp_path: Path, model: PreTrainedModel, layers: tuple[int, ...]
) -> None:
    tokenizer, weights = tiny_tokenizer(tmp_path), (0.7, 0.2, 0.1)[: len(layers)]
    got = FeatureExtractor(model, tokenizer, layers=layers, layer_weights=weights).extract(["good film"])
    with torch.no_grad():
        hidden = model(**tokenizer("good film", return_tensors="pt"), output_hidden_states=True).hidden_states
    expected = sum(w * hidden[layer][0] for w, layer in zip(weights, layers, strict=True)).mean(0)
    torch.testing.assert_close(got[0], expected, rtol=1e-4, atol=1e-5)


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
        ({"layers": (4,)}, r"layers: got 4, want hidden states 0\.\.3"),
        ({"layers": (-5,)}, "got -5"),
        ({"layers": (3, -1)}, "want each layer once"),
        ({"layers": ()}, "at least one layer"),
        ({"mode": "median"}, "mode: got 'median', want one of mean"),
        ({"layer_weights": (1, 2)}, "layer_weights: got 2, want 1 numbers"),
        ({"max_length": 65}, "got 65, want at most the 64 positions"),
        ({"tokens_per_batch": 0}, "tokens_per_batch: got 0, want 1 or more"),
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
    with pytest.raises(ValueError, match="pairs: got 2, want 1 texts"):
        FeatureExtractor(model, tiny_tokenizer(tmp_path / "t")).extract(["good"], ["a", "b"])
    with pytest.raises(ValueError, match="no such directory"):
        FeatureExtractor(tmp_path / "nowhere")
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="there is no tokenizer"):
        FeatureExtractor(tmp_path / "bare")


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


def test_threads_share_extractors_and_their_tokenizer(tmp_path: Path, model: PreTrainedModel) -> None:
    """A tokenizer's truncation is set for each call: another thread's must not come between."""
    tokenizer = tiny_tokenizer(tmp_path)
    extractors = [FeatureExtractor(model, tokenizer, layers=(1, 3), max_length=n) for n in (4, 9)]
    jobs = [(extractor, [f"{text} {i}" for text in TEXTS]) for i in range(4) for extractor in extractors]
    wanted = [extractor.extract(texts) for extractor, texts in jobs]
    assert not torch.equal(wanted[0], wanted[1])
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda job: job[0].extract(job[1]), jobs * 25))
    assert all(torch.equal(features, wanted[i % len(jobs)]) for i, features in enumerate(got))


def test_the_model_is_left_as_it_was_submodule_by_submodule(tmp_path: Path) -> None:
    model = tiny_bert(2, 16, 4, dropout=0.5).train()
    model.encoder.layer[1].eval()
    model.set_attn_implementation("eager")
    before = [module.training for module in model.modules()]
    FeatureExtractor(model, tiny_tokenizer(tmp_path)).extract(TEXTS)
    assert [module.training for module in model.modules()] == before
    assert model.config._attn_implementation == "eager"
