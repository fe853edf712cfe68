"""A table of token vectors that a text's vector is the mean of: model2vec's kind of student.

`distilled_table` makes the table: every token through the teacher alone, its hidden states pooled, principal components
of that, and each row weighted by how rare its token is (SIF; Arora et al., "A Simple but Tough-to-Beat Baseline for
Sentence Embeddings", 2017). The table is an ordinary parameter: it can then be trained like any student.
"""

from __future__ import annotations

from .network import register
from .pooled import Pooled, PooledConfig

__all__ = ["Static"]


class StaticConfig(PooledConfig):
    """Sizes of a `Static` student: those of `PooledConfig`, with no dropout of the vectors."""

    dropout: float = 0.0


@register
class Static(Pooled):
    """The mean of a text's token vectors, and a head. See `StaticConfig` for its options."""

    config_class = StaticConfig
    kind = "static"
    init = "distilled"
