"""The teacher's predictions of a vocabulary as soft labels, from what the output layers read."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ...models.activations import LayerActivations
from ...models.spec import EncoderSpec
from ..registry import check_choice
from .base import Match, Objective, register
from .output_layer import labelled_rows, with_output_layer
from .temperature import TemperatureLike, as_temperature

__all__ = ["LinearLogits"]


@register
class LinearLogits(Objective):
    """`Logits` of kind ``"kl"`` for masked-LM heads, whose logits are never whole in memory.

    Both models are left in front of their last linear map; `ops.linear_logits_kl` takes what that reads, a few
    hundred tokens at a time (DistilBERT's first loss, Sanh et al., 2019, with temperature 2).

    Args:
        temperature: a positive number, or ``{"kind": "linear", "value": 8, "end": 1}`` over the training.
        tokens: ``"all"``, as DistilBERT does, or ``"labelled"``: those with a label, the masked ones.
        weight, schedule, name: see `Objective`.
    """

    place = "output_layer"
    default_name = "linear_logits"

    def __init__(
        self,
        temperature: TemperatureLike = 1.0,
        *,
        tokens: str = "all",
        weight: float | str = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(weight=weight, schedule=schedule, name=name)
        self.temperature = as_temperature(temperature)
        if self.temperature.per_row:
            raise ValueError(
                f"temperature: got {temperature!r}, want a number or 'linear': one for every row needs whole logits"
            )
        self.tokens = check_choice("tokens", tokens, ("all", "labelled"))

    @property
    def matches(self) -> tuple[Match, ...]:
        spot = (self.place, 0)
        return (Match(spot, spot, labels=self.tokens == "labelled"),) if self.pairs else ()

    def bind(self, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
        super().bind(student, teacher)
        assert teacher is not None
        for role, spec in (("student", student), ("teacher", teacher)):
            with_output_layer(self.name, role, spec)
        if student.num_labels != teacher.num_labels:
            raise ValueError(
                f"{self.name}: got a vocabulary of {student.num_labels} of the student and {teacher.num_labels} of the "
                "teacher, want equal ones"
            )

    def forward(
        self, student: LayerActivations, teacher: LayerActivations, labels: Tensor | None = None
    ) -> Tensor:
        s, t = student.hidden, teacher.hidden
        assert s is not None and t is not None and student.weight is not None and teacher.weight is not None
        if labels is not None:
            rows = labelled_rows(labels, len(s))
            s, t = s[rows], t[rows]
        return ops.linear_logits_kl(
            s,
            student.weight,
            t,
            teacher.weight,
            bias_student=student.bias,
            bias_teacher=teacher.bias,
            temperature=self.temperature.at(self.progress),
        )
