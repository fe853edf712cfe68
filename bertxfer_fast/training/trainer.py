"""`DistillationTrainer`: transformers' Trainer, fed with packed batches and a `Distiller`.

Trainer drives the loop (optimizer, schedule, gradient accumulation, autocast, logging, callbacks, resume). This
file adds what distillation needs: packed data loaders, the objectives' values by name, a guard that stops at
the first non-finite loss, and checkpoints that are ordinary student directories.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction, PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from .. import tasks
from ..data.collators import collator_for
from ..data.loaders import sequence_lengths
from ..data.samplers import EvenBatchSampler, TokenBudgetBatchSampler
from ..distillation.distiller import Distiller, DistillerOutput
from ..errors import NonFiniteLossError
from ..evaluation.card import ModelCard
from ..evaluation.metrics import TaskMetrics, measurable, task_of_model, text_vectors
from .arguments import DistillationArguments
from .cards import filled_card
from .checkpoints import (
    TRAINER_STATE,
    below,
    check_checkpoint,
    last_complete_checkpoint,
    save_projections,
)
from .datasets import check_dataset, eval_sampler, named_datasets, preview_batches, train_sampler
from .monitor import FiniteGuard, RunningMeans
from .policies import callbacks_of, check_policies, offer_checkpointing, policies, restore, save_policies
from .processes import leave_at_exit


class DistillationTrainer(Trainer):
    """Trains the student (and the objectives' projections, at the same learning rate) of a `Distiller`.

    Args:
        model: the Distiller.
        args: `DistillationArguments`.
        train_dataset, eval_dataset: features (`input_ids`, optional `token_type_ids`, `labels`), as a
            `datasets.Dataset` or a list. `eval_dataset` may be a dict of them.
        processing_class: the tokenizer, saved beside the student.
        task: what the student learns (a `Task` or its name), which decides collator and metrics; by default the
            task that its head is for.
        model_card: facts and measured numbers for the README.md of the final save; what is left empty and is
            known here (teacher, sizes, data) is filled in, numbers are only ever the ones given.
        data_collator: makes packed batches; by default a `PackingCollator` that fits the task.
        compute_metrics: as in Trainer; by default the task's. Predictions are then what the task measures: ids where
            every token has a label (with a row behind each sequence, labelled ``SEQUENCE_END``, where sequences are
            measured), spans ``[N, 2]``, or vectors.
        kwargs: passed to Trainer; not ``compute_loss_func``: an `Objective` of your own is where a loss goes.

    Logged are `loss` and `loss/<objective>`, evaluated `eval_loss`, `eval_loss/<objective>` and the metrics.
    Under gradient accumulation a step's loss is the mean over its micro-batches, each of them a mean over what
    is valid in it; evaluation losses are weighted by the number of sequences in a pack.

    Raises:
        NonFiniteLossError: from `train`, see there.
        ValueError: an empty data set, a sequence that does not fit `tokens_per_batch`, or a ``compute_loss_func``.
    """

    args: DistillationArguments

    def __init__(
        self,
        model: Distiller,
        args: DistillationArguments,
        data_collator: Callable[[Any], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        task: str | tasks.Task | None = None,
        model_card: ModelCard | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, DistillationArguments):
            raise TypeError(f"args: got {type(args).__name__}, want DistillationArguments")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                f"compute_loss_func: got {kwargs['compute_loss_func']!r}, want it left out: the loss is the objectives'"
            )
        check_dataset("train_dataset", train_dataset)
        for name, dataset in named_datasets(eval_dataset):
            check_dataset(name, dataset)
        if args.n_gpu > 1:
            args._n_gpu = 1  # DataParallel would cut a pack in pieces; use a launcher such as torchrun
        self.distiller = model  # itself, whatever accelerate wraps around it
        self.task = task_of_model(model.student) if task is None else tasks.get(task)
        check_policies(model, args)
        kwargs["callbacks"] = [*callbacks_of(args), *(kwargs.get("callbacks") or [])]
        offer_checkpointing(model)
        if compute_metrics is None and self.task.labels is not None:
            compute_metrics = TaskMetrics.of(self.task, model.student)
        super().__init__(
            model,
            args,
            data_collator or collator_for(self.task, inputs=model.inputs, limits=model.limits),
            train_dataset,
            eval_dataset,
            processing_class,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        if args.world_size > 1:
            leave_at_exit()
        self.label_names = ["labels"]
        self.model_card = model_card if model_card is not None else ModelCard()
        self._guard = FiniteGuard(self.last_checkpoint)
        self._train_means, self._eval_means = RunningMeans(), RunningMeans()
        self._predicts = False  # whether predictions are asked for, not what they are worth
        self._lengths: dict[int, tuple[Any, NDArray[np.int64]]] = {}

    def last_checkpoint(self) -> str | None:
        """Directory of this run's last complete checkpoint, or None."""
        return last_complete_checkpoint(str(self.args.output_dir))

    @property
    def student(self) -> PreTrainedModel:
        """The student: a plain transformers model, or another kind that is saved as one."""
        return self.distiller.student

    @property
    def _measured(self) -> Distiller:
        """The Distiller that an evaluation measures."""
        return self.distiller

    # ---- data -----------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Packed training batches; the order depends on seed and epoch alone."""
        if self.train_dataset is None:
            raise ValueError("train_dataset: got None, want one to train on")
        args, lengths = self.args, self._lengths_of(self.train_dataset)
        sampler = train_sampler(args, lengths, self._train_batch_size, self.distiller.group)
        return self._packed_loader(self.train_dataset, sampler, persistent=args.dataloader_persistent_workers)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Packed batches of `eval_dataset` (or a named one of the trainer's) in its own order."""
        known: Any = self.eval_dataset
        dataset = known if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = known[dataset]
        if dataset is None:
            raise ValueError("eval_dataset: got None, want one to evaluate on")
        check_dataset("eval_dataset", dataset)
        group = self._measured.group
        return self._packed_loader(dataset, eval_sampler(self.args, self._lengths_of(dataset), group))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As `get_eval_dataloader`."""
        return self.get_eval_dataloader(test_dataset)

    def _packed_loader(
        self, dataset: Any, sampler: TokenBudgetBatchSampler, *, persistent: bool = False
    ) -> DataLoader:
        args = self.args
        batches: Sampler[list[int]] = sampler
        if args.world_size > 1:
            batches = EvenBatchSampler(sampler, args.world_size)
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=persistent,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def _lengths_of(self, dataset: Any) -> NDArray[np.int64]:
        """Sequence lengths, read once per data set."""
        if id(dataset) not in self._lengths:
            # Kept with the data set, whose id could otherwise be given to another one.
            self._lengths[id(dataset)] = (dataset, sequence_lengths(dataset))
        return self._lengths[id(dataset)][1]

    # ---- training -------------------------------------------------------------------------------------------

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Train; `resume_from_checkpoint` is a checkpoint directory, or True for the last complete one.

        Resuming restores student, projections, optimizer, schedule, random states and the place in the data,
        and goes on exactly as the uninterrupted run would have.

        Raises:
            NonFiniteLossError: an objective, the gradient or a weight is NaN or infinite. On the CPU it is
                raised before the optimizer step; on CUDA, where looking at a value stops the device, at the
                next step or the next save, whichever comes first. Nothing non-finite is ever saved.
            ValueError: True was given and there is no complete checkpoint, or the one given lacks a file.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.last_checkpoint()
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"resume_from_checkpoint: got True, want a complete checkpoint in {self.args.output_dir}"
                )
        if resume_from_checkpoint and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            check_checkpoint(resume_from_checkpoint)
        self._guard.forget()
        self._train_means.clear()
        self._preview()
        with policies(self):
            result = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        self._guard.check()
        self.distiller.flush()
        return result

    def _preview(self) -> None:
        if self.train_dataset is not None:
            tokens, device = self.args.tokens_per_batch, self.args.device
            with self.accelerator.autocast():  # as the steps: a store keeps what the teacher says here
                self.distiller.preview(
                    preview_batches(self.train_dataset, self.data_collator, tokens, device)
                )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """One micro-batch: run the Distiller, note the objectives' values, stop if one is not finite."""
        step = self.state.global_step
        self.distiller.progress = step / max(self.state.max_steps, 1)
        outputs = model(**inputs)
        self._guard.watch({**outputs.parts, "loss": outputs.loss}, step)
        # With other processes all have to stop at the same place: behind the exchange of gradients.
        if outputs.loss.device.type == "cpu" and self.args.world_size == 1:
            self._guard.check()
        self._train_means.add(_named_parts(outputs), 1 / self.current_gradient_accumulation_steps)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # Under fp16 loss scaling an infinite gradient is ordinary: the scaler skips the step.
        if isinstance(norm, Tensor) and getattr(self.accelerator, "scaler", None) is None:
            self._guard.watch({"gradient": norm}, self.state.global_step)
            if norm.device.type == "cpu":
                self._guard.check()
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log, with every objective's mean since the last one beside `loss`."""
        if "loss" in logs:
            logs.update(self._train_means.take(self._sum_over_processes))
        super().log(logs, start_time)

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "sum") if self.args.world_size > 1 else values

    # ---- evaluation -----------------------------------------------------------------------------------------

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """One pack: (loss, logits `[N, C]` or `[T, C]`, labels `[N]`, `[N, C]` or `[T]`), or what the task measures.

        Of a prediction without labels the logits are there as well, and no loss where an objective wants labels.
        """
        # Without the padding of whatever collator made it.
        inputs = self.distiller.pack(self._prepare_inputs(inputs))
        own = isinstance(self.compute_metrics, TaskMetrics)  # others' metrics are of logits
        labels = inputs.get("labels")
        blind = self._predicts and labels is None and not prediction_loss_only
        ids = own and self.task.predicts_ids and not prediction_loss_only and not blind
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, return_ids=ids, return_logits=blind)
        count = inputs["cu_seq_lens_q"].shape[0] - 1
        loss = None if outputs.loss is None else outputs.loss.detach()
        if loss is not None:
            self._eval_means.add({"loss": loss, **_named_parts(outputs)}, count)
        if prediction_loss_only:
            return loss, None, None
        logits = outputs.ids if ids else outputs.logits
        if own:
            if self.task.head is None and (labels is not None or blind):
                with torch.no_grad(), self.compute_loss_context_manager():
                    logits = text_vectors(self.student, inputs)
            if logits is not None:
                logits, labels = measurable(self.task, logits, labels, inputs)
        elif self.task.head == "token":
            logits = None if logits is None else logits.flatten(0, -2)
            labels = None if labels is None else labels.reshape(-1)
        return loss, self._gatherable(logits), self._gatherable(labels)

    def _gatherable(self, rows: Tensor | None) -> Tensor | None:
        """Packs on other processes hold other numbers of rows: pad with rows that no metric counts."""
        if rows is None or self.args.world_size == 1:
            return rows
        return self.accelerator.pad_across_processes(
            rows, dim=0, pad_index=math.nan if rows.is_floating_point() else -100
        )

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args: Any, **kwargs: Any
    ) -> EvalLoopOutput:
        """Trainer's loop; its loss, a mean over packs, gives way to means over sequences, one per objective."""
        self._predicts = description == "Prediction"
        self._eval_means.clear()
        if isinstance(self.compute_metrics, TaskMetrics):
            self.compute_metrics.clear()  # of an evaluation that was interrupted
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        assert output.metrics is not None
        prefix = kwargs.get("metric_key_prefix", "eval")
        means = self._eval_means.take(self._sum_over_processes)
        output.metrics.update({f"{prefix}_{name}": value for name, value in means.items()})
        return output

    # ---- saving and loading ---------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the student as a plain transformers directory, with the projections and, finally, a model card.

        Raises:
            NonFiniteLossError: something is NaN or infinite; nothing was written.
        """
        self._check_before_save()
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.args.should_save:
            filled_card(self).write(output_dir or str(self.args.output_dir))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._check_before_save()
        # An older run's checkpoint of this name stops being complete before the first file of it changes.
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / TRAINER_STATE).unlink(missing_ok=True)
        self.distiller.flush()  # what a run that goes on from here need not ask again
        super()._save_checkpoint(model, trial)

    def _check_before_save(self) -> None:
        self._guard.check()
        names, parameters = zip(*self.distiller.named_parameters(), strict=True)
        # One transfer for all of them.
        finite = torch.stack([torch.isfinite(parameter).all() for parameter in parameters]).tolist()
        if not all(finite):
            name = names[finite.index(False)]
            raise NonFiniteLossError([name], [math.nan], self.state.global_step, self.last_checkpoint())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """`state_dict` comes gathered from sharded training; otherwise the modules hold their own."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is None:
            student, objectives = None, self.distiller.objectives.state_dict()
        else:
            student, objectives = below(state_dict, "student."), below(state_dict, "objectives.")
        self.student.save_pretrained(folder, state_dict=student)
        save_projections(objectives, folder)
        save_policies(self, folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
        elif self.state.best_model_checkpoint is not None:
            self._load(self.state.best_model_checkpoint)

    def _load(self, folder: str) -> None:
        restore(self, Path(folder))


def _named_parts(outputs: DistillerOutput) -> dict[str, Tensor]:
    """The objectives' values under the names they are logged by."""
    return {f"loss/{name}": value for name, value in (outputs.parts or {}).items()}
