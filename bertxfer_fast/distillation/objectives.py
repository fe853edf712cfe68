"""What a student is taught: each objective says which tensors of the two models are matched, and how.

An objective knows tensors, never models: it is bound once to the facts of a student and a teacher, which resolves its
layer map and checks everything that can be checked before work starts, and is then called once per matched
pair. The value of an objective is the *sum* over its pairs; `Distiller` adds up ``weight * value``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..errors import did_you_mean
from ..models.activations import LayerActivations, ModelFacts

__all__ = ["SCHEDULES", "AttentionMaps", "AttentionScores", "HiddenStates", "Labels", "Logits", "Objective"]

Layers = str | Sequence[Sequence[int]]

# What a weight is multiplied by at training progress p in [0, 1].
SCHEDULES = {
    "constant": lambda p: 1.0,
    "linear_decay": lambda p: 1.0 - p,
    "linear_growth": lambda p: p,
}


class Objective(nn.Module):
    """Base of all objectives.

    Args:
        layers: for objectives of layers: ``"uniform"`` (the teacher's depth is a multiple k of the student's;
            attention i matches i*k + k-1, hidden i matches i*k), ``"last"``, or explicit (student, teacher)
            pairs. Attention layers count from 0; hidden 0 is the embeddings output and i the output of layer i.
        weight: a number >= 0, or the name of a schedule (then the number is 1).
        schedule: ``"constant"``, ``"linear_decay"`` (1 to 0 over the training) or ``"linear_growth"`` (0 to 1).
        name: under which the value is reported; unique within one `Distiller`.

    Raises:
        ValueError: an unknown choice, or a weight that is negative or not finite.
    """

    place: ClassVar[Literal["attention", "hidden", "logits"]]
    default_name: ClassVar[str]
    needs_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        layers: Layers | None = None,
        weight: float | str = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__()
        weight, schedule = (1.0, weight) if isinstance(weight, str) else (weight, schedule)
        _choice("schedule", schedule, tuple(SCHEDULES))
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weight: wants a finite number >= 0 or a schedule name, got {weight}")
        self.name = self.default_name if name is None else name
        self.weight = float(weight)
        self.schedule = schedule
        self.layers = layers
        self.pairs: tuple[tuple[int, int], ...] = ()

    def weight_at(self, progress: float) -> float:
        """The weight at training progress 0..1."""
        return self.weight * SCHEDULES[self.schedule](min(max(progress, 0.0), 1.0))

    def bind(self, student: ModelFacts, teacher: ModelFacts | None) -> None:
        """Resolve the layer map against two models and check that they fit. Sets ``pairs``.

        Raises:
            ValueError: naming what does not fit.
        """
        if teacher is None:
            raise ValueError(f"{self.name}: wants a teacher, got none")
        self.pairs = resolve_layers(self.name, self.place, self.layers, student, teacher)

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        """The loss of one pair, a float32 scalar, differentiable in the student's tensors."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"name={self.name!r}, weight={self.weight}, schedule={self.schedule!r}, pairs={self.pairs}"


