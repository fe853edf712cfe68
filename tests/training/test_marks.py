"""What a training leaves behind in the process around it, and what of it goes to another process."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

from bertxfer_fast import cli
from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import AttentionScores, HiddenStates, Labels, Logits
from bertxfer_fast.evaluation import evaluate
from bertxfer_fast.features.extractor import FeatureExtractor
from bertxfer_fast.students.smaller import smaller

from ..folders import distill, make_place
from ..tiny import packed_batch, tiny_bert, tiny_pair
from .test_trainer import features, trainer_of


def marks(*models: Any) -> list[Any]:
    """All of a process that a library could change by the way."""
    loggers = [logging.getLogger(name) for name in ("", "transformers", "datasets", "torch", "accelerate")]
    return [
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers],
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
        datasets.utils.are_progress_bars_disabled(),
        [module.training for model in models for module in model.modules()],
        [model.config._attn_implementation for model in models],
        [p.requires_grad for model in models for p in model.parameters()],
        [p.dtype for model in models for p in model.parameters()],
        [len(module._forward_hooks) for model in models for module in model.modules()],
    ]


def test_a_training_leaves_a_teacher_and_the_process_as_they_were(tmp_path: Path) -> None:
    teacher, student = tiny_pair(dropout=0.1)
    teacher.set_attn_implementation("eager")
    teacher.train().bert.encoder.layer[0].eval()
    trainer_of(tmp_path / "first", pair=tiny_pair(), max_steps=1).train()  # what Trainer itself changes once
    before, about_student = marks(teacher), student.config._attn_implementation
    trainer = trainer_of(tmp_path / "second", pair=(teacher, student), eval_dataset=features(5), max_steps=1)
    trainer.train()
    trainer.evaluate()
    evaluate(teacher, features(5))
    FeatureExtractor(teacher).extract_ids(features(3))
    assert marks(teacher) == before
    assert student.config._attn_implementation == about_student
    trainer.distiller.release()
    assert all(p.requires_grad for p in student.parameters())


def test_a_command_called_from_python_leaves_the_loggers_alone(tmp_path: Path) -> None:
    make_place(tmp_path)
    before = marks()
    assert distill(tmp_path, "--training.max_steps", "1", "--stages.prediction.max_steps", "1") == 0
    assert cli.main(["extract", str(tmp_path / "teacher"), "--input", "none.tsv", "--output", "x.npy"]) == 2
    assert marks() == before


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
def test_the_default_dtype_is_somebody_elses(tmp_path: Path) -> None:
    teacher, student = (model.float() for model in tiny_pair())
    trainer = trainer_of(
        tmp_path, [AttentionScores(), HiddenStates(), Logits(), Labels()], (teacher, student), max_steps=1
    )
    trainer.train()
    output = trainer.distiller.eval()(**packed_batch(labels="class"))
    rows = FeatureExtractor(teacher).extract_ids([{"input_ids": [5, 6, 7]}, {"input_ids": []}])
    copied = smaller(teacher, num_hidden_layers=2)
    tensors = [output.loss, output.logits, rows, *trainer.distiller.parameters(), *copied.parameters()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert torch.get_default_dtype() == torch.float64


def saved(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), saved])
def test_parts_of_a_training_can_go_elsewhere(tmp_path: Path, copied: Callable[[Any], Any]) -> None:
    trainer = trainer_of(
        tmp_path, [Logits(), HiddenStates(), Labels()], eval_dataset=features(5), max_steps=1
    )
    trainer.train()
    batch = trainer.data_collator(features(5))
    with torch.no_grad():
        expected = trainer.distiller.eval()(**batch)
        twin = copied(trainer.distiller)
        found = twin(**batch)
        assert torch.equal(found.loss, expected.loss) and torch.equal(found.logits, expected.logits)
        twin.student.classifier.bias.add_(1.0)
        assert torch.equal(trainer.distiller(**batch).loss, expected.loss)
    for part in (trainer.args, trainer.data_collator, trainer.compute_metrics, expected):
        assert type(copied(part)) is type(part)


def test_workers_may_be_spawned(tmp_path: Path) -> None:
    found = []
    for workers in ({}, {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn"}):
        trainer = trainer_of(tmp_path, [Logits()], eval_dataset=features(5), **workers)
        found.append(trainer.evaluate()["eval_loss"])
    assert found[0] == found[1]


def test_a_student_saved_while_bound_is_an_ordinary_one() -> None:
    teacher, student = tiny_bert(2, 12, 4, seed=1), tiny_bert(2, 12, 4, seed=2)
    distiller = Distiller(teacher, student, [HiddenStates("last", projection="none")])
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        expected = student(ids).last_hidden_state
        for copied in (copy.deepcopy, saved):
            assert torch.equal(copied(distiller.student)(ids).last_hidden_state, expected)
