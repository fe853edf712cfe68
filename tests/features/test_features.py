"""Features equal what transformers computes one text at a time, whatever the batching."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from bertxfer_fast.features import FeatureExtractor, save_features, writers

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
    extractor = FeatureExtractor(model, tokenizer, layers=layers, pooling=mode, tokens_per_batch=12).fit()
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


def test_layers_may_be_an_array(tmp_path: Path, model: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    expected, got = (
        FeatureExtractor(model, tokenizer, layers=layers).extract(["good film"])
        for layers in ([-1, 1], np.array([-1, 1]))
    )
    assert torch.equal(got, expected)


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
    assert extractor.load().max_length == 64 and extractor.max_length is None
    long = " ".join(["good"] * 500)
    assert torch.equal(extractor.extract([long]), extractor.extract([" ".join(["good"] * 62)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (4,)}, r"layers: got 4, want hidden states 0\.\.3"),
        ({"layers": (-5,)}, "got -5"),
        ({"layers": (3, -1)}, "want each layer once"),
        ({"layers": ()}, "at least one layer"),
        ({"pooling": "median"}, "pooling: got 'median', want one of mean"),
        ({"combine": "sum"}, "combine: got 'sum', want one of average, concat"),
        ({"empty_rows": "drop"}, "empty_rows: got 'drop', want one of error"),
        ({"layer_weights": (1, 2)}, "layer_weights: got 2, want 1 numbers"),
        ({"max_length": 65}, "got 65, want at most the 64 positions"),
        ({"max_length": 2}, "got 2, want more than the 2 special tokens: no room is left for text"),
        ({"max_length": 0}, "got 0, want more than the 2 special tokens"),
        ({"max_length": -1}, "got -1, want more than the 2 special tokens"),
        ({"tokens_per_batch": 0}, "tokens_per_batch: got 0, want 1 or more"),
    ],
)
def test_bad_settings(tmp_path: Path, model: PreTrainedModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureExtractor(model, tiny_tokenizer(tmp_path), **settings).fit()


def test_bad_input(tmp_path: Path, model: PreTrainedModel) -> None:
    with pytest.raises(TypeError, match="texts"):
        FeatureExtractor(model, tiny_tokenizer(tmp_path / "t")).extract("one string")
    with pytest.raises(ValueError, match="tokenizer"):
        FeatureExtractor(model).extract(["good"])
    with pytest.raises(ValueError, match="pairs: got 2, want 1 texts"):
        FeatureExtractor(model, tiny_tokenizer(tmp_path / "t")).extract(["good"], ["a", "b"])
    with pytest.raises(ValueError, match="no such directory"):
        FeatureExtractor(tmp_path / "nowhere").fit()
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="there is no tokenizer"):
        FeatureExtractor(tmp_path / "bare").fit()


GIVEN = ["good film", "bad", "the plot was slow"]


@pytest.mark.parametrize(
    "make",
    [
        tuple,
        np.array,
        lambda texts: np.array(texts, dtype=object),
        lambda texts: pd.Series(texts, index=[7, 8, 9]),
        lambda texts: pd.Series(texts, dtype="string"),
        lambda texts: dict(enumerate(texts)).values(),
        lambda texts: (text for text in texts),
        lambda texts: map(str, texts),
        lambda texts: deque(texts),
        lambda texts: Dataset.from_dict({"text": texts})["text"],
        lambda texts: StringIO("\n".join(texts)),
    ],
)
def test_any_iterable_of_texts(tmp_path: Path, model: PreTrainedModel, make: Any) -> None:
    extractor = FeatureExtractor(model, tiny_tokenizer(tmp_path))
    assert torch.equal(extractor.extract(make(GIVEN)), extractor.extract(GIVEN))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (b"good", "texts: got bytes, want a list"),
        ({"good": 1}, "texts: got dict"),
        ({"good", "bad"}, "texts: got set"),
        (pd.DataFrame({"text": GIVEN}), "texts: got DataFrame"),
        (np.array([["a", "b"]]), "texts: got ndarray"),
        (np.array("a"), "texts: got ndarray"),
        (None, "texts: got NoneType"),
        (["a", None], r"texts\[1\]: got NoneType, want text"),
        (["a"] * 1500 + [b"b"], r"texts\[1500\]: got bytes"),
        (pd.Series(["a", float("nan")]), r"texts\[1\]: got float"),
        ([["a", "b"]], r"texts\[0\]: got list"),
        (["a", "b\ud83d"], r"texts\[1\]: got '\\ud83d', half of a surrogate pair"),
        ((text for text in ["a", "\udc00"]), r"texts\[1\]: got '\\udc00'"),
    ],
)
def test_what_holds_no_texts_is_refused_before_any_work(
    tmp_path: Path, model: PreTrainedModel, texts: Any, message: str
) -> None:
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises((TypeError, ValueError), match=message):
        FeatureExtractor(model, tiny_tokenizer(tmp_path)).extract(texts)


def test_pairs_are_counted_before_any_work(tmp_path: Path, model: PreTrainedModel) -> None:
    extractor = FeatureExtractor(model, tiny_tokenizer(tmp_path))
    with pytest.raises(TypeError, match="pairs: got generator, want a list: pairs are counted"):
        extractor.extract(GIVEN, (text for text in GIVEN))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="texts: got generator, want a list: pairs are counted"):
        extractor.extract((text for text in GIVEN), GIVEN)
    with pytest.raises(TypeError, match=r"pairs\[0\]: got int"):
        extractor.extract(["good"], [1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="max_length: got 3, want more than the 3 special tokens"):
        FeatureExtractor(model, extractor.tokenizer, max_length=3).extract(["good"], ["bad"])


@pytest.mark.parametrize("as_iterator", [False, True])
def test_empty_rows_by_choice(tmp_path: Path, model: PreTrainedModel, as_iterator: bool) -> None:
    extractor = FeatureExtractor(model, tiny_tokenizer(tmp_path))
    given = iter if as_iterator else list
    full = extractor.extract(["good", "bad"])
    kept = extractor.extract(given(["good", " ", "bad"]))
    torch.testing.assert_close(kept[[0, 2]], full, rtol=1e-5, atol=1e-6)  # of a larger pack: other roundings
    torch.testing.assert_close(
        kept[1], reference(model, extractor.tokenizer, " ", [3], "mean"), rtol=1e-4, atol=1e-5
    )
    gaps = ["good", "", None, "bad", float("nan"), pd.NA]
    skipped = extractor.extract(given(gaps), empty_rows="skip")  # type: ignore[arg-type]
    torch.testing.assert_close(skipped, full, rtol=1e-5, atol=1e-6)
    zeros = extractor.extract(given(gaps), empty_rows="zeros")  # type: ignore[arg-type]
    torch.testing.assert_close(zeros[[0, 3]], full, rtol=1e-5, atol=1e-6)
    assert not zeros[[1, 2, 4, 5]].any()
    with pytest.raises(
        ValueError, match=r"empty_rows: got no text in rows 2, 3, 5, 6, want complete rows, or one of skip"
    ):
        extractor.extract(given(gaps), empty_rows="error")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty_rows: got 'drop', want one of error, skip, zeros, keep"):
        extractor.extract(["good"], empty_rows="drop")


def test_a_pair_is_empty_where_one_of_it_is(tmp_path: Path, model: PreTrainedModel) -> None:
    extractor = FeatureExtractor(model, tiny_tokenizer(tmp_path))
    zeros = extractor.extract(["good", "", "bad"], ["film", "film", ""], empty_rows="zeros")
    assert zeros[0].any() and not zeros[1:].any()


def test_texts_are_tokenised_a_window_at_a_time(
    tmp_path: Path, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is alive at once is bounded, whatever comes; the rows do not depend on where windows end."""
    tokenizer = tiny_tokenizer(tmp_path)
    sizes: list[int] = []
    original = type(tokenizer).__call__

    def count(self: Any, *columns: list[str], **options: Any) -> Any:
        sizes.append(len(columns[0]))
        return original(self, *columns, **options)

    texts = [f"{TEXTS[i % 5]} {TEXTS[i % 3]}" for i in range(2500)]
    extractor = FeatureExtractor(model, tokenizer)
    whole = extractor.extract(texts)
    monkeypatch.setattr(type(tokenizer), "__call__", count)
    assert torch.equal(extractor.extract(iter(texts)), whole)
    assert sizes == [1024, 1024, 452]
    order = torch.randperm(len(texts)).tolist()
    torch.testing.assert_close(
        extractor.extract([texts[i] for i in order]), whole[order], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("as_dataset", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_padded_features_are_refused(
    tmp_path: Path, model: PreTrainedModel, side: str, as_dataset: bool, masked: bool
) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.padding_side = side
    padded = tokenizer(GIVEN, padding=True)
    names = ["input_ids", "token_type_ids", *(["attention_mask"] if masked else [])]
    rows = [{name: padded[name][i] for name in names} for i in range(3)]
    rows = Dataset.from_list(rows) if as_dataset else rows
    with pytest.raises(
        ValueError, match=r"features\[0\]: got .*padding.*want none: tokenise with padding=False"
    ):
        FeatureExtractor(model, tokenizer).extract_ids(rows)


def test_features_that_are_not_padded_are_taken(tmp_path: Path, model: PreTrainedModel) -> None:
    """A mask of ones, and a padding token that the text itself has, mean no padding."""
    tokenizer = tiny_tokenizer(tmp_path)
    extractor = FeatureExtractor(model, tokenizer)
    texts = ["good film", "a [PAD] in the text"]
    encoded = tokenizer(texts)
    assert tokenizer.pad_token_id in encoded["input_ids"][1]
    rows = [{name: encoded[name][i] for name in encoded} for i in range(2)]
    expected = torch.stack([reference(model, tokenizer, text, [3], "mean") for text in texts])
    for features in (
        rows,
        Dataset.from_list(rows),
        [{k: torch.tensor(v) for k, v in row.items()} for row in rows],
    ):
        torch.testing.assert_close(extractor.extract_ids(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"input_ids": [[2, 5, 3]]}, "features: got dict, want a list of dicts with input_ids"),
        ([[2, 5, 3]], r"features\[0\]: got list, want a dict with input_ids"),
        ([{"input_ids": [2]}, {"ids": [2]}], r"features\[1\]: got dict, want a dict with input_ids"),
        (Dataset.from_list([{"ids": [2]}]), r"features: got the columns \['ids'\], want input_ids"),
        (({"input_ids": [2]} for _ in "a"), "features: got generator"),
        ([{"input_ids": [2.5, 3.0]}], "got float64 in input_ids, want whole numbers"),
        (
            [{"input_ids": [2, 3]}, {"input_ids": [2, 99, 3]}],
            r"features\[1\]: got 99.* in input_ids, want ids 0",
        ),
        (Dataset.from_list([{"input_ids": [2]}, {"input_ids": [-1]}]), r"features\[1\]: got -1 in input_ids"),
        ([{"input_ids": [2, 3], "token_type_ids": [0, 2]}], r"got 2 in token_type_ids, want ids 0\.\.1 of"),
        (
            [{"input_ids": [2] * 65}],
            r"features\[0\]: got 65 input_ids, want at most the 64 positions of BertModel",
        ),
    ],
)
def test_features_that_the_model_cannot_read_are_refused(
    tmp_path: Path, model: PreTrainedModel, features: Any, message: str
) -> None:
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises((TypeError, ValueError), match=message):
        FeatureExtractor(model, tiny_tokenizer(tmp_path)).extract_ids(features)


