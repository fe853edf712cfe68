"""`EncoderSpec`: the plain facts of a model, read without changing it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

__all__ = ["EncoderSpec", "padded_alike"]


@dataclass(frozen=True)
class EncoderSpec:
    """What is checked before work starts. `EncoderSpec.of` reads it from a model; whoever has no model writes it.

    Attributes:
        name: of the model's class, for messages.
        num_layers: layers, so that hidden states count from 0 (embeddings) to ``num_layers``.
        hidden_size: width of the hidden states.
        num_heads: attention heads of a layer; None for a network without attention.
        head_dim: width of one head; None for a network without attention.
        vocab_size: number of token ids; None where that is not known.
        num_labels: width of the logits, 0 without a head.
        head: what the head reads: ``"sequence"`` (one row per sequence), ``"token"`` (every token),
            ``"span"`` (every token, for the first and the last one of a span), None (no head).
        problem_type: transformers' ``"regression"``, ``"single_label_classification"``,
            ``"multi_label_classification"``; None where the labels decide.
        max_positions: the longest sequence; None where there is no limit.
        position_offset: the position id of a sequence's first token (RoBERTa's come after its padding index).
        window: the longest sequence that every layer sees whole; None where all layers see everything.
        type_vocab_size: number of token type ids; None for a model without token types.
        intermediate_size: width of the feed-forward layers; None where there is no such width.
        labels: names of the labels in the order of the logits; empty without a head or names.
        output_layer: whether the logits are one linear map of token rows, whose input, weight and bias can be had
            without the logits (the decoder of a masked-LM head).
    """

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    num_labels: int = 0
    head: str | None = None
    problem_type: str | None = None
    max_positions: int | None = None
    position_offset: int = 0
    window: int | None = None
    type_vocab_size: int | None = None
    intermediate_size: int | None = None
    labels: tuple[str, ...] = ()
    output_layer: bool = False

    @staticmethod
    def of(model: Any) -> EncoderSpec:
        """The facts of a transformers encoder, or of anything that has a ``spec``. Changes nothing.

        Raises:
            TypeError: it is neither.
            ValueError: a transformers model that cannot run packed; the message says why.
        """
        spec = getattr(model, "spec", None)
        if isinstance(spec, EncoderSpec):
            return spec
        from .hf.structure import spec_of  # transformers is imported where a model of it is read

        return spec_of(model)

    def check_wanted(
        self, attention: Set[int], hidden: Set[int], logits: bool, output_layer: bool = False
    ) -> None:
        """Raise ValueError for a layer this model does not have, or for logits where it has no known head."""
        layers = 0 if self.num_heads is None else self.num_layers
        for place, wanted, count in (
            ("attention", attention, layers),
            ("hidden", hidden, self.num_layers + 1),
        ):
            bad = sorted(i for i in wanted if not 0 <= i < count)
            if bad and not count:
                raise ValueError(f"{place}: got {bad}, want none: {self.name} has no attention")
            if bad:
                raise ValueError(f"{place}: got {bad}, want indices 0..{count - 1} of {self.name}")
        if logits and self.head is None:
            raise ValueError(
                f"logits: got {self.name}, which has no head this package knows, want a model for sequence or token "
                "classification or masked-LM (or PackedModel(model, head='sequence' | 'token'))"
            )
        if output_layer and not self.output_layer:
            raise ValueError(
                f"output_layer: got {self.name}, want a masked-LM model, whose head ends in one linear map of tokens"
            )


def padded_alike(first: int, second: int) -> bool:
    """Whether one size of a vocabulary is the other rounded up, as ``pad_to_multiple_of`` does for tensor cores."""
    smaller, larger = sorted((first, second))
    return any(larger == -(-smaller // multiple) * multiple for multiple in (1, 8, 16, 32, 64, 128, 256))
