"""Hidden states, through a learned projection where widths differ."""

from __future__ import annotations

from torch import Tensor, nn

from ... import ops
from ...models.activations import LayerActivations
from ...models.spec import EncoderSpec
from ..registry import check_choice
from .base import Layers, Objective, register

__all__ = ["HiddenStates"]


@register
class HiddenStates(Objective):
    """MSE of hidden states, embeddings included, through a learned linear map (Jiao et al., "TinyBERT", 2020).

    Args:
        projection: ``"shared"`` (one ``nn.Linear(student width, teacher width)`` with bias for all pairs, as in
            TinyBERT), ``"per_layer"`` (one for each pair) or ``"none"`` (equal widths). It is created when the
            objective is bound, trained with the student, and dropped with the objective.
        padding: ``"valid"`` divides by the real tokens, ``"reference"`` by all of the padded batch (``B * L * D``), see
            `AttentionScores`; rows of padding add nothing here.
        layers, weight, schedule, name: see `Objective`.
    """

    place = "hidden"
    default_name = "hidden_states"

    def __init__(
        self,
        layers: Layers = "uniform",
        *,
        projection: str = "shared",
        padding: str = "valid",
        weight: float | str = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(layers=layers, weight=weight, schedule=schedule, name=name)
        self.projection = check_choice("projection", projection, ("shared", "per_layer", "none"))
        self.padding = check_choice("padding", padding, ("valid", "reference"))
        self.projections = nn.ModuleList()  # of nn.Linear

    def bind(self, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
        super().bind(student, teacher)
        assert teacher is not None
        widths = (student.hidden_size, teacher.hidden_size)
        if self.projection == "none":
            if widths[0] != widths[1]:
                raise ValueError(
                    f"{self.name}: got widths {widths[0]} of the student and {widths[1]} of the teacher, want equal "
                    "widths with projection='none', or projection='shared' or 'per_layer'"
                )
            return
        count = 1 if self.projection == "shared" else len(self.pairs)
        have = [(p.in_features, p.out_features) for p in self.projections if isinstance(p, nn.Linear)]
        if have and have != [widths] * count:
            raise ValueError(f"{self.name}: got projections {have} from earlier, want {count} of {widths}")
        if not have:
            self.projections.extend(nn.Linear(*widths) for _ in range(count))

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        assert student.hidden is not None and teacher.hidden is not None
        linear = self._projection_of((student.index, teacher.index))
        loss = ops.hidden_mse(
            student.hidden,
            teacher.hidden,
            None if linear is None else linear.weight,
            None if linear is None else linear.bias,
            reduction="mean" if self.padding == "valid" else "sum",
        )
        if self.padding == "reference":
            rows = (len(student.cu_seqlens) - 1) * student.max_seqlen
            loss = loss / (rows * teacher.hidden.shape[1])
        return loss

    def _projection_of(self, pair: tuple[int, int]) -> nn.Linear | None:
        if self.projection == "none":
            return None
        linear = self.projections[0 if self.projection == "shared" else self.pairs.index(pair)]
        assert isinstance(linear, nn.Linear)
        return linear
