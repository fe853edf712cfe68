"""Weights of a teacher into a student: copied, or blended with what the student has, layer by layer.

``W_student = beta * W_teacher(map(layer)) + (1 - beta) * W_student``, for layers, embeddings and heads. A student of
other widths gets the teacher's weights by a rule that the caller states, see `widths`; never by shapes that happen to
agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..models.layers import uniform_layers
from ..models.spec import EncoderSpec
from .axes import axes_of
from .heads import follow_labels
from .parts import own_tensors, part_of, prefix_of, relative_name
from .smaller import SIZES, layer_stack
from .widths import WidthRule, Widths

__all__ = ["LayerMap", "Moved", "Transfer", "layer_pairs", "transfer_weights"]

LayerMap = str | Sequence[int] | Sequence[Sequence[int]]
_RULES = ("error", "truncate", "svd")


@dataclass(frozen=True)
class Moved:
    """One tensor of the student that was blended.

    Attributes:
        name: in the student's state dict.
        source: in the teacher's.
        how: ``"copied"``, ``"truncate"`` or ``"svd"``.
        teacher_shape, student_shape: shapes.
        rows: how many of its first rows were blended, where not all were (tables of tokens or positions).
    """

    name: str
    source: str
    how: str
    teacher_shape: tuple[int, ...]
    student_shape: tuple[int, ...]
    rows: int | None = None


@dataclass(frozen=True)
class Transfer:
    """What `transfer_weights` did.

    Attributes:
        beta: the teacher's share.
        width_rule: as it was asked for.
        layers: (student, teacher) layers.
        widths: name of a size -> (teacher's, student's), of those that differ.
        moved: the tensors that were blended.
        kept: name of a tensor that was left as it was -> why.
    """

    beta: float
    width_rule: str
    layers: tuple[tuple[int, int], ...]
    widths: Mapping[str, tuple[int, int]]
    moved: tuple[Moved, ...]
    kept: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        layers = ", ".join(f"{student} <- {teacher}" for student, teacher in self.layers)
        widths = "".join(f"; {name} {before} -> {after}" for name, (before, after) in self.widths.items())
        rule = f" by {self.width_rule}" if widths else ""
        return (
            f"{len(self.moved)} tensors blended with beta {self.beta:g}{rule}, {len(self.kept)} kept; "
            f"layers {layers}{widths}"
        )


def transfer_weights(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    beta: float = 1.0,
    layer_map: LayerMap = "uniform",
    width_rule: WidthRule = "error",
    embeddings: bool = True,
    head: bool = True,
) -> Transfer:
    """Blend a teacher's weights into a student, in place: ``beta * teacher + (1 - beta) * student``.

    Args:
        teacher: a transformers encoder, bare or with a head; left as it is.
        student: one of the same family with at most the teacher's widths. Its classes take the teacher's order and
            names where the head is blended, see `follow_labels`.
        beta: the teacher's share, 0 to 1.
        layer_map: ``"uniform"`` (the last teacher layer of every equal block), ``"first"``, ``"last"``, a teacher layer
            for every student layer, or (student, teacher) pairs; student layers without a pair stay as they are.
            Layers count from 0.
        width_rule: for a student of other widths. ``"error"``: refuse it. ``"truncate"``: the first hidden dimensions,
            heads, columns and positions. ``"svd"``: hidden dimensions are projected on the principal directions of the
            teacher's hidden states, on both sides of every matrix; of heads, feed-forward columns and pooler dimensions
            those with the largest norms stay. It is exact where the teacher's states lie in so many directions and its
            LayerNorm weights are equal entries; a masked-LM head and uneven LayerNorm weights come out near, not equal.
        embeddings: whether embeddings are blended.
        head: whether what stands behind the layers (pooler, classifier, masked-LM head) is. A head of another kind, or
            one that only one of the two has, stays as it is and is named in ``kept``.

    Returns:
        `Transfer`: names, rule and shapes of all that was blended, and what was kept and why.

    Raises:
        TypeError: one of them is not a transformers model.
        ValueError: a beta outside of 0..1, models that share memory, a layer map that does not fit, layers without a
            counterpart, other widths without a rule for them; the student is unchanged then.
    """
    for role, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"{role}: got {type(model).__name__}, want a transformers model")
    if not (isinstance(beta, int | float) and math.isfinite(beta) and 0 <= beta <= 1):
        raise ValueError(f"beta: got {beta!r}, want 0 to 1")
    if width_rule not in _RULES:
        raise ValueError(f"width_rule: got {width_rule!r}, want one of {', '.join(map(repr, _RULES))}")
    _check_apart(teacher, student)
    depths = _depth("teacher", teacher), _depth("student", student)
    pairs = layer_pairs(layer_map, *depths)
    sources, kept = _counterparts(teacher, student, dict(pairs), embeddings=embeddings, head=head)
    widths = _other_widths(teacher, student)
    theirs, ours = teacher.state_dict(), student.state_dict(keep_vars=True)
    differing = [name for name, origin in sources.items() if theirs[origin].shape != ours[name].shape]
    values = _fitted(teacher, student, sources, width_rule, widths, differing)
    if any(part_of(student, name) == "head" for name in sources):
        _follow_labels(teacher, student)
    moved = []
    with torch.no_grad():
        for name, origin in sources.items():
            target, value = ours[name].detach(), values[name]
            rows = None if len(value) == len(target) else len(value)
            into = target[:rows]
            blended = beta * value.double() + (1 - beta) * into.to(value.device).double()
            into.copy_(blended)
            whole = theirs[origin]
            how = "copied" if value.shape == whole.shape and bool((value == whole).all()) else width_rule
            moved.append(Moved(name, origin, how, tuple(whole.shape), tuple(target.shape), rows))
    return Transfer(float(beta), width_rule, pairs, widths, tuple(moved), kept)


def layer_pairs(layer_map: LayerMap, teacher_layers: int, student_layers: int) -> tuple[tuple[int, int], ...]:
    """(student, teacher) layers of a map, see `transfer_weights`.

    Raises:
        ValueError: depths that do not fit, a layer that is not there, a student layer twice, an unknown name.
    """
    if layer_map in ("first", "last"):
        if student_layers > teacher_layers:
            raise ValueError(
                f"layer_map: got {layer_map!r} for {student_layers} layers, want at most the teacher's {teacher_layers}"
            )
        start = 0 if layer_map == "first" else teacher_layers - student_layers
        return tuple((layer, start + layer) for layer in range(student_layers))
    if layer_map == "uniform":
        if student_layers < 1 or teacher_layers % student_layers:
            raise ValueError(
                f"layer_map: got 'uniform' for {student_layers} layers of the student and {teacher_layers} of the "
                "teacher, want the teacher's to be a multiple of the student's; or name the layers"
            )
        return tuple(enumerate(uniform_layers(teacher_layers, student_layers)))
    if isinstance(layer_map, str) or not isinstance(layer_map, Sequence):
        raise ValueError(
            f"layer_map: got {layer_map!r}, want 'uniform', 'first', 'last', teacher layers or (student, teacher) pairs"
        )
    if all(isinstance(layer, int) for layer in layer_map) and layer_map:
        if len(layer_map) != student_layers:
            raise ValueError(
                f"layer_map: got {list(layer_map)}, want a teacher layer for each of {student_layers} layers of the "
                "student, or (student, teacher) pairs"
            )
        pairs = list(enumerate(cast("Sequence[int]", layer_map)))
    else:
        pairs = []
        for pair in layer_map:
            if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(i, int) for i in pair)):
                raise ValueError(f"layer_map: got {pair!r}, want a (student, teacher) pair of layers")
            pairs.append((int(pair[0]), int(pair[1])))
    for pair in pairs:
        for role, layer, count in zip(
            ("student", "teacher"), pair, (student_layers, teacher_layers), strict=True
        ):
            if not 0 <= layer < count:
                raise ValueError(f"layer_map: got {role} layer {layer} in {pair}, want 0..{count - 1}")
    if len(dict(pairs)) != len(pairs) or not pairs:
        raise ValueError(f"layer_map: got {pairs}, want at least one pair and no student layer twice")
    return tuple(pairs)


def _depth(role: str, model: PreTrainedModel) -> int:
    depth = getattr(model.config, "num_hidden_layers", None)
    if not isinstance(depth, int):
        raise ValueError(
            f"{role}: got {type(model).__name__}, which has no layers of a transformer, want an encoder"
        )
    return depth


# ---- which tensor meets which -------------------------------------------------------------------------------


def _check_apart(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    if teacher is student:
        raise ValueError("teacher: got the student itself, want another model (copy.deepcopy gives one)")
    memory = {p.data_ptr() for p in teacher.parameters()} - {0}
    shared = [name for name, p in student.named_parameters() if p.data_ptr() in memory]
    if shared:
        raise ValueError(
            f"teacher: got {len(shared)} parameters that are the student's too ({shared[0]}, ...), want its own "
            "(copy.deepcopy gives them): blending would change the teacher"
        )


def _counterparts(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layers: Mapping[int, int],
    *,
    embeddings: bool,
    head: bool,
) -> tuple[dict[str, str], dict[str, str]]:
    """Name in the student -> name in the teacher, and the names of what stays -> why. Shared tensors are there once."""
    source = teacher.state_dict()
    stacks = layer_stack(student), layer_stack(teacher)
    same_head = _kind(student) == _kind(teacher)
    found: dict[str, str] = {}
    kept: dict[str, str] = {}
    for name in own_tensors(student):
        part = part_of(student, name)
        if name.startswith(stacks[0]):
            index, _, rest = name.removeprefix(stacks[0]).partition(".")
            if int(index) not in layers:
                kept[name] = "the layer map does not name its layer"
                continue
            origin = f"{stacks[1]}{layers[int(index)]}.{rest}"
        else:
            relative = relative_name(student, name)
            origin = name if relative is None else f"{prefix_of(teacher)}{relative}"
            if part == "embeddings" and not embeddings:
                kept[name] = "embeddings=False"
                continue
            if part == "head" and not head:
                kept[name] = "head=False"
                continue
            if relative is None and not same_head:
                kept[name] = f"{type(teacher).__name__} has another head"
                continue
        if origin in source:
            found[name] = origin
        elif part == "head":
            kept[name] = f"{type(teacher).__name__} has no {origin}"
        else:
            raise ValueError(
                f"layer_map: got {sorted(layers.items())}, want layers of the same make: the student's {name} has no "
                f"counterpart {origin} in {type(teacher).__name__}"
            )
    return found, kept


def _kind(model: PreTrainedModel) -> str:
    """What the head is for, as the class names it: "SequenceClassification"."""
    return type(model).__name__.rpartition("For")[2]


# ---- widths -------------------------------------------------------------------------------------------------


def _other_widths(teacher: PreTrainedModel, student: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Sizes of the configurations that differ: (teacher's, student's)."""
    names = [key for keys in SIZES.values() for key in keys]
    names += ["head_dim", "num_key_value_heads", "embedding_size", "vocab_size", "max_position_embeddings"]
    found = {}
    for name in [*names, "type_vocab_size"]:
        theirs, ours = (getattr(model.config, name, None) for model in (teacher, student))
        if isinstance(theirs, int) and isinstance(ours, int) and theirs != ours:
            found[name] = (theirs, ours)
    return found


