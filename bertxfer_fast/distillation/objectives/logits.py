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
from .base import Objective, register, with_head

__all__ = ["Logits"]


@register
class Logits(Objective):
    """The teacher's logits as soft labels.

    Args:
        temperature: positive.
        kind: ``"kl"``: KL(teacher || student) times temperature squared (Hinton et al., 2015);
            ``"soft_ce"``: soft cross-entropy, no such factor (TinyBERT uses it with temperature 1); both are means over
            rows. ``"mse"``: of the logits, mean over all of them, temperature unused (Tang et al., 2019).
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
        if student.num_labels == 1 and self.kind != "mse":
            raise ValueError(
                f"{self.name}: got kind {self.kind!r}, want kind='mse': of one logit it is constant"
            )

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        assert student.logits is not None and teacher.logits is not None
        if self.kind == "mse":
            return F.mse_loss(student.logits.float(), teacher.logits.float())
        loss = ops.logits_kl(student.logits, teacher.logits, temperature=self.temperature)
        if self.kind == "kl":
            return loss
        # CE(teacher, student) = KL(teacher || student) + entropy(teacher); the entropy has no gradient.
        entropy = torch.special.entr(torch.softmax(teacher.logits.detach().float() / self.temperature, -1))
        return loss / self.temperature**2 + entropy.sum(-1).mean()
