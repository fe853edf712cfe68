"""Training arguments of a distillation: transformers' own, and how batches are packed."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments

from ..students.parts import check_freeze

# Trainer features that act on a model's own loss or inputs and would be ignored, or break, around a Distiller.
_UNSUPPORTED = {
    "label_smoothing_factor": "smooth the labels in an objective of your own",
    "neftune_noise_alpha": "it needs a model with one input embedding",
    "use_liger_kernel": "its kernels replace a model's own loss",
}
_UNSUPPORTED_BY_PACKS = {
    "split_batches": "a pack is one row that cannot be cut, every process gets packs of its own",
    "dispatch_batches": "a pack is one row that cannot be cut, every process reads packs of its own",
}
_SAMPLING = ("random", "group_by_length", "sequential")


@dataclass
class DistillationArguments(TrainingArguments):
    """transformers' TrainingArguments with packed batches.

    With `tokens_per_batch` a training batch holds as many sequences as fit that many tokens (per device and
    accumulation step); without it, `per_device_train_batch_size` sequences. `train_sampling_strategy` works as
    in Trainer: `"random"`, `"group_by_length"` (packs of similar lengths) or `"sequential"`.

    Defaults that differ from transformers': 50 log lines a run (`logging_steps=0.02`), no column is dropped,
    non-finite losses are never hidden, batches go to a GPU while it computes (`accelerator_config`'s `non_blocking`),
    and `bf16` without an accelerator runs on the CPU.

    `freeze` keeps parts of the student as they are for the length of a training: `"embeddings"`, `"first-3"` (the
    embeddings and three layers) or `"all-but-head"`. With `gradual_unfreezing=0.2` only the topmost part that an
    objective reaches trains at first, and after each fifth of the run the one below it as well. With
    `early_stopping_patience` the training ends when `metric_for_best_model` (default: the loss) was no better than its
    best for so many evaluations, and leaves the best student. `prune_heads`, `prune_columns` and `prune_layers` are
    shares that go between `prune_start` and `prune_end` of the run, see `training.pruning`; the student ends smaller.

    Raises:
        ValueError: a token budget below 1, an unknown sampling strategy, or a feature of Trainer that does not
            work with distillation.
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
    freeze: str = field(
        default="none", metadata={"help": "what stays as it is: none, embeddings, first-N or all-but-head"}
    )
    gradual_unfreezing: float | None = field(
        default=None,
        metadata={"help": "share of the run after which the next part from the top joins the training"},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop after so many evaluations that are no better than the best"}
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "how much better counts as better"}
    )
    prune_heads: float = field(
        default=0.0, metadata={"help": "share of the attention heads that is pruned while training"}
    )
    prune_columns: float = field(
        default=0.0, metadata={"help": "share of every layer's feed-forward columns that is pruned"}
    )
    prune_layers: float = field(default=0.0, metadata={"help": "share of the layers that is pruned"})
    prune_start: float = field(default=0.1, metadata={"help": "share of the run after which pruning begins"})
    prune_end: float = field(default=0.7, metadata={"help": "share of the run after which nothing more goes"})

    def __post_init__(self) -> None:
        for name in ("tokens_per_batch", "eval_tokens_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, want 1 or more")
        self._check_policies()
        for name in (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, want 1 or more")
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise ValueError(
                f"num_train_epochs: got {self.num_train_epochs}, want more than 0 (or max_steps)"
            )
        for name in ("learning_rate", "weight_decay", "adam_epsilon"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}, want a number from 0")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, want 0 or more and less than 1")
        for name, instead in _UNSUPPORTED.items():
            if getattr(self, name, None):
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, want it left out of a distillation; {instead}"
                )
        if self.train_sampling_strategy not in _SAMPLING:
            raise ValueError(
                f"train_sampling_strategy: got {self.train_sampling_strategy!r}, want one of {', '.join(_SAMPLING)}"
            )
        if not torch.accelerator.is_available():
            self.use_cpu = True  # which bf16 and unpinned memory depend on
        given = self.accelerator_config
        if given is None or isinstance(given, dict):
            # A batch that the host waits for would have it wait for the step before, every step.
            self.accelerator_config = {"non_blocking": self.dataloader_pin_memory, **(given or {})}
        super().__post_init__()
        config: Any = self.accelerator_config
        for name, why in _UNSUPPORTED_BY_PACKS.items():
            if getattr(config, name, None):
                raise ValueError(f"accelerator_config: got {name}=True, want it left out: {why}")
        # Batches of a token budget differ in size; accelerate must not even them out by a batch size.
        config.even_batches = False

    @property
    def prunes(self) -> bool:
        """Whether anything is pruned."""
        return bool(self.prune_heads or self.prune_columns or self.prune_layers)

    def _check_policies(self) -> None:
        """What is frozen, thawed and stopped; a choice of the best checkpoint that early stopping needs is made."""
        check_freeze(self.freeze)
        if self.prunes:
            for name, value in (
                ("freeze", self.freeze != "none" and self.freeze),
                ("gradual_unfreezing", self.gradual_unfreezing),
                ("early_stopping_patience", self.early_stopping_patience),
                ("load_best_model_at_end", self.load_best_model_at_end),
            ):
                if value:
                    raise ValueError(
                        f"{name}: got {value} beside pruning, want it left out: the student ends smaller"
                    )
        share, patience = self.gradual_unfreezing, self.early_stopping_patience
        if share is not None and not 0 < share < 1:
            raise ValueError(f"gradual_unfreezing: got {share}, want more than 0 and less than 1, or none")
        if patience is not None and patience < 1:
            raise ValueError(f"early_stopping_patience: got {patience}, want 1 or more")
        if patience is not None:
            if self.eval_strategy == "no":
                raise ValueError(
                    f"early_stopping_patience: got {patience} without evaluation, want eval_strategy 'epoch' or 'steps'"
                )
            if self.save_strategy == "no":
                raise ValueError(
                    f"early_stopping_patience: got {patience} without checkpoints, want save_strategy "
                    f"{str(getattr(self.eval_strategy, 'value', self.eval_strategy))!r}: it leaves the best of them"
                )
            self.load_best_model_at_end = True
            self.metric_for_best_model = self.metric_for_best_model or "loss"
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            # Trainer's own guess takes all but what ends in "loss" for a score.
            self.greater_is_better = greater_is_better(self.metric_for_best_model)
        if patience is None:
            return
        # How often in a row it was no better is part of a checkpoint.
        self.restore_callback_states_from_checkpoint = True


def greater_is_better(metric: str) -> bool:
    """Whether more of a metric is better; of losses and squared errors less is."""
    return not metric.endswith(("loss", "mse")) and "loss/" not in metric


def training_field_types() -> dict[str, Any]:
    """Every argument `DistillationArguments` takes, with its type: what a recipe may say under `training`."""
    hints = typing.get_type_hints(DistillationArguments)
    return {item.name: hints[item.name] for item in fields(DistillationArguments) if item.init}
