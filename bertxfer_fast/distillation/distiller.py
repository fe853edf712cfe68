"""One module that holds student, teacher and objectives and returns a loss: any trainer can train it."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from ..models.activations import LayerActivations, Spot
from ..models.encoder import ActivationSource, Encoder, module_of, reads
from ..models.stream import as_encoder, source_of
from ..models.token_ids import likeliest_ids
from ..students.heads import follow_labels
from .alignment import in_common
from .batches import packed_batch
from .fit import check_models, check_objectives, teacher_or_start
from .objectives import Match, Objective
from .progress import Progressing
from .reach import Hold, looks_of, release_held, tap_of, unreached
from .signature import names_inputs
from .tied import TiedStates
from .tokenizers import check_tokenizers

__all__ = ["Distiller", "DistillerOutput", "check_tokenizers"]


@dataclass
class DistillerOutput(ModelOutput):
    """What `Distiller` returns.

    Attributes:
        loss: float32 scalar, the sum of ``weight * value`` over the objectives; it carries the gradient.
        logits: the student's, detached: ``[N, C]``, or for every token ``[B, L, C]`` as ``input_ids [B, L]`` has them
            (0 at padding), while training packed, ``[T, C]``; None where they were not needed.
        ids: of ``return_ids``, int64 ``[T]``.
        parts: value of each objective before its weight, by name: detached float32 scalars.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    ids: Tensor | None = None
    parts: dict[str, Tensor] | None = None


@dataclass
class _Roles:
    """The models in their roles. Not a module, so that none of them is registered twice."""

    student: Encoder
    teacher: ActivationSource | None


