"""The labels of the data."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...models.activations import LayerActivations, Place
from ...models.spec import EncoderSpec
from .base import Match, Objective, WeightLike, register, task_of_head, with_head
from .output_layer import labelled_rows, logits_of_rows
from .spans import span_loss

__all__ = ["Labels"]


@register
class Labels(Objective):
    """The task's own labels, without a teacher: what transformers' heads would compute.

    Classes: cross-entropy, -100 ignored. Several classes a row (``problem_type`` is multi-label, or the labels are
    floats): binary cross-entropy per label. Regression: MSE. Spans: cross-entropy of their first and last token over
    the tokens of the sequence. Means over what is labelled. Of a masked LM the logits of the labelled tokens alone are
    computed, from what its output layer reads.

    Args:
        weight, schedule, name: see `Objective`.
    """

    place = "logits"
    default_name = "labels"
    needs_teacher = False
    needs_labels = True

    def __init__(
        self, *, weight: WeightLike = 1.0, schedule: str = "constant", name: str | None = None
    ) -> None:
        super().__init__(weight=weight, schedule=schedule, name=name)
        self._task_labels: str | None = "class"
        self._from_output_layer = False

    @property
    def matches(self) -> tuple[Match, ...]:
        place: Place = "output_layer" if self._from_output_layer else "logits"
        return (Match((place, 0), None, labels=True),) if self.pairs else ()

    def bind(self, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
        super().bind(student, teacher)
        with_head(self.name, "student", student)
        self._task_labels = task_of_head(student, teacher).labels
        self._from_output_layer = student.output_layer

    def forward(self, student: LayerActivations, labels: Tensor) -> Tensor:
        """The loss of ``logits [R, C]`` against labels ``[R]``, ``[1, R]`` or ``[R, C]`` (spans ``[N, 2]``), a scalar.

        In place of logits the student's activations may be those of its output layer.

        Raises:
            ValueError: labels of another shape, or outside 0..C-1.
        """
        if self._task_labels == "span":
            return span_loss(student, labels)
        if student.logits is None:
            assert student.hidden is not None
            counting = labelled_rows(labels, len(student.hidden))
            logits, labels = logits_of_rows(student, counting).float(), labels.reshape(-1)[counting]
        else:
            logits = student.logits.float()
        rows, classes = logits.shape
        if self._task_labels != "class" or labels.is_floating_point():
            if labels.numel() != logits.numel():
                raise ValueError(f"labels: got {tuple(labels.shape)}, want floats {tuple(logits.shape)}")
            loss = F.mse_loss if self._task_labels == "float" else F.binary_cross_entropy_with_logits
            return loss(logits, labels.reshape(logits.shape).float())
        if labels.numel() != rows:
            raise ValueError(f"labels: got {tuple(labels.shape)}, want {rows} class ids")
        labels = labels.reshape(rows).long()
        counted = labels != -100
        if labels.device.type == "cpu":  # elsewhere looking costs a host sync
            bad = labels[counted & ((labels < 0) | (labels >= classes))]
            if len(bad):
                raise ValueError(f"labels: got {int(bad[0])}, want class ids 0..{classes - 1} (or -100)")
        total = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        return total / counted.sum().clamp(min=1)
