"""Several distillations whose students share an encoder, as one module: a batch names the one that it is for."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from .distiller import Distiller, DistillerOutput
from .reach import Hold, unreached

__all__ = ["MultiTask"]

_NAME = re.compile(r"[A-Za-z0-9_-]+")


class MultiTask(nn.Module):
    """A `Distiller` for each of several tasks; ``forward(task=name, **batch)`` runs the one of that name.

    The students are usually models that `students.share_encoder` was called with. What no objective of any task reaches
    does not require grad; what one of them reaches does.

    Args:
        distillers: by task.
        weights: what each task's loss is multiplied by while training; 1 where it is left out. An evaluated loss is the
            task's own.

    Attributes:
        distillers: ``nn.ModuleDict``.
        progress: training progress 0..1, handed on to all.

    Raises:
        ValueError: no distillers, a name of other characters than letters, digits, ``_`` and ``-``, weights of unknown
            tasks or below 0.
    """

    #: As of `Distiller`.
    accepts_loss_kwargs = False

    def __init__(
        self, distillers: Mapping[str, Distiller], *, weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        if not distillers:
            raise ValueError("distillers: got none, want at least one")
        for name, distiller in distillers.items():
            if not isinstance(distiller, Distiller):
                raise TypeError(f"distillers[{name!r}]: got {type(distiller).__name__}, want a Distiller")
            if not _NAME.fullmatch(name):
                raise ValueError(f"distillers: got the name {name!r}, want letters, digits, _ and - alone")
        weights = dict(weights or {})
        for name, weight in weights.items():
            if name not in distillers or not 0 <= weight < float("inf"):
                raise ValueError(
                    f"weights: got {weight} for {name!r}, want a number from 0 for one of {', '.join(distillers)}"
                )
        self.weights = {name: float(weights.get(name, 1.0)) for name in distillers}
        self.distillers = nn.ModuleDict(distillers)
        _share_holds(list(distillers.values()))

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks."""
        return list(self.weights)

    def of(self, task: Any) -> Distiller:
        """The distiller of a task.

        Raises:
            ValueError: there is none of that name.
        """
        if task not in self.weights:
            raise ValueError(f"task: got {task!r}, want one of {', '.join(self.weights)}")
        found: Any = self.distillers[task]
        return found

    def forward(self, task: str | None = None, **batch: Any) -> DistillerOutput:
        """Loss of one batch of one task, while training times the task's weight.

        Args:
            task: its name.
            **batch: as `Distiller.forward` takes it.

        Returns:
            The distiller's output, with ``parts`` named ``<task>/<objective>``.

        Raises:
            ValueError: no such task; else as of `Distiller.forward`.
        """
        output = self.of(task)(**batch)
        assert task is not None
        if output.loss is not None and self.training:
            output.loss = output.loss * self.weights[task]
        if output.parts is not None:
            output.parts = {f"{task}/{name}": value for name, value in output.parts.items()}
        return output

    def pack(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The packed batch that `forward` makes of one, its task in it."""
        rest = {name: value for name, value in batch.items() if name != "task"}
        return {**self.of(batch.get("task")).pack(rest), "task": batch["task"]}

    @property
    def progress(self) -> float:
        return float(self._all()[0].progress)

    @progress.setter
    def progress(self, value: float) -> None:
        for distiller in self._all():
            distiller.progress = value

    @property
    def student(self) -> Any:
        """The first task's student."""
        return self._all()[0].student

    @property
    def students(self) -> list[Any]:
        """Every task's student."""
        return [distiller.student for distiller in self._all()]

    @property
    def config(self) -> Any:
        """As of the first `Distiller`."""
        return copy.copy(self._all()[0].config)

    def release(self) -> None:
        """Give all students back, see `Distiller.release`."""
        for distiller in self._all():
            distiller.release()

    def hold(self) -> None:
        """Hold back again what no task's objective reaches, see `Distiller.hold`."""
        for distiller in self._all():
            distiller.hold()

    def flush(self) -> None:
        """See `Distiller.flush`."""
        for distiller in self._all():
            distiller.flush()

    def _all(self) -> list[Distiller]:
        return [self.of(name) for name in self.weights]


def _share_holds(distillers: list[Distiller]) -> None:
    """Hold back what none of the students' objectives reaches, in place of what each of them alone does not."""
    for distiller in distillers:
        distiller.release()
    missed: dict[int, int] = {}
    having: dict[int, int] = {}
    for distiller in distillers:
        for parameter in distiller.student.parameters():
            having[id(parameter)] = having.get(id(parameter), 0) + 1
        for parameter in unreached(distiller._roles.student, distiller._active()):
            missed[id(parameter)] = missed.get(id(parameter), 0) + 1
    for distiller in distillers:
        parameters = list(distiller.student.parameters())
        distiller._hold = Hold(
            p for p in parameters if missed.get(id(p), 0) == having[id(p)] and p.requires_grad
        )
    for distiller in distillers:
        distiller._hold.take(distiller.student, distiller)
