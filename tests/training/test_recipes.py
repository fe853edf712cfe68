"""Every recipe there is trains, and a run that is killed in the middle of a stage ends with the same bits as one that
is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, set_seed

from bertxfer_fast.data.collators import collator_for
from bertxfer_fast.data.masking import MaskingCollator
from bertxfer_fast.distillation import recipes
from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.evaluation.metrics import task_of_model
from bertxfer_fast.models.spec import EncoderSpec
from bertxfer_fast.training.arguments import DistillationArguments
from bertxfer_fast.training.trainer import DistillationTrainer

from ..folders import tiny_tokenizer
from ..tiny import VOCAB, tiny_bert

# What the defaults, made for real sizes, cannot be here; and options that make a stage look at everything.
OPTIONS: dict[str, dict[str, Any]] = {
    "minilmv2": {"heads": 4, "prediction": True},
    "minilm": {"prediction": True},
    "embedding": {"projection": "pca", "sizes": [12, 4], "scores_weight": {"kind": "warmup", "share": 0.5}},
    "logits": {"temperature": "flsw", "labels_weight": "linear_growth"},
}
STEPS, KILLED_AFTER = 4, 3


class Kill(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == KILLED_AFTER:
            raise KeyboardInterrupt


def heads() -> list[str]:
    return ["ForSequenceClassification", "ForMaskedLM"]


def models(head: str) -> tuple[Any, Any]:
    teacher = tiny_bert(4, 16, 4, head=head, seed=1)
    # Random states have to come back, too.
    return teacher, tiny_bert(2, 12, 4, head=head, seed=2, dropout=0.1).train()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


def rows() -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return [
        {"input_ids": [2, *draw.integers(5, VOCAB, draw.integers(2, 9)).tolist(), 3], "labels": i % 3}
        for i in range(16)
    ]


def head_for(recipe: recipes.Recipe) -> str:
    """The first head whose models all stages of a recipe can be bound to."""
    for head in heads():
        try:
            for stage in recipe.stages:
                Distiller(*models(head), stage.build_objectives())
        except ValueError as error:
            refusal = error
        else:
            return head
    raise refusal


def train(
    stage: recipes.Stage, head: str, folder: Path, tokenizer: Any, *, kill: bool = False, seed: int = 0
) -> dict[str, torch.Tensor]:
    """The weights that a stage leaves; what was random at the start depends on the seed."""
    teacher, student = models(head)
    set_seed(seed)
    objectives = stage.build_objectives()
    distiller = Distiller(teacher if any(o.needs_teacher for o in objectives) else None, student, objectives)
    task = task_of_model(EncoderSpec.of(student))
    collate: Any = collator_for(task)
    if stage.masking and not task.label_column:
        collate = MaskingCollator(tokenizer, share=stage.masking, seed=3)
    arguments = DistillationArguments(
        str(folder),
        max_steps=STEPS,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        seed=7,
    )
    trainer = DistillationTrainer(
        distiller, arguments, collate, rows(), callbacks=[Kill()] if kill else [], processing_class=None
    )
    if kill:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train(resume_from_checkpoint=trainer.last_checkpoint())
        assert trainer.state.global_step == STEPS
    return {name: value.clone() for name, value in distiller.state_dict().items()}


@pytest.mark.parametrize("name", recipes.names())
def test_killed_and_resumed_is_as_if_it_had_not_been(name: str, tmp_path: Path, tokenizer: Any) -> None:
    recipe = recipes.get(name, **OPTIONS.get(name, {}))
    head = head_for(recipe)
    for stage in recipe.stages:
        straight = train(stage, head, tmp_path / f"{stage.name} straight", tokenizer)
        folder = tmp_path / stage.name
        killed = train(stage, head, folder, tokenizer, kill=True)
        assert {path.name for path in folder.iterdir()} == {"checkpoint-2"}
        # In a new process the first weights of projections would be others.
        resumed = train(stage, head, folder, tokenizer, seed=1)
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[key]) for key, value in straight.items())
        assert any(not torch.equal(value, killed[key]) for key, value in straight.items())
