"""A teacher whose tokenizer is not the student's: each reads its own tokens of the same texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from torch import nn

from ...data.collators import ALIGNMENT, TEACHER
from ...models.activations import Alignment, LayerActivations, Sink
from ...models.encoder import ActivationSource, module_of
from ...models.spec import EncoderSpec
from ...models.stream import as_encoder, source_of
from .fingerprints import teacher_fingerprint
from .wants import Want

__all__ = ["OtherTokens"]


class OtherTokens:
    """An `ActivationSource`: a teacher that reads tokens of its own, for a student with another tokenizer.

    Batches carry both: the student's tokens under the usual names, the teacher's under the same names with
    ``teacher_`` before them, as `data.encode_both` and `PackingCollator` make them. What one text has one row of can be
    learned as it is: logits of texts, pooled hidden states. What each token has a row of can where the features say
    which tokens stand for the same characters (``encode_both(align=True)``): hidden states, logits of a token head.
    Each token of the student then learns the mean of the teacher's rows of its characters; one of which the teacher
    has none has no part in the loss. What lies between two tokens (attention, relations) cannot be learned: maps over
    different tokens have no axis in common. Nor can predictions of a vocabulary, or of the ends of spans.

    Args:
        teacher: a transformers model, an `Encoder` or an `ActivationSource`.

    Attributes:
        spec: the teacher's facts, but for its vocabulary, which the student does not share.
        model: its module.
        aligned: whether something is looked at that each token has a row of, so that batches have to be aligned.

    Raises:
        TypeError: something that is not a teacher.
    """

    def __init__(self, teacher: Any) -> None:
        is_source = isinstance(teacher, ActivationSource)
        self.teacher: Any = teacher if is_source else as_encoder(teacher, "teacher")
        self.aligned = False

    @property
    def spec(self) -> EncoderSpec:
        return replace(self.teacher.spec, vocab_size=None, type_vocab_size=None)

    @property
    def model(self) -> nn.Module | None:
        return module_of(self.teacher)

    @property
    def fingerprint(self) -> str:
        """The teacher's, see `teacher_fingerprint`."""
        return teacher_fingerprint(self.teacher)

    def select(self, wants: Iterable[Want]) -> ActivationSource:
        """The source of just these spots.

        Raises:
            ValueError: one of them has no counterpart in other tokens.
        """
        wants, spec = sorted(set(wants), key=str), self.teacher.spec
        of_vocabulary = spec.output_layer or (not spec.labels and spec.num_labels == spec.vocab_size)
        places = ("hidden",) if of_vocabulary or spec.head == "span" else ("hidden", "logits")
        by_token = False
        for (place, index), pooling in wants:
            if place not in places:
                raise ValueError(
                    f"teacher: got {place} {index} to match with a student that has other tokens, want hidden states, "
                    "or logits of classes: maps over tokens, vocabularies and ends of spans have no counterpart; or "
                    "give both models one tokenizer"
                )
            by_token |= pooling is None if place == "hidden" else spec.head == "token"
        chosen = OtherTokens(source_of(self.teacher, wants))
        chosen.aligned = by_token
        return chosen

    def stream(self, batch: Mapping[str, Any], sink: Sink) -> None:
        """Run the teacher on its own tokens; what it hands over has boundaries of its own.

        Raises:
            ValueError: the batch has none of its tokens, or of another number of texts, or does not say which of them
                stand for the student's where that is needed.
        """
        own = {name.removeprefix(TEACHER): value for name, value in batch.items() if name.startswith(TEACHER)}
        bounds = own.get("cu_seq_lens_q")
        if "input_ids" not in own or bounds is None:
            raise ValueError(
                f"batch: got {sorted(batch)}, want the teacher's tokens beside the student's, packed: "
                f"{TEACHER}input_ids and its boundaries, as PackingCollator makes them of features of data.encode_both"
            )
        if len(bounds) != len(batch["cu_seq_lens_q"]):
            raise ValueError(
                f"batch: got {len(bounds) - 1} texts of the teacher's tokens and {len(batch['cu_seq_lens_q']) - 1} of "
                "the student's, want as many"
            )
        names = {part.name: f"{ALIGNMENT}{part.name}" for part in fields(Alignment)}
        known = all(name in batch for name in names.values())
        alignment = Alignment(**{part: batch[name] for part, name in names.items()}) if known else None
        if alignment is None and self.aligned:
            raise ValueError(
                f"batch: got {sorted(batch)}, want it to say which of the teacher's tokens stand for the student's, as "
                "PackingCollator makes it of features of data.encode_both(align=True): an objective matches tokens"
            )

        def with_alignment(activations: LayerActivations) -> None:
            by_token = activations.hidden is not None or self.spec.head == "token"
            sink(replace(activations, alignment=alignment) if by_token else activations)

        self.teacher.stream(own, with_alignment)

    def flush(self) -> None:
        """Of a teacher that has something to write."""
        if hasattr(self.teacher, "flush"):
            self.teacher.flush()