def test_a_token_that_the_model_does_not_know_is_named(tmp_path: Path, model: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.add_tokens(["<drug>", "<gene>"])
    extractor = FeatureExtractor(model, tokenizer)
    texts = ["good"] * 1030 + ["a <gene>"]
    with pytest.raises(
        ValueError, match=r"texts\[1030\]: got 51 \(the token '<gene>'\) in input_ids, want ids 0\.\.49"
    ):
        extractor.extract(texts)
    assert extractor.extract(texts[:3]).shape == (3, 16)


@pytest.mark.parametrize(("positions", "stated"), [(64, 16), (16, 64), (16, 10**30)])
def test_the_smaller_limit_cuts(tmp_path: Path, positions: int, stated: int) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.model_max_length = stated
    extractor = FeatureExtractor(tiny_bert(2, 16, 4, max_position_embeddings=positions), tokenizer)
    assert extractor.load().max_length == 16
    assert torch.equal(extractor.extract(["good " * 40]), extractor.extract(["good " * 14]))


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
    before = path.read_bytes()
    for same in (features.numpy(), features.clone().requires_grad_()):
        assert save_features(same, path).read_bytes() == before
    with pytest.raises(ValueError, match=r"\.txt|\.npy"):
        save_features(features, tmp_path / "x.txt")


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".csv"])
def test_a_file_that_is_there_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = save_features(torch.zeros(4, 3), tmp_path / f"x{suffix}")
    before = path.read_bytes()

    def full(write: Any) -> Any:
        def fail(*args: Any, **options: Any) -> None:
            write(*args, **options)
            raise OSError("no space left")

        return fail

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full(np.save))
        patch.setattr(np, "savetxt", full(np.savetxt))
        patch.setattr(writers, "save_file", full(save_file))
        with pytest.raises(OSError, match="no space left"):
            save_features(torch.ones(4, 3), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert save_features(torch.ones(4, 3), path).read_bytes() != before


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
