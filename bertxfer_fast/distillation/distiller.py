"""One module that holds student, teacher and objectives and returns a loss: any trainer can train it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from ..data.packing import pack
from ..models.activations import LayerActivations, Tap
from ..models.hf.encoder import PackedModel
from ..models.stream import TeacherStream
from .objectives import Labels, Objective

__all__ = ["Distiller", "DistillerOutput", "check_tokenizers"]

# Text whose tokens differ when two tokenizers fold case, accents or spaces differently.
_PROBE = "Ünïted  States: it's 3.14% re-read, naïvely!"


@dataclass
class DistillerOutput(ModelOutput):
    """What `Distiller` returns.

    Attributes:
        loss: float32 scalar, the sum of ``weight * value`` over the objectives; it carries the gradient.
        logits: the student's, detached: ``[N, C]`` or ``[T, C]``; None where they were not needed.
        parts: value of each objective before its weight, by name: detached float32 scalars.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    parts: dict[str, Tensor] | None = None


class Distiller(nn.Module):
    """Trains ``student`` to do what ``objectives`` ask of it, with ``teacher`` streaming its activations into them.

    Its parameters are the student's and those of the objectives (learned projections). The teacher is not among
    parameters, modules or ``state_dict``; it follows ``.to()``, stays in eval mode and runs under no_grad, and only as
    far as some objective looks. The student, too, is left early while training when no objective wants its logits.

    Args:
        teacher: a transformers encoder or `PackedModel`; None if no objective needs one.
        student: a transformers encoder or `PackedModel`. Its own forward is unchanged, it saves as it was.
        objectives: at least one, with names of their own.
        teacher_tokenizer, student_tokenizer: if both are given they are compared, see `check_tokenizers`.

    Attributes:
        student, teacher: the transformers models.
        objectives: ``nn.ModuleList``.
        progress: training progress 0..1, read by weight schedules; whoever trains sets it.

    Raises:
        ValueError: vocabularies, tokenizers, head counts, widths, heads or layer maps that do not fit, a missing
            teacher, objectives with the same name.
        TypeError: something that is not a model or an objective.
    """

    objectives: nn.ModuleList

    def __init__(
        self,
        teacher: PreTrainedModel | PackedModel | None,
        student: PreTrainedModel | PackedModel,
        objectives: Iterable[Objective],
        *,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        student_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        objectives = list(objectives)
        _check_objectives(objectives)
        self._packed_student = _packed("student", student)
        self._packed_teacher = None if teacher is None else _packed("teacher", teacher)
        if teacher_tokenizer is not None and student_tokenizer is not None:
            check_tokenizers(teacher_tokenizer, student_tokenizer)
        self._check_models(any(o.needs_teacher for o in objectives))
        for objective in objectives:
            teacher_facts = None if self._packed_teacher is None else self._packed_teacher.facts
            objective.bind(self._packed_student.facts, teacher_facts)
        self.student: PreTrainedModel = self._packed_student.model
        self.objectives = nn.ModuleList(objectives)
        self.objectives.to(device=self.student.device, dtype=self.student.dtype)
        self.progress = 0.0
        self._stream = self._make_stream()
        if self._packed_teacher is not None:
            self._packed_teacher.model.eval().to(self.student.device)

    @property
    def teacher(self) -> PreTrainedModel | None:
        return None if self._packed_teacher is None else self._packed_teacher.model

    def _objectives(self) -> list[Objective]:
        return cast("list[Objective]", list(self.objectives))

    def forward(self, **batch: Any) -> DistillerOutput:
        """Loss of one batch.

        Args:
            **batch: a packed batch (``input_ids [1, T]``, ``cu_seq_lens_q``, ...; see `PackedModel`), or an
                ordinary one (``input_ids [B, L]``, ``attention_mask``), which is packed first. ``labels`` where an
                objective wants them.

        Raises:
            ValueError: a bad batch, or labels missing where they are wanted.
        """
        packed = self._pack(batch)
        student: dict[tuple[str, int], LayerActivations] = {}
        logits = self._run_student(packed, student)
        values: dict[str, Tensor] = {}

        def add(objective: Objective, value: Tensor) -> None:
            value = value.float()
            values[objective.name] = values[objective.name] + value if objective.name in values else value

        self._run_teacher(packed, student, add)
        for objective in self._objectives():
            if isinstance(objective, Labels):
                add(objective, objective(student["logits", 0], _labels(objective, packed)))
        loss = torch.stack([o.weight_at(self.progress) * values[o.name] for o in self._objectives()]).sum()
        parts = {o.name: values[o.name].detach() for o in self._objectives()}
        return DistillerOutput(loss=loss, logits=None if logits is None else logits.detach(), parts=parts)

    def _run_student(
        self, batch: Mapping[str, Any], into: dict[tuple[str, int], LayerActivations]
    ) -> Tensor | None:
        """Run the student and keep what objectives want of it, with its graph. Returns the logits, if computed."""
        wanted: dict[str, set[int]] = defaultdict(set)
        for objective in self._objectives():
            wanted[objective.place].update(s for s, _ in objective.pairs)
        # While evaluating, the logits are wanted for the metrics too.
        metrics = not self.training and "labels" in batch and self._packed_student.facts.head is not None
        with_logits = bool(wanted["logits"]) or metrics

        def keep(activations: LayerActivations) -> None:
            into[activations.kind, activations.index] = activations

        tap = Tap(keep, frozenset(wanted["attention"]), frozenset(wanted["hidden"]), with_logits, stop=True)
        self._packed_student(batch, tap)
        return into["logits", 0].logits if with_logits else None

    def _run_teacher(
        self,
        batch: Mapping[str, Any],
        student: Mapping[tuple[str, int], LayerActivations],
        add: Callable[[Objective, Tensor], None],
    ) -> None:
        """Stream the teacher: each of its tensors meets the student's, turns into a loss and is let go."""
        if self._stream is None:
            return
        matches: dict[tuple[str, int], list[tuple[Objective, int]]] = defaultdict(list)
        for objective in self._objectives():
            if objective.needs_teacher:
                for s, t in objective.pairs:
                    matches[objective.place, t].append((objective, s))

        def sink(teacher: LayerActivations) -> None:
            for objective, s in matches[teacher.kind, teacher.index]:
                add(objective, objective(student[objective.place, s], teacher))

        self._stream.run(batch, sink)

    def _make_stream(self) -> TeacherStream | None:
        wanted: dict[str, set[int]] = defaultdict(set)
        for objective in self._objectives():
            if objective.needs_teacher:
                wanted[objective.place].update(t for _, t in objective.pairs)
        if self._packed_teacher is None or not wanted:
            return None
        return TeacherStream(
            self._packed_teacher,
            attention=wanted["attention"],
            hidden=wanted["hidden"],
            logits=bool(wanted["logits"]),
        )

    def _check_models(self, teacher_needed: bool) -> None:
        if not teacher_needed:
            return
        if self._packed_teacher is None:
            raise ValueError("teacher: wants a model, got None although an objective needs it")
        if self._packed_teacher.model is self._packed_student.model:
            raise ValueError("teacher: got the student itself; wants another model (copy.deepcopy gives one)")
        sizes = self._packed_teacher.facts.vocab_size, self._packed_student.facts.vocab_size
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"student: wants the teacher's vocabulary, both read the same tokens; got vocab_size {sizes[1]} "
                f"for the student and {sizes[0]} for the teacher"
            )

    def _pack(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """An ordinary padded batch packed; a packed one as it is."""
        if "cu_seq_lens_q" in batch or not isinstance(batch.get("input_ids"), Tensor):
            return batch
        ids = batch["input_ids"]
        if ids.ndim != 2:
            raise ValueError(
                f"input_ids: wants [B, L], or packed [1, T] with cu_seq_lens_q; got {tuple(ids.shape)}"
            )
        mask = batch.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        packed: dict[str, Any] = {}
        for name in ("input_ids", "token_type_ids"):
            if batch.get(name) is not None:
                tokens, cu_seqlens, longest = pack(batch[name], mask)
                packed[name] = tokens.unsqueeze(0)
                packed["cu_seq_lens_q"], packed["max_length_q"] = cu_seqlens, longest
        labels = batch.get("labels")
        if labels is not None:
            of_tokens = self._packed_student.facts.head == "token" and labels.shape == ids.shape
            packed["labels"] = pack(labels, mask)[0].unsqueeze(0) if of_tokens else labels
        return packed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        """``.to()``, ``.cuda()``, ``.half()``...: the teacher goes along although it is not a submodule."""
        super()._apply(fn, recurse)
        if self.teacher is not None:
            self.teacher._apply(fn)
        return self


def check_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless two tokenizers give the same ids: same vocabulary, same ids for a probe text."""
    vocabularies = teacher.get_vocab(), student.get_vocab()
    if vocabularies[0] != vocabularies[1]:
        differing = min(token for token, _ in vocabularies[0].items() ^ vocabularies[1].items())
        ids = [vocabulary.get(differing) for vocabulary in vocabularies]
        raise ValueError(
            f"student_tokenizer: wants the teacher's vocabulary ({len(vocabularies[0])} tokens), got "
            f"{len(vocabularies[1])} tokens; {differing!r} is {ids[0]} for the teacher and {ids[1]} for the student"
        )
    probes = teacher(_PROBE)["input_ids"], student(_PROBE)["input_ids"]
    if list(probes[0]) != list(probes[1]):
        raise ValueError(
            "student_tokenizer: same vocabulary as the teacher's, but it cuts text differently (case, accents "
            f"or special tokens); {_PROBE!r} gives {list(probes[0])} for the teacher and {list(probes[1])}"
        )


def _packed(role: str, model: PreTrainedModel | PackedModel) -> PackedModel:
    if isinstance(model, PackedModel):
        return model
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"{role}: wants a transformers PreTrainedModel or a PackedModel, got {type(model).__name__}"
        )
    return PackedModel(model)


def _check_objectives(objectives: list[Objective]) -> None:
    for objective in objectives:
        if not isinstance(objective, Objective):
            raise TypeError(f"objectives: wants Objective instances, got {type(objective).__name__}")
    if not objectives:
        raise ValueError("objectives: wants at least one, got none")
    repeated = [name for name, count in Counter(o.name for o in objectives).items() if count > 1]
    if repeated:
        raise ValueError(f"objectives: {repeated[0]!r} is there more than once; give each its own name=")


def _labels(objective: Labels, batch: Mapping[str, Any]) -> Tensor:
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels: objective {objective.name!r} wants them, the batch has {sorted(batch)}")
    return labels