class Distiller(Progressing, TiedStates):
    """Trains ``student`` to do what ``objectives`` ask of it, with ``teacher`` streaming its activations into them.

    Its parameters are the student's and those of the objectives (learned projections). The teacher is not among
    parameters, modules or ``state_dict``; it follows ``.to()`` and runs in eval mode under no_grad, only as
    far as some objective looks. The student, too, is left early while training when no objective wants its logits; its
    parameters that no objective reaches do not require grad as long as the Distiller lives and has not `release`-d it.

    Args:
        teacher: a transformers encoder, an `Encoder`, or an `ActivationSource`; ``"self"``: a copy of the student as
            it is now, so that it forgets less; None if no objective needs one.
        student: a transformers encoder, or an `Encoder` that is an ``nn.Module``. Its own forward is unchanged, it
            saves as it was; but where it learns the teacher's logits, its classes get the teacher's names and order,
            see `follow_labels`.
        objectives: at least one with a weight above 0, with names of their own.
        teacher_tokenizer: the tokenizer of the teacher's text; if both are given they are compared, see
            `check_tokenizers`.
        student_tokenizer: the tokenizer of the student's text.

    Attributes:
        student: the student's module: the transformers model, or the Encoder itself.
        teacher: the teacher's module in the same way, or the ActivationSource where it has none.
        objectives: ``nn.ModuleList``.
        progress: training progress 0..1, read by schedules while training; whoever trains sets it. In evaluation mode a
            weight is its number without the schedule, and a temperature the one that the training ends with.

    Raises:
        ValueError: vocabularies, tokenizers, head counts, widths, heads, labels or layer maps that do not fit, a
            missing teacher or one that shares trained parameters with the student, objectives with the same name.
        TypeError: something that is not a model or an objective.
    """

    #: Read by transformers' Trainer, which then divides our loss, a mean over the micro-batch, when it accumulates.
    accepts_loss_kwargs = False

    objectives: nn.ModuleList

    def __init__(
        self,
        teacher: PreTrainedModel | Encoder | ActivationSource | str | None,
        student: PreTrainedModel | Encoder,
        objectives: Iterable[Objective],
        *,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        student_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        objectives = list(objectives)
        check_objectives(objectives)
        encoder = as_encoder(student, "student")
        module = module_of(encoder)
        if module is None:
            raise TypeError(f"student: got {type(student).__name__}, want an Encoder that is an nn.Module")
        teacher = cast(
            "PreTrainedModel | Encoder | ActivationSource | None", teacher_or_start(teacher, student)
        )
        if teacher is not None and not isinstance(teacher, ActivationSource):
            teacher = as_encoder(teacher, "teacher")
        if teacher_tokenizer is not None and student_tokenizer is not None:
            check_tokenizers(teacher_tokenizer, student_tokenizer)
        active = [objective for objective in objectives if objective.weight > 0]
        release_held(module)
        if any(objective.needs_teacher for objective in active):
            compared = teacher_tokenizer is not None and student_tokenizer is not None
            check_models(teacher, encoder, tokenizers_compared=compared)
        for objective in active:
            objective.bind(encoder.spec, None if teacher is None else teacher.spec)
        if teacher is not None and any(
            m.student == m.teacher == ("logits", 0) for o in active for m in o.matches
        ):
            follow_labels(module, encoder.spec, teacher.spec)
        self._roles = _Roles(encoder, None if teacher is None else source_of(teacher, looks_of(active)))
        self.student: Any = module
        self.objectives = nn.ModuleList(objectives)
        example = next((p for p in module.parameters() if p.is_floating_point()), None)
        if example is not None:
            self.objectives.to(device=example.device, dtype=example.dtype)
            taught_by = self._teacher_module()
            if taught_by is not None:
                taught_by.to(example.device)
        self._hold = Hold(unreached(encoder, active))
        self._hold.take(module, self)

    @property
    def teacher(self) -> Any:
        module = self._teacher_module()
        return self._roles.teacher if module is None else module

    @property
    def source(self) -> ActivationSource | None:
        """What streams the teacher's activations, of just the spots that are matched."""
        return self._roles.teacher

    @property
    def config(self) -> Any:
        """A copy of the student's configuration, for transformers' Trainer: ``parts`` are no predictions."""
        config = copy.copy(self.student.config)
        ignored = getattr(config, "keys_to_ignore_at_inference", ["past_key_values"])
        config.keys_to_ignore_at_inference = [*ignored, "parts"]
        return config

    def _teacher_module(self) -> nn.Module | None:
        return None if self._roles.teacher is None else module_of(self._roles.teacher)

    def _active(self) -> list[Objective]:
        """The objectives that count."""
        return [o for o in cast("Iterable[Objective]", self.objectives) if o.weight > 0]

    @property
    def group(self) -> int:
        """So many neighbouring rows have to share a batch, because an objective compares them; 1: none does.

        Objectives that compare groups of rows have an attribute ``group``, as `Scores` has.
        """
        return math.lcm(*(getattr(objective, "group", None) or 1 for objective in self._active()))

    def release(self) -> None:
        """Give the student back: its parameters require grad as before, until the Distiller is called again."""
        release_held(self.student)

    def hold(self) -> None:
        """Keep what no objective reaches out of training until `release`, as a call of the Distiller does."""
        self._hold.take(self.student, self)

    def flush(self) -> None:
        """Let a teacher that keeps what it says write it down; whoever trains calls it when it saves."""
        flush: Any = getattr(self._roles.teacher, "flush", None)
        if flush is not None:
            flush()

    @names_inputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_loss: bool | None = True,
        return_ids: bool = False,
        return_logits: bool = False,
        **batch: Any,
    ) -> DistillerOutput:
        """Loss of one batch, packed or ordinary. An ordinary one is packed first.

        Args:
            input_ids: ``[1, T]``, packed, with ``cu_seq_lens_q`` beside it (see `PackedModel`); or ``[B, L]``.
            attention_mask: of an ordinary batch, ``[B, L]``, nonzero = token; left out, every token counts.
            token_type_ids: as ``input_ids``.
            labels: where an objective wants them, one (or one row) per sequence or per token.
            return_loss: False: the student's logits alone, without teacher and objectives.
            return_ids: while evaluating, in place of the logits the likeliest id of every labelled token of the pack,
                see `likeliest_ids`: a masked LM's logits are as wide as a vocabulary.
            return_logits: the logits also of a batch without labels; where an objective wants labels, without a loss.
            **batch: the rest of a packed batch; further inputs that a model's forward takes (``bbox``), with one
                value or row per token.

        Raises:
            ValueError: a bad batch, an input that no model takes, or labels missing where they are wanted.
        """
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        packed = self.pack({**named, "labels": labels, **batch})
        self._hold.take(self.student, self)
        active = self._active()
        if self.training and return_loss is not False:
            self.warn_unmoved(active)
        # An evaluation asks the same at every step, else the best one would be that of the smallest weights.
        for objective in active:
            objective.progress = self.progress if self.training else 1.0
        matches = [(objective, match) for objective in active for match in objective.matches]
        blind = return_logits and "labels" not in packed
        if return_loss is False or (blind and any(match.labels for _, match in matches)):
            logits = self._run_student(packed, (), {}, logits=True)
            return DistillerOutput(logits=self._as_inputs(logits, input_ids, attention_mask))
        student: dict[Spot, LayerActivations] = {}
        # While evaluating, the logits are wanted for the metrics too.
        metrics = not self.training and "labels" in packed
        spots = {match.student for _, match in matches}
        from_rows = metrics and return_ids and self._roles.student.spec.output_layer
        if from_rows and ("logits", 0) not in spots:
            spots.add(("output_layer", 0))
        asked = return_logits or (metrics and not from_rows)
        logits = self._run_student(packed, spots, student, logits=asked)
        ids = None
        if metrics and return_ids:
            seen = student.get(("logits", 0)) or student.get(("output_layer", 0))
            ids, logits = None if seen is None else likeliest_ids(seen, packed["labels"]), None
        values: dict[str, Tensor] = {}

        def compare(objective: Objective, match: Match, *teacher: LayerActivations) -> None:
            wanted = (_labels(objective, packed),) if match.labels else ()
            pair = in_common(objective, _of_student(student, match), *teacher)
            value = objective(*pair, *wanted).float()
            values[objective.name] = values[objective.name] + value if objective.name in values else value

        self._run_teacher(packed, matches, compare)
        for objective, match in matches:
            if match.teacher is None:
                compare(objective, match)
        weights = [o.weight_at(self.progress) if self.training else o.weight for o in active]
        loss = torch.stack([w * values[o.name] for w, o in zip(weights, active, strict=True)]).sum()
        parts = {o.name: values[o.name].detach() for o in active}
        if not self.training:
            logits = self._as_inputs(logits, input_ids, attention_mask)
        return DistillerOutput(loss=loss, logits=logits, ids=ids, parts=parts)

    def _as_inputs(self, logits: Tensor | None, ids: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Logits of tokens in the shape of ``ids``, as labels of an evaluation have it."""
        if logits is None or ids is None or self._roles.student.spec.head not in ("token", "span"):
            return logits
        if mask is None:
            return logits.view(*ids.shape, -1)
        padded = logits.new_zeros(*ids.shape, logits.shape[-1])
        padded[mask != 0] = logits
        return padded

    def _run_student(
        self,
        batch: Mapping[str, Any],
        spots: Iterable[Spot],
        into: dict[Spot, LayerActivations],
        *,
        logits: bool,
    ) -> Tensor | None:
        """Run the student and keep what objectives want of it, with its graph. Returns the logits, if computed."""
        spots = {*spots}
        if logits and self._roles.student.spec.head is not None:
            spots.add(("logits", 0))

        def keep(activations: LayerActivations) -> None:
            into[activations.spot] = activations

        self._roles.student.run(batch, tap_of(spots, keep, stop=True))
        computed = into["logits", 0].logits if ("logits", 0) in into else None
        return None if computed is None else computed.detach()

    def _run_teacher(
        self,
        batch: Mapping[str, Any],
        matches: list[tuple[Objective, Match]],
        compare: Callable[..., None],
    ) -> None:
        """Stream the teacher: each of its tensors meets the student's, turns into a loss and is let go."""
        waiting: dict[Spot, list[tuple[Objective, Match]]] = defaultdict(list)
        for objective, match in matches:
            if match.teacher is not None:
                waiting[match.teacher].append((objective, match))
        if not waiting or self._roles.teacher is None:
            return

        def sink(teacher: LayerActivations) -> None:
            for objective, match in waiting.pop(teacher.spot, ()):
                compare(objective, match, teacher)

        self._roles.teacher.stream(batch, sink)
        for place, index in waiting:
            raise ValueError(f"teacher: got no {place} {index} from {self._roles.teacher.spec.name}, want it")

    def preview(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Show activations of the teacher to the objectives that have to see some before training.

        Where there is none, no batch is read.

        Args:
            batches: as `forward` takes them; a few thousand texts.

        Raises:
            ValueError: there are none.
        """
        curious = [objective for objective in self._active() if objective.needs_preview]
        if not curious or self._roles.teacher is None:
            return
        waiting = [(match.teacher, objective) for objective in curious for match in objective.matches]

        def sink(teacher: LayerActivations) -> None:
            for spot, objective in waiting:
                if spot == teacher.spot:
                    objective.preview(teacher)

        with torch.no_grad():
            for batch in batches:
                self._roles.teacher.stream(self.pack(batch), sink)
        for objective in curious:
            objective.end_preview()

    def pack(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The packed batch that `forward` makes of ``batch``; see there for what it takes and raises."""
        open_ended = any(getattr(model, "inputs", None) is None for model in self._models())
        head = self._roles.student.spec.head
        return packed_batch(batch, inputs=self.inputs, open_ended=open_ended, head=head)

    def _models(self) -> list[Any]:
        """Student and teacher: those that say what they read."""
        teacher = self._roles.teacher
        return [self._roles.student, *([] if teacher is None else [getattr(teacher, "encoder", teacher)])]

    @property
    def inputs(self) -> frozenset[str]:
        """Names of what the models read beside text, for `PackingCollator`."""
        return reads(*self._models())["inputs"]

    @property
    def limits(self) -> dict[str, int]:
        """By input, the rows of the smallest table that a model looks it up in, for `PackingCollator`."""
        return reads(*self._models())["limits"]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, also in another process, can give its student back as the original can."""
        super().__setstate__(state)
        if not all(parameter.requires_grad for parameter in self._hold.parameters):
            self._hold.take(self.student, self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        """``.to()``, ``.cuda()``, ``.half()``...: the teacher goes along although it is not a submodule."""
        super()._apply(fn, recurse)
        teacher = self._teacher_module()
        if teacher is not None:
            teacher._apply(fn)
        return self


def _of_student(student: Mapping[Spot, LayerActivations], match: Match) -> LayerActivations:
    if match.student not in student:
        place, index = match.student
        raise ValueError(f"student: got no {place} {index} from its run, want it: an objective matches it")
    return student[match.student]


def _labels(objective: Objective, batch: Mapping[str, Any]) -> Tensor:
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"labels: got a batch of {sorted(batch)}, want labels for objective {objective.name!r}"
        )
    return labels
