"""What of a student is trained when: frozen parts, parts that thaw one after the other, and an early end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback

from ..distillation.distiller import Distiller
from ..students.parts import frozen_by, parts_of
from .arguments import DistillationArguments
from .checkpoints import load_projections, load_student
from .pruning import Pruning

__all__ = [
    "GradualUnfreezing",
    "callbacks_of",
    "check_policies",
    "offer_checkpointing",
    "policies",
    "pruning_of",
    "restore",
    "save_policies",
]


class GradualUnfreezing(TrainerCallback):
    """Trains the topmost part of a student first, and after each share of the run the next one below as well.

    Parts are the head, each layer and the embeddings; those that no objective reaches, or that are frozen otherwise,
    are passed over. The students of several tasks thaw side by side, each from its own head down. Which parts train
    depends on the step alone, so a run that goes on does as one that never stopped.

    Args:
        share: of the run, after which the next part joins; with 0.1 the eleventh part joins never.
    """

    def __init__(self, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share: got {share}, want more than 0 and less than 1")
        self.share = share
        self._parts: list[list[nn.Parameter]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Find the parts.

        Raises:
            ValueError: several processes, whose gradients are exchanged for all that trained at the start.
        """
        if args.world_size > 1:
            raise ValueError(
                f"gradual_unfreezing: got {self.share} on {args.world_size} processes, want one process"
            )
        self.release()
        self._parts = _from_the_top(_students(model))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let those train whose time has come."""
        # A step that begins exactly at a share belongs to the next part, whatever the division rounds to.
        thawed = 1 + math.floor(state.global_step / max(state.max_steps, 1) / self.share + 1e-9)
        for number, part in enumerate(self._parts):
            for parameter in part:
                parameter.requires_grad_(number < thawed)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All of them require grad again."""
        self.release()

    def release(self) -> None:
        """Let everything require grad that did when the training began; also after one that was cut off."""
        for part in self._parts:
            for parameter in part:
                parameter.requires_grad_(True)
        self._parts = []


def _students(model: Any) -> list[nn.Module]:
    """Of a distiller the student, or those of its several tasks; a model alone is its own."""
    found = getattr(model, "students", None)
    return [getattr(model, "student", model)] if found is None else list(found)


def _from_the_top(students: Iterable[nn.Module]) -> list[list[nn.Parameter]]:
    """What trains, by part from the topmost down: the first part of each student, the second of each, ...

    What students share belongs to the topmost part that it stands in.
    """
    stacks = []
    for student in students:
        parts = [[p for p in part if p.requires_grad] for part in reversed(parts_of(student).values())]
        stacks.append([part for part in parts if part])
    found: list[list[nn.Parameter]] = []
    seen: set[nn.Parameter] = set()
    for level in zip_longest(*stacks, fillvalue=[]):
        found.append([p for p in dict.fromkeys(chain(*level)) if p not in seen])
        seen.update(found[-1])
    return [part for part in found if part]


def callbacks_of(args: DistillationArguments) -> list[TrainerCallback]:
    """The callbacks that the arguments ask for."""
    found: list[TrainerCallback] = []
    if args.gradual_unfreezing is not None:
        found.append(GradualUnfreezing(args.gradual_unfreezing))
    if args.prunes:
        found.append(pruning_of(args))
    if args.early_stopping_patience is not None:
        found.append(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))
    return found


def pruning_of(args: DistillationArguments) -> Pruning:
    """The pruning that the arguments ask for.

    Raises:
        ValueError: shares or a schedule out of range.
    """
    return Pruning(
        args.prune_heads, args.prune_columns, args.prune_layers, start=args.prune_start, end=args.prune_end
    )


def check_policies(distiller: Distiller, args: DistillationArguments) -> Any:
    """Whether the arguments fit a student; returns one of the sizes that the training leaves it with.

    Raises:
        ValueError: they do not fit, or leave nothing to train.
    """
    if args.gradual_unfreezing is not None:
        for student in _students(distiller):
            parts_of(student)
    with _frozen(distiller, args.freeze):
        pass
    if args.prunes and not isinstance(distiller, Distiller):
        raise ValueError(
            f"prune_heads: got pruning of a {type(distiller).__name__}, want a Distiller of one student"
        )
    return pruning_of(args).check(distiller.student) if args.prunes else distiller.student


def offer_checkpointing(distiller: Distiller) -> None:
    """Let `args.activation_checkpointing` reach the student, whose method Trainer looks for on the model."""
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if not hasattr(distiller, name) and hasattr(distiller.student, name):
            setattr(distiller, name, getattr(distiller.student, name))


def save_policies(trainer: Any, folder: Path) -> None:
    """Write what a run that goes on from a checkpoint needs of them."""
    for pruning in _prunings(trainer):
        pruning.save(folder)


def restore(trainer: Any, folder: Path) -> None:
    """Read student, projections and what the policies wrote."""
    load_student(trainer.student, folder)
    load_projections(trainer.distiller.objectives, folder)
    for pruning in _prunings(trainer):
        pruning.load(folder)


def _prunings(trainer: Any) -> list[Pruning]:
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Pruning)]


@contextmanager
def policies(trainer: Any) -> Iterator[None]:
    """The length of a training: what the arguments freeze is frozen inside, and as it was before afterwards.

    Args:
        trainer: a `DistillationTrainer`.
    """
    with _frozen(trainer.distiller, trainer.args.freeze):
        try:
            yield
        except BaseException:
            for pruning in _prunings(trainer):
                pruning.release()
            raise
        finally:  # also of a training that an error ended
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, GradualUnfreezing):
                    callback.release()


@contextmanager
def _frozen(distiller: Distiller, policy: str) -> Iterator[None]:
    # First: what is held would be taken for free when another Distiller's hold ends.
    distiller.hold()
    chosen = [p for student in _students(distiller) for p in frozen_by(student, policy) if p.requires_grad]
    for parameter in chosen:
        parameter.requires_grad_(False)
    try:
        if not any(parameter.requires_grad for parameter in distiller.parameters()):
            raise ValueError(
                f"freeze: got {policy!r}, want less of it: no objective reaches what is left to train"
            )
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(True)
