"""The teacher's predictions of a vocabulary as soft labels, from what the output layers read."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ...models.activations import LayerActivations
from ...models.spec import EncoderSpec, padded_alike
from ..registry import check_choice
from .base import Match, Objective, WeightLike, register
from .output_layer import labelled_rows, with_output_layer
from .temperature import TemperatureLike, as_temperature

__all__ = ["LinearLogits"]


@register
class LinearLogits(Objective):
    """`Logits` of kind ``"kl"`` for masked-LM heads, whose logits are never whole in memory.

    Both models are left in front of their last linear map; `ops.linear_logits_kl` takes what that reads, a few
    hundred tokens at a time (DistilBERT's first loss, Sanh et al., 2019, with temperature 2).

    Where one table is the other with rows of padding behind it (30,522 and 30,528, see `padded_alike`), the rows that
    both have are taken, as views: the padding stands for no token.

    Args:
        temperature: a positive number, or ``{"kind": "linear", "value": 8, "end": 1}`` over the training.
        tokens: ``"all"``, as DistilBERT does, or ``"labelled"``: those with a label, the masked ones.
        vocab_size: how many first rows of both tables are the vocabulary; needed where the sizes differ by more than
            padding.
        weight, schedule, name: see `Objective`.
    """

    place = "output_layer"
    default_name = "linear_logits"

    def __init__(
        self,
        temperature: TemperatureLike = 1.0,
        *,
        tokens: str = "all",
        vocab_size: int | None = None,
        weight: WeightLike = 1.0,
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
        if vocab_size is not None and vocab_size < 1:
            raise ValueError(f"vocab_size: got {vocab_size}, want 1 or more")
        self.vocab_size = self._rows = vocab_size

    @property
    def matches(self) -> tuple[Match, ...]:
        spot = (self.place, 0)
        return (Match(spot, spot, labels=self.tokens == "labelled"),) if self.pairs else ()

    def bind(self, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
        super().bind(student, teacher)
        assert teacher is not None
        for role, spec in (("student", student), ("teacher", teacher)):
            with_output_layer(self.name, role, spec)
        sizes = student.num_labels, teacher.num_labels
        if self.vocab_size is not None and self.vocab_size > min(sizes):
            raise ValueError(
                f"{self.name}: vocab_size: got {self.vocab_size}, want at most the {min(sizes)} rows of the smaller"
            )
        if self.vocab_size is None and not padded_alike(*sizes):
            raise ValueError(
                f"{self.name}: got a vocabulary of {sizes[0]} of the student and {sizes[1]} of the teacher, want equal "
                "ones, or one that differs by padding alone; vocab_size= says how many rows of both are the vocabulary"
            )
        self._rows = min(sizes) if self.vocab_size is None else self.vocab_size

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
            _first(student.weight, self._rows),
            t,
            _first(teacher.weight, self._rows),
            bias_student=None if student.bias is None else _first(student.bias, self._rows),
            bias_teacher=None if teacher.bias is None else _first(teacher.bias, self._rows),
            temperature=self.temperature.at(self.progress),
        )


def _first(table: Tensor, rows: int | None) -> Tensor:
    # The backward of a view fills a table of zeros, also of one that has all rows.
    return table if rows is None or len(table) == rows else table[:rows]
