"""Several teachers as one: what they say of a text, averaged."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import tasks
from ...models.activations import LayerActivations, Sink
from ...models.encoder import ActivationSource, module_of
from ...models.spec import EncoderSpec
from ...models.stream import as_encoder, source_of
from ...students.heads import has_names, label_order
from ..objectives.spans import span_log_softmax
from ..registry import check_choice
from .fingerprints import DIGEST_BYTES, teacher_fingerprint
from .wants import Want, distinct, numbers_of, with_numbers

__all__ = ["MEANS", "AveragedTeachers"]

MEANS = ("probabilities", "logits")


class AveragedTeachers:
    """An `ActivationSource`: the weighted mean of what several teachers say. They run one after the other.

    Logits are averaged as what they stand for. With ``mean_of="probabilities"`` one class a row: ``log(sum_i w_i
    softmax(z_i))``, for spans with the softmaxes over the tokens of a sequence; any number of classes: the logit of
    ``sum_i w_i sigmoid(z_i)``; with ``mean_of="logits"``, and for numbers (regression) always, ``sum_i w_i z_i``.
    Hidden states are averaged where depths and widths agree; where only pooled ones are looked at, after they are
    pooled. Queries and keys have no mean.

    A teacher whose classes have the first one's names in another order (upper and lower case count as the same) is read
    in the first one's order.

    Args:
        teachers: two or more: transformers models, `Encoder` or `ActivationSource`, of one vocabulary and one kind of
            head.
        weights: a positive number for each, divided by their sum; None: equal ones.
        mean_of: ``"probabilities"`` or ``"logits"``.

    Attributes:
        spec: the first teacher's facts, with the vocabulary of the first one that knows its size.
        inputs: names of what any of them reads beside text.
        model: their modules.
        fingerprint: of teachers, weights and ``mean_of``, see `teacher_fingerprint`.

    Raises:
        ValueError: fewer than two, weights that do not fit, or teachers that differ in vocabulary, head or classes.
        TypeError: something that is not a teacher.
    """

    def __init__(
        self,
        teachers: Iterable[Any],
        weights: Sequence[float] | None = None,
        *,
        mean_of: str = "probabilities",
    ) -> None:
        self.teachers = [
            teacher if isinstance(teacher, ActivationSource) else as_encoder(teacher, "teacher")
            for teacher in teachers
        ]
        self.mean_of = check_choice("mean_of", mean_of, MEANS)
        count = len(self.teachers)
        if count < 2:
            raise ValueError(f"teachers: got {count}, want two or more")
        given = [1.0] * count if weights is None else [float(weight) for weight in weights]
        if len(given) != count or not all(math.isfinite(weight) and weight > 0 for weight in given):
            raise ValueError(f"weights: got {given}, want {count} positive numbers, one a teacher")
        self.weights = [weight / math.fsum(given) for weight in given]
        self._orders = [_order(self.spec, teacher.spec) for teacher in self.teachers]
        modules = [module for teacher in self.teachers if (module := module_of(teacher)) is not None]
        self.model = nn.ModuleList(modules) if modules else None
        self._kind = tasks.task_of(
            self.spec.name, self.spec.num_labels, self.spec.problem_type, self.spec.head
        ).labels

    @property
    def spec(self) -> EncoderSpec:
        sizes = [spec.vocab_size for spec in (teacher.spec for teacher in self.teachers) if spec.vocab_size]
        return replace(self.teachers[0].spec, vocab_size=sizes[0] if sizes else None)

    @property
    def inputs(self) -> frozenset[str]:
        models = (getattr(teacher, "encoder", teacher) for teacher in self.teachers)
        return frozenset().union(*(getattr(model, "inputs", None) or () for model in models))

    @property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        parts = [(teacher_fingerprint(t), w) for t, w in zip(self.teachers, self.weights, strict=True)]
        digest.update(repr((self.mean_of, parts)).encode())
        return digest.hexdigest()

    def select(self, wants: Iterable[Want]) -> ActivationSource:
        """The source of just these spots.

        Raises:
            ValueError: attention, or hidden states of teachers that differ in depth or width.
        """
        wants = distinct(wants)
        for (place, _), _ in wants:
            if place == "logits":
                continue
            if place != "hidden":
                raise ValueError(
                    f"teacher: got {place} to average over {len(self.teachers)} teachers, want logits or hidden states"
                )
            sizes = [(t.spec.num_layers, t.spec.hidden_size) for t in self.teachers]
            if len(set(sizes)) > 1:
                raise ValueError(
                    f"teacher: got hidden states to average of teachers with (layers, width) {sizes}, want the "
                    "same for all"
                )
        return _Selected(self, wants)

    def stream(self, batch: Mapping[str, Any], sink: Sink) -> None:
        """Hand over the averaged logits, see `select` for others."""
        self.select([(("logits", 0), None)]).stream(batch, sink)

    def mean(self, seen: LayerActivations) -> _Mean:
        """What adds up the numbers of one spot, that of ``seen``, over the teachers."""
        if seen.place == "hidden" or self.mean_of == "logits" or self._kind == "float":
            return _Mean(lambda x: x, lambda total: total, log=False)
        if self._kind == "multi-hot":
            return _Mean(
                lambda x: torch.stack([F.logsigmoid(x), F.logsigmoid(-x)]),
                lambda total: total[0] - total[1],
                log=True,
            )
        if self._kind == "span":
            return _Mean(lambda x: span_log_softmax(replace(seen, logits=x)), lambda total: total, log=True)
        return _Mean(lambda x: x.log_softmax(-1), lambda total: total, log=True)

    def in_order(self, number: int, logits: Tensor) -> Tensor:
        """A teacher's logits in the first one's order."""
        order = self._orders[number]
        return logits if order is None else logits[:, order]


class _Selected:
    """The teachers, each bound to the spots that are wanted."""

    def __init__(self, owner: AveragedTeachers, wants: tuple[Want, ...]) -> None:
        self.owner, self.wants = owner, wants
        self.sources = [source_of(teacher, wants) for teacher in owner.teachers]
        self.model, self.inputs, self.spec = owner.model, owner.inputs, owner.spec

    def stream(self, batch: Mapping[str, Any], sink: Sink) -> None:
        owner = self.owner
        means: dict[Want, _Mean] = {}
        for number, (source, weight) in enumerate(zip(self.sources, owner.weights, strict=True)):
            last = number == len(self.sources) - 1

            def add(
                seen: LayerActivations, number: int = number, weight: float = weight, last: bool = last
            ) -> None:
                averaged: dict[str | None, Tensor] = {}
                for want in self.wants:
                    spot, pooling = want
                    if spot != seen.spot:
                        continue
                    with torch.no_grad():
                        # Pooled before it is averaged: of some teachers there may be nothing but the pooled states.
                        numbers = numbers_of(seen, pooling)
                        if seen.place == "logits":
                            numbers = owner.in_order(number, numbers)
                        means.setdefault(want, owner.mean(seen)).add(numbers, weight)
                        if last:
                            averaged[pooling] = means.pop(want).value(numbers.dtype)
                if averaged:
                    sink(with_numbers(seen, averaged))

            source.stream(batch, add)

    def flush(self) -> None:
        """Of teachers that have something to write."""
        for source in self.sources:
            if hasattr(source, "flush"):
                source.flush()


class _Mean:
    """A weighted sum in float32, of numbers or (``log``) of those of which they are the logarithms."""

    def __init__(
        self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor], *, log: bool
    ) -> None:
        self.before, self.after, self.log = before, after, log
        self.total: Tensor | None = None

    def add(self, numbers: Tensor, weight: float) -> None:
        numbers = self.before(numbers.float())
        numbers = numbers + math.log(weight) if self.log else numbers * weight
        if self.total is None:
            self.total = numbers
        else:
            self.total = torch.logaddexp(self.total, numbers) if self.log else self.total + numbers

    def value(self, dtype: torch.dtype) -> Tensor:
        assert self.total is not None
        return self.after(self.total).to(dtype)


def _order(first: EncoderSpec, other: EncoderSpec) -> list[int] | None:
    """Where each class of the first teacher stands in another one's logits; None: where it stands in the first's."""
    if None not in (first.vocab_size, other.vocab_size) and first.vocab_size != other.vocab_size:
        raise ValueError(
            f"teacher: got vocabularies of {first.vocab_size} and {other.vocab_size} tokens, want teachers that "
            "read the same tokens"
        )
    heads = [(spec.head, spec.num_labels, _kind(spec)) for spec in (first, other)]
    if heads[0] != heads[1]:
        raise ValueError(
            f"teacher: got (head, labels, kind) {heads[0]} and {heads[1]}, want teachers with the same kind of "
            "head and as many labels"
        )
    if not (has_names(first.labels) and has_names(other.labels)):
        return None
    order = label_order(other.labels, first.labels)
    if order is None:
        raise ValueError(
            f"teacher: got labels {list(first.labels)} and {list(other.labels)}, want teachers of the same classes"
        )
    return None if order == sorted(order) else order


def _kind(spec: EncoderSpec) -> str | None:
    return tasks.task_of(spec.name, spec.num_labels, spec.problem_type, spec.head).labels
