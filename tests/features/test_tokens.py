"""Rows of tokens, of words and of layers equal what transformers computes one text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import LayoutLMConfig, LayoutLMModel

from bertxfer_fast.features import FeatureExtractor
from bertxfer_fast.models import EncoderSpec, LayerActivations, PackedOutput

from ..folders import byte_tokenizer, tiny_tokenizer
from ..tiny import tiny_bert

TEXTS = ["good films", "the plot was slow", "bad", "fine poor great"]


def hidden_states(model: Any, tokenizer: Any, text: Any) -> tuple[Any, list[torch.Tensor]]:
    encoded = tokenizer(text, is_split_into_words=isinstance(text, list), return_tensors="pt")
    with torch.no_grad():
        return encoded, [h[0] for h in model(**encoded, output_hidden_states=True).hidden_states]


@pytest.mark.parametrize("special_tokens", [True, False])
@pytest.mark.parametrize("combine", ["average", "concat"])
def test_a_row_a_token(tmp_path: Path, special_tokens: bool, combine: str) -> None:
    model, tokenizer = tiny_bert(2, 16, 4), tiny_tokenizer(tmp_path)
    extractor = FeatureExtractor(model, tokenizer, layers=(0, -1), combine=combine, tokens_per_batch=12)
    got = extractor.token_features(TEXTS, special_tokens=special_tokens)
    for rows, text in zip(got, TEXTS, strict=True):
        _, hidden = hidden_states(model, tokenizer, text)
        both = torch.stack([hidden[0], hidden[2]])
        expected = both.mean(0) if combine == "average" else torch.cat(list(both), 1)
        torch.testing.assert_close(rows, expected if special_tokens else expected[1:-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words", ["first", "mean"])
def test_a_row_a_word(tmp_path: Path, words: str) -> None:
    model, tokenizer = tiny_bert(2, 16, 4), tiny_tokenizer(tmp_path)
    extractor = FeatureExtractor(model, tokenizer)
    texts = ["good films", ["films", "\u200b", "good"], [], ["bad"]]  # "films" is two pieces, the other none
    got = extractor.token_features(texts, words=words)
    assert [len(rows) for rows in got] == [2, 3, 0, 1]
    for rows, text in zip(got, texts, strict=True):
        if not text:
            continue
        encoded, hidden = hidden_states(model, tokenizer, text)
        for i, row in enumerate(rows):
            pieces = [j for j, word in enumerate(encoded.word_ids()) if word == i]
            of_word = hidden[2][pieces]
            expected = torch.zeros(16) if not pieces else of_word[0] if words == "first" else of_word.mean(0)
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
    assert not got[1][1].any()
    cut = FeatureExtractor(model, tokenizer, max_length=4).token_features([["films", "good"]], words=words)[0]
    assert cut[0].any() and not cut[1].any()


def test_every_layer_in_one_pass(tmp_path: Path) -> None:
    model, tokenizer = tiny_bert(3, 16, 4), tiny_tokenizer(tmp_path)
    passes: list[Any] = []
    model.embeddings.register_forward_hook(lambda *_: passes.append(1))
    extractor = FeatureExtractor(model, tokenizer, layers=(3, 0, 1), pooling="max")
    got = extractor.extract_layers(TEXTS)
    assert got.shape == (4, 3, 16) and len(passes) == 1
    for i, text in enumerate(TEXTS):
        _, hidden = hidden_states(model, tokenizer, text)
        expected = torch.stack([hidden[layer].amax(0) for layer in (3, 0, 1)])
        torch.testing.assert_close(got[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_layers_side_by_side(tmp_path: Path, normalize: bool) -> None:
    model, tokenizer = tiny_bert(3, 16, 4), tiny_tokenizer(tmp_path)
    got = FeatureExtractor(
        model, tokenizer, layers=(1, 3), combine="concat", layer_weights=(2, -1), normalize=normalize
    ).extract(TEXTS[:1])
    _, hidden = hidden_states(model, tokenizer, TEXTS[0])
    expected = torch.cat([2 * hidden[1].mean(0), -hidden[3].mean(0)])
    expected = expected / expected.norm() if normalize else expected
    torch.testing.assert_close(got[0], expected, rtol=1e-4, atol=1e-5)


def test_bad_input(tmp_path: Path) -> None:
    extractor = FeatureExtractor(tiny_bert(1, 16, 4), tiny_tokenizer(tmp_path))
    for texts, message in (
        ("good", "texts: got str, want a list of strings or of lists of words"),
        ([None], r"texts\[0\]: got NoneType, want text"),
        (["a", ["b", 1]], r"texts\[1\]\[1\]: got int, want text"),
    ):
        with pytest.raises(TypeError, match=message):
            extractor.token_features(texts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="words: got 'last', want one of first, mean, or None"):
        extractor.token_features(["a"], words="last")


def test_words_that_would_be_glued_together_are_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    extractor = FeatureExtractor(tiny_bert(1, 16, 4), tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    with pytest.raises(ValueError, match=r"tokenizer: got .* want one made with add_prefix_space=True"):
        extractor.token_features(["good", ["good", "film"]], words="first")


def test_what_a_model_reads_beside_text_is_read() -> None:
    torch.manual_seed(0)
    config = LayoutLMConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_2d_position_embeddings=64,
    )
    model = LayoutLMModel(config).eval()
    ids, boxes = [2, 5, 6, 3], [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 20, 30], [0, 0, 0, 0]]
    got = FeatureExtractor(model).extract_ids([{"input_ids": ids, "bbox": boxes}])
    with torch.no_grad():
        wanted = model(torch.tensor([ids]), bbox=torch.tensor([boxes])).last_hidden_state[0].mean(0)
        without = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
    torch.testing.assert_close(got[0], wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got[0], without, atol=1e-3)
    with pytest.raises(ValueError, match="got no bbox, want one as in other features"):
        FeatureExtractor(model).extract_ids([{"input_ids": ids, "bbox": boxes}, {"input_ids": ids}])


class Table(nn.Module):
    """A network of the user's own: a table of token vectors."""

    spec = EncoderSpec("Table", num_layers=0, hidden_size=4, vocab_size=50)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)

    def run(self, batch: Any, tap: Any = None) -> PackedOutput:
        hidden = self.table(batch["input_ids"][0])
        if tap is not None and tap.wants("hidden", 0):
            cu_seqlens = batch["cu_seq_lens_q"]
            tap.sink(LayerActivations("hidden", 0, cu_seqlens, batch["max_length_q"], hidden=hidden))
        return PackedOutput(hidden)


def test_any_encoder(tmp_path: Path) -> None:
    table, tokenizer = Table(), tiny_tokenizer(tmp_path)
    got = FeatureExtractor(table, tokenizer).extract(["good bad", "film"])
    expected = torch.stack(
        [table.table(torch.tensor(tokenizer(t)["input_ids"])).mean(0) for t in ("good bad", "film")]
    )
    torch.testing.assert_close(got, expected.detach())
