"""The frozen teacher as a stream: each wanted tensor is handed over once, while the model runs, and is gone after.

Nothing is collected, so the teacher's memory is that of one layer, and the model is left as soon as the last
wanted tensor has been handed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .activations import LayerActivations, Sink, Spot, Tap
from .encoder import ActivationSource, Encoder, module_of
from .hf.encoder import PackedModel
from .loans import eval_mode
from .spec import EncoderSpec

__all__ = ["LayerActivations", "Sink", "TeacherStream", "as_encoder", "source_of"]


class TeacherStream:
    """Runs a frozen encoder under ``no_grad`` in eval mode and streams what was asked for: an `ActivationSource`.

    After each call the model is in the modes it was in.

    Args:
        model: a transformers encoder (see `PackedModel` for what is accepted), or any `Encoder`.
        attention: layers ``0..L-1`` whose q, k, v are wanted.
        hidden: hidden states wanted: 0 = embeddings output, i = output of layer i, up to L. Raw layer outputs:
            a final norm behind the stack (ModernBERT) is not applied.
        logits: whether the logits are wanted.
        output_layer: whether what the last linear map of a masked-LM head reads is wanted, with its weight and bias.

    Attributes:
        encoder: the `Encoder` that runs.
        spec: its facts.

    Raises:
        TypeError, ValueError: the model cannot run packed, or has no such layer or no head.
    """

    def __init__(
        self,
        model: PreTrainedModel | Encoder,
        *,
        attention: Iterable[int] = (),
        hidden: Iterable[int] = (),
        logits: bool = False,
        output_layer: bool = False,
    ) -> None:
        self.encoder = as_encoder(model)
        self.attention, self.hidden, self.logits = frozenset(attention), frozenset(hidden), bool(logits)
        self.output_layer = bool(output_layer)
        self.spec.check_wanted(self.attention, self.hidden, self.logits, self.output_layer)

    @property
    def spec(self) -> EncoderSpec:
        return self.encoder.spec

    @property
    def model(self) -> nn.Module | None:
        """The module that runs, see `module_of`."""
        return module_of(self.encoder)

    def stream(self, batch: Mapping[str, Any], sink: Sink) -> None:
        """Run the teacher on a packed batch and call ``sink`` with each wanted `LayerActivations`.

        They come in the order in which the model computes them: hidden 0, attention 0, hidden 1, ... logits.
        The tensors are views of the running model's memory: a sink that keeps one keeps it alive. Layers after the last
        wanted tensor do not run, nor does the rest of a layer of which only the attention was still wanted.
        """
        grad_enabled = torch.is_grad_enabled()  # the sink computes losses in it, the model does not

        def with_grad_mode(activations: LayerActivations) -> None:
            with torch.set_grad_enabled(grad_enabled):
                sink(activations)

        tap = Tap(
            with_grad_mode,
            self.attention,
            self.hidden,
            self.logits,
            stop=True,
            output_layer=self.output_layer,
        )
        with eval_mode(self.model), torch.no_grad():
            self.encoder.run(batch, tap)


def as_encoder(model: PreTrainedModel | Encoder, role: str = "model") -> Encoder:
    """An `Encoder` as it is, any other transformers model packed.

    Raises:
        TypeError: it is neither; ``role`` says which argument it was.
        ValueError: a transformers model that cannot run packed.
    """
    if isinstance(model, Encoder):
        return model
    if isinstance(model, PreTrainedModel):
        return PackedModel(model)
    raise TypeError(f"{role}: got {type(model).__name__}, want a transformers PreTrainedModel or an Encoder")


def source_of(
    teacher: PreTrainedModel | Encoder | ActivationSource, wants: Iterable[tuple[Spot, str | None]]
) -> ActivationSource:
    """A teacher as a source of just what is looked at.

    A source that has a ``select(wants)`` says itself what then streams, another one streams what it streams.

    Args:
        teacher: a model, an `Encoder` or a source.
        wants: spots, each with the pooling through which alone it is looked at, or None.

    Raises:
        TypeError, ValueError: something that is no teacher, or that has no such spot.
    """
    wants = set(wants)
    select: Any = getattr(teacher, "select", None)
    if select is not None:
        return select(wants)
    if isinstance(teacher, ActivationSource):
        return teacher
    spots = {spot for spot, _ in wants}
    attention, hidden = ([i for place, i in spots if place == kind] for kind in ("attention", "hidden"))
    last = {place: (place, 0) in spots for place in ("logits", "output_layer")}
    return TeacherStream(teacher, attention=attention, hidden=hidden, **last)
