"""Models and what they compute: their plain facts, their activations, the packed call, the teacher's stream.

Here is what a network or a teacher of your own needs; it is light. `models.stream` and `models.hf` need transformers.
"""

from __future__ import annotations

from .activations import LayerActivations, PackedOutput, Place, Sink, Spot, Tap
from .encoder import ActivationSource, Encoder
from .spec import EncoderSpec

__all__ = [
    "ActivationSource",
    "Encoder",
    "EncoderSpec",
    "LayerActivations",
    "PackedOutput",
    "Place",
    "Sink",
    "Spot",
    "Tap",
]
