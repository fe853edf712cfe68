"""`DistillationTrainer`: transformers' Trainer, fed with packed batches and a `Distiller`.

Trainer drives the loop (optimizer, schedule, gradient accumulation, autocast, logging, callbacks, resume). This
file adds what distillation needs: packed data loaders, the objectives' values by name, a guard that stops at
the first non-finite loss, and checkpoints that are ordinary student directories.
"""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from .activations import ModelFacts
from .data import sequence_lengths
from .distiller import Distiller
from .encoder import PackedModel
from .evaluate import TOKEN, collator_for, metric_kind, metrics_of, parameter_count
from .packing import TokenBudgetBatchSampler
from .report import ModelCard

PROJECTIONS = "distiller.safetensors"
TRAINER_STATE = "trainer_state.json"

# Trainer features that act on a model's own loss or inputs and would be ignored, or break, around a Distiller.
_UNSUPPORTED = {
    "label_smoothing_factor": "smooth the labels in an objective of your own",
    "neftune_noise_alpha": "it needs a model with one input embedding",
    "use_liger_kernel": "its kernels replace a model's own loss",
}


class NonFiniteLossError(ArithmeticError):
    """A loss, the gradient or a weight became NaN or infinite; training stopped before anything was overwritten.

    Attributes:
        names: what is not finite: objectives by name, `"loss"` (their sum), `"gradient"`, or a weight's name.
        step: optimizer steps done when it was computed.
        checkpoint: directory of the last good checkpoint, None if there is none.
    """

    def __init__(
        self, names: Sequence[str], values: Sequence[float], step: int, checkpoint: str | None
    ) -> None:
        self.names, self.step, self.checkpoint = tuple(names), step, checkpoint
        found = ", ".join(f"{name} is {value}" for name, value in zip(names, values, strict=True))
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written yet"
        super().__init__(f"{found} after {step} optimizer steps; training stopped, {kept}")


@dataclass
class DistillationArguments(TrainingArguments):
    """transformers' TrainingArguments with packed batches.

    With `tokens_per_batch` a training batch holds as many sequences as fit that many tokens (per device and
    accumulation step); without it, `per_device_train_batch_size` sequences. `train_sampling_strategy` works as
    in Trainer: `"random"`, `"group_by_length"` (packs of similar lengths) or `"sequential"`.

    Defaults that differ from transformers': 50 log lines a run (`logging_steps=0.02`), no column is dropped,
    non-finite losses are never hidden, and `bf16` without an accelerator runs on the CPU.
    """

    tokens_per_batch: int | None = field(
        default=None, metadata={"help": "tokens in a packed training batch, instead of a number of sequences"}
    )
    eval_tokens_per_batch: int | None = field(
        default=None, metadata={"help": "the same for evaluation (default: tokens_per_batch)"}
    )
    logging_steps: float = field(
        default=0.02, metadata={"help": "steps between log lines; below 1: share of the run"}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "hide non-finite losses from the logs"}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "ignored: the collator takes what it needs"}
    )

    def __post_init__(self) -> None:
        for name in ("tokens_per_batch", "eval_tokens_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: wants 1 or more, got {value}")
        for name, instead in _UNSUPPORTED.items():
            if getattr(self, name, None):
                raise ValueError(f"{name}: not available for distillation; {instead}")
        if self.train_sampling_strategy not in ("random", "group_by_length", "sequential"):
            raise ValueError(
                "train_sampling_strategy: wants random, group_by_length or sequential, "
                f"got {self.train_sampling_strategy!r}"
            )
        if not torch.accelerator.is_available():
            self.use_cpu = True  # which bf16 and unpinned memory depend on
        if self.accelerator_config is None:
            # Batches of a token budget differ in size; accelerate must not even them out by a batch size.
            self.accelerator_config = {"even_batches": False}
        super().__post_init__()


