"""The teacher's logits as soft labels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from ...models.activations import LayerActivations
from ...models.spec import EncoderSpec
from ..registry import check_choice
from .base import Objective, register, task_of_head, with_head

__all__ = ["Logits"]


@register
class Logits(Objective):
    """The teacher's logits as soft labels, of the kind that its task has (`tasks.task_of`).

    One class a row: the softmax over all logits. Any number of classes (``problem_type`` says multi-label): every logit
    is the sigmoid of a decision of its own, a row of two classes, yes and no. A number (regression): it has no
    distribution, so every kind is the MSE.

    Args:
        temperature: positive.
        kind: ``"kl"``: KL(teacher || student) times temperature squared (Hinton et al., 2015);
            ``"soft_ce"``: soft cross-entropy, no such factor (TinyBERT uses it with temperature 1); both are means over
            rows, or over all decisions. ``"mse"``: of the logits, mean over all of them, temperature unused (Tang et
            al., 2019).
        weight, schedule, name: see `Objective`.
    """

    place = "logits"
    default_name = "logits"

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        kind: str = "kl",
        weight: float | str = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(weight=weight, schedule=schedule, name=name)
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature: got {temperature}, want a positive number")
        self.temperature = float(temperature)
        self.kind = check_choice("kind", kind, ("kl", "soft_ce", "mse"))
        self._task_labels: str | None = "class"

    def bind(self, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
        super().bind(student, teacher)
        assert teacher is not None
        for role, spec in (("student", student), ("teacher", teacher)):
            with_head(self.name, role, spec)
        if (student.head, student.num_labels) != (teacher.head, teacher.num_labels):
            raise ValueError(
                f"{self.name}: got a student {student.head} head with {student.num_labels} labels and a teacher "
                f"{teacher.head} head with {teacher.num_labels}, want the same kind of head and as many labels"
            )
        learns, task = task_of_head(student, teacher), task_of_head(teacher, student)
        if learns.labels != task.labels:
            raise ValueError(
                f"{self.name}: got a student for {learns.name} and a teacher for {task.name}, want the same "
                "problem_type in both configurations"
            )
        self._task_labels = task.labels
        if student.num_labels == 1 and task.labels == "class" and self.kind != "mse":
            raise ValueError(
                f"{self.name}: got kind {self.kind!r}, want kind='mse': of one logit it is constant"
            )

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        assert student.logits is not None and teacher.logits is not None
        if self.kind == "mse" or self._task_labels == "float":
            return F.mse_loss(student.logits.float(), teacher.logits.float())
        s, t = student.logits, teacher.logits
        if self._task_labels == "multi-hot":
            s, t = _decisions(s), _decisions(t)
        loss = ops.logits_kl(s, t, temperature=self.temperature)
        if self.kind == "kl":
            return loss
        # CE(teacher, student) = KL(teacher || student) + entropy(teacher); the entropy has no gradient.
        entropy = torch.special.entr(torch.softmax(t.detach().float() / self.temperature, -1))
        return loss / self.temperature**2 + entropy.sum(-1).mean()


def _decisions(logits: Tensor) -> Tensor:
    """``[N, C]`` sigmoid logits as ``[N * C, 2]`` softmax logits: softmax([z, 0]) is [sigmoid(z), 1 - sigmoid(z)]."""
    return F.pad(logits.reshape(-1, 1), (0, 1))
