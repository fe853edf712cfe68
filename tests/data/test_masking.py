"""Masked packs: BERT's shares, nothing but tokens touched, and the same masks whenever the same pack comes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertxfer_fast.data.collators import PackingCollator
from bertxfer_fast.data.masking import MaskingCollator

from ..folders import tiny_tokenizer
from ..tiny import VOCAB


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


def features(count: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [
        {"input_ids": [2, *draw.integers(5, VOCAB, draw.integers(3, 20)).tolist(), 3], "labels": 1}
        for _ in range(count)
    ]


def test_shares_are_berts_and_special_tokens_stay(tokenizer: Any) -> None:
    rows = features()
    plain = PackingCollator()([{"input_ids": row["input_ids"]} for row in rows])
    batch = MaskingCollator(tokenizer)(rows)
    ids, new, labels = plain["input_ids"][0], batch["input_ids"][0], batch["labels"][0]
    chosen = labels != -100
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(new[~chosen], ids[~chosen])
    assert not chosen[torch.isin(ids, torch.tensor([2, 3]))].any()
    words = ~torch.isin(ids, torch.tensor([2, 3]))
    assert chosen[words].float().mean() == pytest.approx(0.15, abs=0.02)
    masked, same = (new[chosen] == 4).float().mean(), (new[chosen] == ids[chosen]).float().mean()
    assert masked == pytest.approx(0.8, abs=0.04) and same == pytest.approx(0.1, abs=0.04)
    assert (new >= 2).all() and not torch.isin(new[chosen], torch.tensor([0, 1, 2, 3])).any()
    for name in ("position_ids", "cu_seq_lens_q", "max_length_q"):
        assert torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(plain[name]))


def test_masks_depend_on_seed_and_pack_alone(tokenizer: Any) -> None:
    rows = features(30)
    first = MaskingCollator(tokenizer, seed=1)
    batch = first(rows)
    first(features(3, seed=5))  # what came before does not matter
    np.random.seed(0)
    torch.manual_seed(0)
    for again in (first(rows), MaskingCollator(tokenizer, seed=1)(rows)):
        assert torch.equal(again["input_ids"], batch["input_ids"])
        assert torch.equal(again["labels"], batch["labels"])
    assert not torch.equal(MaskingCollator(tokenizer, seed=2)(rows)["labels"], batch["labels"])
    # In another pack the same texts are masked otherwise.
    half = first(rows[:15])["labels"]
    assert not torch.equal(half, batch["labels"][:, : half.shape[1]])
    # Another order is another pack, too: the places that are masked are others.
    whole = [{**row, "input_ids": row["input_ids"][:4]} for row in rows]
    places, others = (first(pack)["labels"] != -100 for pack in (whole, whole[::-1]))
    assert places.shape == others.shape and not torch.equal(places, others)


def test_a_token_that_the_model_has_no_row_for_replaces_none(tokenizer: Any) -> None:
    collate = MaskingCollator(tokenizer, share=0.9, limits={"input_ids": 20})
    ids = collate([{"input_ids": [5, 6, 7] * 200}])["input_ids"]
    assert int(ids.max()) == 19


def test_bad_arguments(tokenizer: Any) -> None:
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"share: got .*, want more than 0 and less than 1"):
            MaskingCollator(tokenizer, share=share)
    with pytest.raises(ValueError, match="seed: got -1, want 0 or more"):
        MaskingCollator(tokenizer, seed=-1)
    without = copy.deepcopy(tokenizer)
    without.mask_token = None
    with pytest.raises(ValueError, match="without a mask token, want one that has it"):
        MaskingCollator(without)