class AttentionScores(Objective):
    """MSE of the attention scores before the softmax (Jiao et al., "TinyBERT", 2020). Equal head counts.

    Args:
        padding: what the mean is over. ``"valid"``: the pairs of real tokens. ``"reference"``: ``B * H * L * L``
            with L the longest length of the batch, as TinyBERT's own code divides, so that losses and
            gradients have its scale. Packed data has no padding, which leaves two differences from that code: its rows
            of padded queries, which it does not exclude, add nothing here, and it sets scores <= -100 to 0. Without
            padding the two choices are equal.
        method: of `ops.attention_score_mse`.
        layers, weight, schedule, name: see `Objective`.
    """

    place = "attention"
    default_name = "attention_scores"

    def __init__(
        self,
        layers: Layers = "uniform",
        *,
        padding: str = "valid",
        method: str = "auto",
        weight: float | str = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(layers=layers, weight=weight, schedule=schedule, name=name)
        self.padding = _choice("padding", padding, ("valid", "reference"))
        self.method = _choice("method", method, ("auto", "gram", "tiled"))

    def bind(self, student: ModelFacts, teacher: ModelFacts | None) -> None:
        super().bind(student, teacher)
        _same_heads(self.name, student, teacher)

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        q, k = _qk(student)
        loss = ops.attention_score_mse(
            q,
            k,
            *_qk(teacher),
            student.cu_seqlens,
            max_seqlen=student.max_seqlen,
            scale_student=student.scale,
            scale_teacher=teacher.scale,
            reduction="mean" if self.padding == "valid" else "sum",
            method=self.method,
        )
        if self.padding == "reference":
            loss = loss / ((len(student.cu_seqlens) - 1) * q.shape[1] * student.max_seqlen**2)
        return loss


class AttentionMaps(Objective):
    """Divergence of the softmaxed attention maps, mean over heads and valid rows (``"mse"``: valid pairs).

    Wang et al., "MiniLM", 2020 (``"kl"``, last layer); TextBrewer, 2020 (``"mse"``). Equal head counts.

    Args:
        kind: ``"kl"`` (teacher || student) or ``"mse"``.
        layers, weight, schedule, name: see `Objective`; the last layer by default.
    """

    place = "attention"
    default_name = "attention_maps"

    def __init__(
        self,
        layers: Layers = "last",
        *,
        kind: str = "kl",
        weight: float | str = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(layers=layers, weight=weight, schedule=schedule, name=name)
        self.kind = _choice("kind", kind, ("kl", "mse"))

    def bind(self, student: ModelFacts, teacher: ModelFacts | None) -> None:
        super().bind(student, teacher)
        _same_heads(self.name, student, teacher)

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        return ops.attention_map_loss(
            *_qk(student),
            *_qk(teacher),
            student.cu_seqlens,
            kind=self.kind,
            max_seqlen=student.max_seqlen,
            scale_student=student.scale,
            scale_teacher=teacher.scale,
        )


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
        self.projection = _choice("projection", projection, ("shared", "per_layer", "none"))
        self.padding = _choice("padding", padding, ("valid", "reference"))
        self.projections = nn.ModuleList()  # of nn.Linear

    def bind(self, student: ModelFacts, teacher: ModelFacts | None) -> None:
        super().bind(student, teacher)
        assert teacher is not None
        widths = (student.hidden_size, teacher.hidden_size)
        if self.projection == "none":
            if widths[0] != widths[1]:
                raise ValueError(
                    f"{self.name}: projection 'none' wants equal widths, got student {widths[0]} and teacher "
                    f"{widths[1]}; use projection='shared' or 'per_layer'"
                )
            return
        count = 1 if self.projection == "shared" else len(self.pairs)
        have = [(p.in_features, p.out_features) for p in self.projections if isinstance(p, nn.Linear)]
        if have and have != [widths] * count:
            raise ValueError(f"{self.name}: already has projections {have}, now wants {count} of {widths}")
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
            raise ValueError(f"temperature: wants a positive number, got {temperature}")
        self.temperature = float(temperature)
        self.kind = _choice("kind", kind, ("kl", "soft_ce", "mse"))

    def bind(self, student: ModelFacts, teacher: ModelFacts | None) -> None:
        if teacher is None:
            raise ValueError(f"{self.name}: wants a teacher, got none")
        for role, facts in (("student", student), ("teacher", teacher)):
            _with_head(self.name, role, facts)
        if (student.head, student.num_labels) != (teacher.head, teacher.num_labels):
            raise ValueError(
                f"{self.name}: wants the same kind of head and as many labels, got student {student.head} head "
                f"with {student.num_labels} and teacher {teacher.head} head with {teacher.num_labels}"
            )
        if student.num_labels == 1 and self.kind != "mse":
            raise ValueError(f"{self.name}: kind {self.kind!r} of one logit is constant; use kind='mse'")
        self.pairs = ((0, 0),)

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


class Labels(Objective):
    """The task's own labels, without a teacher: what transformers' heads would compute.

    Integer labels: cross-entropy, -100 ignored. Float labels: MSE with one label (or where the student's
    ``problem_type`` is regression), else binary cross-entropy per label. Means over what is labelled.

    Args:
        weight, schedule, name: see `Objective`.
    """

    place = "logits"
    default_name = "labels"
    needs_teacher = False

    def __init__(
        self, *, weight: float | str = 1.0, schedule: str = "constant", name: str | None = None
    ) -> None:
        super().__init__(weight=weight, schedule=schedule, name=name)
        self._regression = False

    def bind(self, student: ModelFacts, teacher: ModelFacts | None) -> None:
        _with_head(self.name, "student", student)
        self._regression = student.problem_type == "regression" or student.num_labels == 1
        self.pairs = ((0, 0),)

    def forward(self, student: LayerActivations, labels: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of ``logits [R, C]`` against labels ``[R]``, ``[1, R]`` or ``[R, C]``, a float32 scalar.

        Raises:
            ValueError: labels of another shape, or outside 0..C-1.
        """
        assert student.logits is not None
        logits = student.logits.float()
        rows, classes = logits.shape
        if self._regression or labels.is_floating_point():
            if labels.numel() != logits.numel():
                raise ValueError(f"labels: wants floats {tuple(logits.shape)}, got {tuple(labels.shape)}")
            loss = F.mse_loss if self._regression else F.binary_cross_entropy_with_logits
            return loss(logits, labels.reshape(logits.shape).float())
        if labels.numel() != rows:
            raise ValueError(f"labels: wants {rows} class ids, got {tuple(labels.shape)}")
        labels = labels.reshape(rows).long()
        counted = labels != -100
        if labels.device.type == "cpu":  # elsewhere looking costs a host sync
            bad = labels[counted & ((labels < 0) | (labels >= classes))]
            if len(bad):
                raise ValueError(f"labels: wants class ids 0..{classes - 1} (or -100), got {int(bad[0])}")
        total = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        return total / counted.sum().clamp(min=1)


def resolve_layers(
    name: str, kind: str, layers: Layers | None, student: ModelFacts, teacher: ModelFacts
) -> tuple[tuple[int, int], ...]:
    """A layer map as (student, teacher) pairs. ``kind`` is ``"attention"`` or ``"hidden"``.

    Raises:
        ValueError: depths that do not divide, an index out of range, a pair twice, an unknown name.
    """
    depth, teacher_depth = student.num_layers, teacher.num_layers
    tops = (depth, teacher_depth) if kind == "hidden" else (depth - 1, teacher_depth - 1)
    if layers == "last":
        return (tops,)
    if layers == "uniform":
        step, rest = divmod(teacher_depth, depth)
        if rest or not step:
            raise ValueError(
                f"{name}: layers 'uniform' wants the teacher's depth to be a multiple of the student's, got "
                f"{teacher_depth} and {depth}; give explicit (student, teacher) pairs"
            )
        if kind == "hidden":
            return tuple((i, i * step) for i in range(depth + 1))
        return tuple((i, i * step + step - 1) for i in range(depth))
    if isinstance(layers, str):
        _choice("layers", layers, ("uniform", "last"))
    pairs = tuple((int(s), int(t)) for s, t in _pairs(name, layers))
    for pair in pairs:
        for role, index, top in zip(("student", "teacher"), pair, tops, strict=True):
            if not 0 <= index <= top:
                raise ValueError(f"{name}: layers: {role} {kind} index wants 0..{top}, got {index} in {pair}")
    if len(set(pairs)) != len(pairs) or not pairs:
        raise ValueError(f"{name}: layers wants at least one pair and none twice, got {list(pairs)}")
    return pairs


def _pairs(name: str, layers: object) -> list[tuple[int, int]]:
    if isinstance(layers, Sequence) and all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(i, int) for i in pair)
        for pair in layers
    ):
        return [(pair[0], pair[1]) for pair in layers]
    raise ValueError(f"{name}: layers wants 'uniform', 'last' or (student, teacher) pairs, got {layers!r}")


def _choice(argument: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        hint = did_you_mean(str(value), known, listing=False)
        raise ValueError(f"{argument}: wants one of {', '.join(map(repr, known))}, got {value!r}{hint}")
    return value


def _qk(activations: LayerActivations) -> tuple[Tensor, Tensor]:
    assert activations.q is not None and activations.k is not None
    return activations.q, activations.k


def _same_heads(name: str, student: ModelFacts, teacher: ModelFacts | None) -> None:
    assert teacher is not None
    if student.num_heads != teacher.num_heads:
        raise ValueError(
            f"{name}: matches attention head by head and wants equal head counts, got student "
            f"{student.num_heads} and teacher {teacher.num_heads}"
        )


def _with_head(name: str, role: str, facts: ModelFacts) -> None:
    if facts.head is None:
        raise ValueError(
            f"{name}: wants a {role} with a classification, token or masked-LM head, got {facts.name}"
        )
