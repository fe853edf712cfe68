"""`MultiTaskTrainer`: a `DistillationTrainer` over several tasks whose students share an encoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import speed_metrics

from .. import tasks
from ..data.collators import collator_for
from ..data.mixing import MixedBatchSampler, MixedCollator, MixedRows
from ..distillation.distiller import Distiller
from ..distillation.multitask import MultiTask
from ..evaluation.card import ModelCard
from ..evaluation.metrics import TaskMetrics, task_of_model
from ..evaluation.speed import student_facts
from .arguments import DistillationArguments
from .checkpoints import load_projections, load_student, save_projections
from .datasets import check_dataset, preview_batches, train_sampler
from .trainer import DistillationTrainer

__all__ = ["MultiTaskTrainer"]


class MultiTaskTrainer(DistillationTrainer):
    """Trains the students of a `MultiTask`, a batch of one task after a batch of another.

    Args:
        model: the MultiTask.
        args: `DistillationArguments`. The loss by which the best checkpoint is chosen, ``eval_loss``, is the sum of the
            measured tasks' losses times their weights.
        train_dataset: token features by task, as many tasks as the model has.
        eval_dataset: the same; a task may be left out. Measured is ``eval_<task>_<metric>``.
        collators: by task, what makes its batches; by default as the task wants them, which masks no tokens.
        tasks: what each student learns; by default what its head is for.
        temperature: how batches are shared out among the tasks, see `data.mixing.batches_of_tasks`.
        model_cards: by task, see `DistillationTrainer`.
        kwargs: passed to `DistillationTrainer`.

    Saved is a directory a task, each a plain transformers model; they hold the same encoder.

    Raises:
        ValueError: data sets of other tasks than the model's, or more than one process: they would wait for gradients
            of each other's heads.
    """

    distiller: Any

    def __init__(
        self,
        model: MultiTask,
        args: DistillationArguments,
        train_dataset: Mapping[str, Any] | None = None,
        eval_dataset: Mapping[str, Any] | None = None,
        *,
        collators: Mapping[str, Callable[..., Any]] | None = None,
        tasks: Mapping[str, str | tasks.Task] | None = None,
        temperature: float = 1.0,
        model_cards: Mapping[str, ModelCard] | None = None,
        **kwargs: Any,
    ) -> None:
        if args.world_size > 1:
            raise ValueError(
                f"args: got {args.world_size} processes, want one: their batches are of other tasks"
            )
        _check_names("train_dataset", train_dataset, model.tasks, all_of_them=True)
        by_task = {
            "eval_dataset": eval_dataset,
            "collators": collators,
            "tasks": tasks,
            "model_cards": model_cards,
        }
        for name, given in by_task.items():
            _check_names(name, given, model.tasks, all_of_them=False)
        self._temperature = temperature
        self._tasks = {
            name: _task_of(model.of(name).student, (tasks or {}).get(name)) for name in model.tasks
        }
        self._cards = {name: (model_cards or {}).get(name, ModelCard()) for name in model.tasks}
        self._current = model.tasks[0]
        self._collators = {
            name: collator_for(task, inputs=model.of(name).inputs, limits=model.of(name).limits)
            for name, task in self._tasks.items()
        } | dict(collators or {})
        for name, dataset in (train_dataset or {}).items():
            check_dataset(f"train_dataset[{name!r}]", dataset)
        for name, dataset in (eval_dataset or {}).items():
            check_dataset(f"eval_dataset[{name!r}]", dataset)
        super().__init__(
            model,  # type: ignore[arg-type]
            args,
            MixedCollator(self._collators),
            None if train_dataset is None else MixedRows(train_dataset),
            None
            if eval_dataset is None
            else {name: MixedRows({name: rows}) for name, rows in eval_dataset.items()},
            task=self._tasks[self._current],
            **kwargs,
        )
        self._metrics = {
            name: TaskMetrics.of(task, model.of(name).student)
            for name, task in self._tasks.items()
            if task.labels is not None
        }

    @property
    def student(self) -> PreTrainedModel:
        """The student of the task that is evaluated, or of the first one."""
        return self._measured.student

    @property
    def _measured(self) -> Distiller:
        return self.distiller.of(self._current)

    def get_train_dataloader(self) -> DataLoader:
        """Packed training batches, each of one task; the order depends on seed and epoch alone."""
        rows: Any = self.train_dataset
        if rows is None:
            raise ValueError("train_dataset: got None, want data to train on")
        args = self.args
        samplers = {
            name: train_sampler(
                args, rows.lengths_of(name), self._train_batch_size, self.distiller.of(name).group
            )
            for name in rows.datasets
        }
        seed = args.data_seed if args.data_seed is not None else args.seed
        mixed = MixedBatchSampler(samplers, rows.starts, temperature=self._temperature, seed=seed)
        return self._packed_loader(rows, mixed, persistent=args.dataloader_persistent_workers)  # type: ignore[arg-type]

    def _lengths_of(self, dataset: Any) -> NDArray[np.int64]:
        if not isinstance(dataset, MixedRows):
            return super()._lengths_of(dataset)
        return np.concatenate([dataset.lengths_of(name) for name in dataset.datasets])

    def _preview(self) -> None:
        rows: Any = self.train_dataset
        for name, dataset in {} if rows is None else rows.datasets.items():
            collate = self._collators[name]
            batches = preview_batches(dataset, collate, self.args.tokens_per_batch, self.args.device)
            with self.accelerator.autocast():
                self.distiller.of(name).preview(batches)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Every task's metrics and the sum of their weighted losses, or the metrics of the task of that name."""
        self._memory_tracker.start()
        prefix = metric_key_prefix
        if eval_dataset is None:
            eval_dataset = self.eval_dataset
        found: dict[str, float] = {}
        if isinstance(eval_dataset, Mapping):
            _check_names("eval_dataset", eval_dataset, self.distiller.tasks, all_of_them=False)
            for name, rows in eval_dataset.items():
                rows = rows if isinstance(rows, MixedRows) else MixedRows({name: rows})
                found |= self._measure_task(name, rows, ignore_keys, f"{prefix}_{name}")
            losses = {name: found[f"{prefix}_{name}_loss"] for name in eval_dataset}
            found[f"{prefix}_loss"] = sum(self.distiller.weights[name] * losses[name] for name in losses)
        elif isinstance(eval_dataset, str):
            known: Any = self.eval_dataset or {}
            _check_names("eval_dataset", {eval_dataset: None}, known, all_of_them=False)
            found |= self._measure_task(eval_dataset, known[eval_dataset], ignore_keys, prefix)
        else:
            raise ValueError(
                f"eval_dataset: got {type(eval_dataset).__name__}, want data sets by task, or a task"
            )
        # Once for all tasks: early stopping looks at their sum, which no task's metrics alone have.
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        self._memory_tracker.stop_and_update_metrics(found)
        return found

    def _measure_task(
        self, name: str, rows: MixedRows, ignore_keys: list[str] | None, prefix: str
    ) -> dict[str, float]:
        """One task's metrics, as Trainer measures one data set; nothing is logged."""
        before = self._current, self.task, self.compute_metrics
        self._current, self.task = name, self._tasks[name]
        self.compute_metrics = self._metrics.get(name)
        start = time.time()
        try:
            output = self.evaluation_loop(
                self.get_eval_dataloader(rows),
                "Evaluation",
                True if self.compute_metrics is None else None,
                ignore_keys,
                metric_key_prefix=prefix,
            )
        finally:
            self._current, self.task, self.compute_metrics = before
        assert output.metrics is not None
        return output.metrics | speed_metrics(prefix, start, num_samples=output.num_samples)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As of `DistillationTrainer`, for the batch's task."""
        if inputs.get("task") != self._current:
            raise ValueError(
                f"dataset: got a batch of {inputs.get('task')!r}, want evaluate() with data by task"
            )
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write every task's student into a directory of its name, with projections and, finally, a model card."""
        self._check_before_save()
        self._save(output_dir)
        if not _internal_call and self.args.should_save:
            for name, folder in self._folders(output_dir):
                self._card_of(name).write(folder)

    def _folders(self, output_dir: str | Path | None) -> list[tuple[str, Path]]:
        root = Path(output_dir or str(self.args.output_dir))
        return [(name, root / name) for name in self.distiller.tasks]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        for name, folder in self._folders(output_dir):
            folder.mkdir(parents=True, exist_ok=True)
            distiller = self.distiller.of(name)
            distiller.student.save_pretrained(folder)
            save_projections(distiller.objectives.state_dict(), folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def _load(self, folder: str) -> None:
        for name, path in self._folders(folder):
            distiller = self.distiller.of(name)
            load_student(distiller.student, path)
            load_projections(distiller.objectives, path)

    def _card_of(self, name: str) -> ModelCard:
        card, distiller = self._cards[name], self.distiller.of(name)
        measured: Any = self.eval_dataset or {}
        sets: dict[str, Any] = {"train": self.train_dataset, "eval": measured.get(name)}
        sizes = {split: len(rows.datasets[name]) for split, rows in sets.items() if rows is not None}
        return replace(
            card,
            teacher=card.teacher
            or getattr(getattr(distiller.teacher, "config", None), "name_or_path", "")
            or "",
            student=card.student or student_facts(distiller.student),
            data=card.data or sizes,
            auto_class=tasks.auto_class(type(distiller.student).__name__),
            task=card.task or self._tasks[name].name,
        )


def _task_of(student: Any, given: str | tasks.Task | None) -> tasks.Task:
    return task_of_model(student) if given is None else tasks.get(given)


def _check_names(argument: str, given: Any, known: Any, *, all_of_them: bool) -> None:
    """Raise unless `given` is a mapping by (all of) the known tasks."""
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument}: got {type(given).__name__}, want a mapping by task")
    missing = [name for name in known if name not in given] if all_of_them else []
    unknown = [name for name in given if name not in known]
    if missing or unknown:
        raise ValueError(f"{argument}: got {', '.join(given)}, want {', '.join(known)}")
