"""What every objective is: it declares which spots of student and teacher it matches, and turns them into a loss.

An objective knows tensors, never models: it is bound once to the facts of a student and a teacher, which resolves its
layer map and checks everything that can be checked before work starts, and is then called once per match. The value of
an objective is the *sum* over its matches; `Distiller` adds up ``weight * value``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from ... import tasks
from ...errors import did_you_mean
from ...models.activations import LayerActivations, Place, Spot
from ...models.layers import uniform_layers
from ...models.spec import EncoderSpec
from ..registry import Registry, check_choice

__all__ = [
    "SCHEDULES",
    "Layers",
    "Match",
    "Objective",
    "WeightLike",
    "get",
    "names",
    "queries_and_keys",
    "register",
    "same_heads",
    "task_of_head",
    "with_head",
]

Layers = str | Sequence[Sequence[int | str]]

#: The share of the training over which `"warmup"` rises, unless it is told.
WARMUP = 0.1

# What a weight is multiplied by at training progress p in [0, 1].
SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": lambda p: 1.0,
    "linear_decay": lambda p: 1.0 - p,
    "linear_growth": lambda p: p,
    "warmup": lambda p, share=WARMUP: min(p / share, 1.0),
}

#: What an objective takes: a number, the name of a schedule, or a mapping such as ``{"kind": "warmup", "share": 0.2}``.
WeightLike = float | str | Mapping[str, Any]


@dataclass(frozen=True)
class Match:
    """One comparison that an objective makes: what its ``forward`` is called with, in this order.

    Attributes:
        student: the student's spot.
        teacher: the teacher's spot, None for none.
        labels: whether the batch's labels come as well.
    """

    student: Spot
    teacher: Spot | None = None
    labels: bool = False


class Objective(nn.Module):
    """Base of all objectives.

    A new one declares ``place`` (or, if it looks at different places, ``matches``) and what else it ``needs_...``, and
    defines ``forward``; `register` makes its name known.

    Args:
        layers: for objectives of layers: ``"uniform"`` (the teacher's depth is a multiple k of the student's;
            attention i matches i*k + k-1, hidden i matches i*k), ``"skip"`` (the same without the embeddings and the
            last hidden state), ``"last"``, or explicit (student, teacher) pairs, in which ``"last"`` stands for the
            last one. Attention layers count from 0; hidden 0 is the embeddings output and i the output of layer i.
        weight: a number >= 0; or the name of a schedule (then the number is 1), or ``{"kind": "warmup", "value": 2.0,
            "share": 0.2}``: a schedule, its number and its options. An objective of weight 0 is left out: it is not
            checked, costs nothing and has no value.
        schedule: ``"constant"``, ``"linear_decay"`` (1 to 0 over the training), ``"linear_growth"`` (0 to 1) or
            ``"warmup"`` (0 to 1 over the first ``share`` of it, a tenth if that is not told; then 1).
        name: under which the value is reported; unique within one `Distiller`.

    Attributes:
        place: where it looks, in student and teacher.
        default_name: its name in the registry, and that of its value.
        needs_teacher: whether a match takes the teacher's activations.
        needs_labels: whether a match takes the labels.
        reads: the tensors of the student's activations that it reads, ``("q", "k")``; None: all of them.
        progress: training progress 0..1, set before each call, for what changes over the training.
        needs_preview: whether it has to see activations of the teacher before training starts; see `preview`.
        pairs: the indices of ``place`` that are matched, (student, teacher), once it is bound.

    Raises:
        ValueError: an unknown choice or option, or a weight that is negative or not finite.
    """

    place: ClassVar[Place]
    default_name: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    reads: tuple[str, ...] | None = None
    progress: float = 0.0
    needs_preview: bool = False

    def __init__(
        self,
        *,
        layers: Layers | None = None,
        weight: WeightLike = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.name = self.default_name if name is None else name
        self.weight, self.schedule, self._schedule_options = _as_weight(weight, schedule)
        self.layers = layers
        self.pairs: tuple[tuple[int, int], ...] = ()

    def weight_at(self, progress: float) -> float:
        """The weight at training progress 0..1."""
        progress = min(max(progress, 0.0), 1.0)
        return self.weight * SCHEDULES[self.schedule](progress, **self._schedule_options)

    def bind(self, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
        """Check that two models fit and find what is matched. Sets ``pairs``: a layer map, or the one pair of logits.

        Raises:
            ValueError: naming what does not fit.
        """
        if self.needs_teacher and teacher is None:
            raise ValueError(f"{self.name}: got no teacher, want one")
        if self.place in ("logits", "output_layer"):
            self.pairs = ((0, 0),)
        elif teacher is not None:
            self.pairs = resolve_layers(self.name, self.place, self.layers, student, teacher)

    @property
    def matches(self) -> tuple[Match, ...]:
        """What is matched, once it is bound."""
        return tuple(
            Match((self.place, s), (self.place, t) if self.needs_teacher else None, self.needs_labels)
            for s, t in self.pairs
        )

    def forward(self, student: LayerActivations, *targets: Any) -> Tensor:
        """The loss of one match, a float32 scalar, differentiable in the student's tensors.

        Args:
            student: the student's activations.
            targets: the teacher's `LayerActivations` and the labels ``Tensor``, as far as the match has them.
        """
        raise NotImplementedError

    def preview(self, teacher: LayerActivations) -> None:
        """See one pack of the teacher's activations before training; called once per match and pack if it is needed."""
        raise NotImplementedError

    def end_preview(self) -> None:
        """All that there is to see has been seen: ``needs_preview`` is False from now on."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"name={self.name!r}, weight={self.weight}, schedule={self.schedule!r}, pairs={self.pairs}"


def _as_weight(given: WeightLike, schedule: str) -> tuple[float, str, dict[str, float]]:
    """(number, schedule, options of the schedule) of what an objective was given."""
    told: Any = {"kind": given} if isinstance(given, str) else given
    options: dict[str, Any] = dict(told) if isinstance(told, Mapping) else {"value": told}
    schedule = check_choice("schedule", options.pop("kind", schedule), tuple(SCHEDULES))
    value = options.pop("value", 1.0)
    if not _is_number(value) or not math.isfinite(value) or value < 0:
        raise ValueError(f"weight: got {value}, want a finite number >= 0 or a schedule name")
    known = ("share",) if schedule == "warmup" else ()
    for option in options:
        if option not in known:
            hint = did_you_mean(str(option), ("kind", "value", *known))
            raise ValueError(f"weight: got option {option!r} of {schedule!r}, want a known one{hint}")
    share = options.get("share", WARMUP)
    if not _is_number(share) or not 0 < share <= 1:
        raise ValueError(f"weight: share: got {share!r}, want a share of the training, above 0 and at most 1")
    return float(value), schedule, options


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


_registry: Registry[type[Objective]] = Registry("objective")
Class = TypeVar("Class", bound=type[Objective])


def register(objective: Class) -> Class:
    """Make a class of objectives known by its ``default_name``. A decorator.

    Raises:
        ValueError: another one has that name.
    """
    _registry.add(objective.default_name, objective)
    return objective


def get(name: str) -> type[Objective]:
    """The class of objectives of that name.

    Raises:
        ValueError: there is none; the message names the nearest one.
    """
    return _registry.get(name)


def names() -> list[str]:
    """The names that `get` knows."""
    return _registry.names()


def resolve_layers(
    name: str, place: Place, layers: Layers | None, student: EncoderSpec, teacher: EncoderSpec
) -> tuple[tuple[int, int], ...]:
    """A layer map as (student, teacher) pairs. ``place`` is ``"attention"`` or ``"hidden"``.

    Raises:
        ValueError: depths that do not divide, an index out of range, a pair twice, an unknown name.
    """
    for role, spec in (("student", student), ("teacher", teacher)):
        if place == "attention" and spec.num_heads is None:
            raise ValueError(f"{name}: got {spec.name} as {role}, want a model with attention")
    depth, teacher_depth = student.num_layers, teacher.num_layers
    tops = (depth, teacher_depth) if place == "hidden" else (depth - 1, teacher_depth - 1)
    if layers == "last":
        return (tops,)
    if layers in ("uniform", "skip"):
        try:
            last = uniform_layers(teacher_depth, depth)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if layers == "skip" and depth < 2:
            raise ValueError(f"{name}: layers: got 'skip' of {depth} layer, want a student of 2 or more")
        if place == "hidden":
            pairs = ((0, 0), *((i + 1, layer + 1) for i, layer in enumerate(last)))
            return pairs[1:-1] if layers == "skip" else pairs
        return tuple(enumerate(last))[: -1 if layers == "skip" else None]
    if isinstance(layers, str):
        check_choice("layers", layers, ("uniform", "skip", "last"))
    explicit = _pairs(name, layers)
    pairs = tuple((tops[0] if s == "last" else s, tops[1] if t == "last" else t) for s, t in explicit)
    for pair in pairs:
        for role, index, top in zip(("student", "teacher"), pair, tops, strict=True):
            if not 0 <= index <= top:
                raise ValueError(f"{name}: layers: got {role} {place} index {index} in {pair}, want 0..{top}")
    if len(set(pairs)) != len(pairs) or not pairs:
        raise ValueError(f"{name}: layers: got {list(pairs)}, want at least one pair and none twice")
    return pairs


def _pairs(name: str, layers: object) -> list[tuple[Any, Any]]:
    """(student, teacher), each a whole number or "last"."""
    if isinstance(layers, Sequence) and all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(i, int) or i == "last" for i in pair)
        for pair in layers
    ):
        return [(pair[0], pair[1]) for pair in layers]
    raise ValueError(
        f"{name}: layers: got {layers!r}, want 'uniform', 'skip', 'last' or (student, teacher) pairs"
    )


def queries_and_keys(activations: LayerActivations) -> tuple[Tensor, Tensor]:
    """``q`` and ``k`` of attention activations."""
    assert activations.q is not None and activations.k is not None
    return activations.q, activations.k


def same_heads(name: str, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
    """Raise ValueError unless both models have as many attention heads."""
    assert teacher is not None
    if student.num_heads != teacher.num_heads:
        raise ValueError(
            f"{name}: got {student.num_heads} heads of the student and {teacher.num_heads} of the teacher, want equal "
            "head counts: attention is matched head by head"
        )


def with_head(name: str, role: str, spec: EncoderSpec) -> None:
    """Raise ValueError unless a model has logits."""
    if spec.head is None:
        raise ValueError(
            f"{name}: got {spec.name} as {role}, want a classification, token or masked-LM head on it"
        )


def task_of_head(spec: EncoderSpec, other: EncoderSpec | None) -> tasks.Task:
    """The task of a model's head, by its ``problem_type`` or, where that is not told, by that of an equal head.

    Args:
        spec: the model.
        other: the model that it teaches or learns from.
    """
    told = spec.problem_type
    if other is not None and (spec.head, spec.num_labels) == (other.head, other.num_labels):
        told = told or other.problem_type
    return tasks.task_of(spec.name, spec.num_labels, told, spec.head)
