"""Words that a model proposes are those of the plain model, one text at a time, and of a cosine in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bertxfer_fast.data.collators import PackingCollator
from bertxfer_fast.models.hf.encoder import PackedModel
from bertxfer_fast.models.words import WordModel

from ..folders import WORDS, tiny_tokenizer
from ..tiny import packed_batch, tiny_bert

LETTERS = [word for word in WORDS if word.isalpha()]  # no pieces, no punctuation


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "ModernBert", "Electra"])
def test_a_token_head_runs_on_the_wanted_rows_alone(family: str) -> None:
    settings: dict[str, Any] = {}
    if family == "ModernBert":
        settings = {"pad_token_id": 0, "local_attention": 128, "global_attn_every_n_layers": 1}
    model = tiny_bert(2, 16, 4, head="ForMaskedLM", family=family, **settings)
    encoder, batch, rows = PackedModel(model), packed_batch(token_types=False), torch.tensor([0, 3, 3, 20])
    widths: list[int] = []
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    hook = last.register_forward_hook(lambda _m, args, _out: widths.append(args[0].flatten(0, -2).shape[0]))
    with torch.no_grad():
        wanted = encoder.run(batch).logits
        found = encoder.run({**batch, "logit_rows": rows}).logits
    hook.remove()
    assert wanted is not None and found is not None
    torch.testing.assert_close(found, wanted[rows], rtol=1e-5, atol=1e-5)
    assert widths == [22, 4]


def test_masked_words_are_the_plain_models(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    model = tiny_bert(2, 16, 4, head="ForMaskedLM")
    texts = ["the [MASK] was good", "a [MASK]", "not very [MASK] , and slow"]
    features = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    batch = PackingCollator()(features)
    places = (batch["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
    found = WordModel(model, tokenizer).masked(batch, places, 5)
    words = torch.tensor(sorted(tokenizer.convert_tokens_to_ids(LETTERS)))
    for text, ids in zip(texts, found, strict=True):
        encoded = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**encoded).logits[0]
        row = logits[int((encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero())]
        assert ids.tolist() == words[row[words].topk(5).indices].tolist()


def test_nearest_words_are_those_of_a_cosine(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    model = tiny_bert(2, 16, 4)
    table = model.get_input_embeddings().weight.detach().double()
    good, slow, ly = tokenizer.convert_tokens_to_ids(["good", "slow", "##ly"])
    found = WordModel(model, tokenizer).nearest([[good], [slow, ly]], 4)
    words = torch.tensor(sorted(tokenizer.convert_tokens_to_ids(LETTERS)))
    for vector, itself, ids in ((table[good], good, found[0]), ((table[slow] + table[ly]) / 2, -1, found[1])):
        likeness = torch.cosine_similarity(table[words], vector[None], dim=-1)
        likeness[words == itself] = -2
        assert ids.tolist() == words[likeness.topk(4).indices].tolist()


def test_a_folder_tells_whether_it_has_a_trained_masked_lm(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "bare")
    tiny_bert(1, 16, 4).save_pretrained(tmp_path / "bare")
    tiny_bert(1, 16, 4, head="ForMaskedLM").save_pretrained(tmp_path / "lm")
    tiny_bert(1, 16, 4, head="ForSequenceClassification").save_pretrained(tmp_path / "classes")
    found = {name: WordModel.load(tmp_path / name, tokenizer) for name in ("bare", "lm", "classes")}
    assert {name: model.has_masked_lm for name, model in found.items()} == {
        "bare": False,
        "lm": True,
        "classes": False,
    }
