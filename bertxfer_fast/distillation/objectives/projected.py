"""What objectives share that compare hidden states of other widths: learned linear maps from the student's width."""

from __future__ import annotations

from torch import Tensor, nn

from ...models.activations import LayerActivations
from ...models.spec import EncoderSpec
from ..registry import check_choice
from .base import Layers, Objective, WeightLike

__all__ = ["PROJECTIONS", "ProjectedObjective"]

PROJECTIONS = ("auto", "shared", "per_layer", "none")


class ProjectedObjective(Objective):
    """Base of objectives that map the student's hidden states to the teacher's width.

    Args:
        projection: ``"shared"`` (one ``nn.Linear(student width, teacher width)`` with bias for all pairs),
            ``"per_layer"`` (one for each pair), ``"none"`` (equal widths) or ``"auto"`` (``"none"`` where widths are
            equal, ``"shared"`` where not). It is created when the objective is bound, trained with the student, and
            dropped with the objective.
        layers, weight, schedule, name: see `Objective`.
    """

    place = "hidden"

    def __init__(
        self,
        *,
        projection: str,
        layers: Layers | None = None,
        weight: WeightLike = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(layers=layers, weight=weight, schedule=schedule, name=name)
        self.projection = check_choice("projection", projection, PROJECTIONS)
        self.projections = nn.ModuleList()  # of nn.Linear

    def bind(self, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
        super().bind(student, teacher)
        assert teacher is not None
        widths = (student.hidden_size, teacher.hidden_size)
        equal = widths[0] == widths[1]
        if self.projection == "none" and not equal:
            raise ValueError(
                f"{self.name}: got widths {widths[0]} of the student and {widths[1]} of the teacher, want equal "
                "widths with projection='none', or projection='shared' or 'per_layer'"
            )
        if self.projection == "none" or (self.projection == "auto" and equal):
            return
        count = len(self.pairs) if self.projection == "per_layer" else 1
        have = [(p.in_features, p.out_features) for p in self.projections if isinstance(p, nn.Linear)]
        if have and have != [widths] * count:
            raise ValueError(f"{self.name}: got projections {have} from earlier, want {count} of {widths}")
        if not have:
            self.projections.extend(nn.Linear(*widths) for _ in range(count))

    def projection_of(self, student: LayerActivations, teacher: LayerActivations) -> nn.Linear | None:
        """The linear map of one match, None where there is none."""
        if not len(self.projections):
            return None
        pair = (student.index, teacher.index)
        linear = self.projections[self.pairs.index(pair) if self.projection == "per_layer" else 0]
        assert isinstance(linear, nn.Linear)
        return linear

    def weight_and_bias(
        self, student: LayerActivations, teacher: LayerActivations
    ) -> tuple[Tensor | None, Tensor | None]:
        """Those of `projection_of`, as the operators take them."""
        linear = self.projection_of(student, teacher)
        return (None, None) if linear is None else (linear.weight, linear.bias)
