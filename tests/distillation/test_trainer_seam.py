"""A plain transformers.Trainer around a Distiller: accumulation, evaluation, tied weights."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import HiddenStates, Labels, Logits
from bertxfer_fast.packing import PackingCollator
from bertxfer_fast.training.arguments import DistillationArguments
from bertxfer_fast.training.trainer import DistillationTrainer
from tests.tiny import packed_batch, tiny_bert, tiny_pair

ROWS = [{"input_ids": [5 + (i + j) % 40 for j in range(9)], "labels": i % 3} for i in range(8)]


def trainer(distiller: Distiller, folder: Path, **settings: Any) -> Trainer:
    extra = {key: settings.pop(key) for key in ("callbacks", "compute_metrics") if key in settings}
    arguments = TrainingArguments(
        str(folder),
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        max_grad_norm=0,
        train_sampling_strategy="sequential",
        **{"save_strategy": "no", **settings},
    )
    return Trainer(distiller, arguments, PackingCollator(), train_dataset=ROWS, eval_dataset=ROWS, **extra)


class Norm(TrainerCallback):
    value = 0.0

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        grads = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        self.value = torch.stack(grads).norm().item()


def test_an_accumulated_gradient_is_the_whole_batchs(tmp_path: Path):
    norms = []
    for batch, steps in ((8, 1), (2, 4)):
        norm = Norm()
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        distiller = Distiller(*tiny_pair(), [Logits(), Labels()])
        trainer(distiller, tmp_path, max_steps=1, callbacks=[norm], **settings).train()
        norms.append(norm.value)
    assert norms[0] > 0 and norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_evaluation_gives_a_loss_and_predictions(tmp_path: Path):
    distiller = Distiller(*tiny_pair(), [Logits(), HiddenStates()])

    def accuracy(prediction):
        return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}

    found = trainer(distiller, tmp_path, compute_metrics=accuracy).evaluate()
    distiller.eval()
    with torch.no_grad():
        whole = distiller(**PackingCollator()(ROWS))
    assert found["eval_loss"] == pytest.approx(whole.loss.item(), rel=1e-5)
    labels = torch.tensor([row["labels"] for row in ROWS])
    assert found["eval_accuracy"] == pytest.approx((whole.logits.argmax(-1) == labels).float().mean().item())
    # Without labels too, where Trainer is told that there are none.
    assert "eval_loss" in trainer(distiller, tmp_path, label_names=[]).evaluate()


def test_tied_weights_are_written_once_and_read_back(tmp_path: Path):
    models = [tiny_bert(n, 16, 4, head="ForMaskedLM", seed=n) for n in (4, 2)]
    distiller = Distiller(*models, [Logits(), HiddenStates()])
    state = distiller.state_dict()
    assert distiller.student.cls.predictions.decoder.weight is distiller.student.get_input_embeddings().weight
    addresses = [value.data_ptr() for value in state.values() if value.numel()]
    assert len(addresses) == len(set(addresses))
    assert "student.cls.predictions.decoder.weight" not in state
    saved = {name: value.clone() for name, value in state.items()}
    other = Distiller(models[0], tiny_bert(2, 16, 4, head="ForMaskedLM", seed=9), [Logits(), HiddenStates()])
    other.load_state_dict(saved)
    assert torch.equal(other(**packed_batch()).loss, distiller(**packed_batch()).loss)
    wrapped = torch.nn.ModuleDict({"inside": distiller})  # as any wrapper holds it
    wrapped.load_state_dict({name: value.clone() for name, value in wrapped.state_dict().items()})
    rows = [{"input_ids": row["input_ids"]} for row in ROWS]
    plain = trainer(distiller, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    plain.train_dataset = rows
    plain.train()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()


def test_plain_trainer_keeps_the_columns_that_the_models_read(tmp_path: Path) -> None:
    teacher, student = (tiny_bert(2, 16, 4, family="LayoutLM", seed=seed) for seed in (1, 2))
    distiller = copy.deepcopy(Distiller(teacher, student, [HiddenStates(projection="none")]))
    rows = [
        {"input_ids": [5, 6, 7 + i], "bbox": [[0, 0, i, i]] * 3, "page": i, "attention_mask": [1] * 3}
        for i in range(4)
    ]
    seen: list[torch.Tensor] = []
    distiller.student.embeddings.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["bbox"]), with_kwargs=True
    )
    plain = trainer(distiller, tmp_path, max_steps=1, remove_unused_columns=True)
    plain.train_dataset, plain.data_collator = datasets.Dataset.from_list(rows), default_data_collator
    plain.train()
    assert sorted(seen[0][0, :, 2].tolist()) == sorted([0, 1, 2, 3] * 3)
    assert "page" not in inspect.signature(distiller.forward).parameters
    # Models of text alone have the forward that they always had.
    assert "bbox" not in inspect.signature(Distiller(*tiny_pair(), [HiddenStates()]).forward).parameters


def test_our_trainer_hands_on_what_the_models_read_and_checks_it_before_it_is_on_a_device(tmp_path: Path):
    teacher, student = (tiny_bert(2, 16, 4, family="LayoutLM", vocab=size, seed=1) for size in (56, 50))
    distiller = Distiller(teacher, student, [HiddenStates(projection="none")])
    rows = [{"input_ids": [5, 6, 7 + i], "bbox": [[0, 0, i, i]] * 3} for i in range(4)]
    arguments = DistillationArguments(
        str(tmp_path), max_steps=1, report_to=[], disable_tqdm=True, use_cpu=True
    )
    seen: list[torch.Tensor] = []
    student.embeddings.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["bbox"]), with_kwargs=True
    )
    ours = DistillationTrainer(distiller, arguments, train_dataset=rows)
    ours.train()
    assert sorted(seen[0][0, :, 2].tolist()) == sorted([0, 1, 2, 3] * 3)
    with pytest.raises(ValueError, match=r"features\[1\]: got 50 in input_ids, want ids 0..49"):
        ours.data_collator([rows[0], {**rows[1], "input_ids": [5, 6, 50]}])
