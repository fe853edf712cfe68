"""Attention of teacher and student on the same texts, drawn side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.collators import Features, collate_inputs
from ..data.loaders import sequence_lengths
from ..models.activations import LayerActivations
from ..models.encoder import reads
from ..models.loans import device_of
from ..models.spec import EncoderSpec
from ..models.stream import TeacherStream

__all__ = ["MapPair", "attention_figure", "compare_attention", "last_attention"]

MOST_TOKENS = 24  # more have no room for their names


@dataclass(frozen=True)
class MapPair:
    """Attention over one text.

    Attributes:
        tokens: of the text, ``l``.
        teacher: ``[l, l]``, what each token (row) looks at, mean over the heads of the last layer.
        student: the same of the student.
        divergence: KL(teacher || student) of these maps, mean over rows, in nats.
    """

    tokens: list[str]
    teacher: NDArray[np.float64]
    student: NDArray[np.float64]
    divergence: float


def compare_attention(
    teacher: Any, student: Any, dataset: Features, tokenizer: Any, count: int = 3
) -> list[MapPair]:
    """The last layers' attention on the first `count` texts that are short enough to be drawn.

    Empty where one of the models has no attention, or no text is short enough.
    """
    if not count or any(EncoderSpec.of(model).num_heads is None for model in (teacher, student)):
        return []
    lengths = sequence_lengths(dataset)
    rows = np.flatnonzero((lengths > 4) & (lengths <= MOST_TOKENS))[:count].tolist()
    found = []
    for feature in (dataset[i] for i in rows):
        taught, learned = last_attention(teacher, feature), last_attention(student, feature)
        ratio = np.log(np.maximum(taught, 1e-12)) - np.log(np.maximum(learned, 1e-12))
        divergence = float((taught * ratio).sum(-1).mean())
        tokens = tokenizer.convert_ids_to_tokens(list(feature["input_ids"]))
        found.append(MapPair(tokens, taught, learned, divergence))
    return found


def last_attention(model: Any, feature: Any) -> NDArray[np.float64]:
    """``[l, l]``: softmax of scaled scores of the last layer, mean over its heads. Rows add up to 1."""
    layer = EncoderSpec.of(model).num_layers - 1
    stream = TeacherStream(model, attention=[layer])
    seen: list[LayerActivations] = []
    batch = collate_inputs([feature], **reads(stream.encoder))
    device = device_of(stream.model) if stream.model is not None else torch.device("cpu")
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    stream.stream(moved, seen.append)
    q, k, scale = seen[0].q, seen[0].k, seen[0].scale
    assert q is not None and k is not None
    scores = torch.einsum("qhd,khd->hqk", q.double(), k.double())
    return (scores * (q.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1).mean(0).cpu().numpy()


def attention_figure(pairs: Sequence[MapPair]) -> bytes:
    """A PNG: a row a text, the teacher's map left and the student's right, in one color scale.

    Raises:
        ValueError: there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not pairs:
        raise ValueError("pairs: got none, want at least one to draw")
    heights = [0.9 + 0.19 * len(pair.tokens) for pair in pairs]
    figure = Figure(figsize=(11, sum(heights)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(pairs), 2, squeeze=False, height_ratios=heights)
    for row, pair in zip(axes, pairs, strict=True):
        top = max(pair.teacher.max(), pair.student.max())
        for axis, name, values in zip(row, ("teacher", "student"), (pair.teacher, pair.student), strict=True):
            axis.imshow(values, vmin=0, vmax=top, cmap="Blues", aspect="auto")
            places = range(len(pair.tokens))
            # A dollar sign would start a formula.
            names = [token.replace("$", r"\$") for token in pair.tokens]
            axis.set_xticks(places, names, rotation=90, fontsize=7)
            axis.set_yticks(places, names, fontsize=7)
            axis.set_title(name, fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
