"""A teacher whose tokenizer is not the student's: each reads its own tokens of the same texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ...data.collators import TEACHER
from ...models.activations import Sink
from ...models.encoder import ActivationSource, module_of
from ...models.spec import EncoderSpec
from ...models.stream import as_encoder, source_of
from .columns import Want
from .fingerprints import teacher_fingerprint

__all__ = ["OtherTokens"]


class OtherTokens:
    """An `ActivationSource`: a teacher that reads tokens of its own, for a student with another tokenizer.

    Batches carry both: the student's tokens under the usual names, the teacher's under the same names with
    ``teacher_`` before them, as `data.encode_both` and `PackingCollator` make them. What one text has one row of can be
    learned: logits of texts, pooled hidden states. Single tokens cannot be matched.

    Args:
        teacher: a transformers model, an `Encoder` or an `ActivationSource`.

    Attributes:
        spec: the teacher's facts, but for its vocabulary, which the student does not share.
        model: its module.

    Raises:
        TypeError: something that is not a teacher.
    """

    def __init__(self, teacher: Any) -> None:
        is_source = isinstance(teacher, ActivationSource)
        self.teacher: Any = teacher if is_source else as_encoder(teacher, "teacher")

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
            ValueError: one of them has a row for every token.
        """
        wants = list(wants)
        for (place, index), pooling in wants:
            of_texts = self.spec.head == "sequence" if place == "logits" else pooling is not None
            if not of_texts:
                raise ValueError(
                    f"teacher: got {place} {index}, a row a token, to match with a student that has other tokens, want "
                    "logits of texts or pooled hidden states; or give both models one tokenizer"
                )
        return OtherTokens(source_of(self.teacher, wants))

    def stream(self, batch: Mapping[str, Any], sink: Sink) -> None:
        """Run the teacher on its own tokens; what it hands over has boundaries of its own.

        Raises:
            ValueError: the batch has none of its tokens, or of another number of texts.
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
        self.teacher.stream(own, sink)

    def flush(self) -> None:
        """Of a teacher that has something to write."""
        if hasattr(self.teacher, "flush"):
            self.teacher.flush()