def _fitted(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    sources: Mapping[str, str],
    rule: str,
    widths: Mapping[str, tuple[int, int]],
    differing: Sequence[str],
) -> dict[str, Tensor]:
    """The teacher's tensors in the student's shapes, by the student's names."""
    theirs, ours = teacher.state_dict(), student.state_dict()
    if not differing and not widths.keys() & {"num_attention_heads", "num_key_value_heads", "head_dim"}:
        return {name: theirs[origin] for name, origin in sources.items()}
    labels = teacher.config.num_labels, student.config.num_labels
    if differing and not widths and labels[0] != labels[1]:
        raise ValueError(
            f"head: got {labels[1]} labels and {labels[0]} of the teacher, want equally many, or head=False"
        )
    if rule not in ("truncate", "svd"):
        sizes = ", ".join(
            f"{name}={after} and {before} of the teacher" for name, (before, after) in widths.items()
        )
        example = differing[0] if differing else next(iter(sources))
        shapes = f"{list(ours[example].shape)} and {list(theirs[sources[example]].shape)}"
        raise ValueError(
            f"width_rule: got 'error' for {sizes or f'shapes {shapes} of {example}'}, want equal sizes, or "
            "'truncate' or 'svd'"
        )
    facts = EncoderSpec.of(teacher), EncoderSpec.of(student)
    heads = facts[0].num_heads, facts[1].num_heads
    head_dims = facts[0].head_dim, facts[1].head_dim
    fit = Widths(
        teacher,
        axes_of(teacher),
        layer_stack(teacher),
        cast("tuple[int, int]", heads),
        cast("tuple[int, int]", head_dims),
        cast("Literal['truncate', 'svd']", rule),
    )
    return {name: fit.fit(origin, ours[name].shape) for name, origin in sources.items()}


def _follow_labels(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    facts = []
    for model in (student, teacher):
        with suppress(ValueError):  # a model that cannot run packed
            facts.append(EncoderSpec.of(model))
    if len(facts) == 2:
        follow_labels(student, *facts)
        return
    names = [list((model.config.id2label or {}).values()) for model in (student, teacher)]
    if names[0] != names[1]:
        raise ValueError(f"student: got labels {names[0]}, want the teacher's, {names[1]}, in this order")
