"""Sizes of transformers students by name: those of papers, and "layers x width" in general."""

from __future__ import annotations

import re
from typing import Any

from ..models.registry import check_choice

__all__ = ["PUBLISHED", "parse_size"]

#: Published sizes. Heads are BERT-base's 12, so that attention can be matched head by head.
PUBLISHED: dict[str, tuple[int, int, int, int]] = {
    # layers, width, heads, feed-forward width
    "tinybert-4": (4, 312, 12, 1200),  # Jiao et al., 2020
    "tinybert-6": (6, 768, 12, 3072),
    "minilm-6x384": (6, 384, 12, 1536),  # Wang et al., 2020
    "minilm-12x384": (12, 384, 12, 1536),
    "distilbert": (6, 768, 12, 3072),  # Sanh et al., 2019
}

_FORM = re.compile(r"(\d+)x(\d+)(?:x(\d+))?")


def parse_size(size: str, teacher: Any) -> dict[str, int]:
    """The arguments of `smaller` that a size name stands for.

    Args:
        size: a name in `PUBLISHED`, ``"LxH"`` (layers x width, such as ``"3x192"``) or ``"LxHxA"`` (and heads). Of the
            latter two the feed-forward width is four times the hidden, and ``"LxH"`` has the teacher's heads.
        teacher: anything with ``num_attention_heads``: the teacher's configuration.

    Raises:
        ValueError: an unknown name, or heads that the width cannot be divided by.
    """
    if size in PUBLISHED:
        layers, width, heads, feed_forward = PUBLISHED[size]
    else:
        form = _FORM.fullmatch(str(size))
        if form is None:
            check_choice("size", str(size), (*PUBLISHED, "LAYERSxWIDTH", "LAYERSxWIDTHxHEADS"))
        assert form is not None
        layers, width = int(form[1]), int(form[2])
        heads = int(form[3] or teacher.num_attention_heads)
        feed_forward = 4 * width
    if not layers or not width or not heads or width % heads:
        raise ValueError(
            f"size: got {size!r}, want a width that {heads} heads divide; or say the heads: '{layers}x{width}xHEADS'"
        )
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": feed_forward,
    }