def training_field_types() -> dict[str, Any]:
    """Every argument `DistillationArguments` takes, with its type: what a recipe may say under `training`."""
    hints = typing.get_type_hints(DistillationArguments)
    return {item.name: hints[item.name] for item in fields(DistillationArguments) if item.init}


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in `folder` that was written to its end, or None.

    A run that is killed while saving leaves a directory without its last file, the trainer state.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    found = []
    for path in folder.glob("checkpoint-*"):
        step = path.name.partition("-")[2]
        try:
            json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if step.isdigit():
            found.append((int(step), str(path)))
    return max(found)[1] if found else None


class DistillationTrainer(Trainer):
    """Trains the student (and the objectives' projections, at the same learning rate) of a `Distiller`.

    Args:
        model: the Distiller.
        args: `DistillationArguments`.
        train_dataset, eval_dataset: features (`input_ids`, optional `token_type_ids`, `labels`), as a
            `datasets.Dataset` or a list. `eval_dataset` may be a dict of them.
        processing_class: the tokenizer, saved beside the student.
        model_card: facts and measured numbers for the README.md of the final save; what is left empty and is
            known here (teacher, sizes, data) is filled in, numbers are only ever the ones given.
        data_collator: makes packed batches; by default a `PackingCollator` that fits the student's head.
        compute_metrics: as in Trainer; by default accuracy, token accuracy, or MSE and Pearson correlation,
            whichever fits the student's head. For token heads predictions are then ids `[T]`, not logits.
        kwargs: passed to Trainer.

    Logged are `loss` and `loss/<objective>`, evaluated `eval_loss`, `eval_loss/<objective>` and the metrics.
    Under gradient accumulation a step's loss is the mean over its micro-batches, each of them a mean over what
    is valid in it; evaluation losses are weighted by the number of sequences in a pack.

    Raises:
        NonFiniteLossError: from `train`, see there.
        ValueError: an empty data set, or a sequence that does not fit `tokens_per_batch`.
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
        model_card: ModelCard | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, DistillationArguments):
            raise TypeError(f"args: wants DistillationArguments, got {type(args).__name__}")
        _check_dataset("train_dataset", train_dataset)
        for name, dataset in _named(eval_dataset):
            _check_dataset(name, dataset)
        if args.n_gpu > 1:
            args._n_gpu = 1  # DataParallel would cut a pack in pieces; use a launcher such as torchrun
        self.distiller = model  # itself, whatever accelerate wraps around it
        self.facts: ModelFacts = PackedModel(model.student).facts
        _offer_checkpointing(model)
        kind = metric_kind(self.facts)
        if compute_metrics is None and kind is not None:
            compute_metrics = _default_metrics(kind)
            if kind == TOKEN:
                kwargs.setdefault("preprocess_logits_for_metrics", _predicted_ids)
        super().__init__(
            model,
            args,
            data_collator or collator_for(self.facts),
            train_dataset,
            eval_dataset,
            processing_class,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        # Distiller.forward(**batch) looks like it takes `num_items_in_batch`. It does not: its loss is a mean over
        # the micro-batch, which Trainer has to divide by the number of accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        self.label_names = ["labels"]
        self.model_card = model_card if model_card is not None else ModelCard()
        self._guard = _FiniteGuard()
        self._guarded_step = -1
        self._parts = _PartMeans()
        self._eval_parts = _PartMeans()
        self._lengths: dict[int, tuple[Any, NDArray[np.int64]]] = {}

    def last_checkpoint(self) -> str | None:
        """Directory of this run's last complete checkpoint, or None."""
        return last_complete_checkpoint(str(self.args.output_dir))

    @property
    def student(self) -> PreTrainedModel:
        """The student, a plain transformers model."""
        return self.distiller.student

    # ---- data -----------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Packed training batches; the order depends on seed and epoch alone."""
        if self.train_dataset is None:
            raise ValueError("train_dataset: training needs one")
        args = self.args
        tokens = args.tokens_per_batch
        lengths = self._lengths_of(self.train_dataset)
        if tokens is not None and int(lengths.max()) > tokens:
            raise ValueError(
                f"tokens_per_batch: {tokens} is less than the longest training sequence, {int(lengths.max())} tokens"
            )
        sampler = TokenBudgetBatchSampler(
            lengths,
            tokens if tokens is not None else int(lengths.sum()),
            shuffle=args.train_sampling_strategy != "sequential",
            seed=args.data_seed if args.data_seed is not None else args.seed,
            max_sequences=self._train_batch_size if tokens is None else None,
            drop_last=args.dataloader_drop_last,
            # Lengths mixed at random unless asked otherwise: packs then hold about equally many sequences.
            bucket=None if args.train_sampling_strategy == "group_by_length" else 1,
        )
        return self._packed_loader(self.train_dataset, sampler, persistent=args.dataloader_persistent_workers)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Packed batches of `eval_dataset` (or a named one of the trainer's) in its own order."""
        known: Any = self.eval_dataset
        dataset = known if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = known[dataset]
        if dataset is None:
            raise ValueError("eval_dataset: evaluation needs one")
        _check_dataset("eval_dataset", dataset)
        tokens = self.args.eval_tokens_per_batch or self.args.tokens_per_batch
        lengths = self._lengths_of(dataset)
        sampler = TokenBudgetBatchSampler(
            lengths,
            max(tokens, int(lengths.max())) if tokens is not None else int(lengths.sum()),
            shuffle=False,
            max_sequences=self.args.eval_batch_size if tokens is None else None,
        )
        return self._packed_loader(dataset, sampler)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As `get_eval_dataloader`."""
        return self.get_eval_dataloader(test_dataset)

    def _packed_loader(
        self, dataset: Any, sampler: TokenBudgetBatchSampler, *, persistent: bool = False
    ) -> DataLoader:
        args = self.args
        batches: Sampler[list[int]] = sampler
        if args.world_size > 1:
            batches = _WholeRounds(sampler, args.world_size)
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
            ValueError: True was given and there is no complete checkpoint.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.last_checkpoint()
            if resume_from_checkpoint is None:
                raise ValueError(f"resume_from_checkpoint: no complete checkpoint in {self.args.output_dir}")
        self._guard.forget()
        self._guarded_step = -1
        self._parts.take()
        result = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        self._check_guard()
        return result

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """One micro-batch: run the Distiller, note the objectives' values, stop if one is not finite."""
        step = self.state.global_step
        if step != self._guarded_step:
            self._check_guard()  # of the step before, where it was not looked at then
            self._guarded_step = step
        self.distiller.progress = step / max(self.state.max_steps, 1)
        outputs = model(**inputs)
        self._guard.watch({**outputs.parts, "loss": outputs.loss}, step)
        # With other processes all have to stop at the same place: behind the exchange of gradients.
        if outputs.loss.device.type == "cpu" and self.args.world_size == 1:
            self._check_guard()
        self._parts.add(outputs.parts, 1 / self.current_gradient_accumulation_steps, step)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # Under fp16 loss scaling an infinite gradient is ordinary: the scaler skips the step.
        if isinstance(norm, Tensor) and getattr(self.accelerator, "scaler", None) is None:
            self._guard.watch({"gradient": norm}, self.state.global_step)
            if norm.device.type == "cpu":
                self._check_guard()
        return norm

    def _check_guard(self) -> None:
        found = self._guard.check()
        if found is not None:
            names, values, step = found
            raise NonFiniteLossError(names, values, step, self.last_checkpoint())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log, with every objective's mean since the last one beside `loss`."""
        if "loss" in logs:
            start, sums = self._parts.take()
            steps = max(self.state.global_step - start, 1)
            logs.update({f"loss/{name}": value / steps for name, value in self._over_processes(sums).items()})
        super().log(logs, start_time)

    def _over_processes(self, sums: dict[str, Tensor], *, mean: bool = True) -> dict[str, float]:
        """Sums as numbers, with one transfer for all of them; over all processes their mean (or their sum)."""
        if not sums:
            return {}
        stacked = torch.stack(list(sums.values()))
        if self.args.world_size > 1:
            stacked = self.accelerator.reduce(stacked, "mean" if mean else "sum")
        return dict(zip(sums, stacked.tolist(), strict=True))

    # ---- evaluation -----------------------------------------------------------------------------------------

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """One pack: (loss, logits `[N, C]` or `[T, C]`, labels `[N]`, `[N, C]` or `[T]`)."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        count = inputs["cu_seq_lens_q"].shape[0] - 1
        loss = outputs.loss.detach()
        self._eval_parts.add({**outputs.parts, "": loss, "#": torch.ones_like(loss)}, count, 0)
        if prediction_loss_only:
            return loss, None, None
        logits, labels = outputs.logits, inputs.get("labels")
        if labels is not None and self.facts.head == "token":
            labels = labels.reshape(-1)
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
        self._eval_parts.take()
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        sums = self._over_processes(self._eval_parts.take()[1], mean=False)
        count = sums.pop("#", 0.0)
        assert output.metrics is not None
        for name, value in sums.items():
            output.metrics[f"{prefix}_loss/{name}" if name else f"{prefix}_loss"] = value / count
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
            self._filled_card().write(output_dir or str(self.args.output_dir))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._check_before_save()
        # An older run's checkpoint of this name stops being complete before the first file of it changes.
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / TRAINER_STATE).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _check_before_save(self) -> None:
        self._check_guard()
        for name, parameter in self.distiller.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                step = self.state.global_step
                raise NonFiniteLossError([name], [math.nan], step, self.last_checkpoint())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """`state_dict` comes gathered from sharded training; otherwise the modules hold their own."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        student_state = _below(state_dict, "student.") if state_dict is not None else None
        self.student.save_pretrained(folder, state_dict=student_state)
        learned = (
            self.distiller.objectives.state_dict()
            if state_dict is None
            else _below(state_dict, "objectives.")
        )
        if learned:
            save_file({k: v.detach().cpu().contiguous() for k, v in learned.items()}, folder / PROJECTIONS)
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
        """A checkpoint's weights into the student and the projections in place."""
        student = self.student
        # transformers' own loader, not the file: it knows tied, renamed and sharded weights.
        saved = type(student).from_pretrained(folder, dtype=student.dtype, local_files_only=True)
        try:
            student.load_state_dict(saved.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{folder} holds a student of another shape: {error}") from error
        objectives = self.distiller.objectives
        if not objectives.state_dict():
            return
        file = Path(folder) / PROJECTIONS
        if not file.is_file():
            raise ValueError(f"{folder} has no {PROJECTIONS}, which these objectives need")
        try:
            objectives.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise ValueError(f"{file} belongs to other objectives: {error}") from error

    def _filled_card(self) -> ModelCard:
        """The model card, with the facts that are known here where it leaves them open."""
        card = self.model_card
        datasets = [("train_dataset", self.train_dataset), *_named(self.eval_dataset)]
        sizes = {name.removesuffix("_dataset"): len(rows) for name, rows in datasets if rows is not None}
        teacher = self.distiller.teacher
        return replace(
            card,
            teacher=card.teacher or (teacher.config.name_or_path if teacher is not None else "") or "",
            student=card.student or student_facts(self.student),
            data=card.data or sizes,
            auto_class=auto_class(self.student),
        )


def student_facts(student: PreTrainedModel) -> dict[str, Any]:
    """A student's sizes, for its model card."""
    config = student.config
    return {
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "attention_heads": config.num_attention_heads,
        "parameters": parameter_count(student),
    }


def auto_class(model: PreTrainedModel) -> str:
    """Name of the transformers class that loads such a model without knowing its family."""
    for head in ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"):
        if type(model).__name__.endswith(head):
            return f"AutoModel{head}"
    return "AutoModel"


# ---- parts --------------------------------------------------------------------------------------------------


class _FiniteGuard:
    """Looks for NaN and infinity without making the device wait.

    On CUDA values travel to pinned memory behind the work that computes them; by the time of the next step they
    have arrived long ago, and looking costs nothing.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[tuple[str, ...], Tensor, Any, int]] = []

    def watch(self, values: Mapping[str, Tensor], step: int) -> None:
        stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        arrived = None
        if stacked.device.type == "cuda":
            host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            stacked = host.copy_(stacked, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append((tuple(values), stacked, arrived, step))

    def check(self) -> tuple[list[str], list[float], int] | None:
        """What is not finite in the first thing watched that has such a value: (names, values, step)."""
        pending, self._pending = self._pending, []
        for names, stacked, arrived, step in pending:
            if arrived is not None:
                arrived.synchronize()
            values = stacked.tolist()
            bad = [i for i, value in enumerate(values) if not math.isfinite(value)]
            if bad:
                # The sum is not finite because a part is not: name the part.
                bad = [i for i in bad if names[i] != "loss"] or bad
                return [names[i] for i in bad], [values[i] for i in bad], step
        return None

    def forget(self) -> None:
        self._pending = []


class _PartMeans:
    """Running sums by name, kept on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._start = 0

    def add(self, parts: Mapping[str, Tensor], weight: float, step: int) -> None:
        if not self._sums:
            self._start = step
        for name, value in parts.items():
            value = value.detach().float() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def take(self) -> tuple[int, dict[str, Tensor]]:
        """(step of the first addition, sums), and start anew."""
        start, sums = self._start, self._sums
        self._sums = {}
        return start, sums


class _WholeRounds(Sampler[list[int]]):
    """Makes the number of batches a multiple of `processes`, by halving the packs with most sequences.

    Every process then gets equally many, so none waits for a gradient exchange that never comes.
    """

    batch_size = None

    def __init__(self, sampler: TokenBudgetBatchSampler, processes: int) -> None:
        self.batch_sampler, self.processes = sampler, processes
        self.drop_last = False

    def __len__(self) -> int:
        return math.ceil(len(self.batch_sampler) / self.processes) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(self.batch_sampler)
        while len(batches) < len(self):
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            batch = batches[largest]
            if len(batch) < 2:
                raise ValueError(f"the data set has fewer sequences than processes ({self.processes})")
            batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        yield from batches

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)

    @property
    def sampler(self) -> _WholeRounds:
        """Itself, so that accelerate's wrappers hand `set_epoch` through (see TokenBudgetBatchSampler)."""
        return self


def _named(eval_dataset: Any) -> list[tuple[str, Any]]:
    if isinstance(eval_dataset, dict):
        return [(f"eval_dataset[{name!r}]", dataset) for name, dataset in eval_dataset.items()]
    return [] if eval_dataset is None else [("eval_dataset", eval_dataset)]


def _check_dataset(name: str, dataset: Any) -> None:
    """Fail at construction, not in the first batch."""
    if dataset is None:
        return
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"{name}: wants a data set with a length and items, got {type(dataset).__name__}")
    if not len(dataset):
        raise ValueError(f"{name}: it is empty")
    if "input_ids" not in dataset[0]:
        raise ValueError(f"{name}: features want input_ids, got {sorted(dataset[0])}")


def _default_metrics(kind: str) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(prediction: EvalPrediction) -> dict[str, float]:
        return metrics_of(np.asarray(prediction.predictions), np.asarray(prediction.label_ids), kind)

    return compute


def _predicted_ids(logits: Tensor, labels: Tensor) -> Tensor:
    """Kept for metrics instead of logits: a token head may be as wide as a vocabulary."""
    return logits.argmax(-1)


def _below(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def _offer_checkpointing(distiller: Distiller) -> None:
    """Let `args.activation_checkpointing` reach the student, whose method Trainer looks for on the model."""
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if not hasattr(distiller, name) and hasattr(distiller.student, name):
            setattr(distiller, name, getattr(distiller.student, name))
