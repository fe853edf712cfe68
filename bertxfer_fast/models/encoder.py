"""The two seams between models and everything above them: `Encoder` runs a batch, `ActivationSource` teaches.

Whatever has these few names takes part: a transformers model (`models.hf.encoder.PackedModel`), a network of your own,
a teacher that is read from a disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from .activations import PackedOutput, Sink, Tap
from .spec import EncoderSpec

__all__ = ["ActivationSource", "Encoder", "module_of", "reads"]


@runtime_checkable
class Encoder(Protocol):
    """Runs packed batches and hands its activations to a tap.

    A student of your own is an ``nn.Module`` with these two names; its parameters are what is trained.

    Attributes:
        spec: the model's facts. Without attention, ``num_heads`` is None; without a head, ``head`` is None.
    """

    @property
    def spec(self) -> EncoderSpec: ...

    def run(self, batch: Mapping[str, Any], tap: Tap | None = None) -> PackedOutput:
        """Run the model on a packed batch.

        Args:
            batch: ``input_ids [1, T]``, ``cu_seq_lens_q`` int32 ``[N + 1]``, ``max_length_q``, and whatever else the
                caller's batch has.
            tap: who listens, and to what: ``tap.sink`` is called with the `LayerActivations` of everything that
                ``tap.wants``. With ``tap.stop`` nothing else of the output is needed.
        """
        ...


@runtime_checkable
class ActivationSource(Protocol):
    """What a teacher is to a student: `TeacherStream` is one, a store on disk or an average of teachers others.

    Attributes:
        spec: the facts of the model whose activations these are.
    """

    @property
    def spec(self) -> EncoderSpec: ...

    def stream(self, batch: Mapping[str, Any], sink: Sink) -> None:
        """Hand over the activations of a packed batch.

        Args:
            batch: as in `Encoder.run`; also what is not the model's, such as keys into a store.
            sink: called once for each spot, with its `LayerActivations`, without grad and on the batch's device. What
                nobody matches is not looked at.
        """
        ...


def module_of(encoder: Any) -> nn.Module | None:
    """The ``nn.Module`` whose parameters an encoder runs: itself, or its ``model``; None if there is none."""
    module = encoder if isinstance(encoder, nn.Module) else getattr(encoder, "model", None)
    return module if isinstance(module, nn.Module) else None


def reads(*models: Encoder | ActivationSource) -> dict[str, Any]:
    """What collators have to know of models that read one batch: `inputs` and `limits` of `PackingCollator`."""
    found: dict[str, int] = {}
    for name, fact in (("input_ids", "vocab_size"), ("token_type_ids", "type_vocab_size")):
        known = [size for model in models if (size := getattr(model.spec, fact)) is not None]
        if known:
            found[name] = min(known)
    nothing: frozenset[str] = frozenset()  # `frozenset[str]()` would stop torch.compile up to torch 2.11
    inputs = nothing.union(*(getattr(model, "inputs", None) or () for model in models))
    return {"inputs": inputs, "limits": found}
