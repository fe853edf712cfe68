"""The arguments that decide which sequences share a pack, and in which order, reach the samplers."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from bertxfer_fast.distillation.objectives import Logits, Scores
from bertxfer_fast.evaluation.card import ModelCard

from .test_trainer import features, trainer_of


def packs(loader: DataLoader) -> list[list[int]]:
    """The first token of every sequence, pack by pack."""
    return [batch["input_ids"][0][batch["cu_seq_lens_q"][:-1].long()].tolist() for batch in loader]


def train_packs(folder: Path, rows: list[Any], **settings: Any) -> list[list[int]]:
    return packs(trainer_of(folder, [Logits()], train=rows, **settings).get_train_dataloader())


def test_the_order_is_that_of_data_seed_else_of_seed(tmp_path: Path) -> None:
    rows = features(40)
    orders = {
        name: train_packs(tmp_path, rows, **settings)
        for name, settings in {
            "seed": {"seed": 3},
            "data_seed": {"seed": 3, "data_seed": 4},
            "same": {"seed": 5, "data_seed": 4},
            "as seed": {"seed": 4},
        }.items()
    }
    assert orders["data_seed"] == orders["same"] == orders["as seed"]
    assert orders["data_seed"] != orders["seed"]


def test_the_last_pack_is_dropped_where_asked(tmp_path: Path) -> None:
    rows = features(10)
    assert [len(p) for p in sorted(train_packs(tmp_path, rows), key=len)] == [2, 4, 4]
    assert [len(p) for p in train_packs(tmp_path, rows, dataloader_drop_last=True)] == [4, 4]
    # An evaluation leaves nothing out.
    trainer = trainer_of(tmp_path, eval_dataset=rows, per_device_eval_batch_size=4, dataloader_drop_last=True)
    assert [len(p) for p in packs(trainer.get_eval_dataloader())] == [4, 4, 2]


def test_sequential_keeps_the_order_of_the_data(tmp_path: Path) -> None:
    rows = features(10)
    found = train_packs(tmp_path, rows, train_sampling_strategy="sequential")
    assert [token for pack in found for token in pack] == [row["input_ids"][0] for row in rows]


@pytest.mark.parametrize("settings", [{"per_device_train_batch_size": 8}, {"tokens_per_batch": 40}])
def test_groups_that_an_objective_compares_stay_whole(tmp_path: Path, settings: dict[str, int]) -> None:
    rows = [{"input_ids": [5 + i] * (2 + i // 3 % 4)} for i in range(30)]
    trainer = trainer_of(tmp_path, [Scores(group=3)], train=rows, eval_dataset=rows, max_steps=2, **settings)
    found = packs(trainer.get_train_dataloader())
    groups = [pack[i : i + 3] for pack in found for i in range(0, len(pack), 3)]
    whole = [[5 + i, 6 + i, 7 + i] for i in range(0, 30, 3)]
    assert sorted(groups) == whole and groups != whole
    assert all(len(pack) % 3 == 0 for pack in packs(trainer.get_eval_dataloader()))
    trainer.train()


def test_groups_that_cannot_stay_whole_are_named(tmp_path: Path) -> None:
    rows = features(12)

    def loader(count: int = 12, **settings: Any) -> DataLoader:
        return trainer_of(
            tmp_path, [Scores(group=6)], train=rows[:count], eval_dataset=rows, **settings
        ).get_train_dataloader()

    with pytest.raises(ValueError, match="train_dataset: got 10 rows, want a multiple of 6: an objective"):
        loader(10, tokens_per_batch=200)
    with pytest.raises(ValueError, match="per_device_train_batch_size: got 4, want at least 6"):
        loader()
    with pytest.raises(ValueError, match="tokens_per_batch: got 20, want at least the longest group of 6"):
        loader(tokens_per_batch=20)


def test_grouping_by_length_puts_like_lengths_together(tmp_path: Path) -> None:
    rows = features(200, shortest=2, longest=40)

    def spread(strategy: str) -> float:
        trainer = trainer_of(tmp_path, train=rows, train_sampling_strategy=strategy, tokens_per_batch=200)
        lengths = [batch["cu_seq_lens_q"].diff().float() for batch in trainer.get_train_dataloader()]
        return float(np.mean([float(pack.std(correction=0)) for pack in lengths]))

    assert spread("group_by_length") < 0.5 * spread("random")


@pytest.mark.parametrize(
    ("settings", "budget"),
    [
        ({"eval_tokens_per_batch": 30, "tokens_per_batch": 90}, 30),
        ({"tokens_per_batch": 60}, 60),
        ({"eval_tokens_per_batch": 5}, 5),  # below the longest sequence, which is then a pack of its own
    ],
)
def test_an_evaluation_has_a_budget_of_its_own(tmp_path: Path, settings: dict[str, int], budget: int) -> None:
    rows = features(30)
    longest = max(len(row["input_ids"]) for row in rows)
    loader = trainer_of(tmp_path, eval_dataset=rows, **settings).get_eval_dataloader()
    sizes = [batch["input_ids"].shape[1] for batch in loader]
    assert sum(sizes) == sum(len(row["input_ids"]) for row in rows)
    assert max(sizes) <= max(budget, longest)
    assert all(size + longest > budget for size in sizes[:-1])  # none is emptier than it has to be
    assert packs(loader) == packs(loader)


def test_lengths_are_those_of_the_data_set_that_is_given(tmp_path: Path) -> None:
    """Whatever was evaluated before and is gone, its place in memory given to another one: what `train` lets go of."""
    trainer = trainer_of(tmp_path, [Logits()], per_device_eval_batch_size=4)
    for count in range(2, 9):
        rows = features(count, seed=count)
        found = packs(trainer.get_eval_dataloader(rows))
        assert [token for pack in found for token in pack] == [row["input_ids"][0] for row in rows]
        del rows
        trainer.accelerator.free_memory()
        gc.collect()


def test_named_evaluation_sets_keep_their_names(tmp_path: Path) -> None:
    sets = {"easy": features(5, seed=1), "hard": features(7, seed=2)}
    trainer = trainer_of(
        tmp_path,
        [Logits()],
        eval_dataset=sets,
        max_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        extra={"model_card": ModelCard()},
    )
    trainer.train()
    logged = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    for name, rows in sets.items():
        alone = trainer.evaluate(rows)
        for metric in ("loss", "accuracy", "loss/logits"):
            assert logged[f"eval_{name}_{metric}"] == pytest.approx(alone[f"eval_{metric}"], rel=1e-5)
        assert trainer.evaluate(name)["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-5)
    assert logged["eval_easy_loss"] != logged["eval_hard_loss"]
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "eval['easy']: 5 sequences" in card and "eval['hard']: 7 sequences" in card
    with pytest.raises(ValueError, match=r"eval_dataset\['hard'\]: got no rows"):
        trainer_of(tmp_path, [Logits()], eval_dataset={**sets, "hard": []})
