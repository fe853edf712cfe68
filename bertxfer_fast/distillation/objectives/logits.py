"""The teacher's logits as soft labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from ...models.activations import LayerActivations
from ...models.spec import EncoderSpec
from ..registry import check_choice
from .base import Objective, WeightLike, register, task_of_head, with_head
from .spans import span_rows
from .temperature import TemperatureLike, as_temperature

__all__ = ["Logits"]


@register
class Logits(Objective):
    """The teacher's logits as soft labels, of the kind that its task has (`tasks.task_of`).

    One class a row: the softmax over all logits. Any number of classes (``problem_type`` says multi-label): every logit
    is the sigmoid of a decision of its own, a row of two classes, yes and no. A span: a softmax over the tokens of a
    sequence for its first, and one for its last. A number (regression): it has no distribution, so every kind is the
    MSE.

    Args:
        temperature: a positive number; or a schedule: ``{"kind": "linear", "value": 8, "end": 1}`` over the training,
            ``"flsw"`` (lower for rows in which student and teacher differ; ``beta``, ``gamma``) or ``"cwsm"`` (lower
            for rows of which the student is unsure; ``beta``), each around ``value``, with no gradient through it and
            never below a tenth of ``value`` (TextBrewer, 2020).
        kind: ``"kl"``: KL(teacher || student) times temperature squared (Hinton et al., 2015);
            ``"soft_ce"``: soft cross-entropy, no such factor (TinyBERT uses it with temperature 1); ``"sigmoid"``: as
            ``"kl"``, every logit a decision of its own also where one class is asked for; these are means over rows, or
            over all decisions. ``"mse"``: of the logits, mean over all of them, temperature unused (Tang et al., 2019).
        weight, schedule, name: see `Objective`.
    """

    place = "logits"
    default_name = "logits"

    def __init__(
        self,
        temperature: TemperatureLike = 1.0,
        *,
        kind: str = "kl",
        weight: WeightLike = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(weight=weight, schedule=schedule, name=name)
        self.temperature = as_temperature(temperature)
        self.kind = check_choice("kind", kind, ("kl", "soft_ce", "sigmoid", "mse"))
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
        if task.labels == "span" and self.temperature.per_row:
            raise ValueError(
                f"{self.name}: got a temperature for every row, want one for all: rows of spans are as long as texts"
            )
        if student.num_labels == 1 and task.labels == "class" and self.kind not in ("mse", "sigmoid"):
            raise ValueError(
                f"{self.name}: got kind {self.kind!r}, want kind='mse': of one logit it is constant"
            )

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        assert student.logits is not None and teacher.logits is not None
        if self.kind == "mse" or self._task_labels == "float":
            return F.mse_loss(student.logits.float(), teacher.logits.float())
        s, t = student.logits, teacher.logits
        if self._task_labels == "multi-hot" or self.kind == "sigmoid":
            s, t = _decisions(s), _decisions(t)
        elif self._task_labels == "span":
            s, t = span_rows(student), span_rows(teacher)
        squared = self.kind != "soft_ce"
        tau: float | Tensor
        if self.temperature.per_row:
            rows = self.temperature.of_rows(s, t)
            loss, tau = _kl_of_rows(s, t, rows, squared), rows[:, None]
        else:
            tau = self.temperature.at(self.progress)
            loss = ops.logits_kl(s, t, temperature=tau) / (1 if squared else tau**2)
        if squared:
            return loss
        # CE(teacher, student) = KL(teacher || student) + entropy(teacher); the entropy has no gradient.
        return loss + torch.special.entr((t.detach().float() / tau).softmax(-1)).sum(-1).mean()


def _kl_of_rows(student: Tensor, teacher: Tensor, tau: Tensor, squared: bool) -> Tensor:
    """Mean of KL(teacher || student) over rows, each with a temperature ``tau [R]`` of its own, times its square."""
    s, t = ((x.float() / tau[:, None]).log_softmax(-1) for x in (student, teacher.detach()))
    rows = F.kl_div(s, t, log_target=True, reduction="none").sum(-1)
    return (rows * tau.square() if squared else rows).mean()


def _decisions(logits: Tensor) -> Tensor:
    """``[N, C]`` sigmoid logits as ``[N * C, 2]`` softmax logits: softmax([z, 0]) is [sigmoid(z), 1 - sigmoid(z)]."""
    return F.pad(logits.reshape(-1, 1), (0, 1))
